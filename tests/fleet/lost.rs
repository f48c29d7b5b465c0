//! Workers killed and frozen in mid-task: the lease, the fence, losses apart from attempts, the poison guard.

use futures_util::StreamExt;
use schemas::{AgentStatus, Code, Outcome, State};

use crate::support::{Fleet, Ledger, Proxy, With, eventually, in_time, noop, process_runs};

#[tokio::test]
async fn a_killed_worker_gives_its_task_to_another() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = fleet.worker("first").start().await;
    let job = fleet.job();
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then setsid sh -c 'trap \"\" TERM HUP; sleep 600' & sleep 600; fi";
    let sequence = fleet.publish("default.a", &job.script(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    assert!(!job.processes().is_empty());

    first.kill().await;
    // Whatever it forked goes with it, before any other worker is there to clean up.
    job.gone().await;
    let _second = fleet.worker("second").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded);
    let [lost, run] = &record.attempts[..] else { panic!("one lost, one run: {record:?}") };
    assert_eq!((lost.outcome, lost.number), (Outcome::Lost, None));
    assert_eq!(lost.worker.as_ref().expect("known").as_str(), "first");
    assert_eq!((run.outcome, run.number.map(u32::from)), (Outcome::Exited, Some(1)));
    assert_eq!(run.worker.as_ref().expect("known").as_str(), "second");
    assert_eq!(job.attempts(), [1, 1], "a loss spends no attempt");
    fleet.message_gone("default.a").await;
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Succeeded);
    assert!(fleet.dead("default.a").await.is_empty());
    job.gone().await;
}

#[tokio::test]
async fn a_frozen_worker_is_superseded_and_works_on() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut superseded = fleet.nats.subscribe("shoal.events.superseded.default.a").await.expect("subscribed");
    fleet.nats.flush().await.expect("the server has the subscription");
    let frozen = fleet.worker("frozen").start().await;
    let job = fleet.job();
    // The first start never ends by itself; the second writes a result.
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then sleep 600; fi; printf second > $SHOAL_RESULT_FILE";
    let sequence = fleet.publish("default.a", &job.script(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;

    frozen.freeze();
    let mut other = fleet.worker("other").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded);
    assert_eq!(record.attempts.last().expect("an attempt").worker.as_ref().expect("known").as_str(), "other");
    let (revision, _) = fleet.try_record("default.a").await.expect("readable").expect("there");

    frozen.thaw();
    in_time("the superseded start is told", superseded.next()).await.expect("the subscription lives");
    job.gone().await;
    let first = job.pids()[0];
    assert!(!process_runs(first));
    // It works on: with the other gone, new work is its own.
    other.terminate();
    assert_eq!(other.wait().await.code, 0);
    let next = fleet.run("default.b", &noop()).await;
    assert_eq!(next.state, State::Succeeded);
    assert_eq!(next.attempts.len(), 1, "{next:?}");
    assert_eq!(next.attempts[0].worker.as_ref().expect("known").as_str(), "frozen");

    let (now, record) = fleet.try_record("default.a").await.expect("readable").expect("there");
    assert_eq!(now, revision, "nothing was written after the end: {record:?}");
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Succeeded);
    assert_eq!(job.starts(), 2);
    assert!(fleet.dead("default.a").await.is_empty());
}

#[tokio::test]
async fn a_late_end_of_a_frozen_worker_is_not_applied() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let frozen = fleet.worker("frozen").start().await;
    let job = fleet.job();
    // The first start fails while its worker is frozen; the second waits to be let through.
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then \
                  while [ ! -e $D/fail ]; do sleep 0.05; done; echo > $D/failed; exit 9; fi; \
                  while [ ! -e $D/open ]; do sleep 0.05; done; printf right > $SHOAL_RESULT_FILE";
    let task = job.script(script).retried(5, "100ms");
    let sequence = fleet.publish("default.a", &task).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    frozen.freeze();
    job.write("fail", "");
    let _other = fleet.worker("other").start().await;
    job.started(2).await;

    // Thawed while the other start runs: what it has to say comes too late, and no nak or ack of it counts.
    frozen.thaw();
    fleet
        .agent_where("frozen", "works again", |agent| agent.status == AgentStatus::Ready && agent.running_count == 0)
        .await;
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let bytes = record.result.expect("a result").inline_bytes().expect("inline").expect("base64");
    assert_eq!(bytes, b"right");
    fleet.message_gone("default.a").await;
    assert_eq!(job.starts(), 2);
    ledger.caught_up(&fleet).await;
    assert!(!ledger.states("default.a", sequence).contains(&State::Retrying));
    ledger.one_end("default.a", sequence);
}

