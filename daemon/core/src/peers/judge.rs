//! One lease by itself: can it be trusted, and what peers does it make.

use std::net::IpAddr;

use loden_proto::config::Backend;
use loden_proto::lease::{LeaseKey, LeaseValue};
use loden_proto::{Family, Subnet};

use super::{Path, Peer, Peers, Rules, Verdict};
use crate::leases::LeaseRecord;
use crate::printable;

/// Judges one lease by itself.
pub(super) fn judge(key: &LeaseKey, record: &LeaseRecord, rules: &Rules) -> Verdict {
    let ours = record.value.as_ref().is_ok_and(|v| v.host_id() == Some(&rules.host_id));
    if ours || rules.own == Some(*key) || record.is_reservation() {
        return Verdict::Quiet;
    }
    let value = match &record.value {
        Ok(value) => value,
        Err(reason) => return Verdict::Rejected(reason.clone()),
    };
    let enabled = |subnet: &Subnet| rules.config.pool(subnet.family()).is_some();
    if !key.subnets().any(|subnet| enabled(&subnet)) {
        return Verdict::Rejected(format!(
            "{key} has no subnet of an address family that the network config enables"
        ));
    }
    let (mut peers, mut reasons) = (Peers::default(), Vec::<String>::new());
    for (place, subnet) in peers.iter_mut().zip(key.subnets().filter(enabled)) {
        match half(subnet, value, rules) {
            Ok(peer) => *place = peer,
            // Much of what can be wrong is wrong for both.
            Err(reason) if reasons.contains(&reason) => {}
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() {
        Verdict::Sound(peers, None)
    } else if peers.iter().all(Option::is_none) {
        Verdict::Rejected(reasons.join("; "))
    } else {
        Verdict::Sound(peers, Some(format!("one of its two subnets is not used: {}", reasons.join("; "))))
    }
}

/// One of a key's subnets.
fn half(subnet: Subnet, value: &LeaseValue, rules: &Rules) -> Result<Option<Peer>, String> {
    let family = subnet.family();
    let Some(pool) = rules.config.pool(family) else { return Ok(None) };
    if !pool.network.contains_subnet(&subnet) {
        return Err(format!("{subnet} lies outside the network {}", pool.network));
    }
    if subnet.length() != pool.subnet_length {
        return Err(format!("{subnet} is not a /{} as the network config says", pool.subnet_length));
    }
    if let Some(own) = rules.own.and_then(|o| o.subnet(family)).filter(|o| o.overlaps(&subnet)) {
        return Err(format!("{subnet} overlaps our own subnet {own}"));
    }
    peer(subnet, value, rules)
}

fn peer(subnet: Subnet, value: &LeaseValue, rules: &Rules) -> Result<Option<Peer>, String> {
    let family = subnet.family();
    let backend = rules.config.backend.name();
    let theirs = &value.backend_type;
    // alloc and udp leases carry no type.
    if *theirs != *backend && !(backend == "alloc" && theirs.is_empty()) {
        let theirs =
            if theirs.is_empty() { "none (udp or alloc)".to_owned() } else { printable(&theirs.to_str()) };
        return Err(format!("its backend type is {theirs}, ours is {backend}"));
    }
    let Some(public_address) = value.public_address(family) else {
        return Err(format!("it has no public {family} address"));
    };
    check_endpoint(public_address, rules)?;
    let on_link = rules.on_link.iter().any(|link| link.contains(public_address));
    let path = match &rules.config.backend {
        Backend::Alloc => return Ok(None),
        Backend::HostGw if on_link => Path::Direct,
        Backend::HostGw => {
            return Err(format!(
                "its public address {public_address} is not on the underlay's link, which host-gw needs"
            ));
        }
        Backend::Vxlan(vxlan) => {
            let Some(mac) = value.backend_data(family).vtep_mac() else {
                return Err(format!("it has no VTEP MAC for {family}"));
            };
            if !mac.is_unicast() {
                return Err(format!("its VTEP MAC {mac} is not a unicast address"));
            }
            if rules.own_macs.contains(&mac) {
                return Err(format!("its VTEP MAC {mac} is our own"));
            }
            if vxlan.direct_routing && on_link { Path::Direct } else { Path::Vxlan(mac) }
        }
    };
    let sources = value.loden.iter().filter_map(|m| m.sources.get()).flatten().copied();
    let sources = sources.filter(|a| Family::of(*a) == family && check_endpoint(*a, rules).is_ok());
    let (sources, holder) = (sources.take(16).collect(), value.loden.clone());
    Ok(Some(Peer { subnet, public_address, sources, path, holder }))
}

fn check_endpoint(address: IpAddr, rules: &Rules) -> Result<(), String> {
    let unicast = match address {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_loopback()
                || ip.octets()[0] == 0)
        }
        IpAddr::V6(ip) => {
            !(ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_loopback()
                // Names a host on one link only, and does not say on which.
                || ip.is_unicast_link_local()
                || ip.to_ipv4_mapped().is_some())
        }
    };
    if !unicast {
        return Err(format!("its public address {address} is not a unicast address that peers can reach"));
    }
    if rules.on_link.iter().any(|link| is_broadcast(link, address)) {
        return Err(format!("its public address {address} is the broadcast address of the underlay's link"));
    }
    if rules.own_addresses.contains(&address) {
        return Err(format!("its public address {address} is our own"));
    }
    if rules.config.contains(address) {
        return Err(format!("its public address {address} lies inside the overlay network"));
    }
    Ok(())
}

/// Whether an address is the last of a link with room for more than two (RFC 919, RFC 3021).
fn is_broadcast(link: &Subnet, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            link.length() < 31
                && link.contains(address)
                && u32::from(ip) | (u32::MAX << (32 - link.length())) == u32::MAX
        }
        IpAddr::V6(_) => false,
    }
}
