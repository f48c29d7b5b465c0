//! What this worker holds, written down where its next boot finds it: a killed worker that is started again gives its
//! tasks back at once, where everybody else has to wait until their leases end.
//!
//! ```text
//! <state>/held/<worker>/.lock           held by every process that may still do something of a boot
//! <state>/held/<worker>/<start>.json    one for every start that has the record
//!
//! record says running --> note --> ... --> settled, note removed
//!                            +--killed--> next boot: dead? --> record still says so? --> nak, note removed
//! ```
//!
//! A note decides nothing. The record is the fence, as always: whoever gets the task next finds `running` of another
//! start, marks it lost and goes on, or ends it as `lost`. All that a nak does is to let that happen now.
//!
//! * **The boot before is dead.** The lock is held by the worker and by its guard of processes, which leaves when the last
//!   job is gone; the kernel lets go of it in whatever way these die. Who gets it knows that neither attempts nor processes
//!   are left. Containers were swept before, if their engine answers; else they are left to the lease. A note counts only for
//!   the lock under which it was written, on the kernel under which it was written: in a copy of the folder, on another
//!   machine or after a reboot it proves nothing and is removed.
//! * **The start still has the record**, read from the leader just before. So the nak hits nobody else, but for one who was
//!   handed the task after its lease ended and claims between the read and the nak: that costs one superseded start.
//! * **A consumer made anew, a stream set back, a message deleted:** the server ignores what is pending no more, and what it
//!   does not ignore is one delivery more, which the record fences.
//! * **A note that is torn, missing or was never written** (disk full, power lost): its lease ends by itself.
//!
//! Not synced to the disk: a killed process loses nothing that it wrote.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::Subject;
use futures_util::StreamExt;
use schemas::agent::CONTAINER_RUNTIMES;
use schemas::record::TaskRecord;
use schemas::{AgentId, AgentRecord, Outcome, StartId, State, TaskKey};
use serde::{Deserialize, Serialize};

use crate::fail;
use crate::nats::delivery::{Verdict, origin, tell};
use crate::runtime::Runtime;
use crate::worker::Worker;

/// How long what an earlier boot left may take to die: a guard has five seconds of patience with its shepherds.
const DEATH: Duration = Duration::from_secs(6);
/// For all of it at a boot; what is not given back by then waits for its lease.
const PATIENCE: Duration = Duration::from_secs(10);
/// At once.
const AT_ONCE: usize = 32;

/// The folder of one worker's notes.
#[derive(Debug, Default)]
pub struct Held {
    /// `None`: nothing is written down, and nothing given back.
    book: Option<Book>,
    complained: AtomicBool,
}

#[derive(Debug)]
struct Book {
    folder: PathBuf,
    lock: File,
    proof: String,
}

/// One start as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    task: String,
    sequence: u64,
    /// The kind of its workload.
    kind: String,
    /// Where its newest delivery is settled.
    reply: String,
    /// Under which lock, on which boot of which kernel.
    proof: String,
}

/// One start that is written down, until dropped.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    line: Line,
}

/// Takes the lock of a folder, as soon as nothing of an earlier boot holds it.
async fn take_lock(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut pause = Duration::from_millis(2);
    let death = async {
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(pause).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    };
    match tokio::time::timeout(DEATH, death).await {
        Ok(locked) => locked.map(|()| file),
        Err(_) => Err(io::Error::other("something of an earlier boot still runs")),
    }
}

impl Book {
    async fn open(state_dir: &Path, worker: &AgentId) -> io::Result<Self> {
        let folder = state_dir.join("held").join(worker.as_str());
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let kernel = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let lock = take_lock(&folder.join(".lock")).await?;
        let proof = format!("{}/{}", kernel.trim(), lock.metadata()?.ino());
        Ok(Self { folder, lock, proof })
    }

    /// What is written down, each with its file; `None` where the file says nothing that counts.
    fn lines(&self) -> Vec<(PathBuf, Option<(StartId, Line)>)> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let notes = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let read = |path: &Path| {
            let start = StartId::new(path.file_stem()?.to_str()?).ok()?;
            let line: Line = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
            (line.proof == self.proof).then_some((start, line))
        };
        notes.map(|path| (path.clone(), read(&path))).collect()
    }
}

