//! Pulls: policies, one at a time, progress, and what goes wrong in them (C8), from a registry of this test.

use schemas::names::LogSource;
use schemas::{Code, Outcome, State};

use super::{code, nothing_left, result, stored};
use crate::support::{Fault, Fleet, Registry, With, container, engine};

#[tokio::test]
async fn a_missing_image_is_pulled_once_and_its_progress_told() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(6).start().await;
    let image = registry.push(&engine, "alone", 1 << 20);
    let record = fleet.run("default.alone", &container(&image, &["echo", "ran"])).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(stored(&fleet, &record, LogSource::Stdout).await, b"ran\n");
    let told = String::from_utf8(stored(&fleet, &record, LogSource::System).await).expect("text");
    assert!(told.to_lowercase().contains("pull"), "{told}");
    assert!(told.len() < 16_384, "progress is no flood: {told}");
    assert!(record.attempts[0].phases.pulled.is_some());
    let alone = registry.asked("/v2/alone/manifests/");
    assert!(alone >= 1);

    // Many at once ask no more than one.
    let image = registry.push(&engine, "crowd", 2 << 20);
    registry.fails(&registry.layer("crowd"), Fault::Slow(2 << 20), 100);
    for n in 0..6 {
        fleet.publish(&format!("default.crowd-{n}"), &container(&image, &["true"])).await;
    }
    for n in 0..6 {
        let record = fleet.ended(&format!("default.crowd-{n}")).await;
        assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    }
    assert_eq!(registry.asked("/v2/crowd/manifests/"), alone, "one pull for all");
    assert_eq!(registry.asked(&registry.layer("crowd")), 1);
    // And what is there is not asked for.
    assert_eq!(fleet.run("default.again", &container(&image, &["true"])).await.state, State::Succeeded);
    assert_eq!(registry.asked("/v2/crowd/manifests/"), alone);
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn always_runs_what_the_registry_has_now_and_never_asks_nobody() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let image = registry.push(&engine, "moving", 0);
    let task = container(&image, &["sh", "-c", "cat /padding > $SHOAL_RESULT_FILE"]);
    let never = fleet.run("default.never", &task.clone().workload("pull", "never")).await;
    assert_eq!(code(&never), Code::ImageNotFound);
    assert_eq!(registry.asked("moving"), 0);
    let first = result(&fleet.run("default.first", &task).await);
    registry.push(&engine, "moving", 0);
    assert_eq!(result(&fleet.run("default.same", &task).await), first);
    let second = result(&fleet.run("default.always", &task.clone().workload("pull", "always")).await);
    assert_ne!(second, first);
    assert_eq!(result(&fleet.run("default.never-2", &task.workload("pull", "never")).await), second);
}

#[tokio::test]
async fn a_registry_is_spoken_to_as_the_workers_setting_says() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::start().await;
    let image = registry.push(&engine, "set", 1 << 20);
    let host = image.split('/').next().expect("a registry").to_owned();
    let set = |queue: &str, scheme: &str| {
        let setting = serde_json::json!({&host: {"scheme": scheme}}).to_string();
        engine.worker(&fleet, queue).queues(queue).env("SHOAL_REGISTRIES", &setting)
    };
    let (strict, plain) = (set("strict", "https"), set("plain", "http"));
    let (_strict, _plain) = (strict.start().await, plain.start().await);
    // An engine would go over to plain http by itself on this address.
    let record = fleet.run("strict.a", &container(&image, &["true"])).await;
    assert_eq!(code(&record), Code::ImagePullFailed);
    let message = record.error.expect("an error").message;
    assert!(message.contains("`scheme: http`"), "{message}");
    assert_eq!(registry.asked(""), 0);
    let record = fleet.run("plain.a", &container(&image, &["echo", "ran"])).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(stored(&fleet, &record, LogSource::Stdout).await, b"ran\n");
    let told = String::from_utf8(stored(&fleet, &record, LogSource::System).await).expect("text");
    assert!(told.contains(&format!("pulled image {image}: 1 of 1 layers")), "{told}");
    assert_eq!(fleet.run("plain.b", &container(&image, &["true"])).await.state, State::Succeeded);
    assert_eq!(registry.asked("/v2/set/manifests/"), 1);
}

