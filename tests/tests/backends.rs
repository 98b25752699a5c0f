//! Backends besides plain vxlan, and its settings.

use loden_tests::story::{Cluster, SOON};
use loden_tests::{Lab, Segment, eventually, kernel, matrix};

#[test]
fn direct_routing_encapsulates_only_between_segments() {
    let lab = Lab::new("direct");
    lab.etcd().config(
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":5,"Port":4790,"DirectRouting":true}}"#,
    );
    let (a, b) = (lab.host("a"), lab.host("b"));
    let c = lab.host_on(Segment::Second, "c");
    let _daemons = [&a, &b, &c].map(|h| h.daemon(&[]));
    for daemon in &_daemons {
        daemon.wait_ready();
    }
    for host in [&a, &b, &c] {
        host.sees_peers(2);
    }
    let route = |to: &loden_tests::Host| kernel::route(&a, &to.subnet().to_string()).expect("a route");
    let direct = route(&b);
    assert_eq!((kernel::text(&direct, "gateway"), kernel::text(&direct, "dev")), ("192.168.77.12", "eth0"));
    let far = route(&c);
    assert_eq!(kernel::text(&far, "dev"), "loden.5");
    let device = kernel::link(&a, "loden.5").expect("the device");
    assert_eq!(device["linkinfo"]["info_data"]["port"], 4790, "{device}");
    let (a1, b1, c1) = (a.container("a1"), b.container("b1"), c.container("c1"));
    matrix(&[&a1, &b1, &c1]);
    a.ip(&format!("route del {}", b.subnet()));
    eventually(SOON, "a direct route is repaired as well", || kernel::route(&a, &b.subnet().to_string()));
    matrix(&[&a1, &b1, &c1]);
    lab.check_invariants();
}

#[test]
fn host_gw_routes_without_any_device() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let cluster = Cluster::<3>::start("host_gw", config, &[]);
    let [a, b, c] = &cluster.hosts;
    assert!(a.status().devices.is_empty());
    assert!(kernel::links(a).iter().all(|l| !l.starts_with("loden.")));
    let route = kernel::route(a, &b.subnet().to_string()).expect("a route");
    assert_eq!((kernel::text(&route, "gateway"), kernel::text(&route, "dev")), ("192.168.77.12", "eth0"));
    let (a1, b1, c1) = (a.container("a1"), b.container("b1"), c.container("c1"));
    matrix(&[&a1, &b1, &c1]);
    assert_eq!(a.subnet_env().expect("subnet.env").mtu, 1500, "nothing is encapsulated");
    a.ip(&format!("route del {}", b.subnet()));
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
    let held = |h: &loden_tests::Host| eventually(SOON, "it holds a subnet", || h.held_subnet());
    assert_ne!(held(&a), held(&b));
    assert_eq!(etcd.subnets().len(), 2);
    assert!(a.subnet_env().is_some());
    assert!(kernel::links(&a).iter().all(|l| !l.starts_with("loden.")));
    assert!(kernel::routes_in(&a, "10.5.0.0/16").is_empty());
    lab.check_invariants();
}

#[test]
fn the_underlays_mtu_is_followed() {
    let cluster = Cluster::<2>::start("mtu", loden_tests::story::VXLAN, &[]);
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
