//! What agent jobs are measured on: a small repository, a model that answers at once, and the same work by git alone.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dispatcher::client::Client;
use schemas::transcript::{AgentReport, JobPhase};
use schemas::{QueueName, TaskKey};
use serde_json::json;
use tokio::process::Command;

use super::BenchError;
use super::fleet::Setting;
use super::model::{self, Model};
use super::report::Round;
use super::watch;

/// Files of the repository, of 2 KB each.
const FILES: usize = 1_000;
/// The tests of every job: what is measured is all but them and the model.
const TESTS: &str = "true";

/// A remote and a model.
pub struct Workshop {
    folder: tempfile::TempDir,
    /// The model.
    pub model: Model,
}

/// Where the time of one job went.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// From the slot until its branch stands.
    pub ready: Duration,
    /// All but the model and the tests: from the start of the attempt to its end, their phases left out.
    pub overhead: Duration,
}

impl Workshop {
    /// Makes both.
    pub async fn open() -> Result<Self, BenchError> {
        let failed = |error| BenchError::fleet("could not make a repository", error);
        let folder = tempfile::Builder::new().prefix("shoal-bench-git-").tempdir().map_err(failed)?;
        let work = folder.path().join("work");
        for number in 0..FILES {
            let path = work.join(format!("d{}/f{number}.txt", number % 40));
            std::fs::create_dir_all(path.parent().expect("it has one")).map_err(failed)?;
            let line = format!("{number:060}\n");
            std::fs::write(path, line.repeat(2048 / line.len())).map_err(failed)?;
        }
        let workshop = Self { model: Model::start().await?, folder };
        for args in [&["init", "-q", "-b", "main", "."][..], &["add", "-A"], &["commit", "-q", "-m", "begin"]] {
            git(&work, args).await?;
        }
        git(workshop.folder.path(), &["clone", "-q", "--bare", "work", "remote.git"]).await?;
        git(workshop.folder.path(), &["clone", "-q", "--bare", "remote.git", "mirror.git"]).await?;
        Ok(workshop)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a worker is told, so that it works here.
    pub fn settings(&self) -> Vec<Setting> {
        vec![
            ("SHOAL_ALLOWED_REPOSITORIES", format!("{}/**", self.folder.path().display())),
            ("SHOAL_MODEL", model::NAME.to_owned()),
            ("SHOAL_MODEL_ENDPOINT", self.model.endpoint.clone()),
            // Those of whoever measures are for others.
            ("OPENAI_API_KEY", String::new()),
            ("GIT_TOKEN", String::new()),
        ]
    }

    /// A job's task.
    pub fn task(&self) -> Bytes {
        let playbook = json!({"name": "bench", "steps": [{"name": "test", "kind": "test", "command": TESTS}]});
        let remote = self.path("remote.git").display().to_string();
        let workload = json!({"kind": "agent", "repository": remote, "title": "Change a file",
            "playbook": {"kind": "inline", "playbook": playbook}});
        json!({ "workload": workload }).to_string().into()
    }

    /// The same by git alone, one after the other: fetch into a mirror, a new tree on a branch, the change, `true` as the
    /// tests, commit, push, and the tree is gone.
    pub async fn by_git(&self, jobs: usize, name: &str) -> Result<Round, BenchError> {
        let (mirror, tree) = (self.path("mirror.git"), self.path("tree"));
        let place = tree.display().to_string();
        let began = Instant::now();
        let mut latencies = Vec::with_capacity(jobs);
        for job in 0..jobs {
            let (began, branch) = (Instant::now(), format!("git/{name}-{job}"));
            git(&mirror, &["fetch", "-q", "origin", "main"]).await?;
            git(&mirror, &["worktree", "add", "-q", "-b", &branch, &place, "FETCH_HEAD"]).await?;
            let written = tokio::fs::write(tree.join(model::FILE), format!("{branch}\n")).await;
            written.map_err(|error| BenchError::fleet("could not write the change", error))?;
            run("sh", &tree, &["-c", TESTS]).await?;
            git(&tree, &["add", "-A"]).await?;
            git(&tree, &["commit", "-q", "-m", "a change"]).await?;
            git(&tree, &["push", "-q", "origin", &branch]).await?;
            git(&mirror, &["worktree", "remove", "--force", &place]).await?;
            latencies.push(began.elapsed());
        }
        Ok(Round::timed(began.elapsed(), latencies))
    }
}

/// Where the time went of each job of a round.
pub async fn parts(client: &Client, queue: &QueueName, name: &str, jobs: usize) -> Result<Vec<Parts>, BenchError> {
    let mut parts = Vec::with_capacity(jobs);
    for job in 0..jobs {
        let key: TaskKey = format!("{queue}.{}", watch::id(name, job)).parse().expect("a queue's name and our id");
        let view = client.get(&key).await.map_err(|error| BenchError::fleet("could not read a record", error))?;
        let attempt = view.record.as_ref().and_then(|recorded| recorded.record.attempts.last());
        let read = attempt.and_then(|attempt| {
            let whole = attempt.phases.ended?.since(attempt.phases.pulled?);
            Some(Parts::of(&attempt.agent.as_ref()?.read()?, whole))
        });
        parts.push(read.ok_or_else(|| BenchError::broken(format!("the record of {key} does not tell its phases")))?);
    }
    Ok(parts)
}

impl Parts {
    fn of(report: &AgentReport, whole: Duration) -> Self {
        let took = |wanted: &[JobPhase]| {
            let phases = report.phases.iter().filter(|phase| wanted.contains(&phase.phase));
            phases.filter_map(|phase| Some(phase.ended?.since(phase.began))).sum::<Duration>()
        };
        Self {
            ready: took(&[JobPhase::Slot, JobPhase::Fetch, JobPhase::Rebase, JobPhase::Branch]),
            overhead: whole.saturating_sub(took(&[JobPhase::Implement, JobPhase::Test])),
        }
    }
}

async fn git(folder: &Path, args: &[&str]) -> Result<(), BenchError> {
    run("git", folder, args).await
}

async fn run(program: &str, folder: &Path, args: &[&str]) -> Result<(), BenchError> {
    let failed = |why: String| BenchError::broken(format!("{program} {}: {why}", args.join(" ")));
    let mut command = Command::new(program);
    command.args(args).current_dir(folder).stdin(Stdio::null());
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "bench").env(format!("GIT_{who}_EMAIL"), "bench@localhost");
    }
    let output = command.output().await.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_tests_are_no_overhead() {
        let phase = |phase: &str, began: u32, ended: u32| {
            let at = |second: u32| format!("2026-11-22T01:00:{second:02}Z");
            json!({"phase": phase, "began": at(began), "ended": at(ended)})
        };
        let phases = json!([
            phase("slot", 0, 1),
            phase("fetch", 1, 3),
            phase("rebase", 3, 4),
            phase("branch", 4, 5),
            phase("implement", 5, 15),
            phase("test", 15, 25),
            phase("push", 25, 27),
        ]);
        let report: AgentReport = serde_json::from_value(json!({ "phases": phases })).unwrap();
        let parts = Parts::of(&report, Duration::from_secs(28));
        assert_eq!((parts.ready, parts.overhead), (Duration::from_secs(5), Duration::from_secs(8)));
    }
}
