//! Agent programs as implementers: any command, and one that speaks the Agent Client Protocol (A6).

use std::path::PathBuf;

use schemas::transcript::Event;
use schemas::{Code, State};
use serde_json::{Value, json};

use super::{World, mends, report, succeeded};
use crate::support::eventually;
use crate::support::repo::RIGHT;

const BRANCH: &str = "feature/task-t-add-do-not-subtract";

/// A world whose model nobody asks.
async fn world() -> World {
    World::of(mends()).await
}

/// A script as agent program: told the prompt's file and the workspace.
fn program(world: &World, script: &str) -> Value {
    let path = world.fleet.folder().join("agent.sh");
    std::fs::write(&path, script).expect("a script");
    json!({"kind": "command", "command": ["sh", path.display().to_string(), "{prompt_file}", "{workspace}"]})
}

/// A file beside the remote.
fn beside(world: &World, name: &str) -> PathBuf {
    world.fleet.folder().join(name)
}

/// The job with this implementer fails; code and message.
async fn fails(world: &World, implementer: Value) -> (Code, String) {
    let record = world.run("default.t", json!({ "implementer": implementer })).await;
    assert_eq!(record.state, State::Failed, "{record:#?}");
    assert_eq!(world.repo.branches(), Vec::<String>::new());
    let error = record.error.expect("an error");
    (error.code, error.message)
}

#[tokio::test]
async fn a_command_agent_makes_a_tested_branch() {
    let world = world().await;
    let _worker = world.worker("w").await;
    let (copy, place) = (beside(&world, "prompt.md"), beside(&world, "place"));
    let script = format!(
        "set -eu\ncp \"$1\" {}\n[ \"$(pwd)\" = \"$2\" ]\necho \"$HOME\" > {}\n[ -z \"${{OPENAI_API_KEY:-}}\" ]\n\
         printf '%s' '{RIGHT}' > \"$2/add.sh\"\necho 'It adds now.'\n",
        copy.display(),
        place.display()
    );
    let more = json!({
        "implementer": program(&world, &script),
        "description": "add.sh subtracts.", "acceptance": ["2 and 3 make 5"],
    });
    let record = world.run("default.t", more).await;
    succeeded(&record);
    assert_eq!(world.repo.branches(), [BRANCH]);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    let report = report(&record);
    assert_eq!((report.turns, report.model.as_deref(), report.input_tokens), (1, None, 0));
    assert_eq!(report.tests.and_then(|tests| tests.counts).map(|counts| counts.passed), Some(1));
    let prompt = std::fs::read_to_string(copy).expect("the prompt");
    for words in ["# Task t: Add, do not subtract", "add.sh subtracts.", "- 2 and 3 make 5", "sh test.sh"] {
        assert!(prompt.contains(words), "no `{words}` in: {prompt}");
    }
    let told = world.told("t").await;
    assert!(
        told.iter().any(|entry| matches!(&entry.event, Event::Text { text } if text == "It adds now.")),
        "{told:#?}"
    );
    assert!(world.model.requests().is_empty());
}

#[tokio::test]
async fn a_command_agent_that_fails_is_quoted_and_nothing_is_pushed() {
    let world = world().await;
    let _worker = world.worker("w").await;
    let (code, message) = fails(&world, program(&world, "echo 'no licence for this' >&2; exit 1\n")).await;
    assert_eq!(code, Code::ImplementationFailed);
    assert!(message.contains("exit code 1") && message.contains("no licence for this"), "{message}");
}

