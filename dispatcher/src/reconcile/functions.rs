//! Functions kept as they are defined: definitions against the records of instances. What is missing is wished for, what
//! nobody wants or holds is told to stop or forgotten. Containers are a worker's business alone; a wish for what is there
//! already does nothing, and the server keeps one wish a slot, so any number of dispatchers wish at once.
//!
//! | record | holder | below `min` | from `min` on |
//! | --- | --- | --- | --- |
//! | none | | wished for | |
//! | takes calls, as defined | there | | |
//! | takes calls, made from an older definition | there | wished for | wished for |
//! | takes calls | gone | wished for, naming its start | removed |
//! | `left` | | wished for | removed once idle for too long |
//! | `failed` | | wished for, not before `retry_at` | removed after an hour |
//! | `stopping` | gone | removed | removed |
//!
//! Of a function that is deleted, or from `max` on, what is there is told to stop, and where nothing or nobody is behind a
//! record it is removed.
//!
//! **Blind observers judge nobody.** A holder is gone if it had no responders at two looks, some seconds apart, over one
//! unbroken connection. One that is slow, frozen or not asked is not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use functions::{CallError, Caller, Defined, Known};
use futures_util::{StreamExt, stream};
use schemas::function::EnsureRequest;
use schemas::{AgentId, FunctionName, Instance, InstanceStatus, StartId, Timestamp};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{CUT_OFF_LEADER, Rhythm, Watch};
use crate::client::ClientError;

/// Between the two looks that tell that a holder is gone.
const LOOKS_APART: Duration = Duration::from_secs(5);
/// Longest time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Shortest time between two looks, however much is told.
const CALM: Duration = Duration::from_millis(300);
/// Holders asked at once.
const AT_ONCE: usize = 64;
/// How long the reason of a failure stays where nobody is waiting for the slot.
const FAILURE_KEPT: Duration = Duration::from_secs(3_600);

/// What one slot wants.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Want {
    /// Nothing.
    Nothing,
    /// An instance.
    Made { gone: Option<StartId> },
    /// The end of the one that is there.
    Stopped,
    /// No record.
    Removed,
}

/// What is wanted of a slot with a record. Pure. `defined` is none of a function that is deleted.
fn judge(instance: &Instance, defined: Option<&Defined>, holder_gone: bool, now: Timestamp) -> Want {
    let passed = |at: Option<Timestamp>| at.is_none_or(|at| at <= now);
    let Some(defined) = defined.filter(|defined| instance.index < defined.function.max) else {
        return match instance.status {
            InstanceStatus::Failed => Want::Removed,
            InstanceStatus::Newer(_) => Want::Nothing,
            // Its worker will find no record, and removes the container.
            InstanceStatus::Left => Want::Removed,
            _ if holder_gone => Want::Removed,
            InstanceStatus::Stopping => Want::Nothing,
            InstanceStatus::Ready | InstanceStatus::Paused => Want::Stopped,
        };
    };
    let is_kept = instance.index < defined.function.min;
    match instance.status {
        InstanceStatus::Ready | InstanceStatus::Paused => match (holder_gone, is_kept) {
            (true, true) => Want::Made { gone: instance.start.clone() },
            (true, false) => Want::Removed,
            // One whose successor could not be made serves on, until that is tried again.
            (false, _) if instance.spec != defined.function.spec() && passed(instance.retry_at) => {
                Want::Made { gone: None }
            }
            (false, _) => Want::Nothing,
        },
        InstanceStatus::Left if is_kept => Want::Made { gone: None },
        InstanceStatus::Left => {
            let used = instance.last_used.max(instance.ready_at).unwrap_or(instance.created_at);
            if now.since(used) > defined.function.idle_timeout.0 { Want::Removed } else { Want::Nothing }
        }
        InstanceStatus::Failed if is_kept && passed(instance.retry_at) => Want::Made { gone: None },
        InstanceStatus::Failed if !is_kept && now.since(instance.created_at) > FAILURE_KEPT => Want::Removed,
        InstanceStatus::Stopping if holder_gone => Want::Removed,
        InstanceStatus::Failed | InstanceStatus::Stopping | InstanceStatus::Newer(_) => Want::Nothing,
    }
}

