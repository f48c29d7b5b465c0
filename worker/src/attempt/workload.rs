//! Runs what a task asks for, up to everything that must be known before its record is written: output stored, result
//! and artifacts kept.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::client::{Request, RequestErrorKind};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use schemas::agent_job::JobRuntime;
use schemas::record::{Artifact, TaskResult, Usage};
use schemas::transcript::AgentReport;
use schemas::{Code, Limit, StartId, Task, TaskError, TaskKey, Timestamp, Workload, header};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::attempt::invoke;
use crate::attempt::phase::{End, Why};
use crate::handlers::Call;
use crate::logs::{Activity, LogSink};
use crate::runtime::{Bounds, Exit, Job, Runtime, RuntimeError, StartError, Surroundings};
use crate::worker::Worker;
use crate::{agent, fail, objects, placement};

/// Warnings kept of one attempt; the first ones tell the cause.
const MOST_WARNINGS: usize = 16;

/// A process that runs says so within far less.
const SOON: Duration = Duration::from_millis(500);

/// What to run, and for whom.
#[derive(Clone)]
pub struct Work {
    /// The task's identity.
    pub key: TaskKey,
    /// This start.
    pub start: StartId,
    /// Which attempt, from 1.
    pub number: u32,
    /// What it asks for.
    pub task: Arc<Task>,
    /// Trace context, if it came with one.
    pub traceparent: Option<String>,
    /// When the task was stored.
    pub submitted_at: Timestamp,
    /// The starts before this one, the newest last.
    pub earlier: Vec<StartId>,
    /// The starts of an earlier run that this one goes on from, the newest last.
    pub resumes: Vec<StartId>,
    /// When the workload must be gone unless kept alive.
    pub alive_until: Option<Instant>,
    /// Last sign of life on its output.
    pub activity: Activity,
    /// Set once the workload itself is gone; what follows is ours.
    pub exited: Arc<AtomicBool>,
}

/// What came of it.
#[derive(Debug)]
pub struct Done {
    /// How it ended, as far as the workload knows.
    pub end: End,
    /// Exit code, signal, memory.
    pub exit: Option<Exit>,
    /// When it was started, if it was.
    pub started: Option<Timestamp>,
    /// What it answered.
    pub result: Option<TaskResult>,
    /// What it left.
    pub artifacts: Vec<Artifact>,
    /// What went wrong without failing it.
    pub warnings: Vec<String>,
    /// What an agent job did.
    pub agent: Option<Box<AgentReport>>,
}

impl Done {
    pub(crate) fn new(end: End) -> Self {
        Self { end, exit: None, started: None, result: None, artifacts: Vec::new(), warnings: Vec::new(), agent: None }
    }
}

/// Runs it. `stop` carries the grace once it is to stop; then this returns as soon as it is gone.
/// Not cancel safe: a dropped run leaves its workload to the runtime's own switches.
pub async fn run(worker: &Worker, work: Work, stop: watch::Receiver<Option<Duration>>) -> Done {
    match &work.task.workload {
        Workload::Call(_) => call(worker, &work, stop).await,
        Workload::Invoke(asked) => Box::pin(invoke::run(worker, &work, asked, stop)).await,
        Workload::Agent(job) => Box::pin(agent::run::run(worker, &work, job, stop)).await,
        workload @ (Workload::Process(_) | Workload::Container(_)) => match placement::runtime(worker, workload) {
            // Boxed, here and below, so that a call's future stays small: it is moved and allocated once a task.
            Ok(runtime) => Box::pin(in_runtime(worker, runtime.clone(), work, stop)).await,
            // It could when the task was admitted.
            Err(hindrance) => Done::new(End::Stopped(Why::Unstarted(hindrance))),
        },
    }
}

