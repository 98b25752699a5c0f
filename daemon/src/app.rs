//! The daemon's wiring, read from top to bottom.
//!
//! ```text
//!              etcd                                     kernel
//!               │                                         ▲ │
//!        ┌──────▼─────┐  View   ┌────────────┐  config    │ │ notices
//!        │ store sync ├──┬─────►│ net config ├───────┐    │ │
//!        └────────────┘  │      └────────────┘       ▼    │ ▼
//!               ▲        │      ┌────────────┐   ┌────────┴──┐
//!        Writer │        ├─────►│   keeper   ├──►│ reconcile │
//!               └────────┼──────┤  (lease)   │◄──┤           │
//!                        │      └────────────┘   └─────┬─────┘
//!                        │            OwnLease   facts │ report
//!                        │      ┌────────────┐         │
//!                        └─────►│   status   │◄────────┤    subnet.env, READY
//!                               └────────────┘         ▼
//!                                               DOCKER-USER
//!
//!  allocation files ──┬─► endpoints ──► port filter, bridge
//!                     └─► names ──► zone ──► DNS (a thread)
//!            Docker ───────►▲ │
//!                      etcd ┘ └► etcd, exporter ► etcd
//! ```
//!
//! Every arrow is a `watch` channel of whole values, the latest wins; `report` alone is asked for.
//! The first task that ends brings the process down: systemd restarts it, and the data plane stays
//! as it is meanwhile.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use loden_core::underlay;
use loden_proto::config::NetworkConfig;
use loden_proto::subnet_env::{DnsEnv, SubnetEnv};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::clock;
use crate::dns::{self, SharedZone};
use crate::docker_user::DockerUser;
use crate::endpoints::{self, Endpoints};
use crate::files::make_folder;
use crate::flanneld;
use crate::kernel::{Kernel, Ports, Watch};
use crate::lease::{Keeper, KeeperOptions, LeaseState, OwnLease};
use crate::lock;
use crate::names::export::Exporter;
use crate::names::import::Importer;
use crate::names::{self, Answers, Manual, Names};
use crate::network_config;
use crate::reconcile::{HostFacts, Reconciler, Settings};
use crate::state::StateDir;
use crate::status::{self, Sources};
use crate::store::{EtcdOptions, Sync, Writer};
use crate::subnet_file;

/// Everything that the command line decides.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach etcd.
    pub etcd: EtcdOptions,
    /// The kernel's side.
    pub settings: Settings,
    /// The lease's side.
    pub lease_ttl: u64,
    /// Labels in the lease.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Run-time state.
    pub run_dir: PathBuf,
    /// Lasting state.
    pub state_dir: PathBuf,
    /// `subnet.env`
    pub subnet_file: PathBuf,
    /// Who is asked for names that are not ours.
    pub dns_upstreams: Vec<IpAddr>,
    /// Below which key names are written once more, for CoreDNS.
    pub dns_export: Option<String>,
    /// Below which key others have written names, in the same layout.
    pub dns_import: Option<String>,
    /// Who may ask on the socket.
    pub socket_group: Option<String>,
    /// Where Docker would be.
    pub docker_socket: PathBuf,
}

/// READY at the latest after this, degraded if need be: who orders after us must not wait for ever.
const READY_AT_LAST: Duration = Duration::from_secs(20);

/// How often the files that others read are compared with what they should hold.
const FILE_CHECK: Duration = Duration::from_secs(2);

