//! A full look: links, addresses, routes, neighbours, FDB entries, nexthops, forwarding.

use std::collections::BTreeSet;
use std::net::IpAddr;

use loden_core::observed::{FdbEntry, Observed};
use loden_netlink::route::AddressFamily;
use loden_netlink::route::address::AddressMessage;
use loden_netlink::route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use loden_netlink::route::neighbour::{NeighbourAttribute, NeighbourMessage};
use loden_netlink::route::route::{RouteAttribute, RouteHeader, RouteMessage};
use loden_netlink::{Error, Request, Socket, message_type, nexthop};
use loden_proto::{Family, ROUTE_PROTOCOL};

use super::decode::MainRoute;
use super::{Interest, decode};

/// Dumps and decodes. An answer that cannot be decoded is skipped, except for links: a link that seems gone
/// would be made again.
pub(super) fn observe(
    socket: &mut Socket,
    interest: &Interest,
    has_nexthops: bool,
) -> Result<Observed, Error> {
    let mut observed = Observed { has_nexthops, ..Observed::default() };
    let mut all_links = LinkMessage::default();
    all_links.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    for reply in socket.dump(&Request::of(message_type::GET_LINK, &all_links, 0))? {
        let link = decode::link(&reply.payload).ok_or_else(|| reply.torn())?;
        observed.links.insert(link.index, link);
    }
    let addresses = Request::of(message_type::GET_ADDRESS, &AddressMessage::default(), 0);
    for (index, address) in socket.gather(&addresses, |_, payload| decode::interface_address(payload))? {
        observed.addresses.entry(index).or_default().push(address);
    }
    // The oldest first, as IPv4's are, and as notices append: IPv6's are dumped the youngest first
    // (net/ipv6/addrconf.c: ipv6_link_dev_addr).
    for all in observed.addresses.values_mut() {
        all.sort_by_key(|a| a.address.is_ipv6());
        let first_v6 = all.partition_point(|a| a.address.is_ipv4());
        all[first_v6..].reverse();
    }
    for family in Family::ALL {
        routes(socket, family, interest, &mut observed)?;
    }
    let devices = observed.vxlan_devices();
    let mut neighbours = Vec::new();
    for device in &devices {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let of_device = lasting(socket, family, Some(*device))?;
            neighbours.extend(of_device.into_iter().map(|(index, mac, address)| ((index, address), mac)));
        }
    }
    neighbours.retain(|((index, _), _)| devices.contains(index));
    observed.neighbours = neighbours.into_iter().collect();
    observed.fdb = fdb(socket, &devices)?;
    if has_nexthops {
        let nexthops = socket.gather(&nexthop::dump(), |_, payload| decode::nexthop(payload))?;
        observed.nexthops = nexthops.into_iter().collect();
    }
    Ok(observed)
}

/// The permanent FDB entries of these devices.
pub(super) fn fdb(socket: &mut Socket, devices: &[u32]) -> Result<BTreeSet<FdbEntry>, Error> {
    if devices.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut entries = lasting(socket, AddressFamily::Bridge, None)?;
    entries.retain(|(index, ..)| devices.contains(index));
    Ok(entries.into_iter().collect())
}

/// Permanent neighbours of a device, or FDB entries of all: interface index, MAC and address.
fn lasting(socket: &mut Socket, family: AddressFamily, device: Option<u32>) -> Result<Vec<FdbEntry>, Error> {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes.extend(device.map(NeighbourAttribute::IfIndex));
    let request = Request::of(message_type::GET_NEIGHBOUR, &message, 0);
    socket.gather(&request, |_, payload| decode::neighbour(payload)?.lasting())
}

fn routes(
    socket: &mut Socket,
    family: Family,
    interest: &Interest,
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    let request = Request::of(message_type::GET_ROUTE, &message, 0);
    let concerning = |_, payload: &[u8]| {
        decode::route(payload).filter(|main| main.route().is_none_or(|route| concerns(&route, interest)))
    };
    let all = socket.gather(&request, concerning)?;
    let by_default = all.iter().filter(|main| main.subnet.is_none());
    // The first of those with the least metric.
    let best =
        by_default.filter_map(|main| Some((main.metric, main.device?))).min_by_key(|(metric, _)| *metric);
    if let Some((_, device)) = best {
        observed.default_routes.insert(family, device);
    }
    observed.routes.append(&mut all.iter().filter_map(MainRoute::route).collect());
    Ok(())
}

/// Whether a route can be ours or in our way.
pub(super) fn concerns(route: &loden_core::observed::Route, interest: &Interest) -> bool {
    route.protocol == ROUTE_PROTOCOL || interest.networks.iter().any(|n| n.contains_subnet(&route.subnet))
}

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The interface index of the route to an address.
pub(super) fn route_to(socket: &mut Socket, address: IpAddr) -> Option<u32> {
    let family = Family::of(address);
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.destination_prefix_length = family.bits();
    message.attributes.push(RouteAttribute::Destination(address.into()));
    let reply = socket.get(&Request::of(message_type::GET_ROUTE, &message, 0)).ok()??;
    decode::way(&reply.payload)
}
