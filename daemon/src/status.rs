//! `status`: composed from what the tasks publish, served on the local socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use loden_core::firewall::{Findings, Surroundings};
use loden_proto::status::{
    ConfigStatus, DeviceStatus, Endpoints, EtcdStatus, LeaseStatus, NameChange, PeerStatus, RejectedStatus,
    Request, Status, UnderlayStatus,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock;
use crate::dns;
use crate::docker_user;
use crate::endpoints;
use crate::flanneld;
use crate::kernel;
use crate::lease::{LeaseState, OwnLease};
use crate::names;
use crate::network_config::ConfigNews;
use crate::reconcile::{HostFacts, Report};
use crate::store::View;

/// What the other tasks publish.
#[derive(Clone)]
pub struct Sources {
    /// Network name.
    pub network: String,
    /// etcd endpoints and prefix.
    pub etcd: (Vec<String>, String),
    /// Folder of the allocation files.
    pub allocations: PathBuf,
    /// How bridge and port filter stand.
    pub endpoints: watch::Receiver<endpoints::Standing>,
    /// What stands in etcd.
    pub views: watch::Receiver<View>,
    /// The config.
    pub news: watch::Receiver<ConfigNews>,
    /// Our lease.
    pub own: watch::Receiver<OwnLease>,
    /// The host.
    pub facts: watch::Receiver<Option<HostFacts>>,
    /// How our rules in Docker's chain stand.
    pub docker_user: watch::Receiver<docker_user::Standing>,
    /// What Docker tells of its containers.
    pub docker: watch::Receiver<names::docker::Seen>,
    /// Names.
    pub names: names::Answers,
    /// What is in the way of exporting and of importing them.
    pub skydns: [watch::Receiver<Option<String>>; 2],
    /// Where they are served.
    pub listening: watch::Receiver<dns::Listening>,
    /// Where the reconciler is asked.
    pub questions: mpsc::Sender<oneshot::Sender<Report>>,
    /// When other people's rules were judged last, and how.
    pub judged: Judged,
}

/// When other people's rules were judged last, and how; locked while that goes on.
pub type Judged = Arc<tokio::sync::Mutex<Option<(Instant, Findings)>>>;

/// More reservations than this look like a restore that lost the leases.
const MANY_RESERVATIONS: usize = 10;
const REQUEST_LIMIT: u64 = 64 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// For other people's rules, of which there can be very many; the rest of the status needs little.
const RULES_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a judgement is given to others who ask.
const RULES_FRESH: Duration = Duration::from_secs(1);

impl Sources {
    /// The endpoint table, with what was dropped at each port.
    pub async fn endpoints(&self) -> anyhow::Result<Endpoints> {
        // What cannot be read is among the status's problems.
        let (mut endpoints, _) = endpoints::survey(&self.allocations)?;
        let rejected = kernel::rejected_ports(&self.network).await;
        for endpoint in &mut endpoints {
            endpoint.rejected_frames = rejected.get(&endpoint.port).copied().unwrap_or_default();
        }
        Ok(Endpoints { source: "daemon".into(), endpoints })
    }

    /// Everything, now.
    pub async fn status(&self) -> Status {
        let (answer, report) = oneshot::channel();
        let report = match self.questions.send(answer).await {
            Ok(()) => report.await.unwrap_or_default(),
            Err(_) => Report::default(),
        };
        let rejected_vxlan = kernel::rejected_sources(&self.network).await;
        let endpoints = self.endpoints.borrow().clone();
        let view = self.views.borrow().clone();
        let news = self.news.borrow().clone();
        let own = self.own.borrow().clone();
        let facts = self.facts.borrow().clone();
        let now = clock::now();
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            network: self.network.clone(),
            source: "daemon".into(),
            pid: Some(std::process::id()),
            repairs: report.repairs.clone(),
            rejected_vxlan,
            endpoints: endpoints::count(&self.allocations),
            ..Status::default()
        };
        let listening = self.listening.borrow().clone();
        status.dns = self.names.summary(&listening.addresses);
        status.config = news.in_force.as_ref().map(|config| ConfigStatus {
            networks: config.pools().map(|p| p.network).collect(),
            backend: config.backend.name().into(),
            pending: news.pending.clone(),
        });
        status.lease = own.key.map(|key| LeaseStatus {
            state: own.state.word().into(),
            subnets: key.subnets().collect(),
            host_id: own.host_id.clone(),
            expires_in_seconds: own.expires.map(|at| at.saturating_sub(now) / 1000),
        });
        if let Some(Ok(underlay)) = facts.as_ref().map(|f| f.underlay.clone()) {
            let differing = underlay.endpoints.iter().filter(|e| e.public != e.local);
            status.underlay = Some(UnderlayStatus {
                interface: underlay.interface.clone(),
                addresses: underlay.endpoints.iter().map(|e| e.local).collect(),
                public_addresses: differing.map(|e| e.public).collect(),
                mtu: underlay.mtu,
            });
        }
        status.devices = report.devices.iter().filter_map(device).collect();
        status.peers = report.peers.values().map(|peer| peer_status(peer, &report)).collect();
        status.rejected = report
            .rejected
            .iter()
            .map(|(key, reason)| RejectedStatus { key: key.clone(), reason: reason.clone() })
            .collect();
        status.etcd = EtcdStatus {
            endpoints: self.etcd.0.clone(),
            prefix: self.etcd.1.clone(),
            connected: view.connected,
            away_seconds: view.away_since.map(|at| now.saturating_sub(at) / 1000),
            error: view.error.clone(),
            revision: view.table.revision,
        };
        status.problems = problems(&view, &news, &own, facts.as_ref(), &report, now);
        if let Some(pid) = flanneld::running(&self.etcd.1) {
            status.problems.push(format!(
                "flanneld (process {pid}) has started on this host below {}: both keep one lease and one device; stop one of the two",
                self.etcd.1
            ));
        }
        let docker_user = self.docker_user.borrow().clone();
        status.problems.extend(docker_user.failure);
        if docker_user.repairs > 0 {
            status.repairs.insert("docker_user".into(), docker_user.repairs);
        }
        status.problems.extend(endpoints.problems);
        status.problems.extend(self.skydns.iter().filter_map(|problem| problem.borrow().clone()));
        status.repairs.extend(endpoints.repairs);
        status.notes = notes(&news, &report, &status);
        for (address, problem) in &listening.problems {
            let text = format!("names are not served on {address}: {problem}");
            // Those outside can ask another host.
            let outside = status.underlay.as_ref().is_some_and(|u| u.addresses.contains(address));
            if outside { status.notes.push(text) } else { status.problems.push(text) }
        }
        // Names alone are missing, and those of containers that may be in no overlay.
        status.notes.extend(self.docker.borrow().problem.clone());
        if let Some(surroundings) = report.surroundings {
            let found = foreign_rules(&surroundings, &self.judged).await;
            status.problems.extend(found.problems);
            status.notes.extend(found.notes);
        }
        status.state = match (&own.key, status.problems.is_empty()) {
            (None, _) => "starting",
            (Some(_), true) => "ready",
            (Some(_), false) => "degraded",
        }
        .into();
        status
    }
}

