//! Whatever is deleted or changed in the kernel comes back, while traffic flows.

use std::net::IpAddr;
use std::time::Duration;

use loden_netlink::{Request, Socket, nftset};
use loden_proto::status::Status;
use loden_proto::{Family, Subnet};
use loden_tests::story::{Cluster, SOON, Stack, VXLAN};
use loden_tests::{Etcd, Host, Lab, eventually, kernel, matrix};

/// A second is the promise; the machine may be busy with other scenarios.
const A_SECOND: Duration = Duration::from_secs(3);

/// What a scenario needs to know to do damage on host a.
struct Scene<'a> {
    host: &'a Host,
    family: Family,
    device: String,
    mac: String,
    peer: Subnet,
    peer_mac: String,
    peer_address: IpAddr,
}

impl<'a> Scene<'a> {
    fn of(host: &'a Host, family: Family) -> Self {
        let (device, status) = (host.device_of(family), host.status());
        let peer = status.peers.into_iter().find(|p| p.subnet.family() == family).expect("a peer");
        Self {
            host,
            family,
            device: device.name,
            mac: device.mac.to_string(),
            peer: peer.subnet,
            peer_mac: peer.vtep_mac.expect("a vxlan peer").to_string(),
            peer_address: peer.public_address,
        }
    }
}

