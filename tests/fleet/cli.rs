//! The commands, from outside: what they print on stdout, and their exit codes (O2, T2, T4).

use schemas::{AgentStatus, State};
use serde_json::{Value, json};

use crate::support::{Fleet, Program, With, eventually, noop, shell};

async fn fleet() -> (Fleet, Program) {
    let fleet = Fleet::start().await;
    let worker = fleet.worker("w").slots(8).start().await;
    (fleet, worker)
}

#[tokio::test]
async fn run_ends_as_its_job_does() {
    let (fleet, _worker) = fleet().await;
    for (script, code) in
        [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
    {
        let output = fleet.shoal(&["run", "--", "sh", "-c", script]).await;
        assert_eq!(output.code, code, "{script}: {output:?}");
    }
    assert_eq!(fleet.shoal(&["run", "--timeout", "1s", "--", "sleep", "600"]).await.code, 124);
    assert_eq!(fleet.shoal(&["run", "--", "no-such-program-anywhere"]).await.code, 127);
    assert_eq!(fleet.shoal(&["run"]).await.code, 2);
}

#[tokio::test]
async fn run_shows_what_its_job_writes_where_it_would_have_written_it() {
    let (fleet, _worker) = fleet().await;
    let script = "printf 'one\\ntwo'; echo three >&2; echo $MINE >&2";
    let output = fleet.shoal(&["run", "--env", "MINE=four", "--id", "mine", "--", "sh", "-c", script]).await.ok();
    assert_eq!(output.stdout, "one\ntwo");
    assert!(output.stderr.lines().next().is_some_and(|line| line.contains("mine")), "the id first: {output:?}");
    assert!(output.stderr.contains("three\nfour\n"), "{output:?}");
    assert_eq!(fleet.record("default.mine").await.expect("there").state, State::Succeeded);
}

#[tokio::test]
async fn a_detached_run_prints_its_id_and_leaves() {
    let (fleet, _worker) = fleet().await;
    let job = fleet.job();
    let open = job.folder().join("open").display().to_string();
    let script = format!("while [ ! -e {open} ]; do sleep 0.05; done");
    let output = fleet.shoal(&["run", "--detach", "--", "sh", "-c", &script]).await.ok();
    let key = format!("default.{}", output.stdout.trim());
    fleet.in_state(&key, State::Running).await;
    job.open();
    fleet.shoal(&["wait", output.stdout.trim()]).await.ok();
}

#[tokio::test]
async fn an_interrupted_run_cancels_its_job() {
    let (fleet, _worker) = fleet().await;
    let job = fleet.job();
    let command = format!("echo x >> {0}/starts; exec sleep 600", job.folder().display());
    let mut run = fleet.spawn(&["run", "--id", "a", "--", "sh", "-c", &command], "");
    job.started(1).await;
    fleet.in_state("default.a", State::Running).await;
    run.interrupt();
    assert_eq!(run.wait().await.code, 130);
    assert_eq!(fleet.record("default.a").await.expect("there").state, State::Cancelled);
    fleet.message_gone("default.a").await;
}

#[tokio::test]
async fn submit_takes_one_or_many_as_json_or_yaml() {
    let (fleet, _worker) = fleet().await;
    let one = fleet.shoal_with_input(&["submit", "-", "-o", "json"], &noop().to_string()).await.ok().json();
    let key = format!("{}.{}", one["queue"].as_str().expect("queue"), one["id"].as_str().expect("id"));
    assert_eq!(fleet.ended(&key).await.sequence, one["sequence"]);

    let lines: String = (0..3).map(|_| format!("{}\n", noop())).collect();
    let yaml =
        "- workload: {kind: call, handler: noop}\n- workload:\n    kind: process\n    command: [sh, -c, 'exit 0']\n";
    let list = json!([noop(), noop()]).to_string();
    for (input, n) in [(lines.as_str(), 3), (yaml, 2), (list.as_str(), 2)] {
        let many = fleet.shoal_with_input(&["submit", "-", "-o", "json"], input).await.ok().json();
        let many = many.as_array().expect("an array");
        assert_eq!(many.len(), n, "{input}");
        for task in many {
            let key = format!("{}.{}", task["queue"].as_str().expect("queue"), task["id"].as_str().expect("id"));
            assert_eq!(fleet.ended(&key).await.state, State::Succeeded);
        }
    }
}

#[tokio::test]
async fn a_thousand_tasks_are_one_command() {
    let (fleet, _worker) = fleet().await;
    let file = fleet.folder().join("tasks.json");
    let tasks: Vec<Value> = (0..1_000).map(|n| json!({"id": format!("t-{n}"), "task": noop()})).collect();
    std::fs::write(&file, json!(tasks).to_string()).expect("written");
    let path = file.display().to_string();
    let accepted = fleet.shoal(&["submit", &path, "-o", "json"]).await.ok().json();
    let accepted = accepted.as_array().expect("an array");
    assert_eq!(accepted.len(), 1_000);
    for (n, task) in accepted.iter().enumerate() {
        assert_eq!(task["id"], format!("t-{n}"));
        let record = fleet.run_ended(&format!("default.t-{n}"), task["sequence"].as_u64().expect("a number")).await;
        assert_eq!(record.state, State::Succeeded);
    }
    // Waiting for them all, which are over, is one command too.
    fleet.shoal(&["wait", "default.t-0", "default.t-500", "default.t-999"]).await.ok();
    // The list is paged and bounded.
    let list = fleet.shoal(&["list", "--limit", "600", "-o", "json"]).await.ok().json();
    assert_eq!(list.as_array().expect("an array").len(), 600);
}

#[tokio::test]
async fn a_wrong_task_is_refused_at_the_door_with_the_nearest_name() {
    let fleet = Fleet::start().await;
    for (task, words) in [
        (noop().with("timeot", "1s"), vec!["timeot", "timeout"]),
        (noop().with("timeout", "soon"), vec!["soon"]),
        (json!({"workload": {"kind": "proces", "command": ["a"]}}), vec!["proces", "process"]),
        (json!({}), vec!["workload"]),
    ] {
        let output = fleet.shoal_with_input(&["submit", "-"], &task.to_string()).await;
        assert_eq!(output.code, 2, "{task}: {output:?}");
        assert!(words.iter().all(|word| output.stderr.contains(word)), "{task}: {output:?}");
        assert_eq!(output.stdout, "");
    }
    // A file with one wrong task submits nothing.
    let input = json!([noop(), noop().with("timeot", "1s")]).to_string();
    assert_eq!(fleet.shoal_with_input(&["submit", "-"], &input).await.code, 2);
    fleet.drained().await;
    let output = fleet.shoal_with_input(&["submit", "-", "--id", "a:b"], &noop().to_string()).await;
    assert_eq!(output.code, 2, "{output:?}");
}

#[tokio::test]
async fn a_locked_id_is_refused_and_its_holder_named() {
    let (fleet, _worker) = fleet().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    fleet.in_state("default.a", State::Running).await;
    let output = fleet.shoal_with_input(&["submit", "-", "--id", "a"], &noop().to_string()).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("default.a") && output.stderr.contains("running"), "{output:?}");
    job.open();
}

