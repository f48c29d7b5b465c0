//! What a store of the server has lost, as it is noted on the stream of tasks: `nats stream info` shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Name of the note in the metadata of the stream of tasks.
pub const LOSS: &str = "shoal-loss";
/// The same once somebody has read it: what was told is not told again.
pub const LOSS_READ: &str = "shoal-loss-read";

/// Losses noted at most; beyond that the oldest go.
const KEPT: usize = 16;
/// Two notes of one stream within this are of one loss: many dispatchers notice it at once.
const ONE_MS: i64 = 60_000;

/// One loss.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// When a dispatcher noticed it.
    pub noticed: Timestamp,
    /// Of which stream.
    pub stream: String,
    /// The highest sequence that is known to have been given.
    pub from: u64,
    /// The last sequence when it was noticed: whatever was stored between is gone or was never the same.
    pub to: u64,
    /// How it was noticed, and what is known of it.
    pub what: String,
}

/// Reads a note; one that is not ours is none.
pub fn read(note: Option<&String>) -> Vec<Loss> {
    note.and_then(|note| serde_json::from_str(note).ok()).unwrap_or_default()
}

/// Writes a note.
pub fn write(losses: &[Loss]) -> String {
    serde_json::to_string(losses).expect("losses are plain data")
}

/// Adds what was noticed. One that others have noted already only becomes wider.
pub fn add(losses: &mut Vec<Loss>, new: Loss) {
    let same = |old: &&mut Loss| {
        old.stream == new.stream && (new.noticed.as_millis() - old.noticed.as_millis()).abs() < ONE_MS
    };
    if let Some(old) = losses.iter_mut().find(same) {
        old.from = old.from.max(new.from);
        old.to = old.to.min(new.to);
        return;
    }
    losses.push(new);
    let surplus = losses.len().saturating_sub(KEPT);
    losses.drain(..surplus);
}

/// Moves what `notes` tell to what was read, beside all that was read before: whatever was told once is not told again.
/// Returns what they told.
pub fn mark_read(notes: &mut BTreeMap<String, String>) -> Vec<Loss> {
    let Some(note) = notes.remove(LOSS) else { return Vec::new() };
    let told = read(Some(&note));
    let mut before = read(notes.get(LOSS_READ));
    told.iter().for_each(|loss| add(&mut before, loss.clone()));
    notes.insert(LOSS_READ.into(), write(&before));
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(ms: i64, stream: &str, from: u64, to: u64) -> Loss {
        Loss { noticed: Timestamp::from_millis(ms), stream: stream.into(), from, to, what: "went back".into() }
    }

    #[test]
    fn one_loss_that_many_notice_is_noted_once() {
        let mut losses = Vec::new();
        add(&mut losses, loss(0, "A", 100, 50));
        add(&mut losses, loss(900, "A", 120, 51));
        add(&mut losses, loss(900, "B", 7, 3));
        assert_eq!(losses, [loss(0, "A", 120, 50), loss(900, "B", 7, 3)]);
        add(&mut losses, loss(ONE_MS + 1, "A", 60, 10));
        assert_eq!(losses.len(), 3);
        assert_eq!(read(Some(&write(&losses))), losses);
        assert!(read(Some(&"by hand".to_owned())).is_empty() && read(None).is_empty());
        for n in 2..40 {
            add(&mut losses, loss(n * 2 * ONE_MS, "A", 1, 0));
        }
        assert_eq!(losses.len(), KEPT);
    }

    #[test]
    fn what_was_read_once_stays_read() {
        let mut notes = BTreeMap::new();
        assert!(mark_read(&mut notes).is_empty() && notes.is_empty());
        let (first, second) = (loss(0, "A", 100, 50), loss(2 * ONE_MS, "A", 60, 40));
        for told in [&first, &second] {
            notes.insert(LOSS.into(), write(std::slice::from_ref(told)));
            assert_eq!(mark_read(&mut notes), std::slice::from_ref(told));
        }
        assert_eq!(read(notes.get(LOSS_READ)), [first, second]);
        assert!(!notes.contains_key(LOSS));
    }
}
