//! The leases as they stand in etcd, each key by itself: one that cannot be read harms only itself.
//! The store folds its snapshot and events into a [`LeaseTable`]; copies share structure, so
//! handing one on costs nothing, and two of them are compared in the time of their difference.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use loden_proto::lease::{LeaseKey, LeaseValue};
use loden_proto::{Family, Subnet};

use crate::packed::two_rounds;
use crate::tracked::{Changed, Tracked};

/// One key below `<prefix>/subnets/`.
// With `Eq` an `Arc` of it takes the same record for equal without a look: tables share nearly all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its value, or why it cannot be read.
    pub value: Result<LeaseValue, String>,
    /// The etcd lease that the key hangs on; 0: none, the key is a reservation for ever.
    pub etcd_lease: i64,
    /// Revision of the key's creation. The smaller one is the older claim.
    pub create_revision: i64,
    /// Revision of its last change; every write of our own key compares it.
    pub mod_revision: i64,
}

impl LeaseRecord {
    /// Whether nobody lives behind it: no etcd lease and no backend data.
    pub fn is_reservation(&self) -> bool {
        use loden_proto::lease::BackendData::None;
        self.etcd_lease == 0
            && self.value.as_ref().is_ok_and(|v| {
                v.backend_type.is_empty() && v.backend_data == None && v.backend_v6_data == None
            })
    }
}

/// All leases at one revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaseTable {
    /// The etcd revision up to which every change is in here.
    pub revision: i64,
    leases: Tracked<LeaseKey, Arc<LeaseRecord>>,
    /// The IPv6 subnets of all keys, for overlap. By IPv4 subnets the leases themselves are in order.
    v6: OrdSet<(Subnet, LeaseKey)>,
    /// Keys that name no subnet, with the reason.
    malformed: OrdMap<String, String>,
}

impl LeaseTable {
    /// Takes in a put of the key whose last component is `name`.
    pub fn put(&mut self, name: &str, record: LeaseRecord) {
        match LeaseKey::parse(name) {
            Ok(key) => self.insert(key, record),
            Err(e) => {
                self.malformed.insert(name.to_owned(), e.to_string());
            }
        }
    }

    /// Takes in a record under a key that has been parsed.
    pub fn insert(&mut self, key: LeaseKey, record: LeaseRecord) {
        if let Some(subnet) = key.subnet(Family::V6) {
            self.v6.insert((subnet, key));
        }
        self.leases.insert(key, Arc::new(record));
    }

    /// Takes in a deletion.
    pub fn delete(&mut self, name: &str) {
        match LeaseKey::parse(name) {
            Ok(key) => self.remove(&key),
            Err(_) => _ = self.malformed.remove(name),
        }
    }

    /// Takes in the deletion of a key that has been parsed.
    pub fn remove(&mut self, key: &LeaseKey) {
        if let Some(subnet) = key.subnet(Family::V6) {
            self.v6.remove(&(subnet, *key));
        }
        self.leases.remove(key);
    }

    /// Takes no more room than needed, after many were taken in. What comes later costs a little more.
    pub fn pack(&mut self) {
        self.leases =
            two_rounds(self.leases.iter()).map(|(key, record)| (*key, Arc::clone(record))).collect();
    }

    /// The record of a key.
    pub fn get(&self, key: &LeaseKey) -> Option<&LeaseRecord> {
        self.leases.get(key).map(Arc::as_ref)
    }

