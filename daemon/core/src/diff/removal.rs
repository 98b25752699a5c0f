//! Going away: everything of ours out of the kernel, or into flannel's hands.

use loden_proto::{Family, ROUTE_PROTOCOL, Subnet};

use super::Operation;
use crate::observed::{Link, Nexthop, Observed, Route, Via};
use crate::options::Options;
use crate::ownership::BOOT;

/// What takes everything of ours out of the kernel, rules apart: routes, nexthops, devices with our
/// names, and the bridge if no container hangs on it. An adopted device is not ours, nor is one
/// that was handed to flannel.
pub fn removal(observed: &Observed, options: &Options, networks: &[Subnet]) -> Vec<Operation> {
    let routes = our_routes(observed, options, networks);
    let mut operations: Vec<Operation> = routes.cloned().map(Operation::DeleteRoute).collect();
    operations.extend(our_nexthops(observed, options, networks).map(|(id, _)| Operation::DeleteNexthop(*id)));
    let has_ports = |bridge: u32| observed.links.values().any(|l| l.controller == bridge);
    let devices = observed
        .links
        .values()
        .filter(|l| our_device(l, options) || l.bridge && l.name == options.bridge() && !has_ports(l.index));
    operations.extend(devices.map(|l| Operation::DeleteDevice { index: l.index, name: l.name.clone() }));
    let loopbacks = observed.links.values().filter(|l| l.loopback).map(|l| l.index);
    let ours = loopbacks.flat_map(|index| {
        let of_link = observed.addresses.get(&index).into_iter().flatten().filter(|a| a.ours);
        of_link.map(move |a| Operation::DeleteAddress { device: index, address: a.address, length: a.length })
    });
    operations.extend(ours);
    operations
}

/// What makes of our objects such as flannel makes and finds again, while packets flow: our devices
/// get flannel's names, our routes become plain ones in place. The nexthops come last, since the
/// kernel deletes with them whatever still refers to them.
pub fn to_flannel(observed: &Observed, options: &Options, networks: &[Subnet]) -> Vec<Operation> {
    let mut operations = Vec::new();
    for link in observed.links.values().filter(|l| our_device(l, options)) {
        let Some(vxlan) = link.vxlan else { continue };
        let to = flannel_name(vxlan.vni, vxlan.family);
        operations.push(Operation::Rename { index: link.index, name: link.name.clone(), to });
    }
    for route in our_routes(observed, options, networks) {
        let Some((device, gateway)) = observed.resolve(route.via) else { continue };
        // As flannel makes them: by the VXLAN device onlink, by the underlay not.
        let onlink = observed.links.get(&device).is_some_and(|l| l.vxlan.is_some());
        let via = Via::Gateway { device, gateway, onlink };
        let route = Route { via, protocol: BOOT, ..route.clone() };
        operations.push(Operation::SetRoute { route, replace: true });
    }
    operations.extend(our_nexthops(observed, options, networks).map(|(id, _)| Operation::DeleteNexthop(*id)));
    operations
}

/// flannel's VXLAN devices, used or not.
pub fn flannel_devices(observed: &Observed) -> impl Iterator<Item = &Link> {
    observed.links.values().filter(|l| l.vxlan.is_some() && names_flannel(&l.name))
}

/// flannel's name for a VXLAN device (flannel `pkg/backend/vxlan/vxlan.go`).
fn flannel_name(vni: u32, family: Family) -> String {
    match family {
        Family::V4 => format!("flannel.{vni}"),
        Family::V6 => format!("flannel-v6.{vni}"),
    }
}

fn names_flannel(name: &str) -> bool {
    let vni = name.strip_prefix("flannel-v6.").or_else(|| name.strip_prefix("flannel.")).unwrap_or("");
    !vni.is_empty() && vni.bytes().all(|b| b.is_ascii_digit())
}

fn our_device(link: &Link, options: &Options) -> bool {
    link.vxlan.is_some()
        && options.names_device(&link.name)
        && !link.other_names.iter().any(|n| names_flannel(n))
}

fn our_routes<'a>(
    observed: &'a Observed,
    options: &'a Options,
    networks: &'a [Subnet],
) -> impl Iterator<Item = &'a Route> {
    let on_ours = |via| {
        let link = observed.resolve(via).and_then(|(device, _)| observed.links.get(&device));
        link.is_some_and(|l| our_device(l, options))
    };
    let inside = |subnet: &Subnet| networks.iter().any(|n| n.contains_subnet(subnet));
    let ours = move |r: &&Route| r.protocol == ROUTE_PROTOCOL && (inside(&r.subnet) || on_ours(r.via));
    observed.routes.iter().filter(ours)
}

fn our_nexthops<'a>(
    observed: &'a Observed,
    options: &'a Options,
    networks: &'a [Subnet],
) -> impl Iterator<Item = (&'a u32, &'a Nexthop)> {
    observed.nexthops.iter().filter(move |(_, n)| {
        let gateway_inside = n.gateway.is_some_and(|g| networks.iter().any(|network| network.contains(g)));
        let on_ours = observed.links.get(&n.device).is_some_and(|l| our_device(l, options));
        n.protocol == ROUTE_PROTOCOL && (gateway_inside || on_ours)
    })
}
