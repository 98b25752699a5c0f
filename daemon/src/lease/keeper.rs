//! The task that gets and keeps our lease.
//!
//! ```text
//! last state ─► Unconfirmed ─┐
//!                            ▼            refreshed, rewritten, address changed
//!   next_step ◄─ view ─► claim by txn ─► Held ◄──────────────────────────┐
//!       ▲                                 │  key gone ─► claim it again ──┘
//!       │ no container left               ▼  another living owner
//!       └──────────────────────────────  Lost
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use loden_core::backoff::Backoff;
use loden_core::claim::{self, Identity, Step};
use loden_core::held::{self, Held, Standing};
use loden_core::leases::{LeaseRecord, LeaseTable};
use loden_core::mac;
use loden_core::underlay::Underlay;
use loden_proto::config::{Backend, NetworkConfig};
use loden_proto::lease::{LeaseKey, LeaseValue};
use loden_proto::{Family, Mac, Subnet};
use tokio::sync::watch;

use super::{LeaseState, OwnLease, liveness, value};
use crate::clock;
use crate::endpoints;
use crate::flanneld;
use crate::reconcile::HostFacts;
use crate::state::{self, Last, StateDir};
use crate::store::{Outcome, StoreError, View, Writer};

/// What the keeper is told once.
#[derive(Debug, Clone)]
pub struct KeeperOptions {
    /// `--subnet-lease-ttl` in seconds.
    pub ttl: u64,
    /// `--label`
    pub labels: BTreeMap<String, String>,
    /// Subnets that files of a former life name, the best first.
    pub former: Vec<LeaseKey>,
    /// Folder of the allocation files.
    pub allocations: PathBuf,
}

/// The keeper and what it hears.
pub struct Keeper {
    /// What it was told.
    pub options: KeeperOptions,
    /// Where lasting state lives.
    pub state: StateDir,
    /// How it writes.
    pub writer: Writer,
    /// What stands in etcd.
    pub views: watch::Receiver<View>,
    /// The config in force.
    pub configs: watch::Receiver<Option<Arc<NetworkConfig>>>,
    /// The host.
    pub facts: watch::Receiver<Option<HostFacts>>,
    /// Where it publishes.
    pub own: watch::Sender<OwnLease>,
}

/// How long the host's addresses may settle before our lease follows them.
const SETTLE: Duration = Duration::from_millis(200);

/// Why a held lease is not simply held any more.
enum Departure {
    /// Its key is gone.
    Gone,
    /// Somebody else wrote the key.
    Lost(String),
    /// Another process with our own identity wrote it.
    Fenced(String),
    /// An operator wanted us to move, and no container is left.
    Released,
    /// It was confirmed by a remembered config, and the one in etcd is of another network.
    Misfit,
}

/// How often it is looked whether the flanneld that took our lease still runs.
const FLANNELD_POLL: Duration = Duration::from_secs(2);

impl Keeper {
    /// Runs for ever.
    pub async fn run(mut self, mut host_id: String) -> anyhow::Result<()> {
        let mut last = self.state.last();
        self.resume(&last, &host_id);
        let mut previous = Vec::new();
        previous.extend(LeaseKey::parse(&last.key).ok());
        previous.extend(self.options.former.iter().copied());
        let mut avoid = None;
        loop {
            let held = self.claim(&mut host_id, &mut previous, avoid.take(), &mut last).await?;
            previous.retain(|k| *k != held.key);
            previous.insert(0, held.key);
            let key = held.key;
            match self.keep(held, &host_id, &mut last).await {
                Departure::Gone => {
                    tracing::warn!(subnet = %key, "our lease vanished from etcd; claiming the same subnet again");
                    self.waiting("it vanished from etcd".into());
                }
                Departure::Misfit => {
                    tracing::info!(subnet = %key, "our lease does not fit the network config; taking one that does");
                }
                Departure::Lost(holder) => {
                    self.disown(&mut last);
                    self.lost(key, &holder, "it belongs to another host now", &host_id, &mut previous).await;
                }
                Departure::Fenced(reason) => {
                    self.disown(&mut last);
                    self.fenced(key, &reason).await;
                }
                Departure::Released => {
                    self.disown(&mut last);
                    tracing::info!(subnet = %key, "left the subnet that an operator released; taking another");
                    self.own
                        .send_modify(|own| own.state = LeaseState::None("moving to another subnet".into()));
                    previous.clear();
                    avoid = Some(key);
                }
            }
        }
    }

