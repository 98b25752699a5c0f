//! What is told about names on the local socket.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Duration;

use loden_core::names::Zone;
use loden_proto::status::{DnsStatus, NameStatus, Named, Names};
use tokio::sync::watch;

use super::Standing;
use crate::dns::SharedZone;

/// Where the answers come from.
#[derive(Clone)]
pub struct Answers {
    /// What is served.
    pub zone: SharedZone,
    /// This host's own names.
    pub standing: watch::Receiver<Standing>,
}

/// How long etcd may take to have a new name. Less than the plugin waits, so that it is us who tell why.
const PATIENCE: Duration = Duration::from_secs(4);

impl Answers {
    /// What became of an endpoint's names, once that is clear: they are in etcd, or etcd is away and they
    /// are served here alone, or it took too long.
    pub async fn named(&self, endpoint: &str) -> Named {
        let mut standing = self.standing.clone();
        let settled = |now: &Standing| {
            let known = now.endpoints.get(endpoint);
            known.is_some_and(|(_, published)| *published || !now.connected)
        };
        let waited = tokio::time::timeout(PATIENCE, async { standing.wait_for(settled).await.is_ok() }).await;
        let now = self.standing.borrow().clone();
        let Some((record, published)) = now.endpoints.get(endpoint) else {
            return Named {
                problem: Some(format!(
                    "the daemon knows no endpoint {endpoint}; is its allocation file gone?"
                )),
                ..Named::default()
            };
        };
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let full = |zone: &Zone| {
            let all = record.names.iter().chain(&record.groups);
            all.filter_map(|name| name.below(&zone.settings().dns.zone).ok()).map(|n| n.to_string()).collect()
        };
        let problem = match waited {
            Ok(_) => None,
            Err(_) => Some(format!(
                "etcd has not taken its names within {} s (loden status says how etcd is)",
                PATIENCE.as_secs()
            )),
        };
        Named { names: zone.as_ref().map(full).unwrap_or_default(), problem, published: *published }
    }

    /// How names stand, for `status`; `addresses`: where they are served.
    pub fn summary(&self, addresses: &[IpAddr]) -> Option<DnsStatus> {
        let standing = self.standing.borrow();
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let zone = zone.as_ref()?;
        Some(DnsStatus {
            zone: zone.settings().dns.zone.to_string(),
            addresses: addresses.to_vec(),
            endpoints: zone.records().count(),
            unpublished: standing.endpoints.values().filter(|(_, published)| !published).count(),
        })
    }

    /// Every name of the overlay.
    pub fn names(&self) -> Names {
        let standing = self.standing.borrow().clone();
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let Some(zone) = zone.as_ref() else { return Names::default() };
        let mut names = Vec::new();
        for (key, record) in zone.records() {
            let own = standing.lease == Some(key.lease);
            let published =
                !own || standing.endpoints.get(&key.endpoint).is_none_or(|(_, published)| *published);
            let owned: BTreeSet<_> = record.names.iter().collect();
            for name in record.names.iter().chain(&record.groups) {
                let state = match () {
                    () if !published => "local",
                    () if !owned.contains(name) => "member",
                    () if zone.owner(name).is_some_and(|(owner, _)| owner == key) => "owner",
                    () => "withdrawn",
                };
                let Ok(full) = name.below(&zone.settings().dns.zone) else { continue };
                let Some(subnet) = key.lease.subnets().next() else { continue };
                names.push(NameStatus {
                    name: full.to_string(),
                    addresses: record.addresses.clone(),
                    host: zone.host_name(&key.lease),
                    subnet,
                    endpoint: key.endpoint.to_string(),
                    source: record.source.word().into(),
                    state: state.into(),
                    since_unix_seconds: record.since / 1000,
                });
            }
        }
        names.sort_by(|a, b| (&a.name, a.subnet, &a.endpoint).cmp(&(&b.name, b.subnet, &b.endpoint)));
        Names { zone: zone.settings().dns.zone.to_string(), names, problems: standing.problems }
    }
}
