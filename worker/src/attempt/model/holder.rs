//! A worker with one delivery: what [`runner`](crate::attempt::runner) and `ending` do between two decisions.

use schemas::State;
use schemas::task::OnLost;

use super::book::{Ends, Judged, Rec, Reread};
use super::explore::{Game, Move};
use super::world::{At, Base, Canceling, Holder, Lease, Word, World};
use super::{Flaw, Once, server};
use crate::attempt::ending::{AFTER_RECORD, Step, may_tell};
use crate::attempt::fence::{Ahead, claim_is_due};
use crate::nats::delivery::Verdict;
use crate::nats::lease::Hold;

/// What each worker may do next.
pub fn moves(game: &mut Game<'_>, world: &World, moves: &mut Vec<Move>) {
    let mut idle = false;
    for who in 0..game.scenario.workers {
        let holder = world.holders[who];
        let mut hand = Hand { game, world, who, moves };
        match holder.at {
            At::Dead => continue,
            At::Idle => {
                // Idle workers are alike, but for the last, which never dies.
                let last = who + 1 == hand.game.scenario.workers;
                if world.message.there && world.message.waiting && (!idle || last) {
                    hand.moves.push(server::pull(world, who));
                }
                idle = true;
                continue;
            }
            At::Pulled => hand.admit(&holder),
            At::Claiming => hand.claim(&holder, "claims"),
            At::Running => hand.run(&holder),
            At::Ending => hand.end(&holder),
            At::EndingUnstarted => hand.end_unstarted(&holder),
            At::Following(step) => hand.follow(&holder, step),
            At::Repairing => hand.repair(&holder),
            At::Leaving => hand.leave(&holder),
            At::Settling => hand.settle(&holder),
        }
        if world.left.crashes > 0 && who + 1 < hand.game.scenario.workers {
            let mut next = *world;
            next.left.crashes -= 1;
            next.holders[who] = Holder::DEAD;
            hand.push("dies", next, None);
        }
        if holder.lease == Lease::Lapsed && holder.at != At::Leaving && hand.game.scenario.thorough {
            let lost = Holder { lease: Lease::Lost, ..holder };
            hand.put(
                "sees its lease lost",
                if holder.at == At::Running { Holder { at: At::Leaving, ..lost } } else { lost },
            );
        }
    }
}

/// One worker's move.
struct Hand<'a, 'g, 's> {
    game: &'a mut Game<'g>,
    world: &'s World,
    who: usize,
    moves: &'a mut Vec<Move>,
}

