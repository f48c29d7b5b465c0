//! A caller's hold on an instance: as long as it lasts, the instance is not taken for idle.

use std::sync::Mutex;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::{Request, RequestErrorKind};
use schemas::{FunctionName, Instance, header};
use tokio::task::JoinHandle;

use crate::{CallError, Caller};

/// How long a worker is waited for that is asked what it has.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long an eviction is waited for.
const EVICTED_WITHIN: Duration = Duration::from_secs(30);

/// A hold on one instance, until released or dropped.
#[derive(Debug)]
pub struct Lease {
    /// What is held: where it is and who runs it.
    pub instance: Instance,
    touching: JoinHandle<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.touching.abort();
    }
}

impl Caller {
    /// An instance that takes calls, made if there is none, and a hold on it.
    pub async fn acquire(&self, name: &FunctionName, within: Option<Duration>) -> Result<Lease, CallError> {
        let instance = self.ensure(name, within).await?.instance;
        let every = self.defined(name).await?.function.idle_timeout.0 / 3;
        let (caller, held) = (self.clone(), instance.clone());
        let touching = tokio::spawn(async move {
            loop {
                // Who holds it says that it is used; what cannot be told now is told next time.
                if let Err(error) = caller.touch(&held).await {
                    tracing::debug!(%error, "a held instance could not be touched");
                }
                tokio::time::sleep(every).await;
            }
        });
        Ok(Lease { instance, touching })
    }

    /// Says that an instance is in use, as a call would.
    pub async fn touch(&self, instance: &Instance) -> Result<(), CallError> {
        let Some(start) = &instance.start else { return Ok(()) };
        let mut headers = HeaderMap::new();
        headers.insert(header::TOUCH, start.as_str());
        if let Some(owner) = &self.owner {
            headers.insert(header::OWNER, owner.as_str());
        }
        let subject = self.names.invoke_at_subject(&instance.function, &instance.worker);
        let client = self.js.client();
        let told = client.publish_with_headers(subject, headers, Default::default()).await;
        told.map_err(|error| CallError::new(schemas::Code::Unavailable, error.to_string()))
    }

    /// Whether its worker has this instance and sends calls to it, by the worker's own word. `None`: it does not answer.
    pub async fn holds(&self, instance: &Instance) -> Result<Option<bool>, CallError> {
        let Some(start) = &instance.start else { return Ok(Some(false)) };
        let mut headers = HeaderMap::new();
        headers.insert(header::TOUCH, start.as_str());
        if let Some(owner) = &self.owner {
            headers.insert(header::OWNER, owner.as_str());
        }
        let subject = self.names.invoke_at_subject(&instance.function, &instance.worker);
        let request = Request::new().headers(headers).timeout(Some(ANSWERS_WITHIN));
        match self.js.client().send_request(subject, request).await {
            Ok(reply) => {
                let status = reply.headers.as_ref().and_then(|headers| headers.get(header::STATUS));
                Ok(Some(status.is_some_and(|status| status.as_str() == "200")))
            }
            Err(error) => match error.kind() {
                RequestErrorKind::NoResponders => Ok(Some(false)),
                RequestErrorKind::TimedOut => Ok(None),
                _ => Err(CallError::new(schemas::Code::Unavailable, error.to_string())),
            },
        }
    }

    /// Lets go of an instance and has it removed.
    pub async fn evict(&self, lease: Lease) -> Result<(), CallError> {
        let Some(start) = lease.instance.start.clone() else { return Ok(()) };
        drop(lease);
        self.destroy_one(start.as_str(), EVICTED_WITHIN).await.map(|_| ())
    }
}

/// All that one program holds.
#[derive(Debug, Default)]
pub struct Leases {
    held: Mutex<Vec<Lease>>,
}

impl Leases {
    /// Keeps a hold and returns what is held.
    pub fn keep(&self, lease: Lease) -> Instance {
        let instance = lease.instance.clone();
        self.held().push(lease);
        instance
    }

    /// Gives one back: the instance stays warm for as long as its function says. `None`: it is not held.
    pub fn release(&self, instance: &Instance) -> Option<Lease> {
        let mut held = self.held();
        let at = held.iter().position(|lease| lease.instance.start == instance.start)?;
        Some(held.swap_remove(at))
    }

    /// Gives back all of them.
    pub fn close(&self) {
        self.held().clear();
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<Lease>> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
