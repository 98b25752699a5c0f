//! Names of hosts whose lease is gone are kept for a while, as their routes are (`peers`): an etcd that
//! suddenly lost most leases is far more often a disaster than a wish. A name that is gone is worse than one
//! that leads nowhere: ZooKeeper and Kafka drop a node for it, Hadoop only tries again.

use std::collections::{BTreeMap, BTreeSet};

use loden_proto::lease::LeaseKey;

use super::{NameEntry, NameKey, NameTable};
use crate::Millis;
use crate::leases::LeaseTable;

/// Hosts that vanish within this time are counted together.
const MASS_WINDOW: Millis = 10_000;
/// The names of any host stay for this time: whose lease was revoked writes them again within milliseconds.
const GRACE: Millis = 1_000;
/// Fewer hosts than this are never held.
const MASS_LEAST: usize = 3;

/// What is kept.
#[derive(Debug, Default)]
pub struct Hold {
    former: NameTable,
    kept: BTreeMap<LeaseKey, Kept>,
    /// Hosts that vanished within the window.
    vanished: Vec<(Millis, LeaseKey)>,
}

#[derive(Debug)]
struct Kept {
    entries: Vec<(NameKey, NameEntry)>,
    until: Millis,
}

impl Hold {
    /// The names with those that are kept, at this time. `hold`: for how long where many hosts are gone at
    /// once (`--peer-hold`).
    pub fn keep(&mut self, names: NameTable, leases: &LeaseTable, hold: Millis, now: Millis) -> NameTable {
        let changed: BTreeSet<LeaseKey> =
            self.former.changed_keys(&names).into_iter().map(|k| k.lease).collect();
        // A host that stops its last container keeps its lease, and wants the name gone.
        let is_gone = |host: &LeaseKey| names.of(*host).next().is_none() && leases.get(host).is_none();
        let gone: Vec<LeaseKey> = changed.into_iter().filter(is_gone).collect();
        for host in &gone {
            let entries = self.former.of(*host).map(|(key, entry)| (key.clone(), entry.clone())).collect();
            self.kept.insert(*host, Kept { entries, until: now.saturating_add(GRACE) });
        }
        self.vanished.retain(|(at, _)| at.saturating_add(MASS_WINDOW) > now);
        self.vanished.extend(gone.into_iter().map(|host| (now, host)));
        // Who is back speaks for himself.
        self.kept.retain(|host, kept| names.of(*host).next().is_none() && kept.until > now);
        self.vanished.retain(|(_, host)| names.of(*host).next().is_none());
        let missing = self.vanished.len();
        if missing >= MASS_LEAST && missing > names.hosts().len() {
            let until = self.vanished.iter().map(|(at, _)| at.saturating_add(hold)).min().unwrap_or(now);
            for (_, host) in &self.vanished {
                if let Some(kept) = self.kept.get_mut(host) {
                    kept.until = kept.until.max(until);
                }
            }
        }
        self.former = names.clone();
        let mut with_kept = names;
        for (key, entry) in self.kept.values().flat_map(|kept| &kept.entries) {
            with_kept.put(key.clone(), entry.clone());
        }
        with_kept
    }

    /// When something is due without an event.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.kept.values().map(|kept| kept.until).min()
    }
}

#[cfg(test)]
mod tests {
    use loden_proto::lease::LeaseValue;
    use loden_proto::name_record::NameRecord;

    use super::*;
    use crate::leases::LeaseRecord;

    const HOLD: Millis = 600_000;

    fn host(number: u8) -> LeaseKey {
        LeaseKey::parse(&format!("10.5.{number}.0-24")).expect("key")
    }

    /// The leases of these hosts, and the names of one container on each of those.
    fn etcd(leases: &[u8], named: &[u8]) -> (NameTable, LeaseTable) {
        let (mut names, mut table) = (NameTable::default(), LeaseTable::default());
        for number in leases {
            let value = Ok(LeaseValue::default());
            table.insert(
                host(*number),
                LeaseRecord { value, etcd_lease: 1, create_revision: 1, mod_revision: 1 },
            );
        }
        for number in named {
            let record = NameRecord {
                names: vec![format!("n{number}").parse().expect("name")],
                groups: Vec::new(),
                addresses: vec![[10, 5, *number, 2].into()],
                ports: Vec::new(),
                since: 1,
                source: Default::default(),
            };
            let key = NameKey { lease: host(*number), endpoint: "c".into() };
            names.put(key, NameEntry { record: Ok(record), etcd_lease: 1 });
        }
        (names, table)
    }

    fn keep(hold: &mut Hold, leases: &[u8], named: &[u8], now: Millis) -> usize {
        let (names, leases) = etcd(leases, named);
        hold.keep(names, &leases, HOLD, now).len()
    }

    #[test]
    fn a_name_goes_with_its_container_and_a_moment_after_its_hosts_lease() {
        let mut hold = Hold::default();
        assert_eq!(keep(&mut hold, &[1, 2], &[1, 2], 0), 2);
        assert_eq!(keep(&mut hold, &[1, 2], &[2], 0), 1, "its container is gone, not its host");
        assert_eq!(keep(&mut hold, &[1], &[], 0), 1, "its host is gone");
        assert_eq!(hold.next_deadline(), Some(GRACE));
        assert_eq!(keep(&mut hold, &[1], &[], GRACE - 1), 1);
        assert_eq!(keep(&mut hold, &[1], &[], GRACE), 0);
        assert_eq!(hold.next_deadline(), None);
    }

    #[test]
    fn when_most_hosts_vanish_their_names_stay_until_they_are_back_or_for_long() {
        let mut hold = Hold::default();
        assert_eq!(keep(&mut hold, &[1, 2, 3, 4], &[1, 2, 3, 4], 0), 4);
        // One after the other, as leases end.
        assert_eq!(keep(&mut hold, &[2, 3, 4], &[2, 3, 4], 100), 4);
        assert_eq!(keep(&mut hold, &[3, 4], &[3, 4], 200), 4);
        assert_eq!(keep(&mut hold, &[4], &[4], 300), 4);
        assert_eq!(keep(&mut hold, &[4], &[4], 5_000), 4);
        // The lease is back before the names.
        assert_eq!(keep(&mut hold, &[1, 4], &[4], 6_000), 4);
        assert_eq!(keep(&mut hold, &[1, 4], &[1, 4], 6_100), 4);
        // Now it is a host like others.
        assert_eq!(keep(&mut hold, &[1, 4], &[4], 6_200), 3);
        assert_eq!(keep(&mut hold, &[1, 4], &[4], 100 + HOLD), 1);
    }
}
