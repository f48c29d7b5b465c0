//! The agent registry: who is there, judged by beats, and by observers that were not blind themselves.

use futures_util::StreamExt;
use schemas::{AgentKind, AgentRecord, AgentStatus, State};
use serde_json::Value;

use crate::support::{Fleet, Proxy, eventually, http_get, in_time, noop};

#[tokio::test]
async fn a_worker_registers_itself_when_it_can_take_work() {
    let fleet = Fleet::start().await;
    assert!(fleet.agents().await.is_empty());
    let worker = fleet.worker("w-1").slots(3).queues("critical:6,default:3").spawn();
    let agent = fleet.agent_is("w-1", AgentStatus::Ready).await;
    assert_eq!(agent.kind, AgentKind::Worker);
    assert_eq!(agent.slots, 3);
    let queues: Vec<_> = agent.queues.iter().map(|queue| queue.as_str()).collect();
    assert_eq!(queues, ["critical", "default"]);
    assert!(agent.runtimes.contains_key("process") && agent.runtimes.contains_key("call"), "{agent:?}");
    assert!(!agent.hostname.is_empty() && !agent.version.is_empty() && !agent.instance.is_empty());
    assert!(agent.registered_at <= agent.last_heartbeat);
    let free = agent.free.expect("what is free on this machine is known");
    assert!(free.memory_bytes > 0 && free.disk_bytes > 0, "{free:?}");
    fleet.run("default.a", &noop()).await;
    let agent = fleet.agent_where("w-1", "an ack", |agent| agent.last_ack.is_some()).await;
    assert!(agent.last_fetch.is_some());
    drop(worker);
}

#[tokio::test]
async fn what_runs_is_named_in_the_registry() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(2).start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    let agent = fleet.agent_where("w", "one runs", |agent| agent.running_count == 1).await;
    assert_eq!(agent.running, ["default.a"]);
    job.open();
    fleet.agent_where("w", "nothing runs", |agent| agent.running_count == 0 && agent.running.is_empty()).await;
}

#[tokio::test]
async fn a_killed_worker_turns_offline_by_itself() {
    let fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let mut killed = fleet.worker("killed").start().await;
    let _other = fleet.worker("other").start().await;
    let beat = fleet.agent_is("killed", AgentStatus::Ready).await.last_heartbeat;
    killed.kill().await;
    let offline = fleet.agent_is("killed", AgentStatus::Offline).await;
    assert!(offline.last_heartbeat >= beat, "whoever marks it does not touch its last beat: {offline:?}");
    assert!(offline.reason.is_some(), "{offline:?}");
    assert_eq!(fleet.agent("other").await.expect("readable").expect("there").status, AgentStatus::Ready);
}

