//! The provider against the double.

#[path = "provider/blocks.rs"]
mod blocks;
#[path = "provider/conform.rs"]
mod conform;
#[path = "provider/faults.rs"]
mod faults;
#[path = "provider/host.rs"]
mod host;
#[path = "provider/network.rs"]
mod network;
#[path = "provider/offers.rs"]
mod offers;
#[path = "provider/pace.rs"]
mod pace;
#[path = "provider/profile.rs"]
mod profile;
#[path = "provider/strays.rs"]
mod strays;
#[path = "provider/verbs.rs"]
mod verbs;
