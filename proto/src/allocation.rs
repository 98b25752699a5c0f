//! Allocation files: one file per container address, `<run-dir>/ipam/<network>/<address>`,
//! written by the plugin alone and read by the daemon.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Mac;
use crate::name_record::PublishedPort;
use crate::port_filter::{self, Element};

/// What an allocation file holds. Keyed by (`container_id`, `ifname`); everything DEL needs is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The address, also the file's name.
    pub address: IpAddr,
    /// The runtime's container id.
    pub container_id: String,
    /// Interface name inside the container.
    pub ifname: String,
    /// Path of the container's namespace as the runtime gave it.
    pub netns: String,
    /// Name of the host's end of the veth pair.
    pub host_veth: String,
    /// MAC of the container's end.
    pub mac: Mac,
    /// The container's name, where the runtime told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Further names of it, which it may share with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Its ports that the runtime publishes at the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<PublishedPort>,
    /// The port that the host's end is; absent in files of the first release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
}

/// A container's port of the bridge, with all that is needed to make it anew.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Port {
    /// The bridge.
    pub bridge: String,
    /// Whether it sends back what came from it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hairpin: bool,
    /// Whether it exchanges no frames with others that are isolated.
    #[serde(default, skip_serializing_if = "is_false")]
    pub isolated: bool,
    /// The port filter's table, where the port is guarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Allocation {
    /// Parses a file; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// What the sets of this table must hold for it: nothing unless its port is guarded there.
    pub fn filter_elements(&self, table: &str) -> Vec<Element> {
        match self.port.as_ref().and_then(|port| port.filter.as_deref()) {
            Some(filter) if filter == table => port_filter::elements(&self.host_veth, self.mac, self.address),
            _ => Vec::new(),
        }
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// A free address that was in use, `<run-dir>/ipam/<network>/freed/<address>`: the cool-down
/// before it is given out again counts from the file's modification time.
pub const FREED_DIR: &str = "freed";
/// The lock of all networks' allocations, in the folder above theirs.
pub const LOCK_FILE: &str = "lock";
