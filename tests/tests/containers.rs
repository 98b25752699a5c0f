//! Containers come and go, with the daemon or without it.

use std::collections::BTreeSet;
use std::thread;

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Container, eventually, kernel, matrix};

#[test]
fn thirty_containers_at_once_get_thirty_addresses() {
    let cluster = Cluster::<1>::start("thirty", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let containers: Vec<Container> = thread::scope(|scope| {
        let adds: Vec<_> = (0..30).map(|n| scope.spawn(move || a.container(&format!("c{n}")))).collect();
        adds.into_iter().map(|add| add.join().expect("ADD succeeds")).collect()
    });
    let addresses: BTreeSet<_> = containers.iter().map(Container::address).collect();
    assert_eq!(addresses.len(), 30, "{addresses:?}");
    matrix(&[&containers[0], &containers[14], &containers[29]]);
    eventually(SOON, "status counts them", || a.status().endpoints == 30);
    thread::scope(|scope| {
        for container in containers {
            scope.spawn(move || container.delete());
        }
    });
    let left: Vec<String> = kernel::links(a).into_iter().filter(|l| l.contains("veth")).collect();
    assert!(left.is_empty(), "{left:?}");
    eventually(SOON, "status counts none", || a.status().endpoints == 0);
    cluster.lab.check_invariants();
}

#[test]
fn containers_come_and_go_while_the_daemon_is_down() {
    let cluster = Cluster::<2>::start("daemon_down", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    cluster.daemons[0].kill9();
    let a2 = a.container("a2");
    matrix(&[&a1, &a2, &b1]);
    let freed = a1.address();
    a1.delete();
    let a3 = a.container("a3");
    assert_ne!(a3.address(), freed, "a freed address rests before it is given out again");
    matrix(&[&a2, &a3, &b1]);
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    matrix(&[&a2, &a3, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn a_container_whose_namespace_is_gone_is_deleted_all_the_same() {
    let cluster = Cluster::<1>::start("namespace_gone", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let a1 = a.container("a1");
    a.run(&["umount", "-l", "/run/netns/a1"]);
    a.run(&["rm", "/run/netns/a1"]);
    a1.delete();
    eventually(SOON, "status counts none", || a.status().endpoints == 0);
    cluster.lab.check_invariants();
}

#[test]
fn a_container_cannot_be_added_twice() {
    let cluster = Cluster::<1>::start("twice", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let a1 = a.container("a1");
    a1.add_again().expect_err("the second ADD of one container");
    assert!(a1.pings(a.subnet().gateway()), "the first one is unharmed");
    cluster.lab.check_invariants();
}
