//! Results and artifacts: inline where small, objects with digests where large (T8, T9).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use schemas::{Outcome, State};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::support::{Fleet, With, echo, shell};

fn digest(bytes: &[u8]) -> String {
    format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(bytes)))
}

async fn object(fleet: &Fleet, name: &str) -> Vec<u8> {
    let store = fleet.js.get_object_store("shoal_artifacts").await.expect("the object store");
    let mut object = store.get(name).await.unwrap_or_else(|e| panic!("object {name}: {e}"));
    let mut bytes = Vec::new();
    object.read_to_end(&mut bytes).await.expect("it can be read, and its digest fits");
    bytes
}

#[tokio::test]
async fn a_small_result_is_in_the_record() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let script = "head -c 65536 /dev/zero > $SHOAL_RESULT_FILE";
    let record = fleet.run("default.a", &shell(script)).await;
    let bytes = record.result.expect("a result").inline_bytes().expect("64 KiB are inline").expect("base64");
    assert_eq!(bytes, vec![0; 65_536]);
    // No result file, no result; an empty one is one.
    assert!(fleet.run("default.b", &shell("true")).await.result.is_none());
}

#[tokio::test]
async fn a_large_result_is_an_object_with_its_digest() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let script = "seq 1 400000 > $SHOAL_RESULT_FILE";
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    let payload = "x".repeat(100_000);
    for (key, task, expected) in [
        ("default.process", shell(script), expected.into_bytes()),
        ("default.call", echo(payload.clone()), format!("\"{payload}\"").into_bytes()),
    ] {
        let record = fleet.run(key, &task).await;
        assert_eq!(record.state, State::Succeeded, "{key} {:?}", record.error);
        let Some(schemas::record::TaskResult::Object(reference)) = record.result else {
            panic!("{key}: an object reference, got {:?}", record.result);
        };
        assert_eq!(reference.bytes, expected.len() as u64);
        assert_eq!(reference.digest.trim_end_matches('='), digest(&expected).trim_end_matches('='));
        assert!(object(&fleet, &reference.name).await == expected, "{key}: other bytes");
    }
}

#[tokio::test]
async fn artifacts_are_gathered_at_every_end() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").slots(4).start().await;
    let make = "mkdir -p out/deep; printf one > out/a.txt; printf two > out/deep/b.txt; printf no > other.txt;";
    for (key, then, outcome, state) in [
        ("default.good", "exit 0", Outcome::Exited, State::Succeeded),
        ("default.bad", "exit 1", Outcome::Exited, State::Failed),
        ("default.slow", "sleep 600", Outcome::TimedOut, State::Failed),
    ] {
        let task = shell(&format!("{make} {then}")).with("artifacts", json!(["out/**"])).with("timeout", "3s");
        let record = fleet.run(key, &task).await;
        assert_eq!((record.state, record.attempts[0].outcome), (state, outcome), "{record:?}");
        let mut found: Vec<_> = record.artifacts.iter().map(|a| (a.path.as_str(), a.bytes)).collect();
        found.sort_unstable();
        assert_eq!(found, [("out/a.txt", 3), ("out/deep/b.txt", 3)], "{key}");
        for artifact in &record.artifacts {
            assert_eq!(Some(&artifact.start), record.attempts[0].start.as_ref());
            let name = format!("{}/{}/{}/{}", record.queue, record.id, artifact.start, artifact.path);
            let bytes = object(&fleet, &name).await;
            assert_eq!(bytes, if artifact.path.ends_with("a.txt") { b"one" } else { b"two" });
            assert_eq!(artifact.digest.trim_end_matches('='), digest(&bytes).trim_end_matches('='));
        }
    }
}

#[tokio::test]
async fn artifacts_of_every_attempt_are_kept_apart() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let script = "mkdir out; printf $SHOAL_TASK_ATTEMPT > out/n; [ $SHOAL_TASK_ATTEMPT = 2 ]";
    let task = shell(script).with("artifacts", json!(["out/*"])).retried(2, "100ms");
    let record = fleet.run("default.a", &task).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let [first, second] = &record.artifacts[..] else {
        panic!("two artifacts: {:?}, {:?}", record.artifacts, record.warnings)
    };
    assert_ne!(first.start, second.start);
    for (artifact, text) in [(first, "1"), (second, "2")] {
        let bytes = object(&fleet, &format!("default/a/{}/out/n", artifact.start)).await;
        assert_eq!(bytes, text.as_bytes());
    }
}

#[tokio::test]
async fn links_out_of_the_work_folder_are_no_artifacts() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    std::fs::write(fleet.folder().join("secret"), "s3cret").expect("written");
    let script = format!("mkdir out; ln -s {}/secret out/link; ln -s / out/root; true", fleet.folder().display());
    let record = fleet.run("default.a", &shell(&script).with("artifacts", json!(["out/**"]))).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert!(record.artifacts.is_empty(), "{record:?}");
}

#[tokio::test]
async fn a_limit_is_on_the_run_not_on_what_is_stored_after_it() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    // Silent for much longer than allowed while its large artifact is stored, but then it has ended already.
    let task = shell("truncate -s 300M large").with("artifacts", serde_json::json!(["large"]));
    let record = fleet.run("default.a", &task.with("idle_timeout", "400ms")).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    assert_eq!(record.artifacts[0].bytes, 300 << 20);
}
