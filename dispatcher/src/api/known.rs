//! What this dispatcher last wrote of agents that beat over HTTP, so that a beat need not be read before it is written. A
//! guess and no more: the write compares revisions, and who guessed wrong reads.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemas::{AgentId, AgentRecord, Timestamp};

/// Whoever was silent for so long beats elsewhere, or no more.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Before anybody is forgotten.
const LEAST: usize = 1_024;

/// Records with their revisions.
#[derive(Debug, Default)]
pub struct Known {
    agents: Mutex<Agents>,
}

#[derive(Debug, Default)]
struct Agents {
    records: HashMap<AgentId, (AgentRecord, u64)>,
    /// With so many it is time to look for those that can be forgotten.
    crowd: usize,
}

impl Known {
    fn agents(&self) -> MutexGuard<'_, Agents> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of an agent and its revision, which are not known any more then: whoever writes it keeps it again.
    pub fn take(&self, id: &AgentId) -> Option<(AgentRecord, u64)> {
        self.agents().records.remove(id)
    }

    /// Keeps what was written just now.
    pub fn keep(&self, record: AgentRecord, revision: u64) {
        let mut agents = self.agents();
        if agents.records.len() >= agents.crowd.max(LEAST) {
            let now = Timestamp::now();
            agents.records.retain(|_, (record, _)| now.since(record.last_heartbeat) < REMEMBERED);
            agents.crowd = agents.records.len() * 2;
        }
        agents.records.insert(record.id.clone(), (record, revision));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::registry::tests::agent;

    fn named(id: usize, last_heartbeat: Timestamp) -> AgentRecord {
        AgentRecord { id: format!("a-{id}").parse().unwrap(), last_heartbeat, ..agent(&[]) }
    }

    #[test]
    fn the_newest_is_known_once_and_the_silent_are_forgotten_in_a_crowd() {
        let (known, now) = (Known::default(), Timestamp::now());
        known.keep(named(1, now), 7);
        known.keep(named(1, now), 9);
        let id: AgentId = "a-1".parse().unwrap();
        assert_eq!(known.take(&id).unwrap().1, 9);
        assert!(known.take(&id).is_none());
        for id in 0..LEAST {
            known.keep(named(id, Timestamp::from_millis(0)), 1);
        }
        known.keep(named(LEAST, now), 1);
        assert_eq!(known.agents().records.len(), 1);
    }
}
