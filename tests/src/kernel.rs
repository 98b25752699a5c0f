//! What stands in a host's kernel, as iproute2 and nft print it.

use serde_json::Value;

use crate::{Host, Ns};

fn list(host: &Host, argv: &[&str]) -> Vec<Value> {
    match host.json(argv) {
        Value::Array(list) => list,
        other => panic!("{argv:?} printed no list: {other}"),
    }
}

/// The text of a member, or nothing.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Routes of all tables but local.
pub fn routes(host: &Host) -> Vec<Value> {
    let mut all = list(host, &["ip", "-j", "-N", "-d", "route", "show", "table", "all"]);
    all.retain(|r| r["table"] != "255" && r["table"] != 255 && r["table"] != "local");
    all
}

/// iproute2 shows IPv4 routes only unless told otherwise, whatever prefix it is given.
fn family_flag(prefix: &str) -> &'static str {
    if prefix.contains(':') { "-6" } else { "-4" }
}

/// The route to exactly this destination in the main table.
pub fn route(host: &Host, destination: &str) -> Option<Value> {
    let flag = family_flag(destination);
    list(host, &["ip", flag, "-j", "-d", "route", "show", "exact", destination]).into_iter().next()
}

/// Routes whose destination lies in the network given, as iproute2's `root` matches it.
pub fn routes_in(host: &Host, network: &str) -> Vec<Value> {
    list(host, &["ip", family_flag(network), "-j", "-N", "-d", "route", "show", "root", network])
}

/// IPv4 and IPv6 neighbours on a device.
pub fn neighbours(host: &Host, device: &str) -> Vec<Value> {
    list(host, &["ip", "-j", "neigh", "show", "dev", device, "nud", "all"])
}

/// FDB entries of a device.
pub fn fdb(host: &Host, device: &str) -> Vec<Value> {
    list(host, &["bridge", "-j", "fdb", "show", "dev", device])
}

/// Nexthop objects.
pub fn nexthops(host: &Host) -> Vec<Value> {
    list(host, &["ip", "-j", "-N", "nexthop", "show"])
}

/// An interface with its details, if it exists.
pub fn link(host: &Host, name: &str) -> Option<Value> {
    let output = host.exec(&["ip", "-j", "-d", "link", "show", "dev", name]);
    output
        .success()
        .then(|| serde_json::from_str::<Value>(&output.stdout).expect("iproute2 prints JSON")[0].clone())
}

/// The names of all interfaces.
pub fn links(host: &Host) -> Vec<String> {
    list(host, &["ip", "-j", "link", "show"]).iter().map(|l| text(l, "ifname").to_owned()).collect()
}

/// The addresses of an interface, with lengths.
pub fn addresses(ns: &Ns, interface: &str) -> Vec<String> {
    let output = ns.exec(&["ip", "-j", "addr", "show", "dev", interface]);
    if !output.success() {
        return Vec::new();
    }
    let links: Value = serde_json::from_str(&output.stdout).expect("iproute2 prints JSON");
    let infos = links[0]["addr_info"].as_array().cloned().unwrap_or_default();
    infos.iter().map(|a| format!("{}/{}", text(a, "local"), a["prefixlen"])).collect()
}

/// A nft table as text, if it exists.
pub fn table(host: &Host, family: &str, name: &str) -> Option<String> {
    let output = host.exec(&["nft", "-s", "list", "table", family, name]);
    output.success().then_some(output.stdout)
}

/// All nft tables: `inet loden`.
pub fn tables(host: &Host) -> Vec<String> {
    let text = host.run(&["nft", "list", "tables"]);
    text.lines().filter_map(|l| l.strip_prefix("table ")).map(str::to_owned).collect()
}
