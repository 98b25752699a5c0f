//! The zone: what the DNS says of containers, hosts and their addresses, to whom. An index of the names in
//! etcd, kept current key by key, and of the leases.
//!
//! ```text
//! dn1.<zone>            a container, or a group of them
//! r1.host.<zone>        a host, by its public addresses
//! gw.r1.host.<zone>     the gateway of its containers
//! vtep.r1.host.<zone>   its VXLAN device
//! ns.host.<zone>        who serves the zone
//! ```

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use loden_proto::config::{Dns, Outside};
use loden_proto::dns_name::DnsName;
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::{NameRecord, Protocol, PublishedPort};
use loden_proto::{Family, Subnet};

use super::hosts::{Hosts, host_label, numbered, public_addresses, value};
use super::reverse::{cut, prefix_of, reverse_apex};
use super::{Imported, NameEntry, NameKey, NameTable};
use crate::leases::LeaseTable;

/// An answer has so many addresses at most, from what others have written.
const MOST_ANSWERS: usize = 100;

/// The label below which hosts are; no container can be there.
pub(super) const HOSTS: &str = "host";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum View {
    /// A container or a host of the overlay.
    Overlay,
    /// Anybody else.
    Outside,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Names of an address.
    Ptr,
    /// Ports.
    Srv,
    /// Start of authority.
    Soa,
    /// Name servers.
    Ns,
    /// Everything (RFC 8482).
    Any,
    /// Anything else, of which we have none.
    Other,
}

/// One record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose; `None`: the name that was asked for.
    pub owner: Option<DnsName>,
    /// What.
    pub data: Data,
    /// For how many seconds it may be remembered, if not for those of the zone.
    pub ttl: Option<u32>,
}

impl Record {
    fn new(owner: Option<DnsName>, data: Data) -> Self {
        Self { owner, data, ttl: None }
    }
}

/// A record's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An address.
    Address(IpAddr),
    /// The name of an address.
    Ptr(DnsName),
    /// A port at a name (RFC 2782).
    Srv {
        /// Of several, those of the least are tried first.
        priority: u16,
        /// How often it is chosen among those of its priority.
        weight: u16,
        /// Where it listens.
        port: u16,
        /// At which name.
        target: DnsName,
    },
    /// A name server.
    Ns(DnsName),
    /// Start of authority.
    Soa,
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Not ours to say: for another server.
    Elsewhere,
    /// Not for this client.
    Refused,
    /// It may be another host's, whose names are not known yet.
    NotYet,
    /// There is no such name below this apex, a zone of ours.
    NoName(DnsName),
    /// These records, possibly none, and those that help with them. The apex as above.
    Found {
        /// Of the kind that was asked for.
        answers: Vec<Record>,
        /// Addresses of names in the answers.
        additional: Vec<Record>,
        /// The apex of the zone.
        apex: DnsName,
    },
}

/// What the zone goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The member `DNS` of the network config.
    pub dns: Dns,
    /// The overlay's networks.
    pub networks: Vec<Subnet>,
    /// Our own part of them.
    pub own_subnets: Vec<Subnet>,
    /// Our own addresses and public addresses, which are the overlay's too.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Where name servers of the zone are for the outside: our public addresses.
    pub public_addresses: Vec<IpAddr>,
    /// Networks of this host alone, such as Docker's own: their containers ask at the address that every host
    /// has, since dockerd has one resolver for all.
    pub local_networks: Vec<Subnet>,
}

/// The zone.
#[derive(Debug)]
pub struct Zone {
    settings: Settings,
    /// Follows from the settings; every negative answer has it.
    name_server: DnsName,
    /// Grows with every change, as secondary servers expect.
    serial: u32,
    names: NameTable,
    leases: LeaseTable,
    /// Whether all hosts' names are known: what is not here does not exist.
    complete: bool,
    /// Who has, or wants, a name, or is in the group of it.
    claims: HashMap<DnsName, BTreeSet<NameKey>>,
    /// Who has, or wants, an address.
    addresses: HashMap<IpAddr, BTreeSet<NameKey>>,
    /// Names with something below them, and how much.
    above: HashMap<DnsName, usize>,
    /// Made when somebody first asks for a host: it takes a mebibyte for ten thousand.
    hosts: OnceLock<Hosts>,
    /// What others say.
    imported: Arc<Imported>,
}

