//! Guarding a container's port: the elements for its MAC and addresses in the sets of the
//! daemon's nftables table, straight over nfnetlink. `add.rs` adds them before the pair is
//! made, so that no frame of the container's is ever unguarded. Whatever is missing or left
//! over, the daemon mends from the allocation files.
//!
//! Nothing here removes them: the kernel frees what was removed after a grace period, and lets
//! no netfilter socket close before (`nft_rcv_nl_event`, net/netfilter/nf_tables_api.c). A DEL
//! would take twice as long, and fifty at once would queue up. The daemon, whose socket stays
//! open, does it; until then they name an interface that is no more.

use std::collections::BTreeSet;

use loden_netlink::nftset::{self, Change, FAMILY_BRIDGE, Set};
use loden_netlink::{Error as NetlinkError, Socket};
use loden_proto::allocation::Allocation;
use loden_proto::port_filter::by_set;

use crate::error::Error;

/// Guards the ports of these allocations in this table. `false` when there is no such table
/// (somebody flushed the rules while the daemon is down, or this kernel has none for bridges):
/// the daemon guards them as soon as it can.
pub(crate) fn guard(table: &str, allocations: &[Allocation]) -> Result<bool, Error> {
    let failed = || Error::kernel("guard the container's port in the port filter");
    let mut socket = Socket::netfilter().map_err(|e| failed()(e.into()))?;
    // Each once: the two of a dual-stack container have most of theirs in common.
    let elements: BTreeSet<_> = allocations.iter().flat_map(|a| a.filter_elements(table)).collect();
    let sets = by_set(elements);
    let changes: Vec<_> = sets
        .iter()
        .map(|(set, keys)| (Set { family: FAMILY_BRIDGE, table, set: set.name() }, Change::Add(keys)))
        .collect();
    match nftset::change(&mut socket, &changes) {
        Err(NetlinkError::Kernel(e)) if e.is_absent() || e.is_unsupported() => Ok(false),
        other => other.map(|()| true).map_err(failed()),
    }
}
