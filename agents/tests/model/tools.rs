//! Tools as a model meets them.
