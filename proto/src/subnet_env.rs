//! `subnet.env`: what the daemon tells plugins, Docker and scripts. flannel's keys in
//! flannel's order (flannel `pkg/subnet/subnet.go`), then our own `LODEN_…` lines.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::dns_name::DnsName;
use crate::{Family, Subnet};

/// The contents of `subnet.env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The networks, IPv4 and IPv6; flannel's readers take several of a family.
    pub networks: Vec<Subnet>,
    /// The leased subnets, at most one of each family.
    pub subnets: Vec<Subnet>,
    /// MTU for containers in bytes; when dual-stack the smaller one.
    pub mtu: u32,
    /// Whether the daemon masquerades, so that others must not.
    pub masquerade: bool,
    /// Whether the lease is held. Absent in flannel's files: held.
    pub lease: LeaseState,
    /// The bridge that holds the gateway address; absent in flannel's files.
    pub bridge: Option<String>,
    /// What Docker hands out itself on that bridge, at most one range of each family: plugins leave
    /// it alone. Absent in flannel's files.
    pub docker_ranges: Vec<Subnet>,
    /// The nftables table of family `bridge` in which containers' ports are guarded; absent in
    /// flannel's files.
    pub port_filter: Option<String>,
    /// How containers' names are served; absent in flannel's files.
    pub dns: Option<DnsEnv>,
    /// The daemon's folder of lasting state, below which plugins remember addresses; absent in flannel's files.
    pub state_dir: Option<PathBuf>,
}

/// What a container's resolver needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsEnv {
    /// Who to ask.
    pub addresses: Vec<IpAddr>,
    /// The zone of all names.
    pub zone: DnsName,
    /// The daemon's socket, on which it tells what became of a name.
    pub socket: PathBuf,
}

/// Whether new containers may be given addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LeaseState {
    /// The subnet is ours.
    #[default]
    Held,
    /// Another live host owns the subnet: running containers stay, new ones are refused.
    Lost,
}

/// What is wrong with a `subnet.env`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetEnvError {
    /// Keys that must be there are not, in flannel's words.
    #[error("is missing {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// A key has a value that cannot be right.
    #[error("has {key}={value:?}, but that must be {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value as found.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

