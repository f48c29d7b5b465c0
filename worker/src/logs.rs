//! Output of a workload, and what Shoal says beside it, in batches to the stream of logs. One publisher an attempt, so that the stream keeps the order
//! in which stdout and stderr came; what arrives while one batch is under way makes the next one.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
/// Room for the first read of a stream. Most workloads say little, and a worker may run thousands of them.
const FIRST_READ: usize = 1 << 10;
/// Room for a read of a stream that fills whatever it is given.
const LARGEST_READ: usize = 32 << 10;
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
    /// It does something just now.
    pub fn touch(&self) {
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

type Piece = (LogSource, Bytes);

/// Where one attempt's output goes: stores what comes through its [`Output`].
pub struct LogSink {
    js: JetStream,
    names: Names,
    key: TaskKey,
    start: StartId,
    limit: Option<u64>,
    give_up: CancellationToken,
    largest: usize,
    numbered: u64,
}

/// The writing end of a [`LogSink`].
pub struct Output {
    to: mpsc::Sender<Piece>,
    activity: Activity,
    largest: usize,
}

/// What Shoal itself says of one attempt goes into the same log as `system`. Cheap to clone; the log is complete only
/// once every clone is gone.
#[derive(Clone, Debug)]
pub struct Notes {
    to: Option<mpsc::Sender<Piece>>,
    activity: Activity,
}

impl Notes {
    /// Notes that nobody reads.
    pub fn nowhere() -> Self {
        Self { to: None, activity: Activity::default() }
    }

    /// Notes that a test reads.
    #[cfg(test)]
    pub fn heard() -> (Self, mpsc::Receiver<(LogSource, Bytes)>) {
        let (to, heard) = mpsc::channel(1000);
        (Self { to: Some(to), activity: Activity::default() }, heard)
    }

    /// Says one line. Waits while the log is behind. Counts as a sign of life of the attempt.
    pub async fn say(&self, line: &str) {
        self.activity.touch();
        if let Some(to) = &self.to {
            // Closed only when nobody stores any more.
            let _ = to.send((LogSource::System, format!("[shoal] {line}\n").into())).await;
        }
    }

    /// A sign of life without a word.
    pub fn touch(&self) {
        self.activity.touch();
    }
}

/// Takes output of a workload that is made of several, in whatever order it comes. Cheap to clone; the log is complete
/// only once every clone is gone.
#[derive(Clone)]
pub struct LogWriter {
    to: mpsc::Sender<Piece>,
    activity: Activity,
    largest: usize,
    /// The same in one file, with what is left of its bound.
    file: Option<Arc<Mutex<(std::fs::File, u64)>>>,
}

impl LogWriter {
    /// Writes the same into a file, too, up to `most` bytes. Where it cannot be made, there is none.
    pub fn into_file(self, path: &std::path::Path, most: u64) -> Self {
        let file = std::fs::File::create(path).ok();
        Self { file: file.map(|file| Arc::new(Mutex::new((file, most)))), ..self }
    }

    /// Writes some of it. Waits while the log is behind. Counts as a sign of life of the attempt.
    pub async fn write(&self, source: LogSource, mut bytes: Bytes) {
        if let Some(file) = &self.file {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let (file, left) = &mut *file;
            let part = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            // A full disk is told by whatever else is written there.
            *left = if file.write_all(&bytes[..part]).is_ok() { *left - part as u64 } else { 0 };
        }
        while !bytes.is_empty() {
            self.activity.touch();
            let part = bytes.split_to(bytes.len().min(self.largest));
            // Closed only when nobody stores any more.
            let _ = self.to.send((source, part)).await;
        }
    }

    /// For what Shoal says beside it.
    pub fn notes(&self) -> Notes {
        Notes { to: Some(self.to.clone()), activity: self.activity.clone() }
    }
}

impl Output {
    /// For a workload that is made of several.
    pub fn writer(self) -> LogWriter {
        LogWriter { to: self.to, activity: self.activity, largest: self.largest, file: None }
    }

    /// For what Shoal says beside the workload.
    pub fn notes(&self) -> Notes {
        Notes { to: Some(self.to.clone()), activity: self.activity.clone() }
    }

    /// Copies both streams to their ends.
    pub async fn copy(self, stdout: Box<dyn AsyncRead + Send + Unpin>, stderr: Box<dyn AsyncRead + Send + Unpin>) {
        futures_util::future::join(
            read(stdout, LogSource::Stdout, self.largest, self.to.clone(), self.activity.clone()),
            read(stderr, LogSource::Stderr, self.largest, self.to, self.activity),
        )
        .await;
    }
}

impl LogSink {
    /// A future that keeps up to `limit` bytes and ends with the warnings once every writer is gone, and the first
    /// writer.
    pub fn open(
        worker: &Worker,
        key: &TaskKey,
        start: &StartId,
        limit: Limit<schemas::Bytes>,
        activity: Activity,
    ) -> (impl Future<Output = Vec<String>> + use<>, Output) {
        let largest = LARGEST_BATCH.min(worker.js.client().max_payload().saturating_sub(8 << 10).max(1 << 10));
        let sink = Self {
            js: worker.js.clone(),
            names: worker.config.names.clone(),
            key: key.clone(),
            start: start.clone(),
            limit: limit.bound().map(|limit| limit.0),
            give_up: worker.stop_now.clone(),
            largest,
            numbered: 0,
        };
        // Bounded: a workload that writes faster than the server stores waits in its write.
        let (to, from) = mpsc::channel(8);
        (sink.keep(from), Output { to, activity, largest })
    }

    /// Stores what comes until every writer is gone. Returns what a reader of the record should know.
    async fn keep(mut self, mut receiver: mpsc::Receiver<Piece>) -> Vec<String> {
        let (mut kept, mut dropped, mut lost) = (0_u64, 0_u64, 0_u64);
        let mut batch: Vec<(LogSource, BytesMut)> = Vec::new();
        let mut open = true;
        while open {
            let Some(first) = receiver.recv().await else { break };
            let mut take = |(source, bytes): Piece, batch: &mut Vec<(LogSource, BytesMut)>| {
                // What Shoal says is little, and must not go under in a flood.
                let ours = source == LogSource::System;
                let limit = self.limit.filter(|_| !ours);
                let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(kept));
                let fits = (bytes.len() as u64).min(room) as usize;
                kept += if ours { 0 } else { fits as u64 };
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
    to: mpsc::Sender<Piece>,
    activity: Activity,
) {
    let mut buffer = BytesMut::new();
    let mut room = FIRST_READ;
    loop {
        buffer.reserve(room);
        match from.read_buf(&mut buffer).await {
            Ok(0) => return,
            Ok(read) if read >= room => room = (room * 4).min(largest.min(LARGEST_READ)),
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_stream_is_read_whole_and_in_larger_pieces_the_faster_it_comes() {
        let (mut writer, reader) = tokio::io::duplex(256 << 10);
        let written: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
        let all = written.clone();
        let writing = tokio::spawn(async move { writer.write_all(&all).await });
        let (to, mut from) = mpsc::channel(8);
        let reading = tokio::spawn(read(Box::new(reader), LogSource::Stdout, LARGEST_BATCH, to, Activity::default()));
        let mut pieces = Vec::new();
        while let Some((_, piece)) = from.recv().await {
            pieces.push(piece);
        }
        writing.await.unwrap().unwrap();
        reading.await.unwrap();
        assert_eq!(pieces.concat(), written);
        let largest = pieces.iter().map(Bytes::len).max().unwrap();
        assert!(pieces[0].len() <= 2 * FIRST_READ && largest >= LARGEST_READ / 2, "{} {largest}", pieces[0].len());
    }
}
