//! What hosts are called: the leases by their hosts' labels and public addresses.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use loden_proto::Subnet;
use loden_proto::dns_name::DnsName;
use loden_proto::lease::{LeaseKey, LeaseValue};

use crate::leases::{LeaseRecord, LeaseTable};

/// Leases by what else their hosts go by, of which only hashes are kept: the leases have the rest.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    labels: BTreeSet<(u32, LeaseKey)>,
    public_addresses: BTreeSet<(u32, LeaseKey)>,
}

impl Hosts {
    /// Those of these leases.
    pub(super) fn of(leases: &LeaseTable) -> Self {
        let mut hosts = Self::default();
        for (key, record) in leases.iter() {
            hosts.enter(key, record);
        }
        hosts
    }

    /// Takes in a lease.
    pub(super) fn enter(&mut self, key: &LeaseKey, record: &LeaseRecord) {
        let Some(value) = value(record) else { return };
        self.labels.insert((hash(host_label(key, value).as_str()), *key));
        self.public_addresses.extend(public_addresses(value).map(|address| (hash(&address), *key)));
    }

    /// Forgets one.
    pub(super) fn leave(&mut self, key: &LeaseKey, record: &LeaseRecord) {
        let Some(value) = value(record) else { return };
        self.labels.remove(&(hash(host_label(key, value).as_str()), *key));
        for address in public_addresses(value) {
            self.public_addresses.remove(&(hash(&address), *key));
        }
    }

    /// The lease of the host with this label; of several, the oldest.
    pub(super) fn labelled(&self, leases: &LeaseTable, label: &str) -> Option<LeaseKey> {
        let named = hashed(&self.labels, label).filter_map(|key| {
            let record = leases.get(key)?;
            (host_label(key, value(record)?) == label).then_some((record.create_revision, *key))
        });
        named.min().map(|(_, key)| key)
    }

    /// The lease of the host with this public address.
    pub(super) fn at(&self, leases: &LeaseTable, address: IpAddr) -> Option<LeaseKey> {
        let has = |key: &&LeaseKey| {
            let value = leases.get(key).and_then(value);
            value.is_some_and(|value| public_addresses(value).any(|public| public == address))
        };
        hashed(&self.public_addresses, &address).find(has).copied()
    }
}

/// The key that sorts before all others.
fn least_key() -> LeaseKey {
    LeaseKey::single(Subnet::ALL_V6)
}

pub(super) fn value(record: &LeaseRecord) -> Option<&LeaseValue> {
    record.value.as_ref().ok()
}

pub(super) fn public_addresses(value: &LeaseValue) -> impl Iterator<Item = IpAddr> + use<> {
    let v4 = value.public_ip.map(IpAddr::V4);
    v4.into_iter().chain(value.public_ipv6.map(IpAddr::V6))
}

/// The label of a host: the first of its name, else (flannel's have none) the number of its subnet.
pub(super) fn host_label(key: &LeaseKey, value: &LeaseValue) -> String {
    let name = value.loden.as_ref().map(|m| m.host_name.to_str());
    match name.and_then(|name| name.split('.').next()?.parse::<DnsName>().ok()) {
        Some(label) if !matches!(label.as_str(), "ns" | "gw" | "vtep") => label.to_string(),
        _ => numbered(key),
    }
}

/// `host-10-5-7-0`, unique among hosts.
pub(super) fn numbered(key: &LeaseKey) -> String {
    let address = key.subnets().next().map(|s| s.address().to_string()).unwrap_or_default();
    format!("host-{}", address.replace(['.', ':'], "-").trim_end_matches('-'))
}

fn hash<T: Hash + ?Sized>(what: &T) -> u32 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish() as u32
}

/// What has the hash of this.
fn hashed<'a, T: Hash + ?Sized>(
    index: &'a BTreeSet<(u32, LeaseKey)>,
    what: &T,
) -> impl Iterator<Item = &'a LeaseKey> + use<'a, T> {
    let hash = hash(what);
    index.range((hash, least_key())..).take_while(move |(h, _)| *h == hash).map(|(_, key)| key)
}
