//! Elements of nftables sets, written straight over nfnetlink: an `nft` child process costs
//! 3 ms and 16 MB, an element here costs microseconds.
//! Format: `include/uapi/linux/netfilter/nf_tables.h`, `struct nfgenmsg`, batches as in
//! `net/netfilter/nfnetlink.c`.

use std::net::IpAddr;

use crate::attributes::{attribute, attributes};
use crate::{Error, Request, Socket, flags};

/// `NFNL_SUBSYS_NFTABLES`
pub(crate) const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const MSG_GETCHAIN: u16 = 4;
const MSG_NEWSETELEM: u16 = 12;
const MSG_GETSETELEM: u16 = 13;
const MSG_DELSETELEM: u16 = 14;
const MSG_NEWGEN: u16 = 15;
const MSG_GETGEN: u16 = 16;
const GEN_ID: u16 = 1;
const GEN_PROC_PID: u16 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
/// Elements per message: a nested attribute holds at most 65,535 bytes, an element of the longest
/// keys (40 bytes) takes 52.
const PER_MESSAGE: usize = 1024;
/// Elements per transaction.
const AT_ONCE: usize = 4 * PER_MESSAGE;

/// `NFPROTO_INET`, the family of a table that serves IPv4 and IPv6.
pub const FAMILY_INET: u8 = 1;
/// `NFNLGRP_NFTABLES`: notices of every change of the rule set.
pub const GROUP: u32 = 7;

/// `NFPROTO_BRIDGE`, the family of a table that sees what passes bridges.
pub const FAMILY_BRIDGE: u8 = 7;

/// A set of one table.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// `NFPROTO_…` of the table.
    pub family: u8,
    /// Name of the table.
    pub table: &'a str,
    /// Name of the set.
    pub set: &'a str,
}

/// A change of a set. Keys have the bytes of the set's type: an address has its own in network order
/// ([`AddressKey`]).
#[derive(Debug, Clone, Copy)]
pub enum Change<'a, K> {
    /// Add these; those already in the set stay.
    Add(&'a [K]),
    /// Remove these, each of which must be in the set.
    Remove(&'a [K]),
}

/// The key that an address is.
#[derive(Debug, Clone, Copy)]
pub enum AddressKey {
    /// Of a set of type `ipv4_addr`.
    V4([u8; 4]),
    /// Of a set of type `ipv6_addr`.
    V6([u8; 16]),
}

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => Self::V6(ip.octets()),
        }
    }
}

impl AsRef<[u8]> for AddressKey {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

impl Set<'_> {
    /// Adds keys; those already in the set stay. All or none of 4,096, which are one transaction. Returns how
    /// many transactions it took.
    pub fn add(&self, socket: &mut Socket, keys: &[impl AsRef<[u8]>]) -> Result<u32, Error> {
        let parts =
            keys.chunks(AT_ONCE).map(|keys| change(socket, &[(*self, Change::Add(keys))]).map(|()| 1));
        parts.sum()
    }

    /// Removes keys; those not in the set are fine. All or none of 4,096, which are one transaction; if some are not
    /// in the set, they are added and removed by 2,048 instead. Returns how many transactions it took.
    pub fn remove(&self, socket: &mut Socket, keys: &[impl AsRef<[u8]>]) -> Result<u32, Error> {
        let mut transactions = 0;
        for keys in keys.chunks(AT_ONCE) {
            match change(socket, &[(*self, Change::Remove(keys))]) {
                Err(Error::Kernel(e)) if e.is_absent() => {
                    // Adding first makes the removal always succeed.
                    for keys in keys.chunks(AT_ONCE / 2) {
                        change(socket, &[(*self, Change::Add(keys)), (*self, Change::Remove(keys))])?;
                        transactions += 1;
                    }
                }
                removed => {
                    removed?;
                    transactions += 1;
                }
            }
        }
        Ok(transactions)
    }

    /// The keys in the set, in the kernel's order.
    pub fn list(&self, socket: &mut Socket) -> Result<Vec<Vec<u8>>, Error> {
        let mut payload = generic_header(self.family, 0);
        name(&mut payload, LIST_TABLE, self.table);
        name(&mut payload, LIST_SET, self.set);
        let request = Request { message_type: SUBSYSTEM << 8 | MSG_GETSETELEM, flags: 0, payload };
        let parts = socket.gather(&request, |_, payload| Some(keys(payload)))?;
        Ok(parts.into_iter().flatten().collect())
    }

    fn message(&self, kind: u16, flags: u16, keys: &[impl AsRef<[u8]>]) -> Request {
        let mut payload = generic_header(self.family, 0);
        name(&mut payload, LIST_TABLE, self.table);
        name(&mut payload, LIST_SET, self.set);
        let (mut list, mut element, mut data) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            data.clear();
            attribute(&mut data, DATA_VALUE, key.as_ref());
            element.clear();
            attribute(&mut element, ELEM_KEY | NLA_F_NESTED, &data);
            attribute(&mut list, ELEM | NLA_F_NESTED, &element);
        }
        attribute(&mut payload, LIST_ELEMENTS | NLA_F_NESTED, &list);
        Request { message_type: SUBSYSTEM << 8 | kind, flags, payload }
    }
}

