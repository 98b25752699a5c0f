//! Who is measured: Loden's daemon, real flanneld, and a bare client that does only what etcd and
//! the kernel need. Used by every part of the group.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use loden_tests::{Daemon, Host};

use crate::peers;
use crate::report::{Budget, Row};

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

    /// Starts it on a host; returns when, too. It dies with the value.
    pub(crate) fn start(self, host: &Host) -> Result<(Running, Instant)> {
        let start = Instant::now();
        let daemon = match self {
            Self::Loden => host.daemon(&[]),
            Self::Flanneld => host.flanneld(&["--iface=eth0", "--ip-masq"]).context("flanneld has gone")?,
            Self::Bare => host.follower("loden-bench-bare", &[]),
        };
        Ok((Running(daemon), start))
    }
}

/// A daemon that is killed with the value.
pub(crate) struct Running(pub(crate) Daemon);

impl Running {
    /// An error with its log, if it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.exited() {
            Some(end) => bail!("it has ended ({end}):\n{}", self.0.log()),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill9();
    }
}

/// What the rounds of a part found, by who and metric.
#[derive(Debug, Default)]
pub(crate) struct Found(BTreeMap<(Kind, String), Vec<f64>>);

impl Found {
    /// One round's number.
    pub(crate) fn push(&mut self, kind: Kind, metric: impl Into<String>, value: f64) {
        self.0.entry((kind, metric.into())).or_default().push(value);
    }

    /// The rows of a metric: Loden beside each of the others, the budget on the one that it is meant
    /// for, or on the first.
    pub(crate) fn rows(
        &self,
        metric: &str,
        unit: &'static str,
        budgets: &[(Option<Kind>, Budget)],
    ) -> Vec<Row> {
        let of = |kind| self.0.get(&(kind, metric.to_owned()));
        let Some(loden) = of(Kind::Loden) else { return Vec::new() };
        let mut rows = Vec::new();
        for kind in [Kind::Flanneld, Kind::Bare] {
            let Some(baseline) = of(kind) else { continue };
            let row = Row::new(metric, unit, loden).beside(kind.name(), baseline);
            let meant = budgets.iter().find(|(for_kind, _)| match for_kind {
                Some(wanted) => *wanted == kind,
                None => rows.is_empty(),
            });
            rows.push(match meant {
                Some((_, budget)) => row.within(*budget),
                None => row,
            });
        }
        if rows.is_empty() {
            let row = Row::new(metric, unit, loden);
            rows.push(match budgets.first() {
                Some((_, budget)) => row.within(*budget),
                None => row,
            });
        }
        rows
    }
}