impl Zone {
    /// An empty zone.
    pub fn new(settings: Settings) -> Self {
        Self {
            name_server: in_zone(&settings, &format!("ns.{HOSTS}")),
            settings,
            serial: 1,
            names: NameTable::default(),
            leases: LeaseTable::default(),
            complete: false,
            claims: HashMap::new(),
            addresses: HashMap::new(),
            above: HashMap::new(),
            hosts: OnceLock::new(),
            imported: Arc::default(),
        }
    }

    /// What it goes by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes in new settings.
    pub fn set(&mut self, settings: Settings) {
        self.serial = self.serial.wrapping_add(1);
        self.name_server = in_zone(&settings, &format!("ns.{HOSTS}"));
        self.settings = settings;
    }

    /// From now on, all hosts' names are known, as etcd has told them once.
    pub fn set_complete(&mut self) {
        self.complete = true;
    }

    /// The number of this state of the zone.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// Takes in the names, in the time of what has changed.
    pub fn set_names(&mut self, names: NameTable) {
        self.serial = self.serial.wrapping_add(1);
        for key in self.names.changed_keys(&names) {
            if let Some(Ok(record)) = self.names.get(&key).map(|entry| entry.record.clone()) {
                self.leave(&key, &record);
            }
            if let Some(Ok(record)) = names.get(&key).map(|entry| &entry.record) {
                self.enter(&key, record);
            }
        }
        self.names = names;
    }

    /// Takes in the leases, in the time of what has changed.
    pub fn set_leases(&mut self, leases: LeaseTable) {
        if let Some(hosts) = self.hosts.get_mut() {
            for (key, old, new) in self.leases.changes(&leases) {
                if let Some(record) = old {
                    hosts.leave(&key, record);
                }
                if let Some(record) = new {
                    hosts.enter(&key, record);
                }
            }
        }
        self.leases = leases;
    }

    fn enter(&mut self, key: &NameKey, record: &NameRecord) {
        // Below `host` nobody has a name but hosts.
        let all = record.names.iter().chain(&record.groups);
        for name in all.filter(|name| name.labels().next_back() != Some(HOSTS)) {
            if self.claims.entry(name.clone()).or_default().insert(key.clone()) {
                for ancestor in ancestors(name) {
                    *self.above.entry(ancestor).or_default() += 1;
                }
            }
        }
        for address in &record.addresses {
            self.addresses.entry(*address).or_default().insert(key.clone());
        }
    }

    fn leave(&mut self, key: &NameKey, record: &NameRecord) {
        for name in record.names.iter().chain(&record.groups) {
            let Some(claims) = self.claims.get_mut(name) else { continue };
            if !claims.remove(key) {
                continue;
            }
            if claims.is_empty() {
                self.claims.remove(name);
            }
            for ancestor in ancestors(name) {
                let Some(count) = self.above.get_mut(&ancestor) else { continue };
                *count -= 1;
                if *count == 0 {
                    self.above.remove(&ancestor);
                }
            }
        }
        for address in &record.addresses {
            let Some(claims) = self.addresses.get_mut(address) else { continue };
            claims.remove(key);
            if claims.is_empty() {
                self.addresses.remove(address);
            }
        }
    }

    /// How a client that asks at one of our addresses sees us.
    ///
    /// Hosts give their own addresses to whom they bring into the overlay from outside: their VXLAN device's, or
    /// without encapsulation their public one. Neither is a container's. A host itself asks its own daemon, or
    /// another at its public address.
    pub fn view(&self, client: IpAddr, at: IpAddr) -> View {
        let (client, at) = (client.to_canonical(), at.to_canonical());
        let inside = match () {
            () if client.is_loopback() || self.settings.own_addresses.contains(&client) => true,
            () if self.in_networks(client) => {
                let own = self.settings.own_subnets.iter().any(|subnet| subnet.contains(client));
                own || self.leases.around(client).is_some_and(|(_, subnet)| subnet.address() != client)
            }
            () if self.settings.dns.addresses.contains(&at) => {
                self.settings.local_networks.iter().any(|network| network.contains(client))
            }
            () => !self.in_networks(at) && self.lease_of_public(client).is_some(),
        };
        if inside { View::Overlay } else { View::Outside }
    }

