//! `loden cleanup`: take out of the kernel exactly what Loden made.

use anyhow::{Context, bail};
use clap::Args;
use loden_core::diff::{self, Operation};
use loden_core::plan::Options;
use loden_proto::config::NetworkConfig;

use super::daemon::PlaceArgs;
use super::output::print;
use crate::app;
use crate::kernel::{self, Interest, Kernel};
use crate::state::StateDir;

/// Remove from this host's kernel what Loden made.
#[derive(Debug, Args)]
#[command(after_help = "Removes our nftables table, VXLAN devices, routes, nexthops and, if no container hangs on it, the bridge; then the files of run-time state. Lasting state (host id, MACs) and the lease in etcd stay: free that with loden lease release.")]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    place: PlaceArgs,
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
    let networks: Vec<_> = NetworkConfig::parse(&last.config).iter().flat_map(|c| c.pools().map(|p| p.network).collect::<Vec<_>>()).collect();
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
        && !operations.iter().any(|o| matches!(o, Operation::DeleteDevice { name, .. } if *name == options.bridge()));
    if args.dry_run {
        return print(&report(&lines, "would "));
    }
    let verdicts = kernel.apply(&operations, &options.network).await?;
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

fn report(lines: &[String], prefix: &str) -> String {
    if lines.is_empty() {
        return "nothing of Loden's is in the kernel\n".into();
    }
    lines.iter().map(|l| format!("{prefix}{l}\n")).collect()
}
