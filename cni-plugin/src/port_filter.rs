//! Guarding a container's port: the elements for its MAC and addresses in the sets of the
//! daemon's nftables table, straight over nfnetlink. `add.rs` adds them before the pair is
//! made, so that no frame of the container's is ever unguarded; `del.rs` and `gc.rs` remove
//! them when it is gone. Whatever is missing or left over, the daemon mends from the
//! allocation files.

use std::collections::{BTreeMap, BTreeSet};

use loden_netlink::nftset::{self, Change, FAMILY_BRIDGE, Set};
use loden_netlink::{Error as NetlinkError, Socket};
use loden_proto::allocation::{Allocation, Port};
use loden_proto::port_filter::{Element, by_set};

use crate::error::Error;

/// The way to the port filter of the namespace in which it was opened.
pub(crate) struct PortFilter(Option<Socket>);

impl PortFilter {
    /// Opens it if any of these ports is guarded; else nothing below does anything.
    pub(crate) fn open<'a>(ports: impl IntoIterator<Item = &'a Port>) -> Result<Self, Error> {
        let needed = ports.into_iter().any(|port| port.filter.is_some());
        let socket = needed.then(Socket::netfilter).transpose();
        socket.map(Self).map_err(|e| Error::kernel("open a netfilter socket")(e))
    }

    /// The same for ports of allocations.
    pub(crate) fn open_for(allocations: &[Allocation]) -> Result<Self, Error> {
        Self::open(allocations.iter().filter_map(|a| a.port.as_ref()))
    }

    /// Guards the ports of these allocations. `false` when there is no such table (somebody
    /// flushed the rules while the daemon is down, or this kernel has none for bridges): the
    /// daemon guards them as soon as it can.
    pub(crate) fn guard(&mut self, allocations: &[Allocation]) -> Result<bool, Error> {
        self.apply(allocations, |keys| vec![Change::Add(keys)])
            .map_err(|e| Error::kernel("guard the container's port in the port filter")(e))
    }

    /// Takes back what [`Self::guard`] did; what is gone already is fine.
    pub(crate) fn forget(&mut self, allocations: &[Allocation]) -> Result<(), Error> {
        // Adding first makes the removal always succeed; no kernel before 6.3 has another way.
        self.apply(allocations, |keys| vec![Change::Add(keys), Change::Remove(keys)])
            .map(drop)
            .map_err(|e| Error::kernel("take the container's port out of the port filter")(e))
    }

    fn apply(
        &mut self,
        allocations: &[Allocation],
        changes: impl Fn(&[Vec<u8>]) -> Vec<Change<'_>>,
    ) -> Result<bool, NetlinkError> {
        let Some(socket) = &mut self.0 else { return Ok(true) };
        let mut tables: BTreeMap<&str, BTreeSet<Element>> = BTreeMap::new();
        for allocation in allocations {
            let table = allocation.port.as_ref().and_then(|port| port.filter.as_deref());
            // Each once: the two of a dual-stack container have most of theirs in common.
            tables.entry(table.unwrap_or_default()).or_default().extend(allocation.filter_elements());
        }
        let mut complete = true;
        for (table, elements) in tables {
            let sets = by_set(elements);
            let of_table: Vec<(Set<'_>, Change<'_>)> = sets
                .iter()
                .map(|(set, keys)| (Set { family: FAMILY_BRIDGE, table, set: set.name() }, keys))
                .flat_map(|(set, keys)| changes(keys).into_iter().map(move |change| (set, change)))
                .collect();
            match nftset::change(socket, &of_table) {
                Err(NetlinkError::Kernel(e)) if e.is_absent() || e.is_unsupported() => complete = false,
                other => other?,
            }
        }
        Ok(complete)
    }
}