#[tokio::test]
async fn a_worker_that_never_pulls_wins_over_the_task() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").env("SHOAL_IMAGE_PULL", "never").start().await;
    let image = registry.push(&engine, "kept-out", 0);
    let record = fleet.run("default.a", &container(&image, &["true"]).workload("pull", "always")).await;
    assert!(matches!(code(&record), Code::ImageNotFound | Code::PolicyForbidden), "{record:?}");
    assert_eq!(registry.asked("kept-out"), 0);
}

#[tokio::test]
async fn what_goes_wrong_in_a_pull_has_its_own_reason() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let corrupt = registry.push(&engine, "corrupt", 1000);
    registry.fails(&registry.layer("corrupt"), Fault::Corrupt, 100);
    let secret = registry.push(&engine, "secret", 0);
    registry.fails("/v2/secret/", Fault::Status(401), 100);
    let broken = registry.push(&engine, "broken", 0);
    registry.fails("/v2/broken/", Fault::Status(500), 100);
    let unknown = format!("{}@sha256:{}", registry.image("corrupt").trim_end_matches(":latest"), "0".repeat(64));
    let table = [
        ("missing", registry.image("missing"), Code::ImageNotFound),
        ("digest", unknown, Code::ImageNotFound),
        ("corrupt", corrupt, Code::ImagePullFailed),
        ("secret", secret, Code::ImageNotFound),
        ("broken", broken, Code::ImagePullFailed),
        // Nobody listens there.
        ("nobody", "127.0.0.1:1/nobody:1".to_owned(), Code::ImagePullFailed),
    ];
    for (id, image, _) in &table {
        fleet.publish(&format!("default.{id}"), &container(image, &["true"])).await;
    }
    for (id, image, wanted) in &table {
        let record = fleet.ended(&format!("default.{id}")).await;
        assert_eq!(code(&record), *wanted, "{id}: {record:?}");
        let [attempt] = &record.attempts[..] else { panic!("one attempt: {record:?}") };
        assert_eq!(attempt.outcome, Outcome::FailedToStart);
        let error = record.error.as_ref().expect("an error");
        assert_eq!(error.retryable, wanted.retryable(), "{id}");
        let name = image.split(['@', ' ']).next().expect("a name").trim_end_matches(":latest");
        assert!(error.message.contains(name), "{id}: the message names the image: {}", error.message);
    }
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn a_pull_that_failed_for_a_while_is_tried_again() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let image = registry.push(&engine, "later", 0);
    registry.fails("/v2/later/", Fault::Status(503), 1_000);
    let sequence = fleet.publish("default.a", &container(&image, &["true"]).retried(50, "200ms")).await;
    fleet.in_state("default.a", State::Retrying).await;
    registry.heals();
    let record = fleet.run_ended("default.a", sequence).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let first = record.attempts[0].error.as_ref().expect("an error");
    assert_eq!((first.code, first.retryable), (Code::ImagePullFailed, true));
}

#[tokio::test]
async fn a_pull_longer_than_the_lease_runs_once() {
    let engine = engine!();
    let registry = Registry::start().await;
    let fleet = Fleet::builder().ack_wait("3s").start().await;
    let _one = engine.worker(&fleet, "one").start().await;
    let _two = engine.worker(&fleet, "two").start().await;
    let image = registry.push(&engine, "long", 5 << 20);
    registry.fails(&registry.layer("long"), Fault::Slow(1 << 20), 100);
    let record = fleet.run("default.a", &container(&image, &["true"])).await;
    assert_eq!((record.state, record.attempts.len()), (State::Succeeded, 1), "{record:?}");
    assert_eq!(fleet.consumer("default").await.num_redelivered, 0);
}
