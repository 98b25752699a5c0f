//! The way from what the kernel holds to what it should hold, as operations in a safe order:
//! filters before devices, devices before addresses, FDB entry and neighbour before route; and
//! removal in reverse.
//!
//! Two stages. [`base`] brings filters, devices, addresses and forwarding in place; when it had to
//! do anything, the kernel is observed again, since devices come and go with what hangs on them.
//! [`peers`] then does the same for the peers that may have changed, or for all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use imbl::OrdMap;
use loden_proto::{Family, Mac, ROUTE_PROTOCOL, Subnet};

use crate::filters::Filters;
use crate::mac::Fnv;
use crate::observed::{Address, Link, Nexthop, Observed, Route, Via};
use crate::ownership;
use crate::peers::Peer;
use crate::plan::{Desired, Device, Options, PeerObjects};

/// One change of the kernel's state. Each is safe to repeat.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Put our table in place, in one transaction, its peer sets holding these addresses.
    ReplaceFilters(Box<Filters>, BTreeSet<IpAddr>),
    /// Admit addresses to the peer sets.
    Admit(Vec<IpAddr>),
    /// Remove addresses from the peer sets.
    Dismiss(Vec<IpAddr>),
    /// Make a VXLAN device, down.
    AddDevice(Device),
    /// Change what differs of an existing one, without losing its peers.
    ChangeDevice {
        /// Its index.
        index: u32,
        /// What it should be.
        device: Device,
        /// Names of what differs, for the log.
        what: Vec<&'static str>,
    },
    /// Delete an interface of ours.
    DeleteDevice {
        /// Its index.
        index: u32,
        /// Its name, for the log.
        name: String,
    },
    /// Give a device its address (a host address, `/32` or `/128`).
    AddAddress {
        /// Device index.
        device: u32,
        /// The address.
        address: IpAddr,
    },
    /// Take an address from a device.
    DeleteAddress {
        /// Device index.
        device: u32,
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        length: u8,
    },
    /// Bring a device up.
    SetUp {
        /// Device index.
        device: u32,
        /// Its name, for the log.
        name: String,
        /// Its UDP port, which it binds now.
        port: u16,
    },
    /// Let an interface forward.
    Forward(Family, String),
    /// Add or replace a permanent neighbour.
    SetNeighbour {
        /// Device index.
        device: u32,
        /// Its address.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
    /// Delete a neighbour.
    DeleteNeighbour {
        /// Device index.
        device: u32,
        /// Its address.
        address: IpAddr,
    },
    /// Add or replace a permanent FDB entry.
    SetFdb {
        /// Device index.
        device: u32,
        /// The MAC.
        mac: Mac,
        /// Where it is.
        endpoint: IpAddr,
    },
    /// Delete an FDB entry.
    DeleteFdb {
        /// Device index.
        device: u32,
        /// The MAC.
        mac: Mac,
        /// Where it was.
        endpoint: IpAddr,
    },
    /// Add a nexthop object.
    AddNexthop(u32, Nexthop),
    /// Delete a nexthop object.
    DeleteNexthop(u32),
    /// Add a route; with `replace`, in place of one of ours.
    SetRoute {
        /// The route.
        route: Route,
        /// Whether one of ours is there.
        replace: bool,
    },
    /// Delete a route.
    DeleteRoute(Route),
}

impl Operation {
    /// Whether it takes something away.
    pub fn removes(&self) -> bool {
        use Operation as O;
        matches!(
            self,
            O::Dismiss(_)
                | O::DeleteDevice { .. }
                | O::DeleteAddress { .. }
                | O::DeleteNeighbour { .. }
                | O::DeleteFdb { .. }
                | O::DeleteNexthop(_)
                | O::DeleteRoute(_)
        )
    }

