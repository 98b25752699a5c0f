//! What a scenario found: a table for people, JSON for programs.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;

use super::Cost;
use super::judge::Finding;

/// Times over hosts, in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    /// The median.
    pub p50: f64,
    /// What 99 in a hundred hosts do not exceed.
    pub p99: f64,
    /// The last host.
    pub last: f64,
}

impl Spread {
    /// Of one value per host, by nearest rank; zeros of none.
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let rank = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
        };
        Self { p50: rank(50), p99: rank(99), last: rank(100) }
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.3} s, p99 {:.3} s, last {:.3} s", self.p50, self.p99, self.last)
    }
}

/// One scenario's result. The member names are those of the JSON and stay.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which one.
    pub scenario: &'static str,
    /// How many hosts.
    pub hosts: usize,
    /// Until each host's lease was held.
    pub lease: Option<Spread>,
    /// Until each host watched etcd.
    pub watching: Option<Spread>,
    /// Until each host had both, and every peer in its kernel.
    pub converged: Option<Spread>,
    /// What it cost.
    pub cost: Cost,
    /// What only this scenario tells.
    pub notes: Vec<String>,
    /// What is wrong; nothing, if all is well.
    pub findings: Vec<Finding>,
}

/// So many findings are printed; a fleet that fails as a whole has one per host.
const FINDINGS_SHOWN: usize = 20;

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (cost, hosts) = (&self.cost, self.hosts as f64);
        let (etcd, at_end) = (&cost.etcd, &cost.etcd_at_end);
        writeln!(f, "{}, {} hosts, {:.1} s", self.scenario, self.hosts, cost.seconds)?;
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<28}  {value}");
        for (name, spread) in [
            ("lease held", self.lease),
            ("watching etcd", self.watching),
            ("all peers in the kernel", self.converged),
        ] {
            if let Some(spread) = spread {
                row(name, spread.to_string())?;
            }
        }
        let kinds: Vec<String> =
            etcd.requests.iter().filter(|(_, n)| **n > 0).map(|(kind, n)| format!("{kind} {n}")).collect();
        row("etcd requests", format!("{} ({})", etcd.all_requests(), kinds.join(", ")))?;
        row(
            "etcd writes",
            format!("{} puts, {} deletes, {} in all", etcd.puts, etcd.deletes, etcd.writes()),
        )?;
        row(
            "watch events sent",
            format!(
                "{} in {} messages ({:.1} each)",
                etcd.events,
                etcd.watch_messages,
                etcd.events as f64 / etcd.watch_messages.max(1) as f64
            ),
        )?;
        row("etcd to and from hosts", format!("{}, {}", bytes(etcd.sent_bytes), bytes(etcd.received_bytes)))?;
        row("etcd CPU", format!("{:.2} s", etcd.cpu_seconds))?;
        row(
            "etcd memory",
            format!("{} now, {} at most", bytes(at_end.resident_bytes), bytes(at_end.resident_peak_bytes)),
        )?;
        row(
            "etcd database",
            format!(
                "{}, of which in use {}",
                bytes(at_end.database_bytes),
                bytes(at_end.database_in_use_bytes)
            ),
        )?;
        row(
            "etcd watchers",
            format!(
                "{} on {} streams, {} lag; {} open files",
                at_end.watchers, at_end.watch_streams, at_end.slow_watchers, at_end.open_files
            ),
        )?;
        let own = &cost.simulator;
        row(
            "simulated daemons",
            format!(
                "CPU {:.2} s, {:.1} ms a host, {:.2} s without a CPU; memory {}, {} a host",
                own.cpu_seconds,
                own.cpu_seconds * 1000.0 / hosts,
                own.waited_seconds,
                bytes(own.resident_bytes),
                bytes((own.resident_bytes as f64 / hosts) as u64)
            ),
        )?;
        for note in &self.notes {
            row("", note.clone())?;
        }
        if self.findings.is_empty() {
            return row(
                "checked",
                "no subnet twice, no lease lost, every kernel leads to every peer".to_owned(),
            );
        }
        for finding in self.findings.iter().take(FINDINGS_SHOWN) {
            row("WRONG", finding.clone())?;
        }
        match self.findings.len().saturating_sub(FINDINGS_SHOWN) {
            0 => Ok(()),
            more => row("WRONG", format!("and {more} more")),
        }
    }
}

pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.*} {}", usize::from(unit > 0), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_values_that_were_seen() {
        let spread = Spread::of((1..=200).rev().map(Duration::from_secs).collect());
        assert_eq!((spread.p50, spread.p99, spread.last), (100.0, 198.0, 200.0));
        assert_eq!(Spread::of(Vec::new()).last, 0.0);
    }
}
