//! One runtime of a worker of its own, and what is left of it on its engine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::ListContainersOptionsBuilder;
use schemas::task::{Container, Process};
use schemas::{AgentId, Limit, QueueName, StartId, TaskId, TaskKey, Workload};
use shoal_worker::GuardCommand;
use shoal_worker::logs::Notes;
use shoal_worker::policy::ContainerSettings;
use shoal_worker::runtime::docker::{DockerConfig, DockerRuntime};
use shoal_worker::runtime::process::{ProcessConfig, ProcessRuntime};
use shoal_worker::runtime::{Bounds, Exit, Job, Runtime, Started};
use tokio::io::AsyncReadExt;

#[path = "../support/engine.rs"]
mod engine;
pub use engine::IMAGE;

/// No test waits longer; in time means in far less.
pub const TOO_LONG: Duration = Duration::from_secs(60);

/// Behind the runtime.
enum Behind {
    Nothing,
    Docker(Docker),
    #[cfg(feature = "containerd")]
    Containerd(crate::traces::Traces),
}

pub struct World {
    pub runtime: Arc<dyn Runtime>,
    pub worker: AgentId,
    pub folder: tempfile::TempDir,
    behind: Behind,
    starts: Mutex<Vec<StartId>>,
}

/// Output and end of one workload.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub exit: Exit,
}

pub fn a_worker() -> AgentId {
    AgentId::new(format!("test-{:08x}", rand::random::<u32>())).unwrap()
}

impl World {
    fn new(runtime: Arc<dyn Runtime>, worker: AgentId, behind: Behind) -> Self {
        Self { runtime, worker, folder: tempfile::tempdir().unwrap(), behind, starts: Mutex::default() }
    }

    pub async fn process() -> Self {
        let worker = a_worker();
        let config = ProcessConfig { guard: GuardCommand::this_program(), ..ProcessConfig::new(worker.as_str()) };
        let runtime = within(ProcessRuntime::new(config)).await.unwrap();
        Self::new(Arc::new(runtime), worker, Behind::Nothing)
    }

    /// `None` where no engine answers.
    pub async fn docker() -> Option<Self> {
        let docker = engine::engine().await?;
        let worker = a_worker();
        let config = DockerConfig {
            settings: ContainerSettings::default(),
            fleet: "test".to_owned(),
            worker: worker.clone(),
            instance: "one".to_owned(),
            scratch: std::env::temp_dir().join(format!("shoal-test-pulls-{worker}")),
            guard: GuardCommand::this_program(),
        };
        let runtime = within(DockerRuntime::new(config)).await.unwrap();
        Some(Self::new(Arc::new(runtime), worker, Behind::Docker(docker)))
    }

    /// `None` where none answers.
    #[cfg(feature = "containerd")]
    pub async fn containerd() -> Option<Self> {
        let traces = crate::traces::Traces::find().await?;
        let worker = a_worker();
        let config = traces.config(&worker, "one");
        let runtime = within(shoal_worker::runtime::containerd::ContainerdRuntime::new(config)).await.unwrap();
        Some(Self::new(Arc::new(runtime), worker, Behind::Containerd(traces)))
    }

    /// It claims this.
    pub fn can(&self, word: &str) -> bool {
        self.runtime.capabilities().capabilities.iter().any(|one| one == word)
    }

    pub fn runs_containers(&self) -> bool {
        !matches!(self.behind, Behind::Nothing)
    }

    pub fn job(&self, workload: Workload) -> Job {
        let start = StartId::new(format!("s{:08x}", rand::random::<u32>())).unwrap();
        self.starts.lock().unwrap().push(start.clone());
        let folder = self.folder.path().join(start.as_str());
        std::fs::create_dir(&folder).unwrap();
        let unlimited = Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited };
        let limits = if self.runs_containers() { ContainerSettings::default().limits } else { unlimited };
        let result_file = self.folder.path().join(format!("{start}.result"));
        let mut surroundings = self.runtime.surroundings(&folder, &result_file);
        surroundings.env.insert("RESULT".to_owned(), surroundings.result_file);
        Job {
            result_file,
            start,
            key: TaskKey::new(QueueName::new("queue").unwrap(), TaskId::new("Task_1").unwrap()),
            attempt: 1,
            env: surroundings.env,
            workload,
            folder,
            artifacts: Vec::new(),
            notes: Notes::nowhere(),
            limits,
            alive_until: None,
            binds: Vec::new(),
        }
    }

    /// A command with its input, as this runtime runs it.
    pub fn command(&self, command: &[&str], stdin: Option<String>) -> Job {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        if !self.runs_containers() {
            return self.job(Workload::Process(Process { command, env: Default::default(), stdin }));
        }
        self.job(Workload::Container(Container { command, stdin, ..Container::new(IMAGE) }))
    }

    pub fn shell(&self, script: &str) -> Job {
        self.command(&["sh", "-c", script], None)
    }

    /// Starts `job` and reads its output to the end.
    pub async fn run(&self, job: Job) -> Output {
        let start = job.start.clone();
        let started = within(self.runtime.start(job)).await.unwrap();
        self.finish(&start, started).await
    }

    /// Starts it and reads until it says `ready`.
    pub async fn ready(&self, job: Job) -> (StartId, Started) {
        let start = job.start.clone();
        let mut started = within(self.runtime.start(job)).await.unwrap();
        read_until(&mut started.stdout, "ready\n").await;
        (start, started)
    }

    pub async fn finish(&self, start: &StartId, mut started: Started) -> Output {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let read = async {
            let (a, b) = tokio::join!(started.stdout.read_to_end(&mut stdout), started.stderr.read_to_end(&mut stderr));
            assert!(a.is_ok() && b.is_ok());
            self.runtime.wait(start).await.unwrap()
        };
        let exit = within(read).await;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Output { stdout: text(stdout), stderr: text(stderr), exit }
    }

    /// What is left of everything that was started here, wherever it could lie.
    pub async fn left(&self) -> Vec<String> {
        match &self.behind {
            Behind::Nothing => Vec::new(),
            Behind::Docker(docker) => {
                let filters = HashMap::from([("label".to_owned(), vec![format!("shoal.worker={}", self.worker)])]);
                let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
                let found = docker.list_containers(Some(options)).await.unwrap();
                found.into_iter().map(|container| format!("{:?}", container.names)).collect()
            }
            #[cfg(feature = "containerd")]
            Behind::Containerd(traces) => {
                let starts = self.starts.lock().unwrap().clone();
                traces.of(&starts).await
            }
        }
    }

    /// Closes the runtime, behind which nothing may be left.
    pub async fn close(self) {
        within(self.runtime.close()).await;
        assert_eq!(self.left().await, Vec::<String>::new());
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TOO_LONG, future).await.expect("it takes too long")
}

/// Waits until `look` finds something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F) -> T {
    within(async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Reads until `word` has come.
pub async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), word: &str) -> String {
    let mut text = Vec::new();
    within(async {
        while !String::from_utf8_lossy(&text).contains(word) {
            assert!(stream.read_buf(&mut text).await.unwrap() > 0, "it ended without `{word}`");
        }
    })
    .await;
    String::from_utf8(text).unwrap()
}
