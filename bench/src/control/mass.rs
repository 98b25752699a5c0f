//! Many at once: 10,000 hosts join, and 40 % of them leave, while a daemon watches.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::contender::{Found, Kind};
use super::notices::{Notices, address};
use super::{FEW, MANY, Stage, fleet, usage};
use crate::report::{Budget, Row};

const LIMIT: Duration = Duration::from_secs(120);
const SILENCE: Duration = Duration::from_secs(1);
/// What leaves at once: more would be held (`--peer-hold`).
const LEAVING: u32 = MANY / 10 * 4;

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    let mut found = Found::default();
    for round in 0..stage.rounds as usize {
        for turn in 0..stage.kinds.len() {
            let kind = stage.kinds[(round + turn) % stage.kinds.len()];
            eprintln!("control: {MANY} join, round {} of {}, {}", round + 1, stage.rounds, kind.name());
            stage.fleet.resize(FEW)?;
            mass(stage, kind, round, &mut found)?;
        }
    }
    let tenth = [(Some(Kind::Flanneld), Budget::Ratio(0.1))];
    let mut rows = found.rows("10,000 join: after the last put", "s", &[(None, Budget::Value(0.2))]);
    rows.extend(found.rows("10,000 join: CPU", "s", &tenth));
    rows.extend(found.rows("10,000 join: memory after", "MiB", &[]));
    rows.extend(found.rows("4,000 leave: after the delete", "s", &[]));
    rows.extend(found.rows("4,000 leave: CPU", "s", &[]));
    Ok(rows)
}

fn mass(stage: &mut Stage<'_>, kind: Kind, round: usize, found: &mut Found) -> Result<()> {
    let host = stage.lab.host(&format!("mass-{kind:?}-{round}").to_lowercase());
    let notices = Notices::of(&host.ns())?;
    let (running, _) = kind.start(&host)?;
    let pid = running.0.pid();
    let few = (0..FEW).map(|h| address(fleet::subnet(h))).collect();
    notices.wait_for_all(few, false, LIMIT, SILENCE)?;

    let before = usage::cpu_seconds(pid)?;
    let last_put = stage.fleet.put_all(FEW..MANY)?;
    let joined = (FEW..MANY).map(|h| address(fleet::subnet(h))).collect();
    let (_, last) = notices.wait_for_all(joined, false, LIMIT, SILENCE)?;
    found.push(
        kind,
        "10,000 join: after the last put",
        last.saturating_duration_since(last_put).as_secs_f64(),
    );
    found.push(kind, "10,000 join: CPU", usage::cpu_seconds(pid)? - before);
    found.push(kind, "10,000 join: memory after", usage::resident(pid)?);
    running.check()?;

    let before = usage::cpu_seconds(pid)?;
    let deleted = stage.fleet.delete_all(MANY - LEAVING..MANY)?;
    let left = (MANY - LEAVING..MANY).map(|h| address(fleet::subnet(h))).collect();
    let (_, last) = notices.wait_for_all(left, true, LIMIT, SILENCE)?;
    found.push(kind, "4,000 leave: after the delete", last.saturating_duration_since(deleted).as_secs_f64());
    found.push(kind, "4,000 leave: CPU", usage::cpu_seconds(pid)? - before);
    ensure!(stage.fleet.leases()? >= i64::from(MANY - LEAVING), "leases were lost");
    stage.fleet.delete_all(FEW..MANY)?;
    Ok(())
}
