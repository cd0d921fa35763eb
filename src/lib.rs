//! gobs
