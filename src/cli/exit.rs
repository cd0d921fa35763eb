//! Exit codes: what a script may rely on.

/// Done. With `plan --detailed-exitcode`: there is nothing to do.
pub const DONE: u8 = 0;
/// Failed, or not approved. What was done before is kept and said.
pub const FAILED: u8 = 1;
/// `plan --detailed-exitcode` succeeded, and there is something to do.
pub const CHANGES: u8 = 2;
/// It worked, and something needs a person: `status`, `doctor`.
pub const ATTENTION: u8 = 3;
/// The command line is wrong; nothing was tried (`EX_USAGE` of sysexits.h).
pub const USAGE: u8 = 64;
