//! The rtnetlink messages that this plugin sends, and what it reads of the answers. Called
//! by `bridge.rs`, `container.rs`, `del.rs`, `gc.rs` and `check.rs`, and by the benchmark, for what the kernel
//! alone takes; knows nothing of CNI.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use loden_netlink::nftset::key_address;
use loden_netlink::{Error, Reply, Request, Socket, attributes, flags, message_type, text};
use loden_proto::{Family, Mac, ROUTE_PROTOCOL, Subnet};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use netlink_packet_route::link::{
    BridgeBooleanOptionFlags, BridgeBooleanOptions, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

// What is read of a link and of an address (linux/if_link.h, linux/if_addr.h).
const IFINFOMSG_LEN: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_MULTI_BOOLOPT: u16 = 46;
const IFADDRMSG_LEN: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_PROTO: u16 = 11;
const VETH: &str = "veth";
/// [`Link::kind`] of a bridge.
pub(crate) const BRIDGE: &str = "bridge";

/// What is known of a link.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC, if it has one.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Switched on (`IFF_UP`).
    pub up: bool,
    /// Able to carry packets (`IF_OPER_UP`).
    pub running: bool,
    /// What it is (`veth`, `bridge`, …), as far as the kernel names it.
    pub kind: Option<String>,
    /// Of a bridge: whether it learns from frames to the addresses that bridges keep for
    /// themselves; unknown before Linux 5.0.
    pub learns_reserved: Option<bool>,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
}

impl Link {
    /// Whether it is an end of a pair.
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some(VETH)
    }

    /// Whether it is a bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some(BRIDGE)
    }
}

/// The link of this name.
pub fn by_name(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    get(socket, |m| m.attributes.push(LinkAttribute::IfName(name.into())))
}

/// The link of this index.
pub fn by_index(socket: &mut Socket, index: u32) -> Result<Option<Link>, Error> {
    get(socket, |m| m.header.index = index)
}

fn get(socket: &mut Socket, select: impl FnOnce(&mut LinkMessage)) -> Result<Option<Link>, Error> {
    let mut message = LinkMessage::default();
    select(&mut message);
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let reply = socket.get(&Request::of(message_type::GET_LINK, &message, 0))?;
    match reply {
        Some(reply) if reply.message_type == message_type::NEW_LINK => link(&reply).map(Some),
        _ => Ok(None),
    }
}

/// Reads `struct ifinfomsg` and what [`Link`] has of the attributes behind it: decoding all of them would
/// take longer than the kernel needs to answer.
fn link(reply: &Reply) -> Result<Link, Error> {
    let Some((header, rest)) = reply.payload.split_at_checked(IFINFOMSG_LEN) else {
        return Err(reply.torn());
    };
    let flags = LinkFlags::from_bits_retain(word(header, 8));
    let mut link = Link { index: word(header, 4), up: flags.contains(LinkFlags::Up), ..Link::default() };
    for (kind, value) in attributes(rest) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_MTU => link.mtu = word(value, 0),
            IFLA_OPERSTATE => link.running = value.first().copied().map(State::from) == Some(State::Up),
            IFLA_MASTER => link.master = Some(word(value, 0)),
            IFLA_LINKINFO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = Some(text(value)),
                        IFLA_INFO_DATA => link.learns_reserved = learns_reserved(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if link.kind.as_deref() != Some(BRIDGE) {
        link.learns_reserved = None;
    }
    Ok(link)
}

/// From the data of a bridge: `struct br_boolopt_multi`.
fn learns_reserved(data: &[u8]) -> Option<bool> {
    let (_, options) = attributes(data).find(|(kind, _)| *kind == IFLA_BR_MULTI_BOOLOPT)?;
    let options = BridgeBooleanOptionFlags::from_bits_retain(word(options, 0));
    Some(!options.contains(BridgeBooleanOptionFlags::NoLinkLocalLearn))
}

/// The number at an offset; 0 where there is none.
fn word(bytes: &[u8], offset: usize) -> u32 {
    let word = bytes.get(offset..).and_then(|bytes| bytes.first_chunk::<4>());
    word.map_or(0, |word| u32::from_ne_bytes(*word))
}

/// A new bridge, not yet up, with the kernel's default MTU: only one that is set by a change stays,
/// whatever ports come and go (`BROPT_MTU_SET_BY_USER`, net/bridge/br_device.c).
pub fn new_bridge(name: &str, mac: Mac) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), learn_no_reserved()]),
    ];
    Request::of(message_type::NEW_LINK, &message, flags::CREATE | flags::EXCL)
}

/// Keeps a bridge from learning the senders of frames to the addresses that bridges keep for themselves:
/// these frames pass no filter of a bridge (`br_handle_frame`, net/bridge/br_input.c).
pub fn set_learn_no_reserved(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge), learn_no_reserved()]),
    ];
    Request::of(message_type::NEW_LINK, &message, 0)
}

fn learn_no_reserved() -> LinkInfo {
    let option = BridgeBooleanOptionFlags::NoLinkLocalLearn;
    let options = BridgeBooleanOptions { value: option, mask: option };
    LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MultiBoolOpt(options)]))
}

/// A pair of interfaces in one message: this end up and a port of the bridge, the other in
/// another namespace under its final name. The other's UP cannot be in the message (the
/// kernel brings it up before the pair is joined, and veth answers ENOTCONN).
///
/// Since Linux 5.17 each end would get a queue per CPU, with an object in sysfs for each, of which
/// the kernel then uses one: a third of the time that the pair takes on two CPUs, more on more.
pub fn new_pair(
    host: (&str, Mac),
    container: (&str, Mac),
    namespace: RawFd,
    bridge: u32,
    mtu: u32,
) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(container.0.into()),
        LinkAttribute::Address(container.1.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::NetNsFd(namespace),
    ];
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(host.0.into()),
        LinkAttribute::Address(host.1.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    Request::of(message_type::NEW_LINK, &message, flags::CREATE | flags::EXCL)
}

