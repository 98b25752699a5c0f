use std::sync::Arc;

use loden_proto::lease::{LeaseValue, LodenMember};
use loden_proto::name_record::NameSource;
use proptest::prelude::*;

use super::*;
use crate::leases::LeaseRecord;

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn dns_name(text: &str) -> DnsName {
    text.parse().expect(text)
}

fn lease(text: &str) -> LeaseKey {
    LeaseKey::parse(text).expect(text)
}

fn settings() -> Settings {
    Settings {
        dns: Dns::default(),
        networks: vec!["10.5.0.0/16".parse().expect("network"), "fd00:10:5::/48".parse().expect("network")],
        own_subnets: Vec::new(),
        own_addresses: [ip("192.0.2.1")].into(),
        public_addresses: vec![ip("192.0.2.1")],
        local_networks: Vec::new(),
    }
}

fn host(name: &str, public: &str, create_revision: i64) -> LeaseRecord {
    let member = LodenMember { host_name: name.into(), ..LodenMember::default() };
    let loden = (!name.is_empty()).then(|| Arc::new(member));
    let value = LeaseValue { public_ip: public.parse().ok(), loden, ..LeaseValue::default() };
    LeaseRecord { value: Ok(value), etcd_lease: 1, create_revision, mod_revision: create_revision }
}

