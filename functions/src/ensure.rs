//! Ensure: an instance that takes calls, from the bucket where there is one, else by a wish that a worker fulfils.

use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt;
use schemas::function::EnsureRequest;
use schemas::{Code, FunctionName, Instance, InstanceStatus, StartId};
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
        let instance = self.make(name, None, until).await?;
        Ok(Ensured { instance, reused: false })
    }

    /// Has an instance made and waits for it. `gone` is the start of one that is known not to answer, whatever its record
    /// says.
    pub(crate) async fn make(
        &self,
        name: &FunctionName,
        gone: Option<&StartId>,
        until: Instant,
    ) -> Result<Instance, CallError> {
        let subject = self.names.instance_event_subjects(Some(name));
        let lost =
            |error: String| CallError::new(Code::Unavailable, format!("news of `{name}` cannot be heard: {error}"));
        let mut news = self.js.client().subscribe(subject).await.map_err(|error| lost(error.to_string()))?;
        // Behind the subscription, so that nothing is missed between the two.
        let (mut defined, mut instances) = self.look(name).await?;
        let mut wished = None;
        loop {
            let others: Vec<Known> = instances
                .iter()
                .filter(|known| gone.is_none() || known.instance.start.as_ref() != gone)
                .cloned()
                .collect();
            if let Some(instance) = usable(&others, &defined) {
                return Ok(instance);
            }
            if let Some(since) = wished
                && let Some(error) = failure(&instances, since)
            {
                return Err(error);
            }
            if wished.is_none() {
                let newest = instances.iter().map(|known| known.revision).max().unwrap_or(0);
                let index = slot(&instances, gone);
                let request = EnsureRequest { gone: gone.cloned(), ..EnsureRequest::default() };
                self.wish(&defined, index, &request).await?;
                wished = Some(newest);
            }
            if !heard(&mut news, until.min(Instant::now() + LOOK_AGAIN)).await && Instant::now() >= until {
                return Err(nobody(&defined));
            }
            (defined, instances) = self.look(name).await?;
        }
    }
}

/// Which slot is wished for: the one that does not answer, else the first without a container.
fn slot(instances: &[Known], gone: Option<&StartId>) -> u32 {
    let of_gone = instances.iter().find(|known| gone.is_some() && known.instance.start.as_ref() == gone);
    let taken =
        |index: &u32| instances.iter().any(|known| known.instance.index == *index && known.instance.takes_calls());
    match of_gone {
        Some(known) => known.instance.index,
        // All taken can only be where all are gone and `gone` names none of them; the first is as good as any.
        None => (0..).find(|index| !taken(index)).unwrap_or(0),
    }
}

/// The best instance that takes calls: of today's definition, lately used, the lowest.
fn usable(instances: &[Known], defined: &Defined) -> Option<Instance> {
    let spec = defined.function.spec();
    let calls = instances.iter().filter(|known| known.instance.takes_calls());
    let best = calls.min_by_key(|known| {
        let instance = &known.instance;
        (instance.spec != spec, instance.status != InstanceStatus::Ready, instance.index)
    });
    best.map(|known| known.instance.clone())
}

/// Why a start failed that ended after the record of revision `since` was the newest.
fn failure(instances: &[Known], since: u64) -> Option<CallError> {
    let failed = instances.iter().filter(|known| known.revision > since);
    let newest =
        failed.filter(|known| known.instance.status == InstanceStatus::Failed).max_by_key(|known| known.revision);
    newest.and_then(|known| known.instance.error.clone()).map(CallError::Failed)
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

/// Whether there was news before `until`. All that waits is taken at once: what follows is one look.
async fn heard(news: &mut Subscriber, until: Instant) -> bool {
    let first: Option<Message> = match tokio::time::timeout_at(until, news.next()).await {
        Ok(Some(message)) => Some(message),
        // The connection was closed for good: the look says so.
        Ok(None) => {
            tokio::time::sleep_until(until).await;
            None
        }
        Err(_) => None,
    };
    while let Some(Some(_)) = futures_util::FutureExt::now_or_never(news.next()) {}
    first.is_some()
}
