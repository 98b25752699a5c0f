//! The loop, and the only writer to the kernel.
//!
//! It wakes for any reason, computes what should be from what is known now, compares it with what
//! is, and carries out the difference. What is is remembered ([`Observed`]), kept current by our own
//! operations, and read anew when a notice contradicts it, when an operation failed, or every
//! `full_pass`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use loden_core::diff::{self, Conflict, Operation, Scope};
use loden_core::observed::{Link, Observed};
use loden_core::peers::{Peer, PeerBook, Rules, found_in_kernel};
use loden_core::plan::{Desired, Inputs, Options, plan};
use loden_core::underlay::{self, NoUnderlay, Underlay, UnderlayOptions};
use loden_core::{Millis, backoff::Backoff};
use loden_proto::config::{Backend, NetworkConfig, Vxlan};
use loden_proto::lease::LeaseKey;
use loden_proto::{Family, Subnet};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock;
use crate::kernel::{Interest, Kernel, Notice, Watch};
use crate::lease::OwnLease;
use crate::state::StateDir;
use crate::store::View;

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

/// What the loop knows, for `status`.
#[derive(Debug, Default)]
pub struct Report {
    /// Peers to program, held ones among them.
    pub peers: OrdMap<Subnet, Peer>,
    /// Subnets of held peers with the milliseconds until they are let go.
    pub held: BTreeMap<Subnet, Millis>,
    /// Subnets of peers that are not in the kernel yet, with the reason.
    pub pending: BTreeMap<Subnet, String>,
    /// Refused keys.
    pub rejected: Vec<(String, String)>,
    /// Keys that only reserve.
    pub reservations: usize,
    /// What is in the way.
    pub conflicts: Vec<Conflict>,
    /// Our VXLAN devices as they are.
    pub devices: Vec<Link>,
    /// Repairs by kind of object.
    pub repairs: BTreeMap<String, u64>,
    /// The last failure, if the last pass had one.
    pub failure: Option<String>,
    /// Other interfaces that hold our gateway address.
    pub bridges: BTreeSet<String>,
}

/// The loop and what it hears.
pub struct Reconciler {
    /// What it was told.
    pub settings: Settings,
    /// The kernel.
    pub kernel: Kernel,
    /// Its notices, opened before the first look.
    pub notices: Watch,
    /// What stands in etcd.
    pub views: watch::Receiver<View>,
    /// The config in force.
    pub configs: watch::Receiver<Option<Arc<NetworkConfig>>>,
    /// Our lease.
    pub own: watch::Receiver<OwnLease>,
    /// Where the host's facts are published.
    pub facts: watch::Sender<Option<HostFacts>>,
    /// Whether a first pass has brought the data plane in place.
    pub in_place: watch::Sender<bool>,
    /// Who wants to know.
    pub questions: mpsc::Receiver<oneshot::Sender<Report>>,
    /// Where peers are remembered.
    pub state: StateDir,
}

/// What a pass has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    /// What inputs changed.
    Changes,
    /// Filters, devices, addresses, forwarding too.
    Base,
    /// Read the kernel anew and compare everything.
    Full,
}

struct Loop {
    it: Reconciler,
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
    next_full: Instant,
    /// Waits between passes that repair, so that two managers never fight in a hot loop.
    calm: Backoff,
    save_peers_at: Option<Instant>,
    saved_peers_at: Instant,
    bridges: BTreeSet<String>,
}

/// Notices within this time are answered together.
const COALESCE: Duration = Duration::from_millis(5);
/// Peers are remembered at most this often.
const SAVE_PEERS: Duration = Duration::from_secs(10);

impl Reconciler {
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
            next_full: Instant::now() + self.settings.full_pass,
            calm: Backoff::new(20, 1000),
            save_peers_at: None,
            saved_peers_at: Instant::now() - SAVE_PEERS,
            bridges: BTreeSet::new(),
            it: self,
        };
        state.run().await
    }
}

