//! From leases to peers: which lease can be trusted, and which peers are kept although their
//! lease is gone.
//!
//! A lease is data from the network. It is accepted only if it cannot harm: inside the network,
//! ours untouched, no older claim on the same subnet or VTEP MAC. And an etcd that suddenly lost
//! most leases is far more often a disaster than a wish, so those peers are held for a while.
//!
//! [`PeerBook`] is updated by whole tables and costs the number of changed keys.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use loden_proto::config::{Backend, NetworkConfig};
use loden_proto::lease::{LeaseKey, LeaseValue};
use loden_proto::{Family, Mac, Subnet};
use serde::{Deserialize, Serialize};

use crate::Millis;
use crate::leases::{LeaseRecord, LeaseTable};
use crate::observed::Observed;

/// Vanishing leases are counted together when they vanish within this time.
const MASS_WINDOW: Millis = 10_000;
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

/// How packets get to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Path {
    /// By VXLAN, to the device with this MAC.
    Vxlan(Mac),
    /// By a plain route via its public address, which is on our link. The MAC, where the peer
    /// has one, serves when the link is left.
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
    /// Sound in itself. It counts if no older claim is in its way.
    Sound(Vec<Peer>),
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
    /// Keys whose peers are not accepted because of an older claim.
    outdone: OrdMap<LeaseKey, String>,
    /// Peers of living leases.
    live: OrdMap<Subnet, Peer>,
    held: OrdMap<Subnet, Held>,
    /// Peers that vanished within the window, with the time.
    vanished: Vec<(Millis, Peer)>,
}

impl PeerBook {
    /// A book that knows these peers from lasting state or from the kernel, before any lease is
    /// read. They count when the first table lacks many of them.
    pub fn with_known(peers: impl IntoIterator<Item = Peer>) -> Self {
        Self { live: peers.into_iter().map(|p| (p.subnet, p)).collect(), ..Self::default() }
    }

    /// The peers to program: living and held ones.
    pub fn peers(&self) -> OrdMap<Subnet, Peer> {
        let mut peers = self.live.clone();
        for (subnet, held) in &self.held {
            peers.insert(*subnet, held.peer.clone());
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
            if let Verdict::Rejected(reason) = verdict {
                all.push((key.to_string(), reason.clone()));
            }
        }
        all.extend(self.outdone.iter().map(|(k, r)| (k.to_string(), r.clone())));
        all.sort();
        all
    }

    /// How many keys without an etcd lease and without backend data there are. Many at once look
    /// like a restore that lost the leases.
    pub fn reservations(&self) -> usize {
        self.table.iter().filter(|(_, r)| r.is_reservation()).count()
    }

