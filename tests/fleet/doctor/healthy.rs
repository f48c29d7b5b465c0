//! A false alarm is the worst fault of such a tool.

use serde_json::{Value, json};

use super::{codes, examine, examine_with};
use crate::support::{Fleet, With, engine, noop, shell, shell_in};

/// Many short ones, long ones, failing and retried ones, for as long as doctor looks.
async fn load(fleet: &Fleet, mut each: impl FnMut(u64) -> Value) {
    for n in 0.. {
        fleet.publish(&format!("default.t{n}"), &each(n)).await;
        if n % 8 == 7 {
            // About as fast as they are done.
            fleet.record_where(&format!("default.t{}", n - 7), "begun", |_| true).await;
        }
    }
}

#[tokio::test]
async fn a_healthy_fleet_under_load_has_no_findings() {
    let fleet = Fleet::builder().env("SHOAL_QUEUES", "default,other").start().await;
    let _dispatcher = fleet.dispatcher(&[]).await;
    let _one = fleet.worker("one").slots(8).start().await;
    let _two = fleet.worker("two").slots(2).start().await;
    let job = fleet.job();
    fleet.publish("default.long", &job.gated("")).await;
    fleet.shoal(&["queues", "set", "other", "--cap", "3"]).await.ok();
    for n in 0..6 {
        fleet.publish(&format!("other.s{n}"), &shell("sleep 600").with("stop_grace", "0s")).await;
    }
    fleet.publish("default.again", &shell("exit 3").retried(4, "10m")).await;
    let task = |n: u64| match n % 5 {
        0 => shell("sleep 0.3"),
        1 => shell("[ $SHOAL_TASK_ATTEMPT = 2 ]").retried(2, "200ms"),
        _ => noop(),
    };
    let looking = async {
        for _ in 0..4 {
            let report = examine(&fleet, &["--role", "submitter,worker,dispatcher,viewer"]).await;
            assert_eq!(codes(&report), [], "{report}");
        }
        let output = fleet.shoal(&["doctor"]).await.ok();
        assert!(output.stdout.starts_with("no trouble found; looked at: nats-server "), "{output:?}");
        assert!(output.stdout.contains("\nnot seen: how often the server syncs"), "{output:?}");
    };
    tokio::select! {
        () = load(&fleet, task) => unreachable!("it does not end"),
        () = looking => {}
    }
    job.open();
}

#[tokio::test]
async fn a_worker_that_comes_drains_or_is_cordoned_is_no_finding() {
    let fleet = Fleet::start().await;
    let _dispatcher = fleet.dispatcher(&[]).await;
    let _stays = fleet.worker("stays").slots(2).start().await;
    let cordoned = fleet.worker("cordoned").start().await;
    fleet.shoal(&["agents", "cordon", "cordoned", "--reason", "new disk"]).await.ok();
    let looking = async {
        for _ in 0..3 {
            let report = examine(&fleet, &[]).await;
            assert_eq!(codes(&report), [], "{report}");
        }
    };
    let churn = async {
        loop {
            let mut comes = fleet.worker("comes").start().await;
            fleet.run("default.a", &shell("sleep 0.2")).await;
            comes.terminate();
            comes.wait().await;
        }
    };
    tokio::select! {
        () = churn => unreachable!("it does not end"),
        () = looking => {}
    }
    drop(cordoned);
}

#[tokio::test]
async fn containers_and_folders_in_use_are_no_finding() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _dispatcher = fleet.dispatcher(&[]).await;
    let id = engine.id("w");
    let _worker = engine.worker(&fleet, "w").runtimes("call,process,docker").slots(4).start().await;
    let job = fleet.job();
    fleet.publish("default.long", &shell_in("sleep 600").with("stop_grace", "0s")).await;
    fleet.publish("default.gated", &job.gated("")).await;
    engine.running("long").await;
    job.started(1).await;
    let state = fleet.folder().join(&id).display().to_string();
    let args = ["--docker-host", &engine.host(), "--state-dir", &state];
    let task = |n: u64| if n % 2 == 0 { shell_in("true") } else { shell("true") };
    let looking = async {
        for wait in ["2s", "20s"] {
            let report = examine_with(&fleet, &args, &[("SHOAL_DOCTOR_WAIT", wait)]).await;
            assert_eq!(codes(&report), [], "{report}");
            let looked = report["looked_at"].to_string();
            assert!(looked.contains("on the engine") && looked.contains("on work folders"), "{looked}");
            assert_eq!(report.get("not_seen").map(|unseen| unseen.as_array().expect("a list").len()), Some(1));
        }
    };
    tokio::select! {
        () = load(&fleet, task) => unreachable!("it does not end"),
        () = looking => {}
    }
    job.open();
    fleet.shoal(&["cancel", "default.long"]).await.ok();
    engine.is_clean().await;
}

#[tokio::test]
async fn the_answer_is_what_its_schema_says() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let report = examine(&fleet, &[]).await;
    assert_eq!(codes(&report), [("no_dispatcher", "fleet shoal")]);
    assert_eq!(report["findings"][0]["severity"], json!("info"));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/json/doctor_report.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("readable")).expect("JSON");
    assert!(jsonschema::is_valid(&schema, &report), "{report}");
    // The infos leave the line that nothing is wrong.
    let output = fleet.shoal(&["doctor", "--wait", "1s"]).await.ok();
    assert!(output.stdout.starts_with("info     no_dispatcher"), "{output:?}");
    assert!(output.stdout.contains("\nno trouble found; looked at: "), "{output:?}");
}
