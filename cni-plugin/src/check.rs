//! CHECK: is the container's network as ADD left it? Called by `run.rs`. Reads only, and
//! needs no `subnet.env`: a container stays connected while the daemon is away. The truth is
//! `prevResult`, the last result of the chain, so that what later plugins changed on purpose
//! (tuning sets another MAC) is right.

use std::net::IpAddr;

use loden_netlink::Socket;
use loden_proto::{Family, Mac, Subnet};
use serde_json::{Map, Value};

use crate::allocations::Store;
use crate::error::Error;
use crate::json;
use crate::links::{self, Link, Via};
use crate::naming;
use crate::netns::Netns;
use crate::request::{Attachment, Request};

/// Verifies one connection.
pub fn check(request: &Request) -> Result<(), Error> {
    let who = &request.attachment;
    let previous = request.config.prev_result.as_ref();
    let previous =
        Previous::parse(previous.ok_or_else(|| Error::Config("Required prevResult missing".into()))?, who)?;
    let netns = Netns::open(&who.netns)?;
    if !who.own_netns_allowed && netns.is_own()? {
        return Err(Error::OwnNamespace);
    }
    check_allocations(&Store::new(&request.config.data_dir, &who.network), who, &previous)?;
    let no_socket = |e| Error::kernel("open a netlink socket")(e);
    check_host(&mut Socket::route().map_err(no_socket)?, who, &previous)?;
    let mut inside = netns.run(Socket::route)?.map_err(no_socket)?;
    check_container(&mut inside, who, &previous)
}

/// What CHECK needs of `prevResult`.
#[derive(Debug)]
struct Previous {
    /// Names of interfaces outside of the container.
    host: Vec<String>,
    mac: Option<Mac>,
    addresses: Vec<(IpAddr, u8)>,
    /// Default routes, and those through the gateway of one of the addresses.
    routes: Vec<Via>,
}

impl Previous {
    fn parse(result: &Map<String, Value>, who: &Attachment) -> Result<Self, Error> {
        let undecodable = |reason: String| Error::Decode(format!("could not parse prevResult: {reason}"));
        let interfaces = json::objects(result, "interfaces").map_err(undecodable)?;
        let (mut host, mut container) = (Vec::new(), None);
        for (i, interface) in interfaces.iter().enumerate() {
            let name = json::string(interface, "name").map_err(undecodable)?.unwrap_or_default();
            let sandbox = json::string(interface, "sandbox").map_err(undecodable)?.unwrap_or_default();
            if sandbox.is_empty() {
                host.push(name.to_owned());
            } else if name == who.ifname.as_str() && sandbox == who.netns {
                container =
                    Some((i, json::string(interface, "mac").map_err(undecodable)?.unwrap_or_default()));
            }
        }
        let (index, mac) = container.ok_or_else(|| {
            Error::Check(format!("prevResult has no interface {} with the sandbox {}", who.ifname, who.netns))
        })?;
        let mac = Some(mac).filter(|m| !m.is_empty()).map(|m| m.parse::<Mac>()).transpose();
        let (mut addresses, mut gateways) = (Vec::new(), Vec::new());
        let address = |of, name| -> Result<Option<IpAddr>, Error> {
            Ok(json::string(of, name).map_err(undecodable)?.and_then(|text| text.parse().ok()))
        };
        for ip in json::objects(result, "ips").map_err(undecodable)? {
            let ours = json::member(ip, "interface").is_none_or(|i| i.as_u64() == Some(index as u64));
            let text = json::string(ip, "address").map_err(undecodable)?.unwrap_or_default();
            let parsed = text.split_once('/').and_then(|(a, l)| Some((a.parse().ok()?, l.parse().ok()?)));
            if ours {
                gateways.extend(address(ip, "gateway")?);
                addresses.push(parsed.ok_or_else(|| undecodable(format!("ips has the address {text:?}")))?);
            }
        }
        let mut routes = Vec::new();
        for route in json::objects(result, "routes").map_err(undecodable)? {
            let dst = json::string(route, "dst").map_err(undecodable)?.unwrap_or_default();
            let to = dst
                .split_once('/')
                .and_then(|(a, l)| Subnet::containing(a.parse().ok()?, l.parse().ok()?).ok());
            if let (Some(to), Some(gateway)) = (to, address(route, "gw")?)
                && (to.length() == 0 || gateways.contains(&gateway))
            {
                routes.push(Via { to, gateway });
            }
        }
        Ok(Self { host, mac: mac.map_err(|e| undecodable(e.to_string()))?, addresses, routes })
    }
}

fn check_allocations(store: &Store, who: &Attachment, previous: &Previous) -> Result<(), Error> {
    let held = store.find(who)?;
    if held.is_empty() {
        return Err(Error::Check(format!(
            "no address is allocated to {} {} in the network {}",
            who.container_id, who.ifname, who.network
        )));
    }
    match held.iter().find(|h| !previous.addresses.iter().any(|(a, _)| *a == h.address)) {
        Some(other) => Err(Error::Check(format!(
            "{} is allocated to {} {}, but is not in prevResult",
            other.address, who.container_id, who.ifname
        ))),
        None => Ok(()),
    }
}

