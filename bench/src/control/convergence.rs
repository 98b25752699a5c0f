//! Convergence: from the put of one lease until the kernel tells of the route, on a host that watches.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::contender::{Found, Kind, Limit, Metric};
use super::notices::{Change, Direction, Notices, SILENCE};
use super::{FEW, MANY, SHORT, Stage, fleet};
use crate::cpus::{self, Pinned};
use crate::quiet;
use crate::report::{Row, percentile};

/// Puts in a round, one after the other.
const PUTS: u32 = 500;

const P50: Metric = Metric { name: "p50", unit: "ms" };
const P99: Metric = Metric { name: "p99", unit: "ms" };
/// From the put until a watch in the same process tells of it: no kernel, no other process.
const EVENT: &str = "the event alone";

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in [FEW, MANY] {
        let mut found = Found::new(format!("put, {size} leases"));
        let (mut event_p50, mut event_p99) = (Vec::new(), Vec::new());
        stage.in_turns(SHORT * stage.rounds, &format!("convergence with {size} leases"), |stage, kind| {
            let times = milliseconds(in_quiet(|| watching(stage, kind, size))?);
            found.push(kind, P50, percentile(&times, 50.0));
            found.push(kind, P99, percentile(&times, 99.0));
            if kind == Kind::Bare {
                let times = milliseconds(in_quiet(|| events(stage, size))?);
                event_p50.push(percentile(&times, 50.0));
                event_p99.push(percentile(&times, 99.0));
            }
            Ok(())
        })?;
        rows.extend(found.rows(P50, Limit::Times(1.3, Kind::Bare))?);
        rows.push(found.beside(P50, EVENT, &event_p50)?);
        rows.extend(found.rows(P99, Limit::Times(1.5, Kind::Bare))?);
        rows.push(found.beside(P99, EVENT, &event_p99)?);
    }
    Ok(rows)
}

/// Who follows on one CPU; etcd, and who puts if that is another, on the other. A scheduler that moves them
/// about changes the median of a round by half.
fn apart(stage: &Stage<'_>, follower: u32) -> Result<Pinned> {
    let (one, other) = cpus::two()?;
    let etcd = stage.etcd.pid().context("etcd has ended")?;
    Pinned::new(&[(std::process::id(), one), (etcd, one), (follower, other)])
}

fn milliseconds(times: Vec<Duration>) -> Vec<f64> {
    times.iter().map(|t| t.as_secs_f64() * 1000.0).collect()
}

/// Six slow puts of 500 are the p99. Where a hypervisor takes ten milliseconds, ten puts in a row are slow.
fn in_quiet(mut round: impl FnMut() -> Result<Option<Vec<Duration>>>) -> Result<Vec<Duration>> {
    loop {
        if let Some(times) = round()? {
            return Ok(times);
        }
    }
}

fn events(stage: &mut Stage<'_>, size: u32) -> Result<Option<Vec<Duration>>> {
    stage.fleet.resize(size)?;
    let quiet = quiet::wait()?;
    let _apart = apart(stage, std::process::id())?;
    let times = stage.fleet.events(size..size + PUTS)?;
    Ok(quiet.accepted()?.then_some(times))
}

fn watching(stage: &mut Stage<'_>, kind: Kind, size: u32) -> Result<Option<Vec<Duration>>> {
    stage.fleet.resize(size)?;
    let host = stage.host();
    let notices = Notices::of(&host.ns())?;
    let running = kind.start(&host)?;
    running.wait_for_routes(&notices, fleet::routes(0..size), Direction::Come)?;
    // A daemon that has just started has more to do than to watch.
    notices.wait_for_silence(SILENCE)?;
    let quiet = quiet::wait()?;
    let apart = apart(stage, running.pid())?;
    let mut times = Vec::new();
    for host in size..size + PUTS {
        let start = stage.fleet.put(host)?;
        let at = notices.wait_for(Change::Route(fleet::address(host)), Duration::from_secs(10))?;
        times.push(at.saturating_duration_since(start));
    }
    let accepted = quiet.accepted()?;
    drop(apart);
    notices.wait_for_silence(SILENCE)?;
    running.has_in_place(size + PUTS)?;
    Ok(accepted.then_some(times))
}