    /// The kind of object, for counters: `route`, `neighbour`, ….
    pub fn object(&self) -> &'static str {
        use Operation as O;
        match self {
            O::ReplaceFilters(..) => "filters",
            O::Admit(_) | O::Dismiss(_) => "peer_set",
            O::AddDevice(_) | O::ChangeDevice { .. } | O::DeleteDevice { .. } | O::SetUp { .. } => "device",
            O::AddAddress { .. } | O::DeleteAddress { .. } => "address",
            O::Forward(..) => "forwarding",
            O::SetNeighbour { .. } | O::DeleteNeighbour { .. } => "neighbour",
            O::SetFdb { .. } | O::DeleteFdb { .. } => "fdb",
            O::AddNexthop(..) | O::DeleteNexthop(_) => "nexthop",
            O::SetRoute { .. } | O::DeleteRoute(_) => "route",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Operation as O;
        match self {
            O::ReplaceFilters(filters, _) => write!(f, "put nftables table inet {} in place", filters.table),
            O::Admit(all) => write!(f, "admit {} peer address(es) to the VXLAN filter", all.len()),
            O::Dismiss(all) => write!(f, "dismiss {} address(es) from the VXLAN filter", all.len()),
            O::AddDevice(d) => {
                write!(f, "create VXLAN device {} (VNI {}, port {}, MAC {})", d.name, d.vni, d.port, d.mac)
            }
            O::ChangeDevice { device, what, .. } => {
                write!(f, "set {} of device {}", what.join(", "), device.name)
            }
            O::DeleteDevice { name, .. } => write!(f, "delete device {name}"),
            O::AddAddress { address, device } => write!(f, "add address {address} to interface {device}"),
            O::DeleteAddress { address, length, device } => {
                write!(f, "delete address {address}/{length} from interface {device}")
            }
            O::SetUp { name, port, .. } => write!(f, "set device {name} (UDP port {port}) up"),
            O::Forward(family, name) => write!(f, "turn {family} forwarding on for {name}"),
            O::SetNeighbour { address, mac, .. } => write!(f, "set neighbour {address} at {mac}"),
            O::DeleteNeighbour { address, .. } => write!(f, "delete neighbour {address}"),
            O::SetFdb { mac, endpoint, .. } => write!(f, "set FDB entry {mac} to {endpoint}"),
            O::DeleteFdb { mac, endpoint, .. } => write!(f, "delete FDB entry {mac} to {endpoint}"),
            O::AddNexthop(id, nexthop) => match nexthop.gateway {
                Some(gateway) => write!(f, "add nexthop {id} to {gateway}"),
                None => write!(f, "add nexthop {id}"),
            },
            O::DeleteNexthop(id) => write!(f, "delete nexthop {id}"),
            O::SetRoute { route, .. } => write!(f, "set route to {}", route.subnet),
            O::DeleteRoute(route) => write!(f, "delete route to {}", route.subnet),
        }
    }
}

/// What is in the way and is not ours to change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict(pub String);

/// Which peers to look at.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// All, and everything of ours that belongs to none.
    All,
    /// Those that differ from this earlier set of peers.
    Since(&'a OrdMap<Subnet, Peer>),
}

/// Operations for filters, devices, addresses and forwarding.
pub fn base(desired: &Desired, observed: &Observed) -> (Vec<Operation>, Vec<Conflict>) {
    let mut operations = Vec::new();
    let mut conflicts = Vec::new();
    if observed.filters.as_ref() != Some(&desired.filters.digest()) {
        let wanted = admitted(&desired.peers);
        // Where packets flow already, nobody is shut out for a moment. On a fresh host the sets are
        // filled over netlink, which is cheaper than as text.
        let flowing =
            desired.devices.iter().any(|d| observed.vxlan(d.vni, d.port, d.family).is_some_and(|l| l.up));
        let keep = wanted.keys().filter(|a| flowing || observed.admitted.contains(*a)).copied().collect();
        operations.push(Operation::ReplaceFilters(Box::new(desired.filters.clone()), keep));
    }
    for link in observed.links.values().filter(|l| ownership::leftover(l, desired)) {
        operations.push(Operation::DeleteDevice { index: link.index, name: link.name.clone() });
    }
    for device in &desired.devices {
        match observed.vxlan(device.vni, device.port, device.family) {
            Some(link) => existing_device(device, link, desired, observed, &mut operations, &mut conflicts),
            None => match observed.link(&device.name) {
                Some(link) if !ownership::leftover(link, desired) => conflicts.push(Conflict(format!(
                    "an interface named {} exists and is no VXLAN device of ours; rename or delete it",
                    link.name
                ))),
                _ => operations.push(Operation::AddDevice(device.clone())),
            },
        }
    }
    for (family, name) in &desired.forwarding {
        if observed.link(name).is_some() && !observed.forwarding.contains(&(*family, name.clone())) {
            operations.push(Operation::Forward(*family, name.clone()));
        }
    }
    (operations, conflicts)
}

