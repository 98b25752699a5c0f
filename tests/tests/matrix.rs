//! Hosts find each other and containers reach containers.

use std::collections::BTreeSet;

use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Daemon, Host, Lab, PREFIX, eventually, matrix};
use serde_json::{Value, json};

#[test]
fn six_containers_on_three_hosts_reach_each_other() {
    all_reach_each_other("matrix", Stack::Four);
}

#[test]
fn six_containers_reach_each_other_by_both_families() {
    all_reach_each_other("matrix46", Stack::Dual);
}

#[test]
fn six_containers_reach_each_other_by_ipv6_alone() {
    all_reach_each_other("matrix6", Stack::Six);
}

fn all_reach_each_other(name: &str, stack: Stack) {
    let cluster = Cluster::<3>::start(name, &stack.vxlan(), &[]);
    let containers: Vec<_> =
        cluster.hosts.iter().flat_map(|h| [1, 2].map(|n| h.container(&format!("{}{n}", h.name())))).collect();
    for container in &containers {
        assert_eq!(container.addresses().len(), stack.families().len(), "{container:?}");
        for family in stack.families() {
            let subnet = container.host().subnet_of(*family);
            assert!(subnet.contains(container.address_of(*family)), "{container:?}");
        }
    }
    matrix(&containers.iter().collect::<Vec<_>>());
    assert_eq!(cluster.etcd.subnets().len(), 3, "one key for each host: {:?}", cluster.etcd.subnets());
    for daemon in &cluster.daemons {
        assert!(!daemon.log().contains("refused"), "each lease is whole from the first:\n{}", daemon.log());
    }
    // flanneld drops all its peers on a key that it cannot parse, such as one without an IPv4 subnet.
    let for_flannel = cluster.etcd.keys(&format!("{PREFIX}/subnets")).len();
    assert_eq!(for_flannel, if stack == Stack::Six { 0 } else { 3 });
    cluster.lab.check_invariants();
}

#[test]
fn twenty_daemons_at_once_share_twenty_subnets() {
    let config = Stack::Four.config(json!({"Type": "vxlan"}), (1, 20));
    twenty_share_twenty("twenty", Stack::Four, &config);
}

#[test]
fn twenty_daemons_at_once_share_twenty_subnets_of_each_family() {
    // So many IPv6 subnets that no two hosts draw one key: etcd sees no conflict where two draw one IPv4
    // subnet.
    let mut config: Value =
        serde_json::from_str(&Stack::Dual.config(json!({"Type": "vxlan"}), (1, 20))).expect("JSON");
    config["IPv6SubnetMax"] = json!("fd00:10:5:ffff::");
    twenty_share_twenty("twenty46", Stack::Dual, &config.to_string());
}

fn twenty_share_twenty(name: &str, stack: Stack, config: &str) {
    let lab = Lab::new(name);
    let etcd = lab.etcd();
    let hosts: Vec<Host> = (0..20).map(|n| lab.host(&format!("h{n}"))).collect();
    // All wait for the config, so that all claim in the same instant.
    let daemons: Vec<Daemon> = hosts.iter().map(|h| h.daemon(&[])).collect();
    etcd.config(config);
    for daemon in &daemons {
        daemon.wait_ready();
    }
    let held = |h: &Host| eventually(SOON, "every host holds a subnet", || h.held_key());
    let keys: Vec<_> = hosts.iter().map(held).collect();
    let subnets: BTreeSet<_> = keys.iter().flat_map(|k| k.subnets()).collect();
    assert_eq!(subnets.len(), stack.peers(20), "{subnets:?}");
    assert_eq!(etcd.subnets().len(), 20);
    for host in &hosts {
        host.sees_peers(stack.peers(19));
    }
    lab.check_invariants();
}

#[test]
fn the_host_that_finds_no_subnet_says_so_and_gets_the_one_that_is_freed() {
    gets_the_one_that_is_freed("exhausted", Stack::Four);
}

#[test]
fn the_host_that_finds_no_ipv6_subnet_says_so_and_gets_the_one_that_is_freed() {
    gets_the_one_that_is_freed("exhausted6", Stack::Six);
}

fn gets_the_one_that_is_freed(name: &str, stack: Stack) {
    let lab = Lab::new(name);
    let etcd = lab.etcd();
    etcd.config(&stack.config(json!({"Type": "vxlan"}), (1, 2)));
    let [a, b] = lab.hosts();
    let taken = etcd.put_host(stack, 1);
    let _a = a.daemon(&[]).ready();
    let _b = b.daemon(&[]);
    eventually(SOON, "b says that no subnet is free", || {
        let status = b.try_status(&[])?;
        let said = status.problems.iter().any(|p| p.contains("subnet"));
        if said && status.lease.is_none() { Ok(()) } else { Err(format!("{status:#?}")) }
    });
    etcd.delete(&loden_tests::Etcd::key(taken));
    assert_eq!(eventually(SOON, "b takes the freed subnet", || b.held_key()), taken);
    lab.check_invariants();
}
