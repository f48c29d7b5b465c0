//! How far an agent job is that runs, by what it tells. Of a long one the beginning and the end are read, not all of it.

use std::time::Duration;

use schemas::explain::{AgentFacts, AskedQuestion, Reason, ReasonCode};
use schemas::transcript::{Entry, Event};
use schemas::{Outcome, StartId, TaskKey, Timestamp};

use super::{reason, time};
use crate::client::{Client, ClientError, TaskView};

/// Entries that are read from the beginning of an attempt: they tell of its first phases.
const BEGINNING: usize = 200;
/// Entries that are read of its end.
const END: u64 = 400;
/// Pages of the end; one is cut where its entries are large.
const PAGES: usize = 8;
/// As much the clocks of a worker and of the server may differ.
const SKEW: Duration = Duration::from_secs(60);
/// Letters of a question.
const QUESTION: usize = 1_000;

impl Client {
    /// How far an agent job is; of one that does not run, nothing.
    pub(in crate::client) async fn agent_facts(&self, view: &TaskView) -> Result<AgentFacts, ClientError> {
        let running = view.current().filter(|current| !current.record.state.is_terminal());
        let last = running.and_then(|current| current.record.attempts.last());
        let last = last.filter(|attempt| attempt.outcome == Outcome::Running);
        let Some((start, began)) = last.and_then(|last| Some((last.start.as_ref()?, super::begun(last)?))) else {
            return Ok(AgentFacts::default());
        };
        let stream = self.names.talk_stream();
        let subject = self.names.talk_out_subject(view.key.id.as_str());
        let since = Timestamp::from_millis(began.as_millis().saturating_sub(SKEW.as_millis() as i64));
        let mut heard = Heard { key: &view.key, start, facts: AgentFacts::default() };
        let mut page = self.js.page_since(&stream, &subject, since, BEGINNING).await?;
        let mut next = heard.take_all(&page.messages);
        if page.left > END {
            next = self.last_entries(&stream, &subject, next).await?;
            heard.leave_out();
        }
        for _ in 0..PAGES {
            if !page.more {
                break;
            }
            page = self.js.page(&stream, &subject, next, BEGINNING).await?;
            next = heard.take_all(&page.messages);
        }
        Ok(heard.facts)
    }

    /// A sequence from `from` on, from which at most [`END`] entries are left, and few less.
    async fn last_entries(&self, stream: &str, subject: &str, from: u64) -> Result<u64, ClientError> {
        let Some(last) = self.js.last(stream, subject).await? else { return Ok(from) };
        let (mut low, mut high) = (from, last.sequence);
        // From `low` on there are too many, from `high` on few enough.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match self.js.count_from(stream, subject, middle).await? {
                many if many > END => low = middle,
                few => {
                    high = middle;
                    if few > END / 2 {
                        break;
                    }
                }
            }
        }
        Ok(high)
    }
}

struct Heard<'a> {
    key: &'a TaskKey,
    start: &'a StartId,
    facts: AgentFacts,
}

impl Heard<'_> {
    /// Takes in a page; where to go on.
    fn take_all(&mut self, messages: &[jetstream::StoredMessage]) -> u64 {
        for message in messages {
            // What a newer version tells in another way is passed over.
            if let Ok(entry) = serde_json::from_slice::<Entry>(&message.payload)
                && entry.queue == self.key.queue
                && entry.start == *self.start
            {
                self.take(entry);
            }
        }
        messages.last().map_or(1, |last| last.sequence + 1)
    }

    fn take(&mut self, Entry { at, event, .. }: Entry) {
        let facts = &mut self.facts;
        facts.last_told = Some(at);
        match event {
            Event::PhaseBegan { phase } => {
                (facts.phase, facts.since) = (Some(phase), Some(at));
                facts.questions.clear();
            }
            Event::Turn { number, .. } => {
                facts.turns = number;
                facts.questions.clear();
            }
            // It went on without an answer.
            Event::ToolResult { .. } | Event::PhaseEnded { .. } => facts.questions.clear(),
            Event::Question { id, text } => facts.questions.push(AskedQuestion { id, text, at }),
            Event::Answer { id, .. } => facts.questions.retain(|question| question.id != id),
            Event::Retry { .. }
            | Event::Prompt { .. }
            | Event::Text { .. }
            | Event::ToolCall { .. }
            | Event::Used { .. }
            | Event::Step { .. }
            | Event::Said { .. }
            | Event::Kept { .. }
            | Event::Note { .. } => {}
        }
    }

    /// What comes next is not read: the phase is the last that is known of, and nobody knows since when.
    fn leave_out(&mut self) {
        self.facts.since = None;
        self.facts.questions.clear();
    }
}

