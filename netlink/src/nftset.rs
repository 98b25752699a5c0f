//! Elements of nftables sets, written straight over nfnetlink: an `nft` child process costs
//! 3 ms and 16 MB, an element here costs microseconds.
//! Format: `include/uapi/linux/netfilter/nf_tables.h`, `struct nfgenmsg`, batches as in
//! `net/netfilter/nfnetlink.c`.

use std::net::IpAddr;

use crate::nexthop::attribute;
use crate::{Error, Reply, Request, Socket, flags};

/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;
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
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Elements per message: a nested attribute holds at most 65,535 bytes, an IPv6 element takes 32.
const PER_MESSAGE: usize = 1024;

/// `NFPROTO_INET`, the family of a table that serves IPv4 and IPv6.
pub const FAMILY_INET: u8 = 1;
/// `NFNLGRP_NFTABLES`: notices of every change of the rule set.
pub const GROUP: u32 = 7;

/// A set of one table.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    /// `NFPROTO_…` of the table.
    pub family: u8,
    /// Name of the table.
    pub table: &'a str,
    /// Name of the set, whose key is an IPv4 or IPv6 address.
    pub set: &'a str,
}

impl Set<'_> {
    /// Adds addresses; those already in the set stay. All or none.
    pub fn add(&self, socket: &mut Socket, addresses: &[IpAddr]) -> Result<(), Error> {
        self.change(socket, MSG_NEWSETELEM, flags::CREATE, addresses)
    }

    /// Removes addresses, each of which must be in the set. All or none.
    pub fn remove(&self, socket: &mut Socket, addresses: &[IpAddr]) -> Result<(), Error> {
        self.change(socket, MSG_DELSETELEM, 0, addresses)
    }

    /// The addresses in the set, in the kernel's order.
    pub fn list(&self, socket: &mut Socket) -> Result<Vec<IpAddr>, Error> {
        let mut payload = generic_header(self.family, 0);
        name(&mut payload, LIST_TABLE, self.table);
        name(&mut payload, LIST_SET, self.set);
        let request = Request { message_type: SUBSYSTEM << 8 | MSG_GETSETELEM, flags: 0, payload };
        let replies = socket.dump(&request)?;
        Ok(replies.iter().flat_map(elements).collect())
    }

    fn change(&self, socket: &mut Socket, kind: u16, extra: u16, addresses: &[IpAddr]) -> Result<(), Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        let marker = |message_type| Request { message_type, flags: 0, payload: generic_header(0, SUBSYSTEM) };
        // A transaction of at most 16 messages stays below the default send buffer.
        for transaction in addresses.chunks(4 * PER_MESSAGE) {
            let mut requests = vec![marker(BATCH_BEGIN)];
            for chunk in transaction.chunks(PER_MESSAGE) {
                let mut payload = generic_header(self.family, 0);
                name(&mut payload, LIST_TABLE, self.table);
                name(&mut payload, LIST_SET, self.set);
                let mut list = Vec::new();
                for address in chunk {
                    let mut data = Vec::new();
                    match address {
                        IpAddr::V4(ip) => attribute(&mut data, DATA_VALUE, &ip.octets()),
                        IpAddr::V6(ip) => attribute(&mut data, DATA_VALUE, &ip.octets()),
                    }
                    let mut element = Vec::new();
                    attribute(&mut element, ELEM_KEY | NLA_F_NESTED, &data);
                    attribute(&mut list, ELEM | NLA_F_NESTED, &element);
                }
                attribute(&mut payload, LIST_ELEMENTS | NLA_F_NESTED, &list);
                requests.push(Request { message_type: SUBSYSTEM << 8 | kind, flags: extra, payload });
            }
            requests.push(marker(BATCH_END));
            socket.transaction(&requests)?;
        }
        Ok(())
    }
}

/// The generation of the namespace's rule set: it grows with every change of anybody's, so an
/// unchanged number proves that there was none.
pub fn generation(socket: &mut Socket) -> Result<u32, Error> {
    let request =
        Request { message_type: SUBSYSTEM << 8 | MSG_GETGEN, flags: 0, payload: generic_header(0, 0) };
    let reply = socket.get(&request)?;
    let decoded = reply.as_ref().and_then(generation_of);
    decoded
        .map(|(id, _)| id)
        .ok_or(Error::Decode { message_type: MSG_GETGEN, reason: "no generation id".into() })
}

/// Reads a notice of a new generation: its id and the process that made it. `None` for other notices.
pub fn generation_of(reply: &Reply) -> Option<(u32, u32)> {
    if reply.message_type != SUBSYSTEM << 8 | MSG_NEWGEN {
        return None;
    }
    let body = reply.payload.get(4..)?;
    let word = |kind| {
        let value = nested(body, kind).into_iter().next()?;
        value.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
    };
    Some((word(GEN_ID)?, word(GEN_PROC_PID).unwrap_or(0)))
}

/// The table that a notice is about, by family (`NFPROTO_…`) and name; `None` for those of a new
/// generation, which come after all that belong to it.
pub fn table_of(reply: &Reply) -> Option<(u8, &str)> {
    if reply.message_type >> 8 != SUBSYSTEM || reply.message_type & 0xff == MSG_NEWGEN {
        return None;
    }
    // The first attribute of every kind of object names its table: NFTA_TABLE_NAME, NFTA_CHAIN_TABLE,
    // NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE, ….
    let name = nested(reply.payload.get(4..)?, CHAIN_TABLE).into_iter().next()?;
    let name = std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).ok()?;
    Some((*reply.payload.first()?, name))
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
fn generic_header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

fn name(out: &mut Vec<u8>, kind: u16, text: &str) {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    attribute(out, kind, &bytes);
}

fn elements(reply: &Reply) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let body = reply.payload.get(4..).unwrap_or(&[]);
    for list in nested(body, LIST_ELEMENTS) {
        for element in nested(list, ELEM) {
            for key in nested(element, ELEM_KEY) {
                for value in nested(key, DATA_VALUE) {
                    if let Ok(v4) = <[u8; 4]>::try_from(value) {
                        found.push(IpAddr::from(v4));
                    } else if let Ok(v6) = <[u8; 16]>::try_from(value) {
                        found.push(IpAddr::from(v6));
                    }
                }
            }
        }
    }
    found
}

/// The values of all attributes of this kind on one level.
fn nested(mut bytes: &[u8], wanted: u16) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some(head) = bytes.first_chunk::<4>() {
        let length = u16::from_ne_bytes([head[0], head[1]]) as usize;
        let Some(value) = bytes.get(4..length) else { break };
        if u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK == wanted {
            found.push(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}
