//! Keeps etcd and the zone as this host's endpoints are. Level-triggered like all else: whatever has
//! happened, it looks at what there is and writes the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use loden_core::Millis;
use loden_core::backoff::Backoff;
use loden_core::leases::{LeaseRecord, LeaseTable};
use loden_core::names::{Hold, Imported, NameKey, NameTable, Settings, Write, Zone, exported, publication};
use loden_core::options::Listen;
use loden_proto::config::NetworkConfig;
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::{NameRecord, NameSource};
use tokio::sync::watch;

use super::docker;
use super::export::Wanted;
use super::local::{self, Local};
use super::manual::ManualTable;
use super::remembered::Remembered;
use crate::clock;
use crate::dns::SharedZone;
use crate::endpoints::{self, FolderWatch};
use crate::lease::{LeaseState, OwnLease};
use crate::reconcile::HostFacts;
use crate::state::StateDir;
use crate::store::{Feeds, StoreError, View, Writer};

/// How things stand with this host's own names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// Each endpoint's record, and whether etcd has it.
    pub endpoints: BTreeMap<Arc<str>, (NameRecord, bool)>,
    /// Endpoints that are gone, and that etcd still has.
    pub leaving: BTreeSet<Arc<str>>,
    /// Names that are none, and whose, in order.
    pub problems: Vec<String>,
    /// Whether etcd can be written at the moment.
    pub connected: bool,
    /// Our lease.
    pub lease: Option<LeaseKey>,
}

/// The task and what it hears.
pub struct Names {
    /// Folder of the allocation files.
    pub folder: PathBuf,
    /// etcd.
    pub store: Feeds,
    /// Writes to it.
    pub writer: Writer,
    /// The network config.
    pub configs: watch::Receiver<Option<Arc<NetworkConfig>>>,
    /// Our own lease.
    pub own: watch::Receiver<OwnLease>,
    /// Lasting state.
    pub state: StateDir,
    /// When what is known counts as all that there is.
    pub gives_up_at: Millis,
    /// The underlay.
    pub facts: watch::Receiver<Option<HostFacts>>,
    /// How long names of hosts stay that vanished all at once, in milliseconds.
    pub hold: Millis,
    /// Names by hand.
    pub manual: watch::Receiver<Arc<ManualTable>>,
    /// Docker's containers.
    pub docker: watch::Receiver<docker::Seen>,
    /// Below which key CoreDNS reads names as well (`--dns-export`).
    pub export: Option<String>,
    /// Where it is told what should stand there.
    pub exported: watch::Sender<Option<Wanted>>,
    /// What others have written for CoreDNS (`--dns-import`).
    pub imported: Option<watch::Receiver<Option<Arc<Imported>>>>,
    /// Where it is told that all names are known, so that what is not among them does not exist.
    pub complete: watch::Sender<bool>,
    /// Which kinds of addresses to answer on.
    pub listen: Vec<Listen>,
    /// What is served.
    pub zone: SharedZone,
    /// Where it is told where to answer.
    pub wanted: watch::Sender<Vec<IpAddr>>,
    /// Where it is told how things stand.
    pub standing: watch::Sender<Standing>,
}

/// How long etcd may take for a write. Meanwhile new containers have no name, and their ADD waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Leases that change within this time are looked at together: they tell where hosts are, which few ask for,
/// and ten thousand can come at once. So are records of others.
const LEISURE: Duration = Duration::from_millis(250);
/// How long after its start the daemon waits for etcd before it takes what it knows for all. Every name that a
/// resolver tries in the zone first waits for as long.
pub const GIVE_UP: Millis = 5_000;
/// In case a notice was lost.
const FULL_LOOK: Duration = Duration::from_secs(30);

/// What an own name's age is judged by.
#[derive(Default)]
struct Ages {
    /// When each endpoint took its names.
    since: BTreeMap<Arc<str>, u64>,
    /// Whose endpoints there has been a look at with etcd's names known: what comes later is new.
    settled: BTreeSet<NameSource>,
}