impl Held {
    /// Waits until nothing of this worker's earlier boot is left, then takes over its notes. Only for the holder of the
    /// id. Where that cannot be, the worker does without.
    pub async fn take_over(state_dir: &Path, worker: &AgentId) -> Self {
        match Book::open(state_dir, worker).await {
            Ok(book) => Self { book: Some(book), complained: AtomicBool::new(false) },
            Err(error) => {
                tracing::warn!(%error, "what it holds is not written down: after a kill it comes back when its lease ends");
                Self::default()
            }
        }
    }

    /// An open file for whoever must be gone before this worker counts as dead. It needs only be kept open.
    pub fn lock(&self) -> Option<OwnedFd> {
        Some(self.book.as_ref()?.lock.try_clone().ok()?.into())
    }

    /// Writes down that the last start of `record` has it.
    pub fn note(&self, record: &TaskRecord, kind: &str, reply: &Subject) -> Option<Note> {
        let book = self.book.as_ref()?;
        let start = record.attempts.last()?.start.as_ref()?;
        let line = Line {
            task: record.key().to_string(),
            sequence: record.sequence,
            kind: kind.to_owned(),
            reply: reply.to_string(),
            proof: book.proof.clone(),
        };
        let note = Note { path: book.folder.join(format!("{start}.json")), line };
        if let Err(error) = note.write()
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            let folder = book.folder.display();
            tracing::warn!(%folder, %error, "what it holds cannot be written down; nothing depends on it but how soon it comes back");
        }
        Some(note)
    }
}

impl Note {
    /// One write, which a kill leaves whole or undone.
    fn write(&self) -> io::Result<()> {
        fs::write(&self.path, serde_json::to_vec(&self.line)?)
    }

