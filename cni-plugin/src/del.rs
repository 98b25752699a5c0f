//! DEL: take the veth pair away, then free its address. Called by `run.rs`, by it also to
//! take back an ADD whose result the runtime could not be told, and by the daemon's `loden
//! attach`. Needs neither the namespace nor `subnet.env`; what is gone already is fine.

use loden_netlink::Socket;
use loden_proto::allocation::Allocation;

use crate::allocations::{Rest, Store};
use crate::container;
use crate::error::Error;
use crate::links;
use crate::naming;
use crate::netns::Netns;
use crate::request::{Attachment, Request};

/// Disconnects the container.
pub fn del(request: &Request) -> Result<(), Error> {
    let who = &request.attachment;
    let store = Store::new(&request.config.data_dir, &who.network);
    // The folder may be unreadable; the pair goes all the same, and then the error counts.
    let allocations = store.find(who);
    let held = allocations.as_deref().unwrap_or_default();
    let mut host = Socket::route().map_err(Error::kernel("open a netlink socket"))?;
    let mut gone = container::delete_pair(&mut host, &naming::host_end(who).name)?;
    // An allocation of another release may have another name.
    for allocation in held {
        gone = gone || container::delete_pair(&mut host, &allocation.host_veth)?;
    }
    if !gone {
        delete_inside(who, held)?;
    }
    // Only now: an address that is free while its interface lives could be given twice.
    store.release(who, Rest::CoolDown)?;
    allocations.map(drop)
}

/// The host's end is not there under its name, so the pair is gone or somebody renamed it.
/// Deletes the container's end if it is ours: the name alone does not tell, and an ADD that
/// failed because of another's interface is followed by a DEL.
fn delete_inside(who: &Attachment, held: &[Allocation]) -> Result<(), Error> {
    if held.is_empty() || who.netns.is_empty() {
        return Ok(());
    }
    let Ok(netns) = Netns::open(&who.netns) else { return Ok(()) };
    if netns.is_own()? {
        return Ok(());
    }
    // The path of a namespace that ended may have become a plain file (a mount point).
    let Ok(Ok(mut inside)) = netns.run(Socket::route) else { return Ok(()) };
    let ifname = who.ifname.as_str();
    let action = || Error::kernel(format!("delete {ifname} in {}", who.netns));
    if let Some(link) = links::by_name(&mut inside, ifname).map_err(action())?
        && container::is_made_for(&link, held)
    {
        links::delete(&mut inside, ifname).map_err(action())?;
    }
    Ok(())
}
