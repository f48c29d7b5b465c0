//! A false alarm is the worst fault of such a tool.

use serde_json::{Value, json};

use super::{codes, examine, examine_with};
use crate::support::{Fleet, With, engine, noop, shell, shell_in};

/// Many at once, again and again, for as long as doctor looks.
async fn load(fleet: &Fleet, at_once: u64, mut each: impl FnMut(u64) -> Value) {
    for round in 0.. {
        let tasks = (0..at_once).map(|n| (format!("default.t{round}-{n}"), each(round * at_once + n)));
        let tasks: Vec<_> = tasks.collect();
        fleet.publish_all(&tasks).await;
        // About as fast as they are done.
        fleet.record_where(&tasks[tasks.len() / 2].0, "begun", |_| true).await;
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
    let task = |n: u64| match n % 50 {
        0 | 25 => shell("sleep 0.3"),
        10 => shell("[ $SHOAL_TASK_ATTEMPT = 2 ]").retried(2, "200ms"),
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
        () = load(&fleet, 200, task) => unreachable!("it does not end"),
        () = looking => {}
    }
    let done = fleet.stream("KV_shoal_tasks").await.cached_info().state.messages;
    assert!(done > 500, "that was no load: {done} records");
    job.open();
}

#[tokio::test]
async fn a_worker_in_a_flood_has_lost_no_slot() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(256).start().await;
    fleet.shoal(&["queues", "pause", "default"]).await.ok();
    let tasks: Vec<_> = (0..30_000).map(|n| (format!("default.t{n}"), noop())).collect();
    fleet.publish_all(&tasks).await;
    fleet.shoal(&["queues", "resume", "default"]).await.ok();
    let report = examine_with(&fleet, &[], &[("SHOAL_DOCTOR_WAIT", "1s")]).await;
    assert_eq!(codes(&report), [("no_dispatcher", "fleet shoal")], "{report}");
    let left = fleet.stream("SHOAL_TASKS").await.cached_info().state.messages;
    assert!(left > 0, "the flood was over before doctor was");
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
    let task = |n: u64| if n.is_multiple_of(2) { shell_in("true") } else { shell("true") };
    let looking = async {
        for wait in ["2s", "20s"] {
            let report = examine_with(&fleet, &args, &[("SHOAL_DOCTOR_WAIT", wait)]).await;
            assert_eq!(codes(&report), [], "{report}");
            let looked = report["looked_at"].to_string();
            assert!(looked.contains("in the engine") && looked.contains("in work folders"), "{looked}");
            assert_eq!(report.get("not_seen").map(|unseen| unseen.as_array().expect("a list").len()), Some(1));
        }
    };
    tokio::select! {
        () = load(&fleet, 8, task) => unreachable!("it does not end"),
        () = looking => {}
    }
    job.open();
    fleet.shoal(&["cancel", "default.long"]).await.ok();
    engine.is_clean().await;
}

#[tokio::test]
async fn of_a_large_fleet_a_part_is_read_and_it_is_said() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let mut gone = serde_json::to_value(fleet.agent_where("w", "there", |_| true).await).expect("JSON");
    gone["status"] = "offline".into();
    let store = fleet.js.get_key_value("shoal_agents").await.expect("the registry");
    let puts = (0..2_500).map(|n| {
        let (mut gone, store) = (gone.clone(), store.clone());
        async move {
            let id = format!("gone-{n}");
            gone["id"] = id.as_str().into();
            store.put(id, gone.to_string().into()).await.expect("stored")
        }
    });
    futures_util::StreamExt::count(futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(puts), 100))
        .await;
    fleet.shoal(&["queues", "pause", "default"]).await.ok();
    let tasks: Vec<_> = (0..20_000).map(|n| (format!("default.t{n}"), noop())).collect();
    fleet.publish_all(&tasks).await;
    let report = examine(&fleet, &[]).await;
    assert_eq!(codes(&report), [("no_dispatcher", "fleet shoal")], "{report}");
    let looked = report["looked_at"].to_string();
    assert!(looked.contains("of 2501 agents") && !looked.contains("2501 of 2501"), "{looked}");
    assert!(looked.contains("20000 tasks in the stream, of these the oldest and the newest 200"), "{looked}");
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
