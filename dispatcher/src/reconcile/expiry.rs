//! Queued tasks that nobody pulls: those past their `expires_at` end as `expired`, and those on subjects that no queue's
//! consumer takes become dead letters.
//!
//! A scan of the tasks' stream by direct reads, from a watermark on: every message is read at most once, and only if it
//! is still there some seconds after it was stored, so a healthy queue costs one small request a look. Tasks with a
//! deadline are remembered by it, the nearest first, and looked at again when it comes.
//!
//! `expires_at` means "not started by then", so a task that was handed out is left to whoever holds it for two ack waits
//! more: a start that the record does not show yet is shown by then.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use jetstream::{ConsumerState, PublishError, StoredMessage};
use schemas::{Code, Order, QueueName, State, TaskError, TaskKey, TaskRecord, Timestamp, header};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Queued, Rhythm, Watch, clock};
use crate::client::ClientError;
use crate::client::record::{self, Written};

/// A younger message is left to the workers.
const MIN_AGE: Duration = Duration::from_secs(5);
/// Messages in one read.
const PAGE: usize = 256;
/// Deadlines remembered; beyond that the farthest are forgotten and found again by a later scan.
const REMEMBERED: usize = 100_000;
/// Longest sleep towards one deadline: clocks are compared anew after it.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// A queued task and the moment to look at it: ordered by the moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Deadline {
    at: Timestamp,
    sequence: u64,
    key: TaskKey,
}

/// The one field of a task that matters here.
#[derive(Deserialize)]
struct Expiring {
    expires_at: Option<Timestamp>,
}

/// What is known of the stream.
#[derive(Debug, Default)]
struct Memory {
    /// Everything below was read.
    next: u64,
    deadlines: BTreeSet<Deadline>,
    /// Where to read again once there is room for what was forgotten.
    forgotten: Option<u64>,
    /// The server that this was read from; started anew, it may have an older store.
    server: String,
}

impl Memory {
    fn remember(&mut self, deadline: Deadline) {
        self.deadlines.insert(deadline);
        if self.deadlines.len() > REMEMBERED
            && let Some(farthest) = self.deadlines.pop_last()
        {
            let from = self.forgotten.map_or(farthest.sequence, |from| from.min(farthest.sequence));
            self.forgotten = Some(from);
        }
    }

    /// Goes back to what was forgotten, once there is room.
    fn make_up(&mut self) {
        if self.deadlines.len() < REMEMBERED / 2
            && let Some(from) = self.forgotten.take()
        {
            self.next = self.next.min(from);
        }
    }

    /// The nearest deadline that has come.
    fn due(&mut self, now: Timestamp) -> Option<Deadline> {
        if self.deadlines.first()?.at > now {
            return None;
        }
        self.deadlines.pop_first()
    }
}

/// Looks every `every`, and whenever a deadline comes.
pub async fn run(watch: Watch, queued: Queued, stop: CancellationToken) {
    let mut rhythm = Rhythm::new(watch.every);
    let mut memory = Memory::default();
    // The server's clock less ours, in milliseconds.
    let mut ahead: i64 = 0;
    loop {
        let now = Timestamp::from_millis(Timestamp::now().as_millis().saturating_add(ahead));
        let until_due = memory.deadlines.first().map(|nearest| nearest.at.since(now).min(LONGEST_SLEEP));
        let wake = Instant::now() + until_due.unwrap_or(LONGEST_SLEEP);
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rhythm.ticks.tick() => {
                let looked = scan(&watch, &queued, &mut memory).await;
                let looked = looked.map(|server| ahead = server.as_millis() - Timestamp::now().as_millis());
                rhythm.report("expiry", looked);
            }
            () = tokio::time::sleep_until(wake), if until_due.is_some() => {
                let now = Timestamp::from_millis(Timestamp::now().as_millis().saturating_add(ahead));
                while let Some(deadline) = memory.due(now) {
                    match expire(&watch, &deadline).await {
                        Ok(Next::Done) => {}
                        Ok(Next::LookAgain(after)) => {
                            memory.deadlines.insert(Deadline { at: now.plus(after), ..deadline });
                        }
                        Err(error) => {
                            memory.deadlines.insert(Deadline { at: now.plus(watch.every), ..deadline });
                            rhythm.report("expiry", Err(error));
                            break;
                        }
                    }
                    if stop.is_cancelled() {
                        return;
                    }
                }
            }
        }
    }
}

