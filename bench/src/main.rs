//! `loden-bench [GROUP…]`: runs groups of measurements (all without arguments), prints a table
//! and writes `target/bench/<group>.json`. Called by `make bench`; needs root.
//!
//! Each group measures Loden and what it is compared with in the same run, in turns, in the same
//! namespaces. It reports and never fails because something is slow: the machine may be busy. It
//! ends with 1 when a group could not be measured, and with 2 when the machine was too noisy for
//! most of a group; then an earlier JSON of that group stays.
//!
//! Environment: `LODEN_BIN_DIR`, where the programs are (else beside this one); `LODEN_BENCH_DIR`,
//! where the JSON goes (else `target/bench`); `LODEN_BENCH_ROUNDS`, at least 5 by default;
//! `FLANNEL_CNI`, flannel's CNI plugin.

mod call;
mod cni;
mod contender;
mod first_packet;
mod host;
mod report;

use std::fs;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::report::Row;

/// A group: its name, what it measures.
type Group = (&'static str, fn(u32) -> Result<Vec<Row>>);
const GROUPS: [Group; 1] = [("cni", cni::run)];
const ROUNDS: u32 = 5;

/// How a run ended. The worst that happened to a group counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Measured,
    TooNoisy,
    Failed,
}

fn main() -> ExitCode {
    let end = run().unwrap_or_else(|error| {
        eprintln!("loden-bench: {error:#}");
        End::Failed
    });
    match end {
        End::Measured => ExitCode::SUCCESS,
        End::Failed => ExitCode::FAILURE,
        End::TooNoisy => ExitCode::from(2),
    }
}

fn run() -> Result<End> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|w| GROUPS.iter().all(|(name, _)| name != w)) {
        let known: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
        bail!("there is no group {unknown:?}; there are: {}", known.join(", "));
    }
    let rounds = match std::env::var("LODEN_BENCH_ROUNDS") {
        Ok(text) => text.parse().with_context(|| format!("LODEN_BENCH_ROUNDS={text:?} is no number"))?,
        Err(_) => ROUNDS,
    };
    let dir = PathBuf::from(std::env::var_os("LODEN_BENCH_DIR").unwrap_or("target/bench".into()));
    let before = load();
    let (mut end, mut measured) = (End::Measured, Vec::new());
    for (name, measure) in
        GROUPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| w == name))
    {
        // One group that cannot be measured keeps none of the others from it.
        match measure(rounds).and_then(|rows| Ok((write(&dir, name, &rows)?, rows))) {
            Ok((written, rows)) => {
                end = end.max(written);
                measured.push((*name, rows));
            }
            Err(error) => {
                eprintln!("loden-bench: group {name}: {error:#}");
                end = End::Failed;
            }
        }
    }
    let mut out = stdout();
    out.write_all(report::table(&measured, rounds).as_bytes())?;
    writeln!(out, "{}, load before {before}, after {}", machine(), load())?;
    Ok(end)
}

/// Writes a group's JSON. Numbers that say nothing do not take the place of earlier ones.
fn write(dir: &Path, group: &str, rows: &[Row]) -> Result<End> {
    let path = dir.join(format!("{group}.json"));
    let noisy = report::is_too_noisy(rows);
    if noisy && path.exists() {
        eprintln!("{group}: the machine was too noisy for most rows; {} stays as it was", path.display());
        return Ok(End::TooNoisy);
    }
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    fs::write(&path, report::json(rows)?).with_context(|| format!("write {}", path.display()))?;
    eprintln!("{group}: written to {}", path.display());
    Ok(if noisy { End::TooNoisy } else { End::Measured })
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