    /// What is not ours must not be resumed at a start without etcd.
    fn disown(&self, last: &mut Last) {
        last.deadline = 0;
        if let Err(error) = self.state.save_last(last) {
            tracing::error!(%error, "cannot record that our subnet is lost; a restart without etcd would resume it");
        }
    }

    /// With etcd away, what we held is ours until its recorded deadline.
    fn resume(&self, last: &Last, host_id: &str) {
        let state = match LeaseKey::parse(&last.key) {
            Ok(key) if last.deadline > clock::unix_seconds() => {
                tracing::info!(subnet = %key, "resuming the last subnet until etcd confirms it");
                OwnLease {
                    state: LeaseState::Unconfirmed,
                    key: Some(key),
                    macs: last.macs.clone(),
                    host_id: host_id.to_owned(),
                    expires: (last.deadline < u64::MAX)
                        .then(|| clock::now() + (last.deadline - clock::unix_seconds()) * 1000),
                    trouble: None,
                }
            }
            _ => OwnLease { host_id: host_id.to_owned(), ..OwnLease::default() },
        };
        self.own.send_replace(state);
    }

    /// Steps until a lease is in hand.
    async fn claim(
        &mut self,
        host_id: &mut String,
        previous: &mut Vec<LeaseKey>,
        avoid: Option<LeaseKey>,
        last: &mut Last,
    ) -> anyhow::Result<Held> {
        let mut known = BTreeMap::new();
        let mut backoff = Backoff::new(50, 5000);
        // What a refused transaction showed us before the watch did.
        let mut ahead: Option<LeaseTable> = None;
        let mut etcd_lease = None;
        loop {
            let (view, config, underlay, facts) = self.ready().await;
            let table = match ahead.take() {
                Some(ahead) if ahead.revision >= view.table.revision => ahead,
                _ => view.table.clone(),
            };
            if let Some(reason) = value::udp_peers(&config, &table) {
                self.waiting(reason);
                self.pause(&mut backoff).await;
                continue;
            }
            let public = value::public_addresses(&config, &underlay);
            let identity = Identity { host_id: host_id.clone(), public };
            let step = claim::next_step(&table, &config, &identity, previous, &known, clock::chance());
            let (key, mod_revision, reserved, why) = match step {
                Step::Take { key, mod_revision, reserved, why } => (key, mod_revision, reserved, why),
                // Another throw of the dice, if there is another subnet at all.
                Step::Create { key, .. }
                    if Some(key) == avoid && config.pools().any(|p| p.capacity() > 1) =>
                {
                    self.pause(&mut backoff).await;
                    continue;
                }
                Step::Create { key, why } => (key, 0, false, why),
                Step::AskHolder { key } => {
                    let Some(record) = table.get(&key) else { continue };
                    self.waiting(format!(
                        "finding out whether the holder of {key} lives: {}",
                        claim::holder(record)
                    ));
                    match liveness::ask(&self.writer, record).await {
                        Ok(verdict) => drop(known.insert(key, verdict)),
                        Err(error) => self.failed(&error, &mut backoff).await,
                    }
                    continue;
                }
                Step::NewIdentity { key } => {
                    tracing::warn!(original = %key, "a living host has our host id: this host is a clone; drawing a new host id");
                    self.contested(
                        "a living host has our host id, so this one is a clone; taking a subnet of its own"
                            .into(),
                    );
                    self.state.forget();
                    *host_id = self.state.new_host_id()?;
                    previous.clear();
                    *last = Last::default();
                    // Whatever was resumed is the original's, its MAC too.
                    if endpoints::count_in(&self.options.allocations, &key) == 0 {
                        self.own.send_replace(OwnLease { host_id: host_id.clone(), ..OwnLease::default() });
                    }
                    continue;
                }
                Step::Release { key, mod_revision } => {
                    if self.forbidden_in_use(&key) {
                        self.outgrown(key, table.get(&key).map_or(0, |r| r.etcd_lease)).await;
                        continue;
                    }
                    tracing::info!(subnet = %key, "releasing our former subnet, which the network config no longer allows");
                    match self.writer.delete(&key, mod_revision).await {
                        Ok(_) => {
                            // What the config still allows of it is taken again.
                            if !previous.contains(&key) {
                                previous.push(key);
                            }
                            ahead = Some(without(table, &key));
                        }
                        Err(error) => self.failed(&error, &mut backoff).await,
                    }
                    continue;
                }
                Step::Refuse { key, holder } => {
                    let addresses: Vec<String> = identity.public.iter().map(IpAddr::to_string).collect();
                    self.contested(format!(
                        "our public address {} is in use by another living host: {holder}, lease {key}; give this host its own address or --public-ip",
                        addresses.join(", ")
                    ));
                    known.clear();
                    self.pause(&mut backoff).await;
                    continue;
                }
                Step::Exhausted { capacity } => {
                    self.waiting(format!(
                        "all {capacity} subnets of the network are taken; widen it, or release dead ones (loden lease list)"
                    ));
                    self.pause(&mut backoff).await;
                    continue;
                }
            };
            if let Some((old, holder)) = self.in_use_elsewhere(&key, &table) {
                self.lost(old, &holder, "it cannot be claimed again", host_id, previous).await;
                continue;
            }
            let former = table.get(&key);
            let macs = value::macs(&config, &facts, last, former, host_id);
            let value = self.value(&config, &underlay, &macs, host_id, former);
            let lease = match reserved {
                true => 0,
                false => match self.etcd_lease(&mut etcd_lease, former, host_id).await {
                    Ok(lease) => lease,
                    Err(error) => {
                        self.failed(&error, &mut backoff).await;
                        continue;
                    }
                },
            };
            let unchanged =
                former.filter(|r| lease != 0 && r.etcd_lease == lease && r.value.as_ref() == Ok(&value));
            let written = match unchanged {
                // Refreshed just now: a restart is no news to 10,000 watchers.
                Some(record) => Ok(Outcome::Written(record.mod_revision)),
                None => self.writer.put(&key, &value, lease, mod_revision).await,
            };
            match written {
                Ok(Outcome::Written(revision)) => {
                    if mod_revision == 0
                        && let Some(other) = self.outrun(&key, revision).await
                    {
                        tracing::info!(subnet = %key, %other, "somebody took a part of it first; trying another");
                        while let Err(error) = self.writer.delete(&key, revision).await {
                            self.failed(&error, &mut backoff).await;
                        }
                        previous.retain(|k| *k != key);
                        ahead = Some(without(self.views.borrow().table.clone(), &key));
                        continue;
                    }
                    tracing::info!(subnet = %key, why, "lease is ours");
                    let held =
                        Held { key, etcd_lease: lease, mod_revision: revision, value, attempted: None };
                    self.publish(&held, host_id, &macs, last);
                    return Ok(held);
                }
                Ok(Outcome::Conflict(found)) => {
                    // Somebody was faster. Learn what stands there, and try at once.
                    tracing::debug!(subnet = %key, "somebody else was faster");
                    let mut table = table;
                    match found {
                        Some(record) => table.insert(key, *record),
                        None => table.delete(&key.to_string()),
                    }
                    ahead = Some(table);
                }
                Err(error) => {
                    // Whether it was written is unknown, and an etcd that answers too late shows it too late as
                    // well: another subnet would leave this one behind, kept alive by the same etcd lease.
                    if mod_revision == 0 && !previous.contains(&key) {
                        previous.insert(0, key);
                    }
                    // The etcd lease stays ours to use, unless it is what is missing.
                    if error.to_string().contains("lease not found") {
                        etcd_lease = None;
                    }
                    self.failed(&error, &mut backoff).await;
                }
            }
        }
    }