fn record(names: &[&str], groups: &[&str], addresses: &[&str], since: u64) -> NameRecord {
    NameRecord {
        names: names.iter().map(|n| dns_name(n)).collect(),
        groups: groups.iter().map(|n| dns_name(n)).collect(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        ports: Vec::new(),
        since,
        source: NameSource::Cni,
    }
}

fn published(port: u16, host_port: u16) -> PublishedPort {
    PublishedPort { protocol: Protocol::Tcp, port, host_port }
}

fn key(lease_text: &str, endpoint: &str) -> NameKey {
    NameKey { lease: lease(lease_text), endpoint: endpoint.into() }
}

const A: &str = "10.5.7.0-24";
const B: &str = "10.5.8.0-24&fd00:10:5:8::-64";
const FLANNEL: &str = "10.5.9.0-24";

/// Hosts r1 (A), r2 (B) and one of flannel's, and these records.
fn zone(records: &[(NameKey, NameRecord)]) -> Zone {
    let mut leases = LeaseTable::default();
    leases.insert(lease(A), host("r1.example.com", "192.0.2.1", 1));
    leases.insert(lease(B), host("R2", "192.0.2.2", 2));
    leases.insert(lease(FLANNEL), host("", "192.0.2.3", 3));
    let mut zone = Zone::new(settings());
    zone.set_leases(leases);
    zone.set_names(table(records));
    zone.set_complete();
    zone
}

fn table(records: &[(NameKey, NameRecord)]) -> NameTable {
    let mut table = NameTable::default();
    for (key, record) in records {
        table.put(key.clone(), NameEntry { record: Ok(record.clone()), etcd_lease: 1 });
    }
    table
}

/// An answer in few words.
fn said(zone: &Zone, view: View, name: &str, kind: Kind) -> String {
    match zone.answer(view, name, kind, 0) {
        Answer::Elsewhere => "elsewhere".into(),
        Answer::NotYet => "not yet".into(),
        Answer::Refused => "refused".into(),
        Answer::NoName(apex) => format!("no name in {apex}"),
        Answer::Found { answers, .. } => {
            let text = |record: &Record| match &record.data {
                Data::Address(ip) => ip.to_string(),
                Data::Ptr(name) | Data::Ns(name) => name.to_string(),
                Data::Srv { port, target, .. } => format!("{port} {target}"),
                Data::Soa => "soa".into(),
            };
            answers.iter().map(text).collect::<Vec<_>>().join(", ")
        }
    }
}

fn inside(zone: &Zone, name: &str, kind: Kind) -> String {
    said(zone, View::Overlay, name, kind)
}

fn outside(zone: &Zone, name: &str, kind: Kind) -> String {
    said(zone, View::Outside, name, kind)
}

const NO_NAME: &str = "no name in loden.internal";

#[test]
fn a_container_has_its_name_and_its_address_has_the_first_of_them() {
    let zone = zone(&[(key(B, "c1"), record(&["dn1.hdfs", "dn1"], &[], &["10.5.8.9", "fd00:10:5:8::9"], 1))]);
    for name in ["dn1.hdfs.loden.internal", "dn1.loden.internal", "dn1"] {
        assert_eq!(inside(&zone, name, Kind::A), "10.5.8.9", "{name}");
        assert_eq!(inside(&zone, name, Kind::Aaaa), "fd00:10:5:8::9", "{name}");
    }
    assert_eq!(inside(&zone, "dn1.loden.internal", Kind::Other), "");
    assert_eq!(inside(&zone, "dn1.loden.internal", Kind::Any), "refused");
    assert_eq!(inside(&zone, "9.8.5.10.in-addr.arpa", Kind::Ptr), "dn1.hdfs.loden.internal");
    assert_eq!(inside(&zone, "9.8.5.10.in-addr.arpa", Kind::A), "");
    let v6 = "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.0.0.0.5.0.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(inside(&zone, v6, Kind::Ptr), "dn1.hdfs.loden.internal");
}

#[test]
fn what_is_not_there_is_told_at_once_and_what_is_not_ours_is_for_others() {
    let zone = zone(&[(key(A, "c1"), record(&["dn1.hdfs"], &[], &["10.5.7.9"], 1))]);
    for (name, said) in [
        ("dn2.loden.internal", NO_NAME),
        // There is something below it (RFC 8020).
        ("hdfs.loden.internal", ""),
        ("x.dn1.hdfs.loden.internal", NO_NAME),
        ("a b.loden.internal", NO_NAME),
        ("dn2", ""),
        ("loden.internal", ""),
        ("example.com", "elsewhere"),
        ("xloden.internal", "elsewhere"),
        ("", "elsewhere"),
        ("10.7.5.10.in-addr.arpa", "no name in 5.10.in-addr.arpa"),
        ("7.5.10.in-addr.arpa", ""),
        ("5.10.in-addr.arpa", ""),
        ("9.7.6.10.in-addr.arpa", "elsewhere"),
        ("10.in-addr.arpa", "elsewhere"),
        ("1.10.7.5.10.in-addr.arpa", "elsewhere"),
        ("010.7.5.10.in-addr.arpa", "elsewhere"),
        ("x.7.5.10.in-addr.arpa", "elsewhere"),
        ("in-addr.arpa", "elsewhere"),
    ] {
        assert_eq!(inside(&zone, name, Kind::A), said, "{name}");
    }
    assert_eq!(inside(&zone, "loden.internal", Kind::Soa), "soa");
    assert_eq!(inside(&zone, "loden.internal", Kind::Ns), "ns.host.loden.internal");
    assert_eq!(inside(&zone, "ns.host.loden.internal", Kind::A), "169.254.53.53");
    assert_eq!(inside(&zone, "5.10.in-addr.arpa", Kind::Soa), "soa");
}

#[test]
fn a_network_without_a_name_is_served_by_the_parts_that_have_one() {
    let mut zone = zone(&[]);
    let networks = vec!["10.16.0.0/12".parse().expect("network")];
    zone.set(Settings { networks, ..settings() });
    assert_eq!(inside(&zone, "9.7.17.10.in-addr.arpa", Kind::Ptr), "no name in 17.10.in-addr.arpa");
    assert_eq!(inside(&zone, "9.7.32.10.in-addr.arpa", Kind::Ptr), "elsewhere");
    assert_eq!(inside(&zone, "10.in-addr.arpa", Kind::Ptr), "elsewhere");
}

#[test]
fn hosts_gateways_and_vxlan_devices_have_names_both_ways() {
    let zone = zone(&[]);
    for (name, address) in [
        ("r1.host", "192.0.2.1"),
        ("gw.r1.host", "10.5.7.1"),
        ("vtep.r1.host", "10.5.7.0"),
        ("r2.host", "192.0.2.2"),
        ("gw.r2.host", "10.5.8.1"),
        ("host-10-5-9-0.host", "192.0.2.3"),
        ("gw.host-10-5-9-0.host", "10.5.9.1"),
    ] {
        let full = format!("{name}.loden.internal");
        assert_eq!(inside(&zone, &full, Kind::A), address, "{name}");
        assert_eq!(zone.name_of(ip(address)), Some(dns_name(&full)), "{address}");
    }
    assert_eq!(inside(&zone, "gw.r2.host.loden.internal", Kind::Aaaa), "fd00:10:5:8::1");
    assert_eq!(inside(&zone, "1.2.0.192.in-addr.arpa", Kind::Ptr), "r1.host.loden.internal");
    assert_eq!(inside(&zone, "9.2.0.192.in-addr.arpa", Kind::Ptr), "elsewhere");
    assert_eq!(inside(&zone, "host.loden.internal", Kind::A), "");
    assert_eq!(inside(&zone, "r3.host.loden.internal", Kind::A), NO_NAME);
    assert_eq!(inside(&zone, "x.gw.r1.host.loden.internal", Kind::A), NO_NAME);
}

#[test]
fn hosts_that_have_been_asked_for_are_followed() {
    let mut zone = zone(&[]);
    assert_eq!(inside(&zone, "r2.host.loden.internal", Kind::A), "192.0.2.2");
    let mut leases = LeaseTable::default();
    leases.insert(lease(A), host("r1.example.com", "192.0.2.9", 1));
    leases.insert(lease(FLANNEL), host("r4", "192.0.2.3", 3));
    zone.set_leases(leases);
    for (name, address) in [("r1", "192.0.2.9"), ("r2", NO_NAME), ("r4", "192.0.2.3")] {
        assert_eq!(inside(&zone, &format!("{name}.host.loden.internal"), Kind::A), address, "{name}");
    }
    for (address, view) in [("192.0.2.9", View::Overlay), ("192.0.2.2", View::Outside)] {
        assert_eq!(zone.view(ip(address), ip("192.0.2.1")), view, "{address}");
    }
}

#[test]
fn of_two_hosts_with_one_name_the_older_has_it() {
    let mut zone = zone(&[]);
    let mut leases = zone.leases.clone();
    leases.insert(lease("10.5.1.0-24"), host("r1", "192.0.2.9", 9));
    zone.set_leases(leases.clone());
    assert_eq!(inside(&zone, "r1.host.loden.internal", Kind::A), "192.0.2.1");
    assert_eq!(zone.name_of(ip("192.0.2.9")), Some(dns_name("host-10-5-1-0.host.loden.internal")));
    leases.delete(A);
    zone.set_leases(leases);
    assert_eq!(inside(&zone, "r1.host.loden.internal", Kind::A), "192.0.2.9");
    assert_eq!(zone.name_of(ip("192.0.2.9")), Some(dns_name("r1.host.loden.internal")));
}

#[test]
fn those_outside_are_told_of_hosts_alone() {
    let mut with_port = record(&["web"], &["all"], &["10.5.7.8"], 1);
    with_port.ports = vec![published(80, 8080)];
    let mut zone = zone(&[
        (key(A, "c1"), record(&["dn1"], &["all"], &["10.5.7.9"], 1)),
        (key(A, "c2"), with_port),
        (key(B, "c3"), record(&["printer"], &[], &["203.0.113.7"], 1)),
    ]);
    for (name, kind, said) in [
        ("dn1.loden.internal", Kind::A, "192.0.2.1"),
        ("all.loden.internal", Kind::A, "192.0.2.1"),
        ("printer.loden.internal", Kind::A, "203.0.113.7"),
        ("dn1.loden.internal", Kind::Aaaa, ""),
        ("r1.host.loden.internal", Kind::A, "192.0.2.1"),
        ("gw.r1.host.loden.internal", Kind::A, NO_NAME),
        ("ns.host.loden.internal", Kind::A, "192.0.2.1"),
        ("9.7.5.10.in-addr.arpa", Kind::Ptr, "refused"),
        ("1.2.0.192.in-addr.arpa", Kind::Ptr, "refused"),
        ("example.com", Kind::A, "refused"),
        ("dn1", Kind::A, "refused"),
        ("_80._tcp.web.loden.internal", Kind::Srv, "8080 web.loden.internal"),
    ] {
        assert_eq!(outside(&zone, name, kind), said, "{name}");
    }
    let dns = Dns { outside: Outside::Published, ..Dns::default() };
    zone.set(Settings { dns, ..settings() });
    assert_eq!(outside(&zone, "dn1.loden.internal", Kind::A), NO_NAME);
    assert_eq!(outside(&zone, "web.loden.internal", Kind::A), "192.0.2.1");
    assert_eq!(inside(&zone, "dn1.loden.internal", Kind::A), "10.5.7.9");
}

#[test]
fn who_asks_is_told_by_his_address() {
    let zone = zone(&[]);
    let (public, gateway) = (ip("192.0.2.1"), ip("10.5.7.1"));
    for inside in
        ["10.5.8.3", "10.5.7.1", "fd00:10:5:8::9", "127.0.0.1", "::1", "192.0.2.2", "::ffff:192.0.2.3"]
    {
        assert_eq!(zone.view(ip(inside), public), View::Overlay, "{inside}");
    }
    for outside in ["10.6.0.1", "10.5.250.3", "192.0.2.4", "169.254.1.1", "2001:db8::1"] {
        assert_eq!(zone.view(ip(outside), public), View::Outside, "{outside}");
    }
    let mut with_docker = settings();
    with_docker.local_networks = vec!["172.17.0.0/16".parse().expect("network")];
    let with_docker = Zone::new(with_docker);
    for (at, view) in [("169.254.53.53", View::Overlay), ("192.0.2.1", View::Outside)] {
        assert_eq!(with_docker.view(ip("172.17.0.2"), ip(at)), view, "{at}");
    }
    // Whom another host brings into the overlay has that host's address.
    for brought in ["10.5.8.0", "fd00:10:5:8::", "192.0.2.2"] {
        assert_eq!(zone.view(ip(brought), gateway), View::Outside, "{brought}");
    }
    assert_eq!(zone.view(public, gateway), View::Overlay, "this host itself");
}

#[test]
fn until_all_names_are_known_none_is_denied() {
    let mut starting = Zone::new(settings());
    starting.set_names(table(&[(key(A, "c1"), record(&["dn1"], &[], &["10.5.7.9"], 1))]));
    assert_eq!(inside(&starting, "dn1.loden.internal", Kind::A), "10.5.7.9");
    for unknown in ["dn2.loden.internal", "dn2", "r9.host.loden.internal", "10.8.5.10.in-addr.arpa"] {
        assert_eq!(starting.answer(View::Overlay, unknown, Kind::A, 0), Answer::NotYet, "{unknown}");
    }
    starting.set_complete();
    assert_eq!(inside(&starting, "dn2.loden.internal", Kind::A), NO_NAME);
}

#[test]
fn nobody_takes_a_hosts_names() {
    let evil = record(&["r9.host", "web"], &["gw.r1.host"], &["10.5.7.1", "10.5.7.0", "10.5.7.9"], 9);
    let zone = zone(&[(key(A, "evil"), evil)]);
    assert_eq!(zone.name_of(ip("10.5.7.1")), Some(dns_name("gw.r1.host.loden.internal")));
    assert_eq!(zone.name_of(ip("10.5.7.0")), Some(dns_name("vtep.r1.host.loden.internal")));
    assert_eq!(zone.name_of(ip("10.5.7.9")), Some(dns_name("web.loden.internal")));
    assert_eq!(inside(&zone, "r9.host.loden.internal", Kind::A), NO_NAME);
}

#[test]
fn names_of_one_label_are_known_or_nobodys() {
    let zone = zone(&[(key(A, "c1"), record(&["com"], &[], &["10.5.7.9"], 1))]);
    assert_eq!(inside(&zone, "com", Kind::A), "10.5.7.9");
    assert_eq!(inside(&zone, "org", Kind::Aaaa), "", "below it may be names of others");
    for kind in [Kind::Ns, Kind::Soa, Kind::Other, Kind::Any] {
        assert_eq!(inside(&zone, "com", kind), "elsewhere", "{kind:?}");
    }
}

#[test]
fn published_ports_are_services() {
    let mut web = record(&["web"], &["all"], &["10.5.7.8"], 1);
    web.ports = vec![published(80, 8080), published(443, 8443)];
    let zone = zone(&[(key(A, "c1"), web), (key(A, "c2"), record(&["dn1"], &["all"], &["10.5.7.9"], 1))]);
    for (name, said) in [
        ("web.loden.internal", "80 web.loden.internal, 443 web.loden.internal"),
        ("_tcp.web.loden.internal", "80 web.loden.internal, 443 web.loden.internal"),
        ("_443._tcp.web.loden.internal", "443 web.loden.internal"),
        ("_443._tcp.all.loden.internal", "443 web.loden.internal"),
        ("_443._udp.web.loden.internal", NO_NAME),
        ("_22._tcp.web.loden.internal", NO_NAME),
        ("dn1.loden.internal", ""),
    ] {
        assert_eq!(inside(&zone, name, Kind::Srv), said, "{name}");
    }
    let Answer::Found { additional, .. } = zone.answer(View::Outside, "web.loden.internal", Kind::Srv, 0)
    else {
        panic!("there is a service")
    };
    assert_eq!(
        additional,
        [Record::new(Some(dns_name("web.loden.internal")), Data::Address(ip("192.0.2.1")))]
    );
}

#[test]
fn the_newest_owns_a_name_and_a_group_has_all() {
    let (old, new) =
        (record(&["nn"], &["all"], &["10.5.7.2"], 1), record(&["nn"], &["all"], &["10.5.8.2"], 2));
    let both = [(key(A, "c1"), old.clone()), (key(B, "c2"), new)];
    let mut zone = zone(&both);
    assert_eq!(inside(&zone, "nn.loden.internal", Kind::A), "10.5.8.2");
    assert_eq!(zone.name_of(ip("10.5.8.2")), Some(dns_name("nn.loden.internal")));
    // It would not resolve back.
    assert_eq!(zone.name_of(ip("10.5.7.2")), None);
    assert_eq!(inside(&zone, "all.loden.internal", Kind::A), "10.5.7.2, 10.5.8.2");
    let turned = |turn| match zone.answer(View::Overlay, "all.loden.internal", Kind::A, turn) {
        Answer::Found { answers, .. } => answers[0].data.clone(),
        other => panic!("{other:?}"),
    };
    assert_ne!(turned(0), turned(1));
    zone.set_names(table(&both[..1]));
    assert_eq!(inside(&zone, "nn.loden.internal", Kind::A), "10.5.7.2");
    assert_eq!(zone.name_of(ip("10.5.7.2")), Some(dns_name("nn.loden.internal")));
    zone.set_names(NameTable::default());
    assert_eq!(inside(&zone, "nn.loden.internal", Kind::A), NO_NAME);
}

#[test]
fn a_host_speaks_for_its_own_addresses_alone() {
    let zone = zone(&[
        (key(A, "thief"), record(&["mine"], &[], &["10.5.8.2", "10.5.7.3"], 9)),
        (key(B, "c2"), record(&["nn"], &[], &["10.5.8.2"], 1)),
    ]);
    assert_eq!(inside(&zone, "mine.loden.internal", Kind::A), "10.5.7.3");
    assert_eq!(zone.name_of(ip("10.5.8.2")), Some(dns_name("nn.loden.internal")));
}

#[test]
fn a_shared_name_by_hand_takes_no_containers_own() {
    let zone = zone(&[
        (key(A, "c1"), record(&["dn1"], &[], &["10.5.7.9"], 1)),
        (key(A, "manual-all"), record(&[], &["all"], &["10.5.7.9"], 2)),
    ]);
    assert_eq!(zone.name_of(ip("10.5.7.9")), Some(dns_name("dn1.loden.internal")));
    assert_eq!(inside(&zone, "all.loden.internal", Kind::A), "10.5.7.9");
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize, usize, usize, u64),
    Delete(usize),
}

