//! Who is seen as the source: every line of the masquerade table, with a packet's word for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use loden_proto::Family;
use loden_tests::story::{Cluster, SOON, Stack, VXLAN};
use loden_tests::{Container, Host, Lab, Ns, eventually, matrix, probe};

const PORT: u16 = 4000;

/// Hosts a and b with a container each, and a machine that is no member.
struct Scene {
    cluster: Cluster<2>,
    a1: Container,
    b1: Container,
    outside: Arc<Ns>,
}

impl Scene {
    fn start(name: &str, flags: &[&str]) -> Self {
        let cluster = Cluster::start(name, VXLAN, flags);
        let [a, b] = &cluster.hosts;
        let (a1, b1) = (a.container("a1"), b.container("b1"));
        let outside = cluster.lab.outside();
        Self { cluster, a1, b1, outside }
    }

    fn hosts(&self) -> &[Host; 2] {
        &self.cluster.hosts
    }

    /// The source of a datagram from a1 to an address of the outside.
    fn source_outside(&self, target: IpAddr) -> Option<IpAddr> {
        one_way(self.a1.ns(), self.a1.address(), &self.outside, target)
    }
}

fn outside() -> IpAddr {
    Lab::OUTSIDE.parse().expect("an address")
}

/// Source of a datagram as it arrives; nothing has to find back.
fn one_way(from: &Ns, source: IpAddr, to: &Ns, target: IpAddr) -> Option<IpAddr> {
    one_way_by(from, source, source, to, target)
}

/// The same for groups, by the interface with this address.
fn one_way_by(from: &Ns, source: IpAddr, by: IpAddr, to: &Ns, target: IpAddr) -> Option<IpAddr> {
    let target = SocketAddr::new(target, PORT);
    let send = || probe::send_datagram(from, source, target, by);
    probe::datagram_source(to, target, send).map(|s| s.ip())
}

#[test]
fn container_to_container_keeps_its_source() {
    let scene = Scene::start("masq_inside", &[]);
    // The matrix looks at sources.
    matrix(&[&scene.a1, &scene.b1]);
    assert_eq!(probe::tcp_source(scene.a1.ns(), scene.b1.echo().ip()), Some(scene.a1.address()));
    scene.cluster.lab.check_invariants();
}

#[test]
fn container_to_outside_is_seen_as_its_host() {
    let scene = Scene::start("masq_out", &[]);
    let _echo = probe::Echo::start(&scene.outside, outside());
    let host = scene.hosts()[0].address();
    assert_eq!(probe::udp_source(scene.a1.ns(), outside()), Some(host));
    assert_eq!(probe::tcp_source(scene.a1.ns(), outside()), Some(host));
    // Another host's own address is outside the network too.
    let b = &scene.hosts()[1];
    let _echo = probe::Echo::start(&b.ns(), b.address());
    assert_eq!(probe::udp_source(scene.a1.ns(), b.address()), Some(host));
    scene.cluster.lab.check_invariants();
}

#[test]
fn anything_to_the_own_subnet_keeps_its_source() {
    let scene = Scene::start("masq_own", &[]);
    let a = &scene.hosts()[0];
    scene.outside.ip(&format!("route add {} via {}", a.subnet(), a.address()));
    let target = scene.a1.echo().ip();
    assert_eq!(probe::udp_source(&scene.outside, target), Some(outside()));
    assert_eq!(probe::tcp_source(&scene.outside, target), Some(outside()));
    let gateway = a.subnet().gateway();
    assert_eq!(probe::udp_source(&a.ns(), target), Some(gateway), "the host itself, by its bridge");
    scene.cluster.lab.check_invariants();
}

#[test]
fn outside_to_a_remote_subnet_is_seen_as_the_vtep_so_that_replies_find_back() {
    let scene = Scene::start("masq_inbound", &[]);
    let [a, b] = scene.hosts();
    scene.outside.ip(&format!("route add {} via {}", b.subnet(), a.address()));
    let (target, vtep) = (scene.b1.echo().ip(), a.subnet().address());
    assert_eq!(probe::udp_source(&scene.outside, target), Some(vtep));
    assert_eq!(probe::tcp_source(&scene.outside, target), Some(vtep));
    scene.cluster.lab.check_invariants();
}

#[test]
fn inbound_masquerade_can_be_turned_off() {
    let scene = Scene::start("masq_inbound_off", &["--masq-inbound=false"]);
    let [a, b] = scene.hosts();
    scene.outside.ip(&format!("route add {} via {}", b.subnet(), a.address()));
    let target = scene.b1.address();
    assert_eq!(one_way(&scene.outside, outside(), scene.b1.ns(), target), Some(outside()));
    scene.cluster.lab.check_invariants();
}

#[test]
fn a_host_reaches_remote_containers_under_its_vtep_address() {
    let scene = Scene::start("masq_host", &[]);
    let [a, _] = scene.hosts();
    let target = scene.b1.echo().ip();
    assert_eq!(probe::udp_source(&a.ns(), target), Some(a.subnet().address()), "chosen by the kernel");
    // A program that bound itself to the underlay address.
    let source = probe::udp_source_bound(&a.ns(), a.address(), target);
    assert_eq!(source, Some(a.subnet().address()), "masqueraded");
    scene.cluster.lab.check_invariants();
}

