//! Operations as netlink requests. Those about a peer, of which thousands come at once, are written attribute by
//! attribute, the others by netlink-packet-route.

use std::net::IpAddr;

use loden_core::diff::Operation;
use loden_core::observed::{Route, Via};
use loden_core::plan::Device;
use loden_netlink::route::address::{AddressAttribute, AddressFlags, AddressMessage};
use loden_netlink::route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use loden_netlink::{KernelError as Refusal, Request, flags, message_type, nexthop};
use loden_proto::{Family, Mac, ROUTE_PROTOCOL};

use super::KernelError;
use super::observe::address_family;
use super::uapi::*;

/// The request of an operation, `None` for operations that take more than one netlink message.
pub(super) fn request(operation: &Operation) -> Option<Request> {
    use Operation as O;
    let set = flags::CREATE | flags::REPLACE;
    let request = match operation {
        O::ReplaceFilters(..)
        | O::Admit(_)
        | O::Dismiss(_)
        | O::AddDevice(_)
        | O::Rename { .. }
        | O::Forward(..) => return None,
        O::ChangeDevice { index, device, what } => {
            Request::of(message_type::NEW_LINK, &changed(*index, device, what), 0)
        }
        O::DeleteDevice { index, .. } => {
            let mut message = LinkMessage::default();
            message.header.index = *index;
            Request::of(message_type::DELETE_LINK, &message, 0)
        }
        O::SetUp { device, .. } => {
            let mut message = LinkMessage::default();
            message.header.index = *device;
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            Request::of(message_type::SET_LINK, &message, 0)
        }
        O::AddAddress { device, address: ip } => Request::of(
            message_type::NEW_ADDRESS,
            &address(*device, *ip, Family::of(*ip).bits()),
            flags::CREATE | flags::EXCL,
        ),
        O::DeleteAddress { device, address: ip, length } => {
            Request::of(message_type::DELETE_ADDRESS, &address(*device, *ip, *length), 0)
        }
        O::SetNeighbour { device, address, mac } => {
            neighbour(message_type::NEW_NEIGHBOUR, set, *device, *address, Some(*mac))
        }
        O::DeleteNeighbour { device, address } => {
            neighbour(message_type::DELETE_NEIGHBOUR, 0, *device, *address, None)
        }
        O::SetFdb { device, mac, endpoint } => {
            fdb(message_type::NEW_NEIGHBOUR, set, *device, *mac, *endpoint)
        }
        O::DeleteFdb { device, mac, endpoint } => {
            fdb(message_type::DELETE_NEIGHBOUR, 0, *device, *mac, *endpoint)
        }
        O::AddNexthop(id, hop) => nexthop::Nexthop {
            id: *id,
            protocol: hop.protocol,
            device: hop.device,
            gateway: hop.gateway,
            onlink: hop.onlink,
        }
        .add(set),
        O::DeleteNexthop(id) => nexthop::delete(*id),
        O::SetRoute { route: wanted, replace } => {
            let extra = if *replace { set } else { flags::CREATE | flags::EXCL };
            route(message_type::NEW_ROUTE, extra, wanted)
        }
        O::DeleteRoute(unwanted) => route(message_type::DELETE_ROUTE, 0, unwanted),
    };
    Some(request)
}

/// The request that makes a VXLAN device; `checksum`: of the outer UDP. That is fixed from then on
/// (drivers/net/vxlan: vxlan_nl2conf with changelink), so a device that is there keeps what it has.
pub(super) fn add_device(device: &Device, checksum: bool) -> Request {
    let mut data = vec![
        InfoVxlan::Id(device.vni),
        InfoVxlan::Link(device.lower),
        local(device.local),
        InfoVxlan::Learning(device.learning),
        InfoVxlan::Port(device.port),
    ];
    if device.gbp {
        data.push(InfoVxlan::Gbp);
    }
    if device.family == Family::V4 {
        data.push(InfoVxlan::UDPCsum(checksum));
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(device.name.clone()),
        LinkAttribute::Mtu(device.mtu),
        // Given at creation: udev leaves a MAC alone that somebody chose (MACAddressPolicy).
        LinkAttribute::Address(device.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))]),
    ];
    Request::of(message_type::NEW_LINK, &message, flags::CREATE | flags::EXCL)
}

/// The request that renames a device.
pub(super) fn rename(index: u32, to: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::IfName(to.to_owned())];
    Request::of(message_type::SET_LINK, &message, 0)
}

