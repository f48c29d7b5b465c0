//! The work folder of a container: the job's own folder, mounted; or, where the engine does not see that, a folder in
//! the container from which result and artifacts are copied.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use bollard::query_parameters::{DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder};
use bytes::Bytes;
use futures_util::StreamExt;
use schemas::task::WORK_FOLDER;
use tar::EntryType;
use tokio::sync::mpsc;

use super::engine::{Engine, PATIENCE};
use super::refusal::{status, words};
use crate::objects;
use crate::runtime::container::files::{RESULT, Take, prefixes, replace, take_result, unpack};
pub(super) use crate::runtime::container::files::{open_to_all, result_path};
use crate::runtime::container::jobs::Known;

/// For one archive.
const COPY_PATIENCE: Duration = Duration::from_secs(300);

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
