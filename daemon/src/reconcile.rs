//! The loop, and the only writer to the kernel.
//!
//! It wakes for any reason, computes what should be from what is known now, compares it with what
//! is, and carries out the difference. What is is remembered ([`Observed`]), kept current by our own
//! operations, and read anew when a notice contradicts it, when an operation failed, or every
//! `full_pass`.

mod belief;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use loden_core::diff::{self, Conflict, Operation, Scope};
use loden_core::observed::{Link, Observed};
use loden_core::options::Options;
use loden_core::peers::{Peer, PeerBook, Rules, found_in_kernel};
use loden_core::plan::{Desired, Inputs, plan};
use loden_core::underlay::{self, NoUnderlay, Underlay, UnderlayOptions};
use loden_core::{Millis, backoff::Backoff};
use loden_proto::config::{Backend, NetworkConfig, Vxlan};
use loden_proto::lease::LeaseKey;
use loden_proto::{Family, Subnet};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock;
use crate::docker_user;
use crate::kernel::{DataPlane, Interest, Notice, Notices};
use crate::lease::OwnLease;
use crate::lock;
use crate::state::StateDir;
use crate::store::View;
use belief::Need;
pub use report::Report;

/// What other tasks need to know of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// The underlay, or why there is none.
    pub underlay: Result<Underlay, NoUnderlay>,
    /// VXLAN devices that somebody else made.
    foreign_devices: Vec<Link>,
}

impl HostFacts {
    /// An existing VXLAN device of our identity that we did not make.
    pub fn adopted(&self, vxlan: &Vxlan, family: Family) -> Option<&Link> {
        let same =
            |l: &&Link| l.vxlan.is_some_and(|v| (v.vni, v.port, v.family) == (vxlan.vni, vxlan.port, family));
        self.foreign_devices.iter().find(same)
    }
}

/// What the loop is told once.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The operator's choices for the kernel.
    pub options: Options,
    /// The operator's choice of the underlay.
    pub underlay: UnderlayOptions,
    /// `--peer-hold` in milliseconds.
    pub hold: Millis,
    /// Time between full passes.
    pub full_pass: Duration,
}

/// The loop and what it hears, over the real kernel or a modelled one.
pub struct Reconciler<K, N> {
    /// What it was told.
    pub settings: Settings,
    /// The kernel.
    pub kernel: K,
    /// Its notices, opened before the first look.
    pub notices: N,
    /// What stands in etcd.
    pub views: watch::Receiver<View>,
    /// The config in force.
    pub configs: watch::Receiver<Option<Arc<NetworkConfig>>>,
    /// Our lease.
    pub own: watch::Receiver<OwnLease>,
    /// Where the host's facts are published.
    pub facts: watch::Sender<Option<HostFacts>>,
    /// Told when the underlay's addresses changed.
    pub moved: Arc<Notify>,
    /// Our rules in Docker's chain, which another task keeps.
    pub docker_user: watch::Sender<docker_user::Wanted>,
    /// Told when somebody changed the rule set.
    pub rules_changed: Arc<Notify>,
    /// Told when a link, an address or an element of the port filter changed.
    pub ports_changed: Arc<Notify>,
    /// Told when somebody changed the port filter's table.
    pub port_filter_changed: Arc<Notify>,
    /// Whether a first pass has brought the data plane in place.
    pub in_place: watch::Sender<bool>,
    /// Who wants to know.
    pub questions: mpsc::Receiver<oneshot::Sender<Report>>,
    /// Where peers are remembered.
    pub state: StateDir,
}

struct Loop<K, N> {
    /// What it was told and hears, and where it publishes.
    io: Reconciler<K, N>,
    observed: Observed,
    book: PeerBook,
    /// Whether the book knows what lasting state and kernel tell of peers.
    seeded: bool,
    rules: Option<Arc<Rules>>,
    desired: Option<Desired>,
    /// Peers as last brought into the kernel.
    programmed: OrdMap<Subnet, Peer>,
    conflicts: Vec<Conflict>,
    pending: BTreeMap<Subnet, String>,
    repairs: BTreeMap<String, u64>,
    failure: Option<String>,
    need: Need,
    /// Whether links, addresses or the default route turned out to be others in the middle of a pass.
    look_again: bool,
    /// How much of what is believed was contradicted, or failed to be done.
    wrong: Need,
    next_full: Instant,
    /// Waits between passes that repair or fail, so that two managers never fight in a hot loop.
    calm: Backoff,
    /// No repair before this.
    quiet_until: Instant,
    /// When a pass last repaired something or failed.
    last_trouble: Instant,
    /// Whether this pass repaired something.
    repaired: bool,
    save_peers_at: Option<Instant>,
    saved_peers_at: Instant,
    bridges: BTreeSet<String>,
}

