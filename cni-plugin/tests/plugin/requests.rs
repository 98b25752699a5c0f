//! What operators and runtimes ask for: options, addresses, MACs, names, DNS.

use std::fs;
use std::os::unix::fs::symlink;

use loden_proto::allocation::Allocation;
use serde_json::{Value, json};

use crate::lab::{Lab, Outcome, address, assert_connected, ip};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// ADD with these members in the configuration.
fn add_with(lab: &Lab, netns: &str, members: Value) -> Outcome {
    let call = lab.call("ADD", netns).config(|c| {
        for (key, value) in members.as_object().expect("object") {
            c[key] = value.clone();
        }
    });
    call.run()
}

/// ADD that must fail and leave nothing.
fn refused(lab: &Lab, netns: &str, members: Value, code: u32, words: &[&str]) {
    add_with(lab, netns, members).failure(code, words);
    assert!(lab.links(netns).is_empty());
    lab.del(netns);
}

fn allocation(lab: &Lab, address: &str) -> Allocation {
    Allocation::parse(&fs::read_to_string(lab.ipam().join(address)).expect(address)).expect("JSON")
}

fn port_of(lab: &Lab, result: &Value) -> Value {
    let veth = result["interfaces"][1]["name"].as_str().expect("name");
    json_of(&ip(&lab.host(), &format!("-j -d link show {veth}")))[0]["linkinfo"]["info_slave_data"].clone()
}

#[test]
fn ports_are_plain_unless_asked_for_more() {
    let lab = Lab::new();
    let cases = [
        (json!({}), [false, false]),
        (json!({"hairpinMode": true}), [true, false]),
        (json!({"portIsolation": true}), [false, true]),
        (json!({"delegate": {"hairpinMode": true, "isDefaultGateway": true}}), [true, false]),
    ];
    for (i, (members, expected)) in cases.into_iter().enumerate() {
        let netns = lab.namespace(&format!("c{i}"));
        let port = port_of(&lab, &add_with(&lab, &netns, members.clone()).success());
        assert_eq!(
            [&port["hairpin"], &port["isolated"]],
            [&json!(expected[0]), &json!(expected[1])],
            "{members}"
        );
        assert_connected(&netns, &lab.host(), "10.5.7.1");
    }
}

#[test]
fn a_smaller_mtu_is_the_containers_own() {
    let lab = Lab::new();
    let (small, other) = (lab.namespace("small"), lab.namespace("other"));
    let mtu =
        |netns: &str, name: &str| json_of(&ip(netns, &format!("-j link show {name}")))[0]["mtu"].clone();
    let members = json!({"mtu": 1300, "cniVersion": "1.1.0"});
    let result = add_with(&lab, &small, members).success();
    let mtus: Vec<&Value> = (0..3).map(|i| &result["interfaces"][i]["mtu"]).collect();
    assert_eq!(mtus, [1450, 1300, 1300]);
    assert_eq!(mtu(&small, "eth0"), 1300);
    assert_eq!(mtu(&lab.host(), "loden0"), 1450, "the bridge keeps the overlay's");
    lab.add(&other);
    assert_eq!((mtu(&other, "eth0"), mtu(&lab.host(), "loden0")), (json!(1450), json!(1450)));
    let third = lab.namespace("third");
    refused(&lab, &third, json!({"mtu": 1451}), 7, &["mtu is 1451", "1450"]);
}

#[test]
fn the_default_route_can_be_left_out() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let routes = |netns: &str| {
        let mut found = Vec::new();
        for family in ["-4", "-6"] {
            for route in json_of(&ip(netns, &format!("{family} -j route show"))).as_array().expect("array") {
                if route["gateway"].is_string() {
                    found.push(format!("{} {}", route["dst"], route["gateway"]).replace('"', ""));
                }
            }
        }
        found
    };
    let gateways = ["10.5.7.1", "fd00:0:0:7::1"];
    let cases = [
        (json!({}), vec!["default", "default"]),
        (json!({"isGateway": true}), vec!["default", "default"]),
        (json!({"isDefaultGateway": false}), vec!["10.5.0.0/16", "fd00::/48"]),
        (json!({"isGateway": false}), vec![]),
    ];
    for (i, (members, to)) in cases.into_iter().enumerate() {
        let netns = lab.namespace(&format!("c{i}"));
        let result = add_with(&lab, &netns, members.clone()).success();
        let expected: Vec<String> = to.iter().zip(gateways).map(|(to, by)| format!("{to} {by}")).collect();
        assert_eq!(routes(&netns), expected, "{members}");
        let told: Vec<String> = result["routes"]
            .as_array()
            .expect("array")
            .iter()
            .map(|r| {
                let to = r["dst"]
                    .as_str()
                    .expect("dst")
                    .replace("0.0.0.0/0", "default")
                    .replace("::/0", "default");
                format!("{to} {}", r["gw"].as_str().expect("gw"))
            })
            .collect();
        assert_eq!(told, expected, "{members}");
        let check = lab.call("CHECK", &netns).config(|c| c["prevResult"] = result.clone());
        check.run().success();
        if to.first() == Some(&"10.5.0.0/16") {
            ip(&netns, "route delete 10.5.0.0/16");
            check.run().failure(110, &["has lost its route to 10.5.0.0/16 through 10.5.7.1"]);
        }
    }
}

