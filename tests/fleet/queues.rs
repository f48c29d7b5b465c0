//! Queues: order and weights, cap, pause and resume, many open pulls (T18, T19, items 14 and 16).

use std::time::Duration;

use futures_util::StreamExt;
use schemas::{Names, State};
use serde_json::json;

use crate::support::{Fleet, Job, With, eventually, noop, process_runs};

/// Publishes `n` tasks to a queue, each of which writes the queue's name down as it starts.
async fn fill(fleet: &Fleet, job: &Job, queue: &str, n: usize) {
    let task = job.script(&format!("echo {queue} >> $D/order"));
    let tasks: Vec<_> = (0..n).map(|n| (format!("{queue}.t-{n}"), task.clone())).collect();
    fleet.publish_all(&tasks).await;
}

#[tokio::test]
async fn queues_in_strict_order_are_worked_off_one_after_the_other() {
    let fleet = Fleet::start().await;
    let job = fleet.job();
    for queue in ["low", "default", "critical"] {
        fill(&fleet, &job, queue, 10).await;
    }
    let _worker = fleet.worker("w").queues("critical,default,low").start().await;
    fleet.drained().await;
    let order = job.lines("order");
    assert_eq!(order.len(), 30);
    // One delivery of another queue may have been on its way when the worker began.
    let inversions = |first: &str, then: &[&str]| {
        let last = order.iter().rposition(|queue| queue == first).expect("it ran");
        order[..last].iter().filter(|queue| then.contains(&queue.as_str())).count()
    };
    assert!(inversions("critical", &["default", "low"]) <= 1, "{order:?}");
    assert!(inversions("default", &["low"]) <= 1, "{order:?}");
}

#[tokio::test]
async fn weights_share_the_slots() {
    let fleet = Fleet::start().await;
    let job = fleet.job();
    fill(&fleet, &job, "a", 150).await;
    fill(&fleet, &job, "b", 150).await;
    let _worker = fleet.worker("w").queues("a:6,b:3").start().await;
    fleet.drained().await;
    let order = job.lines("order");
    assert_eq!(order.len(), 300);
    // Two to one while both have work: of the first 150 a hundred are expected. Where dice decide, four deviations.
    let of_a = order[..150].iter().filter(|queue| *queue == "a").count();
    assert!((77..=123).contains(&of_a), "{of_a} of the first 150: {order:?}");
}

#[tokio::test]
async fn one_slot_serves_three_queues_one_task_at_a_time() {
    let fleet = Fleet::start().await;
    let job = fleet.job();
    let script = "mkdir $D/busy || echo clash >> $D/clashes; sleep 0.01; rmdir $D/busy";
    let mut runs = Vec::new();
    for queue in ["a", "b", "c"] {
        for n in 0..15 {
            runs.push((format!("{queue}.t-{n}"), job.script(script)));
        }
    }
    let sequences = fleet.publish_all(&runs).await;
    let _worker = fleet.worker("w").queues("a:1,b:1,c:1").start().await;
    for ((key, _), sequence) in runs.iter().zip(sequences) {
        let record = fleet.run_ended(key, sequence).await;
        assert_eq!((record.state, record.spent()), (State::Succeeded, 1), "{record:?}");
    }
    assert_eq!(job.starts(), 45);
    assert_eq!(job.lines("clashes"), [""; 0]);
}

#[tokio::test]
async fn a_delivery_given_back_unstarted_is_no_loss() {
    let fleet = Fleet::start().await;
    let job = fleet.job();
    // More queues than slots, so that some of what arrives is beyond them and goes back.
    let mut runs = Vec::new();
    for queue in ["a", "b", "c", "d"] {
        for n in 0..10 {
            runs.push((format!("{queue}.t-{n}"), job.script("sleep 0.02").with("on_lost", "fail")));
        }
    }
    let sequences = fleet.publish_all(&runs).await;
    let _one = fleet.worker("one").queues("a:1,b:1,c:1,d:1").start().await;
    let _two = fleet.worker("two").queues("d:1,c:1,b:1,a:1").start().await;
    for ((key, _), sequence) in runs.iter().zip(sequences) {
        let record = fleet.run_ended(key, sequence).await;
        assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    }
    assert_eq!(job.starts(), 40);
}

