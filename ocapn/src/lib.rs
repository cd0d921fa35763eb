//! ocapn