#[test]
fn masquerading_is_the_daemons() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    // The daemon masquerades, as asked.
    add_with(&lab, &netns, json!({"ipMasq": true})).success();
    lab.del(&netns);
    let text = fs::read_to_string(lab.subnet_file()).expect("subnet.env");
    lab.write_subnet_env(&text.replace("IPMASQ=true", "IPMASQ=false"));
    refused(&lab, &netns, json!({"ipMasq": true}), 7, &["ipMasq is true", "--ip-masq=false"]);
    add_with(&lab, &netns, json!({"ipMasq": false})).success();
}

#[test]
fn options_without_a_meaning_here_are_refused_by_name() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    for (key, on, off) in [
        ("vlan", json!(100), json!(0)),
        ("vlanTrunk", json!([{"id": 7}]), json!([])),
        ("preserveDefaultVlan", json!(false), json!(true)),
        ("promiscMode", json!(true), json!(false)),
        ("forceAddress", json!(true), json!(false)),
        ("disableContainerInterface", json!(true), json!(false)),
        ("enabledad", json!(true), json!(false)),
        ("ipam", json!({"type": "host-local"}), json!({"type": "loden"})),
        ("ipMasqBackend", json!("iptables"), Value::Null),
    ] {
        refused(&lab, &netns, json!({ key: on }), 2, &["unsupported field", key]);
        refused(&lab, &netns, json!({"delegate": { key: on }}), 2, &["unsupported field", key]);
        add_with(&lab, &netns, json!({ key: off })).success();
        lab.del(&netns);
    }
    refused(&lab, &netns, json!({"delegate": {"type": "ipvlan"}}), 2, &["delegate.type", "ipvlan"]);
}

#[test]
fn a_requested_address_is_given_by_whichever_way_it_comes() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let netns = lab.namespace("c");
    let ips = |members: Value, args: Option<&str>| {
        let call = lab.call("ADD", &netns).env("CNI_ARGS", args).config(|c| {
            for (key, value) in members.as_object().expect("object") {
                c[key] = value.clone();
            }
        });
        let result = call.run().success();
        lab.call("CHECK", &netns).config(|c| c["prevResult"] = result.clone()).run().success();
        lab.del(&netns);
        [address(&result, 0), address(&result, 1)]
    };
    let runtime = json!({"runtimeConfig": {"ips": ["10.5.7.99/24", "fd00:0:0:7::99"]}});
    assert_eq!(ips(runtime, None), ["10.5.7.99", "fd00:0:0:7::99"]);
    assert_eq!(ips(json!({"args": {"cni": {"ips": ["10.5.7.99"]}}}), None), ["10.5.7.99", "fd00:0:0:7::2"]);
    let args = "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.5.7.99;GATEWAY=10.5.7.1";
    assert_eq!(ips(json!({}), Some(args)), ["10.5.7.99", "fd00:0:0:7::3"]);
    let both = json!({"runtimeConfig": {"ips": ["fd00:0:0:7::98"]}});
    assert_eq!(ips(both, Some("IP=10.5.7.98")), ["10.5.7.98", "fd00:0:0:7::98"]);
    assert_eq!(ips(json!({}), None), ["10.5.7.2", "fd00:0:0:7::4"], "the cursors stand where they stood");
    lab.assert_nothing_left(&netns, "after all");
}

#[test]
fn a_requested_address_that_cannot_be_given_is_refused() {
    let lab = Lab::new();
    let (holder, netns) = (lab.namespace("holder"), lab.namespace("c"));
    let text = fs::read_to_string(lab.subnet_file()).expect("subnet.env");
    lab.write_subnet_env(&(text + "LODEN_DOCKER_RANGE=10.5.7.128/25\n"));
    lab.call("ADD", &holder).env("CNI_ARGS", Some("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web")).run().success();
    for (address, code, words) in [
        ("10.5.8.2", 7, "10.5.7.0/24: it is outside of it"),
        ("10.5.7.0", 7, "network address"),
        ("10.5.7.1", 7, "gateway"),
        ("10.5.7.255", 7, "broadcast"),
        ("10.5.7.200", 7, "Docker"),
        ("fd00::2", 7, "of a family without one"),
        ("10.5.7.2", 11, "taken by container holder (shop/web)"),
        ("nonsense", 7, "nonsense"),
    ] {
        refused(&lab, &netns, json!({"runtimeConfig": {"ips": [address]}}), code, &[address, words]);
    }
    let two = json!({"runtimeConfig": {"ips": ["10.5.7.8", "10.5.7.9"]}});
    refused(&lab, &netns, two, 7, &["10.5.7.8", "10.5.7.9", "one IPv4 address"]);
    for (args, words) in [("IP=nonsense", "IP=nonsense"), ("GATEWAY=10.5.7.254", "GATEWAY=10.5.7.254")] {
        lab.call("ADD", &netns).env("CNI_ARGS", Some(args)).run().failure(4, &[words]);
    }
    assert_eq!(lab.allocated().len(), 1);
    assert_connected(&holder, &lab.host(), "10.5.7.1");
}