#[tokio::test]
async fn a_task_five_times_longer_than_the_ack_wait_runs_once() {
    let fleet = Fleet::builder().ack_wait("3s").start().await;
    let _one = fleet.worker("one").start().await;
    let _two = fleet.worker("two").start().await;
    let job = fleet.job();
    let record = fleet.run("default.a", &job.script("sleep 15")).await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    assert_eq!(job.starts(), 1);
    assert_eq!(fleet.consumer("default").await.num_redelivered, 0);
}

#[tokio::test]
async fn a_worker_that_waited_a_lease_for_its_first_task_writes_one_record() {
    let fleet = Fleet::builder().ack_wait("2s").start().await;
    let _worker = fleet.worker("w").start().await;
    // Within a lease of its connection even a first delivery is claimed; the time is what is under test.
    tokio::time::sleep(std::time::Duration::from_millis(2_500)).await;
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
    let state = fleet.stream("KV_shoal_tasks").await.cached_info().state.clone();
    assert_eq!((state.messages, state.last_sequence), (1, 1), "no claim before its end");
}

#[tokio::test]
async fn on_lost_fail_starts_once_when_its_worker_is_killed() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let mut first = fleet.worker("first").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("sleep 600").with("on_lost", "fail")).await;
    job.started(1).await;
    first.kill().await;
    let _second = fleet.worker("second").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Lost);
    assert_eq!(record.error.as_ref().expect("an error").code, Code::WorkerLost);
    assert_eq!(record.attempts[0].outcome, Outcome::Lost);
    fleet.message_gone("default.a").await;
    assert_eq!(fleet.run("default.next", &noop()).await.state, State::Succeeded);
    assert_eq!(job.starts(), 1);
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.a", sequence);
    job.gone().await;
}

#[tokio::test]
async fn on_lost_fail_starts_once_when_its_worker_is_frozen() {
    let fleet = Fleet::start().await;
    let ledger = Ledger::watch(&fleet).await;
    let frozen = fleet.worker("frozen").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.script("sleep 600").with("on_lost", "fail")).await;
    job.started(1).await;
    frozen.freeze();
    let _other = fleet.worker("other").start().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Lost, "{record:?}");
    frozen.thaw();
    fleet
        .agent_where("frozen", "works again", |agent| agent.status == AgentStatus::Ready && agent.running_count == 0)
        .await;
    job.gone().await;
    assert_eq!(job.starts(), 1);
    ledger.caught_up(&fleet).await;
    assert_eq!(ledger.one_end("default.a", sequence), State::Lost);
}

#[tokio::test]
async fn a_task_that_kills_its_worker_ends_as_a_dead_letter_after_the_lost_limit() {
    let fleet = Fleet::builder().ack_wait("2s").env("SHOAL_LOST_LIMIT", "3").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let job = fleet.job();
    // Within 20 ms, so that the first start leaves no trace but the delivery count.
    let sequence = fleet.publish("default.poison", &job.script("sleep 0.02; kill -9 $(cat $D/worker)")).await;
    let mut boots = 0;
    let record = loop {
        boots += 1;
        assert!(boots <= 6, "the poison guard does not hold");
        let mut worker = fleet.worker("w").spawn();
        job.write("worker", &worker.pid().to_string());
        let ended = fleet.run_ended("default.poison", sequence);
        tokio::select! {
            biased;
            record = ended => break (record, worker),
            output = worker.wait() => assert_eq!(output.code, 128 + libc::SIGKILL, "{output:?}"),
        }
    };
    let (record, worker) = record;
    assert_eq!(record.state, State::Failed, "{record:?}");
    assert_eq!(record.error.as_ref().expect("an error").code, Code::LostTooOften);
    assert!(record.attempts.iter().all(|attempt| attempt.number.is_none()), "{record:?}");
    let starts = job.starts();
    assert!((3..=4).contains(&starts), "{starts} starts with a limit of three");
    let letter = fleet.dead_letter("default.poison").await;
    assert_eq!(letter.headers.get("Shoal-Reason").expect("a reason").as_str(), "lost_too_often");
    assert_eq!(letter.headers.get("Shoal-Attempts").expect("attempts").as_str(), "0");
    // The queue goes on, on the worker that was not killed for it.
    assert_eq!(fleet.run("default.next", &noop()).await.state, State::Succeeded);
    assert!(process_runs(worker.pid()));
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.poison", sequence);
}

