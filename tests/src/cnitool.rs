//! cnitool, the specification's own little runtime: libcni and nothing else. It does to a namespace
//! what it is told to, by the network that lies in a folder of the host.

use serde_json::Value;

use crate::docker::peers;
use crate::runtimes::Runtimes;
use crate::{Container, Output, process};

/// cnitool on a host, for the network of this name, as a folder has it.
#[derive(Debug)]
pub struct Cnitool {
    runtimes: Runtimes,
    network: String,
    folder: String,
}

impl Runtimes {
    /// cnitool for a network in `/etc/cni/net.d`.
    pub fn cnitool(&self, network: &str) -> Cnitool {
        self.cnitool_with(network, "/etc/cni/net.d")
    }

    /// cnitool for a network in another folder of the host.
    pub fn cnitool_with(&self, network: &str, folder: &str) -> Cnitool {
        Cnitool { runtimes: self.clone(), network: network.into(), folder: folder.into() }
    }
}

impl Cnitool {
    /// Runs a command for a namespace in `/run/netns`, with what the capabilities ask for.
    pub fn exec(&self, verb: &str, name: &str, capabilities: &Value) -> Output {
        let program = peers().join("cnitool").display().to_string();
        let mut command = self.runtimes.command(&[&program, verb, &self.network, &path(name)]);
        command.env("NETCONFPATH", &self.folder).env("CNI_PATH", "/opt/cni/bin");
        if !capabilities.is_null() {
            command.env("CAP_ARGS", capabilities.to_string());
        }
        process::run(command, b"")
    }

    /// A namespace, then `cnitool add`.
    #[track_caller]
    pub fn add(&self, name: &str, capabilities: &Value) -> Container {
        self.runtimes.run(&["ip", "netns", "add", name]);
        self.runtimes.run(&["ip", "-netns", name, "link", "set", "lo", "up"]);
        self.exec("add", name, capabilities).expect_success();
        self.runtimes.find_bound(name, &path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// `cnitool del`, then the namespace goes.
    #[track_caller]
    pub fn del(&self, container: Container, capabilities: &Value) {
        self.exec("del", container.name(), capabilities).expect_success();
        self.runtimes.run(&["ip", "netns", "del", container.name()]);
        container.delete();
    }
}

fn path(name: &str) -> String {
    format!("/run/netns/{name}")
}
