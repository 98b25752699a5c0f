//! Environment, configuration and versions: what the runtime says and hears.

use std::fs::File;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::lab::{Lab, PLUGIN, inside};

#[test]
fn without_a_command_it_says_what_it_is() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    for command in [None, Some("")] {
        let out = lab.call("ADD", &netns).env("CNI_COMMAND", command).run();
        assert_eq!((out.code, out.stdout.as_str()), (Some(0), ""));
        let expected = format!(
            "CNI loden plugin v{}\nCNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(out.stderr, expected);
    }
}

#[test]
fn version_needs_nothing_but_its_command() {
    let lab = Lab::new();
    let call = lab.call("VERSION", "/run/netns/none");
    let bare = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]
        .into_iter()
        .fold(call.clone(), |call, name| call.env(name, None))
        .stdin("this is no JSON");
    for call in [call, bare] {
        let result = call.run().success();
        let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
        assert_eq!(result, json!({"cniVersion": "1.1.0", "supportedVersions": versions}));
    }
}

/// Every command with every set of variables missing, against the specification's table.
#[test]
fn missing_variables_are_named_all_at_once() {
    const VARIABLES: [&str; 4] = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"];
    let required: [(&str, &[&str]); 5] = [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
        ("GC", &["CNI_PATH"]),
        ("STATUS", &[]),
    ];
    let lab = Lab::new();
    let netns = lab.namespace("c");
    for (command, required) in required {
        for set in 0..1 << VARIABLES.len() {
            let unset: Vec<&str> = VARIABLES
                .iter()
                .enumerate()
                .filter(|(i, _)| set >> i & 1 == 1)
                .map(|(_, name)| *name)
                .collect();
            // One is not set at all, the next is empty: the same.
            let call =
                unset.iter().enumerate().fold(lab.call(command, &netns).stdin(""), |call, (i, name)| {
                    call.env(name, if i % 2 == 0 { None } else { Some("") })
                });
            let missing: Vec<&str> = unset.into_iter().filter(|name| required.contains(name)).collect();
            let out = call.env("CNI_ARGS", None).run();
            if missing.is_empty() {
                // The environment passes; the empty configuration is the next thing to refuse.
                out.failure(6, &["error unmarshall network config: "]);
            } else {
                let text = out.failure(4, &[]);
                let expected = format!("required env variables [{}] missing", missing.join(","));
                assert_eq!(text.trim_end(), expected, "{command}");
            }
        }
    }
}

/// Every command with every version: what is refused, and in which words.
#[test]
fn every_command_has_its_versions() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    for (command, since) in
        [("ADD", "0.1.0"), ("CHECK", "0.4.0"), ("DEL", "0.1.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")]
    {
        let call =
            |version: &str| lab.call(command, &netns).config(|c| c["cniVersion"] = json!(version)).run();
        for version in versions {
            let out = call(version);
            if version < since {
                let text = out.failure(1, &[&format!("config version does not allow {command}")]);
                assert!(out.stdout.contains(&format!("\"cniVersion\":\"{version}\"")), "{text}");
            } else if command == "CHECK" {
                out.failure(7, &["Required prevResult missing"]);
            } else {
                out.success();
                lab.del(&netns);
            }
        }
        let has_least = !matches!(command, "ADD" | "DEL");
        let newer = format!("plugin version does not allow {command}");
        let newer = if has_least { newer.as_str() } else { "incompatible CNI versions" };
        call("1.2.0").failure(1, &[newer]);
        let (code, words) = if has_least { (6, "invalid version") } else { (1, "incompatible CNI versions") };
        call("x").failure(code, &[words]);
    }
}

