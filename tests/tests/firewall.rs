//! Host firewalls: closed by default, open by the lines of docs/firewalls.md, and no wider than
//! they say.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;

use loden_tests::probe::{self, Echo};
use loden_tests::story::{Cluster, SOON};
use loden_tests::{Container, Daemon, Host, Lab, Ns, eventually, matrix};

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;

/// The lines to type in the chapter of docs/firewalls.md with this title: those of its blocks, in
/// order.
fn documented(title: &str) -> Vec<Vec<&'static str>> {
    let text = include_str!("../../docs/firewalls.md");
    let heading = format!("\n## {title}\n");
    let (_, chapter) = text.split_once(&heading).unwrap_or_else(|| panic!("no chapter {title}"));
    let chapter = chapter.split("\n## ").next().unwrap_or_default();
    let blocks = chapter.split("```").skip(1).step_by(2);
    blocks.map(|block| block.lines().filter(|line| !line.is_empty()).collect()).collect()
}

fn type_on(host: &Host, lines: &[&str]) {
    for line in lines {
        host.run(&["sh", "-c", line]);
    }
}

/// Two hosts with a container each, dual stack, and a machine that is no member. Everything serves.
struct Scene {
    lab: Lab,
    a: Host,
    _daemons: [Daemon; 2],
    a1: Container,
    b1: Container,
    outside: Arc<Ns>,
    _echos: Vec<Echo>,
}

impl Scene {
    fn start(name: &str) -> Self {
        let lab = Lab::new(name);
        lab.etcd().config(DUAL);
        let [a, b] = lab.hosts();
        let daemons = [&a, &b].map(|host| host.daemon(&[]));
        daemons.iter().for_each(Daemon::wait_ready);
        for host in [&a, &b] {
            host.sees_peers(2);
        }
        let (a1, b1) = (a.container("a1"), b.container("b1"));
        let outside = lab.outside();
        // A way from outside that nothing translates.
        outside.ip(&format!("route add {} via {}", a.subnet(), a.address()));
        for container in [&a1, &b1] {
            for address in container.addresses() {
                container.echo_on(*address);
            }
        }
        let mut echos: Vec<Echo> = outside_addresses().map(|ip| Echo::start(&outside, ip)).collect();
        echos.push(Echo::start(&a.ns(), a.address()));
        let scene = Self { lab, a, _daemons: daemons, a1, b1, outside, _echos: echos };
        scene.overlay_is_open("without a firewall");
        let rest = scene.the_rest();
        assert!(rest.iter().all(|(_, open)| *open), "without a firewall all is open: {rest:?}");
        scene
    }

    /// Every way that the overlay needs, each with whether a connection was made, by its own source.
    fn ways(&self) -> Vec<(String, bool)> {
        let mut ways = Vec::new();
        for (from, to) in [(&self.a1, &self.b1), (&self.b1, &self.a1)] {
            ways.extend(to.addresses().iter().map(|ip| (from.ns(), *ip, Some(of_family(from, *ip)))));
        }
        ways.extend(outside_addresses().map(|ip| (self.a1.ns(), ip, None)));
        tried(&ways)
    }

    /// What nobody asked to open: the host's own services and containers, from outside and below.
    fn the_rest(&self) -> Vec<(String, bool)> {
        let (host, a1) = (self.a.address(), self.a1.address());
        tried(&[(self.a1.ns(), host, None), (&self.outside, host, None), (&self.outside, a1, None)])
    }

    #[track_caller]
    fn overlay_is_open(&self, when: &str) {
        eventually(SOON, &format!("the overlay works {when}"), || {
            let ways = self.ways();
            if ways.iter().all(|(_, open)| *open) { Ok(()) } else { Err(format!("{ways:?}")) }
        });
    }

    /// By this manager's rules, which `status` names for VXLAN and for what is forwarded.
    #[track_caller]
    fn overlay_is_closed(&self, manager: &str) {
        let ways = self.ways();
        assert!(ways.iter().all(|(_, open)| !open), "by the default rules all is closed: {ways:?}");
        for words in
            ["drops VXLAN packets (UDP port 8472)", "from loden.1 to loden0", "from loden0 to loden6.1"]
        {
            self.a.status_names(&[manager, words]);
        }
    }

    #[track_caller]
    fn the_rest_is_closed(&self) {
        let ways = self.the_rest();
        assert!(ways.iter().all(|(_, open)| !open), "these nobody asked to open: {ways:?}");
    }

    fn table(&self) -> String {
        self.a.run(&["nft", "-s", "list", "table", "inet", "loden"])
    }

    #[track_caller]
    fn nothing_of_ours_was_touched(&self, table: &str) {
        assert_eq!(self.table(), table);
        assert!(self.a.status().repairs.is_empty(), "{:?}", self.a.status().repairs);
        self.lab.check_invariants();
    }
}

