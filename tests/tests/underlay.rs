//! Which NIC and address carry the overlay.

use std::net::IpAddr;
use std::time::Duration;

use loden_proto::Family;
use loden_tests::story::{Cluster, SOON, Stack, VXLAN};
use loden_tests::{Etcd, Host, Lab, Segment, always, eventually, kernel, matrix};
use serde_json::Value;

/// A host with two NICs: eth0 as always, eth1 on the second segment with two addresses.
fn two_nics(name: &str) -> (Lab, Etcd, Host) {
    let lab = Lab::new(name);
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let a = lab.host("a");
    a.add_nic("eth1", Segment::Second, &["192.168.79.40/24", "192.168.79.41/24"]);
    (lab, etcd, a)
}

/// What the daemon chose: interface, address, and the address in its lease.
fn choice(name: &str, flags: &[&str]) -> (String, String, String) {
    let (lab, etcd, a) = two_nics(name);
    let _daemon = a.daemon(flags).ready();
    let subnet = eventually(SOON, "a holds a subnet", || a.held_subnet());
    let underlay = a.status().underlay.expect("a chosen underlay");
    let value: Value = serde_json::from_str(&etcd.get(&Etcd::key(subnet)).expect("our lease")).expect("JSON");
    let local = kernel::link(&a, "loden.1").expect("the device")["linkinfo"]["info_data"]["local"].clone();
    assert_eq!(local, underlay.addresses[0].to_string(), "the device sends from the chosen address");
    lab.check_invariants();
    (
        underlay.interface,
        underlay.addresses[0].to_string(),
        value["PublicIP"].as_str().unwrap_or("none").into(),
    )
}

fn chosen(interface: &str, address: &str, public: &str) -> (String, String, String) {
    (interface.into(), address.into(), public.into())
}

#[test]
fn by_default_the_default_routes_nic_is_taken() {
    assert_eq!(choice("nic_default", &[]), chosen("eth0", "192.168.77.11", "192.168.77.11"));
}

#[test]
fn a_nic_is_chosen_by_name() {
    assert_eq!(choice("nic_name", &["--iface=eth1"]), chosen("eth1", "192.168.79.40", "192.168.79.40"));
}

#[test]
fn a_nic_is_chosen_by_one_of_its_addresses() {
    let flags = ["--iface=192.168.79.41"];
    assert_eq!(choice("nic_ip", &flags), chosen("eth1", "192.168.79.41", "192.168.79.41"));
}

#[test]
fn a_nic_is_chosen_by_cidr() {
    let flags = ["--iface=192.168.79.0/24"];
    assert_eq!(choice("nic_cidr", &flags), chosen("eth1", "192.168.79.40", "192.168.79.40"));
}

#[test]
fn a_nic_is_chosen_by_the_first_choice_that_fits() {
    let flags = ["--iface=eth7", "--iface=eth1", "--iface=eth0"];
    assert_eq!(choice("nic_list", &flags), chosen("eth1", "192.168.79.40", "192.168.79.40"));
}

#[test]
fn a_nic_is_chosen_by_pattern() {
    let flags = ["--iface-regex=^eth[1-9]$"];
    assert_eq!(choice("nic_regex", &flags), chosen("eth1", "192.168.79.40", "192.168.79.40"));
}

#[test]
fn a_nic_is_chosen_by_what_it_reaches() {
    let flags = ["--iface-can-reach=192.168.79.1"];
    assert_eq!(choice("nic_reach", &flags), chosen("eth1", "192.168.79.40", "192.168.79.40"));
}

