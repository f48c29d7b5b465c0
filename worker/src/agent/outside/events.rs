//! What the task registry hears of one attempt: its state as it is now, and every entry of its transcript in order.
//!
//! The job never waits for it. What cannot be told stays in a bounded box, of which the oldest goes first; at the end there
//! are a few seconds for the rest.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agents::retry::Retry;
use reqwest::Method;
use schemas::transcript::{Entry, Event};
use schemas::{TaskKey, Timestamp};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot};

use super::rest::{Failure, Rest};
use crate::agent::line::JobLine;

/// Most entries that wait, and their bytes.
const WAITING: (usize, usize) = (2_000, 8 << 20);
/// Most entries of one request, and their bytes.
const BATCH: (usize, usize) = (100, 256 << 10);
/// For what is left at the end of a job.
const REST: Duration = Duration::from_secs(3);
/// Pauses while the job runs: up to half a second, doubled, up to 30 s.
const RUNNING: Retry =
    Retry { tries: u32::MAX, first: Duration::from_millis(500), longest: Duration::from_secs(30), until: None };
/// The same at its end.
const AT_THE_END: Retry = Retry { tries: 3, ..RUNNING };

/// Tells the registry of one attempt.
pub struct Events<'a> {
    registry: &'a Rest,
    key: TaskKey,
    line: JobLine,
    from: mpsc::UnboundedReceiver<Entry>,
    state: Value,
}

#[derive(Default)]
struct Outbox {
    entries: VecDeque<Box<RawValue>>,
    bytes: usize,
    /// Fell out, or were refused.
    lost: u64,
    /// The state to tell, unless it was told.
    state: Option<Value>,
    /// On their way: events, and whether a state.
    sent: (u64, bool),
    /// Nothing more comes.
    closed: bool,
}

impl<'a> Events<'a> {
    pub(super) fn new(registry: &'a Rest, key: &TaskKey, line: &JobLine, state: Value) -> Self {
        Self { registry, key: key.clone(), line: line.clone(), from: line.listen(), state }
    }

    /// Tells until the line has ended and `end`, the last state, is told. What was not told is a warning.
    pub async fn tell(mut self, end: oneshot::Receiver<Value>) -> Vec<String> {
        let outbox = Mutex::new(Outbox { state: Some(self.state.clone()), ..Outbox::default() });
        let knock = Notify::new();
        let mut why = String::new();
        {
            let (registry, key, line) = (self.registry, &self.key, &self.line);
            let sender = Sender { registry, name: key.to_string(), line, outbox: &outbox, knock: &knock };
            let collecting = async {
                while let Some(entry) = self.from.recv().await {
                    lock(&outbox).push(&entry, &self.state);
                    knock.notify_one();
                }
                let end = end.await.ok();
                let mut outbox = lock(&outbox);
                outbox.state = end.or(outbox.state.take());
                outbox.closed = true;
                drop(outbox);
                knock.notify_one();
            };
            let late = async {
                line.ended().await;
                tokio::time::sleep(REST).await;
            };
            let sending = async { tokio::join!(collecting, sender.send(&mut why)) };
            tokio::select! {
                _ = sending => {}
                () = late => {}
            }
        }
        let left = outbox.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut warnings = Vec::new();
        let lost = left.lost + left.sent.0 + left.entries.len() as u64;
        if why.is_empty() {
            why.push_str("it took too long");
        }
        if lost > 0 {
            warnings.push(format!("the task registry was not told of {lost} events: {why}"));
        }
        if left.state.is_some() || left.sent.1 {
            warnings.push(format!("the task registry was not told how the attempt ended: {why}"));
        }
        warnings
    }
}

struct Sender<'a> {
    registry: &'a Rest,
    name: String,
    line: &'a JobLine,
    outbox: &'a Mutex<Outbox>,
    knock: &'a Notify,
}

