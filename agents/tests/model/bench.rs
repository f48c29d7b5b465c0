//! A workspace with a scripted model in it.

use std::sync::Arc;
use std::time::Duration;

use schemas::HumanDuration;
use schemas::transcript::Event;
use serde_json::Value;
use shoal_agents::model::{Client, Limits, ModelImplementer, Settings};
use shoal_agents::retry::Retry;
use shoal_agents::secret::{Mask, Secret};
use shoal_agents::{Allowance, Finish, ImplementError, Implementer, Progress, Room};

use crate::support::people::People;
use crate::support::scripted::{KEY, MODEL, Scripted};
use crate::support::shell::LocalShell;

pub struct Bench {
    pub server: Scripted,
    pub tree: tempfile::TempDir,
    pub shell: LocalShell,
    pub people: People,
    pub mask: Mask,
    pub settings: Settings,
    pub limits: Limits,
    pub allowance: Allowance,
}

impl Bench {
    /// One conversation of these turns.
    pub fn new(turns: Value) -> Self {
        Self::of(Scripted::turns(turns))
    }

    pub fn of(server: Scripted) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tree = tempfile::tempdir().unwrap();
        Self {
            settings: Settings::new(&server.endpoint, Some(Arc::new(Secret::new(KEY.to_owned()))), MODEL),
            shell: LocalShell::new(tree.path()),
            limits: Limits {
                retry: Retry { first: Duration::from_millis(5), ..Retry::default() },
                ..Limits::default()
            },
            allowance: Allowance { turns: 50, tokens: None, cost_micros: None, until: None, is_deadline: false },
            people: People::default(),
            mask: Mask::default(),
            server,
            tree,
        }
    }

    pub fn file(&self, name: &str, text: &str) {
        std::fs::write(self.tree.path().join(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.tree.path().join(name)).unwrap()
    }

    pub fn room(&self) -> Room<'_> {
        Room {
            tree: self.tree.path(),
            shell: &self.shell,
            line: &self.people,
            mask: &self.mask,
            keeper: &self.people,
            allowance: self.allowance,
        }
    }

    pub fn implementer(&self, resume: Option<Progress>) -> ModelImplementer {
        ModelImplementer::new(Client::new(self.settings.clone()).unwrap(), self.limits, resume)
    }

    /// Works on a task to its end.
    pub async fn work(&self) -> Result<Finish, ImplementError> {
        self.implementer(None).work(&self.room(), "Do the task.").await
    }

    /// The same, and the endpoint had nothing to complain about.
    pub async fn works(&self) -> Result<Finish, ImplementError> {
        let worked = self.work().await;
        assert_eq!(self.server.violations(), [""; 0]);
        worked
    }

    pub fn until(&mut self, after: Duration) {
        self.allowance.until = Some((std::time::Instant::now() + after, HumanDuration(after)));
    }

    /// Whys of all retries that were told.
    pub fn retries(&self) -> Vec<String> {
        let why = |event| match event {
            Event::Retry { what, why, .. } if what == "model" => Some(why),
            _ => None,
        };
        self.people.told().into_iter().filter_map(why).collect()
    }

    /// Answers of tools, and whether they failed.
    pub fn results(&self) -> Vec<(String, bool)> {
        let result = |event| match event {
            Event::ToolResult { text, failed, .. } => Some((text, failed)),
            _ => None,
        };
        self.people.told().into_iter().filter_map(result).collect()
    }

    /// Numbers of all turns that were told.
    pub fn turns(&self) -> Vec<u32> {
        let number = |event| match event {
            Event::Turn { number, .. } => Some(number),
            _ => None,
        };
        self.people.told().into_iter().filter_map(number).collect()
    }

    pub fn notes(&self) -> Vec<String> {
        let note = |event| match event {
            Event::Note { text } => Some(text),
            _ => None,
        };
        self.people.told().into_iter().filter_map(note).collect()
    }
}
