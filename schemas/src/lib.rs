//! What travels on NATS and HTTP: wire types, subject and store names, error codes.
//!
//! Only data: no I/O, no clock, no decisions. Readers pass on the fields that they do not know ([`newer`]); [`strict`] is the door for submitters,
//! which names every unknown field and the nearest known one.

pub mod agent;
pub mod agent_job;
pub mod cancel;
pub mod code;
pub mod condition;
pub mod containers;
pub mod dead_letter;
pub mod doctor;
pub mod explain;
pub mod function;
pub mod header;
pub mod http;
pub mod ids;
pub mod loss;
pub mod names;
pub mod nats_agent;
pub mod need;
pub mod newer;
pub mod order;
pub mod playbook;
pub mod quantity;
pub mod queue;
pub mod record;
mod repository;
pub mod schema;
pub mod stores;
pub mod strict;
pub mod task;
pub mod template;
pub mod time;
pub mod transcript;

pub use agent::{AgentKind, AgentRecord, AgentStatus};
pub use agent_job::AgentJob;
pub use code::Code;
pub use dead_letter::DeadLetter;
pub use doctor::DoctorReport;
pub use explain::Explanation;
pub use function::{Function, Instance, InstanceStatus};
pub use ids::{AgentId, FunctionName, InvalidId, QueueName, StartId, TaskId, TaskKey};
pub use names::{Names, Prefix};
pub use newer::{More, Word};
pub use order::Order;
pub use playbook::Playbook;
pub use quantity::{Bytes, Cpu, Decimal, Limit};
pub use queue::QueueSettings;
pub use record::{Attempt, Outcome, State, TaskError, TaskRecord};
pub use task::{Task, Workload};
pub use time::{HumanDuration, Timestamp};
