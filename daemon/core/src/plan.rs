//! What the kernel should hold: leases, config and host facts in, desired objects out.
//!
//! The objects of one peer follow from the peer alone ([`PeerObjects::of`]), so a changed lease
//! costs one peer's work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use loden_proto::config::{Backend, NetworkConfig, Vxlan};
use loden_proto::lease::LeaseKey;
use loden_proto::{Family, Mac, Subnet};

use crate::docker::user_chain;
use crate::filters::{self, Filters};
use crate::options::{Listen, Options};
use crate::peers::{Path, Peer};
use crate::tracked::Tracked;
use crate::underlay::Underlay;

/// Bytes that VXLAN adds to a packet: outer IP, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 §5).
pub const fn vxlan_overhead(family: Family) -> u32 {
    match family {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// What the base is planned from, beside the operator's choices, which do not change.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// The config in force.
    pub config: Arc<NetworkConfig>,
    /// Our own lease.
    pub own: LeaseKey,
    /// MACs of our VXLAN devices.
    pub macs: BTreeMap<Family, Mac>,
    /// The underlay.
    pub underlay: Underlay,
    /// Names of existing VXLAN devices of our identity that somebody else made.
    pub adopted: BTreeMap<Family, String>,
    /// Interfaces that hold our subnet's gateway address.
    pub bridges: BTreeSet<String>,
    /// Whether Docker uses the plugin's bridge, and with it the upper half of our subnets.
    pub docker_shares: bool,
}

/// What the kernel should hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Desired {
    /// What does not depend on the peers.
    pub base: Arc<Base>,
    /// The peers, from which their objects follow.
    pub peers: Tracked<Subnet, Peer>,
}

/// What the kernel should hold whoever the peers are, and what tells whose an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// VXLAN devices, at most one per family.
    pub devices: Vec<Device>,
    /// Interfaces that must forward.
    pub forwarding: BTreeSet<(Family, String)>,
    /// Our nftables table.
    pub filters: Filters,
    /// Our rules in Docker's chain for others, by family.
    pub docker_user: BTreeMap<Family, Vec<String>>,
    /// The overlay networks and the length of a lease in each: what ownership is told by.
    pub networks: Vec<(Subnet, u8)>,
    /// Our own subnets.
    pub own: LeaseKey,
    /// Index of the underlay interface, for direct routes.
    pub underlay: u32,
    /// Addresses that every host has, on its loopback.
    pub shared: Vec<IpAddr>,
    /// What it was planned with; names of devices come from it.
    pub options: Options,
}

/// A VXLAN device with its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name: ours, or that of the adopted device.
    pub name: String,
    /// Address family of its underlay and of what it carries.
    pub family: Family,
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MAC.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Source address of its packets.
    pub local: IpAddr,
    /// Index of the lower device.
    pub lower: u32,
    /// Whether it learns.
    pub learning: bool,
    /// Whether group policy is on.
    pub gbp: bool,
    /// Its own address, the subnet's network address, as a host address.
    pub address: IpAddr,
}

/// The objects of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerObjects {
    /// A neighbour (`gateway` has `mac`), an FDB entry (`mac` is at `endpoint`) and a route by
    /// `gateway`, which is the subnet's network address, on the VXLAN device.
    Vxlan {
        /// The route's gateway and the neighbour's address.
        gateway: IpAddr,
        /// MAC of the peer's VXLAN device.
        mac: Mac,
        /// The peer's public address.
        endpoint: IpAddr,
    },
    /// A route by the peer's public address on the underlay.
    Direct {
        /// The peer's public address.
        gateway: IpAddr,
    },
}

impl PeerObjects {
    /// The objects that follow from a peer.
    pub fn of(peer: &Peer) -> Self {
        match peer.path {
            Path::Vxlan(mac) => {
                PeerObjects::Vxlan { gateway: peer.subnet.address(), mac, endpoint: peer.public_address }
            }
            Path::Direct => PeerObjects::Direct { gateway: peer.public_address },
        }
    }
}

