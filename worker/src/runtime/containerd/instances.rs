//! Instances of functions, as the worker sees them: by id, whatever boot of the worker made them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{Container as Record, GetContainerRequest, GetRequest};
use containerd_client::tonic::Status as Answer;
use containerd_client::types::v1::Process;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemas::record::Usage;
use schemas::{FunctionName, StartId};

use super::NAME;
use super::attend::{exit, wait};
use super::core::Core;
use super::engine::{PATIENCE, ours};
use super::groups;
use super::input::Beside;
use super::labels::Ways;
use super::runtime::{ContainerdRuntime, halt, states, stop, undone, word};
use super::status::{failed, is_missing};
use super::sweep::records;
use super::tail;
use super::undo::undo;
use crate::runtime::container::labels;
use crate::runtime::container::usage::Meter;
use crate::runtime::instances::{Found, Instances, Launch, Launched, Output};
use crate::runtime::{Exit, RuntimeError, StartError, Status};

/// What this boot of the worker knows of its instances beside what the engine does, by id.
#[derive(Default)]
pub(super) struct Kept {
    all: Mutex<HashMap<String, Arc<Instance>>>,
}

/// One of them.
#[derive(Default)]
pub(super) struct Instance {
    meter: Meter,
    /// Nobody has asked for its output since this boot launched it.
    is_unheard: AtomicBool,
}

impl Kept {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Instance>>> {
        // No code that holds it can panic half way.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, id: &str) {
        let instance = Instance { is_unheard: AtomicBool::new(true), ..Instance::default() };
        self.all().insert(id.to_owned(), Arc::new(instance));
    }

    fn of(&self, id: &str) -> Arc<Instance> {
        self.all().entry(id.to_owned()).or_default().clone()
    }

    pub(super) fn forget(&self, id: &str) {
        self.all().remove(id);
    }
}

impl Core {
    /// The record of one of ours.
    async fn record(&self, what: &'static str, id: &str) -> Result<Record, RuntimeError> {
        let request = GetContainerRequest { id: id.to_owned() };
        match self.engine.ask(PATIENCE, self.engine.containers().get(ours(request))).await {
            Ok(found) => {
                let record = found.container.unwrap_or_default();
                if self.owner.owns_instance(&record.labels) { Ok(record) } else { Err(not_found(id)) }
            }
            Err(status) if is_missing(&status) => {
                self.kept.forget(id);
                Err(not_found(id))
            }
            Err(status) => Err(failed(what, status)),
        }
    }