/// What other people's rules do to the overlay. One look at a time serves all who ask meanwhile.
async fn foreign_rules(surroundings: &Surroundings, known: &Judged) -> Findings {
    let mut known = known.lock().await;
    if let Some((at, found)) = known.as_ref().filter(|(at, _)| at.elapsed() < RULES_FRESH) {
        tracing::trace!(age = ?at.elapsed(), "rules were judged just now");
        return found.clone();
    }
    let found = tokio::time::timeout(RULES_TIMEOUT, kernel::judge(surroundings)).await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => unjudged(&error),
        Err(_) => unjudged(&format!("it takes longer than {} s", RULES_TIMEOUT.as_secs())),
    };
    *known = Some((Instant::now(), found.clone()));
    found
}

fn unjudged(reason: &str) -> Findings {
    let note = format!("the rules of this host could not be judged: {reason}");
    Findings { notes: vec![note], ..Findings::default() }
}

/// What an operator must know, worst first.
fn problems(
    view: &View,
    news: &ConfigNews,
    own: &OwnLease,
    facts: Option<&HostFacts>,
    report: &Report,
    now: loden_core::Millis,
) -> Vec<String> {
    let mut problems = Vec::new();
    match &own.state {
        LeaseState::Lost(holder) => problems.push(format!(
            "our subnet is lost: {holder}; new containers are refused until the old ones are gone, then a new subnet is taken"
        )),
        LeaseState::Contested(reason) => problems.push(format!(
            "our subnet is contested: {reason}; new containers are refused until that is decided"
        )),
        LeaseState::None(reason) => problems.push(format!("no lease yet: {reason}")),
        LeaseState::Unconfirmed => problems.push("the lease is from lasting state; etcd has not confirmed it yet".into()),
        LeaseState::Held => {}
    }
    if let Some(trouble) = &own.trouble {
        problems.push(format!("our lease is not confirmed in etcd: {trouble}"));
    }
    problems.extend(news.pending.clone());
    if let Some(Err(reason)) = facts.map(|f| &f.underlay) {
        problems.push(format!("no underlay: {reason}"));
    }
    if !view.connected {
        let since = view.away_since.map_or(0, |at| now.saturating_sub(at) / 1000);
        let error = view.error.as_deref().map_or(String::new(), |e| format!(" ({e})"));
        problems.push(format!("etcd is away since {since} s{error}; the data plane stays as it is"));
    }
    problems.extend(report.conflicts.iter().map(|c| c.0.clone()));
    problems.extend(report.failure.clone());
    if !report.held.is_empty() {
        let least = report.held.values().min().copied().unwrap_or(0) / 1000;
        problems.push(format!(
            "{} peers are held although their leases vanished together; they are let go in {least} s",
            report.held.len()
        ));
    }
    if report.reservations > MANY_RESERVATIONS {
        problems.push(format!(
            "{} keys have no etcd lease and no backend data: reservations, or a restore that lost the leases? (loden lease list)",
            report.reservations
        ));
    }
    problems
}

