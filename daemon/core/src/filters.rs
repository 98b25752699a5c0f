//! Our nftables table, as the text that `nft -f` takes. Text rather than the JSON form: it is
//! what an operator sees in `nft list ruleset`, and only typed values (subnets, numbers, checked
//! names) ever enter it.
//!
//! Order of the masquerade rules, each a `return` before the packet can be masqueraded:
//! kube-proxy's mark, network to network, anything to our own subnet, network to where it must
//! not be masqueraded; then network to outside is masqueraded, and outside to a remote host's
//! subnet leaves under our VTEP address, so that replies find back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loden_proto::config::{Backend, NetworkConfig, Vxlan};
use loden_proto::lease::LeaseKey;
use loden_proto::{Family, Subnet};

use crate::fnv::Fnv;
use crate::options::Options;
use crate::peers::{Path, Peer};

/// kube-proxy's and flannel's mark for packets that they will masquerade themselves.
const KUBE_MARK: u32 = 0x4000;

/// The chains that [`vxlan_chains`] makes.
const VXLAN_CHAINS: [&str; 4] = ["untracked_in", "untracked_out", "vxlan_in", "vxlan_forward"];

/// The table that should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters {
    /// Name of the table, of family `inet`.
    pub table: String,
    /// The table's contents without the elements of its peer sets.
    body: String,
    /// The sets in it that follow the peers.
    pub peer_sets: Vec<PeerSet>,
}

/// A set of our table that follows the peers; there is one for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerSet {
    /// Addresses that VXLAN is accepted from.
    Sources,
    /// Network addresses of the subnets whose packets come unencapsulated.
    Direct,
}

impl PeerSet {
    /// Its name in the table.
    pub fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Sources, Family::V4) => "peers4",
            (Self::Sources, Family::V6) => "peers6",
            (Self::Direct, Family::V4) => "direct4",
            (Self::Direct, Family::V6) => "direct6",
        }
    }
}

/// An element of a peer set.
pub type Member = (PeerSet, IpAddr);

/// The elements that a peer adds to these sets.
pub fn members_of<'a>(peer: &'a Peer, sets: &'a [PeerSet]) -> impl Iterator<Item = Member> + 'a {
    sets.iter().flat_map(move |set| {
        let (first, further) = match set {
            PeerSet::Sources => (Some(peer.public_address), &*peer.sources),
            PeerSet::Direct if peer.path == Path::Direct => (Some(peer.subnet.address()), [].as_slice()),
            PeerSet::Direct => (None, [].as_slice()),
        };
        first.into_iter().chain(further.iter().copied()).map(|address| (*set, address))
    })
}

/// Name of the set that counts VXLAN packets from addresses that are no peers.
pub fn rejected_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "rejected4",
        Family::V6 => "rejected6",
    }
}

impl Filters {
    /// Tells two tables apart; equal for equal contents, whatever the peer sets hold.
    pub fn digest(&self) -> String {
        let mut hash = Fnv::default();
        hash.write(self.table.as_bytes());
        hash.write(self.body.as_bytes());
        format!("{:016x}", hash.finish())
    }

    /// The transaction that puts the table in place of whatever is there under its name. The peer
    /// sets hold `keep` from the first moment, so that no peer is shut out in between.
    pub fn script(&self, keep: &BTreeSet<Member>) -> String {
        let mut sets = String::new();
        for (family, kind) in [(Family::V4, "ipv4_addr"), (Family::V6, "ipv6_addr")] {
            for set in &self.peer_sets {
                let of_set = keep.iter().filter(|(s, a)| s == set && Family::of(*a) == family);
                let members: Vec<String> = of_set.map(|(_, address)| address.to_string()).collect();
                let elements = match members.is_empty() {
                    true => String::new(),
                    false => format!(" elements = {{ {} }};", members.join(", ")),
                };
                let _ = writeln!(sets, "    set {} {{ type {kind};{elements} }}", set.name(family));
            }
            if self.peer_sets.contains(&PeerSet::Sources) {
                let _ = writeln!(
                    sets,
                    "    set {} {{ type {kind}; size 1024; flags dynamic,timeout; timeout 1h; }}",
                    rejected_set(family)
                );
            }
        }
        let table = &self.table;
        // `destroy` needs nft 1.0.7; adding first makes the deletion always succeed.
        format!(
            "add table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{sets}{}}}\n",
            self.body
        )
    }

