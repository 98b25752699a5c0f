//! From leases to peers: which lease can be trusted, and which peers are kept although their
//! lease is gone.
//!
//! A lease is data from the network. It is accepted only if it cannot harm: inside the network,
//! ours untouched, no older claim on the same subnet or VTEP MAC. And an etcd that suddenly lost
//! most leases is far more often a disaster than a wish, so those peers are held for a while.
//!
//! [`PeerBook`] is updated by whole tables and costs the number of changed keys.

mod judge;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use loden_proto::config::{Backend, NetworkConfig};
use loden_proto::lease::{LeaseKey, LeaseValue};
use loden_proto::{Family, Mac, Subnet};
use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::leases::LeaseTable;
use crate::observed::Observed;
use crate::printable;
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
    pub sources: Vec<IpAddr>,
    /// How packets get there.
    pub path: Path,
    /// Its host name and version, for people.
    pub host: Arc<HostLabel>,
}

impl Peer {
    /// MAC of its VXLAN device, where packets go by it.
    pub fn vtep_mac(&self) -> Option<Mac> {
        match self.path {
            Path::Vxlan(mac) => Some(mac),
            Path::Direct => None,
        }
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

/// What people want to know of a peer's host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostLabel {
    /// Host name; empty for flannel hosts.
    pub name: String,
    /// Loden's version, or `flannel`.
    pub version: String,
}

/// What leases are judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// The config in force.
    pub config: NetworkConfig,
    /// Our own subnets, if known.
    pub own: Option<LeaseKey>,
    /// Our host id: a key that we wrote can be seen before we know that it was written.
    pub host_id: String,
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
    for ((device, address), mac) in &observed.neighbours {
        let family = Family::of(*address);
        let ours = observed.vxlan(vxlan.vni, vxlan.port, family).is_some_and(|l| l.index == *device);
        let Some(pool) = config.pool(family).filter(|p| ours && p.network.contains(*address)) else {
            continue;
        };
        let endpoint = observed.fdb.get(&(*device, *mac)).and_then(|all| all.first());
        if let (Ok(subnet), Some(endpoint)) = (Subnet::new(*address, pool.subnet_length), endpoint) {
            found.push(Peer {
                subnet,
                public_address: *endpoint,
                sources: Vec::new(),
                path: Path::Vxlan(*mac),
                host: Arc::new(HostLabel::default()),
            });
        }
    }
    found
}

/// What became of one key.
#[derive(Debug, Clone, PartialEq)]
enum Verdict {
    /// Sound in itself, one peer for each family that is. They count if no older claim is in their
    /// way. What is wrong with the other half, if anything, harms that half alone.
    Sound(Vec<Peer>, Option<String>),
    /// Blocks its subnet and is nobody's: a reservation, or our own key.
    Quiet,
    Rejected(String),
}

/// What only one lease may have; the oldest gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Claim {
    Subnet(Subnet),
    Mac(Family, Mac),
}

/// A peer whose lease is gone and that is kept until a point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The peer as it was last known.
    pub peer: Peer,
    /// When it is let go.
    pub until: Millis,
}

/// Leases folded into peers.
#[derive(Debug, Default)]
pub struct PeerBook {
    table: LeaseTable,
    rules: Option<Arc<Rules>>,
    verdicts: OrdMap<LeaseKey, Verdict>,
    claims: OrdSet<(Claim, i64, LeaseKey)>,
    /// Keys with a peer that is not accepted because of an older claim.
    outdone: OrdMap<LeaseKey, String>,
    /// Peers of living leases.
    live: OrdMap<Subnet, Peer>,
    /// The keys that they come from.
    owners: OrdMap<Subnet, LeaseKey>,
    held: OrdMap<Subnet, Held>,
    /// Peers in their moment of grace.
    leaving: OrdMap<Subnet, Held>,
    /// Peers that vanished within the window, with the time; held ones among them.
    vanished: Vec<(Millis, Peer)>,
}

impl PeerBook {
    /// A book that knows these peers from lasting state or from the kernel, before any lease is
    /// read. They count when the first table lacks many of them.
    pub fn with_known(peers: impl IntoIterator<Item = Peer>) -> Self {
        Self { live: peers.into_iter().map(|p| (p.subnet, p)).collect(), ..Self::default() }
    }

    /// The peers to program: living, leaving and held ones.
    pub fn peers(&self) -> OrdMap<Subnet, Peer> {
        let mut peers = self.live.clone();
        for (subnet, kept) in self.leaving.iter().chain(&self.held) {
            peers.insert(*subnet, kept.peer.clone());
        }
        peers
    }