proptest! {
    /// Whatever came and went, the index says what one made of the end alone would.
    #[test]
    fn the_index_forgets_nothing_and_keeps_nothing(steps in prop::collection::vec(prop_oneof![
        3 => (0..6usize, 0..4usize, 0..4usize, 0..5u64).prop_map(|(a, b, c, d)| Step::Put(a, b, c, d)),
        1 => (0..6usize).prop_map(Step::Delete),
    ], 1..40)) {
        const NAMES: [&str; 4] = ["a", "b.a", "c.b.a", "d"];
        let key = |number: usize| key(if number < 3 { A } else { "10.5.8.0-24" }, &format!("c{number}"));
        let address = |number: usize| format!("10.5.{}.{}", if number < 3 { 7 } else { 8 }, number + 2);
        let mut grown = zone(&[]);
        let mut table = NameTable::default();
        for step in steps {
            match step {
                Step::Put(number, name, group, since) => {
                    let record = record(&[NAMES[name]], &[NAMES[group]], &[&address(number)], since);
                    table.put(key(number), NameEntry { record: Ok(record), etcd_lease: 1 });
                }
                Step::Delete(number) => table.delete(&key(number)),
            }
            grown.set_names(table.clone());
        }
        let mut made = zone(&[]);
        made.set_names(table);
        prop_assert_eq!(&grown.claims, &made.claims);
        prop_assert_eq!(&grown.addresses, &made.addresses);
        prop_assert_eq!(&grown.above, &made.above);
    }
}