#[test]
fn a_requested_mac_is_given() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let mac = "02:11:22:33:44:55";
    for (members, args) in [
        (
            json!({"runtimeConfig": {"mac": mac}, "args": {"cni": {"mac": "02:00:00:00:00:01"}}}),
            "MAC=02:00:00:00:00:02",
        ),
        (json!({"args": {"cni": {"mac": mac}}}), "MAC=02:00:00:00:00:02"),
        (json!({}), "MAC=02:11:22:33:44:55"),
    ] {
        let call = lab.call("ADD", &netns).env("CNI_ARGS", Some(args)).config(|c| {
            for (key, value) in members.as_object().expect("object") {
                c[key] = value.clone();
            }
        });
        let result = call.run().success();
        assert_eq!(result["interfaces"][2]["mac"], mac);
        assert_eq!(json_of(&ip(&netns, "-j link show eth0"))[0]["address"], mac);
        assert_connected(&netns, &lab.host(), "10.5.7.1");
        lab.call("CHECK", &netns).config(|c| c["prevResult"] = result.clone()).run().success();
        lab.del(&netns);
    }
    for (mac, code) in [("0a:58:0a:05:07:09", 7), ("01:00:5e:00:00:01", 7), ("x", 7)] {
        refused(&lab, &netns, json!({"runtimeConfig": {"mac": mac}}), code, &[mac]);
    }
    let derived = json!({"runtimeConfig": {"mac": "0a:58:0a:05:07:09", "ips": ["10.5.7.9"]}});
    add_with(&lab, &netns, derived).success();
    let other = lab.namespace("other");
    refused(
        &lab,
        &other,
        json!({"args": {"cni": {"mac": "0a:58:0a:05:07:09", "ips": ["10.5.7.10"]}}}),
        7,
        &["0a:58"],
    );
}

#[test]
fn the_name_that_a_runtime_tells_is_kept() {
    let lab = Lab::new();
    for (i, (members, args, name)) in [
        (json!({}), "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1", Some("shop/web-1")),
        (json!({}), "IgnoreUnknown=true;NOMAD_JOB_ID=job;NOMAD_GROUP_NAME=group", Some("job/group")),
        (json!({"runtimeConfig": {"aliases": {"testnet": ["db"]}}}), "", Some("db")),
        (json!({"runtimeConfig": {"aliases": ["db"]}}), "", Some("db")),
        (json!({}), "", None),
    ]
    .into_iter()
    .enumerate()
    {
        let netns = lab.namespace(&format!("c{i}"));
        let call = lab.call("ADD", &netns).env("CNI_ARGS", Some(args)).config(|c| {
            for (key, value) in members.as_object().expect("object") {
                c[key] = value.clone();
            }
        });
        call.run().success();
        assert_eq!(allocation(&lab, &format!("10.5.7.{}", i + 2)).name.as_deref(), name);
    }
}

#[test]
fn the_runtimes_dns_comes_before_the_configurations() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let members = json!({
        "dns": {"nameservers": ["10.5.7.1"], "domain": "example", "options": ["ndots:1"]},
        "RuntimeConfig": {"DNS": {"Servers": ["9.9.9.9"], "Searches": ["a.example"], "Options": []}},
    });
    let result = add_with(&lab, &netns, members).success();
    let expected = json!({
        "nameservers": ["9.9.9.9"], "search": ["a.example"], "domain": "example", "options": ["ndots:1"],
    });
    assert_eq!(result["dns"], expected);
}

#[test]
fn a_folder_of_somebody_elses_is_not_written_to() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let (ipam, elsewhere) = (lab.path().join("ipam"), lab.path().join("elsewhere"));
    fs::create_dir(&elsewhere).expect("dir");
    symlink(&elsewhere, &ipam).expect("link");
    lab.call("ADD", &netns).run().failure(104, &["ipam is a link"]);
    fs::remove_file(&ipam).expect("remove");
    fs::create_dir(&ipam).expect("dir");
    std::os::unix::fs::chown(&ipam, Some(65534), None).expect("chown");
    lab.call("ADD", &netns).run().failure(104, &["ipam belongs to user 65534"]);
    assert_eq!(fs::read_dir(&ipam).expect("dir").count() + fs::read_dir(&elsewhere).expect("dir").count(), 0);
    assert_eq!(lab.links(&netns), Vec::<String>::new());
}
