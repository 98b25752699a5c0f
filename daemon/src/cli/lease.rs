//! `loden lease`: who holds which subnet, without etcdctl.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use loden_core::claim;
use loden_core::leases::LeaseRecord;
use loden_proto::lease::{LeaseKey, LeaseValue, LodenMember};
use loden_proto::{Family, Subnet};
use serde::Serialize;

use super::config::{hint, writer};
use super::daemon::EtcdArgs;
use super::output::{duration, print, print_json, table};
use crate::store::{Outcome, Writer, read_once};

/// List, reserve and release subnet leases.
#[derive(Debug, Subcommand)]
pub(super) enum LeaseCommand {
    /// List leases and reservations
    List(ListArgs),
    /// Keep a subnet for one host for ever, by its address or its host id
    Reserve(ReserveArgs),
    /// Free a subnet whose holder is gone for good; a living holder must be forced, and then moves
    Release(ReleaseArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print as JSON with stable names
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReserveArgs {
    /// The subnet, such as 10.5.7.0/24 or, as in etcd, 10.5.7.0-24; in a dual-stack network one of each
    /// address family
    #[arg(value_parser = key, required = true, num_args = 1..=2, value_name = "SUBNET")]
    subnets: Vec<LeaseKey>,
    #[command(flatten)]
    owner: Owner,
    #[command(flatten)]
    etcd: EtcdArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Owner {
    /// The host's public address; may be given once for each address family
    #[arg(long, value_name = "IP")]
    public_ip: Vec<IpAddr>,
    /// The host's id (loden status --json)
    #[arg(long, value_name = "ID")]
    host_id: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// The subnet, such as 10.5.7.0/24 or, as in etcd, 10.5.7.0-24
    #[arg(value_parser = subnet)]
    subnet: Subnet,
    /// Also if its holder lives: it takes no new containers and moves when the last one is gone
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
}

/// One row of `loden lease list --json`.
#[derive(Debug, Serialize)]
struct Row {
    subnets: Vec<Subnet>,
    holder: String,
    backend: String,
    /// `lease`, `reserved` (no etcd lease, nobody in it) or `permanent` (no etcd lease, in use).
    kind: &'static str,
    /// Seconds until it ends unless refreshed.
    expires_in_seconds: Option<u64>,
}

pub(super) async fn run(command: LeaseCommand) -> anyhow::Result<()> {
    match command {
        LeaseCommand::List(args) => list(args).await,
        LeaseCommand::Reserve(args) => reserve(args).await,
        LeaseCommand::Release(args) => release(args).await,
    }
}

/// A subnet as people write it, or one or two as they stand in etcd.
fn key(text: &str) -> Result<LeaseKey, String> {
    let as_key = || LeaseKey::parse(text).ok();
    let subnet = text.parse().map(LeaseKey::single);
    subnet.or_else(|e: loden_proto::SubnetError| as_key().ok_or_else(|| e.to_string()))
}

/// The first subnet of a key.
fn subnet(text: &str) -> Result<Subnet, String> {
    key(text)?.subnets().next().ok_or_else(|| format!("{text:?} names no subnet"))
}

/// One key of all subnets.
fn joined(keys: &[LeaseKey]) -> anyhow::Result<LeaseKey> {
    let all: Vec<Subnet> = keys.iter().flat_map(LeaseKey::subnets).collect();
    let of = |family| all.iter().copied().find(|s| s.family() == family);
    let key = LeaseKey::new(of(Family::V4), of(Family::V6)).context("no subnet")?;
    if key.subnets().count() < all.len() {
        bail!("a host has one subnet of each address family; reserve further ones by themselves");
    }
    Ok(key)
}

/// A key as people write its subnets.
fn spelled(key: &LeaseKey) -> String {
    key.subnets().map(|s| s.to_string()).collect::<Vec<_>>().join(" and ")
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let options = args.etcd.options();
    let (view, connection) = read_once(&options).await.with_context(|| hint(&args.etcd))?;
    let writer = Writer::on(&options.prefix, connection);
    let mut rows = Vec::new();
    for (key, record) in view.table.iter() {
        let expires = match record.etcd_lease {
            0 => None,
            lease => writer.time_to_live(lease).await?.map(|t| t.remaining),
        };
        rows.push(Row {
            subnets: key.subnets().collect(),
            holder: claim::holder(record),
            backend: record.value.as_ref().map(|v| v.backend_type.to_string()).unwrap_or_default(),
            kind: match (record.etcd_lease, record.is_reservation()) {
                (0, true) => "reserved",
                (0, false) => "permanent",
                _ => "lease",
            },
            expires_in_seconds: expires,
        });
    }
    if args.json {
        return print_json(&rows);
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let end = r.expires_in_seconds.map_or("never".to_owned(), duration);
            let subnets: Vec<String> = r.subnets.iter().map(Subnet::to_string).collect();
            vec![subnets.join(", "), r.kind.into(), r.backend.clone(), end, r.holder.clone()]
        })
        .collect();
    print(&table(&["SUBNET", "KIND", "BACKEND", "ENDS IN", "HOLDER"], &cells))?;
    let malformed: Vec<String> =
        view.table.malformed().map(|(key, reason)| format!("{key}: {reason}\n")).collect();
    if malformed.is_empty() {
        Ok(())
    } else {
        print(&format!("\nKeys that name no subnet\n{}", malformed.concat()))
    }
}

async fn reserve(args: ReserveArgs) -> anyhow::Result<()> {
    let options = args.etcd.options();
    let (view, connection) = read_once(&options).await.with_context(|| hint(&args.etcd))?;
    let key = joined(&args.subnets)?;
    let subnets = spelled(&key);
    if let Some(other) = key.subnets().find_map(|s| view.table.inside(&s)) {
        let holder = view.table.get(&other).map(claim::holder).unwrap_or_default();
        bail!("{subnets} overlaps {other} of {holder}; release that first (loden lease release)");
    }
    let text =
        view.config.context("there is no network config in etcd; write one with: loden config init")?;
    let config = loden_proto::config::NetworkConfig::parse(&text)?;
    if !claim::allowed(&key, &config) {
        let families = |all: &mut dyn Iterator<Item = Family>| {
            all.map(|f| f.to_string()).collect::<Vec<_>>().join(" and ")
        };
        let (given, needed) = (
            families(&mut key.subnets().map(|s| s.family())),
            families(&mut config.pools().map(|p| p.network.family())),
        );
        if given != needed {
            bail!("{subnets}: a host of this network has a subnet of {needed}, not of {given}");
        }
        bail!("{subnets} is not what the network config allows (loden config show)");
    }
    let mut value = LeaseValue::default();
    for ip in &args.owner.public_ip {
        match ip {
            IpAddr::V4(ip) => value.public_ip = Some(*ip),
            IpAddr::V6(ip) => value.public_ipv6 = Some(*ip),
        }
    }
    if let Some(host_id) = args.owner.host_id {
        value.loden = Some(Arc::new(LodenMember { host_id: host_id.into(), ..LodenMember::default() }));
    }
    match Writer::on(&options.prefix, connection).put(&key, &value, 0, 0).await? {
        Outcome::Written(_) => print(&format!("{subnets} is reserved\n")),
        Outcome::Conflict(_) => bail!("somebody took {subnets} just now; see loden lease list"),
    }
}

async fn release(args: ReleaseArgs) -> anyhow::Result<()> {
    let options = args.etcd.options();
    let (view, _) = read_once(&options).await.with_context(|| hint(&args.etcd))?;
    let found = view.table.iter().find(|(key, _)| key.subnets().any(|s| s == args.subnet));
    let Some((key, record)) = found else { bail!("nobody holds {}; see loden lease list", args.subnet) };
    let subnets = spelled(key);
    let writer = writer(&args.etcd).await?;
    let alive = alive(&writer, record).await?;
    let holder = claim::holder(record);
    if alive && !args.force {
        bail!(
            "{} is held by {holder}, which refreshed its lease lately; stop its daemon first, or make it move with --force",
            subnets
        );
    }
    let marked = record.value.as_ref().ok().filter(|_| alive).and_then(released);
    let outcome = match &marked {
        // A deleted key would be claimed again at once, and its containers cut off.
        Some(value) => writer.put(key, value, record.etcd_lease, record.mod_revision).await?,
        None => writer.delete(key, record.mod_revision).await?,
    };
    match outcome {
        Outcome::Written(_) if marked.is_some() => print(&format!(
            "{holder} was told to move; it takes no new containers, and leaves {} when the last one is gone\n",
            subnets
        )),
        Outcome::Written(_) if alive => print(&format!(
            "{} is free; flanneld of {holder} ends when it sees this, and takes a subnet anew when it is started again\n",
            subnets
        )),
        Outcome::Written(_) => print(&format!("{} is free\n", subnets)),
        Outcome::Conflict(_) => {
            bail!("{} was written meanwhile; look again with loden lease list", subnets)
        }
    }
}

/// The value with the mark that tells its holder to move; `None` if flannel holds it.
fn released(value: &LeaseValue) -> Option<LeaseValue> {
    let member = LodenMember { released: true, ..value.loden.as_deref()?.clone() };
    Some(LeaseValue { loden: Some(Arc::new(member)), ..value.clone() })
}

/// Whether the holder refreshed its lease within three keep-alive intervals.
async fn alive(writer: &Writer, record: &LeaseRecord) -> anyhow::Result<bool> {
    if record.is_reservation() {
        return Ok(false);
    }
    if record.etcd_lease == 0 {
        return Ok(true);
    }
    let Some(ttl) = writer.time_to_live(record.etcd_lease).await? else { return Ok(false) };
    let interval = claim::holders_interval(record, ttl.granted);
    Ok(claim::liveness(ttl.granted, ttl.remaining, interval).is_none())
}
