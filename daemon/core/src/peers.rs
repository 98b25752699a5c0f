//! From leases to peers: which lease can be trusted, and which peers are kept although their
//! lease is gone.
//!
//! A lease is data from the network. It is accepted only if it cannot harm: inside the network,
//! ours untouched, no older claim on the same subnet or VTEP MAC. And an etcd that suddenly lost
//! most leases is far more often a disaster than a wish, so those peers are held for a while.
//!
//! [`PeerBook`] is updated by whole tables and costs the number of changed keys and, while peers are kept
//! without a lease, a short look at each of those.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use loden_proto::config::{Backend, NetworkConfig};
use loden_proto::lease::{LeaseKey, LeaseValue, LodenMember};
use loden_proto::{Family, Mac, Subnet, Text};
use serde::{Deserialize, Serialize, Serializer};

use crate::Millis;
use crate::leases::{LeaseRecord, LeaseTable};
use crate::observed::Observed;
use crate::packed::two_rounds;
use crate::printable;
use crate::tracked::{Changed, Tracked};
use judge::judge;

/// Vanishing leases are counted together when they vanish within this time.
const MASS_WINDOW: Millis = 10_000;
/// A peer whose lease vanished stays this long: a key that was deleted or revoked under a living host
/// is claimed again within milliseconds, and costs no packet.
const GRACE: Millis = 1_000;
/// Fewer vanishing peers than this are never held.
const MASS_LEAST: usize = 3;

/// One family of one peer: a remote subnet and the way to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The peer's subnet.
    pub subnet: Subnet,
    /// Where its encapsulated packets go; for a direct path the gateway.
    pub public_address: IpAddr,
    /// Further addresses its VXLAN packets may come from.
    pub sources: Box<[IpAddr]>,
    /// How packets get there.
    pub path: Path,
    /// What its host says of itself; `None` for flannel's.
    #[serde(default, serialize_with = "for_people")]
    pub holder: Option<Arc<LodenMember>>,
}

/// Of what a host says of itself only what people want to know, when it is gone, is remembered.
fn for_people<S: Serializer>(holder: &Option<Arc<LodenMember>>, serializer: S) -> Result<S::Ok, S::Error> {
    let told = |m: &LodenMember| LodenMember {
        host_name: m.host_name.clone(),
        version: m.version.clone(),
        ..LodenMember::default()
    };
    holder.as_deref().map(told).serialize(serializer)
}

impl Peer {
    /// MAC of its VXLAN device, where packets go by it.
    pub fn vtep_mac(&self) -> Option<Mac> {
        match self.path {
            Path::Vxlan(mac) => Some(mac),
            Path::Direct => None,
        }
    }

    /// Its host's name; empty if nobody tells.
    pub fn host_name(&self) -> String {
        self.holder.as_ref().map(|m| printable(&m.host_name.to_str())).unwrap_or_default()
    }

    /// Loden's version on its host, or `flannel`.
    pub fn version(&self) -> String {
        self.holder.as_ref().map_or_else(|| "flannel".into(), |m| printable(&m.version.to_str()))
    }
}

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Path {
    /// By VXLAN, to the device with this MAC.
    Vxlan(Mac),
    /// By a plain route via its public address, which is on our link.
    Direct,
}

/// What leases are judged by.
// With `Eq` an `Arc` of them is equal to itself without a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The config in force.
    pub config: Arc<NetworkConfig>,
    /// Our own subnets, if known.
    pub own: Option<LeaseKey>,
    /// Our host id: a key that we wrote can be seen before we know that it was written.
    pub host_id: Text,
    /// MACs of our own VXLAN devices.
    pub own_macs: Vec<Mac>,
    /// Our own addresses: interface addresses and public addresses.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Prefixes on the underlay's link, for direct paths.
    pub on_link: Vec<Subnet>,
    /// How long peers that vanished together are held, in milliseconds (`--peer-hold`).
    pub hold: Millis,
}