const KEYS: [(Family, &str, &str); 2] = [
    (Family::V4, "FLANNEL_NETWORK", "FLANNEL_SUBNET"),
    (Family::V6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
];

impl SubnetEnv {
    /// Parses a file that flannel or Loden wrote. Unknown keys, comments and blank lines are skipped.
    pub fn parse(text: &str) -> Result<Self, SubnetEnvError> {
        let mut networks = Vec::new();
        let mut subnets = Vec::new();
        let mut docker_ranges = Vec::new();
        let (mut mtu, mut masquerade, mut lease) = (None, None, LeaseState::Held);
        let (mut bridge, mut port_filter) = (None, None);
        let (mut dns_addresses, mut dns_zone, mut socket) = (Vec::new(), None, None);
        let mut state_dir = None;
        for line in text.lines() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else {
                continue;
            };
            let (key, value) = (key.trim(), unquoted(value.trim()));
            let error = |expected| SubnetEnvError::Value { key: key.into(), value: value.into(), expected };
            match key {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => {
                    networks.extend(list(value).ok_or_else(|| error("networks such as 10.5.0.0/16"))?);
                }
                "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => {
                    let subnet = gateway_form(value)
                        .ok_or_else(|| error("a gateway address with its length such as 10.5.7.1/24"))?;
                    // Of two lines the last counts, as for a shell and for flannel.
                    subnets.retain(|other: &Subnet| other.family() != subnet.family());
                    subnets.push(subnet);
                }
                // 68 is the least MTU of IPv4 (RFC 791).
                "FLANNEL_MTU" => {
                    let number = value.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
                    mtu = Some(number.ok_or_else(|| error("a number from 68 to 65535"))?);
                }
                "FLANNEL_IPMASQ" => masquerade = Some(value == "true"),
                "LODEN_LEASE" => {
                    lease = match value {
                        "held" => LeaseState::Held,
                        "lost" => LeaseState::Lost,
                        _ => return Err(error("held or lost")),
                    };
                }
                "LODEN_BRIDGE" => bridge = Some(value.to_owned()).filter(|b| !b.is_empty()),
                "LODEN_PORT_FILTER" => port_filter = Some(value.to_owned()).filter(|t| !t.is_empty()),
                "LODEN_DNS" => {
                    let addresses: Option<Vec<IpAddr>> = value.split(',').map(|a| a.parse().ok()).collect();
                    dns_addresses = addresses.ok_or_else(|| error("addresses such as 169.254.53.53"))?;
                }
                "LODEN_DNS_ZONE" => {
                    dns_zone = Some(value.parse().map_err(|_| error("a zone such as loden.internal"))?);
                }
                "LODEN_SOCKET" => socket = Some(PathBuf::from(value)),
                "LODEN_STATE_DIR" => {
                    // What is relative would depend on where the runtime runs.
                    state_dir = Some(PathBuf::from(value)).filter(|path| path.is_absolute());
                }
                "LODEN_DOCKER_RANGE" => {
                    docker_ranges = list(value).ok_or_else(|| error("subnets such as 10.5.7.128/25"))?;
                }
                _ => {}
            }
        }
        let mut missing = Vec::new();
        if networks.is_empty() {
            missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
        }
        if subnets.is_empty() {
            missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
        }
        if mtu.is_none() {
            missing.push("FLANNEL_MTU");
        }
        if masquerade.is_none() {
            missing.push("FLANNEL_IPMASQ");
        }
        match (mtu, masquerade) {
            (Some(mtu), Some(masquerade)) if missing.is_empty() => {
                let dns = dns_zone.zip(socket).map(|(zone, socket)| DnsEnv {
                    addresses: dns_addresses,
                    zone,
                    socket,
                });
                Ok(Self {
                    networks,
                    subnets,
                    mtu,
                    masquerade,
                    lease,
                    bridge,
                    docker_ranges,
                    port_filter,
                    dns,
                    state_dir,
                })
            }
            _ => Err(SubnetEnvError::Missing(missing)),
        }
    }

    /// The subnet of a family.
    pub fn subnet(&self, family: Family) -> Option<Subnet> {
        self.subnets.iter().copied().find(|s| s.family() == family)
    }

    /// What Docker hands out itself, of a family.
    pub fn docker_range(&self, family: Family) -> Option<Subnet> {
        self.docker_ranges.iter().copied().find(|s| s.family() == family)
    }

    /// The text to write. With `ours` false only flannel's keys, for flannel's own file.
    pub fn to_text(&self, ours: bool) -> String {
        let mut out = String::new();
        for (family, network_key, subnet_key) in KEYS {
            let networks = joined(self.networks.iter().filter(|n| n.family() == family));
            if !networks.is_empty() {
                let _ = writeln!(out, "{network_key}={networks}");
            }
            if let Some(subnet) = self.subnet(family) {
                let _ = writeln!(out, "{subnet_key}={}/{}", subnet.gateway(), subnet.length());
            }
        }
        let _ = writeln!(out, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}", self.mtu, self.masquerade);
        if ours {
            let lease = match self.lease {
                LeaseState::Held => "held",
                LeaseState::Lost => "lost",
            };
            let _ = writeln!(out, "LODEN_LEASE={lease}");
            if let Some(bridge) = &self.bridge {
                let _ = writeln!(out, "LODEN_BRIDGE={bridge}");
            }
            if !self.docker_ranges.is_empty() {
                let _ = writeln!(out, "LODEN_DOCKER_RANGE={}", joined(self.docker_ranges.iter()));
            }
            if let Some(table) = &self.port_filter {
                let _ = writeln!(out, "LODEN_PORT_FILTER={table}");
            }
            if let Some(folder) = &self.state_dir {
                let _ = writeln!(out, "LODEN_STATE_DIR={}", folder.display());
            }
            if let Some(DnsEnv { addresses, zone, socket }) = &self.dns {
                let addresses = addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
                if !addresses.is_empty() {
                    let _ = writeln!(out, "LODEN_DNS={addresses}");
                }
                let _ = writeln!(out, "LODEN_DNS_ZONE={zone}\nLODEN_SOCKET={}", socket.display());
            }
        }
        out
    }
}

