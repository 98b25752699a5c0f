//! GC: free what no container has any more. Called by `run.rs` and by `loden endpoints --free-dead`.
//!
//! The runtime says which attachments it knows, and the specification has the plugin delete
//! all others. But several runtimes may share one network, and each knows its own alone; so
//! an attachment that is not in the list is freed only when it is dead for certain:
//!
//! | its pair | its namespace's path | |
//! |---|---|---|
//! | there | leads to a namespace | alive |
//! | there | leads to no namespace | alive, if it stays: the kernel removes a pair with its namespace, a moment after that ended, so something holds it |
//! | gone | leads to a namespace | dead, unless the container's end is in there: somebody renamed the host's |
//! | gone | leads to no namespace | dead |
//!
//! What an ADD works on at this moment is alive (it holds the allocation's file locked).

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use loden_netlink::Socket;
use loden_proto::Family;
use loden_proto::allocation::Allocation;

use crate::allocations::{Idle, Store};
use crate::container;
use crate::error::Error;
use crate::events::await_links;
use crate::links;
use crate::netns::Netns;
use crate::request::Known;

/// The kernel removes the pairs of a namespace that has ended within some 100 ms.
const PATIENCE: Duration = Duration::from_secs(2);

/// Frees the dead of a network and returns them; goes on after errors and tells all of them.
pub fn gc(data_dir: &Path, network: &str, known: &BTreeSet<Known>) -> Result<Vec<Allocation>, Error> {
    let store = Store::new(data_dir, network);
    let mut freed = Vec::new();
    let (idle, errors) = store.idle()?;
    let mut errors: Vec<String> = errors.iter().map(Error::to_string).collect();
    let mut host = Socket::route().map_err(|e| Error::kernel("open a netlink socket")(e))?;
    // One for all: whatever is to go goes at the same time.
    let deadline = Instant::now() + PATIENCE;
    let unknown = |idle: &&Idle| {
        let Allocation { container_id, ifname, .. } = &idle.allocation;
        !known.contains(&(container_id.clone(), ifname.clone()))
    };
    for idle in idle.iter().filter(unknown) {
        match free_if_dead(&mut host, &store, idle, deadline) {
            Ok(true) => freed.push(idle.allocation.clone()),
            Ok(false) => {}
            Err(error) => {
                let Allocation { address, container_id, ifname, .. } = &idle.allocation;
                errors.push(format!("{address} of {container_id} {ifname}: {error}"));
            }
        }
    }
    errors.extend(store.tidy().err().map(|error| error.to_string()));
    if errors.is_empty() { Ok(freed) } else { Err(Error::Gc(errors)) }
}

fn free_if_dead(host: &mut Socket, store: &Store, idle: &Idle, deadline: Instant) -> Result<bool, Error> {
    let allocation = &idle.allocation;
    let Allocation { host_veth, netns, .. } = allocation;
    let gone = |host: &mut Socket| {
        let link = links::by_name(host, host_veth).map_err(Error::kernel(format!("look up {host_veth}")));
        Ok(!link?.is_some_and(|link| link.is_veth()))
    };
    match Netns::find(netns)? {
        Some(netns) if !gone(host)? || is_inside(&netns, allocation)? => return Ok(false),
        None if !await_links(&format!("{host_veth} to go"), deadline, || gone(host))? => return Ok(false),
        _ => {}
    }
    // Only now: an address that is free while its interface lives could be given twice.
    store.release_idle(idle)?;
    Ok(true)
}

/// Whether the container's end is there, whatever somebody has named the host's: told by its MAC or, where
/// a later plugin changed that, by its address. The path may lead to another namespace by now.
fn is_inside(netns: &Netns, allocation: &Allocation) -> Result<bool, Error> {
    let look_up = || Error::kernel(format!("look up {} in {}", allocation.ifname, allocation.netns));
    let mut inside = netns.run(Socket::route)?.map_err(|e| Error::kernel("open a netlink socket")(e))?;
    let Some(link) = links::by_name(&mut inside, &allocation.ifname).map_err(look_up())? else {
        return Ok(false);
    };
    if container::is_made_for(&link, std::slice::from_ref(allocation)) {
        return Ok(true);
    }
    let held = links::addresses(&mut inside, Family::of(allocation.address)).map_err(look_up())?;
    Ok(held.iter().any(|h| (h.index, h.address) == (link.index, allocation.address)))
}
