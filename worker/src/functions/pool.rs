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

    /// Calls go to it again. Whether none did before.
    pub fn reopen(self: &Arc<Self>, seat: &Seat) -> bool {
        let mut state = self.lock();
        let was_closed = !seat.takes.swap(true, Ordering::Relaxed);
        if was_closed {
            Self::serve(self, &mut state);
        }
        was_closed
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

    /// Another worker is gone, whatever was told of its instances.
    pub fn forget_worker(&self, worker: &AgentId) {
        self.lock().others.retain(|_, instance| instance.worker != *worker);
    }

    /// The slots of other workers' instances that are known.
    pub fn elsewhere(&self) -> Vec<u32> {
        self.lock().others.keys().copied().collect()
    }

    /// The slots to wish for once more, as long as calls wait.
    pub fn wish_again(&self, now: Instant) -> Vec<u32> {
        Self::wishes(&mut self.lock(), now)
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use schemas::{Function, InstanceStatus, Timestamp};

    use super::*;
    use crate::runtime::fake::FakeRuntime;

    fn pool(concurrency: u32, max: u32) -> Arc<Pool> {
        let function = Function { concurrency, max, ..Function::new("a") };
        Arc::new(Pool::new(Defined { name: "f".parse().unwrap(), function, revision: 1 }))
    }

    fn record(index: u32, start: &str, worker: &str) -> Instance {
        let mut record: Instance = serde_json::from_value(serde_json::json!({
            "function": "f", "index": index, "status": "ready", "id": start, "worker": worker, "boot": "b",
            "start": start, "revision": 1, "spec": "s", "created_at": "2026-11-20T10:00:00.000Z",
        }))
        .unwrap();
        record.last_used = Some(Timestamp::from_millis(0));
        record
    }

    fn seat(index: u32) -> Arc<Seat> {
        let start = format!("s{index}");
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let runtime = FakeRuntime::new();
        Arc::new(Seat::new(record(index, &start, "w"), 1, StartId::new(&start).unwrap(), address, runtime))
    }

    fn waits(pool: &Arc<Pool>, hops: u32) -> (oneshot::Receiver<Step>, Vec<u32>) {
        match pool.admit(hops, Instant::now()) {
            Admission::Wait(steps, wishes) => (steps, wishes),
            _ => panic!("it does not wait"),
        }
    }

    fn goes(pool: &Arc<Pool>) -> Place {
        match pool.admit(1, Instant::now()) {
            Admission::Go(place) => place,
            _ => panic!("it does not go"),
        }
    }

    #[test]
    fn who_waits_is_served_in_turn_and_a_newcomer_does_not_overtake() {
        let pool = pool(1, 1);
        pool.add(seat(0));
        let held = goes(&pool);
        let (mut first, _) = waits(&pool, 1);
        let (mut second, _) = waits(&pool, 1);
        drop(held);
        let Ok(Step::Go(first)) = first.try_recv() else { panic!("the first goes") };
        assert!(second.try_recv().is_err());
        let (mut third, _) = waits(&pool, 1);
        drop(first);
        let Ok(Step::Go(second)) = second.try_recv() else { panic!("then the second") };
        drop(second);
        assert!(matches!(third.try_recv(), Ok(Step::Go(_))));
    }

    #[test]
    fn who_left_the_line_takes_no_place() {
        let pool = pool(1, 1);
        pool.add(seat(0));
        let held = goes(&pool);
        let (gone, _) = waits(&pool, 1);
        drop(gone);
        drop(held);
        drop(goes(&pool));
    }

    #[test]
    fn a_line_wishes_for_as_many_slots_as_it_needs_and_never_beyond_max() {
        let pool = pool(2, 3);
        let wishes: Vec<Vec<u32>> = (0..9)
            .map(|_| {
                let (steps, wishes) = waits(&pool, 1);
                // Kept in line.
                std::mem::forget(steps);
                wishes
            })
            .collect();
        assert_eq!(wishes.concat(), [0, 1, 2]);
        assert_eq!(wishes[0], [0], "one for the first two");
        assert_eq!((&wishes[1], &wishes[2]), (&vec![], &vec![1]));
    }

    #[test]
    fn an_instance_elsewhere_takes_the_first_in_line_unless_they_were_passed_on_too_often() {
        let pool = pool(1, 2);
        let (mut tired, _) = waits(&pool, MOST_HOPS);
        let (mut fresh, _) = waits(&pool, 1);
        pool.hear(0, Some(record(0, "other", "v")), Instant::now());
        assert!(matches!(fresh.try_recv(), Ok(Step::PassOn(worker)) if worker.as_str() == "v"));
        assert!(tired.try_recv().is_err(), "it stays");
        // The next one goes there at once.
        assert!(matches!(pool.admit(0, Instant::now()), Admission::PassOn(_)));
    }

    #[test]
    fn a_start_that_failed_fails_for_all_who_wait_only_if_there_is_nothing_else() {
        let failed = |start: Option<&str>| Instance {
            status: InstanceStatus::Failed,
            start: start.map(|start| StartId::new(start).unwrap()),
            error: Some(TaskError::new(Code::ImageNotFound, "no")),
            failures: 1,
            ..record(0, "x", "v")
        };
        let pool = pool(1, 2);
        let (mut alone, _) = waits(&pool, 1);
        assert_eq!(pool.hear(0, Some(failed(Some("x"))), Instant::now()), [0], "one that lived is made again");
        assert!(alone.try_recv().is_err());
        pool.hear(0, Some(failed(None)), Instant::now());
        assert!(matches!(alone.try_recv(), Ok(Step::Fail(error)) if error.code == Code::ImageNotFound));
        pool.add(seat(1));
        let _held = goes(&pool);
        let (mut beside, _) = waits(&pool, 1);
        pool.hear(0, Some(failed(None)), Instant::now());
        assert!(beside.try_recv().is_err(), "the other instance will have room");
    }

    #[derive(Clone, Debug)]
    enum Move {
        Call,
        End(usize),
        Leave(usize),
        Add,
        Close(usize),
        Reopen(usize),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            4 => Just(Move::Call),
            4 => (0usize..64).prop_map(Move::End),
            1 => (0usize..64).prop_map(Move::Leave),
            1 => Just(Move::Add),
            1 => (0usize..8).prop_map(Move::Close),
            1 => (0usize..8).prop_map(Move::Reopen),
        ];
        proptest::collection::vec(one, 1..120)
    }

    proptest! {
        #[test]
        fn nobody_waits_beside_a_free_place_and_no_instance_has_more_than_it_takes(moves in moves(), concurrency in 1u32..4) {
            let pool = pool(concurrency, 8);
            let mut seats: Vec<Arc<Seat>> = Vec::new();
            let mut places: Vec<Place> = Vec::new();
            let mut line: Vec<oneshot::Receiver<Step>> = Vec::new();
            for step in moves {
                match step {
                    Move::Call => match pool.admit(1, Instant::now()) {
                        Admission::Go(place) => places.push(place),
                        Admission::Wait(steps, _) => line.push(steps),
                        _ => prop_assert!(false, "neither"),
                    },
                    Move::End(at) if !places.is_empty() => drop(places.swap_remove(at % places.len())),
                    Move::Leave(at) if !line.is_empty() => drop(line.remove(at % line.len())),
                    Move::Add if seats.len() < 8 => {
                        let seat = seat(seats.len() as u32);
                        seats.push(seat.clone());
                        pool.add(seat);
                    }
                    Move::Close(at) if !seats.is_empty() => {
                        pool.close(&seats[at % seats.len()]);
                    }
                    Move::Reopen(at) if !seats.is_empty() => {
                        pool.reopen(&seats[at % seats.len()]);
                    }
                    _ => {}
                }
                // Whoever is served is served from the front.
                let mut still = Vec::new();
                for mut steps in line.drain(..) {
                    match steps.try_recv() {
                        Ok(Step::Go(place)) => {
                            prop_assert!(still.is_empty(), "somebody before it still waits");
                            places.push(place);
                        }
                        Ok(_) => prop_assert!(false, "nothing else was told"),
                        Err(_) => still.push(steps),
                    }
                }
                line = still;
                let busy = |seat: &Arc<Seat>| seat.busy.load(Ordering::Relaxed);
                prop_assert!(seats.iter().all(|seat| busy(seat) <= concurrency));
                prop_assert_eq!(seats.iter().map(busy).sum::<u32>() as usize, places.len());
                let free = seats.iter().any(|seat| seat.takes.load(Ordering::Relaxed) && busy(seat) < concurrency);
                prop_assert!(line.is_empty() || !free, "{} wait beside a free place", line.len());
            }
        }
    }
}
