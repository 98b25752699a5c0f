//! Backends besides plain vxlan, and its settings.

use loden_proto::Family;
use loden_tests::story::{Cluster, SOON, Stack, VXLAN};
use loden_tests::{Host, Lab, Segment, eventually, kernel, matrix};
use serde_json::{Value, json};

#[test]
fn direct_routing_encapsulates_only_between_segments() {
    direct_routing("direct", Stack::Four);
}

#[test]
fn direct_routing_goes_for_both_families() {
    direct_routing("direct46", Stack::Dual);
}

fn direct_routing(name: &str, stack: Stack) {
    let lab = Lab::new(name);
    let backend = json!({"Type": "vxlan", "VNI": 5, "Port": 4790, "DirectRouting": true});
    lab.etcd().config(&stack.config(backend, (1, 99)));
    let (a, b) = (lab.host("a"), lab.host("b"));
    let c = lab.host_on(Segment::Second, "c");
    let _daemons = [&a, &b, &c].map(|h| h.daemon(&[]));
    for daemon in &_daemons {
        daemon.wait_ready();
    }
    for host in [&a, &b, &c] {
        host.sees_peers(stack.peers(2));
    }
    for family in stack.families() {
        let route = |to: &Host| kernel::route(&a, &to.subnet_of(*family).to_string()).expect("a route");
        goes_direct(&route(&b), &b, *family);
        let far = route(&c);
        let name = a.device_of(*family).name;
        assert_eq!(kernel::text(&far, "dev"), name);
        let device = kernel::link(&a, &name).expect("the device");
        assert_eq!(device["linkinfo"]["info_data"]["port"], 4790, "{device}");
    }
    let (a1, b1, c1) = (a.container("a1"), b.container("b1"), c.container("c1"));
    matrix(&[&a1, &b1, &c1]);
    for family in stack.families() {
        let subnet = b.subnet_of(*family).to_string();
        a.ip(&format!("route del {subnet}"));
        eventually(SOON, "a direct route is repaired as well", || kernel::route(&a, &subnet));
    }
    matrix(&[&a1, &b1, &c1]);
    lab.check_invariants();
}

#[test]
fn direct_routing_is_turned_on_and_off_while_the_daemons_run() {
    let cluster = Cluster::<2>::start("direct_live", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let device = a.device_of(Family::V4).name;
    let direct = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    for (peer, config, way) in [(200, direct, "eth0"), (201, VXLAN, device.as_str())] {
        // From then on nothing but the config is new to the daemon.
        cluster.etcd.put_peer(peer);
        a.sees_peers(usize::from(peer) - 198);
        cluster.etcd.config(config);
        eventually(SOON, &format!("b is reached by {way}"), || {
            let route = kernel::route(a, &b.subnet().to_string()).unwrap_or_default();
            if kernel::text(&route, "dev") == way { Ok(()) } else { Err(route.to_string()) }
        });
        matrix(&[&a1, &b1]);
    }
    cluster.lab.check_invariants();
}

fn goes_direct(route: &Value, to: &Host, family: Family) {
    let gateway = to.address_of(family).to_string();
    assert_eq!((kernel::text(route, "gateway"), kernel::text(route, "dev")), (gateway.as_str(), "eth0"));
}

#[test]
fn host_gw_routes_without_any_device() {
    host_gw("host_gw", Stack::Four);
}

#[test]
fn host_gw_routes_both_families() {
    host_gw("host_gw46", Stack::Dual);
}

fn host_gw(name: &str, stack: Stack) {
    let cluster = Cluster::<3>::start(name, &stack.config(json!({"Type": "host-gw"}), (1, 99)), &[]);
    let [a, b, c] = &cluster.hosts;
    assert!(a.status().devices.is_empty());
    assert!(kernel::links(a).iter().all(|l| !l.starts_with("loden.") && !l.starts_with("loden6.")));
    let (a1, b1, c1) = (a.container("a1"), b.container("b1"), c.container("c1"));
    matrix(&[&a1, &b1, &c1]);
    assert_eq!(a.subnet_env().expect("subnet.env").mtu, 1500, "nothing is encapsulated");
    for family in stack.families() {
        let subnet = b.subnet_of(*family).to_string();
        goes_direct(&kernel::route(a, &subnet).expect("a route"), b, *family);
        a.ip(&format!("route del {subnet}"));
    }
    matrix(&[&a1, &b1, &c1]);
    cluster.lab.check_invariants();
}

#[test]
fn host_gw_refuses_peers_that_are_not_on_the_link() {
    let lab = Lab::new("host_gw_far");
    lab.etcd().config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#);
    let a = lab.host("a");
    let c = lab.host_on(Segment::Second, "c");
    let _daemons = (a.daemon(&[]).ready(), c.daemon(&[]).ready());
    eventually(SOON, "the peer is shown with the reason", || {
        let status = a.try_status(&[])?;
        let peers = status.peers.iter().any(|p| p.state != "programmed" && p.reason.is_some());
        if peers || !status.rejected.is_empty() { Ok(()) } else { Err(format!("{status:#?}")) }
    });
    assert!(kernel::route(&a, &c.subnet().to_string()).is_none());
}

#[test]
fn alloc_only_leases() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#;
    let lab = Lab::new("alloc");
    let etcd = lab.etcd();
    etcd.config(config);
    let [a, b] = lab.hosts();
    let _daemons = (a.daemon(&[]).ready(), b.daemon(&[]).ready());
    let held = |h: &Host| eventually(SOON, "it holds a subnet", || h.held_subnet());
    assert_ne!(held(&a), held(&b));
    assert_eq!(etcd.subnets().len(), 2);
    assert!(a.subnet_env().is_some());
    assert!(kernel::links(&a).iter().all(|l| !l.starts_with("loden.")));
    assert!(kernel::routes_in(&a, "10.5.0.0/16").is_empty());
    lab.check_invariants();
}

#[test]
fn the_underlays_mtu_is_followed() {
    let cluster = Cluster::<2>::start("mtu", VXLAN, &[]);
    let [a, _] = &cluster.hosts;
    let mtu =
        |name: &str| kernel::link(a, name).map(|l| l["mtu"].clone()).ok_or_else(|| format!("no {name}"));
    assert_eq!(mtu("loden.1").expect("the device"), 1450);
    assert_eq!(a.subnet_env().expect("subnet.env").mtu, 1450);
    a.ip("link set eth0 mtu 1400");
    eventually(SOON, "device and subnet.env follow", || {
        let seen = (mtu("loden.1")?, a.subnet_env().map(|e| e.mtu));
        if seen == (1350.into(), Some(1350)) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    a.sees_peers(1);
}
