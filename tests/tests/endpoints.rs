//! Containers are held to their own addresses, and what holds and connects them comes back when somebody
//! breaks it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use loden_proto::status::{EndpointState, Endpoints};
use loden_proto::{Family, Mac};
use loden_tests::frames::{self, Catcher};
use loden_tests::story::{Cluster, Stack};
use loden_tests::{Container, Etcd, Host, eventually, kernel, matrix, probe};
use serde_json::json;

/// A second is the promise; the machine may be busy with other scenarios.
const A_SECOND: Duration = Duration::from_secs(3);
/// What nobody needs any more is removed every five seconds.
const SWEEP: Duration = Duration::from_secs(8);

fn endpoints(host: &Host) -> Endpoints {
    serde_json::from_str(&host.loden(&["endpoints", "--json"]).expect_success()).expect("endpoints as JSON")
}

fn mac(container: &Container) -> Mac {
    let mac = container.result()["interfaces"][2]["mac"].as_str().expect("a MAC");
    mac.parse().expect("a MAC")
}

/// The elements of the port filter's sets, as nft counts them.
fn elements(host: &Host) -> usize {
    let sets = ["ports", "sources4", "sources6", "targets6"];
    let count = |set: &str| {
        let shown = host.json(&["nft", "-j", "list", "set", "bridge", "loden", set]);
        shown["nftables"][1]["set"]["elem"].as_array().map_or(0, Vec::len)
    };
    sets.into_iter().map(count).sum()
}

/// What a container may not send, in words.
fn forbidden(own: &Container, other: &Container) -> Vec<(&'static str, Vec<u8>)> {
    let (mac4, of_other) = (mac(own), mac(other));
    let v4 = |c: &Container| match c.address_of(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => unreachable!("asked for IPv4"),
    };
    let v6 = |c: &Container| match c.address_of(Family::V6) {
        IpAddr::V6(ip) => ip,
        IpAddr::V4(_) => unreachable!("asked for IPv6"),
    };
    let (me4, me6, him4, him6) = (v4(own), v6(own), v4(other), v6(other));
    let gateway = Ipv4Addr::from(u32::from(me4) & 0xffff_ff00 | 1);
    let all: Ipv6Addr = "ff02::1".parse().expect("ip");
    let link_local: Ipv6Addr = "fe80::1".parse().expect("ip");
    let (udp, ping) = (frames::udp(9, 9), frames::icmpv6(128, all));
    let v4_frame = |mac, source: Ipv4Addr, next, body: &[u8]| {
        frames::ip(mac, source.into(), Ipv4Addr::BROADCAST.into(), next, body)
    };
    let v6_frame =
        |mac, source: Ipv6Addr, next, body: &[u8]| frames::ip(mac, source.into(), all.into(), next, body);
    let inner = v4_frame(mac4, him4, 17, &udp);
    vec![
        ("another's IPv4 address", v4_frame(mac4, him4, 17, &udp)),
        ("the gateway's IPv4 address", v4_frame(mac4, gateway, 17, &udp)),
        ("an outside IPv4 address", v4_frame(mac4, Ipv4Addr::new(192, 0, 2, 1), 17, &udp)),
        ("no IPv4 address", v4_frame(mac4, Ipv4Addr::UNSPECIFIED, 17, &udp)),
        ("another's MAC", v4_frame(of_other, me4, 17, &udp)),
        ("another's MAC and address", v4_frame(of_other, him4, 17, &udp)),
        ("ARP for the gateway", frames::arp(mac4, 2, mac4, gateway, him4)),
        ("ARP for another", frames::arp(mac4, 1, mac4, him4, gateway)),
        ("ARP with another's MAC", frames::arp(mac4, 2, of_other, me4, gateway)),
        ("ARP from another's MAC", frames::arp(of_other, 2, mac4, me4, gateway)),
        ("a DHCP server's answer", v4_frame(mac4, me4, 17, &frames::udp(67, 68))),
        ("another's IPv6 address", v6_frame(mac4, him6, 58, &ping)),
        ("another's link-local address", v6_frame(mac4, link_local, 58, &ping)),
        ("no IPv6 address", v6_frame(mac4, Ipv6Addr::UNSPECIFIED, 58, &ping)),
        ("a router advertisement", v6_frame(mac4, me6, 58, &frames::icmpv6(134, all))),
        ("a redirect", v6_frame(mac4, me6, 58, &frames::icmpv6(137, all))),
        ("an advertisement for another", v6_frame(mac4, me6, 58, &frames::icmpv6(136, him6))),
        ("a DHCPv6 server's answer", v6_frame(mac4, me6, 17, &frames::udp(547, 546))),
        ("a VLAN tag", frames::ethernet(mac4, 0x8100, &[&[0, 7][..], &inner[12..inner.len() - 8]].concat())),
        ("a protocol of its own", frames::ethernet(mac4, 0x88b5, b"hello")),
    ]
}

