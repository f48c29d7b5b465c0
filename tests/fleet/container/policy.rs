//! The worker's policy wins over any task (C12): what it forbids never becomes a container, what it allows runs.

use std::os::unix::fs::symlink;

use schemas::{Code, Outcome, State};
use serde_json::{Value, json};

use super::{code, nothing_left, result};
use crate::support::{Fleet, IMAGE, IMAGE_APP, With, container, engine, shell_in};

fn mount(source: &str, read_only: bool) -> Value {
    json!([{"source": source, "target": "/mnt", "read_only": read_only}])
}

#[tokio::test]
async fn what_the_worker_forbids_never_becomes_a_container() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let folder = fleet.folder().join("data");
    std::fs::create_dir(&folder).expect("made");
    let folder = folder.display().to_string();
    let job = fleet.job();
    // What a task asks for, and the settings that allow it.
    let table = [
        (
            "mount",
            job.contained("").workload("mounts", mount(&folder, true)),
            ("SHOAL_ALLOWED_MOUNTS", folder.as_str()),
        ),
        ("privileged", shell_in("true").workload("privileged", true), ("SHOAL_ALLOW_PRIVILEGED", "true")),
        ("host", shell_in("true").workload("network", "host"), ("SHOAL_ALLOWED_NETWORKS", "host")),
        ("bridge", shell_in("true").workload("network", "bridge"), ("SHOAL_ALLOWED_NETWORKS", "bridge")),
        ("shared", shell_in("true").workload("network", "shared"), ("SHOAL_ALLOWED_NETWORKS", "shared")),
        (
            "capability",
            shell_in("true").workload("capabilities", json!(["NET_BIND_SERVICE"])),
            ("SHOAL_ALLOWED_CAPABILITIES", "NET_BIND_SERVICE"),
        ),
        ("runtime", shell_in("true").workload("engine_runtime", "runc"), ("SHOAL_ALLOWED_ENGINE_RUNTIMES", "runc")),
    ];
    let strict = engine.worker(&fleet, "strict").slots(4).without("SHOAL_ALLOWED_MOUNTS");
    let mut strict = strict.start().await;
    for (id, task, _) in &table {
        fleet.publish(&format!("default.{id}"), &task.clone().retried(3, "100ms")).await;
    }
    for (id, _, (setting, _)) in &table {
        let key = format!("default.{id}");
        let record = fleet.ended(&key).await;
        assert_eq!(code(&record), Code::PolicyForbidden, "{id}: {record:?}");
        let [attempt] = &record.attempts[..] else { panic!("one attempt: {record:?}") };
        assert_eq!(attempt.outcome, Outcome::FailedToStart);
        let flag = setting.trim_start_matches("SHOAL_").to_lowercase().replace('_', "-");
        let message = &record.error.as_ref().expect("an error").message;
        assert!(message.contains(&format!("--{flag}")), "{id}: the message names --{flag}: {message}");
        fleet.dead_letter(&key).await;
    }
    assert_eq!(job.starts(), 0);
    assert!(engine.containers().await.is_empty(), "no container was ever made");
    strict.terminate();
    strict.wait().await;

    let mut settings = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    for (_, _, (name, value)) in &table {
        settings.entry(name).or_default().push(value);
    }
    let mut open = engine.worker(&fleet, "open").slots(4);
    for (name, values) in &settings {
        open = open.env(name, &values.join(","));
    }
    let _open = open.start().await;
    for (id, task, _) in table {
        // The job's own folder is what the mount replaced.
        let task = if id == "mount" { shell_in("ls /mnt").workload("mounts", mount(&folder, true)) } else { task };
        let record = fleet.run(&format!("default.{id}"), &task).await;
        if id == "privileged" && record.state == State::Failed {
            // On a machine that is itself confined the engine cannot give what it does not have.
            let message = &record.error.as_ref().expect("an error").message;
            assert!(code(&record) != Code::PolicyForbidden && message.contains("not permitted"), "{record:?}");
            continue;
        }
        assert_eq!(record.state, State::Succeeded, "{id}: {record:?}");
    }
    nothing_left(&engine, &fleet, "open").await;
}

#[tokio::test]
async fn an_allowed_capability_is_the_only_one() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let _worker = engine.worker(&fleet, "w").env("SHOAL_ALLOWED_CAPABILITIES", "CHOWN").start().await;
    let task =
        shell_in("grep CapEff /proc/self/status > $SHOAL_RESULT_FILE").workload("capabilities", json!(["CHOWN"]));
    assert_eq!(result(&fleet.run("default.a", &task).await).trim(), "CapEff:\t0000000000000001");
    let more = shell_in("true").workload("capabilities", json!(["CHOWN", "SYS_ADMIN"]));
    assert_eq!(code(&fleet.run("default.b", &more).await), Code::PolicyForbidden);
    let all = shell_in("true").workload("capabilities", json!(["ALL"]));
    assert_eq!(code(&fleet.run("default.c", &all).await), Code::PolicyForbidden);
}

