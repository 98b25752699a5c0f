//! The diff converges from any state, then is silent, and never touches what is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::peers::nexthop_ids;
use super::*;
use crate::filters::PeerSet;
use crate::observed::{Nexthop, Route, Via, VxlanLink};
use crate::options::Options;
use crate::peers::Path;
use crate::plan::{Inputs, PeerObjects, plan};
use crate::tracked::Tracked;
use crate::underlay::{Endpoint, Underlay};
use loden_proto::config::NetworkConfig;
use loden_proto::lease::LeaseKey;
use loden_proto::{Mac, ROUTE_PROTOCOL};

const DEVICE: u32 = 10;
const UNDERLAY: u32 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn options() -> Options {
    Options::named("loden")
}

fn desired(peers: Tracked<Subnet, Peer>) -> Desired {
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).expect("config");
    let underlay = Underlay {
        interface: "eth0".into(),
        index: UNDERLAY,
        mtu: 1500,
        endpoints: vec![Endpoint { local: ip("192.168.0.1"), public: ip("192.168.0.1") }],
        on_link: vec!["192.168.0.0/24".parse().expect("subnet")],
    };
    let inputs = Inputs {
        config: config.into(),
        own: LeaseKey::parse("10.5.1.0-24").expect("key"),
        macs: [(Family::V4, Mac([2, 0, 0, 0, 0, 1]))].into(),
        underlay,
        adopted: BTreeMap::new(),
        bridges: BTreeSet::new(),
        docker_shares: false,
    };
    Desired { base: plan(&inputs, &options()).into(), peers }
}

fn peer(n: u8, endpoint: u8, mac: u8, direct: bool) -> Peer {
    Peer {
        subnet: Subnet::new([10, 5, n, 0].into(), 24).expect("aligned"),
        public_address: [192, 168, 0, endpoint].into(),
        sources: Box::default(),
        path: if direct { Path::Direct } else { Path::Vxlan(Mac([2, 0, 0, 0, 1, mac])) },
        holder: None,
    }
}

/// A link that is not ours, the underlay, and, if asked, our device as the plan wants it.
fn host(device: bool) -> Observed {
    let plain = |index: u32, name: &str| Link {
        index,
        name: name.into(),
        mac: None,
        mtu: 1500,
        up: true,
        loopback: false,
        bridge: false,
        controller: 0,
        other_names: Vec::new(),
        vxlan: None,
    };
    let mut observed = Observed { has_nexthops: true, ..Observed::default() };
    observed.links.insert(UNDERLAY, plain(UNDERLAY, "eth0"));
    observed.links.insert(3, plain(3, "cilium_host"));
    if device {
        add_device(&mut observed, &desired(Tracked::default()).base.devices[0]);
    }
    observed
}

/// What the kernel does for `AddDevice`.
fn add_device(observed: &mut Observed, device: &Device) {
    let vxlan = VxlanLink {
        vni: device.vni,
        port: device.port,
        local: Some(device.local),
        lower: device.lower,
        learning: device.learning,
        gbp: device.gbp,
        group: false,
        external: false,
        family: device.family,
    };
    observed.links.insert(
        DEVICE,
        Link {
            index: DEVICE,
            name: device.name.clone(),
            mac: Some(device.mac),
            mtu: device.mtu,
            up: false,
            loopback: false,
            bridge: false,
            controller: 0,
            other_names: Vec::new(),
            vxlan: Some(vxlan),
        },
    );
}

fn remove_device(observed: &mut Observed, index: u32) {
    observed.links.remove(&index);
    observed.addresses.remove(&index);
    observed.neighbours.retain(|(d, _), _| *d != index);
    observed.fdb.retain(|(d, ..)| *d != index);
    let gone: Vec<u32> =
        observed.nexthops.iter().filter(|(_, n)| n.device == index).map(|(id, _)| *id).collect();
    for id in gone {
        applied(observed, &Operation::DeleteNexthop(id));
    }
}

/// Runs both stages against the model; returns how many operations there were.
fn pass(desired: &Desired, observed: &mut Observed) -> usize {
    let mut count = 0;
    for _ in 0..3 {
        let (operations, _) = base(desired, observed);
        if operations.is_empty() {
            break;
        }
        count += operations.len();
        for operation in &operations {
            match operation {
                Operation::AddDevice(device) => add_device(observed, device),
                Operation::DeleteDevice { index, .. } => remove_device(observed, *index),
                other => applied(observed, other),
            }
        }
    }
    let (operations, _) = peers(desired, observed, Scope::All);
    for operation in &operations {
        check_safe(operation, observed);
        applied(observed, operation);
    }
    count + operations.len()
}

