//! Convergence: from the put of one lease until the kernel tells of the route, on a host that watches.

use std::time::Duration;

use anyhow::Result;

use super::contender::{Found, Kind};
use super::notices::{Change, Notices, address};
use super::{FEW, MANY, Stage, fleet};
use crate::report::{Budget, Row, percentile};

/// Puts in a round, one after the other.
const PUTS: u32 = 500;
const LIMIT: Duration = Duration::from_secs(120);
const SILENCE: Duration = Duration::from_secs(1);

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in [FEW, MANY] {
        let mut found = Found::default();
        stage.fleet.resize(size)?;
        for round in 0..stage.rounds as usize {
            for turn in 0..stage.kinds.len() {
                let kind = stage.kinds[(round + turn) % stage.kinds.len()];
                eprintln!(
                    "control: convergence with {size} leases, round {} of {}, {}",
                    round + 1,
                    stage.rounds,
                    kind.name()
                );
                let times = match kind {
                    Kind::Bare => stage.fleet.bare_watch(size..size + PUTS)?,
                    _ => watching(stage, kind, round)?,
                };
                let times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1000.0).collect();
                found.push(kind, format!("put, {size} leases: p50"), percentile(&times, 50.0));
                found.push(kind, format!("put, {size} leases: p99"), percentile(&times, 99.0));
                stage.fleet.resize(size)?;
            }
        }
        let bare = |most| [(Some(Kind::Bare), Budget::Ratio(most))];
        rows.extend(found.rows(&format!("put, {size} leases: p50"), "ms", &bare(1.3)));
        rows.extend(found.rows(&format!("put, {size} leases: p99"), "ms", &bare(1.5)));
    }
    Ok(rows)
}

fn watching(stage: &mut Stage<'_>, kind: Kind, round: usize) -> Result<Vec<Duration>> {
    let size = stage.fleet.size();
    let host = stage.lab.host(&format!("watch-{kind:?}-{size}-{round}").to_lowercase());
    let notices = Notices::of(&host.ns())?;
    let (running, _) = kind.start(&host)?;
    let wanted = (0..size).map(|h| address(fleet::subnet(h))).collect();
    notices.wait_for_all(wanted, false, LIMIT, SILENCE)?;
    let mut puts = Vec::new();
    for host in size..size + PUTS {
        let start = stage.fleet.put(host)?;
        let at = notices.wait_for(Change::Route(address(fleet::subnet(host))), Duration::from_secs(10))?;
        puts.push(at.saturating_duration_since(start));
    }
    running.check()?;
    Ok(puts)
}
