//! The names of other hosts, remembered over a restart: a daemon that starts while etcd is away serves them as
//! they were.

use loden_core::Millis;
use loden_core::names::{NameEntry, NameKey, NameTable};
use loden_proto::lease::LeaseKey;

use crate::clock;
use crate::state::{RememberedName, StateDir};

/// How often they are written at most: seldom where there are many, since a write is of all of them.
const LEAST_INTERVAL: Millis = 10_000;
const INTERVAL_PER_NAME: Millis = 30;

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

    /// What was known in our former life.
    pub(super) fn load(&self) -> NameTable {
        let mut names = NameTable::default();
        for RememberedName { lease, endpoint, record } in self.state.remembered_names() {
            let Ok(lease) = LeaseKey::parse(&lease) else { continue };
            names.put(
                NameKey { lease, endpoint: endpoint.into() },
                NameEntry { record: Ok(record), etcd_lease: UNKNOWN },
            );
        }
        names
    }

    /// Writes others' names, if they have changed and it is time. Returns when it is time again.
    pub(super) fn keep(&mut self, names: &NameTable, own: Option<LeaseKey>) -> Option<Millis> {
        if self.saved.changed_keys(names).is_empty() {
            return None;
        }
        let now = clock::now();
        if now < self.next {
            return Some(self.next - now);
        }
        let others = names.iter().filter(|(key, _)| Some(key.lease) != own).filter_map(|(key, entry)| {
            let record = entry.record.as_ref().ok()?.clone();
            Some(RememberedName { lease: key.lease.to_string(), endpoint: key.endpoint.to_string(), record })
        });
        if let Err(error) = self.state.save_remembered_names(others) {
            tracing::warn!(%error, "cannot remember the names of other hosts");
        }
        self.saved = names.clone();
        self.next = now + LEAST_INTERVAL.max(INTERVAL_PER_NAME * names.len() as Millis);
        None
    }
}
