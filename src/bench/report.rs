//! What was measured, and under which conditions.

use std::time::Duration;

use serde::Serialize;

/// The whole measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Version of the server.
    pub server: String,
    /// How the server of an own fleet stores; unknown of somebody else's.
    pub storage: &'static str,
    /// Cores shared by everything.
    pub cores: usize,
    /// Rounds of each case; figures are their medians.
    pub rounds: usize,
    /// Share of the machine, 0 to 1, used by others meanwhile; `None` where the fleet is not ours to count.
    pub foreign_cpu: Option<f64>,
    /// One a case.
    pub rows: Vec<Row>,
    /// What an own fleet takes while nothing is to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
}

/// A fleet at rest.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// From the start of a worker's process to the end of a task that waited for it, in milliseconds.
    pub first_task_ms: Spread,
    /// Each part.
    pub parts: Vec<IdlePart>,
}

/// One process at rest.
#[derive(Clone, Debug, Serialize)]
pub struct IdlePart {
    /// `worker` or `server`.
    pub part: &'static str,
    /// Of one core.
    pub cpu_percent: f64,
    /// In RAM.
    pub memory_mib: f64,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which suite.
    pub suite: &'static str,
    /// Which case.
    pub case: String,
    /// Jobs, or requests, a round.
    pub jobs: usize,
    /// Jobs a second.
    pub per_second: Spread,
    /// Submitted until its end was seen: half of them took no longer, in milliseconds.
    pub p50_ms: Spread,
    /// The same for 99 of 100.
    pub p99_ms: Spread,
    /// CPU a job, in microseconds, of each part that is ours to count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpu_us: Vec<PartCpu>,
    /// The same without Shoal, measured in turn with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare: Option<Bare>,
}

impl Row {
    /// The figures of these rounds, nothing beside them.
    pub fn new(suite: &'static str, case: String, rounds: &[Round]) -> Self {
        Self {
            suite,
            case,
            jobs: rounds.first().map_or(0, |round| round.latencies.len()),
            per_second: Spread::of(rounds.iter().map(Round::per_second)),
            p50_ms: Spread::of(rounds.iter().map(|round| round.quantile_ms(0.5))),
            p99_ms: Spread::of(rounds.iter().map(|round| round.quantile_ms(0.99))),
            cpu_us: Vec::new(),
            bare: None,
        }
    }
}

/// CPU of one part of the fleet.
#[derive(Clone, Debug, Serialize)]
pub struct PartCpu {
    /// `worker`, `server`, `submitter`.
    pub part: &'static str,
    /// Microseconds a job.
    pub us: f64,
}

/// The same work without Shoal.
#[derive(Clone, Debug, Serialize)]
pub struct Bare {
    /// What was done.
    pub what: &'static str,
    /// Jobs a second.
    pub per_second: Spread,
    /// Half of them took no longer, in milliseconds.
    pub p50_ms: Spread,
}

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of at least one figure.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(figures.len() / 2), least: at(0), most: at(figures.len().saturating_sub(1)) }
    }
}

/// One round of one case.
#[derive(Clone, Debug)]
pub struct Round {
    /// From the first submission to the last end.
    pub took: Duration,
    /// Of each job, sorted.
    pub latencies: Vec<Duration>,
}

impl Round {
    /// Jobs a second.
    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency that `share` of the jobs did not exceed, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let at = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_middle_and_its_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
    }

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let round = Round { took: Duration::from_secs(2), latencies };
        assert_eq!((round.quantile_ms(0.5), round.quantile_ms(0.99), round.quantile_ms(1.0)), (51.0, 100.0, 100.0));
        assert_eq!(round.per_second(), 50.0);
    }
}
