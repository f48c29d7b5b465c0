//! `shoal run --image` and what the commands show of container work, with an engine and without (C1, C2, O2).

use schemas::{AgentStatus, State};
use serde_json::json;

use crate::support::{Fleet, IMAGE, engine, eventually, random_word};

#[tokio::test]
async fn a_container_that_nobody_runs_waits_says_why_and_is_cancelled_by_ctrl_c() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").runtimes("call").start().await;
    let args = ["run", "--id", "a", "--image", "alpine:3", "--network", "none", "--memory", "64Mi", "--", "true"];
    let mut run = fleet.spawn(&args, "");
    fleet.record_where("default.a", "waits for a worker", |record| record.waiting.is_some()).await;
    let task = fleet.shoal(&["get", "a", "-o", "json"]).await.ok().json()["task"].clone();
    let workload = json!({"kind": "container", "image": "alpine:3", "command": ["true"], "network": "none"});
    assert_eq!(task, json!({"workload": workload, "limits": {"memory": "64Mi"}}));
    let shown = fleet.shoal(&["get", "a"]).await.ok().stdout;
    for words in
        ["waits for:", "no_worker: no worker of the queue `default` runs `container`", "alpine:3", "64Mi memory"]
    {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(fleet.shoal(&["list"]).await.ok().stdout.contains("no_worker"));
    run.interrupt();
    assert_eq!(run.wait().await.code, 130);
    assert_eq!(fleet.record("default.a").await.expect("there").state, State::Cancelled);
}

#[tokio::test]
async fn what_a_container_cannot_be_is_refused_before_it_is_sent() {
    let fleet = Fleet::start().await;
    for (args, words) in [
        (&["run", "--network", "none", "--", "true"][..], "--image"),
        (&["run", "--image", "a", "--mount", "/only", "--", "true"], "in/the/container"),
        (&["run", "--image", "a", "--mount", "relative:/x", "--", "true"], "absolute path"),
        (&["run", "--image", "a", "--pull", "sometimes", "--", "true"], "if_not_present"),
        (&["run", "--image", "two words", "--", "true"], "image reference"),
    ] {
        let output = fleet.shoal(args).await.exit(2);
        assert!(output.stderr.contains(words), "{args:?}: {output:?}");
    }
    assert_eq!(fleet.shoal(&["list", "-o", "json"]).await.ok().json(), json!([]));
}

#[tokio::test]
async fn a_runtime_that_is_down_is_shown_as_such() {
    let fleet = Fleet::start().await;
    let now = schemas::Timestamp::now();
    let record = json!({
        "id": "by-hand", "instance": "b1", "kind": "worker", "hostname": "h", "version": "0", "status": AgentStatus::Ready,
        "queues": ["default"], "slots": 2, "registered_at": now, "last_heartbeat": now,
        "runtimes": {"call": {}, "docker": {"version": "20.10", "reason": "connection refused"}},
    });
    let store = fleet.js.get_key_value("shoal_agents").await.expect("the bucket");
    store.put("by-hand", record.to_string().into()).await.expect("stored");
    let listed = fleet.shoal(&["agents", "list"]).await.ok().stdout;
    assert!(listed.contains("call,docker (down)"), "{listed}");
    let shown = fleet.shoal(&["agents", "show", "by-hand"]).await.ok().stdout;
    assert!(shown.contains("docker 20.10 (down: connection refused)"), "{shown}");
    fleet.publish("default.a", &json!({"workload": {"kind": "container", "image": "alpine:3"}})).await;
    let explained = eventually("the engine is named", async || {
        let explained = fleet.shoal(&["explain", "a"]).await.ok().stdout;
        if explained.contains("connection refused") { Ok(explained) } else { Err(explained) }
    })
    .await;
    assert!(explained.contains("the engine is down: by-hand `docker` is down"), "{explained}");
}

#[tokio::test]
async fn a_container_runs_as_if_it_ran_here() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let script = "echo out; echo err >&2; exit 7";
    let output = fleet.shoal(&["run", "--id", "a", "--image", IMAGE, "--", "sh", "-c", script]).await.exit(7);
    assert_eq!(output.stdout, "out\n");
    assert!(output.stderr.contains("err\n"), "{output:?}");
    let shown = fleet.shoal(&["get", "a"]).await.ok().stdout;
    assert!(shown.contains(IMAGE) && shown.contains("code 7"), "{shown}");

    std::fs::write(fleet.folder().join("file"), "mounted\n").expect("written");
    let mount = format!("{}:/data:ro", fleet.folder().display());
    let script = "id -u; pwd; echo $A; cat /data/file; touch /data/x /etc/x 2>/dev/null || echo unchanged";
    let flags = ["run", "--image", IMAGE, "--entrypoint", "sh", "--user", "1000", "--workdir", "/tmp", "--env", "A=b"];
    let more = ["--read-only", "--init", "--mount", &mount, "--memory", "64Mi", "--pids", "32", "--", "-c", script];
    let output = fleet.shoal(&[&flags[..], &more].concat()).await.ok();
    assert_eq!(output.stdout, "1000\n/tmp\nb\nmounted\nunchanged\n");
}

#[tokio::test]
async fn what_keeps_a_container_from_starting_has_an_exit_code_of_its_own() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    for (args, code) in [
        (&["--", "no-such-program"][..], 127),
        (&["--", "/etc"], 126),
        (&["--user", "nobody-knows", "--", "true"], 125),
        (&["--mount", "/etc:/data", "--", "true"], 125),
        (&["--privileged", "--", "true"], 125),
    ] {
        let output = fleet.shoal(&[&["run", "--image", IMAGE], args].concat()).await;
        assert_eq!(output.code, code, "{args:?}: {output:?}");
    }
    let output =
        fleet.shoal(&["run", "--image", "shoal-test/nowhere:1", "--pull", "never", "--", "true"]).await.exit(125);
    assert!(output.stderr.contains("never pulled"), "{output:?}");
}

#[tokio::test]
async fn an_interrupted_container_is_stopped_and_gone() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let id = random_word();
    let mut run = fleet.spawn(&["run", "--id", &id, "--image", IMAGE, "--init", "--", "sleep", "600"], "");
    fleet.in_state(&format!("default.{id}"), State::Running).await;
    engine.running(&id).await;
    run.interrupt();
    assert_eq!(run.wait().await.code, 130);
    assert_eq!(fleet.record(&format!("default.{id}")).await.expect("there").state, State::Cancelled);
    engine.is_clean().await;
}
