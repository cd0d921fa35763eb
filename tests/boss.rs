//! The boss with real agents over sockets: each machine is a process, the boss is in this one.

mod binding;
mod enroll;
mod home;
mod hostile;
mod operator;
mod restart;
mod time;
