//! What Shoal promises, tried by breaking things: a nemesis over real fleets, and a checker that reads only what a user
//! can read afterwards.
//!
//! | module | is |
//! | --- | --- |
//! | `history` | what was done and what can be read afterwards: the checker's only input |
//! | `checker` | decides each invariant over a history; its own tests forge histories |
//! | `report` | what many rounds came to, for people and for programs |

mod checker;
mod history;
mod report;
#[path = "../support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the fleet tests, which use all of it")]
mod support;
