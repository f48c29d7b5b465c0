//! The pull loop: asks for no more than fits, hands each delivery to a runner, gives back what does not fit.
//!
//! With one queue, pulls stay open for what is free. With several, a freed slot first *looks* at the queues in their
//! order, then leaves small pulls open on all of them; nothing polls, every look follows a freed slot
//! or a delivery.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt, StreamExt};
use jetstream::Link;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::runner;
use crate::nats::delivery::{Delivery, Verdict, tell};
use crate::nats::pull::{Arrival, Pulls};
use crate::quarantine;
use crate::worker::Worker;

/// Before a consumer that is not there is made again.
const MAKE_AGAIN: Duration = Duration::from_millis(500);

/// The loop and its state.
pub struct Intake {
    worker: Arc<Worker>,
    pulls: Pulls,
    inbox: Subscriber,
    attempts: TaskTracker,
    link: watch::Receiver<Link>,
    /// Why nothing may be fetched now, if so.
    blocked: watch::Receiver<Option<String>>,
    /// The same, for somebody wants it so.
    cordon: watch::Receiver<Option<String>>,
    /// Set once the server has answered a pull of every queue.
    ready: watch::Sender<bool>,
    served: Vec<bool>,
    looking: Option<Looking>,
    look: bool,
    epoch: u64,
    connected_at: Instant,
    /// Of each queue, the highest sequence of a first delivery.
    highest: Vec<u64>,
}

/// A look at the queues, one after the other.
struct Looking {
    order: Vec<usize>,
    at: usize,
}

impl Intake {
    /// A loop that has not begun.
    pub fn new(
        worker: Arc<Worker>,
        (pulls, inbox): (Pulls, Subscriber),
        attempts: TaskTracker,
        link: watch::Receiver<Link>,
        ready: watch::Sender<bool>,
    ) -> Self {
        let (served, highest) = (vec![false; worker.queues.len()], vec![0; worker.queues.len()]);
        // A connection is as old as this loop at least; its first delivery does not make it new.
        let connected_at = Instant::now();
        let epoch = worker.js.connects();
        let (blocked, cordon) = (worker.blocked.subscribe(), worker.cordon.changes());
        Self {
            worker,
            pulls,
            inbox,
            attempts,
            link,
            blocked,
            cordon,
            ready,
            served,
            looking: None,
            look: true,
            epoch,
            connected_at,
            highest,
        }
    }