    /// Who created a key with a part of ours before us, once everything up to our own write is seen.
    async fn outrun(&mut self, key: &LeaseKey, revision: i64) -> Option<LeaseKey> {
        let epoch = self.views.borrow().epoch;
        loop {
            let view = self.views.borrow_and_update().clone();
            if view.table.revision >= revision || view.epoch != epoch {
                return claim::outrun(&view.table, key);
            }
            if self.views.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Keeps a lease until it is not ours any more.
    async fn keep(&mut self, mut held: Held, host_id: &str, last: &mut Last) -> Departure {
        let interval = Duration::from_secs(claim::keep_alive_interval(self.options.ttl));
        let first = Duration::from_millis(claim::first_keep_alive(self.options.ttl, clock::chance()));
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + first, interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut attempt = 0;
        let mut epoch = self.views.borrow().epoch;
        let mut leaving = tokio::time::interval(Duration::from_secs(1));
        let mut seen = LeaseTable::default();
        loop {
            let released = held.value.loden.as_ref().is_some_and(|m| m.released);
            tokio::select! {
                _ = leaving.tick(), if released => {
                    if endpoints::count_in(&self.options.allocations, &held.key) == 0
                        && let Ok(Outcome::Written(_)) = self.writer.delete(&held.key, held.mod_revision).await
                    {
                        return Departure::Released;
                    }
                    continue;
                }
                _ = tick.tick(), if held.etcd_lease != 0 => match self.writer.keep_alive(held.etcd_lease).await {
                    Ok(true) => {
                        let macs = self.own.borrow().macs.clone();
                        self.publish(&held, host_id, &macs, last);
                    }
                    Ok(false) => return Departure::Gone,
                    // The data plane stays; etcd's absence is the reading task's to report.
                    Err(error) => {
                        self.waiting(format!("its keep-alive fails: {error}"));
                        tick.reset_after((interval / 4).max(Duration::from_secs(1)));
                    }
                },
                changed = self.views.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    let view = self.views.borrow_and_update().clone();
                    let settled = view.synced && view.epoch == epoch && held.attempted.is_none();
                    if settled && !value::concerns(&seen, &view.table, &held.key, &self.own.borrow().macs) {
                        // Another host's lease, as nearly all are.
                        seen = view.table;
                        continue;
                    }
                }
                // An address seldom comes alone, and the connection to etcd is made anew meanwhile.
                _ = self.facts.changed() => tokio::time::sleep(SETTLE).await,
                _ = self.configs.changed() => {}
            }
            if self.configs.borrow().as_ref().is_some_and(|c| !claim::of_network(&held.key, c)) {
                return Departure::Misfit;
            }
            let view = self.views.borrow_and_update().clone();
            if view.epoch != epoch {
                // What stands there now is judged by what it says, not by its revision.
                epoch = view.epoch;
                held.mod_revision = 0;
            }
            if !view.synced || view.table.revision < held.mod_revision {
                continue;
            }
            if let Err(departure) = self.check(&view.table, &mut held, host_id) {
                return departure;
            }
            seen = view.table.clone();
            self.renew(&mut held, &view.table, host_id, &mut attempt, last).await;
        }
    }

    /// Compares our key with what stands in etcd.
    fn check(&self, table: &LeaseTable, held: &mut Held, host_id: &str) -> Result<(), Departure> {
        match held::standing(held, table, host_id, &state::boot_id()) {
            Standing::Unchanged => {}
            Standing::Ours(now) => {
                *held = *now;
                if held.value.loden.as_ref().is_some_and(|m| m.released) {
                    tracing::warn!(subnet = %held.key, "an operator released our subnet; no new containers, and another subnet when the last one is gone");
                    let reason = "an operator released it (loden lease release --force)".to_owned();
                    self.own.send_modify(|own| own.state = LeaseState::Lost(reason));
                }
            }
            Standing::Garbled(revision) => {
                tracing::warn!(subnet = %held.key, "somebody wrote an unreadable value to our key; writing ours again");
                held.mod_revision = revision;
                // Differs from what we want to stand there, so it is written.
                held.value = LeaseValue::default();
            }
            Standing::Gone => return Err(Departure::Gone),
            Standing::Lost(holder) => return Err(Departure::Lost(holder)),
            Standing::Fenced(reason) => return Err(Departure::Fenced(reason)),
        }
        Ok(())
    }

    /// Brings the value up to date: an address that changed, a MAC that an older peer has too.
    async fn renew(
        &mut self,
        held: &mut Held,
        table: &LeaseTable,
        host_id: &str,
        attempt: &mut u32,
        last: &mut Last,
    ) {
        let Some((config, underlay)) = self.inputs() else { return };
        let mut macs = self.own.borrow().macs.clone();
        if let Backend::Vxlan(vxlan) = &config.backend {
            for (family, mac) in &mut macs {
                if value::has_older_twin(table, &held.key, *family, *mac) {
                    *attempt += 1;
                    let new = mac::derived(host_id, vxlan.vni, *family, *attempt);
                    tracing::warn!(old = %mac, new = %new, "an older peer has our VTEP MAC; drawing a new one");
                    *mac = new;
                }
            }
        }
        let current = table.get(&held.key);
        let mut value = self.value(&config, &underlay, &macs, host_id, current);
        if let (Some(new), Some(old)) = (&mut value.loden, &held.value.loden) {
            Arc::make_mut(new).released = old.released;
        }
        if value == held.value {
            return;
        }
        held.attempted = Some(value.clone());
        match self.writer.put(&held.key, &value, held.etcd_lease, held.mod_revision).await {
            Ok(Outcome::Written(revision)) => {
                tracing::info!(subnet = %held.key, "lease updated: address or MAC changed");
                held.mod_revision = revision;
                held.value = value;
                held.attempted = None;
                self.publish(held, host_id, &macs, last);
            }
            Ok(Outcome::Conflict(_)) => {}
            Err(error) => tracing::warn!(%error, "cannot update our lease; trying again"),
        }
    }

    /// Says so, stops handing out, and waits until the subnet is free or ours again, or no container
    /// uses it any more. `previous` is left with the subnets to try next.
    async fn lost(
        &mut self,
        key: LeaseKey,
        holder: &str,
        reason: &str,
        host_id: &str,
        previous: &mut Vec<LeaseKey>,
    ) {
        tracing::error!(subnet = %key, holder, "our subnet is lost: {reason}; no new containers until the old ones are gone");
        self.own.send_modify(|own| {
            own.state = LeaseState::Lost(holder.to_owned());
            own.expires = None;
        });
        previous.retain(|k| *k != key);
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let view = self.views.borrow().clone();
            let record = view.table.get(&key);
            let ours = record.is_none_or(|r| {
                r.value.as_ref().is_ok_and(|v| v.host_id().is_some_and(|id| *id == *host_id))
            });
            if view.synced && view.connected && ours && self.allowed(&key) {
                tracing::info!(subnet = %key, "our lost subnet is free again; claiming it");
                previous.insert(0, key);
                return;
            }
            if endpoints::count_in(&self.options.allocations, &key) == 0 {
                tracing::info!(subnet = %key, "no container uses the lost subnet any more; taking another");
                return;
            }
        }
    }

