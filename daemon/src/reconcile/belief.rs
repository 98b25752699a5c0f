//! What is believed of the kernel, against what its notices say.

use loden_core::observed::{Link, Observed};
use loden_proto::Subnet;

use crate::kernel::Notice;

/// What a pass has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// What inputs changed.
    Changes,
    /// Filters, devices, addresses, forwarding too.
    Base,
    /// Read the kernel anew and compare everything.
    Full,
}

/// Whether a link is a port of a bridge, which neither carries the overlay nor is ours to mend here.
fn is_port(observed: &Observed, link: &Link) -> bool {
    link.vxlan.is_none() && observed.links.get(&link.controller).is_some_and(|controller| controller.bridge)
}

/// Takes a notice into the belief, or tells how much of the belief it shows to be wrong. Our own
/// writes come back as notices too, and contradict nothing. `networks` are the overlay's, with the
/// length of a lease.
pub(super) fn absorb(observed: &mut Observed, notice: Notice, networks: &[(Subnet, u8)]) -> Need {
    let ours = |subnet: &Subnet| networks.iter().any(|(network, _)| network.contains_subnet(subnet));
    match notice {
        Notice::Link(link) => match observed.links.insert(link.index, link.clone()) {
            Some(before) if before == link => Need::Changes,
            // A container's: it may go up and down as often as the container likes.
            Some(before) if is_port(observed, &before) && is_port(observed, &link) => Need::Changes,
            // Down and up flushes routes and neighbours; a new device has none.
            _ if link.vxlan.is_some() => Need::Full,
            _ => Need::Base,
        },
        Notice::LinkGone(index) => match observed.links.remove(&index) {
            Some(link) if link.vxlan.is_some() => Need::Full,
            Some(link) => {
                observed.addresses.remove(&index);
                if is_port(observed, &link) { Need::Changes } else { Need::Base }
            }
            None => Need::Changes,
        },
        Notice::Address(index, address) => {
            let all = observed.addresses.entry(index).or_default();
            let known = all.iter().position(|a| (a.address, a.length) == (address.address, address.length));
            match known {
                Some(at) if all[at] == address => Need::Changes,
                Some(at) => {
                    all[at] = address;
                    Need::Base
                }
                None => {
                    all.push(address);
                    Need::Base
                }
            }
        }
        Notice::AddressGone(index, address) => {
            let all = observed.addresses.entry(index).or_default();
            let before = all.len();
            all.retain(|a| (a.address, a.length) != (address.address, address.length));
            if all.len() < before { Need::Base } else { Need::Changes }
        }
        Notice::Route(route) => {
            let known = observed.routes.contains(&route);
            if known || !ours(&route.subnet) { Need::Changes } else { Need::Full }
        }
        Notice::RouteGone(route) => {
            let known = observed.routes.contains(&route);
            if known { Need::Full } else { Need::Changes }
        }
        Notice::DefaultRoute => Need::Full,
        Notice::Neighbour(device, address, mac) => {
            let known = observed.neighbours.get(&(device, address)) == Some(&mac);
            if known || !is_vxlan(observed, device) { Need::Changes } else { Need::Full }
        }
        Notice::NeighbourGone(device, address) => {
            if observed.neighbours.contains_key(&(device, address)) {
                Need::Full
            } else {
                Need::Changes
            }
        }
        Notice::Fdb(device, mac, address) => {
            let known = observed.fdb.contains(&(device, mac, address));
            if known || !is_vxlan(observed, device) { Need::Changes } else { Need::Full }
        }
        Notice::FdbGone(device, mac, address) => {
            let known = observed.fdb.contains(&(device, mac, address));
            if known { Need::Full } else { Need::Changes }
        }
        Notice::Nexthop(id, hop) => {
            let relevant = observed.nexthops.get(&id) != Some(&hop) && is_vxlan(observed, hop.device);
            if relevant { Need::Full } else { Need::Changes }
        }
        Notice::NexthopGone(id) => {
            if observed.nexthops.contains_key(&id) {
                Need::Full
            } else {
                Need::Changes
            }
        }
        // A base pass reads rules and settings anew.
        Notice::Rules | Notice::Setting => Need::Base,
        // Another task's business.
        Notice::DockerRules | Notice::PortFilter | Notice::PortElements => Need::Changes,
        Notice::Overrun => Need::Full,
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
        assert_eq!(absorb(&mut observed, Notice::Neighbour(4, ip, mac), NETWORK), Need::Changes);
        let link = observed.links[&4].clone();
        assert_eq!(absorb(&mut observed, Notice::Link(link), NETWORK), Need::Changes);
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
            assert_eq!(absorb(&mut observed.clone(), notice, NETWORK), Need::Full);
        }
    }

    #[test]
    fn neighbours_of_other_devices_are_nobodys_business() {
        let mut observed = device();
        let notice =
            Notice::Neighbour(9, "10.5.7.3".parse().expect("ip"), "02:00:00:00:00:07".parse().expect("mac"));
        assert_eq!(absorb(&mut observed, notice, NETWORK), Need::Changes);
    }
}
