//! VXLAN is accepted from current peers only.

use std::net::{SocketAddr, UdpSocket};

use loden_proto::Family;
use loden_tests::story::{Cluster, SOON, Stack, VXLAN, subnet_of};
use loden_tests::{Container, Etcd, Lab, Ns, eventually, matrix, probe};
use serde_json::json;

const ROGUE: &str = "10.5.250.0";
const ROGUE_MAC: &str = "02:00:00:00:00:fa";

/// Makes a namespace encapsulate for a container, as a peer of its host would.
fn encapsulate(ns: &Ns, to: &Container) {
    encapsulate_by(Family::V4, ns, "dev eth0", to);
}

/// The same in a family, from what the underlay says.
fn encapsulate_by(family: Family, ns: &Ns, underlay: &str, to: &Container) {
    let (rogue, length) = (subnet_of(family, 250).address(), family.bits());
    let host = to.host();
    let mac = host.device_of(family).mac;
    let address = host.address_of(family);
    // The gateway stands for the MAC only. It lies apart from every other route, or IPv6 refuses it.
    let vtep = match family {
        Family::V4 => "10.99.0.1",
        Family::V6 => "fd99::1",
    };
    ns.ip(&format!(
        "link add rogue type vxlan id 1 dstport 8472 {underlay} nolearning\n\
         link set rogue address {ROGUE_MAC}\naddr add {rogue}/{length} dev rogue{}\nlink set rogue up\n\
         neigh add {vtep} lladdr {mac} dev rogue nud permanent\n\
         route add {}/{length} via {vtep} dev rogue onlink src {rogue}",
        if family == Family::V6 { " nodad" } else { "" },
        to.address_of(family)
    ));
    ns.run(&["bridge", "fdb", "add", &mac.to_string(), "dev", "rogue", "dst", &address.to_string()]);
}

/// Whether a datagram from the namespace arrives in the container.
fn arrives(from: &Ns, to: &Container) -> bool {
    arrives_by(Family::V4, from, to)
}

fn arrives_by(family: Family, from: &Ns, to: &Container) -> bool {
    let target = SocketAddr::new(to.address_of(family), 4000);
    let source = subnet_of(family, 250).address();
    let send = || {
        let socket = from.within(|| UdpSocket::bind((source, 0))).expect("a UDP socket");
        let _ = socket.send_to(b"x", target);
    };
    probe::datagram_source(to.ns(), target, send).is_some()
}

#[test]
fn vxlan_from_a_stranger_is_dropped_and_counted_until_it_has_a_lease() {
    a_stranger_is_dropped("stranger", Stack::Four);
}

#[test]
fn vxlan_over_ipv6_from_a_stranger_is_dropped_and_counted_until_it_has_a_lease() {
    a_stranger_is_dropped("stranger6", Stack::Six);
}

#[test]
fn vxlan_over_ipv6_from_a_stranger_is_dropped_beside_ipv4() {
    a_stranger_is_dropped("stranger46", Stack::Dual);
}