/// Who did not answer, since when, and over which connection.
#[derive(Debug, Default)]
struct Suspects(HashMap<AgentId, (Instant, u64)>);

impl Suspects {
    /// Takes what one look found; tells who is gone. Pure but for the memory.
    fn gone(&mut self, silent: BTreeSet<AgentId>, epoch: u64, now: Instant, apart: Duration) -> BTreeSet<AgentId> {
        self.0.retain(|worker, (_, of)| *of == epoch && silent.contains(worker));
        let mut gone = BTreeSet::new();
        for worker in silent {
            let (since, _) = *self.0.entry(worker.clone()).or_insert((now, epoch));
            if now - since >= apart {
                gone.insert(worker);
            }
        }
        gone
    }
}

/// Looks every few seconds, and when something is told that wants it.
pub async fn run(watch: Watch, stop: CancellationToken) {
    let caller = Caller::new(watch.js.clone(), watch.names.clone());
    let mut rhythm = Rhythm::new(watch.every.min(LOOK_EVERY));
    let mut suspects = Suspects::default();
    let subjects = [watch.names.function_event_subjects(), watch.names.instance_event_subjects(None)];
    let mut news = stream::SelectAll::new();
    for subject in subjects {
        match watch.js.client().subscribe(subject).await {
            Ok(subscriber) => news.push(subscriber),
            Err(error) => tracing::warn!(%error, "changes of functions are only read"),
        }
    }
    // The next moment at which more is known than now.
    let mut due: Option<Duration> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = rhythm.ticks.tick() => {}
            () = tokio::time::sleep(due.unwrap_or_default()), if due.is_some() => {}
            Some(event) = news.next() => if !is_of_interest(&event.payload) { continue },
        }
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = turn(&watch, &caller, &mut suspects) => looked,
        };
        due = looked.as_ref().ok().copied().flatten();
        rhythm.report("functions", looked.map(|_| ()));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CALM) => {}
        }
    }
}

/// Whether an event may want something done. That an instance is used, which is told often, does not.
fn is_of_interest(payload: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Says {
        status: Option<InstanceStatus>,
    }
    match serde_json::from_slice::<Says>(payload) {
        Ok(Says { status: Some(InstanceStatus::Ready | InstanceStatus::Paused) }) => false,
        // A definition, or something that ends.
        _ => true,
    }
}

/// One look. Returns when the next is due, where that is before its time.
async fn turn(watch: &Watch, caller: &Caller, suspects: &mut Suspects) -> Result<Option<Duration>, ClientError> {
    let functions = caller.definitions().await?;
    let instances = caller.instances(None).await?;
    if functions.is_empty() && instances.is_empty() {
        suspects.0.clear();
        return Ok(None);
    }
    let (gone, mut due) = gone(watch, caller, suspects, &instances).await?;
    let functions: BTreeMap<&FunctionName, &Defined> =
        functions.iter().map(|defined| (&defined.name, defined)).collect();
    let now = watch.js.now();
    let mut slots: BTreeSet<(&FunctionName, u32)> = BTreeSet::new();
    let mut failed: Option<ClientError> = None;
    for known in &instances {
        let instance = &known.instance;
        slots.insert((&instance.function, instance.index));
        let defined = functions.get(&instance.function).copied();
        let want = judge(instance, defined, gone.contains(&instance.worker), now);
        if let Some(at) = instance.retry_at.filter(|at| *at > now) {
            let wait = at.since(now) + CALM;
            due = Some(due.map_or(wait, |due| due.min(wait)));
        }
        // What goes wrong with one is no reason to leave the others as they are.
        if let Err(error) = act(caller, known, defined, want).await {
            failed.get_or_insert(error);
        }
    }
    for defined in functions.values() {
        for index in (0..defined.function.min).filter(|index| !slots.contains(&(&defined.name, *index))) {
            wish(caller, defined, index, None).await?;
        }
    }
    failed.map_or(Ok(due), Err)
}

