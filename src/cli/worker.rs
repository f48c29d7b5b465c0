//! `shoal worker`: one worker, for deployment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use schemas::stores::StoreSettings;
use schemas::{AgentId, Bytes, Cpu, HumanDuration, Limit};
use worker::RuntimeName;
use worker::runtime::Bounds;

use super::agent_jobs::AgentJobs;
use super::containers::Containers;
use super::stores::Stores;
use super::{Error, global, pair};
use crate::exit::{self, Exit};
use crate::{output, resident, stop};

/// Flags of `shoal worker`.
#[derive(Clone, Debug, Args)]
pub struct Worker {
    /// Its id, the same over restarts [default: one kept in the state folder that no other worker here holds]
    #[arg(long, alias = "worker-id", env = "SHOAL_WORKER_ID", value_name = "ID")]
    pub id: Option<AgentId>,
    /// What it may run, of call, process, docker, containerd, containers (every engine found), agent (where git is found) [default: call,containers,agent]
    #[arg(long, env = "SHOAL_RUNTIMES", value_delimiter = ',', value_parser = runtime, value_name = "NAME,…")]
    pub runtimes: Option<Vec<RuntimeName>>,
    /// Folder for its id and work folders [default: ~/.local/state/shoal]
    #[arg(long, env = "SHOAL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How it works.
    #[command(flatten)]
    pub manner: Manner,
    /// How the fleet judges it.
    #[command(flatten)]
    pub beat: Beat,
    /// What missing stores are made like.
    #[command(flatten)]
    pub stores: Stores,
}

/// The heartbeat, which workers send and dispatchers judge by.
#[derive(Clone, Copy, Debug, Args)]
pub struct Beat {
    /// Time between two heartbeats; offline after three missed. The same for the whole fleet
    #[arg(long, env = "SHOAL_HEARTBEAT", default_value = "10s", value_name = "DURATION")]
    pub heartbeat: HumanDuration,
}

impl Beat {
    /// Checked.
    pub fn check(self) -> Result<(), Error> {
        if (HumanDuration::millis(100)..=HumanDuration::seconds(3600)).contains(&self.heartbeat) {
            return Ok(());
        }
        let problem = format!("--heartbeat is {}; allowed is 100ms to 1h", self.heartbeat);
        Err(Error::usage(problem, "--heartbeat 10s"))
    }
}

/// How a worker works, whether alone or in `shoal up`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How workers work")]
pub struct Manner {
    /// Where it pulls from: `a,b` in strict order, `a:6,b:3` by weights
    #[arg(long, env = "SHOAL_QUEUES", default_value = "default", value_name = "QUEUES")]
    pub queues: ::worker::Queues,
    /// Attempts at once
    #[arg(long, env = "SHOAL_SLOTS", default_value_t = 16, value_parser = slots, value_name = "N")]
    pub slots: usize,
    /// Most instances of functions that it holds
    #[arg(long, env = "SHOAL_MAX_INSTANCES", default_value_t = 100, value_name = "N")]
    pub max_instances: usize,
    /// How long running attempts may take to end after SIGTERM. Keep below the pod's own grace period
    #[arg(long, env = "SHOAL_DRAIN_GRACE", default_value = "25s", value_name = "DURATION")]
    pub drain_grace: HumanDuration,
    /// An attempt that lasts longer is recorded as running
    #[arg(long, env = "SHOAL_CLAIM_AFTER", default_value = "100ms", value_name = "DURATION")]
    pub claim_after: HumanDuration,
    /// Workers lost with a task before it is given up
    #[arg(long, env = "SHOAL_LOST_LIMIT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub lost_limit: u32,
    /// Bytes of log kept of one attempt, or `unlimited`
    #[arg(long, env = "SHOAL_LOG_LIMIT", default_value = "64Mi", value_name = "SIZE")]
    pub log_limit: Limit<Bytes>,
    /// How long records of finished tasks stay
    #[arg(long, env = "SHOAL_RECORDS_KEPT", default_value = "7d", value_name = "DURATION")]
    pub records_kept: HumanDuration,
    /// Largest result taken
    #[arg(long, env = "SHOAL_RESULT_LIMIT", default_value = "64Mi", value_name = "SIZE")]
    pub result_limit: Bytes,
    /// CPU of one process task that asks for none
    #[arg(long, env = "SHOAL_PROCESS_CPU", default_value = "unlimited", value_name = "CPU")]
    pub process_cpu: Limit<Cpu>,
    /// Memory of one process task that asks for none
    #[arg(long, env = "SHOAL_PROCESS_MEMORY", default_value = "unlimited", value_name = "SIZE")]
    pub process_memory: Limit<Bytes>,
    /// Processes and threads of one process task that asks for none
    #[arg(long, env = "SHOAL_PROCESS_PIDS", default_value = "unlimited", value_name = "N")]
    pub process_pids: Limit<u64>,
    /// What it allows in containers.
    #[command(flatten)]
    pub containers: Containers,
    /// What it allows agent jobs.
    #[command(flatten)]
    pub agent_jobs: AgentJobs,
    /// Free words in the registry; may be repeated
    #[arg(long, env = "SHOAL_LABEL", value_delimiter = ',', value_parser = pair, value_name = "NAME=VALUE")]
    pub label: Vec<(String, String)>,
}