#[tokio::test]
async fn images_are_allowed_by_name() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let some = engine.worker(&fleet, "some").queues("some").env("SHOAL_ALLOWED_IMAGES", "shoal-test/busybox:1,else/**");
    let _some = some.start().await;
    let _none = engine.worker(&fleet, "none").queues("none").env("SHOAL_ALLOWED_IMAGES", "").start().await;
    for (key, image, allowed) in [
        ("some.a", IMAGE, true),
        ("some.b", IMAGE_APP, false),
        // Another registry's image of that name is another image.
        ("some.c", "evil.example/shoal-test/busybox:1", false),
        ("some.d", "shoal-test/busybox", false),
        ("none.a", IMAGE, false),
    ] {
        let record = fleet.run(key, &container(image, &["true"]).workload("pull", "never")).await;
        match allowed {
            true => assert_eq!(record.state, State::Succeeded, "{image}: {record:?}"),
            false => assert_eq!(code(&record), Code::PolicyForbidden, "{image}: {record:?}"),
        }
    }
}

#[tokio::test]
async fn a_mount_is_allowed_with_all_below_and_nothing_beside() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let path = |name: &str| fleet.folder().join(name).display().to_string();
    for folder in ["data/sub", "data-2", "ro"] {
        std::fs::create_dir_all(path(folder)).expect("made");
    }
    std::fs::write(path("data/file"), "x").expect("written");
    symlink(path("data-2"), path("data/link")).expect("linked");
    let allowed = format!("{},{}:ro", path("data"), path("ro"));
    let _worker = engine.worker(&fleet, "w").slots(4).env("SHOAL_ALLOWED_MOUNTS", &allowed).start().await;
    let table = [
        ("whole", path("data"), false, true),
        ("below", path("data/sub"), false, true),
        ("file", path("data/file"), true, true),
        ("read", path("ro"), true, true),
        ("beside", path("data-2"), true, false),
        ("above", fleet.folder().display().to_string(), true, false),
        ("up", path("data/../data-2"), true, false),
        ("link", path("data/link"), true, false),
        ("root", "/".into(), true, false),
        ("relative", "data".into(), true, false),
    ];
    for (id, source, read_only, _) in &table {
        let task = shell_in("[ -e /mnt ]").workload("mounts", mount(source, *read_only));
        fleet.publish(&format!("default.{id}"), &task).await;
    }
    for (id, _, _, allowed) in table {
        let record = fleet.ended(&format!("default.{id}")).await;
        match allowed {
            true => assert_eq!(record.state, State::Succeeded, "{id}: {record:?}"),
            false => assert!(matches!(code(&record), Code::PolicyForbidden | Code::InvalidTask), "{id}: {record:?}"),
        }
    }
    // Read only is so, by the task's word and by the worker's.
    let task = shell_in("touch /mnt/x").workload("mounts", mount(&path("data"), true));
    assert_eq!(code(&fleet.run("default.touch", &task).await), Code::ExitedNonZero);
    let task = shell_in("touch /mnt/x").workload("mounts", mount(&path("ro"), false));
    let refused = code(&fleet.run("default.write", &task).await);
    assert!(matches!(refused, Code::ExitedNonZero | Code::PolicyForbidden), "{refused:?}");
    assert!(!std::path::Path::new(&path("data/x")).exists() && !std::path::Path::new(&path("ro/x")).exists());
    // What is not there is not made.
    let task = shell_in("true").workload("mounts", mount(&path("data/nope"), false));
    assert_eq!(fleet.run("default.nope", &task).await.state, State::Failed);
    assert!(!std::path::Path::new(&path("data/nope")).exists());
    nothing_left(&engine, &fleet, "w").await;
}

#[tokio::test]
async fn the_engines_socket_is_no_mount_even_where_its_folder_is_allowed() {
    let engine = engine!();
    let fleet = Fleet::start().await;
    let socket = std::fs::canonicalize(engine.socket()).expect("its path");
    let folder = socket.parent().expect("its folder");
    let linked = fleet.folder().join("linked");
    symlink(folder, &linked).expect("linked");
    let allowed = format!("{},{},/var/run,/", folder.display(), fleet.folder().display());
    let _worker = engine.worker(&fleet, "w").slots(4).env("SHOAL_ALLOWED_MOUNTS", &allowed).start().await;
    let sources = [
        socket.clone(),
        engine.socket().to_path_buf(),
        folder.to_path_buf(),
        linked.join(socket.file_name().expect("a name")),
        linked,
        "/".into(),
    ];
    for (n, source) in sources.iter().enumerate() {
        let task = shell_in("true").workload("mounts", mount(&source.display().to_string(), true));
        let record = fleet.run(&format!("default.t-{n}"), &task).await;
        assert_eq!(code(&record), Code::PolicyForbidden, "{}: {record:?}", source.display());
    }
}
