//! The pure core of Loden: every decision as a function of values. No clock, file, socket or
//! runtime here; time comes in as a number, chance as a seed.
//!
//! ```text
//! leases ──► peers ──► plan ──► diff ──► operations for the kernel
//!    │                  ▲         ▲
//!    └──► claim      underlay   observed
//! ```
//!
//! [`leases`] is what stands in etcd, [`peers`] what of it can be trusted, [`claim`] which
//! subnet is ours, [`underlay`] which interface carries the overlay, [`plan`] what the kernel
//! should hold, [`filters`] our nftables table, [`diff`] the way from what it holds, and [`agenda`]
//! when to go it.

#![forbid(unsafe_code)]

pub mod agenda;
pub mod backoff;
pub mod claim;
pub mod config_change;
pub mod diff;
pub mod docker;
pub mod filters;
pub mod firewall;
pub mod fnv;
pub mod held;
pub mod leases;
pub mod mac;
pub mod names;
pub mod observed;
pub mod options;
pub mod ownership;
mod packed;
pub mod peers;
pub mod plan;
pub mod port_filter;
pub mod tracked;
pub mod underlay;

/// A text from the network, fit for terminals and logs: without control characters, of a bearable
/// length.
pub fn printable(text: &str) -> String {
    // Which nearly every text is.
    if text.len() <= 255 && !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().filter(|c| !c.is_control()).take(255).collect()
}

/// Milliseconds of a clock that never steps back (`CLOCK_BOOTTIME`).
pub type Millis = u64;
