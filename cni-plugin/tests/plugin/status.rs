//! STATUS and GC.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::lab::{Call, Lab, assert_connected, inside, ip};

fn status(lab: &Lab) -> Call {
    let call = lab.call("STATUS", "").config(|c| c["cniVersion"] = json!("1.1.0"));
    ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]
        .into_iter()
        .fold(call, |c, name| c.env(name, None))
}

/// GC by a runtime that knows these containers' `eth0`.
fn gc(lab: &Lab, known: &[&str]) -> Call {
    let known: Vec<Value> = known.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    gc_with(lab, json!({"cni.dev/valid-attachments": known, "cni.dev/attachments": known}))
}

fn gc_with(lab: &Lab, members: Value) -> Call {
    let call = lab.call("GC", "").config(|c| {
        c["cniVersion"] = json!("1.1.0");
        for (key, value) in members.as_object().expect("object") {
            c[key] = value.clone();
        }
    });
    ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"].into_iter().fold(call, |c, name| c.env(name, None))
}

fn silent_success(call: &Call) {
    let out = call.run();
    out.success();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("", ""));
}

#[test]
fn status_is_ready_as_long_as_an_add_would_work() {
    let lab = Lab::new();
    silent_success(&status(&lab));
    assert!(!lab.path().join("ipam").exists(), "it leaves nothing behind");
    let text = fs::read_to_string(lab.subnet_file()).expect("subnet.env");
    lab.write_subnet_env(&text.replace("=held", "=lost"));
    status(&lab).run().failure(51, &["lost the lease"]);
    lab.write_subnet_env("FLANNEL_MTU=1450\n");
    status(&lab).run().failure(50, &["is missing FLANNEL_NETWORK"]);
    fs::remove_file(lab.subnet_file()).expect("remove");
    status(&lab).run().failure(50, &["is the loden daemon running?"]);
    lab.lease(&["10.5.7.1/24"]);
    status(&lab).config(|c| c["mtu"] = json!(9000)).run().failure(50, &["mtu is 9000"]);
    status(&lab).config(|c| c["vlan"] = json!(7)).run().failure(2, &["vlan = 7"]);
    symlink("/tmp", lab.path().join("ipam")).expect("link");
    status(&lab).run().failure(50, &["ipam is a link"]);
}

#[test]
fn status_tells_when_no_address_is_left() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/29", "fd00:0:0:7::1/64"]);
    let namespaces: Vec<String> = (0..5).map(|i| lab.namespace(&format!("c{i}"))).collect();
    for netns in &namespaces {
        silent_success(&status(&lab));
        lab.add(netns);
    }
    status(&lab).run().failure(50, &["no IP addresses available in 10.5.7.0/29: 5 of 5 are taken"]);
    lab.del(&namespaces[2]);
    // Cooling down, but better than none.
    silent_success(&status(&lab));
    // Another network's addresses count too.
    fs::create_dir(lab.path().join("ipam/other")).expect("dir");
    fs::write(lab.path().join("ipam/other/10.5.7.4"), "").expect("file");
    status(&lab).run().failure(50, &["4 of 5 are taken, 1 more by other networks"]);
}

#[test]
fn status_waits_for_no_lock() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    let lock = fs::File::open(lab.path().join("ipam/lock")).expect("lock");
    lock.lock().expect("ours");
    let timeout = ["timeout", "5"];
    status(&lab).under(&timeout).run().success();
    let calls = "trace=flock,execve,clone,clone3,fork,vfork,nanosleep,clock_nanosleep";
    let out = status(&lab).under(&["strace", "-f", "-qq", "-e", "signal=none", "-e", calls]).run();
    assert_eq!(out.stderr.lines().count(), 1, "only the plugin's own start: {}", out.stderr);
}

#[test]
fn gc_frees_the_dead_and_spares_what_other_runtimes_know() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let mine = lab.namespace("mine");
    let (theirs, dead) = (lab.namespace("theirs"), lab.namespace("dead"));
    let (cut, dead_too) = (lab.namespace("cut"), lab.namespace("deadtoo"));
    for netns in [&mine, &theirs, &dead, &cut, &dead_too] {
        lab.add(netns);
    }
    remove_namespace(&dead);
    remove_namespace(&dead_too);
    ip(&cut, "link delete eth0");
    // A list that has the dead one keeps it: the runtime will call DEL.
    silent_success(&gc(&lab, &["mine", "deadtoo"]));
    let left: Vec<String> = lab.allocated().iter().map(ToString::to_string).collect();
    assert_eq!(
        left,
        ["10.5.7.2", "10.5.7.3", "10.5.7.6", "fd00:0:0:7::2", "fd00:0:0:7::3", "fd00:0:0:7::6"],
        "mine, theirs, and the dead one in the list"
    );
    // No list: nothing is valid, and still only the dead go.
    silent_success(&gc_with(&lab, json!({})));
    assert_eq!(lab.allocated().len(), 4);
    assert_connected(&theirs, &mine, "10.5.7.2");
    assert!(lab.ipam().join("freed/10.5.7.4").exists(), "it cools down");
    assert_eq!(fs::read_dir(lab.ipam().join("by-veth")).expect("dir").count(), 4);
}

