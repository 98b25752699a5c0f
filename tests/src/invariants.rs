//! What must hold at the end of every scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use loden_proto::ROUTE_PROTOCOL;
use loden_proto::allocation::Allocation;
use loden_proto::status::{PeerStatus, Status};
use serde_json::Value;

use crate::process::lock;
use crate::{Host, Lab, eventually, kernel};

/// No two live containers share an address, no two hosts hold one subnet, own kernel objects
/// are what `loden status` says, and foreign ones are as they were.
#[track_caller]
pub(crate) fn check(lab: &Lab) {
    let mut owners: BTreeMap<IpAddr, (String, String)> = BTreeMap::new();
    let containers = lock(&lab.shared.containers).clone();
    for (container, address) in containers.iter().flat_map(|(c, all)| all.iter().map(move |a| (c, a))) {
        if let Some(other) = owners.insert(*address, container.clone()) {
            panic!("{address} is held by {other:?} and by {container:?}");
        }
    }
    let hosts = lock(&lab.shared.hosts).clone();
    // Changes may still be on their way when a scenario ends.
    eventually(Duration::from_secs(10), "the invariants hold", || {
        let mut holders = BTreeMap::new();
        for host in hosts.iter().filter(|h| runs_loden(lab, h)) {
            let status = host.try_status(&[])?;
            if let Some(lease) = status.lease.as_ref().filter(|l| l.state == "held") {
                for subnet in &lease.subnets {
                    if let Some(other) = holders.insert(*subnet, host.name().to_owned()) {
                        return Err(format!("{subnet} is held by {other} and by {}", host.name()));
                    }
                }
            }
            kernel_equals_status(host, &status)?;
            port_filter_equals_allocations(host)?;
        }
        hosts.iter().find_map(Host::foreign_damage).map_or(Ok(()), Err)
    });
}

/// Whether a `loden daemon` of the default network runs there.
fn runs_loden(lab: &Lab, host: &Host) -> bool {
    let running = lock(&lab.shared.processes)
        .iter()
        .any(|(name, p)| name == host.name() && p.name().starts_with("loden") && p.exited().is_none());
    running && host.read_file("/run/loden/subnet.env").is_some()
}

/// The port filter guards the ports that the allocation files name, and no others.
fn port_filter_equals_allocations(host: &Host) -> Result<(), String> {
    let folder = "/run/loden/ipam";
    let files =
        host.exec(&["find", folder, "-mindepth", "2", "-maxdepth", "2", "-type", "f", "-name", "*[.:]*"]);
    let guarded = |path: &str| {
        // Gone again: the next look will agree.
        let allocation = Allocation::parse(&host.read_file(path)?).ok()?;
        allocation.port.as_ref()?.filter.as_ref()?;
        Some(allocation.host_veth)
    };
    let expected: BTreeSet<String> = files.stdout.lines().filter_map(guarded).collect();
    let set = host.exec(&["nft", "-j", "list", "set", "bridge", "loden", "ports"]);
    let shown: Value = serde_json::from_str(&set.stdout).map_err(|_| set.describe())?;
    let elements = shown["nftables"][1]["set"]["elem"].as_array().cloned().unwrap_or_default();
    let found: BTreeSet<String> = elements.iter().filter_map(|e| e.as_str().map(str::to_owned)).collect();
    if found == expected {
        return Ok(());
    }
    Err(format!("on {}: the port filter guards {found:?}, the allocations name {expected:?}", host.name()))
}

/// Each programmed peer has its route, neighbour and FDB entry, and none of ours serves nobody.
pub(crate) fn kernel_equals_status(host: &Host, status: &Status) -> Result<(), String> {
    let wrong = |what: String| Err(format!("on {}: {what}", host.name()));
    let routes = kernel::routes(host);
    let ours = |r: &&Value| r["protocol"].to_string().trim_matches('"') == ROUTE_PROTOCOL.to_string();
    // Another network of this host has its own.
    let networks = status.config.as_ref().map(|c| c.networks.clone()).unwrap_or_default();
    let inside = |dst: &str| {
        let dst = dst.split('/').next().and_then(|a| a.parse().ok());
        dst.is_some_and(|dst| networks.iter().any(|n| n.contains(dst)))
    };
    for route in routes.iter().filter(ours).filter(|r| inside(kernel::text(r, "dst"))) {
        let dst = kernel::text(route, "dst");
        // A dst without a length is a host route.
        if !status.peers.iter().any(|p| p.subnet.to_string() == dst) {
            return wrong(format!("a route of ours to {dst}, which is no peer's: {route}"));
        }
    }
    for device in &status.devices {
        let Some(link) = kernel::link(host, &device.name) else {
            return wrong(format!("no device {}, which status shows", device.name));
        };
        if kernel::text(&link, "address") != device.mac.to_string() {
            return wrong(format!(
                "{} has another MAC than status shows ({}): {link}",
                device.name, device.mac
            ));
        }
        let neighbours = kernel::neighbours(host, &device.name);
        let fdb = kernel::fdb(host, &device.name);
        // IPv4 and IPv6 underlays have a device each.
        let v6 = link["linkinfo"]["info_data"].get("local6").is_some();
        let encapsulated = |p: &&PeerStatus| {
            p.vtep_mac.is_some()
                && p.public_address.is_ipv6() == v6
                && (p.state == "programmed" || p.state == "held")
        };
        for peer in status.peers.iter().filter(encapsulated) {
            let mac = peer.vtep_mac.expect("filtered").to_string();
            let vtep = peer.subnet.address().to_string();
            if !routes.iter().any(|r| is_route_to(r, peer, &device.name)) {
                return wrong(format!("no route by {} for {peer:?}: {routes:#?}", device.name));
            }
            let right =
                |n: &Value| kernel::text(n, "lladdr") == mac && n["state"].to_string().contains("PERMANENT");
            if !neighbours.iter().any(|n| kernel::text(n, "dst") == vtep && right(n)) {
                return wrong(format!("no neighbour for {peer:?}: {neighbours:#?}"));
            }
            let to = peer.public_address.to_string();
            if !fdb.iter().any(|f| kernel::text(f, "mac") == mac && kernel::text(f, "dst") == to) {
                return wrong(format!("no FDB entry for {peer:?}: {fdb:#?}"));
            }
        }
        let known = |dst: &str| status.peers.iter().any(|p| p.subnet.address().to_string() == dst);
        let permanent = |n: &&Value| n["state"].to_string().contains("PERMANENT");
        if let Some(n) = neighbours.iter().filter(permanent).find(|n| !known(kernel::text(n, "dst"))) {
            return wrong(format!("a neighbour on {} that is no peer: {n}", device.name));
        }
        let known = |mac: &str| status.peers.iter().any(|p| p.vtep_mac.is_some_and(|m| m.to_string() == mac));
        if let Some(f) =
            fdb.iter().filter(|f| f.get("dst").is_some()).find(|f| !known(kernel::text(f, "mac")))
        {
            return wrong(format!("an FDB entry on {} that is no peer's: {f}", device.name));
        }
    }
    Ok(())
}

fn is_route_to(route: &Value, peer: &PeerStatus, device: &str) -> bool {
    kernel::text(route, "dst") == peer.subnet.to_string() && kernel::text(route, "dev") == device
}
