//! Agent jobs from the outside: a real remote, a real worker, a scripted model behind real HTTP.

mod cancel;
mod containers;
mod examples;
mod explained;
#[path = "../../../agents/tests/support/host.rs"]
mod host;
mod hostile;
mod left_out;
mod many;
mod outside;
mod people;
mod playbooks;
mod programs;
mod protocol;
mod proxy;
#[cfg(feature = "fail-points")]
mod resume;
mod run;
#[path = "../../../agents/tests/support/scripted.rs"]
mod scripted;
mod secrets;
mod ssh;
mod tls;
mod trouble;

use schemas::transcript::{AgentReport, Entry, JobPhase, WrittenReport};
use schemas::{State, TaskRecord};
use serde_json::{Value, json};

use self::scripted::Scripted;
use crate::support::repo::{RIGHT, Repo};
use crate::support::{Fleet, Program, WorkerBuilder, eventually};

/// A fleet, a remote and a model.
pub struct World {
    pub fleet: Fleet,
    pub repo: Repo,
    pub model: Scripted,
}

impl World {
    /// One whose model answers with these turns.
    pub async fn of(turns: Value) -> Self {
        Self::with(Scripted::turns(turns)).await
    }

    /// One with this model.
    pub async fn with(model: Scripted) -> Self {
        let fleet = Fleet::start().await;
        let repo = Repo::new(fleet.folder(), "remote");
        Self { fleet, repo, model }
    }

    /// A worker of agent jobs, not yet started: processes, the model, the remotes of this folder.
    pub fn builder(&self, id: &str) -> WorkerBuilder<'_> {
        let allowed = format!("{}/**", self.fleet.folder().display());
        self.fleet
            .worker(id)
            .runtimes("call,process,agent")
            .slots(4)
            .env("SHOAL_ALLOWED_REPOSITORIES", &allowed)
            .env("SHOAL_MODEL", scripted::MODEL)
            .env("SHOAL_MODEL_ENDPOINT", &self.model.endpoint)
            .env("OPENAI_API_KEY", scripted::KEY)
    }

    /// The same, started.
    pub async fn worker(&self, id: &str) -> Program {
        self.builder(id).start().await
    }

    /// A task on the remote; `more` goes over the job's fields.
    pub fn job(&self, more: Value) -> Value {
        let mut workload = json!({"kind": "agent", "repository": self.repo.url(), "title": "Add, do not subtract"});
        merge(&mut workload, more);
        json!({ "workload": workload })
    }

    /// Runs one to its end; its id is free again then.
    pub async fn run(&self, key: &str, more: Value) -> TaskRecord {
        let record = self.fleet.run(key, &self.job(more)).await;
        self.fleet.message_gone(key).await;
        record
    }

    /// What it told, in order.
    pub async fn told(&self, id: &str) -> Vec<Entry> {
        let stream = "SHOAL_AGENTS";
        let messages = self.fleet.messages(stream, &format!("shoal.agents.{id}.out")).await;
        messages.iter().map(|message| serde_json::from_slice(&message.payload).expect("an entry")).collect()
    }

    /// An artifact of the task.
    pub async fn artifact(&self, id: &str, path: &str) -> String {
        self.fleet.shoal(&["artifacts", "get", id, path, "--to", "-"]).await.ok().stdout
    }

    /// Nothing was said to the model that a strict endpoint would call wrong.
    #[track_caller]
    pub fn model_is_content(&self) {
        assert_eq!(self.model.violations(), Vec::<String>::new());
    }
}

/// Waits until something holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    eventually(what, async move || if holds().await { Ok(()) } else { Err("not yet".to_owned()) })
}

/// The turns of a model that mends the fault at once.
pub fn mends() -> Value {
    json!([
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ])
}

/// What the job's last attempt says of itself.
#[track_caller]
pub fn report(record: &TaskRecord) -> AgentReport {
    let last = record.attempts.last().expect("an attempt");
    last.agent.as_ref().and_then(WrittenReport::read).unwrap_or_else(|| panic!("no report in {record:#?}"))
}

/// The phases of a report.
pub fn phases(report: &AgentReport) -> Vec<JobPhase> {
    report.phases.iter().map(|phase| phase.phase).collect()
}

/// Fails unless the task succeeded.
#[track_caller]
pub fn succeeded(record: &TaskRecord) {
    assert_eq!(record.state, State::Succeeded, "{record:#?}");
}

/// Waits until nobody has a workspace any more.
async fn slots_are_free(world: &World) {
    crate::support::eventually("every workspace is given back", async || {
        let slots = world.fleet.messages("KV_shoal_slots", "$KV.shoal_slots.>").await;
        match slots.iter().filter(|it| !it.payload.is_empty()).map(|it| it.subject.to_string()).collect::<Vec<_>>() {
            held if held.is_empty() => Ok(()),
            held => Err(format!("{held:?}")),
        }
    })
    .await;
}

/// Everything below a folder that is no folder; links are not followed. What goes meanwhile is left out.
fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found
}

pub fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
