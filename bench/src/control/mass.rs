//! Many at once: 10,000 hosts join, and 40 % of them leave, while a daemon watches.

use anyhow::Result;

use super::contender::{Found, Kind, Limit, Metric};
use super::notices::{Direction, Notices};
use super::{FEW, MANY, SHORT, Stage, fleet, usage};
use crate::quiet;
use crate::report::Row;

/// What leaves at once: more would be held (`--peer-hold`).
const LEAVING: u32 = MANY / 10 * 4;

/// Seconds for which Loden keeps a peer whose lease is gone, since a living host writes it again.
const GRACE: f64 = 1.0;

const FROM_FIRST_PUT: Metric = Metric { name: "first put to last route", unit: "s" };
const AFTER_LAST_PUT: Metric = Metric { name: "after the last put", unit: "s" };
const AFTER_DELETE: Metric = Metric { name: "after the delete", unit: "s" };
const CPU: Metric = Metric { name: "CPU", unit: "s" };
const MEMORY: Metric = Metric { name: "memory after", unit: "MiB" };

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let (mut join, mut leave) = (Found::new("10,000 join"), Found::new("4,000 leave"));
    stage.in_turns(SHORT * stage.rounds, "10,000 join and 4,000 leave", |stage, kind| {
        stage.fleet.resize(FEW)?;
        mass(stage, kind, &mut join, &mut leave)
    })?;
    let mut rows = join.rows(FROM_FIRST_PUT, Limit::None)?;
    rows.extend(join.rows(AFTER_LAST_PUT, Limit::Value(0.2))?);
    rows.extend(join.rows(CPU, Limit::Times(0.1, Kind::Flanneld))?);
    rows.extend(join.rows(MEMORY, Limit::None)?);
    rows.extend(leave.rows(AFTER_DELETE, Limit::Value(GRACE + 0.2))?);
    rows.extend(leave.rows(CPU, Limit::Times(0.1, Kind::Flanneld))?);
    Ok(rows)
}

fn mass(stage: &mut Stage<'_>, kind: Kind, join: &mut Found, leave: &mut Found) -> Result<()> {
    let host = stage.host();
    let notices = Notices::of_routes(&host.ns())?;
    let running = kind.start(&host)?;
    let pid = running.pid();
    running.wait_for_routes(&notices, fleet::routes(0..FEW), Direction::Come)?;

    quiet::wait()?;
    let before = usage::cpu_seconds(pid)?;
    let puts = stage.fleet.put_all(FEW..MANY)?;
    let told = running.wait_for_routes(&notices, fleet::routes(FEW..MANY), Direction::Come)?;
    join.push(kind, FROM_FIRST_PUT, (told.last_route - puts.first_sent).as_secs_f64());
    // Beside one that keeps up as well it is only chance which of the two is ahead.
    if kind == Kind::Loden {
        let after = told.last_change.saturating_duration_since(puts.last_answered);
        join.push(kind, AFTER_LAST_PUT, after.as_secs_f64());
    }
    join.push(kind, CPU, usage::cpu_seconds(pid)? - before);
    join.push(kind, MEMORY, usage::resident(pid)?);
    running.has_in_place(MANY)?;

    quiet::wait()?;
    let before = usage::cpu_seconds(pid)?;
    let deleted = stage.fleet.delete_all(MANY - LEAVING..MANY)?;
    let told = running.wait_for_routes(&notices, fleet::routes(MANY - LEAVING..MANY), Direction::Go)?;
    let after = told.last_change.saturating_duration_since(deleted);
    leave.push(kind, AFTER_DELETE, after.as_secs_f64());
    leave.push(kind, CPU, usage::cpu_seconds(pid)? - before);
    running.has_in_place(MANY - LEAVING)
}
