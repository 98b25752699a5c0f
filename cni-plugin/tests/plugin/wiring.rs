//! ADD, DEL and CHECK: bridge, pair, addresses, routes.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Barrier;

use loden_netlink::route::link::{LinkAttribute, LinkMessage, State};
use loden_netlink::{Request, Socket, message_type};
use serde_json::{Value, json};

use crate::lab::{Lab, address, assert_connected, inside, ip, sysctl};

fn bridge_addresses(lab: &Lab) -> Vec<String> {
    let links: Value = serde_json::from_str(&ip(&lab.host(), "-j address show dev loden0")).expect("JSON");
    let addresses = links[0]["addr_info"].as_array().expect("array").iter();
    let global = addresses.filter(|a| a["scope"] == "global");
    global.map(|a| format!("{}/{}", a["local"].as_str().expect("local"), a["prefixlen"])).collect()
}

/// A CHECK of what ADD said.
fn check(lab: &Lab, netns: &str, result: &Value) -> crate::lab::Outcome {
    lab.call("CHECK", netns).config(|c| c["prevResult"] = result.clone()).run()
}

#[test]
fn every_version_gets_its_own_form_of_the_result() {
    let lab = Lab::new();
    let versions = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    for (i, version) in versions.into_iter().enumerate() {
        let netns = lab.namespace(&format!("c{i}"));
        let result = lab.call("ADD", &netns).config(|c| c["cniVersion"] = json!(version)).run().success();
        let address = format!("10.5.7.{}", i + 2);
        let mac = format!("0a:58:0a:05:07:{:02x}", i + 2);
        let routes = json!([{"dst": "0.0.0.0/0", "gw": "10.5.7.1"}]);
        if version < "0.3.0" {
            let ip4 = json!({"ip": format!("{address}/24"), "gateway": "10.5.7.1", "routes": routes});
            assert_eq!(result, json!({"cniVersion": version, "ip4": ip4, "dns": {}}));
            continue;
        }
        let veth = result["interfaces"][1].clone();
        let mut ips = json!([{"address": format!("{address}/24"), "gateway": "10.5.7.1", "interface": 2}]);
        if version < "1.0.0" {
            ips[0]["version"] = json!("4");
        }
        let mut expected = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "loden0", "mac": "0a:58:0a:05:07:01"},
                {"name": veth["name"], "mac": veth["mac"]},
                {"name": "eth0", "mac": mac, "sandbox": netns},
            ],
            "ips": ips,
            "routes": routes,
            "dns": {},
        });
        if version == "1.1.0" {
            for i in 0..3 {
                expected["interfaces"][i]["mtu"] = json!(1450);
            }
        }
        assert_eq!(result, expected);
        let host: Value = serde_json::from_str(&ip(
            &lab.host(),
            &format!("-j -d link show {}", veth["name"].as_str().expect("name")),
        ))
        .expect("JSON");
        assert_eq!(
            (&host[0]["address"], &host[0]["mtu"], &host[0]["master"]),
            (&veth["mac"], &json!(1450), &json!("loden0"))
        );
        assert_eq!(
            (&host[0]["operstate"], &host[0]["linkinfo"]["info_slave_data"]["state"]),
            (&json!("UP"), &json!("forwarding"))
        );
    }
}