    /// The transaction that removes the chains which know peers, and leaves masquerading, whose
    /// rules depend on options of the daemon's, as it is.
    pub fn vxlan_removal(table: &str) -> String {
        let chains = VXLAN_CHAINS.iter();
        // As above: adding first makes the deletion always succeed.
        chains.map(|c| format!("add chain inet {table} {c}\ndelete chain inet {table} {c}\n")).collect()
    }
}

/// The table for this config and lease; `devices` are the names of our VXLAN devices.
pub fn filters(
    config: &NetworkConfig,
    own: LeaseKey,
    options: &Options,
    devices: &BTreeMap<Family, String>,
) -> Filters {
    let mut body = String::new();
    let vxlan = match &config.backend {
        Backend::Vxlan(vxlan) => Some(vxlan),
        _ => None,
    };
    let families: Vec<Rules<'_>> = config
        .pools()
        .filter_map(|pool| {
            let family = pool.network.family();
            own.subnet(family).map(|own| Rules { family, network: pool.network, own, options })
        })
        .collect();
    if config.backend == Backend::Alloc {
        return Filters { table: options.network.clone(), body, peer_sets: Vec::new() };
    }
    let direct = vxlan.is_none_or(|vxlan| vxlan.direct_routing);
    if let Some(vxlan) = vxlan {
        vxlan_chains(&mut body, vxlan, &families, options);
    }
    // Whoever is on a bridge reaches the host's stack by its port with such frames, past all that is said
    // of the bridge, and past the port filter (`br_handle_frame`, net/bridge/br_input.c). No IP packet
    // is ever sent to them (IEEE 802.1Q-2018, table 8-1).
    chain(&mut body, "reserved_macs", "filter hook prerouting priority raw - 10", |out| {
        rule(out, "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 counter drop");
    });
    chain(&mut body, "overlay_mark", "filter hook prerouting priority mangle", |out| {
        for rules in &families {
            rules.mark(out, devices.get(&rules.family), direct);
        }
    });
    if options.masquerade {
        chain(&mut body, "overlay_masquerade", "nat hook postrouting priority srcnat", |out| {
            rule(out, &format!("meta mark & {KUBE_MARK:#x} == {KUBE_MARK:#x} return"));
            for rules in &families {
                rules.masquerade(out);
            }
        });
    }
    let sets = [(PeerSet::Sources, vxlan.is_some()), (PeerSet::Direct, direct)];
    let peer_sets = sets.into_iter().filter(|(_, used)| *used).map(|(set, _)| set).collect();
    Filters { table: options.network.clone(), body, peer_sets }
}

fn chain(out: &mut String, name: &str, hook: &str, rules: impl FnOnce(&mut String)) {
    let _ = writeln!(out, "    chain {name} {{\n        type {hook}; policy accept;");
    rules(out);
    out.push_str("    }\n");
}

fn rule(out: &mut String, text: &str) {
    let _ = writeln!(out, "        {text}");
}

fn vxlan_chains(out: &mut String, vxlan: &Vxlan, families: &[Rules<'_>], options: &Options) {
    let port = vxlan.port;
    // The VNI follows UDP header (64 bits) and flags (32 bits), RFC 7348 §5. Other VNIs on this port
    // are another network's, whose table has its own peers.
    let ours = format!("udp dport {port} @th,96,24 {}", vxlan.vni);
    // A conntrack entry per outer flow would cost two look-ups per packet and prove nothing.
    chain(out, "untracked_in", "filter hook prerouting priority raw", |out| {
        for rules in families {
            rule(
                out,
                &format!(
                    "udp dport {port} {} saddr @{} notrack",
                    rules.ip(),
                    PeerSet::Sources.name(rules.family)
                ),
            );
        }
    });
    chain(out, "untracked_out", "filter hook output priority raw", |out| {
        for rules in families {
            rule(
                out,
                &format!(
                    "udp dport {port} {} daddr @{} notrack",
                    rules.ip(),
                    PeerSet::Sources.name(rules.family)
                ),
            );
        }
    });
    let bridge = options.bridge();
    // VXLAN proves nothing of its sender: accept it from current peers' addresses only
    // (CVE-2023-28840 is what happens otherwise), and never from a container, here or elsewhere.
    chain(out, "vxlan_in", "filter hook input priority filter - 10", |out| {
        rule(out, &format!("udp dport {port} iifname \"{bridge}\" counter drop"));
        for rules in families {
            rule(out, &format!("udp dport {port} {} saddr {} counter drop", rules.ip(), rules.network));
        }
        if options.check_sources {
            for rules in families {
                let (ip, family) = (rules.ip(), rules.family);
                let (peers, rejected) = (PeerSet::Sources.name(family), rejected_set(family));
                rule(out, &format!("{ours} {ip} saddr @{peers} accept"));
                let of_family = format!("{ours} meta nfproto {}", rules.nfproto());
                // A full set must not let the packet pass: the drop is a rule of its own.
                rule(out, &format!("{of_family} update @{rejected} {{ {ip} saddr counter }}"));
                rule(out, &format!("{of_family} counter drop"));
            }
        }
    });
    // A container's own VXLAN would be masqueraded on its way out and look like ours, whatever bridge
    // it hangs on. Sources are not yet translated here.
    chain(out, "vxlan_forward", "filter hook forward priority filter - 10", |out| {
        for rules in families {
            let (ip, network, peers) = (rules.ip(), rules.network, PeerSet::Sources.name(rules.family));
            rule(out, &format!("udp dport {port} {ip} daddr @{peers} {ip} saddr != @{peers} counter drop"));
            rule(out, &format!("udp dport {port} iifname \"{bridge}\" {ip} daddr != {network} counter drop"));
        }
    });
}

fn ip_keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// The mask of a subnet's length; all leases of a network have one length.
fn prefix_mask(subnet: Subnet) -> IpAddr {
    let host_bits = u32::from(subnet.family().bits() - subnet.length());
    match subnet.family() {
        Family::V4 => Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0)).into(),
        Family::V6 => Ipv6Addr::from(u128::MAX.checked_shl(host_bits).unwrap_or(0)).into(),
    }
}

