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
    /// How often that server has its files written to disk.
    pub sync: &'static str,
    /// Cores shared by everything.
    pub cores: usize,
    /// Rounds of each case; figures are their medians.
    pub rounds: usize,
    /// Jobs a round in hundredths of the usual.
    pub percent: usize,
    /// Share of the machine, 0 to 1, used by others meanwhile; `None` where the fleet is not ours to count.
    pub foreign_cpu: Option<f64>,
    /// One a case.
    pub rows: Vec<Row>,
    /// What an own fleet takes while nothing is to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
    /// What the parts of an own fleet hold in RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
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
    /// `worker`, `dispatcher` or `server`.
    pub part: &'static str,
    /// Of one core.
    pub cpu_percent: f64,
    /// In RAM.
    pub memory_mib: f64,
}

/// What the parts of a fleet hold in RAM.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Size of this program's file.
    pub binary_mib: f64,
    /// `start`: before its first job; `end`: a moment after the last of so many.
    pub parts: Vec<PartMemory>,
    /// No-ops in between.
    pub jobs: usize,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Which suite.
    pub suite: &'static str,
    /// Which case.
    pub case: String,
    /// Jobs, or whatever `unit` says, a round.
    pub jobs: usize,
    /// What is counted.
    pub unit: &'static str,
    /// Of them a second.
    pub per_second: Spread,
    /// Submitted until its end was seen: half of them took no longer, in milliseconds. `None` where single ones are not
    /// timed.
    pub p50_ms: Option<Spread>,
    /// The same for 99 of 100.
    pub p99_ms: Option<Spread>,
    /// CPU a job, in microseconds, of each part that is ours to count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpu_us: Vec<PartCpu>,
    /// RAM of each part that is ours to count, where the case is about that: the most of all rounds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<PartMemory>,
    /// The same without Shoal, measured in turn with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
}

impl Row {
    /// The figures of these rounds, nothing beside them.
    pub fn new(suite: &'static str, case: String, rounds: &[Round]) -> Self {
        Self {
            suite,
            case,
            jobs: rounds.first().map_or(0, |round| round.jobs),
            unit: "jobs",
            per_second: Spread::of(rounds.iter().map(Round::per_second)),
            p50_ms: quantile(rounds, 0.5),
            p99_ms: quantile(rounds, 0.99),
            cpu_us: Vec::new(),
            memory: Vec::new(),
            beside: Vec::new(),
        }
    }
}

fn quantile(rounds: &[Round], share: f64) -> Option<Spread> {
    let figures: Option<Vec<f64>> = rounds.iter().map(|round| round.quantile_ms(share)).collect();
    figures.map(Spread::of)
}

/// CPU of one part of the fleet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartCpu {
    /// `worker`, `server`, `dispatcher`, `submitter`.
    pub part: &'static str,
    /// Microseconds a job.
    pub us: f64,
    /// Of one core, as long as a round took.
    pub percent: f64,
}

/// RAM of one part of the fleet, in MiB.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartMemory {
    /// `worker`, `server`, `dispatcher`.
    pub part: &'static str,
    /// When it began.
    pub start_mib: f64,
    /// At most.
    pub peak_mib: f64,
    /// When it was over.
    pub end_mib: f64,
}

/// The same work without Shoal.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// What was done.
    pub what: String,
    /// Jobs a second.
    pub per_second: Spread,
    /// Half of them took no longer, in milliseconds.
    pub p50_ms: Option<Spread>,
    /// The same for 99 of 100.
    pub p99_ms: Option<Spread>,
    /// CPU a job, in microseconds, of each part that is ours to count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpu_us: Vec<PartCpu>,
    /// Ours over this, round by round.
    pub ratio: Ratio,
}

/// Ours over something else, from rounds that were measured in turn.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Of jobs a second: more is better.
    pub per_second: Spread,
    /// Of the latency of half of them: less is better.
    pub p50: Option<Spread>,
    /// The same for 99 of 100.
    pub p99: Option<Spread>,
}

impl Ratio {
    fn new(ours: &[Round], theirs: &[Round]) -> Self {
        let of = |share| {
            let pairs = ours.iter().zip(theirs);
            let ratios: Option<Vec<f64>> =
                pairs.map(|(ours, theirs)| Some(ours.quantile_ms(share)? / theirs.quantile_ms(share)?)).collect();
            ratios.map(Spread::of)
        };
        let pairs = ours.iter().zip(theirs);
        Self {
            per_second: Spread::of(pairs.map(|(ours, theirs)| ours.per_second() / theirs.per_second())),
            p50: of(0.5),
            p99: of(0.99),
        }
    }
}

impl Beside {
    /// The figures of its rounds, and of ours in turn with them.
    pub fn new(what: String, rounds: &[Round], ours: &[Round]) -> Self {
        Self {
            what,
            per_second: Spread::of(rounds.iter().map(Round::per_second)),
            p50_ms: quantile(rounds, 0.5),
            p99_ms: quantile(rounds, 0.99),
            cpu_us: Vec::new(),
            ratio: Ratio::new(ours, rounds),
        }
    }
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
    /// How many.
    pub jobs: usize,
    /// From the first submission to the last end.
    pub took: Duration,
    /// Of each job, sorted; empty where single ones are not timed.
    pub latencies: Vec<Duration>,
}

impl Round {
    /// Of jobs that were timed one by one.
    pub fn timed(took: Duration, mut latencies: Vec<Duration>) -> Self {
        latencies.sort();
        Self { jobs: latencies.len(), took, latencies }
    }

    /// Jobs a second.
    pub fn per_second(&self) -> f64 {
        self.jobs as f64 / self.took.as_secs_f64()
    }

    /// The latency that `share` of the jobs did not exceed, in milliseconds.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        let at = ((self.latencies.len() as f64 * share) as usize).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map(|latency| latency.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(milliseconds: u64) -> Round {
        Round::timed(Duration::from_millis(milliseconds * 2), vec![Duration::from_millis(milliseconds); 4])
    }

    #[test]
    fn a_spread_has_its_middle_and_its_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
    }

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let latencies = (1..=100).rev().map(Duration::from_millis).collect();
        let round = Round::timed(Duration::from_secs(2), latencies);
        let at = |share| round.quantile_ms(share);
        assert_eq!((at(0.5), at(0.99), at(1.0)), (Some(51.0), Some(100.0), Some(100.0)));
        assert_eq!(round.per_second(), 50.0);
        let untimed = Round { jobs: 3, took: Duration::from_secs(1), latencies: Vec::new() };
        assert_eq!((untimed.quantile_ms(0.5), untimed.per_second()), (None, 3.0));
    }

    #[test]
    fn a_ratio_is_of_rounds_in_turn_so_that_a_slow_hour_cancels_out() {
        let beside = Beside::new("half".into(), &[round(5), round(10), round(50)], &[round(10), round(20), round(100)]);
        assert_eq!(beside.ratio.per_second, Spread { median: 0.5, least: 0.5, most: 0.5 });
        assert_eq!(beside.ratio.p99.map(|p99| p99.median), Some(2.0));
    }
}
