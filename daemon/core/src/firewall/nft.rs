//! Reads `nft -j list ruleset` (libnftables-json(5)). Rules of `iptables-nft` are in it too, most of
//! them in nft's own words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_proto::{Family, Subnet};
use serde_json::Value;

use super::{Base, Condition, Hook, Rule, Table, Test, Unreadable, Verdict, iptables};

/// Elements of verdict maps, by table and map.
type Maps<'a> = BTreeMap<(String, &'a str), &'a [Value]>;

pub(super) fn read(json: &str) -> Result<Vec<Table>, Unreadable> {
    let whole: Value = serde_json::from_str(json).map_err(|e| Unreadable(e.to_string()))?;
    let objects = whole["nftables"].as_array().ok_or_else(|| Unreadable("it has no list".into()))?;
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    let mut maps = Maps::new();
    for object in objects {
        if let Some(map) = object.get("map")
            && let (Some(table), Some(name)) = (table_of(map), map["name"].as_str())
        {
            maps.insert((table, name), map["elem"].as_array().map(Vec::as_slice).unwrap_or_default());
        }
    }
    for object in objects {
        if let Some(table) = object.get("table") {
            let (Some(family), Some(name)) = (table["family"].as_str(), table["name"].as_str()) else {
                continue;
            };
            let families = match family {
                "ip" => vec![Family::V4],
                "ip6" => vec![Family::V6],
                "inet" => Family::ALL.to_vec(),
                // bridge, arp, netdev: not our packets' way.
                _ => continue,
            };
            if is_dormant(&table["flags"]) {
                continue;
            }
            let name = format!("{family} {name}");
            let table = Table { name: name.clone(), families, chains: BTreeMap::new(), sets_marks: false };
            tables.insert(name, table);
        } else if let Some(chain) = object.get("chain") {
            let Some(table) = table_of(chain).and_then(|t| tables.get_mut(&t)) else { continue };
            let Some(name) = chain["name"].as_str() else { continue };
            table.chains.entry(name.to_owned()).or_default().base = base(chain);
        } else if let Some(rule) = object.get("rule") {
            let Some(table_name) = table_of(rule) else { continue };
            let Some(table) = tables.get_mut(&table_name) else { continue };
            let Some(chain) = rule["chain"].as_str() else { continue };
            let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            table.sets_marks |= expressions.iter().any(|e| {
                let sets = |key: &str| e["mangle"]["key"]["meta"]["key"] == key;
                // iptables' own targets; nft does not say what they are set to.
                let target = e["xt"]["name"].as_str().is_some_and(|name| name.ends_with("MARK"));
                sets("mark") || target
            });
            let rules = rules(expressions, &table_name, &maps);
            table.chains.entry(chain.to_owned()).or_default().rules.extend(rules);
        }
    }
    Ok(tables.into_values().collect())
}

/// A dormant table does nothing. nft 1.0.6 shows only the flag's last letter.
fn is_dormant(flags: &Value) -> bool {
    let dormant = |flag: &Value| flag == "dormant" || flag == "t";
    dormant(flags) || flags.as_array().is_some_and(|all| all.iter().any(dormant))
}

fn table_of(object: &Value) -> Option<String> {
    let table = object["table"].as_str()?;
    Some(format!("{} {table}", object["family"].as_str()?))
}

fn base(chain: &Value) -> Option<Base> {
    let hook = match chain["hook"].as_str()? {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "postrouting" => Hook::Postrouting,
        _ => return None,
    };
    Some(Base {
        hook,
        priority: chain["prio"].as_i64().unwrap_or(0),
        nat: chain["type"] == "nat",
        drops_by_policy: chain["policy"] == "drop",
    })
}

/// One rule, or several where a verdict map stands for them.
fn rules(expressions: &[Value], table: &str, maps: &Maps<'_>) -> Vec<Rule> {
    let mut conditions: Vec<Condition> = Vec::new();
    for expression in expressions {
        let Some((kind, body)) = expression.as_object().and_then(|o| o.iter().next()) else { continue };
        let verdict = match kind.as_str() {
            "match" => {
                conditions.push(condition(body));
                continue;
            }
            "vmap" => return mapped(body, &conditions, table, maps),
            // These neither test nor decide.
            "counter" | "log" | "mangle" | "notrack" | "comment" | "ct helper" | "flow" => continue,
            // A target of iptables that nft has no words for.
            "xt" if body["type"] == "target" => {
                match body["name"].as_str().and_then(|name| iptables::verdict(name, false)) {
                    Some(verdict) => verdict,
                    None => continue,
                }
            }
            other => match verdict(other, body) {
                Some(verdict) => verdict,
                None => {
                    // limit, quota, matches of iptables and what else may or may not let the rule go on.
                    conditions.push(Condition { test: Test::Unknown(None), negated: false });
                    continue;
                }
            },
        };
        return vec![Rule { conditions, verdict }];
    }
    Vec::new()
}

fn verdict(kind: &str, body: &Value) -> Option<Verdict> {
    let target = || body["target"].as_str().map(str::to_owned);
    Some(match kind {
        "accept" => Verdict::Accept,
        "drop" | "reject" => Verdict::Drop,
        "return" => Verdict::Return,
        "jump" => Verdict::Jump(target()?),
        "goto" => Verdict::Goto(target()?),
        "masquerade" | "snat" => Verdict::NewSource,
        "dnat" | "redirect" | "queue" | "tproxy" => Verdict::Unknown,
        _ => return None,
    })
}

