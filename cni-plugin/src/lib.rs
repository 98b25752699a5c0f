//! Loden's CNI plugin as a library: addresses from the leased subnet, one bridge, one veth
//! pair per container. The binary `loden-cni` (installed as `/opt/cni/bin/loden`) is
//! [`run::run`], or [`netavark::run`] for Podman 5; the daemon's `loden attach` calls [`add::add`] and [`del::del`].
//!
//! ```text
//! environment, stdin ─► request ─► add ─► netns, bridge ─► links ─► kernel
//!                                   │
//!                                   ├──► allocations ─► folder, ipam (pure), hints
//!                                   ├──► port_filter ─► kernel
//!                                   ├──► names ─► daemon
//!                                   └──► result ─► stdout
//! ```
//!
//! Synchronous throughout, without child processes and sleeps. It enters the container's
//! namespace with the calling thread and returns; give it a thread of its own in a program
//! that has several. It needs neither the daemon nor etcd (where the daemon runs, it waits for the container's names), only `subnet.env` (ADD and STATUS)
//! and its own allocation files.

pub mod add;
pub mod allocations;
pub mod attached;
pub mod bridge;
pub mod check;
pub mod container;
pub mod del;
pub mod environment;
pub mod error;
mod events;
mod folder;
pub mod gc;
mod hints;
pub mod ifname;
pub mod ipam;
mod json;
pub mod links;
mod names;
pub mod naming;
pub mod netavark;
mod netavark_config;
pub mod netns;
pub mod options;
mod port_filter;
pub mod request;
pub mod result;
pub mod run;
pub mod status;
mod sysctl;
pub mod version;
pub mod wishes;

pub use error::Error;