#[test]
fn malformed_values_are_refused_in_gos_words() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let cases = [
        ("CNI_COMMAND", "add", 4, "unknown CNI_COMMAND: add"),
        ("CNI_COMMAND", "UPDATE", 4, "unknown CNI_COMMAND: UPDATE"),
        ("CNI_CONTAINERID", "-x", 4, "invalid characters in containerID"),
        ("CNI_CONTAINERID", "a/b", 4, "invalid characters in containerID"),
        ("CNI_IFNAME", "sixteen-letters-", 4, "interface name is too long"),
        ("CNI_IFNAME", ".", 4, "interface name is . or .."),
        ("CNI_IFNAME", "..", 4, "interface name is . or .."),
        ("CNI_IFNAME", "a/b", 4, "interface name contains / or : or whitespace characters"),
        ("CNI_IFNAME", "a:b", 4, "interface name contains / or : or whitespace characters"),
        ("CNI_IFNAME", "a b", 4, "interface name contains / or : or whitespace characters"),
    ];
    for (name, value, code, words) in cases {
        lab.call("ADD", &netns).env(name, Some(value)).run().failure(code, &[words]);
    }
}

#[test]
fn malformed_configurations_are_refused_in_gos_words() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let text = |config: Value| config.to_string();
    let cases = [
        ("".to_owned(), 6, "error unmarshall network config: "),
        ("{".to_owned(), 6, "error unmarshall network config: "),
        ("[]".to_owned(), 6, "error unmarshall network config: "),
        ("{} {}".to_owned(), 6, "error unmarshall network config: "),
        ("null".to_owned(), 7, "missing network name"),
        (text(json!({"cniVersion": "1.0.0"})), 7, "missing network name"),
        (text(json!({"cniVersion": "1.0.0", "name": "../x"})), 7, "invalid characters found in network name"),
        (text(json!({"cniVersion": "1.0.0", "name": 5})), 6, "error unmarshall network config: "),
        (
            text(json!({"name": "n", "cniVersion": "0.5.0"})),
            1,
            "config is \"0.5.0\", plugin supports [\"0.1.0\" \"0.2.0\" \"0.3.0\" \"0.3.1\" \"0.4.0\" \"1.0.0\" \"1.1.0\"]",
        ),
        (text(json!({"name": "n", "cniVersion": "9.0.0"})), 1, "incompatible CNI versions"),
        (text(json!({"name": "n", "cniVersion": 1})), 6, "decoding version from network config"),
        (
            text(json!({"name": "n", "cniVersion": "1.0.0", "dataDir": "x"})),
            7,
            "dataDir must be an absolute path",
        ),
    ];
    for (config, code, words) in cases {
        for command in ["ADD", "DEL"] {
            lab.call(command, &netns).stdin(config.clone()).run().failure(code, &[words]);
        }
        // GC and STATUS begin with 1.1.0; what is before the version is the same.
        if config.contains("1.0.0") || !config.contains("cniVersion") {
            for command in ["GC", "STATUS"] {
                let config = config.replace("1.0.0", "1.1.0");
                lab.call(command, &netns).stdin(config).run().failure(code, &[words]);
            }
        }
    }
    assert!(lab.links(&lab.host()).is_empty(), "a refused request leaves no trace");
}

#[test]
fn unreadable_input_is_an_io_error() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let mut command = Command::new(PLUGIN);
    command.env_clear().envs([
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", netns.as_str()),
        ("CNI_IFNAME", "eth0"),
    ]);
    // Reading a folder fails with EISDIR.
    command.stdin(File::open("/").expect("folder")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = inside(&lab.host(), || command.spawn()).expect("start");
    crate::lab::Outcome::of(child).failure(5, &["error reading from stdin: "]);
}

#[test]
fn check_needs_a_configuration_of_0_4_0_and_a_previous_result() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let version = |v: &'static str| lab.call("CHECK", &netns).config(|c| c["cniVersion"] = json!(v)).run();
    version("0.3.1").failure(1, &["config version does not allow CHECK"]);
    version("0.2.0").failure(1, &["config version does not allow CHECK"]);
    version("1.9.0").failure(1, &["plugin version does not allow CHECK"]);
    version("0.5.0").failure(1, &["incompatible CNI versions"]);
    version("x").failure(6, &["invalid version"]);
    for v in ["0.4.0", "1.0.0", "1.1.0"] {
        version(v).failure(7, &["Required prevResult missing"]);
    }
}

