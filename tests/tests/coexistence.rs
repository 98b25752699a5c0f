//! Several networks, several daemons, other people's objects, and going away without a trace.

use std::time::Duration;

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Daemon, Host, Lab, eventually, kernel, matrix, probe};
use serde_json::json;

const BLUE: [&str; 4] =
    ["--network=blue", "--run-dir=/run/blue", "--state-dir=/var/lib/blue", "--etcd-prefix=/blue/network"];

fn blue(host: &Host) -> Daemon {
    host.daemon(&BLUE)
}

#[test]
fn two_networks_live_on_one_host_and_do_not_mix() {
    let cluster = Cluster::<2>::start("two_networks", VXLAN, &[]);
    let etcd = &cluster.etcd;
    etcd.put("/blue/network/config", r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#);
    let [a, b] = &cluster.hosts;
    let _blue = [blue(a), blue(b)].map(Daemon::ready);
    let conf = json!({
        "cniVersion": "1.0.0", "name": "blue", "type": "loden",
        "subnetFile": "/run/blue/subnet.env", "dataDir": "/run/blue/ipam", "bridge": "blue0",
    });
    let of_blue = |host: &Host, name: &str| {
        host.container_with(name, conf.clone()).unwrap_or_else(|e| panic!("ADD of {name}: {e}"))
    };
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let (a2, b2) = (of_blue(a, "a2"), of_blue(b, "b2"));
    matrix(&[&a1, &b1]);
    matrix(&[&a2, &b2]);
    // A peer of one network that is no peer of the other, on the same UDP port.
    let c = cluster.lab.host("c");
    let _blue_c = blue(&c).ready();
    let c2 = of_blue(&c, "c2");
    matrix(&[&a2, &b2, &c2]);
    c2.delete();
    assert!(a2.address().to_string().starts_with("10.6."), "{}", a2.address());
    let device = |n: &str| kernel::link(a, n).map(|l| l["linkinfo"]["info_data"]["id"].clone());
    let devices = kernel::links(a).into_iter().filter(|l| device(l) == Some(2.into())).count();
    assert_eq!(devices, 1, "one device of VNI 2");
    let tables = kernel::tables(a);
    assert!(tables.contains(&"inet loden".into()) && tables.iter().any(|t| t.contains("blue")), "{tables:?}");
    // Each cleans up after itself alone.
    a2.delete();
    b2.delete();
    let [blue_a, _] = _blue;
    blue_a.terminate();
    let cleanup: Vec<&str> = ["cleanup"].iter().chain(&BLUE[..3]).copied().collect();
    a.loden(&cleanup).expect_success();
    matrix(&[&a1, &b1]);
    assert!(!kernel::tables(a).iter().any(|t| t.contains("blue")), "{:?}", kernel::tables(a));
    cluster.lab.check_invariants();
}

#[test]
fn a_second_network_of_the_same_vni_does_not_get_the_firsts_device() {
    let cluster = Cluster::<2>::start("same_vni_twice", VXLAN, &[]);
    cluster.etcd.put("/blue/network/config", r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let stream = a1.stream_to(&b1, 1000);
    let second = blue(a);
    second.logs(&["loden.1", "a VNI of its own"]);
    let losses = stream.stop();
    assert_eq!(losses.lost, 0, "{losses:?}");
    assert!(a.status().repairs.is_empty(), "nobody touched it: {:?}", a.status().repairs);
}

#[test]
fn a_second_daemon_on_one_network_names_the_first() {
    let cluster = Cluster::<1>::start("second", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let second = a.daemon(&[]);
    let end = second.ends_within(Duration::from_secs(5));
    assert!(!end.success(), "{end}");
    let pid = cluster.daemons[0].pid().to_string();
    assert!(second.log().contains(&pid), "names process {pid}: {}", second.log());
    a.sees_peers(0);
    cluster.lab.check_invariants();
}

#[test]
fn cleanup_removes_exactly_ours() {
    let cluster = Cluster::<2>::start("cleanup", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let peer = b.subnet();
    let running = a.loden(&["cleanup"]).expect_failure();
    assert!(running.contains(&cluster.daemons[0].pid().to_string()), "a running daemon is named: {running}");
    a.sees_peers(1);
    a1.delete();
    cluster.daemons[0].terminate();
    a.loden(&["cleanup"]).expect_success();
    let links = kernel::links(a);
    assert!(!links.iter().any(|l| l.starts_with("loden")), "{links:?}");
    assert!(kernel::route(a, &peer.to_string()).is_none());
    assert!(!kernel::tables(a).iter().any(|t| t.contains("loden")), "{:?}", kernel::tables(a));
    let ours = |n: &serde_json::Value| n["protocol"].to_string().contains("177");
    assert!(!kernel::nexthops(a).iter().any(ours), "{:?}", kernel::nexthops(a));
    assert!(!kernel::routes(a).iter().any(ours), "{:?}", kernel::routes(a));
    a.loden(&["cleanup"]).expect_success();
    // Foreign objects are compared here.
    cluster.lab.check_invariants();
    // And everything comes back.
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    matrix(&[&a.container("a2"), &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn a_foreign_route_to_a_peers_subnet_is_reported_and_left() {
    let cluster = Cluster::<1>::start("foreign_route", VXLAN, &[]);
    let [a] = &cluster.hosts;
    a.ip("route add 10.5.200.0/24 via 192.168.77.1 proto static");
    let peer = cluster.etcd.put_peer(200);
    cluster.etcd.put_peer(201);
    eventually(SOON, "the other peer is there", || kernel::route(a, "10.5.201.0/24"));
    let route = eventually(SOON, "the foreign route is there", || kernel::route(a, &peer.to_string()));
    assert_eq!(
        (kernel::text(&route, "protocol"), kernel::text(&route, "gateway")),
        ("static", "192.168.77.1")
    );
    eventually(SOON, "status tells of the conflict", || {
        let status = a.try_status(&[])?;
        let by_peer = status.peers.iter().any(|p| p.subnet == peer && p.reason.is_some());
        let named = status.problems.iter().any(|p| p.contains("10.5.200.0/24"));
        if by_peer || named { Ok(()) } else { Err(format!("{status:#?}")) }
    });
    a.ip("route del 10.5.200.0/24");
    eventually(SOON, "ours takes its place once it is gone", || {
        let device = kernel::route(a, &peer.to_string()).map(|r| kernel::text(&r, "dev").to_owned());
        if device.as_deref() == Some("loden.1") { Ok(()) } else { Err(format!("{device:?}")) }
    });
    cluster.lab.check_invariants();
}

#[test]
fn a_foreign_device_with_our_vni_is_named() {
    let lab = Lab::new("same_vni");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    // Not flannel's: it joins a multicast group.
    a.ip("link add theirs type vxlan id 1 dstport 8472 group 239.1.1.1 dev eth0\nlink set theirs up");
    let daemon = a.daemon(&[]);
    daemon.logs(&["theirs"]);
    let link = kernel::link(&a, "theirs").expect("it is left alone");
    assert_eq!(link["linkinfo"]["info_data"]["group"], "239.1.1.1");
    a.ip("link del theirs");
    daemon.wait_ready();
    eventually(SOON, "our device is made once it is gone", || kernel::link(&a, "loden.1"));
    lab.check_invariants();
}

#[test]
fn a_port_in_use_is_named_and_taken_once_it_is_free() {
    let lab = Lab::new("port");
    lab.etcd().config(VXLAN);
    let [a, b] = lab.hosts();
    let squatter = a.ns().within(|| std::net::UdpSocket::bind("0.0.0.0:8472")).expect("the port");
    let da = a.daemon(&[]);
    let _db = b.daemon(&[]).ready();
    eventually(SOON, "the port is named", || {
        let said = format!("{}{:?}", da.log(), a.try_status(&[]).map(|s| s.problems));
        if said.contains("8472") { Ok(()) } else { Err(said) }
    });
    assert!(da.exited().is_none());
    drop(squatter);
    da.wait_ready();
    a.sees_peers(1);
    matrix(&[&a.container("a1"), &b.container("b1")]);
    lab.check_invariants();
}

#[test]
fn a_bridge_that_holds_the_gateway_is_named() {
    let cluster = Cluster::<1>::start("docker0", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let subnet = a.subnet();
    a.ip(&format!(
        "link add docker0 type bridge\naddr add {}/{} dev docker0\nlink set docker0 up",
        subnet.gateway(),
        subnet.length()
    ));
    let refused = a.try_container("a1").expect_err("the address is taken");
    assert!(refused.contains("docker0"), "{refused}");
    eventually(SOON, "status names it", || {
        let status = a.try_status(&[])?;
        let all = status.problems.iter().chain(&status.notes).any(|p| p.contains("docker0"));
        if all { Ok(()) } else { Err(format!("{status:#?}")) }
    });
    a.ip("link del docker0");
    let a1 = a.container("a1");
    assert!(probe::ping(&a.ns(), a1.address()));
    cluster.lab.check_invariants();
}
