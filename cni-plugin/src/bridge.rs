//! The one bridge of a leased subnet: wanted name, addresses and MTU in, its index and MAC
//! out. Called by `add.rs` for every container, so that the first ADD after a reboot makes
//! the bridge and every later one mends what somebody broke; and by the daemon, which mends
//! it at once.
//!
//! Several ADDs at once may find no bridge. Each does all of it and takes "exists already"
//! for done; the bridge is up only when the rest is, so who finds it up finds it whole.

use loden_netlink::{KernelError, Request, Socket};
use loden_proto::allocation::Port;
use loden_proto::{Family, Mac, Subnet};

use crate::error::Error;
use crate::ifname::IfName;
use crate::links::{self, Held, Link};
use crate::naming;
use crate::sysctl;

/// The bridge as it should be.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Its name.
    pub name: &'a IfName,
    /// The leased subnets; it holds the gateway address of each.
    pub subnets: &'a [Subnet],
    /// The overlay's networks: a gateway address inside is a former lease's.
    pub networks: &'a [Subnet],
    /// Its MTU.
    pub mtu: u32,
}

/// The bridge as it is.
#[derive(Debug, Clone, Copy)]
pub struct Bridge {
    /// Interface index.
    pub index: u32,
    /// Its MAC: ours when we made it.
    pub mac: Mac,
    /// Whether it carried packets when it was looked at; a bridge without ports does not.
    pub running: bool,
    /// Whether anything of it was missing or wrong.
    pub mended: bool,
}

/// How a container's port is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// It is a port of the bridge of this name.
    On(String),
    /// It is on no bridge.
    Detached,
    /// There is no such interface: the container's end is gone too.
    Gone,
}

/// Makes the bridge or mends it. `in_use` says whether a container has an address in a
/// subnet: the gateway of such a subnet stays, beside the new one, until the last is gone.
pub fn ensure(
    socket: &mut Socket,
    plan: Plan<'_>,
    in_use: impl Fn(Subnet) -> Result<bool, Error>,
) -> Result<Bridge, Error> {
    let name = plan.name.as_str();
    let found = links::by_name(socket, name).map_err(Error::kernel(format!("look up {name}")))?;
    let addresses = addresses(socket, plan)?;
    refuse_rivals(socket, plan, found.as_ref(), &addresses)?;
    let made = found.is_none();
    let link = match found {
        Some(link) => link,
        None => create(socket, plan)?,
    };
    if !link.is_bridge() {
        return Err(Error::NotABridge(name.into()));
    }
    let mut changes: Vec<(String, Request)> = Vec::new();
    let held = |subnet: &Subnet| {
        addresses
            .iter()
            .any(|h| (h.index, h.address, h.length) == (link.index, subnet.gateway(), subnet.length()))
    };
    for subnet in plan.subnets.iter().filter(|s| !held(s)) {
        let (gateway, length) = (subnet.gateway(), subnet.length());
        let what = format!("give {name} the gateway address {gateway}/{length}");
        changes.push((what, links::add_address(link.index, gateway, *subnet)));
    }
    for former in addresses.iter().filter(|h| h.index == link.index) {
        let Some(subnet) = former_subnet(plan, former) else { continue };
        if !in_use(subnet)? {
            let what = format!("remove the former gateway address {} from {name}", former.address);
            changes.push((what, links::remove_address(former)));
        }
    }
    if link.learns_reserved == Some(true) {
        changes.push((format!("keep {name} from learning"), links::set_learn_no_reserved(name)));
    }
    if link.mtu != plan.mtu {
        changes
            .push((format!("set the MTU of {name} to {}", plan.mtu), links::set_mtu(link.index, plan.mtu)));
    }
    if !link.up {
        parameters(plan)?;
        changes.push((format!("bring {name} up"), links::set_up(link.index)));
    }
    let mended = made || !changes.is_empty();
    apply(socket, changes)?;
    let mac = link.mac.unwrap_or_else(|| mac(plan));
    Ok(Bridge { index: link.index, mac, running: link.running, mended })
}

/// Whether there is an interface of this name, a bridge's or a port's.
pub fn exists(socket: &mut Socket, name: &str) -> Result<bool, Error> {
    let link = links::by_name(socket, name).map_err(Error::kernel(format!("look up {name}")))?;
    Ok(link.is_some())
}

/// How a container's port is connected.
pub fn port_state(socket: &mut Socket, port: &str) -> Result<PortState, Error> {
    let look_up = || Error::kernel(format!("look up {port}"));
    let Some(link) = links::by_name(socket, port).map_err(look_up())?.filter(Link::is_veth) else {
        return Ok(PortState::Gone);
    };
    let Some(master) = link.master else { return Ok(PortState::Detached) };
    let bridge = links::by_index(socket, master).map_err(look_up())?;
    // Deleted between the two looks.
    Ok(bridge.map_or(PortState::Detached, |bridge| PortState::On(bridge.name)))
}

/// Makes a container's port one of the bridge again, which had been deleted under it.
pub fn connect(socket: &mut Socket, bridge: &Bridge, port: &str, options: &Port) -> Result<(), Error> {
    let what = || Error::kernel(format!("connect {port} to {}", options.bridge));
    socket.request(&links::set_master(port, bridge.index)).map_err(what())?;
    socket.request(&links::set_port(port, options.hairpin, options.isolated)).map_err(what())
}

/// The bridge's fixed MAC. An explicit one also keeps the kernel from taking the lowest of
/// the ports', which changes as containers come and go.
fn mac(plan: Plan<'_>) -> Mac {
    plan.subnets.first().map_or(Mac::local([0x0a, 0x58, 0, 0, 0, 1]), |s| naming::mac_of(s.gateway()))
}