impl Loop {
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
        let mut deadline = self.next_full;
        if self.need > Need::Changes {
            // Something was repaired or failed: calm down before looking again.
            deadline = deadline.min(Instant::now() + Duration::from_millis(self.calm.wait(clock::chance())));
        }
        deadline = held.map_or(deadline, |wait| deadline.min(Instant::now() + wait + COALESCE));
        deadline = self.save_peers_at.map_or(deadline, |at| deadline.min(at));
        tokio::select! {
            notices = self.it.notices.next() => {
                for notice in notices? {
                    self.absorb(notice);
                }
                // More of the same burst are likely under way.
                let end = Instant::now() + COALESCE;
                while self.need > Need::Changes
                    && let Ok(more) = tokio::time::timeout_at(end, self.it.notices.next()).await
                {
                    for notice in more? {
                        self.absorb(notice);
                    }
                }
            }
            Some(question) = self.it.questions.recv() => {
                // Who asked may be gone.
                let _ = question.send(self.report());
            }
            _ = self.it.views.changed() => {}
            _ = self.it.configs.changed() => {}
            _ = self.it.own.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
        if self.next_full <= Instant::now() {
            self.need = Need::Full;
        }
        if self.save_peers_at.is_some_and(|at| at <= Instant::now()) {
            self.save_peers_at = None;
            self.saved_peers_at = Instant::now();
            if let Err(error) = self.it.state.save_peers(self.programmed.values()) {
                tracing::warn!(%error, "cannot remember the peers");
            }
        }
        Ok(())
    }

    /// Takes a notice into what is believed, or notes that the belief is wrong.
    fn absorb(&mut self, notice: Notice) {
        let observed = &mut self.observed;
        let interest = self.desired.as_ref();
        let is_vxlan = |index: u32, o: &Observed| o.links.get(&index).is_some_and(|l| l.vxlan.is_some());
        let ours = |subnet: &Subnet| {
            interest.is_some_and(|d| d.networks.iter().any(|(n, _)| n.contains_subnet(subnet)))
        };
        let need = match notice {
            Notice::Link(link) => match observed.links.insert(link.index, link.clone()) {
                Some(before) if before == link => Need::Changes,
                // Down and up flushes routes and neighbours; a new device has none.
                _ if link.vxlan.is_some() => Need::Full,
                _ => Need::Base,
            },
            Notice::LinkGone(index) => match observed.links.remove(&index) {
                Some(link) if link.vxlan.is_some() => Need::Full,
                Some(_) => {
                    observed.addresses.remove(&index);
                    Need::Base
                }
                None => Need::Changes,
            },
            Notice::Address(index, address) => {
                let all = observed.addresses.entry(index).or_default();
                let known =
                    all.iter().position(|a| (a.address, a.length) == (address.address, address.length));
                match known {
                    Some(at) if all[at] == address => Need::Changes,
                    Some(at) => {
                        all[at] = address;
                        Need::Base
                    }
                    None => {
                        all.push(address);
                        Need::Base
                    }
                }
            }
            Notice::AddressGone(index, address) => {
                let all = observed.addresses.entry(index).or_default();
                let before = all.len();
                all.retain(|a| (a.address, a.length) != (address.address, address.length));
                if all.len() < before { Need::Base } else { Need::Changes }
            }
            Notice::Route(route) => {
                let known = observed.routes.get(&route.subnet).is_some_and(|all| all.contains(&route));
                if known || !ours(&route.subnet) { Need::Changes } else { Need::Full }
            }
            Notice::RouteGone(route) => {
                let known = observed.routes.get(&route.subnet).is_some_and(|all| all.contains(&route));
                if known { Need::Full } else { Need::Changes }
            }
            Notice::DefaultRoute => Need::Full,
            Notice::Neighbour(device, address, mac) => {
                let known = observed.neighbours.get(&(device, address)) == Some(&mac);
                if known || !is_vxlan(device, observed) { Need::Changes } else { Need::Full }
            }
            Notice::NeighbourGone(device, address) => {
                if observed.neighbours.contains_key(&(device, address)) { Need::Full } else { Need::Changes }
            }
            Notice::Fdb(device, mac, address) => {
                let known = observed.fdb.get(&(device, mac)).is_some_and(|all| all.contains(&address));
                if known || !is_vxlan(device, observed) { Need::Changes } else { Need::Full }
            }
            Notice::FdbGone(device, mac, address) => {
                let known = observed.fdb.get(&(device, mac)).is_some_and(|all| all.contains(&address));
                if known { Need::Full } else { Need::Changes }
            }
            Notice::Nexthop(id, hop) => {
                let relevant = observed.nexthops.get(&id) != Some(&hop) && is_vxlan(hop.device, observed);
                if relevant { Need::Full } else { Need::Changes }
            }
            Notice::NexthopGone(id) => {
                if observed.nexthops.contains_key(&id) {
                    Need::Full
                } else {
                    Need::Changes
                }
            }
            Notice::Rules | Notice::Overrun => Need::Full,
        };
        self.need = self.need.max(need);
    }

