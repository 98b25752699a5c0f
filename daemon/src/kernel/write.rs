//! Operations as netlink requests.

use std::net::IpAddr;

use loden_core::diff::Operation;
use loden_core::observed::{Route, Via};
use loden_core::plan::Device;
use loden_netlink::route::AddressFamily;
use loden_netlink::route::address::{AddressAttribute, AddressFlags, AddressMessage};
use loden_netlink::route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Prop,
};
use loden_netlink::route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use loden_netlink::route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteScope, RouteType,
};
use loden_netlink::{KernelError as Refusal, Request, flags, message_type, nexthop};
use loden_proto::{Family, Mac, ROUTE_PROTOCOL};

use super::KernelError;
use super::observe::address_family;

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
            Request::of(message_type::NEW_NEIGHBOUR, &neighbour(*device, *address, Some(*mac)), set)
        }
        O::DeleteNeighbour { device, address } => {
            Request::of(message_type::DELETE_NEIGHBOUR, &neighbour(*device, *address, None), 0)
        }
        O::SetFdb { device, mac, endpoint } => {
            Request::of(message_type::NEW_NEIGHBOUR, &fdb(*device, *mac, *endpoint), set)
        }
        O::DeleteFdb { device, mac, endpoint } => {
            Request::of(message_type::DELETE_NEIGHBOUR, &fdb(*device, *mac, *endpoint), 0)
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
        O::SetRoute { route, replace } => {
            let extra = if *replace { set } else { flags::CREATE | flags::EXCL };
            Request::of(message_type::NEW_ROUTE, &route_message(route), extra)
        }
        O::DeleteRoute(route) => Request::of(message_type::DELETE_ROUTE, &route_message(route), 0),
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

fn destination(address: IpAddr) -> NeighbourAttribute {
    NeighbourAttribute::Destination(match address {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    })
}

fn neighbour(device: u32, address: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(destination(address));
    message.attributes.extend(mac.map(|m| NeighbourAttribute::LinkLayerAddress(m.0.to_vec())));
    message
}

fn fdb(device: u32, mac: Mac, endpoint: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()), destination(endpoint)];
    message
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(route.subnet.family());
    message.header.destination_prefix_length = route.subnet.length();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = route.protocol.into();
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(route.subnet.address().into()));
    if route.metric != 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    match route.via {
        Via::Nexthop(id) => message.attributes.push(RouteAttribute::NhId(id)),
        Via::Gateway { device, gateway, onlink } => {
            if onlink {
                message.header.flags |= RouteFlags::Onlink;
            }
            message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            message.attributes.push(RouteAttribute::Oif(device));
        }
        Via::Other => {}
    }
    message
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
