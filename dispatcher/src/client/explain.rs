//! Why a task waits, or what it does, read from its message, its record, its queue's consumer and the registry. No
//! dispatcher is needed for it, and nothing is written.

mod agent;
mod need;

use std::collections::BTreeSet;
use std::time::Duration;

use jetstream::ConsumerState;
use schemas::agent::AgentKind;
use schemas::agent_job::PATCH;
use schemas::explain::{AgentFacts, Explanation, Hindered, QueueFacts, Reason, ReasonCode, Standing, WorkerFacts};
use schemas::need::Need;
use schemas::stores::RECORDS_KEPT;
use schemas::task::Policy;
use schemas::{
    AgentRecord, AgentStatus, Attempt, Code, DeadLetter, FunctionName, HumanDuration, Outcome, QueueName, State, Task,
    TaskId, TaskKey, TaskRecord, Timestamp, Workload,
};

use self::need::Lack;
use super::{AgentView, Client, ClientError, QueueView, TaskView};

/// Most workers that are named.
const NAMED: usize = 16;
/// Most workers that one sentence names.
const NAMED_IN_A_SENTENCE: usize = 3;

impl Client {
    /// Why a task waits, or what it does. One of which nothing is known is explained too.
    pub async fn explain(&self, key: &TaskKey) -> Result<Explanation, ClientError> {
        let view = self.look(key).await?;
        let now = Timestamp::now();
        let Some(status) = view.status() else {
            let letter = self.dead_letter_of(key).await?.map(|letter| letter.letter);
            return Ok(unknown(Some(&key.queue), &key.id, letter.as_ref()));
        };
        if status.is_terminal() {
            return Ok(finished(&view, now));
        }
        let stream = self.names.tasks_stream();
        let consumer = self.js.consumer(&stream, key.queue.as_str()).await?;
        let queue = self.queue(&key.queue).await?;
        let agents = self.agents().await?;
        // What was not handed out yet has a place; where it cannot be counted, nothing is said of it.
        let mut position = None;
        if let Some(queued) = &view.queued
            && consumer.as_ref().is_none_or(|consumer| consumer.delivered.stream_seq < queued.sequence)
        {
            let subjects = self.names.queue_subjects(&key.queue);
            match self.js.count_from(&stream, &subjects, queued.sequence).await {
                Ok(from_here) => position = Some(queue.waiting.saturating_sub(from_here)),
                Err(error) => tracing::debug!(task = %key, %error, "its place in the queue was not counted"),
            }
        }
        let talk = match is_agent_job(&view) {
            false => None,
            true => match self.agent_facts(&view).await {
                Ok(facts) => Some(facts).filter(|facts| *facts != AgentFacts::default()),
                Err(error) => {
                    tracing::debug!(task = %key, %error, "what it tells was not read");
                    None
                }
            },
        };
        let seen =
            Seen { view: &view, queue: &queue, consumer: consumer.as_ref(), agents: &agents, position, talk, now };
        let mut explanation = seen.explain();
        if let Some(function) = seen.function() {
            match self.explain_function(&function, &agents).await {
                Ok(None) => {}
                // One that runs waits for just that; one that waits, for a worker first.
                Ok(Some(reason)) if reason.code == ReasonCode::NoFunction => explanation.reasons.insert(0, reason),
                Ok(Some(reason)) => explanation.reasons.push(reason),
                Err(error) => tracing::debug!(task = %key, %error, "its function was not looked at"),
            }
        }
        Ok(explanation)
    }

    /// The same for what a person types: an id, `<queue>.<id>`, or a prefix of either that fits only one task.
    pub async fn explain_any(&self, text: &str) -> Result<Explanation, ClientError> {
        match self.find(text).await {
            Ok(key) => self.explain(&key).await,
            Err(ClientError::NotFound { kind: "task", .. }) => match text.split_once('.') {
                Some(_) => self.explain(&text.parse()?).await,
                None => {
                    let id: TaskId = text.parse()?;
                    let subject = self.names.dead_subject_raw("*", id.as_str());
                    let letter = self.js.last(&self.names.dead_stream(), &subject).await?;
                    Ok(unknown(None, &id, letter.map(|letter| self.letter(&letter)).as_ref()))
                }
            },
            Err(error) => Err(error),
        }
    }
}

