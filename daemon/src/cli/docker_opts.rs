//! `loden docker-opts`: what dockerd must be told on this host.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use loden_cni::bridge;
use loden_cni::ifname::IfName;
use loden_core::docker::{self, DaemonOptions, Told, Version};
use loden_netlink::Socket;
use loden_proto::subnet_env::{LeaseState, SubnetEnv};
use loden_proto::{DEFAULT_BRIDGE, Subnet};

use super::daemon::{MarkArgs, duration};
use super::output::print;
use crate::endpoints;
use crate::files::write_atomically;
use crate::state::DOCKER_SHARES;

/// Print the options that make Docker's containers members of the overlay.
#[derive(Debug, Args)]
#[command(
    after_help = "Without --json or --network the output is a systemd EnvironmentFile with the names of flannel's mk-docker-opts: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU, ..., DOCKER_OPTS.\n\n  loden docker-opts --output /run/loden/docker.env    for the drop-in that packaging/docker holds\n  loden docker-opts --json > /etc/docker/daemon.json  for dockerd alone; then restart it\n  $(loden docker-opts --network hdfs)                 for a network of its own, as compose uses it\n\nAn option that a dockerd does not know keeps it from starting, so the output follows the installed version. What a form cannot say goes to standard error, and the exit code is then 1."
)]
pub(super) struct DockerOptsArgs {
    /// Version of Docker [default: asks the installed dockerd]
    #[arg(long, value_name = "VERSION")]
    docker_version: Option<Version>,
    /// Print daemon.json
    #[arg(long)]
    json: bool,
    /// Print the command that makes a Docker network of this name
    #[arg(id = "docker_network", long = "network", value_name = "NAME", value_parser = docker::network_name, conflicts_with_all = ["json", "shared"])]
    network: Option<String>,
    /// One bridge for Docker and the CNI plugin: Docker hands out the upper half of the subnet, the
    /// plugin the lower. Makes the bridge, and remembers it for the plugin; needs root
    #[arg(long)]
    shared: bool,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How long to wait for this host's subnet if it is not there yet
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: Duration,
    /// Folder of the daemon's run-time state
    #[arg(long, value_name = "DIR", default_value = "/run/loden")]
    run_dir: PathBuf,
    /// Folder of the daemon's lasting state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/loden")]
    state_dir: PathBuf,
    /// The daemon's subnet file [default: <run-dir>/subnet.env]
    #[arg(long, value_name = "FILE")]
    subnet_file: Option<PathBuf>,
    #[command(flatten)]
    mark: MarkArgs,
}

pub(super) async fn run(args: DockerOptsArgs) -> anyhow::Result<()> {
    let subnet_file = args.subnet_file.clone().unwrap_or_else(|| args.run_dir.join("subnet.env"));
    let version = match args.docker_version {
        Some(version) => version,
        None => installed_version()?,
    };
    let mark = args.mark.value_and_mask()?;
    let marker = args.state_dir.join(DOCKER_SHARES);
    if args.shared {
        let new = !marker.exists();
        let told = shared(&args, &subnet_file, &marker, version, mark).await;
        if new && told.as_ref().map_or(true, |t| !t.unsaid.is_empty()) {
            // What was refused leaves nothing behind.
            let _ = std::fs::remove_file(&marker);
        }
        return hand_over(&args, told?);
    }
    if marker.exists() {
        eprintln!(
            "loden: the CNI plugin still leaves the upper half of the subnet to Docker; if Docker no longer uses its bridge, remove {}",
            marker.display()
        );
    }
    let env = subnet_env(&subnet_file, args.wait, false).await?;
    warn_of_no_masquerade(&env);
    let told = match &args.network {
        Some(name) => {
            tell_of_names(&env);
            docker::network_line(&env, version, name)
        }
        None => {
            let options = DaemonOptions::new(&env, version, mark, false);
            if args.json { options.json() } else { options.environment_file() }
        }
    };
    hand_over(&args, told)
}

/// Docker on the plugin's bridge: the daemon is told of it, which tells the plugin, and the bridge is
/// made.
async fn shared(
    args: &DockerOptsArgs,
    subnet_file: &Path,
    marker: &Path,
    version: Version,
    mark: (u32, u32),
) -> anyhow::Result<Told> {
    let env = subnet_env(subnet_file, args.wait, false).await?;
    let halves: Vec<Subnet> = env.subnets.iter().filter_map(Subnet::upper_half).collect();
    refuse_taken(&args.run_dir, &halves)?;
    std::fs::write(marker, "").with_context(|| {
        format!("cannot make {}; be root, and run the daemon of this network first", marker.display())
    })?;
    let env = subnet_env(subnet_file, args.wait, true).await?;
    // Handed out before the plugin could know.
    refuse_taken(&args.run_dir, &halves)?;
    make_bridge(&env)?;
    warn_of_no_masquerade(&env);
    let options = DaemonOptions::new(&env, version, mark, true);
    Ok(if args.json { options.json() } else { options.environment_file() })
}