/// Reads what was not read before and is old enough. Returns the server's present.
async fn scan(watch: &Watch, queued: &Queued, memory: &mut Memory) -> Result<Timestamp, ClientError> {
    let (js, names) = (&watch.js, &watch.names);
    let stream = names.tasks_stream();
    let look = clock::look(js, &stream).await?;
    let server = js.client().server_info().server_id;
    if look.last < memory.next.saturating_sub(1) || server != memory.server {
        // The stream was made anew or set back, or may have been and have come further since.
        *memory = Memory { server, ..Memory::default() };
    }
    memory.make_up();
    memory.next = memory.next.max(look.first);
    let min_age = MIN_AGE.min(watch.every);
    while memory.next <= look.last {
        let page = js.page(&stream, &names.tasks_subjects(), memory.next, PAGE).await?;
        for message in &page.messages {
            if look.now.since(message.stored_at) < min_age {
                return Ok(look.now);
            }
            examine(watch, queued, memory, message).await?;
            memory.next = message.sequence + 1;
        }
        if !page.more {
            break;
        }
    }
    Ok(look.now)
}

/// One message that waits: remembers its deadline, or gives it up where no worker could.
async fn examine(
    watch: &Watch,
    known: &Queued,
    memory: &mut Memory,
    message: &StoredMessage,
) -> Result<(), ClientError> {
    let Some((queue, id)) = watch.names.task_tokens(&message.subject) else { return Ok(()) };
    let queue = match QueueName::new(queue) {
        Ok(queue) => queue,
        Err(error) => return give_up(watch, message, (queue, id), &error.to_string()).await,
    };
    // A wrong id in a good queue is the queue's workers' to give up.
    let Ok(id) = id.parse() else { return Ok(()) };
    let key = TaskKey::new(queue, id);
    if let Ok(Expiring { expires_at: Some(at) }) = serde_json::from_slice(&message.payload) {
        memory.remember(Deadline { at, sequence: message.sequence, key: key.clone() });
    }
    known.remember(key, message);
    Ok(())
}

/// What becomes of a deadline that has come.
enum Next {
    Done,
    LookAgain(Duration),
}

/// Ends a task that is past its deadline and was not started, as far as that can be known.
async fn expire(watch: &Watch, deadline: &Deadline) -> Result<Next, ClientError> {
    let (js, names, key) = (&watch.js, &watch.names, &deadline.key);
    let stream = names.tasks_stream();
    let Some(message) = js.at(&stream, deadline.sequence).await? else { return Ok(Next::Done) };
    if message.subject != names.task_subject(key) {
        // The stream was set back and counts on from an older number: this one is another task's.
        return Ok(Next::Done);
    }
    let slot = record::read(js, names, key).await?;
    let mut order =
        slot.recorded.as_ref().map(|recorded| recorded.record.order_to(message.sequence, message.stored_at));
    if order == Some(Order::Unclear) {
        // A message that is there behind its record is of the newest run; what we write over is a relic then.
        let still = js.at(&stream, message.sequence).await?;
        let is_there = still.is_some_and(|still| still.stored_at == message.stored_at);
        order = Some(if is_there { Order::Earlier } else { Order::Later });
    }
    match &slot.recorded {
        // This run, or a later one: only what another dispatcher left half done is ours.
        Some(recorded) if matches!(order, Some(Order::Same | Order::Later)) => {
            if recorded.record.sequence == deadline.sequence && recorded.record.state == State::Expired {
                record::tell(js, names, &recorded.record, recorded.revision).await;
                remove(watch, deadline).await?;
            }
            return Ok(Next::Done);
        }
        // An earlier run that is not over: `lost` settles that first.
        Some(recorded) if !recorded.record.state.is_terminal() => return Ok(Next::LookAgain(watch.every)),
        Some(_) | None => {}
    }
    let consumer = js.consumer(&stream, key.queue.as_str()).await?;
    if let Some(state) = &consumer
        && handed_out(state, deadline.sequence)
    {
        // It may have started just before its deadline without the record showing it yet.
        let expires_at = serde_json::from_slice(&message.payload).ok().and_then(|task: Expiring| task.expires_at);
        let patience = state.ack_wait() * 2;
        let past = clock::look(js, &stream).await?.now.since(expires_at.unwrap_or(deadline.at));
        if past < patience {
            return Ok(Next::LookAgain(patience - past));
        }
    }
    let record = expired(&message, deadline);
    if let Written::Stored(revision) = record::write(js, names, &record, slot.revision).await? {
        tracing::info!(task = %key, sequence = deadline.sequence, "expired in its queue");
        record::tell(js, names, &record, revision).await;
        remove(watch, deadline).await?;
        return Ok(Next::Done);
    }
    // Somebody else wrote first; what they wrote decides.
    Ok(Next::LookAgain(Duration::ZERO))
}

