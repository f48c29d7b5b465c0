//! Every order of the moves within small bounds, and long random ones.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use proptest::prelude::*;
use schemas::task::OnLost;

use super::book::Book;
use super::world::{Left, World};
use super::{Ending, Flaw, Once, Scenario, canceller, holder, law, server};

/// One move.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Whose; none for the server and the canceller.
    pub who: Option<usize>,
    pub what: &'static str,
    pub world: World,
    /// The law that it breaks.
    pub broken: Option<&'static str>,
}

/// What is asked for the moves of one world.
pub struct Game<'a> {
    pub book: Book,
    pub scenario: &'a Scenario,
    pub flaw: Option<Flaw>,
}

impl<'a> Game<'a> {
    pub fn new(scenario: &'a Scenario, flaw: Option<Flaw>) -> Self {
        Self { book: Book::new(scenario), scenario, flaw }
    }

    fn begin(&self) -> World {
        World::new(self.scenario.workers, self.scenario.cancel, self.scenario.left)
    }

    /// Every move that is possible, into `moves`.
    fn moves(&mut self, world: &World, moves: &mut Vec<Move>) {
        moves.clear();
        holder::moves(self, world, moves);
        server::moves(self, world, moves);
        canceller::moves(self, world, moves);
    }

    fn broken(&mut self, world: &World, moves: &[Move]) -> Option<&'static str> {
        law::broken(self, world, moves.is_empty())
    }
}

/// Keys are mixed well already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only words are hashed")
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

/// Every broken law with a shortest way to it.
#[derive(Debug)]
struct Found {
    states: usize,
    broken: BTreeMap<&'static str, Vec<String>>,
}

/// Tries every order of the moves. With `first`, until a law is broken.
fn explore(scenario: &Scenario, flaw: Option<Flaw>, first: bool) -> Found {
    let mut game = Game::new(scenario, flaw);
    let begin = game.begin();
    let mut seen: HashSet<u64, BuildHasherDefault<AsIs>> = HashSet::default();
    seen.insert(begin.hash());
    let mut worlds = vec![(begin, 0_u32)];
    let mut open = VecDeque::from([0_u32]);
    let mut broken: BTreeMap<&'static str, (u32, Option<Move>)> = BTreeMap::new();
    let mut moves = Vec::new();
    while let Some(at) = open.pop_front() {
        let world = worlds[at as usize].0;
        game.moves(&world, &mut moves);
        if let Some(law) = game.broken(&world, &moves) {
            broken.entry(law).or_insert((at, None));
        }
        for step in &moves {
            if let Some(law) = step.broken {
                broken.entry(law).or_insert((at, Some(*step)));
                continue;
            }
            if seen.insert(step.world.hash()) {
                open.push_back(u32::try_from(worlds.len()).expect("fewer worlds"));
                worlds.push((step.world, at));
            }
        }
        if first && !broken.is_empty() {
            break;
        }
    }
    let broken = broken.into_iter().map(|(law, (at, last))| (law, trace(&mut game, &worlds, at, last))).collect();
    Found { states: seen.len(), broken }
}

/// The moves that lead to a world.
fn trace(game: &mut Game<'_>, worlds: &[(World, u32)], mut at: u32, last: Option<Move>) -> Vec<String> {
    let mut way: Vec<String> = last.map(|step| tell(game, &step)).into_iter().collect();
    let mut moves = Vec::new();
    while at != 0 {
        let (world, before) = worlds[at as usize];
        game.moves(&worlds[before as usize].0, &mut moves);
        let step = moves.iter().find(|step| step.world == world).copied().expect("it came from there");
        way.push(tell(game, &step));
        at = before;
    }
    way.reverse();
    way
}

fn tell(game: &Game<'_>, step: &Move) -> String {
    let who = step.who.map_or_else(String::new, |who| format!("w{who} "));
    format!("{who}{} [{}]", step.what, game.book.show(step.world.record))
}

fn retry_and_cancel() -> Scenario {
    Scenario {
        name: "retry + cancel",
        ends: &[Ending::Well, Ending::Badly, Ending::Hopeless],
        on_lost: OnLost::Retry,
        max_attempts: 2,
        lost_limit: 0,
        cancel: true,
        again: None,
        workers: 2,
        left: Left { lapses: 1, forgets: 1, crashes: 1, ..Left::default() },
        thorough: false,
    }
}

fn on_lost_fail() -> Scenario {
    Scenario {
        name: "on_lost: fail",
        ends: &[Ending::Well, Ending::Hopeless],
        on_lost: OnLost::Fail,
        max_attempts: 1,
        cancel: false,
        left: Left { lapses: 2, forgets: 1, crashes: 2, unanswered: 1, ..Left::default() },
        thorough: true,
        ..retry_and_cancel()
    }
}

fn id_used_again(once: Once) -> Scenario {
    Scenario {
        name: "id used again",
        ends: &[Ending::Well, Ending::Badly],
        max_attempts: 2,
        again: Some(once),
        left: Left { lapses: 1, forgets: 1, crashes: 1, ..Left::default() },
        ..retry_and_cancel()
    }
}

#[test]
fn measure() {
    for scenario in [retry_and_cancel(), on_lost_fail(), id_used_again(Once::No), id_used_again(Once::Yes)] {
        let began = std::time::Instant::now();
        let found = explore(&scenario, None, false);
        println!("{}: {} states in {:?}", scenario.name, found.states, began.elapsed());
        for (law, way) in found.broken {
            println!("  * {law}: {}", way.join(" | "));
        }
    }
}
