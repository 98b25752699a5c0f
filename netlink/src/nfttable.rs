//! What an nftables table is made of, to tell whether somebody changed it. By `nft`'s listing that would take a
//! child process of 3 ms, and 10 MiB where a set holds 10,000 elements.
//! Format: `include/uapi/linux/netfilter/nf_tables.h`.

use crate::attributes::{attribute, attributes, text};
use crate::nftset::{SUBSYSTEM, Set, generic_header, name};
use crate::{Error, Request, Socket};

/// A kind of object: the message that asks for it, and the attributes by which two are told apart. Those that
/// change by themselves are not among them (handles, positions, numbers of users, counters).
struct Kind {
    /// `NFT_MSG_GET…`
    get: u16,
    /// `NFTA_…`
    telling: &'static [u16],
}

const TABLE: Kind = Kind { get: 1, telling: &[TABLE_NAME, TABLE_FLAGS] };
const CHAINS: Kind = Kind {
    get: 4,
    telling: &[
        3,  // NFTA_CHAIN_NAME
        4,  // NFTA_CHAIN_HOOK
        5,  // NFTA_CHAIN_POLICY
        7,  // NFTA_CHAIN_TYPE
        10, // NFTA_CHAIN_FLAGS
        OF_TABLE,
    ],
};
const SETS: Kind = Kind {
    get: 10,
    telling: &[
        4,  // NFTA_SET_KEY_TYPE
        5,  // NFTA_SET_KEY_LEN
        6,  // NFTA_SET_DATA_TYPE
        7,  // NFTA_SET_DATA_LEN
        8,  // NFTA_SET_POLICY
        9,  // NFTA_SET_DESC
        11, // NFTA_SET_TIMEOUT
        12, // NFTA_SET_GC_INTERVAL
        13, // NFTA_SET_USERDATA
        15, // NFTA_SET_OBJ_TYPE
        17, // NFTA_SET_EXPR
        18, // NFTA_SET_EXPRESSIONS
        OF_TABLE, SET_NAME, SET_FLAGS,
    ],
};
const RULES: Kind = Kind {
    get: 7,
    telling: &[
        2, // NFTA_RULE_CHAIN
        OF_TABLE,
        RULE_EXPRESSIONS,
    ],
};

/// `NFTA_TABLE_NAME`
const TABLE_NAME: u16 = 1;
/// `NFTA_TABLE_FLAGS`
const TABLE_FLAGS: u16 = 2;
/// `NFTA_CHAIN_TABLE`, `NFTA_SET_TABLE`, `NFTA_RULE_TABLE`
const OF_TABLE: u16 = 1;
/// `NFT_TABLE_F_DORMANT`: none of its chains sees a packet.
const DORMANT: u32 = 1;
/// `NFTA_SET_NAME`
const SET_NAME: u16 = 2;
/// `NFTA_SET_FLAGS`
const SET_FLAGS: u16 = 3;
/// `NFT_SET_ANONYMOUS`: a part of a rule, such as `{ 10.0.0.1, 10.0.0.2 }`.
const ANONYMOUS: u32 = 1;
/// `NFTA_RULE_EXPRESSIONS`
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_EXPR_NAME`
const EXPRESSION_NAME: u16 = 1;

/// Whether there is such a table, dormant or not. `family` is an `NFPROTO_…`.
pub fn exists(socket: &mut Socket, family: u8, table: &str) -> Result<bool, Error> {
    socket.get(&TABLE.request(family, table)).map(|found| found.is_some())
}

/// What of a table decides over packets: its chains, sets and rules, in the kernel's order and form, without
/// what changes by itself and without the elements of sets that have a name. Equal for a table that nobody changed,
/// as long as the kernel is the same. `None` when there is no such table or it is dormant, that is, sees no packet.
///
/// Whether it is dormant shows before the transaction that changes it takes effect, also if that then fails
/// (net/netfilter/nf_tables_api.c: `nf_tables_updtable`). Everything else shows when it takes effect.
pub fn contents(socket: &mut Socket, family: u8, table: &str) -> Result<Option<Vec<u8>>, Error> {
    let Some(found) = socket.get(&TABLE.request(family, table))? else { return Ok(None) };
    if number(&found.payload, TABLE_FLAGS) & DORMANT != 0 {
        return Ok(None);
    }
    let mut all = TABLE.told(&found.payload);
    let mut anonymous = Vec::new();
    for kind in [CHAINS, SETS, RULES] {
        let parts = socket.gather(&kind.request(family, table), |_, payload| {
            let name = |wanted| value(payload, wanted).map(text);
            // A dump of chains is of all tables.
            if name(OF_TABLE)? != table {
                return None;
            }
            if kind.get == SETS.get && number(payload, SET_FLAGS) & ANONYMOUS != 0 {
                anonymous.extend(name(SET_NAME));
            }
            Some(kind.told(payload))
        })?;
        all.extend(parts.concat());
    }
    for set in &anonymous {
        let mut keys = Set { family, table, set }.list(socket)?;
        // They come in the order of a hash that begins with a random number.
        keys.sort_unstable();
        all.extend(keys.concat());
    }
    Ok(Some(all))
}

/// The value of an attribute of an object.
fn value(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload.get(4..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// An attribute that is a number; 0 where there is none.
fn number(payload: &[u8], wanted: u16) -> u32 {
    value(payload, wanted).and_then(|v| v.try_into().ok()).map_or(0, u32::from_be_bytes)
}

impl Kind {
    fn request(&self, family: u8, table: &str) -> Request {
        let mut payload = generic_header(family, 0);
        name(&mut payload, OF_TABLE, table);
        Request { message_type: SUBSYSTEM << 8 | self.get, flags: 0, payload }
    }

    /// What tells an object from others, behind its kind.
    fn told(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = self.get.to_ne_bytes().to_vec();
        let all = attributes(payload.get(4..).unwrap_or(&[]));
        for (attribute_type, value) in all.filter(|(kind, _)| self.telling.contains(kind)) {
            match (self.get == RULES.get, attribute_type) {
                (true, RULE_EXPRESSIONS) => {
                    attributes(value).for_each(|(_, part)| expression(&mut out, part))
                }
                _ => attribute(&mut out, attribute_type, value),
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
