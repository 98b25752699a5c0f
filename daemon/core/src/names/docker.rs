//! From what Docker says of a container to the record of its names.

use std::net::IpAddr;

use loden_proto::dns_name::DnsName;
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::{NameRecord, NameSource, PublishedPort};

use super::Given;

/// A running container of Docker's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Container {
    /// All 64 hexadecimal digits.
    pub id: String,
    /// `--name`, or what Docker made up.
    pub name: String,
    /// `--hostname`, or the beginning of the id.
    pub hostname: String,
    /// `--domainname`, or nothing.
    pub domainname: String,
    /// Its networks.
    pub attachments: Vec<Attachment>,
    /// Ports of it that its host answers others on.
    pub ports: Vec<PublishedPort>,
    /// When it started, in milliseconds since 1970.
    pub started: u64,
}

/// A container in one of Docker's networks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attachment {
    /// Its addresses there.
    pub addresses: Vec<IpAddr>,
    /// `--network-alias`, and the service of compose. Docker before 25 adds the short id.
    pub aliases: Vec<String>,
}

/// Digits of the id that Docker shows, and makes the hostname of where none is given.
const SHORT_ID: usize = 12;

impl Container {
    fn short_id(&self) -> &str {
        self.id.get(..SHORT_ID).unwrap_or(&self.id)
    }

    /// What tells it apart from the host's other endpoints.
    pub fn endpoint(&self) -> String {
        format!("docker-{}", self.short_id())
    }

    /// Its record, and what can be no name. `None` where it has no address of the lease, or only such as
    /// have names already.
    pub fn record(
        &self,
        zone: &DnsName,
        lease: LeaseKey,
        named: impl Fn(IpAddr) -> bool,
    ) -> Option<(NameRecord, Vec<String>)> {
        let ours = |address: &IpAddr| lease.subnets().any(|s| s.contains(*address)) && !named(*address);
        let mut addresses = Vec::new();
        let mut aliases = Vec::new();
        for attachment in &self.attachments {
            let before = addresses.len();
            addresses.extend(attachment.addresses.iter().copied().filter(ours));
            // Elsewhere it may be called what it likes.
            if addresses.len() > before {
                aliases.extend(attachment.aliases.iter().map(String::as_str));
            }
        }
        if addresses.is_empty() {
            return None;
        }
        let given = !self.hostname.is_empty() && self.hostname != self.short_id();
        let hostname = given.then(|| match self.domainname.as_str() {
            "" => self.hostname.clone(),
            domain => format!("{}.{domain}", self.hostname),
        });
        let own = hostname.iter().map(String::as_str).chain([self.name.as_str()]);
        let shared = aliases.into_iter().filter(|alias| *alias != self.short_id());
        let Given { names, groups, problems } = Given::new(own, shared, zone);
        let ports = self.ports.clone();
        let record =
            NameRecord { names, groups, addresses, ports, since: self.started, source: NameSource::Docker };
        Some((record, problems))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> LeaseKey {
        LeaseKey::parse("10.5.7.0-24").expect("a lease")
    }

    fn container(hostname: &str, domainname: &str) -> Container {
        Container {
            id: "0123456789ab".repeat(5) + "cdef",
            name: "hdfs-dn1-1".into(),
            hostname: hostname.into(),
            domainname: domainname.into(),
            attachments: vec![Attachment {
                addresses: vec!["10.5.7.9".parse().expect("ip")],
                aliases: ["dn1", "datanode", "0123456789ab", "datanode"].map(String::from).into(),
            }],
            ports: Vec::new(),
            started: 7,
        }
    }

    fn record(container: &Container) -> Option<NameRecord> {
        let zone = "loden.internal".parse().expect("zone");
        container.record(&zone, lease(), |_| false).map(|(record, _)| record)
    }

    fn names(hostname: &str, domainname: &str) -> (String, String) {
        let record = record(&container(hostname, domainname)).expect("it has an address of ours");
        let all = |names: &[DnsName]| names.iter().map(DnsName::as_str).collect::<Vec<_>>().join(" ");
        (all(&record.names), all(&record.groups))
    }

    #[test]
    fn the_hostname_comes_first_if_somebody_gave_it() {
        let own = |hostname, domainname| names(hostname, domainname).0;
        assert_eq!(own("dn1", ""), "dn1 hdfs-dn1-1");
        assert_eq!(own("dn1", "hdfs"), "dn1.hdfs hdfs-dn1-1");
        assert_eq!(own("dn1.hdfs", ""), "dn1.hdfs hdfs-dn1-1");
        assert_eq!(own("DN1.loden.internal", ""), "dn1 hdfs-dn1-1");
        assert_eq!(own("dn1", "loden.internal"), "dn1 hdfs-dn1-1");
        assert_eq!(own("hdfs-dn1-1", ""), "hdfs-dn1-1");
        // What Docker makes up of the id is nothing to be looked up.
        assert_eq!(own("0123456789ab", ""), "hdfs-dn1-1");
        assert_eq!(own("", ""), "hdfs-dn1-1");
    }

    #[test]
    fn aliases_are_shared_but_for_the_short_id_and_what_is_its_own() {
        assert_eq!(names("dn1", "").1, "datanode");
        assert_eq!(names("", "").1, "dn1 datanode");
    }

    #[test]
    fn only_addresses_of_the_lease_count_with_the_aliases_of_their_networks() {
        let mut both = container("dn1", "");
        both.attachments.push(Attachment {
            addresses: vec!["172.17.0.2".parse().expect("ip")],
            aliases: vec!["elsewhere".into()],
        });
        let found = record(&both).expect("one of its addresses is ours");
        assert_eq!(found.addresses, ["10.5.7.9".parse::<IpAddr>().expect("ip")]);
        assert_eq!((found.groups.len(), found.since, found.source), (1, 7, NameSource::Docker));
        both.attachments.remove(0);
        assert_eq!(record(&both), None);
        let zone = "loden.internal".parse().expect("zone");
        assert_eq!(container("dn1", "").record(&zone, lease(), |_| true), None, "the plugin has named it");
    }

    #[test]
    fn what_can_be_no_name_is_told_and_the_rest_stands() {
        let mut odd = container("dn1", "");
        odd.name = "ends-with-a-".into();
        let zone = "loden.internal".parse().expect("zone");
        let (record, problems) = odd.record(&zone, lease(), |_| false).expect("an address of ours");
        assert_eq!((record.names.len(), problems.len()), (1, 1), "{problems:?}");
        assert_eq!(odd.endpoint(), "docker-0123456789ab");
    }
}