#[test]
fn a_container_has_address_route_and_parameters() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    let links: Value = serde_json::from_str(&ip(&netns, "-j address show")).expect("JSON");
    let (lo, eth0) = (&links[0], &links[1]);
    assert!(lo["flags"].as_array().expect("flags").contains(&json!("UP")), "lo is up");
    assert_eq!(
        (&eth0["mtu"], &eth0["operstate"], &eth0["address"]),
        (&json!(1450), &json!("UP"), &json!("0a:58:0a:05:07:02"))
    );
    let v4: Vec<&Value> =
        eth0["addr_info"].as_array().expect("array").iter().filter(|a| a["family"] == "inet").collect();
    assert_eq!(v4.len(), 1);
    assert_eq!(
        (&v4[0]["local"], &v4[0]["prefixlen"], &v4[0]["broadcast"]),
        (&json!("10.5.7.2"), &json!(24), &json!("10.5.7.255"))
    );
    let routes: Value = serde_json::from_str(&ip(&netns, "-j route show default")).expect("JSON");
    assert_eq!(
        (&routes[0]["gateway"], &routes[0]["dev"], &routes[0]["prefsrc"]),
        (&json!("10.5.7.1"), &json!("eth0"), &Value::Null)
    );
    assert_eq!(sysctl(&netns, "ipv6/conf/eth0/accept_ra"), "0");
    assert_eq!(sysctl(&netns, "ipv6/conf/eth0/accept_dad"), "0");
    assert_eq!(sysctl(&netns, "ipv4/conf/eth0/arp_notify"), "1");
}

#[test]
fn the_bridge_forwards_and_the_host_does_not_become_a_router() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let before = sysctl(&lab.host(), "ipv4/ip_forward");
    let result = lab.add(&netns);
    let veth = result["interfaces"][1]["name"].as_str().expect("name");
    assert_eq!(ip(&lab.host(), &format!("-6 address show dev {veth}")), "", "a port has no address");
    assert_eq!(sysctl(&lab.host(), "ipv4/conf/loden0/forwarding"), "1");
    assert_eq!(sysctl(&lab.host(), "ipv6/conf/loden0/forwarding"), "1");
    assert_eq!(sysctl(&lab.host(), "ipv6/conf/loden0/accept_ra"), "0");
    assert_eq!(sysctl(&lab.host(), "ipv4/ip_forward"), before);
    let link: Value = serde_json::from_str(&ip(&lab.host(), "-j -d link show loden0")).expect("JSON");
    assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&json!("0a:58:0a:05:07:01"), &json!(1450)));
    assert_eq!(bridge_addresses(&lab), ["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    assert_eq!(lab.links(&lab.host()).len(), 2, "bridge and veth, nothing else");
}

#[test]
fn containers_reach_the_gateway_and_each_other_at_once() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    lab.add(&a);
    assert_connected(&a, &lab.host(), "10.5.7.1");
    let b_result = lab.add(&b);
    assert_connected(&a, &b, &address(&b_result, 0));
    assert_connected(&a, &b, &address(&b_result, 1));
    assert_connected(&b, &lab.host(), "fd00:0:0:7::1");
}

#[test]
fn the_bridge_forwards_for_a_container_when_add_returns() {
    let lab = Lab::new();
    for i in 0..5 {
        let netns = lab.namespace(&format!("c{i}"));
        let request = request(&lab, &netns, &format!("c{i}"));
        inside(&lab.host(), || {
            let mut socket = Socket::route().expect("socket");
            loden_cni::add::add(&request).expect("ADD");
            // Unlike a question for one link, a dump shows the state that the bridge acts upon.
            let all = Request::of(message_type::GET_LINK, &LinkMessage::default(), 0);
            for reply in socket.dump(&all).expect("dump") {
                let link: LinkMessage = reply.decode().expect("link");
                let loopback = link.header.index == 1;
                assert!(
                    loopback || link.attributes.contains(&LinkAttribute::OperState(State::Up)),
                    "{link:?}"
                );
            }
        });
    }
}

#[test]
fn a_pair_has_one_queue_however_many_cpus_there_are() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let host_end = lab.add(&netns)["interfaces"][1]["name"].as_str().expect("name").to_owned();
    for (namespace, name) in [(&lab.host(), host_end.as_str()), (&netns, "eth0")] {
        let shown = ip(namespace, &format!("-d -json link show {name}"));
        let link: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!((&link[0]["num_tx_queues"], &link[0]["num_rx_queues"]), (&json!(1), &json!(1)), "{shown}");
    }
}

