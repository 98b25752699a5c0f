//! Names of containers: forward and reverse, the same on every host, before a container's process runs.

use std::net::IpAddr;
use std::sync::Barrier;
use std::time::Duration;

use loden_proto::Family;
use loden_proto::status::Names;
use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Container, Dug, Host, Ns, dig, eventually};
use serde_json::{Value, json};

const ZONE: &str = "loden.internal";
/// Where every host answers.
const SHARED: &str = "169.254.53.53";
/// The promise is two seconds; the machine may be busy with other scenarios.
const EVERYWHERE: Duration = Duration::from_secs(5);

/// What a runtime passes for a container of this name.
fn named(name: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "loden", "type": "loden",
        "args": {"cni": {"labels": [{"key": "name", "value": name}]}},
    })
}

fn container(host: &Host, name: &str) -> Container {
    // Two lives of one container have two ids.
    let id = format!("{name}-{}", host.name());
    host.container_with(&id, named(name)).unwrap_or_else(|e| panic!("ADD of {name} on {}: {e}", host.name()))
}

fn gateway(host: &Host) -> String {
    host.subnet().gateway().to_string()
}

fn ask(from: &Ns, server: &str, name: &str, kind: &str) -> Dug {
    dig(from, &format!("@{server} {name} {kind}"))
}

/// Name to address and back, as `server` says.
fn both_ways(from: &Ns, server: &str, name: &str, address: IpAddr) -> Result<(), String> {
    let full = format!("{name}.{ZONE}");
    let forward = ask(from, server, &full, "A");
    if forward.answers != [address.to_string()] {
        return Err(format!("{full} is not {address} at {server}: {}", forward.text));
    }
    let back = dig(from, &format!("@{server} -x {address}"));
    if back.answers != [format!("{full}.")] {
        return Err(format!("{address} is not {full} at {server}: {}", back.text));
    }
    Ok(())
}

fn names(host: &Host) -> Names {
    serde_json::from_str(&host.loden(&["names", "--json"]).expect_success()).expect("names as JSON")
}

