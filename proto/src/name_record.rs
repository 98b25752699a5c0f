//! What stands in etcd for the names of one endpoint:
//! `<prefix>/loden/names/<lease>/<endpoint>`, on the etcd lease of the host, so that a host's names go
//! when its lease does.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::dns_name::DnsName;

/// The names of one endpoint. Unknown members are passed over; a record that cannot be read harms itself only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NameRecord {
    /// Relative to the zone, which can change. The first is what its addresses resolve to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<DnsName>,
    /// Names that it shares with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<DnsName>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports that are published at its host.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "known_ports")]
    pub ports: Vec<PublishedPort>,
    /// When it took the names, in milliseconds since 1970. Of two that want one name the later has it.
    pub since: u64,
    /// Who told of it.
    #[serde(default)]
    pub source: NameSource,
}

/// A port of an endpoint that its host forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PublishedPort {
    /// Of the transport.
    pub protocol: Protocol,
    /// Where the container listens.
    pub port: u16,
    /// Where its host does.
    pub host_port: u16,
}

impl std::fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.protocol.name(), self.port, self.host_port)
    }
}

impl std::str::FromStr for PublishedPort {
    type Err = String;

    /// `tcp/9866:19866`; without the host's port it is the same.
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is no port such as tcp/9866 or tcp/9866:19866 (inside:at the host)");
        let (protocol, ports) = text.split_once('/').ok_or_else(error)?;
        let protocol = Protocol::ALL.into_iter().find(|p| p.name() == protocol).ok_or_else(error)?;
        let (port, host_port) = ports.split_once(':').unwrap_or((ports, ports));
        let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0).ok_or_else(error);
        Ok(Self { protocol, port: number(port)?, host_port: number(host_port)? })
    }
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// As in a service's name (RFC 6335), without the underscore.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Who told of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameSource {
    /// The CNI plugin, by an allocation file.
    #[default]
    Cni,
    /// Docker.
    Docker,
    /// An operator, by `loden name add`.
    Manual,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

impl NameSource {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cni => "cni",
            Self::Docker => "docker",
            Self::Manual => "manual",
            Self::Unknown => "unknown",
        }
    }
}

/// A name that an operator has given to something on a host that the plugin has not connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualName {
    /// Relative to the zone.
    pub name: DnsName,
    /// Whether others may share it.
    #[serde(default)]
    pub group: bool,
    /// What it stands for.
    pub addresses: Vec<IpAddr>,
    /// Ports that its host forwards.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// When it was given, in milliseconds since 1970.
    #[serde(default)]
    pub since: u64,
}

/// Values larger than this are refused unread: an endpoint's names take some 200 bytes.
pub const RECORD_LIMIT: usize = 64 * 1024;
/// How much of each kind a record has at most. All of it at its longest is within [`RECORD_LIMIT`].
const MOST_NAMES: usize = 64;
const MOST_ADDRESSES: usize = 64;
const MOST_PORTS: usize = 512;

/// Those of a transport that this version knows.
fn known_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PublishedPort>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|port| serde_json::from_value(port).ok()).collect())
}

impl NameRecord {
    /// The latest time, in milliseconds since 1970, that every JSON reader knows exactly (RFC 8259 §6).
    pub const LATEST: u64 = (1 << 53) - 1;

