//! What `loden attach` has connected: allocations of the CNI plugin's, in a network of their own.
//! Called by `cli/attach.rs` and `cli/detach.rs`; needs neither the daemon nor etcd.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use loden_cni::allocations::Store;
use loden_cni::ifname::IfName;
use loden_cni::options::Options;
use loden_cni::request::{Attachment, Config, Request, Version};
use loden_cni::wishes::Wishes;
use loden_proto::allocation::Allocation;
use serde_json::json;

use crate::endpoints;

/// The name of their network, as CNI's networks have one: the folder of their allocations.
pub const NETWORK: &str = "loden-attach";

/// Where attachments are.
#[derive(Debug, Clone)]
pub struct Attachments {
    /// `subnet.env`
    pub subnet_file: PathBuf,
    /// The folder of all networks' allocations.
    pub data_dir: PathBuf,
}

/// One interface with its addresses.
pub type Held = Vec<Allocation>;

impl Attachments {
    /// The plugin's configuration.
    pub fn config(&self) -> Config {
        Config {
            version: Version::NEWEST,
            network: NETWORK.into(),
            subnet_file: self.subnet_file.clone(),
            data_dir: self.data_dir.clone(),
            bridge: None,
            options: Options::default(),
            dns: json!({}),
            prev_result: None,
        }
    }

    /// The plugin's request for one interface.
    pub fn request(&self, id: &str, ifname: &IfName, netns: &str, wishes: Wishes) -> Request {
        let attachment = Attachment {
            network: NETWORK.into(),
            container_id: id.into(),
            ifname: ifname.clone(),
            netns: netns.into(),
            own_netns_allowed: false,
        };
        Request { attachment, config: self.config(), wishes }
    }

    /// All of them, and what could not be read. What is being attached at this moment is left out.
    pub fn all(&self) -> Result<(Vec<Held>, Vec<String>), loden_cni::Error> {
        let (idle, errors) = Store::new(&self.data_dir, NETWORK).idle()?;
        let mut all: BTreeMap<(String, String), Held> = BTreeMap::new();
        for idle in idle {
            let allocation = idle.allocation;
            let key = (allocation.container_id.clone(), allocation.ifname.clone());
            all.entry(key).or_default().push(allocation);
        }
        Ok((all.into_values().collect(), errors.iter().map(ToString::to_string).collect()))
    }

    /// The allocation that a container of another network has of this address, and that network.
    pub fn foreign_holder(&self, address: IpAddr) -> Option<(String, Allocation)> {
        let found = endpoints::all(&self.data_dir).into_iter();
        found
            .map(|found| (found.network, found.allocation))
            .find(|(network, allocation)| network != NETWORK && allocation.address == address)
    }
}
