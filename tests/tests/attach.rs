//! `loden attach` and `loden detach`: containers that no runtime connects.

use std::collections::BTreeSet;
use std::net::IpAddr;

use loden_proto::allocation::Allocation;
use loden_tests::story::{Cluster, SOON, Stack, VXLAN};
use loden_tests::{Container, Host, Output, eventually, kernel, matrix};
use serde_json::{Value, json};

const FOLDER: &str = "/run/loden/ipam/loden-attach";

/// `loden detach --json`, which must succeed; the freed addresses.
#[track_caller]
fn detach(host: &Host, args: &[&str]) -> BTreeSet<IpAddr> {
    let answer = host.loden(&[&["detach", "--json"], args].concat()).expect_success();
    let freed: Value = serde_json::from_str(&answer).expect("JSON");
    let lists = freed.as_array().expect("a list").iter().map(|one| one["addresses"].clone());
    lists.flat_map(|list| serde_json::from_value::<Vec<IpAddr>>(list).expect("addresses")).collect()
}

#[track_caller]
fn refused(output: Output, words: &[&str]) {
    let text = output.expect_failure();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

fn allocation(host: &Host, address: IpAddr) -> Option<Allocation> {
    let text = host.read_file(&format!("{FOLDER}/{address}"))?;
    Some(Allocation::parse(&text).expect("an allocation"))
}

fn pairs(host: &Host) -> Vec<String> {
    kernel::links(host).into_iter().filter(|l| l.starts_with("veth")).collect()
}

#[test]
fn namespaces_and_processes_of_two_hosts_reach_each_other() {
    let config = Stack::Dual.config(json!({"Type": "vxlan"}), (1, 99));
    let cluster = Cluster::<2>::start("attach_two_hosts", &config, &[]);
    let [a, b] = &cluster.hosts;
    let mut all = Vec::new();
    for (host, name) in [(a, "web"), (b, "box")] {
        let ns = host.namespace(name);
        all.push(host.attach(name, &ns, &[]).expect("a namespace"));
        let (process, ns) = host.process_apart("apart");
        let flags = ["--name", "db", "--interface", "ovl0", "--mac", "02:00:00:00:00:09"];
        all.push(host.attach(&process.pid().to_string(), &ns, &flags).expect("a process"));
    }
    all.push(a.container("c1"));
    assert!(all.iter().all(|c| c.addresses().len() == 2));
    matrix(&all.iter().collect::<Vec<_>>());

    let pid = &all[1];
    let expected = [
        ("name", "db"),
        ("interface", "ovl0"),
        ("mac", "02:00:00:00:00:09"),
        ("bridge", "loden0"),
        ("container_id", &format!("pid-{}", pid.name())),
        ("netns", &format!("/proc/{}/ns/net", pid.name())),
    ];
    for (member, value) in expected {
        assert_eq!(pid.result()[member], value, "{member}");
    }
    let gateways: Vec<&Value> = (0..2).map(|i| &pid.result()["addresses"][i]["gateway"]).collect();
    assert_eq!(
        gateways,
        [&json!(a.subnet().gateway()), &json!(a.status().lease.expect("lease").subnets[1].gateway())]
    );
    let written = allocation(a, pid.address()).expect("its allocation");
    assert_eq!((written.name.as_deref(), written.ifname.as_str()), (Some("db"), "ovl0"));
    eventually(SOON, "status counts them", || a.status().endpoints == 3);

    // By name, by target, by address: each frees both families.
    assert_eq!(detach(a, &["--name", "db"]), all[1].addresses().iter().copied().collect());
    assert_eq!(detach(a, &["web"]), all[0].addresses().iter().copied().collect());
    assert_eq!(
        detach(b, &["--ip", &all[2].address().to_string()]),
        all[2].addresses().iter().copied().collect()
    );
    assert_eq!(pairs(a).len(), 1, "the CNI plugin's container alone");
    assert!(kernel::addresses(all[0].ns(), "lo").iter().all(|a| !a.starts_with("10.")));
    assert!(all[0].ns().exec(&["ip", "link", "show", "eth0"]).stdout.is_empty());
    matrix(&[&all[3], &all[4]]);
    cluster.lab.check_invariants();
}

#[test]
fn a_second_attach_keeps_what_the_first_gave() {
    let cluster = Cluster::<1>::start("attach_twice", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let ns = a.namespace("web");
    let wanted = a.subnet().nth(77).to_string();
    let first = a.attach("web", &ns, &["--ip", &wanted]).expect("attached");
    assert_eq!(first.address().to_string(), wanted);
    assert_eq!(first.result()["already_attached"], false);
    a.run(&["ln", "-s", "/run/netns/web", "/run/linked"]);
    for target in ["web", "/run/netns/web", "/var/run/netns/web", "/run/linked"] {
        let again = a.loden(&["attach", target, "--json"]);
        assert!(again.stderr.contains("attached already"), "{again:?}");
        let mut again: Value = serde_json::from_str(&again.expect_success()).expect("JSON");
        assert_eq!(again["already_attached"], true);
        again["already_attached"] = json!(false);
        again["target"] = first.result()["target"].clone();
        assert_eq!(&again, first.result());
    }
    let guarded =
        |address| allocation(a, address).and_then(|a| a.port).is_some_and(|port| port.filter.is_some());
    assert!(guarded(first.address()));
    let open = a.attach("open", &a.namespace("open"), &["--port-filter=false"]).expect("attached");
    assert!(!guarded(open.address()));
    open.delete();
    assert_eq!(detach(a, &["open"]).len(), 1);
    let table = a.loden(&["attach", "web", "--ip", &wanted]).expect_success();
    assert!(table.starts_with("NAME  INTERFACE  ADDRESS") && table.contains(&wanted), "{table}");
    assert_eq!(pairs(a).len(), 1);

    // What it has is not what is asked for now.
    let other = a.subnet().nth(78).to_string();
    refused(
        a.loden(&["attach", "web", "--ip", &other]),
        &["attached already", &wanted, "not --ip", "detach web"],
    );
    refused(a.loden(&["attach", "web", "--mac", "02:00:00:00:00:01"]), &["not --mac 02:00:00:00:00:01"]);
    // The same namespace by another way is another target, but has the interface.
    let (process, apart) = a.process_apart("apart");
    let pid = process.pid().to_string();
    a.attach(&pid, &apart, &[]).expect("attached").delete();
    a.run(&["ip", "netns", "attach", "same", &pid]);
    refused(a.loden(&["attach", "same"]), &["same has an interface eth0 already", "--interface"]);
    a.run(&["ip", "netns", "del", "same"]);

    // One at a time.
    a.namespace("busy");
    let file = a.ns().within_all(|| std::fs::File::open("/run/netns/busy")).expect("the namespace");
    file.lock().expect("its lock");
    refused(a.loden(&["attach", "busy"]), &["another loden attach works on busy", "/run/netns/busy"]);
    drop(file);
    a.loden(&["attach", "busy"]).expect_success();
    assert_eq!(detach(a, &["busy"]).len(), 1);

    // A name, an address and a MAC have one holder.
    a.namespace("other");
    refused(a.loden(&["attach", "other", "--name", "web"]), &["the name web is that of netns-web", &wanted]);
    refused(a.loden(&["attach", "other", "--ip", &wanted]), &["cannot attach other", "is taken by", "(web)"]);
    refused(a.loden(&["attach", "other", "--ip", "192.0.2.1"]), &["192.0.2.1", &a.subnet().to_string()]);
    let mac = first.result()["mac"].as_str().expect("mac");
    refused(a.loden(&["attach", "other", "--mac", mac]), &[mac]);
    assert_eq!(pairs(a).len(), 2);

    // The second interface of one target; detaching the target takes both.
    let second = a.attach("web", &ns, &["--interface", "eth1"]).expect("a second interface");
    assert_eq!(second.result()["name"], "web");
    let one = detach(a, &["web", "--interface", "eth1"]);
    assert_eq!(one, BTreeSet::from([second.address()]));
    let third = a.attach("web", &ns, &["--interface", "eth1"]).expect("again");
    assert_eq!(detach(a, &["web"]), BTreeSet::from([first.address(), third.address()]));
    for container in [first, second, third] {
        container.delete();
    }
    // Nothing there is no error.
    let again = a.loden(&["detach", "web"]);
    assert!(again.stderr.contains("nothing is attached as web"), "{again:?}");
    assert_eq!(again.expect_success(), "");
    cluster.lab.check_invariants();
}

#[test]
fn attach_and_detach_need_no_daemon() {
    let cluster = Cluster::<2>::start("attach_no_daemon", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    cluster.daemons[0].kill9();
    let web = a.attach("web", &a.namespace("web"), &[]).expect("without the daemon");
    matrix(&[&web, &b.container("b1")]);
    assert_eq!(detach(a, &["web"]).len(), 1);
    assert!(pairs(a).is_empty() && allocation(a, web.address()).is_none());
    web.delete();
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    cluster.lab.check_invariants();
}

#[test]
fn what_is_gone_can_be_detached_and_is_freed_by_the_next() {
    let cluster = Cluster::<1>::start("attach_gone", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let living = a.attach("living", &a.namespace("living"), &[]).expect("attached");
    let by_link = ["/run/link", "/run/lost-link"].map(|link| {
        let name = link.trim_start_matches("/run/");
        let ns = a.namespace(name);
        // Elsewhere than where names are.
        let bind =
            format!("touch {link}.ns; mount --bind /run/netns/{name} {link}.ns; ln -s {link}.ns {link}");
        a.run(&["sh", "-ec", &bind]);
        a.attach(link, &ns, &[]).expect("attached")
    });
    a.run(&["rm", "/run/lost-link"]);
    for (container, target) in by_link.into_iter().zip(["/run/link.ns", "/run/lost-link"]) {
        assert_eq!(detach(a, &[target]), BTreeSet::from([container.address()]), "{target}");
        container.delete();
    }
    let names = ["by-name", "by-target", "by-address", "dead", "forgotten", "again"];
    let containers = names.map(|name| a.attach(name, &a.namespace(name), &[]).expect("attached"));
    let gone: Vec<IpAddr> = containers.iter().map(Container::address).collect();
    containers.into_iter().for_each(Container::delete);
    // The lab held the last descriptors of these namespaces: their pairs go with them.
    eventually(SOON, "the kernel has removed them", || pairs(a).len() == 1);
    assert_eq!(detach(a, &["--name", "by-name"]), BTreeSet::from([gone[0]]));
    assert_eq!(detach(a, &["by-target"]), BTreeSet::from([gone[1]]));
    assert_eq!(detach(a, &["--ip", &gone[2].to_string()]), BTreeSet::from([gone[2]]));
    assert!(gone[..3].iter().all(|address| allocation(a, *address).is_none()));
    // A target that comes back keeps its address; the next attach frees all others.
    let again = a.attach("again", &a.namespace("again"), &[]).expect("attached");
    assert_eq!(again.address(), gone[5]);
    assert_eq!(again.result()["already_attached"], false);
    assert!(allocation(a, gone[3]).is_none() && allocation(a, gone[4]).is_none());
    assert!(allocation(a, living.address()).is_some());

    // --free-dead leaves what lives, also where no path leads to it but a process is in it.
    let (process, ns) = a.process_apart("apart");
    let pid = process.pid().to_string();
    a.run(&["ip", "netns", "attach", "named", &pid]);
    let named = a.attach("named", &ns, &[]).expect("attached");
    a.run(&["ip", "netns", "del", "named"]);
    let free_dead = || a.loden(&["endpoints", "--free-dead"]).expect_success();
    assert!(free_dead().contains("no address"));
    matrix(&[&living, &named, &again]);
    process.kill9();
    // What the lab holds is alive as well.
    let address = named.address();
    assert!(free_dead().contains("no address"));
    drop(ns);
    named.delete();
    assert!(free_dead().contains(&address.to_string()));
    assert_eq!(allocation(a, address), None);
    matrix(&[&living, &again]);
    cluster.lab.check_invariants();
}

#[test]
fn a_machine_is_found_by_its_leader_and_what_is_not_there_is_said() {
    let cluster = Cluster::<1>::start("attach_machine", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let (process, ns) = a.process_apart("apart");
    a.run(&["mkdir", "-p", "/run/systemd/machines"]);
    let machine = format!("# This is private data. Do not parse.\nNAME=box\nLEADER={}\n", process.pid());
    a.write_file("/run/systemd/machines/box", &machine);
    let container = a.attach("box", &ns, &[]).expect("a machine");
    assert_eq!(container.result()["container_id"], "machine-box");
    assert!(container.pings(a.subnet().gateway()));
    assert_eq!(detach(a, &["box"]).len(), 1);
    container.delete();

    // The name of a namespace counts before a pid and a machine.
    a.namespace("box");
    a.namespace(&process.pid().to_string());
    for (target, id) in
        [("box", "netns-box"), (&*process.pid().to_string(), &*format!("netns-{}", process.pid()))]
    {
        let answer = a.loden(&["attach", target, "--json"]).expect_success();
        assert_eq!(serde_json::from_str::<Value>(&answer).expect("JSON")["container_id"], id);
        assert_eq!(detach(a, &[target]).len(), 1);
    }

    refused(
        a.loden(&["attach", "nobody"]),
        &["called nobody", "/run/netns/nobody", "/run/systemd/machines/nobody", "LXC", "give the pid"],
    );
    refused(a.loden(&["attach", "99999999"]), &["/run/netns/99999999", "/proc/99999999/ns/net"]);
    refused(a.loden(&["attach", "run/netns/box"]), &["relative"]);
    refused(
        a.loden(&["attach", "box", "--subnet-file", "/none"]),
        &["/none does not exist", "start the daemon", "--subnet-file"],
    );
    a.write_file("/run/netns/plain", "");
    refused(a.loden(&["attach", "plain"]), &["/run/netns/plain is no network namespace"]);
    let own = a.spawn("own", &["sleep", "1000"]);
    refused(a.loden(&["attach", &own.pid().to_string()]), &["shares the network of this host"]);
    let c1 = a.container("c1");
    let address = c1.address().to_string();
    refused(a.loden(&["detach", "--ip", &address]), &["container c1", "the network loden", "its runtime"]);
    let unknown = a.loden(&["detach", "--ip", &a.subnet().nth(200).to_string()]);
    assert!(unknown.stderr.contains("has no allocation"), "{unknown:?}");
    unknown.expect_success();
    let nobody = ["setpriv", "--reuid=nobody", "--clear-groups"];
    refused(a.loden_under(&nobody, &["attach", "box"]), &["loden attach", "needs root", "sudo"]);
    refused(a.loden_under(&nobody, &["detach", "box"]), &["loden detach", "needs root"]);
    assert!(c1.pings(a.subnet().gateway()));
    cluster.lab.check_invariants();
}

#[test]
fn a_lost_allocation_is_said_and_detach_still_works() {
    let cluster = Cluster::<1>::start("attach_lost", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let container = a.attach("web", &a.namespace("web"), &[]).expect("attached");
    a.run(&["rm", "-r", FOLDER]);
    refused(
        a.loden(&["attach", "web"]),
        &["has no allocation any more", "loden detach web --interface eth0"],
    );
    let output = a.loden(&["detach", "web"]);
    assert!(output.stderr.contains("nothing is attached as web"), "{output:?}");
    assert!(pairs(a).is_empty());
    container.delete();
    a.attach("web", &a.namespace("web"), &[]).expect("attached again");
    cluster.lab.check_invariants();
}
