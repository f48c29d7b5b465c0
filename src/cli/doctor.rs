//! `shoal doctor`: looks at the whole fleet and says what is wrong, the worst first.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use dispatcher::client::doctor::{self, Examination, HostLook, HostObject, HostSource, Role};
use jetstream::ConnectError;
use schemas::doctor::{DoctorReport, Finding, Severity};
use schemas::{HumanDuration, Prefix, Timestamp};
use worker::census::{self, Census, Made};

use super::stores::Stores;
use super::{Error, Server};
use crate::exit::{self, Exit};
use crate::output::{self, Format, printable};

/// Flags of `shoal doctor`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Writes nothing. What moves is looked at twice and told only if it is wrong both times. Of a large fleet a \
    part is read, and what was read is said. Exit codes: 0 nothing is wrong, or only infos; 1 an error or a warning; 3 \
    cannot reach NATS. docs/doctor.md has every code."
)]
pub struct Doctor {
    /// Roles that this user is meant for: submitter, worker, dispatcher, viewer; one that lacks a permission is an error
    #[arg(long, env = "SHOAL_DOCTOR_ROLE", value_delimiter = ',', value_name = "ROLE,…", value_parser = role)]
    pub role: Vec<Role>,
    /// The server's HTTP monitoring, as http://127.0.0.1:8222: what no client can see
    #[arg(long, env = "SHOAL_DOCTOR_MONITOR", value_name = "URL")]
    pub monitor: Option<String>,
    /// Time between the two looks
    #[arg(long, env = "SHOAL_DOCTOR_WAIT", default_value = "3s", value_name = "DURATION")]
    pub wait: HumanDuration,
    /// Time between two heartbeats of a worker
    #[arg(long, env = "SHOAL_HEARTBEAT", default_value = "10s", value_name = "DURATION")]
    pub heartbeat: HumanDuration,
    /// The Docker engine of this machine, to find containers that nobody owns
    #[arg(long, env = "SHOAL_DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
    /// State folder of this machine's workers, or the store of `shoal up`, to find work folders that nobody uses
    #[arg(long, env = "SHOAL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What the stores should be like, as `shoal admin apply` was told.
    #[command(flatten)]
    pub stores: Stores,
}

fn role(word: &str) -> Result<Role, String> {
    word.parse()
}

/// Shortest time between two looks that proves anything.
const SHORTEST: Duration = Duration::from_secs(1);
/// Longest.
const LONGEST: Duration = Duration::from_secs(600);

impl Doctor {
    fn examination(&self, prefix: &Prefix) -> Result<Examination, Error> {
        if !(SHORTEST..=LONGEST).contains(&self.wait.0) {
            return Err(Error::usage(format!("--wait is {}; allowed is 1s to 10m", self.wait), "--wait 3s"));
        }
        if self.heartbeat.0.is_zero() {
            return Err(Error::usage("--heartbeat is 0; it must be more", "--heartbeat 10s"));
        }
        if let Some(url) = self.monitor.as_ref().filter(|url| !url.starts_with("http://")) {
            return Err(Error::usage(
                format!("--monitor is `{url}`; allowed is http://HOST:PORT"),
                "--monitor http://127.0.0.1:8222",
            ));
        }
        let engine = self.docker_host.as_ref().map(|host| engine(host.clone(), prefix.clone()));
        let folders = self.state_dir.as_ref().map(|folder| folders(folder.clone()));
        Ok(Examination {
            roles: self.role.clone(),
            wait: self.wait.0,
            heartbeat: self.heartbeat.0,
            monitor: self.monitor.clone(),
            host: engine.into_iter().chain(folders).collect(),
        })
    }
}

fn engine(host: String, prefix: Prefix) -> HostSource {
    let name = format!("the engine {host}");
    let read: doctor::Read = Arc::new(move |created| {
        let (host, fleet) = (host.clone(), census::fleet_of(&prefix, created));
        Box::pin(async move { Ok(seen(census::engine(Some(host), &fleet).await?)) })
    });
    HostSource { name, read }
}

