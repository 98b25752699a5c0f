//! The plugin as netavark's: by itself as netavark calls it, and below a real netavark.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use loden_proto::allocation::Allocation;
use serde_json::{Value, json};

use crate::lab::{Lab, Outcome, PLUGIN, assert_connected, command, inside, ip};

const DUAL: [&str; 2] = ["10.5.7.1/24", "fd00:0:0:7::1/64"];

/// The network as it stands after `create`; its options point at the lab's files.
fn network(lab: &Lab) -> Value {
    let asked = json!({
        "name": "testnet", "id": "2f259bab", "driver": "loden", "ipv6_enabled": false, "internal": false,
        "dns_enabled": true,
        "options": {"subnetFile": lab.subnet_file(), "dataDir": lab.path().join("ipam")},
    });
    call(lab, &["create"], &asked).success()
}

/// What netavark passes for a container whose id is the last part of the namespace's name.
fn exec(lab: &Lab, netns: &str) -> Value {
    let id = netns.rsplit('-').next().expect("a name");
    json!({
        "container_id": id, "container_name": format!("name-of-{id}"), "port_mappings": null,
        "network": network(lab),
        "network_options": {
            "aliases": [id], "interface_name": "eth0", "static_ips": null, "static_mac": null, "options": null,
        },
    })
}

fn run(lab: &Lab, program: &Path, arguments: &[&str], stdin: &Value) -> Outcome {
    let mut started = Command::new(program);
    started.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    started.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = inside(&lab.host(), || started.spawn()).expect("it starts");
    let _ = child.stdin.take().expect("piped").write_all(stdin.to_string().as_bytes());
    Outcome::of(child)
}

fn call(lab: &Lab, arguments: &[&str], stdin: &Value) -> Outcome {
    run(lab, PLUGIN.as_ref(), arguments, stdin)
}

