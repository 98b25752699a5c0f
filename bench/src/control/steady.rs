//! Steady state: what a daemon with 10,000 peers costs while nothing happens.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::contender::{Found, Kind, Limit, Metric};
use super::notices::{Direction, Notices};
use super::{MANY, Stage, fleet, usage};
use crate::quiet;
use crate::report::Row;

/// How long after the last route each is looked at, and for how long. Loden writes what it has learnt to files at
/// first, and its first full pass is after half a minute; they are more than a minute and a half apart then, so
/// that one is in its time, and two refreshes of its lease. What flanneld does comes more often.
fn observed(kind: Kind) -> (Duration, Duration) {
    let (after, seconds) = if kind == Kind::Loden { (35, 120) } else { (5, 30) };
    (Duration::from_secs(after), Duration::from_secs(seconds))
}

const REQUESTS: Metric = Metric { name: "etcd requests an hour", unit: "" };
const CPU: Metric = Metric { name: "CPU", unit: "%" };
const WAKE_UPS: Metric = Metric { name: "wake-ups an hour", unit: "" };

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let mut found = Found::new("at rest");
    stage.in_turns(stage.rounds, "at rest", |stage, kind| {
        stage.fleet.resize(MANY)?;
        rest(stage, kind, &mut found)
    })?;
    let mut rows = found.rows(REQUESTS, Limit::None)?;
    rows.extend(found.rows(CPU, Limit::Value(0.1))?);
    rows.extend(found.rows(WAKE_UPS, Limit::None)?);
    Ok(rows)
}

fn rest(stage: &mut Stage<'_>, kind: Kind, found: &mut Found) -> Result<()> {
    let host = stage.host();
    let notices = Notices::of(&host.ns())?;
    let running = kind.start(&host)?;
    let pid = running.pid();
    running.wait_for_routes(&notices, fleet::routes(0..MANY), Direction::Come)?;
    let (after, observed) = observed(kind);
    sleep(after);
    quiet::wait()?;
    let (start, requests) = (Instant::now(), stage.fleet.requests()?);
    let (cpu, wake_ups) = (usage::cpu_seconds(pid)?, usage::wake_ups(pid)?);
    sleep(observed);
    let seconds = start.elapsed().as_secs_f64();
    let an_hour = |count: f64| count / seconds * 3600.0;
    found.push(kind, REQUESTS, an_hour(stage.fleet.requests()? - requests));
    let percent = (usage::cpu_seconds(pid)? - cpu) / seconds * 100.0;
    found.push(kind, CPU, percent);
    found.push(kind, WAKE_UPS, an_hour(usage::wake_ups(pid)? - wake_ups));
    running.has_in_place(MANY)
}
