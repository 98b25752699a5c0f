//! Convergence: from the put of one lease until the kernel tells of the route, on a host that watches.

use std::time::Duration;

use anyhow::Result;

use super::contender::{Found, Kind, Limit, Metric};
use super::notices::{Change, Direction, Notices, SILENCE};
use super::{FEW, MANY, Stage, fleet};
use crate::report::{Row, percentile};

/// Puts in a round, one after the other.
const PUTS: u32 = 500;

const P50: Metric = Metric { name: "p50", unit: "ms" };
const P99: Metric = Metric { name: "p99", unit: "ms" };

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in [FEW, MANY] {
        let mut found = Found::new(format!("put, {size} leases"));
        stage.in_turns(&format!("convergence with {size} leases"), |stage, kind| {
            stage.fleet.resize(size)?;
            let times = match kind {
                Kind::Bare => stage.fleet.bare_watch(size..size + PUTS)?,
                _ => watching(stage, kind)?,
            };
            let times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1000.0).collect();
            found.push(kind, P50, percentile(&times, 50.0));
            found.push(kind, P99, percentile(&times, 99.0));
            Ok(())
        })?;
        rows.extend(found.rows(P50, Limit::Times(1.3, Kind::Bare))?);
        rows.extend(found.rows(P99, Limit::Times(1.5, Kind::Bare))?);
    }
    Ok(rows)
}

fn watching(stage: &mut Stage<'_>, kind: Kind) -> Result<Vec<Duration>> {
    let size = stage.fleet.size();
    let host = stage.host();
    let notices = Notices::of(&host.ns())?;
    let running = kind.start(&host)?;
    notices.wait_for_all(fleet::routes(0..size), Direction::Come)?;
    let mut times = Vec::new();
    for host in size..size + PUTS {
        let start = stage.fleet.put(host)?;
        let at = notices.wait_for(Change::Route(fleet::address(host)), Duration::from_secs(10))?;
        times.push(at.saturating_duration_since(start));
    }
    notices.wait_for_silence(SILENCE)?;
    running.has_in_place(size + PUTS)?;
    Ok(times)
}
