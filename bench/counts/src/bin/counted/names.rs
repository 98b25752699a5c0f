//! A zone of 10,000 names on a hundred hosts, and questions to it. Everything follows from a number, but for
//! the seed of hashes, on which some instructions in a thousand depend. Used by `operations.rs`.

use std::net::{IpAddr, Ipv4Addr};

use loden_core::names::{Asked, NameEntry, NameKey, NameTable, Reply, Settings, Transport, Zone, reply};
use loden_proto::config::Dns;
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::{NameRecord, NameSource};

/// How many names.
const NAMES: u32 = 10_000;
const HOSTS: u32 = 100;
/// How many questions an operation answers.
pub(crate) const ANSWERS: u32 = 1000;
/// A container of this host, and who it asks.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 5, 0, 2));
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 5, 0, 1));
const A: u8 = 1;
const PTR: u8 = 12;

/// Of this container, on one of the hosts.
fn address(number: u32) -> [u8; 4] {
    let [_, _, _, host] = (number % HOSTS).to_be_bytes();
    let [_, _, _, last] = (10 + number / HOSTS).to_be_bytes();
    [10, 5, host, last]
}

/// The zone as a host has it.
pub(crate) fn zone() -> Zone {
    let mut names = NameTable::default();
    for number in 0..NAMES {
        let [a, b, c, _] = address(number);
        let record = NameRecord {
            names: format!("c{number}").parse().into_iter().collect(),
            groups: Vec::new(),
            addresses: vec![address(number).into()],
            ports: Vec::new(),
            since: 1,
            source: NameSource::Cni,
        };
        let lease =
            LeaseKey::parse(&format!("{a}.{b}.{c}.0-24")).unwrap_or_else(|_| unreachable!("a subnet"));
        let key = NameKey { lease, endpoint: format!("veth{number:08x}").into() };
        names.put(key, NameEntry { record: Ok(record), etcd_lease: 1 });
    }
    let mut zone = Zone::new(Settings {
        dns: Dns::default(),
        networks: "10.5.0.0/16".parse().into_iter().collect(),
        own_subnets: "10.5.0.0/24".parse().into_iter().collect(),
        own_addresses: Default::default(),
        public_addresses: Vec::new(),
        local_networks: Vec::new(),
    });
    zone.set_names(names);
    zone.set_complete();
    zone
}

/// For an address.
pub(crate) fn forward(number: u32) -> Vec<u8> {
    question(&format!("c{}.loden.internal", number * 7919 % NAMES), A)
}

/// For the name of one.
pub(crate) fn reverse(number: u32) -> Vec<u8> {
    let [a, b, c, d] = address(number * 7919 % NAMES);
    question(&format!("{d}.{c}.{b}.{a}.in-addr.arpa"), PTR)
}

/// For a name that nobody has.
pub(crate) fn nobody(number: u32) -> Vec<u8> {
    question(&format!("nobody{number}.loden.internal"), A)
}

/// A request (RFC 1035 §4).
fn question(name: &str, kind: u8) -> Vec<u8> {
    let mut bytes = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.extend(u8::try_from(label.len()));
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, kind, 0, 1]);
    bytes
}

/// What the server answers.
pub(crate) fn answer(zone: &Zone, question: &[u8]) -> Vec<u8> {
    let asked = Asked { client: CLIENT, at: GATEWAY, transport: Transport::Udp, turn: 0 };
    match reply(Some(zone), question, asked) {
        Reply::Send(bytes) => bytes,
        Reply::Forward | Reply::Later | Reply::Silence => Vec::new(),
    }
}
