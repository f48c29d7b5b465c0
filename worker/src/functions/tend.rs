//! What an instance needs as long as it lives: its health, its idleness, its end, and its record kept true.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use functions::Defined;
use schemas::{Code, Instance, InstanceStatus, TaskError};
use tokio::time::Instant;

use super::Functions;
use super::make::{self, STOP_GRACE};
use super::pool::Pool;
use super::seat::{Seat, Standing};
use crate::runtime::{Exit, RuntimeError};

/// Bad looks in a row after which an instance is replaced.
const BAD_LOOKS: u32 = 3;
/// Between two looks at one that is doubted.
const DOUBT_AGAIN: Duration = Duration::from_millis(500);
/// Record and definition are read again so often, whatever was heard.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// One that lived longer than this is no failed start.
const LIVED: Duration = Duration::from_secs(60);
/// The first pause before the reconciler tries again, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two tries to write the last record of an instance.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);
/// What drains waits for calls no longer than this beyond their own limit.
const DRAIN_BEYOND: Duration = Duration::from_secs(1);

/// Why an instance is given up.
enum End {
    /// Its container ended.
    Exited(Result<Exit, RuntimeError>),
    /// It is not well any more.
    Unhealthy(String),
    /// Nobody wants it: idle, too many, told to stop, its function deleted.
    Unwanted(&'static str),
    /// Its slot has another by now.
    Replaced,
    /// The worker leaves and it stays.
    Left,
}

/// Looks after one instance until it is gone, or left.
pub async fn tend(functions: Arc<Functions>, pool: Arc<Pool>, seat: Arc<Seat>) {
    let ended = async {
        let exit = match seat.instances() {
            Ok(instances) => instances.ended(&seat.id).await,
            Err(error) => Err(error),
        };
        seat.ended.cancel();
        exit
    };
    let end = tokio::select! {
        exit = ended => End::Exited(exit),
        end = watch(&functions, &pool, &seat) => end,
        () = functions.leaving.cancelled() => End::Left,
    };
    let defined = pool.defined();
    // From here on nothing new goes there.
    if !pool.close(&seat) {
        functions.hush(&defined.name);
    }
    let what = format!("instance {} of `{}`", seat.index, defined.name);
    // However long the server is away: a record of what is gone would stay as it is for good.
    let settle = async |instead: Option<Instance>| {
        while let Err(error) = seat.give_up(&functions.caller, instead.clone()).await {
            tracing::warn!(what, %error, "its record is not written yet");
            tokio::time::sleep(SETTLE_AGAIN).await;
        }
        Ok(())
    };
    let drain = async {
        let longest = defined.function.request_timeout.0 + DRAIN_BEYOND;
        let _ = tokio::time::timeout(longest, seat.calm()).await;
    };
    let done = match end {
        End::Left => {
            drain.await;
            let left = |record: &mut Instance| {
                if record.status != InstanceStatus::Stopping {
                    record.status = InstanceStatus::Left;
                }
            };
            // A halted one would be found halted; the next boot lets it go on with its first call, so it stays so.
            seat.rewrite(&functions.caller, left).await.map(|_| ())
        }
        End::Replaced => {
            tracing::info!(what, "replaced");
            drain.await;
            make::remove(&seat.runtime, &seat.id, STOP_GRACE).await;
            Ok(())
        }
        End::Unwanted(why) => {
            tracing::info!(what, why, "removed");
            drain.await;
            make::remove(&seat.runtime, &seat.id, STOP_GRACE).await;
            settle(None).await
        }
        End::Unhealthy(why) => {
            let error = TaskError::new(Code::NotHealthy, format!("{what} is not well any more: {why}"));
            tracing::warn!(what, why, "not well, removed");
            make::remove(&seat.runtime, &seat.id, Duration::ZERO).await;
            settle(Some(epitaph(&functions, &seat, error).await)).await
        }
        End::Exited(exit) => {
            let error = match exit {
                Ok(exit) => make::exited(defined.name.as_str(), &exit),
                Err(error) => TaskError::new(Code::InstanceExited, format!("{what} was lost: {error}")),
            };
            tracing::warn!(what, error = error.message, "ended by itself");
            make::remove(&seat.runtime, &seat.id, Duration::ZERO).await;
            settle(Some(epitaph(&functions, &seat, error).await)).await
        }
    };
    if let Err(error) = done {
        tracing::warn!(what, %error, "its record is not as it should be; dispatchers mend it");
    }
    let wishes = pool.remove(&seat, std::time::Instant::now());
    functions.wish(&defined, wishes);
}

/// The record that says why there is no container any more.
async fn epitaph(functions: &Functions, seat: &Seat, error: TaskError) -> Instance {
    let record = seat.record().await;
    let now = functions.worker.js.now();
    let lived = record.ready_at.is_some_and(|ready| now.since(ready) > LIVED);
    let failures = if lived { 1 } else { record.failures + 1 };
    failed(record, error.bounded(), failures, now)
}

/// The record of a slot whose container is gone for this reason. Its start stays where it had begun.
pub fn failed(record: Instance, error: TaskError, failures: u32, now: schemas::Timestamp) -> Instance {
    let pause = RETRY.0.saturating_mul(1 << (failures.saturating_sub(1)).min(10)).min(RETRY.1);
    Instance {
        status: InstanceStatus::Failed,
        id: None,
        name: None,
        ip_address: None,
        port: None,
        ready_at: None,
        error: Some(error),
        failures,
        retry_at: Some(now.plus(pause)),
        ..record
    }
}

/// Completes with the reason to give it up.
async fn watch(functions: &Arc<Functions>, pool: &Arc<Pool>, seat: &Arc<Seat>) -> End {
    let mut bad = 0;
    let mut look_at = Instant::now() + pool.defined().function.health.interval.0;
    let mut read_at = Instant::now() + READ_AGAIN;
    loop {
        let defined = pool.defined();
        if let Some(why) = unwanted(functions, &defined, seat) {
            return End::Unwanted(why);
        }
        let (mut idle_at, mut pause_at) = (None, None);
        if seat.is_calm() {
            let spare = is_spare(&defined, seat).then_some(defined.function.idle_timeout);
            idle_at = spare.map(|idle| idle_from(functions, seat, idle.0));
            let pause = defined.function.pause_after;
            pause_at = match pause {
                Some(pause) if !seat.is_paused().await => Some(idle_from(functions, seat, pause.0)),
                _ => None,
            };
        }
        let next =
            [Some(look_at), Some(read_at), idle_at, pause_at].into_iter().flatten().min().expect("two are always");
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = seat.doubted.notified() => look_at = Instant::now(),
            () = seat.news.notified() => read_at = Instant::now(),
            // Idle from now on, or paused, and no longer busy.
            () = seat.calmer.notified() => continue,
        }
        let now = Instant::now();
        if now >= read_at {
            read_at = now + READ_AGAIN;
            match seat.standing(&functions.caller).await {
                Ok(Standing::Lost) => return End::Replaced,
                Ok(Standing::Ours(InstanceStatus::Stopping)) => return End::Unwanted("told to stop"),
                Ok(Standing::Ours(_)) => {}
                // Blind: nothing is decided.
                Err(error) => tracing::debug!(%error, "its record cannot be read now"),
            }
            functions.learn(&defined.name).await;
        }
        if now >= look_at {
            let is_closed = !seat.takes.load(Ordering::Relaxed);
            if is_closed {
                // Calls that are under way may be the reason why it does not answer.
                let _ = tokio::time::timeout(defined.function.request_timeout.0, seat.calm()).await;
            }
            if seat.is_paused().await {
                if !is_closed {
                    look_at = now + defined.function.health.interval.0;
                    continue;
                }
                // No call will wake it any more.
                match seat.wake().await {
                    Ok(_) => functions.tell_awake(seat),
                    Err(error) => {
                        bad += 1;
                        if bad >= BAD_LOOKS {
                            return End::Unhealthy(format!("it is paused and does not go on: {error}"));
                        }
                        look_at = Instant::now() + DOUBT_AGAIN;
                        continue;
                    }
                }
            }
            // One that works may answer one at a time.
            if !is_closed && !seat.is_calm() {
                look_at = now + defined.function.health.interval.0;
                continue;
            }
            match make::look(functions, &defined, seat.address).await {
                Ok(()) => {
                    bad = 0;
                    functions.open(pool, seat);
                    look_at = Instant::now() + defined.function.health.interval.0;
                }
                Err(why) => {
                    // Nothing more goes there until it is well.
                    pool.close(seat);
                    bad += 1;
                    if bad >= BAD_LOOKS {
                        return End::Unhealthy(why);
                    }
                    look_at = Instant::now() + DOUBT_AGAIN;
                }
            }
        }
        let idle_for = functions.worker.js.now().since(seat.last_used());
        let is_calm = seat.is_calm();
        if is_calm && is_spare(&defined, seat) && idle_for >= defined.function.idle_timeout.0 {
            return End::Unwanted("idle");
        }
        let is_due = defined.function.pause_after.is_some_and(|after| idle_for >= after.0);
        if is_calm && is_due && !seat.is_paused().await {
            match seat.pause().await {
                Ok(true) => {
                    let _ = seat.rewrite(&functions.caller, |record| record.status = InstanceStatus::Paused).await;
                    // A call may have come as this was written.
                    if !seat.is_paused().await {
                        functions.tell_awake(seat);
                    }
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "an idle instance cannot be paused"),
            }
        }
    }
}

/// Why nobody wants it, whatever it does.
fn unwanted(functions: &Functions, defined: &Defined, seat: &Seat) -> Option<&'static str> {
    if functions.is_deleted(&defined.name) {
        return Some("its function was deleted");
    }
    (seat.index >= defined.function.max).then_some("more than `max`")
}

/// Whether it may go when it is idle.
fn is_spare(defined: &Defined, seat: &Seat) -> bool {
    seat.index >= defined.function.min
}

/// When it will have been idle for so long, if nobody calls.
fn idle_from(functions: &Functions, seat: &Seat, idle: Duration) -> Instant {
    let so_far = functions.worker.js.now().since(seat.last_used());
    Instant::now() + idle.saturating_sub(so_far)
}
