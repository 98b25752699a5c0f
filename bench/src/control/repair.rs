//! Drift: what a full pass over 10,000 peers costs when there is none, how soon 1,000 deleted
//! objects are back, and what a restart writes when everything is in place.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::contender::{Found, Kind, Running};
use super::notices::{Notices, address};
use super::{MANY, Stage, fleet, usage};
use crate::report::{Budget, Row};
use anyhow::Result;

const LIMIT: Duration = Duration::from_secs(120);
const SILENCE: Duration = Duration::from_secs(1);
const DELETED: u32 = 1_000;
/// Passes to take the mean of.
const PASSES: u32 = 20;

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    stage.fleet.resize(MANY)?;
    let mut found = Found::default();
    let host = stage.lab.host("drift");
    let notices = Notices::of(&host.ns())?;
    // A second is the shortest time between full passes.
    let running = Running(host.daemon(&["--resync=1s"]));
    let all = || (0..MANY).map(|h| address(fleet::subnet(h))).collect();
    notices.wait_for_all(all(), false, LIMIT, SILENCE)?;
    sleep(Duration::from_secs(2));
    for round in 0..stage.rounds {
        eprintln!("control: drift, round {} of {}", round + 1, stage.rounds);
        let before = usage::cpu_seconds(running.0.pid())?;
        sleep(Duration::from_secs(1) * PASSES);
        let each = (usage::cpu_seconds(running.0.pid())? - before) / f64::from(PASSES);
        found.push(Kind::Loden, "full pass without drift: CPU", each * 1000.0);
    }
    drop(running);

    let (running, _) = Kind::Loden.start(&host)?;
    sleep(Duration::from_secs(3));
    for _ in 0..stage.rounds {
        notices.forget();
        let start = Instant::now();
        host.ip(&(0..DELETED).map(|h| format!("route del {}\n", fleet::subnet(h))).collect::<String>());
        let deleted = (0..DELETED).map(|h| address(fleet::subnet(h))).collect();
        let (last, _) = notices.wait_for_all(deleted, false, LIMIT, SILENCE)?;
        found.push(Kind::Loden, "1,000 routes deleted: all back", (last - start).as_secs_f64());
        // Repairs in a row wait longer each time; ten seconds of peace end that.
        sleep(Duration::from_secs(11));
    }
    drop(running);

    for _ in 0..stage.rounds {
        notices.forget();
        let (running, _) = Kind::Loden.start(&host)?;
        let mut changes = 0;
        while notices.next(Duration::from_secs(3))?.is_some() {
            changes += 1;
        }
        running.check()?;
        found.push(
            Kind::Loden,
            "restart with everything in place: changes in the kernel",
            f64::from(changes),
        );
    }
    let mut rows = found.rows("full pass without drift: CPU", "ms", &[(None, Budget::Value(50.0))]);
    rows.extend(found.rows("1,000 routes deleted: all back", "s", &[(None, Budget::Value(1.0))]));
    rows.extend(found.rows(
        "restart with everything in place: changes in the kernel",
        "",
        &[(None, Budget::Value(0.0))],
    ));
    Ok(rows)
}
