//! What this user may do, as the server itself tells, against what each role needs. Nothing is tried out.

use std::time::Duration;

use schemas::Names;
use schemas::doctor::{Finding, FindingCode, Severity};
use schemas::stores::StoreSettings;
use serde::Deserialize;

use super::{Doctor, Notes, failed, told};
use crate::client::{Client, ClientError};

/// Any user may ask this about itself.
const USER_INFO: &str = "$SYS.REQ.USER.INFO";
/// How long the server may take to tell.
const PATIENCE: Duration = Duration::from_secs(3);
/// Subjects that one finding names.
const NAMED: usize = 6;

/// What a user is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Publishes tasks and waits for their ends.
    Submitter,
    /// Runs tasks.
    Worker,
    /// Looks after the fleet.
    Dispatcher,
    /// Looks, as `shoal doctor` does.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Submitter, Self::Worker, Self::Dispatcher, Self::Viewer];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitter => "submitter",
            Self::Worker => "worker",
            Self::Dispatcher => "dispatcher",
            Self::Viewer => "viewer",
        }
    }

    /// What it publishes to, and what it listens on.
    fn needs(self, names: &Names) -> (Vec<String>, Vec<String>) {
        let prefix = names.prefix();
        let (tasks, records) = (names.tasks_stream(), names.records_stream());
        let kv = |bucket: String| format!("$KV.{bucket}.>");
        let read = |stream: &str| {
            [
                format!("$JS.API.STREAM.INFO.{stream}"),
                format!("$JS.API.STREAM.MSG.GET.{stream}"),
                format!("$JS.API.DIRECT.GET.{stream}"),
            ]
        };
        let agents = format!("KV_{}", names.agents_bucket());
        let queues = format!("KV_{}", names.queues_bucket());
        let (functions, instances, wishes) =
            (names.functions_stream(), names.instances_stream(), names.ensure_stream());
        let (talk, playbooks) = (names.talk_stream(), format!("KV_{}", names.playbooks_bucket()));
        let objects = [names.artifacts_bucket(), names.kept_bucket(14), names.kept_bucket(30)];
        let of_objects = objects.iter().map(|bucket| format!("$JS.API.DIRECT.GET.OBJ_{bucket}.>"));
        let of_functions = [read(&functions), read(&instances)].concat();
        // Whoever calls a function.
        let calls = [names.ensure_subjects(), format!("{prefix}.invoke.>"), format!("{prefix}.control.*.info")];
        // Who makes what is missing asks for every store first.
        let stores = names.streams(&StoreSettings::default(), 0).into_iter();
        let infos = stores.map(|spec| format!("$JS.API.STREAM.INFO.{}", spec.name)).collect::<Vec<_>>();
        let mut publish = Vec::new();
        let mut listen = vec!["_INBOX.>".to_owned()];
        match self {
            Self::Submitter => {
                publish.push(names.tasks_subjects());
                // Who also speaks with agent jobs needs `shoal.agents.*.in` and `.out`, and reads `SHOAL_AGENTS`.
                publish.extend([read(&tasks), read(&records)].concat());
                listen.push(format!("{prefix}.events.tasks.>"));
            }
            Self::Worker => {
                publish.extend(infos);
                publish.extend([read(&tasks), read(&records), read(&agents), read(&queues)].concat());
                publish.extend([
                    format!("$JS.API.CONSUMER.MSG.NEXT.{tasks}.*"),
                    format!("$JS.API.CONSUMER.INFO.{tasks}.*"),
                    format!("$JS.API.CONSUMER.CREATE.{tasks}.>"),
                    "$JS.ACK.>".to_owned(),
                    // Answers to whoever asks it.
                    "_INBOX.>".to_owned(),
                    kv(names.records_bucket()),
                    kv(names.agents_bucket()),
                    kv(names.slots_bucket()),
                    names.talk_out_subject("*"),
                    // Running jobs, in the agent protocol.
                    "agents.hb.>".to_owned(),
                    format!("{prefix}.events.>"),
                    format!("{prefix}.control.*.holds"),
                    names.logs_subjects(),
                    names.dead_subjects(),
                    kv(names.instances_bucket()),
                    format!("$JS.API.CONSUMER.MSG.NEXT.{wishes}.*"),
                    format!("$JS.API.CONSUMER.INFO.{wishes}.*"),
                    format!("$JS.API.CONSUMER.CREATE.{wishes}.>"),
                ]);
                publish.extend(of_functions);
                publish.extend(calls);
                publish.extend([read(&talk), read(&playbooks)].concat());
                publish.extend(of_objects);
                publish.extend(objects.iter().map(|bucket| format!("$O.{bucket}.>")));
                listen.extend([
                    names.talk_in_subject("*"),
                    "agents.>".to_owned(),
                    format!("{prefix}.events.functions.*"),
                    format!("{prefix}.events.instances.>"),
                    format!("{prefix}.invoke.>"),
                    format!("{prefix}.cancel.>"),
                    format!("{prefix}.control.>"),
                    format!("{prefix}.events.queues.*"),
                    "$SRV.>".to_owned(),
                ]);
            }
            Self::Dispatcher => {
                publish.extend(infos);
                publish.extend([read(&tasks), read(&records), read(&agents), read(&queues)].concat());
                publish.extend([
                    format!("$JS.API.STREAM.MSG.DELETE.{tasks}"),
                    // Notes of what a store lost, and consumers that hand out no more.
                    format!("$JS.API.STREAM.UPDATE.{tasks}"),
                    format!("$JS.API.CONSUMER.DELETE.{tasks}.*"),
                    format!("$JS.API.CONSUMER.CREATE.{tasks}.>"),
                    format!("$JS.API.CONSUMER.LIST.{tasks}"),
                    format!("$JS.API.CONSUMER.PAUSE.{tasks}.*"),
                    // Scans of headers.
                    format!("$JS.API.CONSUMER.CREATE.{records}"),
                    format!("$JS.API.CONSUMER.MSG.NEXT.{records}.*"),
                    format!("$JS.API.CONSUMER.DELETE.{records}.*"),
                    "_INBOX.>".to_owned(),
                    "agents.hb.>".to_owned(),
                    names.talk_in_subject("*"),
                    kv(names.records_bucket()),
                    kv(names.agents_bucket()),
                    kv(names.queues_bucket()),
                    names.tasks_subjects(),
                    names.dead_subjects(),
                    format!("{prefix}.events.>"),
                    format!("{prefix}.cancel.>"),
                    format!("{prefix}.control.>"),
                    kv(names.functions_bucket()),
                    kv(names.instances_bucket()),
                ]);
                publish.extend(of_functions);
                publish.extend(calls);
                publish.extend(read(&talk));
                publish.extend(of_objects);
                listen.extend([
                    names.talk_out_subject("*"),
                    "agents.>".to_owned(),
                    names.queues_events(),
                    format!("{prefix}.api.*"),
                    format!("{prefix}.events.tasks.>"),
                    format!("{prefix}.events.functions.*"),
                    format!("{prefix}.events.instances.>"),
                    "$SRV.>".to_owned(),
                ]);
            }
            Self::Viewer => {
                let dead = names.dead_stream();
                publish.extend(infos);
                publish.extend([read(&tasks), read(&records), read(&agents), read(&queues), read(&dead)].concat());
                publish.extend([
                    "$JS.API.INFO".to_owned(),
                    format!("$JS.API.CONSUMER.LIST.{tasks}"),
                    format!("$JS.API.CONSUMER.INFO.{tasks}.*"),
                    "$SRV.PING.>".to_owned(),
                    format!("{prefix}.control.*.info"),
                ]);
                publish.extend(of_functions);
            }
        }
        (publish, listen)
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == word)
            .ok_or_else(|| "allowed is submitter, worker, dispatcher, viewer".to_owned())
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    data: User,
}