    /// Its task, if it has one.
    pub(super) async fn task(&self, id: &str) -> Result<Option<Process>, Answer> {
        let request = GetRequest { container_id: id.to_owned(), exec_id: String::new() };
        match self.engine.ask(PATIENCE, self.engine.tasks().get(ours(request))).await {
            Ok(found) => Ok(found.process),
            Err(status) if is_missing(&status) => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// What is known of it here, with its control group to be measured by.
    fn instance(&self, record: &Record) -> Arc<Instance> {
        let instance = self.kept.of(&record.id);
        if instance.meter.group().flatten().is_none() {
            instance.meter.set_group(groups::files(&Ways::of(&record.labels).group));
        }
        instance
    }

    async fn list_instances(&self) -> Result<Vec<Found>, RuntimeError> {
        let found = records(&self.engine, &self.owner).await.map_err(|status| failed("list", status))?;
        let states = states(&self.engine).await.map_err(|status| failed("list", status))?;
        let ours = found.into_iter().filter(|record| self.owner.owns_instance(&record.labels));
        Ok(ours.filter_map(|record| read(&record, states.get(&record.id).copied())).collect())
    }

    async fn listen(self: &Arc<Self>, id: &str) -> Result<Output, RuntimeError> {
        let record = self.record("tell output", id).await?;
        let instance = self.instance(&record);
        let from_start = instance.is_unheard.swap(false, Ordering::Relaxed);
        let beside = Beside::of(id);
        let open = |path: String| tail::Tail::open(&path, from_start);
        let told = |source: std::io::Error| RuntimeError::Engine {
            runtime: NAME,
            what: "tell output",
            source: Box::new(source),
        };
        let (stdout, stderr) = (open(beside.log("stdout")).map_err(told)?, open(beside.log("stderr")).map_err(told)?);
        let (stdout_end, stdout_start) = tokio::io::duplex(tail::HELD);
        let (stderr_end, stderr_start) = tokio::io::duplex(tail::HELD);
        let (core, id) = (self.clone(), id.to_owned());
        self.attendants.spawn(async move {
            let gone = tokio_util::sync::CancellationToken::new();
            let following = async { tokio::join!(stdout.follow(stdout_end, &gone), stderr.follow(stderr_end, &gone)) };
            let ending = async {
                // However it ended: there is nothing more to come.
                let _ = wait(&core.engine, &id).await;
                gone.cancel();
            };
            core.closed.run_until_cancelled(async { tokio::join!(following, ending) }).await;
        });
        Ok(Output { stdout: Box::new(stdout_start), stderr: Box::new(stderr_start) })
    }

    async fn instance_ended(&self, id: &str) -> Result<Exit, RuntimeError> {
        let record = self.record("wait", id).await?;
        let instance = self.instance(&record);
        let waiting = wait(&self.engine, id);
        let metering = super::attend::follow(&instance.meter);
        let ended = tokio::select! {
            biased;
            ended = waiting => ended,
            () = metering => return Err(not_found(id)),
            // Nobody's business any more.
            () = self.closed.cancelled() => std::future::pending().await,
        };
        let ended = ended.map_err(|_| not_found(id))?;
        // The last numbers, exact: the group stays as long as the task.
        instance.meter.read();
        Ok(exit(&ended, &instance.meter, began(&record)))
    }

    async fn used_by_instance(&self, id: &str) -> Result<Usage, RuntimeError> {
        let record = self.record("tell usage", id).await?;
        let instance = self.instance(&record);
        instance.meter.read();
        let wall_ms = match self.task(id).await.map_err(|status| failed("tell usage", status))? {
            Some(task) if word(task.status) == Status::Stopped => {
                let at = task.exited_at.and_then(|at| SystemTime::try_from(at).ok());
                at.and_then(|at| at.duration_since(began(&record)).ok())
            }
            _ => began(&record).elapsed().ok(),
        };
        Ok(Usage { wall_ms: wall_ms.map_or(0, |ran| ran.as_millis() as u64), ..instance.meter.usage() })
    }

    async fn halt(&self, id: &str, halted: bool) -> Result<(), RuntimeError> {
        let what = if halted { "pause" } else { "resume" };
        self.record(what, id).await?;
        match self.task(id).await.map_err(|status| failed(what, status))? {
            Some(task) if word(task.status) != Status::Stopped => {
                halt(&self.engine, id, halted).await.map_err(|status| failed(what, status))
            }
            // One that has ended is neither halted nor going on.
            _ => Err(failed(what, Answer::failed_precondition("it has ended"))),
        }
    }

    async fn end_instance(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        match self.record("remove", id).await {
            Ok(_) => {}
            Err(RuntimeError::NotFound { .. }) if !self.is_somebodys(id).await => return Ok(()),
            Err(error) => return Err(error),
        }
        if !grace.is_zero() {
            tokio::select! {
                biased;
                _ = wait(&self.engine, id) => {}
                never = stop(&self.engine, id, grace) => match never {},
            }
        }
        undone("remove", undo(&self.engine, id).await)?;
        self.kept.forget(id);
        Ok(())
    }

    /// Whether there is a container of that id which is none of our instances.
    async fn is_somebodys(&self, id: &str) -> bool {
        let request = GetContainerRequest { id: id.to_owned() };
        self.engine.ask(PATIENCE, self.engine.containers().get(ours(request))).await.is_ok()
    }
}

/// When it was made, which is when it began as far as anybody knows.
fn began(record: &Record) -> SystemTime {
    record.created_at.and_then(|at| SystemTime::try_from(at).ok()).unwrap_or_else(SystemTime::now)
}

/// What a record tells; `None` of one that names no instance.
fn read(record: &Record, state: Option<i32>) -> Option<Found> {
    let label = |name: &str| record.labels.get(name).map(String::as_str).unwrap_or_default();
    let read = (
        FunctionName::new(label(labels::FUNCTION)),
        label(labels::INDEX).parse::<u32>(),
        StartId::new(label(labels::START)),
    );
    let (Ok(function), Ok(index), Ok(start)) = read else {
        tracing::warn!(id = record.id, "a container has our labels, but they name no instance; it is left alone");
        return None;
    };
    let status = state.map_or(Status::Stopped, word);
    let address = if status == Status::Stopped { None } else { Beside::of(&record.id).address() };
    let (id, name, spec) = (record.id.clone(), record.id.clone(), label(labels::SPEC).to_owned());
    Some(Found { id, name, function, index, start, spec, status, address })
}

/// The engine's ids are longer than ours; the end is what tells them apart.
fn not_found(id: &str) -> RuntimeError {
    let end = id.rsplit('-').next().unwrap_or_default().to_ascii_lowercase();
    RuntimeError::NotFound { start: StartId::new(end).unwrap_or_else(|_| StartId::new("unknown").expect("a literal")) }
}

/// One that was launched.
pub(super) fn launched(id: String, address: IpAddr) -> Launched {
    Launched { name: id.clone(), id, address }
}

impl Instances for ContainerdRuntime {
    fn launch(&self, wish: Launch) -> BoxFuture<'_, Result<Launched, StartError>> {
        self.core.clone().launch(wish).boxed()
    }

    fn instances(&self) -> BoxFuture<'_, Result<Vec<Found>, RuntimeError>> {
        self.core.list_instances().boxed()
    }

    fn output<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Output, RuntimeError>> {
        self.core.listen(id).boxed()
    }

    fn ended<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Exit, RuntimeError>> {
        self.core.instance_ended(id).boxed()
    }

    fn instance_stats<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Usage, RuntimeError>> {
        self.core.used_by_instance(id).boxed()
    }

    fn halt_instance<'a>(&'a self, id: &'a str, halted: bool) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.core.halt(id, halted).boxed()
    }

    fn destroy<'a>(&'a self, id: &'a str, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.core.end_instance(id, grace).boxed()
    }
}
