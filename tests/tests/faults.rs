//! etcd late, away, slow, wrong, emptied and compacted.

use std::time::Duration;

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Etcd, Host, Lab, always, eventually, kernel, matrix};

const A_WHILE: Duration = Duration::from_millis(1500);

#[test]
fn a_daemon_waits_for_etcd_and_then_for_the_config() {
    let lab = Lab::new("late_etcd");
    let etcd = lab.etcd_later();
    let a = lab.host("a");
    let daemon = a.daemon(&[]);
    always(A_WHILE, "it waits for etcd", || !daemon.is_ready() && daemon.exited().is_none());
    daemon.logs(&[Etcd::ADDRESS]);
    etcd.start();
    always(A_WHILE, "it waits for the config", || !daemon.is_ready() && daemon.exited().is_none());
    daemon.logs(&["no network config"]);
    etcd.config(VXLAN);
    daemon.wait_ready();
    assert_eq!(etcd.subnets().len(), 1);
    lab.check_invariants();
}

#[test]
fn a_daemon_waits_for_its_nic() {
    let lab = Lab::new("late_nic");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    a.forget_foreign();
    a.unplug();
    let daemon = a.daemon(&["--iface=eth0"]);
    always(A_WHILE, "it waits for eth0", || !daemon.is_ready() && daemon.exited().is_none());
    a.plug();
    daemon.wait_ready();
    eventually(SOON, "it holds a subnet", || a.held_subnet());
    lab.check_invariants();
}

