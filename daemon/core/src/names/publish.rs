//! What of our own names must be written to etcd, and what deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use loden_proto::lease::LeaseKey;
use loden_proto::name_record::NameRecord;

use super::{NameEntry, NameKey, NameTable};

/// One write of our own key space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// This record for an endpoint.
    Put(Arc<str>, NameRecord),
    /// An endpoint is gone, or has no name left.
    Delete(Arc<str>),
}

impl Write {
    /// Whose names it changes.
    pub fn endpoint(&self) -> &Arc<str> {
        match self {
            Self::Put(endpoint, _) | Self::Delete(endpoint) => endpoint,
        }
    }
}

/// The difference between what etcd has of us, on which etcd lease, and what it should.
pub fn publication(
    table: &NameTable,
    lease: LeaseKey,
    etcd_lease: i64,
    own: &BTreeMap<Arc<str>, NameRecord>,
) -> Vec<Write> {
    let stands = |endpoint: &Arc<str>, record: &NameRecord| {
        table
            .get(&NameKey { lease, endpoint: endpoint.clone() })
            .is_some_and(|entry| entry.etcd_lease == etcd_lease && entry.record.as_ref() == Ok(record))
    };
    let speaks = |record: &NameRecord| !(record.names.is_empty() && record.groups.is_empty());
    let puts = own.iter().filter(|(endpoint, record)| speaks(record) && !stands(endpoint, record));
    let puts = puts.map(|(endpoint, record)| Write::Put(endpoint.clone(), record.clone()));
    let surplus = |(key, _): &(&NameKey, &NameEntry)| !own.get(&key.endpoint).is_some_and(speaks);
    let deletes = table.of(lease).filter(surplus).map(|(key, _)| Write::Delete(key.endpoint.clone()));
    puts.chain(deletes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> NameRecord {
        NameRecord {
            names: [name].into_iter().filter_map(|n| n.parse().ok()).collect(),
            groups: Vec::new(),
            addresses: vec!["10.5.7.9".parse().expect("ip")],
            ports: Vec::new(),
            since: 1,
            source: Default::default(),
        }
    }

    fn lease(text: &str) -> LeaseKey {
        LeaseKey::parse(text).expect(text)
    }

    #[test]
    fn only_the_difference_is_written_and_only_in_our_own_key_space() {
        let (ours, other) = (lease("10.5.7.0-24"), lease("10.5.8.0-24"));
        let mut table = NameTable::default();
        let mut stands = |lease, endpoint: &str, record: NameRecord, etcd_lease| {
            table.put(
                NameKey { lease, endpoint: endpoint.into() },
                NameEntry { record: Ok(record), etcd_lease },
            );
        };
        stands(ours, "same", record("a"), 7);
        stands(ours, "changed", record("b"), 7);
        stands(ours, "old-lease", record("c"), 6);
        stands(ours, "gone", record("d"), 7);
        stands(ours, "withdrawn", record("e"), 7);
        stands(other, "foreign", record("f"), 9);
        let own = [("same", "a"), ("changed", "b2"), ("old-lease", "c"), ("withdrawn", ""), ("new", "n")];
        let own = own.into_iter().map(|(endpoint, name)| (endpoint.into(), record(name))).collect();
        let writes: Vec<String> = publication(&table, ours, 7, &own)
            .into_iter()
            .map(|write| match write {
                Write::Put(endpoint, record) => format!("put {endpoint} {}", record.names[0]),
                Write::Delete(endpoint) => format!("delete {endpoint}"),
            })
            .collect();
        assert_eq!(
            writes,
            ["put changed b2", "put new n", "put old-lease c", "delete gone", "delete withdrawn"]
        );
    }
}