fn handed_out(consumer: &ConsumerState, sequence: u64) -> bool {
    sequence <= consumer.delivered.stream_seq
}

/// The record of a task that nobody started in time.
fn expired(message: &StoredMessage, deadline: &Deadline) -> TaskRecord {
    let mut record = TaskRecord::new(&deadline.key, deadline.sequence, State::Expired, message.stored_at);
    record.submission = message.header(header::SUBMISSION).map(str::to_owned);
    record.keep_task(&message.payload);
    record.ended_at = Some(Timestamp::now());
    let message = match serde_json::from_slice(&message.payload) {
        Ok(Expiring { expires_at: Some(at) }) => format!("not started by {at}"),
        _ => "not started in time".to_owned(),
    };
    record.error = Some(TaskError::new(Code::Expired, message));
    record
}

/// Deletes the message if nobody was ever given it; otherwise the next delivery finds the record and acks.
async fn remove(watch: &Watch, deadline: &Deadline) -> Result<(), ClientError> {
    let stream = watch.names.tasks_stream();
    let consumer = watch.js.consumer(&stream, deadline.key.queue.as_str()).await?;
    if !consumer.is_some_and(|state| handed_out(&state, deadline.sequence)) {
        watch.js.delete(&stream, deadline.sequence).await?;
    }
    Ok(())
}

/// A message of no queue: dead letter without a record, then gone.
async fn give_up(
    watch: &Watch,
    message: &StoredMessage,
    (queue, id): (&str, &str),
    why: &str,
) -> Result<(), ClientError> {
    let (js, names) = (&watch.js, &watch.names);
    let subject = names.dead_subject_raw(&token(queue), &token(id));
    let sequence = message.sequence.to_string();
    let newest = js.last(&names.dead_stream(), &subject).await?;
    let behind = newest.as_ref().map_or(0, |newest| newest.sequence);
    if newest.is_none_or(|newest| newest.header(header::SEQUENCE) != Some(&sequence)) {
        // No message id and no expected sequence: a dead letter bears no header of the server's. Two dispatchers at once
        // therefore may both write it; the first stays.
        match js.publish(subject.clone(), dead_headers(message, &sequence, why), message.payload.clone()).await {
            Ok(_) => tracing::warn!(subject = message.subject, why, "a message of no queue became a dead letter"),
            Err(source @ (PublishError::Refused { .. } | PublishError::Unsendable { .. })) => {
                // One message that cannot be given up must not hold up the rest.
                tracing::error!(subject = message.subject, error = %source, "a message of no queue stays: no dead letter");
                return Ok(());
            }
            Err(source) => return Err(ClientError::Write { what: format!("dead letter {subject}"), source }),
        }
        let written = js.page(&names.dead_stream(), &subject, behind + 1, PAGE).await?.messages;
        for second in written.iter().filter(|letter| letter.header(header::SEQUENCE) == Some(&sequence)).skip(1) {
            js.delete(&names.dead_stream(), second.sequence).await?;
        }
    }
    js.delete(&names.tasks_stream(), message.sequence).await?;
    Ok(())
}

