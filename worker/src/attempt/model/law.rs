//! What must never be.

use super::Once;
use super::explore::Game;
use super::world::{At, World};
use schemas::task::OnLost;

/// The law that this world breaks. `stuck`: nothing can happen in it any more.
pub fn broken(game: &Game<'_>, world: &World, stuck: bool) -> Option<&'static str> {
    let told = &world.told;
    if game.scenario.on_lost == OnLost::Fail && told.starts.iter().any(|starts| *starts > 1) {
        return Some("`on_lost: fail` is started twice");
    }
    let once = game.scenario.again == Some(Once::Yes);
    if once && told.starts[1] > 0 {
        return Some("`once` starts although a record exists");
    }
    if world.message.there {
        let alive = world.holders.iter().any(|holder| holder.at != At::Dead);
        return (stuck && alive).then_some("a message waits and nothing can happen");
    }
    if world.holders.iter().any(|holder| holder.is_out()) {
        return None;
    }
    // All is quiet and the message is gone. A canceller half way may be dead.
    for run in 0..usize::from(world.run) {
        if told.ends[run] == 0 && !(once && run == 1) {
            return Some("an accepted run has no terminal record");
        }
        if told.failed[run] != (told.letters[run] == 1) {
            return Some("a dead letter of what did not fail, or a failure without exactly one");
        }
    }
    if !game.book.glance(world.record).state.is_terminal() {
        return Some("the message is gone and the record is not terminal");
    }
    None
}
