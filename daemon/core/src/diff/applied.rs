//! The model of the kernel: what it holds after an operation. The reconciler keeps its belief
//! current with it, and the tests prove the diff against it.

use std::collections::HashSet;
use std::net::IpAddr;

use loden_proto::Family;

use super::Operation;
use crate::observed::{Address, Observed, Via};

/// Takes in operations that succeeded, in their order: as [`applied`] of each, but deletions of nexthop objects
/// are put off until something else needs them: each goes through all routes, which for 4,000 of 10,000 was a
/// third of what it took that as many leave.
pub fn all_applied<'a>(observed: &mut Observed, operations: impl IntoIterator<Item = &'a Operation>) {
    let mut deleted = HashSet::new();
    for operation in operations {
        match operation {
            Operation::DeleteNexthop(id) => _ = deleted.insert(*id),
            Operation::AddNexthop(..) | Operation::SetRoute { .. } => {
                delete_nexthops(observed, &std::mem::take(&mut deleted));
                applied(observed, operation);
            }
            other => applied(observed, other),
        }
    }
    delete_nexthops(observed, &deleted);
}

/// The kernel deletes the routes that use them (net/ipv4/nexthop.c: `__remove_nexthop_fib`).
fn delete_nexthops(observed: &mut Observed, ids: &HashSet<u32>) {
    if !ids.is_empty() {
        for id in ids {
            observed.nexthops.remove(id);
        }
        observed.routes.retain(|route| !matches!(route.via, Via::Nexthop(id) if ids.contains(&id)));
    }
}

/// What the kernel holds after an operation succeeded. Creating or deleting a device is not
/// modelled here: the caller observes again.
pub fn applied(observed: &mut Observed, operation: &Operation) {
    use Operation as O;
    match operation {
        O::ReplaceFilters(filters, keep) => {
            observed.filters = Some(filters.digest());
            observed.admitted = keep.iter().filter(|(s, _)| filters.peer_sets.contains(s)).copied().collect();
        }
        O::Admit(all) => observed.admitted.extend(all),
        O::Dismiss(all) => {
            for member in all {
                observed.admitted.remove(member);
            }
        }
        O::AddDevice(_) | O::DeleteDevice { .. } => {}
        O::ChangeDevice { index, device, .. } => {
            if let Some(link) = observed.links.get_mut(index) {
                link.mac = Some(device.mac);
                link.mtu = device.mtu;
                if let Some(vxlan) = &mut link.vxlan {
                    vxlan.local = Some(device.local);
                    vxlan.lower = device.lower;
                    vxlan.learning = device.learning;
                }
            }
        }
        O::AddAddress { device, address } => observed.addresses.entry(*device).or_default().push(Address {
            address: *address,
            length: Family::of(*address).bits(),
            permanent: true,
            unusable: false,
            ours: true,
        }),
        O::DeleteAddress { device, address, length } => {
            if let Some(all) = observed.addresses.get_mut(device) {
                all.retain(|a| (a.address, a.length) != (*address, *length));
            }
        }
        O::SetUp { device, .. } => {
            if let Some(link) = observed.links.get_mut(device) {
                link.up = true;
            }
        }
        O::Rename { index, to, .. } => {
            if let Some(link) = observed.links.get_mut(index) {
                link.name.clone_from(to);
            }
        }
        O::Forward(family, name) => {
            observed.forwarding.insert((*family, name.clone()));
        }
        O::SetNeighbour { device, address, mac } => {
            observed.neighbours.insert((*device, *address), *mac);
        }
        O::DeleteNeighbour { device, address } => {
            observed.neighbours.remove(&(*device, *address));
        }
        O::SetFdb { device, mac, endpoint } => {
            let former: Vec<IpAddr> = observed.endpoints(*device, *mac).collect();
            for endpoint in former {
                observed.fdb.remove(&(*device, *mac, endpoint));
            }
            observed.fdb.insert((*device, *mac, *endpoint));
        }
        O::DeleteFdb { device, mac, endpoint } => {
            observed.fdb.remove(&(*device, *mac, *endpoint));
        }
        O::AddNexthop(id, nexthop) => {
            observed.nexthops.insert(*id, *nexthop);
        }
        O::DeleteNexthop(id) => delete_nexthops(observed, &HashSet::from([*id])),
        O::SetRoute { route, replace } => {
            let replaced =
                observed.routes_to(route.subnet).find(|r| *replace && r.metric == route.metric).cloned();
            if let Some(replaced) = replaced {
                observed.routes.remove(&replaced);
            }
            observed.routes.insert(route.clone());
        }
        O::DeleteRoute(route) => {
            observed.routes.remove(route);
        }
    }
}