fn folders(folder: PathBuf) -> HostSource {
    let name = format!("work folders below {}", folder.display());
    let read: doctor::Read = Arc::new(move |_| {
        let folder = folder.clone();
        Box::pin(
            async move { census::folders(&folder).map(seen).map_err(|error| format!("{}: {error}", folder.display())) },
        )
    });
    HostSource { name, read }
}

fn seen(census: Census) -> HostLook {
    let object = |made: Made| {
        let Made { kind, name, worker, instance, task, start, age } = made;
        let remove = match kind {
            "container" => format!("docker rm -f {name}"),
            "work folder" => format!("rm -rf {name}"),
            kind => format!("docker {kind} rm {name}"),
        };
        HostObject { kind, name, worker, instance, task, start, age, remove }
    };
    HostLook { objects: census.made.into_iter().map(object).collect(), others: census.others }
}

/// Looks, and tells.
pub async fn run(args: Doctor, on: &Server<'_>) -> Result<Exit, Error> {
    let examination = args.examination(on.names().prefix())?;
    let stores = args.stores.settings()?;
    let report = match on.connect().await {
        Ok(client) => client.with_stores(stores).examine(&examination).await,
        Err(Error::Connect(ConnectError::TooOld { url, found, needed })) => DoctorReport {
            at: Timestamp::now(),
            findings: vec![doctor::too_old(&found, &needed)],
            server: url,
            version: found,
            looked_at: vec!["the server's greeting".into()],
            not_seen: vec!["all else: nothing is asked of so old a server".into()],
        },
        Err(error) => return Err(error),
    };
    match on.output() {
        Format::Json => output::json(&report),
        Format::Table => output::data(text(&report).as_bytes()),
    }
    Ok(exit_of(&report))
}

/// Infos are nobody's trouble.
fn exit_of(report: &DoctorReport) -> Exit {
    match report.worst() {
        Some(Severity::Error | Severity::Warning) => exit::FAILED,
        Some(Severity::Info) | None => exit::DONE,
    }
}

fn text(report: &DoctorReport) -> String {
    let mut text = String::new();
    for Finding { severity, code, about, message, next, .. } in &report.findings {
        let line = format!("{severity:<8} {code}  {about}: {message}");
        text.push_str(&format!("{}\n  try: {}\n", printable(&line), printable(next)));
    }
    let looked = report.looked_at.join("; ");
    if exit_of(report) == exit::DONE {
        text.push_str(&printable(&format!("no trouble found; looked at: {looked}")));
    } else {
        text.push_str(&printable(&format!("looked at: {looked}")));
    }
    text.push('\n');
    for unseen in &report.not_seen {
        text.push_str(&printable(&format!("not seen: {unseen}")));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::doctor::FindingCode;

    fn report(severities: &[Severity]) -> DoctorReport {
        let finding =
            |severity: &Severity| Finding::new(*severity, FindingCode::NoDispatcher, "fleet\u{1b}").says("m").next("n");
        DoctorReport {
            at: Timestamp::from_millis(0),
            server: "s".into(),
            version: "2.15.1".into(),
            findings: severities.iter().map(finding).collect(),
            looked_at: vec!["1 agent".into(), "2 queues".into()],
            not_seen: vec!["the disk".into()],
        }
    }

    #[test]
    fn only_errors_and_warnings_are_exit_code_1() {
        for (severities, code) in [
            (&[][..], exit::DONE),
            (&[Severity::Info][..], exit::DONE),
            (&[Severity::Warning][..], exit::FAILED),
            (&[Severity::Error, Severity::Info][..], exit::FAILED),
        ] {
            assert_eq!(exit_of(&report(severities)), code, "{severities:?}");
        }
    }

    #[test]
    fn nothing_wrong_is_one_line_that_says_what_was_looked_at() {
        let expected = "no trouble found; looked at: 1 agent; 2 queues\nnot seen: the disk\n";
        assert_eq!(text(&report(&[])), expected);
        let wrong = text(&report(&[Severity::Warning]));
        assert!(wrong.starts_with("warning  no_dispatcher  fleet\u{fffd}: m\n  try: n\nlooked at: "), "{wrong}");
    }
}