#[test]
fn a_bridge_made_by_many_at_once_is_made_once() {
    const MAKERS: usize = 8;
    let lab = Lab::new();
    let name = loden_cni::ifname::IfName::new("loden0").expect("valid");
    let (subnets, networks) =
        (["10.5.7.0/24".parse().expect("subnet")], ["10.5.0.0/16".parse().expect("subnet")]);
    let plan = loden_cni::bridge::Plan { name: &name, subnets: &subnets, networks: &networks, mtu: 1450 };
    for _ in 0..10 {
        let start = Barrier::new(MAKERS);
        let make = || {
            inside(&lab.host(), || {
                let mut socket = Socket::route().expect("socket");
                start.wait();
                loden_cni::bridge::ensure(&mut socket, plan, |_| Ok(false)).expect("a bridge").index
            })
        };
        let indexes: BTreeSet<u32> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..MAKERS).map(|_| scope.spawn(make)).collect();
            makers.into_iter().map(|m| m.join().expect("maker")).collect()
        });
        assert_eq!(indexes.len(), 1);
        assert_eq!(bridge_addresses(&lab), ["10.5.7.1/24"]);
        ip(&lab.host(), "link delete loden0");
    }
}

#[test]
fn a_network_of_ipv6_alone_works() {
    let lab = Lab::new();
    lab.lease(&["fd00:0:0:7::1/64"]);
    let netns = lab.namespace("c");
    let result = lab.call("ADD", &netns).config(|c| c["cniVersion"] = json!("0.4.0")).run().success();
    assert_eq!(
        result["ips"],
        json!([{"version": "6", "address": "fd00:0:0:7::2/64", "gateway": "fd00:0:0:7::1", "interface": 2}])
    );
    assert_eq!(result["routes"], json!([{"dst": "::/0", "gw": "fd00:0:0:7::1"}]));
    assert_connected(&netns, &lab.host(), "fd00:0:0:7::1");
    check(&lab, &netns, &result).success();
    lab.del(&netns);
    lab.assert_nothing_left(&netns, "IPv6");
}

#[test]
fn del_succeeds_whatever_is_gone_already() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.call("DEL", &netns).id("unknown").run().success();
    lab.call("DEL", "").id("unknown").run().success();
    lab.add(&netns);
    lab.call("DEL", &netns).id("unknown").run().success();
    assert_eq!(lab.links(&netns), ["eth0"], "another's DEL changes nothing");
    let out = lab.call("DEL", &netns).run();
    out.success();
    assert_eq!(out.stdout, "");
    lab.assert_nothing_left(&netns, "after DEL");
    lab.del(&netns);

    lab.add(&netns);
    lab.call("DEL", "/run/netns/gone").id("c").run().success();
    lab.assert_nothing_left(&netns, "DEL with a namespace that is gone");

    lab.add(&netns);
    fs::remove_file(lab.subnet_file()).expect("remove");
    lab.call("DEL", "").id("c").run().success();
    lab.assert_nothing_left(&netns, "DEL without namespace and subnet.env");

    lab.lease(&["10.5.7.1/24"]);
    lab.add(&netns);
    ip(&lab.host(), "link delete loden0");
    lab.del(&netns);
    lab.assert_nothing_left(&netns, "DEL without the bridge");

    lab.add(&netns);
    ip(&netns, "link delete eth0");
    lab.del(&netns);
    lab.assert_nothing_left(&netns, "DEL without the interface");

    lab.add(&netns);
    ip(&netns, "link delete eth0");
    ip(&netns, "link add eth0 type veth peer name other");
    lab.del(&netns);
    assert_eq!(lab.links(&netns).len(), 2, "what took the name meanwhile is not ours");
    ip(&netns, "link delete eth0");
    lab.assert_nothing_left(&netns, "DEL with a stranger of that name");

    lab.add(&netns);
    fs::remove_dir_all(lab.ipam()).expect("remove");
    lab.del(&netns);
    lab.assert_nothing_left(&netns, "DEL without allocations");
}

