//! Connecting one container to the bridge: the veth pair, then what is inside the
//! container's namespace. Called by `add.rs`; undone by deleting the host's end.

use std::time::{Duration, Instant};

use loden_netlink::{KernelError, Request, Socket};
use loden_proto::allocation::Allocation;
use loden_proto::{Family, Mac};

use crate::bridge::Bridge;
use crate::error::Error;
use crate::events;
use crate::links::{self, Link};
use crate::naming::HostEnd;
use crate::netns::Netns;
use crate::options::Options;
use crate::request::Attachment;
use crate::result::{Address, Route};
use crate::sysctl;

/// How one container is connected.
#[derive(Debug, Clone, Copy)]
pub struct Wiring<'a> {
    /// The container's interface.
    pub attachment: &'a Attachment,
    /// Its namespace.
    pub netns: &'a Netns,
    /// The bridge.
    pub bridge: &'a Bridge,
    /// The host's end of the pair.
    pub host_end: &'a HostEnd,
    /// MAC of the container's end.
    pub mac: Mac,
    /// MTU of both ends.
    pub mtu: u32,
    /// How it is connected.
    pub options: &'a Options,
    /// The container's addresses.
    pub addresses: &'a [Address],
    /// The container's routes.
    pub routes: &'a [Route],
}

/// `lo` has this index in every namespace.
const LOOPBACK: u32 = 1;
/// Metric, with the interface's index added, of a default route beside another network's;
/// behind IPv4's 0 and IPv6's 1024.
const SECOND_METRIC: u32 = 2048;
/// The kernel tells of a carrier within a millisecond; this only ends a wait without end.
const CARRIER_WAIT: Duration = Duration::from_secs(2);

/// Makes the pair. A host's end that is there already is left from an ADD that was killed
/// (the name says it is this container interface's) and goes first.
pub fn create_pair(host: &mut Socket, wiring: Wiring<'_>) -> Result<(), Error> {
    let ifname = wiring.attachment.ifname.as_str();
    let request = links::new_pair(
        (&wiring.host_end.name, wiring.host_end.mac),
        (ifname, wiring.mac),
        wiring.netns.as_raw_fd(),
        wiring.bridge.index,
        wiring.mtu,
    );
    let mut requests = vec![request];
    let Options { hairpin, isolated, .. } = *wiring.options;
    if hairpin || isolated {
        requests.push(links::set_port(&wiring.host_end.name, hairpin, isolated));
    }
    let make = |host: &mut Socket| -> Result<_, Error> {
        let verdicts = host.batch(&requests).map_err(Error::kernel(format!("make {ifname}")))?;
        Ok(verdicts.into_iter().collect::<Result<(), KernelError>>())
    };
    let mut made = make(host)?;
    if made.as_ref().is_err_and(KernelError::is_present) && delete_pair(host, &wiring.host_end.name)? {
        made = make(host)?;
    }
    match made {
        Err(e) if e.is_present() => Err(interface_exists(wiring.attachment)),
        other => other.map_err(Error::kernel(format!("make {ifname} in {}", wiring.attachment.netns))),
    }?;
    // A port of a bridge has no use for IPv6: there would be an address per container, and what a
    // container sends to the addresses that bridges keep for themselves reaches the host by the port
    // alone, router advertisements too (`br_handle_frame`, net/bridge/br_input.c).
    sysctl::set("ipv6", &wiring.host_end.name, "disable_ipv6", "1")
}

/// Deletes the pair by its host's end; `false` when there is none.
pub fn delete_pair(host: &mut Socket, host_veth: &str) -> Result<bool, Error> {
    links::delete(host, host_veth).map_err(Error::kernel(format!("delete {host_veth}")))
}

/// Whether a container's interface is the one that ADD made for these allocations; its name alone does
/// not tell.
pub(crate) fn is_made_for(link: &Link, held: &[Allocation]) -> bool {
    link.is_veth() && held.iter().any(|allocation| Some(allocation.mac) == link.mac)
}

