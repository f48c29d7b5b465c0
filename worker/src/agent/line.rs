//! The line of one agent job to people: what it tells goes, masked, to `shoal.agents.<id>.out` and into its transcript;
//! what it is told comes on `shoal.agents.<id>.in`.
//!
//! Both subjects are stored, so nobody need listen in the right moment. A message that comes is only a knock: what it says
//! is read from the stream, in order, from where the last reading ended.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agents::secret::Mask;
use agents::{Line, Unanswered};
use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use jetstream::{JetStream, PublishError};
use schemas::transcript::{Entry, Event, Message};
use schemas::{More, Names, StartId, TaskKey, Timestamp, header};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::logs::Activity;

/// Longest text of one event; what is longer is cut, and the cut is told.
const LONGEST_TEXT: usize = 128 << 10;
/// A knock may come a moment before what it announces is stored.
const KNOCK: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500)];
/// Read again without a knock after this: one may have been lost.
const READ_EVERY: Duration = Duration::from_secs(15);
/// An entry is tried again for so long: longer than any restart of a server.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
/// For what is left once the job is over.
const LAST_WORDS: Duration = Duration::from_secs(20);
/// Most that is told of one attempt; beyond it only what matters is. A job tells far less, unless a program floods it.
const MOST_BYTES: usize = 64 << 20;
/// Messages read in one page.
const PAGE: usize = 100;

/// The line of one attempt. Cheap to clone.
#[derive(Clone)]
pub struct JobLine {
    shared: Arc<Shared>,
}

struct Shared {
    key: TaskKey,
    start: StartId,
    mask: Mask,
    /// Every sign on it is one of the attempt's life.
    activity: Activity,
    /// Longest text of one event.
    longest: usize,
    patience: Duration,
    told: Mutex<Told>,
    heard: Mutex<Heard>,
    ended: tokio_util::sync::CancellationToken,
}

struct Told {
    number: u64,
    /// Bytes of text so far.
    bytes: usize,
    to: Option<mpsc::UnboundedSender<Entry>>,
    listeners: Vec<mpsc::UnboundedSender<Entry>>,
}

#[derive(Default)]
struct Heard {
    words: Vec<String>,
    /// Of everyone who asked: the question's id, and where an answer goes.
    asked: HashMap<String, oneshot::Sender<String>>,
}

/// What carries the line; to be polled beside the job until [`JobLine::end`].
pub struct Carrier {
    js: JetStream,
    names: Names,
    shared: Arc<Shared>,
    from: mpsc::UnboundedReceiver<Entry>,
    transcript: PathBuf,
    since: Timestamp,
    give_up: tokio_util::sync::CancellationToken,
}

/// All that a line needs to know.
pub struct Ends {
    /// The server.
    pub js: JetStream,
    /// Its names.
    pub names: Names,
    /// Whose line.
    pub key: TaskKey,
    /// Of which start.
    pub start: StartId,
    /// What was said from then on is heard.
    pub since: Timestamp,
    /// Over all that is told.
    pub mask: Mask,
    /// For signs of life.
    pub activity: Activity,
    /// A question is open for so long.
    pub patience: Duration,
    /// Where the transcript is written.
    pub transcript: PathBuf,
    /// What is not told by then never is.
    pub give_up: tokio_util::sync::CancellationToken,
}

impl JobLine {
    /// A line, and what carries it.
    pub fn open(ends: Ends) -> (Self, Carrier) {
        let Ends { js, names, key, start, since, mask, activity, patience, transcript, give_up } = ends;
        // Unbounded, because what is told is bounded by what the job does, and telling must never wait for the server.
        let (to, from) = mpsc::unbounded_channel();
        let told = Mutex::new(Told { number: 0, bytes: 0, to: Some(to), listeners: Vec::new() });
        let (heard, ended) = (Mutex::default(), tokio_util::sync::CancellationToken::new());
        // A server that takes small messages only takes small texts.
        let longest = LONGEST_TEXT.min(js.client().max_payload() / 4);
        let shared = Arc::new(Shared { longest, key, start, mask, activity, patience, told, heard, ended });
        let carrier = Carrier { js, names, shared: shared.clone(), from, transcript, since, give_up };
        (Self { shared }, carrier)
    }

