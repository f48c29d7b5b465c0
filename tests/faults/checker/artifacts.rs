//! D: an artifact that a record names can be read and is what was written.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use schemas::State;
use schemas::record::Artifact;
use sha2::{Digest, Sha256};

use super::runs::{Run, Runs};
use super::violation::Violation;
use crate::history::Submission;

/// What a task with an artifact leaves.
const PATH: &str = "out.txt";

/// All of it.
pub fn check(runs: &Runs) -> Vec<Violation> {
    let mut found = Vec::new();
    for (run, submission) in runs.judged() {
        found.extend(kept(run, submission));
        let artifacts = run.end().map_or(&[][..], |end| &end.record.artifacts);
        found.extend(artifacts.iter().filter_map(|artifact| true_to_record(artifact, run, submission, runs)));
    }
    found
}

/// A success has its artifact, or a warning that it could not be kept.
fn kept(run: &Run, submission: &Submission) -> Option<Violation> {
    let end = run.ended_as(State::Succeeded).filter(|_| submission.plan.artifact)?;
    let start = run.applied().and_then(|attempt| attempt.start.as_ref());
    let named = end.record.artifacts.iter().any(|artifact| artifact.path == PATH && Some(&artifact.start) == start);
    let warned = end.record.warnings.iter().any(|warning| warning.contains("artifact"));
    (!named && !warned).then(|| Violation::NoArtifact { of: run.name() })
}

/// The bytes are there and have the recorded digest; those of the applied start are the nonce.
fn true_to_record(artifact: &Artifact, run: &Run, submission: &Submission, runs: &Runs) -> Option<Violation> {
    let (of, path, start) = (run.name(), artifact.path.clone(), artifact.start.to_string());
    let bytes = match runs.history.artifacts.get(&(run.key.to_owned(), start.clone(), path.clone())) {
        Some(Ok(bytes)) => bytes,
        Some(Err(why)) => return Some(Violation::UnreadableArtifact { of, path, start, why: why.clone() }),
        None => return Some(Violation::UnreadableArtifact { of, path, start, why: "there is no such object".into() }),
    };
    let said = |bytes: u64, digest: &str| format!("{bytes} bytes {digest}");
    let recorded = said(artifact.bytes, &artifact.digest);
    let digest = format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(bytes)));
    let found = said(bytes.len() as u64, &digest);
    if recorded != found {
        return Some(Violation::WrongDigest { of, path, recorded, found });
    }
    // Another start may have been stopped while it wrote.
    let applied = run.ended_as(State::Succeeded).and_then(|_| run.applied()).and_then(|attempt| attempt.start.as_ref());
    let whole = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let right = path != PATH || applied != Some(&artifact.start) || whole == submission.nonce.as_bytes();
    (!right).then_some(Violation::WrongArtifact { of, path, bytes: bytes.len() })
}
