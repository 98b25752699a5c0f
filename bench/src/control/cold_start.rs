//! Cold start: a daemon starts on a host that has never run one, with so many leases in etcd.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::contender::{Found, Kind, Limit, Metric};
use super::notices::{Direction, Notices};
use super::usage::{self, Peak};
use super::{FEW, MANY, SHORT, Stage, fleet};
use crate::quiet;
use crate::report::Row;

/// Those in between show how it grows.
const SIZES: [u32; 4] = [FEW, 10, 1_000, MANY];
/// Memory settles until then: what is remembered of the peers is written.
const SETTLED: Duration = Duration::from_secs(2);

const LAST_OBJECT: Metric = Metric { name: "last object", unit: "s" };
const READY: Metric = Metric { name: "READY", unit: "ms" };
const REQUESTS: Metric = Metric { name: "etcd requests", unit: "" };
const CPU: Metric = Metric { name: "CPU", unit: "s" };
const MEMORY: Metric = Metric { name: "memory after", unit: "MiB" };
const PEAK: Metric = Metric { name: "memory at its peak", unit: "MiB" };

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in SIZES {
        let mut found = Found::new(format!("start, {size} leases"));
        let rounds = if size < MANY { SHORT * stage.rounds } else { stage.rounds };
        stage.in_turns(rounds, &format!("start with {size} leases"), |stage, kind| {
            stage.fleet.resize(size)?;
            start(stage, kind, &mut found)
        })?;
        let of_many = |most| if size == MANY { Limit::Value(most) } else { Limit::None };
        rows.extend(found.rows(LAST_OBJECT, of_many(0.4))?);
        if size == FEW {
            rows.extend(found.rows(READY, Limit::Value(60.0))?);
        }
        rows.extend(found.rows(REQUESTS, of_many(10.0))?);
        rows.extend(found.rows(CPU, of_many(0.4))?);
        rows.extend(found.rows(MEMORY, if size == FEW { Limit::Value(8.0) } else { of_many(15.0) })?);
        rows.extend(found.rows(PEAK, of_many(24.0))?);
    }
    Ok(rows)
}

fn start(stage: &mut Stage<'_>, kind: Kind, found: &mut Found) -> Result<()> {
    let size = stage.fleet.size();
    let host = stage.host();
    let notices = Notices::of(&host.ns())?;
    quiet::wait()?;
    let requests = stage.fleet.requests()?;
    let running = kind.start(&host)?;
    let peak = Peak::of(running.pid());
    let told = running.wait_for_routes(&notices, fleet::routes(0..size), Direction::Come)?;
    std::thread::sleep(SETTLED);
    found.push(kind, LAST_OBJECT, (told.last_change - running.started).as_secs_f64());
    match running.ready_at() {
        Some(ready) => found.push(kind, READY, (ready - running.started).as_secs_f64() * 1000.0),
        None => ensure!(kind != Kind::Loden, "Loden is not READY {SETTLED:?} after its last object"),
    }
    found.push(kind, REQUESTS, stage.fleet.requests()? - requests);
    found.push(kind, CPU, usage::cpu_seconds(running.pid())?);
    found.push(kind, MEMORY, usage::resident(running.pid())?);
    found.push(kind, PEAK, peak.mebibytes()?);
    running.has_in_place(size)
}
