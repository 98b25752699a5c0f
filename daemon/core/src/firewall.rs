//! Other people's rules: would they drop the overlay's packets, and whose are they?
//!
//! Instead of knowing each firewall's habits, we send packets that matter through a model of the rule
//! sets (`walk.rs`) and see where they end. In doubt (a test that the model does not know) a packet is
//! taken to pass: what is reported as dropped is dropped.
//!
//! ```text
//! nft -j list ruleset ───────► nft ──────┐
//!                                        ├─► RuleSet ─► walk ─► findings
//! iptables-{nft,legacy}-save ► iptables ─┘
//! ```

mod findings;
mod iptables;
mod nft;
mod walk;

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_proto::Family;

use crate::docker::user_chain::BackEnd;

pub use findings::{Bridge, Findings, Surroundings, findings};

/// All rules of a namespace, of whatever tool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleSet {
    tables: Vec<Table>,
}

/// Why a listing cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the listing of nft: {0}")]
pub struct Unreadable(String);

#[derive(Debug, Clone, PartialEq)]
struct Table {
    /// As its tool calls it: `inet firewalld`, `iptables-legacy filter`.
    name: String,
    families: Vec<Family>,
    chains: BTreeMap<String, Chain>,
    /// Whether a rule of it sets marks.
    sets_marks: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Chain {
    /// Where the kernel enters it; `None` for chains that are only jumped to.
    base: Option<Base>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Base {
    hook: Hook,
    priority: i64,
    nat: bool,
    drops_by_policy: bool,
}

/// Hooks at which the overlay's packets can be dropped or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Prerouting,
    Input,
    Forward,
    Postrouting,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    conditions: Vec<Condition>,
    verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq)]
enum Verdict {
    Accept,
    /// `drop`, `reject`, and what else ends a packet.
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// `masquerade`, `snat`: the packet leaves under another source.
    NewSource,
    /// Something that we cannot judge and that may end the chain.
    Unknown,
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    test: Test,
    negated: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    /// Names, which may end in a `*`.
    InInterface(Vec<String>),
    OutInterface(Vec<String>),
    Source(Vec<(IpAddr, IpAddr)>),
    Destination(Vec<(IpAddr, IpAddr)>),
    Protocol(Vec<String>),
    /// Of one protocol, where the rule says which.
    DestinationPort(Option<String>, Vec<(u16, u16)>),
    /// Mask and values.
    Mark(u32, Vec<u32>),
    /// Of connection tracking: `new`, `untracked`, `established`, …
    State(Vec<String>),
    Family(Family),
    /// Whether an earlier rule has redirected the packet, which ours never are.
    Redirected,
    /// One that the model does not know; of one protocol's header, where that is known.
    Unknown(Option<String>),
}

impl RuleSet {
    /// Reads the output of `nft -j list ruleset`.
    pub fn from_nft(json: &str) -> Result<Self, Unreadable> {
        nft::read(json).map(|tables| Self { tables })
    }

    /// Whether tables of `iptables-nft` are there. nft's JSON does not tell what their rules test, so
    /// they are to be [added](Self::add_iptables).
    pub fn has_iptables(&self, family: Family) -> bool {
        let tables =
            ["raw", "mangle", "nat", "filter"].map(|name| iptables::table_name(BackEnd::Nft, family, name));
        self.tables.iter().any(|t| tables.contains(&t.name))
    }

    /// Adds the output of `iptables-save` or `ip6tables-save` of a back end, in place of what nft says
    /// of the same tables.
    pub fn add_iptables(&mut self, save: &str, back_end: BackEnd, family: Family) {
        let tables = iptables::read(save, back_end, family);
        self.tables.retain(|old| !tables.iter().any(|new| new.name == old.name));
        self.tables.extend(tables);
    }

    /// Whether anybody but the owner of this table sets marks.
    fn sets_marks(&self, except: &str) -> bool {
        self.tables.iter().any(|t| t.sets_marks && t.name != except)
    }

    fn has_chain(&self, name: &str) -> bool {
        self.tables.iter().any(|t| t.chains.contains_key(name))
    }
}

#[cfg(test)]
mod tests;
