//! The local socket `<run-dir>/loden.sock`: one JSON object per line, a request in, an answer
//! out, then the connection closes. `loden status --json` prints [`Status`] as it is here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::dns_name::DnsName;
use crate::name_record::ManualName;
use crate::{Mac, Subnet};

/// A question to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Answered with [`Status`].
    Status,
    /// Answered with [`Endpoints`].
    Endpoints,
    /// Answered with [`Named`] as soon as the names of this endpoint are served and in etcd.
    AwaitNames {
        /// The endpoint's id: of a container that the plugin has connected the host's end of its pair.
        endpoint: String,
    },
    /// Answered with [`Names`].
    Names,
    /// Answered with [`ManualNames`].
    ManualNames,
    /// Gives a name by hand, in place of what has it; answered with [`NameChange`] as `AwaitNames` is. For root
    /// and the daemon's own user.
    AddName(ManualName),
    /// Takes one back; answered with [`NameChange`]. For the same.
    RemoveName {
        /// With or without the zone.
        name: DnsName,
    },
}

/// The names that were given by hand on this host. `loden name list --json` prints it as it is here.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ManualNames {
    /// The zone; empty where none is served.
    pub zone: String,
    /// In order.
    pub names: Vec<ManualName>,
}

/// What became of a change of names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NameChange {
    /// Why nothing was changed.
    pub error: Option<String>,
    /// The name, and whether others see the change.
    pub named: Named,
}

/// What became of an endpoint's names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Named {
    /// In full; none where it has no name, or the daemon serves none.
    pub names: Vec<String>,
    /// Why they are not what they should be.
    pub problem: Option<String>,
    /// Whether every host can see them; else this one alone does until etcd is back.
    pub published: bool,
}

/// The names of the overlay. `loden names --json` prints it as it is here.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Names {
    /// The zone; empty where none is served.
    pub zone: String,
    /// In order of the names.
    pub names: Vec<NameStatus>,
    /// What is wrong with names, worst first.
    pub problems: Vec<String>,
}

/// One name and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameStatus {
    /// In full.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The host of its endpoint.
    pub host: String,
    /// That host's subnet.
    pub subnet: Subnet,
    /// The endpoint's id on that host.
    pub endpoint: String,
    /// `cni`, `docker` or `manual`.
    pub source: String,
    /// Whether others may share it.
    #[serde(default)]
    pub group: bool,
    /// What clients outside of the overlay are told; nothing where they are not told of it.
    #[serde(default)]
    pub outside_addresses: Vec<IpAddr>,
    /// `owner`, `member` of a group, `withdrawn` (a newer endpoint has it) or `local` (not in etcd yet).
    pub state: String,
    /// Since when, in seconds since 1970.
    pub since_unix_seconds: u64,
}

/// The endpoint table. `loden endpoints --json` prints it as it is here.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    /// Who answered, as in [`Status`].
    pub source: String,
    /// In order of their first addresses.
    pub endpoints: Vec<EndpointStatus>,
}

/// One interface of a container that holds addresses of this host's subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// The container's name, where the runtime told it.
    pub name: Option<String>,
    /// The CNI network's name.
    pub network: String,
    /// The runtime's container id.
    pub container_id: String,
    /// The interface's name inside.
    pub interface: String,
    /// Path of the container's namespace as the runtime gave it.
    pub netns: String,
    /// Its MAC.
    pub mac: Mac,
    /// The host's end of its pair, a port of the bridge.
    pub port: String,
    /// The bridge; empty where a former release did not note it.
    pub bridge: String,
    /// Whether the container is held to its own MAC and addresses.
    pub guarded: bool,
    /// Frames dropped at its port because they were not its own, within the last hour.
    pub rejected_frames: u64,
    /// When it got its address, in seconds since 1970.
    pub since_unix_seconds: Option<u64>,
    /// How it stands.
    pub state: EndpointState,
}

/// How an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointState {
    /// Its port is on the bridge.
    Connected,
    /// An ADD works on it.
    Connecting,
    /// Its interface is gone and nobody has told the plugin; DEL or GC frees the address.
    Gone,
    /// Its port is on no bridge; the daemon puts it back.
    Detached,
    /// Somebody put its port on another bridge.
    Elsewhere,
}

