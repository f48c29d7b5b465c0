//! What a stretch of work took of the machine: CPU and memory of each part of the fleet.

use std::time::{Duration, Instant};

use super::machine;
use super::report::{PartCpu, PartMemory, Spread};

/// Processes by the part they play; several may play the same.
pub type Parts = Vec<(&'static str, u32)>;

/// The CPU time of every part since it was made.
pub struct CpuMeter {
    parts: Parts,
    before: Vec<Duration>,
    own: Duration,
    began: Instant,
}

impl CpuMeter {
    /// Begins to count these, and this program as the submitter.
    pub fn start(parts: Parts) -> Self {
        let before = parts.iter().map(|(_, pid)| machine::cpu_of(*pid)).collect();
        Self { parts, before, own: machine::own_cpu(), began: Instant::now() }
    }

    /// What each used for one of `jobs`.
    pub fn per_job(self, jobs: usize) -> Vec<PartCpu> {
        let (own, took) = (machine::own_cpu().saturating_sub(self.own), self.began.elapsed());
        let parts = self.parts.iter().zip(self.before);
        let used = parts.map(|((part, pid), before)| (*part, machine::cpu_of(*pid).saturating_sub(before)));
        let mut summed: Vec<PartCpu> = Vec::new();
        for (part, used) in used.chain([("submitter", own)]) {
            let us = used.as_secs_f64() * 1e6 / jobs.max(1) as f64;
            let percent = used.as_secs_f64() / took.as_secs_f64() * 100.0;
            match summed.iter_mut().find(|known| known.part == part) {
                Some(known) => (known.us, known.percent) = (known.us + us, known.percent + percent),
                None => summed.push(PartCpu { part, us, percent }),
            }
        }
        summed
    }
}

/// The middle of every part's CPU over the rounds.
pub fn medians(rounds: &[Vec<PartCpu>]) -> Vec<PartCpu> {
    let middle = |of: &PartCpu| {
        let rounds = || rounds.iter().flatten().filter(|cpu| cpu.part == of.part);
        let us = Spread::of(rounds().map(|cpu| cpu.us)).median;
        PartCpu { part: of.part, us, percent: Spread::of(rounds().map(|cpu| cpu.percent)).median }
    };
    rounds.first().map_or_else(Vec::new, |first| first.iter().map(middle).collect())
}

/// The memory of every part since it was made.
pub struct MemoryMeter {
    parts: Parts,
    before: Vec<f64>,
}

impl MemoryMeter {
    /// Begins to watch these.
    pub fn start(parts: Parts) -> Self {
        parts.iter().for_each(|(_, pid)| machine::forget_peak(*pid));
        let before = parts.iter().map(|(_, pid)| machine::memory_mib(*pid)).collect();
        Self { parts, before }
    }

    /// What each held, and holds now.
    pub fn read(&self) -> Vec<PartMemory> {
        let read = |((part, pid), start_mib): (&(&'static str, u32), &f64)| {
            let end_mib = machine::memory_mib(*pid);
            // The kernel counts both roughly, and what is let go between two readings may be missing in the peak.
            let peak_mib = machine::peak_mib(*pid).max(*start_mib).max(end_mib);
            PartMemory { part, start_mib: *start_mib, peak_mib, end_mib }
        };
        self.parts.iter().zip(&self.before).map(read).collect()
    }
}

/// Takes the greater of what was held so far and now, process by process.
pub fn most(so_far: &mut Vec<PartMemory>, now: Vec<PartMemory>) {
    if so_far.is_empty() {
        *so_far = now;
        return;
    }
    for (so_far, now) in so_far.iter_mut().zip(now) {
        so_far.peak_mib = so_far.peak_mib.max(now.peak_mib);
        so_far.end_mib = now.end_mib;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_one_name_are_summed_and_the_submitter_is_this_program() {
        let own = std::process::id();
        let meter = CpuMeter::start(vec![("worker", own), ("server", own), ("worker", own)]);
        let parts: Vec<_> = meter.per_job(1).into_iter().map(|cpu| cpu.part).collect();
        assert_eq!(parts, ["worker", "server", "submitter"]);
    }

    #[test]
    fn a_peak_is_no_less_than_what_is_held() {
        let meter = MemoryMeter::start(vec![("worker", std::process::id())]);
        let held = vec![1_u8; 16 << 20];
        let read = &meter.read()[0];
        assert!(held.iter().all(|byte| *byte == 1));
        assert!(read.peak_mib >= read.end_mib && read.end_mib > 0.0, "{read:?}");
        assert!(read.peak_mib >= read.start_mib + 8.0, "{read:?}");
    }
}