impl Ages {
    /// When an endpoint took its names: as etcd has it from a former life; what is new takes them now,
    /// and is newer than who has them, however his clock goes.
    fn assign(&mut self, endpoint: &Arc<str>, record: &NameRecord, written: Option<u64>, zone: &Zone) -> u64 {
        // One that has been started again, or given by hand once more, takes its names anew.
        let again = self.since.get(endpoint).copied().or(written).is_some_and(|since| since < record.since);
        let known = self.since.get(endpoint).copied().filter(|_| !again);
        let written = written.filter(|_| !again);
        let rival = || {
            let owners = record.names.iter().filter_map(|name| zone.owner(name));
            owners
                .map(|(_, owner)| (owner.since + 1).min(NameRecord::LATEST))
                .max()
                .filter(|_| self.settled.contains(&record.source))
        };
        let since = match (known, written) {
            (Some(known), written) => known.max(written.unwrap_or(0)),
            (None, Some(written)) => written,
            (None, None) => record.since.max(rival().unwrap_or(0)),
        };
        self.since.insert(endpoint.clone(), since);
        since
    }

    /// Forgets the endpoints that are gone. With etcd's names known, whoever comes next is new to those who
    /// have been `heard`.
    fn retain(
        &mut self,
        present: &BTreeMap<Arc<str>, NameRecord>,
        heard: impl Iterator<Item = NameSource>,
        synced: bool,
    ) {
        self.since.retain(|endpoint, _| present.contains_key(endpoint));
        self.settled.extend(heard.filter(|_| synced));
    }
}

/// How people know an endpoint.
fn whose(endpoint: &str, record: &NameRecord) -> String {
    let addresses: Vec<String> = record.addresses.iter().map(IpAddr::to_string).collect();
    format!("{endpoint} ({})", addresses.join(" "))
}

/// Returns a while after a feed has changed.
async fn at_leisure<T>(feed: &mut watch::Receiver<T>) -> Result<(), watch::error::RecvError> {
    feed.changed().await?;
    tokio::time::sleep(LEISURE).await;
    Ok(())
}

/// The same for a feed that there may not be.
async fn at_leisure_if_any<T>(feed: Option<&mut watch::Receiver<T>>) -> Result<(), watch::error::RecvError> {
    match feed {
        Some(feed) => at_leisure(feed).await,
        None => std::future::pending().await,
    }
}

/// Our lease with its etcd lease; absent while it is not in etcd as ours.
fn etcd_lease(own: &OwnLease, view: &View) -> Option<(LeaseKey, i64)> {
    // One that an operator told to move is ours until we leave it.
    let is_ours = |record: &&LeaseRecord| match own.state {
        LeaseState::Held => true,
        LeaseState::Lost(_) => record.value.as_ref().is_ok_and(|value| {
            value.loden.as_ref().is_some_and(|m| m.released && m.host_id.to_str() == own.host_id)
        }),
        _ => false,
    };
    let key = own.key?;
    Some((key, view.table.get(&key).filter(is_ours)?.etcd_lease))
}

/// Why names are not written.
struct Unwritten {
    reason: String,
    /// Whether people should know.
    is_problem: bool,
}

/// What is to be written of our names, and where.
struct Own {
    key: LeaseKey,
    /// The etcd lease of our key; absent while it is not in etcd as ours.
    etcd_lease: Option<i64>,
    records: BTreeMap<Arc<str>, NameRecord>,
}