#[tokio::test]
async fn submit_with_once_shows_the_one_that_exists() {
    let (fleet, _worker) = fleet().await;
    let submit = async || {
        fleet.shoal_with_input(&["submit", "-", "--id", "a", "--once", "-o", "json"], &noop().to_string()).await.ok()
    };
    let first = submit().await.json();
    fleet.run_ended("default.a", first["sequence"].as_u64().expect("a number")).await;
    fleet.message_gone("default.a").await;
    let second = submit().await.json();
    assert_eq!(second["existing"]["state"], "succeeded", "{second}");
    assert_eq!(fleet.record("default.a").await.expect("there").sequence, first["sequence"]);
}

#[tokio::test]
async fn get_prints_the_record_whatever_the_state() {
    let fleet = Fleet::start().await;
    let sequence = fleet.publish("default.some-task", &shell("printf out > $SHOAL_RESULT_FILE")).await;
    let queued = fleet.shoal(&["get", "default.some-task", "-o", "json"]).await.ok().json();
    assert_eq!((&queued["state"], &queued["sequence"]), (&"queued".into(), &sequence.into()));
    let _worker = fleet.worker("w").start().await;
    fleet.run_ended("default.some-task", sequence).await;
    // By id alone, and by a prefix that fits one.
    for name in ["default.some-task", "some-task", "some-t"] {
        let record = fleet.shoal(&["get", name, "-o", "json"]).await.ok().json();
        assert_eq!((&record["state"], &record["id"]), (&"succeeded".into(), &"some-task".into()), "{name}");
    }
    assert_eq!(fleet.shoal(&["get", "some-task", "--result"]).await.ok().stdout, "out");
    let table = fleet.shoal(&["get", "some-task"]).await.ok().stdout;
    assert!(table.contains("succeeded") && table.contains("some-task"), "{table}");
    let output = fleet.shoal(&["get", "nobody"]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("nobody") && output.stderr.contains("try"), "{output:?}");
}

