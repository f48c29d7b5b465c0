//! Old and new binaries in one fleet: what a newer one wrote is read by this one, changed and written back whole.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shoal_schemas::{AgentRecord, QueueSettings, TaskRecord, strict};

fn sample(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name).with_extension("json");
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn samples(of: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let names = names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned());
    let found: Vec<_> = names.filter(|name| name.starts_with(of)).map(|name| (name.clone(), sample(&name))).collect();
    assert!(!found.is_empty(), "no sample of {of}");
    found
}

/// A field of tomorrow in every object, however deep; maps whose keys are free have none.
fn grown(value: &Value, is_map: bool) -> Value {
    match value {
        Value::Object(fields) => {
            let inner = |(name, value): (&String, &Value)| {
                (name.clone(), grown(value, ["labels", "runtimes"].contains(&name.as_str())))
            };
            let mut fields: serde_json::Map<String, Value> = fields.iter().map(inner).collect();
            // What says which kind of result it is has one key alone.
            let is_result = fields.contains_key("inline") || fields.contains_key("object");
            if !is_map && !is_result {
                fields.insert("tomorrow".into(), json!({"deep": [1, {"er": null}], "text": "ä"}));
            }
            Value::Object(fields)
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| grown(item, false)).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[track_caller]
fn comes_back<T: DeserializeOwned + Serialize + Clone>(name: &str, value: &Value) {
    let read: T = serde_json::from_str(&value.to_string()).unwrap_or_else(|error| panic!("{name}: {error}\n{value:#}"));
    // Through a clone, for that is how a record is changed.
    let back = serde_json::to_value(read.clone()).unwrap();
    assert_eq!(&back, value, "{name}");
}

#[test]
fn fields_of_tomorrow_come_back_from_every_depth() {
    for (name, value) in samples("task_record") {
        comes_back::<TaskRecord>(&name, &grown(&value, false));
    }
    for (name, value) in samples("agent_record") {
        comes_back::<AgentRecord>(&name, &grown(&value, false));
    }
    for (name, value) in samples("queue_settings") {
        comes_back::<QueueSettings>(&name, &grown(&value, false));
    }
}

#[test]
fn words_of_tomorrow_make_nothing_unreadable_and_come_back() {
    let replaced = |name: &str, pointer: &str, with: Value| {
        let mut value = sample(name);
        *value.pointer_mut(pointer).unwrap_or_else(|| panic!("{name} has no {pointer}")) = with;
        value
    };
    let word = || json!("of_tomorrow");
    for (name, pointer) in [
        ("task_record_retried_failed", "/attempts/0/outcome"),
        ("task_record_retried_failed", "/attempts/0/error/code"),
        ("task_record_retried_failed", "/error/code"),
        ("task_record_waiting", "/waiting/code"),
    ] {
        comes_back::<TaskRecord>(name, &replaced(name, pointer, word()));
    }
    comes_back::<TaskRecord>("result", &replaced("task_record_result", "/result", json!({"url": "https://a/b"})));
    for pointer in ["/status", "/kind"] {
        comes_back::<AgentRecord>("agent_record", &replaced("agent_record", pointer, word()));
    }
    comes_back::<QueueSettings>("queue_settings", &replaced("queue_settings", "/on_disconnect", word()));
}

#[test]
fn a_state_of_tomorrow_is_no_state_for_us_to_judge() {
    let mut value = sample("task_record_running");
    value["state"] = json!("of_tomorrow");
    let error = serde_json::from_value::<TaskRecord>(value).unwrap_err().to_string();
    assert!(error.contains("of_tomorrow"), "{error}");
}

#[test]
fn the_door_takes_no_word_and_no_field_of_tomorrow() {
    let refused = [
        strict::queue_settings(&json!({"on_disconnect": "of_tomorrow"})).map(|_| ()),
        strict::queue_settings(&json!({"tomorrow": 1})).map(|_| ()),
        strict::queue_settings(&json!({"defaults": {"tomorrow": 1}})).map(|_| ()),
        strict::queue_settings(&json!({"defaults": {"retry": {"tomorrow": 1}}})).map(|_| ()),
        strict::agent_beat(&json!({"status": "of_tomorrow"})).map(|_| ()),
        strict::agent_beat(&json!({"free": {"cpu_millis": 1, "memory_bytes": 1, "disk_bytes": 1, "tomorrow": 1}}))
            .map(|_| ()),
        strict::agent_registration(&json!({"id": "a", "status": "of_tomorrow"})).map(|_| ()),
        strict::agent_registration(&json!({"id": "a", "runtimes": {"r": {"tomorrow": 1}}})).map(|_| ()),
    ];
    for (at, refused) in refused.into_iter().enumerate() {
        let error = refused.expect_err(&format!("number {at} is taken")).to_string();
        assert!(error.contains("tomorrow"), "{error}");
    }
    for task in [
        json!({"workload": {"kind": "call", "handler": "a"}, "retry": {"never_on_codes": ["of_tomorrow"]}}),
        json!({"workload": {"kind": "call", "handler": "a"}, "retry": {"backoff": {"tomorrow": 1}}}),
        json!({"workload": {"kind": "call", "handler": "a"}, "retry": {"tomorrow": 1}}),
    ] {
        assert!(strict::task(&task).unwrap_err().to_string().contains("tomorrow"));
    }
}
