//! What is told about names on the local socket.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use loden_core::names::{Kind, View, Zone, judge_manual};
use loden_proto::dns_name::DnsName;
use loden_proto::name_record::{ManualName, NameRecord, NameSource};
use loden_proto::status::{DnsStatus, ManualNames, NameChange, NameStatus, Named, Names};
use tokio::sync::watch;

use super::local::{manual_endpoint, milliseconds};
use super::{Manual, Standing};
use crate::dns::SharedZone;

/// Where the answers come from.
#[derive(Clone)]
pub struct Answers {
    /// What is served.
    pub zone: SharedZone,
    /// This host's own names.
    pub standing: watch::Receiver<Standing>,
    /// Those given by hand.
    pub manual: Manual,
}

/// How long etcd may take to have a new name. Less than the plugin waits, so that it is us who tell why.
const PATIENCE: Duration = Duration::from_secs(4);

const NOT_SERVED: &str =
    "no names are served: there is no network config yet, or its member DNS is false (loden config show)";

impl Answers {
    /// What became of an endpoint's names, once that is clear: they are in etcd, or etcd is away and they
    /// are served here alone, or it took too long.
    pub async fn named(&self, endpoint: &str) -> Named {
        let waited = self.settle(|now| {
            let known = now.endpoints.get(endpoint);
            known.is_some_and(|(_, published)| *published || !now.connected)
        });
        self.told(endpoint, waited.await.err())
    }

    /// How an endpoint's names stand.
    fn told(&self, endpoint: &str, problem: Option<String>) -> Named {
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
        Named { names: zone.as_ref().map(full).unwrap_or_default(), problem, published: *published }
    }

    /// Waits until this host's names stand so.
    async fn settle(&self, settled: impl FnMut(&Standing) -> bool) -> Result<(), String> {
        let mut standing = self.standing.clone();
        let waited = tokio::time::timeout(PATIENCE, standing.wait_for(settled)).await;
        waited.map(drop).map_err(|_| {
            format!(
                "etcd has not taken its names within {} s (loden status says how etcd is)",
                PATIENCE.as_secs()
            )
        })
    }

    /// Names given by hand on this host.
    pub fn manual(&self) -> ManualNames {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        ManualNames {
            zone: zone.as_ref().map(|zone| zone.settings().dns.zone.to_string()).unwrap_or_default(),
            names: self.manual.all().names.values().cloned().collect(),
        }
    }

    /// Gives a name by hand.
    pub async fn add(&self, wanted: ManualName) -> NameChange {
        match self.try_add(wanted).await {
            Ok(named) => NameChange { error: None, named },
            Err(error) => NameChange { error: Some(error), ..NameChange::default() },
        }
    }

    async fn try_add(&self, mut wanted: ManualName) -> Result<Named, String> {
        let standing = self.standing.borrow().clone();
        wanted.name = {
            let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
            let zone = zone.as_ref().ok_or(NOT_SERVED)?;
            let own = standing.lease.ok_or("this host has no subnet yet (loden status says why)")?;
            let name = judge_manual(&wanted, zone.settings(), own)?;
            if let Some((owner, _)) = zone.owner(&name).filter(|_| wanted.group) {
                return Err(format!(
                    "{name} is the own name of {} on host {}, which hides what others share; choose another, or give it without --group, which takes it over",
                    owner.endpoint,
                    zone.host_name(&owner.lease)
                ));
            }
            name
        };
        let of_container = standing.endpoints.values().find_map(|(record, _)| {
            let address = wanted.addresses.iter().find(|a| record.addresses.contains(a))?;
            let name =
                record.names.first().filter(|_| record.source != NameSource::Manual && !wanted.group)?;
            Some((address, name))
        });
        if let Some((address, name)) = of_container {
            return Err(format!(
                "{address} is that of the container {name}, to which it has to lead back; have its runtime give the \
                 container another name, or add a name that others may share (--group)"
            ));
        }
        wanted.since = milliseconds(SystemTime::now());
        let (endpoint, expected) = (manual_endpoint(&wanted.name), wanted.clone());
        self.manual.change(|names| _ = names.insert(wanted.name.clone(), wanted))?;
        let taken = |record: &NameRecord| {
            (&record.addresses, &record.ports) == (&expected.addresses, &expected.ports)
                && record.since >= expected.since
        };
        let waited = self.settle(|now| {
            let known = now.endpoints.get(&endpoint);
            known.is_some_and(|(record, published)| taken(record) && (*published || !now.connected))
        });
        Ok(self.told(&endpoint, waited.await.err()))
    }

    /// Takes back a name that was given by hand.
    pub async fn remove(&self, name: DnsName) -> NameChange {
        let zone = self.manual().zone.parse::<DnsName>().ok();
        let relative = zone.as_ref().and_then(|zone| name.relative_to(zone)).unwrap_or(name);
        let error = |error| NameChange { error: Some(error), ..NameChange::default() };
        if !self.manual.all().names.contains_key(&relative) {
            return error(format!(
                "{relative} was not given by hand on this host; loden name list shows those that were, loden names all"
            ));
        }
        if let Err(failure) = self.manual.change(|names| _ = names.remove(&relative)) {
            return error(failure);
        }
        let endpoint = manual_endpoint(&relative);
        let gone = |now: &Standing| {
            !now.endpoints.contains_key(&endpoint) && (!now.leaving.contains(&endpoint) || !now.connected)
        };
        let problem = self.settle(gone).await.err();
        let full = zone.and_then(|zone| relative.below(&zone).ok()).unwrap_or(relative);
        let published = self.standing.borrow().connected;
        NameChange { error: None, named: Named { names: vec![full.to_string()], problem, published } }
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
                let outside = |kind| zone.addresses(View::Outside, name, kind);
                let Ok(full) = name.below(&zone.settings().dns.zone) else { continue };
                let Some(subnet) = key.lease.subnets().next() else { continue };
                names.push(NameStatus {
                    name: full.to_string(),
                    addresses: record.addresses.clone(),
                    host: zone.host_name(&key.lease),
                    subnet,
                    endpoint: key.endpoint.to_string(),
                    source: record.source.word().into(),
                    group: !owned.contains(name),
                    outside_addresses: [Kind::A, Kind::Aaaa].into_iter().flat_map(outside).collect(),
                    state: state.into(),
                    since_unix_seconds: record.since / 1000,
                });
            }
        }
        names.sort_by(|a, b| (&a.name, a.subnet, &a.endpoint).cmp(&(&b.name, b.subnet, &b.endpoint)));
        Names { zone: zone.settings().dns.zone.to_string(), names, problems: standing.problems }
    }
}