#[test]
fn link_local_and_multicast_are_not_masqueraded() {
    let scene = Scene::start("masq_not", &[]);
    let a = &scene.hosts()[0];
    let link_local: IpAddr = "169.254.9.9".parse().expect("an address");
    scene.outside.ip("addr add 169.254.9.9/32 dev eth0");
    a.ip("route add 169.254.9.9/32 dev eth0");
    assert_eq!(scene.source_outside(link_local), Some(scene.a1.address()));
    let gateway = a.subnet().gateway();
    let group = Ipv4Addr::new(239, 9, 9, 9).into();
    let seen = one_way_by(&a.ns(), gateway, a.address(), &scene.outside, group);
    assert_eq!(seen, Some(gateway));
    // And the control: the same sender to a unicast address is.
    assert_eq!(one_way(&a.ns(), gateway, &scene.outside, outside()), Some(a.address()));
    scene.cluster.lab.check_invariants();
}

#[test]
fn cidrs_can_be_exempted() {
    let scene =
        Scene::start("masq_cidr", &["--no-masq-cidr=192.168.77.128/25", "--no-masq-cidr=172.31.0.0/16"]);
    assert_eq!(scene.source_outside(outside()), Some(scene.a1.address()));
    let b = &scene.hosts()[1];
    let _echo = probe::Echo::start(&b.ns(), b.address());
    let seen = probe::udp_source(scene.a1.ns(), b.address());
    assert_eq!(seen, Some(scene.hosts()[0].address()), "others are masqueraded still");
    scene.cluster.lab.check_invariants();
}

#[test]
fn masquerade_can_be_turned_off() {
    let scene = Scene::start("masq_off", &["--ip-masq=false"]);
    assert_eq!(scene.source_outside(outside()), Some(scene.a1.address()));
    let env = scene.hosts()[0].subnet_env().expect("subnet.env");
    assert!(!env.masquerade, "subnet.env tells Docker to masquerade itself: {env:?}");
    scene.cluster.lab.check_invariants();
}

#[test]
fn packets_that_kube_proxy_marked_are_left_to_it() {
    let scene = Scene::start("masq_mark", &[]);
    // The mark is a bit, which other bits may accompany.
    scene.hosts()[0].ns().nft(
        "add table inet marker\nadd chain inet marker c { type filter hook prerouting priority -150; }\n\
         add rule inet marker c udp dport 4000 meta mark set meta mark or 0x4001",
    );
    assert_eq!(scene.source_outside(outside()), Some(scene.a1.address()));
    scene.cluster.lab.check_invariants();
}

#[test]
fn our_vxlan_packets_are_not_tracked() {
    let scene = Scene::start("notrack", &[]);
    matrix(&[&scene.a1, &scene.b1]);
    let a = &scene.hosts()[0];
    // Readable where the kernel has it; the rule shows in any case.
    if let Some(table) = a.read_file("/proc/net/nf_conntrack") {
        assert!(!table.contains("dport=8472"), "{table}");
    }
    let table = eventually(SOON, "the table is there", || loden_tests::kernel::table(a, "inet", "loden"));
    assert!(table.contains("notrack"), "{table}");
    scene.cluster.lab.check_invariants();
}

#[test]
fn ipv6_is_masqueraded_once_and_only_on_its_way_out() {
    each_source_is_right("masq6", Stack::Six);
}

#[test]
fn both_families_are_masqueraded_once_and_only_on_their_way_out() {
    each_source_is_right("masq46", Stack::Dual);
}

/// The lines of the masquerade table for UDP and TCP, in each family of the network.
fn each_source_is_right(name: &str, stack: Stack) {
    let flags = ["--no-masq-cidr=fd77::300/120", "--no-masq-cidr=192.168.77.192/27"];
    let cluster = Cluster::<2>::start(name, &stack.vxlan(), &flags);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    // Inside; the matrix looks at UDP's sources.
    matrix(&[&a1, &b1]);
    let outside = cluster.lab.outside();
    outside.ip("addr add fd77::333/64 dev eth0 nodad\naddr add 192.168.77.200/24 dev eth0");
    for family in stack.families() {
        let sees = |from: &Ns, target: IpAddr, source: IpAddr, why: &str| {
            assert_eq!(probe::udp_source(from, target), Some(source), "{why}, UDP to {target}");
            assert_eq!(probe::tcp_source(from, target), Some(source), "{why}, TCP to {target}");
        };
        let (own, host) = (a1.address_of(*family), a.address_of(*family));
        sees(a1.ns(), b1.address_of(*family), own, "inside");
        let there = Lab::outside_address(*family);
        let _outside = probe::Echo::start(&outside, there);
        sees(a1.ns(), there, host, "to the outside");
        let _b = probe::Echo::start(&b.ns(), b.address_of(*family));
        sees(a1.ns(), b.address_of(*family), host, "to another host itself");
        let exempt: IpAddr = match family {
            Family::V4 => [192, 168, 77, 200].into(),
            Family::V6 => [0xfd77, 0, 0, 0, 0, 0, 0, 0x333].into(),
        };
        assert_eq!(one_way(a1.ns(), own, &outside, exempt), Some(own), "an exempted CIDR");
        outside.ip(&format!(
            "route add {} via {host} src {there}\nroute add {} via {host} src {there}",
            a.subnet_of(*family),
            b.subnet_of(*family)
        ));
        a1.echo_on(own);
        sees(&outside, own, there, "from the outside to the own subnet");
        let vtep = a.subnet_of(*family).address();
        sees(&outside, b1.address_of(*family), vtep, "from the outside to a remote subnet");
        sees(&a.ns(), b1.address_of(*family), vtep, "from the host to a remote container");
        let bound = probe::udp_source_bound(&a.ns(), host, b1.address_of(*family));
        assert_eq!(bound, Some(vtep), "from the host's underlay address");
    }
    cluster.lab.check_invariants();
}
