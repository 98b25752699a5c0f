//! Real flanneld: alone, as the proof that the lab is sound; beside Loden in one overlay, in every
//! mix that flannel knows.

use std::time::Duration;

use loden_tests::story::VXLAN;
use loden_tests::{Daemon, Etcd, Host, Lab, PREFIX, Segment, eventually, kernel, matrix};

fn flannel(host: &Host) -> Option<Daemon> {
    let daemon = host.flanneld(&["--iface=eth0", "--ip-masq"])?;
    daemon.wait_ready();
    Some(daemon)
}

#[test]
fn flanneld_connects_containers_of_two_hosts() {
    let lab = Lab::new("flannel");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let [a, b] = lab.hosts();
    let (Some(fa), Some(_fb)) = (flannel(&a), flannel(&b)) else { return };
    assert_eq!(etcd.keys(&format!("{PREFIX}/subnets/")).len(), 2);
    let (a1, b1) = (a.container_by_hand("a1", 10), b.container_by_hand("b1", 10));
    matrix(&[&a1, &b1]);
    eventually(Duration::from_secs(5), "flannel.1 is there", || kernel::link(&a, "flannel.1"));
    fa.restart();
    matrix(&[&a1, &b1]);
    lab.check_invariants();
}

#[test]
fn flannel_hosts_and_loden_hosts_form_one_overlay() {
    let lab = Lab::new("mixed");
    lab.etcd().config(VXLAN);
    let [f, g, l, m] = lab.hosts();
    let (Some(df), Some(dg)) = (flannel(&f), flannel(&g)) else { return };
    let (dl, dm) = (l.daemon(&[]).ready(), m.daemon(&[]).ready());
    let containers =
        [f.container_by_hand("f1", 10), g.container_by_hand("g1", 10), l.container("l1"), m.container("m1")];
    let all: Vec<_> = containers.iter().collect();
    matrix(&all);
    let stream = containers[2].stream_to(&containers[0], 1000);
    let back = containers[1].stream_to(&containers[3], 1000);
    for daemon in [&df, &dl, &dg, &dm] {
        daemon.restart();
    }
    for daemon in [&dl, &df] {
        daemon.kill9();
        daemon.start();
        daemon.wait_ready();
    }
    matrix(&all);
    for losses in [stream.stop(), back.stop()] {
        assert_eq!(losses.lost, 0, "restarts lose nothing: {losses:?}");
    }
    l.sees_peers(3);
    let versions = |h: &Host| h.status().peers.iter().filter(|p| p.version == "flannel").count();
    assert_eq!(versions(&m), 2, "status tells who runs flannel: {:#?}", m.status().peers);
    lab.check_invariants();
}

#[test]
fn flannel_hosts_stand_what_loden_writes_beside_leases() {
    let lab = Lab::new("mixed_keys");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let [f, l] = lab.hosts();
    let Some(_df) = flannel(&f) else { return };
    let _dl = l.daemon(&["--label=rack=r7"]).ready();
    let (f1, l1) = (f.container_by_hand("f1", 10), l.container("l1"));
    matrix(&[&f1, &l1]);
    let subnet_keys = etcd.keys(&format!("{PREFIX}/subnets"));
    assert_eq!(subnet_keys.len(), 2, "nothing that flannel cannot parse: {subnet_keys:?}");
    let value = etcd.get(&Etcd::key(l.subnet())).expect("our lease");
    assert!(value.starts_with("{\"PublicIP\":"), "flannel's members come first: {value}");
    assert!(value.contains("rack"), "{value}");
    // flanneld drops all its peers on an event that it cannot parse.
    assert!(kernel::route(&f, &l.subnet().to_string()).is_some());
    lab.check_invariants();
}

/// A cluster of two flannel hosts and a Loden host, which becomes one of one and two.
fn mixed(name: &str, nftables: bool, backend: &str, dual: bool) {
    let lab = Lab::new(name);
    let v6 = if dual { r#""EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","# } else { "" };
    lab.etcd().config(&format!(
        r#"{{"Network":"10.5.0.0/16",{v6}"EnableNFTables":{nftables},"Backend":{backend}}}"#
    ));
    // host-gw needs one link; direct routing shows both ways of going when there are two.
    let far = if backend.contains("DirectRouting") { Segment::Second } else { Segment::First };
    let (f, g, l) = (lab.host("f"), lab.host("g"), lab.host_on(far, "l"));
    let (Some(_df), Some(dg)) = (flannel(&f), flannel(&g)) else { return };
    let _dl = l.daemon(&[]).ready();
    let containers = [f.container_by_hand("f1", 10), g.container_by_hand("g1", 10), l.container("l1")];
    let all: Vec<_> = containers.iter().collect();
    let families = if dual { 2 } else { 1 };
    assert!(all.iter().all(|c| c.addresses().len() == families), "{all:?}");
    matrix(&all);
    dg.terminate();
    let _dg = g.daemon(&[]).ready();
    for host in [&g, &l] {
        host.sees_peers(2 * families);
    }
    matrix(&all);
    lab.check_invariants();
}

/// One test for each mode and family, of all backends.
fn every_backend(name: &str, nftables: bool, dual: bool) {
    for (number, backend) in
        [r#"{"Type":"vxlan"}"#, r#"{"Type":"vxlan","DirectRouting":true}"#, r#"{"Type":"host-gw"}"#]
            .into_iter()
            .enumerate()
    {
        eprintln!("{name}: {backend}");
        mixed(&format!("{name}{number}"), nftables, backend, dual);
    }
}

#[test]
fn mixed_clusters_with_flannel_by_iptables() {
    every_backend("mixed_ipt", false, false);
}

#[test]
fn mixed_clusters_with_flannel_by_nftables() {
    every_backend("mixed_nft", true, false);
}

#[test]
fn mixed_dual_stack_clusters_with_flannel_by_iptables() {
    every_backend("mixed_ipt6", false, true);
}

#[test]
fn mixed_dual_stack_clusters_with_flannel_by_nftables() {
    every_backend("mixed_nft6", true, true);
}
