//! Databases of a real PostgreSQL server, bound to programs that know nothing of it.

mod cluster;
mod errors;
mod landing;
