//! The front doors of queues in the NATS agent protocol: a prompt becomes an agent job of its queue.
//!
//! Every dispatcher serves every queue that has a job for prompts ([`schemas::QueueSettings::agent`]); the queue group shares
//! the prompts among them. A door keeps nothing: what was accepted is a task like any other, and lives without it.

mod caller;
mod door;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use schemas::QueueName;
use schemas::queue::PromptJob;
use tokio_util::sync::CancellationToken;

use self::door::Door;
use crate::client::Client;

/// Settings are read again after this, in case a change was not heard of.
const READ_EVERY: Duration = Duration::from_secs(30);
/// The same where they could not be read.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Opens and closes doors as the settings of queues say, until `stop`; then everyone who is served is told.
pub async fn run(client: Client, stop: CancellationToken) {
    let mut doors = BTreeMap::new();
    // Without it changes are found by reading.
    let mut news = client.js.client().subscribe(client.names.queues_events()).await.ok();
    let mut link = client.connection.link.clone();
    while !stop.is_cancelled() {
        let pause = match client.prompt_jobs().await {
            Ok(jobs) => {
                open(&client, &mut doors, jobs).await;
                READ_EVERY
            }
            Err(error) => {
                tracing::debug!(%error, "the settings of queues cannot be read now");
                READ_AGAIN
            }
        };
        let changed = async {
            let heard = match &mut news {
                Some(news) => news.next().await,
                None => None,
            };
            if heard.is_none() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = changed => {}
            Ok(()) = link.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    futures_util::future::join_all(doors.into_values().map(Door::close)).await;
}

/// Makes the doors that there are those of `jobs`.
async fn open(client: &Client, doors: &mut BTreeMap<QueueName, Door>, jobs: BTreeMap<QueueName, PromptJob>) {
    let gone: Vec<QueueName> = doors.keys().filter(|queue| !jobs.contains_key(*queue)).cloned().collect();
    for queue in gone {
        if let Some(door) = doors.remove(&queue) {
            tracing::info!(%queue, "takes no prompts any more");
            // What it has accepted goes on to its end beside the others.
            door.leave();
        }
    }
    for (queue, job) in jobs {
        match doors.get(&queue) {
            Some(door) => door.set(job),
            None => {
                tracing::info!(%queue, "takes prompts");
                let door = Door::open(client.clone(), queue.clone(), job);
                doors.insert(queue, door);
            }
        }
    }
}
