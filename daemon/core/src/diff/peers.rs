//! The second stage: neighbours, FDB entries, nexthops, routes and peer sets, for the peers that
//! may have changed or for all.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use loden_proto::{Family, Mac, ROUTE_PROTOCOL, Subnet};

use super::{Conflict, Operation, Scope};
use crate::filters::{Member, PeerSet, members_of};
use crate::fnv::Fnv;
use crate::observed::{Nexthop, Observed, Route, Via};
use crate::ownership;
use crate::peers::Peer;
use crate::plan::{Desired, PeerObjects};
use crate::tracked::{Changed, Tracked};

/// What the peer sets should hold.
pub fn admitted(peers: &Tracked<Subnet, Peer>, sets: &[PeerSet]) -> BTreeSet<Member> {
    peers.values().flat_map(|peer| members_of(peer, sets)).collect()
}

/// Operations for the peers in scope. Expects the devices to be in place; a family whose device
/// is missing is left alone.
pub fn peers(desired: &Desired, observed: &Observed, scope: Scope<'_>) -> (Vec<Operation>, Vec<Conflict>) {
    let mut differ = Differ::new(desired, observed);
    match scope {
        Scope::All => {
            // Both are in order of subnets, and a subnet may be in either alone.
            let (mut peers, mut routes) =
                (desired.peers.iter().peekable(), observed.routes.iter().peekable());
            let mut present = Vec::new();
            loop {
                let next =
                    [peers.peek().map(|(subnet, _)| **subnet), routes.peek().map(|route| route.subnet)];
                let Some(subnet) = next.into_iter().flatten().min() else { break };
                present.clear();
                present.extend(std::iter::from_fn(|| routes.next_if(|route| route.subnet == subnet)));
                let peer = peers.next_if(|(at, _)| **at == subnet);
                differ.peer(&subnet, peer.map(|(_, peer)| peer), &present);
            }
            differ.strays();
        }
        Scope::Since(former) => {
            let changes: Vec<Changed<'_, Subnet, Peer>> = desired.peers.changes_since(former).collect();
            for (subnet, _, new) in &changes {
                let present: Vec<&Route> = observed.routes_to(*subnet).collect();
                differ.peer(subnet, *new, &present);
            }
            for (_, old, _) in &changes {
                differ.former(*old);
            }
            differ.admit(&changes);
        }
    }
    differ.finish()
}

/// Operations are gathered by object and put in order at the end.
struct Differ<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    devices: BTreeMap<Family, u32>,
    /// FDB entries and neighbours that looked-at peers need.
    wanted_fdb: BTreeSet<(u32, Mac)>,
    wanted_neighbours: BTreeSet<(u32, IpAddr)>,
    wanted_nexthops: BTreeSet<u32>,
    before_routes: Vec<Operation>,
    nexthops: Vec<Operation>,
    routes: Vec<Operation>,
    /// Of each subnet a route before the nexthop object that it uses.
    removals: Vec<Operation>,
    removed_nexthops: HashSet<u32>,
    sets: Vec<Operation>,
    conflicts: Vec<Conflict>,
}

