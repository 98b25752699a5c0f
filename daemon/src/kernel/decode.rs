//! From rtnetlink messages to the core's types, for dumps and notices alike. Only the attributes are read
//! that matter: routes, neighbours, FDB entries and nexthops are as many as peers, and the code that knows
//! every attribute of every message is a third of a mebibyte of a daemon's memory.

use std::net::IpAddr;

use loden_core::observed::{Address, Link, Nexthop, Route, Via, VxlanLink};
use loden_netlink::route::address::AddressFlags;
use loden_netlink::route::link::LinkFlags;
use loden_netlink::{address, attributes, text, word};
use loden_proto::{Family, Mac, ROUTE_PROTOCOL, Subnet};

use super::uapi::*;

// include/uapi/linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;

// include/uapi/linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;

/// One interface: `struct ifinfomsg` with what follows it (`include/uapi/linux/if_link.h`). `None` if that is
/// torn, or a bridge's word on one of its ports, which lacks most attributes.
pub(super) fn link(payload: &[u8]) -> Option<Link> {
    let (header, rest) = payload.split_first_chunk::<16>()?;
    let [family, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
    if family == AF_BRIDGE {
        return None;
    }
    let flags = LinkFlags::from_bits_retain(u32::from_ne_bytes([f0, f1, f2, f3]));
    let mut link = Link {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        loopback: flags.contains(LinkFlags::Loopback),
        bridge: false,
        controller: 0,
        other_names: Vec::new(),
        vxlan: None,
    };
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = word(value)?,
            IFLA_MASTER => link.controller = word(value)?,
            IFLA_LINKINFO => {
                let info =
                    |wanted| attributes(value).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                match (info(IFLA_INFO_KIND).map(text).as_deref(), info(IFLA_INFO_DATA)) {
                    (Some("bridge"), _) => link.bridge = true,
                    (Some("vxlan"), Some(data)) => link.vxlan = Some(vxlan(data)?),
                    _ => {}
                }
            }
            IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                link.other_names.extend(names.map(|(_, name)| text(name)));
            }
            _ => {}
        }
    }
    Some(link)
}

fn vxlan(data: &[u8]) -> Option<VxlanLink> {
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
    for (kind, value) in attributes(data) {
        match kind {
            IFLA_VXLAN_ID => vxlan.vni = word(value)?,
            IFLA_VXLAN_LINK => vxlan.lower = word(value)?,
            // Unlike the other numbers it is big-endian.
            IFLA_VXLAN_PORT => vxlan.port = u16::from_be_bytes(value.try_into().ok()?),
            // The kernel has all addresses of a device of one family (vxlan_nl2conf).
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => {
                let local = address(value)?;
                vxlan.family = Family::of(local);
                vxlan.local = Some(local).filter(|ip| !ip.is_unspecified());
            }
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => {
                let group = address(value)?;
                vxlan.family = Family::of(group);
                vxlan.group = !group.is_unspecified();
            }
            IFLA_VXLAN_LEARNING => vxlan.learning = value != [0],
            IFLA_VXLAN_GBP => vxlan.gbp = true,
            IFLA_VXLAN_COLLECT_METADATA => vxlan.external = value != [0],
            _ => {}
        }
    }
    Some(vxlan)
}

