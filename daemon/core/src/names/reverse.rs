//! Names of addresses: 9.7.5.10.in-addr.arpa for 10.5.7.9, and the like of IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loden_proto::{Family, Subnet};

/// The prefix that a name below `in-addr.arpa` or `ip6.arpa` stands for (RFC 1035 §3.5, RFC 3596 §2.5).
pub(super) fn prefix_of(name: &str) -> Option<Subnet> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut length = 0;
        for (i, label) in rest.rsplit('.').enumerate() {
            let octet: u8 = label.parse().ok()?;
            // Not 010, nor +10.
            if octet.to_string() != label {
                return None;
            }
            *octets.get_mut(i)? = octet;
            length += 8;
        }
        return Subnet::new(Ipv4Addr::from(octets).into(), length).ok();
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut length = 0;
    for label in rest.rsplit('.') {
        let nibble = u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1 && length < 128)?;
        length += 4;
        bits |= nibble << (128 - length);
    }
    Subnet::new(Ipv6Addr::from(bits).into(), length as u8).ok()
}

/// The other way; the length is one that names can have.
pub(super) fn reverse_apex(subnet: &Subnet) -> String {
    reverse_labels(subnet.address(), subnet.length())
}

/// The name below which an address's name stands.
pub fn reverse_name(address: IpAddr) -> String {
    reverse_labels(address, Family::of(address).bits())
}

fn reverse_labels(address: IpAddr, length: u8) -> String {
    match address {
        IpAddr::V4(ip) => {
            let octets = ip.octets();
            let labels = octets[..usize::from(length / 8)].iter().rev().map(u8::to_string);
            labels.chain(["in-addr.arpa".into()]).collect::<Vec<_>>().join(".")
        }
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            let nibbles = (0..u32::from(length / 4)).rev();
            let labels = nibbles.map(|i| format!("{:x}", bits >> (124 - 4 * i) & 0xf));
            labels.chain(["ip6.arpa".into()]).collect::<Vec<_>>().join(".")
        }
    }
}

/// The part of a network, around an address, that a name can stand for: 10.16.0.0/12 has no name, but
/// 10.17.0.0/16 in it has.
pub(super) fn cut(network: &Subnet, address: IpAddr) -> Subnet {
    let step = if address.is_ipv4() { 8 } else { 4 };
    let length = network.length().div_ceil(step) * step;
    Subnet::containing(address, length).unwrap_or(*network)
}