    /// Held peers in order of their subnets.
    pub fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    /// Refused keys with the reason, in order.
    pub fn rejected(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> =
            self.table.malformed().map(|(k, r)| (k.to_owned(), r.to_owned())).collect();
        for (key, verdict) in &self.verdicts {
            if let Some(reason) = refusal(Some(verdict), self.outdone.get(key)) {
                all.push((key.to_string(), reason));
            }
        }
        all.sort();
        all
    }

    /// How many keys without an etcd lease and without backend data there are. Many at once look
    /// like a restore that lost the leases.
    pub fn reservations(&self) -> usize {
        self.table.iter().filter(|(_, r)| r.is_reservation()).count()
    }

    /// When something is due without an event: the end of the next held or leaving peer.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.held.values().chain(self.leaving.values()).map(|h| h.until).min()
    }

    /// Takes in a table and rules at this time. Returns keys that are newly refused, or for another
    /// reason than before, each to be logged once.
    pub fn update(&mut self, table: LeaseTable, rules: Arc<Rules>, now: Millis) -> Vec<(String, String)> {
        let same_rules = self.rules.as_ref().is_some_and(|r| *r == rules);
        let mut dirty: BTreeSet<LeaseKey> = if same_rules {
            self.table.changed_keys(&table).into_iter().collect()
        } else {
            self.table.iter().chain(table.iter()).map(|(k, _)| *k).collect()
        };
        let first = self.rules.is_none();
        let gone: Vec<Peer> = if first {
            // Known from before the first table: gone if no lease names the subnet.
            let named = |s: &Subnet| table.inside(s).is_some();
            self.live.values().filter(|p| !named(&p.subnet)).cloned().collect()
        } else {
            Vec::new()
        };
        if first {
            self.live = OrdMap::new();
        }
        let before = self.live.clone();
        let (verdicts_before, outdone_before) = (self.verdicts.clone(), self.outdone.clone());
        for key in dirty.clone() {
            for claim in claims_of(&key, self.verdicts.get(&key)) {
                let made = self.table.get(&key).map_or(0, |r| r.create_revision);
                self.claims.remove(&(claim, made, key));
                dirty.extend(self.claimants(claim).map(|(_, _, rival)| *rival));
            }
            self.verdicts.remove(&key);
            if let Some(record) = table.get(&key) {
                let verdict = judge(&key, record, &rules);
                for claim in claims_of(&key, Some(&verdict)) {
                    self.claims.insert((claim, record.create_revision, key));
                    dirty.extend(self.claimants(claim).map(|(_, _, rival)| *rival));
                }
                self.verdicts.insert(key, verdict);
            }
        }
        // Withdraw all that may have changed before anything is granted again.
        for key in &dirty {
            self.outdone.remove(key);
            // An outdone key's subnet is another's.
            for subnet in key.subnets().filter(|s| self.owners.get(s) == Some(key)).collect::<Vec<_>>() {
                self.owners.remove(&subnet);
                self.live.remove(&subnet);
            }
        }
        for key in &dirty {
            let Some(Verdict::Sound(peers, _)) = self.verdicts.get(key) else { continue };
            let mut reasons = Vec::new();
            for peer in peers.clone() {
                match self.older_claim(key, &peer, &table) {
                    Some(reason) => reasons.push(reason),
                    None => {
                        self.owners.insert(peer.subnet, *key);
                        self.live.insert(peer.subnet, peer);
                    }
                }
            }
            if !reasons.is_empty() {
                self.outdone.insert(*key, reasons.join("; "));
            }
        }
        let gone = gone.into_iter().chain(
            dirty
                .iter()
                .filter(|key| table.get(key).is_none())
                .flat_map(LeaseKey::subnets)
                .filter_map(|s| before.get(&s).filter(|_| !self.live.contains_key(&s)).cloned()),
        );
        for peer in gone {
            let until = now.saturating_add(GRACE);
            self.leaving.insert(peer.subnet, Held { peer: peer.clone(), until });
            self.vanished.push((now, peer));
        }
        let mut refused: Vec<(String, String)> = dirty
            .iter()
            .filter_map(|key| {
                let now = refusal(self.verdicts.get(key), self.outdone.get(key))?;
                (refusal(verdicts_before.get(key), outdone_before.get(key)).as_ref() != Some(&now))
                    .then(|| (key.to_string(), now))
            })
            .collect();
        let malformed_before: BTreeSet<&str> = self.table.malformed().map(|(k, _)| k).collect();
        refused.extend(
            table
                .malformed()
                .filter(|(k, _)| !malformed_before.contains(k))
                .map(|(k, r)| (k.to_owned(), r.to_owned())),
        );
        self.table = table;
        self.rules = Some(rules);
        self.hold(now);
        refused
    }

    /// Lets time pass: held and leaving peers whose time is over go.
    pub fn tick(&mut self, now: Millis) {
        for kept in [&mut self.held, &mut self.leaving] {
            *kept = kept.iter().filter(|(_, h)| h.until > now).map(|(s, h)| (*s, h.clone())).collect();
        }
    }

    fn hold(&mut self, now: Millis) {
        let table = &self.table;
        let live = &self.live;
        let Some(rules) = &self.rules else { return };
        // Held ones stay counted, so that those who follow them at once are held too.
        let window = MASS_WINDOW.min(rules.hold);
        self.vanished.retain(|(at, p)| now.saturating_sub(*at) < window && !live.contains_key(&p.subnet));
        let known = self.live.len() + self.vanished.len();
        if self.vanished.len() >= MASS_LEAST && self.vanished.len() * 2 > known {
            for (_, peer) in &self.vanished {
                let held = Held { peer: peer.clone(), until: now.saturating_add(rules.hold) };
                self.held.entry(peer.subnet).or_insert(held);
            }
        }
        // A new lease for a held subnet wins at once, and our own subnet is never a peer's.
        let own = rules.own;
        let stays = |subnet: &Subnet, held: &Held| {
            let ours = own.is_some_and(|o| o.overlaps(&LeaseKey::single(*subnet)));
            // Nor is a MAC in two places at once.
            let moved = match held.peer.path {
                Path::Vxlan(mac) => self.claimants(Claim::Mac(subnet.family(), mac)).next().is_some(),
                Path::Direct => false,
            };
            held.until > now && !ours && !moved && table.inside(subnet).is_none()
        };
        let keep = |kept: &OrdMap<Subnet, Held>| {
            kept.iter().filter(|(s, h)| stays(s, h)).map(|(s, h)| (*s, h.clone())).collect::<OrdMap<_, _>>()
        };
        (self.held, self.leaving) = (keep(&self.held), keep(&self.leaving));
    }

    fn claimants(&self, claim: Claim) -> impl Iterator<Item = &(Claim, i64, LeaseKey)> {
        // No revision is that small, so the key of the bound does not matter.
        let least = (claim, i64::MIN, LeaseKey::single(Subnet::ALL_V6));
        self.claims.range(least..).take_while(move |(c, ..)| *c == claim)
    }

    fn older_claim(&self, key: &LeaseKey, peer: &Peer, table: &LeaseTable) -> Option<String> {
        claims_of_peer(peer).find_map(|claim| {
            let (_, _, older) = self.claimants(claim).next().filter(|(_, _, first)| first != key)?;
            let holder =
                table.get(older).and_then(|r| r.value.as_ref().ok()).map(describe).unwrap_or_default();
            Some(match claim {
                Claim::Subnet(subnet) => {
                    format!("{subnet} is claimed since longer by the key {older}{holder}")
                }
                Claim::Mac(_, mac) => format!("the VTEP MAC {mac} belongs since longer to {older}{holder}"),
            })
        })
    }
}

