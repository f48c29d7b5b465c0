//! A task's log lines, stored and live, in stream order. Resumable from any point; never a consumer.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use jetstream::{CALL_TIMEOUT, Link};
use schemas::function::LOG_QUEUE;
use schemas::names::LogSource;
use schemas::{StartId, TaskKey, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;

use super::find::replaced;
use super::record::{Pauses, Recorded};
use super::wait::Watch;
use super::{Client, ClientError};

/// A place in the stream of logs: everything up to here was read. 0 is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogCursor(pub u64);

/// Which lines.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Go on until the task has ended.
    pub follow: bool,
    /// Only what comes after this place.
    pub from: LogCursor,
    /// Only of these sources; empty for all.
    pub sources: Vec<LogSource>,
    /// Only of this start.
    pub start: Option<StartId>,
    /// Of what is stored, only the last so many lines.
    pub tail: Option<usize>,
    /// Also of earlier runs of the same id.
    pub all_runs: bool,
}

/// One stored piece of log: some lines, as the worker sent them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// Its place; go on from here with [`LogCursor`].
    pub sequence: u64,
    /// Which start wrote it.
    pub start: StartId,
    /// Where it was written.
    pub source: LogSource,
    /// The bytes, as they came.
    pub bytes: Bytes,
    /// When they were stored.
    pub at: Timestamp,
}

/// Messages asked for at a time.
const PAGE: usize = 500;
/// Read again although nothing woke us.
const READ_AGAIN: Duration = Duration::from_secs(15);
/// How long a passing failure is borne with nobody following.
const BEAR: Duration = Duration::from_secs(30);
/// A wake-up may overtake the storing of what it tells of: look again so soon, then later, this often.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const LOOKS: u32 = 8;

impl Client {
    /// The task whose log is meant, as [`Client::find`] finds it; or that of a function's instances, as
    /// `_functions.<function>`.
    pub async fn find_log(&self, text: &str) -> Result<TaskKey, ClientError> {
        match text.split_once('.') {
            Some((LOG_QUEUE, _)) => Ok(text.parse()?),
            _ => self.find(text).await,
        }
    }

    /// The log of a task, what is stored and then, with `follow`, what comes, until the task has ended and all its lines
    /// were read. Any chunk's place is where a later call can go on.
    pub fn logs(&self, key: &TaskKey, options: LogOptions) -> BoxStream<'static, Result<LogChunk, ClientError>> {
        let base = self.names.task_logs_subjects(key);
        let start = options.start.as_ref().map_or("*", StartId::as_str);
        let source = match options.sources.as_slice() {
            [one] => one.as_str(),
            _ => "*",
        };
        let log = Log {
            subjects: replaced(&base, start, source),
            read_to: options.from.0,
            client: self.clone(),
            key: key.clone(),
            options,
            begins: None,
            found: VecDeque::new(),
            phase: Phase::Begin,
        };
        stream::try_unfold(log, |mut log| async move { Ok(log.next().await?.map(|chunk| (chunk, log))) })
            .into_stream()
            .boxed()
    }
}

/// One log being read.
struct Log {
    client: Client,
    key: TaskKey,
    options: LogOptions,
    subjects: String,
    /// Everything up to here was read.
    read_to: u64,
    /// Chunks stored before are of an earlier run.
    begins: Option<Timestamp>,
    /// Read and not handed out.
    found: VecDeque<LogChunk>,
    phase: Phase,
}

/// ```text
/// Begin -> Stored -> Live -> Last -> End      with follow
/// Begin -> Stored ---------------------> End  without
/// ```
enum Phase {
    Begin,
    /// Reading what was there when we came.
    Stored(Option<Box<Live>>),
    /// Waiting for more.
    Live(Box<Live>),
    /// The task is over: reading up to its last line.
    Last(u64),
    End,
}

/// What wakes a reader that is at the end of what is stored.
struct Live {
    /// The same lines as they pass by; only counted, for they bear no sequence.
    passing: Subscriber,
    /// None of a function's instances: their log has no end.
    task: Option<Watch>,
    link: watch::Receiver<Link>,
    /// Passed by and not read yet.
    owed: usize,
    /// Looks in vain since the last one that found something.
    looks: u32,
}

/// The next news of the task; of no task there are none.
async fn ended(task: &mut Option<Watch>) -> Result<Option<Recorded>, ClientError> {
    match task {
        Some(task) => task.next().await,
        None => std::future::pending().await,
    }
}

