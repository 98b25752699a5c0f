//! ADD: claim an address, connect the container, say what was made. Called by `run.rs` and
//! by the daemon's `loden attach`. Order: everything that can be refused without a trace;
//! then the allocation file; then the kernel. What fails undoes all that came before it, in
//! reverse, but for the bridge: another container may already use it.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;

use loden_netlink::Socket;
use loden_proto::allocation::{Allocation, Port};
use loden_proto::subnet_env::{LeaseState, SubnetEnv};
use loden_proto::{DEFAULT_BRIDGE, Subnet};
use serde_json::{Value, json};

use crate::allocations::{Claim, Rest, Store};
use crate::bridge::{self, Plan};
use crate::container::{self, Wiring};
use crate::error::Error;
use crate::ifname::IfName;
use crate::ipam::{self, Pool};
use crate::links;
use crate::names;
use crate::naming;
use crate::netns::Netns;
use crate::options::{Guard, Options, Routes};
use crate::port_filter;
use crate::request::{Attachment, Request};
use crate::result::{AddResult, Address, Interface, Route};
use crate::wishes::{self, Wishes};

/// A name with two dots is looked up as it stands before the zone is tried (resolv.conf(5)); `pod.namespace` is
/// not, which could be somebody's in the Internet.
const DNS_OPTIONS: [&str; 1] = ["ndots:2"];

/// Connects the container.
pub fn add(request: &Request) -> Result<AddResult, Error> {
    let (who, config) = (&request.attachment, &request.config);
    let netns = Netns::open(&who.netns)?;
    if !who.own_netns_allowed && netns.is_own()? {
        return Err(Error::OwnNamespace);
    }
    let env = subnet_env(&config.subnet_file)?;
    let mtu = config.options.fit(&env)?;
    let pools = pools(&env);
    allow(&request.wishes, &pools, &env)?;
    let bridge_name = match &config.bridge {
        Some(name) => name.clone(),
        None => bridge_name(&config.subnet_file, &env)?,
    };
    let no_socket = |e| Error::kernel("open a netlink socket")(e);
    let mut inside = netns.run(Socket::route)?.map_err(no_socket)?;
    let mut host = Socket::route().map_err(no_socket)?;
    let port = port(bridge_name.as_str(), &config.options, &env);
    let store = Store::new(&config.data_dir, &who.network);
    clear_the_name(&mut inside, &store, who)?;
    let plan = Plan { name: &bridge_name, subnets: &env.subnets, networks: &env.networks, mtu: env.mtu };
    let bridge = bridge::ensure(&mut host, plan, |subnet| store.uses(subnet))?;

    let Wishes { addresses: wanted, mac, name, lasting_name, aliases, published, .. } = &request.wishes;
    let claim = Claim {
        pools: &pools,
        wanted,
        mac: *mac,
        name: name.as_deref(),
        aliases,
        published,
        port: Some(&port),
        state_dir: env.state_dir.as_deref(),
        sticky: lasting_name.as_deref().filter(|_| config.options.sticky),
    };
    let claimed = store.claim(who, claim)?;
    let host_end = naming::host_end(who);
    let addresses = addresses(&claimed.allocations, &env);
    let mac = claimed.allocations.first().map_or(host_end.mac, |a| a.mac);
    let wiring = Wiring {
        attachment: who,
        netns: &netns,
        bridge: &bridge,
        host_end: &host_end,
        mac,
        mtu,
        options: &config.options,
        addresses: &addresses,
        routes: &routes(&addresses, &env, config.options.routes),
    };
    let made = guard(&port, &claimed.allocations, &config.options)
        .and_then(|()| connect(&mut host, &mut inside, wiring, plan))
        .and_then(|()| served(&env, request, &host_end.name));
    if let Err(error) = made {
        // While the pair may be there the address stays taken; DEL frees it then.
        if container::delete_pair(&mut host, &host_end.name).is_ok() {
            let _ = store.release(who, Rest::None);
        }
        return Err(error);
    }
    let interface = |name: &str, mac, mtu| Interface { name: name.into(), mac, mtu, sandbox: None };
    let interfaces = [
        interface(bridge_name.as_str(), bridge.mac, plan.mtu),
        interface(&host_end.name, host_end.mac, mtu),
        Interface { sandbox: Some(who.netns.clone()), ..interface(who.ifname.as_str(), mac, mtu) },
    ];
    let routes = wiring.routes.to_vec();
    Ok(AddResult { interfaces, addresses, routes, dns: dns(&config.dns, &env) })
}

