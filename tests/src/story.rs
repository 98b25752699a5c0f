//! Beginnings that many scenarios share.

use std::net::IpAddr;
use std::time::Duration;

use loden_proto::config::NetworkConfig;
use loden_proto::lease::LeaseKey;
use loden_proto::status::{DeviceStatus, Status};
use loden_proto::{Family, Subnet};
use serde_json::{Value, json};

use crate::{Daemon, Etcd, Host, Lab, eventually, invariants};

/// A network with the vxlan backend. Hosts choose below 10.5.100.0, so that leases which a scenario
/// puts above it never meet a chosen one.
pub const VXLAN: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}"#;

/// The address families of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// IPv4 alone.
    Four,
    /// Both.
    Dual,
    /// IPv6 alone.
    Six,
}

impl Stack {
    /// A network with the vxlan backend: 10.5.0.0/16, fd00:10:5::/48 or both. Hosts choose below number
    /// 100, as in [`VXLAN`].
    pub fn vxlan(self) -> String {
        self.config(json!({"Type": "vxlan"}), (1, 99))
    }

    /// The same with a backend of the scenario's own, and the numbers of the first and the last subnet
    /// to be leased: 10.5.200.0/24 and fd00:10:5:c8::/64 have the number 200.
    pub fn config(self, backend: Value, (first, last): (u8, u8)) -> String {
        let mut config = json!({"Backend": backend});
        if self != Stack::Six {
            config["Network"] = json!("10.5.0.0/16");
            config["SubnetMin"] = json!(format!("10.5.{first}.0"));
            config["SubnetMax"] = json!(format!("10.5.{last}.0"));
        } else {
            config["EnableIPv4"] = json!(false);
        }
        if self != Stack::Four {
            config["EnableIPv6"] = json!(true);
            config["IPv6Network"] = json!("fd00:10:5::/48");
            config["IPv6SubnetMin"] = json!(subnet_of(Family::V6, first).address());
            config["IPv6SubnetMax"] = json!(subnet_of(Family::V6, last).address());
        }
        config.to_string()
    }

    /// Its families, IPv4 first.
    pub fn families(self) -> &'static [Family] {
        match self {
            Stack::Four => &[Family::V4],
            Stack::Dual => &[Family::V4, Family::V6],
            Stack::Six => &[Family::V6],
        }
    }

    /// The family that its scenarios look at: the one that is newer.
    pub fn newest(self) -> Family {
        if self == Stack::Four { Family::V4 } else { Family::V6 }
    }

    /// How many peers `loden status` shows for so many other hosts: one for each family.
    pub fn peers(self, hosts: usize) -> usize {
        hosts * self.families().len()
    }

    /// The subnets of a number.
    pub fn lease_key(self, number: u8) -> LeaseKey {
        let of = |family| self.families().contains(&family).then(|| subnet_of(family, number));
        LeaseKey::new(of(Family::V4), of(Family::V6)).expect("a family")
    }

    /// A vxlan lease as flannel writes it: at 192.168.77.`number` and fd77::`number`.
    pub fn lease(self, number: u8) -> Value {
        let v4 = |value: Value| if self == Stack::Six { Value::Null } else { value };
        let v6 = |value: Value| if self == Stack::Four { Value::Null } else { value };
        let data = |digit: u8| json!({"VNI": 1, "VtepMAC": format!("02:00:00:00:{digit:02x}:{number:02x}")});
        let mut lease = json!({
            "PublicIP": v4(json!(format!("192.168.77.{number}"))),
            "PublicIPv6": v6(json!(format!("fd77::{number}"))),
            "BackendType": "vxlan",
            "BackendData": v4(data(0)),
            "BackendV6Data": v6(data(6)),
        });
        if let Value::Object(members) = &mut lease {
            members.retain(|name, value| !value.is_null() || name == "PublicIPv6");
        }
        lease
    }
}

/// The subnet of a number: 10.5.200.0/24 or fd00:10:5:c8::/64.
pub fn subnet_of(family: Family, number: u8) -> Subnet {
    let text = match family {
        Family::V4 => format!("10.5.{number}.0/24"),
        Family::V6 => format!("fd00:10:5:{number:x}::/64"),
    };
    text.parse().expect("a subnet")
}

/// How long a change may take to show everywhere. Not a measure of speed: the machine may carry
/// other scenarios; `make bench` measures.
pub const SOON: Duration = Duration::from_secs(15);

/// Hosts a, b, c … with one ready daemon each.
#[derive(Debug)]
pub struct Cluster<const N: usize> {
    /// The lab.
    pub lab: Lab,
    /// Its etcd.
    pub etcd: Etcd,
    /// The hosts.
    pub hosts: [Host; N],
    /// Their daemons.
    pub daemons: [Daemon; N],
}