#[test]
fn a_nic_that_went_away_and_came_back_carries_the_overlay_again() {
    let cluster = Cluster::<2>::start("nic_back", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    a.forget_foreign();
    a.unplug();
    std::thread::sleep(Duration::from_millis(300));
    a.plug();
    eventually(Duration::from_secs(30), "a1 reaches b1 again", || a1.pings(b1.address()));
    eventually(SOON, "a holds its lease", || a.held_subnet());
    cluster.lab.check_invariants();
}

#[test]
fn a_bad_config_is_explained_and_a_right_one_taken() {
    let lab = Lab::new("bad_config");
    let etcd = lab.etcd();
    let a = lab.host("a");
    etcd.config(r#"{"Network":"10.5.0.0/33","Backend":{"Type":"vxlan"}}"#);
    let daemon = a.daemon(&[]);
    daemon.logs(&["Network", "10.5.0.0/33"]);
    for wrong in [
        r#"{"Network":"#,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#,
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
    ] {
        etcd.config(wrong);
        always(Duration::from_millis(300), "it lives on", || daemon.exited().is_none() && !daemon.is_ready());
    }
    daemon.logs(&["wireguard"]);
    daemon.logs(&["16777216"]);
    etcd.config(VXLAN);
    daemon.wait_ready();
    let subnet = eventually(SOON, "a holds a subnet", || a.held_subnet());
    etcd.config("{}");
    eventually(SOON, "the config in force stays, and status says why", || {
        let status = a.try_status(&[])?;
        let pending = status.config.as_ref().and_then(|c| c.pending.clone());
        if pending.is_some_and(|p| p.contains("Network")) { Ok(()) } else { Err(format!("{status:#?}")) }
    });
    assert_eq!(a.subnet(), subnet);
    etcd.config(VXLAN);
    eventually(SOON, "nothing is pending", || {
        let config = a.try_status(&[])?.config;
        if config.as_ref().is_some_and(|c| c.pending.is_none()) { Ok(()) } else { Err(format!("{config:?}")) }
    });
    lab.check_invariants();
}

#[test]
fn an_emptied_etcd_takes_no_peers_until_the_hold_time_is_over() {
    let cluster = Cluster::<1>::start("emptied", VXLAN, &["--peer-hold=6s"]);
    let [a] = &cluster.hosts;
    for third in 200..204 {
        cluster.etcd.put_peer(third);
    }
    a.sees_peers(4);
    let subnet = a.subnet();
    cluster.etcd.wipe();
    cluster.etcd.config(VXLAN);
    all_held(a, 4);
    eventually(SOON, "a claims its own subnet in the new etcd", || cluster.etcd.get(&Etcd::key(subnet)));
    a.sees_peers(0);
    assert_eq!(a.subnet(), subnet);
    cluster.lab.check_invariants();
}

/// Status says that so many are held, and the kernel still has them.
fn all_held(host: &Host, count: usize) {
    eventually(SOON, "status says held", || {
        let status = host.try_status(&[])?;
        let held = status.peers.iter().filter(|p| p.state == "held").count();
        if held == count { Ok(()) } else { Err(format!("{:#?} {:?}", status.peers, status.etcd)) }
    });
    for third in (200..).take(count) {
        assert!(
            kernel::route(host, &format!("10.5.{third}.0/24")).is_some(),
            "the route to 10.5.{third}.0/24"
        );
    }
}

#[test]
fn an_etcd_emptied_while_the_daemon_was_down_takes_no_peers_either() {
    let cluster = Cluster::<1>::start("emptied2", VXLAN, &["--peer-hold=6s"]);
    let [a] = &cluster.hosts;
    for third in 200..204 {
        cluster.etcd.put_peer(third);
    }
    a.sees_peers(4);
    cluster.daemons[0].kill9();
    cluster.etcd.wipe();
    cluster.etcd.config(VXLAN);
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    all_held(a, 4);
    // One of them comes back and wins at once.
    cluster.etcd.put_peer(201);
    eventually(SOON, "it is no longer held", || {
        let peers = a.try_status(&[])?.peers;
        let back = peers.iter().any(|p| p.subnet.to_string() == "10.5.201.0/24" && p.state == "programmed");
        if back { Ok(()) } else { Err(format!("{peers:#?}")) }
    });
    a.sees_peers(1);
    cluster.lab.check_invariants();
}

#[test]
fn a_single_peer_that_leaves_is_removed_at_once() {
    let cluster = Cluster::<1>::start("leaves", VXLAN, &[]);
    let [a] = &cluster.hosts;
    for third in 200..204 {
        cluster.etcd.put_peer(third);
    }
    a.sees_peers(4);
    cluster.etcd.delete(&Etcd::key("10.5.202.0/24"));
    a.sees_peers(3);
    assert!(kernel::route(a, "10.5.202.0/24").is_none());
    cluster.lab.check_invariants();
}

#[test]
fn peers_that_left_while_the_daemon_was_down_are_removed() {
    let cluster = Cluster::<1>::start("left", VXLAN, &[]);
    let [a] = &cluster.hosts;
    for third in 200..204 {
        cluster.etcd.put_peer(third);
    }
    a.sees_peers(4);
    cluster.daemons[0].kill9();
    cluster.etcd.delete(&Etcd::key("10.5.201.0/24"));
    cluster.etcd.put_leased(
        &Etcd::key("10.5.203.0/24"),
        &loden_tests::story::vxlan_lease([192, 168, 77, 233], "02:00:00:00:00:33"),
        3600,
    );
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    a.sees_peers(3);
    assert!(kernel::route(a, "10.5.201.0/24").is_none());
    let fdb = kernel::fdb(a, &a.device());
    assert!(fdb.iter().any(|f| f["mac"] == "02:00:00:00:00:33" && f["dst"] == "192.168.77.233"), "{fdb:?}");
    assert!(!fdb.iter().any(|f| f["dst"] == "192.168.77.203"), "its former VTEP is gone: {fdb:?}");
    cluster.lab.check_invariants();
}

#[test]
fn a_frozen_etcd_stops_no_traffic_and_no_container() {
    let cluster = Cluster::<2>::start("frozen", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let stream = a1.stream_to(&b1, 1000);
    cluster.etcd.freeze();
    let a2 = a.container("a2");
    matrix(&[&a2, &b1]);
    a.ip(&format!("route del {}", b.subnet()));
    eventually(SOON, "repairs go on", || kernel::route(a, &b.subnet().to_string()));
    std::thread::sleep(Duration::from_secs(2));
    cluster.etcd.thaw();
    stream.stop();
    let late = cluster.etcd.put_peer(200);
    eventually(SOON, "later leases arrive", || kernel::route(a, &late.to_string()));
    cluster.lab.check_invariants();
}

#[test]
fn changes_that_were_compacted_away_are_found() {
    let cluster = Cluster::<1>::start("compacted", VXLAN, &[]);
    let [a] = &cluster.hosts;
    for third in 200..204 {
        cluster.etcd.put_peer(third);
    }
    a.sees_peers(4);
    let daemon = &cluster.daemons[0];
    daemon.freeze();
    // A new server knows no watch; the old one had already put the changes into the connection.
    cluster.etcd.kill9();
    cluster.etcd.start();
    cluster.etcd.delete(&Etcd::key("10.5.200.0/24"));
    cluster.etcd.put_peer(210);
    cluster.etcd.compact();
    daemon.thaw();
    eventually(SOON, "the peer that came is there", || kernel::route(a, "10.5.210.0/24"));
    eventually(SOON, "the peer that left is gone", || kernel::route(a, "10.5.200.0/24").is_none());
    a.sees_peers(4);
    let late = cluster.etcd.put_peer(211);
    eventually(SOON, "the watch goes on", || kernel::route(a, &late.to_string()));
    cluster.lab.check_invariants();
}

#[test]
fn the_watch_goes_on_after_etcd_was_restarted() {
    let cluster = Cluster::<2>::start("etcd_restart", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let stream = a1.stream_to(&b1, 1000);
    cluster.etcd.kill9();
    eventually(Duration::from_secs(30), "status says that etcd is away", || !a.status().etcd.connected);
    cluster.etcd.start();
    let late = cluster.etcd.put_peer(200);
    eventually(Duration::from_secs(30), "later leases arrive", || kernel::route(a, &late.to_string()));
    eventually(SOON, "status says that etcd is back", || a.status().etcd.connected);
    let losses = stream.stop();
    assert_eq!(losses.lost, 0, "{losses:?}");
    cluster.lab.check_invariants();
}

#[test]
fn a_lease_that_expired_while_etcd_was_unreachable_is_claimed_again() {
    let cluster = Cluster::<2>::start("expired", VXLAN, &["--subnet-lease-ttl=6s"]);
    let [a, b] = &cluster.hosts;
    let subnet = a.subnet();
    // Only a is cut off, as by a firewall that drops: connections stay open.
    a.ns().nft(
        "add table inet cut\nadd chain inet cut output { type filter hook output priority 0; }\n\
         add rule inet cut output tcp dport 2379 drop",
    );
    let gone = || cluster.etcd.get(&Etcd::key(subnet)).is_none();
    eventually(Duration::from_secs(30), "the lease expires", gone);
    b.sees_peers(0);
    a.run(&["nft", "delete", "table", "inet", "cut"]);
    eventually(Duration::from_secs(30), "the subnet is claimed again", || {
        cluster.etcd.get(&Etcd::key(subnet))
    });
    b.sees_peers(1);
    cluster.lab.check_invariants();
}