/// Peers as a former life, or flannel, left them in the kernel: neighbour, FDB entry and device
/// tell all that a lease would.
pub fn found_in_kernel(observed: &Observed, config: &NetworkConfig) -> Vec<Peer> {
    let Backend::Vxlan(vxlan) = &config.backend else { return Vec::new() };
    let mut found = Vec::new();
    let unknown = Arc::new(LodenMember::default());
    for ((device, address), mac) in &observed.neighbours {
        let family = Family::of(*address);
        let ours = observed.vxlan(vxlan.vni, vxlan.port, family).is_some_and(|l| l.index == *device);
        let Some(pool) = config.pool(family).filter(|p| ours && p.network.contains(*address)) else {
            continue;
        };
        let endpoint = observed.endpoints(*device, *mac).next();
        if let (Ok(subnet), Some(endpoint)) = (Subnet::new(*address, pool.subnet_length), endpoint) {
            found.push(Peer {
                subnet,
                public_address: endpoint,
                sources: Box::default(),
                path: Path::Vxlan(*mac),
                holder: Some(unknown.clone()),
            });
        }
    }
    found
}

/// The peers of one key, one for each family at most.
type Peers = [Option<Peer>; Family::ALL.len()];

/// The VTEP MACs of one key's peers.
type Macs = [Option<(Family, Mac)>; Family::ALL.len()];

/// What is new of the leases.
#[derive(Debug, Default)]
struct News {
    /// Keys that came or changed.
    come: Vec<LeaseKey>,
    /// The MACs that these state, or did.
    macs: Vec<(Family, Mac)>,
    /// Keys that are gone, with the MACs that they stated.
    gone: Vec<(LeaseKey, Macs)>,
}

/// What became of one key.
#[derive(Debug, Clone, PartialEq)]
enum Verdict {
    /// Sound in itself, one peer for each family that is. They count if no older claim is in their
    /// way. What is wrong with the other half, if anything, harms that half alone.
    Sound(Peers, Option<String>),
    /// Blocks its subnet and is nobody's: a reservation, or our own key.
    Quiet,
    Rejected(String),
}

impl Verdict {
    fn into_peers(self) -> impl Iterator<Item = Peer> {
        let peers = match self {
            Self::Sound(peers, _) => peers,
            Self::Quiet | Self::Rejected(_) => Peers::default(),
        };
        peers.into_iter().flatten()
    }

    fn into_reason(self) -> Option<String> {
        match self {
            Self::Rejected(reason) | Self::Sound(_, Some(reason)) => Some(reason),
            Self::Quiet | Self::Sound(_, None) => None,
        }
    }

    fn peers(&self) -> impl Iterator<Item = &Peer> {
        let peers = match self {
            Self::Sound(peers, _) => Some(peers.iter().flatten()),
            Self::Quiet | Self::Rejected(_) => None,
        };
        peers.into_iter().flatten()
    }

    /// The VTEP MACs of its peers.
    fn macs(&self) -> Macs {
        let mut macs = self.peers().map(|peer| Some((peer.subnet.family(), peer.vtep_mac()?)));
        [macs.next().flatten(), macs.next().flatten()]
    }

    /// Whether nobody younger can have this subnet of its key.
    fn claims(&self, subnet: Subnet) -> bool {
        *self == Self::Quiet || self.peers().any(|peer| peer.subnet == subnet)
    }
}

/// Why and until when a peer is kept whose lease is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    /// When it is let go.
    until: Millis,
    /// Whether it vanished together with most others. If not, it is in its moment of grace.
    held: bool,
    /// Its VTEP MAC.
    mac: Option<Mac>,
}

/// Why keys, or halves of them, make no peer.
#[derive(Debug, Default, Clone)]
struct Refusals {
    /// Of keys that are wrong in themselves.
    refused: OrdMap<LeaseKey, String>,
    /// Of keys in whose way is an older claim.
    outdone: OrdMap<LeaseKey, String>,
}

