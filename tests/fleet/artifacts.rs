//! `shoal artifacts`: listed, fetched, checked, and never written where they do not belong (T9, O2).

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Fleet, With, noop, shell};

/// Path and text of every file below a folder.
fn files(folder: &Path) -> Vec<(String, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(&at).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").display().to_string();
                found.push((name, std::fs::read_to_string(&path).expect("text")));
            }
        }
    }
    found.sort();
    found
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

#[tokio::test]
async fn artifacts_are_listed_and_fetched() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let script = "mkdir -p out/deep; printf $SHOAL_TASK_ATTEMPT > out/n; printf two > out/deep/b.txt; [ $SHOAL_TASK_ATTEMPT = 2 ]";
    let task = shell(script).with("artifacts", json!(["out/**"])).retried(2, "100ms");
    let record = fleet.run("default.a", &task).await;
    let listed = fleet.shoal(&["artifacts", "list", "a", "-o", "json"]).await.ok().json();
    let rows: Vec<_> = listed.as_array().expect("rows").iter().map(|row| (&row["path"], &row["attempt"])).collect();
    let (n, b) = (json!("out/n"), json!("out/deep/b.txt"));
    assert_eq!(rows, [(&b, &json!(1)), (&n, &json!(1)), (&b, &json!(2)), (&n, &json!(2))], "{listed}");
    assert_eq!(listed[0]["bytes"], 3);
    assert_eq!(listed[0]["digest"], json!(record.artifacts[0].digest));
    let table = fleet.shoal(&["artifacts", "list", "a"]).await.ok().stdout;
    assert!(table.lines().next().is_some_and(|head| head.starts_with("PATH")) && table.contains("out/deep/b.txt"));

    let folder = |name: &str| fleet.folder().join(name);
    let get = async |args: &[&str], to: &Path| {
        let to = to.display().to_string();
        fleet.shoal(&[&["artifacts", "get", "a", "--to", &to, "-o", "json"], args].concat()).await
    };
    // The newest of each path.
    let got = get(&[], &folder("all")).await.ok().json();
    assert_eq!(got.as_array().expect("rows").len(), 2);
    assert_eq!(files(&folder("all")), pairs(&[("out/deep/b.txt", "two"), ("out/n", "2")]));
    let first = record.artifacts[0].start.to_string();
    get(&["--start", &first, "out/n"], &folder("first")).await.ok();
    assert_eq!(files(&folder("first")), pairs(&[("out/n", "1")]));
    get(&["out/**/*.txt"], &folder("glob")).await.ok();
    assert_eq!(files(&folder("glob")), pairs(&[("out/deep/b.txt", "two")]));
    assert_eq!(fleet.shoal(&["artifacts", "get", "a", "out/n", "--to", "-"]).await.ok().stdout, "2");

    // Nothing is written unless everything that was named is there.
    let missing = get(&["out/n", "out/nothing"], &folder("missing")).await.exit(1);
    assert!(missing.stderr.contains("no artifact `out/nothing`"), "{missing:?}");
    assert!(!folder("missing").exists());
    get(&[], Path::new("-")).await.exit(2);

    // What is there is not replaced, unless that is wished.
    std::fs::write(folder("all").join("out/n"), "mine").expect("written");
    let kept = get(&["out/n"], &folder("all")).await.exit(1);
    assert!(kept.stderr.contains("exists already") && kept.stderr.contains("--force"), "{kept:?}");
    assert_eq!(files(&folder("all"))[1].1, "mine");
    get(&["out/n", "--force"], &folder("all")).await.ok();
    assert_eq!(files(&folder("all")), pairs(&[("out/deep/b.txt", "two"), ("out/n", "2")]));
}

#[tokio::test]
async fn a_large_result_is_listed_and_streamed() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.run("default.a", &shell("seq 1 400000 > $SHOAL_RESULT_FILE")).await;
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    let listed = fleet.shoal(&["artifacts", "list", "a", "-o", "json"]).await.ok().json();
    assert_eq!((&listed[0]["path"], &listed[0]["bytes"]), (&json!(".shoal/result"), &json!(expected.len())));
    let output = fleet.shoal(&["artifacts", "get", "a", ".shoal/result", "--to", "-"]).await.ok();
    assert!(output.stdout == expected, "other bytes: {} of {}", output.stdout.len(), expected.len());
}

