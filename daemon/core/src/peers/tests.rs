//! Peers by example and by property.

use super::*;
use crate::leases::LeaseRecord;
use proptest::prelude::*;

fn rules() -> Arc<Rules> {
    let config =
        NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("config");
    Arc::new(Rules {
        config: config.into(),
        own: Some(key("10.5.1.0-24")),
        host_id: "us".into(),
        own_macs: vec![Mac([2, 0, 0, 0, 0, 1])],
        own_addresses: ["192.168.0.1".parse().expect("ip")].into(),
        on_link: vec!["192.168.0.0/24".parse().expect("subnet")],
        hold: 600_000,
    })
}

fn subnet(text: &str) -> Subnet {
    text.parse().expect(text)
}

fn key(text: &str) -> LeaseKey {
    LeaseKey::parse(text).expect(text)
}

fn put(table: &mut LeaseTable, name: &str, age: i64, value: &str) {
    let value = LeaseValue::parse(value.as_bytes()).map_err(|e| e.to_string());
    table.put(name, LeaseRecord { value, etcd_lease: 1, create_revision: age, mod_revision: age });
}

fn lease(ip: &str, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{mac:02x}"}}}}"#
    )
}

/// Twenty sound peers, 10.5.10.0/24 to 10.5.29.0/24.
fn twenty() -> LeaseTable {
    let mut table = LeaseTable::default();
    for n in 10..30 {
        put(&mut table, &format!("10.5.{n}.0-24"), i64::from(n), &lease(&format!("192.168.0.{n}"), n));
    }
    table
}

fn book(table: LeaseTable) -> PeerBook {
    let mut book = PeerBook::default();
    book.update(table, rules(), 0);
    book
}

#[test]
fn each_bad_lease_is_refused_with_its_reason_and_harms_no_other() {
    let cases = [
        ("10.6.1.0-24", lease("192.168.0.200", 200), "outside the network"),
        ("10.5.200.0-25", lease("192.168.0.200", 200), "not a /24"),
        ("10.5.0.0-16", lease("192.168.0.200", 200), "not a /24"),
        ("10.5.200.0-24", lease("224.0.0.9", 200), "not a unicast"),
        ("10.5.200.0-24&fd00::-64", lease("192.168.0.255", 200), "broadcast address"),
        ("10.5.201.0-24", lease("192.168.0.1", 201), "our own"),
        ("10.5.202.0-24", lease("10.5.3.4", 202), "inside the overlay"),
        ("10.5.203.0-24", r#"{"PublicIP":"192.168.0.203","BackendType":"vxlan"}"#.into(), "no VTEP MAC"),
        ("10.5.204.0-24", lease("192.168.0.204", 1).replace(":01:01", ":00:01"), "is our own"),
        ("10.5.205.0-24", lease("192.168.0.205", 9).replace("02:00", "03:00"), "not a unicast"),
        ("10.5.206.0-24", "not json".into(), "not JSON"),
        (
            "10.5.207.0-24",
            r#"{"PublicIP":"192.168.0.207","BackendType":"host-gw"}"#.into(),
            "backend type is host-gw",
        ),
        ("10.5.208.0-24", lease("192.168.0.208", 10), "belongs since longer to 10.5.10.0-24"),
        ("10.5.1.0-24&fd00::-64", lease("192.168.0.209", 209), "overlaps our own"),
        ("10.5.11.0-24&fd00::-64", lease("192.168.0.210", 210), "claimed since longer"),
        ("garbage", lease("192.168.0.211", 211), "not a lease key"),
    ];
    let mut table = twenty();
    for (name, value, _) in &cases {
        put(&mut table, name, 1000, value);
    }
    let book = book(table);
    assert_eq!(book.peers().len(), 20, "the sound ones stay");
    let rejected = book.rejected();
    assert_eq!(rejected.len(), cases.len(), "{rejected:#?}");
    for (name, _, reason) in &cases {
        assert!(
            rejected.iter().any(|(k, r)| k == name && r.contains(reason)),
            "{name} {reason}: {rejected:#?}"
        );
    }
}

/// The same in a dual-stack network: we are fd00:0:0:1::/64 too, at fd77::1.
fn dual_rules() -> Arc<Rules> {
    let config = NetworkConfig::parse(
        r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#,
    );
    let mut rules = Rules {
        config: config.expect("config").into(),
        own: Some(key("10.5.1.0-24&fd00:0:0:1::-64")),
        ..(*rules()).clone()
    };
    rules.own_addresses.insert("fd77::1".parse().expect("ip"));
    Arc::new(rules)
}

/// A dual-stack value; the MACs end with 01:`mac` and 06:`mac`.
fn dual_lease(ip: &str, ipv6: &str, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"{ip}","PublicIPv6":{ipv6},"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{mac:02x}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"02:00:00:00:06:{mac:02x}"}}}}"#
    )
}

