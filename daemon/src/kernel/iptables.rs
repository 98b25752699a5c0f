//! iptables, for the one chain of Docker's that is meant for others. Written by the program itself,
//! not by nft: a rule that iptables cannot show would make the whole table unreadable for Docker.
//!
//! Changes by `iptables-nft` come as notices of the rule set; those by `iptables-legacy` have none and
//! are looked for every few seconds, but only where its tables exist: merely asking for one makes it.

use std::io::ErrorKind;

use loden_core::docker::user_chain::{self, BackEnd, CHAIN, Change, UserChains};
use loden_netlink::{Socket, nftset};
use loden_proto::Family;

use super::program;

/// The rules of each `DOCKER-USER` there is. `socket` is a netfilter socket.
pub async fn user_chains(socket: &mut Socket, families: &[Family]) -> Result<UserChains, String> {
    let mut all = UserChains::new();
    for family in families {
        for back_end in [BackEnd::Nft, BackEnd::Legacy] {
            let there = match back_end {
                // Cheaper than asking the program, which almost always would say no.
                BackEnd::Nft => nftset::has_chain(socket, protocol(*family), "filter", CHAIN),
                BackEnd::Legacy => has_filter(*family),
            };
            if !there {
                continue;
            }
            let text = save(back_end, *family, &["-t", "filter"]).await;
            let text = text.map_err(|error| format!("cannot read {CHAIN}: {error}"))?;
            all.extend(user_chain::read(&text).map(|rules| ((back_end, *family), rules)));
        }
    }
    Ok(all)
}

/// Carries a change out in one transaction. Does not wait for the lock of the older iptables, which
/// somebody may hold for long.
pub async fn change_user_chain(change: &Change) -> Result<(), String> {
    let program = name(change.back_end, change.family, "-restore");
    program::run(&[&program], &["--noflush"], &change.script, "iptables").await.map(drop)
}

/// Rules as `iptables-save` prints them. It takes no lock, unlike `iptables -S`.
pub(super) async fn save(back_end: BackEnd, family: Family, arguments: &[&str]) -> Result<String, String> {
    program::run(&[&name(back_end, family, "-save")], arguments, "", "iptables").await
}

/// Whether somebody uses the older iptables' filter table in this namespace.
pub fn has_legacy_filter() -> bool {
    Family::ALL.iter().any(|family| has_filter(*family))
}

/// Whether somebody uses any table of the older iptables.
pub(super) fn has_legacy_tables(family: Family) -> bool {
    legacy_tables(family).is_ok_and(|names| !names.is_empty())
}

fn has_filter(family: Family) -> bool {
    legacy_tables(family).is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

/// Why Docker's use of the older iptables cannot be seen, if that is so.
pub fn unseen_legacy() -> Option<String> {
    let chosen = std::fs::canonicalize("/usr/sbin/iptables").ok()?;
    let is_legacy = chosen.file_name()?.to_str()?.contains("legacy");
    let unseen = legacy_tables(Family::V4) == Err(ErrorKind::PermissionDenied);
    (is_legacy && unseen).then(|| {
        "this host's iptables is iptables-legacy, which the daemon may not look at; if Docker runs here, install the drop-in /usr/share/loden/loden.service.d/iptables-legacy.conf (docs/docker.md)".to_owned()
    })
}

/// `/proc/net/ip_tables_names` (net/ipv4/netfilter/ip_tables.c) lists the tables that were used.
fn legacy_tables(family: Family) -> Result<String, ErrorKind> {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        names => names.map_err(|error| error.kind()),
    }
}

fn name(back_end: BackEnd, family: Family, suffix: &str) -> String {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let kind = match back_end {
        BackEnd::Nft => "nft",
        BackEnd::Legacy => "legacy",
    };
    format!("{program}-{kind}{suffix}")
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}
