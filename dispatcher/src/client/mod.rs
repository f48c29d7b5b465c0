//! What a program uses: submit tasks, find them, wait for their ends, read their logs, cancel them; queues, agents and
//! dead letters. Nothing here runs in the background, and no call makes a consumer.

mod agents;
mod bulk;
mod cancel;
mod dead;
pub mod doctor;
pub mod documents;
mod error;
mod explain;
mod explain_invoke;
mod find;
mod get;
mod held;
mod later;
mod list;
mod logs;
mod queues;
pub mod record;
mod result;
mod retry;
mod shown;
mod submit;
mod talk;
mod wait;

pub use agents::{AgentView, OFFLINE_AFTER, judged};
pub use bulk::{Bulk, CANCELLABLE, RETRYABLE};
pub use cancel::{CancelEnd, CancelOptions, CancelOutcome};
/// The pure decisions of a canceller, for the model of the protocol.
#[doc(hidden)]
pub mod cancelling {
    pub use super::cancel::{Move, decide, ended_for_the_holder, may_delete};
}
pub use ::functions::{
    Applied, Call, CallError, Caller as Functions, Defined, Ensured, Known, Lease, Leases, Response,
};
pub use dead::{DeadContent, DeadFilter, DeadListing, Replayed};
pub use error::ClientError;
pub use get::{Queued, Status, TaskView};
pub use held::Held;
pub use later::Later;
pub use list::{ListCursor, ListFilter, ListItem, Listing};
pub use logs::{LogChunk, LogCursor, LogOptions};
pub use queues::QueueView;
pub use record::Recorded;
pub use submit::{Holder, Submission, SubmitError, SubmitOptions, Submitted};
pub use talk::Told;

use ::functions::Caller;
use jetstream::{Connection, JetStream};
use schemas::Names;
use schemas::stores::StoreSettings;

/// A fleet, seen from outside. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    /// The link to the server, and its news.
    pub connection: Connection,
    /// JetStream over it.
    pub js: JetStream,
    /// The fleet's names.
    pub names: Names,
    /// Used where a queue must be made.
    pub stores: StoreSettings,
    functions: Caller,
}

impl Client {
    /// The fleet `names` on `connection`.
    pub fn new(connection: Connection, names: Names) -> Self {
        let js = JetStream::new(connection.client.clone());
        let functions = Caller::new(js.clone(), names.clone());
        Self { connection, js, names, stores: StoreSettings::default(), functions }
    }

    /// The same with an operator's settings for stores and new queues.
    pub fn with_stores(self, stores: StoreSettings) -> Self {
        Self { stores, ..self }
    }

    /// Functions: defined, ensured, called, destroyed; in the name of nobody in particular, or of an owner.
    pub fn functions(&self, owner: Option<String>) -> Caller {
        self.functions.clone().owned_by(owner)
    }

    /// Runs a call while the link stands: waits for it first, and gives up (`None`) as soon as it breaks, instead of
    /// sitting out the call's own time limit.
    async fn while_linked<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let mut link = self.connection.link.clone();
        let Ok(epoch) = link.wait_for(|link| link.connected).await.map(|link| link.epoch) else {
            // Closed for good; the call says so.
            return Some(call.await);
        };
        tokio::select! {
            biased;
            done = call => Some(done),
            Ok(_) = link.wait_for(|link| !link.connected || link.epoch != epoch) => None,
        }
    }
}