#[tokio::test]
async fn a_queue_at_its_cap_holds_no_other_up() {
    let fleet = Fleet::start().await;
    fleet.shoal(&["queues", "set", "capped", "--cap", "1"]).await.ok();
    let job = fleet.job();
    let _holder = fleet.worker("holder").queues("capped").slots(2).start().await;
    fleet.publish("capped.a", &job.gated("")).await;
    job.started(1).await;
    fleet.publish("capped.b", &noop()).await;
    // A worker that comes to a queue which gives nothing out is ready all the same, and serves the other.
    let _other = fleet.worker("other").queues("capped,other").slots(2).start().await;
    for n in 0..3 {
        assert_eq!(fleet.run(&format!("other.t-{n}"), &noop()).await.state, State::Succeeded);
    }
    assert!(fleet.record("capped.b").await.is_none());
    job.open();
    assert_eq!(fleet.ended("capped.b").await.state, State::Succeeded);
}

#[tokio::test]
async fn a_paused_queue_holds_no_other_up() {
    let fleet = Fleet::start().await;
    fleet.shoal(&["queues", "pause", "paused"]).await.ok();
    fleet.publish("paused.a", &noop()).await;
    let _worker = fleet.worker("w").queues("paused,other").slots(2).start().await;
    for n in 0..3 {
        assert_eq!(fleet.run(&format!("other.t-{n}"), &noop()).await.state, State::Succeeded);
    }
    assert!(fleet.record("paused.a").await.is_none());
    fleet.shoal(&["queues", "resume", "paused"]).await.ok();
    assert_eq!(fleet.ended("paused.a").await.state, State::Succeeded);
}