/// What the kernel would refuse or what would harm others.
fn check_safe(operation: &Operation, observed: &Observed) {
    match operation {
        Operation::SetRoute { route, replace } => {
            let present = observed.routes_to(route.subnet).any(|r| r.metric == route.metric);
            assert_eq!(present, *replace, "{operation}: replace only one of ours, create only where none is");
            if let Via::Nexthop(id) = route.via {
                assert!(observed.nexthops.contains_key(&id), "{operation}: nexthop {id} comes first");
            }
        }
        Operation::AddNexthop(id, _) => assert!(!observed.nexthops.contains_key(id), "{operation}"),
        _ => {}
    }
}

fn peers_strategy() -> impl Strategy<Value = Tracked<Subnet, Peer>> {
    prop::collection::btree_map(2u8..12, (2u8..9, any::<bool>()), 0..10).prop_map(|all| {
        // MACs are unique among accepted peers.
        all.into_iter()
            .map(|(n, (e, direct))| peer(n, e, n.wrapping_mul(3), direct))
            .map(|p| (p.subnet, p))
            .collect()
    })
}

/// Clutter of our own making, and of others'.
fn clutter() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0u8..10, 2u8..14), 0..25)
}

fn foreign_routes() -> Vec<Route> {
    let route = |subnet: &str, via, protocol, metric| Route {
        subnet: subnet.parse().expect(subnet),
        via,
        protocol,
        metric,
    };
    let by = |device, gateway: &str| Via::Gateway { device, gateway: ip(gateway), onlink: false };
    vec![
        route("10.5.50.0/24", by(3, "10.0.0.9"), 4, 0),
        route("10.5.3.0/24", by(3, "10.0.0.9"), 3, 50),
        route("10.5.0.0/16", Via::Other, 2, 0),
    ]
}

fn soil(observed: &mut Observed, clutter: &[(u8, u8)]) {
    for (kind, n) in clutter {
        let subnet = Subnet::new([10, 5, *n, 0].into(), 24).expect("aligned");
        let base = subnet.address();
        let mac = Mac([2, 0, 0, 0, 1, n.wrapping_mul(3)]);
        let mut route = |via, protocol| {
            if observed.routes_to(subnet).all(|r| r.metric != 0) {
                observed.routes.insert(Route { subnet, via, protocol, metric: 0 });
            }
        };
        match kind {
            0 => route(Via::Gateway { device: DEVICE, gateway: base, onlink: true }, 3),
            1 => route(
                Via::Gateway { device: UNDERLAY, gateway: ip("192.168.0.77"), onlink: false },
                ROUTE_PROTOCOL,
            ),
            2 => {
                let id = nexthop_ids(&subnet).nth(usize::from(n % 3)).expect("16 ids");
                route(Via::Nexthop(id), ROUTE_PROTOCOL);
                observed.nexthops.insert(
                    id,
                    Nexthop { device: DEVICE, gateway: Some(base), onlink: true, protocol: ROUTE_PROTOCOL },
                );
            }
            3 => drop(observed.neighbours.insert((DEVICE, base), mac)),
            4 => drop(observed.neighbours.insert((DEVICE, base), Mac([2, 9, 9, 9, 9, *n]))),
            5 => drop(observed.fdb.insert((DEVICE, mac, ip("192.168.0.99")))),
            6 => {
                let places = ["192.168.0.2", "192.168.0.3", "192.168.0.4"];
                observed.fdb.extend(places.map(|place| (DEVICE, mac, ip(place))));
            }
            7 => {
                let id = nexthop_ids(&subnet).next().expect("16 ids");
                observed.nexthops.entry(id).or_insert(Nexthop {
                    device: 3,
                    gateway: None,
                    onlink: false,
                    protocol: 4,
                });
            }
            8 => {
                let other = Subnet::new([10, 5, n.wrapping_add(1), 0].into(), 24).expect("aligned");
                let id = nexthop_ids(&other).next().expect("16 ids");
                route(Via::Nexthop(id), ROUTE_PROTOCOL);
                let gateway = Some(other.address());
                let hop = Nexthop { device: DEVICE, gateway, onlink: true, protocol: ROUTE_PROTOCOL };
                observed.nexthops.entry(id).or_insert(hop);
            }
            _ => drop(observed.admitted.insert((PeerSet::Sources, [192, 168, 0, *n].into()))),
        }
    }
}