fn existing_device(
    device: &Device,
    link: &Link,
    desired: &Desired,
    observed: &Observed,
    operations: &mut Vec<Operation>,
    conflicts: &mut Vec<Conflict>,
) {
    let Some(vxlan) = link.vxlan else { return };
    if vxlan.external || vxlan.group || vxlan.gbp != device.gbp {
        // Flags of the tunnel socket are fixed at creation, and a group stays (drivers/net/vxlan:
        // vxlan_nl2conf with changelink).
        let what = match vxlan {
            _ if vxlan.external => "external mode",
            _ if vxlan.group => "a group or default remote",
            _ => "another GBP setting",
        };
        if desired.options.names_device(&link.name) {
            operations.push(Operation::DeleteDevice { index: link.index, name: link.name.clone() });
            operations.push(Operation::AddDevice(device.clone()));
        } else {
            conflicts.push(Conflict(format!(
                "{} has our VNI {} and port {} but {what}, which the kernel cannot change; delete it (ip link del {})",
                link.name, device.vni, device.port, link.name
            )));
        }
        return;
    }
    let differs = [
        ("MAC", link.mac != Some(device.mac)),
        ("MTU", link.mtu != device.mtu),
        ("local address", vxlan.local != Some(device.local)),
        ("lower device", vxlan.lower != device.lower),
        ("learning", vxlan.learning != device.learning),
    ];
    let what: Vec<&'static str> = differs.iter().filter(|(_, d)| *d).map(|(n, _)| *n).collect();
    if !what.is_empty() {
        operations.push(Operation::ChangeDevice { index: link.index, device: device.clone(), what });
    }
    let host = device.family.bits();
    let mut present = false;
    for Address { address, length, .. } in observed.addresses.get(&link.index).into_iter().flatten() {
        if Family::of(*address) != device.family {
            continue;
        }
        if *address == device.address && *length == host {
            present = true;
        } else if desired.networks.iter().any(|(network, _)| network.contains(*address)) {
            operations.push(Operation::DeleteAddress {
                device: link.index,
                address: *address,
                length: *length,
            });
        }
    }
    if !present {
        operations.push(Operation::AddAddress { device: link.index, address: device.address });
    }
    if !link.up {
        operations.push(Operation::SetUp { device: link.index, name: link.name.clone(), port: device.port });
    }
}

/// Addresses that VXLAN is accepted from, with the number of peers that use each.
pub fn admitted(peers: &OrdMap<Subnet, Peer>) -> BTreeMap<IpAddr, u32> {
    let mut all = BTreeMap::new();
    for address in peers.values().flat_map(admitted_of) {
        *all.entry(address).or_default() += 1;
    }
    all
}

fn admitted_of(peer: &Peer) -> impl Iterator<Item = IpAddr> {
    std::iter::once(peer.public_address).chain(peer.sources.iter().copied())
}