    /// Everything that is told from now on, in order, until the line ends.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<Entry> {
        let (to, from) = mpsc::unbounded_channel();
        lock(&self.shared.told).listeners.push(to);
        from
    }

    /// Takes in what somebody says, as if it had come on the job's subject.
    pub fn hear(&self, message: Message) {
        self.shared.hear(message);
    }

    /// Until nothing more is told.
    pub async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Nothing more is told. The carrier ends once all of it is stored.
    pub fn end(&self) {
        let mut told = lock(&self.shared.told);
        told.to = None;
        told.listeners.clear();
        drop(told);
        // Who still waits for an answer never gets one.
        lock(&self.shared.heard).asked.clear();
        self.shared.ended.cancel();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line for JobLine {
    fn tell(&self, event: Event) {
        self.shared.activity.touch();
        let event = masked(&self.shared.mask, event, self.shared.longest);
        let mut told = lock(&self.shared.told);
        let before = told.bytes;
        told.bytes = told.bytes.saturating_add(weight(&event));
        let event = match (before > MOST_BYTES, told.bytes > MOST_BYTES) {
            (true, _) if !matters(&event) => return,
            (false, true) if !matters(&event) => {
                Event::Note { text: format!("the transcript is cut here: it has {MOST_BYTES} bytes") }
            }
            _ => event,
        };
        let number = told.number + 1;
        let entry = Entry {
            number,
            at: Timestamp::now(),
            queue: self.shared.key.queue.clone(),
            start: self.shared.start.clone(),
            event,
            more: More::default(),
        };
        if told.to.as_ref().is_some_and(|to| to.send(entry.clone()).is_ok()) {
            told.number = number;
            told.listeners.retain(|listener| listener.send(entry.clone()).is_ok());
        }
    }

    fn ask<'a>(&'a self, question: &'a str) -> BoxFuture<'a, Result<String, Unanswered>> {
        async move {
            let id = crate::worker::new_start_id().to_string();
            let (tell, told) = oneshot::channel();
            lock(&self.shared.heard).asked.insert(id.clone(), tell);
            let open = Open { line: self, id: id.clone() };
            self.tell(Event::Question { id: id.clone(), text: question.to_owned() });
            // Waiting for people is no silence of the job.
            let waiting = async {
                let mut beat = tokio::time::interval(Duration::from_secs(1));
                loop {
                    beat.tick().await;
                    self.shared.activity.touch();
                }
            };
            let answer = tokio::select! {
                answer = tokio::time::timeout(self.shared.patience, told) => answer,
                never = waiting => match never {},
            };
            drop(open);
            match answer {
                Ok(Ok(text)) => {
                    self.tell(Event::Answer { id, text: text.clone() });
                    Ok(text)
                }
                _ => Err(Unanswered(self.shared.patience)),
            }
        }
        .boxed()
    }

    fn heard(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.heard).words)
    }
}

/// A question that nobody waits for any more is not answered.
struct Open<'a> {
    line: &'a JobLine,
    id: String,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        lock(&self.line.shared.heard).asked.remove(&self.id);
    }
}

impl Carrier {
    /// Carries both ways until the line has ended and all that was told is stored. A transcript that cannot be written is
    /// a warning.
    pub async fn carry(mut self) -> Vec<String> {
        let hearing = Hearing { js: self.js.clone(), names: self.names.clone(), shared: self.shared.clone() };
        let since = self.since;
        let telling = self.tell();
        tokio::select! {
            warnings = telling => warnings,
            never = hearing.hear(since) => match never {},
        }
    }

    async fn tell(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut file = match create(&self.transcript) {
            Ok(file) => Some(file),
            Err(error) => {
                warnings.push(format!("no transcript: {error}"));
                None
            }
        };
        let mut lost = 0_u64;
        let mut patience = Patience::default();
        while let Some(entry) = self.from.recv().await {
            let line = serde_json::to_vec(&entry).expect("our own types are JSON");
            if let Some(open) = &mut file
                && let Err(error) = open.write_all(&line).and_then(|()| open.write_all(b"\n"))
            {
                warnings.push(format!("transcript cut: {error}"));
                file = None;
            }
            if patience.last_words.is_none() && self.from.is_closed() {
                patience.last_words = Some(std::time::Instant::now() + LAST_WORDS);
            }
            let stored = self.store(entry.number, line.into(), &patience).await;
            patience.is_lost = !stored;
            lost += u64::from(!stored);
        }
        if lost > 0 {
            warnings.push(format!("{lost} entries of the transcript could not be stored as they happened"));
        }
        warnings
    }

