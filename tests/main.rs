//! The tests of the whole, in one binary: it links once. the module `tidy` fails a file that is not listed.

mod boss;
mod cli;
mod docs;
mod plan;
mod support;
