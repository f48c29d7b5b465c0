//! What one worker holds of one function: its instances, the line of those who wait for one, and what is known of the
//! instances of others. No I/O.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use functions::Defined;
use schemas::{AgentId, Code, Instance, StartId, TaskError};
use tokio::sync::oneshot;

use super::circuit::Circuit;
use super::seat::Seat;

/// Most calls that wait on one worker for one function.
const LONGEST_LINE: usize = 10_000;
/// How often a call is passed on in all.
pub const MOST_HOPS: u32 = 3;
/// A wish that nothing is heard of is made again after this.
const WISH_AGAIN: Duration = Duration::from_secs(5);

/// One function on one worker.
pub struct Pool {
    state: Mutex<State>,
}

struct State {
    defined: Arc<Defined>,
    seats: Vec<Arc<Seat>>,
    line: VecDeque<Waiter>,
    circuit: Circuit,
    /// Instances of other workers, by index.
    others: BTreeMap<u32, Instance>,
    /// Slots that were wished for because of the line, and when.
    wished: HashMap<u32, Instant>,
    /// Why nothing is taken any more.
    leaving: Option<TaskError>,
}

/// A call in the line.
struct Waiter {
    hops: u32,
    step: oneshot::Sender<Step>,
}

/// What becomes of a call that waits.
pub enum Step {
    /// It has a place.
    Go(Place),
    /// Another worker has one for it.
    PassOn(AgentId),
    /// There is none, and none can be made.
    Fail(TaskError),
}

/// What becomes of a call that comes.
pub enum Admission {
    /// It has a place.
    Go(Place),
    /// All are busy here; this worker has an instance, too.
    PassOn(AgentId),
    /// It waits, and these slots should be wished for.
    Wait(oneshot::Receiver<Step>, Vec<u32>),
    /// Nothing is sent for so long.
    Shut(Duration),
    /// Too many wait already.
    Full,
    /// The worker leaves.
    Refuse(TaskError),
}

/// A place in an instance, until dropped.
pub struct Place {
    pool: Arc<Pool>,
    /// The instance.
    pub seat: Arc<Seat>,
    /// Taken away from a place that nobody took.
    is_held: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_held {
            self.seat.busy.fetch_sub(1, Ordering::Relaxed);
            self.seat.calmer.notify_waiters();
            let pool = self.pool.clone();
            Pool::serve(&pool, &mut pool.lock());
        }
    }
}

impl Pool {
    /// One without instances.
    pub fn new(defined: Defined) -> Self {
        let state = State {
            defined: Arc::new(defined),
            seats: Vec::new(),
            line: VecDeque::new(),
            circuit: Circuit::default(),
            others: BTreeMap::new(),
            wished: HashMap::new(),
            leaving: None,
        };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The definition as it is known here.
    pub fn defined(&self) -> Arc<Defined> {
        self.lock().defined.clone()
    }

    /// It was changed. An older one than is known is nothing new.
    pub fn define(self: &Arc<Self>, defined: Defined) {
        let mut state = self.lock();
        if defined.revision > state.defined.revision {
            state.defined = Arc::new(defined);
            Self::serve(self, &mut state);
        }
    }

    /// The instances held here.
    pub fn seats(&self) -> Vec<Arc<Seat>> {
        self.lock().seats.clone()
    }

    /// The one of this start, if it is held here.
    pub fn seat(&self, start: &StartId) -> Option<Arc<Seat>> {
        self.lock().seats.iter().find(|seat| seat.start == *start).cloned()
    }

    /// Whether nothing is held here and nobody waits.
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.seats.is_empty() && state.line.is_empty()
    }

    /// An instance that takes calls from now on.
    pub fn add(self: &Arc<Self>, seat: Arc<Seat>) {
        let mut state = self.lock();
        state.wished.remove(&seat.index);
        state.others.remove(&seat.index);
        state.seats.push(seat);
        Self::serve(self, &mut state);
    }

    /// No call goes to it any more. Whether others are left that take calls.
    pub fn close(&self, seat: &Seat) -> bool {
        let state = self.lock();
        seat.takes.store(false, Ordering::Relaxed);
        state.seats.iter().any(|seat| seat.takes.load(Ordering::Relaxed))
    }

    /// It is gone. Returns the slots to wish for, because calls wait.
    pub fn remove(&self, seat: &Seat, now: Instant) -> Vec<u32> {
        let mut state = self.lock();
        state.seats.retain(|held| held.start != seat.start);
        Self::wishes(&mut state, now)
    }

