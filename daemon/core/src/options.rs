//! The operator's choices for the kernel's objects, and the names that follow from them.

use loden_proto::{Family, Subnet};
use serde::{Deserialize, Serialize};

/// The operator's choices that shape the kernel's objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// `--network`: names devices, bridge and table.
    pub network: String,
    /// `--ip-masq`
    pub masquerade: bool,
    /// `--masq-inbound`
    pub masquerade_inbound: bool,
    /// `--no-masq-cidr`
    pub no_masquerade: Vec<Subnet>,
    /// Random source ports when masquerading (off by `--ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// `--fwmark` as value and mask.
    pub fwmark: (u32, u32),
    /// `--vtep-source-check`: accept VXLAN from current peers only.
    pub check_sources: bool,
    /// `--dns-listen`
    pub dns_listen: Vec<Listen>,
}

/// Addresses on which the daemon answers DNS requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listen {
    /// The gateway of this host's containers.
    Gateway,
    /// The one that is the same on every host (`DNS.Address` of the network config).
    Shared,
    /// Those that carry the overlay, for clients outside of it.
    Underlay,
}

impl Listen {
    /// All of them.
    pub const ALL: [Listen; 3] = [Listen::Gateway, Listen::Shared, Listen::Underlay];
}

impl Options {
    /// The defaults, for a network of this name.
    pub fn named(network: &str) -> Self {
        Self {
            network: network.to_owned(),
            masquerade: true,
            masquerade_inbound: true,
            no_masquerade: Vec::new(),
            fully_random: true,
            fwmark: (loden_proto::DEFAULT_FWMARK, loden_proto::DEFAULT_FWMARK),
            check_sources: true,
            dns_listen: Listen::ALL.to_vec(),
        }
    }

    /// Name of the bridge that the plugin makes.
    pub fn bridge(&self) -> String {
        format!("{}0", self.network)
    }

    /// Name of a VXLAN device that we make.
    pub fn device(&self, vni: u32, family: Family) -> String {
        match family {
            Family::V4 => format!("{}.{vni}", self.network),
            Family::V6 => format!("{}6.{vni}", self.network),
        }
    }

    /// Whether a device has a name of ours, from this config or an earlier one.
    pub fn names_device(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.network).unwrap_or("");
        let rest = rest.strip_prefix("6.").or_else(|| rest.strip_prefix('.')).unwrap_or("");
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())
    }
}
