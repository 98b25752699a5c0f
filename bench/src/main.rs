//! `loden-bench [GROUP…]`: runs groups of measurements (all without arguments), prints a table
//! and writes `target/bench/<group>.json`. Called by `make bench`; needs root.
//!
//! Each group measures Loden and what it is compared with in the same run, in turns, in the same
//! namespaces. It reports and never fails because something is slow: the machine may be busy. It
//! ends with 1 when a group could not be measured, and with 2 when the machine was too noisy for
//! most of a group; then an earlier JSON of that group stays.
//!
//! Environment: `LODEN_BIN_DIR`, where the programs are (else beside this one); `LODEN_BENCH_DIR`,
//! where the JSON goes (else `target/bench`); `LODEN_BENCH_ROUNDS`, 5 by default; `FLANNEL_CNI`,
//! `FLANNELD` and the like, where the programs of others are (`peers.rs`).

mod call;
mod cni;
mod confined;
mod contender;
mod control;
mod data;
mod first_packet;
mod host;
mod peers;
mod report;

use std::fs;
use std::io::{Write as _, stdout};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::peers::Peer;
use crate::report::{Row, Untold};

/// Measurements that belong together.
struct Group {
    name: &'static str,
    /// Takes the number of rounds.
    measure: fn(u32) -> Result<Vec<Row>>,
    /// What it measures beside, and does without where it is missing.
    peers: &'static [Peer],
}

const GROUPS: [Group; 4] = [
    Group { name: "control", measure: control::run, peers: &[peers::FLANNELD] },
    Group { name: "cni", measure: cni::run, peers: &[peers::BRIDGE, peers::FLANNEL_CNI] },
    Group { name: "data", measure: data::run, peers: &[peers::FLANNELD, peers::BRIDGE, peers::FLANNEL_CNI] },
    Group { name: "gains", measure: data::run_gains, peers: &[] },
];
const ROUNDS: u32 = 5;

/// How a run ended. The worst that happened to a group counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Measured,
    TooNoisy,
    Failed,
}

impl End {
    fn code(self) -> ExitCode {
        match self {
            End::Measured => ExitCode::SUCCESS,
            End::Failed => ExitCode::FAILURE,
            End::TooNoisy => ExitCode::from(2),
        }
    }
}

fn main() -> ExitCode {
    let end = confined::run().and_then(|end| match end {
        Some(end) => Ok(end),
        None => run().map(End::code),
    });
    end.unwrap_or_else(|error| {
        eprintln!("loden-bench: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<End> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|w| GROUPS.iter().all(|group| group.name != *w)) {
        let known: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
        bail!("there is no group {unknown:?}; there are: {}", known.join(", "));
    }
    let rounds = match std::env::var("LODEN_BENCH_ROUNDS") {
        Ok(text) => {
            let number: NonZeroU32 =
                text.parse().with_context(|| format!("LODEN_BENCH_ROUNDS={text:?} is no number above 0"))?;
            number.get()
        }
        Err(_) => ROUNDS,
    };
    let dir = PathBuf::from(std::env::var_os("LODEN_BENCH_DIR").unwrap_or("target/bench".into()));
    let groups: Vec<&Group> =
        GROUPS.iter().filter(|group| wanted.is_empty() || wanted.iter().any(|w| w == group.name)).collect();
    let missing: Vec<String> = groups
        .iter()
        .flat_map(|group| {
            group.peers.iter().filter_map(Peer::missing).map(|m| format!("{}: {m}", group.name))
        })
        .collect();
    // At the beginning, while it can still be helped, and below the table.
    missing.iter().for_each(|line| eprintln!("{line}"));
    let before = load();
    let (mut end, mut measured) = (End::Measured, Vec::new());
    for group in groups {
        // One group that cannot be measured keeps none of the others from it.
        match (group.measure)(rounds).and_then(|rows| Ok((write(&dir, group.name, &rows)?, rows))) {
            Ok((written, rows)) => {
                end = end.max(written);
                measured.push((group.name, rows));
            }
            Err(error) => {
                eprintln!("loden-bench: group {}: {error:#}", group.name);
                end = End::Failed;
            }
        }
    }
    let mut out = stdout();
    out.write_all(report::table(&measured, rounds).as_bytes())?;
    missing.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    writeln!(out, "{}, load before {before}, after {}", machine(), load())?;
    Ok(end)
}

/// Writes a group's JSON. Numbers that say nothing do not take the place of earlier ones.
fn write(dir: &Path, group: &str, rows: &[Row]) -> Result<End> {
    let path = dir.join(format!("{group}.json"));
    let untold = report::untold(rows);
    let end = if untold == Some(Untold::TooNoisy) { End::TooNoisy } else { End::Measured };
    if let Some(untold) = untold.filter(|_| path.exists()) {
        let why = match untold {
            Untold::TooNoisy => "the machine was too noisy for most rows",
            Untold::TooFew => "too few rounds for most rows",
        };
        eprintln!("{group}: {why}; {} stays as it was", path.display());
        return Ok(end);
    }
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    // Beside it, then over it: an interrupt leaves the earlier one whole.
    let new = path.with_extension("json.new");
    fs::write(&new, report::json(rows)?).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))?;
    eprintln!("{group}: written to {}", path.display());
    Ok(end)
}

/// Processes that wanted a CPU lately, on average over a minute: with more than there are CPUs,
/// others' work is in the numbers.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn machine() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("Linux {}, {cpus} CPUs", release.trim())
}
