//! `loden cleanup`: take out of the kernel exactly what Loden made.

use clap::Args;

use super::daemon::PlaceArgs;
use super::output::print;

/// Remove from this host's kernel what Loden made.
#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Also what flanneld left behind: its devices, chains and tables
    #[arg(long)]
    flannel: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: CleanupArgs) -> anyhow::Result<()> {
    let _ = (&args.place, args.flannel, args.dry_run);
    print("")
}