fn a_stranger_is_dropped(name: &str, stack: Stack) {
    let cluster = Cluster::<2>::start(name, &stack.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let outside = cluster.lab.outside();
    let family = stack.newest();
    let stranger = Lab::outside_address(family);
    encapsulate_by(family, &outside, &format!("local {stranger} dev eth0"), &a1);
    assert!(!arrives_by(family, &outside, &a1), "a stranger's packet is dropped");
    eventually(SOON, "it is counted by address", || {
        let counted = a.try_status(&[])?.rejected_vxlan;
        if counted.get(&stranger).is_some_and(|n| *n > 0) { Ok(()) } else { Err(format!("{counted:?}")) }
    });
    // The control: with a lease the very same packet arrives.
    let mut lease = stack.lease(250);
    let (address, data) = match family {
        Family::V4 => ("PublicIP", "BackendData"),
        Family::V6 => ("PublicIPv6", "BackendV6Data"),
    };
    lease[address] = json!(stranger);
    lease[data]["VtepMAC"] = json!(ROGUE_MAC);
    let key = Etcd::key(stack.lease_key(250));
    cluster.etcd.put_leased(&key, &lease.to_string(), 3600);
    a.sees_peers(stack.peers(2));
    eventually(SOON, "a peer's packet arrives", || arrives_by(family, &outside, &a1));
    cluster.etcd.delete(&key);
    a.sees_peers(stack.peers(1));
    eventually(SOON, "a former peer's packet does not", || !arrives_by(family, &outside, &a1));
    cluster.lab.check_invariants();
}

#[test]
fn vxlan_over_ipv6_from_a_container_is_dropped() {
    let cluster = Cluster::<2>::start("inside_job6", &Stack::Six.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, a2, b1) = (a.container("a1"), a.container("a2"), b.container("b1"));
    matrix(&[&a1, &a2, &b1]);
    let own = format!("local {} dev eth0", a1.address());
    // Masqueraded, its packets would come from a peer's address; or against its own host.
    for target in [&b1, &a2] {
        encapsulate_by(Family::V6, a1.ns(), &own, target);
        assert!(!arrives_by(Family::V6, a1.ns(), target), "a container cannot pose as its host");
        a1.ns().ip("link del rogue");
    }
    matrix(&[&a1, &a2, &b1]);
    cluster.lab.check_invariants();
    // The control: it is our rule that stops it, which the daemon would put back.
    cluster.daemons[0].kill9();
    a.run(&["nft", "flush", "chain", "inet", "loden", "vxlan_forward"]);
    encapsulate_by(Family::V6, a1.ns(), &own, &b1);
    assert!(arrives_by(Family::V6, a1.ns(), &b1), "without the rule it arrives");
}

#[test]
fn the_source_check_can_be_turned_off() {
    let cluster = Cluster::<1>::start("no_check", VXLAN, &["--vtep-source-check=off"]);
    let [a] = &cluster.hosts;
    let a1 = a.container("a1");
    let outside = cluster.lab.outside();
    encapsulate(&outside, &a1);
    eventually(SOON, "the packet arrives", || arrives(&outside, &a1));
    cluster.lab.check_invariants();
}

#[test]
fn vxlan_from_a_container_is_dropped() {
    let cluster = Cluster::<2>::start("inside_job", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    // Masqueraded, its packets would come from a peer's address.
    a1.ns().ip(&format!("route add {}/32 via {}", b.address(), a.subnet().gateway()));
    encapsulate(a1.ns(), &b1);
    assert!(!arrives(a1.ns(), &b1), "a container cannot pose as its host");
    // Nor against its own host.
    a1.ns().ip("link del rogue");
    let a2 = a.container("a2");
    encapsulate(a1.ns(), &a2);
    assert!(!arrives(a1.ns(), &a2), "nor to its own host");
    a1.ns().ip("link del rogue");
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn vxlan_from_another_bridge_of_a_peer_is_dropped() {
    let cluster = Cluster::<2>::start("other_bridge", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    // As Docker has it: a bridge that Loden knows nothing of, masqueraded by its owner.
    let inside = Ns::new();
    a.ip(&format!(
        "link add br-x type bridge\naddr add 172.30.0.1/24 dev br-x\nlink set br-x up\n\
         link add vx type veth peer name eth0 netns {}\nlink set vx master br-x up",
        inside.path()
    ));
    inside.ip("addr add 172.30.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.30.0.1");
    a.run(&["sysctl", "-qw", "net.ipv4.conf.br-x.forwarding=1"]);
    a.run(&[
        "nft",
        "add table ip theirs; add chain ip theirs nat { type nat hook postrouting priority srcnat; }; \
         add rule ip theirs nat ip saddr 172.30.0.0/24 masquerade",
    ]);
    let probe = format!("{}:7", b.address());
    inside.exec(&["sh", "-c", &format!("echo | socat -u - UDP:{probe}")]);
    encapsulate(&inside, &b1);
    assert!(!arrives(&inside, &b1), "a peer's other containers cannot pose as it");
    // The control: it is our rule that stops it, which the daemon would put back.
    cluster.daemons[0].kill9();
    a.run(&["nft", "flush", "chain", "inet", "loden", "vxlan_forward"]);
    assert!(arrives(&inside, &b1), "without the rule it arrives");
}

#[test]
fn vxlan_inside_vxlan_is_dropped_even_without_the_source_check() {
    let cluster = Cluster::<2>::start("nested", VXLAN, &["--vtep-source-check=off"]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let mac = b.status().devices[0].mac;
    let vtep = b.subnet().address();
    a1.ns().ip(&format!(
        "link add rogue type vxlan id 1 dstport 8472 dev eth0 nolearning\n\
         link set rogue address {ROGUE_MAC}\naddr add {ROGUE}/32 dev rogue\nlink set rogue up\n\
         neigh add 10.99.0.1 lladdr {mac} dev rogue nud permanent\n\
         route add {}/32 via 10.99.0.1 dev rogue onlink src {ROGUE}",
        b1.address()
    ));
    a1.ns().run(&["bridge", "fdb", "add", &mac.to_string(), "dev", "rogue", "dst", &vtep.to_string()]);
    assert!(!arrives(a1.ns(), &b1), "a container cannot reach a VTEP through the overlay");
}