/// Which holders are gone, and when that may be known of others.
async fn gone(
    watch: &Watch,
    caller: &Caller,
    suspects: &mut Suspects,
    instances: &[Known],
) -> Result<(BTreeSet<AgentId>, Option<Duration>), ClientError> {
    // What is left has no holder until its worker's next boot, and what failed has none.
    let held = instances.iter().map(|known| &known.instance).filter(|instance| {
        instance.is_there() && !matches!(instance.status, InstanceStatus::Left | InstanceStatus::Newer(_))
    });
    // One record a worker is enough to ask by.
    let holders: BTreeMap<AgentId, Instance> =
        held.map(|instance| (instance.worker.clone(), instance.clone())).collect();
    let before = *watch.connection.link.borrow();
    let ask = |(worker, instance): (AgentId, Instance)| {
        let caller = caller.clone();
        async move { (worker, caller.answers(&instance).await) }
    };
    let asked: Vec<_> = stream::iter(holders).map(ask).buffer_unordered(AT_ONCE).collect().await;
    let after = *watch.connection.link.borrow();
    if before != after || !after.connected {
        suspects.0.clear();
        return Ok((BTreeSet::new(), None));
    }
    let mut silent = BTreeSet::new();
    for (worker, answers) in asked {
        if !answers? {
            silent.insert(worker);
        }
    }
    if silent.is_empty() {
        suspects.0.clear();
        return Ok((silent, None));
    }
    let info = watch.js.stream_info(&watch.names.instances_stream()).await?;
    // Servers of a cluster may be parted for a while.
    let clustered = info.is_some_and(|info| info.cluster.name.is_some());
    let apart = if clustered { CUT_OFF_LEADER } else { LOOKS_APART };
    let suspected = silent.len();
    let gone = suspects.gone(silent, after.epoch, Instant::now(), apart);
    let due = (gone.len() < suspected).then_some(apart);
    Ok((gone, due))
}

async fn act(caller: &Caller, known: &Known, defined: Option<&Defined>, want: Want) -> Result<(), ClientError> {
    let (instance, revision) = (&known.instance, known.revision);
    let (function, index) = (&instance.function, instance.index);
    match want {
        Want::Nothing => {}
        Want::Made { gone } => {
            if let Some(defined) = defined {
                wish(caller, defined, index, gone).await?;
            }
        }
        // What was read may be older than what is: records are changed by compare-and-set, and what is defined is the
        // leader's word.
        _ if !is_todays(caller, function, defined).await? => {}
        Want::Stopped => {
            let stopping = Instance { status: InstanceStatus::Stopping, ..instance.clone() };
            if caller.put_instance(&stopping, revision).await?.is_some() {
                tracing::info!(%function, index, "told to stop: there is no such function, or fewer of it");
            }
        }
        Want::Removed => {
            if caller.remove_instance(function, index, revision).await?.is_some() {
                let (status, worker) = (instance.status, &instance.worker);
                tracing::info!(%function, index, %status, %worker, "forgotten: nobody holds or wants it");
            }
        }
    }
    Ok(())
}

async fn is_todays(caller: &Caller, name: &FunctionName, defined: Option<&Defined>) -> Result<bool, CallError> {
    let newest = caller.definition(name).await?;
    Ok(newest.map(|newest| newest.revision) == defined.map(|defined| defined.revision))
}

