//! Whatever is deleted or changed in the kernel comes back, while traffic flows.

use std::net::IpAddr;
use std::time::Duration;

use loden_proto::Subnet;
use loden_tests::story::{Cluster, VXLAN};
use loden_tests::{Host, eventually, kernel, matrix};

/// A second is the promise; the machine may be busy with other scenarios.
const A_SECOND: Duration = Duration::from_secs(3);

/// What a scenario needs to know to do damage on host a.
struct Scene<'a> {
    host: &'a Host,
    device: String,
    mac: String,
    peer: Subnet,
    peer_mac: String,
    peer_address: IpAddr,
}

/// Two hosts under traffic; damages a and waits until all is as before.
fn is_repaired(name: &str, damage: impl FnOnce(&Scene<'_>)) {
    let cluster = Cluster::<2>::start(name, VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let before = a.status();
    let (device, peer) = (&before.devices[0], &before.peers[0]);
    let scene = Scene {
        host: a,
        device: device.name.clone(),
        mac: device.mac.to_string(),
        peer: peer.subnet,
        peer_mac: peer.vtep_mac.expect("a vxlan peer").to_string(),
        peer_address: peer.public_address,
    };
    let picture = || Picture::of(&scene);
    let as_it_was = picture();
    let stream = a1.stream_to(&b1, 1000);
    damage(&scene);
    eventually(A_SECOND, "the kernel is as it was", || {
        let now = picture();
        let same = format!("{now:?}") == format!("{as_it_was:?}");
        if same {
            Ok(())
        } else {
            Err(format!("{now:#?}\n  instead of {as_it_was:#?}\n{}", cluster.daemons[0].log()))
        }
    });
    eventually(A_SECOND, "a1 reaches b1", || a1.pings(b1.address()));
    let losses = stream.stop();
    assert!(losses.silence < A_SECOND, "{losses:?}");
    matrix(&[&a1, &b1]);
    let after = a.status();
    // The damage itself may be too short-lived to be seen.
    let repairs = |s: &loden_proto::status::Status| s.repairs.values().sum::<u64>();
    assert!(
        repairs(&after) > repairs(&before),
        "repairs are counted: {:?}, were {:?}",
        after.repairs,
        before.repairs
    );
    assert_eq!(after.devices[0].mac, before.devices[0].mac);
    cluster.lab.check_invariants();
}

/// All that is ours in the kernel, without counters and indices.
#[derive(Debug)]
#[expect(dead_code, reason = "compared and shown by Debug")]
struct Picture {
    mac: String,
    up: bool,
    addresses: Vec<String>,
    routes: Vec<String>,
    neighbours: Vec<String>,
    fdb: Vec<String>,
    nexthops: usize,
    table: Option<String>,
    forwarding: [String; 2],
}

impl Picture {
    fn of(scene: &Scene<'_>) -> Self {
        let (host, device) = (scene.host, scene.device.as_str());
        let link = kernel::link(host, device).unwrap_or_default();
        let there = !link.is_null();
        let show = |list: Vec<serde_json::Value>, keys: &[&str]| {
            let mut lines: Vec<String> = list
                .iter()
                .map(|v| keys.iter().map(|k| v[*k].to_string()).collect::<Vec<_>>().join(" "))
                .collect();
            lines.sort();
            lines
        };
        let forwarding = |interface: &str| {
            let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
            host.ns().within(|| std::fs::read_to_string(path)).unwrap_or_default()
        };
        Self {
            mac: kernel::text(&link, "address").into(),
            up: link["flags"].to_string().contains("\"UP\""),
            addresses: kernel::addresses(&host.ns(), device)
                .into_iter()
                .filter(|a| !a.starts_with("fe80"))
                .collect(),
            routes: show(kernel::routes_in(host, "10.5.0.0/16"), &["dst", "dev", "gateway", "protocol"]),
            neighbours: if there {
                let mut list = kernel::neighbours(host, device);
                list.retain(|n| n["state"].to_string().contains("PERMANENT"));
                show(list, &["dst", "lladdr"])
            } else {
                Vec::new()
            },
            fdb: if there { show(kernel::fdb(host, device), &["mac", "dst"]) } else { Vec::new() },
            nexthops: kernel::nexthops(host)
                .iter()
                .filter(|n| n["protocol"].to_string().contains("177"))
                .count(),
            table: kernel::table(host, "inet", "loden").map(|text| without_counted(&text)),
            forwarding: [forwarding(device), forwarding("loden0")],
        }
    }
}

/// A table's text without the addresses that it counts.
fn without_counted(text: &str) -> String {
    text.lines().filter(|l| !(l.contains("elements") && l.contains("counter"))).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_deleted_device_comes_back_with_the_same_mac() {
    is_repaired("device", |s| s.host.ip(&format!("link del {}", s.device)));
}

#[test]
fn a_device_that_went_down_and_up_gets_its_routes_and_neighbours_back() {
    is_repaired("down_up", |s| s.host.ip(&format!("link set {0} down\nlink set {0} up", s.device)));
}

#[test]
fn a_device_that_was_set_down_is_set_up() {
    is_repaired("down", |s| s.host.ip(&format!("link set {} down", s.device)));
}

#[test]
fn a_deleted_route_comes_back() {
    is_repaired("route", |s| s.host.ip(&format!("route del {}", s.peer)));
}

#[test]
fn a_replaced_route_is_put_right() {
    is_repaired("replaced", |s| s.host.ip(&format!("route replace {} via 192.168.77.1 proto 177", s.peer)));
}

#[test]
fn a_deleted_nexthop_comes_back_with_its_routes() {
    is_repaired("nexthop", |s| s.host.ip("nexthop flush proto 177"));
}

#[test]
fn a_deleted_neighbour_comes_back() {
    is_repaired("neighbour", |s| s.host.ip(&format!("neigh del {} dev {}", s.peer.address(), s.device)));
}

#[test]
fn a_changed_neighbour_is_put_right() {
    is_repaired("neighbour2", |s| {
        s.host.ip(&format!(
            "neigh replace {} lladdr 02:00:00:00:00:99 dev {} nud permanent",
            s.peer.address(),
            s.device
        ));
    });
}

#[test]
fn a_deleted_fdb_entry_comes_back() {
    is_repaired("fdb", |s| {
        let to = s.peer_address.to_string();
        s.host.run(&["bridge", "fdb", "del", &s.peer_mac, "dev", &s.device, "dst", &to]);
    });
}

#[test]
fn an_fdb_entry_that_points_elsewhere_is_put_right() {
    is_repaired("fdb2", |s| {
        s.host.run(&["bridge", "fdb", "replace", &s.peer_mac, "dev", &s.device, "dst", "192.168.77.222"]);
    });
}

#[test]
fn a_deleted_device_address_comes_back() {
    is_repaired("address", |s| s.host.ip(&format!("addr flush dev {}", s.device)));
}

#[test]
fn a_deleted_nft_table_comes_back() {
    is_repaired("table", |s| {
        s.host.run(&["nft", "delete", "table", "inet", "loden"]);
    });
}

#[test]
fn a_flushed_ruleset_comes_back() {
    is_repaired("ruleset", |s| {
        s.host.forget_foreign();
        s.host.run(&["nft", "flush", "ruleset"]);
    });
}

#[test]
fn forwarding_that_was_turned_off_on_the_bridge_is_turned_on() {
    is_repaired("forwarding", |s| s.host.ns().sysctl("net/ipv4/conf/loden0/forwarding", "0"));
}

#[test]
fn forwarding_that_was_turned_off_on_the_device_is_turned_on() {
    is_repaired("forwarding2", |s| {
        s.host.ns().sysctl(&format!("net/ipv4/conf/{}/forwarding", s.device), "0");
    });
}

#[test]
fn a_mac_changed_by_hand_is_changed_back() {
    is_repaired("mac", |s| {
        assert_ne!(s.mac, "02:00:00:00:00:77");
        s.host.ip(&format!("link set {} address 02:00:00:00:00:77", s.device));
    });
}