impl Names {
    /// Runs for ever.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let files = FolderWatch::open()?;
        let mut ages = Ages::default();
        let mut hold = Hold::default();
        let mut remembered = Remembered::new(self.state.clone());
        let mut former = remembered.load();
        let mut backoff = Backoff::new(100, 5000);
        let mut last = Vec::new();
        loop {
            files.cover(&self.folder);
            let (own, mut problems) = self.look(&mut ages, &mut hold, &former);
            let mut wait = FULL_LOOK;
            if !*self.complete.borrow() {
                let left = self.gives_up_at.saturating_sub(clock::now());
                wait = wait.min(Duration::from_millis(left + 1));
            }
            if self.store.views.borrow().synced {
                former = Default::default();
                let names = self.store.names.borrow().clone();
                let leases = self.store.views.borrow().table.clone();
                let again = remembered.keep(&names, &leases, own.as_ref().map(|own| own.key));
                wait = again.map_or(wait, |again| wait.min(Duration::from_millis(again + 1)));
            }
            if let Some(at) = hold.next_deadline() {
                wait = wait.min(Duration::from_millis(at.saturating_sub(clock::now()) + 1));
            }
            let mut unwritten = BTreeSet::new();
            if let Some(own) = &own {
                let table = self.store.names.borrow().clone();
                let writes = publication(&table, own.key, own.etcd_lease.unwrap_or_default(), &own.records);
                if writes.is_empty() {
                    // Should etcd lose them later, they are written again at once.
                    last.clear();
                    backoff.reset();
                } else if writes == last {
                    // Written just now, and etcd has not told of it yet. Should it never, not as fast as it can.
                    last.clear();
                    wait = wait.min(Duration::from_millis(backoff.wait(clock::chance())));
                } else {
                    match self.write(own, &writes).await {
                        Ok(()) => last = writes,
                        Err(Unwritten { reason, is_problem }) => {
                            problems.extend(
                                is_problem.then(|| format!("etcd takes no names of this host: {reason}")),
                            );
                            tracing::debug!(%reason, "names are not published");
                            unwritten.extend(writes.iter().map(|write| write.endpoint().clone()));
                            wait = wait.min(Duration::from_millis(backoff.wait(clock::chance())));
                        }
                    }
                }
            }
            self.tell(own, unwritten, problems);
            tokio::select! {
                changed = self.store.names.changed() => changed?,
                changed = at_leisure(&mut self.store.views) => changed?,
                changed = self.configs.changed() => changed?,
                changed = self.own.changed() => changed?,
                changed = self.facts.changed() => changed?,
                changed = self.manual.changed() => changed?,
                changed = self.docker.changed() => changed?,
                changed = at_leisure_if_any(self.imported.as_mut()) => changed?,
                changed = files.changed() => changed?,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn write(&self, own: &Own, writes: &[Write]) -> Result<(), Unwritten> {
        let because = |reason: &str| Unwritten { reason: reason.into(), is_problem: false };
        let Some(etcd_lease) = own.etcd_lease else { return Err(because("our lease is not in etcd")) };
        let written = self.writer.publish(own.key, etcd_lease, writes);
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(because("our lease has just changed")),
            Ok(Err(error)) => {
                // That etcd is away is told elsewhere.
                let is_problem = matches!(error, StoreError::Refused(_) | StoreError::Other(_));
                Err(Unwritten { reason: error.to_string(), is_problem })
            }
            Err(_) => Err(because("etcd does not answer")),
        }
    }

    /// Brings the zone to what there is; returns what etcd should have of us, and what can be no name.
    /// `former`: what was known of others in our former life, which counts until etcd has told.
    fn look(
        &mut self,
        ages: &mut Ages,
        hold: &mut Hold,
        former: &(NameTable, LeaseTable),
    ) -> (Option<Own>, Vec<String>) {
        let names = self.store.names.borrow_and_update().clone();
        let view = self.store.views.borrow_and_update().clone();
        let config = self.configs.borrow_and_update().clone();
        let lease = self.own.borrow_and_update().clone();
        let facts = self.facts.borrow_and_update().clone();
        let underlay = facts.as_ref().and_then(|f| f.underlay.as_ref().ok());
        let malformed = names.malformed(&view.table);
        let others = match view.synced {
            true => {
                let mut sound = names.clone();
                malformed.iter().for_each(|(key, _)| sound.delete(key));
                hold.keep(sound, &view.table, self.hold, clock::now())
            }
            false => former.0.clone(),
        };
        // Before the lock, which answers wait for.
        let found = endpoints::all(&self.folder);
        let mut zone = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        let Some((config, dns)) = config.as_ref().and_then(|c| Some((c, c.dns.clone()?))) else {
            *zone = None;
            self.wanted.send_if_modified(|told| !std::mem::take(told).is_empty());
            // Known not to be wanted, or not known.
            if config.is_some() {
                self.export(etcd_lease(&lease, &view), BTreeMap::new());
            }
            return (None, Vec::new());
        };
        let endpoints = underlay.iter().flat_map(|u| &u.endpoints);
        let gateways = || lease.key.iter().flat_map(LeaseKey::subnets).map(|s| s.gateway());
        let settings = Settings {
            networks: config.pools().map(|pool| pool.network).collect(),
            own_subnets: lease.key.iter().flat_map(LeaseKey::subnets).collect(),
            own_addresses: endpoints
                .clone()
                .flat_map(|e| [e.local, e.public])
                .chain(dns.addresses.clone())
                .collect(),
            public_addresses: endpoints.clone().map(|e| e.public).collect(),
            local_networks: facts.as_ref().map(|f| f.local_networks.clone()).unwrap_or_default(),
            dns,
        };
        let wanted: Vec<IpAddr> = (self.listen.iter())
            .flat_map(|kind| match kind {
                Listen::Gateway => gateways().collect::<Vec<_>>(),
                Listen::Shared => settings.dns.addresses.clone(),
                Listen::Underlay => endpoints.clone().map(|e| e.local).collect(),
            })
            .collect();
        self.wanted.send_if_modified(|told| std::mem::replace(told, wanted.clone()) != wanted);
        let zone = zone.get_or_insert_with(|| Zone::new(settings.clone()));
        if *zone.settings() != settings {
            zone.set(settings.clone());
        }
        zone.set_leases(if view.synced { view.table.clone() } else { former.1.clone() });
        let mut complete = view.synced;
        let not_served = |(NameKey { lease, endpoint }, why): (NameKey, String)| {
            format!("the record {lease}/{endpoint} in etcd is not served: {why}")
        };
        let mut problems: Vec<String> = malformed.into_iter().map(not_served).collect();
        if let Some(imported) = &mut self.imported {
            let told = imported.borrow_and_update().clone();
            complete &= told.is_some();
            let imported = told.unwrap_or_default();
            problems.extend(imported.problems());
            zone.set_imported(imported);
        }
        if complete || clock::now() >= self.gives_up_at {
            zone.set_complete();
            self.complete.send_if_modified(|complete| !std::mem::replace(complete, true));
        }
        let Some(key) = lease.key else {
            zone.set_names(others);
            return (None, problems);
        };
        // Others' first, so that who is new here knows whom it follows.
        let mine =
            names.of(key).filter_map(|(key, entry)| Some((key.endpoint.clone(), entry.record.clone().ok()?)));
        let written: BTreeMap<Arc<str>, NameRecord> = mine.collect();
        zone.set_names(others.with_own(key, written.clone()));
        let mut records = BTreeMap::new();
        let mut known = local::of_allocations(&found, &settings.dns.zone);
        let docker = self.docker.borrow_and_update().containers.clone();
        match &docker {
            Some(containers) => {
                local::add_containers(&mut known, containers, key, &settings.dns.zone);
            }
            // It may only be late with telling: what it told in our former life stands.
            None => {
                let told = written.iter().filter(|(_, record)| record.source == NameSource::Docker);
                let same = |record: &NameRecord| Local { record: record.clone(), problems: Vec::new() };
                known.extend(told.map(|(endpoint, record)| (endpoint.clone(), same(record))));
            }
        }
        // A name by hand may be for a container's address as well.
        let manual = self.manual.borrow_and_update().clone();
        problems.extend(manual.problems.iter().cloned());
        known.extend(local::of_manual(&manual.names, &settings, key));
        for (endpoint, Local { mut record, problems: mut of_endpoint }) in known {
            of_endpoint.extend(record.bound());
            problems.extend(
                of_endpoint.into_iter().map(|problem| format!("{}: {problem}", whose(&endpoint, &record))),
            );
            let since = written.get(&endpoint).map(|record| record.since);
            record.since = ages.assign(&endpoint, &record, since, zone);
            records.insert(endpoint, record);
        }
        let heard =
            [NameSource::Cni, NameSource::Manual].into_iter().chain(docker.map(|_| NameSource::Docker));
        ages.retain(&records, heard, view.synced);
        zone.set_names(others.with_own(key, records.clone()));
        // Who has lost a name to a newer one elsewhere does not claim it in etcd any more.
        for (endpoint, record) in &mut records {
            let us = NameKey { lease: key, endpoint: endpoint.clone() };
            record.names.retain(|name| zone.owner(name).is_some_and(|(owner, _)| *owner == us));
        }
        let etcd_lease = etcd_lease(&lease, &view);
        let export = self.export.as_ref().map(|prefix| exported(zone, key, prefix));
        self.export(etcd_lease, export.unwrap_or_default());
        (Some(Own { key, etcd_lease: etcd_lease.map(|(_, id)| id), records }), problems)
    }

    /// Says what should stand where CoreDNS reads. Nobody can tell without our lease.
    fn export(&self, lease: Option<(LeaseKey, i64)>, records: BTreeMap<String, String>) {
        let Some(lease) = lease else { return };
        self.exported.send_if_modified(|told| {
            if told.as_ref().is_some_and(|told| told.lease == lease && *told.records == records) {
                return false;
            }
            *told = Some(Wanted { lease, records: Arc::new(records) });
            true
        });
    }

    fn tell(&self, own: Option<Own>, unwritten: BTreeSet<Arc<str>>, problems: Vec<String>) {
        let lease = own.as_ref().map(|own| own.key);
        let records = own.map(|own| own.records).unwrap_or_default();
        let leaving = unwritten.iter().filter(|endpoint| !records.contains_key(*endpoint)).cloned().collect();
        let endpoints = records.into_iter().map(|(endpoint, record)| {
            let published = !unwritten.contains(&endpoint);
            (endpoint, (record, published))
        });
        let connected = self.store.views.borrow().connected;
        let now = Standing { endpoints: endpoints.collect(), leaving, problems, connected, lease };
        self.standing.send_if_modified(|told| {
            for problem in now.problems.iter().filter(|p| !told.problems.contains(p)) {
                tracing::warn!("a name is not served as it should be: {problem}");
            }
            std::mem::replace(told, now.clone()) != now
        });
    }
}

#[cfg(test)]
mod tests {
    use loden_core::names::{NameEntry, NameTable};