/// Runs the daemon until a signal ends it.
pub async fn run(options: Options) -> anyhow::Result<()> {
    options.etcd.check().map_err(anyhow::Error::msg)?;
    underlay::check(&options.settings.underlay)?;
    refuse_beside_flanneld(&options.etcd.prefix)?;
    make_folder(&options.run_dir)?;
    let _lock = lock::take(&options.run_dir, &options.settings.options.network)?;
    let state = StateDir::open(&options.state_dir)?;
    let host_id = state.host_id()?;
    let last = state.last();

    // Notices first, then the first look: nothing falls between.
    let notices = Watch::open(&options.settings.options.network).context(
        "cannot listen to the kernel; the daemon needs CAP_NET_ADMIN (run it as root or by its systemd unit)",
    )?;
    let mut kernel = Kernel::open(&options.run_dir, &options.settings.options.network)?;
    if let Err(error) = notices.ignore(&mut kernel) {
        // Only work is saved by it.
        tracing::debug!(%error, "the echo of our own writes cannot be left out");
    }
    let ports = Ports::open(&options.run_dir, &options.settings.options.network)?;
    let socket = (options.run_dir.join("loden.sock"), options.socket_group.clone());
    let listener = status::bind(&socket.0, socket.1.as_deref())?;

    let moved = Arc::new(Notify::new());
    let (sync, store) = Sync::new(options.etcd.clone(), Arc::clone(&moved));
    let views = store.views.clone();
    let (config_sender, configs) = watch::channel(None);
    let (news_sender, news) = watch::channel(Default::default());
    let (own_sender, own) = watch::channel(Default::default());
    let (facts_sender, facts) = watch::channel(None);
    let (in_place_sender, in_place) = watch::channel(false);
    let (questions, asked) = mpsc::channel(4);
    let (docker_user_sender, docker_user) = watch::channel(None);
    let (standing_sender, standing) = watch::channel(Default::default());
    let rules_changed = Arc::new(Notify::new());
    let (subnet_sender, subnet) = watch::channel(None);
    let (endpoints_sender, endpoints) = watch::channel(Default::default());
    let (ports_changed, port_filter_changed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));

    let zone = SharedZone::default();
    let (dns_wanted_sender, dns_wanted) = watch::channel(Vec::new());
    let (listening_sender, listening) = watch::channel(Default::default());
    let (names_sender, own_names) = watch::channel(Default::default());
    let (docker_sender, docker) = watch::channel(Default::default());
    let (exported_sender, exported) = watch::channel(None);
    let (export_problem_sender, export_problem) = watch::channel(None);
    let writer = Writer::new(&options.etcd.prefix, store.connections.clone());

    let remembered = NetworkConfig::parse(&last.config).ok();
    let keeper = Keeper {
        options: KeeperOptions {
            ttl: options.lease_ttl,
            labels: options.labels.clone(),
            former: subnet_file::former(&options.subnet_file),
            allocations: options.run_dir.join("ipam"),
        },
        state: state.clone(),
        writer: writer.clone(),
        views: views.clone(),
        configs: configs.clone(),
        facts: facts.clone(),
        own: own_sender,
    };
    let reconciler = Reconciler {
        settings: options.settings.clone(),
        kernel,
        notices,
        views: views.clone(),
        configs: configs.clone(),
        own: own.clone(),
        facts: facts_sender,
        moved,
        docker_user: docker_user_sender,
        rules_changed: Arc::clone(&rules_changed),
        ports_changed: Arc::clone(&ports_changed),
        port_filter_changed: Arc::clone(&port_filter_changed),
        in_place: in_place_sender,
        questions: asked,
        state: state.clone(),
    };
    let manual = Manual::open(state.clone());
    let exporter = Exporter {
        on: options.dns_export.is_some(),
        writer: writer.clone(),
        wanted: exported,
        views: views.clone(),
        problem: export_problem_sender,
    };
    let (import_problem_sender, import_problem) = watch::channel(None);
    let (importer, imported) = match options.dns_import.clone() {
        Some(prefix) => {
            let (imported_sender, imported) = watch::channel(Default::default());
            let importer = Importer {
                prefix,
                configs: configs.clone(),
                connections: store.connections.clone(),
                imported: imported_sender,
                problem: import_problem_sender,
            };
            (Some(importer), Some(imported))
        }
        None => (None, None),
    };
    let (complete, names_complete) = watch::channel(false);
    let names = Names {
        manual: manual.watch(),
        folder: options.run_dir.join("ipam"),
        state: state.clone(),
        gives_up_at: clock::now() + names::GIVE_UP,
        complete,
        store,
        writer,
        configs: configs.clone(),
        own: own.clone(),
        facts: facts.clone(),
        hold: options.settings.hold,
        export: options.dns_export.clone(),
        exported: exported_sender,
        imported,
        docker: docker.clone(),
        listen: options.settings.options.dns_listen.clone(),
        zone: zone.clone(),
        wanted: dns_wanted_sender,
        standing: names_sender,
    };
    let docker_names = names::docker::Follower {
        socket: options.docker_socket.clone(),
        configs: configs.clone(),
        seen: docker_sender,
    };
    let upstreams = options.dns_upstreams.clone();
    let server = dns::Server {
        zone: zone.clone(),
        complete: names_complete,
        upstreams,
        wanted: dns_wanted,
        listening: listening_sender,
    };
    server.start()?;
    let sources = Sources {
        network: options.settings.options.network.clone(),
        etcd: (options.etcd.endpoints.clone(), options.etcd.prefix.clone()),
        allocations: options.run_dir.join("ipam"),
        endpoints: endpoints.clone(),
        views: views.clone(),
        news,
        own: own.clone(),
        facts: facts.clone(),
        docker_user: standing,
        docker,
        names: Answers { zone, standing: own_names, manual },
        skydns: [export_problem, import_problem],
        listening: listening.clone(),
        questions,
        judged: Default::default(),
    };
    let docker_user = DockerUser { wanted: docker_user, rules_changed, standing: standing_sender };
    let endpoints_task = Endpoints {
        folder: options.run_dir.join("ipam"),
        ports,
        subnet,
        changed: ports_changed,
        table_changed: port_filter_changed,
        standing: endpoints_sender,
    };

    let mut tasks = JoinSet::new();
    tasks.spawn(async {
        sync.run().await;
        Ok(())
    });
    tasks.spawn(async {
        network_config::follow(remembered, views, config_sender, news_sender).await;
        Ok(())
    });
    tasks.spawn(keeper.run(host_id));
    tasks.spawn(reconciler.run());
    tasks.spawn(docker_user.run());
    tasks.spawn(endpoints_task.run());
    tasks.spawn(names.run());
    tasks.spawn(docker_names.run());
    tasks.spawn(exporter.run());
    if let Some(importer) = importer {
        tasks.spawn(importer.run());
    }
    tasks.spawn(async { status::serve(listener, sources, socket).await });
    let known = Known { state, configs, own, facts, in_place, endpoints, listening };
    tasks.spawn(announce(options, known, subnet_sender));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = tasks.join_next() => match ended {
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(panic)) => bail!("a task of the daemon died: {panic}"),
            _ => bail!("a task of the daemon ended"),
        },
    }
    tracing::info!("stopping; devices, routes, rules and the lease stay as they are");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

