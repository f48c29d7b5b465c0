//! The task files of `docs/examples/`: all pass the door, and each is run (A20).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::outside::Rest;
use super::{World, containers, mends, report, succeeded};
use crate::support::repo::RIGHT;
use crate::support::{IMAGE, engine};

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
    let remotes = ["https://git.example.com/team/app.git", "git@git.example.com:team/app.git"];
    let remote = remotes.into_iter().find(|remote| text.contains(remote)).expect("a remote");
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

/// Runs one on a worker that stands already; its branch has the mended file.
async fn runs(world: &World, task: &str) -> schemas::TaskRecord {
    world.fleet.shoal_with_input(&["submit", "--id", "t", "-"], task).await.ok();
    let record = world.fleet.ended("default.t").await;
    succeeded(&record);
    assert_eq!(world.repo.file("feature/task-t-fix-the-parser", "add.sh").as_deref(), Some(RIGHT));
    record
}

#[tokio::test]
async fn the_example_in_containers_runs() {
    let engine = engine!();
    let world = World::of(mends()).await;
    let _worker = containers::builder(&world, &engine, "w").start().await;
    let image = "docker.io/library/rust:1";
    let task = example(&world, "docker.yaml");
    assert!(task.contains(image), "{task}");
    let record = runs(&world, &task.replace(image, IMAGE)).await;
    let tests = report(&record).tests.expect("tests were run");
    assert_eq!(tests.exit_code, Some(0), "{tests:?}");
    world.model_is_content();
    containers::nothing_left(&world, &engine).await;
}

#[tokio::test]
async fn the_example_of_an_agent_program_runs() {
    let world = World::of(json!([])).await;
    let folder = world.fleet.folder();
    std::fs::write(folder.join("right"), RIGHT).unwrap();
    // It is what the example calls, and strict about how.
    let program = format!(
        r#"#!/bin/sh
[ "$*" = "-p --permission-mode acceptEdits --allowedTools Bash(make:*)" ] || {{ echo "called with $*"; exit 2; }}
[ "$ANTHROPIC_API_KEY" = the-key-of-this-test ] || {{ echo "no key"; exit 3; }}
grep -q 'The last line of a file is lost' || {{ echo "not told what to do"; exit 4; }}
cp {}/right add.sh
"#,
        folder.display()
    );
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("claude"), program).unwrap();
    std::fs::set_permissions(bin.join("claude"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let _worker = world
        .builder("w")
        .env("ANTHROPIC_API_KEY", "the-key-of-this-test")
        .env("SHOAL_JOB_SECRETS", "anthropic=env:ANTHROPIC_API_KEY")
        .start()
        .await;
    // Where it is installed here, which is no place that a job looks by itself.
    let place = format!("  env:\n    PATH: {}:/usr/bin:/bin\n", bin.display());
    runs(&world, &(example(&world, "command-agent.yaml") + &place)).await;
    assert!(world.model.requests().is_empty());
}

#[tokio::test]
async fn the_example_with_outside_services_runs() {
    let world = World::of(mends()).await;
    let services = Rest::content().await;
    let mut builder = world.builder("w");
    for name in ["TASK_REGISTRY_URL", "REPO_POOL_URL", "ARTIFACT_STORE_URL"] {
        builder = builder.env(name, &services.url);
    }
    let _worker = builder.start().await;
    let record = runs(&world, &example(&world, "outside-services.yaml")).await;
    assert_eq!(record.warnings, Vec::<String>::new());
    let paths: Vec<String> = services.asked().into_iter().map(|asked| asked.path).collect();
    for path in ["/api/tasks/default.t", "/api/slots", "/api/tasks/default.t/events"] {
        assert!(paths.iter().any(|it| it == path), "{path} of {paths:?}");
    }
}
