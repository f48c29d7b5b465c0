//! Destroy: a mark in the record, an answer when container and record are gone.

use std::time::Duration;

use futures_util::StreamExt;
use jetstream::ApiError;
use schemas::{Code, FunctionName, Instance, InstanceStatus};
use tokio::time::Instant;

use crate::{CallError, Caller, LOOK_AGAIN};

/// How often a change is tried over those of others.
const TRIES: usize = 20;
/// How long a worker may be silent before it is taken to be gone.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

impl Caller {
    /// Removes the instances of a function and returns them once their records are gone, or after `within`. Those that
    /// are kept warm are made again; delete the function, or set its `min` to 0, if they must not be. Done again it finds
    /// nothing and is no error.
    pub async fn destroy(&self, name: &FunctionName, within: Duration) -> Result<Vec<Instance>, CallError> {
        let found: Vec<Instance> = self.instances(Some(name)).await?.into_iter().map(|known| known.instance).collect();
        match self.definition(name).await? {
            Some(defined) => self.check_owner(&defined)?,
            None => found.iter().try_for_each(|instance| self.check_owner_of(instance))?,
        }
        self.destroy_all(found, within).await
    }

    /// The same of the one instance whose container has this id (12 characters or more of it), name or start id.
    pub async fn destroy_one(&self, id: &str, within: Duration) -> Result<Vec<Instance>, CallError> {
        let found = self.instances(None).await?.into_iter().map(|known| known.instance);
        let found: Vec<Instance> = found.filter(|instance| is_called(instance, id)).collect();
        match found.as_slice() {
            [] => Ok(Vec::new()),
            [one] => {
                match self.definition(&one.function).await? {
                    Some(defined) => self.check_owner(&defined)?,
                    None => self.check_owner_of(one)?,
                }
                self.destroy_all(found, within).await
            }
            several => {
                let names: Vec<String> = several.iter().map(|it| format!("{}.{}", it.function, it.index)).collect();
                Err(CallError::new(Code::Ambiguous, format!("`{id}` fits several instances: {}", names.join(", "))))
            }
        }
    }

    async fn destroy_all(&self, found: Vec<Instance>, within: Duration) -> Result<Vec<Instance>, CallError> {
        let until = Instant::now() + within;
        for instance in &found {
            self.mark(instance).await?;
        }
        for instance in &found {
            self.wait_gone(instance, until).await?;
        }
        Ok(found)
    }

    /// Marks it as unwanted; one behind which nothing stands, or nobody, is removed here and now.
    async fn mark(&self, wanted: &Instance) -> Result<(), CallError> {
        for _ in 0..TRIES {
            let (Some(instance), revision) = self.instance(&wanted.function, wanted.index).await? else {
                return Ok(());
            };
            if instance.start != wanted.start {
                return Ok(());
            }
            let is_nothing = instance.status == InstanceStatus::Failed || !instance.is_there();
            let done = if is_nothing || !self.answers(&instance).await? {
                // A worker that comes back finds no record, and removes what it finds on its engine.
                self.remove_instance(&instance.function, instance.index, revision).await?
            } else if instance.status == InstanceStatus::Stopping {
                return Ok(());
            } else {
                self.put_instance(&Instance { status: InstanceStatus::Stopping, ..instance }, revision).await?
            };
            if done.is_some() {
                return Ok(());
            }
        }
        Err(CallError::new(
            Code::Conflict,
            format!("instance {} of `{}` changes all the time", wanted.index, wanted.function),
        ))
    }

    /// Whether the worker that holds it is there.
    pub async fn answers(&self, instance: &Instance) -> Result<bool, CallError> {
        let subject = self.names.info_subject(&instance.worker);
        match self.js.request_within(&subject, Default::default(), ANSWERS_WITHIN).await {
            Ok(_) => Ok(true),
            Err(ApiError::NoResponders { .. }) => Ok(false),
            // Slow, or frozen: not known to be gone.
            Err(ApiError::TimedOut { .. }) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    async fn wait_gone(&self, wanted: &Instance, until: Instant) -> Result<(), CallError> {
        let subject = self.names.instance_event_subject(&wanted.function, wanted.index);
        let news = self.js.client().subscribe(subject).await;
        let mut news = news.map_err(|error| CallError::new(Code::Unavailable, error.to_string()))?;
        loop {
            match self.instance(&wanted.function, wanted.index).await? {
                (Some(instance), _) if instance.start == wanted.start && instance.is_there() => {}
                _ => return Ok(()),
            }
            if Instant::now() >= until {
                let message = format!(
                    "instance {} of `{}` is told to stop and has not ended yet; it is on the worker {}",
                    wanted.index, wanted.function, wanted.worker
                );
                return Err(CallError::new(Code::TimedOut, message));
            }
            let _ = tokio::time::timeout_at(until.min(Instant::now() + LOOK_AGAIN), news.next()).await;
        }
    }
}

/// Whether somebody who says `id` means it.
fn is_called(instance: &Instance, id: &str) -> bool {
    let same = |word: Option<&str>| word == Some(id);
    same(instance.id.as_deref())
        || same(instance.name.as_deref())
        || same(instance.start.as_ref().map(schemas::StartId::as_str))
        || (id.len() >= 12 && instance.id.as_deref().is_some_and(|whole| whole.starts_with(id)))
}

impl Caller {
    /// Finds an instance by container id (12 characters or more of it), name or start id.
    pub async fn find_instance(&self, id: &str) -> Result<Option<Instance>, CallError> {
        let found = self.instances(None).await?.into_iter().map(|known| known.instance);
        Ok(found.into_iter().find(|instance| is_called(instance, id)))
    }
}
