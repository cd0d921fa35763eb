//! providers/dummy
