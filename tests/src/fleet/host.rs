//! One simulated host: the daemon's own tasks as `loden_daemon::app` wires them, less what needs a
//! real kernel or containers (the socket, `subnet.env`, endpoints, rules in Docker's chain).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use loden_core::options::Options;
use loden_core::underlay::UnderlayOptions;
use loden_daemon::lease::{Keeper, KeeperOptions, LeaseState, OwnLease};
use loden_daemon::network_config;
use loden_daemon::reconcile::{self, Reconciler};
use loden_daemon::state::StateDir;
use loden_daemon::store::{EtcdOptions, Feeds, Sync, View, Writer};
use loden_proto::Family;
use loden_proto::config::NetworkConfig;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Milestones;
use super::judge::Standing;
use super::model::{ModelledKernel, Silence};

/// `--peer-hold` and `--resync` as they are shipped.
const PEER_HOLD: Duration = Duration::from_secs(600);
const FULL_PASS: Duration = Duration::from_secs(30);

/// What every daemon of the fleet is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How to reach etcd.
    pub etcd: EtcdOptions,
    /// `--subnet-lease-ttl` in seconds.
    pub lease_ttl: u64,
    /// `--label`
    pub labels: BTreeMap<String, String>,
}

/// A host: what lasts of it, and its daemon if one runs.
#[derive(Debug)]
pub struct SimulatedHost {
    name: String,
    address: Ipv4Addr,
    state: StateDir,
    folder: PathBuf,
    kernel: ModelledKernel,
    daemon: Option<Daemon>,
}

/// A running daemon's tasks, which end when it is dropped, and what they publish.
#[derive(Debug)]
struct Daemon {
    _tasks: JoinSet<()>,
    published: Published,
    /// Who would ask for a report. Kept so that the reconciler has somebody to listen to.
    _questions: mpsc::Sender<tokio::sync::oneshot::Sender<reconcile::Report>>,
}

#[derive(Debug, Clone)]
struct Published {
    own: watch::Receiver<OwnLease>,
    views: watch::Receiver<View>,
    in_place: watch::Receiver<bool>,
}

impl SimulatedHost {
    /// Host `number` of a fleet, with its underlay address in 172.16.0.0/12.
    pub(super) fn new(number: usize, folder: PathBuf) -> anyhow::Result<Self> {
        let offset = u32::try_from(number)? + 1;
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 0).to_bits() + offset);
        let state = StateDir::open(&folder)?;
        let kernel = ModelledKernel::new(address);
        Ok(Self { name: format!("host-{number}"), address, state, folder, kernel, daemon: None })
    }

    /// Its name, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its kernel.
    pub fn kernel(&self) -> &ModelledKernel {
        &self.kernel
    }

    /// Ends its daemon at once, as kill -9 would.
    pub(super) fn stop(&mut self) {
        self.daemon = None;
    }

    /// Starts its daemon.
    pub(super) fn start(&mut self, settings: &Settings) -> anyhow::Result<()> {
        let host_id = self.state.host_id()?;
        let remembered = NetworkConfig::parse(&self.state.last().config).ok();
        let moved = Arc::new(Notify::new());
        let (sync, Feeds { views, connections, .. }) = Sync::new(settings.etcd.clone(), Arc::clone(&moved));
        let (config_sender, configs) = watch::channel(None);
        let (own_sender, own) = watch::channel(OwnLease::default());
        let (facts_sender, facts) = watch::channel(None);
        let (in_place_sender, in_place) = watch::channel(false);
        let (questions, asked) = mpsc::channel(1);
        let keeper = Keeper {
            options: KeeperOptions {
                ttl: settings.lease_ttl,
                labels: settings.labels.clone(),
                former: Vec::new(),
                allocations: self.folder.join("ipam"),
            },
            state: self.state.clone(),
            writer: Writer::new(&settings.etcd.prefix, connections),
            views: views.clone(),
            configs: configs.clone(),
            facts,
            own: own_sender,
        };
        let reconciler = Reconciler {
            settings: reconcile::Settings {
                options: Options::named("loden"),
                underlay: UnderlayOptions::default(),
                hold: PEER_HOLD.as_millis() as u64,
                full_pass: Some(FULL_PASS),
            },
            kernel: self.kernel.clone(),
            notices: Silence,
            views: views.clone(),
            configs,
            own: own.clone(),
            facts: facts_sender,
            moved,
            docker_user: watch::channel(None).0,
            rules_changed: Arc::default(),
            ports_changed: Arc::default(),
            port_filter_changed: Arc::default(),
            in_place: in_place_sender,
            questions: asked,
            state: self.state.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(sync.run());
        let (news, views_of_config) = (watch::channel(Default::default()).0, views.clone());
        tasks.spawn(network_config::follow(remembered, views_of_config, config_sender, news));
        tasks.spawn(async move { drop(keeper.run(host_id).await) });
        tasks.spawn(async move { drop(reconciler.run().await) });
        let published = Published { own, views, in_place };
        self.daemon = Some(Daemon { _tasks: tasks, published, _questions: questions });
        Ok(())
    }

    /// Waits until its lease is held, etcd is watched, and its kernel has so many peers.
    pub(super) fn converged(
        &self,
        peers: usize,
        begin: Instant,
    ) -> impl Future<Output = Milestones> + Send + use<> {
        let kernel = self.kernel.clone();
        let published = self.daemon.as_ref().map(|d| d.published.clone());
        async move {
            // A host without a daemon never converges.
            let Some(Published { mut own, mut views, mut in_place }) = published else {
                return std::future::pending().await;
            };
            let lease = async {
                let _ = own.wait_for(|own| own.state == LeaseState::Held && own.trouble.is_none()).await;
                begin.elapsed()
            };
            let watching = async {
                let _ = views.wait_for(|view| view.synced && view.connected).await;
                begin.elapsed()
            };
            let programmed = async {
                let _ = in_place.wait_for(|done| *done).await;
                kernel.until(|observed| observed.routes.len() >= peers).await;
                begin.elapsed()
            };
            let (lease, watching, programmed) = tokio::join!(lease, watching, programmed);
            Milestones { lease, watching, converged: lease.max(watching).max(programmed) }
        }
    }

    /// Waits until it has noticed that etcd is away.
    pub(super) fn away(&self) -> impl Future<Output = ()> + Send + use<> {
        let views = self.daemon.as_ref().map(|d| d.published.views.clone());
        async move {
            if let Some(mut views) = views {
                let _ = views.wait_for(|view| !view.connected).await;
            }
        }
    }

    /// Who it is and what it believes to hold.
    pub(super) fn standing(&self) -> Standing {
        let own = self.daemon.as_ref().map(|d| d.published.own.borrow().clone()).unwrap_or_default();
        Standing {
            name: self.name.clone(),
            address: self.address.into(),
            held: own.state == LeaseState::Held,
            lease: own.key,
            mac: own.macs.get(&Family::V4).copied(),
            host_id: own.host_id,
        }
    }
}
