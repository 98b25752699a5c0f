//! A fleet in one process: N daemons' control planes against one real etcd. Called by `loden-sim`
//! (`make sim`) and by the scenario `tests/fleet.rs`.
//!
//! ```text
//!  real etcd (a process)          one host of N (tasks in this process)
//!        ▲   │                ┌──────────────────────────────────────────────┐
//!        │   └──── watch ────►│ store sync ─► net config, keeper, reconciler │ all the daemon's own
//!        └── txn, keep-alive ─┤                                   │          │
//!                             └───────────────────────────────────┼──────────┘
//!                                                  modelled kernel (outlives the daemon)
//! ```
//!
//! [`Fleet`] starts and restarts hosts, [`scenario`] is what is done to them, [`Meter`] what etcd and
//! this process say it cost, [`judge`] what must hold after each scenario, [`report`] table and JSON.
//! All hosts share one thread, so that the CPU time of this process is theirs, and etcd has the other
//! CPUs to itself.

mod host;
pub mod judge;
mod meter;
mod model;
pub mod report;
pub mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use loden_daemon::store::{self, EtcdOptions, View};
use loden_proto::lease::LeaseKey;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

pub use host::{Settings, SimulatedHost};
pub use meter::{Cost, Meter};
pub use model::ModelledKernel;
pub use scenario::Scenario;

use crate::{Etcd, Lab, PREFIX};
use judge::Finding;

/// What a run is told once.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// How many hosts.
    pub hosts: usize,
    /// `--subnet-lease-ttl` of every daemon, in seconds.
    pub lease_ttl: u64,
    /// How long a scenario may take before hosts that have not converged are a finding.
    pub limit: Duration,
    /// How long the steady state is observed.
    pub steady: Duration,
    /// Into how many batches a rolling upgrade divides the hosts.
    pub batches: usize,
    /// Whether to tell on standard error how far it is.
    pub progress: bool,
}

/// The hosts, their etcd, and what the hosts held when it was last looked.
#[derive(Debug)]
pub struct Fleet {
    options: FleetOptions,
    etcd: Etcd,
    settings: Settings,
    hosts: Vec<SimulatedHost>,
    /// Each host's lease at the end of the last scenario.
    held: BTreeMap<String, LeaseKey>,
}

/// When one host reached what a scenario waits for, counted from the scenario's begin.
#[derive(Debug, Clone, Copy, Default)]
pub struct Milestones {
    /// Its lease is held.
    pub lease: Duration,
    /// It watches etcd.
    pub watching: Duration,
    /// Lease, watch, and every peer in its kernel.
    pub converged: Duration,
}

/// What came of a wait for many hosts.
#[derive(Debug, Default)]
struct Waited<T> {
    /// What those brought that were done within the limit.
    done: Vec<T>,
    /// One for each of the others.
    missing: Vec<Finding>,
}

impl<T> Waited<T> {
    fn add(&mut self, other: Self) {
        self.done.extend(other.done);
        self.missing.extend(other.missing);
    }
}

/// A daemon keeps a peer whose lease is gone for a second, also one that it only remembers from before
/// a restart; so what is wrong at the end of a scenario is looked at again for this long.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Descriptors that are needed beside one per host: etcd's files, the lab's.
const OTHER_DESCRIPTORS: u64 = 512;

/// Raises the limit of open files for this process and the children it starts from now on: here and
/// in etcd each host has a connection.
pub fn raise_descriptor_limit(hosts: usize) -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = hosts as u64 + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.map(|maximum| maximum.max(needed));
    let wanted = Rlimit { current: limit.current.map(|current| current.max(needed)), maximum };
    setrlimit(Resource::Nofile, wanted).with_context(|| {
        format!("{hosts} hosts need {needed} open files; run it as root, or raise ulimit -n")
    })
}

/// What a daemon and its modelled kernel keep of each peer. As the next one, measured at the height of
/// a rolling upgrade of 1,000 hosts, which took 2.8 GiB in all.
const MEMORY_PER_PEER: u64 = 2304;
/// What a daemon keeps beside its peers, and etcd for each host.
const MEMORY_PER_HOST: u64 = 800 << 10;

/// Refuses a fleet that the machine has no memory for: the kernel would end it, or somebody else's
/// program, in the middle of a run.
pub fn check_memory(hosts: usize) -> anyhow::Result<()> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    fits_memory(hosts, meter::kib_row(&text, "MemAvailable:"))
}

fn fits_memory(hosts: usize, available: u64) -> anyhow::Result<()> {
    let hosts = hosts as u64;
    let needed = hosts * (MEMORY_PER_HOST + hosts * MEMORY_PER_PEER);
    anyhow::ensure!(
        needed <= available,
        "{hosts} hosts need {} of memory, and {} are available; half as many hosts need a quarter of it",
        report::bytes(needed),
        report::bytes(available)
    );
    Ok(())
}

/// Runs work on a runtime of one thread in the namespace of the lab's etcd, where hosts reach it over
/// the loopback.
pub fn run_beside<T: Send>(
    etcd: &Etcd,
    work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    etcd.ns().within(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let result = runtime.block_on(work());
        // Hosts that still run are not waited for.
        runtime.shutdown_background();
        result
    })
}

