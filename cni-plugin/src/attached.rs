//! What an attachment has already. Called by the daemon's `loden attach`, for which a second
//! call is no error, while for CNI an ADD for a name that is taken is one.

use loden_netlink::Socket;
use loden_proto::allocation::Allocation;

use crate::allocations::Store;
use crate::bridge::{self, PortState};
use crate::error::Error;
use crate::links;
use crate::netns::Netns;
use crate::request::Request;

/// An attachment whose interface is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attached {
    /// One per family; at least one.
    pub allocations: Vec<Allocation>,
    /// The interface's MTU.
    pub mtu: u32,
    /// The bridge that the host's end is a port of.
    pub bridge: Option<String>,
}

/// Looks it up; `None` unless it has addresses, and both ends of its pair are there and in use.
pub fn find(request: &Request) -> Result<Option<Attached>, Error> {
    let (who, config) = (&request.attachment, &request.config);
    let allocations = Store::new(&config.data_dir, &who.network).find(who)?;
    let Some(first) = allocations.first() else { return Ok(None) };
    let (ifname, host_veth) = (who.ifname.as_str(), first.host_veth.clone());
    let no_socket = |e| Error::kernel("open a netlink socket")(e);
    let mut inside = Netns::open(&who.netns)?.run(Socket::route)?.map_err(no_socket)?;
    let mut host = Socket::route().map_err(no_socket)?;
    let link = links::by_name(&mut inside, ifname)
        .map_err(Error::kernel(format!("look up {ifname} in {}", who.netns)))?;
    // Down: left by one that was killed half way, which the next ADD clears away.
    let Some(link) = link.filter(|link| link.is_veth() && link.up) else { return Ok(None) };
    let bridge = match bridge::port_state(&mut host, &host_veth)? {
        PortState::On(bridge) => Some(bridge),
        PortState::Detached => None,
        PortState::Gone => return Ok(None),
    };
    Ok(Some(Attached { allocations, mtu: link.mtu, bridge }))
}
