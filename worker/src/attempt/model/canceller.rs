//! Somebody who cancels, and may die on the way: what `Client::cancel` does between two decisions.

use dispatcher::client::cancelling::may_delete;
use schemas::State;

use super::book::{Decided, Rec};
use super::explore::{Game, Move};
use super::world::{Base, Canceling, Canceller, World};
use super::{Flaw, server};

/// What the canceller may do next.
pub fn moves(game: &mut Game<'_>, world: &World, moves: &mut Vec<Move>) {
    let canceller = world.canceller;
    let mut push = |what, next: World, broken| moves.push(Move { who: None, what, world: next, broken });
    let over = Canceller {
        at: Canceling::Over,
        run: 0,
        seen: 0,
        wanted: Rec::NONE,
        base: Base::Nothing,
        late: false,
        retrying: false,
    };
    let look = Canceller { at: Canceling::LookAtMessage, wanted: Rec::NONE, base: Base::Nothing, seen: 0, ..canceller };
    let with = |canceller| World { canceller, ..*world };
    match canceller.at {
        // One that is dead is one that makes no further move, and the laws hold whether it does or not.
        Canceling::Unasked | Canceling::Over => {}
        Canceling::LookAtMessage => {
            let seen = if world.message.there { world.run } else { 0 };
            let seen = Canceller { at: Canceling::LookAtRecord, seen, ..canceller };
            push("canceller looks at the message", with(seen), None);
        }
        Canceling::LookAtRecord => {
            let book = &mut game.book;
            let run = match canceller.run {
                0 => book.newest(canceller.seen, world.record),
                run => run,
            };
            let base = world.base();
            let retrying = book.glance(world.record).state == State::Retrying && book.glance(world.record).run == run;
            let means = Canceller { run, base, retrying, seen: 0, ..canceller };
            let next = match book.decide(canceller.seen, world.record, run) {
                _ if run == 0 => over,
                Decided::Nothing => over,
                Decided::Over if book.glance(world.record).state == State::Cancelled => {
                    Canceller { at: Canceling::MayDelete, retrying: false, ..means }
                }
                Decided::Over => over,
                Decided::End(wanted) if game.flaw == Some(Flaw::CancellerDeletesFirst) => {
                    Canceller { at: Canceling::Delete, wanted, ..means }
                }
                Decided::End(wanted) => Canceller { at: Canceling::Write, wanted, ..means },
                Decided::Flag(wanted) => Canceller { at: Canceling::Flag, wanted, ..means },
                Decided::Stop if canceller.late => {
                    let wanted = book.for_the_holder(world.record);
                    Canceller { at: Canceling::WriteForHolder, wanted, ..means }
                }
                Decided::Stop => Canceller { at: Canceling::Waiting, ..means },
            };
            push("canceller looks at the record", with(next), None);
        }
        Canceling::Write | Canceling::Flag | Canceling::WriteForHolder if !world.takes(canceller.base) => {
            push("canceller is refused", with(look), None);
        }
        Canceling::Write => {
            let delete_first = game.flaw == Some(Flaw::CancellerDeletesFirst);
            let next = if delete_first {
                over
            } else {
                Canceller { at: Canceling::MayDelete, wanted: Rec::NONE, ..canceller }
            };
            let mut next = with(next);
            let broken = server::store(game, &mut next, canceller.wanted);
            push("canceller writes the end", next, broken);
        }
        Canceling::Flag => {
            let mut next = with(look);
            let broken = server::store(game, &mut next, canceller.wanted);
            push("canceller writes the flag", next, broken);
        }
        Canceling::WriteForHolder => {
            let mut next = with(over);
            let broken = server::store(game, &mut next, canceller.wanted);
            push("canceller writes the end for the holder", next, broken);
        }
        Canceling::Waiting => {
            if canceller.base == Base::Stale {
                push("canceller sees a newer record", with(look), None);
            }
            push("canceller has waited long enough", with(Canceller { late: true, ..look }), None);
        }
        Canceling::MayDelete => {
            let delivered =
                if world.message.delivered || world.run < canceller.run { world.run } else { world.run - 1 };
            let may = may_delete(u64::from(delivered), u64::from(canceller.run), canceller.retrying);
            let next = if may { Canceller { at: Canceling::Delete, ..canceller } } else { over };
            push("canceller asks whether it was handed out", with(next), None);
        }
        Canceling::Delete => {
            let delete_first = game.flaw == Some(Flaw::CancellerDeletesFirst);
            let next = if delete_first { Canceller { at: Canceling::Write, ..canceller } } else { over };
            let mut next = with(next);
            server::remove(&mut next, canceller.run);
            push("canceller deletes the message", next, None);
        }
    }
}