    /// Pulls until `stop`, then gives back what was handed out in between. Running attempts go on.
    pub async fn run(mut self, stop: CancellationToken) {
        let slots = self.worker.slots.clone();
        while !stop.is_cancelled() {
            self.top_up().await;
            let (watch_at, forgotten) = self.pulls.watch();
            if forgotten {
                tracing::warn!("pulls fell silent, asking again");
                self.looking = None;
                self.look = true;
                // Perhaps it was we who slept: what now comes may be somebody else's already.
                self.connected_at = Instant::now();
                if self.pulls.is_silent() {
                    match self.pulls.reopen().await {
                        Ok(inbox) => self.inbox = inbox,
                        // The client is gone; the loop ends with its inbox.
                        Err(error) => tracing::warn!(%error, "no new inbox for pulls"),
                    }
                }
                continue;
            }
            let wanted = self.room_wanted();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.link.changed() => match changed {
                    Ok(()) if self.link.borrow_and_update().connected => self.restart(),
                    Ok(()) => {}
                    // The client is gone, whatever ended it.
                    Err(_) => break,
                },
                message = self.inbox.next() => match message {
                    Some(message) => {
                        self.arrived(message).await;
                        // What is here already needs no pull of its own.
                        while let Some(Some(message)) = self.inbox.next().now_or_never() {
                            self.arrived(message).await;
                        }
                    }
                    // The connection is closed for good; the process is about to end.
                    None => break,
                },
                () = slots.freed(wanted) => self.look = true,
                Ok(()) = self.blocked.changed() => self.look = true,
                Ok(()) = self.cordon.changed() => self.look = true,
                () = tokio::time::sleep_until(watch_at.into()) => {}
            }
        }
        self.give_back_rest().await;
    }

    /// After a reconnect nothing that was open is.
    fn restart(&mut self) {
        self.pulls.forget_all();
        self.looking = None;
        self.look = true;
        // What ended the connection may have been a message, and would end the next one too.
        let worker = self.worker.clone();
        self.attempts.spawn(async move {
            for queue in &worker.queues {
                quarantine::sweep(&worker, queue, true).await;
            }
        });
    }

    /// Whether the server may have forgotten what it gave to whom: within one ack wait after a connect.
    fn is_unsure(&mut self, queue: usize) -> (u64, bool) {
        // Counted by the client before it reads anything from the new connection.
        let connects = self.worker.js.connects();
        if connects != self.epoch {
            self.epoch = connects;
            self.connected_at = Instant::now();
        }
        (connects, self.connected_at.elapsed() < self.worker.queues[queue].ack_wait())
    }

    /// How much room it takes until another pull is worth it. With many slots a pull for each that is freed would cost as
    /// much as a short task; with few, each that waits for others is missed.
    fn room_wanted(&self) -> usize {
        let some = (self.worker.slots.total() / 16).max(1);
        match (self.worker.queues.len(), self.pulls.credits(0)) {
            (1, credits) if credits > 0 => credits + some,
            _ => 1,
        }
    }

    async fn top_up(&mut self) {
        let free = self.worker.slots.free();
        let barred = self.blocked.borrow().is_some() || self.worker.cordon.is_on();
        if free == 0 || barred || !self.link.borrow().connected {
            return;
        }
        if self.worker.queues.len() == 1 {
            if free >= self.room_wanted() {
                let want = free - self.pulls.credits(0);
                // The first look does not wait, so that the server's answer says at once that it serves us.
                let wait = self.served[0];
                self.pulls.ask(0, want, wait).await;
            }
            return;
        }
        if self.looking.is_none() && self.look {
            self.look = false;
            let order = self.worker.config.queues.order(|below| rand::random_range(0..below));
            self.looking = Some(Looking { order, at: 0 });
            self.look_on().await;
        }
        if self.looking.is_none() {
            let share = (free / self.worker.queues.len()).max(1);
            for queue in 0..self.worker.queues.len() {
                if self.pulls.credits(queue) == 0 {
                    self.pulls.ask(queue, share, true).await;
                }
            }
        }
    }

    /// Asks the next queue of a look, or ends it.
    async fn look_on(&mut self) {
        while let Some(looking) = &self.looking {
            let free = self.worker.slots.free();
            let Some(queue) = looking.order.get(looking.at).copied().filter(|_| free > 0) else {
                self.looking = None;
                return;
            };
            // A queue whose pull still waits has nothing.
            if self.pulls.credits(queue) == 0 {
                self.pulls.ask(queue, free, false).await;
                if self.pulls.credits(queue) > 0 {
                    return;
                }
            }
            if let Some(looking) = &mut self.looking {
                looking.at += 1;
            }
        }
    }

    /// The queue just looked at has said its last word.
    async fn looked(&mut self, queue: usize) {
        if let Some(looking) = &mut self.looking
            && looking.order.get(looking.at) == Some(&queue)
        {
            looking.at += 1;
            self.look_on().await;
        }
    }

    async fn arrived(&mut self, message: Message) {
        let worker = self.worker.clone();
        let queue_of = |subject: &str| {
            let (queue, _) = worker.config.names.task_tokens(subject)?;
            worker.queues.iter().position(|own| own.name.as_str() == queue)
        };
        let Some(arrival) = self.pulls.arrived(message, queue_of) else { return };
        let (queue, answered) = match arrival {
            Arrival::Message(queue, message) => {
                self.take(queue, message).await;
                if self.pulls.credits(queue) == 0 {
                    self.look = true;
                    self.looked(queue).await;
                }
                (queue, true)
            }
            Arrival::Served(queue) => (queue, true),
            Arrival::Empty(queue) => {
                self.looked(queue).await;
                (queue, true)
            }
            Arrival::Refused(queue, why) => {
                tracing::debug!(queue = %worker.queues[queue].name, why, "pull refused");
                self.looked(queue).await;
                // Refused for the cap or a pause: the server serves us all the same.
                (queue, why.contains("Exceeded"))
            }
            Arrival::Missing(queue) => {
                tracing::warn!(queue = %worker.queues[queue].name, "the queue's consumer is not there");
                self.looked(queue).await;
                // A new one knows nothing of what the old one gave to whom.
                self.connected_at = Instant::now();
                self.make_again(queue);
                (queue, false)
            }
        };
        if answered {
            worker.pulse.fetched(worker.js.now());
            self.served[queue] = true;
            if self.served.iter().all(|served| *served) {
                self.ready.send_if_modified(|ready| !std::mem::replace(ready, true));
            }
        }
    }

    /// Somebody deleted the queue's consumer, or the store was lost: make it again, beside the loop.
    fn make_again(&self, queue: usize) {
        let worker = self.worker.clone();
        self.attempts.spawn(async move {
            let queue = &worker.queues[queue];
            // If the stream went too it must be gone before it is made again: one that is made while it is being deleted
            // answers no publish (seen on 2.15.1).
            tokio::time::sleep(MAKE_AGAIN).await;
            match crate::stores::ensure_queue(&worker.js, &worker.config, &queue.name).await {
                Ok(consumer) => queue.set_ack_wait(consumer.ack_wait()),
                Err(error) => {
                    tracing::warn!(queue = %queue.name, %error, "the queue's consumer could not be made again");
                }
            }
        });
    }

    async fn take(&mut self, queue: usize, message: Message) {
        let (epoch, mut unsure) = self.is_unsure(queue);
        let Some(delivery) = Delivery::read(message, queue, epoch) else { return };
        if delivery.count == 1 {
            // First deliveries come in the stream's order. One that falls back is of a consumer that was made anew, or of a
            // stream that was set back: it may have been started, or even be over.
            if delivery.sequence <= self.highest[queue] {
                self.connected_at = Instant::now();
                unsure = true;
            }
            self.highest[queue] = delivery.sequence;
        }
        if self.pulls.is_stale(queue) {
            // We were frozen: the lease is as good as over. Not ours to nak; the server gives it out again by itself.
            tracing::warn!(subject = %delivery.subject, "delivery older than any pull, left to be delivered again");
            self.connected_at = Instant::now();
            return;
        }
        // What pulls from before a cordon still bring goes back; each does so once, for no new pull follows.
        match self.worker.slots.take().filter(|_| !self.worker.cordon.is_on()) {
            Some(slot) => {
                self.attempts.spawn(runner::run(self.worker.clone(), delivery, slot, unsure));
            }
            None => self.give_back(delivery),
        }
    }

    /// Given back at once and unstarted; spawned, for a burst must not wait for its own answers.
    fn give_back(&self, delivery: Delivery) {
        tracing::debug!(subject = %delivery.subject, count = delivery.count, "no room for it, given back");
        self.worker.given_back.add(delivery.sequence);
        let js = self.worker.js.clone();
        self.attempts.spawn(async move {
            if let Err(error) = tell(&js, &delivery.reply, &Verdict::Nak(Duration::ZERO)).await {
                tracing::debug!(subject = %delivery.subject, %error, "not given back; its lease ends by itself");
            }
        });
    }

    /// Ends the inbox; what is under way on it goes back.
    async fn give_back_rest(&mut self) {
        let rest = async {
            if self.inbox.drain().await.is_err() {
                return;
            }
            while let Some(message) = self.inbox.next().await {
                let queue_less = message.status.is_some();
                if let (false, Some(delivery)) = (queue_less, Delivery::read(message, 0, self.epoch)) {
                    self.give_back(delivery);
                }
            }
        };
        // One round trip when connected; without a connection there is nothing to give back.
        let _ = tokio::time::timeout(Duration::from_secs(2), rest).await;
    }
}
