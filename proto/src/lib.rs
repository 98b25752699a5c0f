//! Every byte of Loden that crosses a process boundary, and nothing else: what stands in
//! etcd ([`config`], [`lease`], [`name_record`]), in files ([`subnet_env`], [`allocation`]) and on the local
//! socket ([`status`]). No I/O here: text in, typed values out, and back.
//!
//! Types cannot hold what is wrong: a [`Subnet`] has no host bits, a [`Mac`] has six bytes, a
//! [`config::NetworkConfig`] has been checked by flannel's rules.

#![forbid(unsafe_code)]

pub mod allocation;
pub mod config;
pub mod dns_name;
mod json;
pub mod lease;
mod mac;
pub mod name_record;
pub mod port_filter;
mod small;
pub mod status;
mod subnet;
pub mod subnet_env;

pub use mac::{Mac, MacError};
pub use small::{Rare, Text};
pub use subnet::{Family, Subnet, SubnetError};

/// The packet mark set on packets that come from the overlay for local containers, as
/// value and mask (`--fwmark`).
pub const DEFAULT_FWMARK: u32 = 0x4000_0000;
/// `rtm_protocol` of every route and nexthop that Loden makes; named in `rt_protos.d`.
pub const ROUTE_PROTOCOL: u8 = 177;
/// The default network name (`--network`), from which files, devices and tables are named.
pub const DEFAULT_NETWORK: &str = "loden";
/// Where run-time state lives (`--run-dir`).
pub const DEFAULT_RUN_DIR: &str = "/run/loden";
/// The bridge that the plugin makes in the leased subnet.
pub const DEFAULT_BRIDGE: &str = "loden0";
