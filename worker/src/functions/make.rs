//! A new instance: container, address, health, subscription, record; in this order, and all undone where one fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use functions::{CallError, Caller, Defined};
use schemas::{Code, Instance, InstanceStatus, StartId, TaskError, TaskId, TaskKey};

use super::Functions;
use super::seat::Seat;
use crate::logs::{Activity, LogSink, Notes};
use crate::runtime::instances::{Launch, Launched};
use crate::runtime::{Bounds, Exit, Runtime};
use crate::worker::new_start_id;

/// Between two looks at the health of one that starts: short at first.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// The same once it has taken a while.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Between signal and kill of what is removed.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// How often a record is written over the writes of the instance that is replaced.
const TRIES: usize = 20;
/// What is written in the first moments after a failed start still belongs to it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Which slot, and what its record was.
pub struct Slot {
    /// Which of the function's.
    pub index: u32,
    /// The record's revision: it is written over only if nobody else did.
    pub revision: u64,
    /// The start of the instance whose place it takes; that one may go on and write its own record meanwhile.
    pub replaces: Option<StartId>,
}

impl Slot {
    /// Writes over the slot's record, as long as it is what was there. `None`: the slot is somebody else's by now.
    pub async fn write(
        &self,
        caller: &Caller,
        next: impl Fn(Option<&Instance>) -> Instance,
    ) -> Result<Option<u64>, CallError> {
        let (mut revision, mut found) = (self.revision, None);
        for _ in 0..TRIES {
            let next = next(found.as_ref());
            if let Some(written) = caller.put_instance(&next, revision).await? {
                return Ok(Some(written));
            }
            match caller.instance(&next.function, self.index).await? {
                (Some(same), newer) if same.start.is_some() && same.start == self.replaces && same.takes_calls() => {
                    (revision, found) = (newer, Some(same));
                }
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// Removes a container whose making was cut short.
struct Undo {
    runtime: Arc<dyn Runtime>,
    id: Option<String>,
}

impl Undo {
    async fn now(mut self) {
        let Some(id) = self.id.take() else { return };
        remove(&self.runtime, &id, Duration::ZERO).await;
    }

    fn keep(mut self) {
        self.id = None;
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let runtime = self.runtime.clone();
            tokio::spawn(async move { remove(&runtime, &id, Duration::ZERO).await });
        }
    }
}

/// Removes a container of ours, however long its engine takes.
pub async fn remove(runtime: &Arc<dyn Runtime>, id: &str, grace: Duration) {
    let Some(instances) = runtime.instances() else { return };
    let mut pause = Duration::from_millis(200);
    loop {
        match instances.destroy(id, grace).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(id, %error, "an instance is not removed yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(10));
    }
}

/// Makes the instance of a slot. `Ok(None)`: somebody else wrote the slot's record meanwhile, and all is undone.
pub async fn make(functions: &Arc<Functions>, defined: &Defined, slot: &Slot) -> Result<Option<Arc<Seat>>, TaskError> {
    let worker = &functions.worker;
    let runtime = functions.runtime()?;
    let start = new_start_id();
    let _making = functions.make(&start);
    let key = log_key(defined);
    let limit = defined.function.limits.logs.unwrap_or(worker.config.log_limit);
    let (log, output) = LogSink::open(worker, &key, &start, limit, Activity::default());
    // Ends with its last writer.
    let log = tokio::spawn(log);
    let notes = output.notes();
    let launch = launch(functions, defined, slot.index, &start, notes.clone());
    let made = match runtime.instances() {
        Some(instances) => instances.launch(launch).await.map_err(|error| error.to_task_error()),
        None => Err(TaskError::new(Code::Unimplemented, format!("`{}` keeps no instances", runtime.name()))),
    };
    let launched = match made {
        Ok(launched) => launched,
        Err(error) => {
            notes.say(&format!("not started: {}", error.message)).await;
            return Err(error);
        }
    };
    let undo = Undo { runtime: runtime.clone(), id: Some(launched.id.clone()) };
    functions.copy_output(&runtime, &launched.id, output).await;
    let address = SocketAddr::new(launched.address, defined.function.port);
    if let Err(error) = wait_healthy(functions, defined, &runtime, &launched, address).await {
        notes.say(&format!("removed: {}", error.message)).await;
        undo.now().await;
        drop(notes);
        let _ = tokio::time::timeout(LAST_WORDS, log).await;
        return Err(error);
    }
    let now = worker.js.now();
    let record = Instance {
        function: defined.name.clone(),
        index: slot.index,
        status: InstanceStatus::Ready,
        id: Some(launched.id.clone()),
        name: Some(launched.name),
        ip_address: Some(launched.address.to_string()),
        port: Some(defined.function.port),
        worker: worker.id.clone(),
        boot: worker.instance.clone(),
        runtime: Some(runtime.name().to_owned()),
        start: Some(start.clone()),
        revision: defined.revision,
        spec: defined.function.spec(),
        owner: defined.function.owner.clone(),
        created_at: now,
        ready_at: Some(now),
        last_used: Some(now),
        error: None,
        failures: 0,
        retry_at: None,
        more: Default::default(),
    };
    // Whoever reads the record calls at once, so the calls must find us first.
    let unheard = |error: async_nats::SubscribeError| {
        TaskError::new(Code::Unavailable, format!("calls of `{}` cannot be heard: {error}", defined.name))
    };
    functions.listen(defined).await.map_err(unheard)?;
    let unwritten = |error: functions::CallError| {
        TaskError::new(Code::Unavailable, format!("the record of the instance was not written: {error}"))
    };
    match slot.write(&functions.caller, |_| record.clone()).await.map_err(unwritten)? {
        Some(revision) => {
            undo.keep();
            let seat = Seat::new(record, revision, start, address, runtime);
            functions.seat(defined, seat).await.map(Some).map_err(unheard)
        }
        None => {
            notes.say("removed: the slot was taken by somebody else meanwhile").await;
            undo.now().await;
            functions.hush(&defined.name);
            Ok(None)
        }
    }
}

fn launch(functions: &Functions, defined: &Defined, index: u32, start: &StartId, notes: Notes) -> Launch {
    let function = &defined.function;
    let defaults = functions.worker.config.containers.limits;
    let mut env: Vec<(String, String)> =
        function.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    env.push(("SHOAL_FUNCTION".into(), defined.name.to_string()));
    env.push(("SHOAL_INSTANCE".into(), index.to_string()));
    Launch {
        start: start.clone(),
        function: defined.name.clone(),
        index,
        spec: function.spec(),
        container: function.container(),
        env,
        limits: Bounds {
            cpu: function.limits.cpu.unwrap_or(defaults.cpu),
            memory: function.limits.memory.unwrap_or(defaults.memory),
            pids: function.limits.pids.unwrap_or(defaults.pids),
        },
        notes,
    }
}

/// The log of a function's instances.
pub fn log_key(defined: &Defined) -> TaskKey {
    let queue = schemas::function::LOG_QUEUE.parse().expect("a literal of allowed characters");
    TaskKey::new(queue, TaskId::new(defined.name.as_str()).expect("the name of a function is an id, too"))
}

async fn wait_healthy(
    functions: &Functions,
    defined: &Defined,
    runtime: &Arc<dyn Runtime>,
    launched: &Launched,
    address: SocketAddr,
) -> Result<(), TaskError> {
    let limit = defined.function.health.start_timeout;
    let began = Instant::now();
    let mut last = "nothing yet".to_owned();
    let looking = async {
        let mut pause = LOOK_AFTER;
        loop {
            match look(functions, defined, address).await {
                Ok(()) => return,
                Err(why) => last = why,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_EVERY);
        }
    };
    let ended = async {
        match runtime.instances() {
            Some(instances) => instances.ended(&launched.id).await,
            None => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        () = looking => return Ok(()),
        ended = ended => Some(ended),
        () = tokio::time::sleep(limit.0) => None,
    };
    let name = &defined.name;
    Err(match outcome {
        None => {
            let message = format!(
                "an instance of `{name}` was not well after {} ms (`health.start_timeout` is {limit}): {last}",
                began.elapsed().as_millis()
            );
            TaskError::new(Code::NotHealthy, message)
        }
        Some(Ok(exit)) => exited(name.as_str(), &exit),
        Some(Err(error)) => {
            TaskError::new(Code::InstanceExited, format!("an instance of `{name}` was lost as it started: {error}"))
        }
    })
}

/// How an instance ended by itself, in words.
pub fn exited(name: &str, exit: &Exit) -> TaskError {
    let how = match (exit.oom, exit.code, exit.signal) {
        (true, _, _) => {
            return TaskError::new(
                Code::OutOfMemory,
                format!("an instance of `{name}` was killed because it used more memory than its limit"),
            );
        }
        (false, Some(code), _) => format!("with exit code {code}"),
        (false, None, Some(signal)) => format!("by signal {signal}"),
        (false, None, None) => "and nobody knows how".to_owned(),
    };
    TaskError::new(Code::InstanceExited, format!("an instance of `{name}` ended by itself {how}"))
}

/// Whether an instance says that it is well.
pub async fn look(functions: &Functions, defined: &Defined, address: SocketAddr) -> Result<(), String> {
    let path = defined.function.health.path.as_deref();
    match (path, functions.http.look(address, path.unwrap_or("/")).await) {
        (None, Ok(_)) | (Some(_), Ok(200..=299)) => Ok(()),
        (Some(path), Ok(status)) => Err(format!("`{path}` answers {status}")),
        (_, Err(why)) => Err(why),
    }
}

impl Functions {
    /// Copies what an instance writes into its log, until it ends. Returns once it is being read.
    pub(super) async fn copy_output(&self, runtime: &Arc<dyn Runtime>, id: &str, output: crate::logs::Output) {
        let Some(instances) = runtime.instances() else { return };
        match instances.output(id).await {
            Ok(streams) => {
                let copying = output.copy(streams.stdout, streams.stderr);
                tokio::spawn(self.over.clone().run_until_cancelled_owned(copying));
            }
            Err(error) => tracing::warn!(id, %error, "the output of an instance is not read"),
        }
    }
}
