//! `loden cleanup`: take out of the kernel exactly what Loden made.

use std::process::Stdio;

use anyhow::{Context, bail};
use clap::Args;
use loden_core::diff::{self, Operation};
use loden_core::observed::Observed;
use loden_core::options::Options;
use loden_proto::config::NetworkConfig;

use super::daemon::PlaceArgs;
use super::output::print;
use crate::app;
use crate::kernel::{self, Interest, Kernel};
use crate::state::StateDir;

/// Remove from this host's kernel what Loden made.
#[derive(Debug, Args)]
#[command(
    after_help = "Removes our nftables table, VXLAN devices, routes, nexthops and, if no container hangs on it, the bridge; then the files of run-time state. Lasting state (host id, MACs) and the lease in etcd stay: free that with loden lease release."
)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Also what flanneld left behind: its devices, its nftables tables, its iptables chains
    #[arg(long)]
    flannel: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: CleanupArgs) -> anyhow::Result<()> {
    let run_dir = args.place.run_dir();
    // The running daemon would bring everything back.
    let _lock = match run_dir.exists() {
        true => Some(app::lock(&run_dir, &args.place.network)?),
        false => None,
    };
    let last = match args.place.state_dir().exists() {
        true => StateDir::open(&args.place.state_dir())?.last(),
        false => Default::default(),
    };
    let networks: Vec<_> = NetworkConfig::parse(&last.config)
        .iter()
        .flat_map(|c| c.pools().map(|p| p.network).collect::<Vec<_>>())
        .collect();
    let options = Options::named(&args.place.network);
    let mut kernel = Kernel::open(run_dir.clone())?;
    let interest = Interest { networks: networks.clone(), ..Interest::default() };
    let observed = kernel.observe(&interest).await?;
    let operations = diff::removal(&observed, &options, &networks);
    let table = kernel::table_exists(&options.network).await.map_err(anyhow::Error::msg)?;
    let mut lines: Vec<String> = operations.iter().map(Operation::to_string).collect();
    if table {
        lines.push(format!("delete nftables table inet {}", options.network));
    }
    let bridge_stays = observed.link(&options.bridge()).is_some()
        && !operations
            .iter()
            .any(|o| matches!(o, Operation::DeleteDevice { name, .. } if *name == options.bridge()));
    let (devices, chains) = match args.flannel {
        true => (flannel_devices(&observed), flannel_rules()),
        false => Default::default(),
    };
    lines.extend(devices.iter().map(Operation::to_string));
    lines.extend(chains.iter().map(|command| format!("run {}", command.join(" "))));
    if args.dry_run {
        return print(&report(&lines, "would "));
    }
    let mut verdicts = kernel.apply(&operations, &options.network).await?;
    verdicts.extend(kernel.apply(&devices, &options.network).await?);
    for command in &chains {
        // Listed just now; what has gone since is as good as removed.
        let _ = run_quietly(command);
    }
    if table {
        kernel::remove_table(&options.network).await.map_err(anyhow::Error::msg)?;
    }
    for name in ["subnet.env", "loden.sock", "filters.json"] {
        let path = run_dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    print(&report(&lines, ""))?;
    if bridge_stays {
        print(&format!("left {}: containers hang on it\n", options.bridge()))?;
    }
    let failed: Vec<String> = verdicts.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
}

/// `flannel.1`, `flannel-v6.1`: VXLAN devices with flannel's names.
fn flannel_devices(observed: &Observed) -> Vec<Operation> {
    let number = |name: &str| {
        let rest = name.strip_prefix("flannel-v6.").or_else(|| name.strip_prefix("flannel.")).unwrap_or("");
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())
    };
    let links = observed.links.values().filter(|l| l.vxlan.is_some() && number(&l.name));
    links.map(|l| Operation::DeleteDevice { index: l.index, name: l.name.clone() }).collect()
}

/// The commands that remove flannel's rules, as far as there are any (flannel
/// `pkg/trafficmngr/iptables` and `nftables`). Of the two iptables only the one that the
/// alternatives system chose is looked at: it is what flannel ran.
fn flannel_rules() -> Vec<Vec<String>> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut commands = Vec::new();
    for iptables in ["iptables", "ip6tables"] {
        for (table, hook, chain, comment) in [
            ("nat", "POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"),
            ("filter", "FORWARD", "FLANNEL-FWD", "flanneld forward"),
        ] {
            if run_quietly(&words(&format!("{iptables} -w -t {table} -S {chain}"))) {
                let mut jump = words(&format!("{iptables} -w -t {table} -D {hook} -m comment --comment"));
                jump.extend([comment.to_owned(), "-j".into(), chain.into()]);
                commands.push(jump);
                commands.push(words(&format!("{iptables} -w -t {table} -F {chain}")));
                commands.push(words(&format!("{iptables} -w -t {table} -X {chain}")));
            }
        }
    }
    for table in ["ip flannel-ipv4", "ip6 flannel-ipv6"] {
        if run_quietly(&words(&format!("nft list table {table}"))) {
            commands.push(words(&format!("nft delete table {table}")));
        }
    }
    commands
}

/// Runs a fixed command; whether it succeeded. A program that is missing has left nothing behind.
fn run_quietly(command: &[String]) -> bool {
    let [program, arguments @ ..] = command else { return false };
    let mut process = std::process::Command::new(program);
    process.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    process.status().is_ok_and(|s| s.success())
}

fn report(lines: &[String], prefix: &str) -> String {
    if lines.is_empty() {
        return "nothing of Loden's is in the kernel\n".into();
    }
    lines.iter().map(|l| format!("{prefix}{l}\n")).collect()
}
