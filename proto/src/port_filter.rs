//! The port filter: the nftables table of family `bridge` in which the ports of containers are guarded.
//! The daemon keeps the table, the plugin adds the elements of its sets, the daemon removes them again; both
//! take names and keys from here.
//!
//! A key is what nftables makes of the set's type: its parts one after the other, each filled up with
//! zeros to 32 bits (`NFT_REG32_SIZE`, `include/uapi/linux/netfilter/nf_tables.h`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Mac;

/// A set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortSet {
    /// The ports that are guarded: host's ends of the containers' pairs.
    Ports,
    /// What a port may send IPv4 packets and ARP from: port, MAC, address.
    Sources4,
    /// What a port may send IPv6 packets from: port, MAC, address.
    Sources6,
    /// What a port may answer for as an IPv6 neighbour: port, MAC, address.
    Targets6,
}

impl PortSet {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ports, Self::Sources4, Self::Sources6, Self::Targets6];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Sources4 => "sources4",
            Self::Sources6 => "sources6",
            Self::Targets6 => "targets6",
        }
    }
}

/// An element of a set, by its key.
pub type Element = (PortSet, Vec<u8>);

/// The elements for a port whose container has this MAC and this address. Besides, the container may
/// use its link-local address, and the unspecified ones while it looks for duplicates (RFC 5227 §2.1.1,
/// RFC 4862 §5.4.2).
pub fn elements(port: &str, mac: Mac, address: IpAddr) -> Vec<Element> {
    let key = |address: Option<IpAddr>| key(port, mac, address);
    let of = |set, address: IpAddr| (set, key(Some(address)));
    let link_local = IpAddr::from(link_local(mac));
    let mut all = vec![
        (PortSet::Ports, name(port).to_vec()),
        of(PortSet::Sources4, Ipv4Addr::UNSPECIFIED.into()),
        of(PortSet::Sources6, Ipv6Addr::UNSPECIFIED.into()),
        of(PortSet::Sources6, link_local),
        of(PortSet::Targets6, link_local),
    ];
    match address {
        IpAddr::V4(_) => all.push(of(PortSet::Sources4, address)),
        IpAddr::V6(_) => all.extend([of(PortSet::Sources6, address), of(PortSet::Targets6, address)]),
    }
    all
}

/// The keys set by set, as they are sent. Each once: to remove an element twice is an error.
pub fn by_set(elements: BTreeSet<Element>) -> Vec<(PortSet, Vec<Vec<u8>>)> {
    let mut sets: Vec<(PortSet, Vec<Vec<u8>>)> = Vec::new();
    for (set, key) in elements {
        match sets.last_mut() {
            Some((last, keys)) if *last == set => keys.push(key),
            _ => sets.push((set, vec![key])),
        }
    }
    sets
}

/// What a key says; the sets tell how much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The port.
    pub port: &'a str,
    /// The container's MAC.
    pub mac: Option<Mac>,
    /// The address.
    pub address: Option<IpAddr>,
}

/// Reads a key of any of the sets; `None` when it is none of ours.
pub fn parts_of(key: &[u8]) -> Option<Parts<'_>> {
    let port = port_of(key)?;
    let rest = &key[NAME_LEN..];
    let Some((mac, address)) = rest.split_at_checked(MAC_LEN) else {
        return rest.is_empty().then_some(Parts { port, mac: None, address: None });
    };
    let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from)).ok()?;
    Some(Parts { port, mac: mac.first_chunk::<6>().copied().map(Mac), address: Some(address) })
}

/// The port's name in a key of any of the sets; `None` when it is no name.
pub fn port_of(key: &[u8]) -> Option<&str> {
    let name = key.get(..NAME_LEN)?;
    let end = name.iter().position(|b| *b == 0)?;
    std::str::from_utf8(&name[..end]).ok()
}

/// `IFNAMSIZ`
const NAME_LEN: usize = 16;
/// Six bytes and two zeros.
const MAC_LEN: usize = 8;

fn name(port: &str) -> [u8; NAME_LEN] {
    let mut name = [0; NAME_LEN];
    // The last byte stays zero, as in the kernel.
    for (to, from) in name.iter_mut().take(NAME_LEN - 1).zip(port.bytes()) {
        *to = from;
    }
    name
}

fn key(port: &str, mac: Mac, address: Option<IpAddr>) -> Vec<u8> {
    let mut key = name(port).to_vec();
    key.extend(mac.0);
    key.extend([0; 2]);
    match address {
        Some(IpAddr::V4(ip)) => key.extend(ip.octets()),
        Some(IpAddr::V6(ip)) => key.extend(ip.octets()),
        None => {}
    }
    key
}

/// The link-local address that an interface gives itself (RFC 4291 §2.5.6 and appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_nftables_lays_them_out() {
        let mac = Mac([0x0a, 0x58, 10, 5, 7, 2]);
        let all = elements("veth12345678901", mac, "10.5.7.2".parse().expect("ip"));
        let own = b"veth12345678901\0\x0a\x58\x0a\x05\x07\x02\0\0\x0a\x05\x07\x02".to_vec();
        assert!(all.contains(&(PortSet::Sources4, own)), "{all:?}");
        assert!(all.contains(&(PortSet::Ports, b"veth12345678901\0".to_vec())));
        assert!(all.iter().all(|(_, key)| port_of(key) == Some("veth12345678901")));
        assert!(all.iter().all(|(_, key)| key.len() % 4 == 0));
        let addresses: BTreeSet<_> = all.iter().filter_map(|(_, key)| parts_of(key)?.address).collect();
        assert!(addresses.contains(&"10.5.7.2".parse().expect("ip")), "{addresses:?}");
        assert!(all.iter().all(|(set, key)| {
            parts_of(key).is_some_and(|parts| parts.mac == Some(mac).filter(|_| *set != PortSet::Ports))
        }));
        assert_eq!((parts_of(b"veth"), parts_of(&[b'v'; 28])), (None, None));
    }

    #[test]
    fn elements_are_sent_set_by_set_and_once() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let all = ["10.5.7.2", "fd00::2"].map(|a| elements("veth0", mac, a.parse().expect("ip")));
        let sets = by_set(all.into_iter().flatten().collect());
        assert_eq!(sets.iter().map(|(set, _)| *set).collect::<Vec<_>>(), PortSet::ALL);
        assert_eq!(sets.iter().map(|(_, keys)| keys.len()).collect::<Vec<_>>(), [1, 2, 3, 2]);
        assert!(by_set(BTreeSet::new()).is_empty());
    }

    #[test]
    fn an_ipv6_address_may_be_answered_for() {
        let mac = Mac([0x0a, 0x58, 0, 0, 0, 2]);
        let all = elements("veth0", mac, "fd00::2".parse().expect("ip"));
        let ends = |set, with: &str| {
            let address: Ipv6Addr = with.parse().expect("ip");
            all.iter().any(|(s, key)| *s == set && key.ends_with(&address.octets()))
        };
        for address in ["fd00::2", "fe80::858:ff:fe00:2"] {
            assert!(ends(PortSet::Sources6, address) && ends(PortSet::Targets6, address), "{address}");
        }
        assert!(ends(PortSet::Sources6, "::") && !ends(PortSet::Targets6, "::"));
    }
}