    /// A newer delivery of the same run came.
    pub fn follow(&mut self, reply: &Subject) {
        if self.line.reply != reply.as_str() {
            self.line.reply = reply.to_string();
            // An older one does as well, in all but the strangest cases.
            let _ = self.write();
        }
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Where to give a run back, if what is written down makes sense for tasks of `stream`.
fn reply_of(line: &Line, stream: &str) -> Option<Subject> {
    // A subject with a blank in it would be read as something else by the server.
    let sound = line.reply.starts_with("$JS.ACK.") && line.reply.bytes().all(|byte| byte.is_ascii_graphic());
    let origin = origin(&line.reply).filter(|_| sound)?;
    (origin.stream == stream && origin.sequence == line.sequence).then(|| line.reply.as_str().into())
}

/// Whether this start has the record still.
fn has(record: &TaskRecord, sequence: u64, start: &StartId) -> bool {
    let last = record.attempts.last();
    record.sequence == sequence
        && record.state == State::Running
        && last.is_some_and(|last| last.outcome == Outcome::Running && last.start.as_ref() == Some(start))
}

/// Gives back what the earlier boots of this worker held. After the sweeps, before the first pull.
pub async fn give_back(worker: &Worker) {
    let Some(book) = &worker.held.book else { return };
    let lines = book.lines();
    if lines.is_empty() {
        return;
    }
    let noted = lines.len();
    let given = std::sync::atomic::AtomicUsize::new(0);
    let all = async {
        // Whoever gets one next asks the registry whether its holder is gone.
        registered(worker).await;
        let each = futures_util::stream::iter(lines).map(|(path, line)| {
            let given = &given;
            async move {
                let back = match &line {
                    Some((start, line)) => give_one_back(worker, start, line).await,
                    None => Some(false),
                };
                fail::point("after_give_back");
                given.fetch_add(usize::from(back == Some(true)), Ordering::Relaxed);
                // What could not be looked at is looked at by the next boot.
                if back.is_some()
                    && let Err(error) = fs::remove_file(&path)
                {
                    tracing::warn!(path = %path.display(), %error, "note of an earlier boot not removed");
                }
            }
        });
        each.buffer_unordered(AT_ONCE).collect::<()>().await;
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await.is_ok();
    let given = given.into_inner();
    tracing::info!(worker = %worker.id, noted, given, in_time, "gave back what an earlier boot held");
}

/// Waits until the registry says that another boot is there now.
async fn registered(worker: &Worker) {
    let names = &worker.config.names;
    let (stream, subject) = (format!("KV_{}", names.agents_bucket()), names.agent_subject(&worker.id));
    let ours = async {
        loop {
            let entry = worker.js.last(&stream, &subject).await.ok().flatten();
            let record = entry.and_then(|entry| serde_json::from_slice::<AgentRecord>(&entry.payload).ok());
            if record.is_some_and(|record| record.instance == worker.instance) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Without it a loss may count as none, once.
    let _ = tokio::time::timeout(Duration::from_secs(2), ours).await;
}

/// Whether it was given back; `None` if that could not be found out.
async fn give_one_back(worker: &Worker, start: &StartId, line: &Line) -> Option<bool> {
    let Ok(key) = line.task.parse::<TaskKey>() else { return Some(false) };
    let Some(reply) = reply_of(line, &worker.config.names.tasks_stream()) else { return Some(false) };
    if line.kind == "container" {
        // Which of its engines ran it, the line does not tell.
        let mut engines = CONTAINER_RUNTIMES.iter().filter_map(|name| worker.runtimes.get(name)).peekable();
        let is_up = |engine: &Arc<dyn Runtime>| engine.trouble().is_none_or(|trouble| trouble.borrow().is_none());
        let swept = engines.peek().is_some() && engines.all(is_up);
        if !swept {
            tracing::info!(task = %key, %start, "left to its lease: its container may still run");
            return Some(false);
        }
    }
    let standing = worker.store.read(&key).await.ok()?;
    if !standing.record.is_some_and(|record| has(&record, line.sequence, start)) {
        return Some(false);
    }
    // Never twice: a repeat might hit whoever has it by then.
    match tell(&worker.js, &reply, &Verdict::Nak(Duration::ZERO)).await {
        Ok(()) => Some(true),
        Err(error) => {
            tracing::debug!(task = %key, %error, "given back without an answer");
            Some(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Timestamp;
    use schemas::record::Attempt;

    const REPLY: &str = "$JS.ACK.SHOAL_TASKS.q.1.7.3.1700000000123000000.0";

    fn record(start: &str) -> TaskRecord {
        let attempt = Attempt { start: Some(StartId::new(start).unwrap()), ..Attempt::new(Outcome::Running) };
        let record = TaskRecord::new(&"q.a".parse().unwrap(), 7, State::Running, Timestamp::from_millis(0));
        TaskRecord { attempts: vec![attempt], ..record }
    }

    fn files(state: &Path) -> Vec<String> {
        let entries = fs::read_dir(state.join("held/w")).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn held(state: &Path) -> Held {
        Held::take_over(state, &AgentId::new("w").unwrap()).await
    }

    #[tokio::test]
    async fn a_note_is_there_as_long_as_its_start_and_survives_a_kill() {
        let state = tempfile::tempdir().unwrap();
        let first = held(state.path()).await;
        let gone = first.note(&record("one"), "process", &REPLY.into()).unwrap();
        let mut left = first.note(&record("two"), "process", &"$JS.ACK.old".into()).unwrap();
        assert_eq!(files(state.path()), [".lock", "one.json", "two.json"]);
        drop(gone);
        left.follow(&REPLY.into());
        // As a kill leaves it.
        std::mem::forget(left);
        drop(first);
        let lines = held(state.path()).await.book.unwrap().lines();
        let [(_, Some((start, line)))] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!((start.as_str(), line.task.as_str(), line.sequence), ("two", "q.a", 7));
        assert_eq!(reply_of(line, "SHOAL_TASKS").unwrap().as_str(), REPLY);
    }

    #[tokio::test(start_paused = true)]
    async fn as_long_as_anything_of_the_earlier_boot_lives_nothing_is_taken_over() {
        let state = tempfile::tempdir().unwrap();
        let first = held(state.path()).await;
        // A guard that is still at it.
        let guard = first.lock().unwrap();
        drop(first);
        let second = held(state.path()).await;
        assert!(second.book.is_none());
        assert!(second.note(&record("one"), "process", &REPLY.into()).is_none());
        drop(guard);
        assert!(held(state.path()).await.book.is_some());
    }

    #[tokio::test]
    async fn what_is_torn_foreign_or_copied_counts_for_nothing() {
        let state = tempfile::tempdir().unwrap();
        let first = held(state.path()).await;
        std::mem::forget(first.note(&record("one"), "process", &REPLY.into()));
        let folder = state.path().join("held/w");
        let whole = fs::read(folder.join("one.json")).unwrap();
        fs::write(folder.join("torn.json"), &whole[..whole.len() - 1]).unwrap();
        fs::write(folder.join("empty.json"), "").unwrap();
        fs::write(folder.join("No Start.json"), &whole).unwrap();
        fs::write(folder.join("readme.txt"), &whole).unwrap();
        fs::create_dir(folder.join("folder.json")).unwrap();
        let counting = |lines: Vec<(PathBuf, Option<(StartId, Line)>)>| {
            (lines.len(), lines.into_iter().filter_map(|(_, line)| line).map(|(start, _)| start.to_string()).collect())
        };
        assert_eq!(counting(first.book.as_ref().unwrap().lines()), (5, vec!["one".to_owned()]));

        // The same on another machine: another lock.
        let copy = tempfile::tempdir().unwrap();
        fs::create_dir_all(copy.path().join("held/w")).unwrap();
        fs::write(copy.path().join("held/w/one.json"), &whole).unwrap();
        assert_eq!(counting(held(copy.path()).await.book.unwrap().lines()), (1, vec![]));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_harms_nothing() {
        let state = tempfile::tempdir().unwrap();
        let held = held(state.path()).await;
        fs::remove_dir_all(state.path().join("held")).unwrap();
        let mut note = held.note(&record("one"), "process", &REPLY.into()).unwrap();
        note.follow(&"$JS.ACK.other".into());
        drop(note);
        fs::write(state.path().join("file"), "").unwrap();
        assert!(Held::take_over(&state.path().join("file"), &AgentId::new("w").unwrap()).await.book.is_none());
    }

    #[test]
    fn only_the_reply_of_that_very_run_is_used() {
        let reply = |reply: &str| {
            let line = Line {
                task: "q.a".into(),
                sequence: 7,
                kind: "process".into(),
                reply: reply.into(),
                proof: String::new(),
            };
            reply_of(&line, "SHOAL_TASKS").is_some()
        };
        assert!(reply(REPLY));
        assert!(reply("$JS.ACK.hub.hash.SHOAL_TASKS.q.1.7.3.1700000000123000000.0.random"));
        for wrong in [
            "shoal.tasks.q.a",
            "$JS.ACK.SHOAL_TASKS.q.1.8.3.1700000000123000000.0",
            "$JS.ACK.OTHER.q.1.7.3.1700000000123000000.0",
            "$JS.ACK.SHOAL_TASKS.q 3\r\nPUB x 0\r\n.1.7.3.1700000000123000000.0",
            "shoal.x.SHOAL_TASKS.q.1.7.3.1700000000123000000.0",
        ] {
            assert!(!reply(wrong), "{wrong}");
        }
    }

    #[test]
    fn only_the_start_that_has_the_record_is_given_back() {
        let start = StartId::new("one").unwrap();
        assert!(has(&record("one"), 7, &start));
        assert!(!has(&record("two"), 7, &start), "another start has it");
        assert!(!has(&record("one"), 8, &start), "another run");
        for state in [State::Retrying, State::Succeeded, State::Lost, State::Cancelled] {
            assert!(!has(&TaskRecord { state, ..record("one") }, 7, &start), "{state:?}");
        }
        let mut later = record("one");
        later.attempts.extend(record("two").attempts);
        assert!(!has(&later, 7, &start), "a later start has it");
    }
}
