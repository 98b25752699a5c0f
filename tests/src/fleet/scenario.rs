//! What is done to a fleet, and what is looked at afterwards.

use std::time::Duration;

use anyhow::Context;
use loden_core::leases::LeaseTable;
use loden_daemon::store::{Outcome, Writer};
use loden_proto::config::NetworkConfig;
use loden_proto::lease::{BackendData, LeaseKey, LeaseValue};
use loden_proto::{Family, Mac, Subnet};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::meter::Meter;
use super::report::{Report, Spread};
use super::{Fleet, Milestones, SimulatedHost, Waited};

/// One thing to do to a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// All daemons start at once on hosts that have never been members.
    Start,
    /// Nothing happens for a while; then a lease comes, and goes.
    Steady,
    /// All daemons are killed and started again in the same moment.
    Restart,
    /// etcd gets SIGTERM and is started again.
    EtcdRestart,
    /// etcd gets SIGKILL and is started again.
    EtcdKill,
    /// Batch after batch of daemons is killed and started again.
    RollingRestart,
    /// The same, and each comes back with another value in its lease, as another version has.
    RollingUpgrade,
}

/// How many times a lease comes and goes in [`Scenario::Steady`].
const NEWS: usize = 5;

impl Scenario {
    /// All, in an order in which each finds a running fleet.
    pub const ALL: [Self; 7] = [
        Self::Start,
        Self::Steady,
        Self::Restart,
        Self::EtcdRestart,
        Self::EtcdKill,
        Self::RollingRestart,
        Self::RollingUpgrade,
    ];

    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Steady => "steady",
            Self::Restart => "restart",
            Self::EtcdRestart => "etcd-restart",
            Self::EtcdKill => "etcd-kill",
            Self::RollingRestart => "rolling-restart",
            Self::RollingUpgrade => "rolling-upgrade",
        }
    }
}

impl Fleet {
    /// Plays a scenario. Every one but the start needs a running fleet.
    pub async fn play(&mut self, scenario: Scenario) -> anyhow::Result<Report> {
        match scenario {
            Scenario::Start | Scenario::Restart => self.restart_all(scenario).await,
            Scenario::Steady => self.steady().await,
            Scenario::EtcdRestart | Scenario::EtcdKill => self.etcd_restart(scenario).await,
            Scenario::RollingRestart => self.rolling(scenario, 0).await,
            Scenario::RollingUpgrade => {
                let generation = self.settings.labels.len() + 1;
                self.settings.labels.insert(format!("upgrade-{generation}"), "done".to_owned());
                self.rolling(scenario, self.hosts.len() as u64).await
            }
        }
    }

    async fn restart_all(&mut self, scenario: Scenario) -> anyhow::Result<Report> {
        let meter = Meter::begin(&self.etcd).await?;
        let begin = Instant::now();
        self.restart(0..self.hosts.len())?;
        let reached = self.converged(scenario.name(), 0..self.hosts.len(), begin).await;
        let cost = meter.end().await?;
        self.report(scenario, cost, reached).await
    }

    async fn etcd_restart(&mut self, scenario: Scenario) -> anyhow::Result<Report> {
        let mut meter = Meter::begin(&self.etcd).await?;
        meter.etcd_ends().await?;
        let etcd = self.etcd.clone();
        let kill = scenario == Scenario::EtcdKill;
        spawn_blocking(move || if kill { etcd.kill9() } else { etcd.stop() }).await?;
        let (all, what) = (0..self.hosts.len(), format!("{}, etcd is away", scenario.name()));
        let noticed = self.wait_for(&what, all.clone(), Instant::now(), SimulatedHost::away).await;
        let begin = Instant::now();
        let etcd = self.etcd.clone();
        spawn_blocking(move || etcd.start()).await?;
        let answers = begin.elapsed();
        let mut reached = self.converged(scenario.name(), all, begin).await;
        reached.missing.extend(noticed.missing);
        let cost = meter.end().await?;
        let mut report = self.report(scenario, cost, reached).await?;
        report.notes.push(format!("etcd answers again after {:.2} s", answers.as_secs_f64()));
        Ok(report)
    }

    async fn rolling(&mut self, scenario: Scenario, most_writes: u64) -> anyhow::Result<Report> {
        let meter = Meter::begin(&self.etcd).await?;
        let size = self.hosts.len().div_ceil(self.options.batches.max(1));
        let all: Vec<usize> = (0..self.hosts.len()).collect();
        let mut reached = Waited::default();
        for (number, batch) in all.chunks(size).enumerate() {
            let begin = Instant::now();
            self.restart(batch.iter().copied())?;
            let what = format!("{}, batch {} of {}", scenario.name(), number + 1, all.len().div_ceil(size));
            reached.add(self.converged(&what, batch.iter().copied(), begin).await);
        }
        let cost = meter.end().await?;
        let mut report = self.report(scenario, cost, reached).await?;
        let writes = report.cost.etcd.writes();
        if writes > most_writes {
            report.findings.push(format!("{writes} writes to etcd, where at most {most_writes} are needed"));
        }
        report.notes.push(format!("batches of {size} hosts, each counted from its own begin"));
        Ok(report)
    }