#[test]
fn a_name_resolves_both_ways_when_add_returns_and_soon_on_every_host() {
    let cluster = Cluster::<2>::start("names", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let dn1 = container(a, "DN1");
    // No waiting here: the container's process would run by now.
    both_ways(dn1.ns(), &gateway(a), "dn1", dn1.address()).expect("at once");
    both_ways(dn1.ns(), SHARED, "dn1", dn1.address()).expect("at once, at the address that every host has");
    let dns = &dn1.result()["dns"];
    assert_eq!(dns, &json!({"nameservers": [SHARED], "search": [ZONE], "options": ["ndots:2"]}));

    let dn2 = container(b, "dn2");
    eventually(EVERYWHERE, "each host has the other's name", || {
        both_ways(dn1.ns(), SHARED, "dn2", dn2.address())?;
        both_ways(dn2.ns(), SHARED, "dn1", dn1.address())?;
        both_ways(&b.ns(), SHARED, "dn1", dn1.address())
    });
    let seen = names(b).names;
    let row = seen.iter().find(|n| n.name == format!("dn1.{ZONE}")).unwrap_or_else(|| panic!("{seen:#?}"));
    assert_eq!((row.addresses.as_slice(), row.state.as_str()), (&[dn1.address()][..], "owner"));
    assert_eq!(row.subnet, a.subnet());

    // What exists has no IPv6 address, what does not is no name: different answers, both ours.
    let no_data = ask(dn2.ns(), SHARED, &format!("dn1.{ZONE}"), "AAAA");
    assert_eq!((no_data.status.as_str(), no_data.answers.len()), ("NOERROR", 0), "{}", no_data.text);
    let no_name = ask(dn2.ns(), SHARED, &format!("dn3.{ZONE}"), "A");
    assert_eq!(no_name.status, "NXDOMAIN", "{}", no_name.text);
    assert!(no_name.text.contains("flags: qr aa") && no_name.text.contains("SOA"), "{}", no_name.text);
    // In an instant, too, for addresses that nobody has: software that looks them up would hang.
    let nobody = dig(dn2.ns(), &format!("@{SHARED} -x 10.5.250.9"));
    assert_eq!(nobody.status, "NXDOMAIN", "{}", nobody.text);
    // Gateways, VXLAN devices and hosts have names as well.
    let parts =
        [(a.subnet().gateway(), "gw.a.host"), (a.subnet().address(), "vtep.a.host"), (a.address(), "a.host")];
    for (address, name) in parts {
        both_ways(dn2.ns(), SHARED, name, address).unwrap_or_else(|e| panic!("{e}"));
    }
    for refused in ["ANY", "AXFR +tcp"] {
        let answer = ask(dn2.ns(), SHARED, ZONE, refused);
        assert!(answer.answers.is_empty() && answer.status != "NOERROR", "{refused}: {}", answer.text);
    }

    let gone = dn1.address();
    dn1.delete();
    eventually(EVERYWHERE, "it has no name any more, anywhere", || {
        for host in [a, b] {
            let answer = ask(&host.ns(), SHARED, &format!("dn1.{ZONE}"), "A");
            let back = dig(&host.ns(), &format!("@{SHARED} -x {gone}"));
            if (answer.status.as_str(), back.status.as_str()) != ("NXDOMAIN", "NXDOMAIN") {
                return Err(format!("{}{}", answer.text, back.text));
            }
        }
        Ok(())
    });
    drop(dn2);
    cluster.lab.check_invariants();
}

#[test]
fn somebody_outside_gets_the_address_of_the_host() {
    let cluster = Cluster::<2>::start("names-outside", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let dn1 = container(a, "dn1");
    let outside = cluster.lab.outside();
    let full = format!("dn1.{ZONE}");
    eventually(EVERYWHERE, "either host tells it", || {
        for host in [a, b] {
            for way in ["+notcp", "+tcp"] {
                let answer = dig(&outside, &format!("@{} {full} A {way}", host.address()));
                if answer.answers != [a.address().to_string()] {
                    return Err(answer.text);
                }
            }
        }
        Ok(())
    });
    // The other host is a member: by the same server it gets the container's own.
    let inside = ask(&b.ns(), &a.address().to_string(), &full, "A");
    assert_eq!(inside.answers, [dn1.address().to_string()], "{}", inside.text);
    let server = a.address();
    for (question, why) in [
        (format!("-x {}", dn1.address()), "addresses of the overlay mean nothing outside"),
        ("example.com A".into(), "we are nobody's resolver"),
        (format!("gw.a.host.{ZONE} A"), "nor are gateways anybody's business"),
    ] {
        let answer = dig(&outside, &format!("@{server} {question}"));
        assert!(answer.answers.is_empty() && answer.status != "NOERROR", "{why}: {}", answer.text);
    }
    let servers = dig(&outside, &format!("@{server} {ZONE} NS"));
    assert_eq!(servers.answers, [format!("ns.host.{ZONE}.")], "{}", servers.text);
}

/// What a container's resolver does: asks the server that its runtime was told of.
fn names_of_ipv6(stack: Stack) {
    let cluster = Cluster::<2>::start(&format!("names-{stack:?}"), &stack.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let containers = [container(a, "dn1"), container(b, "dn2")];
    let outside = cluster.lab.outside();
    let public = a.address_of(Family::V6);
    let ask = |from: &Ns, server: &str, question: &str| dig(from, &format!("@{server} {question}"));
    eventually(EVERYWHERE, "each finds the other by all its addresses", || {
        for asking in &containers {
            let server = asking.result()["dns"]["nameservers"][0].as_str().ok_or("no server")?;
            for (name, asked) in ["dn1", "dn2"].into_iter().zip(&containers) {
                let full = format!("{name}.{ZONE}");
                for kind in ["A", "AAAA"] {
                    let found = ask(asking.ns(), server, &format!("{full} {kind}"));
                    let all = asked.addresses().iter().filter(|ip| ip.is_ipv6() == (kind == "AAAA"));
                    let all: Vec<String> = all.map(IpAddr::to_string).collect();
                    if found.answers != all || found.status != "NOERROR" {
                        return Err(format!("not {all:?}: {}", found.text));
                    }
                }
                for address in asked.addresses() {
                    let back = ask(asking.ns(), server, &format!("-x {address}"));
                    if back.answers != [format!("{full}.")] {
                        return Err(back.text);
                    }
                }
            }
        }
        let seen = ask(&outside, &public.to_string(), &format!("dn1.{ZONE} AAAA"));
        if seen.answers == [public.to_string()] { Ok(()) } else { Err(seen.text) }
    });
    let gateway = a.subnet_of(Family::V6).gateway();
    let nobody = ask(containers[0].ns(), &gateway.to_string(), "-x fd00:10:5:99::9");
    assert_eq!(nobody.status, "NXDOMAIN", "{}", nobody.text);
}

#[test]
fn names_have_addresses_of_both_families() {
    names_of_ipv6(Stack::Dual);
}

#[test]
fn names_resolve_without_ipv4() {
    names_of_ipv6(Stack::Six);
}

#[test]
fn the_newest_container_has_the_name() {
    let cluster = Cluster::<2>::start("names-newest", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let old = container(a, "nn");
    let new = container(b, "nn");
    eventually(EVERYWHERE, "both hosts say the newer one", || {
        for host in [a, b] {
            both_ways(&host.ns(), SHARED, "nn", new.address())?;
        }
        let back = dig(&a.ns(), &format!("@{SHARED} -x {}", old.address()));
        if back.status == "NXDOMAIN" { Ok(()) } else { Err(back.text) }
    });
    // In etcd too: who reads the records there finds one owner.
    eventually(EVERYWHERE, "the older one has withdrawn", || {
        let keys = cluster.etcd.keys("/coreos.com/network/loden/names/");
        if keys.len() == 1 { Ok(()) } else { Err(format!("{keys:?}")) }
    });
    new.delete();
    eventually(EVERYWHERE, "the older one, which still lives, has it again", || {
        both_ways(&b.ns(), SHARED, "nn", old.address())
    });
}

#[test]
fn names_are_served_while_etcd_is_away() {
    let cluster = Cluster::<2>::start("names-etcd-away", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let dn1 = container(a, "dn1");
    eventually(EVERYWHERE, "b knows it", || both_ways(&b.ns(), SHARED, "dn1", dn1.address()));
    cluster.etcd.stop();
    eventually(SOON, "b knows that etcd is away", || {
        let status = b.try_status(&[])?;
        if status.etcd.connected { Err("connected".to_owned()) } else { Ok(()) }
    });
    both_ways(&b.ns(), SHARED, "dn1", dn1.address()).expect("it is served all the same");
    let dn2 = container(b, "dn2");
    both_ways(dn2.ns(), SHARED, "dn2", dn2.address()).expect("a new one is served on its own host");
    let states = |host: &Host| names(host).names.into_iter().map(|n| (n.name, n.state)).collect::<Vec<_>>();
    let local = (format!("dn2.{ZONE}"), "local".to_owned());
    assert!(states(b).contains(&local), "{:?}", states(b));
    cluster.etcd.start();
    eventually(SOON, "everybody knows it", || both_ways(&a.ns(), SHARED, "dn2", dn2.address()));
    eventually(EVERYWHERE, "it is published", || {
        let states = states(b);
        if states.contains(&(format!("dn2.{ZONE}"), "owner".to_owned())) {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    });
}

#[test]
fn a_restarted_daemon_and_a_lost_lease_keep_the_names() {
    let cluster = Cluster::<2>::start("names-restart", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let dn1 = container(a, "dn1");
    cluster.daemons[0].restart();
    cluster.daemons[0].wait_ready();
    eventually(SOON, "both serve it", || {
        both_ways(dn1.ns(), SHARED, "dn1", dn1.address())?;
        both_ways(&b.ns(), SHARED, "dn1", dn1.address())
    });
    let key = loden_tests::Etcd::key(a.held_key().expect("a lease"));
    let lease = cluster.etcd.lease_of(&key).expect("an etcd lease");
    cluster.etcd.revoke(&lease);
    eventually(SOON, "it is published again, under the new lease", || {
        both_ways(&b.ns(), SHARED, "dn1", dn1.address())?;
        let keys = cluster.etcd.keys("/coreos.com/network/loden/names/");
        let [name] = keys.as_slice() else { return Err(format!("{keys:?}")) };
        let (ours, names) = (cluster.etcd.lease_of(&key), cluster.etcd.lease_of(name));
        if names.is_some() && ours == names { Ok(()) } else { Err(format!("{ours:?} {names:?}")) }
    });
}

#[test]
fn three_dozen_containers_at_once_find_each_other() {
    let cluster = Cluster::<3>::start("names-36", &Stack::Four.vxlan(), &[]);
    let together = Barrier::new(36);
    let all: Vec<(usize, Container)> = std::thread::scope(|scope| {
        let start = |number: usize| {
            let (host, together) = (&cluster.hosts[number % 3], &together);
            scope.spawn(move || {
                together.wait();
                let name = format!("node{number}");
                let started = container(host, &name);
                // As the first thing that its process would do.
                both_ways(started.ns(), SHARED, &name, started.address()).unwrap_or_else(|e| panic!("{e}"));
                (number, started)
            })
        };
        let threads: Vec<_> = (0..36).map(start).collect();
        threads.into_iter().map(|t| t.join().expect("a container")).collect()
    });
    eventually(EVERYWHERE, "every name resolves both ways on every host", || {
        for host in &cluster.hosts {
            for (number, container) in &all {
                both_ways(&host.ns(), SHARED, &format!("node{number}"), container.address())?;
            }
        }
        Ok::<(), String>(())
    });
    assert_eq!(names(&cluster.hosts[0]).names.len(), 36);
}

#[test]
fn an_etcd_that_lost_everything_costs_no_name() {
    let cluster = Cluster::<4>::start("names-wiped", &Stack::Four.vxlan(), &[]);
    let containers = cluster.hosts.each_ref().map(|host| container(host, &format!("on-{}", host.name())));
    let a = &cluster.hosts[0];
    let all = || {
        for (host, container) in cluster.hosts.iter().zip(&containers) {
            both_ways(&a.ns(), SHARED, &format!("on-{}", host.name()), container.address())?;
        }
        Ok::<(), String>(())
    };
    eventually(EVERYWHERE, "all are known", all);
    // Three hosts hang, so that they do not come back at once; their leases go.
    for daemon in &cluster.daemons[1..] {
        daemon.freeze();
    }
    // Names and leases, all but the config.
    cluster.etcd.ctl(&["del", "/coreos.com/network/l", "/coreos.com/network/t"]).expect_success();
    // Longer than the moment that any name stays.
    for _ in 0..12 {
        all().unwrap_or_else(|e| panic!("{e}"));
        std::thread::sleep(Duration::from_millis(250));
    }
    for daemon in &cluster.daemons[1..] {
        daemon.thaw();
    }
    eventually(SOON, "they are written again", || {
        let keys = cluster.etcd.keys("/coreos.com/network/loden/names/");
        if keys.len() == 4 { all() } else { Err(format!("{keys:?}")) }
    });
}
