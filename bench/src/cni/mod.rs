//! The group `cni`: how long does it take to connect, check and disconnect a container? Called by
//! `main.rs`.
//!
//! Loden's plugin, flannel's chain and the kernel's floor take turns, in the same namespaces; who
//! begins changes from round to round. A round, for each of them:
//!
//! 1. 100 times, one container at a time: ADD, first packet, CHECK, DEL;
//! 2. 50 ADDs at once, 50 DELs at once;
//! 3. with 200 more containers on the host, 50 times ADD and DEL, one at a time.

mod call;
mod contender;
mod first_packet;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::host::{Sandbox, on_new_host};
use crate::quiet;
use crate::report::{Budget, Row, percentile};
use call::Call;
use contender::Contender;
use first_packet::Pinger;

const ONE_BY_ONE: usize = 100;
const AT_ONCE: usize = 50;
const PRESENT: usize = 200;
/// Untimed calls before the first round: programs and their files are then in memory.
const WARM_UP: usize = 3;
/// Between two measurements, for what the kernel still clears away.
const PAUSE: Duration = Duration::from_millis(200);

const ADD: &str = "ADD";
const DEL: &str = "DEL";
const CHECK: &str = "CHECK";
const STATUS: &str = "STATUS";
const VERSION: &str = "VERSION";
const FIRST_PACKET: &str = "first packet after ADD";
const ADD_PRESENT: &str = "ADD with 200 present";
const DEL_PRESENT: &str = "DEL with 200 present";
const ADDS: &str = "50 ADDs at once";
const DELS: &str = "50 DELs at once";

/// Measures the group.
pub(crate) fn run(rounds: u32) -> Result<Vec<Row>> {
    let plugin = program("loden-cni")?;
    let floor = program("loden-bench-floor")?;
    let size = std::fs::metadata(&plugin).with_context(|| plugin.display().to_string())?.len();
    let measured = on_new_host(|| measure(rounds, plugin, floor))?;
    let mut rows = measured.rows()?;
    // The same in every round.
    let size = vec![size as f64 / f64::from(1 << 20); rounds as usize];
    rows.push(Row::new("size of the plugin", "MiB", &size).within(Budget::Value(2.0)));
    Ok(rows)
}

/// A program that was built beside this one, or lies in `LODEN_BIN_DIR`.
fn program(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("LODEN_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::current_exe()?.parent().context("this program's folder")?.into(),
    };
    let path = folder.join(name);
    if !path.exists() {
        bail!("{} is missing: run `make bench`, which builds it", path.display());
    }
    Ok(path)
}

/// The values of each round, by metric.
type Rounds = BTreeMap<String, Vec<f64>>;

struct Measured {
    loden: Rounds,
    /// Where its programs are there; with its name.
    chain: Option<(String, Rounds)>,
    floor: Rounds,
}

/// What lies ready before any clock runs.
struct Stage {
    /// Connected all the time, one for each contender; the first packets go there.
    neighbours: Vec<Sandbox>,
    /// The containers that come and go.
    guests: Vec<Sandbox>,
    /// Those that are there in part 3.
    present: Vec<Sandbox>,
}

fn measure(rounds: u32, plugin: PathBuf, floor: PathBuf) -> Result<Measured> {
    let mut contenders = vec![Contender::loden(plugin)?];
    contenders.extend(Contender::chain()?);
    contenders.push(Contender::floor(floor)?);
    eprintln!("cni: making {} namespaces", contenders.len() + AT_ONCE + PRESENT);
    let sandboxes = |first: usize, count: usize| -> Result<Vec<Sandbox>> {
        (first..first + count).map(|number| Sandbox::new(u8::try_from(number)?)).collect()
    };
    let stage = Stage {
        neighbours: sandboxes(0, contenders.len())?,
        guests: sandboxes(contenders.len(), AT_ONCE)?,
        present: sandboxes(contenders.len() + AT_ONCE, PRESENT)?,
    };
    let mut found: Vec<Rounds> = contenders.iter().map(|_| Rounds::new()).collect();
    let mut targets = Vec::new();
    for (contender, sandbox) in contenders.iter().zip(&stage.neighbours) {
        let (_, added, _) = contender.add(sandbox)?.time()?;
        targets.push(contender.address(sandbox, &added)?);
        for guest in &stage.guests[..WARM_UP] {
            contender.add(guest)?.time()?;
            contender.del(guest)?.time()?;
        }
    }
    for round in 0..rounds as usize {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            let (contender, found) = (&contenders[which], &mut found[which]);
            eprintln!("cni: round {} of {rounds}, {}", round + 1, contender.name);
            contender.rest()?;
            quiet::wait()?;
            one_by_one(contender, &stage, targets[which], found)?;
            without_container(contender, found)?;
            at_once(contender, &stage, found)?;
            with_others(contender, &stage, found)?;
        }
    }
    let loden = found.remove(0);
    let floor = found.pop().unwrap_or_default();
    let chain = found.pop().map(|rounds| (contenders[1].name.clone(), rounds));
    Ok(Measured { loden, chain, floor })
}

