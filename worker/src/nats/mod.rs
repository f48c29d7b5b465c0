//! The only place of the worker that knows the client crate: deliveries, pulls, leases, records, dead letters.

pub mod delivery;
pub mod lease;
pub mod pull;
pub mod store;