/// Completes once it is to stop, with the grace. Cancel safe.
pub(crate) async fn stopping(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    match stop.wait_for(Option::is_some).await {
        Ok(grace) => grace.unwrap_or_default(),
        // The runner is gone, so nobody waits for a gentle end.
        Err(_) => Duration::ZERO,
    }
}

async fn call(worker: &Worker, work: &Work, mut stop: watch::Receiver<Option<Duration>>) -> Done {
    let Workload::Call(asked) = &work.task.workload else { unreachable!("chosen by the caller") };
    let started = worker.js.now();
    let token = CancellationToken::new();
    let answer = async {
        match worker.handlers.get(&asked.handler) {
            Some(function) => {
                let call = Call {
                    key: work.key.clone(),
                    attempt: work.number,
                    payload: asked.payload.clone(),
                    stop: token.clone(),
                };
                // The call itself may panic, before there is a future.
                match AssertUnwindSafe(async { function(call).await }).catch_unwind().await {
                    Ok(answer) => answer.map_err(TaskError::from),
                    Err(_) => Err(TaskError::new(Code::HandlerFailed, format!("handler `{}` panicked", asked.handler))),
                }
            }
            None => Box::pin(service(worker, work, &asked.handler, &asked.payload)).await,
        }
    };
    tokio::pin!(answer);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        grace = stopping(&mut stop) => {
            token.cancel();
            // A handler that listens may end by itself; one that does not is dropped.
            let _ = tokio::time::timeout(grace, &mut answer).await;
            Err(TaskError::new(Code::Cancelled, "stopped"))
        }
    };
    work.exited.store(true, Ordering::Release);
    fail::point("after_start");
    let mut done = match answer {
        Ok(bytes) if bytes.is_empty() => Done::new(End::Succeeded),
        Ok(bytes) => match Box::pin(objects::keep_result(worker, work, &bytes)).await {
            Ok(result) => Done { result: Some(result), ..Done::new(End::Succeeded) },
            Err(error) => Done::new(End::failed(error)),
        },
        Err(error) => Done::new(End::failed(error)),
    };
    done.started = Some(started);
    done
}

/// Asks whatever NATS service answers for this handler.
async fn service(
    worker: &Worker,
    work: &Work,
    handler: &str,
    payload: &serde_json::Value,
) -> Result<bytes::Bytes, TaskError> {
    let mut headers = HeaderMap::new();
    headers.insert("Shoal-Task-Id", work.key.id.as_str());
    headers.insert("Shoal-Task-Queue", work.key.queue.as_str());
    headers.insert("Shoal-Task-Attempt", work.number.to_string());
    if let Some(traceparent) = &work.traceparent {
        headers.insert(header::TRACEPARENT, traceparent.as_str());
    }
    let payload = serde_json::to_vec(payload).expect("a JSON value serializes");
    // The attempt has its own time limit; the request must not end before it.
    let request = Request::new().headers(headers).payload(payload.into()).timeout(Some(Duration::from_secs(1 << 32)));
    let subject = worker.config.names.handler_subject(handler);
    let reply =
        worker.js.client().send_request(subject.clone(), request).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => {
                let message = format!("no handler `{handler}` in this worker, and no service answers on `{subject}`");
                TaskError::new(Code::NoHandler, message)
            }
            _ => TaskError::new(Code::HandlerFailed, format!("request on `{subject}` failed: {error}")),
        })?;
    let header = |name: &str| reply.headers.as_ref().and_then(|headers| headers.get(name));
    match header(header::NATS_SERVICE_ERROR_CODE) {
        None => Ok(reply.payload),
        Some(code) => {
            let text = header(header::NATS_SERVICE_ERROR).map_or("", |text| text.as_str());
            // As in HTTP: a fault of the request stays one, however often it is sent.
            let retryable = !code.as_str().starts_with('4') || code.as_str() == "429";
            let message = format!("service on `{subject}` answered {code} {text}");
            Err(TaskError { retryable, ..TaskError::new(Code::HandlerFailed, message) }.bounded())
        }
    }
}