async fn wish(caller: &Caller, defined: &Defined, index: u32, gone: Option<StartId>) -> Result<(), CallError> {
    let request = EnsureRequest { gone, ..EnsureRequest::default() };
    if caller.wish(defined, index, &request).await? {
        tracing::info!(function = %defined.name, index, gone = ?request.gone, "wished for");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Function;
    use serde_json::{Value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000_000 + seconds * 1_000)
    }

    fn defined(fields: Value) -> Defined {
        let mut value = json!({"image": "a:1"});
        value.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let function: Function = serde_json::from_value(value).unwrap();
        Defined { name: "f".parse().unwrap(), function, revision: 3 }
    }

    fn instance(index: u32, status: &str, fields: Value) -> Instance {
        let mut value = json!({
            "function": "f", "index": index, "status": status, "worker": "w-1", "boot": "b", "start": "abc", "id": "1",
            "revision": 3, "spec": defined(json!({})).function.spec(), "created_at": at(0),
        });
        value.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn made(gone: Option<&str>) -> Want {
        Want::Made { gone: gone.map(|start| start.parse().unwrap()) }
    }

    #[test]
    fn a_slot_below_min_is_wished_for_and_one_from_min_on_is_let_go() {
        let defined = defined(json!({"min": 1, "max": 3, "idle_timeout": "1m"}));
        let later = json!({"retry_at": at(90)});
        for (index, status, fields, holder_gone, want) in [
            (0, "ready", json!({}), false, Want::Nothing),
            (0, "ready", json!({}), true, made(Some("abc"))),
            (2, "ready", json!({}), true, Want::Removed),
            (2, "paused", json!({}), false, Want::Nothing),
            (0, "left", json!({}), true, made(None)),
            (2, "left", json!({}), true, Want::Removed),
            (2, "left", json!({"last_used": at(70)}), true, Want::Nothing),
            (0, "failed", json!({}), false, made(None)),
            (0, "failed", later.clone(), false, Want::Nothing),
            (2, "failed", json!({}), true, Want::Nothing),
            (2, "failed", json!({"created_at": at(-7_200)}), true, Want::Removed),
            (0, "stopping", json!({}), false, Want::Nothing),
            (0, "stopping", json!({}), true, Want::Removed),
            (0, "from_tomorrow", json!({}), true, Want::Nothing),
            // Made from an older definition.
            (0, "ready", json!({"spec": "0"}), false, made(None)),
            (2, "ready", json!({"spec": "0"}), false, made(None)),
            (2, "ready", json!({"spec": "0", "retry_at": at(90)}), false, Want::Nothing),
        ] {
            let judged = judge(&instance(index, status, fields.clone()), Some(&defined), holder_gone, at(80));
            assert_eq!(judged, want, "{index} {status} {fields} {holder_gone}");
        }
    }

    #[test]
    fn what_is_deleted_or_beyond_max_is_told_to_stop_or_forgotten() {
        let smaller = defined(json!({"max": 1}));
        for (index, defined) in [(0, None), (1, Some(&smaller))] {
            for (status, holder_gone, want) in [
                ("ready", false, Want::Stopped),
                ("paused", false, Want::Stopped),
                ("ready", true, Want::Removed),
                ("left", true, Want::Removed),
                ("failed", false, Want::Removed),
                ("stopping", false, Want::Nothing),
                ("stopping", true, Want::Removed),
                ("from_tomorrow", true, Want::Nothing),
            ] {
                let judged = judge(&instance(index, status, json!({})), defined, holder_gone, at(1));
                assert_eq!(judged, want, "{index} {status} {holder_gone}");
            }
        }
    }

    #[test]
    fn a_holder_is_gone_after_two_silent_looks_over_one_connection() {
        let (start, mut suspects) = (Instant::now(), Suspects::default());
        let worker: AgentId = "w-1".parse().unwrap();
        let silent = || BTreeSet::from([worker.clone()]);
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut look = |silent, epoch, at| suspects.gone(silent, epoch, at, LOOKS_APART);
        assert!(look(silent(), 1, start).is_empty());
        assert!(look(silent(), 1, after(4)).is_empty());
        assert_eq!(look(silent(), 1, after(5)), silent());
        // It answered in between.
        assert!(look(BTreeSet::new(), 1, after(6)).is_empty());
        assert!(look(silent(), 1, after(7)).is_empty());
        // Connected anew: what was seen before counts no more.
        assert!(look(silent(), 2, after(20)).is_empty());
        assert_eq!(look(silent(), 2, after(25)), silent());
    }

    #[test]
    fn that_an_instance_is_used_wakes_nobody() {
        assert!(!is_of_interest(br#"{"status":"ready","last_used":"2026-11-21T10:00:00Z"}"#));
        assert!(!is_of_interest(br#"{"status":"paused"}"#));
        for payload in [&b""[..], br#"{"status":"left"}"#, br#"{"status":"failed"}"#, br#"{"image":"a:1"}"#] {
            assert!(is_of_interest(payload));
        }
    }
}
