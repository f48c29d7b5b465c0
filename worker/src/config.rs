//! Settings of one worker, valid by type.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use schemas::stores::{RECORDS_KEPT, StoreSettings};
use schemas::{AgentId, Bytes, HumanDuration, InvalidId, Limit, Names, QueueName};

use crate::agent::settings::AgentSettings;
use crate::policy::ContainerSettings;
use crate::runtime::Bounds;
use crate::runtime::process::GuardCommand;

/// Everything a worker needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its id; `None` takes one kept in the state folder, the first that no other worker on this host holds.
    pub id: Option<AgentId>,
    /// Names on the server.
    pub names: Names,
    /// What missing stores are made like.
    pub stores: StoreSettings,
    /// Where it pulls from.
    pub queues: Queues,
    /// Attempts at once.
    pub slots: usize,
    /// What it runs; `None`: `call`, every container engine found, and agent jobs where git is.
    pub runtimes: Option<Vec<RuntimeName>>,
    /// Ids, work folders.
    pub state_dir: PathBuf,
    /// How long running attempts may take to end after SIGTERM. Keep below the pod's own grace period.
    pub drain_grace: Duration,
    /// Time between two heartbeats in the registry.
    pub heartbeat: Duration,
    /// An attempt that lasts longer is recorded as `running`.
    pub claim_after: Duration,
    /// Workers lost with a task before it is given up.
    pub lost_limit: u32,
    /// Bytes of log kept of one attempt, unless the task says otherwise.
    pub log_limit: Limit<Bytes>,
    /// How long terminal records stay.
    pub records_kept: HumanDuration,
    /// Largest result taken.
    pub result_limit: Bytes,
    /// Bounds of process workloads, where the task says nothing.
    pub process_limits: Bounds,
    /// How and what it runs in containers.
    pub containers: ContainerSettings,
    /// How and what it runs for agent jobs.
    pub agents: AgentSettings,
    /// Most instances of functions that it holds.
    pub most_instances: usize,
    /// Free words in the registry.
    pub labels: BTreeMap<String, String>,
    /// How to run this program as the guard of its processes.
    pub guard: GuardCommand,
}

impl Config {
    /// The defaults of the design, with state in `state_dir`.
    pub fn new(state_dir: PathBuf, guard: GuardCommand) -> Self {
        Self {
            id: None,
            names: Names::default(),
            stores: StoreSettings::default(),
            queues: Queues::default(),
            slots: 16,
            runtimes: None,
            state_dir,
            drain_grace: Duration::from_secs(25),
            heartbeat: Duration::from_secs(10),
            claim_after: Duration::from_millis(100),
            lost_limit: 5,
            log_limit: Limit::At(Bytes::mebi(64)),
            records_kept: RECORDS_KEPT,
            result_limit: Bytes::mebi(64),
            process_limits: Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited },
            containers: ContainerSettings::default(),
            agents: AgentSettings::default(),
            most_instances: 100,
            labels: BTreeMap::new(),
            guard,
        }
    }
}

/// What a worker may be told to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeName {
    /// Handlers of this program and NATS services.
    Call,
    /// Processes of this machine.
    Process,
    /// Containers of a Docker engine.
    Docker,
    /// Containers of containerd.
    Containerd,
    /// Every container engine that is found.
    Containers,
    /// Coding-agent jobs, in whichever of the others they ask for.
    Agent,
}

impl RuntimeName {
    /// Every word for one.
    pub const WORDS: [&str; 6] = ["call", "process", "docker", "containerd", "containers", "agent"];
}

impl FromStr for RuntimeName {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        match word {
            "call" => Ok(Self::Call),
            "process" => Ok(Self::Process),
            "docker" => Ok(Self::Docker),
            "containerd" => Ok(Self::Containerd),
            "containers" => Ok(Self::Containers),
            "agent" => Ok(Self::Agent),
            _ => Err(()),
        }
    }
}

/// The queues of a worker and how it chooses among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queues {
    names: Vec<QueueName>,
    /// Empty: strict order.
    weights: Vec<u32>,
}

impl Default for Queues {
    fn default() -> Self {
        "default".parse().expect("a literal of allowed characters")
    }
}

/// Why a text is no list of queues.
#[derive(Debug, thiserror::Error)]
pub enum InvalidQueues {
    /// A name is not allowed.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// A weight is not a number from 1 on.
    #[error("`{0}` is not a weight: write queues as `a,b` (strict order) or `a:6,b:3` (weights from 1 to 1000)")]
    Weight(String),
    /// Some have weights, some not.
    #[error("either every queue has a weight or none")]
    Mixed,
    /// One is named twice.
    #[error("the queue `{0}` is named twice")]
    Twice(QueueName),
}

impl FromStr for Queues {
    type Err = InvalidQueues;

    fn from_str(text: &str) -> Result<Self, InvalidQueues> {
        let (mut names, mut weights) = (Vec::new(), Vec::new());
        for part in text.split(',') {
            let (name, weight) = match part.trim().split_once(':') {
                Some((name, weight)) => (name, Some(weight)),
                None => (part.trim(), None),
            };
            let name = QueueName::new(name)?;
            if names.contains(&name) {
                return Err(InvalidQueues::Twice(name));
            }
            names.push(name);
            if let Some(weight) = weight {
                let valid = weight.parse().ok().filter(|weight| (1..=1000).contains(weight));
                weights.push(valid.ok_or_else(|| InvalidQueues::Weight(weight.to_owned()))?);
            }
        }
        if weights.is_empty() || weights.len() == names.len() {
            Ok(Self { names, weights })
        } else {
            Err(InvalidQueues::Mixed)
        }
    }
}

impl Queues {
    /// The names, in the order given.
    pub fn names(&self) -> &[QueueName] {
        &self.names
    }

    /// In which order to look for work now: as given, or drawn by weight. `dice` gives numbers below its argument.
    pub fn order(&self, mut dice: impl FnMut(u32) -> u32) -> Vec<usize> {
        let mut left: Vec<usize> = (0..self.names.len()).collect();
        if self.weights.is_empty() {
            return left;
        }
        let mut order = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let mut drawn = dice(left.iter().map(|queue| self.weights[*queue]).sum());
            let at = left.iter().position(|queue| {
                let hit = drawn < self.weights[*queue];
                drawn = drawn.saturating_sub(self.weights[*queue]);
                hit
            });
            order.push(left.remove(at.unwrap_or(0)));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_weights_the_order_is_strict() {
        let queues: Queues = "critical,default,low".parse().unwrap();
        assert_eq!(queues.order(|_| unreachable!()), [0, 1, 2]);
    }

    #[test]
    fn with_weights_each_is_first_in_its_share() {
        let queues: Queues = "critical:6,default:3,low:1".parse().unwrap();
        let mut firsts = [0; 3];
        for drawn in 0..10 {
            let mut first = Some(drawn);
            firsts[queues.order(|below| first.take().unwrap_or(0).min(below - 1))[0]] += 1;
        }
        assert_eq!(firsts, [6, 3, 1]);
    }

    #[test]
    fn a_wrong_list_is_refused() {
        for bad in ["", "a,,b", "a:0", "a:x", "a:1,b", "a,a", "A"] {
            assert!(bad.parse::<Queues>().is_err(), "{bad}");
        }
    }
}