/// The text of an error as netavark reads it.
#[track_caller]
fn error(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let error: Value = serde_json::from_str(&outcome.stdout).expect("an error as JSON");
    let text = error["error"].as_str().expect("a text");
    assert_eq!(error.as_object().expect("object").len(), 1, "{error}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
}

#[test]
fn info_has_the_versions_and_cni_stays_cni() {
    let lab = Lab::new();
    let info = call(&lab, &["info"], &Value::Null).success();
    assert_eq!(info, json!({"version": env!("CARGO_PKG_VERSION"), "api_version": "1.0.0"}));
    error(&call(&lab, &["update"], &Value::Null), &["unknown subcommand \"update\"", "setup <netns>"]);
    error(&call(&lab, &["setup"], &Value::Null), &["path is missing"]);
    let out = call(&lab, &["--version"], &Value::Null);
    assert_eq!((out.code, out.stdout.as_str()), (Some(0), ""));
    assert!(out.stderr.contains("CNI protocol versions"), "{out:?}");
}

#[test]
fn setup_connects_and_teardown_leaves_nothing() {
    let lab = Lab::new();
    lab.lease(&DUAL);
    let (one, other) = (lab.namespace("one"), lab.namespace("other"));
    let status = call(&lab, &["setup", &one], &exec(&lab, &one)).success();
    let interface = &status["interfaces"]["eth0"];
    let expected = json!([
        {"ipnet": "10.5.7.2/24", "gateway": "10.5.7.1"},
        {"ipnet": "fd00:0:0:7::2/64", "gateway": "fd00:0:0:7::1"},
    ]);
    assert_eq!(interface["subnets"], expected);
    assert_eq!(interface["mac_address"], "0a:58:0a:05:07:02");
    assert_eq!((&status["dns_server_ips"], &status["dns_search_domains"]), (&json!([]), &json!([])));
    let written = std::fs::read_to_string(lab.ipam().join("10.5.7.2")).expect("its allocation");
    let written = Allocation::parse(&written).expect("JSON");
    assert_eq!((written.name.as_deref(), &*written.container_id), (Some("name-of-one"), "one"));

    let mut asked = exec(&lab, &other);
    asked["network_options"]["static_ips"] = json!(["10.5.7.77"]);
    asked["network_options"]["static_mac"] = json!("02:00:00:00:00:09");
    asked["network_options"]["interface_name"] = json!("ovl0");
    asked["network_options"]["options"] = json!({"mtu": "1300"});
    let status = call(&lab, &["setup", &other], &asked).success();
    assert_eq!(status["interfaces"]["ovl0"]["subnets"][0]["ipnet"], "10.5.7.77/24");
    assert_eq!(status["interfaces"]["ovl0"]["mac_address"], "02:00:00:00:00:09");
    assert!(ip(&other, "link show ovl0").contains("mtu 1300"));
    assert_connected(&one, &other, "10.5.7.77");
    // A CNI container of the same network is a neighbour.
    let cni = lab.namespace("cni");
    lab.add(&cni);
    assert_connected(&cni, &one, "10.5.7.2");
    lab.del(&cni);

    for _ in 0..2 {
        assert_eq!(call(&lab, &["teardown", &other], &asked).success(), Value::Null);
        call(&lab, &["teardown", &one], &exec(&lab, &one)).success();
    }
    lab.assert_nothing_left(&one, "after teardown");
    lab.assert_nothing_left(&other, "after teardown");
}

#[test]
fn a_refused_setup_says_why_and_leaves_nothing() {
    let lab = Lab::new();
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    let refused = |change: &dyn Fn(&mut Value), words: &[&str]| {
        let mut asked = exec(&lab, &two);
        change(&mut asked);
        error(&call(&lab, &["setup", &two], &asked), words);
    };
    let status = call(&lab, &["setup", &one], &exec(&lab, &one)).success();
    assert_eq!(status["interfaces"]["eth0"]["subnets"][0]["ipnet"], "10.5.7.2/24");
    let ips = |ip: &'static str| move |e: &mut Value| e["network_options"]["static_ips"] = json!([ip]);
    refused(&ips("10.5.7.2"), &["10.5.7.2 is taken by container one (name-of-one)"]);
    refused(&ips("10.6.0.2"), &["10.6.0.2", "10.5.7.0/24"]);
    refused(&|e| e["network"]["options"]["mtu"] = json!("9000"), &["mtu is 9000", "1450"]);
    refused(&|e| e["network"]["options"]["subnetFile"] = json!("/none"), &["/none", "subnetFile=PATH"]);
    refused(&|e| e["port_mappings"] = json!([{"container_port": 80, "host_port": 8080}]), &["-p 8080:80"]);
    error(
        &call(&lab, &["setup", "/run/netns/none"], &exec(&lab, &two)),
        &["namespace /run/netns/none: No such"],
    );
    error(&call(&lab, &["setup", &lab.host()], &exec(&lab, &two)), &["shares the host's network"]);
    error(&call(&lab, &["setup", &one], &exec(&lab, &two)), &["already has an interface eth0"]);
    // Each was followed by no teardown: netavark calls none for a network whose setup failed.
    call(&lab, &["teardown", &one], &exec(&lab, &one)).success();
    lab.assert_nothing_left(&one, "after teardown");
    lab.assert_nothing_left(&two, "after refusals");
}

#[test]
fn teardown_succeeds_whatever_is_gone() {
    let lab = Lab::new();
    for (name, gone) in [("namespace", 0), ("file", 1), ("folder", 2), ("pair", 3), ("never", 4)] {
        let netns = lab.namespace(name);
        let asked = exec(&lab, &netns);
        if gone != 4 {
            call(&lab, &["setup", &netns], &asked).success();
        }
        match gone {
            0 => drop(command("ip", &["netns", "del", netns.trim_start_matches("/run/netns/")])),
            1 => std::fs::remove_file(lab.subnet_file()).expect("subnet.env"),
            2 => std::fs::remove_dir_all(lab.path().join("ipam")).expect("ipam"),
            3 => drop(ip(&netns, "link del eth0")),
            _ => {}
        }
        assert_eq!(call(&lab, &["teardown", &netns], &asked).success(), Value::Null, "{name}");
        lab.lease(&["10.5.7.1/24"]);
        assert!(lab.allocated().is_empty(), "{name}");
    }
}

#[test]
fn what_podman_lost_track_of_is_freed_when_it_is_missed() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/30"]);
    let (lost, next, third) = (lab.namespace("lost"), lab.namespace("next"), lab.namespace("third"));
    call(&lab, &["setup", &lost], &exec(&lab, &lost)).success();
    error(&call(&lab, &["setup", &next], &exec(&lab, &next)), &["no IP addresses available in 10.5.7.0/30"]);
    // Its interface goes, and Podman never says so.
    ip(&lost, "link del eth0");
    let status = call(&lab, &["setup", &next], &exec(&lab, &next)).success();
    assert_eq!(status["interfaces"]["eth0"]["subnets"][0]["ipnet"], "10.5.7.2/30");
    error(&call(&lab, &["setup", &third], &exec(&lab, &third)), &["no IP addresses available"]);
}

