//! The loop, and the only writer to the kernel.
//!
//! It wakes for any reason, computes what should be from what is known now, compares it with what
//! is, and carries out the difference. What is is remembered ([`Observed`]), kept current by our own
//! operations, and read anew when a notice contradicts it, when an operation failed, or every
//! `full_pass`: [`Agenda`] says when.

mod belief;
mod refusals;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use loden_core::Millis;
use loden_core::agenda::{Agenda, Look, Outcome};
use loden_core::diff::{self, Conflict, Operation, Scope};
use loden_core::observed::{Link, Observed};
use loden_core::options::Options;
use loden_core::peers::{Peer, PeerBook, Rules, found_in_kernel};
use loden_core::plan::{Base, Desired, Inputs, plan};
use loden_core::tracked::Tracked;
use loden_core::underlay::{self, NoUnderlay, Underlay, UnderlayOptions};
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
use crate::memory;
use crate::state::StateDir;
use crate::store::View;
use refusals::Refusals;
pub use report::Report;

/// What other tasks need to know of the host.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFacts {
    /// The underlay, or why there is none.
    pub underlay: Result<Underlay, NoUnderlay>,
    /// Networks of bridges of this host, apart from the underlay's and the overlay's.
    pub local_networks: Vec<Subnet>,
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
    /// Time between full passes, if the operator has set it (`--resync`).
    pub full_pass: Option<Duration>,
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
    /// How many peers it held last.
    held: usize,
    /// Whether the book knows what lasting state and kernel tell of peers.
    seeded: bool,
    /// Whether something was left in the kernel because etcd had not told who the peers are.
    spared: bool,
    rules: Option<Arc<Rules>>,
    /// What was last brought about.
    desired: Option<Desired>,
    /// The base as last planned, and what from, so that it is not planned anew without a reason.
    planned: Option<(Inputs, Arc<Base>)>,
    /// That base, if it is to be brought about; `None` while too little is known for one.
    base: Option<Arc<Base>>,
    /// Whether base, rules and published facts may be of a former host, config or lease of ours. Set by whoever
    /// changes links, addresses or default routes in `observed`, and by news of the other two.
    stale: bool,
    /// Peers as last brought into the kernel.
    programmed: Tracked<Subnet, Peer>,
    conflicts: Vec<Conflict>,
    refusals: Refusals,
    repairs: BTreeMap<String, u64>,
    /// Interfaces that forwarded when the last pass ended. To let a new one forward is no repair.
    forwarded: BTreeSet<(Family, String)>,
    agenda: Agenda,
    /// Whether what the host is turned out to be another in the middle of a pass.
    look_again: bool,
    /// Since when the peers are others than in lasting state, and when they were written there.
    unsaved_since: Option<Millis>,
    saved_peers_at: Option<Millis>,
    /// Whether the pass needed memory that lies between what is kept.
    untidy: bool,
}

/// What a pass has to look at, and what it met with.
struct Pass {
    look: Look,
    /// Whether it takes back what somebody else changed. What changes because the inputs did is no repair.
    repairing: bool,
    repaired: bool,
    conflicts: Vec<Conflict>,
    failed: Vec<(Operation, String)>,
}

/// How often one pass brings filters, devices, addresses and forwarding.
const ROUNDS: u32 = 3;
/// Operations carried out between two turns of the other tasks.
const TURN: usize = 1024;
/// The notices of our own deletions of FDB entries are left out where they are more than this and more than a
/// quarter of the entries: to look at those that stay costs less.
const UNHEARD_FROM: usize = 256;
/// Notices within this time are answered together.
const COALESCE: Duration = Duration::from_millis(5);
/// At most so many readings of notices, of up to some hundreds each, before a look, should they never end.
const STALE: usize = 40;
/// Peers are remembered at most this often, in milliseconds: seldom where there are many, since a write is of
/// all of them.
const SAVE_PEERS: Millis = 10_000;
const SAVE_PER_PEER: Millis = 6;
/// Changes within this time, in milliseconds, are remembered together.
const SAVE_TOGETHER: Millis = 5;

