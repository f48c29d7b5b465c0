use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt;
use schemas::cancel::{DrainReply, DrainRequest};
use schemas::record::{Artifact, ObjectRef, TaskResult};
use schemas::{AgentKind, AgentRecord, AgentStatus, HumanDuration, StartId, State, Timestamp};
use shoal_dispatcher::client::{Client, ClientError};

use crate::support::{Hand, LONG, fleet, key};

async fn beat(client: &Client, id: &str, status: AgentStatus, ago: Duration) {
    let at = Timestamp::from_millis(Timestamp::now().as_millis() - ago.as_millis() as i64);
    let record = AgentRecord {
        id: id.parse().unwrap(),
        instance: "b1".into(),
        kind: AgentKind::Worker,
        hostname: "h".into(),
        address: None,
        port: None,
        version: "0.1.0".into(),
        status,
        reason: None,
        queues: Vec::new(),
        labels: Default::default(),
        runtimes: Default::default(),
        slots: 1,
        slots_taken: None,
        running: Vec::new(),
        running_count: 0,
        free: None,
        registered_at: at,
        last_heartbeat: at,
        last_fetch: None,
        last_ack: None,
        more: Default::default(),
    };
    let subject = client.names.agent_subject(&record.id);
    client.js.publish(subject, HeaderMap::new(), serde_json::to_vec(&record).unwrap().into()).await.unwrap();
}

#[tokio::test]
async fn the_silent_are_listed_as_offline_and_markers_not_at_all() {
    let (_server, client) = fleet().await;
    beat(&client, "w-1", AgentStatus::Ready, Duration::ZERO).await;
    beat(&client, "w-2", AgentStatus::Ready, Duration::from_secs(31)).await;
    beat(&client, "x-3", AgentStatus::Ready, Duration::ZERO).await;
    let mut headers = HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    client.js.publish("$KV.shoal_agents.w-9".into(), headers, "".into()).await.unwrap();
    let agents = client.agents().await.unwrap();
    let seen: Vec<_> = agents.iter().map(|agent| (agent.record.id.as_str(), agent.status)).collect();
    assert_eq!(seen, [("w-1", AgentStatus::Ready), ("w-2", AgentStatus::Offline), ("x-3", AgentStatus::Ready)]);
    assert_eq!(client.agent("x").await.unwrap().record.id.as_str(), "x-3");
    assert!(matches!(client.agent("w").await, Err(ClientError::Ambiguous { .. })));
    assert!(matches!(client.agent("w-9").await, Err(ClientError::NotFound { .. })));
}

#[tokio::test]
async fn a_drain_is_asked_for_and_waited_for() {
    let (_server, client) = fleet().await;
    let id = "w-1".parse().unwrap();
    beat(&client, "w-1", AgentStatus::Ready, Duration::ZERO).await;
    let mut requests = client.js.client().subscribe(client.names.drain_subject(&id)).await.unwrap();
    let worker = async {
        let request = requests.next().await.unwrap();
        let asked: DrainRequest = serde_json::from_slice(&request.payload).unwrap();
        assert_eq!(asked.grace, Some(HumanDuration::seconds(3)));
        let reply = serde_json::to_vec(&DrainReply { running: 2 }).unwrap();
        client.js.client().publish(request.reply.unwrap(), reply.into()).await.unwrap();
        beat(&client, "w-1", AgentStatus::Offline, Duration::ZERO).await;
    };
    let (reply, ()) = tokio::join!(client.drain(&id, Some(HumanDuration::seconds(3))), worker);
    assert_eq!(reply.unwrap().running, 2);
    client.wait_offline(&id, Some(LONG)).await.unwrap();
    drop(requests);
    let nobody = "w-7".parse().unwrap();
    assert!(matches!(client.drain(&nobody, None).await, Err(ClientError::NotFound { .. })));
}

#[tokio::test]
async fn results_and_artifacts_are_read_with_their_digests() {
    let (_server, client) = fleet().await;
    let store = async_nats::jetstream::new(client.js.client().clone());
    let store = store.get_object_store("shoal_artifacts").await.unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let start = StartId::new("k3v9x2").unwrap();
    let hand = Hand(&client);
    let mut record = hand.record(&key("default.a"), 1, State::Succeeded);
    let name = client.names.artifact_name(&record.key(), &start, "out/a.bin");
    let info = store.put(name.as_str(), &mut &bytes[..]).await.unwrap();
    let digest = info.digest.unwrap();

    record.result = Some(TaskResult::Object(ObjectRef {
        name,
        bytes: bytes.len() as u64,
        digest: digest.clone(),
        more: Default::default(),
    }));
    let artifact = Artifact {
        path: "out/a.bin".into(),
        start,
        bytes: bytes.len() as u64,
        digest,
        bucket: None,
        more: Default::default(),
    };
    record.artifacts.push(artifact);
    assert_eq!(client.result(&record).await.unwrap().unwrap(), bytes);
    let mut out = Vec::new();
    let artifact = client.find_artifact(&record, "out/a.bin", None).unwrap();
    assert_eq!(client.artifact_to(&record, artifact, &mut out).await.unwrap(), bytes.len() as u64);
    assert_eq!(out, bytes);

    let wrong = Artifact { digest: "SHA-256=AAAA".into(), ..artifact.clone() };
    let error = client.artifact_to(&record, &wrong, &mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, ClientError::Digest { .. }));
    assert!(matches!(client.find_artifact(&record, "b", None), Err(ClientError::NotFound { .. })));
    record.result = Some(TaskResult::inline(b"hi"));
    assert_eq!(client.result(&record).await.unwrap().unwrap(), "hi");
    record.result = None;
    assert!(client.result(&record).await.unwrap().is_none());
}