    /// One pass: what should be, what is, the difference, done.
    async fn pass(&mut self) -> anyhow::Result<()> {
        if self.need == Need::Full {
            self.observe().await?;
        }
        let underlay = self.choose_underlay();
        let inputs = (self.it.configs.borrow_and_update().clone(), self.it.own.borrow_and_update().clone());
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
        self.bridges = self.gateway_holders(&key);
        let desired = plan(Inputs {
            config: &config,
            own: key,
            macs: &own.macs,
            underlay: &underlay,
            options: &self.it.settings.options,
            adopted: &adopted,
            bridges: &self.bridges,
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
        if first || base_changed {
            // What concerns us was not known when the kernel was last read.
            self.observe().await?;
            self.need = Need::Full;
        }
        let full = self.need == Need::Full;
        let repairing = !first && !base_changed && full;
        let mut failed = Vec::new();
        if self.need >= Need::Base {
            self.refresh_forwarding(&desired);
            // A device must be there before its address can be; three rounds do for everything.
            for round in 0..3 {
                let (operations, conflicts) = diff::base(&desired, &self.observed);
                self.set_conflicts(conflicts, true);
                if operations.is_empty() || round > 0 && !failed.is_empty() {
                    break;
                }
                let repairing = !first && !base_changed;
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
        }
        let scope = if self.need == Need::Full { Scope::All } else { Scope::Since(&self.programmed) };
        let (mut operations, conflicts) = diff::peers(&desired, &self.observed, scope);
        if !self.it.views.borrow().synced {
            // Until etcd has told who the peers are, none is taken away.
            operations.retain(|o| !o.removes());
        }
        self.set_conflicts(conflicts, false);
        let peers_failed = self.apply(&operations, repairing).await?;
        self.pending.clear();
        for (operation, reason) in &peers_failed {
            if let Some(subnet) = subnet_of(operation, &desired) {
                self.pending.insert(subnet, reason.clone());
            }
        }
        failed.extend(peers_failed);
        if self.programmed != desired.peers {
            self.save_peers_at
                .get_or_insert((self.saved_peers_at + SAVE_PEERS).max(Instant::now() + COALESCE));
        }
        self.programmed = desired.peers.clone();
        self.failure = failed.first().map(|(_, reason)| reason.clone());
        self.it.in_place.send_if_modified(|done| !std::mem::replace(done, true));
        if full {
            self.next_full = Instant::now() + self.it.settings.full_pass;
        }
        self.settle();
        if failed.is_empty() {
            self.calm.reset();
        } else {
            self.need = Need::Full;
        }
        Ok(())
    }

    fn settle(&mut self) {
        if self.need == Need::Full {
            self.next_full = Instant::now() + self.it.settings.full_pass;
        }
        self.need = Need::Changes;
    }

    async fn observe(&mut self) -> anyhow::Result<()> {
        let desired = self.desired.as_ref();
        let interest = Interest {
            networks: desired.map(|d| d.networks.iter().map(|(n, _)| *n).collect()).unwrap_or_default(),
            forwarding: desired.map(|d| d.forwarding.clone()).unwrap_or_default(),
            table: desired.map(|d| d.filters.table.clone()).unwrap_or_default(),
            has_peer_sets: desired.is_some_and(|d| d.filters.has_peer_sets),
        };
        match self.it.kernel.observe(&interest).await {
            Ok(observed) => self.observed = observed,
            // What is believed stays; the next pass tries again.
            Err(error) => tracing::warn!(%error, "cannot read the kernel's state"),
        }
        Ok(())
    }

    /// Forwarding has no notices: read it at every base pass, it costs a few reads.
    fn refresh_forwarding(&mut self, desired: &Desired) {
        self.observed.forwarding = Kernel::forwarding(&desired.forwarding);
    }

    fn choose_underlay(&mut self) -> Result<Underlay, NoUnderlay> {
        let families: Vec<Family> = match &*self.it.configs.borrow() {
            Some(config) => config.pools().map(|p| p.network.family()).collect(),
            None => vec![Family::V4],
        };
        let options = self.it.settings.options.clone();
        let own = move |link: &Link| {
            options.names_device(&link.name) || link.name == options.bridge() || link.vxlan.is_some()
        };
        let wanted = self.it.settings.underlay.clone();
        let route_to = wanted.can_reach.and_then(|ip| self.it.kernel.route_to(ip));
        let underlay = underlay::choose(&wanted, &families, &self.observed, &own, route_to);
        let options = &self.it.settings.options;
        let foreign = |l: &&Link| l.vxlan.is_some() && !options.names_device(&l.name);
        let foreign_devices = self.observed.links.values().filter(foreign).cloned().collect();
        let facts = HostFacts { underlay: underlay.clone(), foreign_devices };
        self.it.facts.send_if_modified(|known| {
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
        let view = self.it.views.borrow_and_update().clone();
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
            hold: self.it.settings.hold,
        };
        if self.rules.as_deref() != Some(&rules) {
            self.rules = Some(Arc::new(rules));
        }
        if !self.seeded && own.key.is_some() {
            // What is in the kernel now is fresher than what was remembered.
            self.seeded = true;
            let remembered = self
                .it
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
                self.it.settings.hold / 1000
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
        let table = self.it.settings.options.network.clone();
        let verdicts = self.it.kernel.apply(operations, &table).await?;
        let mut failed = Vec::new();
        for (operation, verdict) in operations.iter().zip(verdicts) {
            match verdict {
                Ok(()) => {
                    diff::applied(&mut self.observed, operation);
                    if repairing {
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
        Ok(failed)
    }

    fn set_conflicts(&mut self, conflicts: Vec<Conflict>, reset: bool) {
        for conflict in &conflicts {
            if !self.conflicts.contains(conflict) {
                tracing::warn!("{}", conflict.0);
            }
        }
        if reset {
            self.conflicts = conflicts;
        } else {
            self.conflicts.extend(conflicts);
            self.conflicts.sort();
            self.conflicts.dedup();
        }
    }

    fn report(&self) -> Report {
        let now = clock::now();
        let devices =
            self.desired.iter().flat_map(|d| loden_core::ownership::devices(d, &self.observed)).cloned();
        let peers = self.book.peers();
        let mut pending = self.pending.clone();
        for subnet in peers.keys().filter(|s| !self.programmed.contains_key(*s)) {
            pending.entry(*subnet).or_insert_with(|| "waiting for the underlay and our own lease".into());
        }
        Report {
            peers,
            held: self.book.held().map(|h| (h.peer.subnet, h.until.saturating_sub(now))).collect(),
            pending,
            rejected: self.book.rejected(),
            reservations: self.book.reservations(),
            conflicts: self.conflicts.clone(),
            devices: devices.collect(),
            repairs: self.repairs.clone(),
            failure: self.failure.clone(),
            bridges: self.bridges.clone(),
        }
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
