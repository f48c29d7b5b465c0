//! What workers left on this machine, for whoever looks for what nobody owns: objects on the engine, work folders below
//! the state folder. Only reads.

use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use schemas::{AgentId, StartId};

pub use crate::runtime::docker::census::engine;
pub use crate::stores::fleet_of;

/// Something that a worker made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// `container`, `network`, `volume`, `work folder`.
    pub kind: &'static str,
    /// Name or path.
    pub name: String,
    /// Which worker made it.
    pub worker: AgentId,
    /// Which boot of it; folders do not tell.
    pub instance: Option<String>,
    /// The task, `<queue>.<id>`; folders do not tell.
    pub task: Option<String>,
    /// The start that it is of; none for what outlives starts.
    pub start: Option<StartId>,
    /// How old it is, where that is known.
    pub age: Option<Duration>,
}

/// Everything of one fleet, and how many objects are another's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Of this fleet.
    pub made: Vec<Made>,
    /// Of other fleets.
    pub others: usize,
}

/// Work folders below this state folder of a worker, or of all workers below this store of `shoal up`. Which fleet they
/// are of they do not tell: a state folder has one.
pub fn folders(state_dir: &Path) -> io::Result<Census> {
    let mut states = Vec::new();
    if ["work", "ids"].iter().any(|name| state_dir.join(name).is_dir()) {
        states.push(state_dir.to_owned());
    }
    if let Some(workers) = entries(&state_dir.join("workers"))? {
        states.extend(workers.into_iter().map(|worker| worker.path()));
    }
    if states.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no worker keeps its state there"));
    }
    let mut census = Census::default();
    for state in states {
        for worker in entries(&state.join("work"))?.into_iter().flatten() {
            let Ok(id) = AgentId::new(&*worker.file_name().to_string_lossy()) else { continue };
            for folder in entries(&worker.path())?.into_iter().flatten() {
                let start = StartId::new(&*folder.file_name().to_string_lossy());
                let (Ok(start), Ok(true)) = (start, folder.file_type().map(|kind| kind.is_dir())) else { continue };
                let name = folder.path().display().to_string();
                let age = age(&folder.path());
                let worker = id.clone();
                let (instance, task, start) = (None, None, Some(start));
                census.made.push(Made { kind: "work folder", name, worker, instance, task, start, age });
            }
        }
    }
    Ok(census)
}

/// What is in a folder; `None` if it is not there, or not any more.
fn entries(folder: &Path) -> io::Result<Option<Vec<DirEntry>>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect::<io::Result<_>>().map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Since it was last changed, which it was when it got its name: a folder may have had another before.
fn age(path: &Path) -> Option<Duration> {
    let about = std::fs::symlink_metadata(path).ok()?;
    let changed = Duration::new(about.ctime().try_into().ok()?, about.ctime_nsec().try_into().ok()?);
    (SystemTime::UNIX_EPOCH + changed).elapsed().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::Folder;

    #[test]
    fn a_work_folder_tells_its_worker_and_its_start() {
        let store = tempfile::tempdir().unwrap();
        assert!(folders(store.path()).is_err(), "nobody's state");
        let state = store.path().join("workers/up-1");
        let worker = AgentId::new("w-1").unwrap();
        let folder = Folder::create(&state, &worker, &StartId::new("s1").unwrap()).unwrap();
        std::fs::write(folder.result_file(), "y").unwrap();
        let census = folders(&state).unwrap();
        assert_eq!(folders(store.path()).unwrap().made[0].name, census.made[0].name, "the store of `shoal up`");
        assert_eq!(census.made.len(), 1);
        let made = &census.made[0];
        assert_eq!((made.worker.as_str(), made.start.as_ref().unwrap().as_str()), ("w-1", "s1"));
        assert!(made.age.unwrap() < Duration::from_secs(60));
        assert!(folders(Path::new("/nonexistent")).is_err());
    }
}
