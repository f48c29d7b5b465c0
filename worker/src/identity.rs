//! Who this worker is: an id that survives restarts, held by one process at a time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use schemas::AgentId;

/// A held id. The lock goes with it.
#[derive(Debug)]
pub struct Identity {
    /// The id.
    pub id: AgentId,
    /// This boot.
    pub instance: String,
    _lock: Flock<File>,
}

/// Why no id could be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it.
    #[error("another worker on this host has the id `{id}`; give this one another `--id` or `--state-dir`")]
    Taken {
        /// The id.
        id: AgentId,
    },
    /// The state folder cannot be used.
    #[error("the state folder {path} cannot be used")]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Identity {
    /// Holds `wanted`, or the first id kept in `state_dir` that no other process holds.
    pub fn hold(state_dir: &Path, wanted: Option<&AgentId>) -> Result<Self, IdentityError> {
        let folder = state_dir.join("ids");
        let state = |source| IdentityError::State { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(state)?;
        let instance = random(8);
        if let Some(id) = wanted {
            let lock = lock(&folder.join(format!("{id}.lock"))).map_err(state)?;
            let lock = lock.ok_or_else(|| IdentityError::Taken { id: id.clone() })?;
            return Ok(Self { id: id.clone(), instance, _lock: lock });
        }
        for slot in 0.. {
            let Some(mut lock) = lock(&folder.join(format!("slot-{slot}"))).map_err(state)? else { continue };
            let mut kept = String::new();
            lock.read_to_string(&mut kept).map_err(state)?;
            let id = match AgentId::new(kept.trim()) {
                Ok(id) => id,
                Err(_) => {
                    let id = AgentId::new(format!("w-{}", random(8))).expect("drawn from the allowed characters");
                    lock.set_len(0).map_err(state)?;
                    lock.rewind().map_err(state)?;
                    lock.write_all(id.as_str().as_bytes()).map_err(state)?;
                    id
                }
            };
            return Ok(Self { id, instance, _lock: lock });
        }
        unreachable!("the numbers of slots do not end")
    }
}

fn random(letters: usize) -> String {
    (0..letters).map(|_| char::from(b"0123456789abcdef"[rand::random_range(0..16)])).collect()
}

/// Locks a file; `None` if another process has it.
fn lock(path: &Path) -> std::io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_restarts_and_two_at_once_differ() {
        let state = tempfile::tempdir().unwrap();
        let first = Identity::hold(state.path(), None).unwrap();
        let second = Identity::hold(state.path(), None).unwrap();
        assert_ne!(first.id, second.id);
        let (id, instance) = (first.id.clone(), first.instance.clone());
        drop(first);
        let again = Identity::hold(state.path(), None).unwrap();
        assert_eq!(again.id, id);
        assert_ne!(again.instance, instance);
    }

    #[test]
    fn a_named_id_is_held_once() {
        let state = tempfile::tempdir().unwrap();
        let id = AgentId::new("w-1").unwrap();
        let _held = Identity::hold(state.path(), Some(&id)).unwrap();
        assert!(matches!(Identity::hold(state.path(), Some(&id)), Err(IdentityError::Taken { .. })));
    }
}
