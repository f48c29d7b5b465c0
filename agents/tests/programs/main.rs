//! Agent programs as implementers: real processes, by a command template and over the Agent Client Protocol.

#[path = "../support/mod.rs"]
mod support;

mod acp;
mod command;

use std::path::Path;
use std::time::{Duration, Instant};

use schemas::HumanDuration;
use schemas::transcript::Event;
use shoal_agents::secret::{Mask, Secret};
use shoal_agents::{Allowance, Finish, ImplementError, Implementer, Room};
use support::people::People;
use support::shell::LocalShell;

/// A workspace with everything around it.
struct Place {
    tree: tempfile::TempDir,
    shell: LocalShell,
    people: People,
    mask: Mask,
    allowance: Allowance,
}

impl Place {
    fn new() -> Self {
        let tree = tempfile::tempdir().unwrap();
        let secret = Secret::new("hunter2-hunter2".into());
        Self {
            shell: LocalShell::new(tree.path()),
            tree,
            people: People::default(),
            mask: Mask::new([("PASSWORD", &secret)]).unwrap(),
            allowance: Allowance { turns: 10, tokens: None, cost_micros: None, until: None, is_deadline: false },
        }
    }

    fn until(mut self, after: Duration) -> Self {
        self.allowance.until = Some((Instant::now() + after, HumanDuration(after)));
        self
    }

    fn path(&self) -> &Path {
        self.tree.path()
    }

    async fn work(&self, implementer: &mut dyn Implementer, told: &str) -> Result<Finish, ImplementError> {
        let room = Room {
            tree: self.path(),
            shell: &self.shell,
            line: &self.people,
            mask: &self.mask,
            keeper: &self.people,
            allowance: self.allowance,
        };
        implementer.work(&room, told).await
    }

    fn texts(&self) -> Vec<String> {
        let text = |event| if let Event::Text { text } = event { Some(text) } else { None };
        self.people.told().into_iter().filter_map(text).collect()
    }
}

/// Whether a process runs; a dead one that nobody has waited for does not.
fn runs(pid: u64) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

async fn until(holds: impl Fn() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waits).await.expect("it comes");
}
