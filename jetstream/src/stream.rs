//! Streams: made if missing, brought up to date, never emptied.

use std::collections::BTreeMap;

use schemas::Timestamp;
use schemas::stores::StreamSpec;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{ApiError, JetStream, STREAM_NAME_IN_USE, STREAM_NOT_FOUND};

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensure {
    /// Make what is missing; leave what exists.
    Create,
    /// Also bring what exists up to date, as far as no stored message is dropped by it.
    Upgrade,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It is new.
    Created,
    /// These settings were changed.
    Updated(Vec<String>),
    /// It was as it should be. Settings that differ but were left, because changing them would drop messages or is
    /// impossible, are named.
    Unchanged(Vec<String>),
}

/// What a stream holds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamState {
    /// Messages stored.
    pub messages: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// Sequence of the oldest.
    pub first_seq: u64,
    /// Sequence of the newest.
    pub last_seq: u64,
}

/// Some subjects of a stream.
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    /// With how many messages each holds.
    pub counts: Vec<(String, u64)>,
    /// How many match in all; ask again from the offset behind these for the rest.
    pub total: u64,
}

#[derive(Deserialize)]
struct SubjectsInfo {
    #[serde(default)]
    total: u64,
    state: SubjectsState,
}

#[derive(Deserialize)]
struct SubjectsState {
    #[serde(default)]
    subjects: BTreeMap<String, u64>,
}

/// What tells whether a stream is still the one that it was.
#[derive(Clone, Debug)]
pub struct StreamLook {
    /// When it was made.
    pub created: Timestamp,
    /// What it holds.
    pub state: StreamState,
    /// What people and programs noted on it.
    pub metadata: BTreeMap<String, String>,
}

/// Everything that the server says of a stream.
#[derive(Clone, Debug, Deserialize)]
pub struct StreamInfo {
    /// Its configuration as it stands.
    pub config: Map<String, Value>,
    /// When it was made.
    pub created: Timestamp,
    /// What it holds.
    #[serde(default)]
    pub state: StreamState,
    /// Where its copies are.
    #[serde(default)]
    pub cluster: Copies,
    /// The server's present; absent before 2.10.
    #[serde(default)]
    pub ts: Option<Timestamp>,
}

/// Where the copies of a stream are.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Copies {
    /// The cluster; absent where the server is alone.
    pub name: Option<String>,
    /// Who decides; absent while one is elected.
    pub leader: Option<String>,
    /// The others.
    pub replicas: Vec<Copy>,
}

/// One copy of a stream, beside the leader's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Copy {
    /// The server.
    pub name: String,
    /// Whether it has everything.
    pub current: bool,
    /// Whether the server is away.
    pub offline: bool,
    /// Writes that it lacks.
    pub lag: u64,
}

/// What an upgrade of a stream would do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Make it.
    Create,
    /// Change these settings, and leave those though they differ; nothing at all where both are empty.
    Change(Vec<Difference>, Vec<Difference>),
}

/// A setting that is another one than is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Its name.
    pub setting: String,
    /// As it stands; null where it is absent.
    pub is: Value,
    /// As it is wanted.
    pub wanted: Value,
}

/// Bounds that drop messages when lowered; unlimited is 0 or -1.
const BOUNDS: [&str; 3] = ["max_age", "max_bytes", HISTORY];
/// A longer history than asked for is somebody's wish, but where it is the lock of a work queue.
const HISTORY: &str = "max_msgs_per_subject";
/// What the server never lets change.
const FIXED: [&str; 2] = ["retention", "storage"];

fn settings_of(spec: &StreamSpec) -> Map<String, Value> {
    match serde_json::to_value(spec).expect("a spec is a plain struct") {
        Value::Object(settings) => settings,
        _ => unreachable!("a struct serializes to an object"),
    }
}

/// Lays `wanted` over `existing`. Returns what changed and what was left though it differs.
fn overlay(existing: &mut Map<String, Value>, wanted: Map<String, Value>) -> (Vec<String>, Vec<String>) {
    let (mut changed, mut left) = (Vec::new(), Vec::new());
    let is_lock = wanted.get("retention").is_some_and(|retention| retention == "workqueue");
    for (name, value) in wanted {
        let old = existing.get(&name);
        if old == Some(&value) || (old.is_none() && matches!(value.as_i64(), Some(0 | -1))) {
            continue;
        }
        let unlimited = |bound: Option<i64>| bound.is_none_or(|bound| bound <= 0);
        let old_bound = old.and_then(Value::as_i64);
        let lowered = BOUNDS.contains(&name.as_str())
            && !(is_lock && name == HISTORY)
            && (unlimited(old_bound) || old_bound > value.as_i64())
            && !unlimited(value.as_i64());
        if lowered || FIXED.contains(&name.as_str()) {
            left.push(name);
        } else {
            existing.insert(name.clone(), value);
            changed.push(name);
        }
    }
    (changed, left)
}

fn metadata(config: &Map<String, Value>) -> BTreeMap<String, String> {
    config.get("metadata").and_then(|notes| serde_json::from_value(notes.clone()).ok()).unwrap_or_default()
}

impl JetStream {
    /// What a stream holds; `None` if there is none.
    pub async fn stream_state(&self, stream: &str) -> Result<Option<StreamState>, ApiError> {
        Ok(self.stream_info(stream).await?.map(|info| info.state))
    }

