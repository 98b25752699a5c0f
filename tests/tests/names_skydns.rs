//! Names in SkyDNS's layout: ours for CoreDNS, and others' for our server.

use std::net::IpAddr;
use std::time::Duration;

use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Container, Etcd, Host, Lab, Ns, Security, dig, eventually};
use serde_json::{Value, json};

const ZONE: &str = "loden.internal";
/// Where every host answers.
const SHARED: &str = "169.254.53.53";
/// Zones that CoreDNS serves.
const ZONES: [&str; 2] = [ZONE, "5.10.in-addr.arpa"];
/// How long it may take until a record is back that others have deleted.
const CHECKED: Duration = Duration::from_secs(50);

/// What a runtime passes for a container of this name, with an alias.
fn named(name: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "loden", "type": "loden",
        "args": {"cni": {"labels": [{"key": "name", "value": name}]}},
        "runtimeConfig": {"aliases": ["all"]},
    })
}

fn container(host: &Host, name: &str) -> Container {
    // Two lives of one container have two ids.
    let id = format!("{name}-{}", host.name());
    host.container_with(&id, named(name)).unwrap_or_else(|e| panic!("ADD of {name} on {}: {e}", host.name()))
}

/// Waits until a server gives these answers, in any order; none: there is no such name.
#[track_caller]
fn says(from: &Ns, server: impl std::fmt::Display, question: &str, expected: &[&str]) {
    eventually(SOON, &format!("{server} says {expected:?} to {question}"), || {
        let answer = dig(from, &format!("@{server} {question}"));
        let status = if expected.is_empty() { "NXDOMAIN" } else { "NOERROR" };
        let mut expected: Vec<&str> = expected.to_vec();
        expected.sort_unstable();
        if answer.status == status && answer.clone().sorted() == expected { Ok(()) } else { Err(answer.text) }
    });
}

#[track_caller]
fn both_ways(from: &Ns, server: impl std::fmt::Display, name: &str, address: IpAddr) {
    let full = format!("{name}.{ZONE}");
    says(from, &server, &format!("{full} A"), &[&address.to_string()]);
    says(from, &server, &format!("-x {address}"), &[&format!("{full}.")]);
}

/// The keys below `/skydns` that hang on the etcd lease of a host.
fn exported(etcd: &Etcd, host: &Host, prefix: &str) -> Result<Vec<String>, String> {
    let lease = etcd.lease_of(&Etcd::key(host.held_key()?));
    Ok(etcd.keys(prefix).into_iter().filter(|key| etcd.lease_of(key) == lease).collect())
}

