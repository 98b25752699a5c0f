//! Which packets matter, and what an operator is told of those that do not get through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use loden_proto::{Family, Subnet};
use serde::{Deserialize, Serialize};

use super::walk::{Packet, Place, drops, translations};
use super::{Hook, RuleSet, Test};
use crate::docker::user_chain;
use crate::options::Options;

/// What the overlay looks like on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The operator's choices.
    pub options: Options,
    /// Overlay network and our own subnet of each family.
    pub families: Vec<(Subnet, Subnet)>,
    /// Interfaces by which packets of peers come, by family: the VXLAN device, the underlay, or both.
    pub overlay: Vec<(Family, String)>,
    /// Interface and addresses of the underlay.
    pub underlay: (String, Vec<IpAddr>),
    /// UDP port, where packets are encapsulated.
    pub vxlan_port: Option<u16>,
    /// Addresses that VXLAN packets come from.
    pub peers: Vec<IpAddr>,
    /// Bridges with an address inside the overlay.
    pub bridges: Vec<Bridge>,
}

/// A bridge with an address inside the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

/// What an operator is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// What breaks the overlay, each with its mend.
    pub problems: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// Whose rules they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Docker,
    Firewalld,
    Ufw,
    Flannel,
    Unknown,
}

/// What other people's rules do to the overlay.
pub fn findings(rules: &RuleSet, around: &Surroundings) -> Findings {
    let mut found = Findings::default();
    let finder = Finder { rules, around, own_table: format!("inet {}", around.options.network) };
    found.problems.extend(finder.strayed_bridges());
    found.problems.extend(finder.vxlan());
    finder.forwarding(&mut found);
    found.problems.extend(finder.masquerade());
    found.notes.extend(finder.leftovers());
    found
}

struct Finder<'a> {
    rules: &'a RuleSet,
    around: &'a Surroundings,
    own_table: String,
}

/// A container here, one elsewhere, and the interfaces between them.
struct Way<'a> {
    container: IpAddr,
    remote: IpAddr,
    bridge: String,
    overlay: &'a str,
}

/// A container's address that no rule is likely to name, beside those that rules do name.
const EXAMPLE: u128 = 2;

