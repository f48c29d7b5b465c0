//! Short rounds with fixed seeds: every promise under every trouble that one machine can make.

use std::time::Duration;

use crate::nemesis::Trouble;
use crate::report::Report;
use crate::round::Round;
use crate::world::{Containers, Shape};

fn round(seed: u64, troubles: &[Trouble]) -> Round {
    let shape = Shape {
        cluster: false,
        workers: 3,
        slots: 4,
        containers: Containers::Machine,
        small_disks: false,
        ack_wait: Duration::from_secs(4),
    };
    Round { seed, shape, troubles: troubles.to_vec(), rate: 40, calm: Duration::from_millis(500) }
}

/// Plays it; fails where a promise was not held.
async fn holds(round: Round) {
    let mut report = Report::new(round.seed);
    round.judge(&mut report).await;
    eprintln!("{report}");
    assert!(report.violations.is_empty(), "seed {}: {} violations", round.seed, report.violations.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_die_freeze_and_leave_lose_nothing() {
    let troubles = [
        Trouble::KillWorker,
        Trouble::DieBetweenWrites,
        Trouble::FreezeWorker,
        Trouble::RestartWorker,
        Trouble::Churn,
        Trouble::KillDispatcher,
    ];
    holds(round(4, &troubles)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_loses_its_servers_one_by_one_goes_on() {
    let mut round = round(5, &[Trouble::KillServer, Trouble::StepDown, Trouble::RestartServer]);
    round.shape.cluster = true;
    holds(round).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_with_bad_lines_lose_nothing() {
    let troubles = [Trouble::CutWorker, Trouble::FilterWorker, Trouble::Resets, Trouble::HalfOpen, Trouble::Slow];
    holds(round(6, &troubles)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_and_comes_back_loses_nothing() {
    let troubles = [Trouble::KillServer, Trouble::RestartServer, Trouble::KillServer];
    holds(round(7, &troubles)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disks_lose_nothing() {
    let mut round = round(8, &[Trouble::FillServer, Trouble::FillWorker]);
    round.shape.small_disks = true;
    holds(round).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_stops_freezes_and_dies_loses_nothing() {
    let mut round = round(9, &[Trouble::RestartEngine, Trouble::FreezeEngine, Trouble::KillEngine]);
    round.shape.containers = Containers::Own;
    holds(round).await;
}
