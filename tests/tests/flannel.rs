//! Real flanneld: alone, as the proof that the lab is sound; beside Loden in one overlay; before
//! it on the same host.

use std::time::Duration;

use loden_tests::story::{SOON, VXLAN};
use loden_tests::{Daemon, Etcd, Host, Lab, PREFIX, eventually, kernel, matrix};

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

#[test]
fn loden_takes_a_flannel_host_over_without_losing_a_packet() {
    let lab = Lab::new("adoption");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let [a, b, c] = lab.hosts();
    let (Some(fa), Some(fb), Some(_fc)) = (flannel(&a), flannel(&b), flannel(&c)) else { return };
    let containers =
        [a.container_by_hand("a1", 10), b.container_by_hand("b1", 10), c.container_by_hand("c1", 10)];
    let [a1, b1, c1] = &containers;
    matrix(&[a1, b1, c1]);
    let link = kernel::link(&a, "flannel.1").expect("flannel's device");
    let before = etcd.subnets();
    let streams = [a1.stream_to(b1, 1000), c1.stream_to(a1, 1000)];
    fa.terminate();
    let da = a.daemon(&[]).ready();
    fb.terminate();
    let _db = b.daemon(&[]).ready();
    for host in [&a, &b] {
        host.sees_peers(2);
    }
    matrix(&[a1, b1, c1]);
    let status = a.status();
    assert_eq!(status.devices[0].name, "flannel.1", "the device is adopted: {status:#?}");
    assert_eq!(status.devices[0].mac.to_string(), kernel::text(&link, "address"));
    assert_eq!(kernel::link(&a, "flannel.1").expect("the device")["ifindex"], link["ifindex"]);
    assert_eq!(etcd.subnets(), before, "each host kept its subnet");
    da.restart();
    matrix(&[a1, b1, c1]);
    for stream in streams {
        let losses = stream.stop();
        assert_eq!(losses.lost, 0, "{losses:?}");
    }
    // A peer that flannel had programmed and that has left is removed as well.
    let gone = c.read_file("/run/flannel/subnet.env").expect("flannel's file");
    let gone = loden_proto::subnet_env::SubnetEnv::parse(&gone).expect("flannel's file").subnets[0];
    etcd.delete(&Etcd::key(gone));
    eventually(SOON, "its route is gone", || kernel::route(&a, &gone.to_string()).is_none());
    lab.check_invariants();
}

#[test]
fn a_host_can_go_back_to_flannel() {
    let lab = Lab::new("back");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let [a, b] = lab.hosts();
    let (Some(fa), Some(_fb)) = (flannel(&a), flannel(&b)) else { return };
    let (a1, b1) = (a.container_by_hand("a1", 10), b.container_by_hand("b1", 10));
    matrix(&[&a1, &b1]);
    let before = etcd.subnets();
    fa.terminate();
    let da = a.daemon(&[]).ready();
    a.sees_peers(1);
    da.terminate();
    fa.start();
    fa.wait_ready();
    matrix(&[&a1, &b1]);
    assert_eq!(etcd.subnets(), before);
}
