//! What many rounds came to: a table for people, JSON for programs. The JSON keeps every sample, so that figures of several
//! reports add up exactly.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::checker::{Figures, Samples, Verdict, terminal};
use crate::history::History;

/// A whole soak.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What the rounds were drawn from.
    pub seed: u64,
    /// How long it took.
    pub seconds: u64,
    /// How many rounds.
    pub rounds: u64,
    /// Where it ran, in a line.
    pub machine: String,
    /// Counts and times of all rounds.
    pub figures: Figures,
    /// Faults that were injected, by name.
    pub faults: BTreeMap<String, u64>,
    /// Promises that were not held.
    pub violations: Vec<Found>,
}

/// One violation in one round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// In which round, from 1.
    pub round: u64,
    /// Which invariant.
    pub invariant: String,
    /// Its name.
    pub name: String,
    /// Where, and what.
    pub words: String,
}

impl Report {
    /// A soak without rounds yet.
    pub fn new(seed: u64) -> Self {
        Self { seed, machine: machine(), ..Self::default() }
    }

    /// Adds a round.
    pub fn add(&mut self, history: &History, verdict: &Verdict) {
        self.rounds += 1;
        self.figures.add(&verdict.figures);
        for fault in &history.faults {
            *self.faults.entry(fault.name.to_owned()).or_default() += 1;
        }
        let round = self.rounds;
        self.violations.extend(verdict.violations.iter().map(|violation| Found {
            round,
            invariant: violation.invariant().to_owned(),
            name: violation.name().to_owned(),
            words: violation.to_string(),
        }));
    }

    /// The report, and a summary of its samples, so that nobody needs to compute it.
    pub fn json(&self) -> Value {
        let mut report = serde_json::to_value(self).expect("a report is plain data");
        let figures = &self.figures;
        report["summary"] = json!({
            "overlap_ms": summary(&figures.overlap_ms),
            "kill_to_restart_ms": summary(&figures.kill_to_restart_ms),
            "handback_to_restart_ms": summary(&figures.handback_to_restart_ms),
            "cancel_confirmed_ms": summary(&figures.cancel_confirmed_ms),
            "cancel_in_trouble_ms": summary(&figures.cancel_in_trouble_ms),
            "standstill_ms": figures.standstill_ms.iter().map(|(fault, samples)| (fault.clone(), summary(samples))).collect::<BTreeMap<_, _>>(),
        });
        report
    }
}

/// Count, percentiles and maximum.
fn summary(samples: &Samples) -> Value {
    let (p50, p99) = (samples.percentile(50), samples.percentile(99));
    json!({"count": samples.count(), "p50": p50, "p99": p99, "max": samples.max()})
}