/// What others have written: key below `/skydns` and value.
fn imported(records: &[(&str, &str)]) -> Arc<Imported> {
    let place = crate::names::Place::new("/skydns", DnsName::default_zone(), settings().networks);
    let mut imported = Imported::default();
    for (rest, value) in records {
        imported.put(&place, &format!("/skydns/{rest}"), value.as_bytes());
    }
    assert_eq!(imported.problems().collect::<Vec<_>>(), [""; 0]);
    Arc::new(imported)
}

#[test]
fn what_others_have_written_is_served_where_we_have_nothing() {
    let mut zone = zone(&[(key(A, "c1"), record(&["dn1", "ui.web"], &[], &["10.5.7.9"], 1))]);
    zone.set_imported(imported(&[
        ("internal/loden/dn1/x1", r#"{"host":"10.99.0.1"}"#),
        ("internal/loden/legacy/x1", r#"{"host":"10.99.0.1","ttl":60}"#),
        ("internal/loden/legacy/x2", r#"{"host":"10.5.9.2"}"#),
        ("internal/loden/web/x1", r#"{"host":"fd99::1"}"#),
        ("arpa/in-addr/10/5/7/9", r#"{"host":"thief.loden.internal"}"#),
        ("arpa/in-addr/10/5/7/1", r#"{"host":"thief.loden.internal"}"#),
        ("arpa/in-addr/10/5/9/2", r#"{"host":"x2.legacy.loden.internal","ttl":7}"#),
    ]));
    for (name, kind, said) in [
        ("dn1.loden.internal", Kind::A, "10.5.7.9"),
        ("x1.dn1.loden.internal", Kind::A, "10.99.0.1"),
        ("legacy.loden.internal", Kind::A, "10.99.0.1, 10.5.9.2"),
        ("legacy", Kind::A, "10.99.0.1, 10.5.9.2"),
        ("legacy", Kind::Aaaa, ""),
        ("x3.legacy.loden.internal", Kind::A, NO_NAME),
        ("web", Kind::Aaaa, "fd99::1"),
        ("9.7.5.10.in-addr.arpa", Kind::Ptr, "dn1.loden.internal"),
        ("1.7.5.10.in-addr.arpa", Kind::Ptr, "gw.r1.host.loden.internal"),
        ("2.9.5.10.in-addr.arpa", Kind::Ptr, "x2.legacy.loden.internal"),
    ] {
        assert_eq!(inside(&zone, name, kind), said, "{name}");
    }
    let ttl = |name: &str, kind| match zone.answer(View::Overlay, name, kind, 0) {
        Answer::Found { answers, .. } => answers[0].ttl,
        other => panic!("{other:?}"),
    };
    assert_eq!((ttl("legacy", Kind::A), ttl("dn1", Kind::A)), (Some(60), None));
    assert_eq!(ttl("2.9.5.10.in-addr.arpa", Kind::Ptr), Some(7));
    // Of what is inside those outside are told the host, as of our own.
    assert_eq!(outside(&zone, "legacy.loden.internal", Kind::A), "10.99.0.1, 192.0.2.3");
    let dns = Dns { outside: Outside::Published, ..Dns::default() };
    zone.set(Settings { dns, ..settings() });
    assert_eq!(outside(&zone, "legacy.loden.internal", Kind::A), "10.99.0.1");
    assert_eq!(outside(&zone, "dn1.loden.internal", Kind::A), NO_NAME, "it is ours, and not published");
    zone.set_imported(Arc::default());
    assert_eq!(inside(&zone, "legacy.loden.internal", Kind::A), NO_NAME);
}

#[test]
fn ports_of_others_are_services_and_their_aliases_are_followed_once() {
    let mut zone = zone(&[(key(A, "c1"), record(&["dn1"], &[], &["10.5.7.9"], 1))]);
    zone.set_imported(imported(&[
        ("internal/loden/api/x1", r#"{"host":"10.99.0.1","port":8080,"priority":1,"weight":3,"ttl":60}"#),
        ("internal/loden/api/x2", r#"{"host":"www.example.com","port":80}"#),
        ("internal/loden/api/x3", r#"{"host":"10.99.0.3"}"#),
        ("internal/loden/api/x4", r#"{"host":"10.5.9.2","port":81}"#),
        ("internal/loden/one/x1", r#"{"host":"dn1.loden.internal","ttl":60}"#),
        ("internal/loden/two/x1", r#"{"host":"one.loden.internal"}"#),
        ("internal/loden/loop/x1", r#"{"host":"loop.loden.internal"}"#),
    ]));
    let services = "8080 x1.api.loden.internal, 80 www.example.com, 81 x4.api.loden.internal";
    assert_eq!(inside(&zone, "api", Kind::Srv), services);
    assert_eq!(inside(&zone, "api", Kind::A), "10.99.0.1, 10.99.0.3, 10.5.9.2");
    assert_eq!(outside(&zone, "api.loden.internal", Kind::Srv), services.rsplit_once(',').expect("three").0);
    match zone.answer(View::Overlay, "x1.api.loden.internal", Kind::Srv, 0) {
        Answer::Found { answers, additional, .. } => {
            let target = dns_name("x1.api.loden.internal");
            let data = Data::Srv { priority: 1, weight: 3, port: 8080, target: target.clone() };
            assert_eq!(answers, [Record { owner: None, data, ttl: Some(60) }]);
            let data = Data::Address(ip("10.99.0.1"));
            assert_eq!(additional, [Record { owner: Some(target), data, ttl: Some(60) }]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(inside(&zone, "one", Kind::A), "10.5.7.9");
    match zone.answer(View::Overlay, "one", Kind::A, 0) {
        Answer::Found { answers, .. } => assert_eq!(answers[0].ttl, Some(5), "no longer than our own"),
        other => panic!("{other:?}"),
    }
    for none in ["two", "loop"] {
        assert_eq!(inside(&zone, none, Kind::A), "", "{none}");
    }
}
