//! hob
