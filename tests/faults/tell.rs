//! What there is about one run, for whoever has to find out why a promise was not held.

use crate::history::{History, Submission};

/// Prints what there is about the run that `words` are about, in the order of time.
pub fn tell(history: &History, words: &str) {
    let mut lines = Vec::new();
    for submission in
        history.submissions.iter().filter(|submission| words.contains(&format!("nonce {}", submission.nonce)))
    {
        let Submission { nonce, key, plan, answer, sent_at, answered_at, .. } = submission;
        lines.push((*sent_at, format!("sent {key}: {plan:?}")));
        lines.push((*answered_at, format!("answer {answer:?}")));
        for effect in history.effects.iter().filter(|effect| effect.nonce == *nonce) {
            lines.push((effect.at, format!("{:?} of start {} attempt {}", effect.what, effect.start, effect.attempt)));
        }
        for cancel in history.cancels.iter().filter(|cancel| cancel.nonce == *nonce) {
            lines.push((cancel.asked_at, "cancel asked".into()));
            lines.extend(cancel.confirmed_at.map(|at| (at, "cancel confirmed".into())));
        }
        for revision in history.revisions.iter().filter(|revision| revision.key == *key) {
            let record = schemas::TaskRecord { task: None, ..revision.record.clone() };
            let record = serde_json::to_string(&record).expect("a record is JSON");
            lines.push((revision.at, format!("revision {}: {record}", revision.revision)));
        }
    }
    if lines.is_empty() {
        return;
    }
    for fault in &history.faults {
        lines.push((fault.from, format!("fault {} {:?}", fault.name, fault.killed)));
        lines.push((fault.until, format!("fault {} healed", fault.name)));
    }
    lines.sort();
    eprintln!("{words}");
    let first = lines[0].0;
    for (at, line) in lines {
        eprintln!("    {:>7} {}", at - first, line.chars().take(900).collect::<String>());
    }
}
