//! What an nftables table is made of, to tell whether somebody changed it. By `nft`'s listing that would take a
//! child process of 3 ms, and 10 MiB where a set holds 10,000 elements.
//! Format: `include/uapi/linux/netfilter/nf_tables.h`.

use crate::attributes::{attribute, attributes};
use crate::nftset::{SUBSYSTEM, generic_header, name};
use crate::{Error, Request, Socket};

/// A kind of object: the message that asks for it, and the attributes by which two are told apart. Those that
/// change by themselves are not among them (handles, positions, numbers of users, counters).
struct Kind {
    /// `NFT_MSG_GET…`
    get: u16,
    /// `NFTA_…`
    kept: &'static [u16],
}

const TABLE: Kind = Kind { get: 1, kept: &[TABLE_NAME, TABLE_FLAGS] };
/// `NFTA_TABLE_NAME`
const TABLE_NAME: u16 = 1;
/// `NFTA_TABLE_FLAGS`
const TABLE_FLAGS: u16 = 2;

const PARTS: [Kind; 3] = [
    // Chains: table, name, hook, policy, type, flags.
    Kind { get: 4, kept: &[PART_TABLE, 3, 4, 5, 7, 10] },
    // Sets: table, name, flags, types and lengths of key and data, policy, description, time-out and its
    // interval, what nft remembers of it, type of objects, expression.
    Kind { get: 10, kept: &[PART_TABLE, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17] },
    // Rules: table, chain, expressions.
    Kind { get: GET_RULE, kept: &[PART_TABLE, 2, RULE_EXPRESSIONS] },
];
/// `NFTA_CHAIN_TABLE`, `NFTA_SET_TABLE`, `NFTA_RULE_TABLE`
const PART_TABLE: u16 = 1;
/// `NFT_MSG_GETRULE`
const GET_RULE: u16 = 7;
/// `NFTA_RULE_EXPRESSIONS`
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_EXPR_NAME`
const EXPRESSION_NAME: u16 = 1;

/// Whether there is such a table. `family` is an `NFPROTO_…`.
pub fn exists(socket: &mut Socket, family: u8, table: &str) -> Result<bool, Error> {
    socket.get(&TABLE.request(family, table)).map(|found| found.is_some())
}

/// A table's chains, sets and rules, in the kernel's order and form, without what changes by itself and without
/// the elements of sets; `None` when there is no such table. Equal for a table that nobody changed, as long as
/// the kernel is the same.
pub fn contents(socket: &mut Socket, family: u8, table: &str) -> Result<Option<Vec<u8>>, Error> {
    let Some(found) = socket.get(&TABLE.request(family, table))? else { return Ok(None) };
    let mut all = TABLE.kept(&found.payload);
    for kind in PARTS {
        // Dumps of chains are of all tables, and older kernels' of rules and sets too.
        let parts = socket.gather(&kind.request(family, table), |_, payload| {
            let (_, named) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == PART_TABLE)?;
            (named.strip_suffix(&[0]) == Some(table.as_bytes())).then(|| kind.kept(payload))
        })?;
        all.extend(parts.concat());
    }
    Ok(Some(all))
}

impl Kind {
    fn request(&self, family: u8, table: &str) -> Request {
        let mut payload = generic_header(family, 0);
        name(&mut payload, PART_TABLE, table);
        Request { message_type: SUBSYSTEM << 8 | self.get, flags: 0, payload }
    }

    /// What is kept of an object, behind its kind.
    fn kept(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = self.get.to_ne_bytes().to_vec();
        let kept = attributes(payload.get(4..).unwrap_or(&[])).filter(|(kind, _)| self.kept.contains(kind));
        for (kind, value) in kept {
            match (self.get, kind) {
                (GET_RULE, RULE_EXPRESSIONS) => {
                    attributes(value).for_each(|(_, part)| expression(&mut out, part))
                }
                _ => attribute(&mut out, kind, value),
            }
        }
        out
    }
}

/// One expression of a rule; of a counter no more than that it is one.
fn expression(out: &mut Vec<u8>, parts: &[u8]) {
    let counter = attributes(parts).any(|part| part == (EXPRESSION_NAME, b"counter\0"));
    for (kind, value) in attributes(parts).filter(|(kind, _)| !counter || *kind == EXPRESSION_NAME) {
        attribute(out, kind, value);
    }
}
