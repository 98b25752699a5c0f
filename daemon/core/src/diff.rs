//! The way from what the kernel holds to what it should hold, as operations in a safe order:
//! filters before devices, devices before addresses, FDB entry and neighbour before route; and
//! removal in reverse.
//!
//! Two stages. [`base`] brings filters, devices, addresses and forwarding in place; when it had to
//! do anything, the kernel is observed again, since devices come and go with what hangs on them.
//! [`peers`] then does the same for the peers that may have changed, or for all.

mod applied;
mod operation;
mod peers;
mod removal;

use std::net::IpAddr;

use loden_proto::{Family, Subnet};

use crate::filters::PeerSet;
use crate::observed::{Address, Link, Observed};
use crate::ownership;
use crate::peers::Peer;
use crate::plan::{Desired, Device};
use crate::tracked::Tracked;

pub use applied::{all_applied, applied};
pub use operation::Operation;
pub use peers::{admitted, peers};
pub use removal::{flannel_devices, removal, to_flannel};

/// What is in the way and is not ours to change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict(pub String);

/// Which peers to look at.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// All, and everything of ours that belongs to none.
    All,
    /// Those that differ from this earlier set of peers.
    Since(&'a Tracked<Subnet, Peer>),
}

/// Operations for filters, devices, addresses and forwarding.
pub fn base(desired: &Desired, observed: &Observed) -> (Vec<Operation>, Vec<Conflict>) {
    let mut operations = Vec::new();
    let mut conflicts = Vec::new();
    if observed.filters.as_ref() != Some(&desired.base.filters.digest()) {
        let wanted = admitted(&desired.peers, &desired.base.filters.peer_sets);
        // Where packets flow already, nobody is shut out for a moment. On a fresh host the sets are
        // filled over netlink, which is cheaper than as text.
        let up = |d: &Device| observed.vxlan(d.vni, d.port, d.family).is_some_and(|l| l.up);
        let flowing =
            desired.base.devices.iter().any(up) || wanted.iter().any(|(set, _)| *set == PeerSet::Direct);
        let keep = wanted.into_iter().filter(|m| flowing || observed.admitted.contains(m)).collect();
        operations.push(Operation::ReplaceFilters(Box::new(desired.base.filters.clone()), keep));
    }
    for link in observed.links.values().filter(|l| ownership::leftover(l, desired)) {
        operations.push(Operation::DeleteDevice { index: link.index, name: link.name.clone() });
    }
    for device in &desired.base.devices {
        match observed.vxlan(device.vni, device.port, device.family) {
            Some(link) => existing_device(device, link, desired, observed, &mut operations, &mut conflicts),
            None => match observed.link(&device.name) {
                Some(link) if !ownership::leftover(link, desired) => conflicts.push(Conflict(format!(
                    "an interface named {} exists and is no VXLAN device of ours; rename or delete it",
                    link.name
                ))),
                _ => operations.push(Operation::AddDevice(Box::new(device.clone()))),
            },
        }
    }
    operations.extend(former_gateways(desired, observed));
    operations.extend(shared_addresses(desired, observed));
    for (family, name) in &desired.base.forwarding {
        if observed.link(name).is_some() && !observed.forwarding.contains(&(*family, name.clone())) {
            operations.push(Operation::Forward(*family, name.clone()));
        }
    }
    (operations, conflicts)
}

/// Addresses for the DNS that the loopback had for a former config. What another network of this host has there
/// as well, its daemon adds again.
pub fn left_shared_addresses(former: &[IpAddr], desired: &Desired, observed: &Observed) -> Vec<Operation> {
    let loopbacks = observed.links.values().filter(|l| l.loopback);
    let held =
        loopbacks.flat_map(|l| observed.addresses.get(&l.index).into_iter().flatten().map(|a| (l.index, a)));
    let left = held
        .filter(|(_, a)| a.ours && former.contains(&a.address) && !desired.base.shared.contains(&a.address));
    left.map(|(device, a)| Operation::DeleteAddress { device, address: a.address, length: a.length })
        .collect()
}

