//! IPv6, beside IPv4 and alone.

use std::net::IpAddr;

use loden_tests::story::SOON;
use loden_tests::{Container, Etcd, Lab, eventually, kernel, probe};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const SIX: &str =
    r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

fn of_family(container: &Container, v6: bool) -> IpAddr {
    let all = container.addresses();
    *all.iter().find(|a| a.is_ipv6() == v6).unwrap_or_else(|| panic!("no such address in {all:?}"))
}

fn reach(from: &Container, to: &Container, v6: bool) {
    let (source, target) = (of_family(from, v6), of_family(to, v6));
    eventually(SOON, &format!("{source} reaches {target}"), || from.pings(target));
    let _echo = to.echo_on(target);
    assert_eq!(probe::udp_source(from.ns(), target), Some(source));
    assert_eq!(probe::tcp_source(from.ns(), target), Some(source));
}

#[test]
fn containers_reach_each_other_by_both_families() {
    let lab = Lab::new("dual");
    let etcd = lab.etcd();
    etcd.config(DUAL);
    let [a, b] = lab.hosts();
    let _daemons = [&a, &b].map(|h| h.daemon(&[]).ready());
    for host in [&a, &b] {
        host.sees_peers(2);
    }
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    for v6 in [false, true] {
        reach(&a1, &b1, v6);
        reach(&b1, &a1, v6);
    }
    assert_eq!(etcd.subnets().len(), 2, "one key holds both subnets: {:?}", etcd.subnets());
    // flanneld stands still for a minute at one that has no IPv6 address yet.
    for key in etcd.subnets() {
        let version = etcd.revisions(&Etcd::key(&key)).expect("the lease")["version"].clone();
        assert_eq!(version, 1, "the lease was complete when it was first written: {key}");
    }
    let env = a.subnet_env().expect("subnet.env");
    assert_eq!((env.subnets.len(), env.mtu), (2, 1430), "the smaller MTU, IPv6's: {env:?}");
    lab.check_invariants();
}

#[test]
fn ipv6_to_the_outside_is_masqueraded() {
    let lab = Lab::new("dual_masq");
    lab.etcd().config(DUAL);
    let a = lab.host("a");
    let _a = a.daemon(&[]).ready();
    eventually(SOON, "a holds a subnet", || a.held_subnet());
    let a1 = a.container("a1");
    let outside: IpAddr = "fd77::250".parse().expect("an address");
    let _echo = probe::Echo::start(&lab.outside(), outside);
    let host: IpAddr = "fd77::11".parse().expect("an address");
    eventually(SOON, "the outside sees the host", || match probe::udp_source(a1.ns(), outside) {
        Some(seen) if seen == host => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.check_invariants();
}

#[test]
fn ipv6_objects_are_repaired_as_well() {
    let lab = Lab::new("dual_repair");
    lab.etcd().config(DUAL);
    let [a, b] = lab.hosts();
    let _daemons = [&a, &b].map(|h| h.daemon(&[]).ready());
    a.sees_peers(2);
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    reach(&a1, &b1, true);
    let device = a.status().devices.iter().map(|d| d.name.clone()).find(|n| n.starts_with("loden6"));
    let device = device.expect("an IPv6 device");
    for damage in [format!("link del {device}"), format!("link set {0} down\nlink set {0} up", device)] {
        a.ip(&damage);
        eventually(SOON, &format!("after `{damage}` all is back"), || a.kernel_matches_status());
        reach(&a1, &b1, true);
        reach(&a1, &b1, false);
    }
    assert!(kernel::link(&a, &device).is_some());
    lab.check_invariants();
}

#[test]
fn ipv6_alone() {
    let lab = Lab::new("six");
    let etcd = lab.etcd();
    etcd.config(SIX);
    let [a, b] = lab.hosts();
    let _daemons = [&a, &b].map(|h| h.daemon(&[]).ready());
    for host in [&a, &b] {
        host.sees_peers(1);
    }
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    reach(&a1, &b1, true);
    let keys = etcd.keys("/coreos.com/network/subnets");
    assert!(keys.is_empty(), "flannel cannot parse a key without an IPv4 subnet: {keys:?}");
    lab.check_invariants();
}