fn check_host(host: &mut Socket, who: &Attachment, previous: &Previous) -> Result<(), Error> {
    let name = naming::host_end(who).name;
    let link = find(host, &name)?.ok_or_else(|| Error::Check(format!("the host's end {name} is gone")))?;
    if !link.is_veth() {
        return Err(Error::Check(format!("{name} is no veth")));
    }
    if !link.up {
        return Err(Error::Check(format!("the host's end {name} is down")));
    }
    let master = link.master.ok_or_else(|| Error::Check(format!("{name} is on no bridge")))?;
    let look_up = Error::kernel(format!("look up the bridge of {name}"));
    // Its MAC is not compared: managers of the host may set it, and containers ask by ARP.
    let bridge = links::by_index(host, master).map_err(look_up)?;
    let bridge = bridge.ok_or_else(|| Error::Check(format!("the bridge of {name} is gone")))?;
    if !bridge.is_bridge() || !previous.host.contains(&bridge.name) {
        return Err(Error::Check(format!("{name} is on {}, which is not in prevResult", bridge.name)));
    }
    if !bridge.up {
        return Err(Error::Check(format!("the bridge {} is down", bridge.name)));
    }
    Ok(())
}

fn check_container(inside: &mut Socket, who: &Attachment, previous: &Previous) -> Result<(), Error> {
    let ifname = who.ifname.as_str();
    let link =
        find(inside, ifname)?.ok_or_else(|| Error::Check(format!("{ifname} is gone from {}", who.netns)))?;
    if !link.is_veth() {
        return Err(Error::Check(format!("{ifname} in {} is no veth", who.netns)));
    }
    if !link.up {
        return Err(Error::Check(format!("{ifname} in {} is down", who.netns)));
    }
    if let (Some(wanted), Some(found)) = (previous.mac, link.mac)
        && wanted != found
    {
        return Err(Error::Check(format!(
            "{ifname} in {} has the MAC {found}, but ADD gave it {wanted}",
            who.netns
        )));
    }
    for family in Family::ALL {
        check_addresses(inside, who, previous, &link, family)?;
    }
    Ok(())
}

fn check_addresses(
    inside: &mut Socket,
    who: &Attachment,
    previous: &Previous,
    link: &Link,
    family: Family,
) -> Result<(), Error> {
    let (ifname, netns) = (&who.ifname, &who.netns);
    let mut wanted = previous.addresses.iter().filter(|(a, _)| Family::of(*a) == family).peekable();
    if wanted.peek().is_some() {
        let held = links::addresses(inside, family)
            .map_err(Error::kernel(format!("list the addresses of {netns}")))?;
        let is_held = |(a, l): &(IpAddr, u8)| {
            held.iter().any(|h| (h.index, h.address, h.length) == (link.index, *a, *l))
        };
        if let Some((address, length)) = wanted.find(|w| !is_held(w)) {
            return Err(Error::Check(format!("{ifname} in {netns} has lost its address {address}/{length}")));
        }
    }
    let mut wanted = previous.routes.iter().filter(|r| r.to.family() == family).peekable();
    if wanted.peek().is_some() {
        let found = links::routes(inside, link.index, family)
            .map_err(Error::kernel(format!("list the routes of {netns}")))?;
        if let Some(Via { to, gateway }) = wanted.find(|r| !found.contains(r)) {
            let what = if to.length() == 0 { "default route".into() } else { format!("route to {to}") };
            return Err(Error::Check(format!("{netns} has lost its {what} through {gateway} on {ifname}")));
        }
    }
    Ok(())
}

fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    links::by_name(socket, name).map_err(Error::kernel(format!("look up {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ifname::IfName;
    use serde_json::json;

    fn parse(result: &Value) -> Result<Previous, Error> {
        let who = Attachment {
            network: "n".into(),
            container_id: "c".into(),
            ifname: IfName::new("eth0").expect("valid"),
            netns: "/run/netns/x".into(),
            own_netns_allowed: false,
        };
        Previous::parse(result.as_object().expect("object"), &who)
    }

    #[test]
    fn what_other_plugins_added_is_left_to_them() {
        let previous = parse(&json!({
            "interfaces": [
                {"name": "loden0"}, {"name": "veth1"},
                {"name": "eth0", "mac": "0A:58:0a:05:07:02", "sandbox": "/run/netns/x"},
                {"name": "eth0", "sandbox": "/run/netns/other"},
            ],
            "ips": [
                {"address": "10.5.7.2/24", "gateway": "10.5.7.1", "interface": 2},
                {"address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 3},
            ],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "10.5.7.1"}, {"dst": "10.5.0.0/16", "gw": "10.5.7.1"},
                {"dst": "192.0.2.0/24", "gw": "10.5.7.9"}, {"dst": "198.51.100.0/24", "gw": "192.0.2.1"},
            ],
        }))
        .expect("valid");
        assert_eq!(previous.host, ["loden0", "veth1"]);
        assert_eq!(previous.mac, Some(Mac([0x0a, 0x58, 10, 5, 7, 2])));
        assert_eq!(previous.addresses, [("10.5.7.2".parse().expect("ip"), 24)]);
        let via =
            |to: &str| Via { to: to.parse().expect("subnet"), gateway: "10.5.7.1".parse().expect("ip") };
        assert_eq!(previous.routes, [via("0.0.0.0/0"), via("10.5.0.0/16")]);
    }

    #[test]
    fn a_result_without_our_interface_is_an_error() {
        assert_eq!(parse(&json!({})).expect_err("no interface").code(), 110);
        assert_eq!(parse(&json!({"interfaces": 7})).expect_err("a number").code(), 6);
        let bad = json!({
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.5.7.2"}],
        });
        assert_eq!(parse(&bad).expect_err("no length").code(), 6);
    }
}
