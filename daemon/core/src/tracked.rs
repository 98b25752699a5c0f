//! A persistent map that knows its last changes, so that copies which are a few of them apart are compared
//! without a walk: one lease of ten thousand comes, and everybody who kept the former table asks what is new.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// How many changes are known. What comes together, such as the end of one lease and the next, is that few.
const RECENT: usize = 4;
/// The state of a map that is empty and has always been.
const EMPTY: u64 = 0;

/// The map. Reading is [`OrdMap`]'s.
#[derive(Clone)]
pub struct Tracked<K, V> {
    map: OrdMap<K, V>,
    /// Maps with the same one have the same contents: they are copies of one another, or new and empty.
    state: u64,
    /// The last changes, the youngest last: the state before it, and the key whose value it changed.
    recent: [Option<(u64, K)>; RECENT],
}

/// A key with its former value and that of now.
pub type Changed<'a, K, V> = (K, Option<&'a V>, Option<&'a V>);

fn new_state() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(EMPTY + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<K: Ord + Copy, V: Clone + PartialEq> Tracked<K, V> {
    /// Puts a value.
    pub fn insert(&mut self, key: K, value: V) {
        self.map.insert(key, value);
        self.changed(key);
    }

    /// Removes a value, if there is one.
    pub fn remove(&mut self, key: &K) {
        if self.map.remove(key).is_some() {
            self.changed(*key);
        }
    }

    fn changed(&mut self, key: K) {
        self.recent.rotate_left(1);
        self.recent[RECENT - 1] = Some((self.state, key));
        self.state = new_state();
    }

    /// The keys whose values are others than they were, in order, each with the former value and that of now.
    pub fn changes_since<'a>(&'a self, former: &'a Self) -> impl Iterator<Item = Changed<'a, K, V>> {
        let since = self.recent.iter().flatten().skip_while(|(state, _)| *state != former.state);
        let mut keys: Vec<K> = since.map(|(_, key)| *key).collect();
        keys.sort_unstable();
        keys.dedup();
        let unknown = keys.is_empty() && self.state != former.state;
        let values = |item| match item {
            DiffItem::Add(key, new) => (*key, None, Some(new)),
            DiffItem::Remove(key, old) => (*key, Some(old), None),
            DiffItem::Update { old: (key, old), new: (_, new) } => (*key, Some(old), Some(new)),
        };
        let walked = unknown.then(|| former.map.diff(&self.map).map(values));
        let known = keys.into_iter().map(|key| (key, former.get(&key), self.get(&key)));
        known.filter(|(_, old, new)| old != new).chain(walked.into_iter().flatten())
    }
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { map: OrdMap::new(), state: EMPTY, recent: [const { None }; RECENT] }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Tracked<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(all: I) -> Self {
        Self { map: all.into_iter().collect(), state: new_state(), ..Self::default() }
    }
}

impl<K, V> Deref for Tracked<K, V> {
    type Target = OrdMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Tracked<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.map == other.map
    }
}

impl<K: Ord + fmt::Debug, V: fmt::Debug> fmt::Debug for Tracked<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.map.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A change of one of a few copies: put a value, remove one, or become a copy of another.
    #[derive(Debug, Clone)]
    enum Step {
        Insert(u8, u8),
        Remove(u8),
        Copy(usize),
        Collect,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..4u8, 0..3u8).prop_map(|(key, value)| Step::Insert(key, value)),
            3 => (0..4u8).prop_map(Step::Remove),
            3 => (0..3usize).prop_map(Step::Copy),
            1 => Just(Step::Collect),
        ]
    }

    proptest! {
        #[test]
        fn what_changed_is_what_differs_whichever_copies_are_compared(
            steps in prop::collection::vec((0..3usize, step()), 0..40),
        ) {
            let mut copies: [Tracked<u8, u8>; 3] = Default::default();
            for (at, step) in steps {
                match step {
                    Step::Insert(key, value) => copies[at].insert(key, value),
                    Step::Remove(key) => copies[at].remove(&key),
                    Step::Copy(from) => copies[at] = copies[from].clone(),
                    Step::Collect => copies[at] = copies[at].iter().map(|(k, v)| (*k, *v)).collect(),
                }
                for (former, later) in copies.iter().flat_map(|a| copies.iter().map(move |b| (a, b))) {
                    let all = (0..4u8).map(|key| (key, former.get(&key), later.get(&key)));
                    let differ: Vec<_> = all.filter(|(_, old, new)| old != new).collect();
                    prop_assert_eq!(later.changes_since(former).collect::<Vec<_>>(), differ);
                }
            }
        }
    }
}