    /// Whether containers use a subnet of this key that the network config does not allow.
    fn forbidden_in_use(&self, key: &LeaseKey) -> bool {
        let Some(config) = self.configs.borrow().clone() else { return false };
        key.subnets()
            .filter(|s| !config.pool(s.family()).is_some_and(|p| p.accepts(s)))
            .any(|s| endpoints::count_in(&self.options.allocations, &LeaseKey::single(s)) > 0)
    }

    /// Waits until no container uses what the network config forbids. The key stays: by what is still
    /// allowed of it, such as IPv4 when IPv6 went, peers reach the containers.
    async fn outgrown(&mut self, key: LeaseKey, etcd_lease: i64) {
        tracing::error!(subnet = %key, "the network config no longer allows our subnet, which containers use; no new ones until they are gone");
        self.own.send_modify(|own| {
            own.state = LeaseState::Lost("the network config no longer allows it".into());
            own.expires = None;
        });
        let interval = claim::keep_alive_interval(self.options.ttl);
        for second in 1u64.. {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if !self.forbidden_in_use(&key) {
                return;
            }
            if second.is_multiple_of(interval) && etcd_lease != 0 {
                // Without it peers lose us only when the lease ends.
                if let Err(error) = self.writer.keep_alive(etcd_lease).await {
                    tracing::debug!(%error, "cannot refresh the lease of the subnet that we leave");
                }
            }
        }
    }

