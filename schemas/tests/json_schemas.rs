//! `schemas/json/` is made from the types.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use shoal_schemas::schema;

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> =
                fields.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        value => value,
    }
}

#[test]
fn the_json_schemas_are_those_of_the_types() {
    let folder = support::root().join("schemas/json");
    let mut made = BTreeSet::new();
    for (name, schema) in schema::all() {
        // In an order of our own: whether a map keeps its order depends on what else is built.
        let schema = sorted(serde_json::to_value(&schema).unwrap());
        support::check(&folder.join(name), &(serde_json::to_string_pretty(&schema).unwrap() + "\n"));
        made.insert(name.to_owned());
    }
    let kept = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(kept.collect::<BTreeSet<_>>(), made, "files that no message has");
}
