//! The kernel: observed by dumps, changed by operations, watched by notices. Nothing else in
//! Loden writes to it, and no netlink type leaves this folder.
//!
//! Netlink here is synchronous: the kernel answers before `send` returns, a request costs
//! microseconds.

mod decode;
mod filters;
mod iptables;
mod observe;
mod plane;
mod ports;
mod program;
mod rules;
mod sysctl;
mod uapi;
mod watch;
mod write;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use loden_core::diff::Operation;
use loden_core::filters::PeerSet;
use loden_core::observed::{FdbEntry, Observed};
use loden_core::plan;
use loden_netlink::{KernelError as Refusal, Socket, ethtool};
use loden_proto::{Family, Subnet};

pub use filters::{Table, rejected_sources, remove_table, remove_vxlan_filter, table_exists};
pub use iptables::{change_user_chain, has_legacy_filter, unseen_legacy, user_chains};
pub use plane::{DataPlane, Notices};
pub use ports::{Ports, guarded_ports, rejected_ports};
pub use rules::{judge, rule_set};
use watch::Subscription;
pub use watch::{Notice, Watch};

/// What an observation should tell beyond links and addresses.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Networks whose routes matter.
    pub networks: Vec<Subnet>,
    /// Interfaces whose forwarding matters.
    pub forwarding: BTreeSet<(Family, String)>,
    /// Whether our nftables table is looked at.
    pub filters: bool,
    /// The table's peer sets.
    pub peer_sets: Vec<PeerSet>,
}

/// The place of an operation among those of one call, and why it failed.
pub type Failed = (usize, KernelError);

/// What went wrong with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Netlink failed as such.
    #[error("{0}")]
    Netlink(#[from] loden_netlink::Error),
    /// One operation was refused.
    #[error("{operation}: {reason}{hint}")]
    Refused {
        /// What was to be done.
        operation: String,
        /// The kernel's or nft's words.
        reason: String,
        /// The next step, if one is known; begins with a separator.
        hint: &'static str,
    },
}

/// The kernel's tables in the namespace of the process.
#[derive(Debug)]
pub struct Kernel {
    route: Socket,
    netfilter: Socket,
    filters: filters::Ledger,
    /// The watch, once it ignores us.
    subscription: Option<Arc<Subscription>>,
    has_nexthops: bool,
}

impl Kernel {
    /// Opens the sockets and probes what this kernel can do. `run_dir` keeps the digest of the
    /// rules, which are in the table of the network's name, across restarts.
    pub fn open(run_dir: &Path, network: &str) -> anyhow::Result<Self> {
        use anyhow::Context;
        let mut route = Socket::route().context("cannot open an rtnetlink socket")?;
        let netfilter = Socket::netfilter()
            .context("cannot open a netfilter socket; does this kernel have nf_tables?")?;
        let filters = filters::Ledger::load(run_dir.join("filters.json"), Table::overlay(network));
        let has_nexthops = route.dump(&loden_netlink::nexthop::dump()).is_ok();
        Ok(Self { route, netfilter, filters, subscription: None, has_nexthops })
    }

    /// Looks at everything that concerns us.
    pub fn observe(&mut self, interest: &Interest) -> Result<Observed, KernelError> {
        let mut observed = observe::observe(&mut self.route, interest, self.has_nexthops)?;
        self.observe_rules(interest, &mut observed)?;
        Ok(observed)
    }

    /// Looks at rules and forwarding alone.
    pub fn observe_rules(&mut self, interest: &Interest, observed: &mut Observed) -> Result<(), KernelError> {
        // Its notices do not tell its value; reading that costs little.
        let forwards = |(family, name): &&(Family, String)| sysctl::forwards(*family, name);
        observed.forwarding = interest.forwarding.iter().filter(forwards).cloned().collect();
        if interest.filters && !(observed.filters.is_some() && self.filters.unchanged(&mut self.netfilter)) {
            observed.filters = self.filters.digest(&mut self.netfilter)?;
            observed.admitted = match observed.filters.is_some() {
                true => filters::admitted(&mut self.netfilter, self.filters.table(), &interest.peer_sets)?,
                false => BTreeSet::new(),
            };
        }
        Ok(())
    }