#[test]
fn the_plugins_own_namespace_is_refused_before_anything_else() {
    let lab = Lab::new();
    // There is no subnet either, but that is for later.
    std::fs::remove_file(lab.subnet_file()).expect("remove");
    lab.call("ADD", &lab.host())
        .run()
        .failure(8, &["plugin's netns and netns from CNI_NETNS should not be the same"]);
    let allowed = lab.call("ADD", &lab.host()).env("CNI_NETNS_OVERRIDE", Some("1"));
    allowed.run().failure(11, &[]);
    lab.lease(&[crate::lab::SUBNET]);
    let allowed = allowed.run().success();
    assert_eq!(allowed["interfaces"][2]["name"], "eth0");
    assert_eq!(lab.links(&lab.host()).len(), 3);
    lab.del(&lab.host());
    assert_eq!(lab.links(&lab.host()), ["loden0"]);
}

#[test]
fn what_is_no_namespace_is_named() {
    let lab = Lab::new();
    let file = lab.path().join("file");
    std::fs::write(&file, "").expect("write");
    for path in ["/run/netns/no-such-namespace", file.to_str().expect("path")] {
        lab.call("ADD", path).id("c").run().failure(8, &[path]);
    }
    assert!(lab.links(&lab.host()).is_empty());
}

#[test]
fn without_a_subnet_the_runtime_is_told_to_come_back() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let file = lab.subnet_file();
    let path = file.to_str().expect("path");
    std::fs::remove_file(&file).expect("remove");
    lab.call("ADD", &netns).run().failure(11, &[path, "is the loden daemon running?", "journalctl -u loden"]);
    lab.del(&netns);
    lab.write_subnet_env("FLANNEL_NETWORK=10.5.0.0/16\n");
    let missing = "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ";
    lab.call("ADD", &netns).run().failure(11, &[path, missing]);
    lab.del(&netns);
    lab.assert_nothing_left(&netns, "without a subnet");
}

#[test]
fn keys_match_in_any_case() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let config = json!({
        "CNIVersion": "0.4.0", "NAME": "testnet", "SubnetFile": lab.subnet_file(),
        "DATADIR": lab.path().join("ipam"), "Bridge": "br-own", "DNS": {"NameServers": ["10.5.7.1"]},
        "capabilities": {"x": true},
    });
    let result = lab.call("ADD", &netns).stdin(config.to_string()).run().success();
    assert_eq!(result["cniVersion"], "0.4.0");
    assert_eq!(result["interfaces"][0]["name"], "br-own");
    assert_eq!(result["dns"], json!({"nameservers": ["10.5.7.1"]}));
    assert_eq!(lab.allocated().len(), 1);
}

#[test]
fn the_packaged_configuration_is_accepted() {
    let lab = Lab::new();
    let text = include_str!("../../../packaging/10-loden.conflist");
    let list: Value = serde_json::from_str(text).expect("JSON");
    let mut versions = list["cniVersions"].as_array().expect("versions").clone();
    versions.push(list["cniVersion"].clone());
    for (i, version) in versions.iter().enumerate() {
        let netns = lab.namespace(&format!("c{i}"));
        let mut config = list["plugins"][0].clone();
        assert_eq!(config["type"], "loden");
        for capability in ["ips", "mac", "aliases", "dns"] {
            assert_eq!(config["capabilities"][capability], true, "{capability}");
        }
        // As libcni does it.
        config["name"] = list["name"].clone();
        config["cniVersion"] = version.clone();
        config["subnetFile"] = json!(lab.subnet_file());
        config["dataDir"] = json!(lab.path().join("ipam"));
        let result = lab.call("ADD", &netns).stdin(config.to_string()).run().success();
        assert_eq!(result["cniVersion"], *version);
        assert!(lab.path().join(format!("ipam/loden/10.5.7.{}", i + 2)).exists());
    }
}
