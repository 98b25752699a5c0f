//! ADD: claim an address, connect the container, say what was made. Called by `run.rs` and
//! by the daemon's `loden attach`. Order: everything that can be refused without a trace;
//! then the allocation file; then the kernel. What fails undoes all that came before it, in
//! reverse, but for the bridge: another container may already use it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use loden_netlink::Socket;
use loden_proto::allocation::Allocation;
use loden_proto::subnet_env::{LeaseState, SubnetEnv};
use loden_proto::{DEFAULT_BRIDGE, Subnet};

use crate::allocations::{Rest, Store};
use crate::bridge::{self, Bridge, Plan};
use crate::container::{self, Wiring};
use crate::error::Error;
use crate::ifname::IfName;
use crate::ipam::Pool;
use crate::links;
use crate::naming::{self, HostEnd};
use crate::netns::Netns;
use crate::request::{Attachment, Request};
use crate::result::{AddResult, Address, Interface};

/// Connects the container.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let (who, config) = (&request.attachment, &request.config);
    let netns = Netns::open(&who.netns)?;
    if !who.own_netns_allowed && netns.is_own()? {
        return Err(Error::OwnNamespace);
    }
    let env = subnet_env(&config.subnet_file)?;
    let bridge_name = match &config.bridge {
        Some(name) => name.clone(),
        None => bridge_name(&config.subnet_file, &env)?,
    };
    let no_socket = |e| Error::kernel("open a netlink socket")(e);
    let mut inside = netns.run(Socket::route)?.map_err(no_socket)?;
    let mut host = Socket::route().map_err(no_socket)?;
    let store = Store::new(&config.data_dir, &who.network);
    clear_the_name(&mut inside, &store, who)?;
    let plan = Plan { name: &bridge_name, subnets: &env.subnets, networks: &env.networks, mtu: env.mtu };
    let bridge = bridge::ensure(&mut host, plan, |subnet| store.uses(subnet))?;

    let claimed = store.claim(who, &pools(&env))?;
    let host_end = naming::host_end(who);
    let addresses = addresses(&claimed, &env);
    let mac = claimed.first().map_or(host_end.mac, |a| a.mac);
    let wiring = Wiring {
        attachment: who,
        netns: &netns,
        bridge: &bridge,
        host_end: &host_end,
        mac,
        mtu: env.mtu,
        addresses: &addresses,
    };
    if let Err(error) = connect(&mut host, &mut inside, wiring, &bridge_name) {
        // While the pair may be there the address stays taken; DEL frees it then.
        if container::delete_pair(&mut host, &host_end.name).is_ok() {
            let _ = store.release(who, Rest::None);
        }
        return Err(error);
    }
    let interfaces = interfaces(who, &bridge_name, &bridge, &host_end, mac);
    Ok(AddResult { interfaces, addresses, dns: config.dns.clone() })
}

fn connect(host: &mut Socket, inside: &mut Socket, wiring: Wiring<'_>, bridge: &IfName) -> Result<(), Error> {
    container::create_pair(host, wiring)?;
    container::configure(inside, wiring)?;
    container::await_carrier(host, &wiring.host_end.name)?;
    if !wiring.bridge.running {
        // The bridge's first port: its own carrier comes after the port's.
        container::await_carrier(host, bridge.as_str())?;
    }
    Ok(())
}

/// Refuses a name that the container has. But an interface that is still down and has the
/// MAC of this attachment's own allocation was left by an ADD that was killed half way.
fn clear_the_name(inside: &mut Socket, store: &Store, who: &Attachment) -> Result<(), Error> {
    let ifname = who.ifname.as_str();
    let action = || Error::kernel(format!("look up {ifname} in {}", who.netns));
    let Some(link) = links::by_name(inside, ifname).map_err(action())? else { return Ok(()) };
    let remains = link.is_veth() && !link.up && store.find(who)?.iter().any(|a| Some(a.mac) == link.mac);
    if !remains {
        return Err(container::interface_exists(who));
    }
    links::delete(inside, ifname).map_err(Error::kernel(format!("delete {ifname} in {}", who.netns)))?;
    Ok(())
}

fn subnet_env(path: &Path) -> Result<SubnetEnv, Error> {
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::NoSubnet(path.into()),
        _ => Error::file("read", path)(e),
    })?;
    let env = SubnetEnv::parse(&text)
        .map_err(|e| Error::SubnetFile { path: path.into(), reason: e.to_string() })?;
    if env.lease == LeaseState::Lost {
        return Err(Error::LeaseLost(path.into()));
    }
    Ok(env)
}

fn bridge_name(path: &Path, env: &SubnetEnv) -> Result<IfName, Error> {
    let name = env.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE);
    let reason = |e| format!("has LODEN_BRIDGE={name:?}: {e}");
    IfName::new(name).map_err(|e| Error::SubnetFile { path: path.into(), reason: reason(e) })
}

/// The addresses of the subnets that are not Docker's.
fn pools(env: &SubnetEnv) -> Vec<Pool> {
    let pool = |subnet: &Subnet| match env.docker_range(subnet.family()) {
        Some(range) => Pool::new(*subnet).below(range),
        None => Pool::new(*subnet),
    };
    env.subnets.iter().map(pool).collect()
}

/// Each claimed address with the subnet it was claimed in.
fn addresses(claimed: &[Allocation], env: &SubnetEnv) -> Vec<Address> {
    let subnet_of = |a: &Allocation| env.subnets.iter().copied().find(|s| s.contains(a.address));
    claimed.iter().filter_map(|a| Some(Address { address: a.address, subnet: subnet_of(a)? })).collect()
}

fn interfaces(
    who: &Attachment,
    bridge_name: &IfName,
    bridge: &Bridge,
    host_end: &HostEnd,
    mac: loden_proto::Mac,
) -> [Interface; 3] {
    [
        Interface { name: bridge_name.to_string(), mac: bridge.mac, sandbox: None },
        Interface { name: host_end.name.clone(), mac: host_end.mac, sandbox: None },
        Interface { name: who.ifname.to_string(), mac, sandbox: Some(who.netns.clone()) },
    ]
}
