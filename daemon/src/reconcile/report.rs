//! What the loop tells those who ask.

use std::collections::{BTreeMap, BTreeSet};

use loden_core::Millis;
use loden_core::diff::Conflict;
use loden_core::firewall::{Bridge, Surroundings};
use loden_core::observed::{Address, Link};
use loden_core::peers::{Path, Peer};
use loden_core::plan::Desired;
use loden_core::tracked::Tracked;
use loden_proto::{Family, Subnet};

use super::Loop;
use crate::clock;

/// What the loop knows, for `status`.
#[derive(Debug, Default)]
pub struct Report {
    /// Peers to program, held ones among them.
    pub peers: Tracked<Subnet, Peer>,
    /// Subnets of held peers with the milliseconds until they are let go.
    pub held: BTreeMap<Subnet, Millis>,
    /// Subnets of peers that are not in the kernel yet, with the reason.
    pub pending: BTreeMap<Subnet, String>,
    /// Refused keys.
    pub rejected: Vec<(String, String)>,
    /// Keys that only reserve.
    pub reservations: usize,
    /// What is in the way.
    pub conflicts: Vec<Conflict>,
    /// Our VXLAN devices as they are.
    pub devices: Vec<Link>,
    /// Repairs by kind of object.
    pub repairs: BTreeMap<String, u64>,
    /// What the kernel refuses, if anything, by example.
    pub failure: Option<String>,
    /// Other interfaces that hold our gateway address.
    pub bridges: BTreeSet<String>,
    /// Where other people's rules could be in the overlay's way; `None` before there is an overlay.
    pub surroundings: Option<Surroundings>,
}

/// Peers whose packets are followed through the rules.
const EXAMPLES: usize = 256;

impl<K, N> Loop<K, N> {
    pub(super) fn report(&self) -> Report {
        let now = clock::now();
        let devices =
            self.desired.iter().flat_map(|d| loden_core::ownership::devices(d, &self.observed)).cloned();
        let peers = self.book.peers();
        let mut pending = self.refusals.pending();
        for subnet in peers.keys().filter(|s| !self.programmed.contains_key(*s)) {
            pending.entry(*subnet).or_insert_with(|| "waiting for the underlay and our own lease".into());
        }
        Report {
            peers,
            held: self.book.held().map(|(subnet, until)| (subnet, until.saturating_sub(now))).collect(),
            pending,
            rejected: self.book.rejected(),
            reservations: self.book.reservations(),
            conflicts: self.conflicts.clone(),
            devices: devices.collect(),
            repairs: self.repairs.clone(),
            failure: self.refusals.first(),
            bridges: self.planned.iter().flat_map(|(from, _)| from.bridges.clone()).collect(),
            surroundings: self.desired.as_ref().map(|desired| self.surroundings(desired)),
        }
    }

    fn surroundings(&self, desired: &Desired) -> Surroundings {
        let named = |index: &u32| self.observed.links.get(index).map(|l| l.name.clone());
        let underlay = named(&desired.base.underlay).unwrap_or_default();
        let of_family = |own: Subnet| {
            let (network, _) = desired.base.networks.iter().find(|(n, _)| n.family() == own.family())?;
            Some((*network, own))
        };
        let mut overlay: Vec<(Family, String)> =
            desired.base.devices.iter().map(|d| (d.family, d.name.clone())).collect();
        let direct = desired.peers.values().filter(|p| p.path == Path::Direct);
        let direct: BTreeSet<Family> = direct.map(|p| p.subnet.family()).collect();
        overlay.extend(direct.into_iter().map(|family| (family, underlay.clone())));
        let inside = |a: &Address| desired.base.networks.iter().any(|(n, _)| n.contains(a.address));
        let bridges = self.observed.links.values().filter(|l| l.bridge).flat_map(|link| {
            let addresses = self.observed.addresses.get(&link.index).into_iter().flatten();
            let bridge = |a: &Address| Bridge { name: link.name.clone(), address: a.address };
            addresses.filter(|a| inside(a)).map(bridge).collect::<Vec<_>>()
        });
        Surroundings {
            options: desired.base.options.clone(),
            families: desired.base.own.subnets().filter_map(of_family).collect(),
            overlay,
            vxlan_port: desired.base.devices.first().map(|d| d.port),
            bridges: bridges.collect(),
            peers: self.book.peers().values().map(|p| p.public_address).take(EXAMPLES).collect(),
            underlay: (underlay.clone(), desired.base.devices.iter().map(|d| d.local).collect()),
        }
    }
}