/// Plans the base.
pub fn plan(inputs: &Inputs, options: &Options) -> Base {
    let Inputs { config, own, macs, underlay, adopted, bridges, docker_shares } = inputs;
    let mut devices = Vec::new();
    if let Backend::Vxlan(vxlan) = &config.backend {
        for subnet in own.subnets() {
            let family = subnet.family();
            let (Some(endpoint), Some(mac)) = (underlay.endpoint(family), macs.get(&family)) else {
                continue;
            };
            devices.push(Device {
                name: adopted.get(&family).cloned().unwrap_or_else(|| options.device(vxlan.vni, family)),
                family,
                vni: vxlan.vni,
                port: vxlan.port,
                mac: *mac,
                mtu: underlay_mtu(vxlan, underlay).saturating_sub(vxlan_overhead(family)),
                local: endpoint.local,
                lower: underlay.index,
                learning: vxlan.learning,
                gbp: vxlan.gbp,
                address: subnet.address(),
            });
        }
    }
    let mut forwarding = BTreeSet::new();
    if config.backend != Backend::Alloc {
        for subnet in own.subnets() {
            let family = subnet.family();
            forwarding.insert((family, underlay.interface.clone()));
            forwarding.insert((family, options.bridge()));
            forwarding.extend(bridges.iter().map(|b| (family, b.clone())));
            let device = devices.iter().find(|d| d.family == family);
            forwarding.extend(device.map(|d| (family, d.name.clone())));
        }
    }
    let docker_user = config
        .pools()
        .filter(|_| config.backend != Backend::Alloc)
        .filter_map(|pool| {
            let family = pool.network.family();
            let own = own.subnet(family)?;
            let dockers = own.upper_half().filter(|_| *docker_shares);
            Some((family, user_chain::rules(pool.network, own, options, dockers)))
        })
        .collect();
    let shared = config.dns.as_ref().filter(|_| options.dns_listen.contains(&Listen::Shared));
    Base {
        filters: filters::filters(
            config,
            *own,
            options,
            &devices.iter().map(|d| (d.family, d.name.clone())).collect(),
        ),
        docker_user,
        devices,
        forwarding,
        networks: config.pools().map(|p| (p.network, p.subnet_length)).collect(),
        own: *own,
        underlay: underlay.index,
        shared: shared.map(|dns| dns.addresses.clone()).unwrap_or_default(),
        options: options.clone(),
    }
}

/// Whether a new VXLAN device sends a checksum of the outer UDP, given the features of its NIC that
/// are on, as `ethtool` names them.
///
/// It does, as the kernel's default and flannel's devices: the sender derives it from the inner one,
/// and where the receiver's NIC checks it, the inner one need not be. But a NIC that cuts packets in
/// tunnels only where there is no outer checksum would leave that to the kernel. IPv4 alone may go
/// without (RFC 768; RFC 8200 §8.1).
pub fn outer_checksum(family: Family, features: &BTreeSet<String>) -> bool {
    let needs_none =
        features.contains("tx-udp_tnl-segmentation") && !features.contains("tx-udp_tnl-csum-segmentation");
    family == Family::V6 || !needs_none
}

fn underlay_mtu(vxlan: &Vxlan, underlay: &Underlay) -> u32 {
    vxlan.underlay_mtu.unwrap_or(underlay.mtu)
}

/// MTU for containers: what one packet may hold on the way to any peer.
pub fn container_mtu(config: &NetworkConfig, underlay: &Underlay) -> u32 {
    match &config.backend {
        Backend::Vxlan(vxlan) => {
            let overhead = config.pools().map(|p| vxlan_overhead(p.network.family())).max().unwrap_or(0);
            underlay_mtu(vxlan, underlay).saturating_sub(overhead)
        }
        Backend::HostGw | Backend::Alloc => underlay.mtu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_checksum_goes_where_the_nic_segments_only_without() {
        let features = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (plain, with) = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation");
        assert!(!outer_checksum(Family::V4, &features(&[plain])));
        for others in [vec![], vec![with], vec![plain, with]] {
            assert!(outer_checksum(Family::V4, &features(&others)), "{others:?}");
        }
        assert!(outer_checksum(Family::V6, &features(&[plain])));
    }
}