impl Log {
    async fn next(&mut self) -> Result<Option<LogChunk>, ClientError> {
        loop {
            // A tail is known only when all that is stored was read.
            let tailing = self.options.tail.is_some() && matches!(self.phase, Phase::Stored(_));
            if !tailing && let Some(chunk) = self.found.pop_front() {
                return Ok(Some(chunk));
            }
            self.phase = match std::mem::replace(&mut self.phase, Phase::End) {
                Phase::Begin => self.begin().await?,
                Phase::Stored(live) => {
                    if self.read_page().await?.more {
                        if let Some(lines) = self.options.tail {
                            keep_last_lines(&mut self.found, lines);
                        }
                        Phase::Stored(live)
                    } else {
                        if let Some(lines) = self.options.tail.take() {
                            keep_last_lines(&mut self.found, lines);
                        }
                        live.map_or(Phase::End, Phase::Live)
                    }
                }
                Phase::Live(live) => self.listen(live).await?,
                Phase::Last(last) if self.read_to < last => {
                    let read_to = self.read_to;
                    if self.read_page().await?.messages == 0 && self.read_to == read_to {
                        // The leader has it, this replica not yet; or it has just expired.
                        tokio::time::sleep(LOOK_AGAIN).await;
                        let newest = self.newest().await?;
                        Phase::Last(newest.min(last))
                    } else {
                        Phase::Last(last)
                    }
                }
                Phase::Last(_) | Phase::End => {
                    if self.found.is_empty() {
                        return Ok(None);
                    }
                    Phase::End
                }
            };
        }
    }

    async fn begin(&mut self) -> Result<Phase, ClientError> {
        let view = self.bear(|| self.client.look(&self.key)).await?;
        let recorded = view.record.as_ref().map(|recorded| recorded.record.submitted_at);
        let newest = recorded.max(view.queued.as_ref().map(|queued| queued.submitted_at));
        let of_function = self.key.queue.as_str() == LOG_QUEUE;
        if newest.is_none() && self.newest().await? == 0 && !(of_function && self.options.follow) {
            let kind = if of_function { "log" } else { "task" };
            return Err(ClientError::NotFound { kind, name: self.key.to_string() });
        }
        if !self.options.all_runs && self.options.start.is_none() {
            self.begins = newest;
        }
        if !self.options.follow || (newest.is_none() && !of_function) {
            return Ok(Phase::Stored(None));
        }
        let client = self.client.js.client();
        let passing = client.subscribe(self.subjects.clone()).await.map_err(|_| ClientError::Closed)?;
        let mut link = self.client.connection.link.clone();
        link.mark_unchanged();
        let task = (!of_function).then(|| Watch::new(&self.client, &self.key, view.sequence()));
        Ok(Phase::Stored(Some(Box::new(Live { passing, task, link, owed: 0, looks: 0 }))))
    }

    /// Waits for a reason to read, and reads.
    async fn listen(&mut self, mut live: Box<Live>) -> Result<Phase, ClientError> {
        let pause = match live.owed {
            0 => READ_AGAIN,
            _ => LOOK_AGAIN * 2_u32.pow(live.looks),
        };
        let over = tokio::select! {
            line = live.passing.next() => {
                line.ok_or(ClientError::Closed)?;
                live.owed += 1;
                while let Some(Some(_)) = live.passing.next().now_or_never() {
                    live.owed += 1;
                }
                live.looks = 0;
                false
            }
            recorded = ended(&mut live.task) => recorded?.is_none_or(|recorded| recorded.record.state.is_terminal()),
            changed = live.link.changed() => {
                changed.map_err(|_| ClientError::Closed)?;
                false
            }
            () = tokio::time::sleep(pause) => false,
        };
        if over {
            // A worker stores its lines before it writes the end.
            return Ok(Phase::Last(self.newest().await?));
        }
        if !live.link.borrow_and_update().connected {
            return Ok(Phase::Live(live));
        }
        let mut read = 0;
        loop {
            let page = self.read_page().await?;
            read += page.messages;
            if !page.more {
                break;
            }
        }
        live.owed = live.owed.saturating_sub(read);
        live.looks = if read > 0 { 0 } else { live.looks + 1 };
        if live.looks >= LOOKS {
            // Counted before it was stored, and read with what was stored: nothing is owed.
            (live.owed, live.looks) = (0, 0);
        }
        Ok(Phase::Live(live))
    }

