//! Containers as jobs, on the real engine of this machine; each test is skipped where there is none, which fails it in
//! CI. See `scripts/engine`.

mod harness;
