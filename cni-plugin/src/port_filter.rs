//! Guarding a container's port: the elements for its MAC and addresses in the sets of the
//! daemon's nftables table, straight over nfnetlink. `add.rs` adds them before the pair is
//! made, so that no frame of the container's is ever unguarded; `del.rs` and `gc.rs` remove
//! them when it is gone. Whatever is missing or left over, the daemon mends from the
//! allocation files.

use std::collections::BTreeMap;

use loden_netlink::nftset::{self, Change, FAMILY_BRIDGE, Set};
use loden_netlink::{Error as NetlinkError, Socket};
use loden_proto::allocation::Allocation;
use loden_proto::port_filter::PortSet;

use crate::error::Error;

/// Guards the ports of these allocations. `false` when there is no such table (somebody
/// flushed the rules while the daemon is down, or this kernel has none for bridges): the
/// daemon guards them as soon as it can.
pub(crate) fn guard(allocations: &[Allocation]) -> Result<bool, Error> {
    apply(allocations, |keys| vec![Change::Add(keys)])
        .map_err(|e| Error::kernel("guard the container's port in the port filter")(e))
}

/// Takes back what [`guard`] did; what is gone already is fine.
pub(crate) fn forget(allocations: &[Allocation]) -> Result<(), Error> {
    // Adding first makes the removal always succeed; no kernel before 6.3 has another way.
    apply(allocations, |keys| vec![Change::Add(keys), Change::Remove(keys)])
        .map(drop)
        .map_err(|e| Error::kernel("take the container's port out of the port filter")(e))
}

fn apply(
    allocations: &[Allocation],
    changes: impl Fn(&[Vec<u8>]) -> Vec<Change<'_>>,
) -> Result<bool, NetlinkError> {
    let mut tables: BTreeMap<&str, BTreeMap<PortSet, Vec<Vec<u8>>>> = BTreeMap::new();
    for allocation in allocations {
        let Some(table) = allocation.port.as_ref().and_then(|port| port.filter.as_deref()) else { continue };
        for (set, key) in allocation.filter_elements() {
            tables.entry(table).or_default().entry(set).or_default().push(key);
        }
    }
    let mut complete = true;
    for (table, sets) in &tables {
        let set = |set: &PortSet| Set { family: FAMILY_BRIDGE, table, set: set.name() };
        let of_table: Vec<_> =
            sets.iter().flat_map(|(s, keys)| changes(keys).into_iter().map(|c| (set(s), c))).collect();
        match nftset::change(&mut Socket::netfilter()?, &of_table) {
            Err(NetlinkError::Kernel(e)) if e.is_absent() || e.is_unsupported() => complete = false,
            other => other?,
        }
    }
    Ok(complete)
}
