//! The craft of one coding-agent job: repository, workspace, implementers, playbook, tests, push.
//!
//! It knows no NATS and no worker. What it needs of them is three traits: a [`Shell`] runs commands where the job's
//! commands run, a [`Line`] leads to people, a [`Keeper`] keeps work in progress. Nothing here outlives a dropped future
//! but what a shell runs, which whoever owns the shell stops.
//!
//! | room | does |
//! | --- | --- |
//! | [`git`] | the real `git` program in a hardened environment; its failures told apart |
//! | [`workspace`] | a bare mirror a repository, a worktree a job, clean before and after |
//! | [`implementer`] | who writes the change: [`model`] with [`tools`], an agent program, the Agent Client Protocol |
//! | [`playbook`] | what is run around it |
//! | [`testing`] | what a test run's output says |
//! | [`secret`] | values that are wiped, and the mask over everything that leaves |

pub mod budget;
pub mod git;
pub mod implementer;
pub mod line;
pub mod model;
pub mod playbook;
pub mod prompt;
pub mod retry;
pub mod secret;
pub mod shell;
pub mod testing;
pub mod tools;
pub mod workspace;

pub use budget::{Allowance, Used};
pub use implementer::{Finish, ImplementError, Implementer, Room};
pub use line::{Keeper, Line, Progress, Unanswered};
pub use shell::{Command, Conversation, Kept, Ran, Shell, ShellError};