/// Operations carried out between two turns of the other tasks.
const TURN: usize = 1024;
/// Notices within this time are answered together.
const COALESCE: Duration = Duration::from_millis(5);
/// At most so many readings of notices before a look, should they never end.
const STALE: usize = 10_000;
/// After this long without trouble, the next trouble is met at once again.
const PEACE: Duration = Duration::from_secs(10);
/// Peers are remembered at most this often.
const SAVE_PEERS: Duration = Duration::from_secs(10);

impl<K: DataPlane, N: Notices> Reconciler<K, N> {
    /// Runs for ever; ends only when the kernel cannot be spoken to at all.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut state = Loop {
            observed: Observed::default(),
            book: PeerBook::default(),
            seeded: false,
            rules: None,
            desired: None,
            programmed: OrdMap::new(),
            conflicts: Vec::new(),
            pending: BTreeMap::new(),
            repairs: BTreeMap::new(),
            failure: None,
            need: Need::Full,
            look_again: false,
            wrong: Need::Changes,
            next_full: Instant::now() + self.settings.full_pass,
            calm: Backoff::new(20, 1000),
            quiet_until: Instant::now(),
            last_trouble: Instant::now(),
            repaired: false,
            save_peers_at: None,
            saved_peers_at: Instant::now() - SAVE_PEERS,
            bridges: BTreeSet::new(),
            io: self,
        };
        state.run().await
    }
}

impl<K: DataPlane, N: Notices> Loop<K, N> {
    async fn run(&mut self) -> anyhow::Result<()> {
        self.observe().await?;
        loop {
            self.pass().await?;
            self.wait().await?;
        }
    }

    /// Waits for a reason to look again.
    async fn wait(&mut self) -> anyhow::Result<()> {
        let held = self.book.next_deadline().map(|at| Duration::from_millis(at.saturating_sub(clock::now())));
        let held = held.map(|wait| Instant::now() + wait + COALESCE);
        while !std::mem::take(&mut self.look_again) && !self.wakes(held).await? {}
        Ok(())
    }