/// Operations for the peers in scope. Expects the devices to be in place; a family whose device
/// is missing is left alone.
pub fn peers(desired: &Desired, observed: &Observed, scope: Scope<'_>) -> (Vec<Operation>, Vec<Conflict>) {
    let mut differ = Differ::new(desired, observed);
    match scope {
        Scope::All => {
            let subnets: BTreeSet<Subnet> =
                desired.peers.keys().chain(observed.routes.keys()).copied().collect();
            for subnet in &subnets {
                differ.peer(subnet, desired.peers.get(subnet));
            }
            differ.strays();
        }
        Scope::Since(former) => {
            use imbl::ordmap::DiffItem;
            let changes: Vec<(Option<&Peer>, Option<&Peer>)> = former
                .diff(&desired.peers)
                .map(|item| match item {
                    DiffItem::Add(_, new) => (None, Some(new)),
                    DiffItem::Remove(_, old) => (Some(old), None),
                    DiffItem::Update { old, new } => (Some(old.1), Some(new.1)),
                })
                .collect();
            for (old, new) in &changes {
                if let Some(peer) = new.or(*old) {
                    differ.peer(&peer.subnet, *new);
                }
            }
            for (old, _) in &changes {
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
    wanted_fdb: BTreeMap<(u32, Mac), IpAddr>,
    wanted_neighbours: BTreeSet<(u32, IpAddr)>,
    wanted_nexthops: BTreeSet<u32>,
    before_routes: Vec<Operation>,
    nexthops: Vec<Operation>,
    routes: Vec<Operation>,
    removed_routes: Vec<Operation>,
    after_routes: Vec<Operation>,
    sets: Vec<Operation>,
    conflicts: Vec<Conflict>,
}

impl<'a> Differ<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed) -> Self {
        let devices = desired
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
            wanted_fdb: BTreeMap::new(),
            wanted_neighbours: BTreeSet::new(),
            wanted_nexthops: BTreeSet::new(),
            before_routes: Vec::new(),
            nexthops: Vec::new(),
            routes: Vec::new(),
            removed_routes: Vec::new(),
            after_routes: Vec::new(),
            sets: Vec::new(),
            conflicts: Vec::new(),
        }
    }

    /// Brings the objects of one subnet in place, or away when there is no peer.
    fn peer(&mut self, subnet: &Subnet, peer: Option<&Peer>) {
        let target = match peer.map(PeerObjects::of) {
            None => None,
            Some(PeerObjects::Direct { gateway }) => Some((self.desired.underlay, gateway, false)),
            Some(PeerObjects::Vxlan { gateway, mac, endpoint }) => {
                let Some(device) = self.devices.get(&subnet.family()).copied() else { return };
                self.fdb(device, mac, endpoint);
                self.neighbour(device, gateway, mac);
                Some((device, gateway, true))
            }
        };
        self.route(subnet, target);
    }

    fn fdb(&mut self, device: u32, mac: Mac, endpoint: IpAddr) {
        self.wanted_fdb.insert((device, mac), endpoint);
        let present = self.observed.fdb.get(&(device, mac));
        if !present.is_some_and(|all| all.contains(&endpoint)) {
            self.before_routes.push(Operation::SetFdb { device, mac, endpoint });
        }
        // Replacing moves the entry; what is left beside it is an addition of somebody's.
        for other in present
            .into_iter()
            .flatten()
            .filter(|other| **other != endpoint && present.is_some_and(|p| p.contains(&endpoint)))
        {
            self.after_routes.push(Operation::DeleteFdb { device, mac, endpoint: *other });
        }
    }

    fn neighbour(&mut self, device: u32, address: IpAddr, mac: Mac) {
        self.wanted_neighbours.insert((device, address));
        if self.observed.neighbours.get(&(device, address)) != Some(&mac) {
            self.before_routes.push(Operation::SetNeighbour { device, address, mac });
        }
    }

    fn route(&mut self, subnet: &Subnet, target: Option<(u32, IpAddr, bool)>) {
        let (desired, observed) = (self.desired, self.observed);
        let none = Vec::new();
        let present = observed.routes.get(subnet).unwrap_or(&none);
        let (ours, foreign): (Vec<&Route>, Vec<&Route>) =
            present.iter().partition(|r| ownership::route(r, desired, observed));
        let metric = default_metric(subnet.family());
        let right = target.and_then(|(device, gateway, _)| {
            let leads = |r: &&Route| observed.resolve(r.via) == Some((device, gateway)) && r.metric == metric;
            ours.iter().copied().find(leads).or_else(|| foreign.iter().copied().find(leads))
        });
        if let Some(Via::Nexthop(id)) = right.map(|r| r.via) {
            self.wanted_nexthops.insert(id);
        }
        if let (Some((device, gateway, onlink)), None) = (target, right) {
            if let Some(other) = foreign.iter().find(|r| r.metric == metric) {
                self.conflicts.push(Conflict(format!(
                    "a route to {subnet} of protocol {} is in the way of the peer's; it is not ours to change (ip route show {subnet})",
                    other.protocol
                )));
            } else {
                let via = self.via(subnet, device, gateway, onlink);
                let replace = ours.iter().any(|r| r.metric == metric);
                let route = Route { subnet: *subnet, via, protocol: ROUTE_PROTOCOL, metric };
                self.routes.push(Operation::SetRoute { route, replace });
            }
        }
        let replaced =
            if target.is_some() && right.is_none() { ours.iter().find(|r| r.metric == metric) } else { None };
        for route in &ours {
            if right != Some(*route) && replaced != Some(route) {
                self.removed_routes.push(Operation::DeleteRoute((*route).clone()));
            }
        }
        // A nexthop object that no route of this subnet uses any more goes after the route.
        for route in ours {
            if let Via::Nexthop(id) = route.via
                && right != Some(route)
                && !self.wanted_nexthops.contains(&id)
                && observed.nexthops.get(&id).is_some_and(|n| ownership::nexthop(n, desired, observed))
            {
                self.after_routes.push(Operation::DeleteNexthop(id));
            }
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
            self.after_routes.push(Operation::DeleteNeighbour { device, address: gateway });
        }
        if !self.wanted_fdb.contains_key(&(device, mac)) {
            for endpoint in self.observed.fdb.get(&(device, mac)).into_iter().flatten() {
                self.after_routes.push(Operation::DeleteFdb { device, mac, endpoint: *endpoint });
            }
        }
    }

    /// Everything on our devices that belongs to no peer, and the whole peer sets.
    fn strays(&mut self) {
        let ours: BTreeSet<u32> = self.devices.values().copied().collect();
        let inside = |address: &IpAddr| self.desired.networks.iter().any(|(n, _)| n.contains(*address));
        for (device, address) in
            self.observed.neighbours.keys().filter(|(d, a)| ours.contains(d) && inside(a))
        {
            if !self.wanted_neighbours.contains(&(*device, *address)) {
                self.after_routes.push(Operation::DeleteNeighbour { device: *device, address: *address });
            }
        }
        for ((device, mac), endpoints) in
            self.observed.fdb.iter().filter(|((d, m), _)| ours.contains(d) && m.is_unicast())
        {
            if !self.wanted_fdb.contains_key(&(*device, *mac)) {
                for endpoint in endpoints {
                    self.after_routes.push(Operation::DeleteFdb {
                        device: *device,
                        mac: *mac,
                        endpoint: *endpoint,
                    });
                }
            }
        }
        for (id, nexthop) in &self.observed.nexthops {
            let delete = Operation::DeleteNexthop(*id);
            if ownership::nexthop(nexthop, self.desired, self.observed)
                && !self.wanted_nexthops.contains(id)
                && !self.after_routes.contains(&delete)
            {
                self.after_routes.push(delete);
            }
        }
        let wanted = admitted(&self.desired.peers);
        let missing = wanted.keys().filter(|a| !self.observed.admitted.contains(*a)).copied().collect();
        let extra = self.observed.admitted.iter().filter(|a| !wanted.contains_key(*a)).copied().collect();
        self.change_sets(missing, extra);
    }

    /// The peer sets' part of these changes. An address may serve several peers, so what leaves is
    /// checked against all of them; arrivals, by far the more frequent, cost nothing extra.
    fn admit(&mut self, changes: &[(Option<&Peer>, Option<&Peer>)]) {
        let admitted = &self.observed.admitted;
        let arriving = changes.iter().filter_map(|(_, new)| *new).flat_map(admitted_of);
        let missing: BTreeSet<IpAddr> = arriving.filter(|a| !admitted.contains(a)).collect();
        let leaving = changes.iter().filter_map(|(old, _)| *old).flat_map(admitted_of);
        let mut extra: BTreeSet<IpAddr> = leaving.filter(|a| admitted.contains(a)).collect();
        if !extra.is_empty() {
            for address in self.desired.peers.values().flat_map(admitted_of) {
                extra.remove(&address);
            }
        }
        self.change_sets(missing.into_iter().collect(), extra.into_iter().collect());
    }

    fn change_sets(&mut self, missing: Vec<IpAddr>, extra: Vec<IpAddr>) {
        if !self.desired.filters.has_peer_sets {
            return;
        }
        if !missing.is_empty() {
            self.sets.push(Operation::Admit(missing));
        }
        if !extra.is_empty() {
            self.sets.push(Operation::Dismiss(extra));
        }
    }

    fn finish(self) -> (Vec<Operation>, Vec<Conflict>) {
        let mut operations = self.before_routes;
        // A peer that leaves gives its route up before a peer that comes takes its nexthop id.
        operations.extend(self.nexthops);
        operations.extend(self.routes);
        operations.extend(self.removed_routes);
        operations.extend(self.after_routes);
        operations.extend(self.sets);
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
fn nexthop_ids(subnet: &Subnet) -> impl Iterator<Item = u32> {
    let mut hash = Fnv::default();
    hash.write(subnet.to_string().as_bytes());
    let start = hash.finish() as u32 & 0x00ff_ffff;
    (0..16).map(move |i| u32::from(ROUTE_PROTOCOL) << 24 | (start + i) & 0x00ff_ffff)
}

/// What takes everything of ours out of the kernel, our table apart: routes, nexthops, devices with
/// our names, and the bridge if no container hangs on it. An adopted device is not ours.
pub fn removal(observed: &Observed, options: &Options, networks: &[Subnet]) -> Vec<Operation> {
    let named = |index: u32| {
        observed.links.get(&index).is_some_and(|l| l.vxlan.is_some() && options.names_device(&l.name))
    };
    let inside = |subnet: &Subnet| networks.iter().any(|n| n.contains_subnet(subnet));
    let routes = observed.routes.values().flatten().filter(|r| {
        r.protocol == ROUTE_PROTOCOL
            && (inside(&r.subnet) || observed.resolve(r.via).is_some_and(|(d, _)| named(d)))
    });
    let mut operations: Vec<Operation> = routes.cloned().map(Operation::DeleteRoute).collect();
    let nexthops = observed.nexthops.iter().filter(|(_, n)| {
        let gateway_inside = n.gateway.is_some_and(|g| networks.iter().any(|network| network.contains(g)));
        n.protocol == ROUTE_PROTOCOL && (gateway_inside || named(n.device))
    });
    operations.extend(nexthops.map(|(id, _)| Operation::DeleteNexthop(*id)));
    let has_ports = |bridge: u32| observed.links.values().any(|l| l.controller == bridge);
    let devices = observed
        .links
        .values()
        .filter(|l| named(l.index) || l.bridge && l.name == options.bridge() && !has_ports(l.index));
    operations.extend(devices.map(|l| Operation::DeleteDevice { index: l.index, name: l.name.clone() }));
    operations
}

/// What the kernel holds after an operation succeeded. Creating or deleting a device is not
/// modelled here: the caller observes again.
pub fn applied(observed: &mut Observed, operation: &Operation) {
    use Operation as O;
    match operation {
        O::ReplaceFilters(filters, keep) => {
            observed.filters = Some(filters.digest());
            observed.admitted = if filters.has_peer_sets { keep.clone() } else { BTreeSet::new() };
        }
        O::Admit(all) => observed.admitted.extend(all),
        O::Dismiss(all) => observed.admitted.retain(|a| !all.contains(a)),
        O::AddDevice(_) | O::DeleteDevice { .. } => {}
        O::ChangeDevice { index, device, .. } => {
            if let Some(link) = observed.links.get_mut(index) {
                link.mac = Some(device.mac);
                link.mtu = device.mtu;
                if let Some(vxlan) = &mut link.vxlan {
                    vxlan.local = Some(device.local);
                    vxlan.lower = device.lower;
                    vxlan.learning = device.learning;
                }
            }
        }
        O::AddAddress { device, address } => observed.addresses.entry(*device).or_default().push(Address {
            address: *address,
            length: Family::of(*address).bits(),
            permanent: true,
            unusable: false,
        }),
        O::DeleteAddress { device, address, length } => {
            if let Some(all) = observed.addresses.get_mut(device) {
                all.retain(|a| (a.address, a.length) != (*address, *length));
            }
        }
        O::SetUp { device, .. } => {
            if let Some(link) = observed.links.get_mut(device) {
                link.up = true;
            }
        }
        O::Forward(family, name) => {
            observed.forwarding.insert((*family, name.clone()));
        }
        O::SetNeighbour { device, address, mac } => {
            observed.neighbours.insert((*device, *address), *mac);
        }
        O::DeleteNeighbour { device, address } => {
            observed.neighbours.remove(&(*device, *address));
        }
        O::SetFdb { device, mac, endpoint } => {
            observed.fdb.insert((*device, *mac), [*endpoint].into());
        }
        O::DeleteFdb { device, mac, endpoint } => {
            if let Some(all) = observed.fdb.get_mut(&(*device, *mac)) {
                all.remove(endpoint);
                if all.is_empty() {
                    observed.fdb.remove(&(*device, *mac));
                }
            }
        }
        O::AddNexthop(id, nexthop) => {
            observed.nexthops.insert(*id, *nexthop);
        }
        O::DeleteNexthop(id) => {
            observed.nexthops.remove(id);
            // The kernel deletes the routes that use it (net/ipv4/nexthop.c: __remove_nexthop_fib).
            observed.routes.retain(|_, all| {
                all.retain(|r| r.via != Via::Nexthop(*id));
                !all.is_empty()
            });
        }
        O::SetRoute { route, replace } => {
            let all = observed.routes.entry(route.subnet).or_default();
            if *replace && let Some(present) = all.iter_mut().find(|r| r.metric == route.metric) {
                *present = route.clone();
            } else {
                all.push(route.clone());
            }
        }
        O::DeleteRoute(route) => {
            if let Some(all) = observed.routes.get_mut(&route.subnet) {
                all.retain(|r| r != route);
                if all.is_empty() {
                    observed.routes.remove(&route.subnet);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