#[tokio::test]
async fn an_empty_queue_holds_no_other_up() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").queues("empty,busy").start().await;
    for n in 0..5 {
        assert_eq!(fleet.run(&format!("busy.t-{n}"), &noop()).await.state, State::Succeeded);
    }
    assert_eq!(fleet.run("empty.late", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_cap_bounds_the_whole_fleet_and_survives_restarts() {
    let mut fleet = Fleet::start().await;
    fleet.shoal(&["queues", "set", "default", "--cap", "2"]).await.ok();
    let jobs: Vec<_> = (0..6).map(|_| fleet.job()).collect();
    let mut workers = vec![fleet.worker("one").slots(4).start().await, fleet.worker("two").slots(4).start().await];
    let started = |jobs: &[Job]| jobs.iter().filter(|job| job.starts() > 0).count();
    for (n, job) in jobs.iter().enumerate() {
        fleet.publish(&format!("default.t-{n}"), &job.gated("")).await;
    }
    let wait_for = async |n: usize| {
        eventually(format!("{n} started"), async || match started(&jobs) {
            now if now >= n => Ok(()),
            now => Err(format!("{now}")),
        })
        .await;
    };
    wait_for(2).await;
    assert_eq!(fleet.consumer("default").await.config.max_ack_pending, 2);

    // The server, then a worker that comes new to the queue; another queue shows that work is being handed out.
    fleet.nats().terminate().await;
    fleet.nats().restart().await;
    fleet.reachable().await;
    fleet.shoal(&["admin", "apply"]).await.ok();
    workers.push(fleet.worker("three").slots(4).queues("default,other").start().await);
    assert_eq!(fleet.run("other.a", &noop()).await.state, State::Succeeded);
    assert_eq!(fleet.consumer("default").await.config.max_ack_pending, 2);
    assert_eq!(started(&jobs), 2, "more than the cap at once");
    // One by one: an end makes room for exactly one more.
    for n in 2..6 {
        let running = jobs.iter().find(|job| job.starts() > 0 && !job.folder().join("open").exists());
        running.expect("two run").open();
        wait_for(n + 1).await;
        assert_eq!(started(&jobs), n + 1);
    }
    jobs.iter().for_each(Job::open);
    for n in 0..6 {
        assert_eq!(fleet.ended(&format!("default.t-{n}")).await.state, State::Succeeded);
    }
    drop(workers);
}

#[tokio::test]
async fn a_pause_survives_restarts_and_a_resume_wakes_the_waiting() {
    let mut fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").queues("default,other").start().await;
    fleet.run("default.before", &noop()).await;
    fleet.shoal(&["queues", "pause", "default"]).await.ok();
    let job = fleet.job();
    fleet.publish("default.a", &job.script("")).await;
    fleet.nats().kill();
    fleet.nats().restart().await;
    fleet.reachable().await;
    worker.kill().await;
    let _worker = fleet.worker("w2").queues("default,other").start().await;
    for n in 0..5 {
        fleet.run(&format!("other.t-{n}"), &noop()).await;
    }
    assert_eq!(job.starts(), 0, "a paused queue was served");
    assert!(fleet.consumer("default").await.paused);
    let listed = fleet.shoal(&["queues", "list", "-o", "json"]).await.ok().json();
    let of = |name: &str| listed.as_array().expect("an array").iter().find(|queue| queue["name"] == name).cloned();
    assert_eq!(of("default").expect("listed")["waiting"], 1);

    fleet.shoal(&["queues", "resume", "default"]).await.ok();
    assert_eq!(fleet.ended("default.a").await.state, State::Succeeded);
    assert_eq!(fleet.run("default.b", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn a_worker_beside_six_hundred_idle_ones_gets_its_work() {
    let fleet = Fleet::start().await;
    let worker = fleet.worker("w").slots(4).start().await;
    fleet.run("default.first", &noop()).await;
    // What six hundred idle workers keep open, on a connection of their own.
    let idle = crate::support::Client::connect(&fleet.url(), "shoal").await;
    let inbox = idle.nats.new_inbox();
    let mut answers = idle.nats.subscribe(format!("{inbox}.*")).await.expect("subscribed");
    let next = "$JS.API.CONSUMER.MSG.NEXT.SHOAL_TASKS.default";
    let ask = json!({"batch": 1, "expires": 600_000_000_000_u64}).to_string();
    for n in 0..600 {
        let reply = format!("{inbox}.{n}");
        idle.nats.publish_with_reply(next, reply, ask.clone().into()).await.expect("published");
    }
    idle.nats.flush().await.expect("the server has them");
    eventually("six hundred open pulls", async || match fleet.consumer("default").await.num_waiting {
        waiting if waiting >= 600 => Ok(()),
        waiting => Err(format!("{waiting}")),
    })
    .await;
    // The worker is one of them and is served in its turn; whoever else gets a task gives it back.
    let giving_back = tokio::spawn(async move {
        let mut refused = 0;
        while let Some(answer) = answers.next().await {
            match answer.reply {
                Some(reply) => idle.nats.publish(reply, "-NAK".into()).await.expect("published"),
                None if answer.status.is_some_and(|status| status.as_u16() == 409) => refused += 1,
                None => {}
            }
            assert_eq!(refused, 0, "409 to an open pull");
        }
    });
    let tasks: Vec<_> = (0..700).map(|n| (format!("default.t-{n}"), noop())).collect();
    let sequences = fleet.publish_all(&tasks).await;
    for ((key, _), sequence) in tasks.iter().zip(sequences) {
        assert_eq!(fleet.run_ended(key, sequence).await.state, State::Succeeded);
    }
    assert!(!giving_back.is_finished(), "a pull was refused: {:?}", giving_back.await);
    giving_back.abort();
    assert!(process_runs(worker.pid()));
}

#[tokio::test]
async fn a_queues_consumer_is_made_for_thousands_of_workers() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").queues("hot").start().await;
    let consumer = fleet.consumer("hot").await;
    assert_eq!(consumer.config.max_waiting, i64::from(schemas::stores::MAX_WAITING));
    assert_eq!(consumer.config.max_ack_pending, i64::from(schemas::stores::MAX_ACK_PENDING));
    assert_eq!(consumer.config.ack_wait, Duration::from_secs(4));
    assert_eq!(consumer.config.filter_subject, Names::default().queue_subjects(&"hot".parse().expect("a name")));
    assert_eq!(consumer.config.max_deliver, -1);
}
