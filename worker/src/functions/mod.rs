//! Functions: this worker makes instances that are wished for, calls them, and looks after them.
//!
//! `wishes` pulls wishes and `make` fulfils them; `call` answers calls through a `pool` of `seat`s; `tend` looks after one
//! instance; `adopt` takes up what an earlier boot left. State that must outlive us is in the buckets alone; see
//! `docs/decisions/functions.md`.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use functions::{Caller, Defined};
use futures_util::StreamExt;
use schemas::agent::CONTAINER_RUNTIMES;
use schemas::function::EnsureRequest;
use schemas::{Code, FunctionName, Instance, InstanceStatus, StartId, TaskError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::runtime::Runtime;
use crate::worker::Worker;

mod adopt;
mod call;
mod circuit;
mod containers;
mod http;
mod make;
mod pool;
mod seat;
mod tend;
mod wishes;

use http::Http;
use pool::Pool;
use seat::Seat;

/// The queue group of all workers that hold an instance of a function.
const GROUP: &str = "shoal";
/// Calls that still come to us once we stop listening: more than can be on their way.
const HANDED_OVER: u64 = 256;
/// Fewer came, if none came for so long.
const SILENCE: Duration = Duration::from_secs(1);
/// Other workers' instances are read anew so soon after a reconnect,
const READ_EVERY: Duration = Duration::from_secs(2);
/// and so often in any case.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// How often it is looked for functions that nothing is left of.
const REAP_EVERY: Duration = Duration::from_secs(30);

/// All functions on one worker.
pub struct Functions {
    pub(super) worker: Arc<Worker>,
    caller: Caller,
    http: Http,
    known: Mutex<HashMap<FunctionName, Entry>>,
    /// Starts that are on their way to a seat.
    making: Mutex<HashSet<StartId>>,
    /// What must end before the worker does.
    tasks: TaskTracker,
    /// No new instances, no new calls.
    leaving: CancellationToken,
    /// Nothing is done any more.
    over: CancellationToken,
}

/// One function that this worker has something of.
struct Entry {
    pool: Arc<Pool>,
    /// Ends what is heard of it.
    end: CancellationToken,
    /// Ends the hearing of calls, where they are heard.
    calls: Option<CancellationToken>,
    is_deleted: bool,
    /// Nothing was left of it at the last look.
    was_empty: bool,
}

/// See [`Functions::make`].
struct Making<'a> {
    functions: &'a Functions,
    start: StartId,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.functions.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.start);
    }
}

impl Functions {
    /// Begins: takes up what is left of an earlier boot, then wishes. Nothing where no runtime keeps instances.
    pub fn start(worker: Arc<Worker>) -> Arc<Self> {
        let functions = Arc::new(Self {
            caller: Caller::new(worker.js.clone(), worker.config.names.clone()),
            http: Http::new(),
            known: Mutex::default(),
            making: Mutex::default(),
            tasks: TaskTracker::new(),
            leaving: CancellationToken::new(),
            over: CancellationToken::new(),
            worker,
        });
        if functions.worker.runtimes.values().any(|runtime| runtime.instances().is_some()) {
            functions.tasks.spawn(wishes::run(functions.clone()));
            tokio::spawn(containers::serve(functions.clone()));
            functions.tasks.spawn(functions.clone().follow_definitions());
        } else {
            functions.tasks.spawn(adopt::disown(functions.clone()));
        }
        functions
    }