/// What becomes of one more lease beside the sound 10.5.10.0-24&fd00:0:0:10::-64 and
/// 10.5.11.0-24&fd00:0:0:11::-64: its peers and why it is refused, or half of it.
fn beside_two(name: &str, value: &str) -> (Vec<String>, Option<String>) {
    let mut table = LeaseTable::default();
    for n in [10, 11] {
        let name = format!("10.5.{n}.0-24&fd00:0:0:{n}::-64");
        put(&mut table, &name, n, &dual_lease(&format!("192.168.0.{n}"), &format!("\"fd77::{n}\""), n as u8));
    }
    put(&mut table, name, 1000, value);
    let mut book = PeerBook::default();
    book.update(table, dual_rules(), 0);
    let (sound, more): (Vec<String>, Vec<String>) =
        book.peers().keys().map(Subnet::to_string).partition(|s| {
            s.contains(".10.0") || s.contains(".11.0") || s.contains(":10::") || s.contains(":11::")
        });
    assert_eq!(sound.len(), 4, "{name} {value} harms others: {sound:?}");
    let reason = book.rejected().into_iter().find(|(k, _)| k == name).map(|(_, r)| r);
    (more, reason)
}

#[test]
fn what_is_wrong_with_one_half_of_a_dual_stack_lease_leaves_the_other_half() {
    let fine = "\"fd77::20\"";
    let v4 = ["10.5.20.0/24"].as_slice();
    let v6 = ["fd00:0:0:20::/64"].as_slice();
    let both = ["10.5.20.0/24", "fd00:0:0:20::/64"].as_slice();
    let name = "10.5.20.0-24&fd00:0:0:20::-64";
    let value = |v6: &str| dual_lease("192.168.0.20", v6, 20);
    let cases = [
        (name, value(fine), both, ""),
        // A host of a flannel cluster that has not been restarted with IPv6 yet.
        ("10.5.20.0-24", lease("192.168.0.20", 20), v4, ""),
        ("fd00:0:0:20::-64", value(fine), v6, ""),
        (name, lease("192.168.0.20", 20), v4, "no public IPv6"),
        (name, value("null"), v4, "no public IPv6"),
        (name, value("\"ff02::1\""), v4, "ff02::1 is not a unicast"),
        (name, value("\"fe80::20\""), v4, "fe80::20 is not a unicast"),
        (name, value("\"::ffff:192.168.0.20\""), v4, "not a unicast"),
        (name, value("\"::1\""), v4, "not a unicast"),
        (name, value("\"fd00::77\""), v4, "inside the overlay"),
        (name, value("\"fd77::1\""), v4, "our own"),
        (name, dual_lease("0.0.0.0", fine, 20), v6, "no public IPv4"),
        (name, dual_lease("239.1.1.1", fine, 20), v6, "239.1.1.1 is not a unicast"),
        (name, value(fine).replace("06:14", "06:0a"), v4, "belongs since longer to 10.5.10.0"),
        (name, value(fine).replace(":00:06:14", ":00:00:01"), v4, "our own"),
        ("10.5.20.0-24&fd01:0:0:20::-64", value(fine), v4, "outside the network"),
        ("10.5.20.0-24&fd00::-48", value(fine), v4, "not a /64"),
        ("10.5.20.0-24&fd00:0:0:20:8000::-65", value(fine), v4, "not a /64"),
        ("10.5.20.0-24&fd00:0:0:1::-64", value(fine), v4, "overlaps our own"),
        ("10.5.20.0-24&fd00:0:0:10::-64", value(fine), v4, "claimed since longer"),
        ("10.5.10.0-24&fd00:0:0:20::-64", value(fine), v6, "claimed since longer"),
        ("10.5.10.0-24&fd00:0:0:11::-64", value(fine), &[], "claimed since longer"),
        (name, value(fine).replace("\"vxlan\"", "\"wireguard\""), &[], "backend type is wireguard"),
        ("fd01::-64", value(fine), &[], "outside the network"),
        ("10.5.20.0-24&FD00:0:0:20::-64", value(fine), &[], "10.5.20.0-24&fd00:0:0:20::-64"),
        ("10.5.20.0-24&fd00:0000:0:20::-64", value(fine), &[], "10.5.20.0-24&fd00:0:0:20::-64"),
        // One way to write a key, or two keys would be one lease.
        ("10.5.10.0-24&FD00:0:0:10::-64", "garbage".into(), &[], "10.5.10.0-24&fd00:0:0:10::-64"),
    ];
    for (name, value, peers, reason) in cases {
        let (more, refused) = beside_two(name, &value);
        assert_eq!(more, peers, "{name} {value}: {refused:?}");
        match (reason, &refused) {
            ("", None) => {}
            (part, Some(said)) if !part.is_empty() && said.contains(part) => {}
            _ => panic!("{name} {value}: {refused:?} instead of {reason:?}"),
        }
    }
}

