//! What must hold at the end of every scenario: no subnet twice, no lease lost, every kernel leads
//! to every peer. Functions of values; an empty answer is a pass.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_core::leases::LeaseTable;
use loden_core::observed::Observed;
use loden_proto::lease::LeaseKey;
use loden_proto::{Mac, Subnet};

/// What is wrong, in words.
pub type Finding = String;

/// A host and what its daemon believes to hold.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its name, for messages.
    pub name: String,
    /// Its underlay address.
    pub address: IpAddr,
    /// Its host id.
    pub host_id: String,
    /// Its subnet, if it has one.
    pub lease: Option<LeaseKey>,
    /// Whether it takes its lease for held in etcd.
    pub held: bool,
    /// MAC of its VXLAN device.
    pub mac: Option<Mac>,
}

/// The leases: every host holds one of its own, the one in etcd under its host id, and the one it
/// had `before` (by host name), if that is given.
pub fn leases(
    hosts: &[Standing],
    table: &LeaseTable,
    before: Option<&BTreeMap<String, LeaseKey>>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut holders: BTreeMap<Subnet, &str> = BTreeMap::new();
    for host in hosts {
        let name = &host.name;
        let Some(key) = host.lease.filter(|_| host.held) else {
            findings.push(format!("{name} holds no lease"));
            continue;
        };
        for subnet in key.subnets() {
            if let Some(other) = holders.insert(subnet, name) {
                findings.push(format!("{subnet} is held twice: by {other} and {name}"));
            }
        }
        let owner = table.get(&key).and_then(|r| r.value.as_ref().ok()).and_then(|v| v.host_id());
        if owner.is_none_or(|owner| *owner != *host.host_id) {
            findings.push(format!("{name} believes to hold {key}, which in etcd is {owner:?}'s"));
        }
        if let Some(former) = before.and_then(|b| b.get(name)).filter(|former| **former != key) {
            findings.push(format!("{name} lost {former} and holds {key} now"));
        }
    }
    if table.len() != hosts.len() {
        findings.push(format!("etcd has {} leases for {} hosts", table.len(), hosts.len()));
    }
    findings
}

/// Where each subnet is: its host's address and MAC.
pub fn truth(hosts: &[Standing]) -> BTreeMap<Subnet, (IpAddr, Mac)> {
    let places = |host: &Standing| {
        let (key, mac) = (host.lease?, host.mac?);
        Some(key.subnets().map(|subnet| (subnet, (host.address, mac))).collect::<Vec<_>>())
    };
    hosts.iter().filter_map(places).flatten().collect()
}

/// The kernel of one host: routes to all subnets but its own, each by a neighbour and an FDB entry
/// that lead to the subnet's host.
pub fn kernel(host: &Standing, observed: &Observed, truth: &BTreeMap<Subnet, (IpAddr, Mac)>) -> Vec<Finding> {
    let own = |subnet: &Subnet| host.lease.is_some_and(|key| key.subnets().any(|s| s == *subnet));
    let mut findings = Vec::new();
    for (subnet, (address, mac)) in truth.iter().filter(|(subnet, _)| !own(subnet)) {
        let found = destination(observed, subnet);
        if found != Some((*address, *mac)) {
            findings.push(format!(
                "{}: {subnet} is at {address} ({mac}) and its kernel leads to {found:?}",
                host.name
            ));
        }
    }
    let subnets = observed.routes.iter().map(|route| route.subnet);
    for subnet in subnets.filter(|s| own(s) || !truth.contains_key(s)) {
        findings.push(format!("{}: a route to {subnet}, which is no peer's", host.name));
    }
    findings
}

/// Where a subnet's packets go: route, neighbour, FDB entry.
fn destination(observed: &Observed, subnet: &Subnet) -> Option<(IpAddr, Mac)> {
    let route = observed.routes_to(*subnet).next()?;
    let (device, gateway) = observed.resolve(route.via)?;
    let mac = observed.neighbours.get(&(device, gateway))?;
    Some((observed.endpoints(device, *mac).next()?, *mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use loden_core::leases::LeaseRecord;
    use loden_proto::lease::LeaseValue;

    fn host(number: u8, lease: &str) -> Standing {
        Standing {
            name: format!("host-{number}"),
            address: [172, 16, 0, number].into(),
            host_id: format!("id-{number}"),
            lease: Some(LeaseKey::parse(lease).expect(lease)),
            held: true,
            mac: Some(Mac([2, 0, 0, 0, 0, number])),
        }
    }

    fn table(hosts: &[Standing]) -> LeaseTable {
        let mut table = LeaseTable::default();
        for host in hosts {
            let value =
                format!(r#"{{"PublicIP":"{}","Loden":{{"HostID":"{}"}}}}"#, host.address, host.host_id);
            let value = LeaseValue::parse(value.as_bytes()).map_err(|e| e.to_string());
            let record = LeaseRecord { value, etcd_lease: 1, create_revision: 1, mod_revision: 1 };
            table.insert(host.lease.expect("a lease"), record);
        }
        table
    }

    #[test]
    fn a_fleet_where_each_holds_its_own_passes() {
        let hosts = [host(1, "10.0.1.0-24"), host(2, "10.0.2.0-24")];
        assert_eq!(leases(&hosts, &table(&hosts), None), Vec::<String>::new());
    }

    #[test]
    fn a_subnet_that_two_hold_is_found() {
        let hosts = [host(1, "10.0.1.0-24"), host(2, "10.0.1.0-24")];
        let findings = leases(&hosts, &table(&hosts), None).join("\n");
        assert!(findings.contains("10.0.1.0/24 is held twice: by host-1 and host-2"), "{findings}");
    }

    #[test]
    fn a_lease_that_changed_hands_or_moved_is_found() {
        let hosts = [host(1, "10.0.1.0-24")];
        let before = [("host-1".to_owned(), LeaseKey::parse("10.0.9.0-24").expect("key"))].into();
        let findings = leases(&hosts, &table(&[host(2, "10.0.1.0-24")]), Some(&before)).join("\n");
        assert!(findings.contains("lost 10.0.9.0-24"), "{findings}");
        assert!(findings.contains("in etcd is Some(\"id-2\")'s"), "{findings}");
    }

    #[test]
    fn a_kernel_that_lacks_a_peer_is_found() {
        let hosts = [host(1, "10.0.1.0-24"), host(2, "10.0.2.0-24")];
        let findings = kernel(&hosts[0], &Observed::default(), &truth(&hosts));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("10.0.2.0/24 is at 172.16.0.2"), "{findings:?}");
    }
}
