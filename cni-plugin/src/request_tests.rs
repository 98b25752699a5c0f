//! Tests of `request.rs`.

use super::*;
use crate::options::Routes;

fn env(command: &str) -> Environment {
    Environment {
        command: command.into(),
        container_id: "c1".into(),
        netns: "/run/netns/x".into(),
        ifname: "eth0".into(),
        ..Environment::default()
    }
}

fn parse(config: &Value) -> Result<Request, Error> {
    Request::parse(Command::Add, &env("ADD"), config.to_string().as_bytes())
}

#[test]
fn keys_match_in_any_case_at_every_level() {
    let config = json!({
        "CNIVERSION": "1.0.0", "Name": "n", "SUBNETFILE": "/s", "DataDir": "/d", "Bridge": "br7",
        "DNS": {"NameServers": ["1.1.1.1"], "Domain": "x", "SEARCH": ["a"], "OPTIONS": []},
        "HAIRPINmode": true, "Delegate": {"PortIsolation": true},
        "RuntimeConfig": {"Mac": "02:00:00:00:00:01", "DNS": {"Servers": ["9.9.9.9"]}},
        "ARGS": {"CNI": {"IPS": ["10.5.7.9"], "Labels": [{"Key": "name", "Value": "web"}]}},
        "PrevResult": {}, "unknown": {"x": 1}
    });
    let request = parse(&config).expect("valid");
    assert_eq!(request.attachment.network, "n");
    assert_eq!(request.config.subnet_file, Path::new("/s"));
    assert_eq!(request.config.data_dir, Path::new("/d"));
    assert_eq!(request.config.bridge.map(|b| b.to_string()), Some("br7".into()));
    assert_eq!(request.config.dns, json!({"nameservers": ["9.9.9.9"], "domain": "x", "search": ["a"]}));
    assert!(request.config.options.hairpin && request.config.options.isolated);
    assert!(request.config.prev_result.is_some());
    assert_eq!(request.wishes.mac.map(|m| m.to_string()).as_deref(), Some("02:00:00:00:00:01"));
    assert_eq!(request.wishes.addresses, ["10.5.7.9".parse::<std::net::IpAddr>().expect("ip")]);
    assert_eq!(request.wishes.name.as_deref(), Some("web"));
}

#[test]
fn defaults_are_below_run_loden() {
    let config =
        parse(&json!({"cniVersion": "0.3.0", "name": "n", "prevResult": null})).expect("valid").config;
    assert_eq!(config.subnet_file, Path::new("/run/loden/subnet.env"));
    assert_eq!(config.data_dir, Path::new("/run/loden/ipam"));
    assert!(config.bridge.is_none() && config.prev_result.is_none());
    assert_eq!(config.dns, json!({}));
    assert_eq!(config.options, Options::default());
}

#[test]
fn a_network_name_cannot_lead_out_of_its_folder() {
    for name in ["..", ".", "a/b", "/etc", "-a", "a b", "ü"] {
        let error = parse(&json!({"cniVersion": "1.0.0", "name": name})).expect_err(name);
        assert_eq!(error.code(), 7, "{name}");
    }
}

#[test]
fn no_network_is_named_like_the_lock() {
    let error = parse(&json!({"cniVersion": "1.0.0", "name": "lock"})).expect_err("the lock's name");
    assert_eq!(error.code(), 7);
    assert!(error.to_string().contains("\"lock\""), "{error}");
}

#[test]
fn values_that_cannot_be_right_are_refused_by_name() {
    for (key, value, code) in [
        ("dataDir", json!("relative"), 7),
        ("subnetFile", json!("x/y"), 7),
        ("bridge", json!("a/b"), 7),
        ("bridge", json!(7), 6),
        ("dataDir", json!([]), 6),
        ("dns", json!("x"), 6),
        ("delegate", json!("x"), 6),
        ("prevResult", json!([]), 6),
        ("delegate", json!({"type": "macvlan"}), 2),
    ] {
        let mut config = json!({"cniVersion": "1.0.0", "name": "n"});
        config[key] = value;
        let error = parse(&config).expect_err(key);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn flannels_delegate_counts_where_the_outer_configuration_says_nothing() {
    let config = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "flannel", "mtu": 1300,
        "delegate": {
            "type": "bridge", "name": "other", "bridge": "cni0", "mtu": 1200, "hairpinMode": true,
            "isDefaultGateway": false, "dataDir": "/elsewhere",
        },
    });
    let request = parse(&config).expect("valid");
    assert_eq!(request.attachment.network, "n");
    let config = request.config;
    assert_eq!(config.bridge.map(|b| b.to_string()).as_deref(), Some("cni0"));
    assert_eq!(config.data_dir, Path::new("/run/loden/ipam"));
    assert_eq!((config.options.mtu, config.options.hairpin), (Some(1300), true));
    assert_eq!(config.options.routes, Routes::Overlay);
}

#[test]
fn what_refuses_an_add_does_not_refuse_its_del() {
    let config = json!({"cniVersion": "1.0.0", "name": "n", "vlan": 7, "runtimeConfig": {"mac": "x"}});
    parse(&config).expect_err("refused");
    for command in [Command::Del, Command::Check] {
        Request::parse(command, &env("DEL"), config.to_string().as_bytes()).expect("not its business");
    }
    let gc = json!({"cniVersion": "1.1.0", "name": "n", "vlan": 7}).to_string();
    parse_gc(gc.as_bytes()).expect("not its business");
    assert_eq!(parse_status(gc.as_bytes()).expect_err("ADD would fail").code(), 2);
}

#[test]
fn gc_reads_the_right_key_and_the_old_wrong_one() {
    let known = |config: Value| parse_gc(config.to_string().as_bytes()).map(|(_, known)| known);
    let conf = |key: &str, value: Value| json!({"cniVersion": "1.1.0", "name": "n", key: value});
    let (a, b) = (("a".to_owned(), "eth0".to_owned()), ("b".to_owned(), "net1".to_owned()));
    let list = json!([{"containerID": "a", "ifname": "eth0"}, {"containerid": "b", "IfName": "net1"}]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(known(conf(key, list.clone())).expect("valid"), BTreeSet::from([a.clone(), b.clone()]));
    }
    assert_eq!(known(conf("x", json!(1))).expect("absent"), BTreeSet::new());
    assert_eq!(known(conf("cni.dev/valid-attachments", Value::Null)).expect("null"), BTreeSet::new());
    for bad in [json!({}), json!(["a"]), json!([{"containerID": "a"}]), json!([{"ifname": 1}])] {
        assert_eq!(known(conf("cni.dev/valid-attachments", bad)).expect_err("bad").code(), 6);
    }
}

#[test]
fn errors_carry_a_version_that_the_runtime_can_read() {
    assert_eq!(version_for_errors(br#"{"cniVersion":"0.3.1"}"#), "0.3.1");
    assert_eq!(version_for_errors(br#"{"cniVersion":"9"}"#), "1.1.0");
    assert_eq!(version_for_errors(b"no json"), "1.1.0");
}

#[test]
fn override_is_one_or_true() {
    for (text, allowed) in
        [("", false), ("0", false), ("1", true), ("TRUE", true), ("true", true), ("yes", false)]
    {
        let env = Environment { netns_override: text.into(), ..env("ADD") };
        let request =
            Request::parse(Command::Add, &env, br#"{"cniVersion":"1.0.0","name":"n"}"#).expect("valid");
        assert_eq!(request.attachment.own_netns_allowed, allowed, "{text:?}");
    }
}
