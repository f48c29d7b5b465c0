//! Dead letters: those of the last hour against an hour of the day before, by reason.

use std::collections::BTreeMap;
use std::time::Duration;

use jetstream::Page;
use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::{Timestamp, header};

use super::{Doctor, Notes, count};
use crate::client::ClientError;

const HOUR: Duration = Duration::from_secs(3600);
/// Hours before the last one that are compared with it.
const HOURS: u32 = 24;
/// Letters of each time that are read for their reasons; they are read with their bodies.
const READ: usize = 200;
/// Growing is so many times as many as usual, and so many more: a few are nobody's concern, and chance has its play.
const TIMES: u64 = 2;
const FEW: u64 = 5;

/// Dead letters of some time.
#[derive(Debug, Default)]
struct Letters {
    number: u64,
    /// Of some of them.
    reasons: BTreeMap<String, u64>,
}

pub(super) async fn check(on: &Doctor<'_>) -> Result<Notes, ClientError> {
    let (js, stream) = (&on.client.js, on.client.names.dead_stream());
    let mut notes = Notes::default();
    let Some(info) = js.stream_info(&stream).await? else { return Ok(notes) };
    let now = info.ts.unwrap_or_else(Timestamp::now);
    let before = |length: Duration| Timestamp::from_millis(now.as_millis() - length.as_millis() as i64);
    let (hour, day) = (before(HOUR), before(HOUR * (HOURS + 1)));
    let mut newest = Letters::default();
    let mut older = Letters::default();
    if info.state.messages > 0 {
        let subjects = on.client.names.dead_subjects();
        newest = letters(&js.page_since(&stream, &subjects, hour, READ).await?, None);
        older = letters(&js.page_since(&stream, &subjects, day, READ).await?, Some(hour));
        older.number = older.number.saturating_sub(newest.number);
    }
    notes.looked(format!(
        "{} of the last hour, {} of the {HOURS} hours before",
        count(newest.number, "dead letter"),
        older.number
    ));
    notes.findings.extend(judge(&newest, &older));
    Ok(notes)
}

/// All from its beginning on are counted, those before `until` by reason.
fn letters(page: &Page, until: Option<Timestamp>) -> Letters {
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for message in page.messages.iter().filter(|message| until.is_none_or(|until| message.stored_at < until)) {
        *reasons.entry(message.header(header::REASON).unwrap_or("unknown").to_owned()).or_default() += 1;
    }
    Letters { number: page.messages.len() as u64 + page.left, reasons }
}

fn judge(newest: &Letters, older: &Letters) -> Option<Finding> {
    let usual = older.number.div_ceil(u64::from(HOURS));
    if newest.number < FEW + usual * TIMES {
        return None;
    }
    let mut reasons: Vec<(&String, u64)> = newest.reasons.iter().map(|(reason, number)| (reason, *number)).collect();
    reasons.sort_by_key(|(reason, number)| (std::cmp::Reverse(*number), (*reason).clone()));
    let words: Vec<String> = reasons.iter().take(4).map(|(reason, number)| format!("{number} {reason}")).collect();
    let read: u64 = newest.reasons.values().sum();
    let of = if read < newest.number { format!(" of the first {read}") } else { String::new() };
    let main = reasons.first().map_or("unknown", |(reason, _)| reason.as_str());
    let finding = Finding::new(Severity::Warning, FindingCode::DeadLettersGrowing, "dead letters")
        .says(format!(
            "{} in the last hour, {usual} an hour in the day before; {}{of}",
            newest.number,
            words.join(", ")
        ))
        .seen("last_hour", newest.number)
        .seen("hourly_before", usual)
        .seen("reasons", serde_json::json!(newest.reasons))
        .seen("reasons_before", serde_json::json!(older.reasons))
        .next(format!("shoal dead list --reason {main}; docs/errors.md says what it means"));
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: u64) -> Letters {
        Letters { number, reasons: [("timed_out".to_owned(), number)].into() }
    }

    #[test]
    fn growing_is_more_than_twice_the_usual_and_a_few() {
        assert!(judge(&of(4), &of(0)).is_none(), "few");
        assert!(judge(&of(5), &of(0)).is_some());
        assert!(judge(&of(8), &of(40)).is_none(), "as chance may have it");
        assert!(judge(&of(204), &of(2400)).is_none(), "twice the usual");
        let finding = judge(&of(205), &of(2400)).unwrap();
        assert_eq!(
            (&finding.evidence["hourly_before"], &finding.evidence["reasons"]["timed_out"]),
            (&100.into(), &205.into())
        );
        assert!(finding.next.contains("--reason timed_out"), "{}", finding.next);
    }
}
