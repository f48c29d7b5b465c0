//! The work folder of a container: the job's own folder, mounted; or, where the engine does not see that, a folder in
//! the container from which result and artifacts are copied.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bollard::query_parameters::{DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt;
use globset::GlobSet;
use schemas::task::WORK_FOLDER;
use tar::EntryType;
use tokio::sync::mpsc;

use super::engine::{Engine, PATIENCE};
use super::jobs::Known;
use super::refusal::{status, words};
use crate::{folder, objects};

/// The result's name in the work folder; no glob gathers it.
const RESULT: &str = ".result";
/// Most bytes taken out of one container.
const MOST_BYTES: u64 = 1 << 30;
/// Most bytes looked through for them.
const MOST_LOOKED_THROUGH: u64 = 4 << 30;
/// Most files and folders looked at.
const MOST_ENTRIES: usize = 100_000;
/// For one archive.
const COPY_PATIENCE: Duration = Duration::from_secs(300);

/// The result file as the container sees it.
pub(super) fn result_path() -> String {
    format!("{WORK_FOLDER}/{RESULT}")
}

/// Lets whatever user the image has write into the folder.
pub(super) fn open_to_all(folder: &Path) -> io::Result<()> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777))
}

/// Makes the work folder in a created container.
pub(super) async fn make_folder(engine: &Engine, name: &str) -> Result<(), bollard::errors::Error> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, WORK_FOLDER.trim_start_matches('/'), io::empty())?;
    let body = bollard::body_full(archive.into_inner()?.into());
    let options = UploadToContainerOptionsBuilder::default().path("/").build();
    engine.ask(PATIENCE, engine.docker.upload_to_container(name, Some(options), body)).await
}

/// Brings the result and what the globs may match into the job's folder and result file. Returns warnings.
/// Not cancel safe: what is there by then stays.
pub(super) async fn collect(engine: &Engine, job: &Known) -> Vec<String> {
    let placed = job.placed();
    let mut warnings = Vec::new();
    if placed.bound {
        if let Err(error) = take_result(&job.folder.join(RESULT), &job.result_file) {
            warnings.push(format!("result not taken: {error}"));
        }
    } else {
        let taken = fetch(engine, &job.name, &result_path(), Take::Result(job.result_file.clone())).await;
        warnings.extend(taken.err().map(|error| format!("result not taken: {error}")));
    }
    let in_folder = Path::new(&placed.working_dir) == Path::new(WORK_FOLDER);
    if job.artifacts.is_empty() || (placed.bound && in_folder) {
        return warnings;
    }
    let globs = match objects::globs(&job.artifacts) {
        Ok(globs) => globs,
        // Told when they are gathered.
        Err(_) => return warnings,
    };
    // Beside the folder, which the container may have as its own: what is fetched may lie in it.
    let fetched = job.folder.with_extension("fetched");
    for prefix in prefixes(&job.artifacts) {
        let path = Path::new(&placed.working_dir).join(&prefix);
        let take = Take::Matching { globs: globs.clone(), prefix, into: fetched.clone() };
        if let Err(error) = fetch(engine, &job.name, &path.to_string_lossy(), take).await {
            warnings.push(format!("artifacts not collected from {}: {error}", path.display()));
        }
    }
    // What the container left in the folder otherwise is no artifact, and may be a link to anywhere.
    let into = job.folder.clone();
    let replaced = tokio::task::spawn_blocking(move || replace(&into, &fetched)).await;
    if let Err(error) = replaced.unwrap_or_else(|_| Err(io::Error::other("it panicked"))) {
        warnings.push(format!("artifacts not collected: {error}"));
    }
    warnings
}

