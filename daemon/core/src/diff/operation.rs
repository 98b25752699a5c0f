//! The changes that can be made to the kernel, and how they are called in logs and counters.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use loden_proto::{Family, Mac};

use crate::filters::{Filters, Member};
use crate::observed::{Nexthop, Route};
use crate::plan::Device;

/// One change of the kernel's state. Each is safe to repeat.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Put our table in place, in one transaction, its peer sets holding these.
    ReplaceFilters(Box<Filters>, BTreeSet<Member>),
    /// Admit to the peer sets.
    Admit(Vec<Member>),
    /// Remove from the peer sets.
    Dismiss(Vec<Member>),
    /// Make a VXLAN device, down.
    AddDevice(Box<Device>),
    /// Change what differs of an existing one, without losing its peers.
    ChangeDevice {
        /// Its index.
        index: u32,
        /// What it should be.
        device: Box<Device>,
        /// Names of what differs, for the log.
        what: Vec<&'static str>,
    },
    /// Delete an interface of ours.
    DeleteDevice {
        /// Its index.
        index: u32,
        /// Its name, for the log.
        name: String,
    },
    /// Give a device its address (a host address, `/32` or `/128`).
    AddAddress {
        /// Device index.
        device: u32,
        /// The address.
        address: IpAddr,
    },
    /// Take an address from a device.
    DeleteAddress {
        /// Device index.
        device: u32,
        /// The address.
        address: IpAddr,
        /// Its prefix length.
        length: u8,
    },
    /// Bring a device up.
    SetUp {
        /// Device index.
        device: u32,
        /// Its name, for the log.
        name: String,
        /// Its UDP port, which it binds now.
        port: u16,
    },
    /// Give a device that may be up another name: in place of its own, or beside it where the kernel
    /// renames only what is down (before Linux 6.2).
    Rename {
        /// Its index.
        index: u32,
        /// Its name, for the log.
        name: String,
        /// The other name.
        to: String,
    },
    /// Let an interface forward.
    Forward(Family, String),
    /// Add or replace a permanent neighbour.
    SetNeighbour {
        /// Device index.
        device: u32,
        /// Its address.
        address: IpAddr,
        /// Its MAC.
        mac: Mac,
    },
    /// Delete a neighbour.
    DeleteNeighbour {
        /// Device index.
        device: u32,
        /// Its address.
        address: IpAddr,
    },
    /// Add or replace a permanent FDB entry.
    SetFdb {
        /// Device index.
        device: u32,
        /// The MAC.
        mac: Mac,
        /// Where it is.
        endpoint: IpAddr,
    },
    /// Delete an FDB entry.
    DeleteFdb {
        /// Device index.
        device: u32,
        /// The MAC.
        mac: Mac,
        /// Where it was.
        endpoint: IpAddr,
    },
    /// Add a nexthop object.
    AddNexthop(u32, Nexthop),
    /// Delete a nexthop object.
    DeleteNexthop(u32),
    /// Add a route; with `replace`, in place of one of ours.
    SetRoute {
        /// The route.
        route: Route,
        /// Whether one of ours is there.
        replace: bool,
    },
    /// Delete a route.
    DeleteRoute(Route),
}

impl Operation {
    /// Whether it takes something away.
    pub fn removes(&self) -> bool {
        use Operation as O;
        matches!(
            self,
            O::Dismiss(_)
                | O::DeleteDevice { .. }
                | O::DeleteAddress { .. }
                | O::DeleteNeighbour { .. }
                | O::DeleteFdb { .. }
                | O::DeleteNexthop(_)
                | O::DeleteRoute(_)
        )
    }

    /// The kind of object, for counters: `route`, `neighbour`, ….
    pub fn object(&self) -> &'static str {
        use Operation as O;
        match self {
            O::ReplaceFilters(..) => "filters",
            O::Admit(_) | O::Dismiss(_) => "peer_set",
            O::AddDevice(_)
            | O::ChangeDevice { .. }
            | O::DeleteDevice { .. }
            | O::SetUp { .. }
            | O::Rename { .. } => "device",
            O::AddAddress { .. } | O::DeleteAddress { .. } => "address",
            O::Forward(..) => "forwarding",
            O::SetNeighbour { .. } | O::DeleteNeighbour { .. } => "neighbour",
            O::SetFdb { .. } | O::DeleteFdb { .. } => "fdb",
            O::AddNexthop(..) | O::DeleteNexthop(_) => "nexthop",
            O::SetRoute { .. } | O::DeleteRoute(_) => "route",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Operation as O;
        match self {
            O::ReplaceFilters(filters, _) => write!(f, "put nftables table inet {} in place", filters.table),
            O::Admit(all) => write!(f, "admit {} address(es) to the peer sets", all.len()),
            O::Dismiss(all) => write!(f, "dismiss {} address(es) from the peer sets", all.len()),
            O::AddDevice(d) => {
                write!(f, "create VXLAN device {} (VNI {}, port {}, MAC {})", d.name, d.vni, d.port, d.mac)
            }
            O::ChangeDevice { device, what, .. } => {
                write!(f, "set {} of device {}", what.join(", "), device.name)
            }
            O::DeleteDevice { name, .. } => write!(f, "delete device {name}"),
            O::AddAddress { address, device } => write!(f, "add address {address} to interface {device}"),
            O::DeleteAddress { address, length, device } => {
                write!(f, "delete address {address}/{length} from interface {device}")
            }
            O::SetUp { name, port, .. } => write!(f, "set device {name} (UDP port {port}) up"),
            O::Rename { name, to, .. } => write!(f, "give device {name} the name {to}"),
            O::Forward(family, name) => write!(f, "turn {family} forwarding on for {name}"),
            O::SetNeighbour { address, mac, .. } => write!(f, "set neighbour {address} at {mac}"),
            O::DeleteNeighbour { address, .. } => write!(f, "delete neighbour {address}"),
            O::SetFdb { mac, endpoint, .. } => write!(f, "set FDB entry {mac} to {endpoint}"),
            O::DeleteFdb { mac, endpoint, .. } => write!(f, "delete FDB entry {mac} to {endpoint}"),
            O::AddNexthop(id, nexthop) => match nexthop.gateway {
                Some(gateway) => write!(f, "add nexthop {id} to {gateway}"),
                None => write!(f, "add nexthop {id}"),
            },
            O::DeleteNexthop(id) => write!(f, "delete nexthop {id}"),
            O::SetRoute { route, .. } => write!(f, "set route to {}", route.subnet),
            O::DeleteRoute(route) => write!(f, "delete route to {}", route.subnet),
        }
    }
}