impl Hand<'_, '_, '_> {
    fn push(&mut self, what: &'static str, world: World, broken: Option<&'static str>) {
        self.moves.push(Move { who: Some(self.who), what, world, broken });
    }

    /// Only this worker changes.
    fn put(&mut self, what: &'static str, holder: Holder) {
        let mut next = *self.world;
        next.holders[self.who] = holder;
        self.push(what, next, None);
    }

    fn flawed(&self, flaw: Flaw) -> bool {
        self.game.flaw == Some(flaw)
    }

    /// A start id that nothing in the world names.
    fn new_start(&self) -> u8 {
        let of = |rec: Rec| self.game.book.glance(rec).starts;
        let used =
            self.world.holders.iter().fold(of(self.world.record) | of(self.world.canceller.wanted), |used, holder| {
                used | of(holder.wanted) | (1 << holder.start)
            });
        (1..64).find(|start| used & (1 << start) == 0).expect("few starts")
    }

    /// Counts a start, where a law asks for it.
    fn count_start(&self, world: &mut World, run: u8) {
        if self.game.scenario.on_lost == OnLost::Fail || self.game.scenario.again == Some(Once::Yes) {
            let starts = &mut world.told.starts[usize::from(run) - 1];
            *starts = (*starts + 1).min(2);
        }
    }

    /// Reads the record if a claim is due, and judges.
    fn admit(&mut self, holder: &Holder) {
        let once = self.game.scenario.again == Some(Once::Yes) && holder.run == 2;
        let on_lost = self.game.scenario.on_lost;
        let due = claim_is_due(
            false,
            once && !self.flawed(Flaw::FirstDeliveryIgnoresOnce),
            1 + u64::from(holder.again),
            if self.flawed(Flaw::NoClaimForOnLostFail) { OnLost::Retry } else { on_lost },
        );
        let standing = if due { self.world.record } else { Rec::NONE };
        let retrying = standing != Rec::NONE && self.game.book.glance(standing).state == State::Retrying;
        self.admitted(holder, due, standing, once, false);
        if retrying && self.game.scenario.thorough {
            self.admitted(holder, due, standing, once, true);
        }
    }

    fn admitted(&mut self, holder: &Holder, due: bool, standing: Rec, once: bool, early: bool) {
        let dead = self.world.holders.iter().enumerate().filter(|(_, holder)| holder.at == At::Dead);
        let dead = dead.fold(0, |dead, (who, _)| dead | 1 << who);
        let (start, base) = (self.new_start(), Base::of(standing));
        match self.game.book.judge(standing, holder.run, holder.again, once, early, dead) {
            Judged::Over => self.put("finds it over", Holder { at: At::Settling, ..*holder }),
            Judged::Early => {
                self.put("puts it off", Holder { at: At::Settling, word: Word::Again, ..*holder });
            }
            Judged::Finished => {
                self.put("finds its end", Holder { at: At::Repairing, wanted: standing, ..*holder });
            }
            Judged::End(rec) => {
                self.put("ends it unstarted", Holder { at: At::EndingUnstarted, wanted: rec, base, start, ..*holder });
            }
            Judged::Start(rec) => {
                let rec = if self.flawed(Flaw::LossSpendsANumber) { self.game.book.misnumber(rec) } else { rec };
                let wanted = self.game.book.begin(rec, self.who, start);
                let begun = Holder { wanted, base, start, ..*holder };
                if due {
                    self.put("is to claim", Holder { at: At::Claiming, ..begun });
                } else {
                    let mut next = *self.world;
                    self.count_start(&mut next, holder.run);
                    next.holders[self.who] = Holder { at: At::Running, ..begun };
                    self.push("starts, without a claim", next, None);
                }
            }
        }
    }

    /// Writes `wanted` as the fence does. `stands` makes the holder of a write that stands, `ended` of one that came
    /// behind another's end; `None`: whoever is superseded stops here.
    fn write(
        &mut self,
        holder: &Holder,
        what: &'static str,
        stands: impl Fn(&mut Self, Holder, &mut World) -> Holder,
        refused: impl Fn(&mut Self, Reread) -> Option<Holder>,
    ) {
        if self.world.takes(holder.base) {
            let mut next = *self.world;
            let broken = self.robs(holder).or(server::store(self.game, &mut next, holder.wanted));
            if self.world.left.unanswered > 0 {
                let mut unanswered = next;
                unanswered.left.unanswered -= 1;
                unanswered.holders[self.who].base = Base::Stale;
                self.push("writes and hears nothing", unanswered, broken);
            }
            let written = Holder { base: Base::Newest, claimed: true, ..*holder };
            next.holders[self.who] = stands(self, written, &mut next);
            self.push(what, next, broken);
            return;
        }
        let record = self.world.record;
        let next = match self.game.book.reread(holder.wanted, holder.start, record) {
            Reread::Stands => {
                let mut next = *self.world;
                let written = Holder { base: Base::Newest, claimed: true, ..*holder };
                next.holders[self.who] = stands(self, written, &mut next);
                return self.push("finds its write", next, None);
            }
            Reread::Again(wanted) => Holder { wanted, base: self.world.base(), ..*holder },
            how @ (Reread::Superseded | Reread::Ended) => match refused(self, how) {
                Some(next) => next,
                None => Holder::IDLE,
            },
        };
        self.put("is refused", next);
    }

    /// Whether an attempt's end would be written over another start of the same run.
    fn robs(&self, holder: &Holder) -> Option<&'static str> {
        let old = self.game.book.glance(self.world.record);
        let other = self.world.record != Rec::NONE && old.run == holder.run && old.last != holder.start;
        (other && !old.state.is_terminal() && holder.at == At::Ending)
            .then_some("an end of a superseded start is applied")
    }

    fn claim(&mut self, holder: &Holder, what: &'static str) {
        let pulled = Holder { at: At::Pulled, wanted: Rec::NONE, start: 0, base: Base::Nothing, ..*holder };
        self.write(
            holder,
            what,
            |hand, written, next| {
                hand.count_start(next, written.run);
                Holder { at: At::Running, ..written }
            },
            // Judged again by what stands now.
            |_, _| Some(pulled),
        );
    }

    fn run(&mut self, holder: &Holder) {
        if !holder.claimed {
            let leaving = Holder { at: At::Leaving, ..*holder };
            self.write(
                holder,
                "claims in mid-run",
                |hand, written, _| {
                    if hand.game.book.is_flagged(written.wanted) {
                        hand.ended(written, Ends::Cancelled)
                    } else {
                        written
                    }
                },
                |_, _| Some(leaving),
            );
        }
        for ending in self.game.scenario.ends {
            let ended = self.ended(*holder, Ends::Itself(*ending));
            let mut next = *self.world;
            next.holders[self.who] = ended;
            let failed = self.game.book.glance(ended.wanted).state == State::Failed;
            if self.flawed(Flaw::LetterBeforeRecord) && failed {
                server::bury(&mut next, holder.run);
            }
            if self.flawed(Flaw::AckBeforeRecord) && ended.word == Word::Done {
                server::remove(&mut next, holder.run);
            }
            self.push("ends", next, None);
        }
        let canceller = self.world.canceller;
        if holder.claimed && canceller.at == Canceling::Waiting && canceller.run == holder.run {
            let ended = self.ended(*holder, Ends::Cancelled);
            self.put("hears of the cancel", ended);
        }
        if self.world.left.drains > 0 {
            let mut next = *self.world;
            next.left.drains -= 1;
            next.holders[self.who] = self.ended(*holder, Ends::Drained);
            self.push("is drained", next, None);
        }
    }

    fn ended(&mut self, holder: Holder, ends: Ends) -> Holder {
        let wanted = self.game.book.conclude(holder.wanted, self.game.scenario.on_lost, ends);
        let word = if self.game.book.comes_again(wanted) { Word::Again } else { Word::Done };
        Holder { at: At::Ending, wanted, word, ..holder }
    }

    fn end(&mut self, holder: &Holder) {
        let found = Holder { at: At::Repairing, wanted: self.world.record, word: Word::Done, ..*holder };
        let forced = Holder { base: self.world.base(), ..*holder };
        let newer = self.game.book.glance(self.world.record).run > holder.run;
        self.write(
            holder,
            "writes its end",
            |hand, written, _| hand.following(written),
            |hand, how| match how {
                Reread::Superseded if hand.flawed(Flaw::SupersededWriteApplied) && !newer => Some(forced),
                Reread::Superseded if hand.flawed(Flaw::WriteOverANewerRun) && newer => Some(forced),
                Reread::Ended if hand.flawed(Flaw::WriteOverAnEnd) => Some(forced),
                Reread::Ended => Some(found),
                Reread::Superseded | Reread::Stands | Reread::Again(_) => None,
            },
        );
    }

    fn end_unstarted(&mut self, holder: &Holder) {
        let found = Holder { at: At::Repairing, wanted: self.world.record, ..*holder };
        self.write(
            holder,
            "writes an end",
            |hand, written, _| hand.following(written),
            |_, how| matches!(how, Reread::Ended).then_some(found),
        );
    }

    /// Behind a record that stands, at the first step that does something.
    fn following(&self, holder: Holder) -> Holder {
        self.after(holder, 0)
    }

    fn after(&self, holder: Holder, step: u8) -> Holder {
        let failed = self.game.book.glance(holder.wanted).state == State::Failed;
        let due = AFTER_RECORD.iter().enumerate().skip(usize::from(step)).find(|(_, step)| match step {
            Step::Letter => failed,
            // Nothing stored.
            Step::Event => false,
        });
        let at = due.map_or(At::Settling, |(step, _)| At::Following(step as u8));
        Holder { at, ..holder }
    }

    fn follow(&mut self, holder: &Holder, step: u8) {
        let mut next = *self.world;
        server::bury(&mut next, holder.run);
        next.holders[self.who] = self.after(*holder, step + 1);
        self.push("writes the dead letter", next, None);
    }

    fn repair(&mut self, holder: &Holder) {
        let mut next = *self.world;
        let failed = self.game.book.glance(holder.wanted).state == State::Failed;
        if failed && !self.flawed(Flaw::NothingBehindAnEndFound) {
            server::bury(&mut next, holder.run);
        }
        next.holders[self.who] = Holder { at: At::Settling, word: Word::Done, ..*holder };
        self.push("writes what is missing", next, None);
    }

    fn leave(&mut self, holder: &Holder) {
        match self.game.book.ahead(holder.wanted, holder.start, self.world.record) {
            Ahead::AnEnd(_) if self.flawed(Flaw::NothingBehindAnEndAhead) => {
                self.put("acks an end ahead", Holder { at: At::Settling, word: Word::Done, ..*holder });
            }
            Ahead::AnEnd(_) => {
                let wanted = self.world.record;
                self.put("finds an end ahead", Holder { at: At::Repairing, wanted, ..*holder });
            }
            Ahead::Nobody | Ahead::AnotherStart if self.flawed(Flaw::NakAfterALostLease) => {
                self.put("naks what it lost", Holder { at: At::Settling, word: Word::Again, ..*holder });
            }
            Ahead::Nobody | Ahead::AnotherStart => self.put("leaves it", Holder::IDLE),
        }
    }

    fn settle(&mut self, holder: &Holder) {
        let mut next = *self.world;
        next.holders[self.who] = Holder::IDLE;
        if self.world.left.unanswered > 0 {
            let mut unheard = next;
            unheard.left.unanswered -= 1;
            self.push("settles and is not heard", unheard, None);
        }
        // Its own clock tells a holder of a lost lease before the server hands the message on. One that is frozen between
        // this look and the nak is not told; what its nak then costs is one more delivery, which the record fences.
        let hold = match holder.lease {
            Lease::Held => Hold::Held,
            Lease::Lapsed | Lease::Lost => Hold::Lost,
        };
        let verdict = match holder.word {
            Word::Done => Verdict::Ack,
            Word::Again => Verdict::Nak(Default::default()),
        };
        if may_tell(&verdict, holder.linked, hold) || self.flawed(Flaw::NakAfterALostLease) {
            match holder.word {
                Word::Done => server::remove(&mut next, holder.run),
                Word::Again => server::hand_back(&mut next, holder.run),
            }
        }
        self.push("settles", next, None);
    }
}