async fn in_runtime(
    worker: &Worker,
    runtime: Arc<dyn Runtime>,
    work: Work,
    mut stop: watch::Receiver<Option<Duration>>,
) -> Done {
    let is_process = matches!(work.task.workload, Workload::Process(_));
    // An engine may have given a container's folder to others; that of a process is its own.
    let made = if is_process { worker.folders.take(&work.start) } else { worker.folders.create(&work.start) };
    let mut folder = match made {
        Ok(folder) => folder,
        Err(error) => {
            // Not the task's fault, and the next one would fare no better: put off, fetch nothing more.
            let reason = format!("no work folder can be made: {error}");
            tracing::error!(task = %work.key, reason, "not started");
            worker.blocked.send_replace(Some(reason.clone()));
            let message = format!("on the worker {} {reason}", worker.id);
            return Done::new(End::Stopped(Why::Unstarted(TaskError::new(Code::NoWorkFolder, message))));
        }
    };
    let limit = work.task.limits.logs.unwrap_or(worker.config.log_limit);
    let (log, output) = LogSink::open(worker, &work.key, &work.start, limit, work.activity.clone());
    let surroundings = runtime.surroundings(folder.path(), &folder.result_file());
    let job = Job {
        start: work.start.clone(),
        key: work.key.clone(),
        attempt: work.number,
        workload: work.task.workload.clone(),
        env: environment(&work, surroundings),
        folder: folder.path().to_owned(),
        result_file: folder.result_file(),
        artifacts: work.task.artifacts.clone(),
        notes: output.notes(),
        limits: bounds(&work.task, worker),
        alive_until: work.alive_until,
        binds: Vec::new(),
    };
    let running = async {
        let mut starting = runtime.start(job);
        let started = tokio::select! {
            started = &mut starting => Some(started),
            // A process may run already, and then it gets its grace.
            _ = stopping(&mut stop) => {
                let patience = if is_process { SOON } else { Duration::ZERO };
                tokio::time::timeout(patience, &mut starting).await.ok()
            }
        };
        let Some(started) = started else {
            drop(starting);
            // The engine may be starting it at this moment: the end is told when it is taken back.
            if let Err(error) = runtime.stop(&work.start, Duration::ZERO).await {
                tracing::warn!(task = %work.key, start = %work.start, %error, "a start that was given up was not stopped");
            }
            return Err(End::failed(TaskError::new(Code::Cancelled, "stopped while it started")));
        };
        let started = started.map_err(not_started)?;
        let now = worker.js.now();
        // What was silent until now was the engine.
        work.activity.touch();
        let started_at = Timestamp::from_millis(now.as_millis() - started.ran.as_millis() as i64);
        fail::point("after_start");
        let ending = async {
            let exit = tokio::select! {
                exit = runtime.wait(&work.start) => exit,
                stopped = stop_in(&*runtime, &work.start, &mut stop) => {
                    if let Err(error) = stopped {
                        tracing::warn!(task = %work.key, start = %work.start, %error, "stop failed");
                    }
                    runtime.wait(&work.start).await
                }
            };
            work.exited.store(true, Ordering::Release);
            exit
        };
        // The output ends with the workload; both together, because a full pipe would keep it from ending.
        let (exit, ()) = tokio::join!(ending, output.copy(started.stdout, started.stderr));
        Ok((started_at, exit))
    };
    let (ran, mut warnings) = tokio::join!(running, log);
    let (started_at, exit) = match ran {
        Ok(ran) => ran,
        Err(end) => {
            folder.remove().await;
            return Done { warnings, ..Done::new(end) };
        }
    };
    if exit.is_ok() {
        let collected = tokio::select! {
            collected = runtime.collect(&work.start) => collected,
            () = worker.stop_now.cancelled() => Ok(vec!["result and artifacts cut: the worker was told to stop now".into()]),
        };
        match collected {
            Ok(more) => warnings.extend(more),
            Err(error) => warnings.push(format!("result and artifacts not collected: {error}")),
        }
    }
    if let Err(error) = runtime.remove(&work.start).await {
        tracing::warn!(task = %work.key, start = %work.start, %error, "what the runtime keeps could not be removed");
    }
    let mut done = match exit {
        Ok(exit) => Done { end: judge(&exit), exit: Some(exit), ..Done::new(End::Succeeded) },
        Err(error @ RuntimeError::Lost { .. }) => {
            Done::new(End::Stopped(Why::EngineLost(TaskError::new(Code::EngineLost, error.to_string()))))
        }
        Err(error) => Done::new(End::failed(TaskError::new(Code::Internal, error.to_string()))),
    };
    done.started = Some(started_at);
    // What is lost with its engine may run on and write there: nothing of it is read.
    if !work.task.artifacts.is_empty() && done.exit.is_some() {
        done.artifacts = objects::gather(worker, &work, folder.path(), &mut warnings).await;
    }
    warnings.truncate(MOST_WARNINGS);
    if folder.has_result() && done.end == End::Succeeded {
        match objects::keep_result_file(worker, &work, &folder.result_file()).await {
            Ok(result) => done.result = result,
            Err(error) => done.end = End::failed(error),
        }
    }
    done.warnings = warnings;
    if is_process && done.exit.is_some() {
        worker.folders.put(folder).await
    } else {
        folder.remove().await
    }
    done
}

