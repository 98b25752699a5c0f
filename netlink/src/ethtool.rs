//! Features of a NIC (`ETHTOOL_MSG_FEATURES_GET`, Linux 5.6; Documentation/networking/ethtool-netlink.rst),
//! such as which offloads are on. Asked by the daemon before it makes a tunnel on that NIC.

use std::collections::BTreeSet;

use crate::attributes::{attribute, attributes};
use crate::{Error, Reply, Request, Socket};

/// `GENL_ID_CTRL`: the family that tells the numbers of all others.
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;
/// `struct genlmsghdr`
const HEADER_LEN: usize = 4;

/// Names of the features that are on, as `ethtool -k` shows them: `tx-udp_tnl-segmentation`. The socket
/// is a generic one ([`Socket::generic`]), `device` an interface's index.
pub fn features(socket: &mut Socket, device: u32) -> Result<BTreeSet<String>, Error> {
    let family = family(socket)?;
    let mut header = Vec::new();
    attribute(&mut header, ETHTOOL_A_HEADER_DEV_INDEX, &device.to_ne_bytes());
    let mut payload = vec![ETHTOOL_MSG_FEATURES_GET, 1, 0, 0];
    attribute(&mut payload, ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED, &header);
    let reply = ask(socket, &Request { message_type: family, flags: 0, payload })?;
    Ok(active(&reply))
}

fn family(socket: &mut Socket) -> Result<u16, Error> {
    let mut payload = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    attribute(&mut payload, CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
    let reply = ask(socket, &Request { message_type: CONTROL, flags: 0, payload })?;
    let id = find(body(&reply), CTRL_ATTR_FAMILY_ID).and_then(<[u8]>::first_chunk);
    let id = id.ok_or_else(|| undecodable(&reply, "no CTRL_ATTR_FAMILY_ID"))?;
    Ok(u16::from_ne_bytes(*id))
}

fn ask(socket: &mut Socket, request: &Request) -> Result<Reply, Error> {
    let nothing = Reply { message_type: request.message_type, payload: Vec::new() };
    socket.get(request)?.ok_or_else(|| undecodable(&nothing, "no such object"))
}

fn undecodable(reply: &Reply, reason: &str) -> Error {
    Error::Decode { message_type: reply.message_type, reason: reason.into() }
}

/// Every bit in the list is set: the kernel sends it without a mask.
fn active(reply: &Reply) -> BTreeSet<String> {
    let bits = find(body(reply), ETHTOOL_A_FEATURES_ACTIVE)
        .and_then(|set| find(set, ETHTOOL_A_BITSET_BITS))
        .unwrap_or_default();
    let names = attributes(bits)
        .filter(|(kind, _)| *kind == ETHTOOL_A_BITSET_BITS_BIT)
        .filter_map(|(_, bit)| find(bit, ETHTOOL_A_BITSET_BIT_NAME));
    names.map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()).collect()
}

fn body(reply: &Reply) -> &[u8] {
    reply.payload.get(HEADER_LEN..).unwrap_or_default()
}

fn find(attributes_of: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(attributes_of).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(kind: u16, inside: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        attribute(&mut out, kind | NLA_F_NESTED, inside);
        out
    }

    fn bit(name: &str) -> Vec<u8> {
        let mut name_attribute = Vec::new();
        attribute(&mut name_attribute, ETHTOOL_A_BITSET_BIT_NAME, name.as_bytes());
        nested(ETHTOOL_A_BITSET_BITS_BIT, &name_attribute)
    }

    #[test]
    fn names_are_read_from_the_active_set_alone() {
        let set = |names: &[&str]| {
            nested(ETHTOOL_A_BITSET_BITS, &names.iter().flat_map(|name| bit(name)).collect::<Vec<u8>>())
        };
        let mut payload = vec![11, 1, 0, 0];
        payload.extend(nested(2, &set(&["tx-scatter-gather\0", "tx-gro\0"])));
        payload.extend(nested(ETHTOOL_A_FEATURES_ACTIVE, &set(&["tx-scatter-gather\0", "rx-gro\0"])));
        let found = active(&Reply { message_type: 20, payload: payload.clone() });
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["rx-gro", "tx-scatter-gather"]);
        // Torn anywhere, it is no reason to panic.
        for length in 0..payload.len() {
            active(&Reply { message_type: 20, payload: payload[..length].to_vec() });
        }
    }

    #[test]
    fn the_loopback_has_features() {
        let mut socket = Socket::generic().expect("a generic netlink socket");
        let features = features(&mut socket, 1).expect("features of lo");
        assert!(features.contains("loopback"), "{features:?}");
    }
}