proptest! {
    #[test]
    fn any_state_converges_in_one_pass_and_stays(wanted in peers_strategy(), clutter in clutter(), device in any::<bool>()) {
        let desired = desired(wanted);
        let mut observed = host(device);
        if device {
            soil(&mut observed, &clutter);
        }
        for route in foreign_routes() {
            observed.routes.insert(route);
        }
        let foreign = |o: &Observed| {
            let links: Vec<Link> = o.links.values().filter(|l| l.index != DEVICE).cloned().collect();
            let nexthops: Vec<u32> = o.nexthops.iter().filter(|(_, n)| n.protocol != ROUTE_PROTOCOL).map(|(id, _)| *id).collect();
            let routes: Vec<Route> = foreign_routes().into_iter().filter(|r| o.routes.contains(r)).collect();
            (links, nexthops, routes)
        };
        let before = foreign(&observed);
        pass(&desired, &mut observed);
        let (links, nexthops, routes) = foreign(&observed);
        prop_assert_eq!(before, (links, nexthops, routes));
        let mut again = observed.clone();
        prop_assert_eq!(pass(&desired, &mut again), 0, "a second pass has nothing to do");
        prop_assert_eq!(&again, &observed);
        for (subnet, peer) in desired.peers.iter() {
            let leads = observed.routes_to(*subnet).filter(|r| r.metric == 0).map(|r| observed.resolve(r.via)).collect::<Vec<_>>();
            match PeerObjects::of(peer) {
                PeerObjects::Direct { gateway } => prop_assert_eq!(leads, vec![Some((UNDERLAY, gateway))]),
                PeerObjects::Vxlan { gateway, mac, endpoint } => {
                    prop_assert_eq!(leads, vec![Some((DEVICE, gateway))]);
                    prop_assert_eq!(observed.neighbours.get(&(DEVICE, gateway)), Some(&mac));
                    prop_assert_eq!(observed.endpoints(DEVICE, mac).collect::<Vec<_>>(), [endpoint]);
                }
            }
        }
    }

    #[test]
    fn a_change_by_keys_ends_where_a_full_pass_ends(first in peers_strategy(), second in peers_strategy()) {
        let (one, two) = (desired(first), desired(second));
        let mut observed = host(false);
        pass(&one, &mut observed);
        let mut by_keys = observed.clone();
        let (operations, _) = peers(&two, &by_keys, Scope::Since(&one.peers));
        for operation in &operations {
            check_safe(operation, &by_keys);
            applied(&mut by_keys, operation);
        }
        pass(&two, &mut observed);
        prop_assert_eq!(by_keys, observed);
    }
}

#[test]
fn a_flannel_host_is_taken_over_without_touching_its_routes() {
    let wanted: Tracked<Subnet, Peer> = [peer(2, 2, 6, false)].into_iter().map(|p| (p.subnet, p)).collect();
    let desired = desired(wanted);
    let mut observed = host(true);
    soil(&mut observed, &[(0, 2), (3, 2)]);
    observed.fdb.insert((DEVICE, Mac([2, 0, 0, 0, 1, 6]), ip("192.168.0.2")));
    let (operations, _) = peers(&desired, &observed, Scope::All);
    assert!(
        operations.iter().all(|o| o.object() == "peer_set"),
        "the device is down, its peers wait: {operations:?}"
    );
    applied(&mut observed, &Operation::SetUp { device: DEVICE, name: String::new(), port: 8472 });
    let (operations, _) = peers(&desired, &observed, Scope::All);
    assert_eq!(operations, [Operation::Admit(vec![(PeerSet::Sources, ip("192.168.0.2"))])]);
}

#[test]
fn a_foreign_route_in_the_way_is_reported_and_left() {
    let desired = desired([peer(50, 2, 6, false)].into_iter().map(|p| (p.subnet, p)).collect());
    let mut observed = host(false);
    let foreign = foreign_routes().remove(0);
    observed.routes.insert(foreign);
    pass(&desired, &mut observed);
    let (operations, conflicts) = peers(&desired, &observed, Scope::All);
    assert!(operations.is_empty(), "{operations:?}");
    assert!(conflicts[0].0.contains("10.5.50.0/24"), "{conflicts:?}");
}

#[test]
fn removal_takes_exactly_ours() {
    let wanted: Tracked<Subnet, Peer> =
        [peer(2, 2, 6, false), peer(3, 3, 9, true)].into_iter().map(|p| (p.subnet, p)).collect();
    let desired = desired(wanted);
    let mut observed = host(false);
    for route in foreign_routes() {
        observed.routes.insert(route);
    }
    let before = observed.clone();
    pass(&desired, &mut observed);
    let networks: Vec<Subnet> = desired.base.networks.iter().map(|(n, _)| *n).collect();
    for operation in removal(&observed, &options(), &networks) {
        match operation {
            Operation::DeleteDevice { index, .. } => remove_device(&mut observed, index),
            other => applied(&mut observed, &other),
        }
    }
    assert_eq!(
        (observed.links, observed.routes, observed.nexthops),
        (before.links, before.routes, before.nexthops)
    );
    assert!(observed.neighbours.is_empty() && observed.fdb.is_empty());
}

