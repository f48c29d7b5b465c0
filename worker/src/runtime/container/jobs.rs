//! The containers that this worker has, from the wish to start one until it is removed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use schemas::StartId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::usage::Meter;
use crate::runtime::{Exit, Job};

/// How a container ended; the text says how it was lost.
pub(in crate::runtime) type Ended = Result<Exit, String>;

/// One container as everybody sees it.
pub(in crate::runtime) struct Known {
    /// Its name at the engine.
    pub(in crate::runtime) name: String,
    /// Its end; closed without one where it did not start.
    pub(in crate::runtime) ended: watch::Receiver<Option<Ended>>,
    /// What it used.
    pub(in crate::runtime) meter: Meter,
    /// It is to be gone and cannot be reached: nobody waits any longer, the guard and the sweeps see to it.
    pub(in crate::runtime) abandoned: CancellationToken,
    /// Where its files go.
    pub(in crate::runtime) folder: PathBuf,
    pub(in crate::runtime) result_file: PathBuf,
    pub(in crate::runtime) artifacts: Vec<String>,
    /// What was told when it was created.
    placed: Mutex<Placed>,
}

/// What is known once a container is created.
#[derive(Clone, Debug, Default)]
pub(in crate::runtime) struct Placed {
    /// Its working directory.
    pub(in crate::runtime) working_dir: String,
    /// The work folder is the job's own, not a copy.
    pub(in crate::runtime) bound: bool,
    /// When it began to run.
    pub(in crate::runtime) started: Option<Instant>,
    /// It is to end at our own wish.
    pub(in crate::runtime) stopped: bool,
}

impl Known {
    pub(in crate::runtime) fn placed(&self) -> Placed {
        self.lock().clone()
    }

    pub(in crate::runtime) fn place(&self, working_dir: String, bound: bool) {
        let mut placed = self.lock();
        (placed.working_dir, placed.bound) = (working_dir, bound);
    }

    pub(in crate::runtime) fn started(&self) {
        self.lock().started = Some(Instant::now());
    }

    pub(in crate::runtime) fn stopping(&self) {
        self.lock().stopped = true;
    }

    fn lock(&self) -> MutexGuard<'_, Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All of them by their start: what is in here is live, and no sweep takes it.
#[derive(Default)]
pub(in crate::runtime) struct Jobs {
    all: Mutex<HashMap<StartId, Arc<Known>>>,
}

impl Jobs {
    fn all(&self) -> MutexGuard<'_, HashMap<StartId, Arc<Known>>> {
        // No code that holds it can panic half way.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the job known, before anything of it exists; `None` if the start id is taken.
    pub(in crate::runtime) fn register(
        &self,
        job: &Job,
        name: String,
    ) -> Option<(Arc<Known>, watch::Sender<Option<Ended>>)> {
        let (tell, ended) = watch::channel(None);
        let known = Arc::new(Known {
            name,
            ended,
            meter: Meter::default(),
            abandoned: CancellationToken::new(),
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

    pub(in crate::runtime) fn get(&self, start: &StartId) -> Option<Arc<Known>> {
        self.all().get(start).cloned()
    }

    pub(in crate::runtime) fn is_live(&self, start: &StartId) -> bool {
        self.all().contains_key(start)
    }

    pub(in crate::runtime) fn forget(&self, start: &StartId) {
        self.all().remove(start);
    }
}
