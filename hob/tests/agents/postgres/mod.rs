//! Databases of a real PostgreSQL server, bound to programs that know nothing of it.

mod bound;
mod cluster;
mod crashing;
mod errors;
mod landing;
mod revoking;
mod rights;
