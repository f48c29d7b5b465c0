//! Ensure: an instance that takes calls, from the bucket where there is one, else by a wish that a worker fulfils.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::{FutureExt, StreamExt};
use schemas::function::EnsureRequest;
use schemas::{Code, FunctionName, Instance, InstanceStatus, StartId, TaskError};
use tokio::time::Instant;

use crate::definition::{Defined, Known};
use crate::{CallError, Caller, LOOK_AGAIN};

/// What ensure found or had made.
#[derive(Clone, Debug, PartialEq)]
pub struct Ensured {
    /// An instance that takes calls.
    pub instance: Instance,
    /// It was there already; nobody was asked.
    pub reused: bool,
}

impl Caller {
    /// An instance of this function that takes calls, made if there is none; waits up to `within`, else the function's
    /// `acquire_timeout`. Of many callers at once all get the same one.
    pub async fn ensure(&self, name: &FunctionName, within: Option<Duration>) -> Result<Ensured, CallError> {
        let (defined, instances) = self.look(name).await?;
        self.check_owner(&defined)?;
        if let Some(instance) = usable(&instances, &defined) {
            return Ok(Ensured { instance, reused: true });
        }
        let until = Instant::now() + within.unwrap_or(defined.function.acquire_timeout.0);
        let instance = self.make(name, &[], until).await?;
        Ok(Ensured { instance, reused: false })
    }

    /// Has an instance made and waits for it. The records `doubted`, by revision, look well, and nobody answers for them;
    /// one that is written again is believed: its worker has looked.
    pub(crate) async fn make(
        &self,
        name: &FunctionName,
        doubted: &[u64],
        until: Instant,
    ) -> Result<Instance, CallError> {
        let subject = self.names.instance_event_subjects(Some(name));
        let lost =
            |error: String| CallError::new(Code::Unavailable, format!("news of `{name}` cannot be heard: {error}"));
        let mut news = self.js.client().subscribe(subject).await.map_err(|error| lost(error.to_string()))?;
        // Behind the subscription, so that nothing is missed between the two.
        let (mut defined, mut instances) = self.look(name).await?;
        let mut wished: Option<Wished> = None;
        loop {
            if let Some(instance) =
                usable(instances.iter().filter(|known| !doubted.contains(&known.revision)), &defined)
            {
                return Ok(instance);
            }
            match wished.as_ref().and_then(|wished| failed(&instances, wished)) {
                // One that had begun and ended since is no answer to the wish, which may have been settled before.
                Some(instance) if instance.start.is_some() => wished = None,
                Some(instance) => return Err(CallError::Failed(why(instance))),
                None => {}
            }
            // Once more with each look that was not called for: the wish that was in the slot may have been another one.
            if wished.as_ref().is_none_or(|wished| wished.at.elapsed() >= LOOK_AGAIN) {
                let since = instances.iter().map(|known| known.revision).max().unwrap_or(0);
                let (index, of_gone) = slot(&instances, doubted, defined.function.max);
                let request = EnsureRequest { gone: of_gone, ..EnsureRequest::default() };
                self.wish(&defined, index, &request).await?;
                let since = wished.map_or(since, |wished| wished.since);
                wished = Some(Wished { index, since, at: Instant::now() });
            }
            if Instant::now() >= until {
                return Err(nobody(&defined));
            }
            heard(&mut news, until.min(Instant::now() + LOOK_AGAIN)).await;
            (defined, instances) = self.look(name).await?;
        }
    }
}

/// What was wished for, and since when.
struct Wished {
    index: u32,
    /// The newest record at the first wish: a failure before it is not ours.
    since: u64,
    at: Instant,
}

/// Which slot is wished for, and whose place it takes: that of the first that does not answer, else the first without a
/// container.
fn slot(instances: &[Known], doubted: &[u64], max: u32) -> (u32, Option<StartId>) {
    let in_slots = || instances.iter().filter(|known| known.instance.index < max);
    if let Some(known) = in_slots().find(|known| doubted.contains(&known.revision)) {
        return (known.instance.index, known.instance.start.clone());
    }
    let taken = |index: &u32| in_slots().any(|known| known.instance.index == *index && known.instance.takes_calls());
    ((0..max).find(|index| !taken(index)).unwrap_or(0), None)
}

/// The best instance that takes calls: of today's definition, awake, the lowest.
fn usable<'a>(instances: impl IntoIterator<Item = &'a Known>, defined: &Defined) -> Option<Instance> {
    let spec = defined.function.spec();
    let calls = instances.into_iter().filter(|known| known.instance.takes_calls());
    let best = calls.min_by_key(|known| {
        let instance = &known.instance;
        (instance.spec != spec, instance.status != InstanceStatus::Ready, instance.index)
    });
    best.map(|known| known.instance.clone())
}

/// The record of the slot that was wished for, if it has failed since.
fn failed<'a>(instances: &'a [Known], wished: &Wished) -> Option<&'a Instance> {
    let ours = instances.iter().find(|known| known.instance.index == wished.index && known.revision > wished.since)?;
    Some(&ours.instance).filter(|instance| instance.status == InstanceStatus::Failed)
}

fn why(failed: &Instance) -> TaskError {
    let unknown = || TaskError::new(Code::Internal, "its record does not say why it failed");
    failed.error.clone().unwrap_or_else(unknown)
}

fn nobody(defined: &Defined) -> CallError {
    let Defined { name, function, .. } = defined;
    let message = format!(
        "no instance of `{name}` was ready in time; workers of the queue `{}` with a container runtime make them \
         (`shoal agents list`, `shoal instances {name}`)",
        function.pool
    );
    CallError::new(Code::NoInstance, message)
}

/// Waits for news until `until`. All that waits is taken at once: what follows is one look.
async fn heard(news: &mut Subscriber, until: Instant) {
    match tokio::time::timeout_at(until, news.next()).await {
        Ok(Some(_)) | Err(_) => {}
        // The connection was closed for good: the look says so.
        Ok(None) => tokio::time::sleep_until(until).await,
    }
    while let Some(Some(_)) = news.next().now_or_never() {}
}