#[tokio::test]
async fn a_command_agent_that_hangs_ends_with_its_timeout_and_leaves_nothing() {
    let world = world().await;
    let _worker = world.worker("w").await;
    let mut implementer = program(&world, "(sleep 45679 &)\nsleep 45679\n");
    implementer["timeout"] = json!("1s");
    let (code, message) = fails(&world, implementer).await;
    assert_eq!(code, Code::ImplementationFailed);
    assert!(message.contains("1s"), "{message}");
    eventually("no process is left", async || {
        let all = std::process::Command::new("ps").args(["-eo", "args"]).output().expect("ps runs");
        let all = String::from_utf8_lossy(&all.stdout).into_owned();
        match all.lines().find(|line| line.contains("sleep 45679")) {
            None => Ok(()),
            Some(line) => Err(line.to_owned()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_command_agent_is_run_again_with_what_failed() {
    let world = world().await;
    let _worker = world.worker("w").await;
    let script = format!(
        "set -eu\nif grep -q 'not ok 1 - adds' \"$1\"; then printf '%s' '{RIGHT}' > add.sh; else echo 'echo 6' > add.sh; fi\n"
    );
    let record = world.run("default.t", json!({"implementer": program(&world, &script)})).await;
    succeeded(&record);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    let report = report(&record);
    assert_eq!(report.turns, 2);
    let steps: Vec<(&str, u32)> = report.steps.iter().map(|step| (step.name.as_str(), step.tries)).collect();
    assert_eq!(steps, [("implement", 2), ("test", 2)]);
}

/// The agent of `tests/model/acp_agent.py`, with this script; `@` in it is the workspace.
fn acp(world: &World, script: Value) -> Value {
    let agent = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model/acp_agent.py");
    let template = beside(world, "script");
    std::fs::write(&template, script.to_string()).expect("a script");
    let line = format!(
        "sed \"s#@#$1#g\" {template} > {template}.json && exec python3 {agent} {template}.json {template}.log",
        template = template.display(),
        agent = agent.display()
    );
    json!({"kind": "command", "protocol": "acp", "command": ["sh", "-c", line, "sh", "{workspace}"]})
}

/// What the agent noted: what was sent to it, and what it calls wrong.
fn noted(world: &World, what: &str) -> Vec<Value> {
    let log = std::fs::read_to_string(beside(world, "script.log")).expect("the agent's log");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line[0] == what).map(|line| line[1].clone()).collect()
}

#[tokio::test]
async fn an_agent_that_speaks_acp_makes_a_tested_branch_in_one_session_over_all_rounds() {
    let world = world().await;
    let _worker = world.worker("w").await;
    let script = json!([
        [["say", "I look at it."], ["read", {"path": "@/add.sh"}],
         ["permission", {"title": "write", "options": [["a", "Allow", "allow_once"], ["r", "Reject", "reject_once"]]}],
         ["tool", {"id": "c1", "title": "Write add.sh", "input": {"path": "add.sh"}, "output": "written"}],
         ["write", {"path": "@/add.sh", "content": "echo 6\n"}]],
        [["write", {"path": "@/add.sh", "content": RIGHT}], ["say", "It adds now."]],
    ]);
    let record = world.run("default.t", json!({"implementer": acp(&world, script)})).await;
    assert_eq!(noted(&world, "violation"), Vec::<Value>::new());
    succeeded(&record);
    assert_eq!(world.repo.file(BRANCH, "add.sh").as_deref(), Some(RIGHT));
    assert_eq!(noted(&world, "session/new").len(), 1);
    let prompts = noted(&world, "session/prompt");
    let text = |at: usize| prompts[at]["prompt"][0]["text"].as_str().unwrap_or_default().to_owned();
    assert_eq!(prompts.len(), 2);
    assert!(text(0).contains("# Task t: Add, do not subtract") && text(1).contains("not ok 1 - adds"), "{prompts:#?}");
    let told = world.told("t").await;
    let has = |is: &dyn Fn(&Event) -> bool| told.iter().any(|entry| is(&entry.event));
    assert!(has(&|event| matches!(event, Event::Text { text } if text == "I look at it.")), "{told:#?}");
    assert!(has(&|event| matches!(event, Event::ToolCall { name, .. } if name == "Write add.sh")), "{told:#?}");
}

#[tokio::test]
async fn an_agent_that_ends_in_mid_session_or_hangs_fails_the_job() {
    let world = world().await;
    let _worker = world.worker("w").await;
    let (code, message) = fails(&world, acp(&world, json!([[["stderr", "out of credit"], ["exit", 7]]]))).await;
    assert_eq!(code, Code::ImplementationFailed);
    assert!(message.contains("out of credit"), "{message}");
    let mut hangs = acp(&world, json!([[["say", "Hm."], ["hang", null]]]));
    hangs["timeout"] = json!("1s");
    let (code, message) = fails(&world, hangs).await;
    assert_eq!(code, Code::ImplementationFailed);
    assert!(message.contains("1s"), "{message}");
}

#[tokio::test]
async fn a_mistake_in_a_template_is_told_before_anything_runs() {
    let world = world().await;
    let _worker = world.worker("w").await;
    for (n, (implementer, words)) in [
        (json!({"kind": "command", "command": ["agent", "{promt_file}"]}), "did you mean `prompt_file`"),
        (json!({"kind": "command", "command": ["agent", "{"]}), "a brace stands alone"),
        (json!({"kind": "command", "command": ["{prompt}"]}), "the program itself"),
        (
            json!({"kind": "command", "protocol": "acp", "command": ["agent", "{prompt_file}"]}),
            "the prompt goes over stdin",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let record = world.run(&format!("default.t{n}"), json!({ "implementer": implementer })).await;
        let error = record.error.as_ref().expect("an error");
        assert_eq!(error.code, Code::InvalidTask, "{implementer}: {record:#?}");
        assert!(error.message.contains("implementer.command") && error.message.contains(words), "{error:?}");
        assert!(record.attempts.iter().all(|attempt| attempt.agent.is_none()), "{implementer}: {record:#?}");
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_or_not_allowed_says_so() {
    let world = world().await;
    let worker = world.worker("w").await;
    let (code, message) = fails(&world, json!({"kind": "command", "command": ["/no/such/agent"]})).await;
    assert!(matches!(code, Code::ImplementationFailed | Code::CommandNotFound), "{code:?}");
    assert!(message.contains("/no/such/agent"), "{message}");
    drop(worker);
    let _worker = world.builder("v").env("SHOAL_AGENT_COMMANDS", "false").start().await;
    let (code, message) = fails(&world, json!({"kind": "command", "command": ["true"]})).await;
    assert_eq!(code, Code::PolicyForbidden);
    assert!(message.contains("agent-commands"), "{message}");
}