#[test]
fn other_hosts_of_the_alloc_backend_are_no_peers_and_nothing_is_wrong_with_them() {
    let config =
        NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}"#).expect("config");
    let mut table = LeaseTable::default();
    put(&mut table, "10.5.2.0-24", 1, r#"{"PublicIP":"192.168.0.2"}"#);
    let mut book = PeerBook::default();
    book.update(table, Arc::new(Rules { config: config.into(), ..(*rules()).clone() }), 0);
    assert_eq!((book.peers().len(), book.rejected()), (0, Vec::new()));
}

#[test]
fn a_younger_claim_gets_its_turn_when_the_older_goes() {
    let mut table = twenty();
    put(&mut table, "10.5.99.0-24", 99, &lease("192.168.0.99", 10));
    let mut book = book(table.clone());
    assert!(!book.peers().contains_key(&subnet("10.5.99.0/24")));
    table.delete("10.5.10.0-24");
    book.update(table, rules(), 1);
    book.tick(2000);
    assert!(book.peers().contains_key(&subnet("10.5.99.0/24")));
    assert!(book.rejected().is_empty());
}

proptest! {
    #[test]
    fn updates_one_by_one_end_where_one_look_at_everything_ends(
        changes in prop::collection::vec((0u8..6, 0u8..4, 1u8..5, 1u8..5, any::<bool>()), 1..40),
        dual in any::<bool>(),
    ) {
        let rules = if dual { dual_rules() } else { rules() };
        let mut table = LeaseTable::default();
        let mut step_by_step = PeerBook::default();
        for (n, (subnet, form, ip, mac, delete)) in changes.into_iter().enumerate() {
            let name = match form {
                0 => format!("10.5.{}.0-24", subnet + 2),
                1 => format!("10.5.{}.0-24&fd00::-64", subnet + 2),
                2 => format!("10.5.{}.0-24&fd00:0:0:{}::-64", subnet + 2, mac + 1),
                _ => format!("10.5.{}.0-25", subnet + 2),
            };
            match delete {
                true => table.delete(&name),
                false => {
                    let ipv6 = if ip == 1 { "null".into() } else { format!("\"fd77::{ip}\"") };
                    put(&mut table, &name, n as i64 + 1, &dual_lease(&format!("192.168.0.{}", ip + 1), &ipv6, mac));
                }
            }
            // Slow enough that nothing is held.
            step_by_step.update(table.clone(), rules.clone(), n as u64 * 20_000);
            step_by_step.tick(n as u64 * 20_000 + 1000);
            let mut at_once = PeerBook::default();
            at_once.update(table.clone(), rules.clone(), 0);
            prop_assert_eq!(step_by_step.peers(), at_once.peers());
            prop_assert_eq!(step_by_step.rejected(), at_once.rejected());
        }
    }
}

