//! A cordoned worker stays up and takes nothing new (R8).

use schemas::{AgentStatus, State};
use serde_json::{Value, json};

use crate::support::{Fleet, eventually, noop};

#[tokio::test]
async fn a_cordoned_worker_finishes_what_it_runs_and_leaves_the_rest_to_others() {
    let fleet = Fleet::start().await;
    let worker = fleet.worker("w").slots(4).start().await;
    let job = fleet.job();
    fleet.publish("default.runs", &job.gated("")).await;
    fleet.in_state("default.runs", State::Running).await;
    let said = fleet.shoal(&["agents", "cordon", "w", "--reason", "new disk", "-o", "json"]).await.ok().json();
    assert_eq!(said, json!({"id": "w", "cordoned": true, "running": 1}));
    let record = fleet.agent_is("w", AgentStatus::Starting).await;
    assert_eq!(record.reason.as_deref(), Some("cordoned: new disk"));
    for n in 0..10 {
        fleet.publish(&format!("default.t{n}"), &noop()).await;
    }
    let explained = eventually("that nobody takes it is explained", async || {
        let explained = fleet.shoal(&["explain", "default.t9"]).await.stdout;
        if explained.contains("w is starting (cordoned: new disk)") { Ok(explained) } else { Err(explained) }
    })
    .await;
    assert!(explained.contains("shoal agents show w"), "{explained}");
    let other = fleet.worker("other").start().await;
    for n in 0..10 {
        let record = fleet.ended(&format!("default.t{n}")).await;
        let by: Vec<_> = record.attempts.iter().map(|attempt| attempt.worker.as_ref().map(|id| id.as_str())).collect();
        assert_eq!(by, [Some("other")], "{record:?}");
    }
    job.open();
    assert_eq!(fleet.ended("default.runs").await.state, State::Succeeded);
    assert_eq!(job.starts(), 1);

    other.terminate();
    fleet.agent_is("other", AgentStatus::Offline).await;
    let said = fleet.shoal(&["agents", "uncordon", "w"]).await.ok().stdout;
    assert_eq!(said, "w takes tasks again\n");
    let record = fleet.run("default.after", &noop()).await;
    assert_eq!(record.attempts[0].worker.as_ref().map(|id| id.as_str()), Some("w"));
    assert!(fleet.agent_is("w", AgentStatus::Ready).await.reason.is_none());
    worker.terminate();
}

#[tokio::test]
async fn what_was_on_its_way_to_a_cordoned_worker_goes_back_unspent() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    // A plain request, by hand.
    let answer = fleet.nats.request("shoal.control.w.cordon", "".into()).await.expect("the worker answers");
    let said: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(said, json!({"cordoned": true, "running": 0}));
    // Its pulls of before are open still.
    for n in 0..8 {
        fleet.publish(&format!("default.t{n}"), &noop()).await;
    }
    eventually("nobody asks any more", async || match fleet.consumer("default").await {
        consumer if consumer.num_waiting == 0 => Ok(()),
        consumer => Err(format!("{consumer:?}")),
    })
    .await;
    assert!(fleet.consumer("default").await.delivered.stream_sequence > 0, "some were on their way");
    for n in 0..8 {
        assert!(fleet.record(&format!("default.t{n}")).await.is_none(), "t{n}");
    }
    let lift = json!({"cordon": false}).to_string();
    fleet.nats.request("shoal.control.w.cordon", lift.into()).await.expect("the worker answers");
    for n in 0..8 {
        let record = fleet.ended(&format!("default.t{n}")).await;
        assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    }
}

#[tokio::test]
async fn a_cordon_is_gone_with_the_boot_it_was_meant_for() {
    let fleet = Fleet::start().await;
    let mut worker = fleet.worker("w").start().await;
    fleet.shoal(&["agents", "cordon", "w"]).await.ok();
    fleet.agent_where("w", "is cordoned", |agent| agent.reason.as_deref() == Some("cordoned")).await;
    worker.terminate();
    assert_eq!(worker.wait().await.code, 0);
    let late = fleet.shoal(&["agents", "cordon", "w"]).await.exit(1);
    assert!(late.stderr.contains("does not answer") && late.stderr.contains("offline"), "{late:?}");
    let _again = fleet.worker("w").start().await;
    fleet.agent_is("w", AgentStatus::Ready).await;
    assert_eq!(fleet.run("default.a", &noop()).await.state, State::Succeeded);
}