/// Sooner than by the next full comparison, which is set beyond the end of the scenario.
#[test]
fn a_new_way_to_what_must_be_reached_is_taken_at_once() {
    let (_lab, _etcd, a) = two_nics("nic_way");
    let _daemon = a.daemon(&["--iface-can-reach=198.51.100.7", "--resync=1h"]).ready();
    let uses = |nic: &'static str| {
        let a = a.clone();
        move || match a.try_status(&[])?.underlay {
            Some(u) if u.interface == nic => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    eventually(SOON, "the default route's NIC is used", uses("eth0"));
    // Whatever else the start has asked for is done.
    std::thread::sleep(Duration::from_secs(2));
    a.ip("route add 198.51.100.7/32 via 192.168.79.1 dev eth1");
    eventually(SOON, "the new way is used", uses("eth1"));
    a.ip("route del 198.51.100.7/32");
    eventually(SOON, "the old way is used again", uses("eth0"));
}

/// As DHCP does: one change, and another while the daemon looks at what the first has done.
#[test]
fn a_nic_that_changes_while_the_daemon_looks_is_seen() {
    let cluster = Cluster::<2>::start("nic_twice", VXLAN, &["--resync=1h"]);
    let [a, _] = &cluster.hosts;
    let device = a.device_of(Family::V4).name;
    for delay in (0..24).step_by(2) {
        for mtu in [1420, 1440] {
            a.ip(&format!("link set eth0 mtu {}", mtu - 20));
            std::thread::sleep(Duration::from_millis(delay));
            a.ip(&format!("link set eth0 mtu {mtu}"));
            eventually(SOON, "the device has the NIC's last MTU", || {
                match kernel::link(a, &device).and_then(|link| link["mtu"].as_u64()) {
                    Some(now) if now == mtu - 50 => Ok(()),
                    other => Err(format!("{other:?} after {mtu}, {delay} ms after another")),
                }
            });
        }
    }
}

#[test]
fn the_public_address_may_be_another() {
    let flags = ["--iface=eth1", "--public-ip=203.0.113.200"];
    assert_eq!(choice("nic_public", &flags), chosen("eth1", "192.168.79.40", "203.0.113.200"));
}

#[test]
fn a_choice_that_fits_nothing_lists_the_candidates_and_waits() {
    let (_lab, etcd, a) = two_nics("nic_none");
    let daemon = a.daemon(&["--iface=eth7"]);
    daemon.logs(&["eth7", "eth0", "eth1"]);
    always(Duration::from_secs(1), "nothing is claimed", || {
        daemon.exited().is_none() && !daemon.is_ready() && etcd.subnets().is_empty()
    });
    a.add_nic("eth7", Segment::Second, &["192.168.79.47/24"]);
    daemon.wait_ready();
    eventually(SOON, "the late NIC is used", || {
        let underlay = a.try_status(&[])?.underlay;
        match underlay {
            Some(u) if u.interface == "eth7" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

#[test]
fn a_choice_that_can_never_be_right_is_refused() {
    let (_lab, _etcd, a) = two_nics("nic_wrong");
    for wrong in
        ["--iface-regex=(", "--public-ip=239.1.1.1", "--public-ip=0.0.0.0", "--iface-can-reach=nowhere"]
    {
        let daemon = a.daemon(&[wrong]);
        let end = daemon.ends_within(Duration::from_secs(5));
        assert!(!end.success(), "{wrong}: {end}");
        let flag = wrong.split('=').next().expect("a flag");
        assert!(daemon.log().contains(flag), "the message names {flag}: {}", daemon.log());
    }
}

/// Whether the VXLAN device of a host sends checksums of the outer UDP.
fn outer_checksum(host: &Host) -> bool {
    let device = kernel::link(host, "loden.1").expect("the device");
    let checksum = &device["linkinfo"]["info_data"]["udp_csum"];
    checksum.as_bool().unwrap_or_else(|| panic!("no udp_csum in {device}"))
}

#[test]
fn the_outer_checksum_is_left_out_where_the_nic_segments_tunnels_only_without() {
    let lab = Lab::new("outer_checksum");
    lab.etcd().config(VXLAN);
    let [a, b, c] = lab.hosts();
    for host in [&a, &c] {
        host.run(&["ethtool", "-K", "eth0", "tx-udp_tnl-csum-segmentation", "off"]);
    }
    // As flanneld leaves it. Fixed at creation, so it stays.
    c.ip("link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 nolearning");
    let _daemons = [&a, &b, &c].map(|host| host.daemon(&[]).ready());
    matrix(&[&a.container("a1"), &b.container("b1"), &c.container("c1")]);
    assert!(!outer_checksum(&a), "a NIC that could not segment with it");
    assert!(outer_checksum(&b), "a NIC that can");
    let adopted = kernel::link(&c, "flannel.1").expect("the adopted device");
    assert_eq!(adopted["linkinfo"]["info_data"]["udp_csum"], true, "an adopted device keeps its own");
    lab.check_invariants();
}

#[test]
fn a_changed_address_is_followed_by_all_peers() {
    let cluster = Cluster::<2>::start("address", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let (subnet, mac) = (a.subnet(), a.status().devices[0].mac);
    // As DHCP would: the new address comes, the old one goes, routes stay.
    a.ns().sysctl("net/ipv4/conf/eth0/promote_secondaries", "1");
    a.ip("addr add 192.168.77.111/24 dev eth0\naddr del 192.168.77.11/24 dev eth0");
    let new: IpAddr = [192, 168, 77, 111].into();
    eventually(Duration::from_secs(30), "b sends to the new address", || {
        let fdb = kernel::fdb(b, &b.device());
        let mac = mac.to_string();
        let there = fdb.iter().any(|f| f["mac"] == *mac && f["dst"] == new.to_string());
        let only = fdb.iter().filter(|f| f["mac"] == *mac).count() == 1;
        if there && only { Ok(()) } else { Err(format!("{fdb:#?}")) }
    });
    matrix(&[&a1, &b1]);
    assert_eq!(eventually(SOON, "a holds its subnet", || a.held_subnet()), subnet);
    cluster.lab.check_invariants();
}

#[test]
fn a_pulled_and_replugged_cable_changes_nothing() {
    let cluster = Cluster::<2>::start("cable", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    // The kernel drops nexthop objects of a device without carrier, the foreign one too.
    a.forget_foreign();
    cluster.lab.wire().ip(&format!("link set {} down", a.port()));
    std::thread::sleep(Duration::from_secs(1));
    assert!(kernel::route(a, &b.subnet().to_string()).is_some(), "peers stay");
    cluster.lab.wire().ip(&format!("link set {} up", a.port()));
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn without_its_default_route_a_host_goes_on_repairing() {
    let cluster = Cluster::<2>::start("no_default", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    a.ip("route del default");
    a.ip("link del loden.1");
    eventually(SOON, "the device is back", || kernel::link(a, "loden.1"));
    a.sees_peers(1);
    matrix(&[&a1, &b1]);
}

/// The kernel takes direct routes away with the address or the link, and tells nobody.
fn direct_routes_come_back(name: &str, config: &str, happens: fn(&Host)) {
    let cluster = Cluster::<2>::start(name, config, &["--iface=eth0", "--resync=1h"]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    happens(a);
    let route = b.subnet().to_string();
    eventually(SOON, "the route is back", || kernel::route(a, &route));
    matrix(&[&a1, &b1]);
}

fn loses_its_address_for_a_moment(host: &Host) {
    host.ip(&format!("addr flush dev eth0\naddr add {}/24 dev eth0", host.address()));
}

const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

#[test]
fn host_gw_survives_an_address_that_is_away_for_a_moment() {
    direct_routes_come_back("gw_moment", HOST_GW, loses_its_address_for_a_moment);
}

#[test]
fn direct_routing_survives_an_address_that_is_away_for_a_moment() {
    let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    direct_routes_come_back("direct_moment", config, loses_its_address_for_a_moment);
}

#[test]
fn host_gw_survives_an_address_that_is_away_for_a_while() {
    direct_routes_come_back("gw_while", HOST_GW, |host| {
        host.ip("addr flush dev eth0");
        std::thread::sleep(Duration::from_millis(500));
        host.ip(&format!("addr add {}/24 dev eth0", host.address()));
    });
}

#[test]
fn host_gw_survives_a_link_that_goes_down_on_a_host_without_default_route() {
    direct_routes_come_back("gw_down", HOST_GW, |host| {
        host.ns().sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        host.ip("route del default");
        std::thread::sleep(Duration::from_secs(1));
        host.ip("link set eth0 down");
        std::thread::sleep(Duration::from_millis(300));
        host.ip("link set eth0 up");
    });
}

#[test]
fn what_is_deleted_while_the_underlay_is_away_is_repaired_when_it_is_back() {
    let cluster = Cluster::<2>::start("owed", VXLAN, &["--iface=eth0", "--resync=1h"]);
    let [a, b] = &cluster.hosts;
    let route = b.subnet().to_string();
    a.ip("addr flush dev eth0");
    std::thread::sleep(Duration::from_millis(500));
    a.ip(&format!("route del {route}"));
    std::thread::sleep(Duration::from_millis(500));
    a.ip(&format!("addr add {}/24 dev eth0", a.address()));
    eventually(SOON, "the route is back", || kernel::route(a, &route));
}

#[test]
fn a_changed_ipv6_address_is_followed_by_all_peers() {
    let cluster = Cluster::<2>::start("address6", &Stack::Dual.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let (key, mac) = (a.held_key(), a.device_of(Family::V6).mac.to_string());
    let untouched = a1.stream_by(Family::V4, &b1, 1000);
    // As a renumbered network would: the new address comes, the old one goes.
    a.ip("addr add fd77::111/64 dev eth0 nodad\naddr del fd77::11/64 dev eth0");
    eventually(Duration::from_secs(30), "b sends to the new address", || {
        let mut fdb = kernel::fdb(b, &b.device_of(Family::V6).name);
        fdb.retain(|f| f["mac"] == *mac);
        if fdb.len() == 1 && fdb[0]["dst"] == "fd77::111" { Ok(()) } else { Err(format!("{fdb:#?}")) }
    });
    matrix(&[&a1, &b1]);
    let losses = untouched.stop();
    assert_eq!(losses.lost, 0, "IPv4 was not touched: {losses:?}");
    assert_eq!(eventually(SOON, "a holds its subnets", || a.held_key()), key.expect("a lease"));
    cluster.lab.check_invariants();
}

#[test]
fn ipv4_goes_on_while_the_ipv6_address_is_away() {
    let cluster = Cluster::<2>::start("no_address6", &Stack::Dual.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let untouched = a1.stream_by(Family::V4, &b1, 1000);
    a.ip("addr del fd77::11/64 dev eth0");
    eventually(SOON, "status names what is missing", || {
        let status = a.try_status(&[])?;
        let said = format!("{:?} {:?}", status.problems, status.notes);
        if said.contains("IPv6") { Ok(()) } else { Err(said) }
    });
    a.ip("addr add fd77::11/64 dev eth0 nodad");
    matrix(&[&a1, &b1]);
    let losses = untouched.stop();
    assert_eq!(losses.lost, 0, "{losses:?}");
    a.sees_peers(2);
    cluster.lab.check_invariants();
}

#[test]
fn a_second_nics_ipv6_address_is_chosen_by_name_and_by_prefix() {
    for (flag, chosen) in
        [("--iface=eth1", "fd79::40"), ("--iface=fd79::41", "fd79::41"), ("--iface=fd79::/64", "fd79::40")]
    {
        let lab = Lab::new("nic6");
        lab.etcd().config(&Stack::Six.vxlan());
        let a = lab.host("a");
        a.add_nic("eth1", Segment::Second, &["fd79::40/64", "fd79::41/64"]);
        let daemon = a.daemon(&[flag]).ready();
        let key = eventually(SOON, "a holds a subnet", || a.held_key());
        let is_chosen = || {
            let underlay = a.status().underlay.expect("a chosen underlay");
            let now = (underlay.interface.as_str(), underlay.addresses[0].to_string());
            assert_eq!(now, ("eth1", chosen.to_owned()), "{flag}");
            let value = lab.etcd().get(&Etcd::key(key)).expect("our lease");
            let value: Value = serde_json::from_str(&value).expect("JSON");
            assert_eq!(value["PublicIPv6"], chosen, "{flag}");
            let device = kernel::link(&a, "loden6.1").expect("the device");
            assert_eq!(device["linkinfo"]["info_data"]["local6"], chosen, "{flag}");
        };
        is_chosen();
        // The kernel lists the youngest IPv6 address first: a virtual one must not become the host's.
        a.ip("addr add fd79::42/64 dev eth1 nodad");
        daemon.restart();
        eventually(SOON, "a holds its subnet", || a.held_key());
        is_chosen();
        lab.check_invariants();
    }
}
