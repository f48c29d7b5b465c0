//! `shoal bench` measures what really ran, and says nothing of what did not end well.

use serde_json::Value;

use crate::support::Fleet;

#[tokio::test]
async fn an_own_fleet_is_measured_and_gone_afterwards() {
    let fleet = Fleet::builder().bare().start().await;
    let bench = fleet.shoal(&["bench", "latency", "--rounds", "1", "--percent", "2", "-o", "json"]).await;
    assert_eq!(bench.code, 0, "{}", bench.stderr);
    let report: Value = serde_json::from_str(&bench.stdout).expect("JSON");
    let row = &report["rows"][0];
    assert_eq!((row["suite"].as_str(), row["jobs"].as_u64()), (Some("latency"), Some(60)));
    assert!(row["per_second"]["median"].as_f64() > Some(0.0), "{row}");
    assert!(row["p50_ms"]["median"].as_f64() <= row["p99_ms"]["median"].as_f64(), "{row}");
    let parts: Vec<_> = row["cpu_us"].as_array().expect("parts").iter().map(|part| part["part"].as_str()).collect();
    assert_eq!(parts, [Some("worker"), Some("server"), Some("submitter")]);
    assert!(report["foreign_cpu"].is_f64());
    assert_eq!(report["cores"].as_u64(), std::thread::available_parallelism().ok().map(|cores| cores.get() as u64));
}

#[tokio::test]
async fn a_given_fleet_is_measured_with_its_own_workers() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(64).start().await;
    let args = ["bench", "--on-fleet", "throughput", "process", "--rounds", "2", "--percent", "1", "-o", "json"];
    let bench = fleet.shoal(&args).await;
    assert_eq!(bench.code, 0, "{}", bench.stderr);
    let report: Value = serde_json::from_str(&bench.stdout).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 5, "{report}");
    assert!(
        rows.iter().filter(|row| row["suite"] == "process").all(|row| row["bare"]["per_second"]["median"].is_f64())
    );
    let jobs: u64 = rows.iter().map(|row| row["jobs"].as_u64().expect("a number")).sum();
    let records = fleet.stream("KV_shoal_tasks").await.cached_info().state.messages;
    assert_eq!(records, 2 * jobs, "every job left a record");
}

#[tokio::test]
async fn a_job_that_does_not_end_well_spoils_the_figure() {
    let fleet = Fleet::start().await;
    // A worker without the program that is measured.
    let _worker = fleet.worker("w").slots(4).env("SHOAL_PROCESS_MEMORY", "1").start().await;
    let bench = fleet.shoal(&["bench", "--on-fleet", "process", "--rounds", "1", "--percent", "1"]).await;
    assert_eq!((bench.code, bench.stdout.as_str()), (1, ""), "{}", bench.stderr);
    assert!(bench.stderr.contains("no figure is worth anything"), "{}", bench.stderr);
}