fn describe(value: &LeaseValue) -> String {
    let name = value.loden.as_ref().map(|m| printable(&m.host_name)).filter(|n| !n.is_empty());
    let address = Family::ALL.iter().find_map(|f| value.public_address(*f));
    match (name, address) {
        (Some(name), Some(ip)) => format!(" of {name} ({ip})"),
        (None, Some(ip)) => format!(" of {ip}"),
        (Some(name), None) => format!(" of {name}"),
        (None, None) => String::new(),
    }
}

/// Why a key, or a half of it, makes no peer.
fn refusal(verdict: Option<&Verdict>, outdone: Option<&String>) -> Option<String> {
    let own = match verdict {
        Some(Verdict::Rejected(reason) | Verdict::Sound(_, Some(reason))) => Some(reason),
        _ => None,
    };
    let reasons: Vec<&str> = own.into_iter().chain(outdone).map(String::as_str).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn claims_of<'a>(key: &LeaseKey, verdict: Option<&'a Verdict>) -> impl Iterator<Item = Claim> + use<'a> {
    let (peers, blocked) = match verdict {
        Some(Verdict::Sound(peers, _)) => (peers.as_slice(), None),
        // A reservation blocks its subnet; our own key does so by its own rule.
        Some(Verdict::Quiet) => ([].as_slice(), Some(*key)),
        _ => ([].as_slice(), None),
    };
    let blocked = blocked.into_iter().flat_map(|key| key.subnets()).map(Claim::Subnet);
    peers.iter().flat_map(claims_of_peer).chain(blocked)
}

fn claims_of_peer(peer: &Peer) -> impl Iterator<Item = Claim> + use<> {
    let mac = peer.vtep_mac().map(|mac| Claim::Mac(peer.subnet.family(), mac));
    std::iter::once(Claim::Subnet(peer.subnet)).chain(mac)
}

#[cfg(test)]
mod tests;