/// One way to hurt what is Loden's.
type Damage = fn(&Scene<'_>);

/// Two hosts under traffic; damages a, once after the other, and waits each time until all is as before.
/// In a dual-stack network the damage is IPv6's, and IPv4 must not lose a packet by it.
fn is_repaired(name: &str, stack: Stack, damages: &[(&str, Damage)]) {
    let cluster = Cluster::<2>::start(name, &stack.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let family = stack.newest();
    let scene = Scene::of(a, family);
    let as_it_was = Picture::of(&scene);
    let macs = |s: &Status| s.devices.iter().map(|d| d.mac).collect::<Vec<_>>();
    let before = macs(&a.status());
    let untouched = (stack == Stack::Dual).then(|| a1.stream_by(Family::V4, &b1, 1000));
    let stream = a1.stream_by(family, &b1, 1000);
    for (what, damage) in damages {
        let repairs = |s: &Status| s.repairs.values().sum::<u64>();
        let repaired_before = repairs(&a.status());
        damage(&scene);
        eventually(A_SECOND, &format!("after {what} the kernel is as it was"), || {
            let now = Picture::of(&scene);
            let same = format!("{now:?}") == format!("{as_it_was:?}");
            if same {
                Ok(())
            } else {
                Err(format!("{now:#?}\n  instead of {as_it_was:#?}\n{}", cluster.daemons[0].log()))
            }
        });
        let target = b1.address_of(family);
        eventually(A_SECOND, &format!("after {what} a1 reaches b1"), || a1.pings(target));
        // The damage itself may be too short-lived to be seen.
        let status = a.status();
        assert!(
            repairs(&status) > repaired_before,
            "{what}: repairs are counted: {:?}, were {repaired_before}",
            status.repairs
        );
    }
    let losses = stream.stop();
    assert!(losses.silence < A_SECOND, "{losses:?}");
    if let Some(losses) = untouched.map(|s| s.stop()) {
        assert_eq!(losses.lost, 0, "IPv4 was not touched: {losses:?}");
    }
    matrix(&[&a1, &b1]);
    assert_eq!(macs(&a.status()), before);
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
        let network = match scene.family {
            Family::V4 => "10.5.0.0/16",
            Family::V6 => "fd00:10:5::/48",
        };
        let show = |list: Vec<serde_json::Value>, keys: &[&str]| {
            let mut lines: Vec<String> = list
                .iter()
                .map(|v| keys.iter().map(|k| v[*k].to_string()).collect::<Vec<_>>().join(" "))
                .collect();
            lines.sort();
            lines
        };
        let forwarding = |interface: &str| {
            let path = format!("/proc/sys/{}", forwarding_switch(host, scene.family, interface));
            host.ns().within(|| std::fs::read_to_string(path)).unwrap_or_default()
        };
        Self {
            mac: kernel::text(&link, "address").into(),
            up: link["flags"].to_string().contains("\"UP\""),
            addresses: kernel::addresses(&host.ns(), device)
                .into_iter()
                .filter(|a| !a.starts_with("fe80"))
                .collect(),
            routes: show(kernel::routes_in(host, network), &["dst", "dev", "gateway", "protocol"]),
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

/// The setting that makes packets forward which come in by an interface.
fn forwarding_switch(host: &Host, family: Family, interface: &str) -> String {
    let force = |interface: &str| format!("net/ipv6/conf/{interface}/force_forwarding");
    let has_force = || host.ns().within(|| std::path::Path::new("/proc/sys").join(force("all")).exists());
    match family {
        Family::V4 => format!("net/ipv4/conf/{interface}/forwarding"),
        Family::V6 if has_force() => force(interface),
        // Before Linux 6.17 there is none for a single interface.
        Family::V6 => "net/ipv6/conf/all/forwarding".into(),
    }
}

/// One scenario for each damage in an IPv4 network, and one for all of them in the networks with IPv6.
macro_rules! damages {
    ($($(#[$note:meta])* $name:ident: $damage:expr;)*) => {
        $(
            $(#[$note])*
            #[test]
            fn $name() {
                is_repaired(stringify!($name), Stack::Four, &[(stringify!($name), $damage)]);
            }
        )*

        const DAMAGES: &[(&str, Damage)] = &[$((stringify!($name), $damage)),*];
    };
}

damages! {
    a_deleted_device_comes_back_with_the_same_mac: |s| s.host.ip(&format!("link del {}", s.device));

    a_device_that_went_down_and_up_gets_its_routes_and_neighbours_back: |s| {
        s.host.ip(&format!("link set {0} down\nlink set {0} up", s.device));
    };

    a_device_that_was_set_down_is_set_up: |s| s.host.ip(&format!("link set {} down", s.device));

    a_deleted_route_comes_back: |s| s.host.ip(&format!("route del {}", s.peer));

    a_replaced_route_is_put_right: |s| {
        let gateway = match s.family {
            Family::V4 => "192.168.77.1",
            Family::V6 => "fd77::1",
        };
        s.host.ip(&format!("route replace {} via {gateway} proto 177", s.peer));
    };

    a_deleted_neighbour_comes_back: |s| {
        s.host.ip(&format!("neigh del {} dev {}", s.peer.address(), s.device));
    };

    a_changed_neighbour_is_put_right: |s| {
        s.host.ip(&format!(
            "neigh replace {} lladdr 02:00:00:00:00:99 dev {} nud permanent",
            s.peer.address(),
            s.device
        ));
    };

    a_deleted_fdb_entry_comes_back: |s| {
        let to = s.peer_address.to_string();
        s.host.run(&["bridge", "fdb", "del", &s.peer_mac, "dev", &s.device, "dst", &to]);
    };

    an_fdb_entry_that_points_elsewhere_is_put_right: |s| {
        let to = match s.family {
            Family::V4 => "192.168.77.222",
            Family::V6 => "fd77::222",
        };
        s.host.run(&["bridge", "fdb", "replace", &s.peer_mac, "dev", &s.device, "dst", to]);
    };

    an_fdb_entry_to_another_port_is_set_right: |s| {
        let (mac, to) = (&s.peer_mac, s.peer_address.to_string());
        s.host.run(&["bridge", "fdb", "replace", mac, "dev", &s.device, "dst", &to, "port", "9999"]);
    };

    a_deleted_device_address_comes_back: |s| s.host.ip(&format!("addr flush dev {}", s.device));

    a_deleted_nft_table_comes_back: |s| {
        s.host.run(&["nft", "delete", "table", "inet", "loden"]);
    };

    a_flushed_ruleset_comes_back: |s| {
        s.host.forget_foreign();
        s.host.run(&["nft", "flush", "ruleset"]);
    };

    forwarding_that_was_turned_off_on_the_bridge_is_turned_on: |s| {
        s.host.ns().sysctl(&forwarding_switch(s.host, s.family, "loden0"), "0");
    };

    forwarding_that_was_turned_off_on_the_device_is_turned_on: |s| {
        s.host.ns().sysctl(&forwarding_switch(s.host, s.family, &s.device), "0");
    };

    neighbours_that_went_with_the_mac_that_was_set_again_come_back: |s| {
        s.host.ip(&format!("link set {} address {}", s.device, s.mac));
    };

    neighbours_that_went_while_arp_was_off_come_back: |s| {
        s.host.ip(&format!("link set {0} arp off\nlink set {0} arp on", s.device));
    };

    a_mac_changed_by_hand_is_changed_back: |s| {
        assert_ne!(s.mac, "02:00:00:00:00:77");
        s.host.ip(&format!("link set {} address 02:00:00:00:00:77", s.device));
    };
}

/// IPv4's alone: its routes go by nexthop objects.
#[test]
fn a_deleted_nexthop_comes_back_with_its_routes() {
    is_repaired("nexthop", Stack::Four, &[("a deleted nexthop", |s| s.host.ip("nexthop flush proto 177"))]);
}

#[test]
fn a_nexthop_that_leads_elsewhere_is_set_right() {
    is_repaired(
        "nexthop_moved",
        Stack::Four,
        &[("a nexthop by the NIC", |s| {
            let route = s.host.run(&["ip", "route", "show", &s.peer.to_string()]);
            let id =
                route.split_whitespace().skip_while(|word| *word != "nhid").nth(1).expect("by a nexthop");
            s.host.ip(&format!("nexthop replace id {id} via 192.168.77.1 dev eth0"));
        })],
    );
}

/// With the last address of a device go its routes, of which the kernel does not tell, and its neighbours.
#[test]
fn what_went_with_an_address_that_was_away_for_a_moment_comes_back() {
    is_repaired(
        "address_away",
        Stack::Four,
        &[("the address was away", |s| {
            let [address] = &kernel::addresses(&s.host.ns(), &s.device)[..] else { panic!("one address") };
            s.host.ip(&format!("addr del {address} dev {0}\naddr add {address} dev {0}", s.device));
        })],
    );
}

/// Address, neighbours and routes go at once.
#[test]
fn what_went_with_ipv6_that_was_off_for_a_moment_comes_back() {
    is_repaired(
        "ipv6_off",
        Stack::Six,
        &[("IPv6 was off", |s| {
            let switch = format!("net/ipv6/conf/{}/disable_ipv6", s.device);
            s.host.ns().sysctl(&switch, "1");
            s.host.ns().sysctl(&switch, "0");
        })],
    );
}

#[test]
fn all_this_comes_back_in_an_ipv6_network() {
    is_repaired("repair6", Stack::Six, DAMAGES);
}

#[test]
fn all_this_comes_back_in_a_dual_stack_network_while_ipv4_loses_nothing() {
    is_repaired("repair46", Stack::Dual, DAMAGES);
}

/// Once more often than the daemon writes the table in its first two passes, of three rounds each.
#[test]
fn a_rule_added_right_after_its_table_was_written_goes() {
    goes_although_added_at_once("inet", "vxlan_in", 7);
}

/// Once more often than the daemon writes it at a start.
#[test]
fn a_rule_added_right_after_the_port_filter_was_written_goes() {
    goes_although_added_at_once("bridge", "container", 2);
}

/// So many times somebody adds a rule before the daemon can have looked at what it wrote.
fn goes_although_added_at_once(family: &str, chain: &str, times: usize) {
    let lab = Lab::new(&format!("disturbed_{family}"));
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    let script = format!(
        "#!/bin/sh
        script=$(cat)
        echo \"$script\" | /usr/sbin/nft \"$@\" || exit
        case $script in *'table {family} loden'*) ;; *) exit ;; esac
        [ $(wc -c </run/times) -lt {times} ] || exit 0
        /usr/sbin/nft add rule {family} loden {chain} udp dport 9999 counter && printf . >>/run/times"
    );
    a.write_file("/run/times", "");
    a.write_file("/opt/nft", &script);
    a.run(&["chmod", "+x", "/opt/nft"]);
    let daemon = a.daemon_under(&["env", "PATH=/opt:/usr/bin"], &[]).ready();
    let as_written = || {
        let table = kernel::table(&a, family, "loden").ok_or("no table")?;
        match a.read_file("/run/times").unwrap_or_default().len() {
            added if added >= times && !table.contains("9999") => Ok(()),
            added => Err(format!("added {added} times; {table}")),
        }
    };
    eventually(SOON, "the table is as the daemon wrote it", as_written);
    daemon.terminate();
    a.run(&["nft", "add", "rule", family, "loden", chain, "udp", "dport", "9999", "counter"]);
    daemon.start();
    eventually(SOON, "also after a restart", as_written);
}

/// A table is awake for whoever looks while somebody's transaction to wake it is under way, also if that fails.
#[test]
fn a_table_that_somebody_failed_to_wake_is_awake_again() {
    // NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN, NFT_TABLE_F_DORMANT
    const BEGIN: u16 = 0x10;
    const END: u16 = 0x11;
    const NEW_TABLE: u16 = 10 << 8;
    const NEW_CHAIN: u16 = 10 << 8 | 3;
    const DORMANT: u32 = 1;
    const TABLES: usize = 1000;
    let lab = Lab::new("dormant");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    let _daemon = a.daemon(&["--resync=1s"]).ready();
    // The kernel finds the last of them by a look at each.
    let others = (0..TABLES).map(|i| format!("add table inet t{i}\n")).collect::<String>();
    a.ns().nft(&others);
    let mut socket = a.ns().within(Socket::netfilter).expect("a socket");
    let marker = |kind| Request::new(kind, 0, &[0, 0, 0, 10]);
    let table = |name: &str, flags: u32| {
        let inet = [nftset::FAMILY_INET, 0, 0, 0];
        Request::new(NEW_TABLE, 0, &inet).with(1, name.as_bytes()).with(2, &flags.to_be_bytes())
    };
    let last = table(&format!("t{}\0", TABLES - 1), 0);
    let listed = || kernel::table(&a, "inet", "loden").ok_or_else(|| "no table".to_owned());
    for _ in 0..3 {
        socket.transaction(&[marker(BEGIN), table("loden\0", DORMANT), marker(END)]).expect("made dormant");
        // Takes milliseconds, in which the daemon looks.
        let mut wake = vec![marker(BEGIN), table("loden\0", 0)];
        wake.extend(std::iter::repeat_n(last.clone(), 3000));
        wake.extend([Request::new(NEW_CHAIN, 0, &[nftset::FAMILY_INET, 0, 0, 0]), marker(END)]);
        socket.transaction(&wake).expect_err("a chain without a table");
        eventually(SOON, "the table is awake", || match listed()? {
            text if text.contains("dormant") => Err(text),
            _ => Ok(()),
        });
    }
}

#[test]
fn an_interface_that_has_just_come_is_no_repair() {
    let cluster = Cluster::<2>::start("no_repair", VXLAN, &[]);
    let [a, _] = &cluster.hosts;
    let switch = forwarding_switch(a, Family::V4, "loden0");
    for _ in 0..3 {
        a.ip("link add loden0 up type bridge");
        eventually(SOON, "it forwards", || match a.ns().read_sysctl(&switch) {
            on if on == "1" => Ok(()),
            other => Err(other),
        });
        a.ip("link del loden0");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(a.status().repairs.get("forwarding"), None, "{}", cluster.daemons[0].log());
    a.ns().sysctl(&forwarding_switch(a, Family::V4, "eth0"), "0");
    eventually(SOON, "what was switched off is one", || match a.try_status(&[])?.repairs.get("forwarding") {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// The kernel takes no broadcast address for a gateway. Loden knows the link's own beforehand, and not one
/// that somebody made.
#[test]
fn what_the_kernel_refuses_is_said_once_and_shown_for_as_long() {
    let lab = Lab::new("refused");
    let etcd = lab.etcd();
    etcd.config(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.90.0","Backend":{"Type":"host-gw"}}"#);
    let a = lab.host("a");
    let daemon = a.daemon(&["--iface=eth0"]).ready();
    let lease = |address: &str| format!(r#"{{"PublicIP":"{address}","BackendType":"host-gw"}}"#);
    etcd.put_leased(&Etcd::key("10.5.99.0-24"), &lease("192.168.77.255"), 3600);
    a.ip("route add broadcast 192.168.77.143 dev eth0 scope link table local");
    for n in 100..120 {
        etcd.put_leased(&Etcd::key(format!("10.5.{n}.0-24")), &lease("192.168.77.143"), 3600);
    }
    let unprogrammed = |status: Status| status.peers.iter().filter(|p| p.state != "programmed").count();
    eventually(SOON, "twenty peers are not programmed", || match unprogrammed(a.try_status(&[])?) {
        20 => Ok(()),
        other => Err(format!("{other} are not")),
    });
    daemon.logs(&["10.5.99.0-24", "broadcast"]);
    let errors = || daemon.log().lines().filter(|line| line.contains("ERROR")).count();
    let told = errors();
    for n in 200..220 {
        etcd.put_leased(
            &Etcd::key(format!("10.5.{n}.0-24")),
            &lease(&format!("192.168.77.{}", n - 190)),
            3600,
        );
        assert_eq!(unprogrammed(a.status()), 20, "after {} more", n - 199);
        std::thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(errors(), told, "{}", daemon.log());
}

#[test]
fn nothing_is_left_of_a_former_networks_peers() {
    let lab = Lab::new("former_network");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let a = lab.host("a");
    let daemon = a.daemon(&[]).ready();
    for peer in 200..205 {
        etcd.put_peer(peer);
    }
    a.sees_peers(5);
    // Peers are written down some seconds after they change.
    eventually(SOON, "they are in lasting state", || {
        a.exec(&["grep", "-qF", "10.5.204.0", "/var/lib/loden/peers.json"]).success()
    });
    etcd.config(&VXLAN.replace("10.5.", "10.6."));
    // The daemon asks for a restart, after which the former network is in force until etcd answers.
    daemon.restart();
    eventually(SOON, "a moved", || match a.held_subnet()? {
        subnet if subnet.to_string().starts_with("10.6.") => Ok(()),
        subnet => Err(subnet.to_string()),
    });
    let device = a.device_of(Family::V4).name;
    eventually(SOON, "no object of the former network's is left", || {
        let left = (kernel::neighbours(&a, &device), kernel::routes_in(&a, "10.5.0.0/16"));
        if left.0.is_empty() && left.1.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

/// As in a container: the kernel tells who changed a rule by a process id that is another inside.
#[test]
fn its_own_changes_are_no_news_in_a_pid_namespace() {
    let lab = Lab::new("pid_namespace");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let a = lab.host("a");
    let wrapper = ["unshare", "--pid", "--fork", "--kill-child"];
    let daemon = a.daemon_under(&wrapper, &["--log-level=debug"]).ready();
    for peer in 200..205 {
        etcd.put_peer(peer);
        a.sees_peers(usize::from(peer) - 199);
    }
    daemon.logs(&["admit"]);
    let log = daemon.log();
    let news: Vec<&str> = log.lines().filter(|line| line.contains("not as believed")).collect();
    assert!(!news.iter().any(|line| line.contains("Rules")), "{news:#?}");
}
