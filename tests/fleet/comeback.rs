//! A killed worker that is started again under its id gives back what it held, long before the leases end: they are ten
//! minutes here, and no test waits so long.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use futures_util::StreamExt;
use schemas::{AgentStatus, Code, Outcome, State, TaskRecord};
use serde_json::json;

use crate::support::{
    Fleet, Job, Ledger, Program, With, engine, eventually, freeze, in_time, noop, process_runs, signal,
};

/// Far beyond every deadline of a test.
const FOREVER: &str = "10m";

fn folder(fleet: &Fleet, id: &str) -> PathBuf {
    fleet.folder().join(id).join("held").join(id)
}

/// The files of a worker's notes.
fn notes(fleet: &Fleet, id: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder(fleet, id)).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    files
}

/// Waits until so many starts are written down.
async fn noted(fleet: &Fleet, id: &str, count: usize) -> Vec<PathBuf> {
    eventually(format!("{count} notes of {id}"), async || {
        let found = notes(fleet, id);
        if found.len() == count { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

/// A job whose first start and all that it forked never end by themselves. A later one writes down whether anything of the
/// first still runs, and waits to be let through.
fn stubborn(job: &Job) -> serde_json::Value {
    job.script(
        "if [ $(wc -l < $D/starts) = 1 ]; then \
           setsid sh -c 'trap \"\" TERM HUP; while :; do sleep 1; done' & echo $! > $D/daemon; \
           trap '' TERM; while :; do sleep 1; done; \
         fi; \
         for pid in $(head -n 1 $D/starts | cut -d' ' -f1) $(cat $D/daemon); do \
           kill -0 $pid 2>/dev/null && echo $pid >> $D/overlap; \
         done; \
         while [ ! -e $D/open ]; do sleep 0.05; done",
    )
}

/// One lost start without a number, then one that ran, both on `w`.
fn lost_once(record: &TaskRecord) {
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let [lost, run] = &record.attempts[..] else { panic!("one lost, one run: {record:?}") };
    assert_eq!((lost.outcome, lost.number), (Outcome::Lost, None));
    assert_eq!(run.number.map(u32::from), Some(1), "a loss spends no attempt");
    assert_ne!(lost.instance, run.instance);
    assert_eq!(lost.worker, run.worker);
}

#[tokio::test]
async fn a_worker_that_is_started_again_gives_back_what_its_dead_boot_held() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut asked = fleet.nats.subscribe("shoal.handlers.once").await.expect("subscribed");
    fleet.nats.flush().await.expect("the server has the subscription");
    let mut worker = fleet.worker("w").slots(3).start().await;
    let jobs = [fleet.job(), fleet.job()];
    let call = json!({"workload": {"kind": "call", "handler": "once"}});
    let sequences = [
        fleet.publish("default.a", &stubborn(&jobs[0])).await,
        fleet.publish("default.b", &stubborn(&jobs[1])).await,
        fleet.publish("default.call", &call).await,
    ];
    for job in &jobs {
        job.started(1).await;
    }
    in_time("the service is asked", asked.next()).await.expect("the subscription lives");
    noted(&fleet, "w", 3).await;

    worker.kill().await;
    assert_eq!(notes(&fleet, "w").len(), 3);
    let worker = fleet.worker("w").slots(3).start().await;
    for job in &jobs {
        job.started(2).await;
    }
    let request = in_time("the service is asked again", asked.next()).await.expect("the subscription lives");
    fleet.nats.publish(request.reply.expect("a request"), "".into()).await.expect("answered");
    worker.logged("gave back what an earlier boot held").await;
    for job in &jobs {
        job.open();
    }
    for (key, sequence) in ["default.a", "default.b", "default.call"].into_iter().zip(sequences) {
        lost_once(&fleet.run_ended(key, sequence).await);
        fleet.message_gone(key).await;
    }
    for job in &jobs {
        assert_eq!(job.attempts(), [1, 1]);
        assert_eq!(job.lines("overlap"), [""; 0], "the first start was still there");
        job.gone().await;
    }
    noted(&fleet, "w", 0).await;
    ledger.caught_up(&fleet).await;
    for (key, sequence) in ["default.a", "default.b", "default.call"].into_iter().zip(sequences) {
        assert_eq!(ledger.one_end(key, sequence), State::Succeeded);
        assert!(fleet.dead(key).await.is_empty());
    }
}

#[tokio::test]
async fn another_worker_takes_what_a_boot_gives_back() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &stubborn(&job)).await;
    job.started(1).await;
    noted(&fleet, "w", 1).await;
    worker.kill().await;
    let _other = fleet.worker("other").start().await;
    // It comes back without a hand in the queue.
    let _again = fleet.worker("w").queues("elsewhere").start().await;
    job.started(2).await;
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(record.attempts[1].worker.as_ref().expect("known").as_str(), "other");
    assert_eq!(job.lines("overlap"), [""; 0]);
}

#[tokio::test]
async fn what_may_start_only_once_is_lost_as_soon_as_its_worker_is_back() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &stubborn(&job).with("on_lost", "fail")).await;
    job.started(1).await;
    noted(&fleet, "w", 1).await;
    worker.kill().await;
    let _worker = fleet.worker("w").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Lost, "{record:?}");
    assert_eq!(record.error.as_ref().expect("an error").code, Code::WorkerLost);
    fleet.message_gone("default.a").await;
    noted(&fleet, "w", 0).await;
    assert_eq!(job.starts(), 1);
    job.gone().await;
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Lost);
}