/// What it may send.
fn allowed(own: &Container, other: &Container) -> Vec<Vec<u8>> {
    let (mac4, him) = (mac(own), other.address_of(Family::V4));
    let (IpAddr::V4(me4), IpAddr::V6(me6), IpAddr::V4(him)) =
        (own.address_of(Family::V4), own.address_of(Family::V6), him)
    else {
        unreachable!("asked by family")
    };
    let all: Ipv6Addr = "ff02::1".parse().expect("ip");
    let link_local = {
        let [a, b, c, d, e, f] = mac4.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    };
    let v6 = |source: Ipv6Addr, next, body: &[u8]| frames::ip(mac4, source.into(), all.into(), next, body);
    vec![
        frames::ip(mac4, me4.into(), Ipv4Addr::BROADCAST.into(), 17, &frames::udp(9, 9)),
        frames::arp(mac4, 1, mac4, me4, him),
        // A probe before an address is used, RFC 5227.
        frames::arp(mac4, 1, mac4, Ipv4Addr::UNSPECIFIED, me4),
        v6(me6, 58, &frames::icmpv6(128, all)),
        v6(link_local, 58, &frames::icmpv6(128, all)),
        v6(me6, 58, &frames::icmpv6(136, me6)),
        v6(me6, 58, &frames::icmpv6(136, link_local)),
        // Duplicate address detection, RFC 4862.
        v6(Ipv6Addr::UNSPECIFIED, 58, &frames::icmpv6(135, me6)),
    ]
}

#[test]
fn a_container_is_held_to_its_own_addresses() {
    let cluster = Cluster::<1>::start("port-filter", &Stack::Dual.vxlan(), &[]);
    let [a] = &cluster.hosts;
    let (held, victim) = (a.container("held"), a.container("victim"));
    let free = json!({"cniVersion": "1.0.0", "name": "loden", "type": "loden", "portFilter": false});
    let free = a.container_with("free", free).expect("ADD");
    matrix(&[&held, &victim, &free]);
    let before = endpoints(a).endpoints.iter().map(|e| e.rejected_frames).sum::<u64>();

    let catcher = Catcher::start(victim.ns());
    let fine = allowed(&held, &victim);
    let (from_held, from_free) = (forbidden(&held, &victim), forbidden(&free, &victim));
    let frames_of = |all: &[(&str, Vec<u8>)]| all.iter().map(|(_, f)| f.clone()).collect::<Vec<_>>();
    frames::send(held.ns(), &frames_of(&from_held), 100);
    frames::send(free.ns(), &frames_of(&from_free), 200);
    frames::send(held.ns(), &fine, 300);
    let last = 300 + fine.len() - 1;
    let caught = eventually(A_SECOND, "the last frame is caught", || {
        let caught = catcher.caught();
        if caught.contains(&last) { Ok(caught) } else { Err(format!("{caught:?}")) }
    });
    for (number, (what, _)) in from_held.iter().enumerate() {
        assert!(!caught.contains(&(100 + number)), "{what} got through");
        // Without the filter it does: the frame is one.
        assert!(caught.contains(&(200 + number)), "{what} did not even get through unfiltered");
    }
    for number in 0..fine.len() {
        assert!(caught.contains(&(300 + number)), "frame {number} of what is allowed was dropped");
    }

    let table = endpoints(a);
    assert_eq!(table.source, "daemon");
    let rejected = |c: &Container| {
        let row = table.endpoints.iter().find(|e| e.container_id == c.name()).expect("a row");
        assert_eq!(row.addresses, c.addresses());
        assert_eq!((row.state, row.mac), (EndpointState::Connected, mac(c)));
        (row.guarded, row.rejected_frames)
    };
    assert_eq!(rejected(&held), (true, before + from_held.len() as u64));
    assert_eq!((rejected(&free), rejected(&victim)), ((false, 0), (true, 0)));
    matrix(&[&held, &victim, &free]);
    cluster.lab.check_invariants();
}