#[tokio::test]
async fn a_task_that_left_nothing_says_so() {
    let fleet = Fleet::start().await;
    fleet.publish("default.a", &noop()).await;
    let queued = fleet.shoal(&["artifacts", "list", "a"]).await.exit(1);
    assert!(queued.stderr.contains("has not begun"), "{queued:?}");
    let _worker = fleet.worker("w").start().await;
    fleet.ended("default.a").await;
    assert_eq!(fleet.shoal(&["artifacts", "list", "a", "-o", "json"]).await.ok().json(), json!([]));
    let nothing = fleet.shoal(&["artifacts", "get", "a"]).await.exit(1);
    assert!(nothing.stderr.contains("left no artifacts"), "{nothing:?}");
}

/// Rewrites the paths that a record names, and puts the objects there under them.
async fn rename(fleet: &Fleet, key: &str, paths: &[&str]) {
    let store = fleet.js.get_key_value("shoal_tasks").await.expect("the bucket");
    let entry = store.entry(key).await.expect("readable").expect("there");
    let mut record: Value = serde_json::from_slice(&entry.value).expect("JSON");
    let pattern = record["artifacts"][0].clone();
    let objects = fleet.js.get_object_store("shoal_artifacts").await.expect("the object store");
    let mut artifacts = Vec::new();
    for path in paths {
        let name = format!("default/a/{}/{path}", pattern["start"].as_str().expect("a start"));
        objects.put(name.as_str(), &mut &b"evil"[..]).await.expect("stored");
        let mut artifact = pattern.clone();
        artifact["path"] = json!(path);
        artifacts.push(artifact);
    }
    record["artifacts"] = json!(artifacts);
    store.update(key, record.to_string().into(), entry.revision).await.expect("nobody else wrote");
}

#[tokio::test]
async fn a_hostile_record_writes_nothing_outside_the_folder() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    fleet.run("default.a", &shell("printf evil > good").with("artifacts", json!(["good"]))).await;
    let outside = fleet.folder().join("outside");
    std::fs::create_dir(&outside).expect("made");
    let absolute = outside.join("absolute").display().to_string();
    let hostile = ["../escaped", "a/../../escaped", &absolute, "..", "link/through", "file", "./dotted", "a//b"];
    rename(&fleet, "default.a", &[&hostile[..], &["good"]].concat()).await;

    let to = fleet.folder().join("to");
    std::fs::create_dir(&to).expect("made");
    std::os::unix::fs::symlink(&outside, to.join("link")).expect("linked");
    let target = outside.join("target");
    std::fs::write(&target, "mine").expect("written");
    std::os::unix::fs::symlink(&target, to.join("file")).expect("linked");
    let path = to.display().to_string();
    let output = fleet.shoal(&["artifacts", "get", "a", "--to", &path, "-o", "json"]).await.exit(1);
    let got = output.json();
    assert_eq!(got.as_array().expect("rows").len(), 1, "{output:?}");
    assert_eq!(got[0]["path"], "good");
    for name in hostile {
        assert!(output.stderr.contains(&format!("{name}: error:")), "{name}: {}", output.stderr);
    }
    assert_eq!(files(&outside), pairs(&[("target", "mine")]));
    assert!(!fleet.folder().join("escaped").exists());
    // With force a link is replaced, not followed.
    fleet.shoal(&["artifacts", "get", "a", "file", "--to", &path, "--force"]).await.ok();
    assert_eq!(files(&outside), pairs(&[("target", "mine")]));
    assert!(!to.join("file").is_symlink());
    assert_eq!(std::fs::read_to_string(to.join("file")).expect("text"), "evil");
}

#[tokio::test]
async fn a_damaged_object_leaves_no_file() {
    let fleet = Fleet::start().await;
    let _worker = fleet.worker("w").start().await;
    let record = fleet.run("default.a", &shell("printf good > good").with("artifacts", json!(["good"]))).await;
    let objects = fleet.js.get_object_store("shoal_artifacts").await.expect("the object store");
    let name = format!("default/a/{}/good", record.artifacts[0].start);
    objects.put(name.as_str(), &mut &b"evil"[..]).await.expect("stored");
    let to = fleet.folder().join("to");
    let output = fleet.shoal(&["artifacts", "get", "a", "--to", &to.display().to_string()]).await.exit(1);
    assert!(output.stderr.contains("digest"), "{output:?}");
    assert_eq!(files(&to), []);
}
