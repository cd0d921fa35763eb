//! The tests of the whole, in one binary: it links once. A file that is not listed fails `tidy`.

mod account;
mod apply;
mod binding;
mod boot;
mod boss;
mod calls;
mod cli;
#[expect(dead_code, reason = "the agent's own tests use more of it")]
#[path = "../hob/tests/agents/postgres/cluster.rs"]
mod cluster;
mod crash;
mod docs;
mod doctor;
mod import;
mod kills;
mod lang;
mod linode;
mod linode_blocks;
mod linode_crash;
mod linode_disks;
mod linode_faults;
mod linode_network;
mod linode_strays;
mod linode_token;
mod objects;
mod plan;
mod plugins;
mod postgres;
mod restore;
mod resume;
mod rights;
mod secrecy;
mod support;
mod tidy;
mod webapp;