/// The message's own headers, never `Nats-*` nor a forgery of ours, and why it was given up.
fn dead_headers(message: &StoredMessage, sequence: &str, why: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let ours = [header::REASON, header::MESSAGE, header::SEQUENCE, header::ATTEMPTS, header::SUBJECT];
    for (name, values) in message.headers.iter() {
        let text: &str = name.as_ref();
        let reserved = text.len() >= 5 && text.as_bytes()[..5].eq_ignore_ascii_case(b"nats-");
        if !reserved && !ours.iter().any(|own| own.eq_ignore_ascii_case(text)) {
            for value in values {
                headers.append(name.clone(), value.clone());
            }
        }
    }
    headers.insert(header::REASON, Code::InvalidId.as_str());
    headers.insert(header::MESSAGE, why.replace(['\r', '\n'], " "));
    headers.insert(header::SEQUENCE, sequence);
    headers.insert(header::ATTEMPTS, "0");
    headers.insert(header::SUBJECT, message.subject.as_str());
    headers
}

/// A token that can be published to: a wildcard cannot.
fn token(token: &str) -> String {
    token.replace(['*', '>'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deadline(ms: i64, sequence: u64) -> Deadline {
        Deadline { at: Timestamp::from_millis(ms), sequence, key: "q.a".parse().unwrap() }
    }

    #[test]
    fn the_nearest_deadline_comes_first_and_none_before_its_time() {
        let mut memory = Memory::default();
        for (ms, sequence) in [(300, 1), (100, 2), (200, 3)] {
            memory.remember(deadline(ms, sequence));
        }
        let now = Timestamp::from_millis(200);
        assert_eq!(memory.due(now).unwrap().sequence, 2);
        assert_eq!(memory.due(now).unwrap().sequence, 3);
        assert!(memory.due(now).is_none());
    }

    #[test]
    fn what_is_forgotten_for_want_of_room_is_read_again() {
        let mut memory = Memory { next: 1_000_000, ..Memory::default() };
        for sequence in 1..=REMEMBERED as u64 + 2 {
            memory.remember(deadline(sequence as i64, sequence));
        }
        assert_eq!(memory.deadlines.len(), REMEMBERED);
        memory.make_up();
        assert_eq!(memory.next, 1_000_000, "no room yet");
        while memory.deadlines.len() >= REMEMBERED / 2 {
            assert!(memory.due(Timestamp::from_millis(1_000_000)).is_some());
        }
        memory.make_up();
        assert_eq!(memory.next, REMEMBERED as u64 + 1);
    }

    #[test]
    fn a_dead_letter_keeps_the_messages_own_headers_and_no_reserved_ones() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("traceparent", "t"), ("Nats-Msg-Id", "x"), ("nats-ttl", "1s"), ("Shoal-Reason", "forged")]
        {
            headers.insert(name, value);
        }
        let message = StoredMessage {
            subject: "shoal.tasks.Bad.a".into(),
            sequence: 7,
            stored_at: Timestamp::from_millis(0),
            headers,
            payload: "{}".into(),
        };
        let headers = dead_headers(&message, "7", "line\r\nbreak");
        let get = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(get("traceparent").as_deref(), Some("t"));
        assert_eq!(get("Shoal-Reason").as_deref(), Some("invalid_id"));
        assert_eq!(get("Shoal-Subject").as_deref(), Some("shoal.tasks.Bad.a"));
        assert_eq!(get("Nats-Msg-Id"), None);
        assert_eq!(get("nats-ttl"), None);
        assert_eq!(get("Shoal-Message").as_deref(), Some("line  break"));
    }
}
