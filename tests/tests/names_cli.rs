//! What belongs to names beside serving them: addresses that stay with a name, names by hand, exports, and
//! the doctor.

use std::net::IpAddr;
use std::time::Duration;

use loden_proto::status::ManualNames;
use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Container, Host, dig, eventually};
use serde_json::{Value, json};

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

/// A container of this name; each life of it has an id of its own, as with all runtimes.
fn container(host: &Host, name: &str, life: &str) -> Container {
    let id = format!("{}-{life}", name.replace('/', "-"));
    host.container_with(&id, named(name)).unwrap_or_else(|e| panic!("ADD of {name} on {}: {e}", host.name()))
}

#[test]
fn a_container_that_comes_back_has_its_address_again() {
    let cluster = Cluster::<1>::start("sticky", &Stack::Dual.vxlan(), &[]);
    let [a] = &cluster.hosts;
    let addresses = |container: &Container| -> Vec<IpAddr> { container.addresses().to_vec() };
    let db = container(a, "db", "1");
    let before = addresses(&db);
    db.delete();
    // Others come and go; one that is not to be known again takes what comes next.
    let others: Vec<Container> = (0..5).map(|n| container(a, &format!("web{n}"), "1")).collect();
    others.into_iter().for_each(Container::delete);
    let passing = container(a, "passing", "1");
    let db = container(a, "db", "2");
    assert_eq!(addresses(&db), before);
    db.delete();
    let mut conf = named("db");
    conf["sticky"] = json!(false);
    let loose = a.container_with("db-loose", conf).expect("ADD");
    assert_ne!(addresses(&loose), before, "it does not ask for its own, and db's is kept for db");
    loose.delete();
    drop(passing);

    a.reboot();
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    // After a reboot the first address of the subnet comes first, which was db's.
    let other = container(a, "other", "1");
    assert_ne!(addresses(&other), before);
    let db = container(a, "db", "3");
    assert_eq!(addresses(&db), before);
    // Without hints everything works as well.
    db.delete();
    a.run(&["sh", "-ec", "rm -r /var/lib/loden/addresses; ln -s /etc /var/lib/loden/addresses"]);
    container(a, "db", "4");
    assert_eq!(a.read_file("/etc/given"), None, "nothing is written through a link");
    cluster.lab.check_invariants();
}

/// What a host answers to a question.
fn answers(host: &Host, question: &str) -> Vec<String> {
    dig(&host.ns(), &format!("@{SHARED} {question}")).sorted()
}

fn says(hosts: &[Host], question: &str, expected: &[&str]) {
    eventually(EVERYWHERE, &format!("every host answers {question} with {expected:?}"), || {
        for host in hosts {
            let given = answers(host, question);
            if given != expected {
                return Err(format!("{}: {given:?}", host.name()));
            }
        }
        Ok(())
    });
}