/// The network config for so many hosts: the smallest network of a power of two of /24 subnets that
/// leaves a fifth of them free, as an operator would choose it.
pub fn network_for(hosts: usize) -> String {
    let subnets = (hosts as u32).saturating_mul(5).div_ceil(4).max(16).next_power_of_two();
    let length = 24 - subnets.trailing_zeros();
    format!(r#"{{"Network":"10.0.0.0/{length}","SubnetLen":24,"Backend":{{"Type":"vxlan"}}}}"#)
}

impl Fleet {
    /// Makes the hosts, all stopped, and puts the network config. `lab` keeps etcd and the hosts'
    /// state folders.
    pub async fn new(lab: &Lab, options: FleetOptions) -> anyhow::Result<Self> {
        let etcd = lab.etcd();
        let config = network_for(options.hosts);
        let writer = etcd.clone();
        spawn_blocking(move || writer.config(&config)).await?;
        let settings = Settings {
            etcd: EtcdOptions {
                endpoints: vec![etcd.url()],
                prefix: PREFIX.to_owned(),
                ..EtcdOptions::default()
            },
            lease_ttl: options.lease_ttl,
            labels: BTreeMap::new(),
        };
        let folder = lab.folder().join("hosts");
        let hosts = (0..options.hosts)
            .map(|number| SimulatedHost::new(number, host_folder(&folder, number)))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { options, etcd, settings, hosts, held: BTreeMap::new() })
    }

    /// The hosts.
    pub fn hosts(&self) -> &[SimulatedHost] {
        &self.hosts
    }

    /// What stands in etcd. Asked again when a busy etcd does not answer in time.
    async fn view(&self) -> anyhow::Result<View> {
        let begin = Instant::now();
        loop {
            match store::read_once(&self.settings.etcd).await {
                Ok((view, _)) => return Ok(view),
                Err(error) if begin.elapsed() > self.options.limit => {
                    return Err(error).context("reading etcd at the end of a scenario");
                }
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Drops the control planes of these hosts and starts new ones at once; their state folders and
    /// kernels stay.
    fn restart(&mut self, hosts: impl Iterator<Item = usize>) -> anyhow::Result<()> {
        let hosts: Vec<usize> = hosts.collect();
        // All are down before the first comes up.
        for host in &hosts {
            self.hosts[*host].stop();
        }
        for host in hosts {
            self.hosts[host].start(&self.settings)?;
        }
        Ok(())
    }

    /// Waits until these hosts have converged.
    async fn converged(
        &self,
        what: &str,
        hosts: impl Iterator<Item = usize>,
        begin: Instant,
    ) -> Waited<Milestones> {
        let peers = self.hosts.len() - 1;
        self.wait_for(what, hosts, begin, |host| host.converged(peers, begin)).await
    }

    /// Waits for something on each of these hosts, at most until the limit is over, and tells how far
    /// they are.
    async fn wait_for<T: Send + 'static, W: Future<Output = T> + Send + 'static>(
        &self,
        what: &str,
        hosts: impl Iterator<Item = usize>,
        begin: Instant,
        wait: impl Fn(&SimulatedHost) -> W,
    ) -> Waited<T> {
        let mut set = JoinSet::new();
        let mut missing = BTreeSet::new();
        for host in hosts {
            missing.insert(host);
            let wait = wait(&self.hosts[host]);
            set.spawn(async move { (host, wait.await) });
        }
        let total = missing.len();
        let mut done = Vec::with_capacity(total);
        let end = tokio::time::sleep_until(begin + self.options.limit);
        tokio::pin!(end);
        let mut tell =
            tokio::time::interval_at(Instant::now() + Duration::from_secs(1), Duration::from_secs(1));
        loop {
            tokio::select! {
                one = set.join_next() => match one {
                    Some(Ok((host, one))) => {
                        missing.remove(&host);
                        done.push(one);
                    }
                    // A wait that panicked is never done; its message is on standard error.
                    Some(Err(_)) => {}
                    None => break,
                },
                _ = tell.tick() => self.tell(&format!(
                    "{what}: {} of {total} hosts after {:.0} s", done.len(), begin.elapsed().as_secs_f64()
                )),
                () = &mut end => break,
            }
        }
        let limit = self.options.limit;
        let missing = missing
            .into_iter()
            .map(|host| format!("{what}: {} is not done within {limit:?}", self.hosts[host].name()));
        Waited { done, missing: missing.collect() }
    }

    fn tell(&self, text: &str) {
        if self.options.progress {
            eprintln!("{text}");
        }
    }

    /// What must hold now, and remembers who holds what. `kept`: leases must be those of before.
    async fn judge(&mut self, kept: bool) -> anyhow::Result<Vec<Finding>> {
        let begin = Instant::now();
        // A look at a large fleet may take longer than the grace.
        let mut looks = 0;
        loop {
            let view = self.view().await?;
            let standings: Vec<judge::Standing> = self.hosts.iter().map(SimulatedHost::standing).collect();
            let mut findings = judge::leases(&standings, &view.table, kept.then_some(&self.held));
            let truth = judge::truth(&standings);
            for (host, standing) in self.hosts.iter().zip(&standings) {
                findings.extend(host.kernel().look(|observed| judge::kernel(standing, observed, &truth)));
            }
            looks += 1;
            if findings.is_empty() || looks > 1 && begin.elapsed() > GRACE {
                self.held = standings.into_iter().filter_map(|s| Some((s.name, s.lease?))).collect();
                return Ok(findings);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn host_folder(folder: &std::path::Path, number: usize) -> PathBuf {
    folder.join(number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_fleet_needs_memory_by_the_square_of_its_hosts() {
        assert!(fits_memory(1000, 3 * GIB).is_ok());
        let refused = fits_memory(10_000, 64 * GIB).expect_err("too little").to_string();
        assert!(refused.starts_with("10000 hosts need 222.2 GiB of memory, and 64.0 GiB"), "{refused}");
    }
}
