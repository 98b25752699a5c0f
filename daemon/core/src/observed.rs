//! What the kernel holds, as far as it concerns us: filled by the kernel layer from a dump, kept
//! current with our own successful operations, and replaced by a fresh dump when a notice
//! contradicts it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::net::{IpAddr, Ipv4Addr};

use loden_proto::{Family, Mac, Subnet};

use crate::filters::Member;

/// The kernel's state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Every interface by index.
    pub links: BTreeMap<u32, Link>,
    /// Addresses of every interface.
    pub addresses: BTreeMap<u32, Vec<Address>>,
    /// Interface index of the default route of each family.
    pub default_routes: BTreeMap<Family, u32>,
    /// Routes of the main table to subnets inside the overlay networks, or made by us.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours on VXLAN devices, by device index.
    pub neighbours: BTreeMap<(u32, IpAddr), Mac>,
    /// Permanent FDB entries of VXLAN devices. One MAC can be in several places.
    pub fdb: BTreeSet<FdbEntry>,
    /// Nexthop objects by id.
    pub nexthops: BTreeMap<u32, Nexthop>,
    /// Whether nexthop objects exist in this kernel.
    pub has_nexthops: bool,
    /// Interfaces that forward, by family and name.
    pub forwarding: BTreeSet<(Family, String)>,
    /// Digest of the rules that our table was last seen to hold as we wrote them; `None`: it is
    /// missing or was changed.
    pub filters: Option<String>,
    /// What our table's peer sets hold.
    pub admitted: BTreeSet<Member>,
}

/// An entry of a VXLAN device's FDB: device index, MAC, where it is.
pub type FdbEntry = (u32, Mac, IpAddr);

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Names that it has beside it (`altname`).
    pub other_names: Vec<String>,
    /// Its MAC, if it has one.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administrative state.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Whether it is a bridge.
    pub bridge: bool,
    /// Index of the bridge or bond that it is a port of, 0 for none.
    pub controller: u32,
    /// VXLAN settings, if it is one.
    pub vxlan: Option<VxlanLink>,
}

/// Settings of a VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanLink {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Source address.
    pub local: Option<IpAddr>,
    /// Index of the lower device, 0 for none.
    pub lower: u32,
    /// Whether it learns from traffic.
    pub learning: bool,
    /// Whether group policy is on.
    pub gbp: bool,
    /// Whether it sends what it does not know to a group or a default remote.
    pub group: bool,
    /// Whether it takes its tunnel data from routes (`external`), which is not our kind.
    pub external: bool,
    /// Whether the device is of the IPv6 underlay.
    pub family: Family,
}

/// One address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Prefix length.
    pub length: u8,
    /// Whether it has no end of life.
    pub permanent: bool,
    /// Temporary, deprecated or not yet proven unique.
    pub unusable: bool,
    /// Whether Loden made it, by its protocol number (`IFA_PROTO`, Linux 5.18).
    pub ours: bool,
}

impl Address {
    /// Whether it is valid on its link only (RFC 3927, RFC 4291 §2.5.6).
    pub fn link_local(&self) -> bool {
        match self.address {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        }
    }
}

/// One route of the main table. In the order of subnets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub subnet: Subnet,
    /// Where it leads.
    pub via: Via,
    /// `rtm_protocol`
    pub protocol: u8,
    /// Metric; 0 is IPv4's default, 1024 IPv6's.
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// By a nexthop object.
    Nexthop(u32),
    /// By a gateway.
    Gateway {
        /// Index of the device.
        device: u32,
        /// The gateway.
        gateway: IpAddr,
        /// Whether the gateway is taken as on the link.
        onlink: bool,
    },
    /// Anything else: a device route, a blackhole, several paths. Never ours.
    Other,
}

/// One nexthop object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nexthop {
    /// Index of the device.
    pub device: u32,
    /// The gateway.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is taken as on the link.
    pub onlink: bool,
    /// Protocol of its maker.
    pub protocol: u8,
}

impl Observed {
    /// Takes no more room than needed, after many objects came. Those that come one by one in order leave
    /// half of the trees' nodes unused; what is collected from an ordered row fills them.
    pub fn pack(&mut self) {
        self.routes = take(&mut self.routes).into_iter().collect();
        self.neighbours = take(&mut self.neighbours).into_iter().collect();
        self.fdb = take(&mut self.fdb).into_iter().collect();
        self.nexthops = take(&mut self.nexthops).into_iter().collect();
        self.admitted = take(&mut self.admitted).into_iter().collect();
    }

    /// The routes to exactly this subnet.
    pub fn routes_to(&self, subnet: Subnet) -> impl Iterator<Item = &Route> {
        let least = Route { subnet, via: Via::Nexthop(0), protocol: 0, metric: 0 };
        self.routes.range(least..).take_while(move |route| route.subnet == subnet)
    }

    /// Where a MAC is, by the device's FDB.
    pub fn endpoints(&self, device: u32, mac: Mac) -> impl Iterator<Item = IpAddr> {
        let least = (device, mac, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let entries = self.fdb.range(least..).take_while(move |(d, m, _)| (*d, *m) == (device, mac));
        entries.map(|(_, _, endpoint)| *endpoint)
    }

    /// Indices of the VXLAN devices.
    pub fn vxlan_devices(&self) -> Vec<u32> {
        self.links.values().filter(|l| l.vxlan.is_some()).map(|l| l.index).collect()
    }

    /// An interface by name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|l| l.name == name)
    }

    /// The VXLAN device of this identity, whatever its name: the kernel allows one per
    /// namespace for VNI, port and family.
    pub fn vxlan(&self, vni: u32, port: u16, family: Family) -> Option<&Link> {
        self.links
            .values()
            .find(|l| l.vxlan.is_some_and(|v| v.vni == vni && v.port == port && v.family == family))
    }

    /// The device and gateway that a route leads to, nexthop objects resolved.
    pub fn resolve(&self, via: Via) -> Option<(u32, IpAddr)> {
        match via {
            Via::Gateway { device, gateway, .. } => Some((device, gateway)),
            Via::Nexthop(id) => self.nexthops.get(&id).and_then(|n| n.gateway.map(|g| (n.device, g))),
            Via::Other => None,
        }
    }
}