    /// Again and again, while there is hope. `false`: given up.
    async fn store(&self, number: u64, body: Bytes, patience: &Patience) -> bool {
        let subject = self.names.talk_out_subject(self.shared.key.id.as_str());
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MSG_ID, format!("{}.{number}.out", self.shared.start));
        let began = std::time::Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            match self.js.publish(subject.clone(), headers.clone(), body.clone()).await {
                Ok(_) => return true,
                Err(error) if patience.is_over(began, &error) || self.give_up.is_cancelled() => {
                    tracing::warn!(task = %self.shared.key, %error, "an entry of a transcript given up");
                    return false;
                }
                Err(error) => tracing::debug!(task = %self.shared.key, %error, "an entry not stored, trying again"),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.give_up.cancelled() => {}
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }
}

/// How long an entry is tried.
#[derive(Default)]
struct Patience {
    /// The entry before was given up: each is tried once until one is stored.
    is_lost: bool,
    /// The job is over, and ends with or without its last words.
    last_words: Option<std::time::Instant>,
}

impl Patience {
    fn is_over(&self, began: std::time::Instant, error: &PublishError) -> bool {
        // What the server will not have now, it will never have.
        let is_final = matches!(error, PublishError::Unsendable { .. } | PublishError::Refused { .. });
        let is_late = self.last_words.is_some_and(|until| std::time::Instant::now() > until);
        is_final || self.is_lost || is_late || began.elapsed() > GIVE_UP_AFTER
    }
}

struct Hearing {
    js: JetStream,
    names: Names,
    shared: Arc<Shared>,
}

