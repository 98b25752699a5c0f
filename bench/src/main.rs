//! `loden-bench [GROUP|PART…]`: measures parts (all without arguments), prints a table and writes
//! `target/bench/<part>.json`. Called by `make bench`; needs root.
//!
//! Each part measures Loden and what it is compared with in the same run, in turns, in the same
//! namespaces, and in a process of its own (`confined.rs`). It reports and never fails because
//! something is slow: the machine may be busy. It ends with 1 when a part could not be measured, and
//! with 2 when the machine was too noisy for most of a part; then an earlier JSON of that part stays.
//!
//! Environment: `LODEN_BIN_DIR`, where the programs are (else beside this one); `LODEN_BENCH_DIR`,
//! where the JSON goes (else `target/bench`); `LODEN_BENCH_ROUNDS`, 5 by default; `FLANNEL_CNI`,
//! `FLANNELD` and the like, where the programs of others are (`peers.rs`).

mod cni;
mod confined;
mod control;
mod cpus;
mod data;
mod dns;
mod host;
mod peers;
mod quiet;
mod report;

use std::fs;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use crate::peers::Peer;
use crate::report::{Row, Untold};

/// Measurements that belong together.
struct Part {
    /// Its group's, or its group's and its own: `cni`, `control.steady`.
    name: &'static str,
    /// Takes the number of rounds.
    measure: fn(u32) -> Result<Vec<Row>>,
    /// What it measures beside, and does without where it is missing.
    peers: &'static [Peer],
    /// Programs that it cannot do without.
    tools: &'static [&'static str],
}

const PARTS: [Part; 10] = [
    control("control.cold-start", control::cold_start),
    control("control.convergence", control::convergence),
    control("control.mass", control::mass),
    control("control.steady", control::steady),
    control("control.repair", control::repair),
    Part {
        name: "cni",
        measure: cni::run,
        peers: &[peers::BRIDGE, peers::FLANNEL_CNI],
        tools: &["ip", "nft"],
    },
    Part {
        name: "data",
        measure: data::run,
        peers: &[peers::FLANNELD, peers::BRIDGE, peers::FLANNEL_CNI],
        tools: &DATA_TOOLS,
    },
    Part { name: "gains", measure: data::run_gains, peers: &[], tools: &DATA_TOOLS },
    Part {
        name: "dns.serve",
        measure: dns::serve,
        peers: &[peers::DNSMASQ, peers::COREDNS],
        tools: &DNS_TOOLS,
    },
    Part {
        name: "dns.distribution",
        measure: dns::distribution,
        peers: &[peers::COREDNS],
        tools: &DNS_TOOLS,
    },
];
const DATA_TOOLS: [&str; 8] = ["ip", "bridge", "nft", "ethtool", "etcd", "etcdctl", "iptables", "ping"];
const DNS_TOOLS: [&str; 7] = ["ip", "bridge", "nft", "etcd", "etcdctl", "iptables", "taskset"];
const ROUNDS: u32 = 5;

const fn control(name: &'static str, measure: fn(u32) -> Result<Vec<Row>>) -> Part {
    let tools = &["ip", "bridge", "nft", "etcd", "etcdctl", "iptables"];
    Part { name, measure, peers: &[peers::FLANNELD], tools }
}

impl Part {
    fn group(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }

    fn is_meant_by(&self, argument: &str) -> bool {
        argument == self.name || argument == self.group()
    }
}

/// More take days.
const MOST_ROUNDS: u32 = 300;

/// What a part's own process tells: its rows, or why there are none.
type Answer = Result<Vec<Row>, String>;

/// How a run ended. The worst that happened to a part counts.
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let end = if confined::is_inside() { measure(&arguments) } else { run(&arguments).map(End::code) };
    end.unwrap_or_else(|error| {
        eprintln!("loden-bench: {error:#}");
        ExitCode::FAILURE
    })
}