/// Processor, cores, memory and kernel of this machine, in a line; what cannot be read is left out.
fn machine() -> String {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let line = |text: &str, start: &str| {
        let line = text.lines().find(|line| line.starts_with(start))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = line(&file("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let parts = [
        line(&file("/proc/cpuinfo"), "model name"),
        Some(format!("{cores} cores")),
        memory.map(|kib| format!("{} MiB", kib >> 10)),
        Some(format!("Linux {}", file("/proc/sys/kernel/osrelease").trim())),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A time as people read it.
struct Millis(Option<i64>);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.pad("-"),
            Some(ms) if ms < 1_000 => f.pad(&format!("{ms} ms")),
            Some(ms) => f.pad(&format!("{}.{:03} s", ms / 1_000, ms % 1_000)),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = &self.figures;
        let mut row = |what: &str, value: String| writeln!(f, "{what:<28} {value}");
        row("seed", self.seed.to_string())?;
        row("ran", format!("{} s, {} rounds", self.seconds, self.rounds))?;
        row("machine", self.machine.clone())?;
        row("accepted", figures.accepted.to_string())?;
        row("refused", figures.refused.to_string())?;
        let (stored, not_stored) = (figures.unknown_stored, figures.unknown_not_stored);
        row("never answered", format!("{stored} stored, {not_stored} not stored"))?;
        row("slowest answer", Millis(Some(figures.slowest_answer_ms)).to_string())?;
        for state in terminal() {
            let count = figures.ended.get(state.as_str()).copied().unwrap_or(0);
            row(&format!("  ended as {state}"), count.to_string())?;
        }
        row("  never ended", figures.never_ended.to_string())?;
        row("attempts lost", figures.lost_attempts.to_string())?;
        row("starts of jobs", figures.starts.to_string())?;
        row("ends superseded", figures.superseded_ends.to_string())?;
        row("overlaps", format!("{}, longest {}", figures.overlaps, Millis(figures.overlap_ms.max())))?;
        let times = |samples: &Samples| {
            let (p50, p99) = (Millis(samples.percentile(50)), Millis(samples.percentile(99)));
            format!("p50 {p50}, p99 {p99}, max {} of {}", Millis(samples.max()), samples.count())
        };
        row("kill to restart elsewhere", times(&figures.kill_to_restart_ms))?;
        row("handed back to restart", times(&figures.handback_to_restart_ms))?;
        row("cancel confirmed", times(&figures.cancel_confirmed_ms))?;
        row("  server or worker away", times(&figures.cancel_in_trouble_ms))?;
        for (fault, samples) in &figures.standstill_ms {
            row(&format!("no end at {fault}"), times(samples))?;
        }
        row("containers left", figures.containers_left.to_string())?;
        row("faults", self.faults.values().sum::<u64>().to_string())?;
        for (name, count) in &self.faults {
            row(&format!("  {name}"), count.to_string())?;
        }
        row("violations", self.violations.len().to_string())?;
        for Found { round, invariant, name, words } in &self.violations {
            writeln!(f, "  round {round} {invariant} {name}: {words}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Violation, check, good};
    use crate::history::Rest;

    fn row<'t>(table: &'t str, what: &str) -> &'t str {
        let line = table.lines().find(|line| line.starts_with(&format!("{what:<28} ")));
        line.unwrap_or_else(|| panic!("no row {what} in\n{table}"))[29..].trim()
    }

    #[test]
    fn a_report_adds_rounds_up() {
        let good = good();
        let verdict = check(&good);
        let mut report = Report::new(42);
        report.add(&good, &verdict);
        let mut left = good.clone();
        left.rest = Rest { containers: vec!["shoal-x".into()], ..left.rest };
        report.add(&left, &check(&left));
        let table = report.to_string();
        assert_eq!(row(&table, "accepted"), (2 * verdict.figures.accepted).to_string());
        assert_eq!(row(&table, "  ended as lost"), (2 * verdict.figures.ended["lost"]).to_string());
        assert_eq!(row(&table, "containers left"), "1");
        assert_eq!(row(&table, "  worker_killed"), "2");
        assert_eq!(row(&table, "violations"), "1");
        let found = &report.violations[0];
        assert_eq!((found.round, found.name.as_str(), found.invariant.as_str()), (2, "ContainerLeft", "C'"));
        assert!(table.contains("round 2 C' ContainerLeft: shoal-x"), "{table}");
        assert!(report.machine.contains("cores"), "{}", report.machine);
    }

    #[test]
    fn a_report_without_samples_says_so() {
        let report = Report::new(1);
        assert_eq!(row(&report.to_string(), "kill to restart elsewhere"), "p50 -, p99 -, max - of 0");
        assert_eq!(report.json()["summary"]["kill_to_restart_ms"]["p99"], Value::Null);
    }

    #[test]
    fn percentiles_of_many_rounds_are_those_of_all_samples_together() {
        let mut first = Figures { kill_to_restart_ms: (1..=99).rev().collect(), ..Figures::default() };
        let second = Figures { kill_to_restart_ms: [10_000].into_iter().collect(), ..Figures::default() };
        first.add(&second);
        let samples = &first.kill_to_restart_ms;
        assert_eq!((samples.percentile(50), samples.percentile(99)), (Some(50), Some(99)));
        assert_eq!((samples.percentile(100), samples.max(), samples.count()), (Some(10_000), Some(10_000), 100));
        first.add(&second);
        assert_eq!(first.kill_to_restart_ms.percentile(99), Some(10_000), "two of 101 are above");
    }

    #[test]
    fn a_report_reads_back_from_its_json() {
        let good = good();
        let mut report = Report::new(7);
        report.add(&good, &check(&good));
        report.violations.push(Found {
            round: 1,
            invariant: "A".into(),
            name: Violation::NAMES[0].into(),
            words: "q.a run 1".into(),
        });
        let json = report.json();
        assert_eq!(json["summary"]["cancel_confirmed_ms"]["count"], report.figures.cancel_confirmed_ms.count());
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }
}