#[tokio::test]
async fn a_task_that_another_worker_has_claimed_is_not_disturbed() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut superseded = fleet.nats.subscribe("shoal.events.superseded.>").await.expect("subscribed");
    fleet.nats.flush().await.expect("the server has the subscription");
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &stubborn(&job)).await;
    job.started(1).await;
    noted(&fleet, "w", 1).await;
    worker.kill().await;
    let other = fleet.worker("other").start().await;
    job.started(2).await;
    noted(&fleet, "other", 1).await;

    // Late: what it held is somebody else's by now, and it says so by leaving it alone.
    let worker = fleet.worker("w").start().await;
    worker.logged("given=0").await;
    assert!(notes(&fleet, "w").is_empty());
    // With a free slot beside it, a task given back would start at once.
    assert_eq!(fleet.run("default.next", &noop()).await.state, State::Succeeded);
    assert_eq!(job.starts(), 2);
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 2), "{record:?}");
    assert_eq!(record.attempts[1].worker.as_ref().expect("known").as_str(), "other");
    fleet.message_gone("default.a").await;
    assert_eq!(job.starts(), 2);
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Succeeded);
    // What was told before this came before it.
    drop(other);
    fleet.nats.publish("shoal.events.superseded.last", "".into()).await.expect("published");
    let told = in_time("our own word", superseded.next()).await.expect("the subscription lives");
    assert_eq!(told.subject.as_str(), "shoal.events.superseded.last", "{:?}", told.payload);
}

#[tokio::test]
async fn torn_and_foreign_notes_harm_nothing() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let mut worker = fleet.worker("w").slots(2).start().await;
    let (job, free) = (fleet.job(), fleet.job());
    let sequence = fleet.publish("default.a", &stubborn(&job)).await;
    job.started(1).await;
    let [note] = &noted(&fleet, "w", 1).await[..] else { panic!("one") };
    let text = std::fs::read_to_string(note).expect("readable");
    worker.kill().await;

    // A task that another worker holds, with its true reply but not its start; half a note, none, strangers, a folder.
    let _other = fleet.worker("other").start().await;
    let held = fleet.publish("default.held", &free.gated("")).await;
    free.started(1).await;
    let [of_other] = &noted(&fleet, "other", 1).await[..] else { panic!("one") };
    let here = folder(&fleet, "w");
    let write = |name: &str, text: &str| std::fs::write(here.join(name), text).expect("written");
    write("strange.json", &std::fs::read_to_string(of_other).expect("readable"));
    let mut stolen: serde_json::Value =
        serde_json::from_slice(&std::fs::read(of_other).expect("readable")).expect("a note is JSON");
    stolen["proof"] = serde_json::from_str::<serde_json::Value>(&text).expect("a note is JSON")["proof"].clone();
    write("stolen.json", &stolen.to_string());
    write("torn.json", &text[..text.len() / 2]);
    write("empty.json", "");
    write("NOT A START.json", &text);
    write("readme.txt", "somebody was here");
    std::fs::create_dir(here.join("folder.json")).expect("made");

    let worker = fleet.worker("w").slots(2).start().await;
    worker.logged("given=1").await;
    job.started(2).await;
    job.open();
    lost_once(&fleet.run_ended("default.a", sequence).await);
    noted(&fleet, "w", 1).await;
    assert!(here.join("readme.txt").exists() && here.join("folder.json").exists());
    assert_eq!(free.starts(), 1);
    free.open();
    let record = fleet.run_ended("default.held", held).await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
}