impl Finder<'_> {
    /// Bridges that hold an address of the overlay which is not our gateway: Docker was not restarted
    /// after the subnet changed.
    fn strayed_bridges(&self) -> Vec<String> {
        let ours = |b: &Bridge| {
            b.name == self.around.options.bridge()
                || self.around.families.iter().any(|(_, own)| own.contains(b.address))
        };
        let strayed = self.around.bridges.iter().filter(|b| !ours(b));
        strayed
            .map(|b| {
                let own: Vec<String> = self.around.families.iter().map(|(_, own)| own.to_string()).collect();
                format!(
                    "{} holds {}, but the subnet of this host is {}: its containers cannot be reached from other hosts; give dockerd what loden docker-opts prints, and restart it",
                    b.name,
                    b.address,
                    own.join(", ")
                )
            })
            .collect()
    }

    /// VXLAN from a peer to us.
    fn vxlan(&self) -> Vec<String> {
        let Some(port) = self.around.vxlan_port else { return Vec::new() };
        let (underlay, addresses) = &self.around.underlay;
        let mut places: BTreeMap<Place, BTreeSet<IpAddr>> = BTreeMap::new();
        for own in addresses {
            let peers: Vec<IpAddr> =
                self.around.peers.iter().copied().filter(|p| Family::of(*p) == Family::of(*own)).collect();
            // Before there is a peer: somebody whom no rule names.
            let sources = if peers.is_empty() { vec![neighbour(*own)] } else { peers };
            for source in sources {
                let packet = Packet {
                    in_interface: underlay,
                    out_interface: "",
                    source,
                    destination: *own,
                    protocol: "udp",
                    port: Some(port),
                    mark: 0,
                    mark_known: self.mark_known(),
                    state: "untracked",
                };
                for hook in [Hook::Prerouting, Hook::Input] {
                    for place in drops(self.rules, hook, &packet, &self.own_table) {
                        places.entry(place).or_default().insert(source);
                    }
                }
            }
        }
        let mend = |place: &Place| match self.manager(place) {
            Manager::Firewalld => format!(
                "firewall-cmd --permanent --zone={} --add-port={port}/udp && firewall-cmd --reload",
                zone(place)
            ),
            Manager::Ufw => format!("ufw allow in on {underlay} to any port {port} proto udp"),
            _ => format!("let UDP port {port} in there from the other hosts"),
        };
        let told = |(place, sources): (Place, BTreeSet<IpAddr>)| {
            let example = sources.first().map_or(String::new(), IpAddr::to_string);
            let others = if sources.len() > 1 { " and others" } else { "" };
            format!(
                "{} drops VXLAN packets (UDP port {port}) from {example}{others} on {underlay}: {}",
                self.named(&place),
                mend(&place)
            )
        };
        places.into_iter().map(told).collect()
    }

    /// From the overlay to containers here, and from them to the overlay and the outside.
    fn forwarding(&self, found: &mut Findings) {
        let mut places: BTreeMap<Place, BTreeSet<String>> = BTreeMap::new();
        let mut in_the_overlay: BTreeSet<Place> = BTreeSet::new();
        for Way { container, remote, bridge, overlay } in self.ways() {
            let outside = outside(Family::of(container));
            let (bridge, underlay) = (bridge.as_str(), self.around.underlay.0.as_str());
            let packets = [
                (overlay, remote, bridge, container, self.around.options.fwmark.0),
                (bridge, container, overlay, remote, 0),
                (bridge, container, underlay, outside, 0),
            ];
            for (in_interface, source, out_interface, destination, mark) in packets {
                let packet = Packet {
                    in_interface,
                    out_interface,
                    source,
                    destination,
                    protocol: "tcp",
                    port: None,
                    mark,
                    mark_known: self.mark_known(),
                    state: "new",
                };
                let early = Packet { out_interface: "", mark: 0, ..packet };
                let mut dropping = drops(self.rules, Hook::Prerouting, &early, &self.own_table);
                dropping.extend(drops(self.rules, Hook::Forward, &packet, &self.own_table));
                for place in dropping {
                    if destination != outside {
                        in_the_overlay.insert(place.clone());
                    }
                    let way = format!("from {in_interface} to {out_interface}");
                    places.entry(place).or_default().insert(way);
                }
            }
        }
        for (place, ways) in places {
            let ways: Vec<String> = ways.into_iter().collect();
            let (who, ways, mend) = (self.named(&place), ways.join(", "), self.mend_forwarding(&place));
            let told = format!("{who} drops packets {ways}: {mend}");
            // That containers may not go outside can be somebody's will.
            let list = match in_the_overlay.contains(&place) {
                true => &mut found.problems,
                false => &mut found.notes,
            };
            list.push(told);
        }
    }

    /// Bits of a packet's mark that we can tell: where others set marks, ours alone.
    fn mark_known(&self) -> u32 {
        if self.rules.sets_marks(&self.own_table) { self.around.options.fwmark.1 } else { u32::MAX }
    }

    /// Every pair of a container here and one elsewhere that rules could treat differently.
    fn ways(&self) -> Vec<Way<'_>> {
        let mut ways = Vec::new();
        for (network, own) in &self.around.families {
            let remote = remote(*network, *own);
            for (_, overlay) in self.around.overlay.iter().filter(|(family, _)| *family == own.family()) {
                for bridge in self.bridges(own) {
                    for container in self.named_containers(own) {
                        ways.push(Way { container, remote, bridge: bridge.clone(), overlay });
                    }
                }
            }
        }
        ways
    }

    fn mend_forwarding(&self, place: &Place) -> String {
        let bridge = self.around.options.bridge();
        let devices: BTreeSet<&String> = self.around.overlay.iter().map(|(_, name)| name).collect();
        let each = |text: &dyn Fn(&str) -> String| devices.iter().map(|d| text(d)).collect::<Vec<_>>();
        match self.manager(place) {
            Manager::Docker if place.chain == "FORWARD" => format!(
                "see iptables -S {}: our rules (comment loden {}) are missing there, for which the daemon's log has the reason, or a rule before them takes these packets",
                user_chain::CHAIN,
                self.around.options.network
            ),
            Manager::Docker => "give dockerd what loden docker-opts prints, and restart it".into(),
            Manager::Firewalld => format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={bridge}{} && firewall-cmd --reload, or finer by the files in docs/firewalls.md",
                each(&|d| format!(" --add-interface={d}")).concat()
            ),
            Manager::Ufw => format!(
                "ufw route allow in on {bridge}; {}",
                each(&|d| format!("ufw route allow in on {d} out on {bridge}")).join("; ")
            ),
            Manager::Flannel | Manager::Unknown => {
                "accept what comes from and goes to these interfaces there".into()
            }
        }
    }

    /// Packets between containers of different hosts must keep their source.
    fn masquerade(&self) -> Vec<String> {
        let mut places: BTreeSet<Place> = BTreeSet::new();
        for Way { container, remote, bridge, overlay } in self.ways() {
            let packet = Packet {
                in_interface: &bridge,
                out_interface: overlay,
                source: container,
                destination: remote,
                protocol: "tcp",
                port: None,
                mark: 0,
                mark_known: self.mark_known(),
                state: "new",
            };
            places.extend(translations(self.rules, &packet, &self.own_table));
        }
        let told = |place: Place| {
            let mend = match self.manager(&place) {
                Manager::Flannel => "loden cleanup --flannel".to_owned(),
                Manager::Docker => {
                    "start dockerd with --ip-masq=false, as loden docker-opts prints it".to_owned()
                }
                _ => "turn that off: for Docker --ip-masq=false, as loden docker-opts prints it; for a CNI plugin \"ipMasq\": false".to_owned(),
            };
            format!(
                "{} masquerades or translates what containers here send to other hosts, which then see this host instead of the container: {mend}",
                self.named(&place)
            )
        };
        places.into_iter().map(told).collect()
    }

    /// What flannel left behind.
    fn leftovers(&self) -> Vec<String> {
        let mut left: BTreeSet<String> = BTreeSet::new();
        for table in &self.rules.tables {
            if matches!(table.name.as_str(), "ip flannel-ipv4" | "ip6 flannel-ipv6") {
                left.insert(format!("table {}", table.name));
            }
            let chains = table.chains.keys().filter(|c| c.starts_with("FLANNEL-"));
            left.extend(chains.map(|c| format!("chain {c} of {}", table.name)));
        }
        if left.is_empty() {
            return Vec::new();
        }
        let left: Vec<String> = left.into_iter().collect();
        vec![format!(
            "flannel left rules behind ({}); remove them by loden cleanup --flannel",
            left.join(", ")
        )]
    }

    /// Bridges that hold our gateway, else the one that the plugin will make.
    fn bridges(&self, own: &Subnet) -> Vec<String> {
        let holders: Vec<String> = self
            .around
            .bridges
            .iter()
            .filter(|b| b.address == own.gateway())
            .map(|b| b.name.clone())
            .collect();
        if holders.is_empty() { vec![self.around.options.bridge()] } else { holders }
    }

    /// Containers that rules name one by one, as Docker's do, and one more.
    fn named_containers(&self, own: &Subnet) -> BTreeSet<IpAddr> {
        let mut all = BTreeSet::from([own.nth(EXAMPLE)]);
        let conditions = self
            .rules
            .tables
            .iter()
            .flat_map(|t| t.chains.values())
            .flat_map(|c| &c.rules)
            .flat_map(|r| &r.conditions);
        for condition in conditions {
            if let Test::Destination(ranges) = &condition.test {
                all.extend(ranges.iter().filter(|(a, b)| a == b && own.contains(*a)).map(|(a, _)| *a));
            }
        }
        all.remove(&own.gateway());
        all
    }

    fn manager(&self, place: &Place) -> Manager {
        let chain = place.chain.as_str();
        let table = self.rules.tables.iter().find(|t| t.name == place.table);
        let has = |name: &str| table.is_some_and(|t| t.chains.contains_key(name));
        if place.table == "inet firewalld" || has("FORWARD_ZONES") || has("FORWARD_IN_ZONES") {
            Manager::Firewalld
        } else if chain.starts_with("FLANNEL-") || place.table.contains("flannel-ipv") {
            Manager::Flannel
        } else if place.table.ends_with(" docker-bridges") || chain.starts_with("DOCKER") {
            Manager::Docker
        } else if has("ufw-before-forward") || has("ufw6-before-forward") {
            Manager::Ufw
        } else if chain == "FORWARD" && has(user_chain::CHAIN) {
            Manager::Docker
        } else if matches!(chain, "PREROUTING" | "POSTROUTING") && self.rules.has_chain("DOCKER") {
            // Docker's rules of the tables raw and nat stand in the built-in chains.
            Manager::Docker
        } else {
            Manager::Unknown
        }
    }

    fn named(&self, place: &Place) -> String {
        let who = match self.manager(place) {
            Manager::Docker => "Docker",
            Manager::Firewalld => "firewalld",
            Manager::Ufw => "ufw",
            Manager::Flannel => "flannel",
            Manager::Unknown => "a firewall",
        };
        format!("{who} (chain {} of {})", place.chain, place.table)
    }
}

/// firewalld's zone, from the name of its chain: `filter_IN_public`, `IN_public`.
fn zone(place: &Place) -> &str {
    let name = place.chain.strip_prefix("filter_").unwrap_or(&place.chain);
    let name = name.strip_prefix("IN_").unwrap_or("public");
    ["_pre", "_log", "_deny", "_allow", "_post"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// An address of another host's subnet.
fn remote(network: Subnet, own: Subnet) -> IpAddr {
    let first = network.nth(EXAMPLE);
    if own.contains(first) { network.nth(own.size() + EXAMPLE) } else { first }
}

/// An address outside every overlay: of the blocks for documentation (RFC 5737, RFC 3849).
fn outside(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([198, 51, 100, 9]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]),
    }
}

fn neighbour(own: IpAddr) -> IpAddr {
    match own {
        IpAddr::V4(ip) => IpAddr::from((u32::from(ip) ^ 1).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from((u128::from(ip) ^ 1).to_be_bytes()),
    }
}