#[test]
fn flannels_direct_routes_become_ours_and_go_with_their_peers() {
    let route = |n: u8, gateway: &str, protocol| Route {
        subnet: Subnet::new([10, 5, n, 0].into(), 24).expect("aligned"),
        via: Via::Gateway { device: UNDERLAY, gateway: ip(gateway), onlink: false },
        protocol,
        metric: 0,
    };
    let mut observed = host(true);
    // An operator's own, which says the same, and flannel's, of which one belongs to no peer.
    for route in [route(2, "192.168.0.2", 3), route(3, "192.168.0.3", 4), route(4, "192.168.0.4", 3)] {
        observed.routes.insert(route);
    }
    let wanted = [peer(2, 2, 6, true), peer(3, 3, 9, true)].into_iter().map(|p| (p.subnet, p)).collect();
    pass(&desired(wanted), &mut observed);
    let protocols = |o: &Observed| o.routes.iter().map(|r| r.protocol).collect::<Vec<_>>();
    assert_eq!(protocols(&observed), [ROUTE_PROTOCOL, 4, 3]);
    pass(&desired(Tracked::default()), &mut observed);
    assert_eq!(protocols(&observed), [4, 3]);
}

#[test]
fn what_is_handed_to_flannel_is_whole_and_no_longer_ours() {
    let wanted: Tracked<Subnet, Peer> =
        [peer(2, 2, 6, false), peer(3, 3, 9, true)].into_iter().map(|p| (p.subnet, p)).collect();
    let desired = desired(wanted);
    let mut observed = host(false);
    for route in foreign_routes() {
        observed.routes.insert(route);
    }
    pass(&desired, &mut observed);
    let networks: Vec<Subnet> = desired.base.networks.iter().map(|(n, _)| *n).collect();
    let before = observed.clone();
    for operation in to_flannel(&observed.clone(), &options(), &networks) {
        check_safe(&operation, &observed);
        applied(&mut observed, &operation);
    }
    let by = |n: u8| {
        let mut routes = observed.routes_to(Subnet::new([10, 5, n, 0].into(), 24).expect("aligned"));
        routes.find(|r| r.metric == 0).expect("the peer's route").clone()
    };
    let plain = |device, gateway, onlink| Via::Gateway { device, gateway: ip(gateway), onlink };
    assert_eq!((by(2).via, by(2).protocol), (plain(DEVICE, "10.5.2.0", true), 3));
    assert_eq!((by(3).via, by(3).protocol), (plain(UNDERLAY, "192.168.0.3", false), 3));
    assert_eq!(observed.links[&DEVICE].name, "flannel.1");
    assert!(observed.nexthops.values().all(|n| n.protocol != ROUTE_PROTOCOL), "{:?}", observed.nexthops);
    assert_eq!((&observed.neighbours, &observed.fdb), (&before.neighbours, &before.fdb));
    let rest = |observed: &Observed| {
        [to_flannel(observed, &options(), &networks), removal(observed, &options(), &networks)].concat()
    };
    assert_eq!(rest(&observed), []);
    // An older kernel keeps our name for the device, flannel's beside it.
    let link = observed.links.get_mut(&DEVICE).expect("the device");
    (link.name, link.other_names) = ("loden.1".into(), vec!["flannel.1".into()]);
    assert_eq!(rest(&observed), []);
}

#[test]
fn foreign_devices_are_not_removed() {
    let mut observed = host(true);
    let desired = desired(Tracked::default());
    for (index, name) in [(20, "flannel.9"), (21, "loden-x.9"), (22, "vxlan.calico"), (23, "loden.9")] {
        let vxlan = VxlanLink {
            vni: 9,
            port: 4789,
            local: None,
            lower: 0,
            learning: true,
            gbp: false,
            group: false,
            external: false,
            family: Family::V4,
        };
        observed.links.insert(
            index,
            Link {
                index,
                name: name.into(),
                mac: None,
                mtu: 1450,
                up: true,
                loopback: false,
                bridge: false,
                controller: 0,
                other_names: Vec::new(),
                vxlan: Some(vxlan),
            },
        );
    }
    let deleted: Vec<Operation> = base(&desired, &observed)
        .0
        .into_iter()
        .filter(|o| matches!(o, Operation::DeleteDevice { .. }))
        .collect();
    assert_eq!(
        deleted,
        [Operation::DeleteDevice { index: 23, name: "loden.9".into() }],
        "only the leftover with our name"
    );
}

