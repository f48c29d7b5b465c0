//! Agent jobs from the outside: a real remote, a real worker, a scripted model behind real HTTP.

mod outside;
mod protocol;
mod run;
#[path = "../../../agents/tests/support/scripted.rs"]
mod scripted;

use schemas::transcript::{AgentReport, Entry, JobPhase};
use schemas::{State, TaskRecord};
use serde_json::{Value, json};

use self::scripted::Scripted;
use crate::support::repo::{RIGHT, Repo};
use crate::support::{Fleet, Program, WorkerBuilder};

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

    /// Runs one to its end.
    pub async fn run(&self, key: &str, more: Value) -> TaskRecord {
        self.fleet.run(key, &self.job(more)).await
    }

    /// What it told, in order.
    pub async fn told(&self, id: &str) -> Vec<Entry> {
        let stream = format!("{}_AGENTS", "SHOAL");
        let messages = self.fleet.messages(&stream, &format!("shoal.agents.{id}.out")).await;
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

/// The turns of a model that mends the fault at once.
pub fn mends() -> Value {
    json!([
        {"calls": [{"name": "write_file", "arguments": {"path": "add.sh", "content": RIGHT}}]},
        {"say": "It adds now."},
    ])
}

/// What the job's last attempt says of itself.
#[track_caller]
pub fn report(record: &TaskRecord) -> &AgentReport {
    let last = record.attempts.last().expect("an attempt");
    last.agent.as_deref().unwrap_or_else(|| panic!("no report in {record:#?}"))
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

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
