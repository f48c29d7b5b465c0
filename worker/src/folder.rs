//! The work folder of one start: made before it, gone after it.

use std::io;
use std::path::{Path, PathBuf};

use schemas::{AgentId, StartId};

/// An own folder, and beside it the file that takes the result.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    result: PathBuf,
    removed: bool,
}

fn root(state_dir: &Path, worker: &AgentId) -> PathBuf {
    state_dir.join("work").join(worker.as_str())
}

impl Folder {
    /// Makes an empty one.
    pub fn create(state_dir: &Path, worker: &AgentId, start: &StartId) -> io::Result<Self> {
        let root = root(state_dir, worker);
        let path = root.join(start.as_str());
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&root)?;
                std::fs::create_dir(&path)?;
            }
            made => made?,
        }
        Ok(Self { result: root.join(format!("{start}.result")), path, removed: false })
    }

    /// Where the workload runs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it writes its result. Beside the folder, so that no glob gathers it.
    pub fn result_file(&self) -> PathBuf {
        self.result.clone()
    }

    /// Removes it with all that is in it.
    pub async fn remove(mut self) {
        self.removed = true;
        let _ = std::fs::remove_file(&self.result);
        // Most are empty, and for these nothing needs to wait.
        if std::fs::remove_dir(&self.path).is_ok() {
            return;
        }
        let path = self.path.clone();
        let removed = tokio::task::spawn_blocking(move || remove_tree(&path)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(path = %self.path.display(), %error, "work folder not removed; the next start sweeps it");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.removed {
            let _ = std::fs::remove_file(&self.result);
            let _ = remove_tree(&self.path);
        }
    }
}

/// Removes a tree, folders that a workload made unreadable included.
fn remove_tree(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::remove_dir_all(path).is_ok() || !path.exists() {
        return Ok(());
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        let _ = std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700));
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
    }
    std::fs::remove_dir_all(path)
}

/// Whether work folders can be made; why not, in a sentence.
pub fn probe(state_dir: &Path, worker: &AgentId) -> Result<(), String> {
    let path = root(state_dir, worker).join(".probe");
    let made = std::fs::create_dir(&path).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(error),
    });
    made.and_then(|()| std::fs::remove_dir(&path)).map_err(|error| format!("no work folder can be made: {error}"))
}

/// Removes what an earlier boot of this worker left. Only for the holder of the id.
pub fn sweep(state_dir: &Path, worker: &AgentId) -> io::Result<()> {
    let root = root(state_dir, worker);
    let Ok(entries) = std::fs::read_dir(&root) else { return std::fs::create_dir_all(&root) };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type()?.is_dir() { remove_tree(&path)? } else { std::fs::remove_file(&path)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_is_gone_after_its_start_whatever_was_made_in_it() {
        let state = tempfile::tempdir().unwrap();
        let worker = AgentId::new("w-1").unwrap();
        let folder = Folder::create(state.path(), &worker, &StartId::new("s1").unwrap()).unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        std::fs::write(folder.path().join("a/b/c"), "x").unwrap();
        std::fs::write(folder.result_file(), "y").unwrap();
        folder.remove().await;
        assert_eq!(std::fs::read_dir(root(state.path(), &worker)).unwrap().count(), 0);
    }

    #[test]
    fn a_sweep_removes_what_an_earlier_boot_left() {
        let state = tempfile::tempdir().unwrap();
        let worker = AgentId::new("w-1").unwrap();
        let folder = Folder::create(state.path(), &worker, &StartId::new("s1").unwrap()).unwrap();
        std::fs::write(folder.path().join("c"), "x").unwrap();
        std::mem::forget(folder);
        sweep(state.path(), &worker).unwrap();
        assert_eq!(std::fs::read_dir(root(state.path(), &worker)).unwrap().count(), 0);
    }
}
