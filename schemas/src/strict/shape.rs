//! Follows a value along its schema, to the first field or value that has no place there: with its path, which serde
//! does not know inside tagged enums.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{InvalidTask, join};
use crate::ids::{FunctionName, TaskId};
use crate::quantity::Decimal;
use crate::time::{HumanDuration, Timestamp};

/// What becomes of a field that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// An error.
    Refused,
    /// A newer version's.
    Passed,
}

/// Types that are written as text: how, and why a text is none.
type Written = (&'static str, &'static str, fn(&str) -> Option<String>);

const WRITTEN: [Written; 5] = [
    ("HumanDuration", "a length of time, as \"30m\"", problem::<HumanDuration>),
    ("Decimal", "a number in quotes, as \"1.50\"", problem::<Decimal>),
    ("Timestamp", "a time, as \"2026-11-20T10:00:00Z\"", problem::<Timestamp>),
    ("TaskId", "the id of a task, in quotes", problem::<TaskId>),
    ("FunctionName", "the name of a function, in quotes", problem::<FunctionName>),
];

fn problem<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Option<String> {
    text.parse::<T>().err().map(|error| error.to_string())
}

/// Stops at the first field or value of `value` that has no place in `schema`.
pub(super) fn walk(schema: &Value, value: &Value, unknown: Unknown) -> Result<(), InvalidTask> {
    Walk { root: schema, unknown }.value(schema, value, "")
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    root: &'a Value,
    unknown: Unknown,
}

impl<'a> Walk<'a> {
    fn value(self, schema: &'a Value, value: &Value, path: &str) -> Result<(), InvalidTask> {
        let schemas = self.resolve(schema, value, path)?;
        match value {
            Value::Object(fields) => self.object(&schemas, fields, path),
            Value::Array(items) => {
                let Some(item) = schemas.iter().find_map(|schema| schema.get("items")) else {
                    return fits(&schemas, value, path);
                };
                items.iter().enumerate().try_for_each(|(i, value)| self.value(item, value, &format!("{path}[{i}]")))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => fits(&schemas, value, path),
        }
    }

    fn object(self, schemas: &[&'a Value], fields: &Map<String, Value>, path: &str) -> Result<(), InvalidTask> {
        let properties = schemas.iter().filter_map(|schema| schema.get("properties")?.as_object());
        let properties: BTreeMap<&str, &Value> =
            properties.flatten().map(|(name, schema)| (name.as_str(), schema)).collect();
        let others = schemas.iter().find_map(|schema| schema.get("additionalProperties").filter(|s| s.is_object()));
        if properties.is_empty() && others.is_none() {
            return fits(schemas, &Value::Object(fields.clone()), path);
        }
        for (name, value) in fields {
            match properties.get(name.as_str()).copied().or(others) {
                Some(schema) => self.value(schema, value, &join(path, name))?,
                None if self.unknown == Unknown::Passed => {}
                None => {
                    let known: Vec<&str> = properties.keys().copied().collect();
                    return Err(InvalidTask::unknown(path, name, &known));
                }
            }
        }
        let required = schemas.iter().filter_map(|schema| schema.get("required")?.as_array()).flatten();
        for name in required.filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                return Err(InvalidTask { field: join(path, name), problem: "is required and missing".into() });
            }
        }
        Ok(())
    }

    /// The schemas that hold for `value` at once: references followed, the variant of a tagged enum chosen.
    fn resolve(self, schema: &'a Value, value: &Value, path: &str) -> Result<Vec<&'a Value>, InvalidTask> {
        let mut found = vec![schema];
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#')) {
            let target = self.root.pointer(target).expect("a generated schema refers only to its own definitions");
            found.extend(self.resolve(target, value, path)?);
        }
        if let Some(variants) = schema.get("oneOf").and_then(Value::as_array) {
            let kinds: Vec<&str> = variants.iter().filter_map(kind).collect();
            if !kinds.is_empty() {
                let word = value.get("kind").and_then(Value::as_str).unwrap_or_default();
                match variants.iter().find(|variant| kind(variant) == Some(word)) {
                    Some(variant) => found.extend(self.resolve(variant, value, path)?),
                    None if value.is_object() => {
                        return Err(InvalidTask::value(&join(path, "kind"), word, &kinds.join(", ")));
                    }
                    None => {}
                }
            }
        }
        // An optional field is `anyOf` its schema and null.
        for variant in schema.get("anyOf").and_then(Value::as_array).into_iter().flatten() {
            found.extend(self.resolve(variant, value, path)?);
        }
        Ok(found)
    }
}

