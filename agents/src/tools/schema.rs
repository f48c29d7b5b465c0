//! JSON Schemas of tools, from the types of their arguments, in the small subset that every endpoint takes.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The schema of a tool's arguments: no references, no titles, no formats, no `null`.
pub fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("description");
    }
    simplified(&mut schema, true);
    schema
}

fn simplified(schema: &mut Value, is_schema: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    if is_schema {
        for word in ["$schema", "title", "format", "default"] {
            object.remove(word);
        }
        if let Some(Value::Array(kinds)) = object.get_mut("type") {
            kinds.retain(|kind| kind != "null");
            if let [kind] = kinds.as_slice() {
                object["type"] = kind.clone();
            }
        }
    }
    for (name, inner) in object.iter_mut() {
        // In `properties` every key is a name, not a word of JSON Schema.
        simplified(inner, !(is_schema && name == "properties"));
    }
}

/// Reads arguments, or tells the model what is wrong with them and what the tool takes.
pub fn parsed<T: JsonSchema + DeserializeOwned>(tool: &str, arguments: &str) -> Result<T, String> {
    let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
    let value = serde_json::from_str::<Value>(arguments).map_err(|error| {
        let given = super::output::middle_cut(arguments, 500);
        format!("the arguments of {tool} are no JSON: {error}. Given: {given}\n{}", takes::<T>(tool))
    })?;
    T::deserialize(without_nulls(value))
        .map_err(|error| format!("wrong arguments for {tool}: {error}\n{}", takes::<T>(tool)))
}

/// Many models write `null` for what they leave out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    }
}

/// What a tool takes, in one line: `read_file takes path (string), first_line (integer, optional)`.
fn takes<T: JsonSchema>(tool: &str) -> String {
    let schema = of::<T>();
    let required = |name: &str| {
        schema["required"].as_array().is_some_and(|names| names.iter().any(|required| required.as_str() == Some(name)))
    };
    let fields: Vec<String> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, field)| {
            let kind = field["type"].as_str().unwrap_or("any");
            if required(name) { format!("{name} ({kind})") } else { format!("{name} ({kind}, optional)") }
        })
        .collect();
    format!("{tool} takes a JSON object with {}", fields.join(", "))
}