    /// When a stream was made; `None` if there is none.
    pub async fn stream_created(&self, stream: &str) -> Result<Option<Timestamp>, ApiError> {
        Ok(self.stream_info(stream).await?.map(|info| info.created))
    }

    /// A stream as its leader sees it; `None` if there is none.
    pub async fn stream_look(&self, stream: &str) -> Result<Option<StreamLook>, ApiError> {
        Ok(self.stream_info(stream).await?.map(|info| StreamLook {
            created: info.created,
            state: info.state,
            metadata: metadata(&info.config),
        }))
    }

    /// Changes what is noted on a stream: `change` gets all of it. Nothing is written where nothing changes. The server
    /// compares nothing: of two who change it at once, the later stays.
    pub async fn change_metadata(
        &self,
        stream: &str,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<(), ApiError> {
        let Some(StreamInfo { mut config, .. }) = self.stream_info(stream).await? else { return Ok(()) };
        let before = metadata(&config);
        let mut after = before.clone();
        change(&mut after);
        if after == before {
            return Ok(());
        }
        config.insert("metadata".into(), json!(after));
        self.api::<Value>(&format!("STREAM.UPDATE.{stream}"), &config).await.map(|_| ())
    }

    /// The subjects of a stream that match `filter`, from `offset` on; the server names 100,000 at a time. No message
    /// is read for it.
    pub async fn subjects(&self, stream: &str, filter: &str, offset: usize) -> Result<Subjects, ApiError> {
        let body = json!({ "subjects_filter": filter, "offset": offset });
        let info: SubjectsInfo = self.api(&format!("STREAM.INFO.{stream}"), &body).await?;
        Ok(Subjects { counts: info.state.subjects.into_iter().collect(), total: info.total })
    }

    /// Everything that the server says of a stream; `None` if there is none.
    pub async fn stream_info(&self, stream: &str) -> Result<Option<StreamInfo>, ApiError> {
        match self.api(&format!("STREAM.INFO.{stream}"), &json!({})).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.err_code() == Some(STREAM_NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What [`Ensure::Upgrade`] would do to a stream that stands like this. Asks and changes nothing.
    pub fn plan(spec: &StreamSpec, existing: Option<&StreamInfo>) -> Plan {
        let Some(existing) = existing else { return Plan::Create };
        let wanted = settings_of(spec);
        let (changed, left) = overlay(&mut existing.config.clone(), wanted.clone());
        let tell = |setting: String| {
            let is = existing.config.get(&setting).cloned().unwrap_or(Value::Null);
            Difference { is, wanted: wanted.get(&setting).cloned().unwrap_or(Value::Null), setting }
        };
        Plan::Change(changed.into_iter().map(tell).collect(), left.into_iter().map(tell).collect())
    }

    /// Makes one stream so. Idempotent, and safe beside others who do the same.
    pub async fn ensure_stream(&self, spec: &StreamSpec, how: Ensure) -> Result<Ensured, ApiError> {
        let name = &spec.name;
        let existing = match self.stream_info(name).await? {
            Some(info) => info,
            None => match self.api::<Value>(&format!("STREAM.CREATE.{name}"), spec).await {
                Ok(_) => return Ok(Ensured::Created),
                // Somebody else made it in between.
                Err(error) if error.err_code() == Some(STREAM_NAME_IN_USE) => {
                    self.stream_info(name).await?.ok_or(error)?
                }
                Err(error) => return Err(error),
            },
        };
        if how == Ensure::Create {
            return Ok(Ensured::Unchanged(Vec::new()));
        }
        let mut config = existing.config;
        let (changed, left) = overlay(&mut config, settings_of(spec));
        if changed.is_empty() {
            return Ok(Ensured::Unchanged(left));
        }
        self.api::<Value>(&format!("STREAM.UPDATE.{name}"), &config).await?;
        Ok(Ensured::Updated(changed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn an_upgrade_raises_bounds_and_never_lowers_them() {
        let mut config = map(json!({"max_age": 10, "max_bytes": -1, "num_replicas": 1, "retention": "limits", "x": 1}));
        let wanted = json!({"max_age": 20, "max_bytes": 5, "num_replicas": 3, "retention": "workqueue"});
        let (changed, left) = overlay(&mut config, map(wanted));
        assert_eq!(changed, ["max_age", "num_replicas"]);
        assert_eq!(left, ["max_bytes", "retention"]);
        assert_eq!(config["x"], 1, "what we do not manage stays");
        let (changed, left) = overlay(&mut config, map(json!({"max_age": 10})));
        assert_eq!((changed.len(), left.len()), (0, 1));
    }

    #[test]
    fn a_longer_history_is_left_but_for_the_lock_of_a_work_queue() {
        let history = |retention: &str, kept: i64| map(json!({"retention": retention, "max_msgs_per_subject": kept}));
        let (changed, left) = overlay(&mut history("limits", 50), history("limits", 1));
        assert_eq!((changed.len(), left), (0, vec!["max_msgs_per_subject".to_owned()]));
        let (changed, left) = overlay(&mut history("workqueue", -1), history("workqueue", 1));
        assert_eq!((changed, left.len()), (vec!["max_msgs_per_subject".to_owned()], 0));
    }

    #[test]
    fn an_absent_setting_is_its_default() {
        let (changed, left) = overlay(&mut Map::new(), map(json!({"max_age": 0, "max_msg_size": -1})));
        assert_eq!((changed.len(), left.len()), (0, 0));
    }
}
