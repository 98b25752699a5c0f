//! systemd-networkd and NetworkManager: what they do to our devices, and that our files keep
//! them off.

use std::time::Duration;

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Host, Segment, always, eventually, kernel, matrix};

/// A match that many machines have: every device is networkd's.
const EVERYTHING: &str = "[Match]\nName=*\n\n[Network]\nIPv6AcceptRA=no\n";

/// Host ends of containers' veth pairs that hang on the bridge.
fn on_the_bridge(host: &Host) -> usize {
    let bridged = |name: &String| {
        kernel::link(host, name).is_some_and(|link| kernel::text(&link, "master") == "loden0")
    };
    kernel::links(host).iter().filter(|name| name.starts_with("veth")).filter(|name| bridged(name)).count()
}

/// A further card appears. When networkd sets one up, it removes foreign rules.
fn new_card(host: &Host) {
    host.add_nic("eth1", Segment::Second, &[]);
    eventually(SOON, "networkd has set eth1 up", || {
        let list = host.run(&["networkctl", "list", "--no-legend", "--no-pager"]);
        list.lines().any(|l| l.contains(" eth1 ") && l.contains(" configured"))
    });
}

#[test]
fn networkd_leaves_our_devices_routes_and_rules_alone() {
    let cluster = Cluster::<3>::start("networkd", VXLAN, &[]);
    let [a, b, c] = &cluster.hosts;
    let (a1, _b1, c1) = (a.container("a1"), b.container("b1"), c.container("c1"));
    for host in [a, b] {
        host.write_file("/etc/systemd/network/90-everything.network", EVERYTHING);
    }
    // What happens otherwise: containers are taken off their bridge (the daemon puts them back), and
    // foreign rules and routes go.
    b.forget_foreign();
    if b.networkd().is_none() {
        return;
    }
    eventually(SOON, "b's container was off its bridge", || b.status().repairs.contains_key("port"));
    new_card(b);
    eventually(SOON, "a foreign rule is gone", || b.run(&["ip", "rule", "show", "pref", "1234"]).is_empty());

    a.install_networkd_files();
    let networkd = a.networkd().expect("b has it");
    matrix(&[&a1, &a.container("a2"), &c1]);
    networkd.terminate();
    let networkd = a.networkd().expect("b has it");
    new_card(a);
    always(Duration::from_secs(1), "all stays in place", || on_the_bridge(a) == 2);
    matrix(&[&a1, &c1]);
    let list = a.run(&["networkctl", "list", "--no-legend", "--no-pager"]);
    let ours: Vec<&str> = list.lines().filter(|l| l.contains("loden") || l.contains("veth")).collect();
    assert_eq!(ours.len(), 4, "loden.1, loden0 and two host ends: {list}");
    assert!(ours.iter().all(|line| line.contains("unmanaged")), "{list}\n{}", networkd.log());
    assert!(a.status().repairs.is_empty(), "nothing had to be put back: {:?}", a.status().repairs);
    // Foreign rules, routes and nexthops are compared here.
    cluster.lab.check_invariants();
}

#[test]
fn udev_gives_our_devices_no_macs() {
    let cluster = Cluster::<1>::start("udev", VXLAN, &[]);
    let [a] = &cluster.hosts;
    if !a.exec(&["udevadm", "--version"]).success() {
        eprintln!("skipped: udevadm is not installed");
        return;
    }
    let mac = |name: &str| kernel::link(a, name).map(|link| kernel::text(&link, "address").to_owned());
    // What udev does when a device appears, for a device whose MAC the kernel drew.
    let appears = |name: &str| {
        a.ip(&format!("link add {name} type bridge"));
        let before = mac(name);
        a.run(&["udevadm", "test-builtin", "net_setup_link", &format!("/sys/class/net/{name}")]);
        before == mac(name)
    };
    assert!(!appears("loden9"), "without our file udev sets a MAC");
    a.install_networkd_files();
    for name in ["loden8", "flannel.8", "flannel-v6.8", "veth0123456789a"] {
        assert!(appears(name), "{name} keeps its MAC");
    }
    let before = mac("loden.1");
    a.run(&["udevadm", "test-builtin", "net_setup_link", "/sys/class/net/loden.1"]);
    assert_eq!(mac("loden.1"), before);
    for name in ["loden9", "loden8", "flannel.8", "flannel-v6.8", "veth0123456789a"] {
        a.ip(&format!("link del {name}"));
    }
    cluster.lab.check_invariants();
}

#[test]
fn network_manager_leaves_our_devices_alone() {
    let cluster = Cluster::<2>::start("network_manager", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let managed = |host: &Host| -> Vec<String> {
        let list = host.run(&["nmcli", "-t", "-f", "DEVICE,STATE", "device"]);
        let ours = list.lines().filter(|l| l.starts_with("loden") || l.starts_with("veth"));
        ours.filter(|l| !l.ends_with(":unmanaged")).map(str::to_owned).collect()
    };
    // What happens otherwise: it takes every device for one of its own.
    if !b.network_manager() {
        return;
    }
    eventually(SOON, "it has taken b's devices", || managed(b).len() == 3);
    a.install_network_manager_file();
    assert!(a.network_manager());
    let a2 = a.container("a2");
    matrix(&[&a1, &a2, &b1]);
    always(Duration::from_secs(1), "it takes none of a's", || match managed(a) {
        taken if taken.is_empty() => Ok(()),
        taken => Err(format!("{taken:?}")),
    });
    assert!(a.status().repairs.is_empty(), "nothing had to be put back: {:?}", a.status().repairs);
    cluster.lab.check_invariants();
}