#[test]
fn del_finds_the_pair_when_the_hosts_end_has_another_name() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let result = lab.add(&netns);
    let name = result["interfaces"][1]["name"].as_str().expect("name");
    ip(&lab.host(), &format!("link set {name} down"));
    ip(&lab.host(), &format!("link set {name} name renamed"));
    lab.del(&netns);
    lab.assert_nothing_left(&netns, "renamed");
}

#[test]
fn one_container_can_be_attached_twice() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let second = |command| lab.call(command, &netns).env("CNI_IFNAME", Some("net1"));
    lab.add(&netns);
    let result = second("ADD").run().success();
    assert_eq!(address(&result, 0), "10.5.7.3");
    let routes: Value = serde_json::from_str(&ip(&netns, "-j route show default")).expect("JSON");
    let devices: Vec<&Value> = routes.as_array().expect("array").iter().map(|r| &r["dev"]).collect();
    assert_eq!(devices, ["eth0", "net1"], "the first network's default route stays first");
    second("CHECK").config(|c| c["prevResult"] = result.clone()).run().success();
    lab.del(&netns);
    assert_eq!(lab.links(&netns), ["net1"]);
    assert_eq!(lab.allocated(), BTreeSet::from(["10.5.7.3".parse().expect("ip")]));
    // The same id and interface in another network is another attachment.
    second("DEL").config(|c| c["name"] = json!("other")).run().success();
    assert_eq!(lab.links(&netns), ["net1"]);
    second("DEL").run().success();
    lab.assert_nothing_left(&netns, "after both");
}

#[test]
fn check_sees_what_is_broken() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let netns = lab.namespace("c");
    type Break<'a> = (&'a str, &'a dyn Fn(&str));
    let breaks: [Break<'_>; 10] = [
        ("has lost its address 10.5.7.2/24", &|_| drop(ip(&netns, "address delete 10.5.7.2/24 dev eth0"))),
        ("has lost its address fd00:0:0:7::2/64", &|_| {
            drop(ip(&netns, "address delete fd00:0:0:7::2/64 dev eth0"))
        }),
        ("default route through 10.5.7.1", &|_| drop(ip(&netns, "route delete default"))),
        ("default route through fd00:0:0:7::1", &|_| drop(ip(&netns, "-6 route delete default"))),
        ("has the MAC", &|_| drop(ip(&netns, "link set eth0 address 02:00:00:00:00:01"))),
        ("eth0 in", &|_| drop(ip(&netns, "link set eth0 down"))),
        ("is on no bridge", &|veth| drop(ip(&lab.host(), &format!("link set {veth} nomaster")))),
        ("is down", &|veth| drop(ip(&lab.host(), &format!("link set {veth} down")))),
        ("is gone", &|veth| drop(ip(&lab.host(), &format!("link delete {veth}")))),
        ("no address is allocated to", &|_| {
            for address in lab.allocated() {
                fs::remove_file(lab.ipam().join(address.to_string())).expect("remove");
            }
        }),
    ];
    for (words, make_broken) in breaks {
        let _ = fs::remove_dir_all(lab.ipam());
        // The cursor too, so that the address is the same each time.
        let _ = fs::remove_file(lab.ipam().with_file_name("lock"));
        let result = lab.add(&netns);
        let out = check(&lab, &netns, &result);
        out.success();
        assert_eq!(out.stdout, "");
        make_broken(result["interfaces"][1]["name"].as_str().expect("name"));
        check(&lab, &netns, &result).failure(110, &[words]);
        lab.del(&netns);
    }
}

#[test]
fn a_lost_lease_refuses_new_containers_and_keeps_the_running() {
    let lab = Lab::new();
    let (old, new) = (lab.namespace("old"), lab.namespace("new"));
    let result = lab.add(&old);
    let text = fs::read_to_string(lab.subnet_file()).expect("subnet.env");
    lab.write_subnet_env(&text.replace("LODEN_LEASE=held", "LODEN_LEASE=lost"));
    lab.call("ADD", &new).run().failure(11, &["lost the lease", "loden status"]);
    check(&lab, &old, &result).success();
    assert_connected(&old, &lab.host(), "10.5.7.1");
    lab.del(&old);
    lab.assert_nothing_left(&old, "after DEL");
}