    /// The key in use, if containers use a subnet of it that this one lacks, and who holds it.
    fn in_use_elsewhere(&self, key: &LeaseKey, table: &LeaseTable) -> Option<(LeaseKey, String)> {
        let old = self.own.borrow().key?;
        let missing = |s: &Subnet| key.subnet(s.family()) != Some(*s);
        let holder = table
            .get(&old)
            .map_or_else(|| "the network config no longer allows it".to_owned(), claim::holder);
        let used = |s: Subnet| endpoints::count_in(&self.options.allocations, &LeaseKey::single(s)) > 0;
        old.subnets().filter(missing).any(used).then_some((old, holder))
    }

    /// Stops writing for good, as long as the other keeps the key; but a flanneld that was seen on this
    /// host, and has ended, keeps it no more.
    async fn fenced(&mut self, key: LeaseKey, reason: &str) {
        tracing::error!(subnet = %key, "our lease was rewritten: {reason}; this daemon writes no more until the key is gone");
        self.own.send_modify(|own| own.state = LeaseState::Lost(reason.to_owned()));
        let mut seen = false;
        loop {
            let (gone, flannels) = {
                let view = self.views.borrow_and_update();
                let record = view.table.get(&key);
                let of_flannel = |r: &LeaseRecord| r.value.as_ref().is_ok_and(|v| v.loden.is_none());
                (view.synced && record.is_none(), record.is_some_and(of_flannel))
            };
            let runs = flanneld::any().is_some();
            if flannels && seen && !runs {
                tracing::info!(subnet = %key, "flanneld has ended on this host; taking its lease over");
                return;
            }
            seen |= runs;
            if gone {
                return;
            }
            tokio::select! {
                changed = self.views.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(FLANNELD_POLL) => {}
            }
        }
    }