/// Everything that was read.
struct Seen<'a> {
    view: &'a TaskView,
    queue: &'a QueueView,
    consumer: Option<&'a ConsumerState>,
    agents: &'a [AgentView],
    position: Option<u64>,
    /// How far it is, if it is an agent job that runs.
    talk: Option<AgentFacts>,
    now: Timestamp,
}

/// What its record or its message says that it is.
fn task_of(view: &TaskView) -> Option<Task> {
    let record = view.current().map(|current| &current.record);
    let kept = record.and_then(|record| record.task.as_ref()).map(|task| task.get().as_bytes());
    let bytes = kept.or(view.queued.as_ref().map(|queued| &queued.task[..])).unwrap_or_default();
    Task::decode(bytes).ok()
}

fn is_agent_job(view: &TaskView) -> bool {
    task_of(view).is_some_and(|task| matches!(task.workload, Workload::Agent(_)))
}

impl Seen<'_> {
    /// The function that it calls, if it is such a task.
    fn function(&self) -> Option<FunctionName> {
        match task_of(self.view)?.workload {
            Workload::Invoke(invoke) => Some(invoke.function),
            _ => None,
        }
    }

    /// Weighs it, unless it is over. Pure.
    fn explain(&self) -> Explanation {
        let record = self.view.current().map(|current| &current.record);
        let task = task_of(self.view);
        let policy = task.as_ref().map(|task| task.policy(&self.queue.settings.defaults));
        let kind = task.as_ref().map(|task| task.workload.kind());
        let need = task.as_ref().map(|task| Need::of(&task.workload));
        let need = need.as_ref();
        let workers = self.workers(need);
        let last = record.and_then(|record| record.attempts.last());
        let mut reasons = match record {
            None => self.queued(task.as_ref(), &workers),
            Some(record) if self.view.queued.is_none() => vec![message_lost(&record.key(), record.state)],
            Some(record) => match record.state {
                State::Retrying => self.retrying(record, policy.as_ref(), need, &workers),
                State::Running | State::Succeeded | State::Failed | State::Cancelled | State::Lost | State::Expired => {
                    self.running(record, policy.as_ref(), need, &workers)
                }
            },
        };
        let expires_at = task.as_ref().and_then(|task| task.expires_at);
        if let Some(at) = expires_at.filter(|at| *at > self.now)
            && last.is_none()
        {
            let key = &self.view.key;
            reasons.push(reason(
                ReasonCode::Expires,
                format!("not started by {at} (in {}) it ends as `expired`", time(at.since(self.now))),
                format!("mend what holds it before then, or submit it with a later `expires_at`: shoal get {key}"),
            ));
        }
        let waiting = record.and_then(|record| record.waiting.as_ref());
        Explanation {
            id: self.view.key.id.clone(),
            queue: Some(self.view.key.queue.clone()),
            sequence: self.view.sequence(),
            status: record.map_or(Standing::Queued, |record| record.state.into()),
            reasons,
            kind: kind.map(str::to_owned),
            position: self.position,
            worker: last
                .and_then(|attempt| attempt.worker.clone())
                .or_else(|| waiting.map(|waiting| waiting.worker.clone())),
            submitted_at: submitted_at(self.view),
            started_at: last.filter(|attempt| attempt.outcome == Outcome::Running).and_then(begun),
            retry_at: record.and_then(|record| record.retry_at),
            expires_at,
            ended_at: None,
            waits_in: Some(QueueFacts {
                waiting: self.queue.waiting,
                in_flight: self.queue.in_flight,
                pulls: self.queue.pulls,
                cap: self.queue.cap,
                paused_until: self.queue.paused_until,
            }),
            workers: Some(workers.facts),
            agent: self.talk.clone(),
        }
    }

    /// There is only the message.
    fn queued(&self, task: Option<&Task>, workers: &Workers) -> Vec<Reason> {
        let key = &self.view.key;
        let mut reasons = Vec::new();
        let need = task.map(|task| Need::of(&task.workload));
        match task {
            None => reasons.push(reason(
                ReasonCode::InvalidTask,
                "its message is no task: the worker that takes it ends it as `failed` with the code `invalid_task`",
                format!("cancel it (`shoal cancel {key}`), correct it and submit it with `shoal submit`, which looks"),
            )),
            Some(task) => reasons.extend(self.past(task.expires_at)),
        }
        reasons.extend(self.want(need.as_ref(), workers));
        reasons.extend(self.paused());
        match self.consumer {
            Some(consumer) if self.position.is_none() => {
                let lease = time(consumer.ack_wait());
                reasons.push(reason(
                    ReasonCode::HandedOut,
                    format!(
                        "it was handed out, and no record says more yet: it has just begun, was given back for want of \
                         a slot, or its worker was lost; then it is handed out again within {lease}"
                    ),
                    format!("look again in {lease}: shoal explain {key}"),
                ));
            }
            Some(_) | None => reasons.extend(self.capped()),
        }
        reasons.extend(self.busy(workers));
        if let Some(before @ 1..) = self.position {
            let tasks = if before == 1 { "1 task".to_owned() } else { format!("{before} tasks") };
            reasons.push(reason(
                ReasonCode::Position,
                format!("about {tasks} of the queue `{}` {} before it", key.queue, is_or_are(before)),
                format!("wait, or start more workers: shoal worker --queues {}", key.queue),
            ));
        }
        if reasons.is_empty() {
            reasons.push(self.soon());
        }
        reasons
    }

    /// The record is between two attempts.
    fn retrying(
        &self,
        record: &TaskRecord,
        policy: Option<&Policy>,
        need: Option<&Need>,
        workers: &Workers,
    ) -> Vec<Reason> {
        let key = &self.view.key;
        let next = format!("wait for it: shoal wait {key}; or end it: shoal cancel {key}");
        let attempt = attempt_of(record.spent() + 1, policy);
        let due = record.retry_at.filter(|at| *at > self.now);
        let in_time = due.map(|at| format!("in {}", time(at.since(self.now))));
        let mut reasons = Vec::new();
        if let Some(waiting) = &record.waiting {
            reasons.extend(self.want(need, workers));
            reasons.extend(self.paused());
            let again = in_time.unwrap_or_else(|| "at any moment".into());
            reasons.push(reason(
                ReasonCode::PutOff,
                format!(
                    "it could not start on {} and is offered again {again}, since {}: {}",
                    waiting.worker, waiting.since, waiting.message
                ),
                format!("start a worker that can run it; docs/errors.md tells more of `{}`", waiting.code),
            ));
        } else if let (Some(at), Some(in_time)) = (due, in_time) {
            let message = format!("{attempt} is due at {at} ({in_time}){}", last_failure(record));
            reasons.push(reason(ReasonCode::RetryAt, message, next));
            // When it is due it comes before those that were never handed out, and has its place under the cap.
            reasons.extend(self.want(need, workers));
            reasons.extend(self.paused());
        } else {
            reasons.extend(self.want(need, workers));
            reasons.extend(self.paused());
            reasons.extend(self.busy(workers));
            let since = record.retry_at.map_or(String::new(), |at| format!(" since {at}"));
            let message = format!("{attempt} is due{since}, and nobody has taken it yet{}", last_failure(record));
            reasons.push(reason(ReasonCode::Due, message, next));
        }
        reasons
    }

    /// The record says that an attempt runs; what is over was explained elsewhere.
    fn running(
        &self,
        record: &TaskRecord,
        policy: Option<&Policy>,
        need: Option<&Need>,
        workers: &Workers,
    ) -> Vec<Reason> {
        let key = &self.view.key;
        let Some(attempt) = record.attempts.last().filter(|attempt| attempt.outcome == Outcome::Running) else {
            return vec![reason(
                ReasonCode::Running,
                "a worker has it in hand and is about to start it",
                format!("look again in a moment: shoal explain {key}"),
            )];
        };
        let on = attempt.worker.as_ref().map_or(String::new(), |worker| format!(" on {worker}"));
        let since =
            begun(attempt).map_or(String::new(), |at| format!(" for {} (since {at})", time(self.now.since(at))));
        let number = attempt.number.map_or(record.spent() + 1, |number| number.get());
        let run = format!("{} runs{on}{since}", attempt_of(number, policy));
        if let Some(trouble) = self.holder_trouble(attempt) {
            let lease = self.consumer.map_or("its ack wait".into(), |consumer| time(consumer.ack_wait()));
            let worker = attempt.worker.as_ref().map_or(String::new(), |worker| worker.to_string());
            let mut reasons = vec![reason(
                ReasonCode::WorkerSilent,
                format!("{run}, but {trouble}; once its lease of {lease} is over it is handed out again"),
                format!("look at that worker: shoal agents show {worker}; or wait: shoal wait {key}"),
            )];
            reasons.extend(self.want(need, workers));
            reasons.extend(self.paused());
            reasons.extend(self.busy(workers));
            return reasons;
        }
        if let Some(cancel) = &record.cancel {
            let why = cancel.reason.as_ref().map_or(String::new(), |why| format!(" ({why})"));
            let grace = policy.map_or("its stop grace".into(), |policy| time(policy.stop_grace));
            return vec![reason(
                ReasonCode::Cancelling,
                format!("{run} and is being stopped: a cancel was asked for at {}{why}", cancel.at),
                format!("wait up to {grace} and 5s more: shoal wait {key}; if it lasts: shoal cancel {key}"),
            )];
        }
        let limit = policy.and_then(|policy| policy.timeout.bound());
        let left = limit
            .zip(begun(attempt))
            .map_or(String::new(), |(limit, at)| format!("; it is stopped at {} (timeout {limit})", at.plus(limit.0)));
        let Some(talk) = &self.talk else {
            let next = format!("watch it: shoal logs -f {key}; or end it: shoal cancel {key}");
            return vec![reason(ReasonCode::Running, format!("{run}{left}"), next)];
        };
        let mut reasons = agent::questions(key, talk, self.now);
        let message = format!("{run}{}{left}", agent::doing(talk, self.now));
        reasons.push(reason(ReasonCode::Running, message, agent::watch(key)));
        reasons
    }

    /// What is wrong with the worker that a record names, as far as the registry tells.
    fn holder_trouble(&self, attempt: &Attempt) -> Option<String> {
        let id = attempt.worker.as_ref()?;
        let Some(agent) = self.agents.iter().find(|agent| agent.record.id == *id) else {
            return Some("that worker is not in the registry".into());
        };
        if agent.status == AgentStatus::Offline {
            return Some(format!("that worker {}", gone(agent)));
        }
        let began_anew = attempt.instance.as_ref().is_some_and(|instance| *instance != agent.record.instance);
        began_anew.then(|| "that worker has been started anew since".to_owned())
    }

    /// It may not start any more.
    fn past(&self, expires_at: Option<Timestamp>) -> Option<Reason> {
        let at = expires_at.filter(|at| *at <= self.now)?;
        Some(reason(
            ReasonCode::Expired,
            format!("its `expires_at` is past ({at}): it will not start, and ends as `expired`"),
            "see that a dispatcher runs, which ends it without a worker: shoal dispatcher",
        ))
    }

    fn paused(&self) -> Option<Reason> {
        let queue = &self.queue.name;
        let until = self.queue.paused_until?;
        Some(reason(
            ReasonCode::Paused,
            format!("the queue `{queue}` is paused until {until} (for {} more)", time(until.since(self.now))),
            format!("resume it: shoal queues resume {queue}"),
        ))
    }

    /// The cap holds what was never handed out; what was, has its place.
    fn capped(&self) -> Option<Reason> {
        let consumer = self.consumer?;
        let (out, cap, queue) = (self.queue.in_flight, consumer.max_ack_pending(), &self.queue.name);
        if cap == 0 || out < cap {
            return None;
        }
        Some(reason(
            ReasonCode::Capped,
            format!(
                "the cap of the queue `{queue}` is reached: {out} of {cap} tasks are out; one that waits for its retry \
                 keeps its place"
            ),
            format!("raise it: shoal queues set {queue} --cap {}; or wait", cap.saturating_mul(2)),
        ))
    }

    /// Those who can run it have no slot free.
    fn busy(&self, workers: &Workers) -> Option<Reason> {
        let WorkerFacts { able, slots, running, .. } = workers.facts;
        if able == 0 || self.queue.paused_until.is_some() {
            return None;
        }
        // Open pulls are news of this moment, beats up to ten seconds old. But a pull may be of one who cannot run it.
        let asked = self.queue.pulls > 0 && workers.facts.hindered.is_empty();
        let full = running >= slots && !asked;
        let silent = self.queue.pulls == 0 && self.capped().is_none() && self.consumer.is_some();
        if !full && !silent {
            return None;
        }
        let queue = &self.queue.name;
        let of = if able == 1 { "the 1 worker".to_owned() } else { format!("the {able} workers") };
        let message = match full {
            true => format!("every slot is taken: {running} of {slots} on {of} that could run it"),
            false => format!(
                "nobody asks for more work now: {running} of {slots} slots were taken on {of} that could run it"
            ),
        };
        let next = format!("start more workers: shoal worker --queues {queue}; or give them more --slots");
        Some(reason(ReasonCode::SlotsBusy, message, next))
    }

    fn soon(&self) -> Reason {
        reason(
            ReasonCode::Soon,
            "nothing holds it: a worker should take it at any moment",
            format!("wait for it: shoal wait {}", self.view.key),
        )
    }

    /// Why nobody can run it at all.
    fn want(&self, need: Option<&Need>, workers: &Workers) -> Vec<Reason> {
        let queue = &self.queue.name;
        let flags = need.map_or(String::new(), need::flags);
        let start = format!("start one: shoal worker --queues {queue}{flags}");
        let WorkerFacts { of_queue, alive, able, .. } = workers.facts;
        if able > 0 {
            return Vec::new();
        }
        if of_queue == 0 {
            let others: BTreeSet<&QueueName> = self
                .agents
                .iter()
                .filter(|agent| agent.record.kind == AgentKind::Worker && agent.status != AgentStatus::Offline)
                .flat_map(|agent| &agent.record.queues)
                .collect();
            let others: Vec<String> = others.into_iter().take(NAMED).map(|name| format!("`{name}`")).collect();
            let elsewhere = match others.is_empty() {
                true => "; no worker of the fleet is alive".to_owned(),
                false => format!("; those of the fleet pull from {}", others.join(", ")),
            };
            let message = format!("no worker pulls from the queue `{queue}`{elsewhere}");
            return vec![reason(ReasonCode::NoWorker, message, start)];
        }
        if alive == 0 {
            let gone = sentence(&workers.gone);
            let message = format!("no worker of the queue `{queue}` is alive: {gone}");
            return vec![reason(ReasonCode::NoLiveWorker, message, start)];
        }
        let what = need.map_or("such workloads".to_owned(), Need::to_string);
        if let Some((worker, _)) = workers.down.first() {
            let message = format!(
                "no worker of the queue `{queue}` runs {what} now, for the engine is down: {}",
                sentence(&workers.down)
            );
            let next = format!("bring the engine back, the worker follows by itself: shoal agents show {worker}");
            return vec![reason(ReasonCode::RuntimeDown, message, next)];
        }
        if let Some((worker, _)) = workers.unready.first() {
            let message = format!("no worker that could run it takes anything new: {}", sentence(&workers.unready));
            let next = format!("look at it: shoal agents show {worker}; or {start}");
            return vec![reason(ReasonCode::NoReadyWorker, message, next)];
        }
        let message = format!("no worker of the queue `{queue}` runs {what}: {}", sentence(&workers.incapable));
        vec![reason(ReasonCode::NoCapableWorker, message, start)]
    }

    /// Who is there for this queue and this kind. A message that is no task is taken by any worker.
    fn workers(&self, need: Option<&Need>) -> Workers {
        let mut workers = Workers::default();
        let of_queue =
            |record: &AgentRecord| record.kind == AgentKind::Worker && record.queues.contains(&self.queue.name);
        for agent in self.agents.iter().filter(|agent| of_queue(&agent.record)) {
            let (record, facts) = (&agent.record, &mut workers.facts);
            facts.of_queue += 1;
            facts.alive += u32::from(agent.status != AgentStatus::Offline);
            let named = |words: String| (record.id.to_string(), words);
            let hindrance = if agent.status == AgentStatus::Offline {
                workers.gone.push(named(gone(agent)));
                workers.gone.last()
            } else if let Some(lack) = need.and_then(|need| need::lack(need, record)) {
                let (sorted, words) = match lack {
                    Lack::Down(words) => (&mut workers.down, words),
                    Lack::Incapable(words) => (&mut workers.incapable, words),
                };
                sorted.push(named(words));
                sorted.last()
            } else if agent.status == AgentStatus::Ready {
                facts.able += 1;
                facts.slots += record.slots;
                facts.running += record.running_count.min(record.slots);
                None
            } else {
                let why = record.reason.as_ref().map_or(String::new(), |why| format!(" ({why})"));
                workers.unready.push(named(format!("is {}{why}", agent.status)));
                workers.unready.last()
            };
            if let Some((_, reason)) = hindrance
                && facts.hindered.len() < NAMED
            {
                facts.hindered.push(Hindered {
                    worker: record.id.clone(),
                    status: agent.status,
                    reason: reason.clone(),
                });
            }
        }
        workers
    }
}

