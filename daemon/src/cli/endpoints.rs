//! `loden endpoints`: the containers of this host; from the daemon, or, when it is down, from the
//! plugin's files and the kernel. With `--free-dead` it is the plugin's garbage collection.

use std::path::Path;

use anyhow::bail;
use clap::Args;
use loden_proto::status::{EndpointState, EndpointStatus, Endpoints, Request};

use super::daemon::PlaceArgs;
use super::output::{duration, print, print_json, table};
use super::question::{Answer, ask};
use crate::{clock, endpoints};

/// List this host's containers with their addresses.
#[derive(Debug, Args)]
#[command(
    after_help = "States:\n  connected   its port is on the bridge\n  connecting  the plugin works on it\n  gone        its interface is gone, and nobody has told the plugin: the runtime crashed, or was\n              killed. --free-dead gives its address back\n  detached    its port is on no bridge; the daemon puts it back\n  elsewhere   somebody put its port on another bridge\n\nREJECTED counts frames that were dropped at the port within the last hour, because they had\nanother MAC or address than the container's own, or were a router's or DHCP server's."
)]
pub(super) struct EndpointsArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Free the addresses of containers that are dead for certain: their interface is gone. Needs root
    #[arg(long)]
    free_dead: bool,
    /// Print everything as JSON with stable names
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: EndpointsArgs) -> anyhow::Result<()> {
    let run_dir = args.place.run_dir();
    if args.free_dead {
        return free_dead(&run_dir, args.json);
    }
    let answer = match ask(&run_dir, Request::Endpoints)? {
        Answer::Given(answer) => answer,
        Answer::None { reason, .. } => {
            let (endpoints, unreadable) = endpoints::survey(&run_dir.join("ipam"))?;
            for line in [reason].iter().chain(&unreadable) {
                eprintln!("loden: {line}");
            }
            Endpoints { source: "kernel".into(), endpoints }
        }
    };
    if args.json { print_json(&answer) } else { print(&text(&answer.endpoints)) }
}

fn free_dead(run_dir: &Path, json: bool) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("--free-dead looks into containers' namespaces and removes files of root's; run it as root");
    }
    let (freed, errors) = endpoints::free_dead(&run_dir.join("ipam"));
    if json {
        print_json(&freed)?;
    } else if freed.is_empty() {
        print("no address of a dead container is left\n")?;
    } else {
        let line = |a: &loden_proto::allocation::Allocation| {
            format!("freed {} of container {}, interface {}\n", a.address, a.container_id, a.ifname)
        };
        print(&freed.iter().map(line).collect::<String>())?;
    }
    if errors.is_empty() { Ok(()) } else { bail!("{}", errors.join("; ")) }
}

/// As much of a container id as Docker shows.
const SHORT_ID: usize = 12;

fn text(endpoints: &[EndpointStatus]) -> String {
    if endpoints.is_empty() {
        return "no container of this host has an address\n".into();
    }
    let now = clock::unix_seconds();
    let row = |e: &EndpointStatus| {
        let addresses: Vec<String> = e.addresses.iter().map(ToString::to_string).collect();
        let state = match (e.state, e.guarded) {
            (EndpointState::Connected, false) => "connected, not guarded",
            (state, _) => state.word(),
        };
        vec![
            addresses.join(" "),
            e.name.clone().unwrap_or_default(),
            e.container_id.chars().take(SHORT_ID).collect(),
            e.interface.clone(),
            e.mac.to_string(),
            e.port.clone(),
            e.since_unix_seconds.map(|at| duration(now.saturating_sub(at))).unwrap_or_default(),
            e.rejected_frames.to_string(),
            state.to_owned(),
        ]
    };
    let head = ["ADDRESS", "NAME", "CONTAINER", "INTERFACE", "MAC", "PORT", "AGE", "REJECTED", "STATE"];
    table(&head, &endpoints.iter().map(row).collect::<Vec<_>>())
}