struct Rules<'a> {
    family: Family,
    network: Subnet,
    own: Subnet,
    options: &'a Options,
}

impl Rules<'_> {
    fn ip(&self) -> &'static str {
        ip_keyword(self.family)
    }

    fn nfproto(&self) -> &'static str {
        match self.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        }
    }

    /// From the overlay for local containers: by our VXLAN device, which takes packets from peers
    /// alone; or from the subnet of a directly routed peer, by the interface that leads back to it.
    /// That there is a way back says nothing by itself: for a subnet that nobody leases it is the
    /// default route's.
    fn mark(&self, out: &mut String, device: Option<&String>, direct: bool) {
        let (ip, network, own) = (self.ip(), self.network, self.own);
        let (value, mask) = self.options.fwmark;
        let set = format!("meta mark set meta mark & {:#x} | {value:#x}", !mask);
        if let Some(device) = device {
            let from = format!("{ip} saddr {network} {ip} saddr != {own}");
            rule(out, &format!("iifname \"{device}\" {from} {ip} daddr {own} {set}"));
        }
        if direct {
            let prefix = prefix_mask(own);
            let peers = PeerSet::Direct.name(self.family);
            let from = format!("{ip} saddr & {prefix} @{peers} {ip} daddr {own} fib saddr . iif oif exists");
            rule(out, &format!("{from} {set}"));
        }
    }

    fn masquerade(&self, out: &mut String) {
        let (ip, network, own) = (self.ip(), self.network, self.own);
        rule(out, &format!("{ip} saddr {network} {ip} daddr {network} return"));
        rule(out, &format!("{ip} daddr {own} return"));
        // Multicast, link-local and broadcast keep their source (RFC 3927 §2.7, RFC 4291 §2.5.6).
        let never = match self.family {
            Family::V4 => "{ 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 }",
            Family::V6 => "{ fe80::/10, ff00::/8 }",
        };
        rule(out, &format!("{ip} saddr {network} {ip} daddr {never} return"));
        let exempt: Vec<String> = self
            .options
            .no_masquerade
            .iter()
            .filter(|s| s.family() == self.family)
            .map(Subnet::to_string)
            .collect();
        for subnet in exempt {
            rule(out, &format!("{ip} saddr {network} {ip} daddr {subnet} return"));
        }
        let random = if self.options.fully_random { " fully-random" } else { "" };
        rule(out, &format!("{ip} saddr {network} masquerade{random}"));
        if self.options.masquerade_inbound {
            let vtep = self.own.address();
            rule(out, &format!("{ip} daddr {network} snat {ip} to {vtep}{random}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { no_masquerade: vec!["10.9.0.0/16".parse().expect("subnet")], ..Options::named("loden") }
    }

    fn script(config: &str, options: &Options) -> String {
        let config = NetworkConfig::parse(config).expect(config);
        let own = LeaseKey::new(
            config.v4.map(|_| "10.5.1.0/24".parse().expect("subnet")),
            config.v6.map(|_| "fd00:0:0:1::/64".parse().expect("subnet")),
        );
        let devices = [(Family::V4, "loden.1".to_owned()), (Family::V6, "loden6.1".to_owned())].into();
        let member = (PeerSet::Sources, "192.168.0.2".parse().expect("ip"));
        filters(&config, own.expect("a family"), options, &devices).script(&[member].into())
    }

    #[test]
    fn masquerade_rules_stand_in_the_documented_order() {
        let script = script(r#"{"Network":"10.5.0.0/16"}"#, &options());
        let from = script.find("chain overlay_masquerade").expect("the chain");
        let rules: Vec<&str> =
            script[from..].lines().skip(2).map(str::trim).take_while(|l| *l != "}").collect();
        assert_eq!(
            rules,
            [
                "meta mark & 0x4000 == 0x4000 return",
                "ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 return",
                "ip daddr 10.5.1.0/24 return",
                "ip saddr 10.5.0.0/16 ip daddr { 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 } return",
                "ip saddr 10.5.0.0/16 ip daddr 10.9.0.0/16 return",
                "ip saddr 10.5.0.0/16 masquerade fully-random",
                "ip daddr 10.5.0.0/16 snat ip to 10.5.1.0 fully-random",
            ]
        );
    }

    #[test]
    fn the_mark_is_for_what_peers_send_alone() {
        let marks = |config: &str| -> Vec<String> {
            let script = script(config, &options());
            let lines = script.lines().filter(|l| l.contains("mark set")).map(str::trim);
            lines.map(|l| l.replace(" meta mark set meta mark & 0xbfffffff | 0x40000000", "")).collect()
        };
        let by_device = |ip: &str, device: &str, network: &str, own: &str| {
            format!("iifname \"{device}\" {ip} saddr {network} {ip} saddr != {own} {ip} daddr {own}")
        };
        let four = by_device("ip", "loden.1", "10.5.0.0/16", "10.5.1.0/24");
        let direct = "ip saddr & 255.255.255.0 @direct4 ip daddr 10.5.1.0/24 fib saddr . iif oif exists";
        assert_eq!(marks(r#"{"Network":"10.5.0.0/16"}"#), std::slice::from_ref(&four));
        let both = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
        assert_eq!(marks(both), [four.as_str(), direct]);
        let host_gw = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"host-gw"}}"#;
        let marks = marks(host_gw);
        assert!(marks[1].contains("ip6 saddr & ffff:ffff:ffff:ffff:: @direct6"), "{marks:?}");
    }

    #[test]
    fn without_its_vxlan_filter_the_table_knows_no_peers() {
        let script = script(r#"{"Network":"10.5.0.0/16"}"#, &options());
        let removal = Filters::vxlan_removal("loden");
        let mut chain = "";
        for line in script.lines() {
            chain = line.trim().strip_prefix("chain ").and_then(|l| l.split(' ').next()).unwrap_or(chain);
            let gone = removal.contains(&format!("delete chain inet loden {chain}\n"));
            assert!(gone || chain.is_empty() || !line.contains("peers"), "{chain}: {line}");
            assert!(!gone || !line.contains("masquerade"), "{chain}: {line}");
        }
    }

    #[test]
    fn what_is_switched_off_is_absent() {
        let off = Options { masquerade: false, check_sources: false, ..options() };
        let script = script(r#"{"Network":"10.5.0.0/16"}"#, &off);
        assert!(
            !script.contains("chain overlay_masquerade") && !script.contains("saddr @peers4 accept"),
            "{script}"
        );
        let no_inbound = Options { masquerade_inbound: false, ..options() };
        assert!(!self::script(r#"{"Network":"10.5.0.0/16"}"#, &no_inbound).contains("snat"));
    }

    #[test]
    fn peers_are_in_their_set_from_the_first_moment() {
        assert!(script(r#"{"Network":"10.5.0.0/16"}"#, &options()).contains("elements = { 192.168.0.2 };"));
    }

    #[test]
    fn a_digest_changes_with_the_rules_alone() {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).expect("config");
        let own = |text: &str| LeaseKey::parse(text).expect(text);
        let digest = |own, options: &Options| filters(&config, own, options, &BTreeMap::new()).digest();
        let base = digest(own("10.5.1.0-24"), &options());
        assert_eq!(base, digest(own("10.5.1.0-24"), &options()));
        assert_ne!(base, digest(own("10.5.2.0-24"), &options()));
        assert_ne!(base, digest(own("10.5.1.0-24"), &Options { masquerade: false, ..options() }));
    }
}