/// One address and the index of its interface: `struct ifaddrmsg` with what follows it
/// (`include/uapi/linux/if_addr.h`).
pub(super) fn interface_address(payload: &[u8]) -> Option<(u32, Address)> {
    let (header, rest) = payload.split_first_chunk::<8>()?;
    let [_, length, flags, _, index @ ..] = *header;
    let mut flags = AddressFlags::from_bits_retain(u32::from(flags));
    let (mut local, mut any, mut ours) = (None, None, false);
    for (kind, value) in attributes(rest) {
        match kind {
            // On a point-to-point link `IFA_ADDRESS` is the other end.
            IFA_LOCAL => local = Some(address(value)?),
            IFA_ADDRESS => any = Some(address(value)?),
            IFA_FLAGS => flags = AddressFlags::from_bits_retain(word(value)?),
            IFA_PROTO => ours = value == [ROUTE_PROTOCOL],
            _ => {}
        }
    }
    let unproven = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    let address = local.or(any)?;
    // The same bit means "temporary" in IPv6 and "secondary" in IPv4.
    let temporary = address.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let decoded = Address {
        address,
        length,
        permanent: flags.contains(AddressFlags::Permanent),
        unusable: temporary || flags.intersects(unproven),
        ours,
    };
    Some((u32::from_ne_bytes(index), decoded))
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

/// A unicast route of the main table; `None` for every other. `payload` is a `struct rtmsg` with what
/// follows it (`include/uapi/linux/rtnetlink.h`).
pub(super) fn route(payload: &[u8]) -> Option<MainRoute> {
    let (header, rest) = payload.split_first_chunk::<12>()?;
    let [_, length, _, tos, table, protocol, _, kind, flags @ ..] = *header;
    let flags = u32::from_ne_bytes(flags);
    let mut table = u32::from(table);
    let (mut destination, mut gateway, mut device, mut nexthop, mut metric, mut paths) =
        (None, None, None, None, 0, false);
    for (kind, value) in attributes(rest) {
        match kind {
            RTA_DST => destination = Some(address(value)?),
            RTA_GATEWAY => gateway = Some(address(value)?),
            RTA_OIF => device = Some(word(value)?),
            RTA_NH_ID => nexthop = Some(word(value)?),
            RTA_PRIORITY => metric = word(value)?,
            RTA_TABLE => table = word(value)?,
            RTA_MULTIPATH => {
                paths = true;
                // The first `struct rtnexthop`: a length, flags and hops of 4 bytes together, the interface.
                device = device.or(value.get(4..8).and_then(word));
            }
            _ => {}
        }
    }
    if table != MAIN || flags & RTM_F_CLONED != 0 || tos != 0 {
        return None;
    }
    let subnet = match (destination, length) {
        (_, 0) => None,
        (Some(address), length) => Some(Subnet::containing(address, length).ok()?),
        (None, _) => return None,
    };
    let onlink = flags & RTNH_F_ONLINK != 0;
    let via = match (kind == RTN_UNICAST, nexthop, gateway, device) {
        (true, Some(id), ..) => Via::Nexthop(id),
        (true, None, Some(gateway), Some(device)) if !paths => Via::Gateway { device, gateway, onlink },
        _ => Via::Other,
    };
    Some(MainRoute { subnet, via, device, protocol, metric })
}

/// Index of the interface that an answer to a question for the way to an address names.
pub(super) fn way(payload: &[u8]) -> Option<u32> {
    attributes(payload.get(12..)?).find(|(kind, _)| *kind == RTA_OIF).and_then(|(_, value)| word(value))
}

/// A neighbour or an FDB entry: `struct ndmsg` with what follows it (`include/uapi/linux/neighbour.h`).
pub(super) struct Neighbour {
    /// Whether it is an FDB entry.
    pub(super) fdb: bool,
    /// Whether it has no end of life.
    pub(super) permanent: bool,
    /// Whether it leads to another port, VNI or device than its VXLAN device's: nothing of ours.
    pub(super) elsewhere: bool,
    /// Interface index.
    pub(super) device: u32,
    /// A neighbour that is being deleted has lost it.
    pub(super) mac: Option<Mac>,
    /// Of the neighbour, or where the FDB entry leads.
    pub(super) address: Option<IpAddr>,
}

impl Neighbour {
    /// Interface index, MAC and address of a permanent one.
    pub(super) fn lasting(&self) -> Option<(u32, Mac, IpAddr)> {
        (self.permanent && !self.elsewhere).then_some((self.device, self.mac?, self.address?))
    }
}

/// Reads one.
pub(super) fn neighbour(payload: &[u8]) -> Option<Neighbour> {
    let (header, rest) = payload.split_first_chunk::<12>()?;
    let [family, _, _, _, d0, d1, d2, d3, s0, s1, _, _] = *header;
    let mut neighbour = Neighbour {
        fdb: family == AF_BRIDGE,
        // `bridge fdb` sets NUD_NOARP beside it.
        permanent: u16::from_ne_bytes([s0, s1]) & NUD_PERMANENT != 0,
        elsewhere: false,
        device: u32::from_ne_bytes([d0, d1, d2, d3]),
        mac: None,
        address: None,
    };
    for (kind, value) in attributes(rest) {
        match kind {
            NDA_LLADDR => neighbour.mac = value.try_into().ok().map(Mac),
            NDA_DST => neighbour.address = address(value),
            NDA_PORT | NDA_VNI | NDA_IFINDEX => neighbour.elsewhere = true,
            _ => {}
        }
    }
    Some(neighbour)
}

/// A nexthop object and its id.
pub(super) fn nexthop(payload: &[u8]) -> Option<(u32, Nexthop)> {
    let raw = loden_netlink::nexthop::Nexthop::decode(payload)?;
    let nexthop =
        Nexthop { device: raw.device, gateway: raw.gateway, onlink: raw.onlink, protocol: raw.protocol };
    Some((raw.id, nexthop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use loden_netlink::packet::Emitable;
    use loden_netlink::route::AddressFamily;
    use loden_netlink::route::address::{AddressAttribute, AddressMessage};
    use loden_netlink::route::link::{
        InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage, Prop,
    };
    use loden_netlink::route::neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
    };
    use loden_netlink::route::route::{
        RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol, RouteType,
    };

    fn interface(kind: InfoKind, data: InfoData) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up | LinkFlags::Broadcast;
        message.attributes = vec![
            LinkAttribute::IfName("one".into()),
            LinkAttribute::Mtu(1450),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 7]),
            LinkAttribute::Controller(9),
            LinkAttribute::PropList(vec![Prop::AltIfName("two".into()), Prop::AltIfName("three".into())]),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ];
        message
    }

    #[test]
    fn a_vxlan_device_is_read_whole() {
        let local = std::net::Ipv6Addr::LOCALHOST;
        let data = vec![
            InfoVxlan::Id(77),
            InfoVxlan::Link(3),
            InfoVxlan::Local6(local),
            InfoVxlan::Learning(false),
            InfoVxlan::Port(8472),
            InfoVxlan::CollectMetadata(false),
            InfoVxlan::Gbp,
        ];
        let message = bytes(&interface(InfoKind::Vxlan, InfoData::Vxlan(data)));
        let vxlan = VxlanLink {
            vni: 77,
            port: 8472,
            local: Some(local.into()),
            lower: 3,
            learning: false,
            gbp: true,
            group: false,
            external: false,
            family: Family::V6,
        };
        let whole = Link {
            index: 7,
            name: "one".into(),
            mac: Some(Mac([2, 0, 0, 0, 0, 7])),
            mtu: 1450,
            up: true,
            loopback: false,
            bridge: false,
            controller: 9,
            other_names: vec!["two".into(), "three".into()],
            vxlan: Some(vxlan),
        };
        assert_eq!(link(&message), Some(whole));
        assert_eq!(link(&message[..15]), None);
    }

    #[test]
    fn a_bridge_is_told_from_its_word_on_a_port() {
        let mut message = interface(InfoKind::Bridge, InfoData::Bridge(Vec::new()));
        let read = link(&bytes(&message)).expect("a link");
        assert_eq!((read.bridge, read.vxlan), (true, None));
        message.header.interface_family = AddressFamily::Bridge;
        assert_eq!(link(&bytes(&message)), None);
    }

    #[test]
    fn an_address_is_judged_by_its_flags() {
        let on = |ip: &str, attributes: Vec<AddressAttribute>| {
            let address: IpAddr = ip.parse().expect("an address");
            let mut message = AddressMessage::default();
            message.header.index = 7;
            message.header.prefix_len = 24;
            message.attributes = vec![AddressAttribute::Address(address)];
            message.attributes.extend(attributes);
            let (index, read) = interface_address(&bytes(&message)).expect("an address");
            assert_eq!((index, read.length), (7, 24));
            read
        };
        let flags = AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Secondary);
        let v4 = on("10.5.7.1", vec![flags.clone(), AddressAttribute::Protocol(ROUTE_PROTOCOL.into())]);
        assert_eq!((v4.permanent, v4.unusable, v4.ours), (true, false, true));
        let v6 = on("fd00::1", vec![flags]);
        assert_eq!((v6.permanent, v6.unusable, v6.ours), (true, true, false));
        let tentative = AddressAttribute::Flags(AddressFlags::Tentative);
        assert!(on("fd00::1", vec![tentative]).unusable);
        let own: IpAddr = "10.5.7.2".parse().expect("an address");
        let to_peer = on("10.5.7.3", vec![AddressAttribute::Local(own)]);
        assert_eq!(to_peer.address, own, "not the other end of a point-to-point link");
        assert!(interface_address(&[2; 8]).is_none());
    }

    fn bytes(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn to(destination: Option<(&str, u8)>, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.header.protocol = RouteProtocol::Other(177);
        message.attributes = attributes;
        if let Some((address, length)) = destination {
            message.header.destination_prefix_length = length;
            let address: IpAddr = address.parse().expect("an address");
            message.attributes.push(RouteAttribute::Destination(address.into()));
        }
        message
    }

    #[test]
    fn routes_are_read_by_what_leads_there() {
        let gateway: IpAddr = "10.5.7.0".parse().expect("an address");
        let by_gateway = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(7)];
        let mut message = to(Some(("10.5.7.0", 24)), by_gateway.clone());
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Priority(5));
        let route = route_of(&message).and_then(|r| r.route()).expect("a route");
        let via = Via::Gateway { device: 7, gateway, onlink: true };
        let subnet = "10.5.7.0/24".parse().expect("a subnet");
        assert_eq!(route, Route { subnet, via, protocol: 177, metric: 5 });

        let by_id = to(Some(("10.5.7.0", 24)), vec![RouteAttribute::NhId(9), RouteAttribute::Oif(7)]);
        assert_eq!(route_of(&by_id).map(|r| r.via), Some(Via::Nexthop(9)));
        let mut hole = to(Some(("10.5.7.0", 24)), Vec::new());
        hole.header.kind = RouteType::BlackHole;
        assert_eq!(route_of(&hole).map(|r| r.via), Some(Via::Other));
        let mut hop = RouteNextHop::default();
        hop.interface_index = 7;
        let several = to(None, vec![RouteAttribute::MultiPath(vec![hop.clone(), hop])]);
        let several = route_of(&several).expect("a default route");
        assert_eq!((several.subnet, several.via, several.device), (None, Via::Other, Some(7)));
    }

    #[test]
    fn what_is_no_route_of_the_main_table_is_none() {
        let mut other = to(Some(("10.5.7.0", 24)), Vec::new());
        other.header.table = 99;
        let mut large = to(Some(("10.5.7.0", 24)), vec![RouteAttribute::Table(1000)]);
        large.header.table = 0;
        let mut cached = to(Some(("10.5.7.0", 24)), Vec::new());
        cached.header.flags = RouteFlags::Cloned;
        let mut of_service = to(Some(("10.5.7.0", 24)), Vec::new());
        of_service.header.tos = 4;
        for message in [other, large, cached, of_service] {
            assert!(route_of(&message).is_none(), "{message:?}");
        }
        assert!(route(&[2; 11]).is_none());
    }

    fn route_of(message: &RouteMessage) -> Option<MainRoute> {
        route(&bytes(message))
    }

    #[test]
    fn neighbours_and_fdb_entries_are_told_apart() {
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let address: std::net::Ipv4Addr = "172.16.0.9".parse().expect("an address");
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 7;
        message.header.state = NeighbourState::Other(0xc0);
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        ];
        for (family, fdb) in [(AddressFamily::Inet, false), (AddressFamily::Bridge, true)] {
            message.header.family = family;
            let read = neighbour(&bytes(&message)).expect("a neighbour");
            assert_eq!((read.fdb, read.lasting()), (fdb, Some((7, mac, IpAddr::V4(address)))));
        }
        message.header.state = NeighbourState::Reachable;
        assert_eq!(neighbour(&bytes(&message)).and_then(|n| n.lasting()), None);
    }
}
