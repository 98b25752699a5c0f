//! Listings of real firewalls, as they were found on hosts of the lab.

use super::*;
use crate::options::Options;

fn around() -> Surroundings {
    let subnet = |text: &str| text.parse().expect(text);
    Surroundings {
        options: Options::named("loden"),
        families: vec![(subnet("10.5.0.0/16"), subnet("10.5.7.0/24"))],
        overlay: vec![(Family::V4, "loden.1".to_owned())],
        underlay: ("eth0".into(), vec!["192.168.77.11".parse().expect("ip")]),
        vxlan_port: Some(8472),
        peers: vec!["192.168.77.12".parse().expect("ip"), "192.168.77.13".parse().expect("ip")],
        bridges: Vec::new(),
    }
}

fn with_docker() -> Surroundings {
    let docker0 = Bridge { name: "docker0".into(), address: "10.5.7.1".parse().expect("ip") };
    Surroundings { bridges: vec![docker0], ..around() }
}

fn nft(json: &str) -> RuleSet {
    RuleSet::from_nft(json).expect("a listing")
}

fn legacy(save: &str) -> RuleSet {
    let mut rules = RuleSet::default();
    rules.add_iptables(save, BackEnd::Legacy, Family::V4);
    rules
}

#[track_caller]
fn problems(rules: &RuleSet, around: &Surroundings) -> Vec<String> {
    findings(rules, around).problems
}

/// Each problem holds the words at its place, and there are no others.
#[track_caller]
fn expect(problems: &[String], words: &[&[&str]]) {
    assert_eq!(problems.len(), words.len(), "{problems:#?}");
    for (problem, words) in problems.iter().zip(words) {
        assert!(words.iter().all(|w| problem.contains(w)), "{words:?} in {problem}");
    }
}

#[test]
fn a_host_without_firewall_has_no_problem() {
    assert_eq!(findings(&RuleSet::default(), &around()), Findings::default());
    assert!(RuleSet::from_nft("{}").is_err() && RuleSet::from_nft("x").is_err());
}

#[test]
fn firewalld_is_named_with_its_zone_and_commands() {
    let closed = problems(&nft(include_str!("fixtures/firewalld-closed.json")), &around());
    expect(
        &closed,
        &[
            &["firewalld", "8472", "eth0", "--zone=public --add-port=8472/udp", "--reload"],
            &[
                "firewalld",
                "from loden.1 to loden0",
                "from loden0 to loden.1",
                "--add-interface=loden0 --add-interface=loden.1",
            ],
        ],
    );
    let mut open = around();
    open.families.push(("fd00:5::/48".parse().expect("subnet"), "fd00:5:0:7::/64".parse().expect("subnet")));
    open.overlay.push((Family::V6, "loden6.1".into()));
    expect(&problems(&nft(include_str!("fixtures/firewalld-open.json")), &open), &[]);
}

#[test]
fn ufw_is_named_with_its_commands() {
    let closed = problems(&legacy(include_str!("fixtures/ufw-closed.save")), &around());
    expect(
        &closed,
        &[
            &["ufw", "ufw allow in on eth0 to any port 8472 proto udp"],
            &["ufw", "ufw route allow in on loden0; ufw route allow in on loden.1 out on loden0"],
        ],
    );
    expect(&problems(&legacy(include_str!("fixtures/ufw-open.save")), &around()), &[]);
}

#[test]
fn docker_up_to_27_masquerades_and_drops_by_policy() {
    let rules = legacy(include_str!("fixtures/docker-20.save"));
    expect(
        &problems(&rules, &with_docker()),
        &[
            &["Docker (chain FORWARD", "from loden.1 to docker0", "DOCKER-USER"],
            &["Docker (chain POSTROUTING", "masquerades", "--ip-masq=false"],
        ],
    );
    // With our rules in DOCKER-USER and Docker's masquerading off, nothing is left.
    let own = crate::docker::user_chain::rules(
        around().families[0].0,
        around().families[0].1,
        &around().options,
        None,
    );
    let ours: String = own.iter().map(|rule| format!("-A DOCKER-USER {rule}\n")).collect();
    let mended = include_str!("fixtures/docker-20.save")
        .replace("-A DOCKER-USER -j RETURN\n", &format!("{ours}-A DOCKER-USER -j RETURN\n"))
        .replace("-A POSTROUTING -s 10.5.7.0/24 ! -o docker0 -j MASQUERADE\n", "");
    expect(&problems(&legacy(&mended), &with_docker()), &[]);
}

#[test]
fn docker_29_needs_its_options_whatever_its_back_end() {
    for closed in [
        legacy(include_str!("fixtures/docker-29-closed.save")),
        nft(include_str!("fixtures/docker-29-nftables-closed.json")),
    ] {
        let problems = problems(&closed, &with_docker());
        assert!(
            problems.iter().any(|p| p.contains("Docker") && p.contains("loden docker-opts")),
            "{problems:#?}"
        );
        assert!(problems.iter().any(|p| p.contains("masquerades")), "{problems:#?}");
    }
    for open in [
        legacy(include_str!("fixtures/docker-29-open.save")),
        nft(include_str!("fixtures/docker-29-nftables-open.json")),
    ] {
        expect(&problems(&open, &with_docker()), &[]);
    }
}

