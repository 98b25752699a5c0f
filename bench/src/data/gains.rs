//! Group `gains`: what single settings of the data plane are worth. Each is a Loden of its own, changed
//! in one thing, in turns with a Loden as it comes. Called by `main.rs`.
//!
//! Differences of a few per cent are looked for. So CPU time is the two ends' own and that of the
//! kernel's softirq threads, without others' load; and a round's number is the least of many short
//! windows, when others disturbed caches and hypervisor least.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use loden_tests::Host;

use super::sides::{Arena, Side};
use super::traffic::{Load, Timing};
use super::underlay::{Mode, NIC};
use crate::quiet;
use crate::report::Row;

/// A setting that is measured.
struct Setting {
    name: &'static str,
    change: Change,
}

enum Change {
    /// The network config.
    Config(&'static str),
    /// Before the daemon starts.
    Before(fn(&Host)),
    /// When everything is in place and the daemons, which would put it right, have been stopped.
    After(fn(&Side)),
}

/// Seconds of CPU of the rounds, by load and side.
type Least = BTreeMap<(usize, usize), Vec<f64>>;

const TIMING: Timing = Timing { warm_up: Duration::from_millis(50), window: Duration::from_millis(200) };
/// Of a round, for each setting and load.
const WINDOWS: usize = 4;

const LOADS: [(&str, &str, f64, Load); 4] = [
    ("stream", "ps", 1e12, Load::Stream),
    ("round trip", "us", 1e6, Load::RoundTrips { flows: 1 }),
    ("connection", "us", 1e6, Load::Connections),
    ("64 B", "us", 1e6, Load::Datagrams { size: 64, flows: 1 }),
];

const SETTINGS: [Setting; 12] = [
    // What this shows is noise.
    Setting { name: "nothing changed", change: Change::After(|_| ()) },
    Setting {
        name: "outer UDP tracked",
        change: Change::After(|side| {
            on_hosts(side, |host| {
                for chain in ["untracked_in", "untracked_out"] {
                    host.run(&["nft", "flush", "chain", "inet", "loden", chain]);
                }
            });
        }),
    },
    Setting { name: "no outer checksum", change: Change::Before(|host| add_device(host, "noudpcsum")) },
    Setting {
        name: "a second tunnel's socket",
        change: Change::After(|side| {
            on_hosts(side, |host| {
                host.ip("link add second type vxlan id 2 dstport 4789 nolearning\nlink set second up");
            });
        }),
    },
    Setting {
        name: "containers untracked",
        change: Change::After(|side| on_hosts(side, |host| host.ns().nft(UNTRACKED))),
    },
    Setting {
        name: "no br_netfilter",
        change: Change::After(|side| {
            on_hosts(side, |host| host.ns().sysctl("net/bridge/bridge-nf-call-iptables", "0"));
        }),
    },
    Setting { name: "GRO on the host's ends", change: Change::After(|side| on_ports(side, &["gro", "on"])) },
    Setting {
        name: "GRO in the containers",
        change: Change::After(|side| {
            for container in side.containers() {
                container.run(&["ethtool", "-K", "eth0", "gro", "on"]);
            }
        }),
    },
    Setting {
        name: "UDP GRO forwarding",
        change: Change::After(|side| {
            on_hosts(side, |host| {
                host.run(&["ethtool", "-K", NIC, "rx-udp-gro-forwarding", "on"]);
            });
            on_ports(side, &["gro", "on", "rx-udp-gro-forwarding", "on"]);
        }),
    },
    Setting {
        name: "no port filter",
        change: Change::After(|side| {
            on_hosts(side, |host| {
                host.run(&["nft", "delete", "table", "bridge", "loden"]);
            });
        }),
    },
    Setting {
        name: "no filters but masquerade",
        change: Change::After(|side| {
            on_hosts(side, |host| {
                host.run(&["nft", "delete", "table", "bridge", "loden"]);
                for chain in ["vxlan_in", "vxlan_forward", "reserved_macs", "overlay_mark"] {
                    host.run(&["nft", "delete", "chain", "inet", "loden", chain]);
                }
            });
        }),
    },
    Setting {
        name: "DirectRouting",
        change: Change::Config(
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
        ),
    },
];

/// Packets between containers, whichever they are.
const UNTRACKED: &str = "table ip untracked {
    chain in {
        type filter hook prerouting priority raw; policy accept;
        ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 notrack
    }
}";

/// Measures this many rounds; the table's rows.
pub(crate) fn run(rounds: u32) -> Result<Vec<Row>> {
    let arena = Arena::new("bench_gains");
    let mut sides = vec![arena.loden("base")?];
    sides[0].stop_daemons();
    for (number, setting) in SETTINGS.iter().enumerate() {
        eprintln!("gains: {}", setting.name);
        let name = format!("s{number}");
        let side = match setting.change {
            Change::Config(config) => arena.loden_with(&name, config, |_| ())?,
            Change::Before(before) => arena.loden_with(&name, super::sides::CONFIG, before)?,
            Change::After(_) => arena.loden(&name)?,
        };
        side.stop_daemons();
        if let Change::After(change) = setting.change {
            change(&side);
        }
        sides.push(side);
    }
    for side in &sides {
        side.underlay().switch_to(Mode::Wire);
    }
    let mut found = Least::new();
    for round in 0..rounds as usize {
        for (number, (name, .., load)) in LOADS.iter().enumerate() {
            eprintln!("gains: round {} of {rounds}, {name}", round + 1);
            quiet::wait()?;
            let mut least = vec![f64::INFINITY; sides.len()];
            for turn in 0..WINDOWS * sides.len() {
                let which = (round + turn) % sides.len();
                let cost = load.measure(&sides[which].between_hosts(), TIMING)?;
                least[which] = least[which].min(cost.own_cpu);
            }
            for (which, least) in least.into_iter().enumerate() {
                found.entry((number, which)).or_default().push(least);
            }
        }
    }
    Ok(rows(&found))
}

fn rows(found: &Least) -> Vec<Row> {
    let mut rows = Vec::new();
    for (which, setting) in SETTINGS.iter().enumerate() {
        for (number, (load, unit, scale, _)) in LOADS.iter().enumerate() {
            let values = |which: usize| -> Vec<f64> {
                found.get(&(number, which)).into_iter().flatten().map(|cpu| cpu * scale).collect()
            };
            let (changed, as_it_comes) = (values(which + 1), values(0));
            let row = Row::new(format!("{}: {load}", setting.name), unit, &changed);
            rows.push(row.beside("as it comes", &as_it_comes));
        }
    }
    rows
}

fn on_hosts(side: &Side, change: impl Fn(&Host)) {
    side.hosts().iter().for_each(change);
}

/// Sets features of all ports of the bridges.
fn on_ports(side: &Side, features: &[&str]) {
    on_hosts(side, |host| {
        let ports = host.json(&["ip", "-j", "link", "show", "master", "loden0"]);
        for port in ports.as_array().into_iter().flatten() {
            if let Some(name) = port["ifname"].as_str() {
                host.run(&[&["ethtool", "-K", name], features].concat());
            }
        }
    });
}

/// A VXLAN device that the daemon takes for its own, since it has its identity.
fn add_device(host: &Host, option: &str) {
    host.ip(&format!("link add loden.1 type vxlan id 1 dstport 8472 dev {NIC} nolearning {option}"));
}