#[test]
fn another_interface_with_the_gateways_address_is_named() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    ip(&lab.host(), "link add docker0 type bridge");
    ip(&lab.host(), "address add 10.5.7.1/24 dev docker0");
    lab.call("ADD", &netns).run().failure(101, &["10.5.7.1", "docker0", "loden0"]);
    assert_eq!(lab.links(&lab.host()), ["docker0"], "no bridge was made");
    assert!(lab.allocated().is_empty());
    // It can be shared on purpose.
    let shared = lab.call("ADD", &netns).config(|c| c["bridge"] = json!("docker0")).run().success();
    assert_eq!(shared["interfaces"][0]["name"], "docker0");
    assert_connected(&netns, &lab.host(), "10.5.7.1");
}

#[test]
fn a_rival_that_comes_later_is_named_too() {
    let lab = Lab::new();
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    lab.add(&a);
    ip(&lab.host(), "link add cni0 type bridge");
    ip(&lab.host(), "address add 10.5.7.1/24 dev cni0");
    lab.call("ADD", &b).run().failure(101, &["cni0"]);
    lab.del(&a);
    assert_eq!(lab.links(&lab.host()), ["loden0", "cni0"], "nothing foreign was touched");
}

#[test]
fn a_name_that_is_no_bridge_is_refused() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    ip(&lab.host(), "link add loden0 type veth peer name other");
    lab.call("ADD", &netns).run().failure(101, &["loden0 exists and is no bridge"]);
    assert!(lab.allocated().is_empty());
}

#[test]
fn the_daemon_names_the_bridge_and_the_configuration_overrules_it() {
    let lab = Lab::new();
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    let text = fs::read_to_string(lab.subnet_file()).expect("subnet.env");
    lab.write_subnet_env(&(text + "LODEN_BRIDGE=br-env\n"));
    assert_eq!(lab.add(&a)["interfaces"][0]["name"], "br-env");
    lab.del(&a);
    ip(&lab.host(), "link delete br-env");
    let result = lab.call("ADD", &b).config(|c| c["bridge"] = json!("br-conf")).run().success();
    assert_eq!(result["interfaces"][0]["name"], "br-conf");
}

#[test]
fn a_broken_bridge_is_mended_by_the_next_add() {
    let lab = Lab::new();
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    lab.add(&a);
    ip(&lab.host(), "address flush dev loden0");
    ip(&lab.host(), "link set loden0 down");
    ip(&lab.host(), "link set loden0 mtu 1300");
    lab.add(&b);
    assert_eq!(bridge_addresses(&lab), ["10.5.7.1/24"]);
    let link: Value = serde_json::from_str(&ip(&lab.host(), "-j link show loden0")).expect("JSON");
    assert_eq!((&link[0]["mtu"], &link[0]["operstate"]), (&json!(1450), &json!("UP")));
    assert_connected(&a, &lab.host(), "10.5.7.1");
}

#[test]
fn a_new_subnet_moves_the_bridge_once_the_old_one_is_empty() {
    let lab = Lab::new();
    let (a, b, c) = (lab.namespace("a"), lab.namespace("b"), lab.namespace("c"));
    lab.add(&a);
    ip(&lab.host(), "address add 10.5.99.99/24 dev loden0");
    lab.lease(&["10.5.9.1/24"]);
    assert_eq!(address(&lab.add(&b), 0), "10.5.9.2");
    assert_eq!(bridge_addresses(&lab), ["10.5.7.1/24", "10.5.99.99/24", "10.5.9.1/24"]);
    assert_connected(&a, &lab.host(), "10.5.7.1");
    assert_connected(&b, &lab.host(), "10.5.9.1");
    lab.del(&a);
    lab.add(&c);
    assert_eq!(bridge_addresses(&lab), ["10.5.99.99/24", "10.5.9.1/24"], "the user's own address stays");
}

