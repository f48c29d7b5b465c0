//! Containers as jobs on a real containerd; each test is skipped where there is none, which fails it in CI. See
//! `scripts/engine`. What every runtime does is shown by `worker/tests/conformance`.

use std::path::{Path, PathBuf};
use std::process::Command;

use schemas::names::LogSource;
use schemas::{Outcome, State};
use serde_json::json;

use crate::support::{Fleet, Ledger, With, eventually, random_word, shell_in};

/// One containerd, and workers on it that are this test's alone.
struct Containerd {
    socket: PathBuf,
    mark: String,
}

impl Containerd {
    /// As told, the project's own, the system's.
    fn find() -> Option<Self> {
        let usual = || {
            let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/containerd/containerd.sock");
            vec![own, "/run/containerd/containerd.sock".into()]
        };
        let told = std::env::var_os("SHOAL_CONTAINERD_ADDRESS").map(|address| vec![PathBuf::from(address)]);
        let answers = |socket: &PathBuf| std::os::unix::net::UnixStream::connect(socket).is_ok();
        match told.unwrap_or_else(usual).into_iter().find(answers) {
            Some(socket) => Some(Self { socket, mark: random_word() }),
            None => {
                assert!(
                    std::env::var("CI").as_deref() != Ok("true"),
                    "in CI no test is skipped, but there is no containerd"
                );
                eprintln!("SKIPPED: no containerd answers");
                None
            }
        }
    }

    fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.mark)
    }

    fn worker<'a>(&self, fleet: &'a Fleet, name: &str) -> crate::support::WorkerBuilder<'a> {
        let mounts = fleet.folder().display().to_string();
        let worker = fleet.worker(&self.id(name)).runtimes("call,containerd").env("SHOAL_ALLOWED_MOUNTS", &mounts);
        worker.env("SHOAL_CONTAINERD_ADDRESS", &self.socket.display().to_string())
    }

    /// Containers of one of our workers, by containerd's own word.
    fn containers(&self, name: &str) -> Vec<String> {
        let filter = format!("labels.\"shoal.worker\"==\"{}\"", self.id(name));
        let listed = Command::new("ctr")
            .args(["--namespace", "shoal", "--address"])
            .arg(&self.socket)
            .args(["containers", "list", "--quiet", &filter])
            .output()
            .expect("containerd brings ctr");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect()
    }

    async fn is_clean(&self, name: &str) {
        eventually("no container is left", async || match self.containers(name) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        })
        .await;
    }
}

/// What is stored of one source of the last attempt, in order.
async fn stored(fleet: &Fleet, record: &schemas::TaskRecord, source: LogSource) -> String {
    let start = record.attempts.last().expect("an attempt").start.clone().expect("its start");
    let subject = format!("shoal.logs.{}.{}.{start}.{}", record.queue, record.id, source.as_str());
    let messages = fleet.messages("SHOAL_LOGS", &subject).await;
    messages.iter().map(|message| String::from_utf8_lossy(&message.payload).into_owned()).collect()
}

#[tokio::test]
async fn a_container_job_on_containerd_has_its_result_its_logs_and_its_artifacts() {
    let Some(engine) = Containerd::find() else { return };
    let fleet = Fleet::start().await;
    let mut worker = engine.worker(&fleet, "w").start().await;
    let script = "echo out; echo err >&2; mkdir out; echo a > out/a.txt; printf done > $SHOAL_RESULT_FILE";
    let record = fleet.run("default.a", &shell_in(script).with("artifacts", json!(["out/**"]))).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let bytes = record.result.as_ref().expect("a result").inline_bytes().expect("inline").expect("base64");
    assert_eq!(bytes, b"done");
    assert_eq!(stored(&fleet, &record, LogSource::Stdout).await, "out\n");
    assert_eq!(stored(&fleet, &record, LogSource::Stderr).await, "err\n");
    assert_eq!(record.artifacts.iter().map(|artifact| artifact.path.as_str()).collect::<Vec<_>>(), ["out/a.txt"]);
    let failed = fleet.run("default.b", &shell_in("exit 3")).await;
    let attempt = failed.attempts.last().expect("an attempt");
    assert_eq!((failed.state, attempt.exit_code), (State::Failed, Some(3)), "{failed:?}");
    let usage = attempt.usage.as_ref().expect("its usage");
    assert!(usage.peak_memory_bytes.is_some() && usage.cpu_ms.is_some(), "{usage:?}");
    engine.is_clean("w").await;
    worker.terminate();
    assert_eq!(worker.wait().await.code, 0);
}

#[tokio::test]
async fn a_killed_worker_on_containerd_leaves_no_container_and_its_task_runs_elsewhere() {
    let Some(engine) = Containerd::find() else { return };
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = engine.worker(&fleet, "first").start().await;
    let job = fleet.job();
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then setsid sh -c 'trap \"\" TERM HUP; sleep 600' & sleep 600; fi";
    let sequence = fleet.publish("default.a", &job.contained(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    assert_eq!(engine.containers("first").len(), 1);

    first.kill().await;
    // Before any other worker is there to clean up.
    job.gone().await;
    engine.is_clean("first").await;
    let _second = engine.worker(&fleet, "second").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let [lost, run] = &record.attempts[..] else { panic!("one lost, one run: {record:?}") };
    assert_eq!((lost.outcome, lost.number), (Outcome::Lost, None));
    assert_eq!((run.outcome, run.number.map(u32::from)), (Outcome::Exited, Some(1)));
    assert_eq!(run.worker.as_ref().expect("known").as_str(), engine.id("second"));
    engine.is_clean("second").await;
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Succeeded);
}

#[tokio::test]
async fn the_registry_tells_what_containerd_can_do() {
    let Some(engine) = Containerd::find() else { return };
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let told = fleet.shoal(&["agents", "show", &engine.id("w"), "-o", "json"]).await;
    let told: serde_json::Value = serde_json::from_str(&told.stdout).expect("JSON");
    let runtime = &told["runtimes"]["containerd"];
    assert!(runtime["version"].as_str().is_some_and(|version| !version.is_empty()), "{told}");
    let words = runtime["capabilities"].as_array().expect("words");
    for word in ["cpu_limit", "keep_alive", "memory_limit", "network_none", "pause", "pids_limit", "stats"] {
        assert!(words.iter().any(|one| one == word), "{word}: {runtime}");
    }
}