#[test]
fn coredns_serves_what_is_exported() {
    let cluster = Cluster::<2>::start("skydns-export", &Stack::Four.vxlan(), &["--dns-export"]);
    let [a, b] = &cluster.hosts;
    let other = cluster.lab.host("other");
    let Some(_coredns) = other.coredns(&ZONES) else { return };
    let (ns, server) = (other.ns(), "127.0.0.1");
    let (dn1, dn2) = (container(a, "dn1"), container(b, "dn2"));
    both_ways(&ns, server, "dn1", dn1.address());
    both_ways(&ns, server, "dn2", dn2.address());
    let both = [dn1.address().to_string(), dn2.address().to_string()];
    says(&ns, server, "all.loden.internal A", &[&both[0], &both[1]]);
    let ttl = dig(&ns, &format!("@{server} dn1.{ZONE} A")).text;
    assert!(ttl.lines().any(|line| line.split_whitespace().nth(1) == Some("5")), "the zone's TTL: {ttl}");
    // It has no IPv6 address, and that is no missing name.
    let no_data = dig(&ns, &format!("@{server} dn1.{ZONE} AAAA"));
    assert_eq!((no_data.status.as_str(), no_data.answers.len()), ("NOERROR", 0), "{}", no_data.text);

    // CoreDNS answers with all that is below a name; not with what has a name of its own there.
    a.loden(&["name", "add", "ui.dn1", "--address", "192.0.2.9", "--address", "192.0.2.10"]).expect_success();
    says(&ns, server, "ui.dn1.loden.internal A", &["192.0.2.9", "192.0.2.10"]);
    says(&ns, server, "dn1.loden.internal A", &[&both[0]]);
    // Two hosts name the same address, and one takes it back.
    for host in [a, b] {
        host.loden(&["name", "add", "vip", "--group", "--address", "192.0.2.7"]).expect_success();
    }
    says(&ns, server, "vip.loden.internal A", &["192.0.2.7"]);
    a.loden(&["name", "remove", "vip"]).expect_success();
    eventually(SOON, "b's record alone is there", || {
        let keys = cluster.etcd.keys("/skydns/internal/loden/vip/");
        if keys.len() == 1 { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    says(&ns, server, "vip.loden.internal A", &["192.0.2.7"]);

    let gone = dn2.address();
    dn2.delete();
    says(&ns, server, "dn2.loden.internal A", &[]);
    says(&ns, server, &format!("-x {gone}"), &[]);
    says(&ns, server, "all.loden.internal A", &[&both[0]]);

    // A newer one has the name, and the older one has withdrawn; and has it back.
    let newer = container(b, "dn1");
    both_ways(&ns, server, "dn1", newer.address());
    says(&ns, server, &format!("-x {}", dn1.address()), &[]);
    newer.delete();
    both_ways(&ns, server, "dn1", dn1.address());
    // Also if the older one's host has died without a word.
    cluster.daemons[0].kill9();
    let moved = container(b, "dn1");
    both_ways(&ns, server, "dn1", moved.address());
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    let problems = a.status().problems;
    assert!(problems.is_empty(), "{problems:?}");
    both_ways(&ns, server, "dn1", moved.address());
}

#[test]
fn an_export_is_kept_as_it_should_be_and_goes_with_its_flag() {
    let cluster = Cluster::<1>::start("skydns-kept", &Stack::Four.vxlan(), &["--dns-export=/skydns/"]);
    let ([a], etcd) = (&cluster.hosts, &cluster.etcd);
    // Others' records stay whatever happens.
    let others = ["/skydns/internal/loden/legacy/x1", "/dns/internal/loden/legacy/x1"];
    for key in others {
        etcd.put(key, r#"{"host":"10.99.0.1"}"#);
    }
    let dn1 = container(a, "dn1");
    let address = dn1.address().to_string();
    let keys = |prefix: &str| {
        let mut keys = vec![
            format!("{prefix}/arpa/in-addr/{}", address.replace('.', "/")),
            format!("{prefix}/internal/loden/all/loden-{}", address.replace('.', "-")),
            format!("{prefix}/internal/loden/dn1/loden-1"),
        ];
        keys.sort();
        keys
    };
    let stands = |limit: Duration, what: &str, prefix: &str| {
        eventually(limit, what, || {
            let there = exported(etcd, a, "/")?.into_iter().filter(|key| !key.starts_with("/coreos.com/"));
            let there: Vec<String> = there.collect();
            if there == keys(prefix) { Ok(()) } else { Err(format!("{there:?}")) }
        });
    };
    stands(SOON, "all is there", "/skydns");
    etcd.revoke(&etcd.lease_of(&Etcd::key(a.held_key().expect("a lease"))).expect("an etcd lease"));
    stands(SOON, "all is there again, on the new etcd lease", "/skydns");
    etcd.stop();
    let dn2 = container(a, "dn2");
    let late = "/skydns/internal/loden/dn2/loden-1";
    etcd.start();
    eventually(SOON, "what came while etcd was away is there", || {
        let keys = exported(etcd, a, "/skydns/")?;
        if keys.iter().any(|key| key == late) { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    dn2.delete();
    stands(SOON, "and gone", "/skydns");
    etcd.delete(&keys("/skydns")[0]);
    etcd.put(&keys("/skydns")[2], "rubbish");
    stands(CHECKED, "what others have deleted or written over is there again", "/skydns");
    assert!(etcd.get(&keys("/skydns")[2]).is_some_and(|value| value.contains("\"host\"")));

    let mut config: Value = serde_json::from_str(&Stack::Four.vxlan()).expect("JSON");
    config["DNS"] = json!(false);
    etcd.config(&config.to_string());
    eventually(SOON, "where no names are served none is exported", || {
        let keys = etcd.keys("/skydns/");
        if keys == others[..1] { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    etcd.config(&Stack::Four.vxlan());
    stands(SOON, "and as they are served again", "/skydns");

    let again = |flags: &[&str]| a.daemon(flags).ready();
    cluster.daemons[0].terminate();
    let moved = again(&["--dns-export=/dns"]);
    stands(SOON, "it stands below the new prefix alone", "/dns");
    moved.terminate();
    let without = again(&[]);
    eventually(SOON, "without the flag nothing of ours is there", || {
        let there: Vec<String> = ["/skydns/", "/dns/"].iter().flat_map(|prefix| etcd.keys(prefix)).collect();
        if there == others { Ok(()) } else { Err(format!("{there:?}")) }
    });
    without.terminate();
    for (flags, words) in [
        (&["--dns-export=skydns"][..], &["--dns-export", "'skydns'", "such as /skydns"][..]),
        (
            &["--dns-export=/coreos.com"],
            &["--dns-export /coreos.com", "/coreos.com/network", "such as /skydns"],
        ),
    ] {
        let said = a.loden(&[&["daemon"], flags].concat()).expect_failure();
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
    drop(dn1);
}

#[test]
fn an_export_that_etcd_refuses_is_told_and_harms_no_name() {
    let lab = Lab::new("skydns-refused");
    let etcd = lab.etcd_with(Security::Password);
    etcd.config(&Stack::Four.vxlan());
    let a = lab.host("a");
    let daemon = a.daemon(&["--dns-export"]).ready();
    let dn1 = container(&a, "dn1");
    both_ways(dn1.ns(), SHARED, "dn1", dn1.address());
    let problem = |status: loden_proto::status::Status| {
        status.problems.into_iter().find(|problem| problem.contains("--dns-export"))
    };
    let told = eventually(SOON, "status tells", || problem(a.try_status(&[])?).ok_or("nothing".to_owned()));
    assert!(told.contains("permission denied") && told.contains("what the user may do"), "{told}");
    let grant = ["role", "grant-permission", "network", "--prefix=true", "readwrite", "/skydns/"];
    etcd.ctl(&grant).expect_success();
    eventually(SOON, "it is exported", || match problem(a.try_status(&[])?) {
        Some(problem) => Err(problem),
        None => Ok(()),
    });
    assert_eq!(etcd.keys("/skydns/").len(), 3);
    let lines = daemon.log().lines().filter(|line| line.contains("--dns-export")).count();
    assert_eq!(lines, 1, "{}", daemon.log());
}

#[test]
fn what_others_have_written_is_served_with_our_own() {
    let lab = Lab::new("skydns-import");
    let etcd = lab.etcd();
    etcd.config(&Stack::Four.vxlan());
    etcd.put("/skydns/internal/loden/legacy/x1", r#"{"host":"10.99.0.1"}"#);
    let [a, b] = lab.hosts();
    let importing = a.daemon(&["--dns-export", "--dns-import"]).ready();
    let _without = b.daemon(&[]).ready();
    let (dn1, other) = (container(&a, "dn1"), container(&b, "dn2"));
    let ns = dn1.ns();
    says(ns, SHARED, "legacy.loden.internal A", &["10.99.0.1"]);
    says(ns, SHARED, "legacy A", &["10.99.0.1"]);
    says(ns, SHARED, "x1.legacy.loden.internal A", &["10.99.0.1"]);
    says(other.ns(), SHARED, "legacy.loden.internal A", &[]);

    // What comes later; what is wrong is passed over, and told once.
    for (key, value) in [
        ("internal/loden/legacy/x2", "rubbish"),
        ("internal/loden/legacy/x3", r#"{"host":"10.99.0.3","port":8080,"ttl":60}"#),
        ("internal/loden/dn1/x1", r#"{"host":"10.99.0.66"}"#),
        ("arpa/in-addr/10/5/200/9", r#"{"host":"x1.legacy.loden.internal"}"#),
    ] {
        etcd.put(&format!("/skydns/{key}"), value);
    }
    says(ns, SHARED, "legacy.loden.internal A", &["10.99.0.1", "10.99.0.3"]);
    says(ns, SHARED, "legacy.loden.internal SRV", &["10 100 8080 x3.legacy.loden.internal."]);
    says(ns, SHARED, "-x 10.5.200.9", &["x1.legacy.loden.internal."]);
    let ttl = dig(ns, &format!("@{SHARED} x3.legacy.{ZONE} A")).text;
    assert!(ttl.lines().any(|line| line.split_whitespace().nth(1) == Some("60")), "{ttl}");
    let problems = || {
        let names: Value =
            serde_json::from_str(&a.loden(&["names", "--json"]).expect_success()).expect("JSON");
        names["problems"].to_string()
    };
    assert!(problems().contains("/skydns/internal/loden/legacy/x2"), "{}", problems());

    // Our own win, and those that we have exported are not imported.
    both_ways(ns, SHARED, "dn1", dn1.address());
    eventually(SOON, "it is exported", || {
        let keys = exported(&etcd, &a, "/skydns/internal/loden/dn1/")?;
        if keys.len() == 1 { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    says(ns, SHARED, "x1.dn1.loden.internal A", &["10.99.0.66"]);
    says(ns, SHARED, "loden-1.dn1.loden.internal A", &[]);

    // They stay while etcd is away, and what is changed afterwards is heard of.
    etcd.stop();
    eventually(SOON, "a knows that etcd is away", || {
        if a.try_status(&[])?.etcd.connected { Err("connected".to_owned()) } else { Ok(()) }
    });
    says(ns, SHARED, "legacy.loden.internal A", &["10.99.0.1", "10.99.0.3"]);
    etcd.start();
    etcd.delete("/skydns/internal/loden/legacy/x1");
    etcd.put("/skydns/internal/loden/legacy/x2", r#"{"host":"10.99.0.2"}"#);
    says(ns, SHARED, "legacy.loden.internal A", &["10.99.0.2", "10.99.0.3"]);
    eventually(SOON, "nothing is wrong any more", || match problems() {
        text if text == "[]" => Ok(()),
        text => Err(text),
    });
    let lines = importing.log().lines().filter(|line| line.contains("legacy/x2")).count();
    assert_eq!(lines, 1, "{}", importing.log());
    // Another zone, other keys.
    etcd.put("/skydns/test/zone/legacy", r#"{"host":"10.99.0.4"}"#);
    let mut config: Value = serde_json::from_str(&Stack::Four.vxlan()).expect("JSON");
    config["DNS"] = json!({"Zone": "zone.test"});
    etcd.config(&config.to_string());
    says(ns, SHARED, "legacy.zone.test A", &["10.99.0.4"]);
    lab.check_invariants();
}
