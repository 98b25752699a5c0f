//! `loden name`: names for what neither the plugin nor Docker has connected.

use std::net::IpAddr;

use anyhow::bail;
use clap::{Args, Subcommand};
use loden_proto::dns_name::DnsName;
use loden_proto::name_record::{ManualName, PublishedPort};
use loden_proto::status::{ManualNames, NameChange, Request};

use super::daemon::PlaceArgs;
use super::output::{duration, print, print_json, table};
use super::question::{Answer, ask};
use crate::clock;

/// Give names by hand, on the host that they belong to.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "For what no container runtime names: a process with an address of this host's subnet, or a machine\noutside of the overlay. The name resolves on every host, and goes when this host's lease does.\n\nExamples:\n  loden name add kdc --address 192.0.2.7            a server beside the overlay\n  loden name add dn9 --address 10.5.7.200 --port tcp/9866:19866\n  loden name add zookeeper --group --address 10.5.7.9\n  loden name remove kdc\n  loden name list                                   those of this host; loden names shows all"
)]
pub(super) enum NameCommand {
    /// Give a name; one that is there already is changed, and a name that somebody else has is taken over
    Add(AddArgs),
    /// Take a name back that was given here
    Remove(RemoveArgs),
    /// List the names that were given here
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The name, with or without the zone: kdc, dn9.hdfs
    #[arg(value_name = "NAME")]
    name: DnsName,
    /// What it stands for: an address of this host's subnet, or one outside of the overlay. Repeatable
    #[arg(long = "address", value_name = "IP", required = true)]
    addresses: Vec<IpAddr>,
    /// Others may have the name too, here and on other hosts, and all of their addresses are answered. Addresses
    /// do not lead back to it
    #[arg(long)]
    group: bool,
    /// A port that this host forwards, as PROTOCOL/INSIDE:AT-THE-HOST, for SRV records and for clients outside
    /// of the overlay. Repeatable
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<PublishedPort>,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The name, with or without the zone
    #[arg(value_name = "NAME")]
    name: DnsName,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Print everything as JSON with stable names
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: NameCommand) -> anyhow::Result<()> {
    match command {
        NameCommand::Add(args) => {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in args.addresses.iter().map(IpAddr::to_canonical) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let (name, group, ports) = (args.name, args.group, args.ports);
            let wanted = ManualName { name, group, addresses, ports, since: 0 };
            change(&args.place, Request::AddName(wanted), &format!("is {}", shown.join(" ")))
        }
        NameCommand::Remove(args) => {
            change(&args.place, Request::RemoveName { name: args.name }, "is removed")
        }
        NameCommand::List(args) => list(&args),
    }
}

fn change(place: &PlaceArgs, request: Request, done: &str) -> anyhow::Result<()> {
    let NameChange { error, named } = asked(place, request)?;
    if let Some(error) = error {
        bail!(error);
    }
    let name = named.names.join(" ");
    if let Some(problem) = named.problem {
        bail!("{name} {done} and will be on every host, but is not yet: {problem}");
    }
    let whom =
        if named.published { "on every host" } else { "on this host, and on others as soon as etcd is back" };
    print(&format!("{name} {done}, {whom}\n"))
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let answer: ManualNames = asked(&args.place, Request::ManualNames)?;
    if args.json {
        return print_json(&answer);
    }
    if answer.names.is_empty() {
        return print("no name was given by hand on this host; loden name add gives one\n");
    }
    let now = clock::unix_seconds();
    let row = |n: &ManualName| {
        let addresses: Vec<String> = n.addresses.iter().map(ToString::to_string).collect();
        let ports: Vec<String> = n.ports.iter().map(ToString::to_string).collect();
        vec![
            n.name.to_string(),
            addresses.join(" "),
            if n.group { "group" } else { "own" }.into(),
            ports.join(" "),
            duration(now.saturating_sub(n.since / 1000)),
        ]
    };
    let rows: Vec<Vec<String>> = answer.names.iter().map(row).collect();
    print(&table(&["NAME", "ADDRESS", "KIND", "PORTS", "AGE"], &rows))
}

fn asked<T: serde::de::DeserializeOwned>(place: &PlaceArgs, request: Request) -> anyhow::Result<T> {
    match ask(&place.run_dir(), request)? {
        Answer::Given(answer) => Ok(answer),
        Answer::None { reason, .. } => bail!("{reason}; names by hand are the daemon's"),
    }
}