    /// Takes nothing new, ends the calls under way within `grace`, and leaves the instances running for the next boot.
    pub async fn leave(&self, grace: Duration) {
        self.leaving.cancel();
        // Whose calls wait may find another worker.
        self.known().values().for_each(|entry| entry.pool.leave(&self.worker.id));
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!("calls of functions did not end within the grace");
        }
        self.over.cancel();
    }

    /// How many instances it holds.
    pub fn count(&self) -> usize {
        self.known().values().map(|entry| entry.pool.seats().len()).sum()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<FunctionName, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self, name: &FunctionName) -> Option<Arc<Pool>> {
        self.known().get(name).map(|entry| entry.pool.clone())
    }

    /// An instance of this start that is held here.
    fn held(&self, name: &FunctionName, start: &StartId) -> Option<Arc<Seat>> {
        self.pool(name)?.seat(start)
    }

    /// The runtime that new instances are made in.
    fn runtime(&self) -> Result<Arc<dyn Runtime>, TaskError> {
        let mut down = None;
        for runtime in CONTAINER_RUNTIMES.iter().filter_map(|name| self.worker.runtimes.get(name)) {
            if runtime.instances().is_none() {
                continue;
            }
            match runtime.trouble().and_then(|trouble| trouble.borrow().clone()) {
                None => return Ok(runtime.clone()),
                Some(why) => down = Some(format!("its runtime `{}` is down: {why}", runtime.name())),
            }
        }
        let worker = &self.worker.id;
        Err(match down {
            Some(why) => {
                TaskError::new(Code::EngineUnavailable, format!("the worker {worker} makes no instance now: {why}"))
            }
            None => {
                TaskError::new(Code::Unimplemented, format!("the worker {worker} has no runtime that keeps instances"))
            }
        })
    }

    /// A start that is on its way to a seat, until dropped: nobody takes it for left over.
    fn make(&self, start: &StartId) -> Making<'_> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).insert(start.clone());
        Making { functions: self, start: start.clone() }
    }

    /// Whether this start is held here, or about to be.
    fn has(&self, name: &FunctionName, start: &StartId) -> bool {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).contains(start) || self.held(name, start).is_some()
    }

    /// The pool of a function, made and listened to if it is new.
    async fn entry(self: &Arc<Self>, defined: &Defined) -> Result<Arc<Pool>, async_nats::SubscribeError> {
        if let Some(entry) = self.known().get_mut(&defined.name) {
            // Deleted, and defined again since.
            entry.is_deleted &= defined.revision <= entry.pool.defined().revision;
            entry.pool.define(defined.clone());
            return Ok(entry.pool.clone());
        }
        let (client, names) = (self.worker.js.client(), &self.worker.config.names);
        let direct = client.subscribe(names.invoke_at_subject(&defined.name, &self.worker.id)).await?;
        let events = client.subscribe(names.instance_event_subjects(Some(&defined.name))).await?;
        let entry = Entry {
            pool: Arc::new(Pool::new(defined.clone())),
            end: self.over.child_token(),
            calls: None,
            is_deleted: false,
            was_empty: false,
        };
        let (pool, end) = (entry.pool.clone(), entry.end.clone());
        {
            let mut known = self.known();
            if let Some(entry) = known.get(&defined.name) {
                // Somebody was faster; what we subscribed to goes with this.
                return Ok(entry.pool.clone());
            }
            known.insert(defined.name.clone(), entry);
        }
        tokio::spawn(self.clone().hear_calls(pool.clone(), direct, end.clone()));
        tokio::spawn(self.clone().hear_events(defined.name.clone(), pool.clone(), events, end));
        Ok(pool)
    }

    /// Hears the calls of a function from now on, if it does not already.
    async fn listen(self: &Arc<Self>, defined: &Defined) -> Result<(), async_nats::SubscribeError> {
        let pool = self.entry(defined).await?;
        let stop = {
            let mut known = self.known();
            let Some(entry) = known.get_mut(&defined.name) else { return Ok(()) };
            if entry.calls.is_some() {
                return Ok(());
            }
            let stop = entry.end.child_token();
            entry.calls = Some(stop.clone());
            stop
        };
        let subject = self.worker.config.names.invoke_subject(&defined.name);
        match self.worker.js.client().queue_subscribe(subject, GROUP.into()).await {
            Ok(calls) => {
                tokio::spawn(self.clone().hear_calls(pool, calls, stop));
                Ok(())
            }
            Err(error) => {
                self.hush(&defined.name);
                Err(error)
            }
        }
    }

    /// Hears no more calls of a function that are for anybody, unless an instance takes them.
    fn hush(&self, name: &FunctionName) {
        let mut known = self.known();
        if let Some(entry) = known.get_mut(name)
            && !entry.pool.seats().iter().any(|seat| seat.takes.load(Ordering::Relaxed))
            && let Some(calls) = entry.calls.take()
        {
            calls.cancel();
        }
    }

    /// Forgets the functions that nothing is left of, and was not at the last look either: what was on its way to us has
    /// come by then.
    fn reap(&self) {
        self.known().retain(|_, entry| {
            let is_empty = entry.calls.is_none() && entry.pool.is_empty();
            if is_empty && entry.was_empty {
                entry.end.cancel();
                return false;
            }
            entry.was_empty = is_empty;
            true
        });
    }

    async fn hear_calls(self: Arc<Self>, pool: Arc<Pool>, mut calls: Subscriber, stop: CancellationToken) {
        let spawn = |message: Message| {
            self.tasks.spawn(call::answer(self.clone(), pool.clone(), message));
        };
        let mut heard = 0;
        while let Some(Some(message)) = stop.run_until_cancelled(calls.next()).await {
            heard += 1;
            spawn(message);
        }
        // What is on its way to us is ours to answer. The client's own drain forgets it; told to end after some more, server
        // and client agree on which is the last. Where there are fewer, silence is the end.
        let handing_over = async {
            if calls.unsubscribe_after(heard + HANDED_OVER).await.is_ok() {
                while let Ok(Some(message)) = tokio::time::timeout(SILENCE, calls.next()).await {
                    spawn(message);
                }
            }
        };
        self.tasks.track_future(handing_over).await;
    }

    async fn hear_events(
        self: Arc<Self>,
        name: FunctionName,
        pool: Arc<Pool>,
        mut events: Subscriber,
        stop: CancellationToken,
    ) {
        let mut read = tokio::time::interval(READ_EVERY);
        let (mut connects, mut read_at) = (0, None);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => match event {
                    Some(event) => event,
                    None => return,
                },
                _ = read.tick() => {
                    // What was told while we were cut off, nobody tells again.
                    let now = self.worker.js.connects();
                    let is_due = read_at.is_none_or(|at: Instant| at.elapsed() >= READ_AGAIN);
                    if (now != connects || is_due) && self.read_others(&name, &pool).await {
                        (connects, read_at) = (now, Some(Instant::now()));
                    }
                    continue;
                }
            };
            let Some(index) = event.subject.rsplit('.').next().and_then(|index| index.parse().ok()) else { continue };
            let instance = (!event.payload.is_empty()).then(|| serde_json::from_slice::<Instance>(&event.payload));
            match instance.transpose() {
                Ok(instance) => self.hear(&pool, index, instance),
                Err(error) => tracing::debug!(%error, "an instance's record of another version"),
            }
        }
    }

    /// Reads what other workers hold of a function. Whether it could be read.
    async fn read_others(self: &Arc<Self>, name: &FunctionName, pool: &Pool) -> bool {
        let known = match self.caller.instances(Some(name)).await {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!(%error, "other workers' instances are not known now");
                return false;
            }
        };
        for index in pool.elsewhere() {
            if !known.iter().any(|known| known.instance.index == index) {
                self.hear(pool, index, None);
            }
        }
        known.into_iter().for_each(|known| self.hear(pool, known.instance.index, Some(known.instance)));
        true
    }

    /// What is told of a slot, ours or another's.
    fn hear(self: &Arc<Self>, pool: &Pool, index: u32, instance: Option<Instance>) {
        let start = instance.as_ref().and_then(|instance| instance.start.clone());
        let is_ours = |seat: &Arc<Seat>| seat.index == index && start.as_ref() == Some(&seat.start);
        let seats = pool.seats();
        // Told to stop, or the slot is another's: its own reading decides.
        let is_news = instance.as_ref().is_none_or(|instance| instance.status == InstanceStatus::Stopping);
        for seat in seats.iter().filter(|seat| seat.index == index && (is_news || !is_ours(seat))) {
            seat.news.notify_one();
        }
        if !seats.iter().any(is_ours) {
            // A container of our own that takes calls is about to be seated.
            let is_own = |instance: &Instance| instance.worker == self.worker.id && instance.takes_calls();
            if !instance.as_ref().is_some_and(is_own) {
                let wishes = pool.hear(index, instance, std::time::Instant::now());
                self.wish(&pool.defined(), wishes);
            }
        }
    }

    /// Definitions that change while we hold instances.
    async fn follow_definitions(self: Arc<Self>) {
        let subject = self.worker.config.names.function_event_subjects();
        let mut news = match self.worker.js.client().subscribe(subject).await {
            Ok(news) => news,
            Err(error) => return tracing::warn!(%error, "changed definitions are only read"),
        };
        let mut reap = tokio::time::interval(REAP_EVERY);
        loop {
            let event = tokio::select! {
                () = self.leaving.cancelled() => return,
                _ = reap.tick() => {
                    self.reap();
                    adopt::mend(&self).await;
                    continue;
                }
                event = news.next() => match event {
                    Some(event) => event,
                    None => return,
                },
            };
            let name = event.subject.rsplit('.').next().and_then(|name| name.parse::<FunctionName>().ok());
            if let Some(pool) = name.and_then(|name| self.pool(&name)) {
                pool.seats().iter().for_each(|seat| seat.news.notify_one());
            }
        }
    }

    /// Reads a definition again.
    async fn learn(&self, name: &FunctionName) {
        match self.caller.definition(name).await {
            Ok(Some(defined)) => {
                if let Some(pool) = self.pool(name) {
                    pool.define(defined);
                }
                self.set_deleted(name, false);
            }
            Ok(None) => self.set_deleted(name, true),
            Err(error) => tracing::debug!(function = %name, %error, "its definition cannot be read now"),
        }
    }

    fn set_deleted(&self, name: &FunctionName, is_deleted: bool) {
        if let Some(entry) = self.known().get_mut(name) {
            entry.is_deleted = is_deleted;
        }
    }

    fn is_deleted(&self, name: &FunctionName) -> bool {
        self.known().get(name).is_some_and(|entry| entry.is_deleted)
    }

    /// An instance that takes calls from now on, and is looked after.
    async fn seat(self: &Arc<Self>, defined: &Defined, seat: Seat) -> Result<Arc<Seat>, async_nats::SubscribeError> {
        let seat = Arc::new(seat);
        loop {
            let pool = self.entry(defined).await?;
            pool.add(seat.clone());
            // One that was forgotten just now, because it was empty, is nobody's.
            if self.pool(&defined.name).is_some_and(|known| Arc::ptr_eq(&known, &pool)) {
                self.listen(defined).await?;
                self.tasks.spawn(tend::tend(self.clone(), pool, seat.clone()));
                return Ok(seat);
            }
        }
    }

    /// An instance that was doubted is well.
    fn open(self: &Arc<Self>, pool: &Arc<Pool>, seat: &Seat) {
        if pool.reopen(seat) {
            let (functions, defined) = (self.clone(), pool.defined());
            self.tasks.spawn(async move {
                if let Err(error) = functions.listen(&defined).await {
                    tracing::warn!(%error, "calls are not heard");
                }
            });
        }
    }

    /// An instance is used.
    fn touch(self: &Arc<Self>, seat: &Arc<Seat>, defined: &Defined) {
        if seat.touch(self.worker.js.now(), defined.function.idle_timeout.0) {
            let (functions, seat) = (self.clone(), seat.clone());
            self.tasks.spawn(async move {
                if let Err(error) = seat.rewrite(&functions.caller, |_| {}).await {
                    tracing::debug!(%error, "when it was last used is not written now");
                }
            });
        }
    }

    /// An instance goes on.
    fn tell_awake(self: &Arc<Self>, seat: &Arc<Seat>) {
        let (functions, seat) = (self.clone(), seat.clone());
        self.tasks.spawn(async move {
            let awake = |record: &mut Instance| {
                if record.status == InstanceStatus::Paused {
                    record.status = InstanceStatus::Ready;
                }
            };
            if let Err(error) = seat.rewrite(&functions.caller, awake).await {
                tracing::debug!(%error, "that it goes on is not written now");
            }
        });
    }

    /// Wishes for slots because calls wait.
    fn wish(self: &Arc<Self>, defined: &Defined, indexes: Vec<u32>) {
        for index in indexes {
            let (functions, defined) = (self.clone(), defined.clone());
            self.tasks.spawn(async move {
                if let Err(error) = functions.caller.wish(&defined, index, &EnsureRequest::default()).await {
                    tracing::warn!(function = %defined.name, index, %error, "no further instance is wished for");
                }
            });
        }
    }
}
