//! The endpoints of this host, as those tell who know them: the plugin's allocation files, Docker, and operators.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use loden_core::names::docker::Container;
use loden_core::names::{Given, Settings, judge_manual};
use loden_proto::dns_name::DnsName;
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::{ManualName, NameRecord, NameSource};

use crate::endpoints::Found;

/// An endpoint with its names, before anybody has said since when it has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// With the time at which the endpoint came, in [`NameRecord::since`].
    pub record: NameRecord,
    /// What can be no name of it.
    pub problems: Vec<String>,
}

/// The endpoints of allocation files. The host's end of the pair tells them apart: it has a name that no
/// other has, on this host.
pub(super) fn of_allocations(found: &[Found], zone: &DnsName) -> BTreeMap<Arc<str>, Local> {
    let mut all: BTreeMap<Arc<str>, Local> = BTreeMap::new();
    for Found { allocation, since, .. } in found {
        if let Some(known) = all.get_mut(allocation.host_veth.as_str()) {
            known.record.addresses.push(allocation.address);
            continue;
        }
        // Podman's short id among its aliases is no name that anybody looks for.
        let id = |alias: &&str| !allocation.container_id.starts_with(*alias);
        let aliases = allocation.aliases.iter().map(String::as_str).filter(id);
        let Given { names, groups, problems } = Given::new(allocation.name.as_deref(), aliases, zone);
        let addresses = vec![allocation.address];
        let since = since.map_or(0, milliseconds);
        let ports = allocation.published.clone();
        let record = NameRecord { names, groups, addresses, ports, since, source: NameSource::Cni };
        all.insert(allocation.host_veth.as_str().into(), Local { record, problems });
    }
    all
}

/// The id of the endpoint that a name by hand makes.
pub(super) fn manual_endpoint(name: &DnsName) -> Arc<str> {
    format!("manual-{name}").into()
}

/// What operators have named. What cannot be named any more is told: the lease or the config has changed.
pub(super) fn of_manual(
    names: &BTreeMap<DnsName, ManualName>,
    settings: &Settings,
    own: LeaseKey,
) -> BTreeMap<Arc<str>, Local> {
    let local = |manual: &ManualName| {
        let problem = judge_manual(manual, settings, own).err();
        let problem = problem.map(|why| format!("the name {} that was given by hand: {why}", manual.name));
        let (names, groups) =
            if manual.group { (vec![], vec![&manual.name]) } else { (vec![&manual.name], vec![]) };
        let record = NameRecord {
            names: names.into_iter().cloned().collect(),
            groups: groups.into_iter().cloned().collect(),
            addresses: manual.addresses.clone(),
            ports: manual.ports.clone(),
            since: manual.since,
            source: NameSource::Manual,
        };
        (manual_endpoint(&manual.name), Local { record, problems: problem.into_iter().collect() })
    };
    names.values().map(local).collect()
}

/// Adds Docker's containers that have addresses of the lease. What shares its bridge with the plugin is
/// named once.
pub(super) fn add_containers(
    all: &mut BTreeMap<Arc<str>, Local>,
    containers: &[Container],
    lease: LeaseKey,
    zone: &DnsName,
) {
    let speaks = |local: &&Local| !(local.record.names.is_empty() && local.record.groups.is_empty());
    let named: BTreeSet<IpAddr> =
        all.values().filter(speaks).flat_map(|local| local.record.addresses.iter().copied()).collect();
    for container in containers {
        if let Some((record, problems)) = container.record(zone, lease, |ip| named.contains(&ip)) {
            all.insert(container.endpoint().into(), Local { record, problems });
        }
    }
}

/// Since 1970.
pub(super) fn milliseconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}
