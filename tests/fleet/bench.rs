//! `shoal bench` measures what really ran, and says nothing of what did not end well.

use serde_json::Value;

use crate::support::{Fleet, eventually, marked_processes, random_word};

/// What a run of these suites on a fleet of its own reports, all of it small.
async fn report(suites: &[&str]) -> Value {
    let fleet = Fleet::builder().bare().start().await;
    let args = ["bench"].iter().chain(suites).chain(&["--rounds", "1", "--percent", "1", "-o", "json"]);
    let bench = fleet.shoal(&args.copied().collect::<Vec<_>>()).await;
    assert_eq!(bench.code, 0, "{}", bench.stderr);
    let report: Value = serde_json::from_str(&bench.stdout).expect("JSON");
    for field in ["version", "server", "storage", "sync"] {
        assert!(report[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {report}");
    }
    assert_eq!((report["rounds"].as_u64(), report["percent"].as_u64()), (Some(1), Some(1)));
    assert_eq!(report["cores"].as_u64(), std::thread::available_parallelism().ok().map(|cores| cores.get() as u64));
    assert!((0.0..=1.0).contains(&report["foreign_cpu"].as_f64().expect("a share")), "{report}");
    report["rows"].as_array().expect("rows").iter().for_each(check);
    report
}

/// What every row must have, whatever it is about.
fn check(row: &Value) {
    let spread = |spread: &Value| {
        let [least, median, most] = ["least", "median", "most"].map(|name| spread[name].as_f64().expect("a figure"));
        assert!(0.0 < least && least <= median && median <= most, "{row}");
        median
    };
    let figures = |of: &Value| {
        spread(&of["per_second"]);
        if of["p50_ms"].is_object() {
            assert!(spread(&of["p50_ms"]) <= spread(&of["p99_ms"]), "{row}");
        }
    };
    assert!(row["jobs"].as_u64() > Some(0) && row["unit"].is_string(), "{row}");
    figures(row);
    for beside in row["beside"].as_array().into_iter().flatten() {
        figures(beside);
        // One round, so that the ratio of the medians is the median of the ratios.
        let speeds = spread(&row["per_second"]) / spread(&beside["per_second"]);
        assert!((spread(&beside["ratio"]["per_second"]) / speeds - 1.0).abs() < 1e-6, "{row}");
    }
    for part in row["cpu_us"].as_array().into_iter().flatten() {
        assert!(part["us"].as_f64() >= Some(0.0) && part["percent"].as_f64() >= Some(0.0), "{row}");
    }
    row["memory"].as_array().into_iter().flatten().for_each(check_memory);
}

fn check_memory(part: &Value) {
    let [start, peak, end] = ["start_mib", "peak_mib", "end_mib"].map(|name| part[name].as_f64().expect("a figure"));
    assert!(0.0 < start && start <= peak && 0.0 < end && end <= peak, "{part}");
}

/// Names of a row's parts, or of what is beside it.
fn names<'a>(row: &'a Value, list: &str, name: &str) -> Vec<&'a str> {
    row[list].as_array().into_iter().flatten().map(|item| item[name].as_str().expect("a name")).collect()
}

/// How many rows each suite has, in order.
fn suites(report: &Value) -> Vec<(&str, usize)> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for row in report["rows"].as_array().expect("rows") {
        let suite = row["suite"].as_str().expect("a name");
        match counted.last_mut() {
            Some((last, count)) if *last == suite => *count += 1,
            _ => counted.push((suite, 1)),
        }
    }
    counted
}

const ENGINE: [&str; 2] = ["engine, least writes", "engine, the same writes"];