/// The word of a variant of a tagged enum.
fn kind(variant: &Value) -> Option<&str> {
    variant.pointer("/properties/kind/const").and_then(Value::as_str)
}

/// Refuses a value that none of `schemas` takes: its JSON type, its word, its number, its form.
fn fits(schemas: &[&Value], value: &Value, path: &str) -> Result<(), InvalidTask> {
    let mut types: Vec<&str> = Vec::new();
    let mut kinds: Vec<&str> = Vec::new();
    for schema in schemas {
        match schema.get("type") {
            Some(Value::String(one)) => types.push(one),
            Some(Value::Array(many)) => types.extend(many.iter().filter_map(Value::as_str)),
            _ => {}
        }
        let words = schema.get("enum").and_then(Value::as_array);
        let variants = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
        kinds.extend(variants.clone().filter_map(kind));
        let words: Vec<&str> = words
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .chain(variants.clone().filter_map(|variant| variant.get("const")?.as_str()))
            .collect();
        if words.is_empty() || value.is_null() {
            continue;
        }
        if value.as_str().is_some_and(|word| words.contains(&word)) {
            return Ok(());
        }
        let only_words = variants.clone().all(|variant| variant.get("const").is_some());
        if value.is_string() || only_words {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            return Err(InvalidTask::value(path, &shown, &words.join(", ")));
        }
    }
    let takes = |wanted: &str| match wanted {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => true,
    };
    let name = |schema: &&Value| schema.get("$ref").and_then(Value::as_str)?.rsplit('/').next().map(str::to_owned);
    let names: Vec<String> = schemas.iter().filter_map(name).collect();
    let written = WRITTEN.iter().find(|(name, ..)| names.iter().any(|other| other == name));
    let number = schemas.iter().find(|schema| types_of(schema).any(|name| name == "integer"));
    // `null` alone stands beside something of any type.
    let of_any_type = kinds.is_empty() && types.iter().all(|name| *name == "null");
    let fits = of_any_type || types.iter().any(|wanted| takes(wanted));
    match (fits, written, number) {
        (true, Some((.., problem)), _) => match value.as_str().and_then(problem) {
            Some(problem) => Err(InvalidTask { field: path.into(), problem }),
            None => Ok(()),
        },
        (true, None, Some(schema)) if value.is_number() && !is_within(schema, value) => {
            Err(InvalidTask::value(path, &value.to_string(), &range(schema)))
        }
        (true, None, _) => Ok(()),
        (false, Some((_, how, _)), _) => Err(InvalidTask::value(path, &value.to_string(), how)),
        (false, None, Some(schema)) if value.is_number() => {
            Err(InvalidTask::value(path, &value.to_string(), &range(schema)))
        }
        (false, None, _) if !kinds.is_empty() => {
            let allowed = format!("an object whose `kind` is one of {}", kinds.join(", "));
            Err(InvalidTask::value(path, &value.to_string(), &allowed))
        }
        (false, None, _) => {
            let types: Vec<&str> = types.into_iter().filter(|name| *name != "null").collect();
            Err(InvalidTask::value(path, &value.to_string(), &types.join(" or ")))
        }
    }
}

fn types_of(schema: &Value) -> impl Iterator<Item = &str> {
    let of = schema.get("type");
    let many = of.and_then(Value::as_array).into_iter().flatten();
    of.into_iter().chain(many).filter_map(Value::as_str)
}

/// Least and most of a whole number's type.
fn bounds(schema: &Value) -> (i128, i128) {
    let (least, most) = match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => (0, u8::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("uint64") => (0, u64::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        _ => (i64::MIN.into(), i128::from(u64::MAX)),
    };
    let stated = |name: &str| schema.get(name).and_then(|number| number.as_i64().map(i128::from));
    (stated("minimum").unwrap_or(least), stated("maximum").unwrap_or(most))
}

/// Whether a whole number is one of the schema's. Of others nothing is said.
fn is_within(schema: &Value, value: &Value) -> bool {
    let number = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
    let (least, most) = bounds(schema);
    number.is_none_or(|number| (least..=most).contains(&number))
}

fn range(schema: &Value) -> String {
    let (least, most) = bounds(schema);
    format!("a whole number from {least} to {most}")
}