impl Refusals {
    fn keys(&self) -> BTreeSet<&LeaseKey> {
        self.refused.keys().chain(self.outdone.keys()).collect()
    }

    fn reason(&self, key: &LeaseKey) -> Option<String> {
        let reasons = [&self.refused, &self.outdone].into_iter().filter_map(|all| all.get(key));
        let reasons: Vec<&str> = reasons.map(String::as_str).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// Leases folded into peers. One whose lease goes is first in its moment of grace (`kept`), and remembered in
/// case most others follow (`vanished`); then it is held, or let go.
///
/// Who is in `kept` is in `peers`, and has no living lease. Who has one is in neither `kept` nor `vanished`. Who
/// is in `vanished` may be in `kept` no more: the others that vanish later bring it back.
#[derive(Debug, Default)]
pub struct PeerBook {
    table: LeaseTable,
    rules: Option<Arc<Rules>>,
    refusals: Refusals,
    /// VTEP MACs with the sound keys that state them, the oldest first. What a key makes else of its
    /// lease is judged anew when it is asked for: that costs less than keeping it.
    macs: BTreeSet<(Family, Mac, i64, LeaseKey)>,
    /// The peers to program: those of living leases, and those that are kept without one.
    peers: Tracked<Subnet, Peer>,
    /// Those of them whose lease is gone.
    kept: BTreeMap<Subnet, Kept>,
    /// Peers that vanished within the window, with the time; held ones among them.
    vanished: BTreeMap<Subnet, (Millis, Peer)>,
}

impl PeerBook {
    /// A book that knows these peers from lasting state or from the kernel, before any lease is
    /// read. They count when the first table lacks many of them.
    pub fn with_known(peers: impl IntoIterator<Item = Peer>) -> Self {
        let known: BTreeMap<Subnet, Peer> = peers.into_iter().map(|p| (p.subnet, p)).collect();
        let peers = two_rounds(known.iter()).map(|(subnet, peer)| (*subnet, peer.clone())).collect();
        Self { peers, ..Self::default() }
    }

    /// The peers to program: those of living leases, and kept ones.
    pub fn peers(&self) -> Tracked<Subnet, Peer> {
        self.peers.clone()
    }

    /// Subnets of the peers that vanished together with most others and are held, in order, each with the
    /// time when it is let go.
    pub fn held(&self) -> impl Iterator<Item = (Subnet, Millis)> {
        self.kept.iter().filter(|(_, kept)| kept.held).map(|(subnet, kept)| (*subnet, kept.until))
    }

    /// Refused keys with the reason, in order.
    pub fn rejected(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> =
            self.table.malformed().map(|(k, r)| (k.to_owned(), r.to_owned())).collect();
        let keys = self.refusals.keys().into_iter();
        all.extend(keys.filter_map(|key| Some((key.to_string(), self.refusals.reason(key)?))));
        all.sort();
        all
    }

    /// How many keys without an etcd lease and without backend data there are. Many at once look
    /// like a restore that lost the leases.
    pub fn reservations(&self) -> usize {
        self.table.iter().filter(|(_, r)| r.is_reservation()).count()
    }

    /// When something is due without an event: the end of the next kept peer.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.kept.values().map(|kept| kept.until).min()
    }

    /// Takes in a table and rules at this time. Returns keys that are newly refused, or for another
    /// reason than before, each to be logged once.
    pub fn update(&mut self, table: LeaseTable, rules: Arc<Rules>, now: Millis) -> Vec<(String, String)> {
        let former_rules = self.rules.replace(rules.clone());
        let same_rules = former_rules.as_ref() == Some(&rules);
        // Until the end, where `table` takes its place, `self.table` is empty and not to be asked.
        let former = std::mem::take(&mut self.table);
        let changes = if same_rules { former.changes(&table).collect() } else { former.beside(&table) };
        let first = former_rules.is_none();
        let known = if first { std::mem::take(&mut self.peers) } else { Tracked::default() };
        let refusals_before = self.refusals.clone();
        let News { come: mut dirty, macs, mut gone } =
            self.take_in(&changes, former_rules.as_deref(), &rules);
        let mut macs = each_once(macs);
        // Kept peers that may have to go before their time; judged when the new table is in place.
        let mut doubtful = match same_rules {
            true => self.claimed(&dirty, &macs),
            false => self.kept.keys().copied().collect(),
        };
        let mut vanished = match same_rules {
            true => self.let_go_unrivalled(&mut gone, &table),
            false => Vec::new(),
        };
        let left = each_once(gone.iter().flat_map(|(key, _)| key.subnets()));
        macs.extend(gone.iter().flat_map(|(_, macs)| macs).flatten());
        dirty.extend(gone.into_iter().map(|(key, _)| key));
        // Whoever wants the same may get it now, or no more.
        let rivals = macs.into_iter().flat_map(|(family, mac)| self.stating(family, mac));
        let subnets = each_once(rivals.chain(dirty.iter().copied()).flat_map(|key| key.subnets()));
        let claimants = subnets.iter().flat_map(|subnet| table.exactly(*subnet));
        let affected = each_once(claimants.chain(dirty));
        let granted = self.grant(&affected, &subnets, &table, &rules);
        let lost = subnets.iter().filter(|subnet| !granted.contains(*subnet));
        for subnet in lost.filter(|subnet| !self.kept.contains_key(subnet)) {
            if left.binary_search(subnet).is_ok() {
                doubtful.push(*subnet);
                vanished.extend(self.peers.get(subnet).cloned());
            } else {
                self.peers.remove(subnet);
            }
        }
        // What was known before the first table is gone if no lease names the subnet.
        for (subnet, peer) in known.iter().filter(|(subnet, _)| table.inside(subnet).is_none()) {
            self.peers.insert(*subnet, peer.clone());
            doubtful.push(*subnet);
            vanished.push(peer.clone());
        }
        for peer in vanished {
            let kept = Kept { until: now.saturating_add(GRACE), held: false, mac: peer.vtep_mac() };
            self.kept.insert(peer.subnet, kept);
            self.vanished.insert(peer.subnet, (now, peer));
        }
        let refused = {
            let reasons = affected.iter().filter_map(|key| Some((key, self.refusals.reason(key)?)));
            let news = reasons.filter(|(key, reason)| refusals_before.reason(key).as_ref() != Some(reason));
            let malformed_before: BTreeSet<&str> = former.malformed().map(|(k, _)| k).collect();
            let malformed = table.malformed().filter(|(name, _)| !malformed_before.contains(name));
            news.map(|(key, reason)| (key.to_string(), reason))
                .chain(malformed.map(|(name, reason)| (name.to_owned(), reason.to_owned())))
                .collect()
        };
        self.table = table;
        doubtful.extend(self.hold(now));
        self.settle(doubtful);
        self.tick(now);
        refused
    }

    /// Judges what changed, each key by itself, and keeps account of its MACs and of why it is refused.
    fn take_in(
        &mut self,
        changes: &[Changed<'_, LeaseKey, Arc<LeaseRecord>>],
        former_rules: Option<&Rules>,
        rules: &Rules,
    ) -> News {
        let mut news = News::default();
        for (key, old, new) in two_rounds(changes.iter()) {
            let former = old.zip(former_rules).map(|(record, rules)| judge(key, record, rules));
            let former_macs = former.as_ref().map(Verdict::macs).unwrap_or_default();
            for (family, mac) in former_macs.into_iter().flatten() {
                self.macs.remove(&(family, mac, old.map_or(0, |r| r.create_revision), *key));
            }
            let verdict = new.map(|record| judge(key, record, rules));
            let macs = verdict.as_ref().map(Verdict::macs).unwrap_or_default();
            for (family, mac) in macs.into_iter().flatten() {
                self.macs.insert((family, mac, new.map_or(0, |r| r.create_revision), *key));
            }
            if new.is_some() {
                news.come.push(*key);
                news.macs.extend(former_macs.into_iter().chain(macs).flatten());
            } else {
                news.gone.push((*key, former_macs));
            }
            match verdict.and_then(Verdict::into_reason) {
                Some(reason) => _ = self.refusals.refused.insert(*key, reason),
                None => _ = self.refusals.refused.remove(key),
            }
        }
        news
    }

    /// Gives those of these subnets to the peers of these keys to which nobody has an older claim. Returns the
    /// subnets that somebody got.
    fn grant(
        &mut self,
        keys: &[LeaseKey],
        subnets: &[Subnet],
        table: &LeaseTable,
        rules: &Rules,
    ) -> BTreeSet<Subnet> {
        let mut granted = BTreeSet::new();
        for key in two_rounds(keys.iter()) {
            let mut reasons = Vec::new();
            let verdict = table.get(key).map(|record| judge(key, record, rules));
            for peer in verdict.into_iter().flat_map(Verdict::into_peers) {
                if let Some(reason) = self.older_claim(key, &peer, table, rules) {
                    reasons.push(reason);
                } else if subnets.binary_search(&peer.subnet).is_ok() {
                    granted.insert(peer.subnet);
                    self.kept.remove(&peer.subnet);
                    self.vanished.remove(&peer.subnet);
                    if self.peers.get(&peer.subnet) != Some(&peer) {
                        self.peers.insert(peer.subnet, peer);
                    }
                }
            }
            match reasons.is_empty() {
                true => _ = self.refusals.outdone.remove(key),
                false => _ = self.refusals.outdone.insert(*key, reasons.join("; ")),
            }
        }
        granted
    }

    /// Takes those out of the keys that are gone, as nearly all are, which had nothing that another key of the
    /// table wants: nobody else is concerned. Returns their peers.
    fn let_go_unrivalled(&mut self, gone: &mut Vec<(LeaseKey, Macs)>, table: &LeaseTable) -> Vec<Peer> {
        let mut vanished = Vec::new();
        gone.retain(|(key, macs)| {
            let rivalled = key.subnets().any(|subnet| table.inside(&subnet).is_some())
                || macs.iter().flatten().any(|(family, mac)| self.stating(*family, *mac).next().is_some());
            if !rivalled {
                self.refusals.outdone.remove(key);
                let unkept = key.subnets().filter(|subnet| !self.kept.contains_key(subnet));
                vanished.extend(unkept.filter_map(|subnet| self.peers.get(&subnet)).cloned());
            }
            rivalled
        });
        vanished
    }

    /// Lets time pass: kept peers whose time is over go.
    fn tick(&mut self, now: Millis) {
        self.kept.retain(|subnet, kept| {
            let stays = kept.until > now;
            if !stays {
                self.peers.remove(subnet);
            }
            stays
        });
    }

    /// Holds those that vanished within the window if they are the most. Returns the subnets of peers that
    /// had been let go and are back.
    fn hold(&mut self, now: Millis) -> Vec<Subnet> {
        let Some(rules) = &self.rules else { return Vec::new() };
        let window = MASS_WINDOW.min(rules.hold);
        self.vanished.retain(|_, (at, _)| now.saturating_sub(*at) < window);
        let living = self.peers.len() - self.kept.len();
        // Held ones stay counted, so that those who follow them at once are held too.
        let count = self.vanished.len();
        if count < MASS_LEAST || count <= living {
            return Vec::new();
        }
        let until = now.saturating_add(rules.hold);
        let mut back = Vec::new();
        for (subnet, (_, peer)) in &self.vanished {
            let kept = self.kept.entry(*subnet).or_insert_with(|| {
                self.peers.insert(*subnet, peer.clone());
                back.push(*subnet);
                Kept { until, held: false, mac: peer.vtep_mac() }
            });
            if !kept.held {
                *kept = Kept { until: until.max(kept.until), held: true, ..*kept };
            }
        }
        back
    }

    /// The kept peers whose subnet or MAC these keys and MACs may claim.
    fn claimed(&self, keys: &[LeaseKey], macs: &[(Family, Mac)]) -> Vec<Subnet> {
        if self.kept.is_empty() {
            return Vec::new();
        }
        let restated = |(subnet, kept): &(&Subnet, &Kept)| {
            kept.mac.is_some_and(|mac| macs.binary_search(&(subnet.family(), mac)).is_ok())
        };
        let by_mac = self.kept.iter().filter(restated).map(|(subnet, _)| *subnet);
        let subnets =
            keys.iter().flat_map(LeaseKey::subnets).flat_map(|subnet| subnet.wider().chain([subnet]));
        by_mac.chain(subnets.filter(|subnet| self.kept.contains_key(subnet))).collect()
    }

    /// Lets those of these kept peers go to whom somebody else has a claim: a new lease for the subnet wins at
    /// once, our own subnet is never a peer's, and no MAC is in two places at once.
    fn settle(&mut self, doubtful: impl IntoIterator<Item = Subnet>) {
        let own = self.rules.as_ref().and_then(|rules| rules.own);
        for subnet in doubtful {
            let Some(kept) = self.kept.get(&subnet) else { continue };
            let ours = own.is_some_and(|o| o.overlaps(&LeaseKey::single(subnet)));
            let moved = kept.mac.is_some_and(|mac| self.stating(subnet.family(), mac).next().is_some());
            if ours || moved || self.table.inside(&subnet).is_some() {
                self.kept.remove(&subnet);
                self.peers.remove(&subnet);
            }
        }
    }

    /// The sound keys that state this VTEP MAC, the oldest first.
    fn stating(&self, family: Family, mac: Mac) -> impl Iterator<Item = LeaseKey> {
        // No revision is that small, so the key of the bound does not matter.
        let least = (family, mac, i64::MIN, LeaseKey::single(Subnet::ALL_V6));
        let stating = self.macs.range(least..).take_while(move |(f, m, ..)| (*f, *m) == (family, mac));
        stating.map(|(.., key)| *key)
    }

    /// Who claims what this key's peer needs since longer, as a reason to refuse it.
    fn older_claim(&self, key: &LeaseKey, peer: &Peer, table: &LeaseTable, rules: &Rules) -> Option<String> {
        let age = |key: &LeaseKey| (table.get(key).map_or(0, |r| r.create_revision), *key);
        let claims = |rival: &LeaseKey| {
            table.get(rival).is_some_and(|record| judge(rival, record, rules).claims(peer.subnet))
        };
        let rivals = table.exactly(peer.subnet).filter(|rival| rival != key && age(rival) < age(key));
        let holder_of = |older: &LeaseKey| {
            table.get(older).and_then(|r| r.value.as_ref().ok()).map(describe).unwrap_or_default()
        };
        if let Some(older) = rivals.filter(claims).min_by_key(age) {
            let holder = holder_of(&older);
            return Some(format!("{} is claimed since longer by the key {older}{holder}", peer.subnet));
        }
        let mac = peer.vtep_mac()?;
        let older = self.stating(peer.subnet.family(), mac).next().filter(|first| first != key)?;
        Some(format!("the VTEP MAC {mac} belongs since longer to {older}{}", holder_of(&older)))
    }
}

/// Each of them once, in order.
fn each_once<T: Ord>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = all.into_iter().collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn describe(value: &LeaseValue) -> String {
    let name = value.loden.as_ref().map(|m| printable(&m.host_name.to_str())).filter(|n| !n.is_empty());
    let address = Family::ALL.iter().find_map(|f| value.public_address(*f));
    match (name, address) {
        (Some(name), Some(ip)) => format!(" of {name} ({ip})"),
        (None, Some(ip)) => format!(" of {ip}"),
        (Some(name), None) => format!(" of {name}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests;