/// The request that gives a device a further name (`RTM_NEWLINKPROP`, Linux 5.5).
pub(super) fn further_name(index: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())])];
    Request::of(message_type::NEW_LINK_PROPERTY, &message, flags::CREATE | flags::EXCL)
}

/// Only what differs is sent: the kernel refuses to set some attributes even to what they are
/// (drivers/net/vxlan: vxlan_nl2conf with changelink).
fn changed(index: u32, device: &Device, what: &[&'static str]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let mut data = Vec::new();
    for part in what {
        match *part {
            "MAC" => message.attributes.push(LinkAttribute::Address(device.mac.0.to_vec())),
            "MTU" => message.attributes.push(LinkAttribute::Mtu(device.mtu)),
            "local address" => data.push(local(device.local)),
            "lower device" => data.push(InfoVxlan::Link(device.lower)),
            "learning" => data.push(InfoVxlan::Learning(device.learning)),
            _ => {}
        }
    }
    if !data.is_empty() {
        data.insert(0, InfoVxlan::Id(device.vni));
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
        message.attributes.push(LinkAttribute::LinkInfo(info));
    }
    message
}

fn local(address: IpAddr) -> InfoVxlan {
    match address {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    }
}

fn address(device: u32, address: IpAddr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.index = device;
    message.header.prefix_len = length;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
        AddressAttribute::Protocol(ROUTE_PROTOCOL.into()),
    ];
    if address.is_ipv6() {
        // Our subnet is ours alone; duplicate detection would delay its use by a second.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// `struct ndmsg` of a permanent neighbour or FDB entry.
fn neighbour_header(family: u8, device: u32, flags: u8, kind: u8) -> [u8; 12] {
    let ([i0, i1, i2, i3], [s0, s1]) = (device.to_ne_bytes(), NUD_PERMANENT.to_ne_bytes());
    [family, 0, 0, 0, i0, i1, i2, i3, s0, s1, flags, kind]
}

fn neighbour(message_type: u16, flags: u16, device: u32, address: IpAddr, mac: Option<Mac>) -> Request {
    let header = neighbour_header(family_number(Family::of(address)), device, 0, RTN_UNICAST);
    let request = Request::new(message_type, flags, &header).with_address(NDA_DST, address);
    match mac {
        Some(mac) => request.with(NDA_LLADDR, &mac.0),
        None => request,
    }
}

fn fdb(message_type: u16, flags: u16, device: u32, mac: Mac, endpoint: IpAddr) -> Request {
    let header = neighbour_header(AF_BRIDGE, device, NTF_SELF, 0);
    Request::new(message_type, flags, &header).with(NDA_LLADDR, &mac.0).with_address(NDA_DST, endpoint)
}

fn route(message_type: u16, flags: u16, route: &Route) -> Request {
    let subnet = route.subnet;
    let onlink = matches!(route.via, Via::Gateway { onlink: true, .. });
    let [f0, f1, f2, f3] = if onlink { RTNH_F_ONLINK } else { 0 }.to_ne_bytes();
    // `struct rtmsg`: type of service and scope are 0 (RT_SCOPE_UNIVERSE).
    let (family, length) = (family_number(subnet.family()), subnet.length());
    let header = [family, length, 0, 0, MAIN as u8, route.protocol, 0, RTN_UNICAST, f0, f1, f2, f3];
    let mut request = Request::new(message_type, flags, &header).with_address(RTA_DST, subnet.address());
    if route.metric != 0 {
        request = request.with(RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    match route.via {
        Via::Nexthop(id) => request.with(RTA_NH_ID, &id.to_ne_bytes()),
        Via::Gateway { device, gateway, .. } => {
            request.with_address(RTA_GATEWAY, gateway).with(RTA_OIF, &device.to_ne_bytes())
        }
        Via::Other => request,
    }
}

/// What a refusal means for an operation: deleting what is gone and adding what is there succeed.
pub(super) fn verdict(operation: &Operation, result: Result<(), Refusal>) -> Result<(), KernelError> {
    use Operation as O;
    let Err(refusal) = result else { return Ok(()) };
    if operation.removes() && refusal.is_absent()
        || matches!(operation, O::AddAddress { .. }) && refusal.is_present()
    {
        return Ok(());
    }
    let hint = match operation {
        _ if refusal.is_forbidden() => {
            "; the daemon needs CAP_NET_ADMIN (run it as root or by its systemd unit)"
        }
        O::AddDevice(_) if refusal.is_unsupported() => {
            "; this kernel has no VXLAN (CONFIG_VXLAN, module vxlan)"
        }
        // The kernel allows one device per VNI, port and family, and one plain UDP socket per port.
        O::AddDevice(_) | O::SetUp { .. } if refusal.errno == rustix::io::Errno::ADDRINUSE.raw_os_error() => {
            "; another program holds the UDP port (ss -ulpn)"
        }
        O::SetRoute { route, .. } if refusal.is_present() && route.protocol == ROUTE_PROTOCOL => {
            "; a route of somebody else's is in the way (ip route show)"
        }
        _ => "",
    };
    Err(KernelError::Refused { operation: operation.to_string(), reason: refusal.to_string(), hint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use loden_netlink::packet::Emitable;
    use loden_netlink::route::AddressFamily;
    use loden_netlink::route::neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    };
    use loden_netlink::route::route::{
        RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType,
    };
    use loden_proto::Subnet;

    /// The request of an operation is this one, which netlink-packet-route has made.
    fn assert_written(operation: &Operation, message_type: u16, flags: u16, message: &impl Emitable) {
        let (written, expected) =
            (request(operation).expect("one"), Request::of(message_type, message, flags));
        let parts = |r: Request| (r.message_type, r.flags, r.payload);
        assert_eq!(parts(written), parts(expected), "{operation}");
    }

    fn destination(address: IpAddr) -> NeighbourAttribute {
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        })
    }

    const SET: u16 = flags::CREATE | flags::REPLACE;
    const MAC: Mac = Mac([2, 0, 0, 0, 1, 7]);

    #[test]
    fn neighbours_and_fdb_entries_are_written_as_the_crate_would() {
        for address in ["10.5.7.0", "fd00:10:5:7::"].map(|ip| ip.parse::<IpAddr>().expect("ip")) {
            let mut message = NeighbourMessage::default();
            message.header.family = address_family(Family::of(address));
            message.header.ifindex = 0x0102_0304;
            message.header.state = NeighbourState::Permanent;
            message.header.kind = RouteType::Unicast;
            message.attributes = vec![destination(address)];
            let (device, mac) = (0x0102_0304, MAC);
            let delete = Operation::DeleteNeighbour { device, address };
            assert_written(&delete, message_type::DELETE_NEIGHBOUR, 0, &message);
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(MAC.0.to_vec()));
            let set = Operation::SetNeighbour { device, address, mac };
            assert_written(&set, message_type::NEW_NEIGHBOUR, SET, &message);

            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            message.header.kind = RouteType::Unspec;
            message.attributes.reverse();
            let set = Operation::SetFdb { device, mac, endpoint: address };
            assert_written(&set, message_type::NEW_NEIGHBOUR, SET, &message);
            let delete = Operation::DeleteFdb { device, mac, endpoint: address };
            assert_written(&delete, message_type::DELETE_NEIGHBOUR, 0, &message);
        }
    }

    #[test]
    fn routes_are_written_as_the_crate_would() {
        let gateway = |ip: &str, onlink| Via::Gateway { device: 9, gateway: ip.parse().expect("ip"), onlink };
        for (subnet, via, metric) in [
            ("10.5.7.0/24", Via::Nexthop(77), 0),
            ("10.5.7.0/24", gateway("10.5.7.0", true), 3),
            ("fd00:10:5:7::/64", gateway("fd77::7", false), 1024),
        ] {
            let subnet: Subnet = subnet.parse().expect("subnet");
            let mut message = RouteMessage::default();
            message.header.address_family = address_family(subnet.family());
            message.header.destination_prefix_length = subnet.length();
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.protocol = ROUTE_PROTOCOL.into();
            message.header.scope = RouteScope::Universe;
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Destination(subnet.address().into()));
            message.attributes.extend((metric != 0).then_some(RouteAttribute::Priority(metric)));
            match via {
                Via::Nexthop(id) => message.attributes.push(RouteAttribute::NhId(id)),
                Via::Gateway { device, gateway, onlink } => {
                    message.header.flags = if onlink { RouteFlags::Onlink } else { RouteFlags::empty() };
                    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
                    message.attributes.push(RouteAttribute::Oif(device));
                }
                Via::Other => {}
            }
            let route = Route { subnet, via, protocol: ROUTE_PROTOCOL, metric };
            for (replace, flags) in [(true, SET), (false, flags::CREATE | flags::EXCL)] {
                let set = Operation::SetRoute { route: route.clone(), replace };
                assert_written(&set, message_type::NEW_ROUTE, flags, &message);
            }
            assert_written(&Operation::DeleteRoute(route), message_type::DELETE_ROUTE, 0, &message);
        }
    }
}
