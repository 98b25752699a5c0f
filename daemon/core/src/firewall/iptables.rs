//! Reads what `iptables-save` prints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_proto::{Family, Subnet};

use super::{BackEnd, Base, Chain, Condition, Hook, Rule, Table, Test, Verdict};

/// What a table is called: `ip filter` as nft does, or `iptables-legacy filter`.
pub(super) fn table_name(back_end: BackEnd, family: Family, table: &str) -> String {
    let tool = match (back_end, family) {
        (BackEnd::Nft, Family::V4) => "ip",
        (BackEnd::Nft, Family::V6) => "ip6",
        (BackEnd::Legacy, Family::V4) => "iptables-legacy",
        (BackEnd::Legacy, Family::V6) => "ip6tables-legacy",
    };
    format!("{tool} {table}")
}

pub(super) fn read(save: &str, back_end: BackEnd, family: Family) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in save.lines() {
        if let Some(name) = line.strip_prefix('*') {
            let name = table_name(back_end, family, name);
            tables.push(Table { name, families: vec![family], chains: BTreeMap::new(), sets_marks: false });
            continue;
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let (Some(name), Some(policy)) = (words.next(), words.next()) else { continue };
            let chain = Chain { base: base(&table.name, name, policy), rules: Vec::new() };
            table.chains.insert(name.to_owned(), chain);
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words = words(rule);
            table.sets_marks |= words.iter().any(|w| w == "MARK" || w == "CONNMARK");
            let Some((chain, rest)) = words.split_first() else { continue };
            let rule = self::rule(rest);
            table.chains.entry(chain.clone()).or_default().rules.extend(rule);
        }
    }
    tables
}

/// Hooks and priorities as in include/uapi/linux/netfilter_ipv4.h.
fn base(table: &str, chain: &str, policy: &str) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let kind = table.rsplit(' ').next().unwrap_or_default();
    let priority = match (kind, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Postrouting) => 100,
        ("nat", _) => -100,
        _ => 0,
    };
    Some(Base { hook, priority, nat: kind == "nat", drops_by_policy: policy == "DROP" })
}

/// A test whose words are not understood may or may not hold.
const UNKNOWN: Test = Test::Unknown(None);

/// `None` for a rule whose target decides nothing, such as LOG.
fn rule(words: &[String]) -> Option<Rule> {
    let mut conditions = Vec::new();
    let mut negated = false;
    let mut protocol = None;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let test = match word {
            "!" => {
                negated = true;
                continue;
            }
            "-j" | "-g" => {
                let verdict = verdict(words.next()?, word == "-g")?;
                return Some(Rule { conditions, verdict });
            }
            "-m" => match words.next()? {
                // Modules whose options are all known here.
                "tcp" | "udp" | "comment" | "mark" | "conntrack" | "state" | "multiport" => continue,
                _ => UNKNOWN,
            },
            "--comment" => {
                words.next();
                continue;
            }
            "-i" => Test::InInterface(vec![interface(words.next().unwrap_or_default())]),
            "-o" => Test::OutInterface(vec![interface(words.next().unwrap_or_default())]),
            "-s" => words.next().and_then(addresses).map_or(UNKNOWN, |range| Test::Source(vec![range])),
            "-d" => words.next().and_then(addresses).map_or(UNKNOWN, |range| Test::Destination(vec![range])),
            "-p" => {
                protocol = words.next().map(str::to_owned);
                Test::Protocol(protocol.iter().cloned().collect())
            }
            "--dport" | "--dports" => match words.next().and_then(ports) {
                Some(ports) => Test::DestinationPort(protocol.clone(), ports),
                None => UNKNOWN,
            },
            "--mark" => match words.next().and_then(mark) {
                Some((value, mask)) => Test::Mark(mask, vec![value]),
                None => UNKNOWN,
            },
            "--ctstate" | "--state" => {
                let states = words.next().unwrap_or_default().to_ascii_lowercase();
                Test::State(states.split(',').map(str::to_owned).collect())
            }
            option if option.starts_with('-') => UNKNOWN,
            // The value of such an option.
            _ => continue,
        };
        conditions.push(Condition { test, negated: std::mem::take(&mut negated) });
    }
    None
}

/// What a target does; `None` if it decides nothing.
pub(super) fn verdict(target: &str, goto: bool) -> Option<Verdict> {
    Some(match target {
        "ACCEPT" => Verdict::Accept,
        "DROP" | "REJECT" => Verdict::Drop,
        "RETURN" => Verdict::Return,
        "MASQUERADE" | "SNAT" | "NETMAP" => Verdict::NewSource,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "CT" | "NOTRACK" | "TCPMSS" | "CHECKSUM" => return None,
        "DNAT" | "REDIRECT" | "NFQUEUE" | "TPROXY" => Verdict::Unknown,
        chain if goto => Verdict::Goto(chain.to_owned()),
        chain => Verdict::Jump(chain.to_owned()),
    })
}

fn interface(name: &str) -> String {
    match name.strip_suffix('+') {
        Some(begin) => format!("{begin}*"),
        None => name.to_owned(),
    }
}

fn addresses(text: &str) -> Option<(IpAddr, IpAddr)> {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().ok()?;
    let length = if length.is_empty() { Family::of(address).bits() } else { length.parse().ok()? };
    let subnet = Subnet::containing(address, length).ok()?;
    Some((subnet.address(), subnet.last()))
}

fn ports(text: &str) -> Option<Vec<(u16, u16)>> {
    let range = |part: &str| match part.split_once(':') {
        Some((from, to)) => Some((from.parse().ok()?, to.parse().ok()?)),
        None => part.parse().ok().map(|port| (port, port)),
    };
    text.split(',').map(range).collect()
}

fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |part: &str| u32::from_str_radix(part.trim_start_matches("0x"), 16).ok();
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// Words as iptables-save quotes them.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' => word.extend(characters.next()),
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    words
}
