//! What is wrong with an agent job is told when it is submitted: the path of the field, and what is allowed.

use serde_json::{Value, json};
use shoal_schemas::Task;
use shoal_schemas::agent_job::{ACCEPTANCE_BYTES, DEPENDENCIES, DESCRIPTION_BYTES};
use shoal_schemas::strict::{self, InvalidTask};

fn task(more: Value) -> Value {
    let mut workload = json!({"kind": "agent", "repository": "https://host/a.git", "title": "a"});
    for (name, value) in more.as_object().expect("fields") {
        workload[name] = value.clone();
    }
    json!({ "workload": workload })
}

/// What the door of submitters says; a worker names the same field of a raw message.
fn refused(task: &Value) -> InvalidTask {
    let at_the_door = strict::task(task).expect_err(&task.to_string());
    let raw = Task::decode(task.to_string().as_bytes()).expect_err(&task.to_string());
    assert_eq!(raw.field, at_the_door.field, "{raw}");
    at_the_door
}

#[test]
fn every_mistake_is_told_with_the_path_of_its_field_and_what_is_allowed() {
    let command = |words: Value| json!({"implementer": {"kind": "command", "command": words}});
    let docker = |image: Value| json!({"runtime": {"kind": "docker", "image": image}});
    for (more, field, words) in [
        (json!({"budget": {"turns": -1}}), "budget.turns", "`-1` is not allowed; allowed is a whole number from 1 to"),
        (json!({"budget": {"turns": 0}}), "budget.turns", "a whole number from 1"),
        (json!({"budget": {"turns": 1.5}}), "budget.turns", "a whole number from 1"),
        (json!({"budget": {"turns": 4_294_967_296_u64}}), "budget.turns", "to 4294967295"),
        (json!({"budget": {"turns": "9"}}), "budget.turns", "integer"),
        (json!({"budget": {"tokens": -1}}), "budget.tokens", "a whole number from 1"),
        (json!({"budget": {"tokens": 0}}), "budget.tokens", "a whole number from 1"),
        (json!({"budget": {"cost": "-1"}}), "budget.cost", "`1.50`"),
        (json!({"budget": {"cost": -1}}), "budget.cost", "a number in quotes, as \"1.50\""),
        (json!({"budget": {"cost": "0"}}), "budget.cost", "more than zero"),
        (json!({"budget": {"time": "-1s"}}), "budget.time", "1h30m"),
        (json!({"budget": {"time": 60}}), "budget.time", "a length of time, as \"30m\""),
        (json!({"budget": {"time": "0s"}}), "budget.time", "more than zero"),
        (json!({"budget": 9}), "budget", "object"),
        (json!({"keep": {"every_turns": -1}}), "keep.every_turns", "a whole number from 1"),
        (json!({"keep": {"remote": "yes"}}), "keep.remote", "boolean"),
        (json!({"playbook": "x"}), "playbook", "an object whose `kind` is one of inline, file, named"),
        (json!({"playbook": {"kind": "files"}}), "playbook.kind", "inline, file, named"),
        (json!({"playbook": {"kind": "file"}}), "playbook.path", "required"),
        (json!({"playbook": {"kind": "file", "path": 7}}), "playbook.path", "string"),
        (
            json!({"playbook": {"kind": "inline", "playbook": {"name": "p", "steps": [{"name": "a", "command": "x", "retry_count": -1}]}}}),
            "playbook.playbook.steps[0].retry_count",
            "a whole number from 0",
        ),
        (
            json!({"playbook": {"kind": "inline", "playbook": {"name": "p", "steps": [{"name": "a", "command": "x", "timeout": 5}]}}}),
            "playbook.playbook.steps[0].timeout",
            "a length of time",
        ),
        (json!({"implementer": "model"}), "implementer", "an object whose `kind` is one of model, command"),
        (json!({"implementer": {"kind": "model", "max_output_tokens": 0}}), "implementer.max_output_tokens", "from 1"),
        (json!({"implementer": {"kind": "model", "temperature": 0.5}}), "implementer.temperature", "in quotes"),
        (json!({"implementer": {"kind": "model", "timeout": 5}}), "implementer.timeout", "a length of time"),
        (command(json!("agent")), "implementer.command", "array"),
        (command(json!(["agent", "{foo}"])), "implementer.command", "word 1: `{foo}` stands for nothing"),
        (command(json!(["{prompt}"])), "implementer.command", "the program itself"),
        (docker(json!("a b")), "runtime.image", "an image reference"),
        (docker(json!(null)), "runtime.image", "string"),
        (json!({"runtime": "docker"}), "runtime", "an object whose `kind` is one of process, docker"),
        (json!({"runtime": {"kind": "docker", "image": "a", "network": "container:x"}}), "runtime.network", "`none`"),
        (json!({"push": 1}), "push", "branch, patch"),
        (json!({"push": "brunch"}), "push", "branch, patch"),
        (json!({"dependencies": ["a b"]}), "dependencies[0]", "A-Z a-z 0-9"),
        (json!({"env": {"A": 1}}), "env.A", "string"),
        (json!({"title": 1}), "title", "string"),
        (json!({"acceptance": "all"}), "acceptance", "array"),
        (json!({"acceptance": ["a", "b\0"]}), "acceptance[1]", "zero byte"),
        (json!({"repository": "https://host/a?token=abc"}), "repository", "a query"),
    ] {
        let error = refused(&task(more));
        assert_eq!(error.field, format!("workload.{field}"), "{error}");
        assert!(error.problem.contains(words), "{error} without {words}");
        assert!(!error.problem.contains("token=abc"), "{error}");
    }
}

