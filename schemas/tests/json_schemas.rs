//! `schemas/json/` is made from the types.

mod support;

use std::collections::BTreeSet;

use shoal_schemas::schema;

#[test]
fn the_json_schemas_are_those_of_the_types() {
    let folder = support::root().join("schemas/json");
    let mut made = BTreeSet::new();
    for (name, schema) in schema::all() {
        support::check(&folder.join(name), &(serde_json::to_string_pretty(&schema).unwrap() + "\n"));
        made.insert(name.to_owned());
    }
    let kept = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(kept.collect::<BTreeSet<_>>(), made, "files that no message has");
}
