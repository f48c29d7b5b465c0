//! One golden sample per message: it reads into its type, and the type writes it back byte for byte.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shoal_schemas::agent_job::SlotLease;
use shoal_schemas::cancel::{
    CancelReply, CancelRequest, CordonReply, CordonRequest, DrainReply, DrainRequest, HoldsReply, HoldsRequest,
};
use shoal_schemas::containers::{ContainersReply, ContainersRequest};
use shoal_schemas::function::EnsureRequest;
use shoal_schemas::http::{AgentBeat, AgentRegistration, Problem};
use shoal_schemas::transcript::{Entry, Message};
use shoal_schemas::{
    AgentRecord, DeadLetter, DoctorReport, Explanation, Function, Instance, Playbook, QueueSettings, Task, TaskRecord,
    schema, strict,
};

/// The name of a message is the start of its samples' names; the longest fitting one counts.
const MESSAGES: [&str; 27] = [
    "task_record",
    "task",
    "agent_record",
    "queue_settings",
    "playbook",
    "function",
    "instance",
    "ensure_request",
    "containers_request",
    "containers_reply",
    "transcript_entry",
    "agent_message",
    "slot_lease",
    "dead_letter",
    "explanation",
    "doctor_report",
    "cancel_request",
    "cancel_reply",
    "drain_request",
    "drain_reply",
    "cordon_request",
    "cordon_reply",
    "holds_request",
    "holds_reply",
    "agent_registration",
    "agent_beat",
    "problem",
];

/// Words that are the default and so never written.
const LEFT_OUT: [&str; 6] = [
    r#"playbook.steps[].kind = "command""#,
    r#"queue_settings.on_disconnect = "stop""#,
    r#"task.on_lost = "retry""#,
    r#"task.workload<"agent">.implementer<"command">.protocol = "none""#,
    r#"task.workload<"agent">.playbook<"inline">.playbook.steps[].kind = "command""#,
    r#"task.workload<"agent">.push = "branch""#,
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

/// Message, file name and text of every sample.
fn samples() -> Vec<(&'static str, String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let fits = |message: &&&str| name == **message || name.starts_with(&format!("{message}_"));
        let message = MESSAGES.iter().filter(fits).max_by_key(|message| message.len());
        let message = message.unwrap_or_else(|| panic!("{name}.json is a sample of no known message"));
        found.push((*message, name, std::fs::read_to_string(&path).unwrap()));
    }
    found.sort();
    found
}

fn written<T: DeserializeOwned + Serialize>(name: &str, text: &str) -> String {
    let read: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{name}.json: {error}"));
    serde_json::to_string_pretty(&read).unwrap() + "\n"
}

#[test]
fn every_sample_reads_into_its_type_and_back_byte_for_byte() {
    for (message, name, text) in samples() {
        if name == "task_unknown_field" {
            continue;
        }
        let back = match message {
            "task" => written::<Task>(&name, &text),
            "task_record" => written::<TaskRecord>(&name, &text),
            "agent_record" => written::<AgentRecord>(&name, &text),
            "queue_settings" => written::<QueueSettings>(&name, &text),
            "playbook" => written::<Playbook>(&name, &text),
            "function" => written::<Function>(&name, &text),
            "instance" => written::<Instance>(&name, &text),
            "ensure_request" => written::<EnsureRequest>(&name, &text),
            "containers_request" => written::<ContainersRequest>(&name, &text),
            "containers_reply" => written::<ContainersReply>(&name, &text),
            "transcript_entry" => written::<Entry>(&name, &text),
            "agent_message" => written::<Message>(&name, &text),
            "slot_lease" => written::<SlotLease>(&name, &text),
            "dead_letter" => written::<DeadLetter>(&name, &text),
            "doctor_report" => written::<DoctorReport>(&name, &text),
            "explanation" => written::<Explanation>(&name, &text),
            "cancel_request" => written::<CancelRequest>(&name, &text),
            "cancel_reply" => written::<CancelReply>(&name, &text),
            "drain_request" => written::<DrainRequest>(&name, &text),
            "drain_reply" => written::<DrainReply>(&name, &text),
            "cordon_request" => written::<CordonRequest>(&name, &text),
            "cordon_reply" => written::<CordonReply>(&name, &text),
            "holds_request" => written::<HoldsRequest>(&name, &text),
            "holds_reply" => written::<HoldsReply>(&name, &text),
            "agent_registration" => written::<AgentRegistration>(&name, &text),
            "agent_beat" => written::<AgentBeat>(&name, &text),
            "problem" => written::<Problem>(&name, &text),
            other => panic!("say here which type {other} is"),
        };
        assert_eq!(back, text, "{name}.json is not what its type writes");
    }
}