    /// All records in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&LeaseKey, &LeaseRecord)> {
        self.leases.iter().map(|(k, r)| (k, r.as_ref()))
    }

    /// How many keys name a subnet.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is no lease at all.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Keys that name no subnet, with the reason.
    pub fn malformed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.malformed.iter().map(|(k, r)| (k.as_str(), r.as_str()))
    }

    /// Keys whose record differs between `self` and a later table, in order, with the record here and there.
    pub fn changes<'a>(
        &'a self,
        later: &'a LeaseTable,
    ) -> impl Iterator<Item = Changed<'a, LeaseKey, Arc<LeaseRecord>>> {
        later.leases.changes_since(&self.leases)
    }

    /// Every key of either table, in order, with the record here and there.
    pub fn beside<'a>(&'a self, other: &'a LeaseTable) -> Vec<Changed<'a, LeaseKey, Arc<LeaseRecord>>> {
        let all: BTreeSet<&LeaseKey> = self.leases.keys().chain(other.leases.keys()).collect();
        all.into_iter().map(|key| (*key, self.leases.get(key), other.leases.get(key))).collect()
    }

    /// The first key of this subnet or of a part of it.
    pub fn inside(&self, subnet: &Subnet) -> Option<LeaseKey> {
        self.all_inside(*subnet).next()
    }

    /// Every key of this subnet or of a part of it.
    pub fn all_inside(&self, subnet: Subnet) -> impl Iterator<Item = LeaseKey> {
        // Sorted by address, then length: what lies inside follows the subnet itself.
        let inside = self.since(subnet).take_while(move |(found, _)| subnet.contains_subnet(found));
        inside.map(|(_, key)| key)
    }

    /// Every key of exactly this subnet.
    pub fn exactly(&self, subnet: Subnet) -> impl Iterator<Item = LeaseKey> {
        self.since(subnet).take_while(move |(found, _)| *found == subnet).map(|(_, key)| key)
    }

    /// The first key that shares an address with the subnet, wider ones among them.
    pub fn overlapping(&self, subnet: &Subnet) -> Option<LeaseKey> {
        let mut exact = subnet.wider().filter_map(|wide| self.exactly(wide).next());
        self.inside(subnet).or_else(|| exact.next())
    }

    /// The key with this address, and its subnet there. Of leases within leases, which are nobody's wish, the
    /// last one before the address counts: this is asked for each question of the DNS.
    pub fn around(&self, address: IpAddr) -> Option<(LeaseKey, Subnet)> {
        let single = Subnet::new(address, Family::of(address).bits()).ok()?;
        let (key, subnet) = match single.family() {
            Family::V4 => {
                // A key that has an IPv6 part as well comes after the one that has not.
                let after = LeaseKey::new(Some(single), Some(Subnet::ALL_V6))?;
                let (key, _) = self.leases.range(..=after).next_back()?;
                (*key, key.subnet(Family::V4)?)
            }
            Family::V6 => {
                let (subnet, key) = self.v6.range(..=(single, LeaseKey::single(single))).next_back()?;
                (*key, *subnet)
            }
        };
        subnet.contains(address).then_some((key, subnet))
    }

    /// Subnets of its family with their keys, in order, from this one on. A key with the subnet alone
    /// sorts before every other key that holds it: absent parts come first.
    fn since(&self, subnet: Subnet) -> impl Iterator<Item = (Subnet, LeaseKey)> {
        let first = LeaseKey::single(subnet);
        let (v4, v6) = match subnet.family() {
            Family::V4 => (Some(self.leases.range(first..)), None),
            Family::V6 => (None, Some(self.v6.range((subnet, first)..))),
        };
        let v4 = v4.into_iter().flatten().filter_map(|(key, _)| Some((key.subnet(Family::V4)?, *key)));
        v4.chain(v6.into_iter().flatten().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> LeaseRecord {
        LeaseRecord { value: Ok(LeaseValue::default()), etcd_lease: 1, create_revision: 1, mod_revision: 1 }
    }

    #[test]
    fn an_address_is_in_the_lease_around_it() {
        let mut table = LeaseTable::default();
        for key in ["10.5.7.0-24", "10.5.8.0-24&fd00:10:5:8::-64", "fd00:10:5:9::-64"] {
            table.put(key, record());
        }
        for (address, key) in [
            ("10.5.7.0", Some("10.5.7.0-24")),
            ("10.5.7.255", Some("10.5.7.0-24")),
            ("10.5.8.0", Some("10.5.8.0-24&fd00:10:5:8::-64")),
            ("10.5.8.9", Some("10.5.8.0-24&fd00:10:5:8::-64")),
            ("10.5.6.255", None),
            ("10.5.9.0", None),
            ("fd00:10:5:8::9", Some("10.5.8.0-24&fd00:10:5:8::-64")),
            ("fd00:10:5:9::", Some("fd00:10:5:9::-64")),
            ("fd00:10:5:7::1", None),
            ("fd00:10:5:a::1", None),
        ] {
            let found = table.around(address.parse().expect("address")).map(|(key, _)| key.to_string());
            assert_eq!(found.as_deref(), key, "{address}");
        }
    }

    #[test]
    fn a_malformed_key_is_kept_apart_with_its_reason() {
        let mut table = LeaseTable::default();
        table.put("10.5.7.0-24", record());
        table.put("garbage", record());
        assert_eq!((table.len(), table.malformed().count()), (1, 1));
        table.delete("garbage");
        assert_eq!(table.malformed().count(), 0);
    }

    #[test]
    fn changes_are_those_put_changed_and_deleted() {
        let mut table = LeaseTable::default();
        for name in ["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"] {
            table.put(name, record());
        }
        let before = table.clone();
        table.delete("10.5.1.0-24");
        table.put("10.5.2.0-24", LeaseRecord { mod_revision: 9, ..record() });
        table.put("10.5.4.0-24", record());
        let revision = |record: Option<&Arc<LeaseRecord>>| record.map(|r| r.mod_revision);
        let found = |all: Vec<Changed<'_, LeaseKey, Arc<LeaseRecord>>>| -> Vec<_> {
            all.into_iter().map(|(key, old, new)| (key.to_string(), revision(old), revision(new))).collect()
        };
        let [one, two, three, four] = [
            ("10.5.1.0-24".to_owned(), Some(1), None),
            ("10.5.2.0-24".to_owned(), Some(1), Some(9)),
            ("10.5.3.0-24".to_owned(), Some(1), Some(1)),
            ("10.5.4.0-24".to_owned(), None, Some(1)),
        ];
        assert_eq!(found(before.changes(&table).collect()), [one.clone(), two.clone(), four.clone()]);
        assert_eq!(found(before.beside(&table)), [one, two, three, four]);
    }

    proptest! {
        #[test]
        fn overlap_agrees_with_trying_every_key(
            keys in prop::collection::vec((0u8..4, 0u8..4, 14u8..=26), 0..20),
            (a, b, length) in (0u8..4, 0u8..4, 14u8..=26),
            v6 in any::<bool>(),
        ) {
            let subnet = |a: u8, b: u8, length: u8| {
                if v6 {
                    Subnet::containing([0xfd, 0, a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].into(), length)
                } else {
                    Subnet::containing([10, a, b, 0].into(), length)
                }.expect("length fits")
            };
            let mut table = LeaseTable::default();
            for (a, b, length) in keys {
                table.insert(LeaseKey::single(subnet(a, b, length)), record());
            }
            let candidate = subnet(a, b, length);
            let found = table.overlapping(&candidate).is_some();
            prop_assert_eq!(found, table.iter().any(|(k, _)| k.subnets().any(|s| s.overlaps(&candidate))));
        }
    }
}
