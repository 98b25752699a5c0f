//! Cold start: a daemon starts on a host that has never run one, with so many leases in etcd.

use std::time::Duration;

use anyhow::Result;

use super::contender::{Found, Kind};
use super::notices::{Notices, address};
use super::usage::{self, Peak};
use super::{FEW, MANY, Stage, fleet};
use crate::report::{Budget, Row};

/// A thousand in between shows how it grows.
const SIZES: [u32; 3] = [FEW, 1_000, MANY];
/// flanneld needs some 10 s for 10,000 leases.
const LIMIT: Duration = Duration::from_secs(120);
/// Without any notification for so long, everything is in place.
const SILENCE: Duration = Duration::from_secs(1);
/// Memory settles until then: what is remembered of the peers is written.
const SETTLED: Duration = Duration::from_secs(2);

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for size in SIZES {
        let mut found = Found::default();
        stage.fleet.resize(size)?;
        for round in 0..stage.rounds as usize {
            for turn in 0..stage.kinds.len() {
                let kind = stage.kinds[(round + turn) % stage.kinds.len()];
                eprintln!(
                    "control: start with {size} leases, round {} of {}, {}",
                    round + 1,
                    stage.rounds,
                    kind.name()
                );
                start(stage, kind, &format!("{kind:?}-{size}-{round}"), &mut found)?;
                stage.fleet.resize(size)?;
            }
        }
        let budget = |many: f64| if size == MANY { vec![(None, Budget::Value(many))] } else { Vec::new() };
        let name = |metric: &str| format!("start, {size} leases: {metric}");
        rows.extend(found.rows(&name("last object"), "s", &budget(0.4)));
        if size == FEW {
            rows.extend(found.rows(&name("READY"), "ms", &[(None, Budget::Value(60.0))]));
        }
        rows.extend(found.rows(&name("etcd requests"), "", &budget(10.0)));
        rows.extend(found.rows(&name("CPU"), "s", &budget(0.4)));
        let idle = if size == FEW { vec![(None, Budget::Value(8.0))] } else { budget(15.0) };
        rows.extend(found.rows(&name("memory after"), "MiB", &idle));
        rows.extend(found.rows(&name("memory at its peak"), "MiB", &budget(24.0)));
    }
    Ok(rows)
}

fn start(stage: &mut Stage<'_>, kind: Kind, name: &str, found: &mut Found) -> Result<()> {
    let size = stage.fleet.size();
    let host = stage.lab.host(&name.to_lowercase());
    let notices = Notices::of(&host.ns())?;
    let requests = stage.fleet.requests()?;
    let (running, started) = kind.start(&host)?;
    let peak = Peak::of(running.0.pid());
    let wanted = (0..size).map(|h| address(fleet::subnet(h))).collect();
    let (_, last) = notices.wait_for_all(wanted, false, LIMIT, SILENCE)?;
    std::thread::sleep(SETTLED);
    running.check()?;
    let pid = running.0.pid();
    let mut push = |metric: &str, value| found.push(kind, format!("start, {size} leases: {metric}"), value);
    push("last object", (last - started).as_secs_f64());
    if let Some(ready) = running.0.ready_at() {
        push("READY", (ready - started).as_secs_f64() * 1000.0);
    }
    push("etcd requests", stage.fleet.requests()? - requests);
    push("CPU", usage::cpu_seconds(pid)?);
    push("memory after", usage::resident(pid)?);
    push("memory at its peak", peak.mebibytes()?);
    Ok(())
}
