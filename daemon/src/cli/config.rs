//! `loden config`: the network config in etcd, without etcdctl.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use loden_core::claim;
use loden_core::leases::LeaseRecord;
use loden_proto::Subnet;
use loden_proto::config::NetworkConfig;
use loden_proto::lease::LeaseKey;
use serde_json::{Map, json};

use super::daemon::EtcdArgs;
use super::output::{print, print_json};
use crate::store::{Writer, read_once};

/// Read and write the network config in etcd.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Write a first config; refused if there is one
    Init(InitArgs),
    /// Show the config with every default written out
    Show(ShowArgs),
    /// Write a config, given as JSON or as a file with @FILE; daemons take over at once what they can
    Set(SetArgs),
    /// Check a config, given as JSON, as @FILE, or the one in etcd
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// IPv4 addresses of the whole overlay
    #[arg(long, value_name = "CIDR", default_value = "10.5.0.0/16")]
    ipv4_network: Subnet,
    /// Length of one host's subnet [default: 24]
    #[arg(long, value_name = "BITS")]
    subnet_len: Option<u8>,
    /// IPv6 addresses of the whole overlay; turns IPv6 on
    #[arg(long, value_name = "CIDR")]
    ipv6_network: Option<Subnet>,
    /// Length of one host's IPv6 subnet [default: 64]
    #[arg(long, value_name = "BITS", requires = "ipv6_network")]
    ipv6_subnet_len: Option<u8>,
    /// No IPv4 in the overlay, which flannel hosts cannot take part in
    #[arg(long, requires = "ipv6_network", conflicts_with_all = ["ipv4_network", "subnet_len"])]
    ipv6_only: bool,
    /// How packets cross the underlay: vxlan, host-gw or alloc
    #[arg(long, default_value = "vxlan")]
    backend: String,
    #[command(flatten)]
    etcd: EtcdArgs,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Print the text in etcd as it is
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// The config as JSON, or @FILE
    config: String,
    /// Also if living hosts hold leases that do not fit it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    etcd: EtcdArgs,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The config as JSON, or @FILE [default: the one in etcd]
    config: Option<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
}

pub(super) async fn run(command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Init(args) => init(args).await,
        ConfigCommand::Show(args) => {
            let text = in_etcd(&args.etcd).await?;
            match NetworkConfig::parse(&text) {
                Ok(config) if !args.raw => print_json(&config.to_json()),
                Err(error) if !args.raw => bail!("the network config in etcd is not valid: {error}\n{text}"),
                _ => print(&format!("{text}\n")),
            }
        }
        ConfigCommand::Set(args) => {
            let text = given(&args.config)?;
            let config = NetworkConfig::parse(&text)?;
            let (view, _) = read_once(&args.etcd.options()).await.with_context(|| hint(&args.etcd))?;
            let misfit = |(key, record): &(&LeaseKey, &LeaseRecord)| {
                record.etcd_lease != 0 && !claim::allowed(key, &config)
            };
            let misfits: Vec<&LeaseKey> = view.table.iter().filter(misfit).map(|(key, _)| key).collect();
            if let (Some(first), false) = (misfits.first(), args.force) {
                // Where only a family comes or goes, hosts keep what they have of the other.
                let keeps = |key: &LeaseKey| {
                    key.subnets().all(|s| config.pool(s.family()).is_none_or(|p| p.accepts(&s)))
                };
                let consequence = match misfits.iter().all(|key| keeps(key)) {
                    true => {
                        "their hosts need a restart, and keep their subnets of the address family that stays"
                    }
                    false => "their hosts need a restart and new subnets",
                };
                bail!(
                    "{} live lease(s), {first} among them, do not fit this config: {consequence}; --force writes it all the same",
                    misfits.len()
                );
            }
            let writer = writer(&args.etcd).await?;
            writer.put_config(&text).await.with_context(|| hint(&args.etcd))?;
            report(&config)
        }
        ConfigCommand::Check(args) => {
            let text = match &args.config {
                Some(config) => given(config)?,
                None => in_etcd(&args.etcd).await?,
            };
            report(&NetworkConfig::parse(&text)?)
        }
    }
}

async fn init(args: InitArgs) -> anyhow::Result<()> {
    let mut object = Map::new();
    if args.ipv6_only {
        object.insert("EnableIPv4".into(), json!(false));
    } else {
        object.insert("Network".into(), json!(args.ipv4_network));
    }
    if let Some(length) = args.subnet_len {
        object.insert("SubnetLen".into(), json!(length));
    }
    if let Some(network) = args.ipv6_network {
        object.insert("EnableIPv6".into(), json!(true));
        object.insert("IPv6Network".into(), json!(network));
    }
    if let Some(length) = args.ipv6_subnet_len {
        object.insert("IPv6SubnetLen".into(), json!(length));
    }
    object.insert("Backend".into(), json!({ "Type": args.backend }));
    let text = serde_json::Value::Object(object).to_string();
    let config = NetworkConfig::parse(&text)?;
    if !writer(&args.etcd).await?.create_config(&text).await.with_context(|| hint(&args.etcd))? {
        bail!(
            "there is a network config already (loden config show); replace it with: loden config set '{text}'"
        );
    }
    report(&config)
}

fn report(config: &NetworkConfig) -> anyhow::Result<()> {
    let mut out = format!("valid: {}\n", config.to_json());
    for pool in config.pools() {
        out.push_str(&format!("{}: {} subnets of /{}\n", pool.network, pool.capacity(), pool.subnet_length));
    }
    for note in &config.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    print(&out)
}

fn given(argument: &str) -> anyhow::Result<String> {
    match argument.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}")),
        None => Ok(argument.to_owned()),
    }
}

async fn in_etcd(etcd: &EtcdArgs) -> anyhow::Result<String> {
    let (view, _) = read_once(&etcd.options()).await.with_context(|| hint(etcd))?;
    view.config.context(
        "there is no network config in etcd; write one with: loden config init --ipv4-network 10.5.0.0/16",
    )
}

pub(super) async fn writer(etcd: &EtcdArgs) -> anyhow::Result<Writer> {
    let options = etcd.options();
    options.check().map_err(anyhow::Error::msg)?;
    let connection = options.connect().await.with_context(|| hint(etcd))?;
    Ok(Writer::on(&options.prefix, connection))
}

pub(super) fn hint(etcd: &EtcdArgs) -> String {
    format!("asking etcd at {}", etcd.options().endpoints.join(", "))
}
