//! The containers that this worker has, from the wish to start one until it is removed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use schemas::StartId;
use tokio::sync::watch;

use super::usage::Meter;
use crate::runtime::{Exit, Job};

/// How a container ended; the text says how it was lost.
pub(super) type Ended = Result<Exit, String>;

/// One container as everybody sees it.
pub(super) struct Known {
    /// Its name at the engine.
    pub(super) name: String,
    /// Its end; closed without one where it did not start.
    pub(super) ended: watch::Receiver<Option<Ended>>,
    /// What it used.
    pub(super) meter: Meter,
    /// Where its files go.
    pub(super) folder: PathBuf,
    pub(super) result_file: PathBuf,
    pub(super) artifacts: Vec<String>,
    /// What was told when it was created.
    placed: Mutex<Placed>,
}

/// What is known once a container is created.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    /// Its working directory.
    pub(super) working_dir: String,
    /// The work folder is the job's own, not a copy.
    pub(super) bound: bool,
    /// When it began to run.
    pub(super) started: Option<Instant>,
    /// It is to end at our own wish.
    pub(super) stopped: bool,
}

impl Known {
    pub(super) fn placed(&self) -> Placed {
        self.lock().clone()
    }

    pub(super) fn place(&self, working_dir: String, bound: bool) {
        let mut placed = self.lock();
        (placed.working_dir, placed.bound) = (working_dir, bound);
    }

    pub(super) fn started(&self) {
        self.lock().started = Some(Instant::now());
    }

    pub(super) fn stopping(&self) {
        self.lock().stopped = true;
    }

    fn lock(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of them by their start: what is in here is live, and no sweep takes it.
#[derive(Default)]
pub(super) struct Jobs {
    all: Mutex<HashMap<StartId, Arc<Known>>>,
}

impl Jobs {
    fn all(&self) -> MutexGuard<'_, HashMap<StartId, Arc<Known>>> {
        // No code that holds it can panic half way.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the job known, before anything of it exists; `None` if the start id is taken.
    pub(super) fn register(&self, job: &Job, name: String) -> Option<(Arc<Known>, watch::Sender<Option<Ended>>)> {
        let (tell, ended) = watch::channel(None);
        let known = Arc::new(Known {
            name,
            ended,
            meter: Meter::default(),
            folder: job.folder.clone(),
            result_file: job.result_file.clone(),
            artifacts: job.artifacts.clone(),
            placed: Mutex::default(),
        });
        match self.all().entry(job.start.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                place.insert(known.clone());
                Some((known, tell))
            }
        }
    }

    pub(super) fn get(&self, start: &StartId) -> Option<Arc<Known>> {
        self.all().get(start).cloned()
    }

    pub(super) fn is_live(&self, start: &StartId) -> bool {
        self.all().contains_key(start)
    }

    pub(super) fn forget(&self, start: &StartId) {
        self.all().remove(start);
    }
}
