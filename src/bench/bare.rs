//! The same work without Shoal: the least that any program must do for it on this machine.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::process::Command;
use worker::runtime::docker::bare::Bare;

use super::BenchError;
use super::report::Round;

/// Spawns `program` `jobs` times, `at_once` at a time, each with a process group and a folder of its own and its output
/// read to the end, as a process task has.
pub async fn processes(program: &'static str, jobs: usize, at_once: usize) -> Result<Round, BenchError> {
    let folder = tempfile::tempdir().map_err(|error| BenchError::fleet("could not make a folder", error))?;
    let path = folder.path().to_owned();
    crowd(jobs, at_once, move |job| {
        let folder = path.join(job.to_string());
        async move {
            std::fs::create_dir(&folder)?;
            let mut command = Command::new(program);
            command.current_dir(&folder).env_clear().process_group(0);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let output = command.output().await?;
            std::fs::remove_dir(&folder)?;
            if output.status.success() { Ok(()) } else { Err(std::io::Error::other(output.status.to_string())) }
        }
    })
    .await
    .map_err(|error| BenchError::fleet("could not run the bare process", error))
}

/// Runs `true` in `jobs` containers, `at_once` at a time.
pub async fn containers(engine: &Arc<Bare>, jobs: usize, at_once: usize) -> Result<Round, BenchError> {
    crowd(jobs, at_once, |_| {
        let engine = engine.clone();
        async move { engine.run().await }
    })
    .await
    .map_err(|error| BenchError::fleet("could not run the bare container", error))
}

/// Runs `job` so many times, so many at once, and times each.
pub async fn crowd<E, F>(jobs: usize, at_once: usize, job: impl Fn(usize) -> F) -> Result<Round, E>
where
    E: Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
{
    let (next, job) = (Arc::new(AtomicUsize::new(0)), &job);
    let began = Instant::now();
    let lanes = (0..at_once).map(|_| {
        let next = next.clone();
        async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= jobs {
                    return Ok(latencies);
                }
                let began = Instant::now();
                // Spawned, so that the lanes run on all cores.
                tokio::spawn(job(number)).await.expect("no job of ours panics")?;
                latencies.push(began.elapsed());
            }
        }
    });
    let lanes = futures_util::future::try_join_all(lanes).await?;
    let took = began.elapsed();
    Ok(Round::timed(took, lanes.into_iter().flatten().collect()))
}
