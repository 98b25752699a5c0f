//! Two real dockerd on two hosts, wired by `loden docker-opts` alone. Debian's Docker runs in
//! `make test`, with both kinds of iptables; Docker 29 in `make test-docker29`, with both of its
//! firewall back ends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use loden_proto::Family;
use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Container, Docker, Engine, Host, Lab, Ns, eventually, kernel, matrix, probe};
use serde_json::json;

/// Each scenario once for each engine.
macro_rules! scenarios {
    ($($name:ident)*) => {
        mod iptables_nft { $( #[test] fn $name() { super::$name(super::Engine::DebianNft); } )* }
        mod iptables_legacy { $( #[test] fn $name() { super::$name(super::Engine::DebianLegacy); } )* }
        mod docker29_iptables { $(
            #[test]
            #[ignore = "make test-docker29"]
            fn $name() { super::$name(super::Engine::Docker29Iptables); }
        )* }
        mod docker29_nftables { $(
            #[test]
            #[ignore = "make test-docker29"]
            fn $name() { super::$name(super::Engine::Docker29Nftables); }
        )* }
    };
}

scenarios! {
    containers_of_two_hosts_see_each_others_own_address
    a_published_port_answers_other_hosts_and_the_outside
    the_outside_is_masqueraded_exactly_once
    the_order_of_starts_does_not_matter
    docker_user_is_repaired_and_the_owners_rules_win
    docker_beside_cni_on_a_network_of_its_own
    docker_beside_cni_on_one_bridge
    a_docker_network_of_the_printed_line
    daemon_json_wires_it_too
    docker_left_to_its_defaults_is_cut_off
    outsiders_do_not_pass_for_peers
}

/// Hosts a and b, with ready daemons and Docker.
struct Scene {
    cluster: Cluster<2>,
    dockers: [Docker; 2],
}

impl Scene {
    /// Docker installed, not started; nothing where it cannot run.
    fn prepare(story: &str, engine: Engine) -> Option<Self> {
        let cluster = Cluster::start(&format!("{story}_{}", engine.name()), VXLAN, &[]);
        let [a, b] = &cluster.hosts;
        let dockers = [a.docker(engine)?, b.docker(engine)?];
        Some(Self { cluster, dockers })
    }

    /// Docker started on both hosts with the options that `loden docker-opts` prints.
    fn start(story: &str, engine: Engine) -> Option<Self> {
        let scene = Self::prepare(story, engine)?;
        for docker in &scene.dockers {
            docker.start(&docker.options(&[]));
        }
        Some(scene)
    }

    fn hosts(&self) -> &[Host; 2] {
        &self.cluster.hosts
    }
}

fn outside() -> IpAddr {
    Lab::OUTSIDE.parse().expect("an address")
}

/// The rules of `DOCKER-USER`.
fn user_chain(docker: &Docker) -> Vec<String> {
    let text = docker.run(&["iptables", "-S", "DOCKER-USER"]);
    text.lines().filter(|l| l.starts_with("-A")).map(str::to_owned).collect()
}

fn has_ours(docker: &Docker) -> Result<(), String> {
    let rules = user_chain(docker).join("\n");
    if rules.contains("\"loden loden\"") { Ok(()) } else { Err(rules) }
}

/// Whether a new connection gets through now. Unlike one more ping, it is a new one for the firewall too.
fn connects(from: &Container, to: &Container) -> bool {
    probe::tcp_source(from.ns(), to.echo().ip()).is_some()
}

/// Docker's own start has closed the host for all that is forwarded.
fn assert_closed(docker: &Docker) {
    if docker.engine().by_iptables() {
        let chain = docker.run(&["iptables", "-S", "FORWARD"]);
        assert!(chain.lines().any(|l| l == "-P FORWARD DROP"), "{chain}");
    }
}

/// The first answer tells who was seen; a loaded machine may take more than one try for it.
#[track_caller]
fn assert_source(what: &str, expected: IpAddr, mut probe: impl FnMut() -> Option<IpAddr>) {
    let seen = eventually(SOON, &format!("{what} is answered"), || probe().ok_or("no answer"));
    assert_eq!(seen, expected, "{what}");
}

#[track_caller]
fn assert_reach(from: &Container, to: &Container) {
    let (source, target) = (from.address(), to.echo().ip());
    let path = format!("{} to {}", from.name(), to.name());
    assert_source(&format!("TCP from {path}"), source, || probe::tcp_source(from.ns(), target));
    assert_source(&format!("UDP from {path}"), source, || probe::udp_source(from.ns(), target));
}

fn containers_of_two_hosts_see_each_others_own_address(engine: Engine) {
    let Some(scene) = Scene::start("docker_own", engine) else { return };
    let [a, b] = &scene.dockers;
    assert_closed(a);
    assert_closed(b);
    let (a1, a2, b1) = (a.container("a1"), a.container("a2"), b.container("b1"));
    for (container, host) in [(&a1, a.host()), (&a2, a.host()), (&b1, b.host())] {
        assert!(
            host.subnet().contains(container.address()),
            "{} has {}",
            container.name(),
            container.address()
        );
    }
    matrix(&[&a1, &a2, &b1]);
    assert_reach(&a1, &b1);
    assert_reach(&b1, &a2);
    let link = a1.ns().run(&["ip", "link", "show", "dev", "eth0"]);
    assert!(link.contains("mtu 1450"), "a container's packets fit into the tunnel: {link}");
    // Hosts reach containers of both, under an address of the overlay.
    let vtep = b.host().subnet().address();
    assert_source("TCP from host b", vtep, || probe::tcp_source(&b.host().ns(), a1.echo().ip()));
    assert!(probe::ping(&a.host().ns(), a1.address()));
    scene.cluster.lab.check_invariants();
}

fn a_published_port_answers_other_hosts_and_the_outside(engine: Engine) {
    let Some(scene) = Scene::start("docker_port", engine) else { return };
    let [a, b] = &scene.dockers;
    let a1 = a.container_with("a1", &["-p", "8080:7/tcp", "-p", "8080:7/udp"]);
    let b1 = b.container("b1");
    a1.echo();
    let published = SocketAddr::new(a.host().address(), 8080);
    let machine = scene.cluster.lab.outside();
    let clients = [("another host", b.host().ns(), b.host().address()), ("the outside", machine, outside())];
    for (who, ns, address) in clients {
        assert_source(who, address, || probe::tcp_source_at(&ns, published));
        assert_source(who, address, || probe::udp_source_at(&ns, published));
    }
    // A container that takes the way by the host's address leaves the overlay for it.
    assert_source("b1 by a's port", b.host().address(), || probe::tcp_source_at(b1.ns(), published));
    // By its own address it is reached as if nothing were published.
    assert_reach(&b1, &a1);
    scene.cluster.lab.check_invariants();
}

fn the_outside_is_masqueraded_exactly_once(engine: Engine) {
    let Some(scene) = Scene::start("docker_masq", engine) else { return };
    let [a, b] = &scene.dockers;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let host = a.host();
    let machine = scene.cluster.lab.outside();
    let _echo = probe::Echo::start(&machine, outside());
    assert_source("TCP to the outside", host.address(), || probe::tcp_source(a1.ns(), outside()));
    assert_source("UDP to the outside", host.address(), || probe::udp_source(a1.ns(), outside()));
    assert_reach(&a1, &b1);
    // One rule of the host has done it, and it is not Docker's.
    let theirs = [docker_nat(a), host.run(&["nft", "list", "ruleset"])].map(|t| t.to_lowercase());
    let [save, ruleset] = theirs;
    assert!(!save.contains("masquerade"), "{save}");
    let ours = kernel::table(host, "inet", "loden").expect("our table").to_lowercase();
    let count = |text: &str| text.lines().filter(|l| l.contains("masquerade")).count();
    assert_eq!(count(&ruleset), count(&ours), "{ruleset}");
    // Inside the overlay no connection is translated, on either host; to the outside, to one address.
    let inside = translations(host, b1.address());
    assert!(inside.iter().all(|seen| *seen == a1.address()), "{inside:?}");
    let inside = translations(b.host(), b1.address());
    assert!(inside.iter().all(|seen| *seen == a1.address()), "{inside:?}");
    let out = translations(host, outside());
    assert!(!out.is_empty() && out.iter().all(|seen| *seen == host.address()), "{out:?}");
    scene.cluster.lab.check_invariants();
}

/// Docker's own rules for translation.
fn docker_nat(docker: &Docker) -> String {
    match docker.engine().by_iptables() {
        true => docker.run(&["iptables-save", "-t", "nat"]),
        false => kernel::table(docker.host(), "ip", "docker-bridges").expect("Docker's table"),
    }
}

/// Where this host's connections to an address are answered to: the source as the other end sees it.
fn translations(host: &Host, target: IpAddr) -> Vec<IpAddr> {
    let table = host.run(&["conntrack", "-L", "-d", &target.to_string()]);
    // Each line has the original direction, then the answers'.
    let replies = table.lines().filter_map(|l| l.rsplit_once(" dst=")?.1.split(' ').next()?.parse().ok());
    replies.collect()
}

fn the_order_of_starts_does_not_matter(engine: Engine) {
    let Some(scene) = Scene::prepare("docker_order", engine) else { return };
    let [a, b] = &scene.dockers;
    // On a Docker comes while the daemon is away; on b after it.
    let options = a.options(&[]);
    scene.cluster.daemons[0].terminate();
    a.start(&options);
    b.start(&b.options(&[]));
    let always = ["--restart=always"];
    let (a1, b1) = (a.container_with("a1", &always), b.container_with("b1", &always));
    if engine.by_iptables() && !engine.is_29() {
        assert!(!connects(&b1, &a1), "nobody has opened Docker's firewall on a");
    }
    scene.cluster.daemons[0].start();
    scene.cluster.daemons[0].wait_ready();
    matrix(&[&a1, &b1]);
    assert_closed(a);
    // Docker restarted: its rules are written anew, and its containers with them.
    drop(a1);
    a.restart();
    let a1 = eventually(SOON, "a1 runs again", || a.try_find("a1"));
    matrix(&[&a1, &b1]);
    assert_reach(&b1, &a1);
    scene.cluster.lab.check_invariants();
}

fn docker_user_is_repaired_and_the_owners_rules_win(engine: Engine) {
    if !engine.by_iptables() {
        // That Docker has no such chain.
        return;
    }
    let Some(scene) = Scene::start("docker_user", engine) else { return };
    let [a, b] = &scene.dockers;
    let (a1, a2, b1) = (a.container("a1"), a.container("a2"), b.container("b1"));
    matrix(&[&a1, &a2, &b1]);
    a.run(&["iptables", "-F", "DOCKER-USER"]);
    eventually(engine.repair_limit(), "our rules are back after a flush", || has_ours(a));
    assert_reach(&b1, &a1);
    // A new chain of the owner's, in one stroke: who is refused stays refused.
    let refused = b1.address();
    let drop = format!("-A DOCKER-USER -s {refused}/32 -j DROP");
    a.feed(&["iptables-restore", "--noflush"], &format!("*filter\n-F DOCKER-USER\n{drop}\nCOMMIT\n"));
    eventually(engine.repair_limit(), "our rules are there beside the owner's", || has_ours(a));
    assert!(!connects(&b1, &a1) && !connects(&b1, &a2) && !b1.pings(a1.address()));
    assert!(user_chain(a).contains(&drop), "{:?}", user_chain(a));
    // A rule put in front of all by hand wins too, and taking the refusals away heals it.
    a.run(&["iptables", "-D", "DOCKER-USER", "-s", &refused.to_string(), "-j", "DROP"]);
    eventually(SOON, "b1 is heard again", || connects(&b1, &a1));
    a.run(&["iptables", "-I", "DOCKER-USER", "-s", &refused.to_string(), "-p", "icmp", "-j", "DROP"]);
    assert!(!b1.pings(a1.address()));
    assert_reach(&b1, &a1);
    a.restart();
    assert!(user_chain(a)[0].contains("icmp"), "{:?}", user_chain(a));
    scene.cluster.lab.check_invariants();
}

fn docker_beside_cni_on_a_network_of_its_own(engine: Engine) {
    let Some(scene) = Scene::prepare("docker_beside", engine) else { return };
    let [a, b] = scene.hosts();
    let [docker_a, docker_b] = &scene.dockers;
    // Docker as it comes, on a subnet of its own: the plugin's containers do not notice.
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    for docker in &scene.dockers {
        docker.start("");
        assert_closed(docker);
    }
    matrix(&[&a1, &b1]);
    let d1 = docker_a.container("d1");
    assert!(d1.address().to_string().starts_with("172."), "{}", d1.address());
    eventually(SOON, "Docker's containers reach ours as any client of the host", || {
        probe::tcp_source(d1.ns(), b1.echo().ip()).ok_or("no answer")
    });
    docker_a.remove(d1);
    // A second overlay for Docker, with a daemon of its own.
    let blue = r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#;
    scene.cluster.etcd.put("/blue/network/config", blue);
    let flags =
        ["--network=blue", "--run-dir=/run/blue", "--state-dir=/var/lib/blue", "--etcd-prefix=/blue/network"];
    let _blue = [a.daemon(&flags).ready(), b.daemon(&flags).ready()];
    for docker in &scene.dockers {
        docker.stop();
        docker.host().ip("link del docker0");
        docker.start(&docker.options(&["--run-dir=/run/blue", "--state-dir=/var/lib/blue"]));
    }
    let (d1, d2) = (docker_a.container("d1"), docker_b.container("d2"));
    assert!(d1.address().to_string().starts_with("10.6."), "{}", d1.address());
    matrix(&[&d1, &d2]);
    matrix(&[&a1, &b1]);
    assert_reach(&d2, &d1);
    assert_reach(&b1, &a1);
    scene.cluster.lab.check_invariants();
}

fn docker_beside_cni_on_one_bridge(engine: Engine) {
    let Some(scene) = Scene::prepare("docker_shared", engine) else { return };
    let [a, b] = &scene.dockers;
    for docker in &scene.dockers {
        docker.start(&docker.options(&["--shared"]));
        assert_closed(docker);
    }
    // Many of both at once.
    let containers: Vec<Container> = thread::scope(|scope| {
        let starts: Vec<_> = (0..6)
            .flat_map(|n| {
                let docker = scope.spawn(move || a.container(&format!("d{n}")));
                [docker, scope.spawn(move || a.host().container(&format!("c{n}")))]
            })
            .collect();
        starts.into_iter().map(|start| start.join().expect("it starts")).collect()
    });
    let addresses: BTreeSet<IpAddr> = containers.iter().map(Container::address).collect();
    assert_eq!(addresses.len(), 12, "{addresses:?}");
    assert!(addresses.iter().all(|a1| a.host().subnet().contains(*a1)), "{addresses:?}");
    assert!(kernel::link(a.host(), "docker0").is_none(), "one bridge");
    let (d1, c1) = (b.container("d1"), b.host().container("c1"));
    matrix(&[&containers[0], &containers[11], &d1, &c1]);
    assert_reach(&containers[0], &d1);
    assert_reach(&c1, &containers[10]);
    // Docker's containers keep its protection. The plugin's, which have none, show that the way is there;
    // Docker's own table of nftables protects the whole bridge.
    let machine = scene.cluster.lab.outside();
    machine.ip(&format!("route add {} via {}", a.host().subnet(), a.host().address()));
    let docker_s = containers.iter().find(|c| c.name() == "d1").expect("one of them");
    let plugin_s = containers.iter().find(|c| c.name() == "c1").expect("one of them");
    if engine.by_iptables() {
        let seen = || probe::tcp_source(&machine, plugin_s.echo().ip());
        assert_source("a port of the plugin's", outside(), seen);
    }
    assert_eq!(probe::tcp_source(&machine, docker_s.echo().ip()), None, "not published");
    scene.cluster.lab.check_invariants();
}

fn a_docker_network_of_the_printed_line(engine: Engine) {
    let Some(scene) = Scene::prepare("docker_network", engine) else { return };
    let containers = scene.dockers.each_ref().map(|docker| {
        docker.start("");
        assert_closed(docker);
        docker.run(&["sh", "-c", &docker.options(&["--network", "hdfs.example"])]);
        docker.container_with(
            &format!("{}1", docker.host().name()),
            &["--network=hdfs.example", "-p", "8080:7/tcp"],
        )
    });
    let [a1, b1] = &containers;
    matrix(&[a1, b1]);
    assert_reach(a1, b1);
    let host = scene.hosts()[0].address();
    let published = SocketAddr::new(host, 8080);
    a1.echo();
    let machine = scene.cluster.lab.outside();
    assert_source("the published port", outside(), || probe::tcp_source_at(&machine, published));
    let _echo = probe::Echo::start(&machine, outside());
    assert_source("TCP to the outside", host, || probe::tcp_source(a1.ns(), outside()));
    scene.cluster.lab.check_invariants();
}

fn daemon_json_wires_it_too(engine: Engine) {
    // In both families, since the file is the easier place for lists.
    let both = json!({
        "Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd10:5::/48",
        "Backend": {"Type": "vxlan"},
    });
    let lab = Lab::new(&format!("docker_json_{}", engine.name()));
    lab.etcd().config(&both.to_string());
    let [a, b] = lab.hosts();
    let _daemons = [&a, &b].map(|host| host.daemon(&[]).ready());
    let (Some(docker_a), Some(docker_b)) = (a.docker(engine), b.docker(engine)) else { return };
    let dockers = [docker_a, docker_b];
    for docker in &dockers {
        docker.options(&["--json", "--output=/etc/docker/daemon.json"]);
        docker.start("");
        assert_closed(docker);
    }
    let containers = dockers.each_ref().map(|docker| docker.container(&format!("{}1", docker.host().name())));
    let [a1, b1] = &containers;
    matrix(&[a1, b1]);
    assert_reach(a1, b1);
    let (from, to) = (a1.address_of(Family::V6), b1.address_of(Family::V6));
    assert_source("TCP by IPv6", from, || probe::tcp_source(a1.ns(), to));
    lab.check_invariants();
}

/// Docker keeps unpublished ports from the outside, also from one who claims to be of the overlay.
fn outsiders_do_not_pass_for_peers(engine: Engine) {
    let Some(scene) = Scene::start("docker_spoof", engine) else { return };
    let [a, b] = &scene.dockers;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let port = SocketAddr::new(a1.address(), 99);
    let arrives = |ns: &Ns, from: IpAddr| {
        probe::datagram_source(a1.ns(), port, || probe::send_datagram(ns, from, port, from)).is_some()
    };
    assert!(arrives(b1.ns(), b1.address()), "what a peer's container sends does arrive");
    let machine = scene.cluster.lab.outside();
    machine.ip(&format!("route add {} via {}", a.host().subnet(), a.host().address()));
    assert!(!arrives(&machine, outside()), "the outside under its own address");
    // A subnet that nobody leases, and a peer's.
    for source in ["10.5.250.5".parse().expect("an address"), b1.address()] {
        machine.ip(&format!("addr add {source}/32 dev eth0"));
        assert!(!arrives(&machine, source), "the outside as {source}");
    }
    scene.cluster.lab.check_invariants();
}

/// The other scenarios fail without what they show.
fn docker_left_to_its_defaults_is_cut_off(engine: Engine) {
    let Some(scene) = Scene::prepare("docker_default", engine) else { return };
    let [a, b] = &scene.dockers;
    b.start(&b.options(&[]));
    let b1 = b.container("b1");
    // Docker on a knows the subnet and nothing else.
    a.start(&without(&a.options(&[]), &["ip-masq", "allow-direct-routing", "bridge-accept-fwmark"]));
    let a1 = a.container("a1");
    let seen =
        eventually(SOON, "a1 is heard", || probe::udp_source(a1.ns(), b1.echo().ip()).ok_or("not yet"));
    assert_ne!(seen, a1.address(), "Docker hides its containers");
    a.host().status_names(&["Docker", "masquerades", "--ip-masq=false"]);
    if engine.is_29() {
        assert!(!connects(&b1, &a1), "Docker 29 lets nobody in");
        a.host().status_names(&["Docker", "from loden.1 to docker0", "loden docker-opts"]);
    } else {
        assert!(connects(&b1, &a1), "our rules open Docker's firewall");
    }
    a.remove(a1);
    // All but one of the options.
    for (left_out, enough) in
        [("allow-direct-routing", false), ("bridge-accept-fwmark", engine.by_iptables())]
    {
        let options = a.options(&[]);
        if !options.contains(left_out) {
            continue;
        }
        a.stop();
        a.start(&without(&options, &[left_out]));
        let a1 = a.container("a1");
        assert_eq!(connects(&b1, &a1), enough, "without {left_out}");
        match enough {
            true => a.host().status_is_content(),
            false => a.host().status_names(&["Docker", "from loden.1 to docker0", "loden docker-opts"]),
        }
        a.remove(a1);
    }
    // A subnet that another host may have by now.
    a.stop();
    a.start("DOCKER_OPTS=\"--bip=10.5.250.1/24 --ip-masq=false\"");
    a.host().status_names(&["docker0 holds 10.5.250.1", "loden docker-opts"]);
    // The right options, but nobody to open Docker's firewall.
    a.stop();
    a.start(&a.options(&[]));
    let a1 = a.container("a1");
    matrix(&[&a1, &b1]);
    a.host().status_is_content();
    scene.cluster.daemons[0].terminate();
    if engine.by_iptables() {
        a.run(&["iptables", "-F", "DOCKER-USER"]);
    }
    a.host().run(&["nft", "delete", "table", "inet", "loden"]);
    assert!(!connects(&b1, &a1), "nothing else lets it through");
}

/// The printed options but some.
fn without(environment: &str, names: &[&str]) -> String {
    let all = environment.lines().find_map(|l| l.strip_prefix("DOCKER_OPTS=")).expect("the options");
    let named = |option: &&str| !names.iter().any(|n| option.starts_with(&format!("--{n}=")));
    let kept: Vec<&str> = all.trim_matches('"').split_whitespace().filter(named).collect();
    format!("DOCKER_OPTS={}", kept.join(" "))
}