    /// The interface index of the route to an address (`--iface-can-reach`).
    pub fn route_to(&mut self, address: IpAddr) -> Option<u32> {
        observe::route_to(&mut self.route, address)
    }

    /// Whether the watch hears of deletions of FDB entries, ours among them. While it does not, it is for the
    /// caller to look at the FDB afterwards.
    pub fn hear_fdb_deletions(&self, heard: bool) {
        if let Some(watch) = &self.subscription
            && watch.hear_fdb_deletions(heard).is_err()
        {
            watch.missed();
        }
    }

    /// The permanent FDB entries of these VXLAN devices.
    pub fn fdb(&mut self, devices: &[u32]) -> Result<BTreeSet<FdbEntry>, KernelError> {
        Ok(observe::fdb(&mut self.route, devices)?)
    }

    /// Carries operations out in order and returns which failed, in their order. One that fails does
    /// not stop those after it. The caller's other tasks wait meanwhile: a thousand take milliseconds.
    pub async fn apply(&mut self, operations: &[Operation]) -> Result<Vec<Failed>, KernelError> {
        let mut failed = Vec::new();
        let mut place = 0;
        while let Some(first) = operations.get(place) {
            let results = self.route.batch(operations[place..].iter().map_while(write::request))?;
            if results.is_empty() {
                failed.extend(self.apply_other(first).await.err().map(|error| (place, error)));
                place += 1;
            }
            for result in results {
                failed.extend(write::verdict(&operations[place], result).err().map(|error| (place, error)));
                place += 1;
            }
        }
        Ok(failed)
    }

    async fn apply_other(&mut self, operation: &Operation) -> Result<(), KernelError> {
        let refused =
            |reason: String, hint| KernelError::Refused { operation: operation.to_string(), reason, hint };
        match operation {
            Operation::ReplaceFilters(filters, keep) => {
                let (script, digest) = (filters.script(keep), filters.digest());
                let replaced = self.filters.replace(&mut self.netfilter, &script, digest).await;
                replaced.map_err(|e| refused(e, ""))
            }
            Operation::Admit(all) | Operation::Dismiss(all) => {
                let (add, watch) = (matches!(operation, Operation::Admit(_)), self.subscription.as_deref());
                let changed = self.filters.change(&mut self.netfilter, all, add, watch);
                changed.map_err(|e| {
                    let gone = e.kernel().is_some_and(Refusal::is_absent);
                    refused(
                        e.to_string(),
                        if gone { "; somebody has just deleted our nftables table" } else { "" },
                    )
                })
            }
            Operation::AddDevice(device) => {
                let checksum = plan::outer_checksum(device.family, &features(device.lower));
                let result = self.route.batch([write::add_device(device, checksum)])?.remove(0);
                write::verdict(operation, result)?;
                // Best effort: a kernel without IPv6 has neither.
                let _ = sysctl::write(Family::V6, &device.name, "accept_ra", "0");
                let _ = sysctl::write(Family::V6, &device.name, "addr_gen_mode", "1");
                Ok(())
            }
            Operation::Rename { index, to, .. } => {
                let mut result = self.route.batch([write::rename(*index, to)])?.remove(0);
                let up = |r: &Refusal| r.errno == rustix::io::Errno::BUSY.raw_os_error();
                if result.as_ref().is_err_and(up) {
                    result = self.route.batch([write::further_name(*index, to)])?.remove(0);
                }
                write::verdict(operation, result)
            }
            Operation::Forward(family, name) => sysctl::forward(*family, name).map_err(|e| {
                refused(e.to_string(), "; the daemon needs CAP_NET_ADMIN and a writable /proc/sys/net")
            }),
            // `write::request` has made a request of every other kind.
            _ => Err(refused("it is no single netlink request".into(), "")),
        }
    }
}

/// Features of a NIC that are on. Before Linux 5.6 nothing can be known so, and defaults will do.
fn features(device: u32) -> BTreeSet<String> {
    let asked = Socket::generic().map_err(Into::into).and_then(|mut s| ethtool::features(&mut s, device));
    asked.unwrap_or_else(|error: loden_netlink::Error| {
        tracing::debug!(device, %error, "the features of the underlay's NIC are unknown");
        BTreeSet::new()
    })
}
