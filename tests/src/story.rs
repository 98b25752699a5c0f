//! Beginnings that many scenarios share.

use std::net::IpAddr;
use std::time::Duration;

use loden_proto::status::Status;
use loden_proto::{Family, Subnet};
use serde_json::json;

use crate::{Daemon, Etcd, Host, Lab, eventually, invariants};

/// A network with the vxlan backend. Hosts choose below 10.5.100.0, so that leases which a scenario
/// puts above it never meet a chosen one.
pub const VXLAN: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","Backend":{"Type":"vxlan"}}"#;

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
        for host in &cluster.hosts {
            host.sees_peers(N - 1);
        }
        cluster
    }
}

impl Host {
    /// The leased IPv4 subnet, as `loden status` shows it.
    #[track_caller]
    pub fn subnet(&self) -> Subnet {
        self.held_subnet().unwrap_or_else(|e| panic!("{e}"))
    }

    /// The subnet of a held lease, or what there is instead.
    pub fn held_subnet(&self) -> Result<Subnet, String> {
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
        lease
            .subnets
            .into_iter()
            .find(|s| s.family() == Family::V4)
            .ok_or_else(|| format!("{} has no IPv4 subnet", self.name()))
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

    /// The name of the VXLAN device.
    #[track_caller]
    pub fn device(&self) -> String {
        let status = self.status();
        status.devices.first().unwrap_or_else(|| panic!("no device: {status:#?}")).name.clone()
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
    /// Puts the lease of a host that is not there: `10.5.200.0/24` at 192.168.77.200. It does not expire
    /// within any scenario.
    #[track_caller]
    pub fn put_peer(&self, third: u8) -> Subnet {
        let subnet: Subnet = format!("10.5.{third}.0/24").parse().expect("a subnet");
        let lease = vxlan_lease([192, 168, 77, third], &format!("02:00:00:00:00:{third:02x}"));
        self.put_leased(&Self::key(subnet), &lease, 3600);
        subnet
    }
}
