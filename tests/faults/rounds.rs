//! Short rounds with fixed seeds: every promise under every trouble that one machine can make.

use std::time::Duration;

use crate::nemesis::Trouble;
use crate::round::Round;
use crate::world::Shape;

fn round(seed: u64, troubles: &[Trouble]) -> Round {
    let shape = Shape { cluster: false, workers: 3, slots: 4, containers: true, ack_wait: Duration::from_secs(4) };
    Round { seed, shape, troubles: troubles.to_vec(), rate: 40, calm: Duration::from_millis(500) }
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
    let history = round(4, &troubles).play().await;
    eprintln!(
        "{} submissions, {} revisions, {} effects, rest {:?}",
        history.submissions.len(),
        history.revisions.len(),
        history.effects.len(),
        history.rest
    );
}
