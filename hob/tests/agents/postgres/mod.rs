//! Databases of a real PostgreSQL server, bound to programs that know nothing of it.

mod bound;
pub(crate) mod cluster;
mod crashing;
mod errors;
mod landing;
mod revoking;
mod rights;
