//! What the server does by itself, and what a submitter asks of it.

use super::book::Rec;
use super::explore::{Game, Move};
use super::world::{At, Lease, Message, RUNS, World};

/// Leases that lapse, a server that is killed and forgets, the id used again.
pub fn moves(game: &Game<'_>, world: &World, moves: &mut Vec<Move>) {
    let mut push = |what, world| moves.push(Move { who: None, what, world, broken: None });
    let message = &world.message;
    if !message.there {
        if usize::from(world.run) < RUNS && game.scenario.again.is_some() {
            let message = Message { there: true, waiting: true, count: 0, delivered: false };
            push("the id is submitted again", World { run: world.run + 1, message, ..*world });
        }
        return;
    }
    if message.waiting {
        return;
    }
    let kept = world.holders.iter().position(|holder| holder.keeps(world.run));
    match kept {
        Some(holder) if world.left.lapses > 0 => {
            let mut next = *world;
            next.left.lapses -= 1;
            next.holders[holder].lease = Lease::Lapsed;
            next.message.waiting = true;
            push("a lease lapses", next);
        }
        Some(_) => {}
        None => {
            let mut next = *world;
            next.message.waiting = true;
            push("the ack wait is over", next);
        }
    }
    if world.left.forgets > 0 {
        let mut next = *world;
        next.left.forgets -= 1;
        next.message = Message { there: true, waiting: true, count: 0, delivered: false };
        for holder in next.holders.iter_mut().filter(|holder| holder.is_out()) {
            holder.linked = false;
        }
        push("the server is killed and forgets the delivery", next);
    }
}

/// Hands the message out.
pub fn pull(world: &World, who: usize) -> Move {
    let mut next = *world;
    let robbed = world.holders.iter().any(|holder| holder.keeps(world.run));
    next.message.waiting = false;
    next.message.count = (world.message.count + 1).min(2);
    next.message.delivered = true;
    let holder = &mut next.holders[who];
    holder.at = At::Pulled;
    holder.run = world.run;
    holder.again = next.message.count > 1;
    let broken = robbed.then_some("handed out while its holder keeps its lease");
    Move { who: Some(who), what: "pulls", world: next, broken }
}

/// Stores a record over the newest one.
pub fn store(game: &Game<'_>, world: &mut World, rec: Rec) -> Option<&'static str> {
    let (old, new) = (game.book.glance(world.record), game.book.glance(rec));
    let first = world.record == Rec::NONE;
    world.replaced();
    world.record = rec;
    if !first && new.run < old.run {
        return Some("a newer run's record is overwritten by an older one");
    }
    if new.misnumbered {
        return Some("a lost attempt spends a number");
    }
    if !first && new.run == old.run && old.state.is_terminal() && !new.state.is_terminal() {
        return Some("an end is taken back");
    }
    if new.state.is_terminal() {
        let run = usize::from(new.run) - 1;
        world.told.ends[run] += 1;
        world.told.failed[run] = new.state == schemas::State::Failed;
        if world.told.ends[run] > 1 {
            return Some("two terminal records of one run");
        }
    }
    None
}

/// Acks, terms or deletes a run.
pub fn remove(world: &mut World, run: u8) {
    if world.run == run {
        world.message.there = false;
        world.message.waiting = false;
    }
}

/// What the server makes of a nak, which it matches by sequence alone.
pub fn hand_back(world: &mut World, run: u8) {
    if world.run == run && world.message.there {
        world.message.waiting = true;
    }
}

/// A dead letter; a repeat bears the same message id and stores nothing new.
pub fn bury(world: &mut World, run: u8) {
    world.told.letters[usize::from(run) - 1] = 1;
}