#[test]
fn a_rival_that_comes_later_changes_nothing_for_the_older() {
    let mut table = twenty();
    let mut book = book(table.clone());
    let before = book.peers();
    put(&mut table, "10.5.11.0-24&fd00::-64", 1000, &lease("192.168.0.210", 210));
    book.update(table.clone(), rules(), 1);
    assert_eq!(book.peers(), before);
    // This one meets the rival only, by its MAC.
    put(&mut table, "10.5.99.0-24", 1001, &lease("192.168.0.99", 210));
    book.update(table, rules(), 2);
    assert_eq!(book.peers(), before);
}

#[test]
fn who_is_outdone_by_anothers_change_is_told_once() {
    let mut table = twenty();
    let mut book = book(table.clone());
    put(&mut table, "10.5.10.0-24", 10, &lease("192.168.0.10", 11));
    let refused = book.update(table.clone(), rules(), 1);
    assert!(
        matches!(&refused[..], [(key, reason)] if key == "10.5.11.0-24" && reason.contains("10.5.10.0-24"))
    );
    put(&mut table, "10.5.12.0-24", 12, &lease("192.168.0.112", 12));
    assert_eq!(book.update(table, rules(), 2), []);
}

#[test]
fn one_peer_that_leaves_is_let_go_after_a_moment_unless_it_returns() {
    let mut table = twenty();
    let mut book = book(table.clone());
    table.delete("10.5.10.0-24");
    book.update(table.clone(), rules(), 1);
    assert_eq!((book.peers().len(), book.held().count()), (20, 0), "its key may be claimed again");
    book.tick(1001);
    assert_eq!((book.peers().len(), book.next_deadline()), (19, None));
    put(&mut table, "10.5.10.0-24", 500, &lease("192.168.0.10", 10));
    book.update(table, rules(), 1002);
    assert_eq!(book.peers().len(), 20);
}

#[test]
fn a_host_that_moves_to_another_subnet_leaves_the_old_one_at_once() {
    let mut table = twenty();
    let mut book = book(table.clone());
    table.delete("10.5.10.0-24");
    put(&mut table, "10.5.99.0-24", 500, &lease("192.168.0.10", 10));
    book.update(table, rules(), 1);
    assert!(!book.peers().contains_key(&subnet("10.5.10.0/24")), "its MAC is at the new one");
    assert_eq!(book.peers().len(), 20);
}

#[test]
fn most_peers_vanishing_at_once_or_one_by_one_are_held_for_the_grace_period() {
    for step in [0, 100] {
        let mut table = twenty();
        let mut book = book(table.clone());
        for n in 10..25u64 {
            table.delete(&format!("10.5.{n}.0-24"));
            if step > 0 {
                book.update(table.clone(), rules(), n * step);
            }
        }
        book.update(table.clone(), rules(), 3000);
        assert_eq!((book.peers().len(), book.held().count()), (20, 15), "step {step}");
        // A new lease for a held subnet wins at once.
        put(&mut table, "10.5.10.0-24", 5000, &lease("192.168.0.77", 77));
        book.update(table.clone(), rules(), 4000);
        let winner = book.peers().get(&subnet("10.5.10.0/24")).map(|p| p.public_address.to_string());
        assert_eq!(winner.as_deref(), Some("192.168.0.77"));
        let end = book.next_deadline().expect("held peers have an end");
        book.tick(end + 3000);
        assert_eq!((book.peers().len(), book.held().count()), (6, 0));
    }
}

