//! What Shoal promises, tried by breaking things: a nemesis over real fleets, and a checker that reads only what a user
//! can read afterwards.
//!
//! | module | is |
//! | --- | --- |
//! | `history` | what was done and what can be read afterwards: the checker's only input |
//! | `checker` | decides each invariant over a history; its own tests forge histories |
//! | `dice` | the seed of a round |
//! | `load`, `submitter` | tasks of all kinds, and a user who loses nothing |
//! | `world`, `nemesis`, `firewall` | a fleet as an operator runs it, and what is done to it |
//! | `read`, `round` | gathering the history of one round |
//! | `rounds`, `clock` | the short rounds of `make test` |
//! | `soak` | `make soak`: rounds for as long as wanted |
//! | `tell` | all about a run that broke a promise |
//! | `report` | what many rounds came to, for people and for programs |

mod checker;
mod clock;
mod dice;
mod firewall;
mod history;
mod load;
mod nemesis;
mod read;
mod report;
mod round;
mod rounds;
mod soak;
mod submitter;
#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "shared with the fleet tests, which use all of it")]
mod support;
mod tell;
mod world;