    /// The owner of a name (relative to the zone): of those that want it, the newest.
    pub fn owner(&self, name: &DnsName) -> Option<(&NameKey, &NameRecord)> {
        let wanting = self.entries(self.claims.get(name)?);
        let wanting = wanting.filter(|(_, record)| record.names.contains(name));
        wanting.max_by_key(|(key, record)| (record.since, *key))
    }

    /// Every record that can be read, with its key, in order of the keys.
    pub fn records(&self) -> impl Iterator<Item = (&NameKey, &NameRecord)> {
        self.names.iter().filter_map(|(key, entry)| Some((key, entry.record.as_ref().ok()?)))
    }

    /// Those of one host.
    pub(super) fn records_of(&self, host: LeaseKey) -> impl Iterator<Item = (&NameKey, &NameRecord)> {
        self.names.of(host).filter_map(|(key, entry)| Some((key, entry.record.as_ref().ok()?)))
    }

    /// What a host is called.
    pub fn host_name(&self, key: &LeaseKey) -> String {
        self.label_of(key).unwrap_or_else(|| numbered(key))
    }

    /// All who share a name, its owner or else the members of its group.
    fn holders(&self, name: &DnsName) -> Vec<(&NameKey, &NameRecord)> {
        match self.owner(name) {
            Some(owner) => vec![owner],
            None => self.claims.get(name).map(|keys| self.entries(keys).collect()).unwrap_or_default(),
        }
    }