/// What the server says of us.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct User {
    user: String,
    account: String,
    permissions: Option<Permissions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Permissions {
    publish: Subjects,
    subscribe: Subjects,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subjects {
    allow: Vec<String>,
    deny: Vec<String>,
}

/// Asks the server about ourselves.
pub(super) async fn read(client: &Client) -> Result<User, ClientError> {
    let reply = client.js.request_within(USER_INFO, Vec::new().into(), PATIENCE).await?;
    let answer: Answer = serde_json::from_slice(&reply.payload)
        .map_err(|source| ClientError::Unreadable { what: format!("the answer on `{USER_INFO}`"), source })?;
    Ok(answer.data)
}

impl Doctor<'_> {
    /// Whether we may publish to this subject; `None` if the server did not tell.
    pub(super) fn may_publish(&self, subject: &str) -> Option<bool> {
        let user = self.user.as_ref().ok()?;
        Some(user.permissions.as_ref().is_none_or(|permissions| permissions.publish.allows(subject)))
    }
}

pub(super) fn check(on: &Doctor<'_>) -> Notes {
    let mut notes = Notes::default();
    let user = match &on.user {
        Ok(user) => user,
        Err(error) => {
            let finding = failed("permissions", told(error));
            notes.find(finding.next(format!("allow this user to publish to `{USER_INFO}`")));
            return notes;
        }
    };
    notes.looked(format!("what user `{}` of account `{}` may do", user.user, user.account));
    if let Some(permissions) = &user.permissions {
        notes.findings = judge(&on.client.names, permissions, &on.examination.roles);
    }
    notes
}