    use super::*;

    #[test]
    fn who_is_started_again_takes_its_names_anew_and_follows_whom_it_takes_them_from() {
        let record = |since| NameRecord {
            names: vec!["nn".parse().expect("a name")],
            groups: Vec::new(),
            addresses: Vec::new(),
            ports: Vec::new(),
            since,
            source: NameSource::Docker,
        };
        let mut zone = Zone::new(Settings {
            dns: Default::default(),
            networks: Vec::new(),
            own_subnets: Vec::new(),
            own_addresses: BTreeSet::new(),
            public_addresses: Vec::new(),
            local_networks: Vec::new(),
        });
        let endpoint: Arc<str> = "docker-1".into();
        let mut ages = Ages::default();
        assert_eq!(ages.assign(&endpoint, &record(5), Some(7), &zone), 7, "as in a former life");
        assert_eq!(ages.assign(&endpoint, &record(5), Some(7), &zone), 7);
        assert_eq!(ages.assign(&endpoint, &record(9), Some(7), &zone), 9, "started again");

        // Another host has the name, by a clock far ahead.
        let lease = LeaseKey::parse("10.5.8.0-24").expect("a lease");
        let mut names = NameTable::default();
        let rival = NameEntry { record: Ok(record(1000)), etcd_lease: 1 };
        names.put(NameKey { lease, endpoint: "docker-2".into() }, rival);
        zone.set_names(names);
        ages.retain(&[(endpoint.clone(), record(9))].into(), [NameSource::Docker].into_iter(), true);
        assert_eq!(ages.assign(&endpoint, &record(9), Some(9), &zone), 9, "it has lost the name");
        assert_eq!(ages.assign(&endpoint, &record(12), Some(9), &zone), 1001, "and has it again");

        let mut names = NameTable::default();
        let last = NameEntry { record: Ok(record(NameRecord::LATEST)), etcd_lease: 1 };
        names.put(NameKey { lease, endpoint: "docker-2".into() }, last);
        zone.set_names(names);
        let late = ages.assign(&endpoint, &record(2000), Some(1001), &zone);
        assert_eq!(late, NameRecord::LATEST, "no later one could be read");
    }
}
