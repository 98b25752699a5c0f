//! `loden export`: what the overlay knows, for programs that ask no daemon.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use loden_proto::status::{Names, Request};

use super::daemon::PlaceArgs;
use super::output::print;
use super::question::{Answer, ask};

/// Print what the overlay knows in other programs' formats.
#[derive(Debug, Subcommand)]
pub(super) enum ExportCommand {
    /// Every name as a hosts file (hosts(5)), as they are at this moment
    #[command(
        after_help = "For programs that cannot use DNS. Names that several containers share are left out: of those\na hosts file knows one address only.\n\nExample:\n  loden export hosts > /srv/app/hosts      to be mounted as /etc/hosts; write it anew when names change"
    )]
    Hosts(HostsArgs),
}

#[derive(Debug, Args)]
pub(super) struct HostsArgs {
    #[command(flatten)]
    place: PlaceArgs,
}

pub(super) fn run(command: ExportCommand) -> anyhow::Result<()> {
    let ExportCommand::Hosts(args) = command;
    let answer: Names = match ask(&args.place.run_dir(), Request::Names)? {
        Answer::Given(answer) => answer,
        Answer::None { reason, .. } => anyhow::bail!("{reason}; names are in the daemon's memory alone"),
    };
    if answer.zone.is_empty() {
        anyhow::bail!("no names are served: there is no network config yet, or its member DNS is false");
    }
    print(&hosts(&answer))
}

fn hosts(names: &Names) -> String {
    let own = names.names.iter().filter(|n| !n.group && n.state != "withdrawn");
    let lines: BTreeSet<(&str, IpAddr)> =
        own.clone().flat_map(|n| n.addresses.iter().map(|a| (n.name.as_str(), *a))).collect();
    let count = own.map(|n| n.name.as_str()).collect::<BTreeSet<_>>().len();
    let mut out = format!("# {count} names below {}, by loden export hosts\n", names.zone);
    for (full, address) in lines {
        let short = full.strip_suffix(&names.zone).and_then(|name| name.strip_suffix('.')).unwrap_or(full);
        let _ = writeln!(out, "{address}\t{full} {short}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use loden_proto::status::NameStatus;

    #[test]
    fn names_are_sorted_full_first_and_groups_left_out() {
        let name = |name: &str, addresses: &[&str], group, state: &str| NameStatus {
            name: format!("{name}.loden.internal"),
            addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
            host: "r1".into(),
            subnet: "10.5.7.0/24".parse().expect("subnet"),
            endpoint: "veth1".into(),
            source: "cni".into(),
            group,
            outside_addresses: Vec::new(),
            state: state.into(),
            since_unix_seconds: 0,
        };
        let names = vec![
            name("web.shop", &["10.5.7.3", "fd00::3"], false, "local"),
            name("all", &["10.5.7.2"], true, "local"),
            name("db", &["10.5.7.2"], false, "owner"),
            name("db", &["10.5.9.2"], false, "withdrawn"),
        ];
        let names = Names { zone: "loden.internal".into(), names, problems: Vec::new() };
        assert_eq!(
            hosts(&names),
            "# 2 names below loden.internal, by loden export hosts\n\
             10.5.7.2\tdb.loden.internal db\n\
             10.5.7.3\tweb.shop.loden.internal web.shop\n\
             fd00::3\tweb.shop.loden.internal web.shop\n"
        );
    }
}
