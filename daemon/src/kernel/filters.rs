//! Our nftables table: put in place by the `nft` program in one transaction, its peer sets
//! changed straight over nfnetlink.
//!
//! Whether somebody changed the table is told by its contents, whose digest is remembered from
//! right after we wrote it, if nobody else changed it meanwhile; and whether anybody changed
//! anything, by the rule set's generation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use loden_core::filters::{Filters, Member, PeerSet, rejected_set};
use loden_core::fnv::Fnv;
use loden_netlink::nftset::{self, AddressKey, FAMILY_BRIDGE, FAMILY_INET, Set};
use loden_netlink::{Error, Events, Socket, nfttable};
use loden_proto::Family;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::program;
use super::watch::Subscription;

/// A change of so many elements pauses the watch: notices of fewer cost less than that.
const PAUSE_FROM: usize = 64;
/// How often we look for the notice of a change that shows. It mostly is there at once; it comes later when the
/// change is one of thousands of objects, or whoever makes it waits for a CPU.
const NOTICE_PACE: Duration = Duration::from_millis(1);
/// After that we cannot tell whether somebody else changed the table.
const NOTICE_PATIENCE: Duration = Duration::from_secs(1);

/// What we wrote last and how the kernel had it then.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Written {
    /// Digest of the rules as we meant them.
    digest: String,
    /// Digest of the table's contents that followed.
    contents: String,
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

    /// Digest of what it is made of, without the elements of its sets; `None` when there is none.
    fn contents(&self, socket: &mut Socket) -> Result<Option<String>, Error> {
        let digest = |contents: Vec<u8>| {
            let mut hash = Fnv::default();
            hash.write(&contents);
            format!("{:016x}", hash.finish())
        };
        Ok(nfttable::contents(socket, self.family, &self.name)?.map(digest))
    }

    /// Counts the generations that changed it, elements of its sets apart, up to and including the generation
    /// `last`; waits for the notice of that one. The notices of a generation's changes come before its own.
    async fn times_changed(&self, changes: &Events, last: u32) -> io::Result<u32> {
        let (mut times, mut touched, mut reached) = (0, false, false);
        while !reached {
            let read = changes.read(|message_type, payload| {
                let named = nftset::table_of(message_type, payload);
                touched |=
                    named == Some((self.family, self.name.as_str())) && !nftset::is_element(message_type);
                let generation = nftset::generation_of(message_type, payload).map(|(id, _)| id);
                // Later ones do not count, also those of the same read.
                if let Some(generation) = generation.filter(|_| !reached) {
                    times += u32::from(std::mem::take(&mut touched));
                    reached = generation == last;
                }
            });
            match read {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(NOTICE_PACE).await,
                read => read?,
            }
        }
        Ok(times)
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

    /// The digest of the rules in place; `None` when the table is missing or not as we left it. That is read each
    /// time: a table that somebody has made dormant shows as awake while a transaction that would wake it is under
    /// way, and if that fails, no generation tells.
    pub(super) fn digest(&mut self, socket: &mut Socket) -> Result<Option<String>, Error> {
        let Some(written) = &self.written else { return Ok(None) };
        // Before the contents: a change in between is then seen by the next look.
        let generation = nftset::generation(socket)?;
        if self.table.contents(socket)?.as_ref() != Some(&written.contents) {
            return Ok(None);
        }
        self.intact_at = Some(generation);
        Ok(Some(written.digest.clone()))
    }

    /// Puts the table in place by a script. If somebody else changed the table at the same moment, what of its
    /// contents is theirs cannot be told: then it is not remembered, and the next look has it written again. That
    /// comes soon: a pass of the reconciler looks at what it has done, and the notice of this write has the
    /// endpoints' task look.
    pub(super) async fn replace(
        &mut self,
        socket: &mut Socket,
        script: &str,
        digest: String,
    ) -> Result<(), String> {
        self.intact_at = None;
        let changes = Events::netfilter(&[nftset::GROUP]).map_err(|e| e.to_string())?;
        let before = nftset::generation(socket).map_err(|e| e.to_string())?;
        nft(&["-f", "-"], script).await?;
        let contents = self.table.contents(socket).map_err(|e| e.to_string())?;
        // After the contents: whatever shows in them is of this generation or an earlier one. Of each the kernel
        // raises the number, then shows the changes, then tells of them, and last of the generation
        // (net/netfilter/nf_tables_api.c: `nf_tables_commit`).
        let generation = nftset::generation(socket).map_err(|e| e.to_string())?;
        let counted = timeout(NOTICE_PATIENCE, self.table.times_changed(&changes, generation)).await;
        let alone = match counted {
            Ok(Ok(times)) => times == 1,
            // More notices than the socket holds: if nobody changed anything else, nobody changed this.
            Ok(Err(_)) => generation == before.wrapping_add(1),
            Err(_elapsed) => false,
        };
        let Some(contents) = contents.filter(|_| alone) else {
            tracing::debug!(table = %self.table, "somebody else may have changed it while it was written");
            return Ok(());
        };
        let written = Written { digest, contents };
        let text = serde_json::to_vec(&written).map_err(|e| e.to_string())?;
        if let Err(error) = crate::files::write_atomically(&self.path, &text, 0o644) {
            tracing::warn!(%error, "cannot remember the filters; a restart will write them anew");
        }
        self.written = Some(written);
        self.intact_at = Some(generation);
        Ok(())
    }

    /// Adds to the peer sets or removes from them. A change of many pauses the watch.
    pub(super) fn change(
        &mut self,
        socket: &mut Socket,
        members: &[Member],
        add: bool,
        watch: Option<&Subscription>,
    ) -> Result<(), Error> {
        let watch = watch.filter(|_| members.len() >= PAUSE_FROM);
        let before = nftset::generation(socket)?;
        if let Some(watch) = watch {
            // What `before` counts is still heard.
            nftset::wait_for_others(socket)?;
            // One that cannot be paused hears more than it needs.
            let _ = watch.leave_rules();
        }
        let changed = self.change_sets(socket, members, add);
        let joined = watch.map_or(Ok(()), Subscription::join_rules);
        let after = nftset::generation(socket);
        let alone = changed.as_ref().is_ok_and(|transactions| {
            after.as_ref().is_ok_and(|after| *after == before.wrapping_add(*transactions))
        });
        if let Some(watch) = watch.filter(|_| !alone || joined.is_err()) {
            watch.missed();
        }
        // Our own change does not make the table suspect.
        if alone && self.intact_at == Some(before) {
            self.intact_at = after.ok();
        }
        changed.map(drop)
    }

    /// How many transactions that took.
    fn change_sets(&self, socket: &mut Socket, members: &[Member], add: bool) -> Result<u32, Error> {
        let mut by_set: BTreeMap<&'static str, Vec<AddressKey>> = BTreeMap::new();
        for (set, address) in members {
            by_set.entry(set.name(Family::of(*address))).or_default().push((*address).into());
        }
        let mut transactions = 0;
        for (name, keys) in by_set {
            let set = self.table.set(name);
            transactions += match add {
                true => set.add(socket, &keys)?,
                false => match set.remove(socket, &keys) {
                    // Somebody has just deleted the set, and with it what was to be removed.
                    Err(e) if e.kernel().is_some_and(|e| e.is_absent()) => 0,
                    removed => removed?,
                },
            };
        }
        Ok(transactions)
    }
}

/// What the peer sets hold.
pub(super) fn admitted(
    socket: &mut Socket,
    table: &Table,
    sets: &[PeerSet],
) -> Result<BTreeSet<Member>, Error> {
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
pub fn table_exists(table: &Table) -> Result<bool, Error> {
    nfttable::exists(&mut Socket::netfilter()?, table.family, &table.name)
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