#[test]
fn a_name_by_hand_is_everybodys_and_outlives_the_daemon() {
    let cluster = Cluster::<2>::start("names-by-hand", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let added = |host: &Host, flags: &[&str]| host.loden(&[&["name", "add"], flags].concat());
    let inside = a.subnet().nth(200).to_string();
    let said = added(a, &["dn9", "--address", &inside, "--port", "tcp/9866:19866"]).expect_success();
    assert_eq!(said, format!("dn9.loden.internal is {inside}, on every host\n"));
    // No waiting: add has waited.
    assert_eq!(answers(a, "dn9.loden.internal A"), [inside.as_str()]);
    assert_eq!(answers(a, &format!("-x {inside}")), ["dn9.loden.internal."]);
    assert_eq!(answers(a, "_tcp.dn9.loden.internal SRV"), ["0 100 9866 dn9.loden.internal."]);
    added(a, &["KDC.loden.internal", "--address", "192.0.2.7"]).expect_success();
    added(a, &["quorum", "--group", "--address", &inside]).expect_success();
    added(b, &["quorum", "--group", "--address", "192.0.2.8"]).expect_success();
    says(&cluster.hosts, "kdc.loden.internal A", &["192.0.2.7"]);
    let mut quorum = [inside.as_str(), "192.0.2.8"];
    quorum.sort_unstable();
    says(&cluster.hosts, "quorum.loden.internal A", &quorum);

    let dn1 = container(a, "dn1", "1");
    let elsewhere = b.subnet().nth(9).to_string();
    let its = dn1.address().to_string();
    for (flags, words) in [
        (["a b", "--address", "192.0.2.9"], "is no DNS name"),
        (["x.host", "--address", "192.0.2.9"], "below host.loden.internal are the hosts; choose another"),
        (["x", "--address", elsewhere.as_str()], "but not in this host's subnet"),
        (["x", "--address", "127.0.0.1"], "is no address by which other hosts reach"),
        (["x", "--address", its.as_str()], "is that of the container dn1"),
        (["x", "--address", "10.5"], "invalid"),
    ] {
        let refused = added(a, &flags).expect_failure();
        assert!(refused.contains(words), "{refused}");
    }
    // Who is in the socket's group may look, no more.
    a.run(&["chgrp", "nogroup", "/run/loden/loden.sock"]);
    let nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"];
    a.loden_under(&nobody, &["name", "list"]).expect_success();
    for change in [&["name", "add", "x", "--address", "192.0.2.9"][..], &["name", "remove", "kdc"]] {
        let refused = a.loden_under(&nobody, change).expect_failure();
        assert!(refused.contains("only root and the daemon's own user may"), "{refused}");
    }

    // Given once more it has another address.
    added(a, &["kdc", "--address", "192.0.2.17"]).expect_success();
    assert_eq!(answers(a, "kdc.loden.internal A"), ["192.0.2.17"]);
    cluster.daemons[0].restart();
    cluster.daemons[0].wait_ready();
    says(&cluster.hosts, "kdc.loden.internal A", &["192.0.2.17"]);
    let list: ManualNames =
        serde_json::from_str(&a.loden(&["name", "list", "--json"]).expect_success()).expect("JSON");
    assert_eq!(list.names.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["dn9", "kdc", "quorum"]);
    let removed = a.loden(&["name", "remove", "kdc.loden.internal"]).expect_success();
    assert_eq!(removed, "kdc.loden.internal is removed, on every host\n");
    says(&cluster.hosts, "kdc.loden.internal A", &[]);
    let again = a.loden(&["name", "remove", "kdc"]).expect_failure();
    assert!(again.contains("loden name list"), "{again}");

    // While etcd is away a name is served here, and then everywhere.
    cluster.etcd.stop();
    eventually(SOON, "a knows that etcd is away", || {
        if a.try_status(&[])?.etcd.connected { Err("connected".to_owned()) } else { Ok(()) }
    });
    let said = added(a, &["late", "--address", "192.0.2.10"]).expect_success();
    assert!(said.contains("on others as soon as etcd is back"), "{said}");
    cluster.etcd.start();
    eventually(SOON, "b knows it", || {
        let given = answers(b, "late.loden.internal A");
        if given == ["192.0.2.10"] { Ok(()) } else { Err(format!("{given:?}")) }
    });
    cluster.lab.check_invariants();
}

#[test]
fn all_names_as_a_hosts_file() {
    let cluster = Cluster::<2>::start("names-hosts", &Stack::Dual.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (web, db) = (container(a, "shop/web", "1"), container(b, "db", "1"));
    a.loden(&["name", "add", "all", "--group", "--address", "192.0.2.7"]).expect_success();
    let line = |address: &IpAddr, name: &str| format!("{address}\t{name}.loden.internal {name}\n");
    let mut expected = "# 2 names below loden.internal, by loden export hosts\n".to_owned();
    expected.extend(db.addresses().iter().map(|address| line(address, "db")));
    expected.extend(web.addresses().iter().map(|address| line(address, "web.shop")));
    eventually(EVERYWHERE, "both hosts print the same", || {
        for host in [a, b] {
            let printed = host.loden(&["export", "hosts"]).expect_success();
            if printed != expected {
                return Err(printed);
            }
        }
        Ok(())
    });
    // What reads hosts files finds it, both ways.
    a.write_file("/etc/hosts", &expected);
    let (full, address) = ("db.loden.internal", db.address().to_string());
    assert!(a.run(&["getent", "-s", "files", "ahosts", "db"]).contains(&address));
    assert!(a.run(&["getent", "-s", "files", "hosts", &address]).contains(full));
}

#[test]
fn the_doctor_finds_who_disagrees() {
    let cluster = Cluster::<2>::start("names-doctor", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let db = container(a, "db", "1");
    a.loden(&["name", "add", "kdc", "--address", "192.0.2.7"]).expect_success();
    let doctor = |flags: &[&str]| a.loden(&[&["doctor", "dns"], flags].concat());
    let content = |flags: &[&str]| {
        eventually(EVERYWHERE, "all agree", || {
            let output = doctor(flags);
            if output.success() { Ok(output.stdout) } else { Err(output.describe()) }
        })
    };
    let said = content(&[]);
    for words in ["db.loden.internal", "kdc.loden.internal", "3 of 3 agree", &db.address().to_string()] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // Those outside are told the host's address.
    assert!(said.contains(&a.address().to_string()) && !said.contains("problem"), "{said}");

    // What Hadoop would announce is another name.
    let enter = ["nsenter", "--net=/run/netns/db-1", "unshare", "--uts", "sh", "-c"];
    let process =
        |name: &str| a.spawn(name, &[&enter[..], &[&format!("hostname {name}; exec sleep 1000")]].concat());
    let wrong = process("db-7");
    let complaint = |flags: &[&str], words: &[&str]| {
        eventually(SOON, &format!("the doctor says {words:?}"), || {
            let output = doctor(flags);
            let told = output.stdout.lines().any(|line| words.iter().all(|w| line.contains(w)));
            if told && !output.success() { Ok(()) } else { Err(output.describe()) }
        });
    };
    complaint(&["db"], &["problem: db.loden.internal", "host name inside is db-7", "--hostname db"]);
    content(&["kdc.loden.internal"]);
    wrong.kill9();
    let right = process("db");
    let said = eventually(SOON, "the host name is right", || {
        let output = doctor(&["db", "--json"]);
        let found: Value = serde_json::from_str(&output.stdout).map_err(|e| e.to_string())?;
        if found["names"][0]["hostname"] == "db" { Ok(found) } else { Err(output.describe()) }
    });
    assert_eq!(said["problems"], json!([]), "{said:#}");
    right.kill9();

    // One host that does not hear of a new name, and then one that says nothing.
    b.ip("route add prohibit 192.168.77.2/32");
    eventually(SOON, "b knows that etcd is away", || {
        if b.try_status(&[])?.etcd.connected { Err("connected".to_owned()) } else { Ok(()) }
    });
    let web = container(a, "web", "1");
    let address = web.address().to_string();
    complaint(&[], &["problem: web.loden.internal: b (192.168.77.12) answers NXDomain", &address]);
    content(&["db"]);
    b.ip("route del prohibit 192.168.77.2/32");
    eventually(SOON, "b has heard of it", || {
        let output = doctor(&["web"]);
        if output.success() { Ok(()) } else { Err(output.describe()) }
    });
    cluster.daemons[1].freeze();
    complaint(&["db"], &["problem: b does not answer at 192.168.77.12", "--dns-listen"]);
    cluster.daemons[1].thaw();
    content(&[]);
    cluster.lab.check_invariants();
}
