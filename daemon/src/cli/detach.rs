//! `loden detach`: take back what `loden attach` gave, whether or not its namespace still is there.

use std::net::IpAddr;

use anyhow::{Context, bail};
use clap::Args;
use loden_cni::del;
use loden_cni::ifname::IfName;
use loden_cni::wishes::Wishes;
use loden_proto::allocation::Allocation;
use serde::Serialize;

use super::attach::{attachments, be_root, ifname, spelled};
use super::daemon::PlaceArgs;
use super::output::{print, print_json, table};
use crate::attachments::{Attachments, Held};
use crate::target::Target;

/// Take back what attach gave.
#[derive(Debug, Args)]
#[command(
    after_help = "Removes the interface and frees its addresses; a freed address rests for a while before it is given again. All of that is found by what was written down, so the namespace, process or machine may be gone. What is not attached is no error: it is said, and the exit code is 0.\n\nA TARGET is read as by loden attach: a name of ip netns, then a pid, then a machine; the first of these that is attached.\n\nExamples:\n  loden detach web\n  loden detach --name db\n  loden detach --ip 10.5.7.9\n\nloden endpoints --free-dead frees all, also containers, whose namespace is gone."
)]
pub(super) struct DetachArgs {
    #[command(flatten)]
    what: What,
    /// Only this interface [default: all of the target]
    #[arg(long = "interface", value_name = "NAME", value_parser = ifname, conflicts_with = "wanted_address")]
    wanted_ifname: Option<IfName>,
    /// Print as JSON with stable names
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// What was given to loden attach
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// The name that it was given
    #[arg(long = "name", value_name = "NAME")]
    wanted_name: Option<String>,
    /// An address that it has; all of the interface's are freed
    #[arg(long = "ip", value_name = "IP")]
    wanted_address: Option<IpAddr>,
}

/// One row of `loden detach --json`.
#[derive(Debug, Serialize)]
struct Freed {
    name: Option<String>,
    container_id: String,
    interface: String,
    addresses: Vec<IpAddr>,
}

pub(super) async fn run(args: DetachArgs) -> anyhow::Result<()> {
    be_root("detach")?;
    let json = args.json;
    // The plugin's code enters the namespace with its thread.
    let freed =
        tokio::task::spawn_blocking(move || detach(&args)).await.context("detaching has panicked")??;
    if json { print_json(&freed) } else { print(&text(&freed)) }
}

fn detach(args: &DetachArgs) -> anyhow::Result<Vec<Freed>> {
    let attachments = attachments(&args.place);
    let (all, unreadable) = attachments.all()?;
    for error in unreadable {
        eprintln!("loden: {error}; it holds its address until it is removed");
    }
    let chosen = choose(args, &attachments, all)?;
    for held in &chosen {
        let Some(first) = held.first() else { continue };
        let ifname = ifname(&first.ifname).map_err(anyhow::Error::msg)?;
        let request = attachments.request(&first.container_id, &ifname, &first.netns, Wishes::default());
        del::del(&request)
            .with_context(|| format!("cannot detach {} ({})", first.container_id, spelled(held)))?;
    }
    if chosen.is_empty() {
        remove_unknown(args, &attachments)?;
    }
    Ok(chosen.iter().filter_map(freed).collect())
}

/// Which attachments are meant; none is fine.
fn choose(args: &DetachArgs, attachments: &Attachments, all: Vec<Held>) -> anyhow::Result<Vec<Held>> {
    let fits = |a: &Allocation| args.wanted_ifname.as_ref().is_none_or(|i| i.as_str() == a.ifname);
    let those = |meant: &dyn Fn(&Allocation) -> bool| -> Vec<Held> {
        all.iter().filter(|held| held.iter().any(|a| meant(a) && fits(a))).cloned().collect()
    };
    let What { target, wanted_name, wanted_address, .. } = &args.what;
    if let Some(text) = target {
        let readings = Target::readings(text).map_err(anyhow::Error::msg)?;
        let ids = readings.into_iter().map(|target| target.followed().id());
        let found = ids.map(|id| those(&|a| a.container_id == id)).find(|found| !found.is_empty());
        // The link that it was attached by may be gone: without --name, its name is what was typed then.
        let by_name = || those(&|a| text.contains('/') && a.name.as_ref() == Some(text));
        let found = found.or_else(|| Some(by_name()).filter(|found| !found.is_empty()));
        if found.is_none() {
            eprintln!("loden: nothing is attached as {text}");
        }
        return Ok(found.unwrap_or_default());
    }
    if let Some(name) = wanted_name {
        let found = those(&|a| a.name.as_ref() == Some(name));
        if found.is_empty() {
            eprintln!("loden: nothing is attached by the name {name}");
        }
        return Ok(found);
    }
    let Some(address) = wanted_address.map(|a| a.to_canonical()) else { return Ok(Vec::new()) };
    let found = those(&|a| a.address == address);
    if found.is_empty() {
        if let Some((network, Allocation { container_id, name, .. })) = attachments.foreign_holder(address) {
            let name = name.map(|n| format!(" ({n})")).unwrap_or_default();
            bail!(
                "{address} belongs to container {container_id}{name} of the network {network}, which its runtime connected; let that remove it"
            );
        }
        eprintln!("loden: {address} has no allocation, so nothing that was attached has it");
    }
    Ok(found)
}

/// A pair whose allocation was lost (somebody emptied the folder) goes by its name, which follows
/// from the target.
fn remove_unknown(args: &DetachArgs, attachments: &Attachments) -> anyhow::Result<()> {
    let Some(text) = &args.what.target else { return Ok(()) };
    let ifname = match &args.wanted_ifname {
        Some(name) => name.clone(),
        None => ifname("eth0").map_err(anyhow::Error::msg)?,
    };
    for target in Target::readings(text).map_err(anyhow::Error::msg)? {
        del::del(&attachments.request(&target.followed().id(), &ifname, "", Wishes::default()))?;
    }
    Ok(())
}

fn freed(held: &Held) -> Option<Freed> {
    let first = held.first()?;
    Some(Freed {
        name: first.name.clone(),
        container_id: first.container_id.clone(),
        interface: first.ifname.clone(),
        addresses: held.iter().map(|a| a.address).collect(),
    })
}

/// Nothing for nothing: what was not there has been said.
fn text(freed: &[Freed]) -> String {
    let mut rows = Vec::new();
    for one in freed {
        let name = one.name.clone().unwrap_or_else(|| one.container_id.clone());
        rows.extend(one.addresses.iter().map(|a| vec![name.clone(), one.interface.clone(), a.to_string()]));
    }
    if rows.is_empty() { String::new() } else { table(&["NAME", "INTERFACE", "FREED"], &rows) }
}
