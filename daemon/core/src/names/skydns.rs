//! Our names in SkyDNS's layout, which CoreDNS's `etcd` plugin serves (skydns `msg/service.go`; coredns
//! `plugin/etcd`, `plugin/backend_lookup.go`).
//!
//! ```text
//! /skydns/internal/loden/dn1/loden-1         {"group":"dn1","host":"10.5.7.9","loden":true,"ttl":5}
//! /skydns/internal/loden/all/loden-10-5-7-9  {"group":"all","host":"10.5.7.9","loden":true,"ttl":5}
//! /skydns/arpa/in-addr/10/5/7/9              {"host":"dn1.loden.internal.","loden":true,"ttl":5}
//! ```
//!
//! - For a name CoreDNS answers with all that is below its key, or else with the key itself: so each address is a
//!   leaf of its own below the name's. For an address it asks for that very key.
//! - All below it: also the addresses of `x.dn1`, for `dn1`. The member `group` keeps those out: of several the one
//!   of the shortest key is meant.
//! - The leaves of a name are numbered, not named after their addresses: so its new owner writes over those of a
//!   former one who died without a word.
//! - Readers pass over the member `loden`, by which our own records are told from others'.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_proto::dns_name::DnsName;
use loden_proto::lease::LeaseKey;
use serde_json::json;

use super::Zone;
use super::reverse::reverse_name;

/// Keys and values of all that a host has names for, below a prefix such as `/skydns`.
pub fn exported(zone: &Zone, host: LeaseKey, prefix: &str) -> BTreeMap<String, String> {
    let dns = &zone.settings().dns;
    // 0 would be none, and CoreDNS would take the hours that the etcd lease has.
    let ttl = dns.ttl.max(1);
    let mut all = BTreeMap::new();
    let mut add = |name: &DnsName, leaf: &str, address: IpAddr| {
        let Ok(full) = name.below(&dns.zone) else { return };
        let value = json!({ "host": address, "group": name, "ttl": ttl, "loden": true });
        all.insert(format!("{}/loden-{leaf}", path(prefix, full.labels())), value.to_string());
    };
    for (key, record) in zone.records_of(host) {
        for name in record.names.iter().filter(|name| zone.owner(name).is_some_and(|(owner, _)| owner == key))
        {
            for (number, address) in (1..).zip(zone.sound_addresses(key, record)) {
                add(name, &format!("{number}"), address);
            }
        }
        // Where one has the name for himself, he alone is meant.
        for group in record.groups.iter().filter(|group| zone.owner(group).is_none()) {
            for address in zone.sound_addresses(key, record) {
                add(group, &member(host, address), address);
            }
        }
    }
    for (_, record) in zone.records_of(host) {
        // Of addresses outside of the overlay others may have said what they are.
        for address in record.addresses.iter().filter(|address| ours(host, **address)) {
            if let Some(name) = zone.name_of(*address) {
                let value = json!({ "host": format!("{name}."), "ttl": ttl, "loden": true });
                all.insert(path(prefix, reverse_name(*address).split('.')), value.to_string());
            }
        }
    }
    all
}

/// The key of a name.
pub(super) fn path<'a>(prefix: &str, labels: impl DoubleEndedIterator<Item = &'a str>) -> String {
    labels.rev().fold(prefix.to_owned(), |path, label| format!("{path}/{label}"))
}

/// The leaf of one of a group: by its address, and by its host where another could say the same address.
fn member(host: LeaseKey, address: IpAddr) -> String {
    let label =
        |address: IpAddr| address.to_string().replace(['.', ':'], "-").trim_end_matches('-').to_owned();
    match host.subnets().next().filter(|_| !ours(host, address)) {
        None => label(address),
        Some(subnet) => format!("{}-{}", label(subnet.address()), label(address)),
    }
}

fn ours(host: LeaseKey, address: IpAddr) -> bool {
    host.subnets().any(|subnet| subnet.contains(address))
}