/// The error of an ADD for a name that the namespace has already.
pub fn interface_exists(attachment: &Attachment) -> Error {
    Error::InterfaceExists { ifname: attachment.ifname.to_string(), netns: attachment.netns.clone() }
}

/// Parameters, addresses and routes inside; `inside` is a socket of the container's namespace.
pub fn configure(inside: &mut Socket, wiring: Wiring<'_>) -> Result<(), Error> {
    wiring.netns.run(|| parameters(wiring))??;
    let ifname = wiring.attachment.ifname.as_str();
    let look_up = || Error::kernel(format!("look up {ifname} in {}", wiring.attachment.netns));
    let index = links::by_name(inside, ifname).map_err(look_up())?.map_or(0, |l| l.index);
    // The interface is up before it gets addresses: IPv6 refuses routes through one that is down.
    let mut what = vec!["bring lo up".to_owned(), format!("bring {ifname} up")];
    let mut requests: Vec<Request> = vec![links::set_up(LOOPBACK), links::set_up(index)];
    for Address { address, subnet } in wiring.addresses {
        what.push(format!("give {ifname} the address {address}/{}", subnet.length()));
        requests.push(links::add_address(index, *address, *subnet));
    }
    for Route { to, gateway } in wiring.routes {
        requests.push(links::add_route(index, *to, *gateway, None));
    }
    let mut verdicts = inside.batch(&requests).map_err(Error::kernel(format!("configure {ifname}")))?;
    let routes = verdicts.split_off(what.len());
    for (verdict, what) in verdicts.into_iter().zip(what) {
        verdict.map_err(Error::kernel(format!("{what} in {}", wiring.attachment.netns)))?;
    }
    for (verdict, Route { to, gateway }) in routes.into_iter().zip(wiring.routes) {
        let verdict = match verdict {
            // The container is in another network already, whose default route stays first.
            Err(e) if e.is_present() => {
                inside.request(&links::add_route(index, *to, *gateway, Some(SECOND_METRIC + index)))
            }
            other => other.map_err(Into::into),
        };
        verdict
            .map_err(Error::kernel(format!("route {to} through {gateway} in {}", wiring.attachment.netns)))?;
    }
    Ok(())
}

/// Runs inside the container's namespace, while its interface is still down: a router
/// advertisement must not have a chance, and a duplicate address cannot be.
fn parameters(wiring: Wiring<'_>) -> Result<(), Error> {
    let ifname = wiring.attachment.ifname.as_str();
    sysctl::set("ipv6", ifname, "accept_ra", "0")?;
    sysctl::set("ipv6", ifname, "accept_dad", "0")?;
    if wiring.addresses.iter().any(|a| a.subnet.family() == Family::V6) {
        sysctl::set("ipv6", ifname, "disable_ipv6", "0")?;
        sysctl::set("ipv6", ifname, "keep_addr_on_down", "1")?;
    }
    // A gratuitous ARP when it goes down and up again, or its MAC changes.
    sysctl::set("ipv4", ifname, "arp_notify", "1")
}

/// Returns when the link carries packets. The carrier of a new pair reaches the bridge from
/// a work queue of the kernel's, and until then the bridge drops the container's first
/// packets. Since Linux 6.8 asking for the link is enough: the kernel works off the queue
/// before it answers. Older ones are waited for by event.
pub fn await_carrier(host: &mut Socket, name: &str) -> Result<(), Error> {
    let deadline = Instant::now() + CARRIER_WAIT;
    match events::await_links(name, deadline, || is_running(host, name))? {
        true => Ok(()),
        false => Err(Error::NotUp(name.into())),
    }
}

fn is_running(host: &mut Socket, name: &str) -> Result<bool, Error> {
    let link = links::by_name(host, name).map_err(Error::kernel(format!("look up {name}")))?;
    // Gone: deleted by somebody, and no event will come.
    link.map(|l| l.running).ok_or_else(|| Error::NotUp(name.into()))
}
