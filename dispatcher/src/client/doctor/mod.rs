//! What is wrong with a fleet. Nothing is written, no consumer is made, and of a large fleet only a part is read.
//!
//! | file | looks at |
//! | --- | --- |
//! | [`server`], [`monitor`] | version, JetStream, sizes, room, clock; what only the server's monitoring tells |
//! | [`permissions`] | what this user may do, against what each role needs |
//! | [`stores`] | streams and buckets against what `admin apply` would make; copies; losses |
//! | [`queues`], [`tasks`], [`roll_call`], [`agents`], [`host`] | the fleet at work, looked at twice |
//! | [`dead`] | dead letters of the last hour against those before |
//!
//! Whatever moves by itself is judged only by what two looks, some seconds apart, both say: a task that runs is in one
//! look in a worker's hands and in the next not even there. Reading is in `look` functions; the judging beside them is
//! pure.

mod agents;
mod dead;
mod fleet;
mod functions;
mod host;
mod monitor;
mod permissions;
mod queues;
mod roll_call;
mod server;
mod stores;
mod tasks;

use std::time::Duration;

use schemas::doctor::{DoctorReport, Finding, FindingCode, Severity};
use schemas::{HumanDuration, Timestamp};

pub use host::{HostLook, HostObject, HostSource, Read};
pub use permissions::Role;
pub use server::too_old;

use super::{Client, ClientError};

/// What is to be looked at.
#[derive(Clone, Debug)]
pub struct Examination {
    /// Roles that this user is meant for.
    pub roles: Vec<Role>,
    /// Between the two looks.
    pub wait: Duration,
    /// Between two beats of an agent.
    pub heartbeat: Duration,
    /// The server's HTTP monitoring, as `http://127.0.0.1:8222`.
    pub monitor: Option<String>,
    /// What only this machine can tell.
    pub host: Vec<HostSource>,
}

impl Default for Examination {
    fn default() -> Self {
        let (wait, heartbeat) = (Duration::from_secs(3), Duration::from_secs(10));
        Self { roles: Vec::new(), wait, heartbeat, monitor: None, host: Vec::new() }
    }
}

/// A whole group of checks takes no longer, the wait between two looks aside.
const LIMIT: Duration = Duration::from_secs(45);
/// Findings of one code that are told one by one.
const TOLD: usize = 10;

/// What a group of checks has to say.
#[derive(Debug, Default)]
struct Notes {
    findings: Vec<Finding>,
    looked_at: Vec<String>,
    not_seen: Vec<String>,
}

impl Notes {
    fn add(&mut self, other: Notes) {
        self.findings.extend(other.findings);
        self.looked_at.extend(other.looked_at);
        self.not_seen.extend(other.not_seen);
    }

    fn find(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    fn looked(&mut self, at: impl Into<String>) {
        self.looked_at.push(at.into());
    }
}

/// What could not be looked at, as a finding.
fn failed(what: &str, why: impl std::fmt::Display) -> Finding {
    Finding::new(Severity::Warning, FindingCode::CheckFailed, what)
        .says(format!("this could not be looked at: {why}"))
        .next("allow this user what doctor reads (docs/doctor.md), or look at the server: nats server check jetstream")
}

impl Client {
    /// Looks at the whole fleet. Never fails: what cannot be looked at is a finding itself.
    pub async fn examine(&self, examination: &Examination) -> DoctorReport {
        let user = permissions::read(self).await;
        let on = Doctor { client: self, examination, user };
        let mut notes = Notes::default();
        let permissions = permissions::check(&on);
        let (server, stores, dead, fleet, functions) = tokio::join!(
            guarded("the server", Duration::ZERO, server::check(&on)),
            guarded("streams and buckets", examination.wait, stores::check(&on)),
            guarded("dead letters", Duration::ZERO, dead::check(&on)),
            guarded("queues, agents and tasks", examination.wait, fleet::check(&on)),
            guarded("functions", examination.wait, functions::check(&on)),
        );
        for group in [server, permissions, stores, fleet, functions, dead] {
            notes.add(group);
        }
        DoctorReport {
            at: Timestamp::now(),
            server: self.connection.url.clone(),
            version: self.js.client().server_info().version,
            findings: sorted(notes.findings),
            looked_at: notes.looked_at,
            not_seen: notes.not_seen,
        }
    }
}

/// A fleet and what is to be looked at of it.
struct Doctor<'a> {
    client: &'a Client,
    examination: &'a Examination,
    /// What the server says of this user, or why that is not known.
    user: Result<permissions::User, ClientError>,
}

async fn guarded(what: &str, wait: Duration, check: impl Future<Output = Result<Notes, ClientError>>) -> Notes {
    let why = match tokio::time::timeout(LIMIT + wait, check).await {
        Ok(Ok(notes)) => return notes,
        Ok(Err(error)) => told(&error),
        Err(_) => format!("it took longer than {}s", (LIMIT + wait).as_secs()),
    };
    Notes { findings: vec![failed(what, why)], ..Notes::default() }
}

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// The worst first. Of a code with very many findings the rest is one.
fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| (a.severity, a.code, &a.about).cmp(&(b.severity, b.code, &b.about)));
    let mut kept: Vec<Finding> = Vec::new();
    let mut more = 0_usize;
    for finding in findings {
        let same = kept.iter().rev().take_while(|one| one.code == finding.code && one.severity == finding.severity);
        // What was not looked at is never one of many.
        if same.count() < TOLD || finding.code == FindingCode::CheckFailed {
            close(&mut kept, &mut more);
            kept.push(finding);
        } else {
            more += 1;
        }
    }
    close(&mut kept, &mut more);
    kept
}

fn close(kept: &mut [Finding], more: &mut usize) {
    if let Some(last) = kept.last_mut().filter(|_| *more > 0) {
        last.message.push_str(&format!(" (and {more} more like it)"));
        last.evidence.insert("more".into(), (*more).into());
    }
    *more = 0;
}

/// A length of time as people read it, cut to milliseconds below ten seconds and to seconds above.
fn time(length: Duration) -> HumanDuration {
    match length.as_secs() {
        0..10 => HumanDuration::millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)),
        seconds => HumanDuration::seconds(seconds),
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// `1 task`, `2 tasks`.
fn count(number: u64, of: &str) -> String {
    if number == 1 { format!("1 {of}") } else { format!("{number} {of}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_come_first_and_the_many_are_counted() {
        let of = |severity, code, about: String| Finding::new(severity, code, about).says("m");
        let mut findings = vec![of(Severity::Info, FindingCode::NoDispatcher, "fleet".into())];
        findings.extend((0..15).map(|n| of(Severity::Warning, FindingCode::AgentSilent, format!("agent w-{n:02}"))));
        findings.push(of(Severity::Error, FindingCode::QueueStuck, "queue q".into()));
        let sorted = sorted(findings);
        assert_eq!(sorted.len(), 12);
        assert_eq!(sorted[0].code, FindingCode::QueueStuck);
        assert_eq!(sorted[10].message, "m (and 5 more like it)");
        assert_eq!(sorted[11].code, FindingCode::NoDispatcher);
    }
}
