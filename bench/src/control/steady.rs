//! Steady state: what a daemon with 10,000 peers costs while nothing happens.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::contender::Found;
use super::notices::{Notices, address};
use super::{MANY, Stage, fleet, usage};
use crate::report::{Budget, Row};

const LIMIT: Duration = Duration::from_secs(120);
const SILENCE: Duration = Duration::from_secs(2);
/// How long each is looked at. Four full passes of Loden's fall into it.
const OBSERVED: Duration = Duration::from_secs(120);

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    stage.fleet.resize(MANY)?;
    let mut found = Found::default();
    for kind in stage.kinds.clone() {
        let host = stage.lab.host(&format!("steady-{kind:?}").to_lowercase());
        let notices = Notices::of(&host.ns())?;
        let (running, _) = kind.start(&host)?;
        let pid = running.0.pid();
        let wanted = (0..MANY).map(|h| address(fleet::subnet(h))).collect();
        notices.wait_for_all(wanted, false, LIMIT, SILENCE)?;
        eprintln!("control: {} at rest for {} s", kind.name(), OBSERVED.as_secs());
        let before =
            (Instant::now(), stage.fleet.requests()?, usage::cpu_seconds(pid)?, usage::wake_ups(pid)?);
        sleep(OBSERVED);
        let hours = before.0.elapsed().as_secs_f64() / 3600.0;
        found.push(kind, "at rest: etcd requests an hour", (stage.fleet.requests()? - before.1) / hours);
        let share = (usage::cpu_seconds(pid)? - before.2) / hours / 36.0;
        found.push(kind, "at rest: CPU", share);
        found.push(kind, "at rest: wake-ups an hour", (usage::wake_ups(pid)? - before.3) / hours);
        running.check()?;
        drop(running);
        stage.fleet.resize(MANY)?;
    }
    let mut rows = found.rows("at rest: etcd requests an hour", "", &[]);
    rows.extend(found.rows("at rest: CPU", "%", &[(None, Budget::Value(0.1))]));
    rows.extend(found.rows("at rest: wake-ups an hour", "", &[]));
    Ok(rows)
}