/// What the loopback lacks.
fn shared_addresses(desired: &Desired, observed: &Observed) -> Vec<Operation> {
    let Some(loopback) = observed.links.values().find(|l| l.loopback) else { return Vec::new() };
    let has = |address: &IpAddr| observed.addresses.values().flatten().any(|a| a.address == *address);
    let lacking = desired.base.shared.iter().filter(|address| !has(address));
    lacking.map(|a| Operation::AddAddress { device: loopback.index, address: *a }).collect()
}

/// Gateway addresses of former subnets on our bridge, once no container hangs on it: they would keep
/// us from whoever holds those subnets now. The plugin gives it the new one at the next ADD.
fn former_gateways(desired: &Desired, observed: &Observed) -> Vec<Operation> {
    let Some(bridge) = observed.link(&desired.base.options.bridge()).filter(|l| l.bridge) else {
        return Vec::new();
    };
    if observed.links.values().any(|l| l.controller == bridge.index) {
        return Vec::new();
    }
    let of_network =
        |a: &Address| desired.base.networks.iter().any(|(network, _)| network.contains(a.address));
    let former = |a: &&Address| of_network(a) && !desired.base.own.subnets().any(|s| s.contains(a.address));
    let all = observed.addresses.get(&bridge.index).into_iter().flatten();
    all.filter(former)
        .map(|a| Operation::DeleteAddress { device: bridge.index, address: a.address, length: a.length })
        .collect()
}

fn existing_device(
    device: &Device,
    link: &Link,
    desired: &Desired,
    observed: &Observed,
    operations: &mut Vec<Operation>,
    conflicts: &mut Vec<Conflict>,
) {
    let Some(vxlan) = link.vxlan else { return };
    if vxlan.external || vxlan.group || vxlan.gbp != device.gbp {
        // Flags of the tunnel socket are fixed at creation, and a group stays (drivers/net/vxlan:
        // vxlan_nl2conf with changelink).
        let what = match vxlan {
            _ if vxlan.external => "external mode",
            _ if vxlan.group => "a group or default remote",
            _ => "another GBP setting",
        };
        if desired.base.options.names_device(&link.name) {
            operations.push(Operation::DeleteDevice { index: link.index, name: link.name.clone() });
            operations.push(Operation::AddDevice(Box::new(device.clone())));
        } else {
            conflicts.push(Conflict(format!(
                "{} has our VNI {} and port {} but {what}, which the kernel cannot change; delete it (ip link del {})",
                link.name, device.vni, device.port, link.name
            )));
        }
        return;
    }
    let differs = [
        ("MAC", link.mac != Some(device.mac)),
        ("MTU", link.mtu != device.mtu),
        ("local address", vxlan.local != Some(device.local)),
        ("lower device", vxlan.lower != device.lower),
        ("learning", vxlan.learning != device.learning),
    ];
    let what: Vec<&'static str> = differs.iter().filter(|(_, d)| *d).map(|(n, _)| *n).collect();
    if !what.is_empty() {
        operations.push(Operation::ChangeDevice {
            index: link.index,
            device: Box::new(device.clone()),
            what,
        });
    }
    let host = device.family.bits();
    let mut present = false;
    for Address { address, length, .. } in observed.addresses.get(&link.index).into_iter().flatten() {
        if Family::of(*address) != device.family {
            continue;
        }
        if *address == device.address && *length == host {
            present = true;
        } else if desired.base.networks.iter().any(|(network, _)| network.contains(*address)) {
            operations.push(Operation::DeleteAddress {
                device: link.index,
                address: *address,
                length: *length,
            });
        }
    }
    if !present {
        operations.push(Operation::AddAddress { device: link.index, address: device.address });
    }
    if !link.up {
        operations.push(Operation::SetUp { device: link.index, name: link.name.clone(), port: device.port });
    }
}

#[cfg(test)]
mod tests;
