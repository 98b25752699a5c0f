//! `loden cleanup`: take out of the kernel exactly what Loden made, or hand it to flannel.

mod flannel;

use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use loden_core::diff::{self, Operation};
use loden_core::docker::user_chain::{self, Change};
use loden_core::observed::Observed;
use loden_core::options::Options;
use loden_netlink::Socket;
use loden_proto::config::NetworkConfig;
use loden_proto::status::{Request, Status};
use loden_proto::{Family, Subnet};

use super::daemon::PlaceArgs;
use super::output::print;
use super::question::{self, Answer};
use crate::kernel::{self, Interest, Kernel, Table};
use crate::state::StateDir;
use crate::{flanneld, lock};

/// Remove from this host's kernel what Loden made.
#[derive(Debug, Args)]
#[command(
    after_help = "With the daemon stopped, removes our nftables tables, VXLAN devices, routes, nexthops and, if no container hangs on it, the bridge; then the files of run-time state. Lasting state (host id, MACs) and the lease in etcd stay: free that with loden lease release.\n\nWhile the daemon runs, --flannel alone is possible: it removes flannel's leftovers and nothing of ours.\n\nThe way back to flannel, without losing a packet: stop the daemon, loden cleanup --to-flannel, start flanneld, loden cleanup."
)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Also what flanneld left behind: its devices, its nftables tables, its iptables chains
    #[arg(long)]
    flannel: bool,
    /// Remove nothing that packets need: make of devices and routes such as flannel makes, which
    /// flanneld takes over when it starts
    #[arg(long, conflicts_with = "flannel")]
    to_flannel: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// The kernel, and what tells ours in it.
struct Look {
    kernel: Kernel,
    observed: Observed,
    options: Options,
    networks: Vec<Subnet>,
}

impl Look {
    fn take(place: &PlaceArgs) -> anyhow::Result<Self> {
        let last = match place.state_dir().exists() {
            true => StateDir::open(&place.state_dir())?.last(),
            false => Default::default(),
        };
        let networks: Vec<Subnet> = NetworkConfig::parse(&last.config)
            .iter()
            .flat_map(|c| c.pools().map(|p| p.network).collect::<Vec<_>>())
            .collect();
        let mut kernel = Kernel::open(&place.run_dir(), &place.network)?;
        let interest = Interest { networks: networks.clone(), ..Interest::default() };
        let observed = kernel.observe(&interest)?;
        Ok(Self { kernel, observed, options: Options::named(&place.network), networks })
    }

    /// Carries out what is possible; the error names what was refused.
    async fn apply(&mut self, operations: &[Operation]) -> anyhow::Result<()> {
        let refused = self.kernel.apply(operations).await?;
        let failed: Vec<String> = refused.into_iter().map(|(_, error)| error.to_string()).collect();
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
    }

    /// flannel's devices but these.
    fn flannel_devices(&self, kept: &[String]) -> Vec<Operation> {
        diff::flannel_devices(&self.observed)
            .filter(|l| !kept.contains(&l.name))
            .map(|l| Operation::DeleteDevice { index: l.index, name: l.name.clone() })
            .collect()
    }
}

pub(super) async fn run(args: CleanupArgs) -> anyhow::Result<()> {
    if let Some(pid) = flanneld::any().filter(|_| args.flannel) {
        bail!(
            "flanneld (process {pid}) runs on this host, so what it made is in use; stop it first (systemctl disable --now flanneld)"
        );
    }
    let run_dir = args.place.run_dir();
    if args.flannel && lock::runs(&run_dir) {
        return beside_the_daemon(&args, &run_dir).await;
    }
    // The running daemon would bring everything back.
    let _lock = match run_dir.exists() {
        true => Some(lock::take(&run_dir, &args.place.network)?),
        false => None,
    };
    if args.to_flannel { hand_over(&args).await } else { everything(&args, &run_dir).await }
}

/// Removes flannel's leftovers; what the daemon has taken over is none.
async fn beside_the_daemon(args: &CleanupArgs, run_dir: &Path) -> anyhow::Result<()> {
    let mut look = Look::take(&args.place)?;
    // Nobody knows better than the daemon which devices it uses.
    let status: Status = match question::ask(run_dir, Request::Status)? {
        Answer::Given(status) => status,
        Answer::None { reason, .. } => bail!("which devices the daemon uses is not known: {reason}"),
    };
    let used: Vec<String> = status.devices.into_iter().map(|d| d.name).collect();
    let devices = look.flannel_devices(&used);
    let rules = flannel::rules();
    print(&report(&devices, &rules, &[], args.dry_run, "flannel's"))?;
    for link in diff::flannel_devices(&look.observed).filter(|l| used.contains(&l.name)) {
        print(&format!("left {}: the daemon has taken it over and uses it\n", link.name))?;
    }
    if args.dry_run {
        return Ok(());
    }
    let removed = flannel::remove(&rules);
    look.apply(&devices).await?;
    removed
}

