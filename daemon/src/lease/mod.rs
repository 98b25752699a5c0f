//! Our own lease: claimed, kept, and given up only for a living owner.
//!
//! `keeper` is the task; it carries out the steps that `loden_core::claim` decides on.

mod keeper;
mod liveness;
mod value;

use std::collections::BTreeMap;

use loden_core::Millis;
use loden_proto::lease::LeaseKey;
use loden_proto::{Family, Mac};

pub use keeper::{Keeper, KeeperOptions};

/// Our lease as everybody else sees it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OwnLease {
    /// Whether and how it is ours.
    pub state: LeaseState,
    /// Its key; absent until a subnet is known.
    pub key: Option<LeaseKey>,
    /// MACs of our VXLAN devices.
    pub macs: BTreeMap<Family, Mac>,
    /// Our host id.
    pub host_id: String,
    /// When it ends unless refreshed; absent for a reservation, and when it is not ours.
    pub expires: Option<Millis>,
    /// Why it cannot be claimed again, while it is in use all the same.
    pub trouble: Option<String>,
}

/// Whether and how the lease is ours.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaseState {
    /// There is none yet, for this reason.
    None(String),
    /// From lasting state, while etcd is away and its deadline has not passed.
    Unconfirmed,
    /// Ours in etcd.
    Held,
    /// Somebody else may live who holds it: no new containers until that is known.
    Contested(String),
    /// Somebody else's by now: running containers stay, no new ones.
    Lost(String),
}

impl Default for LeaseState {
    fn default() -> Self {
        LeaseState::None("waiting for etcd".into())
    }
}

impl LeaseState {
    /// The word in `status` and `subnet.env`.
    pub fn word(&self) -> &'static str {
        match self {
            LeaseState::None(_) => "none",
            LeaseState::Unconfirmed => "unconfirmed",
            LeaseState::Held => "held",
            LeaseState::Contested(_) => "contested",
            LeaseState::Lost(_) => "lost",
        }
    }
}