/// To one of the addresses that bridges keep for themselves, IEEE 802.1Q.
fn to_the_bridge(mut frame: Vec<u8>, last: u8) -> Vec<u8> {
    frame[..6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, last]);
    frame
}

#[test]
fn frames_to_the_bridge_itself_are_no_way_around() {
    let cluster = Cluster::<1>::start("port-filter-bridge", &Stack::Four.vxlan(), &[]);
    let [a] = &cluster.hosts;
    let free = json!({"cniVersion": "1.0.0", "name": "loden", "type": "loden", "portFilter": false});
    let (held, victim) = (a.container("held"), a.container("victim"));
    let free = a.container_with("free", free).expect("ADD");
    matrix(&[&held, &victim, &free]);
    let port = |c: &Container| c.result()["interfaces"][1]["name"].as_str().expect("a name").to_owned();
    let learned_at = |from: &Container| {
        let entries = a.json(&["bridge", "-j", "fdb", "show", "dev", &port(from)]);
        let entries = entries.as_array().cloned().unwrap_or_default();
        entries.iter().any(|entry| entry["mac"] == mac(&victim).to_string())
    };
    // 2 is for the bridge's own use, 14 for LLDP, which passes no hook of a bridge.
    let theft = [2, 14].map(|last| to_the_bridge(frames::ethernet(mac(&victim), 0x88b5, b"hello"), last));
    for container in [&held, &free] {
        frames::send(container.ns(), &theft, 0);
        assert!(!learned_at(container));
    }

    // The host's own stack hears of it by the port.
    let gateway = a.subnet().gateway();
    let knock = |last: u8| {
        let frame = frames::ip(mac(&free), free.address(), gateway, 17, &frames::udp(9, 9999));
        frames::send(free.ns(), &[to_the_bridge(frame, last)], 1);
    };
    for last in [2, 14] {
        assert_eq!(probe::datagram_source(&a.ns(), (gateway, 9999).into(), || knock(last)), None);
    }
    let router: Ipv6Addr = "fe80::bad".parse().expect("ip");
    let all: Ipv6Addr = "ff02::1".parse().expect("ip");
    // RFC 4861 §4.2: a default router for half an hour.
    let advertisement = [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8]].concat();
    for (container, last) in [(&held, 2), (&held, 14), (&free, 2), (&free, 14)] {
        let frame = frames::ip(mac(container), router.into(), all.into(), 58, &advertisement);
        frames::send(container.ns(), &[to_the_bridge(frame, last)], 2);
        let parameter = format!("net/ipv6/conf/{}/disable_ipv6", port(container));
        assert_eq!(a.ns().read_sysctl(&parameter), "1");
    }
    let routes = a.run(&["ip", "-6", "route", "show", "default"]);
    assert!(!routes.contains("bad"), "{routes}");
}

