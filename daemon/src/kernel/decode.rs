//! From rtnetlink messages to the core's types, for dumps and notices alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loden_core::observed::{Address, Link, Nexthop, Route, Via, VxlanLink};
use loden_netlink::route::address::{AddressAttribute, AddressFlags, AddressMessage};
use loden_netlink::route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use loden_netlink::route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use loden_netlink::route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteType,
};
use loden_proto::{Family, Mac, Subnet};

/// `RTM_F_CLONED`: a cache entry, not a route of the table.
const CLONED: RouteFlags = RouteFlags::Cloned;

/// One interface.
pub(super) fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        bridge: false,
        controller: 0,
        other_names: Vec::new(),
        vxlan: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::PropList(all) => {
                link.other_names.extend(all.iter().filter_map(|property| match property {
                    Prop::AltIfName(name) => Some(name.clone()),
                    _ => None,
                }));
            }
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = *index,
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Bridge) => link.bridge = true,
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(vxlan(data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn vxlan(data: &[InfoVxlan]) -> VxlanLink {
    let mut vxlan = VxlanLink {
        vni: 0,
        port: 0,
        local: None,
        lower: 0,
        learning: false,
        gbp: false,
        group: false,
        external: false,
        family: Family::V4,
    };
    for info in data {
        match info {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(ip) => vxlan.local = Some(IpAddr::V4(*ip)).filter(|ip| !ip.is_unspecified()),
            InfoVxlan::Local6(ip) => {
                vxlan.local = Some(IpAddr::V6(*ip)).filter(|ip| !ip.is_unspecified());
                vxlan.family = Family::V6;
            }
            InfoVxlan::Group(ip) => vxlan.group |= !ip.is_unspecified(),
            InfoVxlan::Group6(ip) => {
                vxlan.family = Family::V6;
                vxlan.group |= !ip.is_unspecified();
            }
            InfoVxlan::Link(index) => vxlan.lower = *index,
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::CollectMetadata(on) => vxlan.external = *on,
            _ => {}
        }
    }
    vxlan
}

/// One address and the index of its interface.
pub(super) fn address(message: &AddressMessage) -> Option<(u32, Address)> {
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut any) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link `Address` is the other end.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => any = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unproven = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    let address = local.or(any)?;
    // The same bit means "temporary" in IPv6 and "secondary" in IPv4 (include/uapi/linux/if_addr.h).
    let temporary = address.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let decoded = Address {
        address,
        length: message.header.prefix_len,
        permanent: flags.contains(AddressFlags::Permanent),
        unusable: temporary || flags.intersects(unproven),
    };
    Some((message.header.index, decoded))
}

/// A route of the main table: its destination's length 0 for a default route.
pub(super) struct MainRoute {
    /// Destination; `None` for a default route.
    pub(super) subnet: Option<Subnet>,
    pub(super) via: Via,
    /// Interface index of the first path.
    pub(super) device: Option<u32>,
    pub(super) protocol: u8,
    pub(super) metric: u32,
}

impl MainRoute {
    pub(super) fn route(&self) -> Option<Route> {
        let subnet = self.subnet?;
        Some(Route { subnet, via: self.via, protocol: self.protocol, metric: self.metric })
    }
}

/// A unicast route of the main table; `None` for every other.
pub(super) fn route(message: &RouteMessage) -> Option<MainRoute> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let (mut destination, mut gateway, mut device, mut nexthop, mut metric, mut paths) =
        (None, None, None, None, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::NhId(id) => nexthop = Some(*id),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::MultiPath(all) => {
                paths = all.len();
                device = device.or(all.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || header.flags.contains(CLONED) || header.tos != 0 {
        return None;
    }
    let subnet = match (destination, header.destination_prefix_length) {
        (_, 0) => None,
        (Some(address), length) => Some(Subnet::containing(address, length).ok()?),
        (None, _) => return None,
    };
    let onlink = header.flags.contains(RouteFlags::Onlink);
    let via = match (header.kind, nexthop, gateway, device) {
        (RouteType::Unicast, Some(id), ..) => Via::Nexthop(id),
        (RouteType::Unicast, None, Some(gateway), Some(device)) if paths == 0 => {
            Via::Gateway { device, gateway, onlink }
        }
        _ => Via::Other,
    };
    Some(MainRoute { subnet, via, device, protocol: header.protocol.into(), metric })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A permanent neighbour or FDB entry: interface index, MAC and address.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(u32, Mac, IpAddr)> {
    let (mac, address) = ends(message);
    // `bridge fdb` sets NUD_NOARP beside it.
    let permanent = u16::from(message.header.state) & u16::from(NeighbourState::Permanent) != 0;
    permanent.then_some((message.header.ifindex, mac?, address?))
}

/// MAC and address. A neighbour that is being deleted has lost its MAC.
pub(super) fn ends(message: &NeighbourMessage) -> (Option<Mac>, Option<IpAddr>) {
    let (mut mac, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            NeighbourAttribute::Destination(destination) => {
                address = match destination {
                    NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
                    NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
                    // FDB entries are of AF_BRIDGE, which does not tell the address's family.
                    NeighbourAddress::Other(bytes) => any_ip(bytes),
                    _ => None,
                };
            }
            _ => {}
        }
    }
    (mac, address)
}

fn any_ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(|b| IpAddr::V4(Ipv4Addr::from(b)));
    v4.or_else(|| <[u8; 16]>::try_from(bytes).ok().map(|b| IpAddr::V6(Ipv6Addr::from(b))))
}

/// A nexthop object and its id.
pub(super) fn nexthop(raw: &loden_netlink::nexthop::Nexthop) -> (u32, Nexthop) {
    let nexthop =
        Nexthop { device: raw.device, gateway: raw.gateway, onlink: raw.onlink, protocol: raw.protocol };
    (raw.id, nexthop)
}