/// Sets what a port of a bridge does. It cannot be part of the link's creation.
pub fn set_port(name: &str, hairpin: bool, isolated: bool) -> Request {
    let port = vec![InfoBridgePort::HairpinMode(hairpin), InfoBridgePort::Isolated(isolated)];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(port)),
        ]),
    ];
    // Not SetLink: that does not look at what is said of a port.
    Request::of(message_type::NEW_LINK, &message, 0)
}

/// Removes a link, and with it the other end of a pair; `false` when there was none. Takes
/// some 20 ms: the kernel waits until no CPU looks at it any more.
pub fn delete(socket: &mut Socket, name: &str) -> Result<bool, Error> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.into()));
    match socket.request(&Request::of(message_type::DELETE_LINK, &message, 0)) {
        Ok(()) => Ok(true),
        Err(e) if e.kernel().is_some_and(|k| k.is_absent()) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Switches a link on.
pub fn set_up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::of(message_type::SET_LINK, &message, 0)
}

/// Makes a link a port of a bridge.
pub fn set_master(name: &str, bridge: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::Controller(bridge)];
    Request::of(message_type::SET_LINK, &message, 0)
}

/// Sets a link's MTU in bytes.
pub fn set_mtu(index: u32, mtu: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Mtu(mtu));
    Request::of(message_type::SET_LINK, &message, 0)
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The interface's index.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Its subnet's length in bits.
    pub length: u8,
    /// Whether it carries our protocol number (kernels from 5.18 keep it).
    pub ours: bool,
}

/// All addresses of a family in the namespace.
pub fn addresses(socket: &mut Socket, family: Family) -> Result<Vec<Held>, Error> {
    let mut message = AddressMessage::default();
    message.header.family = address_family(family);
    let replies = socket.dump(&Request::of(message_type::GET_ADDRESS, &message, 0))?;
    let mut found = Vec::with_capacity(replies.len());
    for reply in replies.iter().filter(|r| r.message_type == message_type::NEW_ADDRESS) {
        let Some((header, rest)) = reply.payload.split_at_checked(IFADDRMSG_LEN) else {
            return Err(reply.torn());
        };
        let (mut address, mut ours) = (None, false);
        for (kind, value) in attributes(rest) {
            match kind {
                // IPv4: the interface's own; ADDRESS is the peer's on a point-to-point link.
                IFA_LOCAL => address = key_address(value),
                IFA_ADDRESS => address = address.or_else(|| key_address(value)),
                IFA_PROTO => ours = value == [ROUTE_PROTOCOL],
                _ => {}
            }
        }
        let Some(address) = address else { continue };
        found.push(Held { index: word(header, 4), address, length: header[1], ours });
    }
    Ok(found)
}

/// Gives an interface an address of a subnet. No duplicate address detection: the address
/// comes from our own lease, and IPv6 would keep it unusable for a second.
pub fn add_address(index: u32, address: IpAddr, subnet: Subnet) -> Request {
    let mut message = address_message(index, address, subnet.length());
    if let IpAddr::V4(last) = subnet.last() {
        message.attributes.push(AddressAttribute::Broadcast(last));
    } else {
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(ROUTE_PROTOCOL)));
    Request::of(message_type::NEW_ADDRESS, &message, flags::CREATE | flags::EXCL)
}

/// Takes an address from its interface.
pub fn remove_address(held: &Held) -> Request {
    Request::of(message_type::DELETE_ADDRESS, &address_message(held.index, held.address, held.length), 0)
}

fn address_message(index: u32, address: IpAddr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.prefix_len = length;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

/// A route; refused when there is one of the same metric already.
pub fn add_route(index: u32, to: Subnet, gateway: IpAddr, metric: Option<u32>) -> Request {
    let mut message = route_message(Family::of(gateway));
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.header.destination_prefix_length = to.length();
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    if to.length() > 0 {
        message.attributes.push(RouteAttribute::Destination(to.address().into()));
    }
    message.attributes.extend(metric.map(RouteAttribute::Priority));
    Request::of(message_type::NEW_ROUTE, &message, flags::CREATE | flags::EXCL)
}

/// A route through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Via {
    /// Where it leads.
    pub to: Subnet,
    /// By whom.
    pub gateway: IpAddr,
}

/// The routes through an interface that have a gateway.
pub fn routes(socket: &mut Socket, index: u32, family: Family) -> Result<Vec<Via>, Error> {
    let replies = socket.dump(&Request::of(message_type::GET_ROUTE, &route_message(family), 0))?;
    let mut routes = Vec::new();
    for reply in replies.iter().filter(|r| r.message_type == message_type::NEW_ROUTE) {
        let message: RouteMessage = reply.decode()?;
        if !message.attributes.contains(&RouteAttribute::Oif(index)) {
            continue;
        }
        let ip = |address: &RouteAddress| match address {
            RouteAddress::Inet(ip) => Some(IpAddr::from(*ip)),
            RouteAddress::Inet6(ip) => Some(IpAddr::from(*ip)),
            _ => None,
        };
        let (mut to, mut gateway) = (unspecified(family), None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => to = ip(address).unwrap_or(to),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                _ => {}
            }
        }
        let to = Subnet::containing(to, message.header.destination_prefix_length);
        if let (Ok(to), Some(gateway)) = (to, gateway) {
            routes.push(Via { to, gateway });
        }
    }
    Ok(routes)
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn route_message(family: Family) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
