//! What is counted and measured over histories. Figures of many rounds add up exactly: samples are kept.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Outcome, State};
use serde::{Deserialize, Serialize};

use super::runs::Runs;
use super::{effects, kills};

/// Counts and times of one round, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Submissions whose submitter was told that they are stored.
    pub accepted: u64,
    /// Submissions that were refused for sure.
    pub refused: u64,
    /// Never answered, and stored.
    pub unknown_stored: u64,
    /// Never answered, and not stored.
    pub unknown_not_stored: u64,
    /// Longest time from sending to an answer.
    pub slowest_answer_ms: i64,
    /// Runs by the state in which they ended.
    pub ended: BTreeMap<String, u64>,
    /// Accepted, without an end.
    pub never_ended: u64,
    /// Attempts that were lost with their worker.
    pub lost_attempts: u64,
    /// Starts that left effects.
    pub starts: u64,
    /// Of these, such as came to their end although another start of the same attempt did, too: superseded.
    pub superseded_ends: u64,
    /// Pairs of starts of one run that were there at once.
    pub overlaps: u64,
    /// How long such pairs were there at once.
    pub overlap_ms: Samples,
    /// From the kill of a worker to the next start of a run that it had.
    pub kill_to_restart_ms: Samples,
    /// From handing a run back to its next start.
    pub handback_to_restart_ms: Samples,
    /// From a cancel to its confirmation, where server and worker could be reached.
    pub cancel_confirmed_ms: Samples,
    /// The same where one of them could not.
    pub cancel_in_trouble_ms: Samples,
    /// By the name of a fault of the server: the longest time without the end of any run, from a second before it until
    /// it is over for long.
    pub standstill_ms: BTreeMap<String, Samples>,
    /// Containers and networks that were left.
    pub containers_left: u64,
}

impl Figures {
    /// Adds those of another round.
    pub fn add(&mut self, other: &Figures) {
        self.accepted += other.accepted;
        self.refused += other.refused;
        self.unknown_stored += other.unknown_stored;
        self.unknown_not_stored += other.unknown_not_stored;
        self.slowest_answer_ms = self.slowest_answer_ms.max(other.slowest_answer_ms);
        for (state, count) in &other.ended {
            *self.ended.entry(state.clone()).or_default() += count;
        }
        self.never_ended += other.never_ended;
        self.lost_attempts += other.lost_attempts;
        self.starts += other.starts;
        self.superseded_ends += other.superseded_ends;
        self.overlaps += other.overlaps;
        self.overlap_ms.add(&other.overlap_ms);
        self.kill_to_restart_ms.add(&other.kill_to_restart_ms);
        self.handback_to_restart_ms.add(&other.handback_to_restart_ms);
        self.cancel_confirmed_ms.add(&other.cancel_confirmed_ms);
        self.cancel_in_trouble_ms.add(&other.cancel_in_trouble_ms);
        for (fault, samples) in &other.standstill_ms {
            self.standstill_ms.entry(fault.clone()).or_default().add(samples);
        }
        self.containers_left += other.containers_left;
    }
}

/// Measured times in milliseconds, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Samples(Vec<i64>);

impl Samples {
    /// Adds those of another round.
    pub fn add(&mut self, other: &Samples) {
        self.0.extend(&other.0);
        self.0.sort_unstable();
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that at least `percent` of all are not above (nearest rank).
    pub fn percentile(&self, percent: u32) -> Option<i64> {
        let rank = (self.0.len() * percent as usize).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    /// The largest.
    pub fn max(&self) -> Option<i64> {
        self.0.last().copied()
    }
}

impl FromIterator<i64> for Samples {
    fn from_iter<I: IntoIterator<Item = i64>>(samples: I) -> Self {
        let mut samples: Vec<i64> = samples.into_iter().collect();
        samples.sort_unstable();
        Self(samples)
    }
}

/// Milliseconds until everybody is connected again.
const RECOVERY: i64 = 5_000;

/// Counts and measures.
pub fn count(runs: &Runs) -> Figures {
    let mut figures = Figures::default();
    let stored: BTreeSet<&str> = runs.judged().map(|(_, submission)| submission.nonce.as_str()).collect();
    for (nonce, asked) in &runs.asked {
        let count = match (asked.refused, asked.accepted.is_empty()) {
            (true, _) => &mut figures.refused,
            (false, false) => &mut figures.accepted,
            (false, true) if stored.contains(nonce) => &mut figures.unknown_stored,
            (false, true) => &mut figures.unknown_not_stored,
        };
        *count += 1;
        if asked.refused || !asked.accepted.is_empty() {
            let ms = asked.submission.answered_at - asked.submission.sent_at;
            figures.slowest_answer_ms = figures.slowest_answer_ms.max(ms);
        }
        let without_record = !asked.accepted.is_empty() && !stored.contains(nonce);
        figures.never_ended += u64::from(without_record);
    }
    for (run, _) in runs.judged() {
        match run.end() {
            Some(end) => *figures.ended.entry(end.record.state.to_string()).or_default() += 1,
            None => figures.never_ended += 1,
        }
        let last = run.revisions.last().expect("a run is made of its revisions");
        let lost = last.record.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Lost);
        figures.lost_attempts += lost.count() as u64;
    }
    for starts in runs.starts.values() {
        figures.starts += starts.len() as u64;
        let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
        for start in starts.iter().filter(|start| start.ended) {
            *ends.entry(start.attempt).or_default() += 1;
        }
        figures.superseded_ends += ends.values().map(|ends| ends - 1).sum::<u64>();
    }
    figures.overlap_ms = effects::pairs(runs).iter().map(|pair| pair.until - pair.from).collect();
    figures.overlaps = figures.overlap_ms.count() as u64;
    figures.kill_to_restart_ms = kills::delays(runs).into_iter().collect();
    figures.handback_to_restart_ms = kills::handbacks(runs).into_iter().collect();
    let faults = || runs.history.faults.iter().filter(|fault| fault.away.is_some() || fault.silent.is_some());
    let in_trouble = |from, until| faults().any(|fault| fault.from <= until && from <= fault.until + RECOVERY);
    let confirmed = |troubled: bool| {
        let cancels = runs.history.cancels.iter();
        let confirmed = cancels.filter_map(|cancel| Some((cancel.asked_at, cancel.confirmed_at?)));
        confirmed
            .filter(|(from, until)| in_trouble(*from, *until) == troubled)
            .map(|(from, until)| until - from)
            .collect()
    };
    figures.cancel_confirmed_ms = confirmed(false);
    figures.cancel_in_trouble_ms = confirmed(true);
    let mut ends: Vec<i64> = runs.judged().filter_map(|(run, _)| Some(run.end()?.at)).collect();
    ends.sort_unstable();
    for fault in &runs.history.faults {
        let Some(after) = fault.away else { continue };
        let (from, until) = (fault.from - 1_000, fault.until + after);
        let near: Vec<i64> = ends.iter().copied().filter(|at| (from..=until).contains(at)).collect();
        let longest = near.windows(2).map(|pair| pair[1] - pair[0]).max();
        let samples = figures.standstill_ms.entry(fault.name.to_owned()).or_default();
        samples.add(&longest.into_iter().collect());
    }
    figures.containers_left = runs.history.rest.containers.len() as u64;
    figures
}

/// Every terminal state, for a table.
pub fn terminal() -> impl Iterator<Item = State> {
    State::ALL.into_iter().filter(|state| state.is_terminal())
}
