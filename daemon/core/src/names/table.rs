//! The names as they stand in etcd, each endpoint's by itself: one that cannot be read harms only itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::NameRecord;

use crate::leases::LeaseTable;

/// Whose names: the lease of the host, and the endpoint's id there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameKey {
    /// The host's lease.
    pub lease: LeaseKey,
    /// Unique on that host.
    pub endpoint: Arc<str>,
}

/// What stands under a key.
#[derive(Debug, Clone, PartialEq)]
pub struct NameEntry {
    /// The record, or why it cannot be read.
    pub record: Result<NameRecord, String>,
    /// The etcd lease that the key hangs on; 0: none.
    pub etcd_lease: i64,
}

/// The names of all endpoints. Copies share structure.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NameTable {
    entries: OrdMap<NameKey, Arc<NameEntry>>,
    /// Those that cannot be read, or hang on no etcd lease.
    doubtful: OrdSet<NameKey>,
}

impl NameTable {
    /// Takes in an entry.
    pub fn put(&mut self, key: NameKey, entry: NameEntry) {
        match entry.record.is_err() || entry.etcd_lease == 0 {
            true => self.doubtful.insert(key.clone()),
            false => self.doubtful.remove(&key),
        };
        self.entries.insert(key, Arc::new(entry));
    }

    /// What is not to be served, and why: values that cannot be read, and those that would outlive their
    /// host, whose own key in etcd hangs on an etcd lease.
    pub fn malformed(&self, leases: &LeaseTable) -> Vec<(NameKey, String)> {
        let lasting = |host: &LeaseKey| leases.get(host).is_some_and(|record| record.etcd_lease == 0);
        let judged = self.doubtful.iter().filter_map(|key| {
            let why = match &self.get(key)?.record {
                Err(why) => why.clone(),
                Ok(_) if lasting(&key.lease) => return None,
                Ok(_) => "it hangs on no etcd lease, and would outlive its host".into(),
            };
            Some((key.clone(), why))
        });
        judged.collect()
    }

    /// Takes in a deletion.
    pub fn delete(&mut self, key: &NameKey) {
        self.entries.remove(key);
        self.doubtful.remove(key);
    }

    /// What stands under a key.
    pub fn get(&self, key: &NameKey) -> Option<&NameEntry> {
        self.entries.get(key).map(Arc::as_ref)
    }

    /// All entries in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&NameKey, &NameEntry)> {
        self.entries.iter().map(|(key, entry)| (key, entry.as_ref()))
    }

    /// Those of one host.
    pub fn of(&self, lease: LeaseKey) -> impl Iterator<Item = (&NameKey, &NameEntry)> {
        let from = NameKey { lease, endpoint: "".into() };
        let of_host = self.entries.range(from..).take_while(move |(key, _)| key.lease == lease);
        of_host.map(|(key, entry)| (key, entry.as_ref()))
    }

    /// The hosts that have an endpoint with names.
    pub fn hosts(&self) -> BTreeSet<LeaseKey> {
        self.entries.keys().map(|key| key.lease).collect()
    }

    /// How many endpoints have names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody has a name.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The same, but for one host with these records instead of what etcd has.
    #[must_use]
    pub fn with_own(&self, lease: LeaseKey, own: impl IntoIterator<Item = (Arc<str>, NameRecord)>) -> Self {
        let mut table = self.clone();
        let stale: Vec<NameKey> = self.of(lease).map(|(key, _)| key.clone()).collect();
        for key in &stale {
            table.delete(key);
        }
        for (endpoint, record) in own {
            table.put(NameKey { lease, endpoint }, NameEntry { record: Ok(record), etcd_lease: 0 });
        }
        table
    }

    /// Keys whose entry differs between `self` and a later table, in order.
    pub fn changed_keys(&self, later: &NameTable) -> Vec<NameKey> {
        use imbl::ordmap::DiffItem;
        self.entries
            .diff(&later.entries)
            .map(|item| match item {
                DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key.clone(),
                DiffItem::Update { new: (key, _), .. } => key.clone(),
            })
            .collect()
    }
}