#[test]
fn a_lost_port_filter_is_rebuilt_from_the_allocations() {
    let cluster = Cluster::<1>::start("port-filter-lost", &Stack::Dual.vxlan(), &["--log-level=debug"]);
    let ([a], [daemon]) = (&cluster.hosts, &cluster.daemons);
    let (one, two) = (a.container("one"), a.container("two"));
    a.forget_foreign();
    let intact = elements(a);
    assert_eq!(intact, 2 * (1 + 2 + 3 + 2));
    let is_rebuilt = |what: &str, expected: usize| {
        eventually(SWEEP, &format!("after {what} the sets are as they were"), || {
            let table = a.exec(&["nft", "list", "chain", "bridge", "loden", "container_arp"]);
            let now = if table.success() { elements(a) } else { 0 };
            (table.success() && table.stdout.contains("plen 4") && now == expected)
                .then_some(())
                .ok_or_else(|| format!("{now} elements\n{}", daemon.log()))
        });
    };
    let damages: [(&str, &[&str]); 4] = [
        ("a flush of the rule set", &["flush", "ruleset"]),
        ("a flush of a set", &["flush", "set", "bridge", "loden", "sources4"]),
        ("the deletion of the table", &["delete", "table", "bridge", "loden"]),
        ("a flush of a chain", &["flush", "chain", "bridge", "loden", "container_arp"]),
    ];
    for (what, arguments) in damages {
        a.run(&[&["nft"], arguments].concat());
        is_rebuilt(what, intact);
    }
    eventually(A_SECOND, "the repairs are counted", || a.status().repairs.contains_key("port_filter"));

    // While the daemon is down, containers come and go without a table.
    daemon.kill9();
    a.run(&["nft", "flush", "ruleset"]);
    let three = a.container("three");
    two.delete();
    daemon.start();
    daemon.wait_ready();
    is_rebuilt("a flush without the daemon", intact);
    // Elements of nobody's are removed.
    a.run(&["nft", "add", "element", "bridge", "loden", "ports", "{ vethnobody }"]);
    is_rebuilt("an element that nobody needs", intact);
    matrix(&[&one, &three]);
    one.delete();
    three.delete();
    eventually(SWEEP, "nothing is left of them in the filter", || elements(a) == 0);
    a.status_is_content();
    cluster.lab.check_invariants();
}

#[test]
fn the_bridge_comes_back_with_its_address_and_ports() {
    let cluster = Cluster::<2>::start("bridge-lost", &Stack::Dual.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, a2, b1) = (a.container("a1"), a.container("a2"), b.container("b1"));
    let hairpin = json!({"cniVersion": "1.0.0", "name": "loden", "type": "loden", "hairpinMode": true});
    let a3 = a.container_with("a3", hairpin).expect("ADD");
    matrix(&[&a1, &a2, &a3, &b1]);
    let mac_of_bridge = || kernel::link(a, "loden0").map(|link| link["address"].clone());
    let before = mac_of_bridge();
    let gateway = a.subnet().gateway();
    let damages = [
        ("deletion of the bridge", "link del loden0".to_owned()),
        ("deletion of its address", format!("addr del {gateway}/24 dev loden0")),
        ("the bridge's going down", "link set loden0 down".to_owned()),
        ("a port's leaving", {
            let port = a1.result()["interfaces"][1]["name"].as_str().expect("the host's end").to_owned();
            format!("link set {port} nomaster")
        }),
    ];
    for (what, damage) in damages {
        a.ip(&damage);
        eventually(A_SECOND, &format!("after {what} containers reach each other"), || {
            a1.pings(b1.address()) && a2.pings(a1.address()) && b1.pings(a3.address_of(Family::V6))
        });
        assert_eq!(mac_of_bridge(), before, "{what}");
    }
    let port = a3.result()["interfaces"][1]["name"].as_str().expect("the host's end").to_owned();
    let details = a.json(&["bridge", "-d", "-j", "link", "show", "dev", &port]);
    assert_eq!(details[0]["hairpin"], true, "what the port is set to is set again: {details}");
    let repairs = a.status().repairs;
    assert!(repairs["bridge"] >= 3 && repairs["port"] >= 4, "{repairs:?}");
    cluster.lab.check_invariants();
}

