//! What a container writes: logs, result, artifacts.

use schemas::State;
use schemas::names::LogSource;
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::{nothing_left, stored};
use crate::support::{Fleet, IMAGE, IMAGE_APP, IMAGE_USER, With, container, engine, process_runs, shell_in};

#[tokio::test]
async fn both_streams_are_whole_apart_and_in_order() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let script = "for i in $(seq 1 40); do echo out $i; echo err $i >&2; sleep 0.02; done; printf end";
    let record = fleet.run("default.a", &shell_in(script)).await;
    let expected = |word: &str| (1..=40).map(|n| format!("{word} {n}\n")).collect::<String>();
    let out = stored(&fleet, &record, LogSource::Stdout).await;
    assert_eq!(String::from_utf8_lossy(&out), expected("out") + "end");
    assert_eq!(String::from_utf8_lossy(&stored(&fleet, &record, LogSource::Stderr).await), expected("err"));
    // What a container writes in its last moment, and one that has only that.
    for n in 0..8 {
        fleet.publish(&format!("default.short-{n}"), &shell_in("echo out; echo err >&2")).await;
    }
    for n in 0..8 {
        let record = fleet.ended(&format!("default.short-{n}")).await;
        assert_eq!(stored(&fleet, &record, LogSource::Stdout).await, b"out\n", "{record:?}");
        assert_eq!(stored(&fleet, &record, LogSource::Stderr).await, b"err\n", "{record:?}");
    }
}

#[tokio::test]
async fn a_flood_of_a_container_is_bounded_and_the_cut_is_marked() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let worker = engine.worker(&fleet, "w").start().await;
    let task = shell_in("seq 1 4000000").with("limits", json!({"logs": "1Mi"}));
    let record = fleet.run("default.flood", &task).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let kept = stored(&fleet, &record, LogSource::Stdout).await;
    let limit = 1 << 20;
    assert!((limit / 2..=limit + 65_536).contains(&kept.len()), "{} bytes kept of at most {limit}", kept.len());
    let text = String::from_utf8(kept).expect("digits");
    let whole: Vec<&str> = text.lines().collect();
    for (n, line) in whole[..whole.len() - 1].iter().enumerate() {
        assert_eq!(*line, (n + 1).to_string());
    }
    assert!(!stored(&fleet, &record, LogSource::System).await.is_empty(), "the cut is not marked");
    assert!(process_runs(worker.pid()));
    let record = fleet.run("default.neighbour", &shell_in("echo here")).await;
    assert_eq!(stored(&fleet, &record, LogSource::Stdout).await, b"here\n");
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn a_line_of_ten_megabytes_harms_nobody() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let script = "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo after";
    let record = fleet.run("default.a", &shell_in(script)).await;
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let kept = stored(&fleet, &record, LogSource::Stdout).await;
    assert!(kept.ends_with(b"\nafter\n"), "what comes after it is kept");
    let line = kept.iter().take_while(|byte| **byte == b'x').count();
    let marked = !stored(&fleet, &record, LogSource::System).await.is_empty();
    assert!(line == 10_000_000 || marked, "{line} bytes of the line and no mark");
}

#[tokio::test]
async fn binary_output_is_kept_byte_for_byte() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    // Bytes that look like the frames in which the engine sends them, too.
    let script = "printf '\\000\\377\\376\\n\\200\\001\\000\\000\\000\\000\\000\\000\\005'; head -c 100000 /dev/zero; printf 'no end'";
    let record = fleet.run("default.a", &shell_in(script)).await;
    let mut expected = vec![0x00, 0xff, 0xfe, b'\n', 0x80, 1, 0, 0, 0, 0, 0, 0, 5];
    expected.extend(vec![0; 100_000]);
    expected.extend(b"no end");
    let kept = stored(&fleet, &record, LogSource::Stdout).await;
    assert!(kept == expected, "{} bytes of {}", kept.len(), expected.len());
}

async fn object(fleet: &Fleet, name: &str) -> Vec<u8> {
    let store = fleet.js.get_object_store("shoal_artifacts").await.expect("the object store");
    let mut object = store.get(name).await.unwrap_or_else(|e| panic!("object {name}: {e}"));
    let mut bytes = Vec::new();
    object.read_to_end(&mut bytes).await.expect("it can be read, and its digest fits");
    bytes
}