impl<'a> Differ<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let devices = desired
            .base
            .devices
            .iter()
            .filter_map(|d| {
                observed.vxlan(d.vni, d.port, d.family).filter(|l| l.up).map(|l| (d.family, l.index))
            })
            .collect();
        Self {
            desired,
            observed,
            devices,
            wanted_fdb: BTreeSet::new(),
            wanted_neighbours: BTreeSet::new(),
            wanted_nexthops: BTreeSet::new(),
            before_routes: Vec::new(),
            nexthops: Vec::new(),
            routes: Vec::new(),
            removals: Vec::new(),
            removed_nexthops: HashSet::new(),
            sets: Vec::new(),
            conflicts: Vec::new(),
        }
    }

    /// Brings the objects of one subnet in place, or away when there is no peer. Its routes are `present`.
    fn peer(&mut self, subnet: &Subnet, peer: Option<&Peer>, present: &[&Route]) {
        let target = match peer.map(PeerObjects::of) {
            None => None,
            Some(PeerObjects::Direct { gateway }) => Some((self.desired.base.underlay, gateway, false)),
            Some(PeerObjects::Vxlan { gateway, mac, endpoint }) => {
                let Some(device) = self.devices.get(&subnet.family()).copied() else { return };
                self.fdb(device, mac, endpoint);
                self.neighbour(device, gateway, mac);
                Some((device, gateway, true))
            }
        };
        self.route(subnet, target, present);
    }

    fn fdb(&mut self, device: u32, mac: Mac, endpoint: IpAddr) {
        self.wanted_fdb.insert((device, mac));
        if !self.observed.fdb.contains(&(device, mac, endpoint)) {
            // Which moves the entry.
            self.before_routes.push(Operation::SetFdb { device, mac, endpoint });
            return;
        }
        // What is beside it is an addition of somebody's.
        for other in self.observed.endpoints(device, mac).filter(|other| *other != endpoint) {
            self.removals.push(Operation::DeleteFdb { device, mac, endpoint: other });
        }
    }

    fn neighbour(&mut self, device: u32, address: IpAddr, mac: Mac) {
        self.wanted_neighbours.insert((device, address));
        if self.observed.neighbours.get(&(device, address)) != Some(&mac) {
            self.before_routes.push(Operation::SetNeighbour { device, address, mac });
        }
    }

    fn route(&mut self, subnet: &Subnet, target: Option<(u32, IpAddr, bool)>, present: &[&Route]) {
        let (desired, observed) = (self.desired, self.observed);
        let metric = default_metric(subnet.family());
        if let ([only], Some((device, gateway, _))) = (present, target)
            && only.protocol == ROUTE_PROTOCOL
            && only.metric == metric
            && observed.resolve(only.via) == Some((device, gateway))
        {
            // As it nearly always is.
            if let Via::Nexthop(id) = only.via {
                self.wanted_nexthops.insert(id);
            }
            return;
        }
        let (ours, foreign): (Vec<&Route>, Vec<&Route>) =
            present.iter().partition(|r| ownership::route(r, desired, observed));
        let right = target.and_then(|(device, gateway, _)| {
            let leads = |r: &&Route| observed.resolve(r.via) == Some((device, gateway)) && r.metric == metric;
            ours.iter().copied().find(leads).or_else(|| foreign.iter().copied().find(leads))
        });
        if let Some(Via::Nexthop(id)) = right.map(|r| r.via) {
            self.wanted_nexthops.insert(id);
        }
        // flannel's route by the underlay, where no device tells whose it is, is made ours while it is
        // known to be a peer's: it could not be told from others' once the peer has left.
        if let Some(route) = right.filter(|r| r.protocol == ownership::BOOT && foreign.contains(r)) {
            let route = Route { protocol: ROUTE_PROTOCOL, ..route.clone() };
            self.routes.push(Operation::SetRoute { route, replace: true });
        }
        // The kernel looks an IPv6 gateway up even if it is `onlink`, and refuses one that another device
        // leads to (net/ipv6/route.c: ip6_validate_gw). Ours lies inside the very subnet.
        let goes_first = |route: &Route| {
            subnet.family() == Family::V6
                && right.is_none()
                && target.is_some_and(|(device, _, onlink)| {
                    onlink && observed.resolve(route.via).is_none_or(|(other, _)| other != device)
                })
        };
        let replaced = ours
            .iter()
            .copied()
            .find(|r| target.is_some() && right.is_none() && r.metric == metric && !goes_first(r));
        if let (Some((device, gateway, onlink)), None) = (target, right) {
            if let Some(other) = foreign.iter().find(|r| r.metric == metric) {
                self.conflicts.push(Conflict(format!(
                    "a route to {subnet} of protocol {} is in the way of the peer's; it is not ours to change (ip route show {subnet})",
                    other.protocol
                )));
            } else {
                let via = self.via(subnet, device, gateway, onlink);
                let replace = replaced.is_some();
                let route = Route { subnet: *subnet, via, protocol: ROUTE_PROTOCOL, metric };
                self.routes.push(Operation::SetRoute { route, replace });
            }
        }
        for route in &ours {
            if right != Some(*route) && replaced != Some(*route) {
                let list = if goes_first(route) { &mut self.before_routes } else { &mut self.removals };
                list.push(Operation::DeleteRoute((*route).clone()));
            }
        }
        // A nexthop object that no route of this subnet uses any more goes after the route.
        for route in ours {
            if let Via::Nexthop(id) = route.via
                && right != Some(route)
                && !self.wanted_nexthops.contains(&id)
                && observed.nexthops.get(&id).is_some_and(|n| ownership::nexthop(n, desired, observed))
            {
                self.remove_nexthop(id);
            }
        }
    }

    fn remove_nexthop(&mut self, id: u32) {
        if self.removed_nexthops.insert(id) {
            self.removals.push(Operation::DeleteNexthop(id));
        }
    }

    /// By nexthop object where the kernel has them; IPv6 routes cost nothing by gateway, and an
    /// IPv6 gateway in a nexthop object is no gain.
    fn via(&mut self, subnet: &Subnet, device: u32, gateway: IpAddr, onlink: bool) -> Via {
        if !onlink || !self.observed.has_nexthops || subnet.family() == Family::V6 {
            return Via::Gateway { device, gateway, onlink };
        }
        let wanted = Nexthop { device, gateway: Some(gateway), onlink, protocol: ROUTE_PROTOCOL };
        for id in nexthop_ids(subnet) {
            match self.observed.nexthops.get(&id) {
                Some(present) if *present == wanted => {
                    self.wanted_nexthops.insert(id);
                    return Via::Nexthop(id);
                }
                None if self.wanted_nexthops.insert(id) => {
                    self.nexthops.push(Operation::AddNexthop(id, wanted));
                    return Via::Nexthop(id);
                }
                _ => {}
            }
        }
        Via::Gateway { device, gateway, onlink }
    }

    /// FDB entry and neighbour of a peer as it was, unless they are wanted now.
    fn former(&mut self, old: Option<&Peer>) {
        let Some(PeerObjects::Vxlan { gateway, mac, .. }) = old.map(PeerObjects::of) else { return };
        let Some(device) = old.and_then(|p| self.devices.get(&p.subnet.family())).copied() else { return };
        if self.observed.neighbours.contains_key(&(device, gateway))
            && !self.wanted_neighbours.contains(&(device, gateway))
        {
            self.removals.push(Operation::DeleteNeighbour { device, address: gateway });
        }
        if !self.wanted_fdb.contains(&(device, mac)) {
            let entries = self.observed.endpoints(device, mac);
            let deletions = entries.map(|endpoint| Operation::DeleteFdb { device, mac, endpoint });
            self.removals.extend(deletions);
        }
    }

    /// Everything on our devices that belongs to no peer, and the whole peer sets.
    fn strays(&mut self) {
        let ours: BTreeSet<u32> = self.devices.values().copied().collect();
        let inside = |address: &IpAddr| self.desired.base.networks.iter().any(|(n, _)| n.contains(*address));
        for (device, address) in
            self.observed.neighbours.keys().filter(|(d, a)| ours.contains(d) && inside(a))
        {
            if !self.wanted_neighbours.contains(&(*device, *address)) {
                self.removals.push(Operation::DeleteNeighbour { device: *device, address: *address });
            }
        }
        for (device, mac, endpoint) in
            self.observed.fdb.iter().copied().filter(|(d, m, _)| ours.contains(d) && m.is_unicast())
        {
            if !self.wanted_fdb.contains(&(device, mac)) {
                self.removals.push(Operation::DeleteFdb { device, mac, endpoint });
            }
        }
        for (id, nexthop) in &self.observed.nexthops {
            let ours = ownership::nexthop(nexthop, self.desired, self.observed);
            if ours && !self.wanted_nexthops.contains(id) {
                self.remove_nexthop(*id);
            }
        }
        let wanted = admitted(&self.desired.peers, &self.desired.base.filters.peer_sets);
        let missing = wanted.difference(&self.observed.admitted).copied().collect();
        let extra = self.observed.admitted.difference(&wanted).copied().collect();
        self.change_sets(missing, extra);
    }

    /// The peer sets' part of these changes. An address may serve several peers, so what leaves is
    /// checked against all of them; peers that come, or stay where they are, cost nothing extra.
    fn admit(&mut self, changes: &[Changed<'_, Subnet, Peer>]) {
        let admitted = &self.observed.admitted;
        let members = |peer| members_of(peer, &self.desired.base.filters.peer_sets);
        let arriving: BTreeSet<Member> =
            changes.iter().filter_map(|(.., new)| *new).flat_map(members).collect();
        let missing: Vec<Member> = arriving.difference(admitted).copied().collect();
        let leaving = changes.iter().filter_map(|(_, old, _)| *old).flat_map(members);
        let mut extra: BTreeSet<Member> =
            leaving.filter(|m| admitted.contains(m) && !arriving.contains(m)).collect();
        if !extra.is_empty() {
            for member in self.desired.peers.values().flat_map(members) {
                extra.remove(&member);
            }
        }
        self.change_sets(missing, extra.into_iter().collect());
    }

    fn change_sets(&mut self, missing: Vec<Member>, extra: Vec<Member>) {
        if !missing.is_empty() {
            self.sets.push(Operation::Admit(missing));
        }
        if !extra.is_empty() {
            self.sets.push(Operation::Dismiss(extra));
        }
    }

    fn finish(mut self) -> (Vec<Operation>, Vec<Conflict>) {
        // What one subnet's route gave up can be another's own.
        let wanted = &self.wanted_nexthops;
        if self.removed_nexthops.iter().any(|id| wanted.contains(id)) {
            self.removals.retain(|o| !matches!(o, Operation::DeleteNexthop(id) if wanted.contains(id)));
        }
        let mut parts = [self.before_routes, self.nexthops, self.routes, self.removals, self.sets];
        // Those of many peers take megabytes: the first part stays where it is.
        let all = parts.iter().map(Vec::len).sum::<usize>();
        let mut operations = Vec::new();
        for part in &mut parts {
            if operations.is_empty() {
                operations = std::mem::take(part);
                operations.reserve(all - operations.len());
            } else {
                operations.append(part);
            }
        }
        (operations, self.conflicts)
    }
}

/// The metric of a route without one (IPv6: `IP6_RT_PRIO_USER`, `include/uapi/linux/ipv6_route.h`).
fn default_metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

/// Ids to try for a subnet's nexthop object: from the range that begins with our protocol
/// number, by hash so that one event needs no search, and a few more should it be taken.
pub(super) fn nexthop_ids(subnet: &Subnet) -> impl Iterator<Item = u32> {
    let mut hash = Fnv::default();
    match subnet.address() {
        IpAddr::V4(address) => hash.write(&address.octets()),
        IpAddr::V6(address) => hash.write(&address.octets()),
    }
    hash.write(&[subnet.length()]);
    let start = hash.finish() as u32 & 0x00ff_ffff;
    (0..16).map(move |i| u32::from(ROUTE_PROTOCOL) << 24 | (start + i) & 0x00ff_ffff)
}
