//! One file that may not leave the worker does not throw the rest of the work away.

use schemas::{Code, State, TaskRecord};
use serde_json::{Value, json};

use super::scripted::Scripted;
use super::{World, phases, report, succeeded};
use crate::support::With;
use crate::support::repo::RIGHT;

const BRANCH: &str = "feature/task-t-add-do-not-subtract";

fn program(script: &str) -> Value {
    json!({"implementer": {"kind": "command", "command": ["sh", "-c", script]}, "env": {"RIGHT": RIGHT}})
}

/// The warning that names what is left out.
#[track_caller]
fn left_out(record: &TaskRecord) -> &str {
    let told: Vec<_> = record.warnings.iter().filter(|warning| warning.contains("left out")).collect();
    assert_eq!(told.len(), 1, "{record:#?}");
    told[0]
}

async fn says(world: &World, args: &[&str]) -> String {
    let said = world.fleet.shoal(args).await;
    format!("{}{}", said.stdout, said.stderr)
}

#[tokio::test]
async fn a_file_that_is_too_large_is_left_out_and_the_rest_is_kept() {
    let world = World::of(json!([])).await;
    let _worker = world.worker("w").await;
    let script = "truncate -s 60000000 big.bin; mkfifo pipe; printf '%s' \"$RIGHT\" > add.sh";
    let mut fields = program(script);
    fields["keep"] = json!({"remote": true});
    let record = world.run("default.t", fields).await;
    let error = record.error.as_ref().expect("an error");
    assert_eq!(error.code, Code::ChangeRefused, "{record:#?}");
    for said in [error.message.as_str(), left_out(&record)] {
        assert!(said.contains("big.bin: 60000000 bytes, of at most 52428800"), "{said}");
        assert!(!said.contains("pipe"), "git lists no pipe, and so it is no part of the change: {said}");
    }
    assert_eq!(world.repo.branches(), Vec::<String>::new(), "nothing is pushed");
    let report = report(&record);
    let last = report.phases.last().expect("a phase");
    assert_eq!((last.phase.to_string().as_str(), last.code), ("commit", Some(Code::ChangeRefused)));
    assert_eq!(report.change.map(|change| change.files), Some(1));

    let diff = says(&world, &["agent", "diff", "t"]).await;
    assert!(diff.contains("+echo $(($1 + $2))") && !diff.contains("big.bin"), "{diff}");
    let explained = says(&world, &["explain", "t"]).await;
    assert!(explained.contains("shoal agent diff default.t"), "{explained}");
    let kept: Vec<_> = world.repo.refs().into_iter().filter(|name| name != "refs/heads/main").collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(world.repo.git(&["diff", "--name-only", "main", &kept[0]]).trim(), "add.sh");
}

#[tokio::test]
async fn where_nothing_is_left_explain_names_no_change() {
    let world = World::of(json!([])).await;
    let _worker = world.worker("w").await;
    let mut fields = program("truncate -s 60000000 big.bin");
    let passes = json!({"name": "passes", "steps": [{"name": "test", "kind": "test", "command": "true"}]});
    fields["playbook"] = json!({"kind": "inline", "playbook": passes});
    let record = world.run("default.t", fields).await;
    assert_eq!(record.error.as_ref().map(|error| error.code), Some(Code::ChangeRefused), "{record:#?}");
    assert!(left_out(&record).contains("big.bin"));
    assert!(record.artifacts.iter().all(|artifact| artifact.path != "changes.patch"), "{record:#?}");
    let explained = says(&world, &["explain", "t"]).await;
    assert!(!explained.contains("agent diff") && explained.contains("shoal agent transcript default.t"), "{explained}");
}

#[tokio::test]
async fn work_of_an_attempt_that_timed_out_beside_a_huge_file_is_kept() {
    let world = World::of(json!([])).await;
    let _worker = world.worker("w").await;
    let script = "truncate -s 60000000 core.bin; printf '%s' \"$RIGHT\" > add.sh; sleep 4567";
    let record = world.fleet.run("default.t", &world.job(program(script)).with("timeout", "3s")).await;
    assert_eq!(record.error.as_ref().map(|error| error.code), Some(Code::TimedOut), "{record:#?}");
    assert!(left_out(&record).contains("core.bin: 60000000 bytes"));
    let patch = world.artifact("t", "changes.patch").await;
    assert!(patch.contains("+echo $(($1 + $2))") && !patch.contains("core.bin"), "{patch}");
}

/// What is kept was not all that was declared done: nobody pushes the rest of it unasked.
#[tokio::test]
async fn once_more_goes_on_from_the_rest_and_the_implementer_is_told_what_was_refused() {
    let write =
        |path: &str, content: &str| json!({"name": "write_file", "arguments": {"path": path, "content": content}});
    let world = World::with(Scripted::conversations(json!([
        {"match": "big.bin: 60000000 bytes", "turns": [{"calls": [write("notes.txt", "small\n")]}, {"say": "Without it."}]},
        {"match": "", "turns": [
            {"calls": [write("add.sh", RIGHT), {"name": "run_command", "arguments": {"command": "truncate -s 60000000 big.bin"}}]},
            {"say": "It adds now."},
        ]},
    ])))
    .await;
    let _worker = world.worker("w").await;
    let record = world.run("default.t", json!({})).await;
    assert_eq!(record.error.as_ref().map(|error| error.code), Some(Code::ChangeRefused), "{record:#?}");
    world.fleet.shoal(&["retry", "t"]).await.ok();
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(record.state, State::Succeeded);
    assert!(phases(&report(&record)).contains(&schemas::transcript::JobPhase::Implement), "{record:#?}");
    assert_eq!(
        world.repo.git(&["diff", "--name-only", "main", BRANCH]).lines().collect::<Vec<_>>(),
        ["add.sh", "notes.txt"]
    );
    world.model_is_content();
}