fn mapped(body: &Value, before: &[Condition], table: &str, maps: &Maps<'_>) -> Vec<Rule> {
    let elements: &[Value] = match &body["data"] {
        Value::String(name) => {
            let name = name.trim_start_matches('@');
            maps.get(&(table.to_owned(), name)).copied().unwrap_or_default()
        }
        data => data["set"].as_array().map(Vec::as_slice).unwrap_or_default(),
    };
    let rule = |element: &Value| {
        let (key, action) = (element.get(0)?, element.get(1)?);
        let (kind, target) = action.as_object()?.iter().next()?;
        let test = test(&body["key"], key);
        let mut conditions = before.to_vec();
        conditions.push(Condition { test, negated: false });
        Some(Rule { conditions, verdict: verdict(kind, target)? })
    };
    elements.iter().filter_map(rule).collect()
}

fn condition(body: &Value) -> Condition {
    match body["op"].as_str() {
        Some("==" | "in") => Condition { test: test(&body["left"], &body["right"]), negated: false },
        Some("!=") => Condition { test: test(&body["left"], &body["right"]), negated: true },
        _ => Condition { test: Test::Unknown(None), negated: false },
    }
}

fn test(left: &Value, right: &Value) -> Test {
    known_test(left, right).unwrap_or_else(|| {
        let protocol = left["payload"]["protocol"].as_str().filter(|p| TRANSPORT.contains(p));
        Test::Unknown(protocol.map(str::to_owned))
    })
}

/// Protocols above IP, whose tests hold for their own packets alone.
const TRANSPORT: [&str; 8] = ["tcp", "udp", "icmp", "icmpv6", "igmp", "sctp", "dccp", "udplite"];

fn known_test(left: &Value, right: &Value) -> Option<Test> {
    let values: Vec<&Value> = match right {
        Value::Array(all) => all.iter().collect(),
        Value::String(name) if name.starts_with('@') => return None,
        other => match other["set"].as_array() {
            Some(all) => all.iter().collect(),
            None => vec![other],
        },
    };
    let texts = || values.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
    let numbers = || values.iter().map(|v| v.as_u64()?.try_into().ok()).collect::<Option<Vec<u32>>>();
    if let Some(parts) = left["&"].as_array() {
        let mask = parts.get(1)?.as_u64()?.try_into().ok()?;
        return (parts.first()?["meta"]["key"] == "mark").then(|| Some(Test::Mark(mask, numbers()?)))?;
    }
    if let Some(key) = left["meta"]["key"].as_str() {
        return Some(match key {
            "iifname" | "iif" => Test::InInterface(texts()?),
            "oifname" | "oif" => Test::OutInterface(texts()?),
            "l4proto" => Test::Protocol(texts()?),
            "mark" => Test::Mark(u32::MAX, numbers()?),
            "nfproto" => match texts()?.as_slice() {
                [one] if one == "ipv4" => Test::Family(Family::V4),
                [one] if one == "ipv6" => Test::Family(Family::V6),
                _ => return None,
            },
            _ => return None,
        });
    }
    if let Some(key) = left["ct"]["key"].as_str() {
        return match key {
            "state" => Some(Test::State(texts()?)),
            "status" if texts()? == ["dnat"] => Some(Test::Redirected),
            _ => None,
        };
    }
    let (protocol, field) = (left["payload"]["protocol"].as_str()?, left["payload"]["field"].as_str()?);
    let ranges = || values.iter().map(|v| addresses(v)).collect::<Option<Vec<_>>>();
    match (protocol, field) {
        ("ip" | "ip6", "saddr") => Some(Test::Source(ranges()?)),
        ("ip" | "ip6", "daddr") => Some(Test::Destination(ranges()?)),
        ("ip", "protocol") | ("ip6", "nexthdr") => Some(Test::Protocol(texts()?)),
        (_, "dport") => {
            let protocol = Some(protocol.to_owned()).filter(|p| p != "th");
            Some(Test::DestinationPort(protocol, values.iter().map(|v| ports(v)).collect::<Option<_>>()?))
        }
        _ => None,
    }
}

fn addresses(value: &Value) -> Option<(IpAddr, IpAddr)> {
    let address = |v: &Value| v.as_str()?.parse::<IpAddr>().ok();
    if let Some(prefix) = value.get("prefix") {
        let length = prefix["len"].as_u64()?.try_into().ok()?;
        let subnet = Subnet::containing(address(&prefix["addr"])?, length).ok()?;
        return Some((subnet.address(), subnet.last()));
    }
    if let Some(range) = value["range"].as_array() {
        return Some((address(range.first()?)?, address(range.get(1)?)?));
    }
    let one = address(value)?;
    Some((one, one))
}

fn ports(value: &Value) -> Option<(u16, u16)> {
    let port = |v: &Value| v.as_u64()?.try_into().ok();
    if let Some(range) = value["range"].as_array() {
        return Some((port(range.first()?)?, port(range.get(1)?)?));
    }
    let one = port(value)?;
    Some((one, one))
}