impl<const N: usize> Cluster<N> {
    /// Starts everything and waits until each daemon has programmed each other.
    #[track_caller]
    pub fn start(name: &str, config: &str, flags: &[&str]) -> Self {
        let lab = Lab::new(name);
        let etcd = lab.etcd();
        etcd.config(config);
        let hosts: [Host; N] = lab.hosts();
        let daemons = hosts.each_ref().map(|host| host.daemon(flags));
        for daemon in &daemons {
            daemon.wait_ready();
        }
        let cluster = Self { lab, etcd, hosts, daemons };
        // One for each family.
        let families = NetworkConfig::parse(config).map_or(1, |c| c.pools().count());
        for host in &cluster.hosts {
            host.sees_peers((N - 1) * families);
        }
        cluster
    }
}

impl Host {
    /// The leased subnet, as `loden status` shows it; the IPv4 subnet of two.
    #[track_caller]
    pub fn subnet(&self) -> Subnet {
        self.held_subnet().unwrap_or_else(|e| panic!("{e}"))
    }

    /// The leased subnet of a family.
    #[track_caller]
    pub fn subnet_of(&self, family: Family) -> Subnet {
        let key = self.held_key().unwrap_or_else(|e| panic!("{e}"));
        key.subnet(family).unwrap_or_else(|| panic!("{} has no {family} subnet: {key}", self.name()))
    }

    /// The first subnet of a held lease, or what there is instead.
    pub fn held_subnet(&self) -> Result<Subnet, String> {
        self.held_key().map(|key| key.subnets().next().expect("a key has a subnet"))
    }

    /// The subnets of a held lease, or what there is instead.
    pub fn held_key(&self) -> Result<LeaseKey, String> {
        let status = self.try_status(&[])?;
        let lease = status.lease.filter(|l| l.state == "held").ok_or_else(|| {
            format!(
                "{} holds no lease: {} {:?} {:?}",
                self.name(),
                status.state,
                status.problems,
                status.notes
            )
        })?;
        let of = |family| lease.subnets.iter().copied().find(|s| s.family() == family);
        LeaseKey::new(of(Family::V4), of(Family::V6)).ok_or_else(|| format!("{} has no subnet", self.name()))
    }

    /// Waits until status and kernel agree on so many programmed peers.
    #[track_caller]
    pub fn sees_peers(&self, count: usize) -> Status {
        eventually(SOON, &format!("{} has {count} peers in status and kernel", self.name()), || {
            let status = self.try_status(&[])?;
            let programmed = status.peers.iter().filter(|p| p.state == "programmed").count();
            if programmed != count {
                return Err(format!("{programmed} programmed: {:#?}", status.peers));
            }
            invariants::kernel_equals_status(self, &status)?;
            Ok(status)
        })
    }

    /// Whether the kernel holds what status says.
    pub fn kernel_matches_status(&self) -> Result<Status, String> {
        let status = self.try_status(&[])?;
        invariants::kernel_equals_status(self, &status).map(|()| status)
    }

    /// The name of the VXLAN device; of IPv4's if there are two.
    #[track_caller]
    pub fn device(&self) -> String {
        let status = self.status();
        status.devices.first().unwrap_or_else(|| panic!("no device: {status:#?}")).name.clone()
    }

    /// The VXLAN device of a family.
    #[track_caller]
    pub fn device_of(&self, family: Family) -> DeviceStatus {
        let status = self.status();
        let name = |d: &&DeviceStatus| d.name.starts_with("loden6.") == (family == Family::V6);
        status.devices.iter().find(name).unwrap_or_else(|| panic!("no device: {status:#?}")).clone()
    }
}

/// A vxlan lease as flannel writes it.
pub fn vxlan_lease(public_ip: impl Into<IpAddr>, mac: &str) -> String {
    let public_ip: IpAddr = public_ip.into();
    json!({
        "PublicIP": public_ip,
        "PublicIPv6": null,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": mac},
    })
    .to_string()
}

impl Etcd {
    /// Puts the lease of a host that is not there; see [`Stack::lease`].
    #[track_caller]
    pub fn put_host(&self, stack: Stack, number: u8) -> LeaseKey {
        let key = stack.lease_key(number);
        self.put_leased(&Self::key(key), &stack.lease(number).to_string(), 3600);
        key
    }

    /// Puts the lease of a host that is not there: `10.5.200.0/24` at 192.168.77.200. It does not expire
    /// within any scenario.
    #[track_caller]
    pub fn put_peer(&self, third: u8) -> Subnet {
        self.put_host(Stack::Four, third);
        subnet_of(Family::V4, third)
    }
}