impl Manner {
    /// A worker's whole configuration, the rules between settings checked.
    pub fn config(
        &self,
        id: Option<AgentId>,
        runtimes: Option<Vec<RuntimeName>>,
        state_dir: PathBuf,
        beat: Beat,
        stores: StoreSettings,
        names: schemas::Names,
    ) -> Result<::worker::Config, Error> {
        beat.check()?;
        if self.claim_after >= stores.ack_wait {
            let problem =
                format!("--claim-after ({}) must be shorter than --ack-wait ({})", self.claim_after, stores.ack_wait);
            return Err(Error::usage(problem, "--claim-after 100ms"));
        }
        if self.records_kept < HumanDuration::seconds(1) {
            let problem = format!("--records-kept is {}; it must be at least 1s", self.records_kept);
            return Err(Error::usage(problem, "--records-kept 7d"));
        }
        for (flag, zero) in [
            ("--process-memory", self.process_memory == Limit::At(Bytes(0))),
            ("--process-pids", self.process_pids == Limit::At(0)),
        ] {
            if zero {
                return Err(Error::usage(
                    format!("{flag} is 0; no bound is the word `unlimited`"),
                    format!("{flag} unlimited"),
                ));
            }
        }
        Ok(::worker::Config {
            id,
            names,
            stores,
            queues: self.queues.clone(),
            slots: self.slots,
            runtimes,
            state_dir,
            drain_grace: self.drain_grace.0,
            heartbeat: beat.heartbeat.0,
            claim_after: self.claim_after.0,
            lost_limit: self.lost_limit,
            log_limit: self.log_limit,
            records_kept: self.records_kept,
            result_limit: self.result_limit,
            process_limits: Bounds { cpu: self.process_cpu, memory: self.process_memory, pids: self.process_pids },
            containers: self.containers.settings()?,
            agents: self.agent_jobs.settings()?,
            most_instances: self.max_instances,
            labels: self.label.iter().cloned().collect::<BTreeMap<_, _>>(),
            guard: ::worker::GuardCommand::this_program(),
        })
    }
}

impl std::ops::Deref for Worker {
    type Target = Manner;
    fn deref(&self) -> &Manner {
        &self.manner
    }
}

fn slots(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(slots @ 1..=100_000) => Ok(slots),
        _ => Err("allowed is 1 to 100000".into()),
    }
}

fn runtime(name: &str) -> Result<RuntimeName, String> {
    name.parse().map_err(|()| output::did_you_mean(name, &RuntimeName::WORDS))
}

/// The user's state folder for Shoal.
pub fn default_state_dir() -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_STATE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("shoal"))
        .ok_or_else(|| {
            Error::usage("there is no HOME to keep state in", "name a folder with --state-dir (worker) or --store (up)")
        })
}