#[test]
fn the_oldest_versions_have_both_families() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let netns = lab.namespace("c");
    // Without a version, which means 0.1.0.
    let call =
        lab.call("ADD", &netns).config(|c| drop(c.as_object_mut().expect("object").remove("cniVersion")));
    let expected = json!({
        "cniVersion": "0.1.0",
        "ip4": {
            "ip": "10.5.7.2/24", "gateway": "10.5.7.1",
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.5.7.1"}],
        },
        "ip6": {
            "ip": "fd00:0:0:7::2/64", "gateway": "fd00:0:0:7::1",
            "routes": [{"dst": "::/0", "gw": "fd00:0:0:7::1"}],
        },
        "dns": {},
    });
    assert_eq!(call.run().success(), expected);
}

#[test]
fn a_previous_plugins_result_is_passed_on() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "dummy0", "mac": "02:00:00:00:00:01", "mtu": 1300, "socketPath": "/s"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24", "priority": 7}],
        "dns": {"nameservers": ["192.0.2.1"]},
    });
    let call = lab.call("ADD", &netns).config(|c| {
        c["cniVersion"] = json!("1.1.0");
        c["prevResult"] = previous.clone();
    });
    let result = call.run().success();
    let veth = &result["interfaces"][2];
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            previous["interfaces"][0],
            {"name": "loden0", "mac": "0a:58:0a:05:07:01", "mtu": 1450},
            {"name": veth["name"], "mac": veth["mac"], "mtu": 1450},
            {"name": "eth0", "mac": "0a:58:0a:05:07:02", "mtu": 1450, "sandbox": netns},
        ],
        "ips": [previous["ips"][0], {"address": "10.5.7.2/24", "gateway": "10.5.7.1", "interface": 3}],
        "routes": [previous["routes"][0], {"dst": "0.0.0.0/0", "gw": "10.5.7.1"}],
        "dns": previous["dns"],
    });
    assert_eq!(result, expected);
    let check = lab.call("CHECK", &netns).config(|c| {
        c["cniVersion"] = json!("1.1.0");
        c["prevResult"] = result.clone();
    });
    check.run().success();
    // DEL gets it too and does not care what is in it.
    lab.call("DEL", &netns).config(|c| c["prevResult"] = json!({"interfaces": 7})).run().success();
    lab.assert_nothing_left(&netns, "after DEL");
}

#[test]
fn no_child_process_and_no_sleep() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    for command in ["ADD", "DEL"] {
        let calls = "trace=execve,clone,clone3,fork,vfork,nanosleep,clock_nanosleep";
        let out =
            lab.call(command, &netns).under(&["strace", "-f", "-qq", "-e", "signal=none", "-e", calls]).run();
        out.success();
        assert_eq!(out.stderr.lines().count(), 1, "only the plugin's own start: {}", out.stderr);
    }
}

#[test]
fn the_namespace_of_the_caller_is_not_changed() {
    // Of the library: `loden attach` calls it on a thread that goes on.
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let request = request(&lab, &netns, "c");
    let own = || fs::read_link("/proc/thread-self/ns/net").expect("own namespace");
    inside(&lab.host(), || {
        let before = own();
        loden_cni::add::add(&request).expect("ADD");
        assert_eq!(own(), before);
    });
    assert_connected(&netns, &lab.host(), "10.5.7.1");
}

fn request(lab: &Lab, netns: &str, id: &str) -> loden_cni::request::Request {
    let mut env = loden_cni::request::Environment::default();
    env.container_id = id.into();
    env.netns = netns.into();
    env.ifname = "eth0".into();
    let config = lab.config().to_string();
    loden_cni::request::Request::parse(loden_cni::request::Command::Add, &env, config.as_bytes())
        .expect("valid")
}
