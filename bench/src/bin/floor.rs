//! The kernel's floor: a process that does with a container's interface what cannot be left out,
//! by the same library as the plugin, and nothing else: no configuration, no choice of an
//! address, no file, no look at what is there already. Started by `loden-bench`.
//!
//! ```text
//! add NAMESPACE HOST-END NAME BRIDGE-INDEX ADDRESS   a pair on the bridge, the address of a /24,
//!                                                    a default route by the subnet's first
//! del HOST-END
//! nothing
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;

use loden_netlink::{Request, Socket, flags};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

// Message types (linux/rtnetlink.h).
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

const LOOPBACK: u32 = 1;
const MTU: u32 = 1450;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["add", namespace, host_end, name, bridge, address] => {
            add(namespace, host_end, name, bridge, address)
        }
        ["del", host_end] => del(host_end),
        ["nothing"] => Ok(()),
        _ => Err(io::Error::other("expected add, del or nothing")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As a plugin does.
            let _ = writeln!(io::stdout(), "loden-bench-floor: {arguments:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn add(namespace: &str, host_end: &str, name: &str, bridge: &str, address: &str) -> io::Result<()> {
    let bridge: u32 = bridge.parse().map_err(io::Error::other)?;
    let address: Ipv4Addr = address.parse().map_err(io::Error::other)?;
    let [a, b, c, _] = address.octets();
    let gateway = Ipv4Addr::new(a, b, c, 1);
    let (namespace, own) = (File::open(namespace)?, File::open("/proc/thread-self/ns/net")?);
    let enter = |to: &File| move_into_link_name_space(to.as_fd(), Some(LinkNameSpaceType::Network));
    enter(&namespace)?;
    let mut inside = Socket::route()?;
    enter(&own)?;
    let mut host = Socket::route()?;

    send(&mut host, &[new_pair(host_end, name, &namespace, bridge)])?;
    let index = index_of(&mut inside, name)?;
    let requests =
        [set_up(LOOPBACK), set_up(index), add_address(index, address), add_default_route(index, gateway)];
    send(&mut inside, &requests)
}

fn del(host_end: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(host_end.into()));
    send(&mut Socket::route()?, &[Request::of(RTM_DELLINK, &message, 0)])
}

fn send(socket: &mut Socket, requests: &[Request]) -> io::Result<()> {
    let verdicts = socket.batch(requests).map_err(io::Error::other)?;
    verdicts.into_iter().try_for_each(|verdict| verdict.map_err(io::Error::other))
}

fn new_pair(host_end: &str, name: &str, namespace: &File, bridge: u32) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(host_end.into()),
        LinkAttribute::Mtu(MTU),
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    Request::of(RTM_NEWLINK, &message, flags::CREATE | flags::EXCL)
}

fn index_of(socket: &mut Socket, name: &str) -> io::Result<u32> {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.into()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    let reply = socket.get(&Request::of(RTM_GETLINK, &message, 0)).map_err(io::Error::other)?;
    let link: LinkMessage = reply.ok_or(io::ErrorKind::NotFound)?.decode().map_err(io::Error::other)?;
    Ok(link.header.index)
}

fn set_up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::of(RTM_SETLINK, &message, 0)
}

fn add_address(index: u32, address: Ipv4Addr) -> Request {
    let [a, b, c, _] = address.octets();
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 24;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
        AddressAttribute::Broadcast(Ipv4Addr::new(a, b, c, 255)),
    ];
    Request::of(RTM_NEWADDR, &message, flags::CREATE | flags::EXCL)
}

fn add_default_route(index: u32, gateway: Ipv4Addr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Gateway(IpAddr::V4(gateway).into()), RouteAttribute::Oif(index)];
    Request::of(RTM_NEWROUTE, &message, flags::CREATE | flags::EXCL)
}
