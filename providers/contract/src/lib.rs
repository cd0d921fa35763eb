//! providers/contract