impl Hearing {
    async fn hear(&self, since: Timestamp) -> std::convert::Infallible {
        let subject = self.names.talk_in_subject(self.shared.key.id.as_str());
        let mut knocks = loop {
            match self.js.client().subscribe(subject.clone()).await {
                Ok(knocks) => break knocks,
                Err(error) => tracing::debug!(%error, "cannot listen to people yet"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let mut next = None;
        self.read(&subject, since, &mut next).await;
        loop {
            let knocked = tokio::select! {
                knock = knocks.next() => knock.is_some(),
                () = tokio::time::sleep(READ_EVERY) => false,
            };
            for pause in KNOCK.into_iter().take(if knocked { KNOCK.len() } else { 1 }) {
                tokio::time::sleep(pause).await;
                if self.read(&subject, since, &mut next).await {
                    break;
                }
            }
        }
    }

    /// Takes in what is new. Whether anything was.
    async fn read(&self, subject: &str, since: Timestamp, next: &mut Option<u64>) -> bool {
        let stream = self.names.talk_stream();
        let mut any = false;
        loop {
            let page = match *next {
                Some(from) => self.js.page(&stream, subject, from, PAGE).await,
                None => self.js.page_since(&stream, subject, since, PAGE).await,
            };
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    tracing::debug!(task = %self.shared.key, %error, "what people say cannot be read now");
                    return any;
                }
            };
            for message in &page.messages {
                *next = Some(message.sequence + 1);
                any = true;
                self.take(&message.payload);
            }
            if !page.more {
                return any;
            }
        }
    }

    fn take(&self, payload: &[u8]) {
        self.shared.hear(read_message(payload));
    }
}

impl Shared {
    fn hear(self: &Arc<Self>, message: Message) {
        if message.text.is_empty() || message.queue.is_some_and(|queue| queue != self.key.queue) {
            return;
        }
        let mut heard = lock(&self.heard);
        let asked = match &message.answers {
            Some(id) => Some(id.clone()),
            // With one question open it is clear what is meant.
            None if heard.asked.len() == 1 => heard.asked.keys().next().cloned(),
            None => None,
        };
        match asked {
            Some(id) => match heard.asked.remove(&id) {
                Some(asker) => {
                    let _ = asker.send(message.text);
                }
                None => {
                    drop(heard);
                    let id: String = id.chars().take(64).collect();
                    let text = format!("someone answered the question `{id}`, which is not open: {}", message.text);
                    JobLine { shared: self.clone() }.tell(Event::Note { text });
                }
            },
            None => {
                heard.words.push(message.text.clone());
                drop(heard);
                JobLine { shared: self.clone() }.tell(Event::Said { text: message.text });
            }
        }
    }
}

/// What somebody said: our JSON, or plain text.
fn read_message(payload: &[u8]) -> Message {
    serde_json::from_slice(payload).unwrap_or_else(|_| Message {
        text: String::from_utf8_lossy(payload).trim().to_owned(),
        answers: None,
        queue: None,
        more: More::default(),
    })
}

fn create(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::create(path)
}

/// The event with every text of it masked and bounded.
fn masked(mask: &Mask, event: Event, longest: usize) -> Event {
    let mut value = serde_json::to_value(&event).expect("our own types are JSON");
    if let Value::Object(fields) = &mut value {
        fields.iter_mut().filter(|(name, _)| *name != "kind").for_each(|(_, value)| walk(mask, value, longest));
    }
    serde_json::from_value(value).unwrap_or(Event::Note { text: "an event could not be masked".to_owned() })
}

fn walk(mask: &Mask, value: &mut Value, longest: usize) {
    match value {
        Value::String(text) => {
            let mut clean = mask.text(text);
            if clean.len() > longest {
                let whole = clean.len();
                let at = (0..=longest).rev().find(|at| clean.is_char_boundary(*at)).unwrap_or(0);
                clean.truncate(at);
                clean.push_str(&format!("… ({whole} bytes)"));
            }
            *text = clean;
        }
        Value::Array(items) => items.iter_mut().for_each(|item| walk(mask, item, longest)),
        // Names of fields and words of enums are ours.
        Value::Object(fields) => {
            fields.iter_mut().filter(|(name, _)| *name != "code").for_each(|(_, value)| walk(mask, value, longest));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// About as many bytes as it takes.
fn weight(event: &Event) -> usize {
    64 + match event {
        Event::Prompt { text }
        | Event::Text { text }
        | Event::ToolResult { text, .. }
        | Event::Question { text, .. }
        | Event::Answer { text, .. }
        | Event::Said { text }
        | Event::Note { text } => text.len(),
        Event::ToolCall { name, arguments, .. } => name.len() + arguments.len(),
        Event::Retry { what, why, .. } => what.len() + why.len(),
        Event::Step { name, detail, .. } => name.len() + detail.len(),
        Event::PhaseBegan { .. }
        | Event::PhaseEnded { .. }
        | Event::Turn { .. }
        | Event::Used { .. }
        | Event::Kept { .. } => 0,
    }
}

/// What is told however much was told before.
fn matters(event: &Event) -> bool {
    match event {
        Event::PhaseBegan { .. }
        | Event::PhaseEnded { .. }
        | Event::Step { .. }
        | Event::Question { .. }
        | Event::Answer { .. } => true,
        Event::Retry { .. }
        | Event::Prompt { .. }
        | Event::Turn { .. }
        | Event::Text { .. }
        | Event::ToolCall { .. }
        | Event::ToolResult { .. }
        | Event::Used { .. }
        | Event::Said { .. }
        | Event::Kept { .. }
        | Event::Note { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_and_json_are_both_heard() {
        assert_eq!(read_message(b"yes\n").text, "yes");
        let json = read_message(br#"{"text":"use tabs","answers":"q1"}"#);
        assert_eq!((json.text.as_str(), json.answers.as_deref()), ("use tabs", Some("q1")));
        assert_eq!(read_message(br#"{"other":1}"#).text, r#"{"other":1}"#);
    }

    #[test]
    fn events_survive_the_mask_and_long_texts_are_cut() {
        let events = [
            Event::PhaseBegan { phase: schemas::transcript::JobPhase::Implement },
            Event::Used { input_tokens: 1, output_tokens: 2, cost_micros: None },
            Event::PhaseEnded {
                phase: schemas::transcript::JobPhase::Test,
                error: Some(schemas::TaskError::new(schemas::Code::TestsFailed, "two failed")),
            },
        ];
        for event in events {
            assert_eq!(masked(&Mask::default(), event.clone(), LONGEST_TEXT), event);
        }
        let Event::Text { text } =
            masked(&Mask::default(), Event::Text { text: "é".repeat(LONGEST_TEXT) }, LONGEST_TEXT)
        else {
            panic!("another kind")
        };
        assert!(text.len() < LONGEST_TEXT + 64 && text.ends_with(&format!("… ({} bytes)", 2 * LONGEST_TEXT)));
    }
}