#[test]
fn a_mistake_outside_the_job_has_its_path_too() {
    for (name, value, field) in [
        ("timeout", json!("soon"), "timeout"),
        ("timeout", json!(-1), "timeout"),
        ("limits", json!({"memory": "lots"}), "limits.memory"),
        ("retry", json!({"max_attempts": -1}), "retry.max_attempts"),
        ("retry", json!({"backoff": {"initial": 1}}), "retry.backoff.initial"),
        ("expires_at", json!("soon"), "expires_at"),
    ] {
        let mut task = task(json!({}));
        task[name] = value;
        assert_eq!(refused(&task).field, field);
    }
}

#[test]
fn a_raw_message_may_have_fields_of_a_newer_version_and_a_submitted_task_may_not() {
    let mut task = task(json!({"priority": 7, "budget": {"turns": -1, "joules": 5}}));
    let raw = Task::decode(task.to_string().as_bytes()).unwrap_err();
    assert_eq!(raw.field, "workload.budget.turns");
    task["workload"]["budget"]["turns"] = json!(1);
    Task::decode(task.to_string().as_bytes()).unwrap();
    let unknown = strict::task(&task).unwrap_err();
    assert!(unknown.problem.contains("unknown field"), "{unknown}");
}

#[test]
fn what_no_prompt_could_hold_is_refused_with_its_size_and_the_bound() {
    let words = |bytes: usize| "ä".repeat(bytes / 2);
    let ids = |count: usize| (0..count).map(|n| format!("{n:0128}")).collect::<Vec<_>>();
    let whole = json!({
        "title": "t".repeat(200), "spec": words(200), "description": words(DESCRIPTION_BYTES),
        "acceptance": [words(ACCEPTANCE_BYTES - 4)], "dependencies": ids(DEPENDENCIES),
    });
    let read = strict::task(&task(whole)).unwrap();
    let shoal_schemas::Workload::Agent(job) = read.workload else { panic!("another workload") };
    assert_eq!(job.dependencies.len(), DEPENDENCIES);
    for (more, field, problem) in [
        (json!({"description": words(900_000)}), "description", "it has 900000 bytes, and at most 32768 are allowed"),
        (json!({"acceptance": vec!["a"; 5_000]}), "acceptance", "it has 20000 bytes, and at most 16384 are allowed"),
        (json!({"title": words(900)}), "title", "it has 900 bytes, and at most 200 are allowed"),
        (json!({"spec": words(900)}), "spec", "it has 900 bytes, and at most 200 are allowed"),
        (json!({"dependencies": ids(65)}), "dependencies", "65 tasks are named, and at most 64 are allowed"),
    ] {
        let error = refused(&task(more));
        assert_eq!(error.field, format!("workload.{field}"));
        assert!(error.problem.starts_with(problem), "{error}");
        assert!(error.to_string().len() < 500, "{error}");
    }
}
