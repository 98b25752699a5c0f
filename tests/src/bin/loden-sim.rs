//! `loden-sim`: a fleet of simulated hosts on one real etcd. Called by `make sim`; needs root and an
//! installed etcd.

use std::fs::{self, OpenOptions};
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use loden_tests::Lab;
use loden_tests::fleet::report::Report;
use loden_tests::fleet::{Fleet, FleetOptions, Scenario, check_memory, raise_descriptor_limit, run_beside};
use tokio::signal::unix::{SignalKind, signal};

/// Runs the control planes of many daemons against one real etcd.
///
/// Each host is the daemon's own code: reading and watching etcd, claiming and keeping a lease,
/// deciding what its kernel should hold. Only the kernel is modelled. After each scenario every lease
/// and every modelled kernel is checked; what is wrong is listed, and the exit code is 1.
///
/// Everything runs in namespaces and folders of its own and is gone afterwards. All hosts share one
/// thread: CPU time per host is a daemon's, and times until hosts converge include waiting for their turn.
#[derive(Debug, Parser)]
#[command(
    name = "loden-sim",
    after_help = "Examples:\n  loden-sim --hosts 100                      all scenarios, some minutes\n  loden-sim --hosts 1000 --scenario restart  a start, then a restart of all\n  loden-sim --hosts 300 --scenario steady --steady 30 --lease-ttl 15"
)]
struct Arguments {
    /// How many hosts. Memory grows with the square: 1,000 take 3 GiB
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    hosts: u32,
    /// What is done to them, after they have started. May be given several times
    #[arg(long, value_enum, default_value = "all")]
    scenario: Vec<Choice>,
    /// Subnet lease TTL of every daemon in seconds, as --subnet-lease-ttl of `loden daemon`
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=LONGEST_LEASE))]
    lease_ttl: u64,
    /// How long the steady state is observed, in seconds. Keep-alives come every third of the TTL, at
    /// most every minute: with the default TTL less than a minute sees none
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=DAY))]
    steady: u64,
    /// Into how many batches a rolling upgrade divides the hosts
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    batches: u32,
    /// How long a scenario may take until all hosts have converged, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=DAY))]
    limit: u64,
    /// Where the results go as JSON
    #[arg(long, default_value = "target/bench/sim.json", value_name = "FILE")]
    json: PathBuf,
}

const DAY: u64 = 86_400;
/// etcd grants no longer one.
const LONGEST_LEASE: u64 = 9_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// All start at once
    Start,
    /// Nothing happens, then single leases come and go
    Steady,
    /// All are killed and started again at once
    Restart,
    /// etcd is ended and started again
    EtcdRestart,
    /// etcd is killed and started again
    EtcdKill,
    /// Batch after batch restarts, unchanged
    RollingRestart,
    /// Batch after batch restarts, upgraded
    RollingUpgrade,
    /// All of them
    All,
}

impl Arguments {
    /// What is played after the start.
    fn scenarios(&self) -> Vec<Scenario> {
        let chosen = |wanted: Choice| self.scenario.contains(&Choice::All) || self.scenario.contains(&wanted);
        let of = |scenario: &Scenario| match scenario {
            Scenario::Start => true,
            Scenario::Steady => chosen(Choice::Steady),
            Scenario::Restart => chosen(Choice::Restart),
            Scenario::EtcdRestart => chosen(Choice::EtcdRestart),
            Scenario::EtcdKill => chosen(Choice::EtcdKill),
            Scenario::RollingRestart => chosen(Choice::RollingRestart),
            Scenario::RollingUpgrade => chosen(Choice::RollingUpgrade),
        };
        Scenario::ALL.into_iter().filter(of).collect()
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loden-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all was well.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if !rustix::process::geteuid().is_root() {
        bail!("network namespaces need root; run it with sudo");
    }
    check_memory(arguments.hosts as usize)?;
    prepare_results(&arguments.json)?;
    raise_descriptor_limit(arguments.hosts as usize)?;
    let options = FleetOptions {
        hosts: arguments.hosts as usize,
        lease_ttl: arguments.lease_ttl,
        limit: Duration::from_secs(arguments.limit),
        steady: Duration::from_secs(arguments.steady),
        batches: arguments.batches as usize,
        progress: true,
    };
    let scenarios = arguments.scenarios();
    let lab = Lab::new("sim");
    let reports = run_beside(&lab.etcd(), async || {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            reports = play(&lab, options, &scenarios) => reports,
            _ = terminate.recv() => bail!("terminated"),
            _ = interrupt.recv() => bail!("interrupted"),
        }
    })?;
    let json = serde_json::to_string_pretty(&reports)?;
    fs::write(&arguments.json, json + "\n").with_context(|| format!("write {}", arguments.json.display()))?;
    eprintln!("written to {}", arguments.json.display());
    Ok(reports.iter().all(|report| report.findings.is_empty()))
}

/// Fails before a run of minutes rather than after it. Earlier results stay until there are new ones.
fn prepare_results(file: &Path) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let there = file.exists();
    let opened = OpenOptions::new().append(true).create(true).open(file);
    opened.with_context(|| format!("write {}", file.display()))?;
    // Of a run that is interrupted nothing is left that looks like results.
    if there { Ok(()) } else { Ok(fs::remove_file(file)?) }
}

async fn play(lab: &Lab, options: FleetOptions, scenarios: &[Scenario]) -> anyhow::Result<Vec<Report>> {
    let mut fleet = Fleet::new(lab, options).await?;
    let mut reports = Vec::new();
    for scenario in scenarios {
        let report = fleet.play(*scenario).await?;
        writeln!(stdout(), "{report}")?;
        reports.push(report);
    }
    Ok(reports)
}