#[test]
fn the_endpoint_table_tells_the_living_from_the_dead() {
    let cluster = Cluster::<1>::start("endpoints", &Stack::Four.vxlan(), &[]);
    let ([a], [daemon]) = (&cluster.hosts, &cluster.daemons);
    let (alive, dead) = (a.container("alive"), a.container("dead"));
    eventually(A_SECOND, "both are connected", || {
        let states: Vec<_> = endpoints(a).endpoints.iter().map(|e| e.state).collect();
        (states == [EndpointState::Connected; 2]).then_some(()).ok_or(format!("{states:?}"))
    });
    assert_eq!(a.status().endpoints, 2);
    // The runtime dies with its container and tells nobody.
    let port = dead.result()["interfaces"][1]["name"].as_str().expect("the host's end").to_owned();
    a.ip(&format!("link del {port}"));
    a.ip("netns del dead");
    eventually(A_SECOND, "the dead one is called gone", || {
        endpoints(a).endpoints.iter().any(|e| e.container_id == "dead" && e.state == EndpointState::Gone)
    });
    let text = a.loden(&["endpoints"]).expect_success();
    assert!(text.contains("gone") && text.contains("connected") && text.contains("alive"), "{text}");
    // Its address is given back at the daemon's next start.
    daemon.restart();
    daemon.logs(&["freed", &dead.address().to_string()]);
    eventually(A_SECOND, "its row has gone", || {
        let ids: Vec<String> = endpoints(a).endpoints.into_iter().map(|e| e.container_id).collect();
        (ids == ["alive"]).then_some(()).ok_or(format!("{ids:?}"))
    });
    eventually(SWEEP, "the dead one's elements are gone", || elements(a) == 1 + 2 + 2 + 1);
    // Without the daemon the files and the kernel tell the same.
    daemon.kill9();
    let table = endpoints(a);
    assert_eq!((table.source.as_str(), table.endpoints[0].state), ("kernel", EndpointState::Connected));
    let none = a.loden(&["endpoints", "--free-dead"]).expect_success();
    assert!(none.contains("no address"), "{none}");
    assert!(alive.ns().exec(&["ip", "link", "show", "eth0"]).success());
}

#[test]
fn a_new_lease_moves_the_bridge_and_spares_old_containers() {
    let cluster = Cluster::<2>::start("bridge-moves", &Stack::Four.vxlan(), &[]);
    let ([a, b], [daemon, _]) = (&cluster.hosts, &cluster.daemons);
    let (old, peer) = (a.container("old"), b.container("peer"));
    let former = a.subnet();
    let gateways = || {
        let shown = a.json(&["ip", "-j", "-4", "addr", "show", "dev", "loden0"]);
        let all = shown[0]["addr_info"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|v| v["local"].as_str()?.parse().ok()).collect::<Vec<IpAddr>>()
    };
    // While nobody looks, the host forgets who it is and its subnet gets another, living owner.
    daemon.kill9();
    let thief = json!({
        "PublicIP": "192.168.77.99", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:99"},
        "Loden": {"HostID": "ffffffffffffffffffffffffffffffff", "HostName": "thief", "KeepAliveSeconds": 2},
    });
    let lease = cluster.etcd.put_leased(&Etcd::key(former), &thief.to_string(), 6);
    let _alive = cluster.etcd.keep_alive(&lease);
    a.run(&["rm", "-rf", "/var/lib/loden"]);
    daemon.start();
    let now = eventually(Duration::from_secs(20), "another subnet is leased", || match a.held_subnet() {
        Ok(subnet) if subnet != former => Ok(subnet),
        other => Err(format!("{other:?}\n{}", daemon.log())),
    });
    let both = [former.gateway(), now.gateway()];
    eventually(A_SECOND, "the bridge has the new gateway beside the old one, without an ADD", || {
        let held = gateways();
        (held == both).then_some(()).ok_or_else(|| format!("{held:?}\n{}", daemon.log()))
    });
    let new = a.container("new");
    assert!(now.contains(new.address()), "{} is not in {now}", new.address());
    matrix(&[&new, &old]);
    matrix(&[&new, &peer]);
    assert_eq!(gateways(), both);
    old.delete();
    eventually(A_SECOND, "the old gateway has gone with its last container", || {
        let held = gateways();
        (held == [now.gateway()]).then_some(()).ok_or_else(|| format!("{held:?}\n{}", daemon.log()))
    });
    matrix(&[&new, &peer]);
}