    fn entries<'a>(
        &'a self,
        keys: &'a BTreeSet<NameKey>,
    ) -> impl Iterator<Item = (&'a NameKey, &'a NameRecord)> {
        let record = |key| match self.names.get(key) {
            Some(NameEntry { record: Ok(record), .. }) => Some((key, record)),
            _ => None,
        };
        keys.iter().filter_map(record)
    }

    /// The addresses of a record that its host may speak for: those of its lease, and such as are no overlay's.
    pub(super) fn sound_addresses<'a>(
        &'a self,
        key: &'a NameKey,
        record: &'a NameRecord,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        let sound = |address: &IpAddr| {
            key.lease.subnets().any(|s| s.contains(*address)) || !self.in_networks(*address)
        };
        record.addresses.iter().copied().filter(sound)
    }

    fn in_networks(&self, address: IpAddr) -> bool {
        self.settings.networks.iter().any(|network| network.contains(address))
    }

    /// The answer to a question for a name, in lower case and without its last dot. `turn` says which member
    /// of a group comes first.
    pub fn answer(&self, view: View, name: &str, kind: Kind, turn: usize) -> Answer {
        let zone = &self.settings.dns.zone;
        if name.ends_with(".in-addr.arpa") || name.ends_with(".ip6.arpa") {
            return self.answer_reverse(view, name, kind);
        }
        let below = name.strip_suffix(zone.as_str()).filter(|rest| rest.is_empty() || rest.ends_with('.'));
        let rest = match below {
            Some("") if name == zone.as_str() => return self.answer_apex(view, kind),
            Some(rest) => rest.trim_end_matches('.'),
            None if view == View::Overlay => return self.answer_plain(name, kind, turn),
            None => return Answer::Refused,
        };
        if kind == Kind::Any {
            return Answer::Refused;
        }
        match self.lookup(view, rest, kind) {
            Some((answers, additional)) => self.found(answers, additional, turn),
            None if self.complete => Answer::NoName(zone.clone()),
            None => Answer::NotYet,
        }
    }

    /// The answer to a question for a name that is not in the zone. `dn1` is the container, for those who
    /// leave out the zone; and no other server has an address for a name of one label.
    fn answer_plain(&self, name: &str, kind: Kind, turn: usize) -> Answer {
        if name.contains('.') || !matches!(kind, Kind::A | Kind::Aaaa | Kind::Srv) || name.is_empty() {
            return Answer::Elsewhere;
        }
        match self.lookup(View::Overlay, name, kind) {
            Some((answers, additional)) => self.found(answers, additional, turn),
            // Not "no such name": below a top-level domain there are others' (RFC 8020).
            None if self.complete => self.found(Vec::new(), Vec::new(), turn),
            None => Answer::NotYet,
        }
    }

    fn found(&self, mut answers: Vec<Record>, additional: Vec<Record>, turn: usize) -> Answer {
        if let Some(len) = std::num::NonZeroUsize::new(answers.len()) {
            answers.rotate_left(turn % len);
        }
        Answer::Found { answers, additional, apex: self.settings.dns.zone.clone() }
    }

    /// The addresses of a name (relative to the zone) in a view.
    pub fn addresses(&self, view: View, name: &DnsName, kind: Kind) -> Vec<IpAddr> {
        let (records, _) = self.lookup(view, name.as_str(), kind).unwrap_or_default();
        let address = |record: Record| match record.data {
            Data::Address(address) => Some(address),
            _ => None,
        };
        records.into_iter().filter_map(address).collect()
    }

    fn answer_apex(&self, view: View, kind: Kind) -> Answer {
        let apex = self.settings.dns.zone.clone();
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        match kind {
            Kind::Any => return Answer::Refused,
            Kind::Soa => answers.push(Record::new(None, Data::Soa)),
            Kind::Ns => {
                let server = &self.name_server;
                let owned = |address| Record::new(Some(server.clone()), Data::Address(address));
                additional.extend(self.server_addresses(view).into_iter().map(owned));
                answers.push(Record::new(None, Data::Ns(server.clone())));
            }
            _ => {}
        }
        Answer::Found { answers, additional, apex }
    }

    /// The name of who serves the zone.
    pub fn name_server(&self) -> &DnsName {
        &self.name_server
    }

    fn server_addresses(&self, view: View) -> Vec<IpAddr> {
        match view {
            View::Overlay => self.settings.dns.addresses.clone(),
            View::Outside => self.settings.public_addresses.clone(),
        }
    }

    /// Records of a name relative to the zone; `None` where there is no such name.
    fn lookup(&self, view: View, name: &str, kind: Kind) -> Option<(Vec<Record>, Vec<Record>)> {
        self.find(view, name, kind, true)
    }

    /// `follow`: what others have written may lead to another name.
    fn find(&self, view: View, name: &str, kind: Kind, follow: bool) -> Option<(Vec<Record>, Vec<Record>)> {
        let Ok(name) = name.parse::<DnsName>() else { return None };
        let labels: Vec<&str> = name.labels().collect();
        if let Some((&HOSTS, host)) = labels.split_last() {
            let addresses = self.host_addresses(view, host)?;
            return Some((wanted(kind, addresses), Vec::new()));
        }
        let holders = self.holders(&name);
        let ours = !holders.is_empty();
        let seen: Vec<_> = holders.into_iter().filter(|(_, record)| self.shows(view, record)).collect();
        if !seen.is_empty() {
            if kind == Kind::Srv {
                return Some(self.services(view, &seen, |_| true));
            }
            let addresses = seen.iter().flat_map(|(key, record)| self.seen_addresses(view, key, record));
            return Some((wanted(kind, dedup(addresses)), Vec::new()));
        }
        if let Some(services) = self.service(view, &labels, kind) {
            return Some(services);
        }
        if !ours && let Some(imported) = self.imported_records(view, &name, kind, follow) {
            return Some(imported);
        }
        // Something is below it.
        self.above.contains_key(&name).then(Default::default)
    }

    /// Whether those who ask in this view know of it at all.
    fn shows(&self, view: View, record: &NameRecord) -> bool {
        view == View::Overlay || self.settings.dns.outside == Outside::All || !record.ports.is_empty()
    }

    fn seen_addresses(&self, view: View, key: &NameKey, record: &NameRecord) -> Vec<IpAddr> {
        let own: Vec<IpAddr> = self.sound_addresses(key, record).collect();
        match view {
            View::Overlay => own,
            View::Outside => {
                let (inside, outside): (Vec<IpAddr>, Vec<IpAddr>) =
                    own.into_iter().partition(|a| self.in_networks(*a));
                let host = self.leases.get(&key.lease).and_then(value).filter(|_| !inside.is_empty());
                host.into_iter().flat_map(public_addresses).chain(outside).collect()
            }
        }
    }

    /// `_tcp.NAME`, `_9866._tcp.NAME`.
    fn service(&self, view: View, labels: &[&str], kind: Kind) -> Option<(Vec<Record>, Vec<Record>)> {
        let protocol = |label: &str| {
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
                .into_iter()
                .find(|p| label.strip_prefix('_') == Some(p.name()))
        };
        let (port, protocol, rest) = match labels {
            [port, label, rest @ ..] if protocol(label).is_some() => {
                (Some(port.strip_prefix('_')?.parse::<u16>().ok()?), protocol(label)?, rest)
            }
            [label, rest @ ..] => (None, protocol(label)?, rest),
            [] => return None,
        };
        let name: DnsName = rest.join(".").parse().ok()?;
        let holders = self.holders(&name);
        let seen: Vec<_> = holders.into_iter().filter(|(_, record)| self.shows(view, record)).collect();
        let asked = |p: &PublishedPort| p.protocol == protocol && port.is_none_or(|port| p.port == port);
        if !seen.iter().any(|(_, record)| record.ports.iter().any(asked)) {
            return None;
        }
        match kind {
            Kind::Srv => Some(self.services(view, &seen, asked)),
            _ => Some(Default::default()),
        }
    }

    /// The ports of these, with their addresses.
    fn services(
        &self,
        view: View,
        of: &[(&NameKey, &NameRecord)],
        asked: impl Fn(&PublishedPort) -> bool,
    ) -> (Vec<Record>, Vec<Record>) {
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        for (key, record) in of {
            // One that has lost its names is still reached by its group's.
            let Some(name) = record.names.first().or(record.groups.first()) else { continue };
            let target = self.full(name.as_str());
            let number = |p: &PublishedPort| if view == View::Overlay { p.port } else { p.host_port };
            let ports: BTreeSet<u16> = record.ports.iter().filter(|p| asked(p)).map(number).collect();
            // Any weight, as long as all have the same.
            let data = |port| Data::Srv { priority: 0, weight: 100, port, target: target.clone() };
            let srv = |port| Record::new(None, data(port));
            answers.extend(ports.into_iter().map(srv));
            let address = |a| Record::new(Some(target.clone()), Data::Address(a));
            additional.extend(self.seen_addresses(view, key, record).into_iter().map(address));
        }
        if answers.is_empty() {
            additional.clear();
        }
        (answers, additional)
    }

    /// What is below `host`: labels of a host, its gateway or VTEP, or the name server.
    fn host_addresses(&self, view: View, labels: &[&str]) -> Option<Vec<IpAddr>> {
        match labels {
            [] => Some(Vec::new()),
            ["ns"] => Some(self.server_addresses(view)),
            [host] => Some(public_addresses(value(self.leases.get(&self.host(host)?)?)?).collect()),
            ["gw", host] if view == View::Overlay => {
                Some(self.host(host)?.subnets().map(|s| s.gateway()).collect())
            }
            ["vtep", host] if view == View::Overlay => {
                Some(self.host(host)?.subnets().map(|s| s.address()).collect())
            }
            _ => None,
        }
    }

    fn hosts(&self) -> &Hosts {
        self.hosts.get_or_init(|| Hosts::of(&self.leases))
    }

    fn host(&self, label: &str) -> Option<LeaseKey> {
        self.hosts().labelled(&self.leases, label)
    }

    /// A host's own label: that of its name, unless an older host has it.
    fn label_of(&self, key: &LeaseKey) -> Option<String> {
        let label = host_label(key, value(self.leases.get(key)?)?);
        Some(if self.host(&label) == Some(*key) { label } else { numbered(key) })
    }

    fn answer_reverse(&self, view: View, name: &str, kind: Kind) -> Answer {
        let elsewhere = if view == View::Overlay { Answer::Elsewhere } else { Answer::Refused };
        let Some(asked) = prefix_of(name) else { return elsewhere };
        let ours = asked.length() == asked.family().bits() && self.lease_of_public(asked.address()).is_some();
        let network = self.settings.networks.iter().find(|n| n.contains_subnet(&asked));
        let apex = match network {
            // Of hosts' own addresses we know those we know, and nobody else's.
            None if ours && view == View::Overlay => reverse_apex(&asked),
            None => return elsewhere,
            Some(_) if view == View::Outside => return Answer::Refused,
            Some(network) => reverse_apex(&cut(network, asked.address())),
        };
        let Ok(apex) = apex.parse::<DnsName>() else { return elsewhere };
        if kind == Kind::Any {
            return Answer::Refused;
        }
        let found = |data: Option<Data>, ttl: Option<u32>| Answer::Found {
            answers: data.map(|data| Record { owner: None, data, ttl }).into_iter().collect(),
            additional: Vec::new(),
            apex: apex.clone(),
        };
        if name == apex.as_str() && matches!(kind, Kind::Soa | Kind::Ns) {
            return found(
                Some(if kind == Kind::Soa { Data::Soa } else { Data::Ns(self.name_server.clone()) }),
                None,
            );
        }
        // Above a single address there may always be one.
        if asked.length() < asked.family().bits() {
            return found(None, None);
        }
        let own = self.name_of(asked.address()).map(|name| (name, None));
        let others = || self.imported.name_of(asked.address()).filter(|_| self.is_free(asked.address()));
        match own.or_else(others) {
            Some((name, ttl)) => found((kind == Kind::Ptr).then_some(Data::Ptr(name)), ttl),
            None if self.complete => Answer::NoName(apex),
            None => Answer::NotYet,
        }
    }

    /// Whether none of ours has an address; one whose name is another's by now has it all the same.
    fn is_free(&self, address: IpAddr) -> bool {
        !self.addresses.contains_key(&address)
    }

    fn lease_of_public(&self, address: IpAddr) -> Option<LeaseKey> {
        self.hosts().at(&self.leases, address)
    }

    /// The full name of an address: a container's first name, or that of a part of a host.
    pub fn name_of(&self, address: IpAddr) -> Option<DnsName> {
        let host =
            |key: &LeaseKey, part: &str| Some(self.full(&format!("{part}{}.{HOSTS}", self.label_of(key)?)));
        if !self.in_networks(address) {
            return host(&self.lease_of_public(address)?, "");
        }
        // Whatever a record says, these are no container's.
        if let Some((lease, subnet)) = self.leases.around(address) {
            if address == subnet.gateway() {
                return host(&lease, "gw.");
            }
            if address == subnet.address() {
                return host(&lease, "vtep.");
            }
        }
        let entries = self.entries(self.addresses.get(&address)?);
        let sound = entries.filter(|(key, record)| self.sound_addresses(key, record).any(|a| a == address));
        // A name that a newer container has taken is not this one's any more.
        let named = sound.filter_map(|(key, record)| {
            let own = |name: &&DnsName| self.owner(name).is_some_and(|(owner, _)| owner == key);
            Some((record.since, key, record.names.iter().find(own)?))
        });
        named.max().map(|(_, _, name)| self.full(name.as_str()))
    }

    fn full(&self, name: &str) -> DnsName {
        in_zone(&self.settings, name)
    }
}

/// A name of ours in full. One that would be too long is cut to the zone, which cannot happen to what
/// has been checked.
fn in_zone(settings: &Settings, name: &str) -> DnsName {
    let zone = &settings.dns.zone;
    format!("{name}.{zone}").parse().unwrap_or_else(|_| zone.clone())
}

/// The names above a name, within the zone.
fn ancestors(name: &DnsName) -> impl Iterator<Item = DnsName> {
    std::iter::successors(name.parent(), DnsName::parent)
}

fn dedup(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut out = Vec::new();
    for address in addresses {
        if !out.contains(&address) {
            out.push(address);
        }
    }
    out
}

/// Of these addresses the ones of the kind.
fn wanted(kind: Kind, addresses: Vec<IpAddr>) -> Vec<Record> {
    let fits = |address: &IpAddr| match kind {
        Kind::A => address.is_ipv4(),
        Kind::Aaaa => address.is_ipv6(),
        _ => false,
    };
    let record = |address| Record::new(None, Data::Address(address));
    addresses.into_iter().filter(fits).map(record).collect()
}

#[path = "zone_imported.rs"]
mod imported;

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
