//! Docker's containers, from Docker itself. Its events only say "look again": what is published is always
//! the whole list, as it stands. Docker that is not there, or not yet, is no trouble.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{FutureExt, StreamExt, stream};
use loden_core::backoff::Backoff;
use loden_core::names::docker::{Attachment, Container};
use loden_proto::config::NetworkConfig;
use loden_proto::name_record::{Protocol, PublishedPort};
use rustix::fs::Access;
use rustix::io::Errno;
use tokio::sync::watch;
use tokio::time::Instant;

use super::docker_api::{ApiError, Binding, Docker, Event, Inspected, Summary};
use super::local::milliseconds;
use crate::clock;

/// What Docker has told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Its running containers; `None` while it may only be late with telling.
    pub containers: Option<Vec<Container>>,
    /// Why its containers have no names, and what to do.
    pub problem: Option<String>,
}

/// The task.
pub struct Follower {
    /// Docker's socket, whether or not it is there.
    pub socket: PathBuf,
    /// The network config: without names nothing is asked.
    pub configs: watch::Receiver<Option<Arc<NetworkConfig>>>,
    /// Where it tells.
    pub seen: watch::Sender<Seen>,
}

/// Changes within this time are answered together: a start makes several events.
const COALESCE: Duration = Duration::from_millis(100);
/// In case an event was lost.
const FULL_LOOK: Duration = Duration::from_secs(60);
/// When a container could not be looked at, for being started or stopped just then.
const SECOND_LOOK: Duration = Duration::from_secs(2);
/// How many containers are asked for at once.
const AT_ONCE: usize = 8;
/// Between tries to find Docker, in milliseconds.
const TRIES: (u64, u64) = (500, 5000);
/// A dockerd that has hung up may be about to end. Whoever asks while it does has systemd start it again
/// (docker.socket); after this long systemd would have killed it.
const PARTING: Duration = Duration::from_secs(90);
/// How long Docker may be away until its containers are taken to be so, too. An update of it leaves them
/// running (live-restore).
const AWAY: Duration = Duration::from_secs(120);

/// Events after which names may be others. Health checks, which come all the time, are not among them.
const EVENTS: [&str; 6] = ["start", "die", "destroy", "rename", "connect", "disconnect"];

/// A Docker that was followed, and is not any more.
struct Left {
    processes: BTreeSet<u32>,
    at: Instant,
}

impl Follower {
    /// Runs for ever.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut tries = Backoff::new(TRIES.0, TRIES.1);
        let mut left: Option<Left> = None;
        let mut heard = Instant::now();
        loop {
            // Wakes nobody while there is no overlay, or one without names.
            self.configs.wait_for(|c| c.as_ref().is_some_and(|c| c.dns.is_some())).await?;
            let problem = match rustix::fs::access(&self.socket, Access::WRITE_OK) {
                Ok(()) => {
                    let processes = dockerds(Path::new("/proc"));
                    if may_ask(&processes, left.as_ref(), Instant::now()) {
                        let (followed, reason) = self.follow().await;
                        tracing::debug!(followed, reason, "Docker is not followed any more");
                        if followed {
                            heard = Instant::now();
                            left = Some(Left { processes: dockerds(Path::new("/proc")), at: heard });
                            tries = Backoff::new(TRIES.0, TRIES.1);
                        }
                    }
                    None
                }
                Err(Errno::ACCESS | Errno::PERM) => Some(forbidden(&self.socket)),
                Err(_) => None,
            };
            self.tell(|seen| {
                seen.problem = problem;
                if heard.elapsed() >= AWAY {
                    seen.containers = Some(Vec::new());
                }
            });
            tokio::time::sleep(Duration::from_millis(tries.wait(clock::chance()))).await;
        }
    }

    /// Follows Docker until it hangs up. Whether it answered at all, and why it is over.
    async fn follow(&self) -> (bool, String) {
        let mut known = HashMap::new();
        let mut followed = false;
        let ended = self.follow_on(&mut known, &mut followed).await;
        (followed, ended.err().map_or_else(|| "it has hung up".into(), |error| error.to_string()))
    }

    async fn follow_on(
        &self,
        known: &mut HashMap<String, Known>,
        followed: &mut bool,
    ) -> Result<(), ApiError> {
        // From before the first look: what happens meanwhile is told again.
        let since = milliseconds(SystemTime::now()) / 1000;
        let docker = Docker::at(&self.socket);
        let mut events = docker.events(&EVENTS, since).await?;
        let mut touched = BTreeSet::new();
        loop {
            let failure = look(&docker, known, &touched).await?;
            *followed = true;
            touched.clear();
            let wait = if failure.is_none() { FULL_LOOK } else { SECOND_LOOK };
            let containers: BTreeMap<_, _> =
                known.values().filter_map(|k| k.container.as_ref()).map(|c| (&c.id, c)).collect();
            self.tell(|seen| {
                seen.containers = Some(containers.into_values().cloned().collect());
                seen.problem = failure;
            });
            match tokio::time::timeout(wait, events.next()).await {
                Err(_) => continue,
                Ok(event) => match event? {
                    Some(event) => touched.extend(container_of(event)),
                    None => return Ok(()),
                },
            }
            tokio::time::sleep(COALESCE).await;
            while let Some(event) = events.next().now_or_never() {
                let Some(event) = event? else { return Ok(()) };
                touched.extend(container_of(event));
            }
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Seen)) {
        self.seen.send_if_modified(|seen| {
            let before = seen.clone();
            change(seen);
            if let Some(problem) = seen.problem.as_ref().filter(|p| before.problem.as_ref() != Some(*p)) {
                tracing::warn!("{problem}");
            }
            *seen != before
        });
    }
}