/// Stops it once that is wished, and returns when it is gone. A shorter grace that is wished meanwhile counts.
async fn stop_in(
    runtime: &dyn Runtime,
    start: &StartId,
    stop: &mut watch::Receiver<Option<Duration>>,
) -> Result<(), RuntimeError> {
    let mut grace = stopping(stop).await;
    let mut stops = FuturesUnordered::from_iter([runtime.stop(start, grace)]);
    loop {
        let shorter = async {
            let wish = stop.wait_for(|wish| wish.is_some_and(|wish| wish < grace)).await;
            wish.ok().and_then(|wish| *wish).unwrap_or_default()
        };
        tokio::select! {
            biased;
            Some(stopped) = stops.next() => return stopped,
            shorter = shorter, if !grace.is_zero() => {
                grace = shorter;
                stops.push(runtime.stop(start, grace));
            }
        }
    }
}

/// What an exit means.
fn judge(exit: &Exit) -> End {
    let error = |code, message: String| TaskError::new(code, message);
    let (code, signal) = (exit.code, exit.signal);
    if code == Some(0) {
        return End::Succeeded;
    }
    let error = if exit.oom {
        error(Code::OutOfMemory, "killed by the kernel for using more memory than its limit".into())
    } else if exit.pids_exceeded {
        error(Code::TooManyProcesses, "it ran into its limit of processes and threads".into())
    } else if let Some(signal) = signal {
        error(Code::KilledBySignal, format!("ended by signal {signal}"))
    } else if let Some(code) = code {
        error(Code::ExitedNonZero, format!("exit code {code}"))
    } else {
        error(Code::Internal, "it ended without an exit code or a signal".into())
    };
    End::Failed { error, exit_code: code }
}

/// A start that failed, as an end.
fn not_started(error: StartError) -> End {
    let error_for_record = error.to_task_error();
    match error {
        StartError::Unavailable { .. } => End::Stopped(Why::Unstarted(error_for_record)),
        // It may have run, so it counts as one that did.
        StartError::Unsure { .. } => End::Stopped(Why::EngineLost(error_for_record)),
        _ => End::failed(error_for_record),
    }
}