/// A prefix as it was given, or why it is none: the key below which CoreDNS looks (its `path`).
pub fn skydns_prefix(text: &str) -> Result<String, String> {
    let prefix = text.trim_end_matches('/');
    let fits = prefix.starts_with('/')
        && prefix.split('/').skip(1).all(|part| !part.is_empty())
        && prefix.bytes().all(|b| b.is_ascii_graphic());
    if fits {
        return Ok(prefix.to_owned());
    }
    Err("must be a key such as /skydns: the path that CoreDNS's etcd plugin has in its Corefile, with a slash before it"
        .into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use loden_proto::config::Dns;
    use loden_proto::name_record::NameRecord;

    use super::*;
    use crate::names::{NameEntry, NameKey, NameTable, Settings};

    fn lease(text: &str) -> LeaseKey {
        LeaseKey::parse(text).expect(text)
    }

    /// A zone with these records: host, endpoint, value.
    fn zone(dns: Dns, records: &[(&str, &str, &str)]) -> Zone {
        let mut zone = Zone::new(Settings {
            dns,
            networks: ["10.5.0.0/16", "fd00::/48"].map(|n| n.parse().expect("network")).to_vec(),
            own_subnets: vec!["10.5.7.0/24".parse().expect("network")],
            own_addresses: BTreeSet::new(),
            public_addresses: Vec::new(),
            local_networks: Vec::new(),
        });
        let mut names = NameTable::default();
        for (host, endpoint, value) in records {
            let key = NameKey { lease: lease(host), endpoint: Arc::from(*endpoint) };
            names.put(key, NameEntry { record: NameRecord::parse(value.as_bytes()), etcd_lease: 1 });
        }
        zone.set_names(names);
        zone
    }

    /// Key and host of each.
    fn lines(zone: &Zone, host: &str) -> Vec<String> {
        let all = exported(zone, lease(host), "/skydns").into_iter();
        let host = |value: &str| {
            let value: serde_json::Value = serde_json::from_str(value).expect("JSON");
            value["host"].as_str().expect("a host").to_owned()
        };
        all.map(|(key, value)| format!("{key} {}", host(&value))).collect()
    }

    const A: &str = "10.5.7.0-24&fd00::-64";
    const B: &str = "10.5.8.0-24";

    #[test]
    fn each_address_is_a_leaf_of_its_own_and_leads_back_to_the_first_name() {
        let zone = zone(
            Dns { ttl: 0, ..Dns::default() },
            &[(
                A,
                "c1",
                r#"{"Names":["dn1.hdfs","dn1"],"Groups":["all"],"Addresses":["10.5.7.9","fd00::9"],"Since":1}"#,
            )],
        );
        let v6 = "f/d/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/9";
        assert_eq!(
            lines(&zone, A),
            [
                "/skydns/arpa/in-addr/10/5/7/9 dn1.hdfs.loden.internal.".to_owned(),
                format!("/skydns/arpa/ip6/{v6} dn1.hdfs.loden.internal."),
                "/skydns/internal/loden/all/loden-10-5-7-9 10.5.7.9".into(),
                "/skydns/internal/loden/all/loden-fd00--9 fd00::9".into(),
                "/skydns/internal/loden/dn1/loden-1 10.5.7.9".into(),
                "/skydns/internal/loden/dn1/loden-2 fd00::9".into(),
                "/skydns/internal/loden/hdfs/dn1/loden-1 10.5.7.9".into(),
                "/skydns/internal/loden/hdfs/dn1/loden-2 fd00::9".into(),
            ]
        );
        let all = exported(&zone, lease(A), "/skydns");
        assert_eq!(
            all["/skydns/internal/loden/hdfs/dn1/loden-1"],
            r#"{"group":"dn1.hdfs","host":"10.5.7.9","loden":true,"ttl":1}"#
        );
    }

    #[test]
    fn only_the_owner_of_a_name_exports_it_and_over_the_former_ones_keys() {
        let zone = zone(
            Dns::default(),
            &[
                (A, "old", r#"{"Names":["nn"],"Groups":["all"],"Addresses":["10.5.7.9"],"Since":1}"#),
                (B, "new", r#"{"Names":["nn"],"Groups":["all"],"Addresses":["10.5.8.4"],"Since":2}"#),
                (B, "taker", r#"{"Names":["all"],"Addresses":["10.5.8.5"],"Since":2}"#),
            ],
        );
        // Its own address leads back to nothing any more, as here.
        assert_eq!(lines(&zone, A), [""; 0]);
        assert_eq!(
            lines(&zone, B),
            [
                "/skydns/arpa/in-addr/10/5/8/4 nn.loden.internal.",
                "/skydns/arpa/in-addr/10/5/8/5 all.loden.internal.",
                "/skydns/internal/loden/all/loden-1 10.5.8.5",
                "/skydns/internal/loden/nn/loden-1 10.5.8.4",
            ]
        );
    }

    #[test]
    fn what_hosts_say_of_outside_addresses_does_not_collide_nor_lead_back() {
        let vip = r#"{"Groups":["vip"],"Addresses":["192.0.2.9","10.5.9.9"],"Since":1}"#;
        let gw = r#"{"Names":["gw"],"Addresses":["192.0.2.1","192.0.2.2"],"Since":1}"#;
        let zone = zone(Dns::default(), &[(A, "vip", vip), (B, "vip", vip), (B, "gw", gw)]);
        // 10.5.9.9 is another host's to speak for.
        assert_eq!(lines(&zone, A), ["/skydns/internal/loden/vip/loden-10-5-7-0-192-0-2-9 192.0.2.9"]);
        assert_eq!(
            lines(&zone, B),
            [
                "/skydns/internal/loden/gw/loden-1 192.0.2.1",
                "/skydns/internal/loden/gw/loden-2 192.0.2.2",
                "/skydns/internal/loden/vip/loden-10-5-8-0-192-0-2-9 192.0.2.9",
            ]
        );
    }

    #[test]
    fn a_prefix_is_a_key() {
        for (text, prefix) in [("/skydns", "/skydns"), ("/skydns/", "/skydns"), ("/dns/a", "/dns/a")] {
            assert_eq!(skydns_prefix(text), Ok(prefix.to_owned()));
        }
        for wrong in ["", "/", "//", "skydns", "true", "/a//b", "/a b"] {
            assert!(skydns_prefix(wrong).is_err(), "{wrong}");
        }
    }
}
