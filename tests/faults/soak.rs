//! Rounds with random seeds for as long as wanted: `make soak SECONDS=… SEED=…`.
//!
//! | variable | means |
//! | --- | --- |
//! | `SHOAL_SOAK_SECONDS` | no round begins after so many; 600 if absent |
//! | `SHOAL_SOAK_SEED` | of the first round, the next ones count up from it; random and printed if absent |
//! | `SHOAL_SOAK_RATE` | tasks submitted a second; 60 if absent |
//! | `SHOAL_SOAK_LEASE` | seconds of ack wait; 15 if absent, as in a fleet |
//! | `SHOAL_SOAK_FAULTS` | names of troubles with commas: only these |
//! | `SHOAL_SOAK_REPORT` | file for the report as JSON |
//! | `SHOAL_SOAK_KEEP` | folder for the logs of all programs |

use std::time::{Duration, Instant};

use crate::dice::Dice;
use crate::nemesis::Trouble;
use crate::report::Report;
use crate::round::Round;
use crate::world::{Containers, Shape};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(format!("SHOAL_SOAK_{name}")).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("SHOAL_SOAK_{name}={text} is no number")))
}

/// Which worlds there are, and what happens in each. The first is the most usual, so it comes as often as all others.
fn shapes(lease: Duration) -> Vec<(Shape, Vec<Trouble>)> {
    let plain = Shape {
        cluster: false,
        workers: 4,
        slots: 6,
        containers: Containers::Machine,
        small_disks: false,
        ack_wait: lease,
    };
    let cluster = Shape { cluster: true, ..plain.clone() };
    let disks = Shape { small_disks: true, ..plain.clone() };
    let engine = Shape { containers: Containers::Own, ..plain.clone() };
    let crowd = Shape { workers: 8, slots: 3, ..plain.clone() };
    vec![
        (plain, Trouble::ONE.to_vec()),
        (cluster, [&Trouble::CLUSTER[..], &[Trouble::KillWorker, Trouble::FreezeWorker]].concat()),
        (disks, [&Trouble::DISKS[..], &[Trouble::KillServer, Trouble::KillWorker]].concat()),
        (engine, [&Trouble::ENGINE[..], &[Trouble::KillWorker]].concat()),
        // From none to eight workers and back under load.
        (crowd, [Trouble::Churn, Trouble::KillWorker, Trouble::RestartWorker, Trouble::Churn].to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as wanted: make soak"]
async fn soak() {
    let (seconds, rate) = (number("SECONDS").unwrap_or(600), number("RATE").unwrap_or(60));
    let lease = Duration::from_secs(number("LEASE").unwrap_or(15));
    let seed = number("SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let only = std::env::var("SHOAL_SOAK_FAULTS").unwrap_or_default();
    let wanted = |trouble: &Trouble| only.is_empty() || only.split(',').any(|name| name == trouble.name());
    eprintln!("SEED={seed}");
    let (began, mut report) = (Instant::now(), Report::new(seed));
    let shapes: Vec<_> = shapes(lease)
        .into_iter()
        .map(|(shape, troubles)| (shape, troubles.into_iter().filter(wanted).collect::<Vec<_>>()))
        .filter(|(_, troubles)| !troubles.is_empty())
        .collect();
    assert!(!shapes.is_empty(), "FAULTS={only} names no trouble");
    let mut round_seed = seed;
    while began.elapsed() < Duration::from_secs(seconds) {
        let mut dice = Dice::new(round_seed, "shape");
        let (shape, troubles) = if dice.once_in(2) { &shapes[0] } else { dice.one_of(&shapes) };
        let round = Round {
            seed: round_seed,
            shape: shape.clone(),
            troubles: troubles.clone(),
            rate,
            calm: dice.pause(500, 3_000),
        };
        round.judge(&mut report).await;
        report.seconds = began.elapsed().as_secs();
        eprintln!("{report}");
        round_seed += 1;
    }
    if let Some(path) = std::env::var("SHOAL_SOAK_REPORT").ok().filter(|path| !path.is_empty()) {
        let json = serde_json::to_string_pretty(&report.json()).expect("a report is JSON");
        std::fs::write(&path, json).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    assert!(report.violations.is_empty(), "SEED={seed}: {} promises were not held", report.violations.len());
}
