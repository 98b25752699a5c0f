//! The names of other hosts, remembered over a restart: a daemon that starts while etcd is away serves them as
//! they were.

use loden_core::Millis;
use loden_core::leases::{LeaseRecord, LeaseTable};
use loden_core::names::{NameEntry, NameKey, NameTable};
use loden_proto::lease::{LeaseKey, LeaseValue};

use crate::clock;
use crate::state::{OthersNames, RememberedName, StateDir};

/// How often they are written at most: seldom where there are many, since a write is of all of them.
const LEAST_INTERVAL: Millis = 10_000;
const INTERVAL_PER_NAME: Millis = 30;

/// After so many seconds names are not what they were: as long as a lease of a host that is away lasts.
const OLDEST: u64 = 86_400;
/// Some etcd lease, which one is nobody's concern.
const UNKNOWN: i64 = 1;

/// What is remembered.
pub(super) struct Remembered {
    state: StateDir,
    saved: NameTable,
    /// When they may be written again.
    next: Millis,
}

impl Remembered {
    /// Nothing is known of what stands on the disk; it is written soon.
    pub(super) fn new(state: StateDir) -> Self {
        Self { state, saved: NameTable::default(), next: clock::now() + LEAST_INTERVAL }
    }

    /// What was known in our former life: names, and the leases of their hosts.
    pub(super) fn load(&self) -> (NameTable, LeaseTable) {
        let (mut names, mut leases) = <(NameTable, LeaseTable)>::default();
        let OthersNames { at, hosts, names: all } = self.state.others_names();
        if clock::unix_seconds().saturating_sub(at) > OLDEST {
            return (names, leases);
        }
        for (key, value) in hosts {
            let Ok(key) = LeaseKey::parse(&key) else { continue };
            let value = LeaseValue::parse(value.to_string().as_bytes()).map_err(|e| e.to_string());
            let record = LeaseRecord { value, etcd_lease: UNKNOWN, create_revision: 0, mod_revision: 0 };
            leases.insert(key, record);
        }
        for RememberedName { lease, endpoint, record } in all {
            let Ok(lease) = LeaseKey::parse(&lease) else { continue };
            let entry = NameEntry { record: Ok(record), etcd_lease: UNKNOWN };
            names.put(NameKey { lease, endpoint: endpoint.into() }, entry);
        }
        (names, leases)
    }

    /// Writes others' names, if they have changed and it is time. Returns when it is time again.
    pub(super) fn keep(
        &mut self,
        names: &NameTable,
        leases: &LeaseTable,
        own: Option<LeaseKey>,
    ) -> Option<Millis> {
        if self.saved.changed_keys(names).is_empty() {
            return None;
        }
        let now = clock::now();
        if now < self.next {
            return Some(self.next - now);
        }
        let mut all = OthersNames { at: clock::unix_seconds(), ..OthersNames::default() };
        for (key, entry) in names.iter().filter(|(key, _)| Some(key.lease) != own) {
            let Ok(record) = entry.record.clone() else { continue };
            let (lease, endpoint) = (key.lease.to_string(), key.endpoint.to_string());
            if let Some(Ok(value)) = leases.get(&key.lease).map(|record| &record.value)
                && let Ok(value) = serde_json::from_str(&value.to_json())
            {
                all.hosts.entry(lease.clone()).or_insert(value);
            }
            all.names.push(RememberedName { lease, endpoint, record });
        }
        if let Err(error) = self.state.save_others_names(&all) {
            tracing::warn!(%error, "cannot remember the names of other hosts");
        }
        self.saved = names.clone();
        self.next = now + LEAST_INTERVAL.max(INTERVAL_PER_NAME * names.len() as Millis);
        None
    }
}