/// Has the parts measured and reports.
fn run(wanted: &[String]) -> Result<End> {
    if let Some(unknown) = wanted.iter().find(|w| !PARTS.iter().any(|part| part.is_meant_by(w))) {
        let known: Vec<&str> = PARTS.iter().map(|part| part.name).collect();
        bail!("there is no group or part {unknown:?}; there are the parts {}", known.join(", "));
    }
    let rounds = rounds()?;
    let dir = PathBuf::from(std::env::var_os("LODEN_BENCH_DIR").unwrap_or("target/bench".into()));
    let parts: Vec<&Part> =
        PARTS.iter().filter(|part| wanted.is_empty() || wanted.iter().any(|w| part.is_meant_by(w))).collect();
    let mut remarks: Vec<String> = parts
        .iter()
        .flat_map(|part| {
            part.peers.iter().filter_map(Peer::missing).map(|m| format!("{}: {m}", part.group()))
        })
        .collect();
    remarks.dedup();
    // At the beginning, while it can still be helped, and below the table.
    remarks.iter().for_each(|line| eprintln!("{line}"));
    // Before hours of work for nothing.
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let before = load();
    let (mut end, mut measured) = (End::Measured, Vec::new());
    for part in parts {
        // One part that cannot be measured keeps none of the others from it.
        let outcome = measure_apart(part).map_err(|error| ("measured", error)).and_then(|rows| {
            let written = write(&dir, part.name, &rows);
            measured.push((part.name, rows));
            written.map_err(|error| ("written", error))
        });
        end = end.max(outcome.unwrap_or_else(|(what, error)| {
            let remark = format!("{} could not be {what}: {error:#}", part.name);
            eprintln!("loden-bench: {remark}");
            remarks.push(remark);
            End::Failed
        }));
    }
    let mut out = stdout();
    out.write_all(report::table(&measured, rounds).as_bytes())?;
    remarks.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    writeln!(out, "{}, load before {before}, after {}", machine(), load())?;
    Ok(end)
}

fn rounds() -> Result<u32> {
    let Ok(text) = std::env::var("LODEN_BENCH_ROUNDS") else { return Ok(ROUNDS) };
    let rounds = text.parse().ok().filter(|rounds| (1..=MOST_ROUNDS).contains(rounds));
    rounds.with_context(|| format!("LODEN_BENCH_ROUNDS={text:?} is no number from 1 to {MOST_ROUNDS}"))
}

/// Has a part measured by a process of its own. Code of the lab panics where a scenario would fail,
/// which in a release ends the process.
fn measure_apart(part: &Part) -> Result<Vec<Row>> {
    let missing = peers::missing_tools(part.tools);
    ensure!(missing.is_empty(), "{} missing: run `make deps`, which installs them", missing.join(", "));
    let output = confined::run(part.name)?;
    // The last line: programs that it started may have written there too.
    let answer = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    match serde_json::from_slice::<Answer>(answer) {
        Ok(answer) => answer.map_err(anyhow::Error::msg),
        Err(error) => bail!("its process ended without an answer ({}; {error})", output.status),
    }
}

/// Measures one part; in the confined child.
fn measure(arguments: &[String]) -> Result<ExitCode> {
    let part = arguments.first().and_then(|name| PARTS.iter().find(|part| part.name == name));
    let part = part.context("there is no such part")?;
    // On whatever thread, and whether or not the build unwinds: the end of this process ends all
    // others of the part.
    std::panic::set_hook(Box::new(|panic| {
        let _ = answer(&Err(panic.to_string()));
        std::process::exit(1);
    }));
    let mut rows = confined::prepare().and_then(|()| (part.measure)(rounds()?));
    if let Some(rows) = rows.as_mut().ok().filter(|_| quiet::given_up()) {
        rows.iter_mut().for_each(Row::disturb);
    }
    answer(&rows.map_err(|error| format!("{error:#}")))?;
    Ok(ExitCode::SUCCESS)
}

fn answer(answer: &Answer) -> Result<()> {
    let text = serde_json::to_string(answer)?;
    Ok(writeln!(stdout(), "\n{text}")?)
}

/// Writes a part's JSON. Numbers that say nothing do not take the place of earlier ones.
fn write(dir: &Path, part: &str, rows: &[Row]) -> Result<End> {
    let path = dir.join(format!("{part}.json"));
    let untold = report::untold(rows);
    let end = if untold == Some(Untold::TooNoisy) { End::TooNoisy } else { End::Measured };
    if let Some(untold) = untold.filter(|_| path.exists()) {
        let why = match untold {
            Untold::TooNoisy => "the machine was too noisy for most rows",
            Untold::TooFew => "too few rounds for most rows",
        };
        eprintln!("{part}: {why}; {} stays as it was", path.display());
        return Ok(end);
    }
    // Beside it, then over it: an interrupt leaves the earlier one whole.
    let new = path.with_extension("json.new");
    fs::write(&new, report::json(rows)?).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, &path).with_context(|| format!("write {}", path.display()))?;
    eprintln!("{part}: written to {}", path.display());
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
