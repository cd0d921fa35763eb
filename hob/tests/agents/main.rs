//! Real hobs on this host, with a boss made of the same parts.

mod bindings;
mod enrollment;
mod exposing;
mod http;
mod metadata;
mod objects;
mod postgres;
mod programs;
mod redis;
mod revocation;
mod secret;
mod support;
mod units;
