//! Plugins of Debian's containernetworking-plugins chained behind ours, as libcni does it:
//! ADD in order with the last one's result, DEL in reverse. Skipped, and said so, where they
//! are not installed.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Call, Lab, PLUGIN, address, command, inside, ip};

const DIR: &str = "/usr/lib/cni";

/// Whether all of these are installed.
fn installed(plugins: &[&str]) -> bool {
    let missing: Vec<&&str> = plugins.iter().filter(|p| !Path::new(DIR).join(p).exists()).collect();
    if !missing.is_empty() {
        eprintln!("skipped: {DIR} has no {missing:?}; apt-get install containernetworking-plugins");
    }
    missing.is_empty()
}

/// One call of a plugin of the chain.
fn chained(lab: &Lab, verb: &str, netns: &str, plugin: &Value, previous: &Value) -> Call {
    let mut config = lab.config();
    for (key, value) in plugin.as_object().expect("object") {
        config[key] = value.clone();
    }
    if !previous.is_null() {
        config["prevResult"] = previous.clone();
    }
    let kind = config["type"].as_str().expect("type");
    let program = if kind == "loden" { PLUGIN.to_owned() } else { format!("{DIR}/{kind}") };
    let call = lab.call(verb, netns).env("CNI_PATH", Some(DIR)).stdin(config.to_string());
    call.program(&program)
}

/// ADD through the chain; the last one's result.
fn add(lab: &Lab, netns: &str, plugins: &[Value]) -> Value {
    let run = |previous: Value, plugin| chained(lab, "ADD", netns, plugin, &previous).run().success();
    plugins.iter().fold(Value::Null, run)
}

fn check(lab: &Lab, netns: &str, plugins: &[Value], result: &Value) {
    for plugin in plugins {
        chained(lab, "CHECK", netns, plugin, result).run().success();
    }
}

fn del(lab: &Lab, netns: &str, plugins: &[Value], result: &Value) {
    for plugin in plugins.iter().rev() {
        chained(lab, "DEL", netns, plugin, result).run().success();
    }
}

/// The host's rules, without counters and without empty chains' order.
fn rules(lab: &Lab, mention: &str) -> BTreeSet<String> {
    let text = inside(&lab.host(), || command("iptables-save", &[]) + &command("ip6tables-save", &[]));
    text.lines().filter(|line| line.contains(mention)).map(str::to_owned).collect()
}

/// Answers one connection with what it was sent.
fn echo_once(netns: &str, address: &str) -> std::thread::JoinHandle<usize> {
    let address: SocketAddr = address.parse().expect("address");
    let listener = inside(netns, || TcpListener::bind(address)).expect("listen");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("read");
        stream.write_all(b"pong").expect("write");
        bytes.len()
    })
}

/// Sends so many bytes and waits for the answer.
fn send(netns: &str, to: &str, bytes: usize) -> Duration {
    let to: SocketAddr = to.parse().expect("address");
    inside(netns, || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        stream.write_all(&vec![7; bytes]).expect("send");
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "pong");
        start.elapsed()
    })
}