#[test]
fn task_samples_pass_the_strict_door_too() {
    for (message, name, text) in samples() {
        if message == "task" && name != "task_unknown_field" {
            let value: Value = serde_json::from_str(&text).unwrap();
            strict::task(&value).unwrap_or_else(|error| panic!("{name}.json: {error}"));
        }
        if message == "playbook" {
            strict::playbook(&serde_json::from_str(&text).unwrap(), "")
                .unwrap_or_else(|error| panic!("{name}.json: {error}"));
        }
        if message == "function" {
            strict::function(&serde_json::from_str(&text).unwrap())
                .unwrap_or_else(|error| panic!("{name}.json: {error}"));
        }
        if message == "queue_settings" {
            strict::queue_settings(&serde_json::from_str(&text).unwrap())
                .unwrap_or_else(|error| panic!("{name}.json: {error}"));
        }
    }
}

#[test]
fn an_unknown_field_passes_a_worker_and_is_refused_at_the_door() {
    let text = std::fs::read_to_string(folder().join("task_unknown_field.json")).unwrap();
    Task::decode(text.as_bytes()).unwrap();
    let refused = strict::task(&serde_json::from_str(&text).unwrap()).unwrap_err();
    assert_eq!(refused.to_string(), "field `timeot`: unknown field; did you mean `timeout`?");

    let key = "default.a".parse().unwrap();
    let mut record = TaskRecord::new(&key, 1, shoal_schemas::State::Running, shoal_schemas::Timestamp::now());
    record.keep_task(text.as_bytes());
    assert!(serde_json::to_string(&record).unwrap().contains(r#""timeot": "10m""#), "records pass it on");
}

#[test]
fn every_field_and_every_word_of_every_message_is_in_a_sample() {
    let samples = samples();
    let mut missing = BTreeSet::new();
    for (file, schema) in schema::all() {
        let message = file.trim_end_matches(".json");
        let values: Vec<Value> = samples
            .iter()
            .filter(|(of, _, _)| *of == message)
            .map(|(_, _, text)| serde_json::from_str(text).unwrap())
            .collect();
        assert!(!values.is_empty(), "no sample of {message}");
        let root = schema.to_value();
        look(&root, &root, &values.iter().collect::<Vec<_>>(), message, &mut missing);
    }
    for word in LEFT_OUT {
        assert!(missing.remove(word), "{word} is written after all");
    }
    assert!(missing.is_empty(), "in no sample: {missing:#?}");
}

/// Notes every property and every enum word of `schema` that none of `values` has.
fn look(root: &Value, schema: &Value, values: &[&Value], path: &str, missing: &mut BTreeSet<String>) {
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        // Codes have a table of their own, `docs/errors.md` and `docs/doctor.md`; a task inside a record has its own samples.
        if target.ends_with("/Code")
            || target.ends_with("/FindingCode")
            || (path == "task_record.task" && target.ends_with("/Task"))
            || (path == "queue_settings.agent" && target.ends_with("/AgentJob"))
        {
            return;
        }
        look(root, root.pointer(target.trim_start_matches('#')).unwrap(), values, path, missing);
    }
    let variants = ["oneOf", "anyOf"].iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    for variant in variants {
        match variant.pointer("/properties/kind/const") {
            Some(kind) => {
                let of_kind: Vec<&Value> =
                    values.iter().copied().filter(|value| value.get("kind") == Some(kind)).collect();
                look(root, variant, &of_kind, &format!("{path}<{kind}>"), missing);
            }
            None => look(root, variant, values, path, missing),
        }
    }
    let words = schema.get("enum").and_then(Value::as_array).into_iter().flatten().chain(schema.get("const"));
    for word in words {
        if !values.contains(&word) {
            missing.insert(format!("{path} = {word}"));
        }
    }
    if let Some(items) = schema.get("items") {
        let inside: Vec<&Value> = values.iter().filter_map(|value| value.as_array()).flatten().collect();
        look(root, items, &inside, &format!("{path}[]"), missing);
    }
    if let Some(item) = schema.get("additionalProperties").filter(|item| item.is_object()) {
        let inside: Vec<&Value> =
            values.iter().filter_map(|value| value.as_object()).flat_map(|map| map.values()).collect();
        look(root, item, &inside, &format!("{path}.*"), missing);
    }
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}.{name}");
        let inside: Vec<&Value> = values.iter().filter_map(|value| value.get(name)).collect();
        if inside.is_empty() {
            missing.insert(path);
        } else {
            look(root, property, &inside, &path, missing);
        }
    }
}