impl<K: DataPlane, N: Notices> Reconciler<K, N> {
    /// Runs for ever; ends only when the kernel cannot be spoken to at all.
    pub async fn run(self) -> anyhow::Result<()> {
        let now = clock::now();
        let mut state = Loop {
            observed: Observed::default(),
            book: PeerBook::default(),
            held: 0,
            spared: false,
            seeded: false,
            rules: None,
            desired: None,
            planned: None,
            base: None,
            stale: true,
            programmed: Tracked::default(),
            conflicts: Vec::new(),
            refusals: Refusals::default(),
            repairs: BTreeMap::new(),
            forwarded: BTreeSet::new(),
            agenda: Agenda::new(now, self.settings.full_pass.map(|period| period.as_millis() as Millis)),
            look_again: false,
            unsaved_since: None,
            saved_peers_at: None,
            untidy: false,
            io: self,
        };
        loop {
            state.pass().await?;
            state.tidy();
            state.wait().await?;
        }
    }
}

impl<K: DataPlane, N: Notices> Loop<K, N> {
    /// Waits for a reason to look again. The echo of our own writes is none.
    async fn wait(&mut self) -> anyhow::Result<()> {
        let mut reason = std::mem::take(&mut self.look_again);
        while !reason {
            let held = self.book.next_deadline();
            let deadline = held.into_iter().fold(self.agenda.deadline(), Millis::min);
            let saving = self.save_peers_at().into_iter().fold(deadline, Millis::min);
            tokio::select! {
                notices = self.io.notices.next() => reason = self.hear(notices?).await?,
                Some(question) = self.io.questions.recv() => {
                    // Who asked may be gone.
                    let _ = question.send(self.report());
                }
                _ = self.io.views.changed() => reason = true,
                _ = self.io.configs.changed() => (reason, self.stale) = (true, true),
                _ = self.io.own.changed() => (reason, self.stale) = (true, true),
                () = until(saving) => {}
            }
            self.save_peers();
            reason |= deadline <= clock::now();
        }
        Ok(())
    }

    /// Gives back what a pass needed for a look at the kernel, or for many operations.
    fn tidy(&mut self) {
        if std::mem::take(&mut self.untidy) {
            memory::give_back();
        }
    }

    /// Takes notices in, and tells whether they are a reason to look again by themselves.
    async fn hear(&mut self, notices: Vec<Notice>) -> anyhow::Result<bool> {
        let mut reason = false;
        for notice in notices {
            reason |= self.absorb(notice);
        }
        // More of the same burst are likely under way.
        let end = Instant::now() + COALESCE;
        while (reason || self.agenda.is_contradicted())
            && let Ok(more) = tokio::time::timeout_at(end, self.io.notices.next()).await
        {
            for notice in more? {
                reason |= self.absorb(notice);
            }
        }
        Ok(reason || self.agenda.deadline() <= clock::now())
    }

    /// When the peers are to be written to lasting state, if they are others.
    fn save_peers_at(&self) -> Option<Millis> {
        let pause = SAVE_PEERS.max(SAVE_PER_PEER * self.programmed.len() as Millis);
        let earliest = self.saved_peers_at.map_or(0, |at| at.saturating_add(pause));
        self.unsaved_since.map(|since| earliest.max(since + SAVE_TOGETHER))
    }

    /// Writes the peers to lasting state, if that is due.
    fn save_peers(&mut self) {
        let now = clock::now();
        if self.save_peers_at().is_some_and(|at| at <= now) {
            self.unsaved_since = None;
            self.saved_peers_at = Some(now);
            if let Err(error) = self.io.state.save_peers(self.programmed.values()) {
                tracing::warn!(%error, "cannot remember the peers");
            }
            memory::give_back();
        }
    }

    /// Takes a notice in, and tells whether it is a reason to look again although nothing that is
    /// believed is wrong.
    fn absorb(&mut self, notice: Notice) -> bool {
        self.pass_on(&notice);
        let way = self.is_way(&notice);
        self.stale |= way || is_of_host(&notice);
        let networks = self.desired.as_ref().map(|d| d.base.networks.as_slice()).unwrap_or_default();
        let underlay = self.desired.as_ref().map(|d| d.base.underlay);
        let text = tracing::enabled!(tracing::Level::DEBUG).then(|| format!("{notice:?}"));
        let of_bridge = match &notice {
            Notice::Address(index, _) | Notice::AddressGone(index, _) => {
                self.observed.links.get(index).is_some_and(|link| link.bridge)
            }
            _ => false,
        };
        let wrong = belief::absorb(&mut self.observed, notice, networks, underlay);
        if of_bridge {
            self.publish_local_networks();
        }
        if let Some(notice) = text.filter(|_| wrong > Look::Changes) {
            tracing::debug!(notice, "the kernel is not as believed");
        }
        self.agenda.contradict(wrong);
        way
    }