#[test]
fn a_published_port_answers_and_its_rules_go() {
    if !installed(&["portmap"]) {
        return;
    }
    let lab = Lab::new();
    let (netns, client) = (lab.namespace("c"), lab.namespace("client"));
    // Another host, beside this one.
    ip(&lab.host(), "link add out type veth peer name eth9");
    ip(&lab.host(), &format!("link set eth9 netns {}", client.trim_start_matches("/run/netns/")));
    for (netns, name, address) in
        [(lab.host(), "out", "192.0.2.1/24"), (client.clone(), "eth9", "192.0.2.2/24")]
    {
        ip(&netns, &format!("address add {address} dev {name}"));
        ip(&netns, &format!("link set {name} up"));
    }
    inside(&lab.host(), || std::fs::write("/proc/sys/net/ipv4/conf/out/forwarding", "1"))
        .expect("forwarding");
    let plugins = [
        json!({"type": "loden", "hairpinMode": true}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        ]}}),
    ];
    let result = add(&lab, &netns, &plugins);
    // Not portmap's CHECK: that of 1.1.1 looks for the rules of IPv4 in ip6tables too.
    check(&lab, &netns, &plugins[..1], &result);
    let server = echo_once(&netns, &format!("{}:80", address(&result, 0)));
    send(&client, "192.0.2.1:8080", 4);
    assert_eq!(server.join().expect("server"), 4);
    // The container by its own published port: hairpin.
    let server = echo_once(&netns, &format!("{}:80", address(&result, 0)));
    send(&netns, "10.5.7.1:8080", 4);
    assert_eq!(server.join().expect("server"), 4);
    assert!(!rules(&lab, "8080").is_empty());
    del(&lab, &netns, &plugins, &result);
    assert_eq!(rules(&lab, "8080"), BTreeSet::new());
    assert!(lab.links(&netns).is_empty() && lab.allocated().is_empty());
}

#[test]
fn a_limited_rate_is_kept() {
    if !installed(&["bandwidth"]) {
        return;
    }
    let lab = Lab::new();
    let (free, limited) = (lab.namespace("free"), lab.namespace("limited"));
    let plugins = |limits: Value| {
        [json!({"type": "loden"}), json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": limits}})]
    };
    // 1 Mbit/s: 250 kB take 2 s, less the burst.
    let limits = plugins(
        json!({"ingressRate": 1_000_000, "ingressBurst": 80_000, "egressRate": 1_000_000, "egressBurst": 80_000}),
    );
    let time = |netns: &str, result: &Value| {
        let to = format!("{}:80", address(result, 0));
        let server = echo_once(netns, &to);
        let time = send(&lab.host(), &to, 250_000);
        assert_eq!(server.join().expect("server"), 250_000);
        time
    };
    let result = add(&lab, &limited, &limits);
    check(&lab, &limited, &limits, &result);
    let slow = time(&limited, &result);
    let fast = time(&free, &add(&lab, &free, &plugins(Value::Null)));
    assert!(slow > Duration::from_secs(1) && fast < Duration::from_millis(500), "{slow:?}, {fast:?}");
    del(&lab, &limited, &limits, &result);
    let left = lab.links(&lab.host());
    assert_eq!(left.len(), 2, "the bridge and the other's port: {left:?}");
}

#[test]
fn firewall_and_tuning_find_what_they_need() {
    if !installed(&["firewall", "tuning"]) {
        return;
    }
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let netns = lab.namespace("c");
    let plugins = [
        json!({"type": "loden"}),
        json!({"type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"}),
        json!({"type": "tuning", "mac": "02:11:22:33:44:55", "sysctl": {"net.core.somaxconn": "500"}}),
    ];
    let result = add(&lab, &netns, &plugins);
    assert_eq!(result["interfaces"][2]["mac"], "02:11:22:33:44:55");
    let mac = ip(&netns, "-o link show eth0");
    assert!(mac.contains("02:11:22:33:44:55"), "{mac}");
    assert_eq!(crate::lab::sysctl(&netns, "core/somaxconn"), "500");
    assert_eq!(rules(&lab, "10.5.7.2/32").len(), 2, "{:?}", rules(&lab, ""));
    assert!(!rules(&lab, "fd00:0:0:7::2/128").is_empty());
    assert!(!rules(&lab, "loden0").is_empty(), "the policy is that of our bridge");
    check(&lab, &netns, &plugins, &result);
    del(&lab, &netns, &plugins, &result);
    assert_eq!(rules(&lab, "10.5.7.2"), BTreeSet::new());
    assert_eq!(rules(&lab, "fd00:0:0:7::2"), BTreeSet::new());
    lab.assert_nothing_left(&netns, "after the chain");
}