    /// Sequence of the last line stored so far, as the leader knows it.
    async fn newest(&self) -> Result<u64, ClientError> {
        let stream = self.client.names.logs_stream();
        let newest = self.bear(|| self.client.js.last(&stream, &self.subjects)).await?;
        Ok(newest.map_or(0, |message| message.sequence))
    }

    async fn read_page(&mut self) -> Result<PageRead, ClientError> {
        let stream = self.client.names.logs_stream();
        let page = self.bear(|| self.client.js.page(&stream, &self.subjects, self.read_to + 1, PAGE)).await?;
        let read = PageRead { messages: page.messages.len(), more: page.more };
        for message in page.messages {
            self.read_to = message.sequence;
            let Some((start, source)) = self.client.names.log_tokens(&message.subject) else { continue };
            let wanted = self.options.sources.is_empty() || self.options.sources.contains(&source);
            if wanted && self.begins.is_none_or(|begins| message.stored_at >= begins) {
                self.found.push_back(LogChunk {
                    sequence: message.sequence,
                    start,
                    source,
                    bytes: message.payload,
                    at: message.stored_at,
                });
            }
        }
        Ok(read)
    }

    /// Calls again what failed for a passing reason: as long as it takes for a follower, else for a while.
    async fn bear<T, E: Into<ClientError>, F: Future<Output = Result<T, E>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, ClientError> {
        let give_up = Instant::now() + BEAR;
        let mut pauses = Pauses::new(Duration::from_millis(100), Duration::from_secs(2));
        let calling = async {
            loop {
                match self.client.while_linked(call()).await.map(|done| done.map_err(Into::into)) {
                    None => {}
                    Some(Err(error)) if error.is_transient() && (self.options.follow || Instant::now() < give_up) => {
                        tracing::debug!(task = %self.key, %error, "reading the log again in a moment");
                        pauses.sleep().await;
                    }
                    Some(done) => return done,
                }
            }
        };
        if self.options.follow {
            return calling.await;
        }
        let late = |_| Err(ClientError::TimedOut { what: format!("reading the log of {}", self.key), after: BEAR });
        tokio::time::timeout_at(give_up + CALL_TIMEOUT, calling).await.unwrap_or_else(late)
    }
}

struct PageRead {
    messages: usize,
    more: bool,
}

/// Drops lines from the front until `most` are left. A last line without its end counts as one.
fn keep_last_lines(chunks: &mut VecDeque<LogChunk>, most: usize) {
    let mut lines = 0;
    for at in (0..chunks.len()).rev() {
        let bytes = &chunks[at].bytes;
        let mut end = bytes.len();
        while end > 0 && lines < most {
            // The newline at the very end closes the line before it.
            end = bytes[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
            lines += 1;
        }
        if lines >= most {
            chunks[at].bytes = chunks[at].bytes.slice(end..);
            chunks.drain(..at);
            if chunks.front().is_some_and(|chunk| chunk.bytes.is_empty()) {
                chunks.pop_front();
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(texts: &[&str]) -> VecDeque<LogChunk> {
        let chunk = |(at, text): (usize, &&str)| LogChunk {
            sequence: at as u64 + 1,
            start: StartId::new("s").unwrap(),
            source: LogSource::Stdout,
            bytes: Bytes::copy_from_slice(text.as_bytes()),
            at: Timestamp::now(),
        };
        texts.iter().enumerate().map(chunk).collect()
    }

    #[test]
    fn a_tail_counts_lines_over_chunks() {
        for (texts, most, left) in [
            (&["a\nb\n", "c\n"][..], 2, "b\nc\n"),
            (&["a\nb\n", "c\n"], 1, "c\n"),
            (&["a\nb\n", "c\n"], 9, "a\nb\nc\n"),
            (&["a\nb\n", "c\n"], 0, ""),
            (&["a\n", "b"], 1, "b"),
            (&["a\n", "\n\n"], 2, "\n\n"),
            (&[], 3, ""),
        ] {
            let mut chunks = chunks(texts);
            keep_last_lines(&mut chunks, most);
            let text: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.bytes.to_vec()).collect();
            assert_eq!(String::from_utf8(text).unwrap(), left, "{texts:?} {most}");
        }
    }
}