#[tokio::test]
async fn no_ops_are_measured_beside_the_engine() {
    let report = report(&["throughput", "latency"]).await;
    assert_eq!(suites(&report), [("throughput", 4), ("latency", 1)]);
    let rows = report["rows"].as_array().expect("rows");
    let jobs: Vec<_> = rows.iter().map(|row| row["jobs"].as_u64()).collect();
    assert_eq!(jobs, [Some(300), Some(600), Some(600), Some(600), Some(30)]);
    for cycle in [&rows[0], &rows[1], &rows[4]] {
        assert_eq!(names(cycle, "cpu_us", "part"), ["worker", "server", "submitter"]);
        assert_eq!(names(cycle, "beside", "what"), ENGINE);
        assert!(cycle["beside"][0]["ratio"]["p99"].is_object(), "{cycle}");
    }
    for submission in [&rows[2], &rows[3]] {
        assert_eq!(names(submission, "beside", "what"), ["engine publish", "engine publish, the same headers"]);
    }
}

#[tokio::test]
async fn a_backlog_is_drained_and_its_memory_told() {
    let report = report(&["backlog"]).await;
    assert_eq!(suites(&report), [("backlog", 2)]);
    let drain = &report["rows"][1];
    assert_eq!((drain["jobs"].as_u64(), &drain["p50_ms"]), (Some(10_000), &Value::Null));
    assert_eq!(names(drain, "memory", "part"), ["worker", "server", "dispatcher"]);
    assert_eq!(names(drain, "beside", "what"), ENGINE);
}

#[tokio::test]
async fn logs_and_memory_are_of_what_lies_in_the_stream_and_in_ram() {
    let report = report(&["logs", "memory", "idle"]).await;
    assert_eq!(suites(&report), [("logs", 2)]);
    for (row, lines) in report["rows"].as_array().expect("rows").iter().zip([5_000, 100_000]) {
        assert_eq!((row["unit"].as_str(), row["jobs"].as_u64()), (Some("lines"), Some(lines)));
        assert_eq!(names(row, "memory", "part"), ["worker", "server"]);
    }
    let memory = &report["memory"];
    assert!(memory["binary_mib"].as_f64() > Some(1.0), "{memory}");
    assert_eq!(
        (names(memory, "parts", "part"), memory["jobs"].as_u64()),
        (vec!["worker", "server", "dispatcher"], Some(600))
    );
    memory["parts"].as_array().expect("parts").iter().for_each(check_memory);
    assert_eq!(names(&report["idle"], "parts", "part"), ["worker", "server", "dispatcher"]);
    assert!(report["idle"]["first_task_ms"]["median"].as_f64() > Some(0.0), "{report}");
}

#[tokio::test]
async fn agent_jobs_are_measured_beside_git_alone_and_many_of_them_in_ram() {
    let report = report(&["agents"]).await;
    assert_eq!(suites(&report), [("agents", 4)]);
    let [whole, overhead, ready, crowd] = &report["rows"].as_array().expect("rows")[..] else { panic!("{report}") };
    assert_eq!(names(whole, "cpu_us", "part"), ["worker", "server", "submitter"]);
    for row in [whole, overhead] {
        assert_eq!(names(row, "beside", "what"), ["git alone, the same change"]);
    }
    let p50 = |row: &Value| row["p50_ms"]["median"].as_f64().expect("a figure");
    assert!(p50(ready) < p50(overhead) && p50(overhead) < p50(whole), "{report}");
    assert_eq!(names(crowd, "memory", "part"), ["worker", "server"]);
}

#[tokio::test]
async fn agents_beat_at_their_pace_while_the_dispatcher_is_watched() {
    let report = report(&["registry"]).await;
    assert_eq!(suites(&report), [("registry", 3)]);
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.iter().map(|row| row["jobs"].as_u64()).collect::<Vec<_>>(), [Some(100), Some(100), Some(1)]);
    assert!(rows[1]["per_second"]["most"].as_f64() < Some(1_050.0), "no faster than a thousand a second: {}", rows[1]);
    for row in rows {
        assert_eq!(names(row, "cpu_us", "part"), ["worker", "server", "dispatcher", "submitter"]);
    }
}