#[test]
fn while_many_are_held_a_single_later_departure_is_an_ordinary_one() {
    let mut table = twenty();
    let mut book = book(table.clone());
    for n in 10..25 {
        table.delete(&format!("10.5.{n}.0-24"));
    }
    book.update(table.clone(), rules(), 0);
    assert_eq!(book.held().count(), 15);
    table.delete("10.5.25.0-24");
    book.update(table, rules(), 60_000);
    book.tick(61_000);
    assert_eq!((book.held().count(), book.peers().len()), (15, 19));
}

#[test]
fn peers_that_are_kept_cost_later_updates_nothing() {
    let mut table = twenty();
    let mut book = book(table.clone());
    for n in 10..25 {
        table.delete(&format!("10.5.{n}.0-24"));
    }
    let living = book.peers();
    book.update(table.clone(), rules(), 0);
    assert!(book.peers().ptr_eq(&living), "all are held, so the peers are the same");
    put(&mut table, "10.5.99.0-24", 500, &lease("192.168.0.99", 99));
    book.update(table, rules(), 1);
    assert_eq!((book.held().count(), book.peers().len()), (15, 21));
}

#[test]
fn our_own_subnet_is_taken_from_a_held_peer_though_etcd_shows_no_lease() {
    let mut book = book(twenty());
    book.update(LeaseTable::default(), rules(), 0);
    assert_eq!(book.held().count(), 20);
    let ours = Rules { own: Some(key("10.5.12.0-24")), ..(*rules()).clone() };
    book.update(LeaseTable::default(), Arc::new(ours), 1);
    assert!(!book.peers().contains_key(&subnet("10.5.12.0/24")));
    assert_eq!(book.held().count(), 19);
}

#[test]
fn slow_departures_are_not_held() {
    let mut table = twenty();
    let mut book = book(table.clone());
    for n in 10..28u64 {
        table.delete(&format!("10.5.{n}.0-24"));
        book.update(table.clone(), rules(), n * 20_000);
        book.tick(n * 20_000 + 1000);
    }
    assert_eq!((book.peers().len(), book.held().count()), (2, 0));
}

#[test]
fn peers_known_before_the_first_table_are_let_go_or_held_by_the_same_rule() {
    let known: Vec<Peer> = book(twenty()).peers().values().cloned().collect();
    let mut table = twenty();
    table.delete("10.5.10.0-24");
    let mut one_less = PeerBook::with_known(known.clone());
    assert_eq!(one_less.peers().len(), 20, "used before etcd answers");
    one_less.update(table, rules(), 0);
    one_less.tick(1000);
    assert_eq!(one_less.peers().len(), 19);
    let mut emptied = PeerBook::with_known(known);
    emptied.update(LeaseTable::default(), rules(), 0);
    assert_eq!((emptied.peers().len(), emptied.held().count()), (20, 20));
}

#[test]
fn direct_routing_takes_the_plain_path_on_the_link_only() {
    let mut rules = (*rules()).clone();
    rules.config =
        NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#)
            .expect("config")
            .into();
    let mut table = LeaseTable::default();
    put(&mut table, "10.5.2.0-24", 1, &lease("192.168.0.2", 2));
    put(&mut table, "10.5.3.0-24", 2, &lease("172.16.0.3", 3));
    let mut book = PeerBook::default();
    book.update(table, Arc::new(rules), 0);
    let paths: Vec<Path> = book.peers().values().map(|p| p.path).collect();
    assert_eq!(paths, [Path::Direct, Path::Vxlan("02:00:00:00:01:03".parse().expect("mac"))]);
}