    /// Whether it is of a route of others, which the underlay may be chosen by.
    fn is_way(&self, notice: &Notice) -> bool {
        let chooses = self.io.settings.underlay.can_reach.is_some();
        chooses && matches!(notice, Notice::Route(_) | Notice::RouteGone(_))
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

    /// One pass: what should be, what is, the difference, done. One that does not get through leaves what it
    /// had to look at to the next.
    async fn pass(&mut self) -> anyhow::Result<()> {
        let look = self.agenda.begin(clock::now());
        if self.agenda.must_read() {
            self.observe().await?;
            // In case a notice was lost.
            self.io.rules_changed.notify_one();
        }
        // Not for every lease that comes or goes.
        if look > Look::Changes || self.stale {
            self.look_at_host();
        }
        self.update_peers();
        match self.base.clone() {
            Some(base) => self.bring(Desired { base, peers: self.book.peers() }, look).await,
            None => Ok(()),
        }
    }

    /// What should be, apart from the peers, and what leases are judged by: as far as is known what for.
    fn look_at_host(&mut self) {
        self.stale = false;
        self.base = None;
        let underlay = self.choose_underlay();
        self.publish_facts(&underlay);
        let (config, underlay) = (self.io.configs.borrow_and_update().clone(), underlay.ok());
        let own = self.io.own.borrow_and_update().clone();
        let Some(config) = config else { return };
        self.set_rules(&config, &own, underlay.as_ref());
        let (Some(key), Some(underlay)) = (own.key, underlay) else { return };
        let adopted = self.adopted(&config);
        if let Some(conflict) = adopted.values().find_map(|name| self.of_another_network(name)) {
            self.set_conflicts(vec![conflict], true);
            return;
        }
        self.base = Some(self.plan(Inputs {
            config,
            own: key,
            macs: own.macs,
            underlay,
            adopted,
            bridges: self.gateway_holders(&key),
            docker_shares: self.io.state.docker_shares(),
        }));
    }

    /// The base, planned anew only if what it is planned from is new: leases that come and go are not in it.
    fn plan(&mut self, from: Inputs) -> Arc<Base> {
        match &self.planned {
            Some((former, base)) if *former == from => Arc::clone(base),
            _ => {
                let base = Arc::new(plan(&from, &self.io.settings.options));
                self.planned = Some((from, Arc::clone(&base)));
                base
            }
        }
    }

    /// Brings what is to what should be.
    async fn bring(&mut self, desired: Desired, look: Look) -> anyhow::Result<()> {
        let same_base = self.desired.as_ref().is_some_and(|old| old.base == desired.base);
        let former_shared: Vec<IpAddr> =
            self.desired.iter().flat_map(|old| old.base.shared.clone()).collect();
        self.desired = Some(desired.clone());
        if !same_base {
            self.io.docker_user.send_if_modified(|wanted| {
                let now = Some((desired.base.options.clone(), desired.base.docker_user.clone()));
                let news = *wanted != now;
                *wanted = now;
                news
            });
            // What concerns us may be more than was known when the kernel was last read.
            self.observe_again().await?;
        }
        let mut pass = Pass {
            look: if same_base { look } else { Look::Full },
            repairing: same_base,
            repaired: false,
            conflicts: Vec::new(),
            failed: Vec::new(),
        };
        // Peers that go with a device come back with it, which is no repair of theirs.
        let repairing_peers = same_base && look == Look::Full;
        if pass.look >= Look::Base {
            let left = diff::left_shared_addresses(&former_shared, &desired, &self.observed);
            self.apply(left, &mut pass).await?;
            // Which takes addresses from what is observed, and no notice tells of that.
            self.stale = true;
            self.bring_base(&desired, &mut pass).await?;
        }
        let former = std::mem::take(&mut self.programmed);
        if pass.look < Look::Full || !former.is_empty() {
            // What inputs changed is done first: what is then left to do is a repair. And what former
            // peers had outside the networks of now is told by nothing else.
            pass.repairing = false;
            self.bring_peers(&desired, Scope::Since(&former), &mut pass).await?;
        }
        if pass.look == Look::Full {
            pass.repairing = repairing_peers;
            self.bring_peers(&desired, Scope::All, &mut pass).await?;
        }
        let now = clock::now();
        // Not an equal set made anew: to tell that would cost a look at every peer.
        if !former.ptr_eq(&desired.peers) {
            self.unsaved_since.get_or_insert(now);
        }
        self.programmed = desired.peers.clone();
        if pass.look >= Look::Base {
            self.forwarded.clone_from(&self.observed.forwarding);
        }
        self.io.in_place.send_if_modified(|done| !std::mem::replace(done, true));
        self.set_conflicts(pass.conflicts, pass.look == Look::Full);
        let tried = |subnet: Option<Subnet>| match subnet {
            _ if pass.look == Look::Full => true,
            Some(subnet) => former.get(&subnet) != desired.peers.get(&subnet),
            None => pass.look == Look::Base,
        };
        let refused = !pass.failed.is_empty();
        let outcome = match self.refusals.replace(tried, pass.failed, &desired) {
            true => Outcome::Refused,
            false if refused => Outcome::RefusedAgain,
            false if pass.repaired => Outcome::Repaired,
            false => Outcome::Well,
        };
        self.agenda.done(pass.look, outcome, now, clock::chance());
        Ok(())
    }

    /// Filters, devices, addresses and forwarding. A device must be there before its address can be;
    /// three rounds do for everything, unless somebody undoes it at once.
    async fn bring_base(&mut self, desired: &Desired, pass: &mut Pass) -> anyhow::Result<()> {
        if pass.look < Look::Full && self.observe_rules() {
            // Which peers are admitted is compared with all of them.
            pass.look = Look::Full;
        }
        for round in 0..=ROUNDS {
            let (operations, found) = diff::base(desired, &self.observed);
            pass.conflicts = found;
            if operations.is_empty() || round > 0 && !pass.failed.is_empty() {
                break;
            }
            if round == ROUNDS {
                if operations.iter().any(|o| matches!(o, Operation::ReplaceFilters(..))) {
                    // Somebody changes the table whenever it is written, and the notices of that have been read.
                    self.agenda.contradict(Look::Base);
                    pass.repaired = true;
                }
                break;
            }
            let (filters, rest): (Vec<Operation>, Vec<Operation>) =
                operations.into_iter().partition(|o| matches!(o, Operation::ReplaceFilters(..)));
            self.apply(filters, pass).await?;
            if !pass.failed.is_empty() {
                // Without its filters a device would take VXLAN from anybody.
                break;
            }
            self.apply(rest, pass).await?;
            self.observe_again().await?;
            pass.look = Look::Full;
        }
        Ok(())
    }

    /// Neighbours, FDB entries, nexthops, routes and the peer sets.
    async fn bring_peers(
        &mut self,
        desired: &Desired,
        scope: Scope<'_>,
        pass: &mut Pass,
    ) -> anyhow::Result<()> {
        let (mut operations, found) = diff::peers(desired, &self.observed, scope);
        pass.conflicts.extend(found);
        if !self.io.views.borrow().synced {
            // Until etcd has told who the peers are, none is taken away.
            let all = operations.len();
            operations.retain(|o| !o.removes());
            self.spared |= operations.len() < all;
        }
        self.apply(operations, pass).await
    }

    /// Reads the kernel anew in the middle of a pass.
    async fn observe_again(&mut self) -> anyhow::Result<()> {
        if self.observe().await? {
            // The pass has decided by what the host was, and no notice will tell of the change any more.
            self.look_again = true;
            self.agenda.contradict(Look::Base);
        }
        Ok(())
    }

    /// Reads the kernel anew. Tells whether the host's interfaces, addresses or default routes are others than
    /// was believed.
    async fn observe(&mut self) -> anyhow::Result<bool> {
        // What was told before this look is older than it, and would contradict it.
        for _ in 0..STALE {
            // A turn of the runtime, which learns what has come.
            tokio::task::yield_now().await;
            let notices = tokio::select! {
                biased;
                notices = self.io.notices.next() => notices?,
                () = std::future::ready(()) => break,
            };
            for notice in &notices {
                self.pass_on(notice);
                self.look_again |= self.is_way(notice);
            }
        }
        self.untidy = true;
        self.stale = true;
        let interest = self.interest();
        let began = clock::cpu_time();
        match self.io.kernel.observe(&interest) {
            Ok(observed) => {
                let cost = clock::cpu_time().saturating_sub(began);
                self.agenda.was_read(clock::now(), cost);
                let other = self.observed.links != observed.links
                    || self.observed.addresses != observed.addresses
                    || self.observed.default_routes != observed.default_routes;
                self.observed = observed;
                Ok(other)
            }
            // What is believed stays; the next pass tries again, since the notices are gone.
            Err(error) => {
                tracing::warn!(%error, "cannot read the kernel's state; trying again");
                self.agenda.unreadable(clock::now(), clock::chance());
                Ok(false)
            }
        }
    }

    /// Reads rules and forwarding anew. Tells whether other peers are admitted than was believed.
    fn observe_rules(&mut self) -> bool {
        self.untidy = true;
        let before = self.observed.admitted.clone();
        let interest = self.interest();
        if let Err(error) = self.io.kernel.observe_rules(&interest, &mut self.observed) {
            tracing::warn!(%error, "cannot read the rules; trying again");
            self.agenda.unreadable(clock::now(), clock::chance());
        }
        self.observed.admitted != before
    }

    /// What an observation should tell.
    fn interest(&self) -> Interest {
        let Some(desired) = &self.desired else { return Interest::default() };
        Interest {
            networks: desired.base.networks.iter().map(|(network, _)| *network).collect(),
            forwarding: desired.base.forwarding.clone(),
            filters: true,
            peer_sets: desired.base.filters.peer_sets.clone(),
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
        underlay
    }

    /// Tells the other tasks what the host is.
    fn publish_facts(&self, underlay: &Result<Underlay, NoUnderlay>) {
        let options = &self.io.settings.options;
        let foreign = |l: &&Link| l.vxlan.is_some() && !options.names_device(&l.name);
        let foreign_devices = self.observed.links.values().filter(foreign).cloned().collect();
        let local_networks = self.local_networks(underlay.as_ref().ok());
        let facts = HostFacts { underlay: underlay.clone(), local_networks, foreign_devices };
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
    }

    /// What is behind bridges such as Docker's. Not what the underlay is on, nor a part of the overlay.
    fn local_networks(&self, underlay: Option<&Underlay>) -> Vec<Subnet> {
        let bridges =
            self.observed.links.values().filter(|l| l.bridge && underlay.is_some_and(|u| u.index != l.index));
        let addresses = bridges.flat_map(|l| self.observed.addresses.get(&l.index).into_iter().flatten());
        let networks = addresses.filter_map(|a| Subnet::containing(a.address, a.length).ok());
        let overlay = self.desired.as_ref().map(|d| d.base.networks.as_slice()).unwrap_or_default();
        let mut networks: Vec<Subnet> =
            networks.filter(|n| !overlay.iter().any(|(network, _)| network.contains_subnet(n))).collect();
        networks.sort();
        networks.dedup();
        networks
    }

    /// Tells of a bridge that came or went, which is no reason for a pass.
    fn publish_local_networks(&self) {
        self.io.facts.send_if_modified(|known| {
            let Some(known) = known else { return false };
            let networks = self.local_networks(known.underlay.as_ref().ok());
            std::mem::replace(&mut known.local_networks, networks.clone()) != networks
        });
    }

    /// What leases are judged by from now on; and, once our own is known, who was a peer before.
    fn set_rules(&mut self, config: &Arc<NetworkConfig>, own: &OwnLease, underlay: Option<&Underlay>) {
        let (own_addresses, on_link) = match (underlay, &self.rules) {
            // For as long as the NIC's address is away nobody else's lease is worse than before.
            (None, Some(former)) => (former.own_addresses.clone(), former.on_link.clone()),
            _ => (
                self.own_addresses(config, underlay),
                underlay.map(|u| u.on_link.clone()).unwrap_or_default(),
            ),
        };
        let rules = Rules {
            config: Arc::clone(config),
            own: own.key,
            host_id: own.host_id.as_str().into(),
            own_macs: own.macs.values().copied().collect(),
            own_addresses,
            on_link,
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
    }

    /// Takes in the leases as they stand in etcd.
    fn update_peers(&mut self) {
        let view = self.io.views.borrow_and_update().clone();
        let Some(rules) = self.rules.clone().filter(|_| view.synced && self.seeded) else { return };
        if std::mem::take(&mut self.spared) {
            // What is no peer's, or was, no lease that comes or goes tells of.
            self.agenda.contradict(Look::Full);
        }
        for (key, reason) in self.book.update(view.table, rules, clock::now()) {
            tracing::warn!(key, "refused a lease: {reason}");
        }
        let held = self.book.held().count();
        let held_before = std::mem::replace(&mut self.held, held);
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

    /// Addresses that no peer can have. Those of containers are not among them: they come and go, and each
    /// time every lease would be judged anew.
    fn own_addresses(&self, config: &NetworkConfig, underlay: Option<&Underlay>) -> BTreeSet<IpAddr> {
        let all = self.observed.addresses.values().flatten();
        let outside = all.filter(|a| !a.link_local() && !config.contains(a.address)).map(|a| a.address);
        outside.chain(underlay.iter().flat_map(|u| u.endpoints.iter().map(|e| e.public))).collect()
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

    /// Carries operations out.
    async fn apply(&mut self, operations: Vec<Operation>, pass: &mut Pass) -> anyhow::Result<()> {
        if operations.is_empty() {
            return Ok(());
        }
        let deletions = operations.iter().filter(|o| matches!(o, Operation::DeleteFdb { .. })).count();
        let unheard = deletions > UNHEARD_FROM.max(self.observed.fdb.len() / 4);
        if unheard {
            self.io.kernel.hear_fdb_deletions(false);
        }
        let mut refused = BTreeMap::new();
        for (number, turn) in operations.chunks(TURN).enumerate() {
            let of_turn = self.io.kernel.apply(turn).await?;
            refused.extend(of_turn.into_iter().map(|(place, error)| (number * TURN + place, error)));
            tokio::task::yield_now().await;
        }
        if unheard {
            self.io.kernel.hear_fdb_deletions(true);
        }
        let done = || operations.iter().enumerate().filter(|(place, _)| !refused.contains_key(place));
        diff::all_applied(&mut self.observed, done().map(|(_, operation)| operation));
        if unheard {
            self.check_fdb();
        }
        for (_, operation) in done() {
            if pass.repairing && !self.is_new(operation) {
                pass.repaired = true;
                tracing::warn!("repaired: {operation}");
                *self.repairs.entry(operation.object().to_owned()).or_default() += 1;
            } else {
                tracing::debug!("{operation}");
            }
        }
        let failed = refused.iter().map(|(place, error)| (operations[*place].clone(), error.to_string()));
        pass.failed.extend(failed);
        self.untidy |= operations.len() > TURN;
        // What is removed leaves nodes half full at least, as they are after a while anyway.
        if operations.iter().filter(|o| !o.removes()).count() > TURN {
            self.observed.pack();
        }
        Ok(())
    }

    /// In case somebody deleted an entry while nobody heard of it.
    fn check_fdb(&mut self) {
        match self.io.kernel.fdb(&self.observed.vxlan_devices()) {
            Ok(fdb) if fdb == self.observed.fdb => {}
            _ => self.agenda.contradict(Look::Full),
        }
    }

    /// Whether an operation serves an interface that has just come: the bridge, with the first container.
    fn is_new(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Forward(family, name) => !self.forwarded.contains(&(*family, name.clone())),
            _ => false,
        }
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

/// Whether a notice tells of links, addresses or default routes: base, rules and facts are made from these.
fn is_of_host(notice: &Notice) -> bool {
    use Notice as N;
    matches!(notice, N::Link(_) | N::LinkGone(_) | N::Address(..) | N::AddressGone(..) | N::DefaultRoute)
}

/// Waits until `clock::now()` says so.
async fn until(time: Millis) {
    tokio::time::sleep(Duration::from_millis(time.saturating_sub(clock::now()))).await;
}