/// Runs the worker.
pub async fn run(args: Worker, global: &global::Global) -> Result<Exit, Error> {
    let state_dir = args.state_dir.clone().map_or_else(default_state_dir, Ok)?;
    let names = schemas::Names::new(global.prefix.clone());
    let stores = args.stores.settings()?;
    let config = args.manner.config(args.id.clone(), args.runtimes.clone(), state_dir, args.beat, stores, names)?;
    let signals = listen()?;
    let name = args.id.as_ref().map_or("shoal worker".to_owned(), |id| format!("shoal worker {id}"));
    let connection = tokio::select! {
        connection = global.connect_role(&name) => connection?,
        () = signals.drain.cancelled() => return Ok(exit::DONE),
    };
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let stop = ::worker::Stop { drain: signals.drain, now: signals.now };
    let work = ::worker::run(config, connection, ::worker::Handlers::default(), stop, ready);
    let announce = async {
        // An error means that it ended before it was ready; why is what `work` says.
        if let Ok(id) = is_ready.await {
            output::line(format_args!("ready worker={id}"));
            resident::settle().await;
        }
        std::future::pending::<std::convert::Infallible>().await
    };
    let ended = tokio::select! {
        ended = work => ended,
        never = announce => match never {},
    };
    ended.map_err(failed)?;
    Ok(exit::DONE)
}

/// A worker that could not start, or not go on.
pub fn failed(error: ::worker::WorkerError) -> Error {
    use ::worker::WorkerError;
    use ::worker::agent::AgentsError;
    let hint = match &error {
        WorkerError::Identity(_) => "name a free one with --id, or another folder with --state-dir",
        WorkerError::Folders(_) => "remove them by hand, or name another folder with --state-dir",
        WorkerError::Stores { .. } => "make what is missing with `shoal admin apply`, then start it again",
        WorkerError::Process(_) => "leave `process` out of --runtimes, or start it where processes may be started",
        #[cfg(feature = "containerd")]
        WorkerError::Containerd(_) => {
            "leave `containerd` out of --runtimes, start it as root, or name its socket with --containerd-address"
        }
        WorkerError::WithoutContainerd => {
            "leave `containerd` out of --runtimes, or take a build with the feature `containerd`"
        }
        WorkerError::Docker(_) => "leave `docker` out of --runtimes, or name the engine with --docker-host",
        WorkerError::Agents(AgentsError::Outside(_)) => {
            "correct TASK_REGISTRY_URL, REPO_POOL_URL or ARTIFACT_STORE_URL, or leave it unset: it is a URL as https://host/path"
        }
        WorkerError::Agents(AgentsError::Folder { .. }) => "make it writable, or name another folder with --state-dir",
        WorkerError::Agents(AgentsError::Secret(_)) => "give the worker a longer secret, or leave that one out",
        WorkerError::Agents(AgentsError::Workspaces(_)) => {
            "leave `agent` out of --runtimes, or see that git is 2.38 or newer and that --state-dir can be written to"
        }
        WorkerError::Inbox(_) | WorkerError::Broken => "start it again, and look at the server's log",
    };
    let problem = match &error {
        WorkerError::Broken => "the worker cannot go on",
        _ => "the worker cannot start",
    };
    Error::failed(problem, hint, error)
}

/// The signals of a role.
pub fn listen() -> Result<stop::Signals, Error> {
    stop::listen().map_err(|error| Error::failed("cannot listen for signals", "start it again", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        worker: Worker,
    }

    fn config(args: &[&str]) -> Result<::worker::Config, String> {
        let line = ["probe"].into_iter().chain(args.iter().copied());
        let worker = Probe::try_parse_from(line).map_err(|error| error.to_string())?.worker;
        let stores = worker.stores.settings().map_err(|error| error.to_string())?;
        worker
            .manner
            .config(
                worker.id.clone(),
                worker.runtimes.clone(),
                "/tmp".into(),
                worker.beat,
                stores,
                schemas::Names::default(),
            )
            .map_err(|error| error.to_string())
    }

    #[test]
    fn rules_between_settings_name_both() {
        let error = config(&["--claim-after", "20s"]).unwrap_err();
        assert!(error.contains("--claim-after (20s)") && error.contains("--ack-wait (15s)"), "{error}");
    }

    #[test]
    fn wrong_values_are_refused() {
        for args in [
            ["--slots", "0"],
            ["--heartbeat", "1ms"],
            ["--lost-limit", "0"],
            ["--process-pids", "0"],
            ["--runtimes", "procces"],
            ["--records-kept", "1ms"],
            ["--queues", "A"],
        ] {
            assert!(config(&args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn a_misspelt_runtime_names_the_nearest() {
        assert!(runtime("procces").unwrap_err().contains("`process`"));
    }
}
