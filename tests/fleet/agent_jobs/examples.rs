//! The task files of `docs/examples/`: all pass the door, and what needs nothing but a model is run (A20).

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{World, mends, report, succeeded};
use crate::support::repo::RIGHT;

/// Every example, in order.
fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    found
}

/// One of them, on the world's own remote.
fn example(world: &World, name: &str) -> String {
    let file = examples().into_iter().find(|path| path.ends_with(name)).expect("the example");
    let text = std::fs::read_to_string(file).expect("text");
    let remote = "https://git.example.com/team/app.git";
    assert!(text.contains(remote), "{text}");
    text.replace(remote, &world.repo.url())
}

#[tokio::test]
async fn every_example_passes_the_door() {
    let world = World::of(mends()).await;
    let names: Vec<String> =
        examples().iter().map(|path| path.file_name().expect("a name").to_string_lossy().into_owned()).collect();
    assert_eq!(
        names,
        ["command-agent.yaml", "custom-playbook.yaml", "docker.yaml", "minimal.yaml", "outside-services.yaml"]
    );
    for path in examples() {
        let submitted = world.fleet.shoal(&["submit", &path.display().to_string(), "-o", "json"]).await.ok().json();
        assert!(submitted["sequence"].is_u64() || submitted[0]["sequence"].is_u64(), "{submitted}");
        // Every setting that it names is one.
        let text = std::fs::read_to_string(&path).expect("text");
        let help = world.fleet.shoal(&["worker", "--help"]).await.ok().stdout;
        let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_').filter(|word| {
            word.starts_with("SHOAL_") || word.ends_with("_URL") || ["GIT_TOKEN", "OPENAI_API_KEY"].contains(word)
        });
        for word in words {
            assert!(help.contains(word), "{}: no setting `{word}`", path.display());
        }
    }
}

#[tokio::test]
async fn the_minimal_example_runs() {
    let world = World::of(mends()).await;
    let _worker = world.worker("w").await;
    world.fleet.shoal_with_input(&["submit", "--id", "t", "-"], &example(&world, "minimal.yaml")).await.ok();
    succeeded(&world.fleet.ended("default.t").await);
    assert_eq!(world.repo.file("feature/task-t-fix-the-parser", "add.sh").as_deref(), Some(RIGHT));
    world.model_is_content();
}

#[tokio::test]
async fn the_example_with_a_playbook_runs() {
    let world = World::of(mends()).await;
    let makefile = "prepare:\n\t@true\nlint:\n\t@sh -n add.sh\ntest:\n\t@sh test.sh\ndocs:\n\t@exit 1\n";
    world.repo.commit("main", &[("Makefile", makefile)]);
    let _worker = world.worker("w").await;
    world.fleet.shoal_with_input(&["submit", "--id", "t", "-"], &example(&world, "custom-playbook.yaml")).await.ok();
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(world.repo.branches(), ["feature/parser-last-line"]);
    let report = report(&record);
    let steps: Vec<(&str, Value)> = report
        .steps
        .iter()
        .map(|step| (step.name.as_str(), serde_json::to_value(step.outcome).expect("a word")))
        .collect();
    let words = ["passed", "passed", "passed", "skipped", "passed"];
    let names = ["prepare", "write", "lint", "docs", "test"];
    assert_eq!(steps, names.into_iter().zip(words.map(Value::from)).collect::<Vec<_>>());
    let message = world.repo.git(&["log", "-1", "--format=%B", "feature/parser-last-line"]);
    assert!(message.starts_with("feat(task-t): Fix the parser\n\nSpecification: parsing 3.2\n"), "{message}");
    world.model_is_content();
}
