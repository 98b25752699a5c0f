//! Restarts, crashes and reboots lose no packet that they need not lose.

use std::fs::File;
use std::thread::{self, sleep};
use std::time::Duration;

use loden_proto::Family;
use loden_tests::story::{Cluster, SOON, Stack, VXLAN};
use loden_tests::{Lab, eventually, kernel, matrix};

#[test]
fn a_killed_and_restarted_daemon_loses_no_packet() {
    kill_and_restart_under("kill9", Stack::Four, 1000);
}

#[test]
fn a_killed_and_restarted_daemon_loses_no_packet_of_ten_thousand_a_second() {
    kill_and_restart_under("kill9_fast", Stack::Four, 10_000);
}

#[test]
fn a_killed_and_restarted_daemon_loses_no_packet_of_an_ipv6_network() {
    kill_and_restart_under("kill9_6", Stack::Six, 1000);
}

#[test]
fn a_killed_and_restarted_daemon_loses_no_packet_of_either_family() {
    kill_and_restart_under("kill9_46", Stack::Dual, 1000);
}

/// As by a child that the former daemon started in its last moment.
#[test]
fn a_daemon_starts_although_its_lock_is_held_for_a_moment() {
    let lab = Lab::new("lock_held");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    a.write_file("/run/loden/loden.lock", "4711\n");
    let lock = a.ns().within_all(|| File::open("/run/loden/loden.lock").expect("the file"));
    lock.lock().expect("nobody else holds it");
    let daemon = a.daemon(&[]);
    thread::scope(|scope| {
        scope.spawn(|| {
            sleep(Duration::from_millis(300));
            drop(lock);
        });
        daemon.wait_ready();
    });
}

#[test]
fn what_somebody_added_while_the_daemon_was_away_goes_once_etcd_has_told_the_peers() {
    let cluster = Cluster::<2>::start("added_away", VXLAN, &[]);
    let [a, _] = &cluster.hosts;
    let device = a.device_of(Family::V4).name;
    cluster.daemons[0].terminate();
    a.run(&["nft", "add", "element", "inet", "loden", "peers4", "{ 198.51.100.9 }"]);
    a.run(&["bridge", "fdb", "append", "02:00:00:00:00:99", "dev", &device, "dst", "198.51.100.9"]);
    a.ip("route add 10.5.250.0/24 via 192.168.77.1 proto 177");
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    eventually(SOON, "nothing of it is left", || {
        let table = kernel::table(a, "inet", "loden").unwrap_or_default();
        let left = format!("{table}{:?}{:?}", kernel::fdb(a, &device), kernel::routes_in(a, "10.5.0.0/16"));
        match ["198.51.100.9", "00:99", "10.5.250.0"].into_iter().find(|part| left.contains(part)) {
            None => Ok(()),
            Some(part) => Err(part),
        }
    });
    matrix(&[&a.container("a1"), &cluster.hosts[1].container("b1")]);
}

fn kill_and_restart_under(name: &str, stack: Stack, per_second: u32) {
    let cluster = Cluster::<2>::start(name, &stack.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let before = a.status();
    let streams: Vec<_> = stack.families().iter().map(|f| a1.stream_by(*f, &b1, per_second)).collect();
    for _ in 0..3 {
        cluster.daemons[0].kill9();
        sleep(Duration::from_millis(200));
        cluster.daemons[0].start();
        cluster.daemons[0].wait_ready();
        sleep(Duration::from_millis(200));
    }
    a.sees_peers(stack.peers(1));
    for stream in streams {
        let losses = stream.stop();
        assert_eq!(losses.lost, 0, "{losses:?}");
    }
    let after = a.status();
    assert_eq!(after.lease.map(|l| l.subnets), before.lease.map(|l| l.subnets));
    assert_eq!(after.devices, before.devices, "MACs among them");
    cluster.lab.check_invariants();
}

#[test]
fn a_stopped_daemon_leaves_everything_in_place() {
    let cluster = Cluster::<2>::start("sigterm", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let stream = a1.stream_to(&b1, 1000);
    assert!(cluster.daemons[0].terminate().success(), "SIGTERM is a clean end");
    sleep(Duration::from_millis(500));
    let a2 = a.container("a2");
    matrix(&[&a1, &a2, &b1]);
    let losses = stream.stop();
    assert_eq!(losses.lost, 0, "{losses:?}");
    let status = a.status();
    assert_eq!(status.source, "kernel", "status reads the kernel while the daemon is down: {status:#?}");
    assert_eq!(status.peers.len(), 1, "{status:#?}");
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    a.sees_peers(1);
    cluster.lab.check_invariants();
}

#[test]
fn a_daemon_killed_at_any_moment_of_its_start_does_no_harm() {
    let cluster = Cluster::<2>::start("kill_early", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let subnet = a.subnet();
    let stream = a1.stream_to(&b1, 1000);
    for moment in (0..60).step_by(4) {
        cluster.daemons[0].kill9();
        cluster.daemons[0].start();
        sleep(Duration::from_millis(moment));
    }
    cluster.daemons[0].wait_ready();
    assert_eq!(eventually(SOON, "a holds its subnet", || a.held_subnet()), subnet);
    a.sees_peers(1);
    let losses = stream.stop();
    assert_eq!(losses.lost, 0, "{losses:?}");
    assert_eq!(cluster.etcd.subnets().len(), 2);
    cluster.lab.check_invariants();
}

#[test]
fn a_rebooted_host_is_back_without_etcd() {
    let cluster = Cluster::<3>::start("reboot", VXLAN, &[]);
    let [a, b, c] = &cluster.hosts;
    let (b1, c1) = (b.container("b1"), c.container("c1"));
    let before = a.status();
    // Peers are written down some seconds after they change.
    for peer in &before.peers {
        let subnet = peer.subnet.address().to_string();
        eventually(SOON, "its peers are in lasting state", || {
            a.exec(&["grep", "-rqF", &subnet, "/var/lib/loden"]).success()
        });
    }
    cluster.etcd.kill9();
    a.reboot();
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    let after = eventually(SOON, "peers are in the kernel", || {
        let status = a.kernel_matches_status()?;
        if status.peers.len() == 2 { Ok(status) } else { Err(format!("{status:#?}")) }
    });
    let lease = after.lease.expect("the last subnet is used at once");
    assert_eq!(lease.state, "unconfirmed");
    assert_eq!(lease.subnets, before.lease.expect("held").subnets);
    assert_eq!(after.devices[0].mac, before.devices[0].mac);
    let a1 = a.container("a1");
    matrix(&[&a1, &b1, &c1]);
    cluster.etcd.start();
    eventually(Duration::from_secs(30), "the lease is confirmed", || a.held_subnet());
    matrix(&[&a1, &b1, &c1]);
    cluster.lab.check_invariants();
}

#[test]
fn a_rebooted_host_takes_its_subnet_at_once() {
    let cluster = Cluster::<2>::start("reboot2", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let b1 = b.container("b1");
    let (subnet, mac) = (a.subnet(), a.status().devices[0].mac);
    a.reboot();
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    assert_eq!(eventually(SOON, "a holds a subnet", || a.held_subnet()), subnet);
    assert_eq!(a.status().devices[0].mac, mac);
    matrix(&[&a.container("a1"), &b1]);
    assert_eq!(cluster.etcd.subnets().len(), 2);
    cluster.lab.check_invariants();
}