#[test]
fn an_ipv6_route_by_another_device_goes_before_the_right_one_comes() {
    let config = NetworkConfig::parse(
        r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#,
    );
    let subnet: Subnet = "fd00:0:0:2::/64".parse().expect("subnet");
    let peer = Peer { subnet, public_address: ip("fd77::2"), ..peer(2, 2, 2, false) };
    let endpoint = Endpoint { local: ip("fd77::1"), public: ip("fd77::1") };
    let underlay = Underlay {
        interface: "eth0".into(),
        index: UNDERLAY,
        mtu: 1500,
        endpoints: vec![endpoint],
        on_link: Vec::new(),
    };
    let inputs = Inputs {
        config: config.expect("config").into(),
        own: LeaseKey::parse("fd00:0:0:1::-64").expect("key"),
        macs: [(Family::V6, Mac([2, 0, 0, 0, 0, 1]))].into(),
        underlay,
        adopted: BTreeMap::new(),
        bridges: BTreeSet::new(),
        docker_shares: false,
    };
    let peers_wanted = [(subnet, peer)].into_iter().collect();
    let desired = Desired { base: plan(&inputs, &options()).into(), peers: peers_wanted };
    let mut observed = host(false);
    add_device(&mut observed, &desired.base.devices[0]);
    observed.links.get_mut(&DEVICE).expect("the device").up = true;
    let via = Via::Gateway { device: UNDERLAY, gateway: ip("fd77::1"), onlink: false };
    let wrong = Route { subnet, via, protocol: ROUTE_PROTOCOL, metric: 1024 };
    observed.routes.insert(wrong.clone());
    let (operations, _) = peers(&desired, &observed, Scope::All);
    let routes: Vec<&Operation> = operations
        .iter()
        .filter(|o| matches!(o, Operation::SetRoute { .. } | Operation::DeleteRoute(_)))
        .collect();
    assert!(
        matches!(routes[..], [Operation::DeleteRoute(first), Operation::SetRoute { replace: false, .. }] if *first == wrong),
        "{routes:#?}"
    );
    for operation in &operations {
        applied(&mut observed, operation);
    }
    assert_eq!(peers(&desired, &observed, Scope::All).0, []);
}

#[test]
fn a_route_by_the_nexthop_of_another_peer_is_put_right_and_the_others_stays() {
    let wanted = [peer(2, 2, 6, false), peer(3, 3, 9, false)].into_iter().map(|p| (p.subnet, p)).collect();
    let desired = desired(wanted);
    let mut observed = host(false);
    pass(&desired, &mut observed);
    let as_it_was = observed.clone();
    let route = |third: u8| {
        let subnet = Subnet::new([10, 5, third, 0].into(), 24).expect("aligned");
        as_it_was.routes_to(subnet).next().expect("a route").clone()
    };
    for (hurt, by) in [(2, 3), (3, 2)] {
        observed.routes.remove(&route(hurt));
        observed.routes.insert(Route { via: route(by).via, ..route(hurt) });
        pass(&desired, &mut observed);
        assert_eq!(observed, as_it_was);
    }
}

#[test]
fn operations_together_leave_what_they_leave_one_by_one() {
    let subnet = |third: u8| Subnet::new([10, 5, third, 0].into(), 24).expect("a subnet");
    let route = |third: u8, id| Route {
        subnet: subnet(third),
        via: Via::Nexthop(id),
        protocol: ROUTE_PROTOCOL,
        metric: 0,
    };
    let hop = Nexthop { device: DEVICE, gateway: None, onlink: true, protocol: ROUTE_PROTOCOL };
    let operations = [
        Operation::DeleteNexthop(1),
        Operation::AddNexthop(1, hop),
        Operation::SetRoute { route: route(4, 1), replace: false },
        Operation::DeleteRoute(route(2, 2)),
        Operation::DeleteNexthop(2),
        Operation::DeleteNexthop(3),
    ];
    let mut together = Observed::default();
    for id in 1..=3u8 {
        together.nexthops.insert(id.into(), hop);
        together.routes.insert(route(id, id.into()));
    }
    let mut one_by_one = together.clone();
    for operation in &operations {
        applied(&mut one_by_one, operation);
    }
    all_applied(&mut together, &operations);
    assert_eq!(together, one_by_one);
    assert_eq!(together.routes, BTreeSet::from([route(4, 1)]));
    assert_eq!(together.nexthops.len(), 1);
}