fn create(socket: &mut Socket, plan: Plan<'_>) -> Result<Link, Error> {
    let name = plan.name.as_str();
    match socket.request(&links::new_bridge(name, mac(plan))) {
        Err(e) if !e.kernel().is_some_and(KernelError::is_present) => {
            return Err(Error::kernel(format!("make the bridge {name}"))(e));
        }
        _ => {}
    }
    let link = links::by_name(socket, name).map_err(Error::kernel(format!("look up {name}")))?;
    // Somebody removed it again at once; the message below then has the kernel's ENODEV.
    Ok(link.unwrap_or(Link { name: name.into(), kind: Some(links::BRIDGE.into()), ..Link::default() }))
}

/// Sets the MTU again after a port with a smaller one has joined.
pub(crate) fn set_mtu(socket: &mut Socket, bridge: &Bridge, plan: Plan<'_>) -> Result<(), Error> {
    let what = format!("set the MTU of {} to {}", plan.name, plan.mtu);
    socket.request(&links::set_mtu(bridge.index, plan.mtu)).map_err(Error::kernel(what))
}

fn addresses(socket: &mut Socket, plan: Plan<'_>) -> Result<Vec<Held>, Error> {
    let mut all = Vec::new();
    for family in Family::ALL {
        if plan.subnets.iter().any(|s| s.family() == family) {
            all.extend(
                links::addresses(socket, family).map_err(Error::kernel("list the addresses of this host"))?,
            );
        }
    }
    Ok(all)
}

/// Two interfaces with the gateway's address would take turns answering for it.
fn refuse_rivals(
    socket: &mut Socket,
    plan: Plan<'_>,
    bridge: Option<&Link>,
    addresses: &[Held],
) -> Result<(), Error> {
    let own = bridge.map(|b| b.index);
    let gateway = |h: &Held| plan.subnets.iter().any(|s| s.gateway() == h.address);
    let Some(rival) = addresses.iter().find(|h| Some(h.index) != own && gateway(h)) else { return Ok(()) };
    let holder = links::by_index(socket, rival.index)
        .map_err(Error::kernel("look up the interface that holds the gateway address"))?;
    match holder {
        // Another ADD has just made it, between our two looks.
        Some(link) if link.name == plan.name.as_str() => Ok(()),
        Some(link) => Err(Error::GatewayHeld {
            address: rival.address,
            holder: link.name,
            bridge: plan.name.to_string(),
        }),
        None => Ok(()),
    }
}

/// The subnet of an address that this plugin gave the bridge for an earlier lease: marked as
/// ours, or (kernels before 5.18 keep no mark) shaped like it.
fn former_subnet(plan: Plan<'_>, held: &Held) -> Option<Subnet> {
    let subnet = Subnet::containing(held.address, held.length).ok()?;
    let shaped = plan.networks.iter().any(|n| n.contains_subnet(&subnet))
        && plan.subnets.iter().any(|s| (s.family(), s.length()) == (subnet.family(), subnet.length()));
    let former = subnet.gateway() == held.address && !plan.subnets.contains(&subnet) && (held.ours || shaped);
    former.then_some(subnet)
}

/// Forwarding is switched on for this interface alone, so that the host does not become a
/// router for everything. IPv6 has no such switch before Linux 6.17 (`force_forwarding`);
/// there the daemon turns on the global one, after it has made the underlay keep its router
/// advertisements.
fn parameters(plan: Plan<'_>) -> Result<(), Error> {
    let name = plan.name.as_str();
    sysctl::set("ipv6", name, "accept_ra", "0")?;
    for subnet in plan.subnets {
        match subnet.family() {
            Family::V4 => sysctl::set("ipv4", name, "forwarding", "1")?,
            Family::V6 => {
                sysctl::set("ipv6", name, "disable_ipv6", "0")?;
                sysctl::set("ipv6", name, "forwarding", "1")?;
                sysctl::set("ipv6", name, "force_forwarding", "1")?;
            }
        }
    }
    Ok(())
}

fn apply(socket: &mut Socket, changes: Vec<(String, Request)>) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let (what, requests): (Vec<String>, Vec<Request>) = changes.into_iter().unzip();
    let verdicts = socket.batch(&requests).map_err(Error::kernel("set up the bridge"))?;
    for (verdict, what) in verdicts.into_iter().zip(what) {
        match verdict {
            Err(e) if e.is_present() => {}
            // An address that another ADD has removed meanwhile.
            Err(e) if what.starts_with("remove") && e.is_absent() => {}
            other => other.map_err(Error::kernel(what))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(address: &str, length: u8, ours: bool) -> Held {
        Held { index: 1, address: address.parse().expect("address"), length, ours }
    }

    #[test]
    fn only_gateways_of_former_leases_are_taken_away() {
        let name = IfName::new("loden0").expect("valid");
        let subnets = ["10.5.7.0/24".parse().expect("subnet")];
        let networks = ["10.5.0.0/16".parse().expect("subnet")];
        let plan = Plan { name: &name, subnets: &subnets, networks: &networks, mtu: 1450 };
        let former = |h: Held| former_subnet(plan, &h).map(|s| s.to_string());
        assert_eq!(former(held("10.5.9.1", 24, false)), Some("10.5.9.0/24".into()));
        assert_eq!(former(held("10.6.9.1", 24, true)), Some("10.6.9.0/24".into()));
        for (address, length, ours) in [
            ("10.5.7.1", 24, true),
            ("10.5.9.7", 24, false),
            ("10.5.9.1", 25, false),
            ("10.6.9.1", 24, false),
            ("192.168.1.1", 24, false),
        ] {
            assert_eq!(former(held(address, length, ours)), None, "{address}/{length}");
        }
    }
}