#[test]
fn gc_knows_interfaces_apart() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    lab.call("ADD", &netns).env("CNI_IFNAME", Some("net1")).run().success();
    remove_namespace(&netns);
    let list = json!([{"containerID": "c", "ifname": "net1"}]);
    silent_success(&gc_with(&lab, json!({"cni.dev/attachments": list})));
    assert_eq!(lab.allocated(), ["10.5.7.3".parse().expect("ip")].into());
}

#[test]
fn gc_leaves_other_networks_alone() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    remove_namespace(&netns);
    silent_success(&gc(&lab, &[]).config(|c| c["name"] = json!("other")));
    assert_eq!(lab.allocated().len(), 1);
    silent_success(&gc(&lab, &[]));
    assert_eq!(lab.allocated().len(), 0);
}

#[test]
fn gc_spares_a_namespace_that_something_holds_where_nobody_sees_it() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    // As another mount namespace's mount does, of a runtime in a container of its own.
    let handle = fs::File::open(&netns).expect("namespace");
    remove_namespace(&netns);
    silent_success(&gc(&lab, &[]));
    assert_eq!((lab.allocated().len(), lab.links(&lab.host()).len()), (1, 2));
    drop(handle);
    silent_success(&gc(&lab, &[]));
    assert_eq!((lab.allocated().len(), lab.links(&lab.host()).len()), (0, 1));
}

#[test]
fn gc_spares_a_container_that_runs_although_its_path_leads_nowhere() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    let mut process = inside(&netns, || Command::new("sleep").arg("60").spawn()).expect("sleep");
    remove_namespace(&netns);
    silent_success(&gc(&lab, &[]));
    assert_eq!((lab.allocated().len(), lab.links(&lab.host()).len()), (1, 2));
    process.kill().expect("kill");
    process.wait().expect("wait");
    silent_success(&gc(&lab, &[]));
    assert_eq!((lab.allocated().len(), lab.links(&lab.host()).len()), (0, 1));
}

#[test]
fn gc_spares_a_container_whose_pair_has_another_name() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let result = lab.add(&netns);
    let name = result["interfaces"][1]["name"].as_str().expect("name");
    ip(&lab.host(), &format!("link set {name} down"));
    ip(&lab.host(), &format!("link set {name} name renamed"));
    silent_success(&gc(&lab, &[]));
    assert_eq!(lab.allocated().len(), 1);
}

#[test]
fn gc_is_not_misled_by_another_namespace_at_the_path() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    remove_namespace(&netns);
    // As /proc/PID/ns/net does when the number is another process's.
    ip(&lab.namespace("c"), "link add eth0 type veth peer name other");
    let pairs = || lab.links(&lab.host()).len() - 1;
    while pairs() > 0 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    silent_success(&gc(&lab, &[]));
    assert!(lab.allocated().is_empty());
}

#[test]
fn gc_goes_on_after_errors_and_tells_all() {
    let lab = Lab::new();
    let namespaces = ["a", "b", "c"].map(|id| lab.namespace(id));
    for netns in &namespaces {
        lab.add(netns);
        remove_namespace(netns);
    }
    for torn in ["10.5.7.2", "10.5.7.3"] {
        fs::write(lab.ipam().join(torn), "{").expect("torn");
    }
    gc(&lab, &[]).run().failure(111, &["cannot read", "ipam/testnet/10.5.7.2", "ipam/testnet/10.5.7.3"]);
    assert!(!lab.ipam().join("10.5.7.4").exists(), "the third was freed all the same");
    fs::remove_dir_all(lab.path().join("ipam")).expect("remove");
    silent_success(&gc(&lab, &[]));
    assert!(!lab.path().join("ipam").exists());
}

#[test]
fn gc_leaves_an_add_alone_that_is_not_through_yet() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    // Stopped where the address is claimed and the pair is not made.
    let log = lab.path().join("strace");
    let add = lab.call("ADD", &netns).under(&[
        "strace",
        "-qq",
        "-o",
        log.to_str().expect("path"),
        "-e",
        "trace=renameat",
        "-e",
        "inject=renameat:signal=SIGSTOP:when=1",
    ]);
    let mut child = add.spawn();
    let pid = loop {
        if fs::read_to_string(&log).unwrap_or_default().contains("stopped by SIGSTOP") {
            break plugin_of(&child);
        }
        assert!(child.try_wait().expect("wait").is_none(), "it did not stop");
        std::thread::yield_now();
    };
    assert_eq!(lab.allocated().len(), 1);
    silent_success(&gc(&lab, &[]));
    assert_eq!(lab.allocated().len(), 1);
    assert!(Command::new("kill").args(["-CONT", &pid]).status().expect("kill").success());
    crate::lab::Outcome::of(child).success();
    assert_connected(&netns, &lab.host(), "10.5.7.1");
}

/// The plugin that strace runs.
fn plugin_of(strace: &Child) -> String {
    let children = format!("/proc/{0}/task/{0}/children", strace.id());
    fs::read_to_string(children).expect("children").trim().to_owned()
}

fn remove_namespace(netns: &str) {
    let name = netns.rsplit('/').next().expect("name");
    let status = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
    assert!(status.expect("ip").success());
}
