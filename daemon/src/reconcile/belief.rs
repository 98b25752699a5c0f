//! What is believed of the kernel, against what its notices say.

use loden_core::agenda::Look;
use loden_core::observed::{Link, Observed};
use loden_proto::{ROUTE_PROTOCOL, Subnet};

use crate::kernel::Notice;

/// Whether a link is a port of a bridge, which neither carries the overlay nor is ours to mend here.
fn is_port(observed: &Observed, link: &Link) -> bool {
    link.vxlan.is_none() && observed.links.get(&link.controller).is_some_and(|controller| controller.bridge)
}

/// Takes a notice into the belief, or tells how much of the belief it shows to be wrong. Our own
/// writes come back as notices too, and contradict nothing. `networks` are the overlay's, with the
/// length of a lease, `underlay` the index of the interface that carries it.
pub(super) fn absorb(
    observed: &mut Observed,
    notice: Notice,
    networks: &[(Subnet, u8)],
    underlay: Option<u32>,
) -> Look {
    // When its address or the link goes, so do direct routes, of which the kernel tells nothing
    // (net/ipv4/fib_frontend.c: fib_disable_ip, fib_del_ifaddr).
    let of_link = |index| if underlay == Some(index) { Look::Full } else { Look::Base };
    let ours = |subnet: &Subnet| networks.iter().any(|(network, _)| network.contains_subnet(subnet));
    match notice {
        Notice::Link(link) => match observed.links.insert(link.index, link.clone()) {
            Some(before) if before == link => Look::Changes,
            // A container's: it may go up and down as often as the container likes.
            Some(before) if is_port(observed, &before) && is_port(observed, &link) => Look::Changes,
            // Down and up flushes routes and neighbours; a new device has none.
            _ if link.vxlan.is_some() => Look::Full,
            _ => of_link(link.index),
        },
        Notice::LinkGone(index) => match observed.links.remove(&index) {
            Some(link) if link.vxlan.is_some() => Look::Full,
            Some(link) => {
                observed.addresses.remove(&index);
                if is_port(observed, &link) { Look::Changes } else { of_link(index) }
            }
            None => Look::Changes,
        },
        Notice::Address(index, address) => {
            let all = observed.addresses.entry(index).or_default();
            let known = all.iter().position(|a| (a.address, a.length) == (address.address, address.length));
            let news = match known {
                Some(at) => std::mem::replace(&mut all[at], address) != address,
                None => {
                    all.push(address);
                    true
                }
            };
            // Every container's port has a link-local one.
            if news && !address.link_local() { of_link(index) } else { Look::Changes }
        }
        Notice::AddressGone(index, address) => {
            let all = observed.addresses.entry(index).or_default();
            let before = all.len();
            all.retain(|a| (a.address, a.length) != (address.address, address.length));
            if all.len() < before && !address.link_local() { of_link(index) } else { Look::Changes }
        }
        Notice::Route(route) => {
            let known = observed.routes.contains(&route);
            if known || !ours(&route.subnet) { Look::Changes } else { Look::Full }
        }
        Notice::RouteGone(route) => {
            let known = observed.routes.contains(&route);
            if known { Look::Full } else { Look::Changes }
        }
        Notice::DefaultRoute => Look::Full,
        Notice::Neighbour(device, address, mac) => {
            let known = observed.neighbours.get(&(device, address)) == Some(&mac);
            if known || !is_vxlan(observed, device) { Look::Changes } else { Look::Full }
        }
        Notice::NeighbourGone(device, address) => {
            if observed.neighbours.contains_key(&(device, address)) {
                Look::Full
            } else {
                Look::Changes
            }
        }
        Notice::Fdb(device, mac, address) => {
            let known = observed.fdb.contains(&(device, mac, address));
            if known || !is_vxlan(observed, device) { Look::Changes } else { Look::Full }
        }
        Notice::FdbGone(device, mac, address) => {
            let known = observed.fdb.contains(&(device, mac, address));
            if known { Look::Full } else { Look::Changes }
        }
        Notice::Nexthop(id, hop) => match observed.nexthops.get(&id) {
            Some(known) if *known == hop => Look::Changes,
            Some(known) if known.protocol == ROUTE_PROTOCOL => Look::Full,
            _ if is_vxlan(observed, hop.device) => Look::Full,
            _ => Look::Changes,
        },
        Notice::NexthopGone(id) => {
            if observed.nexthops.contains_key(&id) {
                Look::Full
            } else {
                Look::Changes
            }
        }
        // A base pass reads rules and settings anew.
        Notice::Rules | Notice::Setting => Look::Base,
        // Another task's business.
        Notice::DockerRules | Notice::PortFilter | Notice::PortElements => Look::Changes,
        Notice::Overrun => Look::Full,
    }
}

fn is_vxlan(observed: &Observed, index: u32) -> bool {
    observed.links.get(&index).is_some_and(|l| l.vxlan.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use loden_core::observed::{Link, Route, Via};
    use loden_proto::Family;

    const NETWORK: &[(Subnet, u8)] = &[];
    const UNDERLAY: u32 = 2;

    fn device() -> Observed {
        let vxlan = loden_core::observed::VxlanLink {
            vni: 1,
            port: 8472,
            local: None,
            lower: 0,
            learning: false,
            gbp: false,
            group: false,
            external: false,
            family: Family::V4,
        };
        let link = Link {
            index: 4,
            name: "loden.1".into(),
            mac: None,
            mtu: 1450,
            up: true,
            loopback: false,
            bridge: false,
            controller: 0,
            other_names: Vec::new(),
            vxlan: Some(vxlan),
        };
        Observed { links: [(4, link)].into(), ..Observed::default() }
    }

    #[test]
    fn an_echo_of_our_own_write_asks_for_nothing() {
        let mut observed = device();
        let (ip, mac) = ("10.5.7.0".parse().expect("ip"), "02:00:00:00:00:07".parse().expect("mac"));
        observed.neighbours.insert((4, ip), mac);
        assert_eq!(
            absorb(&mut observed, Notice::Neighbour(4, ip, mac), NETWORK, Some(UNDERLAY)),
            Look::Changes
        );
        let link = observed.links[&4].clone();
        assert_eq!(absorb(&mut observed, Notice::Link(link), NETWORK, Some(UNDERLAY)), Look::Changes);
    }

    #[test]
    fn what_contradicts_the_belief_asks_for_a_full_look() {
        let mut observed = device();
        let (ip, mac) = ("10.5.7.0".parse().expect("ip"), "02:00:00:00:00:07".parse().expect("mac"));
        observed.neighbours.insert((4, ip), mac);
        let route = Route {
            subnet: "10.5.7.0/24".parse().expect("subnet"),
            via: Via::Gateway { device: 4, gateway: ip, onlink: true },
            protocol: 177,
            metric: 0,
        };
        observed.routes.insert(route.clone());
        let mut down = observed.links[&4].clone();
        down.up = false;
        for notice in
            [Notice::NeighbourGone(4, ip), Notice::RouteGone(route), Notice::Link(down), Notice::Overrun]
        {
            assert_eq!(absorb(&mut observed.clone(), notice, NETWORK, Some(UNDERLAY)), Look::Full);
        }
    }

    #[test]
    fn neighbours_of_other_devices_are_nobodys_business() {
        let mut observed = device();
        let notice =
            Notice::Neighbour(9, "10.5.7.3".parse().expect("ip"), "02:00:00:00:00:07".parse().expect("mac"));
        assert_eq!(absorb(&mut observed, notice, NETWORK, Some(UNDERLAY)), Look::Changes);
    }
}