/// What it waits for, the weightiest reason why it stands where it is.
pub(super) fn questions(key: &TaskKey, facts: &AgentFacts, now: Timestamp) -> Vec<Reason> {
    let several = facts.questions.len() > 1;
    let asked = facts.questions.iter().map(|question| {
        let id = if several { format!(" --question {}", question.id) } else { String::new() };
        let mut text = question.text.trim().to_owned();
        if let Some((at, _)) = text.char_indices().nth(QUESTION) {
            text.truncate(at);
            text.push_str(&format!("… (all of it: shoal agent questions {key})"));
        }
        let waits = time(now.since(question.at));
        reason(
            ReasonCode::Asking,
            format!("it has asked people, and waits for an answer for {waits}: {text}"),
            format!("answer it: shoal agent answer {key} 'TEXT'{id}"),
        )
    });
    asked.collect()
}

/// `, in the phase implement for 5m (since …), turn 7`
pub(super) fn doing(facts: &AgentFacts, now: Timestamp) -> String {
    let mut text = String::new();
    if let Some(phase) = facts.phase {
        text.push_str(&format!(", in the phase `{phase}`"));
    }
    if let Some(since) = facts.since {
        text.push_str(&format!(" for {} (since {since})", time(now.since(since))));
    }
    if facts.turns > 0 {
        text.push_str(&format!(", in turn {} of its model", facts.turns));
    }
    if let Some(told) = facts.last_told.filter(|told| facts.since.is_none_or(|since| *told > since)) {
        text.push_str(&format!(", last heard of {} ago", time(now.since(told))));
    }
    text
}

/// How one that runs is watched.
pub(super) fn watch(key: &TaskKey) -> String {
    format!(
        "watch it: shoal agent transcript {key} -f; what its commands write: shoal logs -f {key}; or end it: \
         shoal cancel {key}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn facts(events: &[Value]) -> AgentFacts {
        let key: TaskKey = "default.t".parse().unwrap();
        let start: StartId = serde_json::from_value(json!("k3v9x2abcdef")).unwrap();
        let mut heard = Heard { key: &key, start: &start, facts: AgentFacts::default() };
        for (n, event) in events.iter().enumerate() {
            let at = format!("2026-11-22T00:00:{n:02}Z");
            let entry = json!({"number": n + 1, "at": at, "queue": "default", "start": start, "event": event});
            heard.take(serde_json::from_value(entry).unwrap());
        }
        heard.facts
    }

    #[test]
    fn a_question_is_open_until_it_is_answered_or_the_job_goes_on() {
        let began = json!({"kind": "phase_began", "phase": "implement"});
        let turn = json!({"kind": "turn", "number": 3, "model": "m"});
        let asked = |id: &str| json!({"kind": "question", "id": id, "text": "Which?"});
        let open =
            |events: &[Value]| facts(events).questions.into_iter().map(|question| question.id).collect::<Vec<_>>();
        assert_eq!(open(&[began.clone(), turn.clone(), asked("a")]), ["a"]);
        assert_eq!(open(&[asked("a"), asked("b"), json!({"kind": "answer", "id": "a", "text": "x"})]), ["b"]);
        assert_eq!(open(&[asked("a"), json!({"kind": "said", "text": "hm"})]), ["a"]);
        for goes_on in [
            turn.clone(),
            json!({"kind": "tool_result", "id": "1", "text": "nobody answered"}),
            json!({"kind": "phase_ended", "phase": "implement"}),
        ] {
            assert_eq!(open(&[asked("a"), goes_on]), [""; 0]);
        }
        let facts = facts(&[began, turn, asked("a")]);
        assert_eq!((facts.phase.map(|phase| phase.to_string()).as_deref(), facts.turns), (Some("implement"), 3));
        assert_eq!(facts.since, Some("2026-11-22T00:00:00Z".parse().unwrap()));
    }
}
