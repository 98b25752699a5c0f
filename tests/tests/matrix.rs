//! Hosts find each other and containers reach containers.

use std::collections::BTreeSet;

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Daemon, Host, Lab, eventually, matrix};

#[test]
fn six_containers_on_three_hosts_reach_each_other() {
    let cluster = Cluster::<3>::start("matrix", VXLAN, &[]);
    let containers: Vec<_> =
        cluster.hosts.iter().flat_map(|h| [1, 2].map(|n| h.container(&format!("{}{n}", h.name())))).collect();
    matrix(&containers.iter().collect::<Vec<_>>());
    for container in &containers {
        assert!(container.host().subnet().contains(container.address()), "{container:?}");
    }
    cluster.lab.check_invariants();
}

#[test]
fn twenty_daemons_at_once_share_twenty_subnets() {
    let lab = Lab::new("twenty");
    let etcd = lab.etcd();
    let hosts: Vec<Host> = (0..20).map(|n| lab.host(&format!("h{n}"))).collect();
    // All wait for the config, so that all claim in the same instant.
    let daemons: Vec<Daemon> = hosts.iter().map(|h| h.daemon(&[])).collect();
    etcd.config(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.20.0","Backend":{"Type":"vxlan"}}"#,
    );
    for daemon in &daemons {
        daemon.wait_ready();
    }
    let held = |h: &Host| eventually(SOON, "every host holds a subnet", || h.held_subnet());
    let subnets: BTreeSet<_> = hosts.iter().map(held).collect();
    assert_eq!(subnets.len(), 20, "{subnets:?}");
    assert_eq!(etcd.subnets().len(), 20);
    for host in &hosts {
        host.sees_peers(19);
    }
    lab.check_invariants();
}

#[test]
fn the_host_that_finds_no_subnet_says_so_and_gets_the_one_that_is_freed() {
    let lab = Lab::new("exhausted");
    let etcd = lab.etcd();
    etcd.config(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.2.0","Backend":{"Type":"vxlan"}}"#,
    );
    let [a, b] = lab.hosts();
    let taken = etcd.put_peer(1);
    let _a = a.daemon(&[]).ready();
    let _b = b.daemon(&[]);
    eventually(SOON, "b says that no subnet is free", || {
        let status = b.try_status(&[])?;
        let said = status.problems.iter().any(|p| p.contains("subnet"));
        if said && status.lease.is_none() { Ok(()) } else { Err(format!("{status:#?}")) }
    });
    etcd.delete(&loden_tests::Etcd::key(taken));
    assert_eq!(eventually(SOON, "b takes the freed subnet", || b.held_subnet()), taken);
    lab.check_invariants();
}