/// Refuses what this host cannot give.
fn allow(wishes: &Wishes, pools: &[Pool], env: &SubnetEnv) -> Result<(), Error> {
    ipam::allow(pools, &wishes.addresses)?;
    let is_gateway = |address: &&IpAddr| env.subnets.iter().any(|s| s.gateway() == **address);
    if let Some(other) = wishes.gateways.iter().find(|address| !is_gateway(address)) {
        let ours: Vec<String> = env.subnets.iter().map(|s| s.gateway().to_string()).collect();
        let ours = ours.join(" and ");
        return Err(Error::EnvironmentValue {
            msg: format!("CNI_ARGS has GATEWAY={other}, but the gateway of this host's subnet is {ours}"),
            details: format!("GATEWAY={other}"),
        });
    }
    match wishes.mac {
        Some(mac) if !wishes::is_free_to_ask(mac, wishes.addresses.first().copied()) => {
            Err(Error::Config(format!(
                "the requested MAC {mac} is of those that go with addresses (0a:58, 0e:58); ask for another, for \
                 example one that begins with 02"
            )))
        }
        _ => Ok(()),
    }
}

/// The port that the host's end will be.
fn port(bridge: &str, options: &Options, env: &SubnetEnv) -> Port {
    let filter = env.port_filter.clone().filter(|_| options.port_filter != Guard::Off);
    Port { bridge: bridge.into(), hairpin: options.hairpin, isolated: options.isolated, filter }
}

fn guard(port: &Port, allocations: &[Allocation], options: &Options) -> Result<(), Error> {
    let Some(table) = &port.filter else { return Ok(()) };
    if !port_filter::guard(table, allocations)? && options.port_filter == Guard::Required {
        return Err(Error::NoPortFilter(table.clone()));
    }
    Ok(())
}

/// Its names resolve everywhere, as far as that can be known here.
fn served(env: &SubnetEnv, request: &Request, host_veth: &str) -> Result<(), Error> {
    let has_name = request.wishes.name.is_some() || !request.wishes.aliases.is_empty();
    match env.dns.as_ref().filter(|_| has_name) {
        Some(dns) => names::wait(&dns.socket, host_veth),
        None => Ok(()),
    }
}

/// `dns` as the configuration and the runtime have it; without any, our own server, if it answers.
fn dns(config: &Value, env: &SubnetEnv) -> Value {
    let given = config.as_object().is_some_and(|dns| !dns.is_empty());
    match env.dns.as_ref().filter(|dns| !given && !dns.addresses.is_empty()) {
        Some(dns) => json!({ "nameservers": dns.addresses, "search": [dns.zone], "options": DNS_OPTIONS }),
        None => config.clone(),
    }
}

fn connect(host: &mut Socket, inside: &mut Socket, wiring: Wiring<'_>, plan: Plan<'_>) -> Result<(), Error> {
    container::create_pair(host, wiring)?;
    if wiring.mtu < plan.mtu {
        // The kernel lowers the bridge's to its ports', unless somebody has changed it once.
        bridge::set_mtu(host, wiring.bridge, plan)?;
    }
    container::configure(inside, wiring)?;
    container::await_carrier(host, &wiring.host_end.name)?;
    if !wiring.bridge.running {
        // The bridge's first port: its own carrier comes after the port's.
        container::await_carrier(host, plan.name.as_str())?;
    }
    Ok(())
}

/// Refuses a name that the container has. But an interface that is still down and has the
/// MAC of this attachment's own allocation was left by an ADD that was killed half way.
fn clear_the_name(inside: &mut Socket, store: &Store, who: &Attachment) -> Result<(), Error> {
    let ifname = who.ifname.as_str();
    let action = || Error::kernel(format!("look up {ifname} in {}", who.netns));
    let Some(link) = links::by_name(inside, ifname).map_err(action())? else { return Ok(()) };
    let remains = !link.up && container::is_made_for(&link, &store.find(who)?);
    if !remains {
        return Err(container::interface_exists(who));
    }
    links::delete(inside, ifname).map_err(Error::kernel(format!("delete {ifname} in {}", who.netns)))?;
    Ok(())
}

/// Reads `subnet.env`; a lost lease is an error.
pub(crate) fn subnet_env(path: &Path) -> Result<SubnetEnv, Error> {
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
pub(crate) fn pools(env: &SubnetEnv) -> Vec<Pool> {
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

/// The routes that the options ask for, by the gateway of each of the addresses.
fn routes(addresses: &[Address], env: &SubnetEnv, routes: Routes) -> Vec<Route> {
    let mut out = Vec::new();
    for subnet in addresses.iter().map(|a| a.subnet) {
        let networks = env.networks.iter().copied().filter(|n| n.family() == subnet.family());
        let to: Vec<Subnet> = match routes {
            Routes::Default => Subnet::containing(subnet.address(), 0).into_iter().collect(),
            // A network that is all ours needs no gateway.
            Routes::Overlay => networks.filter(|n| !subnet.contains_subnet(n)).collect(),
            Routes::None => Vec::new(),
        };
        out.extend(to.into_iter().map(|to| Route { to, gateway: subnet.gateway() }));
    }
    out
}
