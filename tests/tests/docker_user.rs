//! `DOCKER-USER`, the chain that Docker leaves to others: our rules in it, whichever iptables made it.
//! Docker itself is played by iptables here; docker.rs has the real one.

use std::time::Duration;

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Host, Lab, eventually, kernel, matrix};

/// What Docker up to 27 leaves behind at its start.
fn play_docker(host: &Host, iptables: &str) {
    for arguments in
        ["-N DOCKER-USER", "-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER", "-P FORWARD DROP"]
    {
        host.run(&[&[iptables], arguments.split(' ').collect::<Vec<_>>().as_slice()].concat());
    }
}

fn ours(host: &Host, iptables: &str) -> Vec<String> {
    let rules = host.run(&[iptables, "-S", "DOCKER-USER"]);
    rules.lines().filter(|l| l.contains("\"loden loden\"")).map(str::to_owned).collect()
}

/// Rules in the chain are ours within this time: by notice, or by looking every few seconds.
fn limit(iptables: &str) -> Duration {
    if iptables.ends_with("legacy") { Duration::from_secs(5) } else { SOON }
}

fn story(name: &str, iptables: &str) {
    let cluster = Cluster::<2>::start(name, VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    // Docker comes after us.
    play_docker(a, iptables);
    eventually(limit(iptables), "our rules are there", || {
        let rules = ours(a, iptables);
        if rules.len() == 6 { Ok(()) } else { Err(format!("{rules:?}")) }
    });
    matrix(&[&a1, &b1]);
    // What the owner appends stands behind Docker's closing rule, where nothing is ever asked.
    let before = ours(a, iptables);
    let appended = ["DOCKER-USER", "-s", "198.51.100.0/24", "-j", "DROP"];
    for command in ["-A", "-D"] {
        a.run(&[&[iptables, command], appended.as_slice()].concat());
        std::thread::sleep(Duration::from_secs(if iptables.ends_with("legacy") { 4 } else { 1 }));
        assert_eq!(ours(a, iptables), before);
        matrix(&[&a1, &b1]);
    }
    // Somebody flushes the chain; the owner adds a rule behind ours, which must come first.
    a.run(&[iptables, "-F", "DOCKER-USER"]);
    let refuse = ["-A", "DOCKER-USER", "-p", "icmp", "-j", "DROP"];
    a.run(&[&[iptables], refuse.as_slice()].concat());
    eventually(limit(iptables), "our rules are back behind the owner's", || {
        let rules = a.run(&[iptables, "-S", "DOCKER-USER"]);
        let first = rules.lines().find(|l| l.starts_with("-A")).unwrap_or_default();
        // One look: ours may stand in front of a rule that came while they were written.
        let all = rules.matches("\"loden loden\"").count() == 6;
        if first.contains("icmp") && all { Ok(()) } else { Err(rules) }
    });
    assert!(!a1.pings(b1.address()), "the owner's rule has the first word");
    assert_eq!(a1.source_seen_by(&b1), Some(a1.address()));
    // Nothing is written again and again.
    let repairs = a.status().repairs;
    std::thread::sleep(limit(iptables));
    assert_eq!(a.status().repairs, repairs);
    a.run(&[iptables, "-D", "DOCKER-USER", "-p", "icmp", "-j", "DROP"]);
    cluster.lab.check_invariants();
}

#[test]
fn peers_do_not_wait_for_the_lock_of_iptables() {
    let cluster = Cluster::<1>::start("docker_user_lock", VXLAN, &[]);
    let [a] = &cluster.hosts;
    play_docker(a, "iptables-legacy");
    eventually(limit("iptables-legacy"), "our rules are there", || ours(a, "iptables-legacy").len() == 6);
    let holder = a.spawn("holder", &["flock", "/run/xtables.lock", "sleep", "60"]);
    std::thread::sleep(Duration::from_secs(4));
    for n in 200..205 {
        let peer = cluster.etcd.put_peer(n);
        eventually(Duration::from_secs(2), "a peer is programmed", || kernel::route(a, &peer.to_string()));
    }
    a.status_is_content();
    assert!(holder.exited().is_none(), "the lock was held all the time");
    holder.kill9();
    cluster.lab.check_invariants();
}

#[test]
fn rules_stand_in_the_chain_of_iptables_nft() {
    story("docker_user_nft", "iptables-nft");
}

#[test]
fn rules_stand_in_the_chain_of_iptables_legacy() {
    story("docker_user_legacy", "iptables-legacy");
}

/// As the unit runs the daemon: not as root, with these capabilities alone.
fn unprivileged(name: &str, iptables: &str, groups: &str, capabilities: &str) {
    let lab = Lab::new(name);
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    a.run(&["sh", "-ec", "touch /run/xtables.lock; chmod 0640 /run/xtables.lock"]);
    let daemon = a.daemon_under(&a.as_nobody(groups, capabilities), &[]);
    daemon.wait_ready();
    play_docker(&a, iptables);
    eventually(limit(iptables), "our rules are there", || {
        let rules = ours(&a, iptables);
        if rules.len() == 6 { Ok(()) } else { Err(format!("{rules:?}\n{}", daemon.log())) }
    });
    lab.check_invariants();
}

#[test]
fn cap_net_admin_alone_is_enough_for_iptables_nft() {
    unprivileged("docker_user_cap", "iptables-nft", "--clear-groups", "+net_admin");
}

#[test]
fn the_drop_in_is_enough_for_iptables_legacy() {
    unprivileged("docker_user_raw", "iptables-legacy", "--groups=root", "+net_admin,+net_raw");
}

#[test]
fn cleanup_takes_our_rules_out() {
    let cluster = Cluster::<1>::start("docker_user_out", VXLAN, &[]);
    let [a] = &cluster.hosts;
    for iptables in ["iptables-nft", "iptables-legacy"] {
        play_docker(a, iptables);
        eventually(limit(iptables), "our rules are there", || ours(a, iptables).len() == 6);
    }
    cluster.daemons[0].terminate();
    let told = a.loden(&["cleanup", "--dry-run"]).expect_success();
    assert!(told.contains("DOCKER-USER"), "{told}");
    a.loden(&["cleanup"]).expect_success();
    for iptables in ["iptables-nft", "iptables-legacy"] {
        assert_eq!(a.run(&[iptables, "-S", "DOCKER-USER"]).lines().count(), 2, "the chain and its RETURN");
    }
}
