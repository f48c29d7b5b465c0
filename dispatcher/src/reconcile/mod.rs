//! What dispatchers do besides: look for what nobody else can settle, and settle it. One duty a file:
//!
//! | duty | finds | does |
//! | --- | --- | --- |
//! | [`expiry`] | queued tasks past `expires_at` that nobody pulls; messages on subjects no worker takes | record `expired`; dead letter |
//! | [`lost`] | unfinished records whose message is gone | record `lost` |
//! | [`offline`] | agents that went silent | status `offline` |
//! | [`setback`] | streams of the server that went back or were made anew | error log, note on the stream of tasks |
//! | [`queued`] | queued tasks that went with them and have no record | record `lost` |
//! | [`stranded`] | messages that their queue's consumer will never hand out | the consumer made again |
//! | [`functions`] | functions whose instances are not as they are defined; records that nobody holds | wishes; marks and removals of records |
//!
//! Each is idempotent and decides by compare-and-set, so any number of dispatchers may do it at once without a leader,
//! and none at all delays no task. What a duty remembers only spares it work: a fresh start finds the same again.

mod clock;
mod expiry;
mod functions;
mod lost;
mod offline;
mod queued;
mod scan;
mod setback;
mod stranded;

pub(crate) use offline::MISSED;
use queued::Queued;

use std::time::Duration;

use jetstream::{Connection, JetStream};
use schemas::Names;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::DispatcherError;
use crate::client::ClientError;

/// What the duties work with.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The server.
    pub js: JetStream,
    /// The link to it, and its news.
    pub connection: Connection,
    /// Names of the fleet.
    pub names: Names,
    /// Time between two looks at tasks.
    pub every: Duration,
    /// Time between two heartbeats of an agent.
    pub heartbeat: Duration,
}

/// Does every duty until `stop`. Failures of the server are logged and tried again; only a fault of our own ends it.
pub async fn run(watch: Watch, stop: CancellationToken) -> Result<(), DispatcherError> {
    let queued = Queued::default();
    let duties = [
        ("expiry", tokio::spawn(expiry::run(watch.clone(), queued.clone(), stop.clone()))),
        ("lost", tokio::spawn(lost::run(watch.clone(), stop.clone()))),
        ("set-back", tokio::spawn(setback::run(watch.clone(), queued, stop.clone()))),
        ("functions", tokio::spawn(functions::run(watch.clone(), stop.clone()))),
        ("stranded", tokio::spawn(stranded::run(watch.clone(), stop.clone()))),
        ("offline", tokio::spawn(offline::run(watch, stop.clone()))),
    ];
    let mut ended = Ok(());
    let ends = duties.map(|(duty, task)| async move { (duty, task.await) });
    let mut ends = ends.into_iter().map(Box::pin).collect::<futures_util::stream::FuturesUnordered<_>>();
    while let Some((duty, end)) = futures_util::StreamExt::next(&mut ends).await {
        if let Err(error) = end {
            ended = Err(DispatcherError::Broken { duty, why: error.to_string() });
            stop.cancel();
        }
    }
    ended
}

/// Between the two looks that condemn a task.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// The same in a cluster: a leader that was cut off from the others goes on answering for about ten seconds.
const CUT_OFF_LEADER: Duration = Duration::from_secs(12);

/// Waits until what the leader of the tasks says can be believed: over one connection, and in a cluster for longer than a
/// leader answers that is none any more.
async fn settled(watch: &Watch) -> Result<(), ClientError> {
    let info = watch.js.stream_info(&watch.names.tasks_stream()).await?;
    let clustered = info.is_some_and(|info| info.cluster.name.is_some());
    let pause = if clustered { CUT_OFF_LEADER } else { SECOND_LOOK };
    loop {
        let link = *watch.connection.link.borrow();
        tokio::time::sleep(pause).await;
        if link.connected && link == *watch.connection.link.borrow() {
            return Ok(());
        }
    }
}

/// The rhythm of a duty: the first look at once but never in step with other dispatchers, then every `every`.
struct Rhythm {
    ticks: tokio::time::Interval,
    /// The last look failed; so it is said once, not at every look of a long outage.
    failing: bool,
}

impl Rhythm {
    fn new(every: Duration) -> Self {
        let first = Instant::now() + every.mul_f64(rand::random_range(0.0..0.2));
        let mut ticks = tokio::time::interval_at(first, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, failing: false }
    }

    /// Logs what came of a look.
    fn report(&mut self, duty: &'static str, looked: Result<(), ClientError>) {
        match looked {
            Ok(()) => self.failing = false,
            Err(error) if self.failing => tracing::debug!(duty, %error, "cannot look after tasks; trying again"),
            Err(error) => {
                self.failing = true;
                tracing::warn!(duty, %error, "cannot look after tasks; trying again");
            }
        }
    }
}
