//! One round: a world, a load, troubles, then quiet, and the history of it all.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::checker::check;
use crate::history::{Cancel, History, Submission};
use crate::load::Load;
use crate::nemesis::{Nemesis, Trouble};
use crate::read;
use crate::report::Report;
use crate::submitter;
use crate::support::{Client, Ledger};
use crate::tell::tell;
use crate::world::{Shape, World, now};

/// What a round is made of.
#[derive(Clone, Debug)]
pub struct Round {
    /// All its dice.
    pub seed: u64,
    /// Its world.
    pub shape: Shape,
    /// What happens in it; in an order of the dice.
    pub troubles: Vec<Trouble>,
    /// Tasks a second that are submitted while it lasts.
    pub rate: u64,
    /// Pause between two troubles.
    pub calm: Duration,
}

impl Round {
    /// Plays it and reads what is left.
    pub async fn play(&self) -> History {
        eprintln!("round with seed {}: {:?}", self.seed, self.shape);
        let mut world = World::start(self.shape.clone()).await;
        // Every revision of a record is kept, for the checker to read.
        let _ledger = Ledger::watch(&world.fleet).await;
        let over = Arc::new(AtomicBool::new(false));
        let load = Load::new(self.seed, &world.effects(), &world.mark, world.engine.is_some(), self.rate);
        let user = world.user().await;
        let submitting = tokio::spawn(submit_all(user, load, self.rate, over.clone()));

        let mut nemesis = Nemesis::new(self.seed);
        tokio::time::sleep(self.calm).await;
        for trouble in nemesis.order(&self.troubles) {
            nemesis.strike(&mut world, trouble).await;
            world.heal().await;
            tokio::time::sleep(self.calm).await;
        }
        over.store(true, Ordering::Relaxed);
        let (submissions, cancels) = submitting.await.expect("the submitter ends well");
        self.gather(world, submissions, cancels).await
    }

    /// Plays it, adds it to the report, and tells all about what was not held.
    pub async fn judge(&self, report: &mut Report) {
        let history = self.play().await;
        let verdict = check(&history);
        report.add(&history, &verdict);
        for violation in &verdict.violations {
            tell(&history, &violation.to_string());
        }
    }

    async fn gather(&self, mut world: World, submissions: Vec<Submission>, cancels: Vec<Cancel>) -> History {
        // With no hand on it: whoever died is started again by `heal`, as a supervisor would, and nothing else is done.
        world.drained(self.shape.ack_wait * 2 + Duration::from_secs(30)).await;
        let mut rest = read::registry(&world, Duration::from_secs(15)).await;
        world.leave().await;
        if let Some(folder) = std::env::var_os("SHOAL_SOAK_KEEP").filter(|folder| !folder.is_empty()) {
            world.keep_logs(Path::new(&folder));
        }
        read::leftovers(&world, &mut rest, Duration::from_secs(10)).await;
        let client: &Client = &world.fleet;
        let revisions = read::revisions(client).await;
        let artifacts = read::artifacts(client, &revisions).await;
        History {
            letters: read::letters(client).await,
            logs: read::logs(client).await,
            effects: read::effects(&world.effects()),
            artifacts,
            revisions,
            submissions,
            cancels,
            faults: std::mem::take(&mut world.faults),
            rest,
        }
    }
}

/// Submits at a steady rate until it is over; then waits until every answer is there.
async fn submit_all(
    client: Client,
    mut load: Load,
    rate: u64,
    over: Arc<AtomicBool>,
) -> (Vec<Submission>, Vec<Cancel>) {
    let client = &client;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate).expect("a small rate"));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (mut submissions, mut cancels) = (Vec::new(), Vec::new());
    let mut under_way = FuturesUnordered::new();
    let mut told = now();
    loop {
        tokio::select! {
            _ = ticks.tick(), if !over.load(Ordering::Relaxed) => {
                // While the server is away the tries pile up; no user would go on for ever.
                if under_way.len() < 2_000 {
                    under_way.extend(load.next().into_iter().map(|planned| submitter::submit(client, planned)));
                }
            }
            Some((told, cancel)) = under_way.next() => {
                submissions.extend(told);
                cancels.extend(cancel);
            }
            else => break,
        }
        if now() - told > 10_000 {
            told = now();
            eprintln!("    {} submitted, {} under way", submissions.len(), under_way.len());
        }
    }
    (submissions, cancels)
}
