//! Who owns a subnet, and what is done with leases that are wrong.

use std::time::Duration;

use loden_proto::subnet_env::LeaseState;
use loden_proto::{Family, Subnet};
use loden_tests::story::{Cluster, SOON, Stack, VXLAN, vxlan_lease};
use loden_tests::{Etcd, Host, Lab, PREFIX, always, eventually, kernel, matrix};
use serde_json::{Value, json};

/// A lease that is kept alive every two seconds, so that a dead holder is known soon.
const SHORT: &str = "--subnet-lease-ttl=6s";

#[test]
fn hostile_leases_change_nothing_and_are_listed_with_their_reasons() {
    are_refused("hostile", Stack::Four, hostile_ipv4);
}

#[test]
fn hostile_leases_change_nothing_in_an_ipv6_network() {
    are_refused("hostile6", Stack::Six, hostile_ipv6);
}

#[test]
fn hostile_leases_change_nothing_in_a_dual_stack_network() {
    are_refused("hostile46", Stack::Dual, hostile_of_both);
}

/// Keys below the prefix, and their values.
type Leases = Vec<(String, String)>;

/// Puts them beside two hosts under traffic.
fn are_refused(name: &str, stack: Stack, hostile: impl FnOnce(&Host, &Host) -> Leases) {
    // Above the hostile keys, so that neither order of keys nor luck can help.
    let config = stack.config(json!({"Type": "vxlan"}), (200, 250));
    let cluster = Cluster::<2>::start(name, &config, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let routes = || format!("{:#?}", kernel::routes(a));
    let before = routes();
    let streams: Vec<_> = stack.families().iter().map(|f| a1.stream_by(*f, &b1, 1000)).collect();
    let hostile = hostile(a, b);
    for (key, value) in &hostile {
        cluster.etcd.put_leased(&format!("{PREFIX}/{key}"), value, 3600);
    }
    eventually(SOON, "each is listed with a reason", || {
        let rejected = a.try_status(&[])?.rejected;
        let listed = |key: &str| {
            rejected.iter().any(|r| {
                key.strip_suffix(r.key.as_str()).is_some_and(|f| f.is_empty() || f.ends_with('/'))
                    && !r.reason.is_empty()
            })
        };
        let missing: Vec<_> = hostile.iter().filter(|(key, _)| !listed(key)).map(|(key, _)| key).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not listed: {missing:?} in {rejected:#?}")) }
    });
    for (key, _) in &hostile {
        cluster.etcd.delete(&format!("{PREFIX}/{key}"));
    }
    eventually(SOON, "none is listed any more", || match a.try_status(&[])?.rejected {
        all if all.is_empty() => Ok(()),
        all => Err(format!("{all:#?}")),
    });
    for stream in streams {
        let losses = stream.stop();
        assert_eq!(losses.lost, 0, "{losses:?}\n{:#?}\n{:#?}", a.status(), b.status());
    }
    assert_eq!(routes(), before, "nothing changed in the kernel");
    for family in stack.families() {
        let fdb = kernel::fdb(a, &a.device_of(*family).name);
        assert!(!fdb.iter().any(|f| f["mac"] == HOSTILE_MAC), "no FDB entry either");
    }
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

const HOSTILE_MAC: &str = "02:00:00:00:00:66";

/// A sound lease of both families but for the changes.
fn dual_lease(changes: Value) -> String {
    let mut lease = json!({
        "PublicIP": "192.168.77.66", "PublicIPv6": "fd77::66", "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": HOSTILE_MAC},
        "BackendV6Data": {"VNI": 1, "VtepMAC": HOSTILE_MAC},
    });
    for (name, value) in changes.as_object().expect("an object") {
        lease[name] = value.clone();
    }
    lease.to_string()
}

fn hostile_ipv6(a: &Host, b: &Host) -> Leases {
    let fine = dual_lease(json!({}));
    let public = |ip: &str| dual_lease(json!({"PublicIPv6": ip}));
    let mac = |mac: &str| dual_lease(json!({"BackendV6Data": {"VNI": 1, "VtepMAC": mac}}));
    let (own, peer) = (a.subnet().address().to_string(), b.subnet().address().to_string());
    let leases = [
        ("fd00:10:5:10::-64", "garbage".to_owned()),
        ("fd00:10:5:11::-64", r#"{"PublicIPv6":"192.168.77.66","BackendType":"vxlan"}"#.into()),
        ("fd00:10:5:12::-64", dual_lease(json!({"PublicIPv6": null}))),
        ("fd00:10:5:13::-64", public("ff02::1")),
        ("fd00:10:5:14::-64", public("fe80::66")),
        ("fd00:10:5:15::-64", public("fd00:10:5:15::66")),
        ("fd00:10:5:16::-64", public("::ffff:192.168.77.66")),
        ("fd00:10:5:17::-64", public(&a.address_of(Family::V6).to_string())),
        ("fd00:10:5:18::-64", mac("33:33:00:00:00:01")),
        ("fd00:10:5:19::-64", mac(&a.device_of(Family::V6).mac.to_string())),
        ("fd00:10:5:1a::-64", mac(&b.device_of(Family::V6).mac.to_string())),
        // Other ways to write b's own key.
        (&format!("{}-64", peer.to_uppercase()), fine.clone()),
        (
            &format!("{}-64", peer.replace("fd00:", "fd00:0010:").replacen("0010:10:", "0010:", 1)),
            fine.clone(),
        ),
        (&format!("{}0-64", peer), fine.clone()),
        // Overlapping b's, ours, everybody's.
        (&format!("{peer}-65"), fine.clone()),
        (&format!("{own}-65"), fine.clone()),
        ("fd00:10:5::-56", fine.clone()),
        ("fd00:10:5::-48", fine.clone()),
        ("::-0", fine.clone()),
        ("fd01:10:5:10::-64", fine.clone()),
        ("fd00:10:5:1b::1-64", fine.clone()),
        ("10.5.20.0-24", fine.clone()),
    ];
    let mut all: Leases =
        leases.into_iter().map(|(key, value)| (format!("loden/subnets/{key}"), value)).collect();
    // Where flannel looks, it is not b's key.
    all.push((format!("subnets/{peer}-64"), "garbage".into()));
    all.push(("subnets/fd00:10:5:1c::-64".into(), fine));
    all
}

fn hostile_of_both(a: &Host, b: &Host) -> Leases {
    let fine = dual_lease(json!({}));
    let (own, peer) = (a.held_key().expect("a lease"), b.held_key().expect("a lease"));
    let (own6, peer6) = (a.subnet_of(Family::V6), b.subnet_of(Family::V6));
    let six = |s: Subnet| s.to_string().replace('/', "-");
    let leases = [
        // b's own, written otherwise.
        (peer.to_string().replace("fd00", "FD00"), "garbage".to_owned()),
        (peer.to_string().replace("::-64", ":0::-64"), fine.clone()),
        // One half of b's and one of ours.
        (format!("{}&{}", six(b.subnet()), six(own6)), fine.clone()),
        (format!("{}&{}", six(a.subnet()), six(peer6)), fine.clone()),
        ("10.9.0.0-24&fd01::-64".into(), fine.clone()),
        ("10.5.0.0-16&fd00:10:5::-48".into(), fine.clone()),
        (
            "10.5.20.0-24&fd00:10:5:20::-64".into(),
            dual_lease(json!({"PublicIP": "224.0.0.1", "PublicIPv6": "ff02::1"})),
        ),
        (own.to_string().replace("-24", "-25").replace("-64", "-65"), fine.clone()),
        (six(peer6), fine),
    ];
    leases.into_iter().map(|(key, value)| (format!("subnets/{key}"), value)).collect()
}

#[test]
fn a_peer_with_one_wrong_half_is_reached_by_the_other() {
    let cluster = Cluster::<2>::start("half", &Stack::Dual.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let streams: Vec<_> = Stack::Dual.families().iter().map(|f| a1.stream_by(*f, &b1, 1000)).collect();
    let (b6, used) =
        (b.subnet_of(Family::V6).to_string().replace('/', "-"), |s: &str| kernel::route(a, s).is_some());
    let mac = |n: u8| json!({"VNI": 1, "VtepMAC": format!("02:00:00:00:00:{n:02x}")});
    let lease = |n: u8, ipv6: Value| {
        dual_lease(json!({
            "PublicIP": format!("192.168.77.{n}"), "PublicIPv6": ipv6, "BackendData": mac(n), "BackendV6Data": mac(n),
        }))
    };
    let v4_only = [
        // A flannel host that has not been restarted since IPv6 came.
        ("10.5.130.0-24".to_owned(), Stack::Four.lease(130).to_string()),
        ("10.5.131.0-24&fd00:10:5:83::-64".into(), lease(131, Value::Null)),
        ("10.5.132.0-24&fd00:10:5:84::-64".into(), lease(132, json!("fe80::1"))),
        (format!("10.5.133.0-24&{b6}"), lease(133, json!("fd77::133"))),
    ];
    for (key, value) in &v4_only {
        cluster.etcd.put_leased(&Etcd::key(key), value, 3600);
    }
    a.sees_peers(2 + v4_only.len());
    assert_eq!(a.status().rejected.len(), 3, "the halves are listed: {:#?}", a.status().rejected);
    assert!(used("10.5.133.0/24") && !used("fd00:10:5:83::/64"));
    for stream in streams {
        let losses = stream.stop();
        assert_eq!(losses.lost, 0, "{losses:?}");
    }
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

fn hostile_ipv4(a: &Host, b: &Host) -> Leases {
    let mac = HOSTILE_MAC;
    let fine = vxlan_lease([192, 168, 77, 66], mac);
    let (own, peer) = (a.subnet(), b.subnet());
    let narrower = |s: Subnet| format!("{}-25", s.address());
    let leases = [
        ("10.5.177.0-24", "not json".to_owned()),
        ("10.5.178.0-24", "[]".into()),
        ("10.5.179.0-24", r#"{"PublicIP":"nowhere","BackendType":"vxlan"}"#.into()),
        ("no-subnet", fine.clone()),
        ("10.5.180.7-24", fine.clone()),
        ("10.9.0.0-24", fine.clone()),
        ("0.0.0.0-0", fine.clone()),
        ("192.168.77.0-24", fine.clone()),
        (&narrower(own), fine.clone()),
        (&narrower(peer), fine.clone()),
        ("10.5.0.0-16", fine.clone()),
        (&format!("{}&fd00:5::-64", own.to_string().replace('/', "-")), fine.clone()),
        ("10.5.181.0-24", vxlan_lease([239, 1, 1, 1], mac)),
        ("10.5.182.0-24", vxlan_lease([255, 255, 255, 255], mac)),
        ("10.5.183.0-24", vxlan_lease([127, 0, 0, 1], mac)),
        ("10.5.184.0-24", vxlan_lease([10, 5, 184, 9], mac)),
        ("10.5.185.0-24", vxlan_lease(a.address(), mac)),
        ("10.5.186.0-24", vxlan_lease([192, 168, 77, 66], "01:00:5e:00:00:01")),
        ("10.5.187.0-24", vxlan_lease([192, 168, 77, 66], "00:00:00:00:00:00")),
        ("10.5.188.0-24", fine.replace("vxlan", "host-gw")),
        ("10.5.189.0-24", format!(r#"{{"Loden":{{"HostID":{}}}}}"#, "9".repeat(10_000))),
    ];
    leases.into_iter().map(|(key, value)| (format!("subnets/{key}"), value)).collect()
}

#[test]
fn two_peers_with_one_mac_or_one_address_do_not_take_each_others_packets() {
    let cluster = Cluster::<2>::start("same_mac", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let mac = a.status().peers[0].vtep_mac.expect("a vxlan peer").to_string();
    let stream = a1.stream_to(&b1, 1000);
    cluster.etcd.put_leased(&Etcd::key("10.5.201.0/24"), &vxlan_lease([192, 168, 77, 201], &mac), 3600);
    cluster.etcd.put_leased(
        &Etcd::key("10.5.202.0/24"),
        &vxlan_lease(b.address(), "02:00:00:00:00:02"),
        3600,
    );
    // Something must follow that shows when both have been seen.
    let last = cluster.etcd.put_peer(203);
    eventually(SOON, "the later lease is programmed", || {
        let status = a.try_status(&[])?;
        let seen = status.peers.iter().any(|p| p.subnet == last && p.state == "programmed");
        if seen { Ok(()) } else { Err(format!("{:#?}", status.peers)) }
    });
    let losses = stream.stop();
    assert_eq!(losses.lost, 0, "{losses:?}");
    cluster.lab.check_invariants();
}

#[test]
fn a_deleted_own_key_is_claimed_again() {
    own_lease_returns("own_key", Stack::Four, |etcd, key| {
        assert!(etcd.delete(key));
    });
}

#[test]
fn a_deleted_own_key_of_an_ipv6_network_is_claimed_again() {
    own_lease_returns("own_key6", Stack::Six, |etcd, key| {
        assert!(etcd.delete(key));
    });
}

#[test]
fn a_revoked_own_lease_is_claimed_again() {
    own_lease_returns("revoked", Stack::Dual, |etcd, key| {
        etcd.revoke(&etcd.lease_of(key).expect("our key has a lease"))
    });
}

fn own_lease_returns(name: &str, stack: Stack, lose: impl FnOnce(&Etcd, &str)) {
    let cluster = Cluster::<2>::start(name, &stack.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    let (subnet, pid) = (a.held_key().expect("a lease"), cluster.daemons[0].pid());
    let key = Etcd::key(subnet);
    let stream = b1.stream_to(&a1, 1000);
    lose(&cluster.etcd, &key);
    eventually(SOON, "the key is back, on a lease", || cluster.etcd.lease_of(&key).filter(|l| l != "0"));
    b.sees_peers(stack.peers(1));
    let losses = stream.stop();
    assert_eq!(losses.lost, 0, "{losses:?}");
    assert_eq!(cluster.daemons[0].pid(), pid);
    assert!(cluster.daemons[0].exited().is_none(), "the daemon lives");
    assert_eq!(eventually(SOON, "a holds it", || a.held_key()), subnet);
    b.sees_peers(stack.peers(1));
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn a_subnet_lost_to_a_living_owner_is_left_to_it() {
    let cluster = Cluster::<2>::start("lost", VXLAN, &[SHORT]);
    let [a, b] = &cluster.hosts;
    let a1 = a.container("a1");
    let lost = a.subnet();
    let key = Etcd::key(lost);
    let thief = json!({
        "PublicIP": "192.168.77.99", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:99"},
        "Loden": {"HostID": "ffffffffffffffffffffffffffffffff", "HostName": "thief", "KeepAliveSeconds": 2},
    })
    .to_string();
    let lease = cluster.etcd.put_leased(&key, &thief, 6);
    let _alive = cluster.etcd.keep_alive(&lease);
    let stolen = cluster.etcd.revisions(&key).expect("the key")["mod_revision"].clone();
    eventually(SOON, "subnet.env says lost", || match a.subnet_env() {
        Some(env) if env.lease == LeaseState::Lost => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let refused = a.try_container("a2").expect_err("ADD is refused");
    assert!(
        refused.contains("lost") || refused.contains("owned") || refused.contains("another"),
        "{refused}"
    );
    assert_eq!(a.status().lease.expect("a lost lease is shown").state, "lost");
    always(Duration::from_secs(3), "the owner's key is not touched", || {
        let now = cluster.etcd.revisions(&key).map(|r| r["mod_revision"].clone());
        if now.as_ref() == Some(&stolen) { Ok(()) } else { Err(format!("{now:?}, was {stolen}")) }
    });
    a1.delete();
    let fresh = eventually(SOON, "a takes another subnet once its last container is gone", || {
        match (a.held_subnet()?, a.subnet_env().map(|e| (e.lease, e.subnet(Family::V4)))) {
            (now, Some((LeaseState::Held, Some(env)))) if now != lost && env == now => Ok(now),
            other => Err(format!("{other:?}")),
        }
    });
    assert_ne!(fresh, lost);
    let (a3, b1) = (a.container("a3"), b.container("b1"));
    assert!(fresh.contains(a3.address()));
    matrix(&[&a3, &b1]);
    assert_eq!(cluster.etcd.get(&key), Some(thief));
    cluster.lab.check_invariants();
}

#[test]
fn a_clone_of_a_living_host_gets_its_own_identity() {
    let lab = Lab::new("clone");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let [a, b] = lab.hosts();
    let _a = a.daemon(&[SHORT]).ready();
    let subnet = a.subnet();
    b.clone_identity_from(&a);
    let _b = b.daemon(&[SHORT]).ready();
    let other = eventually(SOON, "the clone holds a subnet", || b.held_subnet());
    assert_ne!(other, subnet);
    assert_eq!(a.subnet(), subnet, "the original keeps its own");
    let id = |h: &Host| h.status().lease.expect("held").host_id;
    assert_ne!(id(&a), id(&b));
    let mac = |h: &Host| h.status().devices[0].mac;
    assert_ne!(mac(&a), mac(&b));
    matrix(&[&a.container("a1"), &b.container("b1")]);
    lab.check_invariants();
}

#[test]
fn a_host_that_moved_to_another_address_keeps_its_subnet() {
    let lab = Lab::new("moved");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let [a, b] = lab.hosts();
    let daemon = a.daemon(&[SHORT]).ready();
    let (subnet, id) = (a.subnet(), a.status().lease.expect("held").host_id);
    daemon.kill9();
    b.clone_identity_from(&a);
    let _b = b.daemon(&[SHORT]);
    let now = eventually(Duration::from_secs(25), "the moved host holds a subnet", || b.held_subnet());
    assert_eq!((now, b.status().lease.expect("held").host_id), (subnet, id));
    assert_eq!(etcd.subnets().len(), 1);
    lab.check_invariants();
}

#[test]
fn a_second_host_with_the_same_address_is_refused_and_told_who_has_it() {
    let lab = Lab::new("duplicate");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let [a, b] = lab.hosts();
    let _a = a.daemon(&[SHORT]).ready();
    let (subnet, id) = (a.subnet(), a.status().lease.expect("held").host_id);
    let value = etcd.get(&Etcd::key(subnet));
    let public = format!("--public-ip={}", a.address());
    let refused = b.daemon(&[SHORT, &public]);
    eventually(SOON, "b names the holder", || {
        let said = format!("{}{:?}", refused.log(), b.try_status(&[]).map(|s| s.problems));
        if said.contains(&id) || said.contains("host a") || said.contains("\"a\"") {
            Ok(())
        } else {
            Err(said)
        }
    });
    assert_eq!(etcd.subnets().len(), 1, "b has claimed nothing");
    assert_eq!(etcd.get(&Etcd::key(subnet)), value);
    assert_eq!(a.subnet(), subnet);
}

#[test]
fn a_reinstalled_host_takes_its_former_subnet_over() {
    let lab = Lab::new("reinstalled");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let a = lab.host("a");
    let _first = a.daemon(&[SHORT]).ready();
    let (subnet, id) = (a.subnet(), a.status().lease.expect("held").host_id);
    a.reinstall();
    let _second = a.daemon(&[SHORT]);
    let now = eventually(Duration::from_secs(25), "it holds a subnet again", || a.held_subnet());
    assert_eq!(now, subnet);
    assert_ne!(a.status().lease.expect("held").host_id, id, "its identity is new");
    assert_eq!(etcd.subnets().len(), 1);
    lab.check_invariants();
}

#[test]
fn a_flannel_lease_with_our_address_is_our_own() {
    let lab = Lab::new("former_flannel");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let a = lab.host("a");
    etcd.put_leased(&Etcd::key("10.5.42.0/24"), &vxlan_lease(a.address(), "02:00:00:00:00:42"), 86400);
    let _a = a.daemon(&[]).ready();
    assert_eq!(a.subnet().to_string(), "10.5.42.0/24");
    let value = etcd.get(&Etcd::key("10.5.42.0/24")).expect("our key");
    assert!(value.contains("\"Loden\""), "{value}");
    assert_eq!(etcd.subnets().len(), 1);
    lab.check_invariants();
}

#[test]
fn reservations_are_respected_and_last() {
    let lab = Lab::new("reserved");
    let etcd = lab.etcd();
    etcd.config(
        r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0","Backend":{"Type":"vxlan"}}"#,
    );
    let [a, b] = lab.hosts();
    etcd.put(&Etcd::key("10.5.1.0/24"), r#"{"PublicIP":"192.168.77.99","PublicIPv6":null}"#);
    let mine = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, a.address());
    etcd.put(&Etcd::key("10.5.2.0/24"), &mine);
    let (_b, da) = (b.daemon(&[]).ready(), a.daemon(&[]).ready());
    assert_eq!(a.subnet().to_string(), "10.5.2.0/24", "the one reserved for it");
    assert_eq!(b.subnet().to_string(), "10.5.3.0/24", "the only one left");
    assert_eq!(etcd.lease_of(&Etcd::key("10.5.2.0/24")), None, "a reservation does not expire");
    assert_eq!(a.sees_peers(1).peers[0].subnet.to_string(), "10.5.3.0/24", "a reservation is no peer");
    da.restart();
    assert_eq!(a.subnet().to_string(), "10.5.2.0/24");
    lab.check_invariants();
}

#[test]
fn leases_are_listed_and_released_by_command() {
    let cluster = Cluster::<2>::start("commands", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let loden = |args: &[&str]| {
        let endpoints = format!("--etcd-endpoints={}", cluster.etcd.url());
        a.loden(&[args, &[&endpoints]].concat())
    };
    let list = loden(&["lease", "list"]).expect_success();
    for host in [a, b] {
        assert!(list.contains(&host.subnet().to_string()), "{list}");
    }
    let living = b.subnet().to_string();
    let refused = loden(&["lease", "release", &living]).expect_failure();
    assert!(refused.contains("--force"), "a living host's lease needs --force: {refused}");
    assert!(cluster.etcd.get(&Etcd::key(b.subnet())).is_some());
    loden(&["lease", "release", &living, "--force"]).expect_success();
    let moved = eventually(SOON, "b, which has no containers, moves", || {
        let now = b.held_subnet()?;
        if now.to_string() == living { Err(format!("it still holds {now}")) } else { Ok(now) }
    });
    eventually(SOON, "the released key is gone", || cluster.etcd.get(&Etcd::key(&living)).is_none());
    let list = loden(&["lease", "list"]).expect_success();
    assert!(list.contains(&b.subnet().to_string()) && !list.contains(&living), "{list}");
    assert_eq!(a.sees_peers(1).peers[0].subnet, moved);
    cluster.lab.check_invariants();
}

#[test]
fn a_lost_subnet_that_becomes_free_again_is_claimed_for_the_containers_in_it() {
    let cluster = Cluster::<2>::start("regained", VXLAN, &[SHORT]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let (subnet, key) = (a.subnet(), Etcd::key(a.subnet()));
    cluster.etcd.put_leased(&key, &vxlan_lease([192, 168, 77, 99], "02:00:00:00:00:99"), 3600);
    eventually(SOON, "subnet.env says lost", || match a.subnet_env() {
        Some(env) if env.lease == LeaseState::Lost => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.etcd.delete(&key);
    eventually(SOON, "the same subnet is held again", || match a.held_subnet()? {
        now if now == subnet => Ok(()),
        now => Err(format!("{now}")),
    });
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn an_unreadable_value_on_the_own_key_is_replaced() {
    let cluster = Cluster::<1>::start("garbled", VXLAN, &[SHORT]);
    let [a] = &cluster.hosts;
    let key = Etcd::key(a.subnet());
    let value = cluster.etcd.get(&key).expect("our lease");
    cluster.etcd.put(&key, "garbage");
    eventually(SOON, "our value stands there again", || match cluster.etcd.get(&key) {
        Some(now) if now == value => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(cluster.etcd.lease_of(&key).is_some(), "on our etcd lease again");
    assert_eq!(a.status().lease.map(|l| l.state), Some("held".into()));
}

#[test]
fn a_bad_key_as_wide_as_the_network_harms_only_itself() {
    let cluster = Cluster::<2>::start("wide", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let subnet = a.subnet();
    cluster.etcd.put(&format!("{PREFIX}/subnets/10.5.0.0-16"), "garbage");
    cluster.etcd.delete(&Etcd::key(subnet));
    eventually(SOON, "a claims its subnet again", || {
        cluster.etcd.get(&Etcd::key(subnet)).ok_or("it is not there")
    });
    matrix(&[&a1, &b1]);
    let c = cluster.lab.host("c");
    let _dc = c.daemon(&[]).ready();
    c.sees_peers(2);
    cluster.lab.check_invariants();
}

#[test]
fn huge_values_do_not_hide_the_others() {
    let cluster = Cluster::<2>::start("huge", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    // More than one answer of the client may hold (4 MiB).
    let huge = "x".repeat(120_000);
    for third in 100..150 {
        cluster.etcd.put(&format!("{PREFIX}/subnets/10.5.{third}.0-24"), &huge);
    }
    cluster.daemons[0].restart();
    b.sees_peers(1);
    a.sees_peers(1);
    eventually(SOON, "all fifty are refused, each by itself", || match a.try_status(&[])?.rejected.len() {
        50 => Ok(()),
        count => Err(format!("{count}")),
    });
    let endpoints = format!("--etcd-endpoints={}", cluster.etcd.url());
    let list = a.loden(&["lease", "list", &endpoints]).expect_success();
    assert!(list.contains(&b.subnet().to_string()), "{list}");
    cluster.lab.check_invariants();
}