/// Whether to ask these dockerd. On many hosts systemd holds the socket while no dockerd runs, and would
/// start one for us: one that an operator has just stopped, or never wanted.
fn may_ask(running: &BTreeSet<u32>, left: Option<&Left>, now: Instant) -> bool {
    let parting = |pid: &u32| left.is_some_and(|l| l.processes.contains(pid) && now < l.at + PARTING);
    running.iter().any(|pid| !parting(pid))
}

/// Every dockerd that can be seen.
fn dockerds(proc: &Path) -> BTreeSet<u32> {
    let processes = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let dockerd = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read(entry.path().join("comm")).ok()?;
        (name == b"dockerd\n").then_some(pid)
    };
    processes.filter_map(dockerd).collect()
}

fn forbidden(socket: &Path) -> String {
    format!(
        "Docker's containers get no names: {} may not be used by the daemon's user; put its group into loden.service (docs/docker.md: /usr/share/loden/loden.service.d/docker.conf), or name another socket (--docker-socket)",
        socket.display()
    )
}

/// A container as it was looked at.
struct Known {
    /// What the list said of it then.
    summary: Summary,
    /// `None` when it was no running one.
    container: Option<Container>,
}

/// Brings what is known up to date: asks for the containers that are new, that the list describes otherwise
/// than before, or that events have `touched`. What of it failed, if anything.
async fn look(
    docker: &Docker,
    known: &mut HashMap<String, Known>,
    touched: &BTreeSet<String>,
) -> Result<Option<String>, ApiError> {
    let listed = docker.containers().await?;
    let listed: HashMap<String, Summary> = listed.into_iter().map(|line| (line.id, line.summary)).collect();
    known.retain(|id, _| listed.contains_key(id));
    let stale = listed.into_iter().filter(|(id, summary)| {
        touched.contains(id) || known.get(id).is_none_or(|known| known.summary != *summary)
    });
    let asked = stale.map(|(id, summary)| async {
        let answer = docker.inspect(&id).await;
        (id, summary, answer)
    });
    let answers: Vec<_> = stream::iter(asked).buffer_unordered(AT_ONCE).collect().await;
    let mut failure = None;
    for (id, summary, answer) in answers {
        match answer {
            Ok(Some(told)) => _ = known.insert(id, Known { summary, container: container(told) }),
            Ok(None) => _ = known.remove(&id),
            Err(error) => {
                // It stays what it was, and is asked for again.
                if let Some(known) = known.get_mut(&id) {
                    known.summary = Default::default();
                }
                failure = Some(format!(
                    "Docker's container {} cannot be looked at for its names: {error}; see docker inspect {0}",
                    id.get(..12).unwrap_or(&id)
                ));
            }
        }
    }
    Ok(failure)
}

/// The container that an event is about.
fn container_of(event: Event) -> Option<String> {
    let actor = event.actor?;
    let of_network = actor.attributes.and_then(|mut attributes| attributes.remove("container"));
    of_network.or(actor.id)
}

/// What `docker inspect` tells; `None` for a container that does not run.
fn container(told: Inspected) -> Option<Container> {
    let state = told.state?;
    if state.running != Some(true) {
        return None;
    }
    let config = told.config.unwrap_or_default();
    let settings = told.network_settings.unwrap_or_default();
    let attachments = settings.networks.unwrap_or_default().into_values().map(|endpoint| Attachment {
        addresses: [endpoint.ip_address, endpoint.global_ipv6_address]
            .into_iter()
            .filter_map(|address| address?.parse().ok())
            .collect(),
        aliases: endpoint.aliases.unwrap_or_default(),
    });
    let started = state.started_at.and_then(|at| humantime::parse_rfc3339(&at).ok());
    Some(Container {
        id: told.id,
        name: told.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        hostname: config.hostname.unwrap_or_default(),
        domainname: config.domainname.unwrap_or_default(),
        attachments: attachments.collect(),
        ports: published(settings.ports.unwrap_or_default()),
        started: started.map_or(0, milliseconds),
    })
}