#[tokio::test]
async fn readers_judge_a_silent_worker_by_its_time_stamp_alone() {
    // No dispatcher that could mark anybody.
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").start().await;
    worker.kill().await;
    eventually("the list says offline", async || {
        let list = fleet.shoal(&["agents", "list", "-o", "json"]).await.ok().json();
        match list[0]["status"].as_str() {
            Some("offline") => Ok(()),
            _ => Err(list.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_frozen_worker_turns_offline_and_comes_back_by_itself() {
    let fleet = Fleet::start().await;
    let (_dispatcher, _) = fleet.dispatcher(&[]).await;
    let worker = fleet.worker("w").start().await;
    let instance = fleet.agent_is("w", AgentStatus::Ready).await.instance;
    worker.freeze();
    fleet.agent_is("w", AgentStatus::Offline).await;
    worker.thaw();
    let back = fleet.agent_is("w", AgentStatus::Ready).await;
    assert_eq!(back.instance, instance);
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
}

#[tokio::test]
async fn an_observer_that_was_cut_off_marks_nobody() {
    let mut fleet = Fleet::start().await;
    let proxy = Proxy::start(fleet.nats().address()).await;
    let _alive = fleet.worker("alive").start().await;
    let mut killed = fleet.worker("killed").start().await;
    let (mut dispatcher, health) = fleet.dispatcher(&[("SHOAL_NATS_URL", &proxy.url())]).await;
    eventually("the dispatcher is ready", async || match http_get(&health, "/health/ready").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let store = fleet.js.get_key_value("shoal_agents").await.expect("the registry");
    let mut watch = store.watch_all().await.expect("watched");
    // Beats of the living one; whoever says that it is offline is wrong.
    let mut beats = async |n: usize| {
        let mut seen = 0;
        while seen < n {
            let entry = in_time("a beat", watch.next()).await.expect("the watch lives").expect("an entry");
            if entry.key == "alive" {
                let agent: AgentRecord = serde_json::from_slice(&entry.value).expect("an agent");
                assert_eq!(agent.status, AgentStatus::Ready, "marked by an observer that could not see: {agent:?}");
                seen += 1;
            }
        }
    };
    proxy.cut();
    // Four times the window after which a silent agent is offline.
    beats(12).await;
    eventually("the dispatcher says that it is not ready", async || match http_get(&health, "/health/ready").await {
        Ok((status, _)) if status != 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(http_get(&health, "/health/live").await.expect("it answers").0, 200);
    proxy.restore();
    eventually("the dispatcher is ready again", async || match http_get(&health, "/health/ready").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    beats(8).await;
    // And it is no longer blind: one that really dies is marked.
    killed.kill().await;
    fleet.agent_is("killed", AgentStatus::Offline).await;
    beats(1).await;
    assert!(dispatcher.try_wait().is_none());
}

#[tokio::test]
async fn an_id_survives_restarts_and_two_workers_on_one_host_differ() {
    let fleet = Fleet::start().await;
    let state = fleet.folder().join("state");
    let mut one = fleet.worker("-").nameless(&state).spawn();
    let first = one.ready().await.remove("worker").expect("ready names the worker");
    let mut two = fleet.worker("-").nameless(&state).spawn();
    let second = two.ready().await.remove("worker").expect("ready names the worker");
    assert_ne!(first, second);
    let before = fleet.agent_is(&first, AgentStatus::Ready).await;
    one.kill().await;
    let mut again = fleet.worker("-").nameless(&state).spawn();
    let third = again.ready().await.remove("worker").expect("ready names the worker");
    assert_eq!(third, first, "the first id that no other worker on the host holds");
    let after = fleet
        .agent_where(&first, "a new instance", |agent| {
            agent.status == AgentStatus::Ready && agent.instance != before.instance
        })
        .await;
    assert!(after.registered_at >= before.registered_at);
    assert_eq!(fleet.agents().await.len(), 2);
}

#[tokio::test]
async fn the_registry_outlives_the_server() {
    let mut fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let mut gone = fleet.worker("gone").start().await;
    gone.terminate();
    assert_eq!(gone.wait().await.code, 0);
    fleet.nats().kill();
    fleet.nats().restart().await;
    fleet.reachable().await;
    let kept = fleet.agent("gone").await.expect("readable").expect("there");
    assert_eq!(kept.status, AgentStatus::Offline);
    let before = fleet.agent("w").await.expect("readable").expect("there").last_heartbeat;
    fleet
        .agent_where("w", "beats again", |agent| agent.status == AgentStatus::Ready && agent.last_heartbeat > before)
        .await;
}

#[tokio::test]
async fn a_dispatcher_is_live_and_ready_and_says_which() {
    let mut fleet = Fleet::start().await;
    let (mut dispatcher, health) = fleet.dispatcher(&[]).await;
    for path in ["/health/live", "/health/ready"] {
        eventually(path, async || match http_get(&health, path).await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    fleet.nats().kill();
    eventually("not ready without a server", async || match http_get(&health, "/health/ready").await {
        Ok((503, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(http_get(&health, "/health/live").await.expect("it answers").0, 200);
    fleet.nats().restart().await;
    eventually("ready again", async || match http_get(&health, "/health/ready").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    dispatcher.terminate();
    assert_eq!(dispatcher.wait().await.code, 0);
}

#[tokio::test]
async fn no_work_notices_the_death_of_a_dispatcher() {
    let fleet = Fleet::start().await;
    let (mut dispatcher, _) = fleet.dispatcher(&[]).await;
    let _worker = fleet.worker("w").start().await;
    let job = fleet.job();
    fleet.publish("default.a", &job.gated("")).await;
    job.started(1).await;
    dispatcher.kill().await;
    fleet.publish("default.b", &noop()).await;
    job.open();
    assert_eq!(fleet.ended("default.a").await.attempts.len(), 1);
    assert_eq!(fleet.ended("default.b").await.state, State::Succeeded);
}

#[tokio::test]
async fn agents_are_listed_and_shown() {
    let fleet = Fleet::start().await;
    let _one = fleet.worker("one").start().await;
    let _two = fleet.worker("two").start().await;
    fleet.agent_is("one", AgentStatus::Ready).await;
    fleet.agent_is("two", AgentStatus::Ready).await;
    let list = fleet.shoal(&["agents", "list", "-o", "json"]).await.ok().json();
    let mut ids: Vec<_> = list.as_array().expect("an array").iter().map(|agent| agent["id"].clone()).collect();
    ids.sort_by_key(Value::to_string);
    assert_eq!(ids, ["one", "two"]);
    let shown = fleet.shoal(&["agents", "show", "one", "-o", "json"]).await.ok().json();
    assert_eq!((&shown["id"], &shown["status"]), (&"one".into(), &"ready".into()));
    let table = fleet.shoal(&["agents", "list"]).await.ok().stdout;
    assert!(table.contains("one") && table.contains("two") && table.contains("ready"), "{table}");
    assert_ne!(fleet.shoal(&["agents", "show", "nobody"]).await.code, 0);
}
