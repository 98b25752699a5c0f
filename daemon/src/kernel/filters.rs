//! Our nftables table: put in place by the `nft` program in one transaction, its peer sets
//! changed straight over nfnetlink.
//!
//! Whether somebody changed the table is told by its listing, whose digest is remembered from
//! right after we wrote it; and whether anybody changed anything, by the rule set's generation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use loden_core::filters::{Filters, Member, PeerSet, rejected_set};
use loden_netlink::Socket;
use loden_netlink::nftset::{self, FAMILY_BRIDGE, FAMILY_INET, Set};
use loden_proto::Family;
use serde::{Deserialize, Serialize};

use super::{KernelError, program};

/// What we wrote last and how nft showed it then.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Written {
    /// Digest of the rules as we meant them.
    digest: String,
    /// The listing that followed.
    listing: String,
}

/// A table of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `NFPROTO_…`
    family: u8,
    name: String,
}

impl Table {
    /// A network's table that filters VXLAN and masquerades.
    pub fn overlay(network: &str) -> Self {
        Self { family: FAMILY_INET, name: network.into() }
    }

    /// A network's table that guards containers' ports.
    pub fn ports(network: &str) -> Self {
        Self { family: FAMILY_BRIDGE, name: network.into() }
    }

    /// Its name, the network's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One of its sets.
    pub(super) fn set<'a>(&'a self, set: &'a str) -> Set<'a> {
        Set { family: self.family, table: &self.name, set }
    }

    /// As words of an `nft` command.
    fn words(&self) -> [&str; 2] {
        [if self.family == FAMILY_BRIDGE { "bridge" } else { "inet" }, &self.name]
    }
}

/// As nft names it: `inet loden`.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join(" "))
    }
}

/// Memory of what we wrote to one table.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    table: Table,
    written: Option<Written>,
    /// Generation at which the table was last seen intact.
    intact_at: Option<u32>,
}

impl Ledger {
    /// Remembers from a former life of the daemon; without a file the table is written anew.
    pub(super) fn load(path: PathBuf, table: Table) -> Self {
        let written = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, table, written, intact_at: None }
    }

    /// The table.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Whether nobody else has changed any rule or set since the table was last seen intact.
    pub(super) fn unchanged(&self, socket: &mut Socket) -> bool {
        self.intact_at.is_some() && self.intact_at == nftset::generation(socket).ok()
    }

    /// The digest of the rules in place; `None` when the table is missing or not as we left it.
    pub(super) async fn digest(&mut self, socket: &mut Socket) -> Option<String> {
        let written = self.written.clone()?;
        // Before listing: a change in between is then seen by the next look.
        let generation = nftset::generation(socket).ok();
        if generation.is_some() && generation == self.intact_at {
            return Some(written.digest);
        }
        let listing = listing(&self.table).await.ok()??;
        if listing != written.listing {
            return None;
        }
        self.intact_at = generation;
        Some(written.digest)
    }

    /// Puts the table in place by a script.
    pub(super) async fn replace(
        &mut self,
        socket: &mut Socket,
        script: &str,
        digest: String,
    ) -> Result<(), String> {
        self.intact_at = None;
        nft(&["-f", "-"], script).await?;
        let generation = nftset::generation(socket).ok();
        let listing = listing(&self.table).await?;
        let written = Written { digest, listing: listing.unwrap_or_default() };
        let text = serde_json::to_vec(&written).map_err(|e| e.to_string())?;
        if let Err(error) = crate::files::write_atomically(&self.path, &text, 0o644) {
            tracing::warn!(%error, "cannot remember the filters; a restart will write them anew");
        }
        self.written = Some(written);
        self.intact_at = generation;
        Ok(())
    }

    /// Adds to the peer sets or removes from them.
    pub(super) fn change(
        &mut self,
        socket: &mut Socket,
        members: &[Member],
        add: bool,
    ) -> Result<(), KernelError> {
        let before = nftset::generation(socket).ok();
        let mut by_set: BTreeMap<&'static str, Vec<Vec<u8>>> = BTreeMap::new();
        for (set, address) in members {
            by_set.entry(set.name(Family::of(*address))).or_default().push(nftset::address_key(*address));
        }
        for (name, keys) in by_set {
            let set = self.table.set(name);
            match add {
                true => set.add(socket, &keys)?,
                false => set.remove(socket, &keys)?,
            }
        }
        // Our own change does not make the table suspect.
        if before.is_some() && before == self.intact_at {
            self.intact_at = nftset::generation(socket).ok();
        }
        Ok(())
    }
}

/// What the peer sets hold.
pub(super) fn admitted(
    socket: &mut Socket,
    table: &Table,
    sets: &[PeerSet],
) -> Result<BTreeSet<Member>, KernelError> {
    let mut all = BTreeSet::new();
    for family in Family::ALL {
        for set in sets {
            let elements = table.set(set.name(family)).list(socket)?;
            let addresses = elements.iter().filter_map(|key| nftset::key_address(key));
            // Put in at once they leave no room unused.
            all.append(&mut addresses.map(|address| (*set, address)).collect());
        }
    }
    Ok(all)
}

/// The table without counters and set elements, as nft shows it; `None` when there is none.
async fn listing(table: &Table) -> Result<Option<String>, String> {
    let arguments = [&["-s", "-t", "list", "table"], table.words().as_slice()].concat();
    match nft(&arguments, "").await {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.contains("No such file or directory") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Packets dropped because they came from no peer, by source.
pub async fn rejected_sources(network: &str) -> BTreeMap<IpAddr, u64> {
    let (table, mut all) = (Table::overlay(network), BTreeMap::new());
    for family in Family::ALL {
        all.extend(counted(&table, rejected_set(family)).await);
    }
    all
}

/// The packets that each element of a set has counted; nothing when there is no such set.
pub(super) async fn counted<K: Ord + FromStr>(table: &Table, set: &str) -> BTreeMap<K, u64> {
    let [family, name] = table.words();
    let text = nft(&["-j", "list", "set", family, name, set], "").await.unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let sets = value["nftables"].as_array().into_iter().flatten();
    let elements = sets.filter_map(|o| o["set"]["elem"].as_array()).flatten().map(|e| &e["elem"]);
    elements
        .filter_map(|e| Some((e["val"].as_str()?.parse().ok()?, e["counter"]["packets"].as_u64()?)))
        .collect()
}

/// Whether a table of ours is there.
pub async fn table_exists(table: &Table) -> Result<bool, String> {
    listing(table).await.map(|l| l.is_some())
}

/// Removes a table of ours.
pub async fn remove_table(table: &Table) -> Result<(), String> {
    // `destroy` needs nft 1.0.7; adding first makes the deletion always succeed.
    nft(&["-f", "-"], &format!("add table {table}\ndelete table {table}\n")).await.map(drop)
}

/// Removes from a network's table what filters VXLAN; it masquerades on.
pub async fn remove_vxlan_filter(network: &str) -> Result<(), String> {
    nft(&["-f", "-"], &Filters::vxlan_removal(network)).await.map(drop)
}

async fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    program::run(&["nft"], arguments, input, "nftables").await
}