#[test]
fn a_bridge_left_on_a_former_subnet_is_named() {
    let stray = Bridge { name: "docker0".into(), address: "10.5.3.1".parse().expect("ip") };
    let around = Surroundings { bridges: vec![stray], ..around() };
    expect(
        &problems(&RuleSet::default(), &around),
        &[&["docker0 holds 10.5.3.1", "10.5.7.0/24", "loden docker-opts"]],
    );
}

#[test]
fn a_policy_without_docker_is_named_as_nobodys() {
    let rules = legacy(
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n-A INPUT -p udp -m udp --dport 4789 -j ACCEPT\nCOMMIT\n",
    );
    expect(
        &problems(&rules, &around()),
        &[&["a firewall (chain INPUT of iptables-legacy filter)", "8472"], &["chain FORWARD"]],
    );
}

#[test]
fn what_the_model_does_not_know_is_taken_to_pass() {
    for rule in [
        "-A INPUT -m geoip --source-country X -j ACCEPT",
        "-A INPUT -p udp -m udp --sport 99 -j ACCEPT",
        "-A INPUT -m set ! --match-set bad src -j ACCEPT",
        "-A INPUT -i eth+ -p udp -m multiport --dports 8000:9000,99 -m comment --comment \"a \\\"b\\\" c\" -j ACCEPT",
        "-A INPUT -j NFQUEUE --queue-num 1",
        "-A INPUT -s 192.168.0.12/255.255.0.255 -j ACCEPT",
    ] {
        let rules = legacy(&format!("*filter\n:INPUT DROP [0:0]\n{rule}\nCOMMIT\n"));
        expect(&problems(&rules, &around()), &[]);
    }
    // And certain tests are believed.
    for rule in [
        "-A INPUT ! -i eth0 -j ACCEPT",
        "-A INPUT -p tcp -m tcp --dport 8472 -j ACCEPT",
        "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "-A INPUT -s 10.0.0.0/8 -j ACCEPT",
    ] {
        let rules = legacy(&format!("*filter\n:INPUT DROP [0:0]\n{rule}\nCOMMIT\n"));
        assert_eq!(problems(&rules, &around()).len(), 1, "{rule}");
    }
}

#[test]
fn peers_are_let_in_one_by_one() {
    let opened = "*filter\n:INPUT DROP [0:0]\n-A INPUT -s 192.168.77.12/32 -p udp -m udp --dport 8472 -j ACCEPT\nCOMMIT\n";
    expect(&problems(&legacy(opened), &around()), &[&["from 192.168.77.13 on eth0"]]);
}

#[test]
fn that_containers_may_not_go_outside_is_worth_a_note_alone() {
    let rules = legacy("*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i loden0 -o eth0 -j REJECT\nCOMMIT\n");
    let found = findings(&rules, &around());
    assert!(found.problems.is_empty() && found.notes[0].contains("from loden0 to eth0"), "{found:?}");
}

#[test]
fn a_test_of_one_family_says_nothing_of_the_other() {
    let json = r#"{"nftables": [
        {"table": {"family": "inet", "name": "t"}},
        {"chain": {"family": "inet", "table": "t", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
        {"rule": {"family": "inet", "table": "t", "chain": "f", "expr": [
            {"match": {"op": "!=", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": {"prefix": {"addr": "10.0.0.0", "len": 8}}}},
            {"drop": null}]}}]}"#;
    let mut six = around();
    six.families = vec![("fd00:5::/48".parse().expect("subnet"), "fd00:5:0:7::/64".parse().expect("subnet"))];
    six.overlay = vec![(Family::V6, "loden6.1".into())];
    expect(&problems(&nft(json), &six), &[]);
}

#[test]
fn where_others_set_marks_only_ours_is_known() {
    let rule = "-A FORWARD -m mark --mark 0x1/0x1 -j ACCEPT\n";
    let marking =
        "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i loden+ -j MARK --set-xmark 0x1/0x1\nCOMMIT\n";
    let filter = format!("*filter\n:FORWARD DROP [0:0]\n{rule}COMMIT\n");
    assert_eq!(problems(&legacy(&filter), &around()).len(), 1);
    expect(&problems(&legacy(&format!("{marking}{filter}")), &around()), &[]);
}

#[test]
fn a_dormant_table_does_nothing() {
    let table = |flags: &str| {
        nft(&format!(
            r#"{{"nftables": [{{"table": {{"family": "inet", "name": "t"{flags}}}}},
            {{"chain": {{"family": "inet", "table": "t", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}}}}]}}"#
        ))
    };
    assert_eq!(problems(&table(""), &around()).len(), 1);
    for flags in [r#", "flags": "t""#, r#", "flags": "dormant""#, r#", "flags": ["dormant"]"#] {
        expect(&problems(&table(flags), &around()), &[]);
    }
}

#[test]
fn a_fixed_source_is_as_wrong_as_a_masquerade() {
    let rules = legacy(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.5.7.0/24 ! -o loden0 -j SNAT --to-source 192.168.77.11\nCOMMIT\n",
    );
    expect(&problems(&rules, &around()), &[&["chain POSTROUTING", "translates"]]);
}

#[test]
fn flannels_leftovers_are_noted() {
    let rules = legacy(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING -j FLANNEL-POSTRTG\nCOMMIT\n",
    );
    let notes = findings(&rules, &around()).notes;
    assert!(
        notes[0].contains("FLANNEL-POSTRTG") && notes[0].contains("loden cleanup --flannel"),
        "{notes:?}"
    );
}
