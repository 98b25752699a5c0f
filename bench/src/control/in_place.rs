//! Whether a host's kernel leads to the fleet: a number says nothing of a daemon that has not done
//! its work. Read with iproute2 and nft, which share no code with Loden. Used by `contender.rs`,
//! while no clock runs.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use loden_tests::{Host, kernel};
use serde_json::Value;

use super::contender::Kind;
use super::{MANY, fleet};

/// Objects of one kind, as text.
struct Objects {
    kind: &'static str,
    /// Those of one host of the fleet.
    of: fn(u32) -> String,
    found: BTreeSet<String>,
}

/// An error that names what is missing or left over, unless there is all for the first `peers` hosts of
/// the fleet and nothing for the others.
pub(super) fn check(host: &Host, kind: Kind, peers: u32) -> Result<()> {
    let device = kind.device();
    let pairs = |list: Vec<Value>, key: &str, value: &str| -> BTreeSet<String> {
        list.iter().map(|e| pair(kernel::text(e, key), kernel::text(e, value))).collect()
    };
    let mut routes = kernel::routes_in(host, fleet::NETWORK);
    routes.retain(|route| route["dev"] == device);
    let mut all = vec![
        Objects {
            kind: "routes",
            of: |h| pair(&fleet::subnet(h).to_string(), &fleet::address(h).to_string()),
            found: pairs(routes, "dst", "gateway"),
        },
        Objects {
            kind: "neighbours",
            of: |h| pair(&fleet::address(h).to_string(), &fleet::mac(h).to_string()),
            found: pairs(kernel::neighbours(host, device), "dst", "lladdr"),
        },
        Objects {
            kind: "FDB entries",
            of: |h| pair(&fleet::mac(h).to_string(), &fleet::public(h).to_string()),
            found: pairs(kernel::fdb(host, device), "mac", "dst"),
        },
    ];
    if kind == Kind::Loden {
        let listed = host.json(&["nft", "-j", "list", "set", "inet", "loden", "peers4"]);
        let elements = listed["nftables"].as_array().into_iter().flatten();
        let elements = elements.filter_map(|object| object["set"]["elem"].as_array()).flatten();
        all.push(Objects {
            kind: "elements of the peer set",
            of: |h| fleet::public(h).to_string(),
            found: elements.filter_map(Value::as_str).map(str::to_owned).collect(),
        });
    }
    let wrong: String = all.iter().map(|objects| objects.wrong(peers)).collect();
    if !wrong.is_empty() {
        bail!("{} is not done with {peers} peers:{wrong}", kind.name());
    }
    Ok(())
}

fn pair(key: &str, value: &str) -> String {
    format!("{key} to {value}")
}

impl Objects {
    fn wrong(&self, peers: u32) -> String {
        let is_there = |h: &u32| self.found.contains(&(self.of)(*h));
        let missing: Vec<u32> = (0..peers).filter(|h| !is_there(h)).collect();
        let left: Vec<u32> = (peers..MANY).filter(is_there).collect();
        let mut wrong = String::new();
        for (hosts, what) in [(missing, "missing"), (left, "left over")] {
            if let Some(first) = hosts.first() {
                let _ = write!(
                    wrong,
                    " {} {} are {what}, such as {};",
                    hosts.len(),
                    self.kind,
                    (self.of)(*first)
                );
            }
        }
        wrong
    }
}