fn notes(news: &ConfigNews, report: &Report, status: &Status) -> Vec<String> {
    let mut notes: Vec<String> = news.in_force.iter().flat_map(|c| c.notes.clone()).collect();
    for bridge in report.bridges.iter().filter(|b| **b != format!("{}0", status.network)) {
        notes.push(format!("{bridge} holds our subnet's gateway address"));
    }
    if !status.rejected.is_empty() {
        notes.push(format!("{} lease(s) were refused; see \"rejected\"", status.rejected.len()));
    }
    notes
}

fn device(link: &loden_core::observed::Link) -> Option<DeviceStatus> {
    let vxlan = link.vxlan?;
    Some(DeviceStatus {
        name: link.name.clone(),
        vni: vxlan.vni,
        port: vxlan.port,
        mac: link.mac?,
        mtu: link.mtu,
        up: link.up,
    })
}

fn peer_status(peer: &loden_core::peers::Peer, report: &Report) -> PeerStatus {
    let (state, reason) = if let Some(reason) = report.pending.get(&peer.subnet) {
        ("pending", Some(reason.clone()))
    } else if let Some(left) = report.held.get(&peer.subnet) {
        ("held", Some(format!("its lease vanished with most others; let go in {} s", left / 1000)))
    } else {
        ("programmed", None)
    };
    PeerStatus {
        subnet: peer.subnet,
        public_address: peer.public_address,
        vtep_mac: peer.vtep_mac(),
        host_name: peer.host_name(),
        version: peer.version(),
        state: state.into(),
        reason,
    }
}

/// Binds the socket: the group may ask too, others may not.
pub fn bind(path: &Path, group: Option<&str>) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    // Ours: the lock of the network is held.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| {
        format!("cannot make the socket {}; is the disk full or read-only?", path.display())
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    // Under its unit the daemon runs in this group already, and may not change it.
    let gid =
        group.and_then(group_id).filter(|gid| std::fs::metadata(path).map(|m| m.gid()).ok() != Some(*gid));
    if let Some(gid) = gid
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(gid))
    {
        tracing::warn!(%error, group, "cannot give the socket to its group; only root can ask");
    }
    Ok(listener)
}

/// group(5)
fn group_id(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    let line = text.lines().find(|l| l.split(':').next() == Some(name))?;
    line.split(':').nth(2)?.parse().ok()
}

/// How often it is looked after whether the socket is still in its place.
const SOCKET_CHECK: Duration = Duration::from_secs(5);

/// Answers for ever. One bad request harms only itself, and a socket that somebody deleted is made
/// again.
pub async fn serve(
    mut listener: UnixListener,
    sources: Sources,
    (path, group): (PathBuf, Option<String>),
) -> anyhow::Result<()> {
    let sources = Arc::new(sources);
    let mut look = tokio::time::interval(SOCKET_CHECK);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = look.tick() => {
                if !path.exists()
                    && let Ok(again) = bind(&path, group.as_deref())
                {
                    listener = again;
                }
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                let sources = Arc::clone(&sources);
                tokio::spawn(async move {
                    let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &sources)).await;
                    if let Ok(Err(error)) = answer {
                        tracing::debug!(%error, "a request on the local socket failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the local socket");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Who is in the socket's group may ask; names lead traffic elsewhere.
fn may_change(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
}

async fn answer(stream: UnixStream, sources: &Sources) -> anyhow::Result<()> {
    let caller = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_LIMIT)).read_line(&mut line).await?;
    let text = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Status) => serde_json::to_string(&sources.status().await)?,
        Ok(Request::Endpoints) => serde_json::to_string(&sources.endpoints().await?)?,
        Ok(Request::AwaitNames { endpoint }) => serde_json::to_string(&sources.names.named(&endpoint).await)?,
        Ok(Request::Names) => serde_json::to_string(&sources.names.names())?,
        Ok(Request::ManualNames) => serde_json::to_string(&sources.names.manual())?,
        Ok(Request::AddName(_) | Request::RemoveName { .. }) if !may_change(caller) => {
            let error = format!(
                "user {caller} may ask, but not change names; only root and the daemon's own user may (sudo loden name …)"
            );
            serde_json::to_string(&NameChange { error: Some(error), ..NameChange::default() })?
        }
        Ok(Request::AddName(wanted)) => serde_json::to_string(&sources.names.add(wanted).await)?,
        Ok(Request::RemoveName { name }) => serde_json::to_string(&sources.names.remove(name).await)?,
        Err(error) => serde_json::json!({ "error": format!("not a request: {error}") }).to_string(),
    };
    write.write_all(text.as_bytes()).await?;
    write.write_all(b"\n").await?;
    Ok(())
}