/// Both would keep the same lease and the same device.
fn refuse_beside_flanneld(prefix: &str) -> anyhow::Result<()> {
    if let Some(pid) = flanneld::running(prefix) {
        bail!(
            "flanneld (process {pid}) runs on this host below {prefix}; end it first (systemctl disable --now flanneld): running containers keep their network meanwhile, and what it set up is taken over"
        );
    }
    Ok(())
}

/// What is told to the world.
struct Known {
    state: StateDir,
    configs: watch::Receiver<Option<Arc<NetworkConfig>>>,
    own: watch::Receiver<OwnLease>,
    facts: watch::Receiver<Option<HostFacts>>,
    in_place: watch::Receiver<bool>,
    endpoints: watch::Receiver<endpoints::Standing>,
    listening: watch::Receiver<dns::Listening>,
}

/// Tells the world: subnet.env, systemd.
async fn announce(
    options: Options,
    known: Known,
    subnet: watch::Sender<Option<SubnetEnv>>,
) -> anyhow::Result<()> {
    let Known { state, mut configs, mut own, mut facts, mut in_place, mut endpoints, mut listening } = known;
    let started = tokio::time::Instant::now();
    let mut ready = false;
    let mut written = None;
    let mut announced = None;
    let mut look = tokio::time::interval(FILE_CHECK);
    let kernel = &options.settings.options;
    loop {
        let config = configs.borrow_and_update().clone();
        let lease = own.borrow_and_update().clone();
        let underlay = facts.borrow_and_update().as_ref().and_then(|f| f.underlay.clone().ok());
        if let (Some(config), Some(underlay)) = (config, underlay) {
            let dns = config.dns.as_ref().filter(|_| !kernel.dns_listen.is_empty()).map(|dns| {
                let served = &listening.borrow_and_update().addresses;
                let addresses = subnet_file::resolvers(dns, lease.key, served);
                DnsEnv { addresses, zone: dns.zone.clone(), socket: options.run_dir.join("loden.sock") }
            });
            let env = subnet_file::contents(&config, &lease, &underlay, kernel, &state, dns);
            subnet.send_if_modified(|told| std::mem::replace(told, env.clone()) != env);
            let stands = |env: &SubnetEnv| subnet_file::stands(&options.subnet_file, env);
            if let Some(env) = env.filter(|env| written.as_ref() != Some(env) || !stands(env)) {
                match subnet_file::write(&options.subnet_file, &env) {
                    Ok(()) => written = Some(env),
                    Err(error) if ready => tracing::error!(%error, "subnet.env is out of date"),
                    Err(error) => return Err(error).context("without subnet.env no container can start"),
                }
            }
        }
        let text = match (&lease.state, lease.key) {
            (LeaseState::None(reason), _) => format!("no lease yet: {reason}"),
            (state, Some(key)) => format!("subnet {key}, {}", state.word()),
            (state, None) => state.word().to_owned(),
        };
        let mut states = vec![sd_notify::NotifyState::Status(&text)];
        // Who is ordered after us finds the data plane in place, not only the subnet known.
        let complete =
            written.is_some() && *in_place.borrow_and_update() && endpoints.borrow_and_update().looked;
        if !ready && (complete || started.elapsed() >= READY_AT_LAST) {
            ready = true;
            states.push(sd_notify::NotifyState::Ready);
            match written {
                Some(_) => tracing::info!("ready: {text}"),
                None => tracing::warn!("ready, but degraded: {text}"),
            }
        }
        if announced.as_ref() != Some(&text) || states.len() > 1 {
            let _ = sd_notify::notify(&states);
            announced = Some(text);
        }
        tokio::select! {
            _ = configs.changed() => {}
            _ = own.changed() => {}
            _ = facts.changed() => {}
            _ = listening.changed() => {}
            _ = in_place.changed(), if !ready => {}
            _ = endpoints.changed(), if !ready => {}
            // Somebody may have deleted or overwritten the file.
            _ = look.tick() => {}
            () = tokio::time::sleep_until(started + READY_AT_LAST), if !ready => {}
        }
    }
}