fn environment(work: &Work, surroundings: Surroundings) -> BTreeMap<String, String> {
    let mut env = surroundings.env;
    match &work.task.workload {
        Workload::Process(process) => env.extend(process.env.clone()),
        Workload::Container(container) => env.extend(container.env.clone()),
        Workload::Call(_) | Workload::Invoke(_) | Workload::Agent(_) => {}
    }
    // Ours come last: a job may rely on them.
    let own = [
        ("SHOAL_TASK_ID", work.key.id.to_string()),
        ("SHOAL_TASK_QUEUE", work.key.queue.to_string()),
        ("SHOAL_TASK_ATTEMPT", work.number.to_string()),
        ("SHOAL_RESULT_FILE", surroundings.result_file),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    if let Some(traceparent) = &work.traceparent {
        env.insert("TRACEPARENT".into(), traceparent.clone());
    }
    env
}

/// The bounds of a task, the worker's defaults filled in.
pub fn bounds(task: &Task, worker: &Worker) -> Bounds {
    let in_container = match &task.workload {
        Workload::Container(_) => true,
        Workload::Agent(job) => matches!(job.runtime, JobRuntime::Docker(_)),
        Workload::Process(_) | Workload::Call(_) | Workload::Invoke(_) => false,
    };
    let defaults = if in_container { worker.config.containers.limits } else { worker.config.process_limits };
    Bounds {
        cpu: task.limits.cpu.unwrap_or(defaults.cpu),
        memory: task.limits.memory.unwrap_or(defaults.memory),
        pids: task.limits.pids.unwrap_or(defaults.pids),
    }
}

/// Usage for the record: only of what a runtime measured.
pub fn usage(exit: Option<&Exit>) -> Option<Usage> {
    exit.map(|exit| exit.usage.clone())
}

/// A time limit as a duration; none is for ever.
pub fn limit(timeout: Limit<schemas::HumanDuration>) -> Option<Duration> {
    timeout.bound().map(|timeout| timeout.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Notes;
    use crate::runtime::fake::{Done as Did, FakeRuntime};
    use schemas::{QueueName, TaskId};

    #[tokio::test]
    async fn a_shorter_grace_counts_while_a_longer_one_runs() {
        let runtime = FakeRuntime::new();
        let job = Job {
            start: StartId::new("s").unwrap(),
            key: TaskKey::new(QueueName::new("q").unwrap(), TaskId::new("t").unwrap()),
            attempt: 1,
            workload: Workload::Container(schemas::task::Container::new("a")),
            env: Default::default(),
            folder: Default::default(),
            result_file: Default::default(),
            artifacts: Vec::new(),
            notes: Notes::nowhere(),
            limits: Bounds { cpu: Limit::Unlimited, memory: Limit::Unlimited, pids: Limit::Unlimited },
            alive_until: None,
            binds: Vec::new(),
        };
        let start = job.start.clone();
        let _output = runtime.start(job).await.unwrap();
        runtime.be_deaf();
        let (wish, mut stop) = watch::channel(None);
        let stopping = {
            let (runtime, start) = (runtime.clone(), start.clone());
            tokio::spawn(async move { stop_in(&*runtime, &start, &mut stop).await })
        };
        let graces = [3_600, 5, 0].map(Duration::from_secs);
        for (at, grace) in graces.into_iter().enumerate() {
            wish.send_replace(Some(grace));
            while runtime.done().len() <= at {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(runtime.done(), graces.map(|grace| Did::Stop(start.clone(), grace)));
        runtime.end(&start, Exit::default());
        stopping.await.unwrap().unwrap();
    }

    #[test]
    fn what_may_have_run_is_lost_and_what_did_not_is_put_off() {
        let why = || "frozen".to_owned();
        let unsure = not_started(StartError::Unsure { runtime: "docker", why: why() });
        assert!(matches!(unsure, End::Stopped(Why::EngineLost(error)) if error.code == Code::EngineLost));
        let unsent = not_started(StartError::Unavailable { runtime: "docker", why: why() });
        assert!(matches!(unsent, End::Stopped(Why::Unstarted(_))));
    }
}
