//! Many containers at once.

use schemas::State;

use super::nothing_left;
use crate::support::{Fleet, Ledger, engine, process_runs};

#[tokio::test]
async fn fifty_containers_on_eight_slots_all_end_and_none_is_left() {
    let engine = engine!();
    // As long as a busy machine may take to start eight at once.
    let fleet = Fleet::builder().ack_wait("15s").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let worker = engine.worker(&fleet, "w").slots(8).start().await;
    let mut runs = Vec::new();
    for n in 0..50 {
        let (key, job) = (format!("default.t-{n}"), fleet.job());
        let sequence = fleet.publish(&key, &job.contained(&format!("printf {n} > $SHOAL_RESULT_FILE"))).await;
        runs.push((key, sequence, job));
    }
    let mut most = 0;
    for (n, (key, sequence, job)) in runs.iter().enumerate() {
        most = most.max(engine.containers().await.iter().filter(|c| c["State"] == "running").count());
        let record = fleet.run_ended(key, *sequence).await;
        assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
        assert_eq!(super::result(&record), n.to_string());
        assert_eq!(job.starts(), 1);
    }
    assert!(most <= 8, "{most} at once on eight slots");
    nothing_left(&engine, &fleet, "w").await;
    ledger.caught_up(&fleet).await;
    for (key, sequence, _) in &runs {
        ledger.one_end(key, *sequence);
    }
    assert!(process_runs(worker.pid()));
}