impl EndpointState {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Gone => "gone",
            Self::Detached => "detached",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// Everything the daemon knows of itself. Members are stable; new ones may come.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Loden's version.
    pub version: String,
    /// Network name (`--network`).
    pub network: String,
    /// Who answered: `daemon`, or `kernel` when the daemon is down and the kernel and files were read.
    pub source: String,
    /// Process id of the daemon.
    pub pid: Option<u32>,
    /// One of `starting`, `ready`, `degraded`; without the daemon's answer `stopped`, or `not answering`.
    pub state: String,
    /// What an operator should know, worst first.
    pub problems: Vec<String>,
    /// What is worth knowing and needs no hand.
    pub notes: Vec<String>,
    /// The network config in force.
    pub config: Option<ConfigStatus>,
    /// Our own lease.
    pub lease: Option<LeaseStatus>,
    /// The underlay.
    pub underlay: Option<UnderlayStatus>,
    /// The VXLAN devices or none.
    pub devices: Vec<DeviceStatus>,
    /// Peers in order of their subnets.
    pub peers: Vec<PeerStatus>,
    /// Leases that were refused, in order of their keys.
    pub rejected: Vec<RejectedStatus>,
    /// etcd.
    pub etcd: EtcdStatus,
    /// What was repaired, by kind of object, since the daemon started.
    pub repairs: BTreeMap<String, u64>,
    /// VXLAN packets dropped because they came from no peer, by source address.
    pub rejected_vxlan: BTreeMap<IpAddr, u64>,
    /// Containers that hold an address of our subnet.
    pub endpoints: usize,
    /// Names, where they are served.
    pub dns: Option<DnsStatus>,
}

/// The DNS server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsStatus {
    /// Below which all names are.
    pub zone: String,
    /// Addresses on which it answers.
    pub addresses: Vec<IpAddr>,
    /// Endpoints with names, on all hosts.
    pub endpoints: usize,
    /// Those of this host that etcd does not have yet.
    pub unpublished: usize,
}

/// The network config in force.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Networks of the overlay.
    pub networks: Vec<Subnet>,
    /// Backend type.
    pub backend: String,
    /// Why the config in etcd is not the one in force, if so.
    pub pending: Option<String>,
}

/// Our own lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// `held`, `unconfirmed` (etcd is away, the recorded deadline has not passed), `contested`
    /// (somebody else may live who holds it) or `lost`.
    pub state: String,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Our host id.
    pub host_id: String,
    /// Seconds until the lease ends unless it is refreshed.
    pub expires_in_seconds: Option<u64>,
}

/// The interface and addresses that carry the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnderlayStatus {
    /// Interface name.
    pub interface: String,
    /// Its addresses that carry the overlay.
    pub addresses: Vec<IpAddr>,
    /// The addresses that peers send to, where they differ (`--public-ip`).
    pub public_addresses: Vec<IpAddr>,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// One VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Interface name.
    pub name: String,
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is there and up.
    pub up: bool,
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its subnet.
    pub subnet: Subnet,
    /// Where its packets go.
    pub public_address: IpAddr,
    /// MAC of its VXLAN device; absent where packets go unencapsulated.
    pub vtep_mac: Option<Mac>,
    /// Its host name, if it runs Loden.
    pub host_name: String,
    /// Loden's version there, or `flannel`.
    pub version: String,
    /// `programmed`, `pending` (not yet in the kernel), `held` (its lease vanished with most others).
    pub state: String,
    /// Why it is not simply programmed.
    pub reason: Option<String>,
}

/// A lease that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedStatus {
    /// The key's last component.
    pub key: String,
    /// Why.
    pub reason: String,
}

/// The health of etcd as the daemon sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EtcdStatus {
    /// The endpoints in use, without secrets.
    pub endpoints: Vec<String>,
    /// The key prefix.
    pub prefix: String,
    /// Whether the watch is up.
    pub connected: bool,
    /// Seconds since the watch was last up, when it is not.
    pub away_seconds: Option<u64>,
    /// The last error.
    pub error: Option<String>,
    /// Revision up to which we have seen every change.
    pub revision: i64,
}
