//! Output of a workload, in batches to the stream of logs. One publisher an attempt, so that the stream keeps the order
//! in which stdout and stderr came; what arrives while one batch is under way makes the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::{Bytes, BytesMut};
use jetstream::JetStream;
use schemas::names::LogSource;
use schemas::{Limit, Names, StartId, TaskKey, header};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::worker::Worker;

/// Largest body of one log message.
const LARGEST_BATCH: usize = 64 << 10;
/// A few lines that come together travel together; nobody notices this much later.
const GATHER_FOR: Duration = Duration::from_millis(20);
/// How long a batch is tried before output is given up: longer than any restart of a server.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// When a workload last wrote something. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Activity {
    began: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { began: Instant::now(), last_ms: Arc::default() }
    }
}

impl Activity {
    fn touch(&self) {
        self.last_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Completes after a silence of `limit`; never without one. Cancel safe.
    pub fn silent_for(&self, limit: Option<Duration>) -> impl Future<Output = ()> + Send + use<> {
        let this = self.clone();
        async move {
            let Some(limit) = limit else { return std::future::pending().await };
            loop {
                let due = this.began + Duration::from_millis(this.last_ms.load(Ordering::Relaxed)) + limit;
                if due <= Instant::now() {
                    return;
                }
                tokio::time::sleep_until(due.into()).await;
            }
        }
    }
}

/// Where one attempt's output goes.
pub struct LogSink {
    js: JetStream,
    names: Names,
    key: TaskKey,
    start: StartId,
    limit: Option<u64>,
    activity: Activity,
    give_up: CancellationToken,
    largest: usize,
    numbered: u64,
}

impl LogSink {
    /// A sink that keeps up to `limit` bytes.
    pub fn open(
        worker: &Worker,
        key: &TaskKey,
        start: &StartId,
        limit: Limit<schemas::Bytes>,
        activity: Activity,
    ) -> Self {
        Self {
            js: worker.js.clone(),
            names: worker.config.names.clone(),
            key: key.clone(),
            start: start.clone(),
            limit: limit.bound().map(|limit| limit.0),
            activity,
            give_up: worker.stop_now.clone(),
            largest: LARGEST_BATCH.min(worker.js.client().max_payload().saturating_sub(8 << 10).max(1 << 10)),
            numbered: 0,
        }
    }

    /// Copies both streams to their ends. Returns what a reader of the record should know.
    pub async fn copy(
        mut self,
        stdout: Box<dyn AsyncRead + Send + Unpin>,
        stderr: Box<dyn AsyncRead + Send + Unpin>,
    ) -> Vec<String> {
        // Bounded: a workload that writes faster than the server stores waits in its write.
        let (sender, receiver) = mpsc::channel(8);
        let readers = futures_util::future::join(
            read(stdout, LogSource::Stdout, self.largest, sender.clone(), self.activity.clone()),
            read(stderr, LogSource::Stderr, self.largest, sender, self.activity.clone()),
        );
        let (_, warnings) = tokio::join!(readers, self.publish(receiver));
        warnings
    }

    async fn publish(&mut self, mut receiver: mpsc::Receiver<(LogSource, Bytes)>) -> Vec<String> {
        let (mut kept, mut dropped, mut lost) = (0_u64, 0_u64, 0_u64);
        let mut batch: Vec<(LogSource, BytesMut)> = Vec::new();
        let mut open = true;
        while open {
            let Some(first) = receiver.recv().await else { break };
            let mut take = |(source, bytes): (LogSource, Bytes), batch: &mut Vec<(LogSource, BytesMut)>| {
                let room = self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(kept));
                let fits = (bytes.len() as u64).min(room) as usize;
                kept += fits as u64;
                dropped += (bytes.len() - fits) as u64;
                match batch.last_mut() {
                    _ if fits == 0 => {}
                    Some((last, body)) if *last == source && body.len() + fits <= self.largest => {
                        body.extend_from_slice(&bytes[..fits]);
                    }
                    _ => batch.push((source, BytesMut::from(&bytes[..fits]))),
                }
            };
            take(first, &mut batch);
            let gathered = tokio::time::sleep(GATHER_FOR);
            tokio::pin!(gathered);
            while batch.len() <= 8 && batch.last().is_none_or(|(_, body)| body.len() < self.largest / 2) {
                tokio::select! {
                    biased;
                    next = receiver.recv() => match next {
                        Some(next) => take(next, &mut batch),
                        None => { open = false; break }
                    },
                    () = &mut gathered => break,
                }
            }
            for (source, body) in batch.drain(..) {
                let size = body.len() as u64;
                if !self.store(source, body.freeze()).await {
                    lost += size;
                }
            }
        }
        let mut warnings = Vec::new();
        if dropped > 0 {
            let limit = schemas::Bytes(self.limit.unwrap_or_default());
            warnings.push(format!("log cut after {limit}: {dropped} bytes were not kept"));
        }
        if lost > 0 {
            warnings.push(format!("{lost} bytes of log could not be stored"));
        }
        for warning in &warnings {
            self.store(LogSource::System, format!("[shoal] {warning}\n").into()).await;
        }
        warnings
    }

    /// Stores one batch, again and again. `false`: given up.
    async fn store(&mut self, source: LogSource, body: Bytes) -> bool {
        let subject = self.names.log_subject(&self.key, &self.start, source);
        let mut headers = HeaderMap::new();
        // A batch whose answer was lost is not stored twice.
        headers.insert(header::NATS_MSG_ID, format!("{}.{}", self.start, self.numbered));
        self.numbered += 1;
        let began = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            match self.js.publish(subject.clone(), headers.clone(), body.clone()).await {
                Ok(_) => return true,
                Err(error) if began.elapsed() > GIVE_UP_AFTER || self.give_up.is_cancelled() => {
                    tracing::warn!(task = %self.key, %error, bytes = body.len(), "log batch given up");
                    return false;
                }
                Err(error) => tracing::debug!(task = %self.key, %error, "log batch not stored, trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.give_up.cancelled() => {}
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }
}

async fn read(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    source: LogSource,
    largest: usize,
    to: mpsc::Sender<(LogSource, Bytes)>,
    activity: Activity,
) {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(largest.min(32 << 10));
        match from.read_buf(&mut buffer).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "output of a workload unreadable");
                return;
            }
        }
        activity.touch();
        while !buffer.is_empty() {
            let part = buffer.split_to(buffer.len().min(largest)).freeze();
            if to.send((source, part)).await.is_err() {
                return;
            }
        }
    }
}