    /// When something is due without an event: the next held peer's end.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.held.values().map(|h| h.until).min()
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
            let named =
                |s: &Subnet| table.get(&LeaseKey::single(*s)).is_some() || table.overlapping(s).is_some();
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
                dirty.extend(self.rivals(claim));
            }
            self.verdicts.remove(&key);
            if let Some(record) = table.get(&key) {
                let verdict = judge(&key, record, &rules);
                for claim in claims_of(&key, Some(&verdict)) {
                    self.claims.insert((claim, record.create_revision, key));
                    dirty.extend(self.rivals(claim));
                }
                self.verdicts.insert(key, verdict);
            }
        }
        // Withdraw all that may have changed before anything is granted again.
        for key in &dirty {
            // An outdone key's subnet is another's.
            if self.outdone.remove(key).is_none()
                && matches!(verdicts_before.get(key), Some(Verdict::Sound(_)))
            {
                for subnet in key.subnets() {
                    self.live.remove(&subnet);
                }
            }
        }
        for key in &dirty {
            let Some(Verdict::Sound(peers)) = self.verdicts.get(key) else { continue };
            match self.older_claim(key, &table) {
                Some(reason) => {
                    self.outdone.insert(*key, reason);
                }
                None => self.live.extend(peers.iter().map(|p| (p.subnet, p.clone()))),
            }
        }
        let gone = gone.into_iter().chain(
            dirty
                .iter()
                .filter(|key| table.get(key).is_none())
                .flat_map(LeaseKey::subnets)
                .filter_map(|s| before.get(&s).filter(|_| !self.live.contains_key(&s)).cloned()),
        );
        self.vanished.extend(gone.map(|p| (now, p)));
        let reason =
            |verdicts: &OrdMap<LeaseKey, Verdict>, outdone: &OrdMap<LeaseKey, String>, key| match verdicts
                .get(key)
            {
                Some(Verdict::Rejected(reason)) => Some(reason.clone()),
                _ => outdone.get(key).cloned(),
            };
        let mut refused: Vec<(String, String)> = dirty
            .iter()
            .filter_map(|key| {
                let now = reason(&self.verdicts, &self.outdone, key)?;
                (reason(&verdicts_before, &outdone_before, key).as_ref() != Some(&now))
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

    /// Lets time pass: held peers whose time is over go.
    pub fn tick(&mut self, now: Millis) {
        self.held = self.held.iter().filter(|(_, h)| h.until > now).map(|(s, h)| (*s, h.clone())).collect();
    }

    fn hold(&mut self, now: Millis) {
        let table = &self.table;
        let live = &self.live;
        self.vanished
            .retain(|(at, p)| now.saturating_sub(*at) < MASS_WINDOW && !live.contains_key(&p.subnet));
        let known = self.live.len() + self.vanished.len() + self.held.len();
        if self.vanished.len() + self.held.len() >= MASS_LEAST
            && (self.vanished.len() + self.held.len()) * 2 > known
            && let Some(rules) = &self.rules
        {
            for (_, peer) in self.vanished.drain(..) {
                self.held.insert(peer.subnet, Held { peer, until: now.saturating_add(rules.hold) });
            }
        }
        // A new lease for a held subnet wins at once, and our own subnet is never a peer's.
        let own = self.rules.as_ref().and_then(|r| r.own);
        let stays = |subnet: &Subnet, held: &Held| {
            let ours = own.is_some_and(|o| o.overlaps(&LeaseKey::single(*subnet)));
            held.until > now && !ours && table.overlapping(subnet).is_none()
        };
        self.held = self.held.iter().filter(|(s, h)| stays(s, h)).map(|(s, h)| (*s, h.clone())).collect();
    }

    fn rivals(&self, claim: Claim) -> impl Iterator<Item = LeaseKey> + use<> {
        let all: Vec<LeaseKey> = self.claimants(claim).map(|(_, _, key)| *key).collect();
        all.into_iter()
    }

    fn claimants(&self, claim: Claim) -> impl Iterator<Item = &(Claim, i64, LeaseKey)> {
        // No revision is that small, so the key of the bound does not matter.
        let least = (claim, i64::MIN, LeaseKey::single(Subnet::ALL_V6));
        self.claims.range(least..).take_while(move |(c, ..)| *c == claim)
    }

    fn older_claim(&self, key: &LeaseKey, table: &LeaseTable) -> Option<String> {
        for claim in claims_of(key, self.verdicts.get(key)) {
            if let Some((_, _, older)) = self.claimants(claim).next().filter(|(_, _, first)| first != key) {
                let holder =
                    table.get(older).and_then(|r| r.value.as_ref().ok()).map(describe).unwrap_or_default();
                return Some(match claim {
                    Claim::Subnet(subnet) => {
                        format!("{subnet} is claimed since longer by the key {older}{holder}")
                    }
                    Claim::Mac(_, mac) => {
                        format!("the VTEP MAC {mac} belongs since longer to {older}{holder}")
                    }
                });
            }
        }
        None
    }
}

fn describe(value: &LeaseValue) -> String {
    let name = value.loden.as_ref().map(|m| m.host_name.as_str()).filter(|n| !n.is_empty());
    match (name, value.public_ip) {
        (Some(name), Some(ip)) => format!(" of {name} ({ip})"),
        (None, Some(ip)) => format!(" of {ip}"),
        (Some(name), None) => format!(" of {name}"),
        (None, None) => String::new(),
    }
}

fn claims_of(key: &LeaseKey, verdict: Option<&Verdict>) -> Vec<Claim> {
    match verdict {
        Some(Verdict::Sound(peers)) => {
            let macs = peers.iter().filter_map(|p| match p.path {
                Path::Vxlan(mac) => Some(Claim::Mac(p.subnet.family(), mac)),
                Path::Direct => None,
            });
            peers.iter().map(|p| Claim::Subnet(p.subnet)).chain(macs).collect()
        }
        // A reservation blocks its subnet; our own key does so by its own rule.
        Some(Verdict::Quiet) => key.subnets().map(Claim::Subnet).collect(),
        _ => Vec::new(),
    }
}

/// Judges one lease by itself.
fn judge(key: &LeaseKey, record: &LeaseRecord, rules: &Rules) -> Verdict {
    let ours = record.value.as_ref().is_ok_and(|v| v.host_id().is_some_and(|id| id == rules.host_id));
    if ours || rules.own == Some(*key) || record.is_reservation() {
        return Verdict::Quiet;
    }
    match peers_of(key, record, rules) {
        Ok(peers) => Verdict::Sound(peers),
        Err(reason) => Verdict::Rejected(reason),
    }
}

fn peers_of(key: &LeaseKey, record: &LeaseRecord, rules: &Rules) -> Result<Vec<Peer>, String> {
    let value = record.value.as_ref().map_err(Clone::clone)?;
    let mut peers = Vec::new();
    for subnet in key.subnets() {
        let family = subnet.family();
        let Some(pool) = rules.config.pool(family) else { continue };
        if !pool.network.contains_subnet(&subnet) {
            return Err(format!("{subnet} lies outside the network {}", pool.network));
        }
        if subnet.length() != pool.subnet_length {
            return Err(format!("{subnet} is not a /{} as the network config says", pool.subnet_length));
        }
        if let Some(own) = rules.own.and_then(|o| o.subnet(family)).filter(|o| o.overlaps(&subnet)) {
            return Err(format!("{subnet} overlaps our own subnet {own}"));
        }
        if let Some(peer) = peer(subnet, value, rules)? {
            peers.push(peer);
        }
    }
    if peers.is_empty() {
        return Err(format!("{key} has no subnet of an address family that the network config enables"));
    }
    Ok(peers)
}

fn peer(subnet: Subnet, value: &LeaseValue, rules: &Rules) -> Result<Option<Peer>, String> {
    let family = subnet.family();
    let backend = rules.config.backend.name();
    let theirs = &*value.backend_type;
    // alloc and udp leases carry no type.
    if theirs != backend && !(backend == "alloc" && theirs.is_empty()) {
        let theirs = if theirs.is_empty() { "none (udp or alloc)" } else { theirs };
        return Err(format!("its backend type is {theirs}, ours is {backend}"));
    }
    // flannel leaves the IPv6 part out of what it cannot serve.
    let Some(public_address) = value.public_address(family) else {
        return Err(format!("it has no public {family} address"));
    };
    check_endpoint(public_address, rules)?;
    let on_link = rules.on_link.iter().any(|link| link.contains(public_address));
    let path = match &rules.config.backend {
        Backend::Alloc => return Ok(None),
        Backend::HostGw if on_link => Path::Direct,
        Backend::HostGw => {
            return Err(format!(
                "its public address {public_address} is not on the underlay's link, which host-gw needs"
            ));
        }
        Backend::Vxlan(vxlan) => {
            let Some(mac) = value.backend_data(family).vtep_mac() else {
                return Err(format!("it has no VTEP MAC for {family}"));
            };
            if !mac.is_unicast() {
                return Err(format!("its VTEP MAC {mac} is not a unicast address"));
            }
            if rules.own_macs.contains(&mac) {
                return Err(format!("its VTEP MAC {mac} is our own"));
            }
            if vxlan.direct_routing && on_link { Path::Direct } else { Path::Vxlan(mac) }
        }
    };
    let sources = value.loden.iter().flat_map(|m| &m.sources).copied();
    let sources = sources.filter(|a| Family::of(*a) == family && check_endpoint(*a, rules).is_ok());
    let host = match &value.loden {
        Some(m) => HostLabel { name: printable(&m.host_name), version: printable(&m.version) },
        None => HostLabel { name: String::new(), version: "flannel".into() },
    };
    Ok(Some(Peer { subnet, public_address, sources: sources.take(16).collect(), path, host: Arc::new(host) }))
}

/// Names come from the network and end in terminals and logs.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(255).collect()
}