/// The workers of a queue, sorted by what keeps them from a task.
#[derive(Default)]
struct Workers {
    facts: WorkerFacts,
    gone: Vec<(String, String)>,
    down: Vec<(String, String)>,
    unready: Vec<(String, String)>,
    incapable: Vec<(String, String)>,
}

/// `w-1 is offline, w-2 is draining and 3 more`.
fn sentence(workers: &[(String, String)]) -> String {
    let named: Vec<String> =
        workers.iter().take(NAMED_IN_A_SENTENCE).map(|(worker, words)| format!("{worker} {words}")).collect();
    match workers.len().saturating_sub(NAMED_IN_A_SENTENCE) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

fn gone(agent: &AgentView) -> String {
    match agent.record.status {
        AgentStatus::Offline => format!("is offline since {}", agent.record.last_heartbeat),
        _ => format!("has been silent for {}", time(agent.silent_for)),
    }
}

fn begun(attempt: &Attempt) -> Option<Timestamp> {
    attempt.phases.started.or(attempt.phases.pulled)
}

fn submitted_at(view: &TaskView) -> Option<Timestamp> {
    let recorded = view.current().map(|current| current.record.submitted_at);
    recorded.or(view.queued.as_ref().map(|queued| queued.submitted_at))
}

fn attempt_of(number: u32, policy: Option<&Policy>) -> String {
    match policy {
        Some(policy) => format!("attempt {number} of {}", policy.retry.max_attempts),
        None => format!("attempt {number}"),
    }
}

/// How the last attempt ended.
fn last_failure(record: &TaskRecord) -> String {
    let Some(last) = record.attempts.last() else { return String::new() };
    let on = last.worker.as_ref().map_or(String::new(), |worker| format!(" on {worker}"));
    match (&last.error, last.outcome) {
        (Some(error), _) => format!("; the last one failed{on} with `{}`: {}", error.code, error.message),
        (None, Outcome::HandedBack) => format!("; the last one was handed back{on}, which was told to stop"),
        (None, Outcome::Lost) => format!("; the last one was lost{on}"),
        (None, _) => String::new(),
    }
}

fn message_lost(key: &TaskKey, state: State) -> Reason {
    reason(
        ReasonCode::MessageLost,
        format!(
            "its record says `{state}`, but its message is gone from the stream: it is just ending, or somebody deleted \
             the message, and then a dispatcher ends it as `lost`"
        ),
        format!("see that a dispatcher runs, then submit it again: shoal retry {key}"),
    )
}

/// Nothing is known of it, but perhaps a dead letter.
fn unknown(queue: Option<&QueueName>, id: &TaskId, letter: Option<&DeadLetter>) -> Explanation {
    let kept = time(RECORDS_KEPT.0);
    let mut reasons = Vec::new();
    if let Some(letter) = letter {
        reasons.push(reason(
            ReasonCode::Unknown,
            format!(
                "its record is gone, but a dead letter tells that it was given up at {} with `{}`: {}",
                letter.at, letter.reason, letter.message
            ),
            format!("see it: shoal dead show {0}; once more: shoal dead replay {0}", letter.dead_sequence),
        ));
    } else {
        let name = queue.map_or(id.to_string(), |queue| format!("{queue}.{id}"));
        reasons.push(reason(
            ReasonCode::Unknown,
            format!(
                "nothing is known of `{name}`: it was never accepted (a bare `nats pub` tells nothing of that), its \
                 message was deleted, or it ended more than {kept} ago"
            ),
            "look for it: shoal list; or submit it with `shoal submit` or `nats pub -J`, which tell what became of it",
        ));
    }
    Explanation {
        id: id.clone(),
        queue: queue.cloned(),
        sequence: None,
        status: Standing::Unknown,
        reasons,
        kind: None,
        position: None,
        worker: None,
        submitted_at: None,
        started_at: None,
        retry_at: None,
        expires_at: None,
        ended_at: None,
        waits_in: None,
        workers: None,
        agent: None,
    }
}

/// It is over. `view` has a terminal record.
fn finished(view: &TaskView, now: Timestamp) -> Explanation {
    let record = &view.current().expect("only a record is terminal").record;
    let key = &view.key;
    let task = record.task.as_ref().and_then(|task| Task::decode(task.get().as_bytes()).ok());
    let last = record.attempts.last();
    let ago = record.ended_at.map_or(String::new(), |at| format!(" {} ago", time(now.since(at))));
    let on = last.and_then(|last| last.worker.as_ref()).map_or(String::new(), |worker| format!(" on {worker}"));
    let spent = match record.spent() {
        0 => String::new(),
        1 => " after 1 attempt".to_owned(),
        many => format!(" after {many} attempts"),
    };
    let why = record.error.as_ref().map_or(String::new(), |error| format!(" with `{}`: {}", error.code, error.message));
    let next = match (record.state, &record.error) {
        (State::Succeeded, _) if task.as_ref().is_some_and(|task| matches!(task.workload, Workload::Agent(_))) => {
            format!(
                "see its change: shoal agent diff {key}; what it did: shoal agent transcript {key}; shoal get {key}"
            )
        }
        (State::Succeeded, _) => format!("see what it left: shoal get {key}; shoal logs {key}"),
        (_, Some(error)) => {
            let has_change = record.artifacts.iter().any(|artifact| artifact.path == PATCH);
            remedy(error.code, key, has_change)
        }
        (_, None) => format!("see it: shoal get {key}; once more: shoal retry {key}"),
    };
    Explanation {
        id: key.id.clone(),
        queue: Some(key.queue.clone()),
        sequence: view.sequence(),
        status: record.state.into(),
        reasons: vec![reason(
            ReasonCode::Finished,
            format!("it ended as `{}`{ago}{spent}{on}{why}", record.state),
            next,
        )],
        kind: task.as_ref().map(|task| task.workload.kind().to_owned()),
        position: None,
        worker: last.and_then(|last| last.worker.clone()),
        submitted_at: submitted_at(view),
        started_at: last.and_then(begun),
        retry_at: None,
        expires_at: task.and_then(|task| task.expires_at),
        ended_at: record.ended_at,
        waits_in: None,
        workers: None,
        agent: None,
    }
}

/// What to do about a task that ended with this code, with a change kept or without one.
fn remedy(code: Code, key: &TaskKey, has_change: bool) -> String {
    let again = format!("then once more: shoal retry {key}");
    match code {
        Code::InvalidTask | Code::InvalidId => {
            format!("see how it came: shoal dead show {key}; correct it and submit it")
        }
        Code::Expired => format!("start workers sooner or give it a later `expires_at`, {again}"),
        Code::Cancelled => format!("if it is wanted after all: shoal retry {key}"),
        Code::TimedOut | Code::IdleTimedOut => {
            format!("see where it stood: shoal logs {key}; give it a longer limit, {again}")
        }
        Code::OutOfMemory => format!("give it more `limits.memory`, {again}"),
        Code::TooManyProcesses => format!("give it more `limits.pids`, {again}"),
        Code::ExitedNonZero
        | Code::KilledBySignal
        | Code::CommandNotFound
        | Code::CommandNotExecutable
        | Code::HandlerFailed => format!("see what it wrote: shoal logs {key}; mend it, {again}"),
        Code::PolicyForbidden | Code::LimitUnsupported | Code::RuntimeNotAllowed | Code::NoWorker => {
            format!("let a worker allow it (`shoal worker --help`) or ask for less, {again}")
        }
        Code::ImageNotFound | Code::InvalidImage | Code::UserNotFound => format!("correct image and user, {again}"),
        Code::RegistryUntrusted | Code::RegistryLoginRefused => {
            format!("correct the worker's setting `registries`, or its `docker login`, {again}")
        }
        Code::ImagePullFailed | Code::EngineUnavailable | Code::EngineLost | Code::PortTaken | Code::StartFailed => {
            format!("look at the engine and the machine of its worker, {again}")
        }
        Code::IpUnavailable
        | Code::NotHealthy
        | Code::InstanceExited
        | Code::NoInstance
        | Code::InstanceUnreachable
        | Code::CircuitOpen => format!("see how the function stands: shoal instances; shoal function list; {again}"),
        Code::ResponseLost | Code::FunctionFailed => format!("see what the function wrote: shoal logs; mend it, {again}"),
        Code::ResponseTooLarge => format!("give the function a larger `response_limit` or let it answer less, {again}"),
        Code::NoHandler => format!("start a program that answers for its handler, {again}"),
        Code::ResultTooLarge => format!("let it leave an artifact instead, {again}"),
        Code::LostTooOften => format!("see whether it kills its workers: shoal get {key}; {again}"),
        Code::ContextInvalid | Code::BaseNotFound => format!("correct the job, {again}"),
        Code::RepositoryNotFound | Code::GitLoginRefused | Code::RepositoryUnreachable => {
            format!("check the remote, and what its workers are given for it (docs/agent-jobs.md), {again}")
        }
        Code::ModelUnavailable | Code::ModelRejected => {
            format!("check the model's endpoint, its key and its name on the workers, {again}")
        }
        Code::ModelRefused
        | Code::ModelMalformed
        | Code::ImplementerStuck
        | Code::ImplementationFailed
        | Code::NothingChanged
        | Code::StepFailed
        | Code::TestsFailed => {
            format!("see what it did: shoal agent transcript {key}; what it wrote is kept and gone on from, {again}")
        }
        Code::ChangeRefused if has_change => {
            format!("see the rest of the change: shoal agent diff {key}; say in the task what is not wanted, {again}")
        }
        Code::RebaseConflict | Code::PushRefused | Code::PushFailed if has_change => {
            format!("see the change: shoal agent diff {key}; {again}")
        }
        Code::ChangeRefused | Code::RebaseConflict | Code::PushRefused | Code::PushFailed => {
            format!("see what it did: shoal agent transcript {key}; {again}")
        }
        Code::BudgetExceeded => format!("it goes on from where it stood, with its whole budget again: shoal retry {key}"),
        Code::WorkspaceFailed | Code::ArtifactFailed => format!("look at disk and stores of its worker, {again}"),
        Code::WorkerLost | Code::MessageLost => format!("see how far it came: shoal logs {key}; {again}"),
        Code::NoWorkFolder
        | Code::Internal
        | Code::Unimplemented
        | Code::Newer(_)
        // Codes of calls, which end no task.
        | Code::InvalidArgument
        | Code::NotFound
        | Code::Ambiguous
        | Code::Locked
        | Code::Conflict
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::MethodNotAllowed
        | Code::UnsupportedMediaType
        | Code::TooLarge
        | Code::RateLimited
        | Code::Unavailable => {
            format!("see all of it: shoal get {key}; docs/errors.md has `{code}`; {again}")
        }
    }
}

fn reason(code: ReasonCode, message: impl Into<String>, next: impl Into<String>) -> Reason {
    Reason { code, message: message.into(), next: next.into() }
}

fn is_or_are(count: u64) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

/// A length of time, in whole seconds.
fn time(length: Duration) -> String {
    HumanDuration::seconds(length.as_secs()).to_string()
}