/// Tries connections all at once: a firewall that drops costs the patience of each.
fn tried(ways: &[(&Ns, IpAddr, Option<IpAddr>)]) -> Vec<(String, bool)> {
    let try_one = |&(from, target, source): &(&Ns, IpAddr, Option<IpAddr>)| {
        let seen = probe::tcp_source(from, target);
        let open = seen.is_some() && (source.is_none() || seen == source);
        (format!("to {target}, seen from {seen:?}"), open)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = ways.iter().map(|way| scope.spawn(move || try_one(way))).collect();
        threads.into_iter().map(|t| t.join().expect("a probe does not panic")).collect()
    })
}

fn outside_addresses() -> impl Iterator<Item = IpAddr> {
    [Lab::OUTSIDE, "fd77::250"].into_iter().map(|ip| ip.parse().expect("an address"))
}

fn of_family(container: &Container, like: IpAddr) -> IpAddr {
    let all = container.addresses();
    *all.iter().find(|ip| ip.is_ipv6() == like.is_ipv6()).unwrap_or_else(|| panic!("none in {all:?}"))
}

fn firewalld_opens_by_files_and_lines(backend: &str) {
    let scene = Scene::start(&format!("firewalld_{backend}"));
    let table = scene.table();
    let Some(firewalld) = scene.a.firewalld(backend) else { return };
    scene.overlay_is_closed("firewalld");
    scene.a.install_firewalld_files();
    type_on(&scene.a, &documented("firewalld")[0]);
    scene.overlay_is_open("with our zones and the port, after reloads");
    scene.a.status_is_content();
    scene.the_rest_is_closed();
    firewalld.restart();
    scene.overlay_is_open("after a restart of firewalld");
    scene.the_rest_is_closed();
    scene.nothing_of_ours_was_touched(&table);
}

#[test]
fn firewalld_with_nftables() {
    firewalld_opens_by_files_and_lines("nftables");
}

#[test]
fn firewalld_with_iptables() {
    firewalld_opens_by_files_and_lines("iptables");
}

fn ufw_opens_by_lines(scene: &Scene) {
    let table = scene.table();
    if !scene.a.ufw() {
        return;
    }
    scene.overlay_is_closed("ufw");
    scene.a.install_ufw_profile();
    type_on(&scene.a, &documented("ufw")[0]);
    scene.overlay_is_open("with the lines of the documentation");
    scene.a.status_is_content();
    scene.the_rest_is_closed();
    scene.a.run(&["ufw", "reload"]);
    scene.overlay_is_open("after a reload");
    scene.the_rest_is_closed();
    scene.nothing_of_ours_was_touched(&table);
}

#[test]
fn ufw_with_iptables_nft() {
    ufw_opens_by_lines(&Scene::start("ufw_nft"));
}

#[test]
fn ufw_with_iptables_legacy() {
    let scene = Scene::start("ufw_legacy");
    if scene.a.legacy_iptables() {
        ufw_opens_by_lines(&scene);
    }
}

#[test]
fn rules_of_ones_own() {
    let scene = Scene::start("own_rules");
    let table = scene.table();
    // What such rule sets have: answers, and what IPv6 lives on.
    let usual = "ct state established,related accept; meta l4proto ipv6-icmp accept;";
    scene.a.ns().nft(&format!(
        "table inet mine {{
            chain input {{ type filter hook input priority filter; policy drop; {usual} }}
            chain forward {{ type filter hook forward priority filter; policy drop; {usual} }}
        }}"
    ));
    scene.overlay_is_closed("inet mine");
    for line in &documented("Rules of your own")[0] {
        let (rule, hook) = line.split_once("# hook ").unwrap_or_else(|| panic!("no hook in {line}"));
        scene.a.ns().nft(&format!("add rule inet mine {hook} {rule}"));
    }
    scene.overlay_is_open("with the rules of the documentation");
    scene.a.status_is_content();
    scene.the_rest_is_closed();
    scene.nothing_of_ours_was_touched(&table);
}

#[test]
fn packets_without_encapsulation_need_one_more_rule() {
    let direct = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let cluster = Cluster::<2>::start("firewall_direct", direct, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    a.install_firewalld_files();
    if a.firewalld("nftables").is_none() || !b.ufw() {
        return;
    }
    b.install_ufw_profile();
    type_on(b, &documented("ufw")[0]);
    let ways = [(a1.ns(), b1.echo().ip(), None), (b1.ns(), a1.echo().ip(), None)];
    assert!(tried(&ways).iter().all(|(_, open)| !open), "{:?}", tried(&ways));
    a.status_names(&["firewalld", "from eth0 to loden0"]);
    b.status_names(&["ufw", "from eth0 to loden0"]);
    type_on(a, &documented("firewalld")[1]);
    a.run(&["firewall-cmd", "--reload"]);
    type_on(b, &documented("ufw")[1]);
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}