/// `make netavark` builds it.
fn netavark() -> PathBuf {
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/netavark/bin/netavark");
    let path = std::env::var_os("NETAVARK").map_or_else(|| peers.into(), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run make netavark", path.display());
    path
}

#[test]
#[ignore = "make test-netavark"]
fn a_real_netavark_takes_it_for_a_plugin() {
    let lab = Lab::new();
    lab.lease(&DUAL);
    let netavark = netavark();
    let plugins = lab.path().join("plugins");
    std::fs::create_dir(&plugins).expect("a folder");
    std::os::unix::fs::symlink(PLUGIN, plugins.join("loden")).expect("the plugin by its driver's name");
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    let options = |netns: &str, change: &dyn Fn(&mut Value)| {
        let exec = exec(&lab, netns);
        let mut options = json!({
            "container_id": exec["container_id"], "container_name": exec["container_name"],
            "networks": {"testnet": exec["network_options"]}, "network_info": {"testnet": exec["network"]},
        });
        change(&mut options);
        options
    };
    let config = lab.path().join("netavark");
    let call = |command: &str, netns: &str, options: &Value| {
        let file = lab.path().join("options.json");
        std::fs::write(&file, options.to_string()).expect("options");
        let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let arguments = [
            "--plugin-directory",
            &text(&plugins),
            "--config",
            &text(&config),
            "--file",
            &text(&file),
            "--firewall-driver",
            "none",
            command,
            netns,
        ];
        run(&lab, &netavark, &arguments, &Value::Null)
    };
    let status = call("setup", &one, &options(&one, &|_| ())).success();
    assert_eq!(
        status["testnet"]["interfaces"]["eth0"]["subnets"][1]["ipnet"], "fd00:0:0:7::2/64",
        "{status}"
    );
    let fixed = |o: &mut Value| {
        o["networks"]["testnet"]["static_ips"] = json!(["10.5.7.77"]);
        o["networks"]["testnet"]["static_mac"] = json!("02:00:00:00:00:09");
    };
    let status = call("setup", &two, &options(&two, &fixed)).success();
    assert_eq!(status["testnet"]["interfaces"]["eth0"]["mac_address"], "02:00:00:00:00:09", "{status}");
    assert_connected(&one, &two, "10.5.7.77");
    assert_connected(&two, &one, "fd00:0:0:7::2");

    let third = lab.namespace("third");
    let ports = |o: &mut Value| {
        o["port_mappings"] =
            json!([{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}]);
    };
    let refused = call("setup", &third, &options(&third, &ports));
    error(&refused, &["plugin \"loden\" failed", "exit code 1", "-p 8080:80"]);

    call("teardown", &one, &options(&one, &|_| ())).success();
    ip(&two, "link del eth0");
    call("teardown", &two, &options(&two, &fixed)).success();
    call("teardown", "/run/netns/none", &options(&two, &fixed)).success();
    lab.assert_nothing_left(&one, "after teardown");
    lab.assert_nothing_left(&two, "after teardown");
    lab.assert_nothing_left(&third, "after a refusal");
}
