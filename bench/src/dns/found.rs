//! What the rounds found, by metric and by who, and the rows of it. Used by the parts of the group.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::report::{Budget, Row};

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// `loden daemon`
    Loden,
    /// CoreDNS with its plugin `file`: zones in memory. And `forward` for all other names.
    CoreDns,
    /// CoreDNS with its plugin `etcd`, which asks etcd for each answer.
    CoreDnsEtcd,
    /// dnsmasq with a hosts file, in memory.
    Dnsmasq,
    /// A client of etcd that only watches.
    Bare,
}

impl Who {
    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loden => "Loden",
            Self::CoreDns => "CoreDNS",
            Self::CoreDnsEtcd => "CoreDNS with etcd",
            Self::Dnsmasq => "dnsmasq",
            Self::Bare => "a bare watch",
        }
    }
}

/// Numbers of the rounds.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order in which they came first.
    metrics: Vec<Metric>,
}

#[derive(Debug)]
struct Metric {
    name: String,
    unit: &'static str,
    budget: Option<f64>,
    values: BTreeMap<Who, Vec<f64>>,
}

impl Found {
    /// One round's number.
    pub(crate) fn push(&mut self, name: &str, unit: &'static str, who: Who, value: f64) {
        let known = self.metrics.iter().position(|metric| metric.name == name);
        let at = known.unwrap_or_else(|| {
            self.metrics.push(Metric { name: name.into(), unit, budget: None, values: BTreeMap::new() });
            self.metrics.len() - 1
        });
        self.metrics[at].values.entry(who).or_default().push(value);
    }

    /// A metric's number may be so much at most.
    pub(crate) fn limit(&mut self, name: &str, most: f64) {
        for metric in self.metrics.iter_mut().filter(|metric| metric.name == name) {
            metric.budget = Some(most);
        }
    }

    /// Loden beside each of the others; a budget is told once.
    pub(crate) fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for metric in &self.metrics {
            let loden = metric.values.get(&Who::Loden);
            let loden = loden.with_context(|| format!("nothing was found for {:?}", metric.name))?;
            let row = || Row::new(&metric.name, metric.unit, loden);
            let others = metric.values.iter().filter(|(who, _)| **who != Who::Loden);
            let mut of_metric: Vec<Row> =
                others.map(|(who, values)| row().beside(who.name(), values)).collect();
            if of_metric.is_empty() {
                of_metric.push(row());
            }
            if let Some(most) = metric.budget {
                let first = of_metric.remove(0);
                of_metric.insert(0, first.within(Budget::Value(most)));
            }
            rows.extend(of_metric);
        }
        Ok(rows)
    }
}
