//! Containers as jobs, on the real engine of this machine; each test is skipped where there is none, which fails it in
//! CI. See `scripts/engine`.

mod confinement;
mod ends;
mod harness;
mod images;
mod load;
mod lost;
mod outage;
mod output;
mod policy;
mod stop;
mod sweep;

use std::path::Path;

use schemas::names::LogSource;
use schemas::{Code, State, TaskRecord};

use crate::support::{Engine, Fleet, eventually};

/// Why a task failed.
#[track_caller]
fn code(record: &TaskRecord) -> Code {
    assert_eq!(record.state, State::Failed, "{record:?}");
    let error = record.error.as_ref().expect("a failed task tells why");
    assert!(!error.message.is_empty());
    error.code
}

/// What a task answered.
#[track_caller]
fn result(record: &TaskRecord) -> String {
    assert_eq!(record.state, State::Succeeded, "{record:?}");
    let bytes = record.result.as_ref().expect("a result").inline_bytes().expect("inline").expect("base64");
    String::from_utf8(bytes).expect("text")
}

/// What is stored of one source of the last attempt, in order.
async fn stored(fleet: &Fleet, record: &TaskRecord, source: LogSource) -> Vec<u8> {
    let start = record.attempts.last().expect("an attempt").start.clone().expect("its start");
    let subject = format!("shoal.logs.{}.{}.{start}.{}", record.queue, record.id, source.as_str());
    let messages = fleet.messages("SHOAL_LOGS", &subject).await;
    messages.iter().flat_map(|message| message.payload.to_vec()).collect()
}

/// Waits until nothing of any task is left, neither on the engine nor in the work folders of this worker.
async fn nothing_left(engine: &Engine, fleet: &Fleet, worker: &str) {
    engine.is_clean().await;
    let id = engine.id(worker);
    let work = fleet.folder().join(&id).join("work").join(&id);
    eventually("no work folder left", async || match folders(&work) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await;
}

fn folders(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
