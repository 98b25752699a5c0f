//! What the kernel refused, until it does no more.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_core::diff::Operation;
use loden_core::plan::Desired;
use loden_proto::Subnet;

/// Operations that were refused when they were last tried.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    by_operation: BTreeMap<String, Refusal>,
}

#[derive(Debug, PartialEq)]
struct Refusal {
    /// The peer that it would have served.
    subnet: Option<Subnet>,
    reason: String,
}

impl Refusals {
    /// After a pass, what it `tried` is forgotten (for a peer's subnet, or for none), and what has `failed` of it
    /// is noted. Tells whether any of that was not so before; each is logged once.
    pub(super) fn replace(
        &mut self,
        tried: impl Fn(Option<Subnet>) -> bool,
        failed: Vec<(Operation, String)>,
        desired: &Desired,
    ) -> bool {
        let all = std::mem::take(&mut self.by_operation);
        let (former, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(_, refusal): &(String, Refusal)| tried(refusal.subnet));
        self.by_operation = kept;
        let mut news = false;
        for (operation, reason) in failed {
            let refusal = Refusal { subnet: subnet_of(&operation, desired), reason };
            let operation = operation.to_string();
            if former.get(&operation) != Some(&refusal) {
                news = true;
                tracing::error!("{}", refusal.reason);
            }
            self.by_operation.insert(operation, refusal);
        }
        news
    }

    /// The first reason, for people.
    pub(super) fn first(&self) -> Option<String> {
        self.by_operation.values().next().map(|refusal| refusal.reason.clone())
    }

    /// The subnets of peers that are not as they should be, with the reason.
    pub(super) fn pending(&self) -> BTreeMap<Subnet, String> {
        let of_peers = self.by_operation.values().filter_map(|r| Some((r.subnet?, r.reason.clone())));
        of_peers.collect()
    }
}

/// The peer that an operation serves.
fn subnet_of(operation: &Operation, desired: &Desired) -> Option<Subnet> {
    let by_gateway = |address: IpAddr| {
        let (_, length) = desired.base.networks.iter().find(|(network, _)| network.contains(address))?;
        Subnet::new(address, *length).ok().filter(|subnet| desired.peers.contains_key(subnet))
    };
    match operation {
        Operation::SetRoute { route, .. } => Some(route.subnet),
        Operation::SetNeighbour { address, .. } => by_gateway(*address),
        Operation::AddNexthop(_, hop) => hop.gateway.and_then(by_gateway),
        Operation::SetFdb { endpoint, .. } => {
            desired.peers.values().find(|p| p.public_address == *endpoint).map(|p| p.subnet)
        }
        _ => None,
    }
}