#[tokio::test]
async fn an_id_in_two_queues_wants_the_queue() {
    let fleet = Fleet::start().await;
    fleet.publish("one.same", &noop()).await;
    fleet.publish("two.same", &noop()).await;
    let output = fleet.shoal(&["get", "same"]).await;
    assert_ne!(output.code, 0);
    assert!(output.stderr.contains("one.same") && output.stderr.contains("two.same"), "{output:?}");
    fleet.shoal(&["get", "two.same"]).await.ok();
}

#[tokio::test]
async fn list_shows_the_waiting_and_the_finished_and_filters() {
    let fleet = Fleet::start().await;
    {
        let _worker = fleet.worker("w").start().await;
        fleet.run("default.good", &noop().with("labels", json!({"team": "a"}))).await;
        fleet.run("default.bad", &shell("exit 1")).await;
    }
    fleet.publish("other.waits", &noop()).await;
    let list = async |args: &[&str]| {
        let args = [&["list", "-o", "json"], args].concat();
        let list = fleet.shoal(&args).await.ok().json();
        let mut found: Vec<String> = list.as_array().expect("an array").iter().map(|t| t["id"].to_string()).collect();
        found.sort();
        found.join(",")
    };
    assert_eq!(list(&[]).await, r#""bad","good","waits""#);
    assert_eq!(list(&["--state", "failed"]).await, r#""bad""#);
    assert_eq!(list(&["--state", "queued,succeeded"]).await, r#""good","waits""#);
    assert_eq!(list(&["--queue", "other"]).await, r#""waits""#);
    assert_eq!(list(&["--label", "team=a"]).await, r#""good""#);
    assert_eq!(list(&["--queue", "nobodys"]).await, "");
    let output = fleet.shoal(&["list", "--state", "faild"]).await.exit(2);
    assert!(output.stderr.contains("failed"), "{output:?}");
}

#[tokio::test]
async fn wait_passes_the_jobs_code_through() {
    let (fleet, _worker) = fleet().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("exit 9")).await;
    job.started(1).await;
    assert_eq!(fleet.shoal(&["wait", "default.a", "--timeout", "200ms"]).await.code, 124);
    let mut wait = fleet.spawn(&["wait", "default.a", "-o", "json"], "");
    job.open();
    let output = wait.wait().await;
    assert_eq!(output.code, 9, "{output:?}");
    assert_eq!(output.json()["state"], "failed");
    let slow = fleet.job();
    fleet.publish("default.c", &slow.gated("")).await;
    slow.started(1).await;
    let mut wait = fleet.spawn(&["wait", "default.c"], "");
    fleet.shoal(&["cancel", "default.c"]).await.ok();
    assert_eq!(wait.wait().await.code, 130);
}

#[tokio::test]
async fn retry_submits_a_finished_task_once_more() {
    let (fleet, _worker) = fleet().await;
    let job = fleet.job();
    let first = fleet.run("default.a", &job.script("[ -e $D/fixed ]")).await;
    assert_eq!(first.state, State::Failed);
    fleet.message_gone("default.a").await;
    job.write("fixed", "");
    let again = fleet.shoal(&["retry", "default.a", "-o", "json"]).await.ok().json();
    let record = fleet.run_ended("default.a", again["sequence"].as_u64().expect("a number")).await;
    assert_eq!(record.state, State::Succeeded);
}

#[tokio::test]
async fn exit_codes_tell_usage_from_an_unreachable_server() {
    let fleet = Fleet::start().await;
    assert_eq!(fleet.shoal(&["gett", "a"]).await.code, 2);
    assert_eq!(fleet.shoal(&["list", "--no-such-flag"]).await.code, 2);
    let url = "nats://127.0.0.1:1";
    for args in [&["list"][..], &["get", "a"], &["run", "--", "true"]] {
        let args = [&["--nats-url", url], args].concat();
        let output = fleet.shoal(&args).await;
        assert_eq!(output.code, 3, "{args:?}: {output:?}");
        assert!(output.stderr.contains(url) && output.stderr.contains("try"), "{output:?}");
        assert_eq!(output.stdout, "");
    }
}

#[tokio::test]
async fn every_setting_has_a_flag_a_variable_and_a_key() {
    let fleet = Fleet::start().await;
    let file = fleet.folder().join("shoal.yaml");
    let path = file.display().to_string();
    std::fs::write(&file, "slots: 3\nqueue: from-file\n").expect("written");
    let shown = fleet.shoal(&["--config", &path, "config", "show", "-o", "json"]).await.ok().stdout;
    assert!(shown.contains("slots") && shown.contains("drain_grace") && shown.contains("from-file"), "{shown}");
    // The file says where to submit to; a variable beats it, a flag beats both.
    let submit = async |env: &[(&str, &str)], args: &[&str]| {
        let args = [&["--config", &path, "submit", "-", "-o", "json"], args].concat();
        let output = fleet.spawn_with(&args, &noop().to_string(), env).wait().await.ok();
        output.json()["queue"].as_str().expect("a queue").to_owned()
    };
    assert_eq!(submit(&[], &[]).await, "from-file");
    assert_eq!(submit(&[("SHOAL_QUEUE", "from-variable")], &[]).await, "from-variable");
    assert_eq!(submit(&[("SHOAL_QUEUE", "from-variable")], &["--queue", "from-flag"]).await, "from-flag");
    std::fs::write(&file, "slotz: 3\n").expect("written");
    let output = fleet.shoal(&["--config", &path, "list"]).await.exit(2);
    assert!(output.stderr.contains("slotz") && output.stderr.contains("slots"), "{output:?}");
}

#[tokio::test]
async fn secrets_are_not_shown() {
    let fleet = Fleet::start().await;
    let args = ["--nats-url", "nats://me:s3cret@127.0.0.1:1", "config", "show"];
    let output = fleet.shoal(&args).await.ok();
    assert!(!output.stdout.contains("s3cret") && output.stdout.contains("***"), "{output:?}");
    let output = fleet.shoal(&["--nats-url", "nats://me:s3cret@127.0.0.1:1", "list"]).await.exit(3);
    assert!(!output.stderr.contains("s3cret"), "{output:?}");
}

#[tokio::test]
async fn completions_are_made_for_each_shell() {
    let fleet = Fleet::start().await;
    for shell in ["bash", "zsh", "fish"] {
        let output = fleet.shoal(&["completions", shell]).await.ok();
        assert!(output.stdout.contains("shoal") && output.stdout.contains("cancel"), "{shell}");
    }
    let script = fleet.shoal(&["completions", "bash"]).await.ok().stdout;
    let check = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(check.path(), script).expect("written");
    let status = std::process::Command::new("bash").arg("-n").arg(check.path()).status().expect("bash is there");
    assert!(status.success());
}

#[tokio::test]
async fn applying_what_exists_changes_nothing_and_loses_nothing() {
    let fleet = Fleet::start().await;
    fleet.publish("default.kept", &noop()).await;
    let names = ["SHOAL_TASKS", "KV_shoal_tasks", "SHOAL_LOGS", "SHOAL_DEAD", "KV_shoal_agents", "OBJ_shoal_artifacts"];
    let before = configs(&fleet, &names).await;
    fleet.shoal(&["admin", "apply"]).await.ok();
    assert_eq!(configs(&fleet, &names).await, before);
    assert!(fleet.message("default.kept").await.is_some());
    // A setting that costs nobody anything is changed.
    fleet.spawn_with(&["admin", "apply"], "", &[("SHOAL_LOGS_BYTES", "20Gi")]).wait().await.ok();
    assert_eq!(fleet.stream("SHOAL_LOGS").await.cached_info().config.max_bytes, 20 << 30);
    assert!(fleet.message("default.kept").await.is_some());
}

async fn configs(fleet: &Fleet, names: &[&str]) -> Vec<Value> {
    let mut configs = Vec::new();
    for name in names {
        configs.push(serde_json::to_value(&fleet.stream(name).await.cached_info().config).expect("JSON"));
    }
    configs
}

#[tokio::test]
async fn a_drained_worker_is_waited_for() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").start().await;
    fleet.agent_is("w", AgentStatus::Ready).await;
    fleet.shoal(&["agents", "drain", "w", "--wait"]).await.ok();
    let agent = fleet.agent("w").await.expect("readable").expect("there");
    assert_eq!(agent.status, AgentStatus::Offline, "{agent:?}");
    eventually("the worker has left", async || worker.try_wait().map(|_| ()).ok_or_else(|| "it runs".into())).await;
}