    /// Waits until etcd was read, a config is in force and the underlay is there.
    async fn ready(&mut self) -> (View, Arc<NetworkConfig>, Underlay, HostFacts) {
        loop {
            let view = self.views.borrow_and_update().clone();
            let config = self.configs.borrow_and_update().clone();
            let facts = self.facts.borrow_and_update().clone();
            let reason = match (view.synced, config, facts) {
                (true, Some(config), Some(facts)) => match facts.underlay.clone() {
                    // Chosen before the config was known, or by a former one.
                    Ok(underlay) if !value::complete(&config, &underlay) => "looking at the host".to_owned(),
                    Ok(underlay) => match underlay
                        .endpoints
                        .iter()
                        .flat_map(|e| [e.local, e.public])
                        .find(|ip| config.contains(*ip))
                    {
                        None => return (view, config, underlay, facts),
                        Some(own) => format!(
                            "the network contains this host's own address {own} ({}); choose a network apart from the underlay (loden config set), or another --iface or --public-ip",
                            underlay.interface
                        ),
                    },
                    Err(reason) => reason.to_string(),
                },
                (false, ..) => "waiting for etcd".to_owned(),
                (_, None, _) => "waiting for a network config".to_owned(),
                (.., None) => "looking at the host".to_owned(),
            };
            self.waiting(reason);
            tokio::select! {
                _ = self.views.changed() => {}
                _ = self.configs.changed() => {}
                _ = self.facts.changed() => {}
            }
        }
    }

    fn allowed(&self, key: &LeaseKey) -> bool {
        self.configs.borrow().as_ref().is_some_and(|config| claim::allowed(key, config))
    }

    fn inputs(&self) -> Option<(Arc<NetworkConfig>, Underlay)> {
        let config = self.configs.borrow().clone()?;
        let underlay = self.facts.borrow().as_ref()?.underlay.clone().ok()?;
        value::complete(&config, &underlay).then_some((config, underlay))
    }

