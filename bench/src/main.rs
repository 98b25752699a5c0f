//! `loden-bench [GROUP…]`: runs groups of measurements (all without arguments), prints a table
//! and writes `target/bench/<group>.json`. Called by `make bench`; needs root.
//!
//! Each group measures Loden and what it is compared with in the same run, in turns, in the same
//! namespaces. It reports and never fails because something is slow: the machine may be busy.
//!
//! Environment: `LODEN_BIN_DIR`, where the programs are (else beside this one); `LODEN_BENCH_DIR`,
//! where the JSON goes (else `target/bench`); `LODEN_BENCH_ROUNDS`, at least 5 by default;
//! `FLANNEL_CNI`, flannel's CNI plugin; `FLANNELD`, flanneld (else that of `make peers`).

mod call;
mod cni;
mod contender;
mod data;
mod first_packet;
mod host;
mod report;

use std::fs;
use std::io::{Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::report::Row;

/// A group: its name, what it measures.
type Group = (&'static str, fn(u32) -> Result<Vec<Row>>);
const GROUPS: [Group; 3] = [("cni", cni::run), ("data", data::run), ("gains", data::run_gains)];
const ROUNDS: u32 = 5;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loden-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
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
    for (name, measure) in GROUPS {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let before = load();
        let rows = measure(rounds).with_context(|| format!("group {name}"))?;
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let path = dir.join(format!("{name}.json"));
        let json = serde_json::to_string_pretty(&rows)?;
        fs::write(&path, json + "\n").with_context(|| format!("write {}", path.display()))?;
        stdout().write_all(report::table(name, &rows).as_bytes())?;
        writeln!(stdout(), "  {}, load before {before}, after {}", machine(), load())?;
        eprintln!("written to {}", path.display());
    }
    Ok(())
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
