//! The server killed and restarted under a working fleet.

use std::time::Duration;

use futures_util::StreamExt;
use schemas::{AgentStatus, Code, State};
use serde_json::Value;

use crate::support::{
    Fleet, Job, Ledger, Proxy, Publish, RawClient, Weather, With, eventually, in_time, noop, process_runs,
};

/// Publishes until the server has it: a lost answer is asked for again; a locked id is our own earlier publish.
async fn submit(fleet: &Fleet, key: &str, task: &Value) {
    eventually(format!("{key} accepted"), async || {
        let publish = fleet.nats.request(fleet.subject(key), task.to_string().into());
        let answer = tokio::time::timeout(Duration::from_secs(2), publish).await;
        let answer = answer.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_slice(&answer.payload).map_err(|e| e.to_string())?;
        match answer["error"]["err_code"].as_u64() {
            None | Some(10077) => Ok(()),
            Some(_) => Err(answer.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_killed_in_mid_load_loses_nothing_that_it_accepted() {
    let mut fleet = Fleet::start().await;
    let mut workers = Vec::new();
    for n in 0..3 {
        workers.push(fleet.worker(&format!("w-{n}")).slots(4).start().await);
    }
    let once: Vec<Job> = (0..3).map(|_| fleet.job()).collect();
    for (n, job) in once.iter().enumerate() {
        fleet.publish(&format!("default.once-{n}"), &job.script("sleep 3").with("on_lost", "fail")).await;
    }
    for job in &once {
        job.started(1).await;
    }
    let mut keys = Vec::new();
    for round in 0..3 {
        for n in 0..100 {
            let key = format!("default.r{round}-{n}");
            let job = fleet.job();
            let task = if n % 10 == 0 { job.script("sleep 0.2") } else { noop() };
            submit(&fleet, &key, &task).await;
            keys.push(key);
        }
        fleet.nats().kill();
        fleet.nats().restart().await;
    }
    for key in &keys {
        let record = fleet.ended(key).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
    }
    for (n, job) in once.iter().enumerate() {
        let record = fleet.ended(&format!("default.once-{n}")).await;
        assert!(matches!(record.state, State::Succeeded | State::Lost), "{record:?}");
        assert_eq!(job.starts(), 1, "{record:?}");
    }
    fleet.drained().await;
    // The same processes: they came back by themselves.
    for worker in &mut workers {
        assert!(worker.try_wait().is_none() && process_runs(worker.pid()));
    }
    let dead = fleet.messages("SHOAL_DEAD", "shoal.dead.>").await;
    assert!(dead.is_empty(), "{dead:?}");
}

#[tokio::test]
async fn a_running_task_outlives_a_short_outage() {
    let mut fleet = Fleet::builder().ack_wait("15s").start().await;
    let ledger = Ledger::watch(&fleet).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("printf kept > $SHOAL_RESULT_FILE")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    fleet.nats().kill();
    // It ends while there is nobody to tell.
    job.open();
    job.gone().await;
    fleet.nats().restart().await;
    fleet.reachable().await;
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(record.attempts.len(), 1, "{record:?}");
    assert_eq!(job.starts(), 1);
    fleet.message_gone("default.a").await;
    ledger.caught_up(&fleet).await;
    ledger.one_end("default.a", sequence);
}

#[tokio::test]
async fn an_outage_longer_than_the_lease_stops_the_work_and_another_start_ends_it() {
    let mut fleet = Fleet::builder().ack_wait("3s").start().await;
    let worker = fleet.worker("w").start().await;
    let (job, once) = (fleet.job(), fleet.job());
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then setsid sleep 600 & sleep 600; fi";
    fleet.publish("default.a", &job.script(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    let _second = fleet.worker("second").start().await;
    fleet.publish("default.once", &once.script("sleep 600").with("on_lost", "fail")).await;
    fleet.in_state("default.once", State::Running).await;
    once.started(1).await;

    fleet.nats().kill();
    // Before anybody else could hold the lease, the holders have stopped what ran under it.
    job.gone().await;
    once.gone().await;
    fleet.nats().restart().await;
    let record = fleet.ended("default.a").await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!((job.starts(), record.spent()), (2, 1), "{record:?}");
    let record = fleet.ended("default.once").await;
    assert_eq!(record.state, State::Lost, "{record:?}");
    assert_eq!(record.error.expect("an error").code, Code::WorkerLost);
    assert_eq!(once.starts(), 1);
    assert!(process_runs(worker.pid()));
}

#[tokio::test]
async fn a_waiter_misses_no_end_over_an_outage() {
    let mut fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("exit 5")).await;
    job.started(1).await;
    let mut wait = fleet.spawn(&["wait", "default.a"], "");
    eventually("the waiter listens", async || match fleet.nats().listeners("shoal.events.tasks.default.a").await {
        0 => Err("nobody".into()),
        _ => Ok(()),
    })
    .await;
    fleet.nats().kill();
    job.open();
    job.gone().await;
    fleet.nats().restart().await;
    assert_eq!(wait.wait().await.code, 5);
}

#[tokio::test]
async fn a_publish_by_hand_is_stored_before_a_kill_of_the_server() {
    let mut fleet = Fleet::start().await;
    let address = fleet.nats().address();
    let mut client = RawClient::connect(&address).await;
    for n in 0..20 {
        client.publish(&format!("shoal.tasks.default.h-{n}"), noop().to_string().as_bytes()).await;
    }
    // Acknowledged publishes; those by hand before them are stored in the same order.
    fleet.send(Publish::new("shoal.tasks.default.last", noop().to_string())).await.expect("accepted");
    fleet.nats().kill();
    fleet.nats().restart().await;
    let _worker = fleet.worker("w").start().await;
    for n in 0..20 {
        assert_eq!(fleet.ended(&format!("default.h-{n}")).await.state, State::Succeeded);
    }
}

/// A queue whose work goes on when its worker is cut off.
async fn going_on() -> (Fleet, Proxy) {
    let mut fleet = Fleet::builder().ack_wait("2s").start().await;
    fleet.shoal(&["queues", "set", "default", "--on-disconnect", "continue"]).await.ok();
    let proxy = Proxy::start(fleet.nats().address()).await;
    (fleet, proxy)
}

#[tokio::test]
async fn where_a_queue_says_so_work_goes_on_without_the_server_and_its_end_counts() {
    let (fleet, proxy) = going_on().await;
    let _worker = fleet.worker("w").env("SHOAL_NATS_URL", &proxy.url()).start().await;
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("printf kept > $SHOAL_RESULT_FILE")).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    proxy.cut();
    // Time itself is under test: twice the lease, and nobody else there.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(process_runs(job.pids()[0]), "it goes on");
    proxy.restore();
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!((job.starts(), record.attempts.len()), (1, 1), "{record:?}");
    fleet.message_gone("default.a").await;
}

#[tokio::test]
async fn a_returning_holder_that_was_replaced_is_superseded() {
    let (fleet, proxy) = going_on().await;
    let mut superseded = fleet.nats.subscribe("shoal.events.superseded.default.a").await.expect("subscribed");
    fleet.nats.flush().await.expect("the server has the subscription");
    let _cut_off = fleet.worker("cut-off").env("SHOAL_NATS_URL", &proxy.url()).start().await;
    let job = fleet.job();
    // The first start never ends by itself.
    let script = "if [ $(wc -l < $D/starts) = 1 ]; then sleep 600; fi; while [ ! -e $D/open ]; do sleep 0.05; done";
    let sequence = fleet.publish("default.a", &job.script(script)).await;
    fleet.in_state("default.a", State::Running).await;
    job.started(1).await;
    proxy.cut();
    let _other = fleet.worker("other").start().await;
    job.started(2).await;
    assert!(process_runs(job.pids()[0]), "the first one goes on meanwhile");
    proxy.restore();
    in_time("the first start is told superseded", superseded.next()).await.expect("the subscription lives");
    eventually("the first start is gone", async || match process_runs(job.pids()[0]) {
        true => Err("it runs".into()),
        false => Ok(()),
    })
    .await;
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!((job.starts(), record.spent()), (2, 1), "{record:?}");
}

#[tokio::test]
async fn a_delivery_that_comes_with_its_lease_over_is_not_started() {
    let mut fleet = Fleet::builder().ack_wait("3s").start().await;
    let proxy = Proxy::start(fleet.nats().address()).await;
    let _slow = fleet.worker("slow").env("SHOAL_NATS_URL", &proxy.url()).start().await;
    // The connection stands, the pull is open, and what it brings is under way for longer than the lease.
    eventually("its pull waits", async || match fleet.consumer("default").await.num_waiting {
        0 => Err("none".into()),
        _ => Ok(()),
    })
    .await;
    proxy.weather(Weather::HalfOpen);
    let job = fleet.job();
    let sequence = fleet.publish("default.a", &job.gated("")).await;
    eventually("it was handed out", async || match fleet.consumer("default").await.num_ack_pending {
        1 => Ok(()),
        other => Err(format!("{other} are out")),
    })
    .await;
    let _other = fleet.worker("other").start().await;
    job.started(1).await;
    proxy.restore();
    // It beats and pulls again, so it has read all that was under way.
    let record = fleet.agent("slow").await.expect("readable").expect("there");
    let later =
        |agent: &schemas::AgentRecord| agent.last_fetch > record.last_fetch && agent.status == AgentStatus::Ready;
    fleet.agent_where("slow", "pulls again", later).await;
    job.open();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!((job.starts(), record.attempts.len()), (1, 2), "{record:?}");
    assert_eq!(record.attempts[1].worker.as_ref().map(|id| id.as_str()), Some("other"), "{record:?}");
}