    /// Waits for whatever comes next, and tells whether it is a reason: the echo of our own writes is none.
    /// At `held`, if any, peers are let go.
    async fn wakes(&mut self, held: Option<Instant>) -> anyhow::Result<bool> {
        let mut deadline = self.next_full;
        if self.wrong > Need::Changes {
            deadline = deadline.min(self.quiet_until);
        }
        deadline = held.map_or(deadline, |at| deadline.min(at));
        deadline = self.save_peers_at.map_or(deadline, |at| deadline.min(at));
        let mut reason = true;
        tokio::select! {
            notices = self.io.notices.next() => {
                reason = false;
                for notice in notices? {
                    reason |= self.absorb(notice);
                }
                // More of the same burst are likely under way.
                let end = Instant::now() + COALESCE;
                while self.wrong > Need::Changes
                    && let Ok(more) = tokio::time::timeout_at(end, self.io.notices.next()).await
                {
                    for notice in more? {
                        self.absorb(notice);
                    }
                }
            }
            Some(question) = self.io.questions.recv() => {
                // Who asked may be gone.
                let _ = question.send(self.report());
                reason = false;
            }
            _ = self.io.views.changed() => {}
            _ = self.io.configs.changed() => {}
            _ = self.io.own.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        if self.wrong > Need::Changes && self.quiet_until <= Instant::now() {
            self.need = self.need.max(std::mem::replace(&mut self.wrong, Need::Changes));
        }
        if self.next_full <= Instant::now() {
            self.need = Need::Full;
        }
        if self.save_peers_at.is_some_and(|at| at <= Instant::now()) {
            self.save_peers_at = None;
            self.saved_peers_at = Instant::now();
            if let Err(error) = self.io.state.save_peers(self.programmed.values()) {
                tracing::warn!(%error, "cannot remember the peers");
            }
        }
        Ok(reason || self.need > Need::Changes)
    }

    /// Takes a notice in, and tells whether it is a reason to look again.
    fn absorb(&mut self, notice: Notice) -> bool {
        self.pass_on(&notice);
        // Routes of others, which the underlay may be chosen by.
        let ways = self.io.settings.underlay.can_reach.is_some()
            && matches!(notice, Notice::Route(_) | Notice::RouteGone(_));
        let networks = self.desired.as_ref().map(|d| d.networks.as_slice()).unwrap_or_default();
        let text = tracing::enabled!(tracing::Level::DEBUG).then(|| format!("{notice:?}"));
        let wrong = belief::absorb(&mut self.observed, notice, networks);
        if let Some(notice) = text.filter(|_| wrong > Need::Changes) {
            tracing::debug!(notice, "the kernel is not as believed");
        }
        self.wrong = self.wrong.max(wrong);
        ways || wrong > Need::Changes
    }

    /// Tells other tasks of what is theirs.
    fn pass_on(&self, notice: &Notice) {
        if matches!(notice, Notice::DockerRules | Notice::Overrun) {
            self.io.rules_changed.notify_one();
        }
        match notice {
            Notice::PortFilter | Notice::Overrun => self.io.port_filter_changed.notify_one(),
            Notice::PortElements
            | Notice::Link(_)
            | Notice::LinkGone(_)
            | Notice::Address(..)
            | Notice::AddressGone(..) => self.io.ports_changed.notify_one(),
            _ => {}
        }
    }

    /// One pass: what should be, what is, the difference, done.
    async fn pass(&mut self) -> anyhow::Result<()> {
        if self.need == Need::Full {
            self.observe().await?;
            // In case a notice was lost.
            self.io.rules_changed.notify_one();
        }
        let underlay = self.choose_underlay();
        let inputs = (self.io.configs.borrow_and_update().clone(), self.io.own.borrow_and_update().clone());
        let (Some(config), own) = inputs else {
            self.settle();
            return Ok(());
        };
        self.update_peers(&config, &own, underlay.as_ref().ok());
        let (Some(key), Ok(underlay)) = (own.key, underlay) else {
            self.settle();
            return Ok(());
        };
        let adopted = self.adopted(&config);
        if let Some(conflict) = adopted.values().find_map(|name| self.of_another_network(name)) {
            self.set_conflicts(vec![conflict], true);
            self.settle();
            return Ok(());
        }
        self.bridges = self.gateway_holders(&key);
        let desired = plan(Inputs {
            config: &config,
            own: key,
            macs: &own.macs,
            underlay: &underlay,
            options: &self.io.settings.options,
            adopted: &adopted,
            bridges: &self.bridges,
            docker_shares: self.io.state.docker_shares(),
            peers: self.book.peers(),
        });
        let first = self.desired.is_none();
        let base_changed = self.desired.as_ref().is_none_or(|old| {
            old.devices != desired.devices
                || old.filters != desired.filters
                || old.forwarding != desired.forwarding
                || old.underlay != desired.underlay
        });
        self.desired = Some(desired.clone());
        self.io.docker_user.send_if_modified(|wanted| {
            let now = Some((desired.options.clone(), desired.docker_user.clone()));
            let news = *wanted != now;
            *wanted = now;
            news
        });
        if first || base_changed {
            // What concerns us was not known when the kernel was last read.
            self.observe().await?;
            self.need = Need::Full;
        }
        let full = self.need == Need::Full;
        // What changes because the inputs did is no repair.
        let same_inputs = !first && !base_changed;
        let mut conflicts = Vec::new();
        let mut failed = Vec::new();
        if self.need >= Need::Base {
            failed.extend(self.bring_base(&desired, same_inputs, &mut conflicts).await?);
        }
        let former = std::mem::take(&mut self.programmed);
        let mut peers_failed = Vec::new();
        if self.need < Need::Full || !former.is_empty() {
            // What inputs changed is done first: what is then left to do is a repair. And what former
            // peers had outside the networks of now is told by nothing else.
            let scope = Scope::Since(&former);
            peers_failed.extend(self.bring_peers(&desired, scope, false, &mut conflicts).await?);
        }
        if self.need == Need::Full {
            let repairing = same_inputs && full;
            peers_failed.extend(self.bring_peers(&desired, Scope::All, repairing, &mut conflicts).await?);
        }
        self.set_conflicts(conflicts, self.need == Need::Full);
        self.pending.clear();
        for (operation, reason) in &peers_failed {
            if let Some(subnet) = subnet_of(operation, &desired) {
                self.pending.insert(subnet, reason.clone());
            }
        }
        failed.extend(peers_failed);
        // Not an equal set made anew: to tell that would cost a look at every peer.
        if !former.ptr_eq(&desired.peers) {
            self.save_peers_at
                .get_or_insert((self.saved_peers_at + SAVE_PEERS).max(Instant::now() + COALESCE));
        }
        self.programmed = desired.peers.clone();
        self.failure = failed.first().map(|(_, reason)| reason.clone());
        self.io.in_place.send_if_modified(|done| !std::mem::replace(done, true));
        if full {
            self.next_full = Instant::now() + self.io.settings.full_pass;
        }
        self.settle();
        if !failed.is_empty() {
            self.wrong = Need::Full;
        }
        self.calm_down(!failed.is_empty() || self.repaired);
        Ok(())
    }

    /// Filters, devices, addresses and forwarding. A device must be there before its address can be;
    /// three rounds do for everything.
    async fn bring_base(
        &mut self,
        desired: &Desired,
        repairing: bool,
        conflicts: &mut Vec<Conflict>,
    ) -> anyhow::Result<Vec<(Operation, String)>> {
        if self.need < Need::Full {
            self.observe_rules().await;
        }
        let mut failed = Vec::new();
        for round in 0..3 {
            let (operations, found) = diff::base(desired, &self.observed);
            *conflicts = found;
            if operations.is_empty() || round > 0 && !failed.is_empty() {
                break;
            }
            let (filters, rest): (Vec<Operation>, Vec<Operation>) =
                operations.into_iter().partition(|o| matches!(o, Operation::ReplaceFilters(..)));
            failed.extend(self.apply(&filters, repairing).await?);
            if !failed.is_empty() {
                // Without its filters a device would take VXLAN from anybody.
                break;
            }
            failed.extend(self.apply(&rest, repairing).await?);
            self.observe().await?;
            self.need = Need::Full;
        }
        Ok(failed)
    }

    /// Neighbours, FDB entries, nexthops, routes and the peer sets.
    async fn bring_peers(
        &mut self,
        desired: &Desired,
        scope: Scope<'_>,
        repairing: bool,
        conflicts: &mut Vec<Conflict>,
    ) -> anyhow::Result<Vec<(Operation, String)>> {
        let (mut operations, found) = diff::peers(desired, &self.observed, scope);
        conflicts.extend(found);
        if !self.io.views.borrow().synced {
            // Until etcd has told who the peers are, none is taken away.
            operations.retain(|o| !o.removes());
        }
        self.apply(&operations, repairing).await
    }

    /// After trouble the next look waits, a little longer each time; inputs are never kept waiting.
    fn calm_down(&mut self, trouble: bool) {
        let now = Instant::now();
        if trouble {
            if now > self.last_trouble + PEACE {
                self.calm.reset();
            }
            self.last_trouble = now;
            self.quiet_until = now + Duration::from_millis(self.calm.wait(clock::chance()));
        }
        self.repaired = false;
    }

    fn settle(&mut self) {
        if self.need == Need::Full {
            self.next_full = Instant::now() + self.io.settings.full_pass;
        }
        self.need = Need::Changes;
    }

    async fn observe(&mut self) -> anyhow::Result<()> {
        // What was told before this look is older than it, and would contradict it.
        for _ in 0..STALE {
            let Ok(notices) = tokio::time::timeout(Duration::ZERO, self.io.notices.next()).await else {
                break;
            };
            notices?.iter().for_each(|notice| self.pass_on(notice));
        }
        let interest = self.interest();
        match self.io.kernel.observe(&interest).await {
            Ok(observed) => {
                // What the pass under way has decided by already, and no notice will tell of any more.
                self.look_again |= self.observed.links != observed.links
                    || self.observed.addresses != observed.addresses
                    || self.observed.default_routes != observed.default_routes;
                self.observed = observed;
            }
            // What is believed stays; the next pass tries again, since the notices are gone.
            Err(error) => {
                tracing::warn!(%error, "cannot read the kernel's state; trying again");
                self.wrong = Need::Full;
                self.calm_down(true);
            }
        }
        Ok(())
    }

    /// Reads rules and forwarding anew.
    async fn observe_rules(&mut self) {
        let before = self.observed.admitted.clone();
        let interest = self.interest();
        if let Err(error) = self.io.kernel.observe_rules(&interest, &mut self.observed).await {
            tracing::warn!(%error, "cannot read the rules");
        }
        if self.observed.admitted != before {
            // Which peers are admitted is compared with all of them.
            self.need = Need::Full;
        }
    }

    /// What an observation should tell.
    fn interest(&self) -> Interest {
        let Some(desired) = &self.desired else { return Interest::default() };
        Interest {
            networks: desired.networks.iter().map(|(network, _)| *network).collect(),
            forwarding: desired.forwarding.clone(),
            filters: true,
            peer_sets: desired.filters.peer_sets.clone(),
        }
    }

    fn choose_underlay(&mut self) -> Result<Underlay, NoUnderlay> {
        let families: Vec<Family> = match &*self.io.configs.borrow() {
            Some(config) => config.pools().map(|p| p.network.family()).collect(),
            None => vec![Family::V4],
        };
        let options = self.io.settings.options.clone();
        let own = move |link: &Link| {
            options.names_device(&link.name) || link.name == options.bridge() || link.vxlan.is_some()
        };
        let wanted = self.io.settings.underlay.clone();
        let route_to = wanted.can_reach.and_then(|ip| self.io.kernel.route_to(ip));
        let former = match self.io.facts.borrow().as_ref().map(|f| f.underlay.clone()) {
            Some(Ok(underlay)) => Some(underlay),
            _ => None,
        };
        let former_name = former.as_ref().map(|u| u.interface.as_str());
        let underlay = underlay::choose(&wanted, &families, &self.observed, &own, route_to, former_name);
        if let (Some(former), Ok(now)) = (&former, &underlay)
            && former.endpoints.iter().any(|e| !now.endpoints.contains(e))
        {
            // A connection from an address that is gone would only end by its time-out.
            self.io.moved.notify_one();
        }
        let options = &self.io.settings.options;
        let foreign = |l: &&Link| l.vxlan.is_some() && !options.names_device(&l.name);
        let foreign_devices = self.observed.links.values().filter(foreign).cloned().collect();
        let facts = HostFacts { underlay: underlay.clone(), foreign_devices };
        self.io.facts.send_if_modified(|known| {
            let news = known.as_ref() != Some(&facts);
            if news {
                match &facts.underlay {
                    Ok(u) if known.as_ref().and_then(|k| k.underlay.as_ref().ok()) != Some(u) => {
                        let endpoints: Vec<String> =
                            u.endpoints.iter().map(|e| e.local.to_string()).collect();
                        tracing::info!(
                            interface = u.interface,
                            addresses = endpoints.join(", "),
                            mtu = u.mtu,
                            "underlay"
                        );
                    }
                    Err(reason) if known.as_ref().and_then(|k| k.underlay.as_ref().err()) != Some(reason) => {
                        tracing::warn!("no underlay: {reason}");
                    }
                    _ => {}
                }
                *known = Some(facts);
            }
            news
        });
        underlay
    }

    fn update_peers(&mut self, config: &NetworkConfig, own: &OwnLease, underlay: Option<&Underlay>) {
        let view = self.io.views.borrow_and_update().clone();
        let now = clock::now();
        let outside = |a: &IpAddr| !config.contains(*a);
        let mut own_addresses: BTreeSet<IpAddr> =
            self.observed.addresses.values().flatten().map(|a| a.address).filter(outside).collect();
        own_addresses.extend(underlay.iter().flat_map(|u| u.endpoints.iter().map(|e| e.public)));
        let rules = Rules {
            config: config.clone(),
            own: own.key,
            host_id: own.host_id.clone(),
            own_macs: own.macs.values().copied().collect(),
            own_addresses,
            on_link: underlay.map(|u| u.on_link.clone()).unwrap_or_default(),
            hold: self.io.settings.hold,
        };
        if self.rules.as_deref() != Some(&rules) {
            self.rules = Some(Arc::new(rules));
        }
        if !self.seeded && own.key.is_some() {
            // What is in the kernel now is fresher than what was remembered.
            self.seeded = true;
            let remembered = self
                .io
                .state
                .peers()
                .into_iter()
                .filter(|p| !own.key.is_some_and(|k| k.overlaps(&LeaseKey::single(p.subnet))));
            self.book = PeerBook::with_known(remembered.chain(found_in_kernel(&self.observed, config)));
        }
        let Some(rules) = self.rules.clone().filter(|_| view.synced && self.seeded) else { return };
        let held_before = self.book.held().count();
        for (key, reason) in self.book.update(view.table, rules, now) {
            tracing::warn!(key, "refused a lease: {reason}");
        }
        self.book.tick(now);
        let held = self.book.held().count();
        if held > held_before {
            tracing::error!(
                peers = held,
                "most leases vanished at once; holding these peers for {} s in case it is a mishap",
                self.io.settings.hold / 1000
            );
        } else if held < held_before {
            tracing::info!(let_go = held_before - held, still_held = held, "held peers went or came back");
        }
    }

    fn adopted(&self, config: &NetworkConfig) -> BTreeMap<Family, String> {
        let Backend::Vxlan(vxlan) = &config.backend else { return BTreeMap::new() };
        let device = |family| {
            let link = self.observed.vxlan(vxlan.vni, vxlan.port, family)?;
            Some((family, link.name.clone()))
        };
        Family::ALL.into_iter().filter_map(device).collect()
    }

    /// Why a device cannot be adopted: it is that of another Loden network, whose daemon runs here.
    fn of_another_network(&self, device: &str) -> Option<Conflict> {
        let network = device.split('.').next().map(|n| n.trim_end_matches('6'))?;
        if network == self.io.settings.options.network || !lock::runs(&Path::new("/run").join(network)) {
            return None;
        }
        Some(Conflict(format!(
            "{device} has our VNI and port and belongs to the network {network}, whose daemon runs on this host; give this network a VNI of its own (loden config set)"
        )))
    }

    /// Interfaces other than the plugin's bridge that hold our gateway address: docker0, cni0.
    fn gateway_holders(&self, key: &LeaseKey) -> BTreeSet<String> {
        let gateways: Vec<IpAddr> = key.subnets().map(|s| s.gateway()).collect();
        let holds = |index: &u32| {
            self.observed
                .addresses
                .get(index)
                .is_some_and(|all| all.iter().any(|a| gateways.contains(&a.address)))
        };
        self.observed.links.values().filter(|l| holds(&l.index)).map(|l| l.name.clone()).collect()
    }

    /// Carries operations out; returns those that failed with the reason.
    async fn apply(
        &mut self,
        operations: &[Operation],
        repairing: bool,
    ) -> anyhow::Result<Vec<(Operation, String)>> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        let mut failed = Vec::new();
        for turn in operations.chunks(TURN) {
            let verdicts = self.io.kernel.apply(turn).await?;
            for (operation, verdict) in turn.iter().zip(verdicts) {
                match verdict {
                    Ok(()) => {
                        diff::applied(&mut self.observed, operation);
                        if repairing {
                            self.repaired = true;
                            tracing::warn!("repaired: {operation}");
                            *self.repairs.entry(operation.object().to_owned()).or_default() += 1;
                        } else {
                            tracing::debug!("{operation}");
                        }
                    }
                    Err(error) => {
                        let reason = error.to_string();
                        if self.failure.as_ref() != Some(&reason) {
                            tracing::error!("{reason}");
                        }
                        failed.push((operation.clone(), reason));
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        Ok(failed)
    }

    /// Conflicts of a whole look replace those known; those of a few peers come beside them.
    fn set_conflicts(&mut self, mut conflicts: Vec<Conflict>, whole: bool) {
        if !whole {
            conflicts.extend(self.conflicts.iter().cloned());
        }
        conflicts.sort();
        conflicts.dedup();
        for conflict in conflicts.iter().filter(|c| !self.conflicts.contains(c)) {
            tracing::warn!("{}", conflict.0);
        }
        self.conflicts = conflicts;
    }
}

/// The peer that an operation serves.
fn subnet_of(operation: &Operation, desired: &Desired) -> Option<Subnet> {
    let by_gateway = |address: &IpAddr| desired.peers.keys().find(|s| s.address() == *address).copied();
    match operation {
        Operation::SetRoute { route, .. } => Some(route.subnet),
        Operation::SetNeighbour { address, .. } => by_gateway(address),
        Operation::AddNexthop(_, hop) => hop.gateway.as_ref().and_then(by_gateway),
        Operation::SetFdb { endpoint, .. } => {
            desired.peers.values().find(|p| p.public_address == *endpoint).map(|p| p.subnet)
        }
        _ => None,
    }
}