/// Ports that the host forwards from where others can reach it.
fn published(ports: BTreeMap<String, Option<Vec<Binding>>>) -> Vec<PublishedPort> {
    let mut all = BTreeSet::new();
    for (port, bindings) in ports {
        let Some((port, protocol)) = port.split_once('/') else { continue };
        let protocol =
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.name() == protocol);
        let (Ok(port), Some(protocol)) = (port.parse(), protocol) else { continue };
        for binding in bindings.into_iter().flatten() {
            let at = binding.host_ip.unwrap_or_default();
            // No address means every one.
            let reachable = at.is_empty() || at.parse().is_ok_and(|ip: IpAddr| !ip.is_loopback());
            let host_port = binding.host_port.and_then(|p| p.parse().ok()).filter(|p| *p != 0);
            if let Some(host_port) = host_port.filter(|_| reachable) {
                all.insert(PublishedPort { protocol, port, host_port });
            }
        }
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inspected(running: bool) -> Inspected {
        let told = json!({
            "Id": "0123456789ab0123",
            "Name": "/hdfs-dn1-1",
            "State": {"Status": "running", "Running": running, "StartedAt": "2026-11-21T20:40:18.722855931Z"},
            "Config": {"Hostname": "dn1", "Domainname": "hdfs"},
            "HostConfig": {"NetworkMode": "hdfs"},
            "NetworkSettings": {
                "Ports": {
                    "9866/tcp": [
                        {"HostIp": "0.0.0.0", "HostPort": "19866"}, {"HostIp": "::", "HostPort": "19866"},
                    ],
                    "9867/tcp": [{"HostIp": "127.0.0.1", "HostPort": "19867"}],
                    "9868/tcp": [{"HostIp": "", "HostPort": "19868"}, {"HostIp": "::1", "HostPort": "2"}],
                    "53/udp": [{"HostIp": "192.0.2.1", "HostPort": "5300"}],
                    "9000/tcp": null,
                    "9001/quic": [{"HostIp": "0.0.0.0", "HostPort": "1"}],
                    "9002/tcp": [{"HostIp": "0.0.0.0", "HostPort": ""}],
                },
                "Networks": {
                    "hdfs": {
                        "Aliases": ["dn1", "0123456789ab"], "IPAddress": "10.5.7.9",
                        "GlobalIPv6Address": "fd00:0:0:7::9",
                    },
                    "bridge": {"Aliases": null, "IPAddress": "", "GlobalIPv6Address": ""},
                },
            },
        });
        serde_json::from_value(told).expect("as Docker says it")
    }

    #[test]
    fn what_docker_tells_of_a_running_container() {
        assert_eq!(container(inspected(false)), None);
        let found = container(inspected(true)).expect("it runs");
        assert_eq!((found.id.as_str(), found.name.as_str()), ("0123456789ab0123", "hdfs-dn1-1"));
        assert_eq!((found.hostname.as_str(), found.domainname.as_str()), ("dn1", "hdfs"));
        assert_eq!(found.started, 1_795_293_618_722);
        assert_eq!(found.attachments[0], Attachment::default());
        let texts: Vec<String> = found.attachments[1].addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(texts, ["10.5.7.9", "fd00:0:0:7::9"]);
        assert_eq!(found.attachments[1].aliases, ["dn1", "0123456789ab"]);
    }

    #[test]
    fn ports_count_where_others_reach_them() {
        let ports = container(inspected(true)).expect("it runs").ports;
        let ports: Vec<_> = ports.iter().map(|p| (p.protocol.name(), p.port, p.host_port)).collect();
        assert_eq!(ports, [("tcp", 9866, 19866), ("tcp", 9868, 19868), ("udp", 53, 5300)]);
    }

    #[tokio::test]
    async fn a_dockerd_that_ends_or_was_never_there_is_left_alone() {
        let now = Instant::now();
        let left = |pid| Left { processes: [pid].into(), at: now };
        assert!(!may_ask(&[].into(), None, now), "systemd would start one");
        assert!(may_ask(&[7].into(), None, now));
        assert!(!may_ask(&[7].into(), Some(&left(7)), now), "it may be about to end");
        assert!(may_ask(&[7].into(), Some(&left(7)), now + PARTING), "it was not");
        assert!(may_ask(&[8].into(), Some(&left(7)), now), "another one has come");
        assert!(!may_ask(&[].into(), Some(&left(7)), now + PARTING));
    }

    #[test]
    fn an_event_names_its_container() {
        let event = |text: serde_json::Value| serde_json::from_value(text).expect("as Docker says it");
        let start = json!({"Type": "container", "Action": "start", "Actor": {"ID": "c1", "Attributes": {"name": "dn1"}}});
        let connect = json!({"Type": "network", "Action": "connect", "Actor": {"ID": "n1", "Attributes": {"container": "c2"}}});
        assert_eq!(container_of(event(start)).as_deref(), Some("c1"));
        assert_eq!(container_of(event(connect)).as_deref(), Some("c2"));
    }
}