/// Hands devices and routes to flannel. Nothing is deleted before its successor is in place.
async fn hand_over(args: &CleanupArgs) -> anyhow::Result<()> {
    if let Some(pid) = flanneld::any() {
        bail!("flanneld (process {pid}) runs already; loden cleanup removes what is left of Loden's");
    }
    let mut look = Look::take(&args.place)?;
    if look.networks.is_empty() {
        bail!(
            "{} does not tell which network this host was in, so its routes cannot be told; has the daemon run here?",
            args.place.state_dir().display()
        );
    }
    let table = Table::overlay(&look.options.network);
    let exists = kernel::table_exists(&table)?;
    let operations = diff::to_flannel(&look.observed, &look.options, &look.networks);
    // flannel's new peers are in no set of ours.
    let filter = format!("remove the VXLAN filter from nftables table {table}");
    let filter = if exists { vec![filter] } else { Vec::new() };
    print(&report(&operations, &[], &filter, args.dry_run, "Loden's"))?;
    if args.dry_run {
        return Ok(());
    }
    let (removals, successors): (Vec<_>, Vec<_>) = operations.into_iter().partition(Operation::removes);
    look.apply(&successors).await?;
    look.apply(&removals).await?;
    if exists {
        kernel::remove_vxlan_filter(&look.options.network).await.map_err(anyhow::Error::msg)?;
    }
    print(
        "flanneld can start now (systemctl enable --now flanneld); after that, loden cleanup removes the rest\n",
    )
}

async fn everything(args: &CleanupArgs, run_dir: &Path) -> anyhow::Result<()> {
    let mut look = Look::take(&args.place)?;
    let mut tables = Vec::new();
    for table in [Table::overlay, Table::ports].map(|table| table(&look.options.network)) {
        if kernel::table_exists(&table)? {
            tables.push(table);
        }
    }
    let mut operations = diff::removal(&look.observed, &look.options, &look.networks);
    let bridge = look.options.bridge();
    let removes_bridge =
        operations.iter().any(|o| matches!(o, Operation::DeleteDevice { name, .. } if *name == bridge));
    let bridge_stays = look.observed.link(&bridge).is_some() && !removes_bridge;
    let mut rules = Vec::new();
    if args.flannel {
        operations.extend(look.flannel_devices(&[]));
        rules = flannel::rules();
    }
    let chains = user_chain_changes(&look.options).await?;
    let mut others: Vec<String> = chains.iter().map(ToString::to_string).collect();
    others.extend(tables.iter().map(|table| format!("delete nftables table {table}")));
    let whose = if args.flannel { "Loden's or flannel's" } else { "Loden's" };
    print(&report(&operations, &rules, &others, args.dry_run, whose))?;
    if bridge_stays {
        print(&format!("left {bridge}: containers hang on it\n"))?;
    }
    if args.dry_run {
        return Ok(());
    }
    let applied = look.apply(&operations).await;
    let removed = flannel::remove(&rules);
    for change in &chains {
        kernel::change_user_chain(change).await.map_err(|e| anyhow::anyhow!("{change}: {e}"))?;
    }
    for table in &tables {
        kernel::remove_table(table).await.map_err(anyhow::Error::msg)?;
    }
    for name in ["subnet.env", "loden.sock", "filters.json", "port-filter.json"] {
        let path = run_dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    applied.and(removed)
}

/// What takes our rules out of Docker's chain.
async fn user_chain_changes(options: &Options) -> anyhow::Result<Vec<Change>> {
    let mut socket = Socket::netfilter().context("cannot open a netfilter socket")?;
    let chains = kernel::user_chains(&mut socket, &Family::ALL).await.map_err(anyhow::Error::msg)?;
    let change = |(place, present): (&_, &Vec<String>)| user_chain::change(*place, present, &[], options);
    Ok(chains.iter().filter_map(change).collect())
}

fn report(
    operations: &[Operation],
    commands: &[flannel::Command],
    others: &[String],
    dry_run: bool,
    whose: &str,
) -> String {
    let commands = commands.iter().map(|c| format!("run {}", c.join(" ")));
    let lines = operations.iter().map(Operation::to_string).chain(others.iter().cloned()).chain(commands);
    let text: String =
        lines.map(|line| if dry_run { format!("would {line}\n") } else { format!("{line}\n") }).collect();
    if text.is_empty() { format!("nothing of {whose} is in the kernel\n") } else { text }
}
