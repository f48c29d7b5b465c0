//! Decides each invariant over a history.
