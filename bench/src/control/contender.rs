//! Who is measured: Loden's daemon, real flanneld, and a bare client that does only what etcd and
//! the kernel need; and what was found of them. Used by every part of the group.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use loden_tests::{Daemon, Host};

use super::in_place;
use super::notices::{Direction, Notices, Told};
use crate::peers;
use crate::report::{Budget, Row};

/// Of a log, in an error.
const LAST_LINES: usize = 10;

/// One way of following the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `loden daemon`
    Loden,
    /// Real flanneld.
    Flanneld,
    /// `loden-bench-bare`: one list, one watch, and the same netlink messages.
    Bare,
}

impl Kind {
    /// Those that can run here, Loden first.
    pub(crate) fn present() -> Vec<Self> {
        let flanneld = peers::FLANNELD.find().map(|_| Self::Flanneld);
        [Some(Self::Loden), flanneld, Some(Self::Bare)].into_iter().flatten().collect()
    }

    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loden => "Loden",
            Self::Flanneld => "flanneld",
            Self::Bare => "a bare client",
        }
    }

    /// Its VXLAN device.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Loden => "loden.1",
            Self::Flanneld => "flannel.1",
            Self::Bare => "bare.1",
        }
    }

    /// Starts it on a host.
    pub(crate) fn start(self, host: &Host) -> Result<Running> {
        self.start_with(host, &[])
    }

    /// The same with further flags.
    pub(crate) fn start_with(self, host: &Host, flags: &[&str]) -> Result<Running> {
        let started = Instant::now();
        let daemon = match self {
            Self::Loden => host.daemon(flags),
            Self::Flanneld => {
                let flags = [&["--iface=eth0", "--ip-masq"], flags].concat();
                host.flanneld(&flags).context("flanneld has gone")?
            }
            Self::Bare => host.follower("loden-bench-bare", flags),
        };
        Ok(Running { kind: self, daemon, started })
    }
}

/// A contender that runs. It is killed with the value.
pub(crate) struct Running {
    kind: Kind,
    daemon: Daemon,
    /// When it was started.
    pub(crate) started: Instant,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// When it told its service manager that it is ready.
    pub(crate) fn ready_at(&self) -> Option<Instant> {
        self.daemon.ready_at()
    }

    /// Waits until its host's kernel has told that these routes have all come, or gone. The error has what it logged
    /// last.
    pub(crate) fn wait_for_routes(
        &self,
        notices: &Notices,
        routes: BTreeSet<Ipv4Addr>,
        direction: Direction,
    ) -> Result<Told> {
        notices.wait_for_all(routes, direction).map_err(|error| {
            let state = match self.daemon.exited() {
                Some(end) => format!("has ended ({end})"),
                None => "still runs".into(),
            };
            let log = self.daemon.log();
            let mut lines: Vec<_> = log.lines().collect();
            let last = lines.split_off(lines.len().saturating_sub(LAST_LINES)).join("\n");
            anyhow!("{error:#}; {} {state}, and its log ends:\n{last}", self.kind.name())
        })
    }

    /// An error unless it runs and its host's kernel leads to the first `peers` hosts of the fleet, and
    /// to no others of it.
    pub(crate) fn has_in_place(&self, peers: u32) -> Result<()> {
        if let Some(end) = self.daemon.exited() {
            bail!("{} has ended ({end}):\n{}", self.kind.name(), self.daemon.log());
        }
        in_place::check(self.daemon.host(), self.kind, peers)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.daemon.kill9();
    }
}

/// What is measured, and in what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

/// What Loden's may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// Anything.
    None,
    /// At most so much; said once, whoever it stands beside.
    Value(f64),
    /// At most so many times this one's.
    Times(f64, Kind),
}

/// What the rounds found, by who and metric.
#[derive(Debug)]
pub(crate) struct Found {
    /// For tables, before the metrics' names.
    situation: String,
    values: BTreeMap<(Kind, Metric), Vec<f64>>,
}

impl Found {
    /// Nothing yet.
    pub(crate) fn new(situation: impl Into<String>) -> Self {
        Self { situation: situation.into(), values: BTreeMap::new() }
    }

    /// One round's number.
    pub(crate) fn push(&mut self, kind: Kind, metric: Metric, value: f64) {
        self.values.entry((kind, metric)).or_default().push(value);
    }

    /// Loden beside a number that is no contender's.
    pub(crate) fn beside(&self, metric: Metric, name: &str, baseline: &[f64]) -> Result<Row> {
        Ok(self.loden(metric)?.beside(name, baseline))
    }

    fn loden(&self, metric: Metric) -> Result<Row> {
        let name = format!("{}: {}", self.situation, metric.name);
        let found = self.values.get(&(Kind::Loden, metric));
        let found = found.with_context(|| format!("nothing was found for {name:?}"))?;
        Ok(Row::new(&name, metric.unit, found))
    }

    /// The rows of a metric: Loden beside each of the others that have it.
    pub(crate) fn rows(&self, metric: Metric, limit: Limit) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for kind in [Kind::Flanneld, Kind::Bare] {
            let Some(baseline) = self.values.get(&(kind, metric)) else { continue };
            let row = self.loden(metric)?.beside(kind.name(), baseline);
            rows.push(match limit {
                Limit::Value(most) if rows.is_empty() => row.within(Budget::Value(most)),
                Limit::Times(most, meant) if meant == kind => row.within(Budget::Ratio(most)),
                _ => row,
            });
        }
        if rows.is_empty() {
            let row = self.loden(metric)?;
            rows.push(match limit {
                Limit::Value(most) => row.within(Budget::Value(most)),
                _ => row,
            });
        }
        Ok(rows)
    }
}