    /// What is told of a slot that is not held here: another worker's record, or that there is none any more. The first
    /// in line go to one that is new. Returns the slots to wish for.
    pub fn hear(&self, index: u32, instance: Option<Instance>, now: Instant) -> Vec<u32> {
        let mut state = self.lock();
        state.wished.remove(&index);
        let Some(instance) = instance else {
            state.others.remove(&index);
            return Self::wishes(&mut state, now);
        };
        if !instance.takes_calls() {
            state.others.remove(&index);
            return match instance.error {
                // One that lived may live again; a start that failed fails for all who wait, if there is nothing else.
                Some(error) if instance.start.is_none() => {
                    if state.seats.is_empty() && state.others.is_empty() {
                        for waiter in state.line.drain(..) {
                            // Who left the line hears nothing.
                            let _ = waiter.step.send(Step::Fail(error.clone()));
                        }
                    }
                    Vec::new()
                }
                _ => Self::wishes(&mut state, now),
            };
        }
        let is_new = state.others.get(&index).is_none_or(|known| known.start != instance.start);
        let worker = instance.worker.clone();
        state.others.insert(index, instance);
        let mut room = if is_new { state.defined.function.concurrency } else { 0 };
        let mut at = 0;
        while room > 0 && at < state.line.len() {
            if state.line[at].hops >= MOST_HOPS {
                at += 1;
                continue;
            }
            let Some(waiter) = state.line.remove(at) else { break };
            // One that has left the line takes no room.
            if waiter.step.send(Step::PassOn(worker.clone())).is_ok() {
                room -= 1;
            }
        }
        Vec::new()
    }

    /// A call comes that was passed on so often.
    pub fn admit(self: &Arc<Self>, hops: u32, now: Instant) -> Admission {
        let mut state = self.lock();
        if let Err(shut) = state.circuit.admit(now) {
            return Admission::Shut(shut);
        }
        if state.line.iter().all(|waiter| waiter.step.is_closed())
            && let Some(place) = Self::place(self, &state)
        {
            return Admission::Go(place);
        }
        // Nothing of it is sent for now.
        state.circuit.not_sent(now);
        if hops == 0
            && let Some(worker) = Self::other(&state)
        {
            return Admission::PassOn(worker);
        }
        state.line.retain(|waiter| !waiter.step.is_closed());
        if state.line.len() >= LONGEST_LINE {
            return Admission::Full;
        }
        if let Some(error) = &state.leaving {
            return Admission::Refuse(error.clone());
        }
        let (step, steps) = oneshot::channel();
        state.line.push_back(Waiter { hops, step });
        let wishes = Self::wishes(&mut state, now);
        Admission::Wait(steps, wishes)
    }

    /// The slots to wish for, for a line as long as this one is.
    fn wishes(state: &mut State, now: Instant) -> Vec<u32> {
        state.line.retain(|waiter| !waiter.step.is_closed());
        state.wished.retain(|_, at| now < *at + WISH_AGAIN);
        let per_instance = state.defined.function.concurrency.max(1) as usize;
        let wanted = state.line.len().div_ceil(per_instance);
        let mut wishes = Vec::new();
        for index in 0..state.defined.function.max {
            if state.wished.len() >= wanted {
                break;
            }
            let is_held = state.seats.iter().any(|seat| seat.index == index);
            if !is_held && !state.others.contains_key(&index) && !state.wished.contains_key(&index) {
                state.wished.insert(index, now);
                wishes.push(index);
            }
        }
        wishes
    }

    /// Any other worker that has an instance: which one has room is not known here, so chance spreads the calls.
    fn other(state: &State) -> Option<AgentId> {
        let count = state.others.len();
        let others = state.others.values();
        (count > 0).then(|| others.skip(rand::random_range(0..count)).map(|it| it.worker.clone()).next()).flatten()
    }

    /// A place in the least busy instance.
    fn place(self: &Arc<Self>, state: &State) -> Option<Place> {
        let most = state.defined.function.concurrency;
        let free = state
            .seats
            .iter()
            .filter(|seat| seat.takes.load(Ordering::Relaxed) && seat.busy.load(Ordering::Relaxed) < most);
        let seat = free.min_by_key(|seat| (seat.busy.load(Ordering::Relaxed), seat.index))?.clone();
        seat.busy.fetch_add(1, Ordering::Relaxed);
        Some(Place { pool: self.clone(), seat, is_held: true })
    }

    /// Gives what is free to the first in line.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while !state.line.is_empty() {
            let Some(mut place) = Self::place(self, state) else { return };
            loop {
                let Some(waiter) = state.line.pop_front() else {
                    // Nobody is left; given back here, because the lock is held.
                    place.is_held = false;
                    place.seat.busy.fetch_sub(1, Ordering::Relaxed);
                    return;
                };
                match waiter.step.send(Step::Go(place)) {
                    Ok(()) => break,
                    Err(Step::Go(back)) => place = back,
                    Err(Step::PassOn(_) | Step::Fail(_)) => unreachable!("it was a place"),
                }
            }
        }
    }

    /// Nobody waits here any more: nothing of these calls was sent, and their callers ask again.
    pub fn leave(&self, worker: &AgentId) {
        let error = TaskError::new(Code::Unavailable, format!("the worker {worker} leaves; nothing was sent"));
        let mut state = self.lock();
        for waiter in state.line.drain(..) {
            // Who left the line hears nothing.
            let _ = waiter.step.send(Step::Fail(error.clone()));
        }
        state.leaving = Some(error);
    }

    /// A call ended; see [`Circuit::ended`].
    pub fn ended(&self, failed: bool, now: Instant) {
        self.lock().circuit.ended(failed, now);
    }
}