#[tokio::test]
async fn more_workers_and_more_slots_are_measured_beside_one_worker_and_the_sleeps_alone() {
    let report = report(&["scaling"]).await;
    assert_eq!(suites(&report), [("scaling", 9)]);
    let beside: Vec<_> =
        report["rows"].as_array().expect("rows").iter().map(|row| names(row, "beside", "what")).collect();
    assert_eq!(beside[..3], [vec![], vec!["one worker"], vec!["one worker"]]);
    assert!(beside[3..].iter().all(|beside| *beside == ["the sleeps alone"]), "{beside:?}");
    for row in &report["rows"].as_array().expect("rows")[3..] {
        assert!(row["beside"][0]["ratio"]["per_second"]["most"].as_f64() <= Some(1.0), "faster than sleep: {row}");
    }
}

#[tokio::test]
async fn a_cluster_is_measured_beside_the_engine_on_the_same_servers() {
    let report = report(&["cluster"]).await;
    assert_eq!(suites(&report), [("cluster", 3)]);
    for row in report["rows"].as_array().expect("rows") {
        assert_eq!(names(row, "cpu_us", "part"), ["worker", "server", "submitter"]);
        assert_eq!(names(row, "beside", "what"), ENGINE);
    }
}

#[tokio::test]
async fn a_given_fleet_is_measured_with_its_own_workers() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(64).start().await;
    let suites = ["throughput", "process", "backlog", "logs", "memory", "scaling", "cluster", "registry", "idle"];
    let args = ["bench", "--on-fleet"].iter().chain(&suites).chain(&["--rounds", "2", "--percent", "1", "-o", "json"]);
    let bench = fleet.shoal(&args.copied().collect::<Vec<_>>()).await;
    assert_eq!(bench.code, 0, "{}", bench.stderr);
    let report: Value = serde_json::from_str(&bench.stdout).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 5, "{report}");
    for row in rows {
        let beside: &[&str] = if row["suite"] == "process" { &["spawn and wait"] } else { &[] };
        assert_eq!(names(row, "beside", "what"), beside);
        assert_eq!(names(row, "cpu_us", "part"), ["submitter"]);
    }
    for suite in &suites[2..] {
        assert!(bench.stderr.contains(&format!("{suite}: left out")), "{suite}: {}", bench.stderr);
    }
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

#[tokio::test]
async fn an_own_fleet_is_measured_and_gone_afterwards() {
    let fleet = Fleet::builder().bare().start().await;
    let (mark, folder) = (random_word(), tempfile::tempdir().expect("a folder"));
    let env = [("BENCH_MARK", mark.as_str()), ("TMPDIR", folder.path().to_str().expect("UTF-8"))];
    let args = ["bench", "latency", "registry", "--rounds", "1", "--percent", "2", "-o", "json"];
    let report = fleet.spawn_with(&args, "", &env).wait().await.ok().json();
    assert_eq!(suites(&report), [("latency", 1), ("registry", 3)]);
    assert_eq!(report["rows"][0]["jobs"].as_u64(), Some(60));
    assert_eq!(marked_processes(&mark), [0_u32; 0], "of its parts");
    assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0, "files are left behind");
}

#[tokio::test]
async fn a_killed_bench_leaves_nothing_running() {
    let fleet = Fleet::builder().bare().start().await;
    let mark = random_word();
    let folder = tempfile::tempdir().expect("a folder");
    let env = [("BENCH_MARK", mark.as_str()), ("TMPDIR", folder.path().to_str().expect("UTF-8"))];
    let mut bench = fleet.spawn_with(&["bench", "throughput", "--percent", "10000"], "", &env);
    let running = |wanted: fn(usize) -> bool| {
        let found = marked_processes(&mark);
        if wanted(found.len()) { Ok(()) } else { Err(format!("{found:?} run")) }
    };
    // Itself, the server, the worker and the engine's worker.
    eventually("every part runs", async || running(|count| count >= 4)).await;
    bench.kill().await;
    eventually("every part is gone", async || running(|count| count == 0)).await;
}
