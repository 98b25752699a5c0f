//! What IPv6 brings that IPv4 has nothing like. The scenarios of both stand with IPv4's: `matrix`, `repair`,
//! `leases`, `masquerade`, `vtep`, `underlay`, `backends`, `restart`.

use std::time::Duration;

use loden_proto::Family;
use loden_proto::lease::{LeaseKey, LeaseValue};
use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Daemon, Etcd, Host, Lab, PREFIX, eventually, kernel, matrix};
use serde_json::{Value, json};

#[test]
fn containers_and_files_tell_both_families() {
    let cluster = Cluster::<2>::start("dual", &Stack::Dual.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    assert_eq!(a1.result()["ips"].as_array().map(Vec::len), Some(2), "{}", a1.result());
    let env = a.subnet_env().expect("subnet.env");
    assert_eq!((env.subnets.len(), env.mtu), (2, 1430), "the smaller MTU, IPv6's: {env:?}");
    let mtu = |name: &str| kernel::link(a, name).expect("a device")["mtu"].clone();
    assert_eq!((mtu("loden.1"), mtu("loden6.1")), (json!(1450), json!(1430)));
    // What status prints for people names both, for ourselves and for the peer.
    let text = a.loden(&["status"]).expect_success();
    for host in [a, b] {
        for family in Family::ALL {
            assert!(text.contains(&host.subnet_of(family).to_string()), "{text}");
            assert!(text.contains(&host.address_of(family).to_string()), "{text}");
        }
    }
    cluster.lab.check_invariants();
}

#[test]
fn an_ipv6_network_is_made_and_a_lease_in_it_reserved_and_released_by_command() {
    let lab = Lab::new("commands6");
    let etcd = lab.etcd();
    let a = lab.host("a");
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    let loden = |args: &[&str]| a.loden(&[args, &[&endpoints]].concat());
    let init = ["config", "init", "--ipv6-only", "--ipv6-network", "fd00:10:5::/48"];
    loden(&init).expect_success();
    assert!(loden(&["config", "check"]).expect_success().contains("fd00:10:5::/48: 65535 subnets of /64"));
    let refused = loden(&["lease", "reserve", "10.5.7.0/24", "--public-ip=fd77::11"]).expect_failure();
    assert!(refused.contains("IPv6"), "{refused}");
    loden(&["lease", "reserve", "fd00:10:5:7::/64", "--public-ip=fd77::11"]).expect_success();
    assert_eq!(etcd.keys(&format!("{PREFIX}/subnets")), Vec::<String>::new(), "flannel could not parse it");
    let _a = a.daemon(&[]).ready();
    assert_eq!(a.subnet().to_string(), "fd00:10:5:7::/64", "the one reserved for it");
    assert!(loden(&["lease", "list"]).expect_success().contains("fd00:10:5:7::/64"));
    loden(&["lease", "release", "fd00:10:5:7::/64", "--force"]).expect_success();
    lab.check_invariants();
}

#[test]
fn a_dual_stack_lease_is_reserved_by_command() {
    let lab = Lab::new("commands46");
    let etcd = lab.etcd();
    let a = lab.host("a");
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    let loden = |args: &[&str]| a.loden(&[args, &[&endpoints]].concat());
    loden(&["config", "init", "--ipv6-network=fd00:10:5::/48", "--ipv6-subnet-len=72"]).expect_success();
    let half = loden(&["lease", "reserve", "10.5.7.0/24", "--public-ip=192.168.77.11"]).expect_failure();
    assert!(half.contains("IPv4 and IPv6"), "what is missing is named: {half}");
    let both = ["lease", "reserve", "10.5.7.0/24", "fd00:10:5:7::/72", "--public-ip=192.168.77.11"];
    loden(&[both.as_slice(), &["--public-ip=fd77::11"]].concat()).expect_success();
    let _a = a.daemon(&[]).ready();
    assert_eq!(a.held_key().map(|k| k.to_string()), Ok("10.5.7.0-24&fd00:10:5:7::-72".into()));
    lab.check_invariants();
}

/// IPv4 hosts with containers become dual-stack one by one, and IPv4 goes on all the while.
#[test]
fn an_ipv4_cluster_becomes_dual_stack_host_by_host_and_goes_back() {
    let cluster = Cluster::<2>::start("grow", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let subnets = || [a, b].map(|h| h.subnet_of(Family::V4));
    let before = subnets();
    let streams = [a1.stream_to(&b1, 1000), b1.stream_to(&a1, 1000)];
    cluster.etcd.config(&Stack::Dual.vxlan());
    eventually(SOON, "a says that the config waits for a restart", || {
        let pending = a.try_status(&[])?.config.and_then(|c| c.pending);
        pending.filter(|p| p.contains("restart")).ok_or_else(|| "it says nothing".to_owned())
    });
    cluster.daemons[0].restart();
    eventually(SOON, "a holds subnets of both families", || {
        a.held_key()
            .map(|k| k.subnets().count())
            .and_then(|n| if n == 2 { Ok(()) } else { Err("one".into()) })
    });
    // Half-way: b knows a as an IPv4 peer, a new container of a has both.
    a.sees_peers(1);
    b.sees_peers(1);
    let a2 = a.container("a2");
    matrix(&[&a1, &a2, &b1]);
    assert_eq!(a2.addresses().len(), 2);
    cluster.daemons[1].restart();
    a.sees_peers(2);
    b.sees_peers(2);
    let b2 = b.container("b2");
    matrix(&[&a1, &a2, &b1, &b2]);
    assert_eq!(subnets(), before, "each keeps its IPv4 subnet");
    for daemon in &cluster.daemons {
        assert!(!daemon.log().contains("is lost"), "{}", daemon.log());
    }
    assert_eq!(cluster.etcd.subnets().len(), 2, "{:?}", cluster.etcd.subnets());
    // And back.
    cluster.etcd.config(&Stack::Four.vxlan());
    a2.delete();
    b2.delete();
    for daemon in &cluster.daemons {
        daemon.restart();
    }
    a.sees_peers(1);
    assert_eq!(subnets(), before);
    for stream in streams {
        let losses = stream.stop();
        assert_eq!(losses.lost, 0, "{losses:?}");
    }
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn a_host_without_an_ipv6_address_waits_for_one() {
    let lab = Lab::new("no_v6");
    lab.etcd().config(&Stack::Dual.vxlan());
    let a = lab.host("a");
    a.ip("addr del fd77::11/64 dev eth0");
    let daemon = a.daemon(&[]);
    eventually(SOON, "status names what is missing", || {
        let status = a.try_status(&[])?;
        let said = format!("{:?} {:?}", status.problems, status.notes);
        if said.contains("eth0 has no IPv6 address") { Ok(()) } else { Err(said) }
    });
    a.ip("addr add fd77::11/64 dev eth0 nodad");
    daemon.wait_ready();
    assert_eq!(a.held_key().expect("a lease").subnets().count(), 2);
}

fn flannel(host: &Host) -> Option<Daemon> {
    let daemon = host.flanneld(&["--iface=eth0", "--ip-masq"])?;
    daemon.wait_ready();
    Some(daemon)
}

#[test]
fn flannel_hosts_and_loden_hosts_form_one_dual_stack_overlay() {
    let lab = Lab::new("mixed46");
    let etcd = lab.etcd();
    etcd.config(&Stack::Dual.vxlan());
    let [f, l, m] = lab.hosts();
    let Some(_df) = flannel(&f) else { return };
    // What flannel wrote goes through our codec to the byte.
    let keys = etcd.subnets();
    let [name] = keys.as_slice() else { panic!("one key: {keys:?}") };
    let text = etcd.get(&Etcd::key(name)).expect("flannel's lease");
    let (key, value) = (LeaseKey::parse(name), LeaseValue::parse(text.as_bytes()));
    assert_eq!(key.as_ref().map(ToString::to_string), Ok(name.clone()));
    assert_eq!(value.as_ref().map(LeaseValue::to_json), Ok(text.clone()));
    let (dl, _dm) = (l.daemon(&[]).ready(), m.daemon(&[]).ready());
    let containers = [f.container_by_hand("f1", 10), l.container("l1"), m.container("m1")];
    let all: Vec<_> = containers.iter().collect();
    matrix(&all);
    l.sees_peers(4);
    dl.restart();
    matrix(&all);
    // Ours begins as flannel's would.
    let ours = etcd.get(&Etcd::key(l.held_key().expect("a lease"))).expect("our lease");
    let members = |text: &str| match serde_json::from_str::<Value>(text).expect("JSON") {
        Value::Object(members) => members.keys().filter(|k| *k != "Loden").cloned().collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    assert_eq!(members(&ours), members(&text));
    lab.check_invariants();
}

#[test]
fn flannels_devices_and_lease_are_taken_over_in_both_families() {
    let lab = Lab::new("adopt46");
    let etcd = lab.etcd();
    etcd.config(&Stack::Dual.vxlan());
    let [f, l] = lab.hosts();
    let Some(df) = flannel(&f) else { return };
    let _dl = l.daemon(&[]).ready();
    let (f1, l1) = (f.container_by_hand("f1", 10), l.container("l1"));
    matrix(&[&f1, &l1]);
    let before = etcd.subnets();
    let streams: Vec<_> = Family::ALL.iter().map(|family| l1.stream_by(*family, &f1, 1000)).collect();
    df.terminate();
    let _d = f.daemon(&[]).ready();
    eventually(SOON, "f holds flannel's subnets", || f.held_key());
    f.sees_peers(2);
    std::thread::sleep(Duration::from_millis(500));
    for stream in streams {
        let losses = stream.stop();
        assert_eq!(losses.lost, 0, "{losses:?}");
    }
    assert_eq!(etcd.subnets(), before);
    let names: Vec<String> = f.status().devices.into_iter().map(|d| d.name).collect();
    assert_eq!(names, ["flannel.1", "flannel-v6.1"], "adopted, whatever their names");
    matrix(&[&f1, &l1]);
}