fn check_endpoint(address: IpAddr, rules: &Rules) -> Result<(), String> {
    let unicast = match address {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_loopback()
                || ip.octets()[0] == 0)
        }
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback()),
    };
    if !unicast {
        return Err(format!("its public address {address} is not a unicast address"));
    }
    if rules.own_addresses.contains(&address) {
        return Err(format!("its public address {address} is our own"));
    }
    if rules.config.contains(address) {
        return Err(format!("its public address {address} lies inside the overlay network"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> Arc<Rules> {
        let config =
            NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("config");
        Arc::new(Rules {
            config,
            own: Some(key("10.5.1.0-24")),
            host_id: "us".into(),
            own_macs: vec![Mac([2, 0, 0, 0, 0, 1])],
            own_addresses: ["192.168.0.1".parse().expect("ip")].into(),
            on_link: vec!["192.168.0.0/24".parse().expect("subnet")],
            hold: 600_000,
        })
    }

    fn subnet(text: &str) -> Subnet {
        text.parse().expect(text)
    }

    fn key(text: &str) -> LeaseKey {
        LeaseKey::parse(text).expect(text)
    }

    fn put(table: &mut LeaseTable, name: &str, age: i64, value: &str) {
        let value = LeaseValue::parse(value.as_bytes()).map_err(|e| e.to_string());
        table.put(name, LeaseRecord { value, etcd_lease: 1, create_revision: age, mod_revision: age });
    }

    fn lease(ip: &str, mac: u8) -> String {
        format!(
            r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:01:{mac:02x}"}}}}"#
        )
    }

    /// Twenty sound peers, 10.5.10.0/24 to 10.5.29.0/24.
    fn twenty() -> LeaseTable {
        let mut table = LeaseTable::default();
        for n in 10..30 {
            put(&mut table, &format!("10.5.{n}.0-24"), i64::from(n), &lease(&format!("192.168.0.{n}"), n));
        }
        table
    }

    fn book(table: LeaseTable) -> PeerBook {
        let mut book = PeerBook::default();
        book.update(table, rules(), 0);
        book
    }

    #[test]
    fn each_bad_lease_is_refused_with_its_reason_and_harms_no_other() {
        let cases = [
            ("10.6.1.0-24", lease("192.168.0.200", 200), "outside the network"),
            ("10.5.200.0-25", lease("192.168.0.200", 200), "not a /24"),
            ("10.5.0.0-16", lease("192.168.0.200", 200), "not a /24"),
            ("10.5.200.0-24", lease("224.0.0.9", 200), "not a unicast"),
            ("10.5.201.0-24", lease("192.168.0.1", 201), "our own"),
            ("10.5.202.0-24", lease("10.5.3.4", 202), "inside the overlay"),
            ("10.5.203.0-24", r#"{"PublicIP":"192.168.0.203","BackendType":"vxlan"}"#.into(), "no VTEP MAC"),
            ("10.5.204.0-24", lease("192.168.0.204", 1).replace(":01:01", ":00:01"), "is our own"),
            ("10.5.205.0-24", lease("192.168.0.205", 9).replace("02:00", "03:00"), "not a unicast"),
            ("10.5.206.0-24", "not json".into(), "not JSON"),
            (
                "10.5.207.0-24",
                r#"{"PublicIP":"192.168.0.207","BackendType":"host-gw"}"#.into(),
                "backend type is host-gw",
            ),
            ("10.5.208.0-24", lease("192.168.0.208", 10), "belongs since longer to 10.5.10.0-24"),
            ("10.5.1.0-24&fd00::-64", lease("192.168.0.209", 209), "overlaps our own"),
            ("10.5.11.0-24&fd00::-64", lease("192.168.0.210", 210), "claimed since longer"),
            ("garbage", lease("192.168.0.211", 211), "not a lease key"),
        ];
        let mut table = twenty();
        for (name, value, _) in &cases {
            put(&mut table, name, 1000, value);
        }
        let book = book(table);
        assert_eq!(book.peers().len(), 20, "the sound ones stay");
        let rejected = book.rejected();
        assert_eq!(rejected.len(), cases.len(), "{rejected:#?}");
        for (name, _, reason) in &cases {
            assert!(
                rejected.iter().any(|(k, r)| k == name && r.contains(reason)),
                "{name} {reason}: {rejected:#?}"
            );
        }
    }

    #[test]
    fn a_younger_claim_gets_its_turn_when_the_older_goes() {
        let mut table = twenty();
        put(&mut table, "10.5.99.0-24", 99, &lease("192.168.0.99", 10));
        let mut book = book(table.clone());
        assert!(!book.peers().contains_key(&subnet("10.5.99.0/24")));
        table.delete("10.5.10.0-24");
        book.update(table, rules(), 1);
        assert!(book.peers().contains_key(&subnet("10.5.99.0/24")));
        assert!(book.rejected().is_empty());
    }

    proptest! {
        #[test]
        fn updates_one_by_one_end_where_one_look_at_everything_ends(
            changes in prop::collection::vec((0u8..6, 0u8..3, 1u8..5, 1u8..5, any::<bool>()), 1..40),
        ) {
            let mut table = LeaseTable::default();
            let mut step_by_step = PeerBook::default();
            for (n, (subnet, form, ip, mac, delete)) in changes.into_iter().enumerate() {
                let name = match form {
                    0 => format!("10.5.{}.0-24", subnet + 2),
                    1 => format!("10.5.{}.0-24&fd00::-64", subnet + 2),
                    _ => format!("10.5.{}.0-25", subnet + 2),
                };
                match delete {
                    true => table.delete(&name),
                    false => put(&mut table, &name, n as i64 + 1, &lease(&format!("192.168.0.{}", ip + 1), mac)),
                }
                // Slow enough that nothing is held.
                step_by_step.update(table.clone(), rules(), n as u64 * 20_000);
                let mut at_once = PeerBook::default();
                at_once.update(table.clone(), rules(), 0);
                prop_assert_eq!(step_by_step.peers(), at_once.peers());
                prop_assert_eq!(step_by_step.rejected(), at_once.rejected());
            }
        }
    }

    #[test]
    fn a_rival_that_comes_later_changes_nothing_for_the_older() {
        let mut table = twenty();
        let mut book = book(table.clone());
        let before = book.peers();
        put(&mut table, "10.5.11.0-24&fd00::-64", 1000, &lease("192.168.0.210", 210));
        book.update(table.clone(), rules(), 1);
        assert_eq!(book.peers(), before);
        // This one meets the rival only, by its MAC.
        put(&mut table, "10.5.99.0-24", 1001, &lease("192.168.0.99", 210));
        book.update(table, rules(), 2);
        assert_eq!(book.peers(), before);
    }

    #[test]
    fn one_peer_that_leaves_is_let_go_at_once() {
        let mut table = twenty();
        let mut book = book(table.clone());
        table.delete("10.5.10.0-24");
        book.update(table, rules(), 1);
        assert_eq!((book.peers().len(), book.held().count()), (19, 0));
    }

    #[test]
    fn most_peers_vanishing_at_once_or_one_by_one_are_held_for_the_grace_period() {
        for step in [0, 100] {
            let mut table = twenty();
            let mut book = book(table.clone());
            for n in 10..25u64 {
                table.delete(&format!("10.5.{n}.0-24"));
                if step > 0 {
                    book.update(table.clone(), rules(), n * step);
                }
            }
            book.update(table.clone(), rules(), 3000);
            assert_eq!((book.peers().len(), book.held().count()), (20, 15), "step {step}");
            // A new lease for a held subnet wins at once.
            put(&mut table, "10.5.10.0-24", 5000, &lease("192.168.0.77", 77));
            book.update(table.clone(), rules(), 4000);
            let winner = book.peers().get(&subnet("10.5.10.0/24")).map(|p| p.public_address.to_string());
            assert_eq!(winner.as_deref(), Some("192.168.0.77"));
            let end = book.next_deadline().expect("held peers have an end");
            book.tick(end + 3000);
            assert_eq!((book.peers().len(), book.held().count()), (6, 0));
        }
    }

    #[test]
    fn slow_departures_are_not_held() {
        let mut table = twenty();
        let mut book = book(table.clone());
        for n in 10..28u64 {
            table.delete(&format!("10.5.{n}.0-24"));
            book.update(table.clone(), rules(), n * 20_000);
        }
        assert_eq!((book.peers().len(), book.held().count()), (2, 0));
    }

    #[test]
    fn peers_known_before_the_first_table_are_let_go_or_held_by_the_same_rule() {
        let known: Vec<Peer> = book(twenty()).peers().values().cloned().collect();
        let mut table = twenty();
        table.delete("10.5.10.0-24");
        let mut one_less = PeerBook::with_known(known.clone());
        assert_eq!(one_less.peers().len(), 20, "used before etcd answers");
        one_less.update(table, rules(), 0);
        assert_eq!(one_less.peers().len(), 19);
        let mut emptied = PeerBook::with_known(known);
        emptied.update(LeaseTable::default(), rules(), 0);
        assert_eq!((emptied.peers().len(), emptied.held().count()), (20, 20));
    }

    #[test]
    fn direct_routing_takes_the_plain_path_on_the_link_only() {
        let mut rules = (*rules()).clone();
        rules.config = NetworkConfig::parse(
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
        )
        .expect("config");
        let mut table = LeaseTable::default();
        put(&mut table, "10.5.2.0-24", 1, &lease("192.168.0.2", 2));
        put(&mut table, "10.5.3.0-24", 2, &lease("172.16.0.3", 3));
        let mut book = PeerBook::default();
        book.update(table, Arc::new(rules), 0);
        let paths: Vec<Path> = book.peers().values().map(|p| p.path).collect();
        assert_eq!(paths, [Path::Direct, Path::Vxlan("02:00:00:00:01:03".parse().expect("mac"))]);
    }
}