#[tokio::test]
async fn an_end_and_a_clean_shutdown_leave_no_note() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let mut worker = fleet.worker("w").slots(3).drain_grace("200ms").start().await;
    let jobs = [fleet.job(), fleet.job(), fleet.job()];
    for (n, job) in jobs.iter().enumerate() {
        fleet.publish(&format!("default.t-{n}"), &job.gated("[ ! -e $D/fail ]").with("stop_grace", "1s")).await;
        job.started(1).await;
    }
    noted(&fleet, "w", 3).await;
    jobs[0].open();
    assert_eq!(fleet.ended("default.t-0").await.state, State::Succeeded);
    noted(&fleet, "w", 2).await;
    jobs[1].write("fail", "");
    jobs[1].open();
    assert_eq!(fleet.ended("default.t-1").await.state, State::Failed);
    noted(&fleet, "w", 1).await;
    // The last is handed back.
    worker.terminate();
    assert_eq!(worker.wait().await.code, 0);
    assert!(notes(&fleet, "w").is_empty());
    let worker = fleet.worker("w").start().await;
    jobs[2].started(2).await;
    assert!(!worker.stderr().contains("gave back"), "{}", worker.stderr());
    jobs[2].open();
    let record = fleet.ended("default.t-2").await;
    assert_eq!(record.attempts[0].outcome, Outcome::HandedBack, "{record:?}");
}

#[tokio::test]
async fn a_short_task_writes_no_note() {
    let fleet = Fleet::builder().ack_wait("2s").start().await;
    let _worker = fleet.worker("w").start().await;
    // Within a lease of its connection even a first delivery is claimed; the time is what is under test.
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    let touched = || {
        let folder = std::fs::metadata(folder(&fleet, "w")).expect("there");
        (folder.mtime(), folder.mtime_nsec())
    };
    let before = touched();
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
    fleet.message_gone("default.a").await;
    assert_eq!(touched(), before);
    let job = fleet.job();
    let sequence = fleet.publish("default.b", &job.gated("")).await;
    noted(&fleet, "w", 1).await;
    job.open();
    assert_eq!(fleet.run_ended("default.b", sequence).await.state, State::Succeeded);
    assert_ne!(touched(), before, "a longer one does");
}

#[tokio::test]
async fn a_task_that_kills_its_worker_at_every_boot_is_condemned_before_a_lease_ends() {
    let fleet = Fleet::builder().ack_wait(FOREVER).env("SHOAL_LOST_LIMIT", "3").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let job = fleet.job();
    let script = "while [ ! -e $D/open ]; do sleep 0.02; done; kill -9 $(cat $D/worker)";
    let sequence = fleet.publish("default.poison", &job.script(script)).await;
    for boot in 1..=3 {
        let mut worker = fleet.worker("w").spawn();
        job.write("worker", &worker.pid().to_string());
        job.started(boot).await;
        noted(&fleet, "w", 1).await;
        job.open();
        assert_eq!(worker.wait().await.code, 128 + libc::SIGKILL);
        std::fs::remove_file(job.folder().join("open")).expect("there");
    }
    let _worker = fleet.worker("w").start().await;
    let record = fleet.run_ended("default.poison", sequence).await;
    assert_eq!(record.state, State::Failed, "{record:?}");
    assert_eq!(record.error.as_ref().expect("an error").code, Code::LostTooOften);
    assert_eq!(job.starts(), 3);
    fleet.dead_letter("default.poison").await;
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.poison", sequence);
}

/// Lets a frozen process go on, whatever becomes of the test.
struct Frozen(u32);

impl Drop for Frozen {
    fn drop(&mut self) {
        if process_runs(self.0) {
            signal(self.0, libc::SIGCONT);
        }
    }
}

/// The guard of a worker's processes.
fn guard_of(worker: &Program) -> u32 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", worker.pid())).expect("its threads").flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> =
        children.collect::<String>().split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    let is_guard = |pid: &&u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "shoal-guard")
    };
    *children.iter().find(is_guard).unwrap_or_else(|| panic!("no guard among {children:?}"))
}

