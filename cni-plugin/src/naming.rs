//! Names and MACs that follow from what a thing is, so that DEL finds everything again with
//! the environment alone. Used by `allocations.rs`, `add.rs` and `del.rs`.

use std::net::IpAddr;

use loden_proto::Mac;

use crate::request::Attachment;

/// Name and MAC of the host's end of a container's veth pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEnd {
    /// `veth` and eleven hexadecimal digits: the 15 bytes that a name may have.
    pub name: String,
    /// Unlike any container's or bridge's: those begin with 0a:58.
    pub mac: Mac,
}

/// The host's end for an attachment. The network counts too: DEL in one network must not
/// take away what ADD made in another under the same container id and interface name.
pub fn host_end(attachment: &Attachment) -> HostEnd {
    let mut hash = Fnv::new();
    for part in [attachment.network.as_str(), &attachment.container_id, attachment.ifname.as_str()] {
        hash.write(part.as_bytes());
        // No part contains a zero byte, so no two attachments feed the same bytes.
        hash.write(&[0]);
    }
    let hash = hash.finish();
    let [a, b, c, d, ..] = hash.to_be_bytes();
    HostEnd { name: format!("veth{:011x}", hash >> 20), mac: Mac::local([0x0e, 0x58, a, b, c, d]) }
}

/// The MAC that goes with an address on our bridge, the gateway's as well as a container's:
/// 0a:58 and the address's last four bytes. Whoever has an address next has the MAC too, so
/// that neighbours' caches stay right.
pub fn mac_of(address: IpAddr) -> Mac {
    let [a, b, c, d] = match address {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d]
        }
    };
    Mac::local([0x0a, 0x58, a, b, c, d])
}

/// Whether a MAC is of those that the plugin makes itself.
pub fn is_ours(mac: Mac) -> bool {
    matches!(mac.0, [0x0a | 0x0e, 0x58, ..])
}

/// FNV-1a, 64 bits: std's hasher may change between releases, and names must not.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// With murmur3's finaliser, because FNV's upper bits hardly depend on the last bytes.
    fn finish(&self) -> u64 {
        let mut h = self.0;
        h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 33)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::ifname::IfName;

    fn attachment(network: &str, id: &str, ifname: &str) -> Attachment {
        Attachment {
            network: network.into(),
            container_id: id.into(),
            ifname: IfName::new(ifname).expect("valid"),
            netns: String::new(),
            own_netns_allowed: false,
        }
    }

    #[test]
    fn the_name_is_the_same_in_every_release() {
        let end = host_end(&attachment("loden", "c1", "eth0"));
        assert_eq!(
            (end.name.as_str(), end.mac.to_string().as_str()),
            ("veth187f65fa094", "0e:58:18:7f:65:fa")
        );
    }

    #[test]
    fn network_container_and_interface_all_count() {
        let all = [
            ("n", "c", "eth0"),
            ("n", "c", "eth1"),
            ("n", "c1", "eth0"),
            ("n1", "c", "eth0"),
            ("nc", "e", "th0"),
        ];
        let names: HashSet<String> =
            all.iter().map(|(n, c, i)| host_end(&attachment(n, c, i)).name).collect();
        assert_eq!(names.len(), all.len());
        assert!(names.iter().all(|n| n.len() == 15 && IfName::new(n).is_ok()));
    }

    #[test]
    fn a_mac_follows_from_the_address() {
        assert_eq!(mac_of("10.5.7.2".parse().expect("ip")).to_string(), "0a:58:0a:05:07:02");
        assert_eq!(mac_of("fd00::1:2".parse().expect("ip")).to_string(), "0a:58:00:01:00:02");
    }
}
