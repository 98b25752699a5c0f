//! The containers' ports: the nftables table that guards them, and the bridge that they are on. Elements
//! and bridge are the plugin's work as well as ours, so both find the other's done and go on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loden_cni::bridge::{self, Bridge, Plan, PortState};
use loden_cni::ifname::IfName;
use loden_core::port_filter::{self, Difference};
use loden_netlink::nftset::{self, Change};
use loden_netlink::{Error, Socket};
use loden_proto::Subnet;
use loden_proto::allocation::Port;
use loden_proto::port_filter::{Element, PortSet, by_set, port_of};
use loden_proto::subnet_env::SubnetEnv;

use super::filters::{self, Ledger, Table};

/// The kernel as far as ports are concerned.
#[derive(Debug)]
pub struct Ports {
    route: Socket,
    netfilter: Socket,
    ledger: Ledger,
}

impl Ports {
    /// Opens the sockets. `run_dir` keeps the table's digest across restarts.
    pub fn open(run_dir: &Path, network: &str) -> anyhow::Result<Self> {
        let ledger = Ledger::load(run_dir.join("port-filter.json"), Table::ports(network));
        Ok(Self { route: Socket::route()?, netfilter: Socket::netfilter()?, ledger })
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        self.ledger.table().name()
    }

    /// Puts the table in place, with these elements, where it is missing or not as we left it; whether it
    /// was not.
    pub async fn bring_table(&mut self, elements: &BTreeSet<Element>) -> Result<bool, String> {
        let digest = port_filter::digest();
        let found = self.ledger.digest(&mut self.netfilter).map_err(|e| e.to_string())?;
        if found.as_ref() == Some(&digest) {
            return Ok(false);
        }
        let script = port_filter::script(self.table(), elements);
        self.ledger.replace(&mut self.netfilter, &script, digest).await?;
        Ok(true)
    }

    /// What the table's sets hold.
    pub fn elements(&mut self) -> Result<BTreeSet<Element>, Error> {
        let mut all = BTreeSet::new();
        for set in PortSet::ALL {
            let keys = self.ledger.table().set(set.name()).list(&mut self.netfilter)?;
            all.extend(keys.into_iter().map(|key| (set, key)));
        }
        Ok(all)
    }

    /// Changes the sets. What somebody has removed meanwhile is fine.
    pub fn change(&mut self, difference: Difference) -> Result<(), Error> {
        let (lacking, surplus) = (by_set(difference.lacking), by_set(difference.surplus));
        let set = |set: &PortSet| self.ledger.table().set(set.name());
        let add = lacking.iter().map(|(s, keys)| (set(s), Change::Add(keys)));
        // Adding first makes the removal always succeed.
        let remove = surplus
            .iter()
            .flat_map(|(s, keys)| [(set(s), Change::Add(keys)), (set(s), Change::Remove(keys))]);
        let changes: Vec<_> = add.chain(remove).collect();
        nftset::change(&mut self.netfilter, &changes)
    }

    /// Makes the bridge or mends it, as an ADD does.
    pub fn bring_bridge(
        &mut self,
        name: &IfName,
        env: &SubnetEnv,
        in_use: impl Fn(Subnet) -> bool,
    ) -> Result<Bridge, loden_cni::Error> {
        let plan = Plan { name, subnets: &env.subnets, networks: &env.networks, mtu: env.mtu };
        bridge::ensure(&mut self.route, plan, |subnet| Ok(in_use(subnet)))
    }

    /// Whether there is an interface of this name.
    pub fn exists(&mut self, name: &str) -> Result<bool, loden_cni::Error> {
        bridge::exists(&mut self.route, name)
    }

    /// How a container's port is connected.
    pub fn state(&mut self, port: &str) -> Result<PortState, loden_cni::Error> {
        bridge::port_state(&mut self.route, port)
    }

    /// Puts a container's port back on the bridge.
    pub fn connect(&mut self, bridge: &Bridge, name: &str, port: &Port) -> Result<(), loden_cni::Error> {
        bridge::connect(&mut self.route, bridge, name, port)
    }
}

/// The ports that a network's table guards; `None` for those who may not look.
pub fn guarded_ports(network: &str) -> Option<BTreeSet<String>> {
    let mut socket = Socket::netfilter().ok()?;
    let keys = Table::ports(network).set(PortSet::Ports.name()).list(&mut socket);
    match keys {
        Ok(keys) => Some(keys.iter().filter_map(|key| port_of(key).map(str::to_owned)).collect()),
        Err(e) if e.kernel().is_some_and(|e| e.is_absent()) => Some(BTreeSet::new()),
        Err(_) => None,
    }
}

/// Frames dropped at containers' ports, by port.
pub async fn rejected_ports(network: &str) -> BTreeMap<String, u64> {
    filters::counted(&Table::ports(network), port_filter::REJECTED).await
}