/// Moves a plain file; anything else is no result.
fn take_result(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(from) {
        Ok(meta) if meta.is_file() => std::fs::rename(from, to),
        Ok(_) => Err(io::Error::other("it is no plain file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Puts what was fetched, if anything, in the place of a folder and all that it holds.
fn replace(folder: &Path, fetched: &Path) -> io::Result<()> {
    folder::remove_tree(folder)?;
    match std::fs::rename(fetched, folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir(folder),
        renamed => renamed,
    }
}

/// The folders and files that must be looked through: what stands in the globs before the first wildcard.
fn prefixes(globs: &[String]) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = globs.iter().map(|glob| prefix(glob)).collect();
    prefixes.sort();
    // A folder comes before what is below it.
    prefixes.dedup_by(|below, above| below.starts_with(&*above));
    prefixes
}

fn prefix(glob: &str) -> PathBuf {
    let literal = |part: &&str| !part.contains(['*', '?', '[', '{', '\\']);
    let parts = glob.split('/').filter(|part| !part.is_empty() && *part != ".");
    // What climbs out matches nothing.
    parts.take_while(literal).take_while(|part| *part != "..").collect()
}

/// What is taken from an archive.
enum Take {
    /// Its only file, to there.
    Result(PathBuf),
    /// What matches, below there.
    Matching { globs: GlobSet, prefix: PathBuf, into: PathBuf },
}

/// Fetches `path` as an archive and takes from it. Nothing there is nothing taken.
async fn fetch(engine: &Engine, name: &str, path: &str, take: Take) -> Result<(), String> {
    let (to, from) = mpsc::channel::<Bytes>(16);
    let unpacking = tokio::task::spawn_blocking(move || unpack(Pieces { from, rest: Bytes::new() }, &take));
    let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
    let mut archive = engine.docker.download_from_container(name, Some(options));
    let fetching = async {
        while let Some(piece) = archive.next().await {
            if to.send(piece?).await.is_err() {
                break;
            }
        }
        drop(to);
        Ok(())
    };
    match engine.ask(COPY_PATIENCE, fetching).await {
        Err(error) if status(&error) == Some(404) => return Ok(()),
        Err(error) => return Err(words(&error)),
        Ok(()) => {}
    }
    match unpacking.await {
        Ok(unpacked) => unpacked.map_err(|error| error.to_string()),
        Err(_) => Err("unpacking panicked".to_owned()),
    }
}

/// Takes plain files only: no links, nothing outside.
fn unpack(archive: impl Read, take: &Take) -> io::Result<()> {
    let mut archive = tar::Archive::new(archive.take(MOST_LOOKED_THROUGH));
    let mut left = MOST_BYTES;
    for (at, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        if at == MOST_ENTRIES {
            return Err(io::Error::other(format!("there are more than {MOST_ENTRIES} files and folders")));
        }
        let kind = entry.header().entry_type();
        if !matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse) {
            if matches!(take, Take::Result(_)) {
                return Err(io::Error::other("it is no plain file"));
            }
            continue;
        }
        let target = match take {
            Take::Result(file) => file.clone(),
            Take::Matching { globs, prefix, into } => {
                // The engine names everything below the last part of what was asked for.
                let path = match below_first(&entry.path()?) {
                    Some(below) if below.as_os_str().is_empty() => prefix.clone(),
                    Some(below) => prefix.join(below),
                    None => continue,
                };
                if !globs.is_match(&path) {
                    continue;
                }
                into.join(path)
            }
        };
        let size = entry.size();
        left = left.checked_sub(size).ok_or_else(|| io::Error::other(format!("it is more than {MOST_BYTES} bytes")))?;
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&target)?;
        io::copy(&mut entry, &mut file)?;
        file.flush()?;
    }
    Ok(())
}

/// A path without its first part, if it stays below it.
fn below_first(path: &Path) -> Option<PathBuf> {
    let mut parts = path.components().filter(|part| *part != Component::CurDir);
    if !matches!(parts.next()?, Component::Normal(_)) {
        return None;
    }
    parts.map(|part| matches!(part, Component::Normal(_)).then_some(part)).collect()
}

/// The pieces of an archive, read from a thread that may wait for them.
struct Pieces {
    from: mpsc::Receiver<Bytes>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.rest = piece,
                None => return Ok(0),
            }
        }
        let most = into.len().min(self.rest.len());
        into[..most].copy_from_slice(&self.rest.split_to(most));
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_size(if *kind == EntryType::Regular { content.len() as u64 } else { 0 });
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            if *kind == EntryType::Symlink {
                header.set_link_name(content).unwrap();
            }
            header.set_cksum();
            let body = if *kind == EntryType::Regular { content.as_bytes() } else { b"" };
            archive.append(&header, body).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn only_plain_files_that_match_and_stay_inside_are_taken() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("folder");
        let archive = archive(&[
            ("out/", EntryType::Directory, ""),
            ("out/a.txt", EntryType::Regular, "a"),
            ("out/b.log", EntryType::Regular, "b"),
            ("out/link.txt", EntryType::Symlink, "/etc/passwd"),
            ("out/../../escaped.txt", EntryType::Regular, "e"),
            ("/absolute.txt", EntryType::Regular, "e"),
            ("out/deep/c.txt", EntryType::Regular, "c"),
        ]);
        let globs = objects::globs(&["out/**/*.txt".to_owned()]).unwrap();
        unpack(&archive[..], &Take::Matching { globs, prefix: "out".into(), into: into.clone() }).unwrap();
        assert_eq!(std::fs::read_to_string(into.join("out/a.txt")).unwrap(), "a");
        assert_eq!(std::fs::read_to_string(into.join("out/deep/c.txt")).unwrap(), "c");
        assert_eq!(std::fs::read_dir(into.join("out")).unwrap().count(), 2);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_result_is_a_plain_file_or_none() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("result");
        unpack(&archive(&[(".result", EntryType::Regular, "42")])[..], &Take::Result(to.clone())).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "42");
        let link = archive(&[(".result", EntryType::Symlink, "/etc/passwd")]);
        assert!(unpack(&link[..], &Take::Result(root.path().join("no"))).is_err());
    }

    #[test]
    fn what_stands_before_the_first_wildcard_is_fetched_once() {
        let globs = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>();
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(prefixes(&globs(&["out/**", "out/a/b.txt", "c.txt"])), paths(&["c.txt", "out"]));
        assert_eq!(prefixes(&globs(&["*.txt", "out/**"])), paths(&[""]));
        assert_eq!(prefixes(&globs(&["../up/**", "/abs/x*"])), paths(&[""]));
    }
}