fn judge(names: &Names, permissions: &Permissions, wanted: &[Role]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for role in Role::ALL {
        let (publish, listen) = role.needs(names);
        let lacks = |subjects: Vec<String>, may: &Subjects, what: &str| -> Vec<String> {
            let lacking = subjects.into_iter().filter(|subject| !may.allows(subject));
            lacking.map(|subject| format!("{what} {subject}")).collect()
        };
        let mut missing = lacks(publish, &permissions.publish, "publish");
        missing.extend(lacks(listen, &permissions.subscribe, "subscribe"));
        missing.sort();
        missing.dedup();
        if missing.is_empty() {
            continue;
        }
        let severity = match role {
            role if wanted.contains(&role) => Severity::Error,
            Role::Viewer => Severity::Warning,
            Role::Submitter | Role::Worker | Role::Dispatcher => Severity::Info,
        };
        let shown = missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = if missing.len() > NAMED { ", …" } else { "" };
        findings.push(
            Finding::new(severity, FindingCode::PermissionMissing, format!("role {}", role.as_str()))
                .says(format!("this user may not be a {}: it lacks {shown}{more}", role.as_str()))
                .seen("missing", missing)
                .next(format!(
                    "give it these permissions, or say what it is for: shoal doctor --role {}",
                    role.as_str()
                )),
        );
    }
    findings
}

impl Subjects {
    /// Whether everything that `subject` stands for is allowed.
    fn allows(&self, subject: &str) -> bool {
        let allowed = self.allow.is_empty() || self.allow.iter().any(|pattern| covers(subject_of(pattern), subject));
        allowed && !self.deny.iter().any(|pattern| meets(subject_of(pattern), subject))
    }
}

/// A permission may name a queue group behind the subject.
fn subject_of(pattern: &str) -> &str {
    pattern.split(' ').next().unwrap_or(pattern)
}

/// Whether `pattern` takes everything that `subject`, a pattern too, takes.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(_), Some(">")) | (Some(_), None) | (None, Some(_)) => return false,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

/// Whether some subject fits both patterns.
fn meets(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        match (a.next(), b.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(_), None) | (None, Some(_)) => return false,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(a), Some(b)) if a == b => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_is_narrower_and_meets_what_overlaps() {
        for (pattern, subject, covered, met) in [
            (">", "a.b", true, true),
            ("a.>", "a.b.*", true, true),
            ("a.*", "a.b", true, true),
            ("a.b", "a.*", false, true),
            ("a.*", "a.>", false, true),
            ("a.>", "a", false, false),
            ("b.>", "a.>", false, false),
            ("a.b.c", "a.*", false, false),
        ] {
            assert_eq!((covers(pattern, subject), meets(pattern, subject)), (covered, met), "{pattern} {subject}");
        }
    }

    #[test]
    fn a_named_role_that_lacks_something_is_an_error() {
        let allow =
            |subjects: &[&str]| Subjects { allow: subjects.iter().map(|s| s.to_string()).collect(), deny: vec![] };
        let names = Names::default();
        let may = Permissions {
            publish: allow(&["shoal.tasks.>", "$JS.API.>", "$SRV.>", "shoal.control.>"]),
            subscribe: allow(&[">"]),
        };
        let of = |wanted: &[Role]| -> Vec<(String, Severity)> {
            judge(&names, &may, wanted).into_iter().map(|finding| (finding.about, finding.severity)).collect()
        };
        let others = [("role worker".to_owned(), Severity::Info), ("role dispatcher".to_owned(), Severity::Info)];
        assert_eq!(of(&[Role::Submitter]), others);
        assert_eq!(of(&[Role::Worker])[0], ("role worker".to_owned(), Severity::Error));
        assert_eq!(judge(&names, &Permissions::default(), &Role::ALL), []);
    }

    #[test]
    fn what_is_denied_is_not_allowed_whatever_else_is() {
        let may = Subjects { allow: vec![], deny: vec!["$KV.shoal_tasks.secret.>".into()] };
        assert!(!may.allows("$KV.shoal_tasks.>"));
        assert!(may.allows("$KV.shoal_agents.>"));
    }
}