fn list(value: &str) -> Option<Vec<Subnet>> {
    value.split(',').map(|part| part.trim().parse().ok()).collect()
}

fn joined<'a>(subnets: impl Iterator<Item = &'a Subnet>) -> String {
    subnets.map(Subnet::to_string).collect::<Vec<_>>().join(",")
}

fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|v| v.strip_suffix(quote)) {
            return inner;
        }
    }
    value
}

/// `10.5.7.1/24`: flannel writes the gateway's address; the subnet is what it lies in.
fn gateway_form(value: &str) -> Option<Subnet> {
    let (address, length) = value.split_once('/')?;
    let subnet = Subnet::containing(address.parse::<IpAddr>().ok()?, length.parse().ok()?).ok()?;
    (subnet.size() >= 4).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLANNEL: &str =
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn flannels_file_is_read_and_written_to_the_byte() {
        let env = SubnetEnv::parse(FLANNEL).expect("flannel's file");
        assert_eq!(env.subnet(Family::V4).map(|s| s.to_string()), Some("10.5.52.0/24".into()));
        assert_eq!((env.mtu, env.masquerade, env.lease), (1450, true, LeaseState::Held));
        assert_eq!(env.to_text(false), FLANNEL);
    }

    #[test]
    fn dual_stack_keeps_flannels_order() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\nLODEN_LEASE=lost\nLODEN_BRIDGE=loden0\nLODEN_DOCKER_RANGE=10.5.52.128/25,fd00:0:0:7:8000::/65\nLODEN_PORT_FILTER=loden\nLODEN_STATE_DIR=/var/lib/loden\nLODEN_DNS=169.254.53.53,fd00::53\nLODEN_DNS_ZONE=loden.internal\nLODEN_SOCKET=/run/loden/loden.sock\n";
        let env = SubnetEnv::parse(text).expect("our file");
        assert_eq!((env.lease, env.bridge.as_deref()), (LeaseState::Lost, Some("loden0")));
        assert_eq!(env.docker_range(Family::V6), env.subnet(Family::V6).and_then(|s| s.upper_half()));
        assert_eq!(env.to_text(true), text);
    }

    #[test]
    fn of_two_subnets_of_a_family_the_last_counts() {
        for key in ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"] {
            let env = SubnetEnv::parse(&format!("{FLANNEL}{key}=10.5.53.1/24\n")).expect("valid");
            assert_eq!(env.subnets, ["10.5.53.0/24".parse().expect("subnet")]);
            assert_eq!(SubnetEnv::parse(&env.to_text(true)), Ok(env));
        }
    }

    #[test]
    fn missing_keys_are_named_as_flannels_plugin_names_them() {
        let error = SubnetEnv::parse("FLANNEL_NETWORK=10.5.0.0/16\n").expect_err("three missing").to_string();
        assert_eq!(error, "is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ");
        let error = SubnetEnv::parse(&FLANNEL.replace("10.5.52.1/24", "10.5.52.1"))
            .expect_err("no length")
            .to_string();
        assert!(error.contains("has FLANNEL_SUBNET=\"10.5.52.1\""), "{error}");
        for wrong in ["FLANNEL_MTU=x", "FLANNEL_MTU=0", "FLANNEL_MTU=99999"] {
            assert!(SubnetEnv::parse(&FLANNEL.replace("FLANNEL_MTU=1450", wrong)).is_err());
        }
    }
}
