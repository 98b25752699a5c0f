//! What is ours in the kernel. Failing to see one of our own objects leaks it; taking somebody
//! else's for ours destroys their network.

use loden_proto::ROUTE_PROTOCOL;

use crate::observed::{Link, Nexthop, Observed, Route, Via};
use crate::plan::Desired;

/// `RTPROT_BOOT`, which flannel's routes carry, and those of `ip route add`.
pub const BOOT: u8 = 3;

/// Indexes of the VXLAN devices that this plan made or adopted.
pub fn devices<'a>(desired: &'a Desired, observed: &'a Observed) -> impl Iterator<Item = &'a Link> {
    desired.base.devices.iter().filter_map(|d| observed.vxlan(d.vni, d.port, d.family))
}

/// Whether a route is ours: made by us in our networks or on our devices, or a route of flannel's
/// on an adopted device, told by its exact shape (inside the network, a lease's length, onlink
/// by the subnet's own network address).
pub fn route(route: &Route, desired: &Desired, observed: &Observed) -> bool {
    let resolved = observed.resolve(route.via);
    let on_ours = resolved.is_some_and(|(device, _)| devices(desired, observed).any(|l| l.index == device));
    let of_network = desired.base.networks.iter().any(|(network, _)| network.contains_subnet(&route.subnet));
    if route.protocol == ROUTE_PROTOCOL {
        return of_network || on_ours;
    }
    let lease_length =
        desired.base.networks.iter().any(|(network, length)| {
            network.contains_subnet(&route.subnet) && route.subnet.length() == *length
        });
    let by_itself =
        matches!(route.via, Via::Gateway { gateway, onlink: true, .. } if gateway == route.subnet.address());
    on_ours && lease_length && by_itself
}

/// Whether a nexthop object is ours: our protocol, on a device of ours.
pub fn nexthop(nexthop: &Nexthop, desired: &Desired, observed: &Observed) -> bool {
    nexthop.protocol == ROUTE_PROTOCOL && devices(desired, observed).any(|l| l.index == nexthop.device)
}

/// Whether a device is a leftover of ours: named by us and a VXLAN device, from an earlier config.
pub fn leftover(link: &Link, desired: &Desired) -> bool {
    let wanted = desired
        .base
        .devices
        .iter()
        .any(|d| link.vxlan.is_some_and(|v| v.vni == d.vni && v.port == d.port && v.family == d.family));
    link.vxlan.is_some() && desired.base.options.names_device(&link.name) && !wanted
}