    /// Tells why there is no lease yet, or why the one in use is not ours in etcd; once per reason.
    fn waiting(&self, reason: String) {
        self.own.send_if_modified(|own| match &mut own.state {
            LeaseState::None(known) if *known == reason => false,
            LeaseState::None(known) => {
                tracing::info!("no lease yet: {reason}");
                *known = reason;
                true
            }
            // What we use meanwhile stays in use.
            _ if own.trouble.as_ref() == Some(&reason) => false,
            _ => {
                tracing::warn!("our lease is not confirmed: {reason}");
                own.trouble = Some(reason);
                true
            }
        });
    }

    /// Tells why there is no lease yet; and where one is in use, that it may be somebody else's.
    fn contested(&self, reason: String) {
        if self.own.borrow().key.is_none() {
            return self.waiting(reason);
        }
        self.own.send_if_modified(|own| match &own.state {
            LeaseState::Contested(known) | LeaseState::Lost(known) if *known == reason => false,
            _ => {
                tracing::warn!("our subnet is contested: {reason}; no new containers until that is decided");
                own.state = LeaseState::Contested(reason);
                true
            }
        });
    }

    async fn failed(&self, error: &StoreError, backoff: &mut Backoff) {
        self.waiting(error.to_string());
        self.pause(backoff).await;
    }

    async fn pause(&self, backoff: &mut Backoff) {
        tokio::time::sleep(Duration::from_millis(backoff.wait(clock::chance()))).await;
    }

    /// Our one etcd lease: that of our former life if it is of the right length, else a new one.
    async fn etcd_lease(
        &self,
        granted: &mut Option<i64>,
        former: Option<&LeaseRecord>,
        host_id: &str,
    ) -> Result<i64, StoreError> {
        if let Some(lease) = *granted {
            return Ok(lease);
        }
        let ours =
            former.filter(|r| r.value.as_ref().is_ok_and(|v| v.host_id().is_some_and(|id| *id == *host_id)));
        if let Some(lease) = ours.map(|r| r.etcd_lease).filter(|lease| *lease != 0)
            && self.writer.time_to_live(lease).await?.is_some_and(|t| t.granted == self.options.ttl)
            && self.writer.keep_alive(lease).await?
        {
            return Ok(*granted.insert(lease));
        }
        let lease = self.writer.grant(self.options.ttl).await?;
        Ok(*granted.insert(lease))
    }

    fn value(
        &self,
        config: &NetworkConfig,
        underlay: &Underlay,
        macs: &BTreeMap<Family, Mac>,
        host_id: &str,
        current: Option<&LeaseRecord>,
    ) -> LeaseValue {
        value::value(config, underlay, macs, host_id, current, &self.options.labels, self.options.ttl)
    }

    /// Publishes a lease that was written or refreshed just now, and remembers it.
    fn publish(&self, held: &Held, host_id: &str, macs: &BTreeMap<Family, Mac>, last: &mut Last) {
        let ttl = self.options.ttl;
        let lasting = held.etcd_lease == 0;
        let released = held.value.loden.as_ref().is_some_and(|m| m.released);
        self.own.send_replace(OwnLease {
            state: if released { self.own.borrow().state.clone() } else { LeaseState::Held },
            key: Some(held.key),
            macs: macs.clone(),
            host_id: host_id.to_owned(),
            expires: (!lasting).then(|| clock::now() + ttl * 1000),
            trouble: None,
        });
        let deadline = if lasting { u64::MAX } else { clock::unix_seconds() + ttl };
        let Some(config) = self.configs.borrow().as_ref().map(|c| c.to_json().to_string()) else { return };
        let now = Last { config, key: held.key.to_string(), deadline, macs: macs.clone() };
        // A refreshed deadline alone is written when a twelfth of the TTL has passed.
        let same = Last { deadline: last.deadline, ..now.clone() } == *last;
        if same && now.deadline.saturating_sub(last.deadline) < (ttl / 12).max(1) {
            return;
        }
        match self.state.save_last(&now) {
            Ok(()) => *last = now,
            Err(error) => {
                tracing::error!(%error, "cannot remember our lease; a reboot without etcd will not have it")
            }
        }
    }
}

fn without(mut table: LeaseTable, key: &LeaseKey) -> LeaseTable {
    table.delete(&key.to_string());
    table
}