#[tokio::test]
async fn a_large_result_is_an_object() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").start().await;
    let record = fleet.run("default.a", &shell_in("seq 1 200000 > $SHOAL_RESULT_FILE")).await;
    let Some(schemas::record::TaskResult::Object(reference)) = &record.result else {
        panic!("an object reference: {record:?}");
    };
    let expected: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(object(&fleet, &reference.name).await == expected.into_bytes());
    assert!(fleet.run("default.b", &shell_in("true")).await.result.is_none());
}

#[tokio::test]
async fn artifacts_are_gathered_from_the_working_directory_at_every_end() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(4).start().await;
    let make = "mkdir -p out/deep; printf one > out/a.txt; printf two > out/deep/b.txt; printf no > other.txt;";
    // Image, user, what happens then, state.
    let table = [
        ("shoal", IMAGE, None, "exit 0", State::Succeeded),
        ("app", IMAGE_APP, None, "exit 0", State::Succeeded),
        ("user", IMAGE_USER, None, "printf mine > $SHOAL_RESULT_FILE", State::Succeeded),
        ("nobody", IMAGE, Some("nobody"), "printf mine > $SHOAL_RESULT_FILE", State::Succeeded),
        ("app-user", IMAGE_APP, Some("1000"), "exit 0", State::Succeeded),
        ("bad", IMAGE, None, "exit 1", State::Failed),
        ("app-bad", IMAGE_APP, None, "exit 1", State::Failed),
        ("slow", IMAGE_APP, None, "sleep 600", State::Failed),
    ];
    for (id, image, user, then, _) in table {
        let mut task = container(image, &["sh", "-c", &format!("{make} {then}")]);
        if let Some(user) = user {
            task = task.workload("user", user);
        }
        let task = task.with("artifacts", json!(["out/**"])).with("timeout", "4s").with("stop_grace", "0s");
        fleet.publish(&format!("default.{id}"), &task).await;
    }
    for (id, _, _, then, state) in table {
        let record = fleet.ended(&format!("default.{id}")).await;
        assert_eq!(record.state, state, "{record:?}");
        let mut found: Vec<_> = record.artifacts.iter().map(|a| (a.path.as_str(), a.bytes)).collect();
        found.sort_unstable();
        assert_eq!(found, [("out/a.txt", 3), ("out/deep/b.txt", 3)], "{id}: {record:?}");
        let start = record.attempts[0].start.clone().expect("its start");
        assert_eq!(object(&fleet, &format!("default/{id}/{start}/out/deep/b.txt")).await, b"two");
        if then.contains("mine") {
            assert_eq!(super::result(&record), "mine");
        }
    }
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn links_out_of_the_working_directory_are_no_artifacts() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").slots(2).start().await;
    let secret = fleet.folder().join("secret");
    std::fs::write(&secret, "s3cret").expect("written");
    for (id, image) in [("shoal", IMAGE), ("app", IMAGE_APP)] {
        // Seen from the worker the first leads to a file of its own machine.
        let script =
            format!("mkdir out; ln -s {} out/link; ln -s / out/root; ln -s /etc/passwd out/p", secret.display());
        let task = container(image, &["sh", "-c", &script]).with("artifacts", json!(["out/**"]));
        let record = fleet.run(&format!("default.{id}"), &task).await;
        assert_eq!(record.state, State::Succeeded, "{record:?}");
        assert!(record.artifacts.is_empty(), "{record:?}");
    }
    // Nor is a result that is a link.
    let script = format!("ln -sf {} $SHOAL_RESULT_FILE || cp /etc/passwd $SHOAL_RESULT_FILE", secret.display());
    let record = fleet.run("default.result", &shell_in(&script)).await;
    let bytes = record.result.as_ref().and_then(|result| result.inline_bytes()).and_then(Result::ok);
    assert!(!bytes.is_some_and(|bytes| bytes.starts_with(b"s3cret")), "{record:?}");
}