    /// Requests per host while nothing happens, and how long news takes to all hosts.
    async fn steady(&mut self) -> anyhow::Result<Report> {
        let meter = Meter::begin(&self.etcd).await?;
        let begin = Instant::now();
        let (mut before, mut most) = (meter.requests().await?, 0);
        while begin.elapsed() < self.options.steady {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = meter.requests().await?;
            most = most.max(now - before);
            before = now;
            self.tell(&format!(
                "steady: {:.0} s of {:?}",
                begin.elapsed().as_secs_f64(),
                self.options.steady
            ));
        }
        let cost = meter.end().await?;
        let (requests, seconds) = (cost.etcd.all_requests(), cost.seconds);
        let hourly = requests as f64 / self.hosts.len() as f64 / seconds * 3600.0;
        let mut notes = vec![format!(
            "{hourly:.1} requests per host and hour, from {requests} in {seconds:.0} s with a lease of {} s; at most {most} in a second",
            self.options.lease_ttl
        )];
        let meter = Meter::begin(&self.etcd).await?;
        let Waited { done: took, missing } = self.news().await?;
        let cost_of_news = meter.end().await?;
        if missing.is_empty() {
            // A watcher sees each lease come and go.
            let deliveries = (2 * took.len()) as f64;
            notes.push(format!(
                "a lease that came was in every kernel: {}; CPU per event and host: daemon {:.0} us, etcd {:.0} us",
                Spread::of(took),
                cost_of_news.simulator.cpu_seconds / deliveries * 1e6,
                cost_of_news.etcd.cpu_seconds / deliveries * 1e6
            ));
        }
        // Nobody restarted, so nobody converged.
        let mut report = self.report(Scenario::Steady, cost, Waited { done: Vec::new(), missing }).await?;
        report.notes = notes;
        Ok(report)
    }

    /// Leases come and go one by one; how long until each host's kernel has each. Ends with the first
    /// that does not reach all.
    async fn news(&self) -> anyhow::Result<Waited<Duration>> {
        let view = self.view().await?;
        let text = view.config.context("the network config")?;
        let config = NetworkConfig::parse(&text)?;
        let subnet = free_subnet(&config, &view.table).context("no subnet is free for a further lease")?;
        let key = LeaseKey::single(subnet);
        let writer = Writer::on(&self.settings.etcd.prefix, self.settings.etcd.connect().await?);
        let mut news = Waited::default();
        for _ in 0..NEWS {
            let begin = Instant::now();
            let Outcome::Written(revision) = writer.put(&key, &newcomer(), 0, 0).await? else {
                anyhow::bail!("somebody took {key}, which was free");
            };
            let all = 0..self.hosts.len();
            let arrivals = self.wait_for("steady, a lease came", all.clone(), begin, |host| {
                let kernel = host.kernel().clone();
                async move {
                    kernel.until(|observed| observed.routes_to(subnet).next().is_some()).await;
                    begin.elapsed()
                }
            });
            news.add(arrivals.await);
            writer.delete(&key, revision).await?;
            let departures = self.wait_for("steady, a lease went", all, Instant::now(), |host| {
                let kernel = host.kernel().clone();
                async move { kernel.until(|observed| observed.routes_to(subnet).next().is_none()).await }
            });
            news.missing.extend(departures.await.missing);
            if !news.missing.is_empty() {
                break;
            }
        }
        Ok(news)
    }

    async fn report(
        &mut self,
        scenario: Scenario,
        cost: super::Cost,
        reached: Waited<Milestones>,
    ) -> anyhow::Result<Report> {
        let Waited { done, missing: mut findings } = reached;
        findings.extend(self.judge(scenario != Scenario::Start).await?);
        let spread = |of: fn(&Milestones) -> Duration| {
            (!done.is_empty()).then(|| Spread::of(done.iter().map(of).collect()))
        };
        Ok(Report {
            scenario: scenario.name(),
            hosts: self.hosts.len(),
            lease: spread(|m| m.lease),
            watching: spread(|m| m.watching),
            converged: spread(|m| m.converged),
            cost,
            notes: Vec::new(),
            findings,
        })
    }
}

fn free_subnet(config: &NetworkConfig, table: &LeaseTable) -> Option<Subnet> {
    let pool = config.pool(Family::V4)?;
    (0..pool.capacity()).rev().filter_map(|i| pool.nth(i)).find(|s| table.overlapping(s).is_none())
}

/// The value of a host that is no member of the fleet.
fn newcomer() -> LeaseValue {
    LeaseValue {
        public_ip: Some([172, 31, 255, 254].into()),
        backend_type: "vxlan".into(),
        backend_data: BackendData::Vxlan { vni: Some(1), vtep_mac: Mac([2, 0xff, 0, 0, 0, 1]) },
        ..LeaseValue::default()
    }
}
