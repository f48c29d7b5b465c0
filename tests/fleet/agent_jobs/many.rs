//! Many jobs at once on one repository.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::scripted::Scripted;
use super::{World, report, succeeded};
use crate::support::repo::RIGHT;

const JOBS: usize = 20;

/// The turns of job `number`: it mends the fault, leaves a file of its own, and waits until all of them are there.
fn turns(number: usize, meeting: &str) -> Value {
    let meet = format!(
        "touch {meeting}/{number}; until [ $(ls {meeting} | wc -l) -ge {JOBS} ]; do sleep 0.1; done; \
         mkdir made; echo {number} of $SHOAL_TASK_ID > made/{number}"
    );
    json!([
        {"calls": [
            {"name": "write_file", "arguments": {"path": "add.sh", "content": format!("# {number}\n{RIGHT}")}},
            {"name": "run_command", "arguments": {"command": meet, "timeout_seconds": 300}},
        ]},
        {"say": "It adds now."},
    ])
}

#[tokio::test]
async fn twenty_jobs_at_once_on_one_repository_keep_apart() {
    let meeting = tempfile::tempdir().expect("a folder");
    let path = meeting.path().display().to_string();
    let conversation = |number| json!({"match": format!("Job {number}\\b"), "turns": turns(number, &path)});
    let world = World::with(Scripted::conversations((0..JOBS).map(conversation).collect())).await;
    let base = world.repo.tip("main").expect("it is there");
    let _workers = (world.builder("one").slots(10).start().await, world.builder("other").slots(10).start().await);
    for number in 0..JOBS {
        let job = world.job(json!({"title": format!("Job {number}"), "branch": format!("feature/{number}")}));
        world.fleet.publish(&format!("default.t{number}"), &job).await;
    }
    let mut by = Vec::new();
    for number in 0..JOBS {
        let record = world.fleet.ended(&format!("default.t{number}")).await;
        succeeded(&record);
        assert_eq!(record.attempts.len(), 1, "{record:#?}");
        let (report, branch) = (report(&record), format!("feature/{number}"));
        assert_eq!(report.commit, world.repo.tip(&branch));
        assert_eq!(report.base_commit.as_ref(), Some(&base));
        by.push(record.attempts[0].worker.clone().expect("it ran").to_string());
    }
    let of_one = by.iter().filter(|worker| *worker == "one").count();
    assert_eq!(of_one, JOBS / 2, "each had all of its slots in use: {by:?}");
    let branches: BTreeSet<String> = world.repo.branches().into_iter().collect();
    assert_eq!(branches, (0..JOBS).map(|number| format!("feature/{number}")).collect());
    for number in 0..JOBS {
        let branch = format!("feature/{number}");
        assert_eq!(world.repo.git(&["rev-list", &format!("main..{branch}")]).lines().count(), 1, "{branch}");
        assert_eq!(world.repo.git(&["rev-parse", &format!("{branch}^")]).trim(), base, "{branch}");
        let files = world.repo.git(&["diff", "--name-only", "main", &branch]);
        assert_eq!(files.lines().collect::<Vec<_>>(), ["add.sh".to_owned(), format!("made/{number}")], "{branch}");
        let (program, made) = (format!("# {number}\n{RIGHT}"), format!("{number} of t{number}\n"));
        assert_eq!(world.repo.file(&branch, "add.sh"), Some(program));
        assert_eq!(world.repo.file(&branch, &format!("made/{number}")), Some(made));
    }
    assert_eq!(world.repo.tip("main"), Some(base));
    world.model_is_content();
    super::slots_are_free(&world).await;
}
