//! What the zone says of records that others have written (`--dns-import`).

use super::super::imported::{Service, ServiceHost, name_of};
use super::*;

impl Zone {
    /// Takes in what others have written.
    pub fn set_imported(&mut self, imported: Arc<Imported>) {
        if !Arc::ptr_eq(&self.imported, &imported) {
            self.serial = self.serial.wrapping_add(1);
            self.imported = imported;
        }
    }

    /// Records of a name relative to the zone; `None` where others have none either.
    pub(super) fn imported_records(
        &self,
        view: View,
        name: &DnsName,
        kind: Kind,
        follow: bool,
    ) -> Option<(Vec<Record>, Vec<Record>)> {
        let services = self.imported.of(name);
        if services.is_empty() {
            return None;
        }
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        for (rest, service) in services {
            match kind {
                Kind::A | Kind::Aaaa if answers.len() < MOST_ANSWERS => {
                    for record in self.imported_addresses(view, service, kind, follow) {
                        if answers.iter().all(|known: &Record| known.data != record.data) {
                            answers.push(record);
                        }
                    }
                }
                Kind::Srv => {
                    let Some((srv, address)) = self.imported_service(view, rest, service) else { continue };
                    answers.push(srv);
                    additional.extend(address);
                }
                _ => {}
            }
        }
        Some((answers, additional))
    }

    /// Where it is, in a view. What leads to another name of the zone is followed once: a longer way could be
    /// made very long.
    fn imported_addresses(&self, view: View, service: &Service, kind: Kind, follow: bool) -> Vec<Record> {
        match &service.host {
            ServiceHost::Address(address) => {
                let addresses = match view {
                    View::Outside if self.in_networks(*address) => self.host_of(*address),
                    _ => vec![*address],
                };
                let with_ttl = |record| Record { ttl: service.ttl, ..record };
                wanted(kind, addresses).into_iter().map(with_ttl).collect()
            }
            ServiceHost::Name(name) if follow => {
                let relative = name.relative_to(&self.settings.dns.zone);
                let found = relative.and_then(|name| self.find(view, name.as_str(), kind, false));
                let least = |ttl: Option<u32>| {
                    let [one, other] = [ttl, service.ttl].map(|ttl| ttl.unwrap_or(self.settings.dns.ttl));
                    Some(one.min(other))
                };
                let records = found.into_iter().flat_map(|(records, _)| records);
                records.map(|record| Record { ttl: least(record.ttl), ..record }).collect()
            }
            ServiceHost::Name(_) => Vec::new(),
        }
    }

    /// Its port, and the address of where that is if no other name has it. Who is outside reaches none inside
    /// of the overlay: only what a host forwards.
    fn imported_service(
        &self,
        view: View,
        rest: &str,
        service: &Service,
    ) -> Option<(Record, Option<Record>)> {
        let (target, address) = match &service.host {
            ServiceHost::Name(name) => (name.clone(), None),
            ServiceHost::Address(address) if view == View::Outside && self.in_networks(*address) => {
                return None;
            }
            ServiceHost::Address(address) => (self.full(name_of(rest)?.as_str()), Some(*address)),
        };
        let &Service { priority, weight, ttl, port, .. } = service;
        let data = Data::Srv { priority, weight, port: port?, target: target.clone() };
        let address =
            address.map(|a| Record { owner: Some(target), data: Data::Address(a), ttl: service.ttl });
        Some((Record { owner: None, data, ttl }, address))
    }

    /// The public addresses of the host that has an address of the overlay, for those outside.
    fn host_of(&self, address: IpAddr) -> Vec<IpAddr> {
        let lease = Subnet::new(address, Family::of(address).bits()).ok();
        let lease = lease.filter(|_| self.settings.dns.outside == Outside::All);
        let lease = lease.and_then(|single| self.leases.overlapping(&single));
        let value = lease.and_then(|key| self.leases.get(&key)).and_then(value);
        value.into_iter().flat_map(public_addresses).collect()
    }
}