/// Samples of one round, by metric. Besides median and 99th percentile the fastest goes into the
/// rounds: what it takes when nothing else wanted a CPU or the kernel's locks.
#[derive(Default)]
struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    fn take(&mut self, metric: &'static str, time: Duration) {
        self.0.entry(metric).or_default().push(milliseconds(time));
    }

    fn finish(self, found: &mut Rounds) {
        for (metric, values) in self.0 {
            push(found, &format!("{metric}, fastest"), percentile(&values, 0.0));
            push(found, &format!("{metric}, p50"), percentile(&values, 50.0));
            push(found, &format!("{metric}, p99"), percentile(&values, 99.0));
        }
        thread::sleep(PAUSE);
    }
}

fn push(found: &mut Rounds, metric: &str, value: f64) {
    found.entry(metric.into()).or_default().push(value);
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn one_by_one(
    contender: &Contender,
    stage: &Stage,
    target: std::net::Ipv4Addr,
    found: &mut Rounds,
) -> Result<()> {
    let mut samples = Samples::default();
    for guest in stage.guests.iter().cycle().take(ONE_BY_ONE) {
        let pinger = Pinger::new(&guest.ns)?;
        let (took, added, ended) = contender.add(guest)?.time()?;
        // Nothing between the end of ADD and this but reading what ADD printed.
        samples.take(FIRST_PACKET, pinger.time_since(ended, target)?);
        samples.take(ADD, took);
        if let Some(check) = contender.check(guest, &added)? {
            samples.take(CHECK, check.time()?.0);
        }
        samples.take(DEL, contender.del(guest)?.time()?.0);
    }
    samples.finish(found);
    Ok(())
}

fn without_container(contender: &Contender, found: &mut Rounds) -> Result<()> {
    // Debian's plugins do not know STATUS; the floor does nothing in either.
    if contender.name.contains("bridge") {
        return Ok(());
    }
    let mut samples = Samples::default();
    for _ in 0..ONE_BY_ONE {
        samples.take(STATUS, contender.command(STATUS)?.time()?.0);
        samples.take(VERSION, contender.command(VERSION)?.time()?.0);
    }
    samples.finish(found);
    Ok(())
}

fn at_once(contender: &Contender, stage: &Stage, found: &mut Rounds) -> Result<()> {
    push(found, ADDS, together(&stage.guests, |g| contender.add(g))?);
    thread::sleep(PAUSE);
    push(found, DELS, together(&stage.guests, |g| contender.del(g))?);
    thread::sleep(PAUSE);
    Ok(())
}

/// Seconds for all of them at once.
fn together(sandboxes: &[Sandbox], call: impl Fn(&Sandbox) -> Result<Call>) -> Result<f64> {
    let calls = sandboxes.iter().map(call).collect::<Result<_>>()?;
    Ok(Call::time_all(calls)?.0.as_secs_f64())
}

fn with_others(contender: &Contender, stage: &Stage, found: &mut Rounds) -> Result<()> {
    for part in stage.present.chunks(AT_ONCE) {
        together(part, |s| contender.add(s))?;
    }
    thread::sleep(PAUSE);
    let mut samples = Samples::default();
    for guest in &stage.guests {
        samples.take(ADD_PRESENT, contender.add(guest)?.time()?.0);
        samples.take(DEL_PRESENT, contender.del(guest)?.time()?.0);
    }
    samples.finish(found);
    for part in stage.present.chunks(AT_ONCE) {
        together(part, |s| contender.del(s))?;
    }
    thread::sleep(PAUSE);
    Ok(())
}

impl Measured {
    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        // The budget in the row's unit is Loden's alone, so it stands beside any one of the baselines.
        let mut row = |metric: &str, unit, budget: Option<f64>, of_floor: Option<f64>| -> Result<()> {
            let mut budget = budget.map(Budget::Value);
            let loden =
                self.loden.get(metric).with_context(|| format!("nothing was found for {metric:?}"))?;
            let mut add = |row: Row, own: Option<Budget>| match own.or_else(|| budget.take()) {
                Some(budget) => rows.push(row.within(budget)),
                None => rows.push(row),
            };
            let chain = self.chain.as_ref().and_then(|(name, all)| Some((name.as_str(), all.get(metric)?)));
            let floor = self.floor.get(metric);
            if let Some((name, chain)) = chain {
                add(Row::new(metric, unit, loden).beside(name, chain), None);
            }
            if let Some(floor) = floor {
                let row = Row::new(metric, unit, loden).beside("the kernel alone", floor);
                add(row, of_floor.map(Budget::Ratio));
            }
            if chain.is_none() && floor.is_none() {
                add(Row::new(metric, unit, loden), None);
            }
            Ok(())
        };
        row("ADD, fastest", "ms", None, None)?;
        row("ADD, p50", "ms", Some(2.0), None)?;
        row("ADD, p99", "ms", Some(6.0), None)?;
        row("DEL, fastest", "ms", None, None)?;
        row("DEL, p50", "ms", None, Some(1.2))?;
        row("DEL, p99", "ms", None, None)?;
        row("CHECK, p50", "ms", Some(2.0), None)?;
        row("STATUS, p50", "ms", Some(2.0), None)?;
        row("VERSION, p50", "ms", None, None)?;
        row("first packet after ADD, p50", "ms", Some(1.0), None)?;
        row("first packet after ADD, p99", "ms", None, None)?;
        row("ADD with 200 present, p50", "ms", None, None)?;
        row("DEL with 200 present, p50", "ms", None, None)?;
        row(ADDS, "s", Some(0.12), None)?;
        row(DELS, "s", Some(0.2), None)?;
        Ok(rows)
    }
}