fn warn_of_no_masquerade(env: &SubnetEnv) {
    if !env.masquerade {
        eprintln!(
            "loden: neither the daemon (--ip-masq=false) nor Docker masquerades: containers reach the outside only where it has a route back"
        );
    }
}

/// A network of Docker's has no servers of its own: Docker's resolver there asks those of dockerd.
fn tell_of_names(env: &SubnetEnv) {
    if let Some(dns) = env.dns.as_ref().filter(|dns| !dns.addresses.is_empty()) {
        let servers: Vec<String> = dns.addresses.iter().map(|ip| format!("--dns={ip}")).collect();
        eprintln!(
            "loden: for names of other hosts' containers give dockerd, or docker run, also {} --dns-search={} --dns-opt=ndots:2",
            servers.join(" "),
            dns.zone
        );
    }
}

fn hand_over(args: &DockerOptsArgs, told: Told) -> anyhow::Result<()> {
    let Told { text, unsaid } = told;
    match &args.output {
        Some(path) => write_atomically(path, text.as_bytes(), 0o644)?,
        None => print(&text)?,
    }
    if unsaid.is_empty() { Ok(()) } else { bail!("{}", unsaid.join("\nloden: ")) }
}

fn installed_version() -> anyhow::Result<Version> {
    for program in ["dockerd", "/usr/sbin/dockerd", "/usr/bin/dockerd"] {
        match std::process::Command::new(program).arg("--version").output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot run {program} --version")),
            Ok(output) => {
                let answer = String::from_utf8_lossy(&output.stdout).into_owned();
                return docker::version_of(&answer).with_context(|| {
                    format!("{program} --version answers {:?}; give --docker-version", answer.trim())
                });
            }
        }
    }
    bail!("dockerd is not installed here; give --docker-version, such as --docker-version 28.2.1")
}

/// The daemon looks every two seconds whether its file is as it should be.
const NOTICED: Duration = Duration::from_secs(5);

/// This host's subnet, as soon as it may be used.
async fn subnet_env(path: &Path, wait: Duration, shared: bool) -> anyhow::Result<SubnetEnv> {
    let started = Instant::now();
    let mut told = false;
    loop {
        let (reason, limit) = match read(path) {
            Ok(env) if shared && env.docker_ranges.len() < env.subnets.len() => (
                anyhow::anyhow!(
                    "the daemon has not noticed that Docker is to share the bridge; does it run (loden status)?"
                ),
                wait.max(NOTICED),
            ),
            // At boot the daemon knows its subnet some moments before it answers for names.
            Ok(env) if names_are_late(&env) && started.elapsed() < wait.min(NOTICED) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Ok(env) => return Ok(env),
            Err(reason) => (reason, wait),
        };
        if started.elapsed() >= limit {
            return Err(reason);
        }
        if !told && started.elapsed() >= Duration::from_secs(2) {
            told = true;
            eprintln!("loden: waiting up to {} s: {reason:#}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn names_are_late(env: &SubnetEnv) -> bool {
    env.dns.as_ref().is_some_and(|dns| dns.addresses.is_empty())
}

fn read(path: &Path) -> anyhow::Result<SubnetEnv> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}: this host has no subnet yet; start the daemon (loden status)",
            path.display()
        )
    })?;
    let env = SubnetEnv::parse(&text).map_err(|e| anyhow::anyhow!("{} {e}", path.display()))?;
    if env.lease == LeaseState::Lost {
        bail!("{}: this host's subnet is not surely its own (loden status)", path.display());
    }
    Ok(env)
}

fn refuse_taken(run_dir: &Path, halves: &[Subnet]) -> anyhow::Result<()> {
    let taken: Vec<String> = endpoints::all(&run_dir.join("ipam"))
        .into_iter()
        .map(|found| found.allocation)
        .filter(|a| halves.iter().any(|half| half.contains(a.address)))
        .map(|a| format!("{} of container {}", a.address, a.container_id))
        .collect();
    if !taken.is_empty() {
        bail!(
            "the plugin has already handed out addresses of Docker's half: {}; end these containers first",
            taken.join(", ")
        );
    }
    Ok(())
}

/// Makes the bridge that dockerd expects to find, as the plugin's first ADD would.
fn make_bridge(env: &SubnetEnv) -> anyhow::Result<()> {
    let name = IfName::new(env.bridge.as_deref().unwrap_or(DEFAULT_BRIDGE)).map_err(anyhow::Error::msg)?;
    let mut socket = Socket::route().context("cannot open an rtnetlink socket")?;
    let plan = bridge::Plan { name: &name, subnets: &env.subnets, networks: &env.networks, mtu: env.mtu };
    bridge::ensure(&mut socket, plan, |_| Ok(true))?;
    Ok(())
}