/// Changes sets in one transaction, in order: all of it takes effect or nothing. At most 4,096 keys in
/// all, so that it stays below the default send buffer.
pub fn change<K: AsRef<[u8]>>(
    socket: &mut Socket,
    changes: &[(Set<'_>, Change<'_, K>)],
) -> Result<(), Error> {
    let mut requests = vec![marker(BATCH_BEGIN)];
    for (set, change) in changes {
        let (kind, flags, keys) = match change {
            Change::Add(keys) => (MSG_NEWSETELEM, flags::CREATE, keys),
            Change::Remove(keys) => (MSG_DELSETELEM, 0, keys),
        };
        requests.extend(keys.chunks(PER_MESSAGE).map(|keys| set.message(kind, flags, keys)));
    }
    if requests.len() == 1 {
        return Ok(());
    }
    requests.push(marker(BATCH_END));
    socket.transaction(&requests)
}

/// Changes nothing, and so waits until whoever changes the rule set at this moment has done so and has told of it:
/// a transaction begins when no other is under way (net/netfilter/nf_tables_api.c: `nf_tables_valid_genid`,
/// `nf_tables_commit`). This one is about a table that cannot be, and fails.
pub fn wait_for_others(socket: &mut Socket) -> Result<(), Error> {
    let nothing: [AddressKey; 0] = [];
    let none = Set { family: FAMILY_INET, table: "", set: "" };
    let request = none.message(MSG_NEWSETELEM, flags::CREATE, &nothing);
    match socket.transaction(&[marker(BATCH_BEGIN), request, marker(BATCH_END)]) {
        Err(Error::Kernel(e)) if e.is_absent() => Ok(()),
        waited => waited,
    }
}

/// The beginning or the end of a transaction.
fn marker(message_type: u16) -> Request {
    Request { message_type, flags: 0, payload: generic_header(0, SUBSYSTEM) }
}

/// The address that a key is.
pub fn key_address(key: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(key).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(key).map(IpAddr::from)).ok()
}

/// The generation of the namespace's rule set: it grows with every change of anybody's, so an
/// unchanged number proves that there was none.
pub fn generation(socket: &mut Socket) -> Result<u32, Error> {
    let request =
        Request { message_type: SUBSYSTEM << 8 | MSG_GETGEN, flags: 0, payload: generic_header(0, 0) };
    let reply = socket.get(&request)?;
    let decoded = reply.as_ref().and_then(|reply| generation_of(reply.message_type, &reply.payload));
    decoded
        .map(|(id, _)| id)
        .ok_or(Error::Decode { message_type: MSG_GETGEN, reason: "no generation id".into() })
}

/// Reads a notice of a new generation: its id and the process that made it. `None` for other notices.
pub fn generation_of(message_type: u16, payload: &[u8]) -> Option<(u32, u32)> {
    if message_type != SUBSYSTEM << 8 | MSG_NEWGEN {
        return None;
    }
    let body = payload.get(4..)?;
    let word = |kind| {
        let value = nested(body, kind).into_iter().next()?;
        value.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
    };
    Some((word(GEN_ID)?, word(GEN_PROC_PID).unwrap_or(0)))
}

/// The table that a notice is about, by family (`NFPROTO_…`) and name; `None` for those of a new
/// generation, which come after all that belong to it.
pub fn table_of(message_type: u16, payload: &[u8]) -> Option<(u8, &str)> {
    if message_type >> 8 != SUBSYSTEM || message_type & 0xff == MSG_NEWGEN {
        return None;
    }
    // The first attribute of every kind of object names its table: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE,
    // NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE, ….
    let name = nested(payload.get(4..)?, CHAIN_TABLE).into_iter().next()?;
    let name = std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).ok()?;
    Some((*payload.first()?, name))
}

/// Whether a notice of this type is about an element of a set.
pub fn is_element(message_type: u16) -> bool {
    [MSG_NEWSETELEM, MSG_DELSETELEM].contains(&(message_type & 0xff))
}

/// Whether a table has a chain of this name. `family` is an `NFPROTO_…`.
pub fn has_chain(socket: &mut Socket, family: u8, table: &str, chain: &str) -> bool {
    let mut payload = generic_header(family, 0);
    name(&mut payload, CHAIN_TABLE, table);
    name(&mut payload, CHAIN_NAME, chain);
    let request = Request { message_type: SUBSYSTEM << 8 | MSG_GETCHAIN, flags: 0, payload };
    socket.get(&request).is_ok_and(|reply| reply.is_some())
}

/// `struct nfgenmsg`: family, version 0, resource id in network order.
pub(crate) fn generic_header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

pub(crate) fn name(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    attribute(out, kind, &bytes);
}

fn keys(payload: &[u8]) -> Vec<Vec<u8>> {
    let body = payload.get(4..).unwrap_or(&[]);
    let elements = nested(body, LIST_ELEMENTS).into_iter().flat_map(|list| nested(list, ELEM));
    let keys = elements.flat_map(|element| nested(element, ELEM_KEY));
    keys.flat_map(|key| nested(key, DATA_VALUE)).map(<[u8]>::to_vec).collect()
}

/// The values of all attributes of this kind on one level.
fn nested(bytes: &[u8], wanted: u16) -> Vec<&[u8]> {
    attributes(bytes).filter(|(kind, _)| *kind == wanted).map(|(_, value)| value).collect()
}