    /// Leaves out what is too much for one record, and tells of it.
    pub fn bound(&mut self) -> Vec<String> {
        let own = self.names.len().min(MOST_NAMES);
        [
            cut(&mut self.names, MOST_NAMES, "names"),
            cut(&mut self.groups, MOST_NAMES - own, "shared names"),
            cut(&mut self.addresses, MOST_ADDRESSES, "addresses"),
            cut(&mut self.ports, MOST_PORTS, "published ports"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Reads a value; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > RECORD_LIMIT {
            return Err(format!("it is {} bytes long, but at most {RECORD_LIMIT} are read", bytes.len()));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if record.since > Self::LATEST {
            return Err(format!("its Since is {}, which is no time", record.since));
        }
        Ok(record)
    }

    /// The value to write.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

fn cut<T>(list: &mut Vec<T>, most: usize, what: &str) -> Option<String> {
    let before = list.len();
    list.truncate(most);
    (before > most).then(|| format!("it has {before} {what}, of which the first {most} are told"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text() {
        let record = NameRecord {
            names: vec!["dn1".parse().expect("name"), "dn1.hdfs".parse().expect("name")],
            groups: vec!["datanodes".parse().expect("name")],
            addresses: vec!["10.5.7.9".parse().expect("ip"), "fd00::9".parse().expect("ip")],
            ports: vec![PublishedPort { protocol: Protocol::Tcp, port: 9866, host_port: 19866 }],
            since: 1_700_000_000_123,
            source: NameSource::Docker,
        };
        assert_eq!(NameRecord::parse(record.to_json().as_bytes()), Ok(record));
    }

    #[test]
    fn ports_are_written_as_they_are_read() {
        for (text, shown) in [("tcp/9866:19866", "tcp/9866:19866"), ("udp/53", "udp/53:53")] {
            assert_eq!(text.parse::<PublishedPort>().map(|p| p.to_string()), Ok(shown.to_owned()));
        }
        for bad in ["", "80", "icmp/1", "tcp/", "tcp/0", "tcp/80:", "tcp/80:65536", "tcp/80:1:2"] {
            assert!(bad.parse::<PublishedPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn members_that_are_missing_or_unknown_do_no_harm_and_bad_ones_are_named() {
        let least = NameRecord::parse(br#"{"Addresses":["10.5.7.9"],"Since":1,"Colour":"red"}"#);
        assert_eq!(least.map(|r| (r.names.len(), r.source)), Ok((0, NameSource::Cni)));
        for (text, part) in [
            ("", "EOF"),
            (r#"{"Names":["a b"],"Addresses":[],"Since":1}"#, "no DNS name"),
            (r#"{"Addresses":["10.5.7"],"Since":1}"#, "IP address"),
            (r#"{"Addresses":[],"Since":-1}"#, "-1"),
            (r#"{"Addresses":[],"Since":18446744073709551615}"#, "no time"),
        ] {
            let error = NameRecord::parse(text.as_bytes()).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(NameRecord::parse(&vec![b' '; RECORD_LIMIT + 1]).expect_err("long").contains("65536"));
        let newer = br#"{"Addresses":["10.5.7.9"],"Since":1,"Source":"moon",
            "Ports":[{"Protocol":"quic","Port":1,"HostPort":1},{"Protocol":"tcp","Port":2,"HostPort":2}]}"#;
        let newer = NameRecord::parse(newer).expect("a newer version's");
        assert_eq!((newer.source, newer.ports.len()), (NameSource::Unknown, 1));
    }

    #[test]
    fn whatever_a_container_has_its_record_can_be_read() {
        let long = |number: usize| {
            let labels = [number.to_string(), "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(50)];
            labels.join(".").parse::<DnsName>().expect("a name")
        };
        let port = |port| PublishedPort { protocol: Protocol::Sctp, port, host_port: u16::MAX - port };
        let mut record = NameRecord {
            names: (0..40).map(long).collect(),
            groups: (0..400).map(long).collect(),
            addresses: (0..2000)
                .map(|n| IpAddr::from([0xfd00, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, n]))
                .collect(),
            ports: (10_000..12_000).map(port).collect(),
            since: NameRecord::LATEST,
            source: NameSource::Unknown,
        };
        assert_eq!(record.bound().len(), 3);
        assert_eq!(NameRecord::parse(record.to_json().as_bytes()), Ok(record.clone()));
        assert!(record.bound().is_empty());
        assert_eq!((record.names.len(), record.groups.len()), (40, 24));
    }
}