#[tokio::test]
async fn nothing_is_given_back_while_the_guard_of_the_dead_boot_is_at_work() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let mut worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &stubborn(&job)).await;
    job.started(1).await;
    noted(&fleet, "w", 1).await;
    let frozen = Frozen(guard_of(&worker));
    freeze(frozen.0);
    worker.kill().await;

    // A boot that cannot know does without, and leaves the note to one that can.
    let mut second = fleet.worker("w").start().await;
    second.logged("something of an earlier boot still runs").await;
    assert_eq!(fleet.run("default.next", &noop()).await.state, State::Succeeded);
    assert_eq!((job.starts(), notes(&fleet, "w").len()), (1, 1));
    second.kill().await;
    let guard = frozen.0;
    drop(frozen);
    eventually("the guard leaves", async || if process_runs(guard) { Err(guard.to_string()) } else { Ok(()) }).await;

    let _third = fleet.worker("w").start().await;
    job.started(2).await;
    job.open();
    lost_once(&fleet.run_ended("default.a", sequence).await);
    assert_eq!(job.lines("overlap"), [""; 0]);
}

#[tokio::test]
async fn a_container_of_the_dead_boot_is_gone_before_its_task_is_given_back() {
    let engine = engine!();
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let mut worker = engine.worker(&fleet, "w").start().await;
    let id = engine.id("w");
    let job = fleet.job();
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then trap '' TERM; while :; do date +%s%N > $D/first; sleep 0.02; done; fi; \
                  cp $D/first $D/seen; while [ ! -e $D/open ]; do sleep 0.05; done";
    let sequence = fleet.publish("default.a", &job.contained(script)).await;
    job.started(1).await;
    eventually("a note of the worker", async || {
        let mut folders = std::fs::read_dir(fleet.folder()).expect("there").flatten();
        let has_note = |path: PathBuf| {
            let files = std::fs::read_dir(path.join("held").join(&id)).into_iter().flatten().flatten();
            files.map(|file| file.path()).any(|path| path.extension().is_some_and(|extension| extension == "json"))
        };
        if folders.any(|folder| has_note(folder.path())) { Ok(()) } else { Err(format!("none of {id}")) }
    })
    .await;
    // Its guard of containers dies with it: only the boot's own sweep removes what it left.
    worker.kill_with_children().await;
    assert!(!job.processes().is_empty());
    let _worker = engine.worker(&fleet, "w").start().await;
    job.started(2).await;
    eventually(
        "the second start looks",
        async || if job.lines("seen").is_empty() { Err("no".to_owned()) } else { Ok(()) },
    )
    .await;
    assert_eq!(job.lines("first"), job.lines("seen"), "the first start wrote on");
    job.open();
    lost_once(&fleet.run_ended("default.a", sequence).await);
    fleet.agent_where(&id, "idle", |agent| agent.status == AgentStatus::Ready && agent.running_count == 0).await;
}

#[cfg(feature = "fail-points")]
#[tokio::test]
async fn a_worker_killed_right_after_its_claim_gives_back_too() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let mut worker = fleet.worker("w").fails_at("after_claim").spawn();
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("").with("on_lost", "retry")).await;
    assert_eq!(worker.wait().await.code, 128 + libc::SIGKILL);
    assert_eq!(notes(&fleet, "w").len(), 1);
    let starts = job.starts();
    let _worker = fleet.worker("w").start().await;
    job.started(starts + 1).await;
    job.open();
    lost_once(&fleet.run_ended("default.a", sequence).await);
}

#[cfg(feature = "fail-points")]
#[tokio::test]
async fn a_boot_that_dies_while_it_gives_back_is_finished_by_the_next() {
    let fleet = Fleet::builder().ack_wait(FOREVER).start().await;
    let mut worker = fleet.worker("w").slots(2).start().await;
    let jobs = [fleet.job(), fleet.job()];
    let sequences =
        [fleet.publish("default.a", &stubborn(&jobs[0])).await, fleet.publish("default.b", &stubborn(&jobs[1])).await];
    for job in &jobs {
        job.started(1).await;
    }
    noted(&fleet, "w", 2).await;
    worker.kill().await;
    let mut second = fleet.worker("w").slots(2).fails_at("after_give_back").spawn();
    assert_eq!(second.wait().await.code, 128 + libc::SIGKILL);
    assert_eq!(notes(&fleet, "w").len(), 2, "a note is removed behind its nak");
    let _third = fleet.worker("w").slots(2).start().await;
    for (job, (key, sequence)) in jobs.iter().zip(["default.a", "default.b"].into_iter().zip(sequences)) {
        job.started(2).await;
        job.open();
        lost_once(&fleet.run_ended(key, sequence).await);
        assert_eq!(job.starts(), 2);
        assert_eq!(job.lines("overlap"), [""; 0]);
    }
}