#[tokio::test]
async fn five_rolling_restarts_of_all_workers_condemn_nobody() {
    let fleet = Fleet::builder().env("SHOAL_LOST_LIMIT", "2").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let jobs: Vec<_> = (0..6).map(|_| fleet.job()).collect();
    let start = async |n: usize| fleet.worker(&format!("w-{n}")).slots(4).drain_grace("200ms").start().await;
    let mut workers = [start(0).await, start(1).await, start(2).await];
    let mut sequences = Vec::new();
    for (n, job) in jobs.iter().enumerate() {
        sequences.push(fleet.publish(&format!("default.t-{n}"), &job.gated("").with("stop_grace", "1s")).await);
    }
    for job in &jobs {
        job.started(1).await;
    }
    for _ in 0..5 {
        for (n, worker) in workers.iter_mut().enumerate() {
            worker.terminate();
            assert_eq!(worker.wait().await.code, 0);
            *worker = start(n).await;
        }
    }
    let restarted: usize = jobs.iter().map(|job| job.starts()).sum();
    assert!(restarted > jobs.len(), "no task was handed back: {restarted} starts");
    for (n, (job, sequence)) in jobs.iter().zip(sequences).enumerate() {
        job.open();
        let key = format!("default.t-{n}");
        let record = fleet.run_ended(&key, sequence).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
        let handed_back = record.attempts.iter().filter(|attempt| attempt.outcome == Outcome::HandedBack);
        assert!(handed_back.clone().all(|attempt| attempt.number.is_none()));
        assert_eq!(record.spent(), 1, "{record:?}");
        assert!(job.attempts().iter().all(|attempt| *attempt == 1));
        assert!(fleet.dead(&key).await.is_empty());
        ledger.caught_up(&fleet).await;
        ledger.one_end(&key, sequence);
    }
}

#[tokio::test]
async fn what_is_handed_out_again_while_its_holder_lives_is_left_to_it() {
    handed_out_again(|_| {}).await;
}

#[tokio::test]
async fn what_is_handed_out_again_while_its_holder_is_cut_off_for_a_moment_is_left_to_it() {
    handed_out_again(Proxy::cut).await;
}

/// As after a server's death or a change of leaders in a cluster, which forget who holds what: the `trouble` is there
/// while another worker is handed what the holder has.
async fn handed_out_again(trouble: impl FnOnce(&Proxy)) {
    let mut fleet = Fleet::builder().ack_wait("30s").start().await;
    let proxy = Proxy::start(fleet.nats().address()).await;
    let _holder = fleet.worker("holder").env("SHOAL_NATS_URL", &proxy.url()).slots(2).start().await;
    let jobs = [fleet.job(), fleet.job()];
    let tasks = [jobs[0].gated(""), jobs[1].gated("").with("on_lost", "fail")];
    let mut sequences = Vec::new();
    for (n, task) in tasks.iter().enumerate() {
        sequences.push(fleet.publish(&format!("default.t-{n}"), task).await);
        jobs[n].started(1).await;
        fleet.in_state(&format!("default.t-{n}"), State::Running).await;
    }
    // With all its slots taken the holder pulls nothing, so the other gets both.
    let mut other = fleet.worker("other").slots(2).spawn();
    other.ready().await;
    trouble(&proxy);
    fleet.stream("SHOAL_TASKS").await.delete_consumer("default").await.expect("deleted");
    eventually("both are out again", async || {
        let stream = fleet.stream("SHOAL_TASKS").await;
        let consumer = stream.get_consumer::<async_nats::jetstream::consumer::pull::Config>("default").await;
        match consumer.map_err(|e| e.to_string())?.cached_info().delivered.consumer_sequence {
            2.. => Ok(()),
            n => Err(format!("{n} deliveries")),
        }
    })
    .await;
    eventually("the other left them to their holder", async || match other.stderr().matches("left to it").count() {
        2 => Ok(()),
        n => Err(format!("{n} were left")),
    })
    .await;
    proxy.restore();
    jobs.iter().for_each(crate::support::Job::open);
    for (n, job) in jobs.iter().enumerate() {
        let record = fleet.run_ended(&format!("default.t-{n}"), sequences[n]).await;
        assert_eq!((record.state, record.attempts.len(), job.starts()), (State::Succeeded, 1, 1), "{record:?}");
        fleet.message_gone(&format!("default.t-{n}")).await;
    }
}
