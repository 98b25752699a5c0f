//! GC: free what no container has any more. Called by `run.rs`.
//!
//! The runtime says which attachments it knows, and the specification has the plugin delete
//! all others. But several runtimes may share one network, and each knows its own alone; so
//! an attachment that is not in the list is freed only when it is dead for certain:
//!
//! | its namespace's path | its pair | |
//! |---|---|---|
//! | leads to no namespace | gone | dead |
//! | leads to no namespace | there | alive if a process is in the namespace, else dead |
//! | leads to a namespace | there | alive |
//! | leads to a namespace | gone | dead |
//!
//! What an ADD works on at this moment is alive (it holds the allocation's file locked).

use std::collections::BTreeSet;
use std::fs;

use loden_netlink::Socket;
use loden_proto::allocation::Allocation;

use crate::allocations::{Idle, Store};
use crate::container;
use crate::error::Error;
use crate::links::{self, Link};
use crate::netns::Netns;
use crate::request::{Config, Known};

/// Frees the dead; goes on after errors and tells all of them.
pub fn gc(config: &Config, known: &BTreeSet<Known>) -> Result<(), Error> {
    let store = Store::new(&config.data_dir, &config.network);
    let (idle, errors) = store.idle()?;
    let mut errors: Vec<String> = errors.iter().map(Error::to_string).collect();
    let mut host = Socket::route().map_err(|e| Error::kernel("open a netlink socket")(e))?;
    let unknown = |idle: &&Idle| {
        let Allocation { container_id, ifname, .. } = &idle.allocation;
        !known.contains(&(container_id.clone(), ifname.clone()))
    };
    for idle in idle.iter().filter(unknown) {
        if let Err(error) = free_if_dead(&mut host, &store, idle) {
            let Allocation { address, container_id, ifname, .. } = &idle.allocation;
            errors.push(format!("{address} of {container_id} {ifname}: {error}"));
        }
    }
    errors.extend(store.tidy().err().map(|error| error.to_string()));
    if errors.is_empty() { Ok(()) } else { Err(Error::Gc(errors)) }
}

fn free_if_dead(host: &mut Socket, store: &Store, idle: &Idle) -> Result<(), Error> {
    let allocation = &idle.allocation;
    let pair = links::by_name(host, &allocation.host_veth)
        .map_err(Error::kernel(format!("look up {}", allocation.host_veth)))?
        .filter(Link::is_veth);
    match (Netns::find(&allocation.netns)?, pair) {
        (None, Some(pair)) => {
            if is_inhabited(host, &pair)? {
                return Ok(());
            }
            container::delete_pair(host, &allocation.host_veth)?;
        }
        (Some(_), Some(_)) => return Ok(()),
        (Some(netns), None) if is_inside(&netns, allocation)? => return Ok(()),
        (_, None) => {}
    }
    // Only now: an address that is free while its interface lives could be given twice.
    store.release_idle(idle)
}

/// Whether a process is in the namespace of the pair's other end: a runtime with mounts of
/// its own may know it by a path that leads nowhere here.
fn is_inhabited(host: &mut Socket, pair: &Link) -> Result<bool, Error> {
    let Some(namespace) = pair.peer_namespace else { return Ok(true) };
    let processes = fs::read_dir("/proc").map_err(Error::file("list", "/proc"))?;
    let mut pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.any(|pid| links::namespace_of(host, pid) == Some(namespace)))
}

/// Whether the container's end is there, whatever somebody has named the host's.
fn is_inside(netns: &Netns, allocation: &Allocation) -> Result<bool, Error> {
    let look_up = Error::kernel(format!("look up {} in {}", allocation.ifname, allocation.netns));
    let mut inside = netns.run(Socket::route)?.map_err(|e| Error::kernel("open a netlink socket")(e))?;
    Ok(links::by_name(&mut inside, &allocation.ifname).map_err(look_up)?.is_some_and(|link| link.is_veth()))
}