impl Sender<'_> {
    /// Sends what there is, until nothing more comes or it is given up.
    async fn send(&self, why: &mut String) {
        let (mut tried, mut at_the_end) = (0, false);
        loop {
            let failure = match self.next().await {
                Some(Ok(())) => {
                    tried = 0;
                    continue;
                }
                Some(Err(failure)) => failure,
                None if lock(self.outbox).closed => return,
                None => {
                    self.knock.notified().await;
                    continue;
                }
            };
            *why = failure.to_string();
            tracing::debug!(task = %self.name, error = why, "the task registry is not told now");
            let ended = lock(self.outbox).closed;
            if ended && !std::mem::replace(&mut at_the_end, ended) {
                tried = 0;
            }
            tried += 1;
            // What is refused for good was dropped; what comes next may be taken.
            let again = match failure.again() {
                agents::retry::Again::Never => agents::retry::Again::Soon,
                again => again,
            };
            let retry = if ended { AT_THE_END } else { RUNNING };
            let Some(pause) = retry.pause(tried, again) else { return };
            if ended {
                tokio::time::sleep(pause).await;
            } else {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.line.ended() => {}
                }
            }
        }
    }

    /// One request, if there is something to tell. Events go before the state that they led to.
    async fn next(&self) -> Option<Result<(), Failure>> {
        let batch = lock(self.outbox).batch();
        if !batch.is_empty() {
            lock(self.outbox).sent.0 = batch.len() as u64;
            let request = self.registry.request(Method::POST, &["tasks", &self.name, "events"]);
            let sent = self.registry.send(request.json(&json!({ "events": batch }))).await;
            let mut outbox = lock(self.outbox);
            outbox.sent.0 = 0;
            if let Err(failure) = &sent {
                match failure.again() {
                    agents::retry::Again::Never => outbox.lost += batch.len() as u64,
                    _ => outbox.put_back(batch),
                }
            }
            return Some(sent.map(drop));
        }
        let state = {
            let mut outbox = lock(self.outbox);
            let state = outbox.state.take()?;
            outbox.sent.1 = true;
            state
        };
        let request = self.registry.request(Method::PUT, &["tasks", &self.name]);
        let sent = self.registry.send(request.json(&state)).await;
        let mut outbox = lock(self.outbox);
        outbox.sent.1 = false;
        if sent.is_err() {
            // A newer one stands in its place.
            outbox.state.get_or_insert(state);
        }
        Some(sent.map(drop))
    }
}

impl Outbox {
    fn push(&mut self, entry: &Entry, running: &Value) {
        if let Event::PhaseBegan { phase } = &entry.event {
            let mut state = running.clone();
            state["phase"] = json!(phase);
            state["at"] = json!(Timestamp::now());
            self.state = Some(state);
        }
        let text = serde_json::value::to_raw_value(entry).expect("our own types are JSON");
        self.bytes += text.get().len();
        self.entries.push_back(text);
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.entries.len() > WAITING.0 || self.bytes > WAITING.1 {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= oldest.get().len();
            self.lost += 1;
        }
    }

    fn batch(&mut self) -> Vec<Box<RawValue>> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(next) = self.entries.front() {
            let length = next.get().len();
            if !batch.is_empty() && (batch.len() == BATCH.0 || bytes + length > BATCH.1) {
                break;
            }
            bytes += length;
            batch.extend(self.entries.pop_front());
        }
        self.bytes -= bytes;
        batch
    }

    fn put_back(&mut self, batch: Vec<Box<RawValue>>) {
        for entry in batch.into_iter().rev() {
            self.bytes += entry.get().len();
            self.entries.push_front(entry);
        }
        self.shrink();
    }
}

fn lock(outbox: &Mutex<Outbox>) -> MutexGuard<'_, Outbox> {
    outbox.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, bytes: usize) -> Entry {
        let text = "x".repeat(bytes);
        serde_json::from_value(json!({
            "number": number, "at": "2026-11-20T12:00:00.000Z", "queue": "default", "start": "s1",
            "event": {"kind": "note", "text": text},
        }))
        .unwrap()
    }

    fn numbers(batch: &[Box<RawValue>]) -> Vec<u64> {
        batch.iter().map(|text| serde_json::from_str::<Entry>(text.get()).unwrap().number).collect()
    }

    #[test]
    fn what_waits_is_bounded_and_stays_in_order() {
        let mut outbox = Outbox::default();
        for number in 0..3_000 {
            outbox.push(&entry(number, 10), &json!({}));
        }
        assert_eq!((outbox.entries.len(), outbox.lost), (2_000, 1_000));
        let batch = outbox.batch();
        assert_eq!(numbers(&batch), (1_000..1_100).collect::<Vec<_>>());
        outbox.put_back(batch);
        assert_eq!(numbers(&outbox.batch())[..2], [1_000, 1_001]);
        let mut outbox = Outbox::default();
        for number in 0..100 {
            outbox.push(&entry(number, 128 << 10), &json!({}));
        }
        assert!(outbox.bytes <= WAITING.1 && outbox.lost > 30, "{} {}", outbox.bytes, outbox.lost);
        assert_eq!(outbox.batch().len(), 1, "a large one goes alone");
        while !outbox.batch().is_empty() {}
        assert_eq!(outbox.bytes, 0);
    }
}
