//! Our nftables table, as the text that `nft -f` takes. Text rather than the JSON form: it is
//! what an operator sees in `nft list ruleset`, and only typed values (subnets, numbers, checked
//! names) ever enter it.
//!
//! Order of the masquerade rules, each a `return` before the packet can be masqueraded:
//! kube-proxy's mark, network to network, anything to our own subnet, network to where it must
//! not be masqueraded; then network to outside is masqueraded, and outside to a remote host's
//! subnet leaves under our VTEP address, so that replies find back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use loden_proto::config::{Backend, NetworkConfig, Vxlan};
use loden_proto::lease::LeaseKey;
use loden_proto::{Family, Subnet};

use crate::mac::Fnv;
use crate::options::Options;

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
    /// Whether there are peer sets.
    pub has_peer_sets: bool,
}

/// Name of the set of a family's peers.
pub fn peer_set(family: Family) -> &'static str {
    match family {
        Family::V4 => "peers4",
        Family::V6 => "peers6",
    }
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
    pub fn script(&self, keep: &BTreeSet<IpAddr>) -> String {
        let mut sets = String::new();
        if self.has_peer_sets {
            for (family, kind) in [(Family::V4, "ipv4_addr"), (Family::V6, "ipv6_addr")] {
                let (peers, rejected) = (peer_set(family), rejected_set(family));
                let members: Vec<String> =
                    keep.iter().filter(|a| Family::of(**a) == family).map(IpAddr::to_string).collect();
                let elements = match members.is_empty() {
                    true => String::new(),
                    false => format!(" elements = {{ {} }};", members.join(", ")),
                };
                let _ = writeln!(sets, "    set {peers} {{ type {kind};{elements} }}");
                let _ = writeln!(
                    sets,
                    "    set {rejected} {{ type {kind}; size 1024; flags dynamic,timeout; timeout 1h; }}"
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

    /// The transaction that removes the table.
    pub fn removal(table: &str) -> String {
        format!("add table inet {table}\ndelete table inet {table}\n")
    }

    /// The transaction that removes the chains which know peers, and leaves masquerading, whose
    /// rules depend on options of the daemon's, as it is.
    pub fn vxlan_removal(table: &str) -> String {
        let chains = VXLAN_CHAINS.iter();
        // As above: adding first makes the deletion always succeed.
        chains.map(|c| format!("add chain inet {table} {c}\ndelete chain inet {table} {c}\n")).collect()
    }
}

/// The table for this config and lease.
pub fn filters(config: &NetworkConfig, own: LeaseKey, options: &Options) -> Filters {
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
        return Filters { table: options.network.clone(), body, has_peer_sets: false };
    }
    if let Some(vxlan) = vxlan {
        vxlan_chains(&mut body, vxlan, &families, options);
    }
    chain(&mut body, "overlay_mark", "filter hook prerouting priority mangle", |out| {
        for rules in &families {
            rules.mark(out);
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
    Filters { table: options.network.clone(), body, has_peer_sets: vxlan.is_some() }
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
            rule(out, &format!("udp dport {port} {} saddr @{} notrack", rules.ip(), peer_set(rules.family)));
        }
    });
    chain(out, "untracked_out", "filter hook output priority raw", |out| {
        for rules in families {
            rule(out, &format!("udp dport {port} {} daddr @{} notrack", rules.ip(), peer_set(rules.family)));
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
                let (peers, rejected) = (peer_set(family), rejected_set(family));
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
            let (ip, network, peers) = (rules.ip(), rules.network, peer_set(rules.family));
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

    /// From the overlay by the interface that leads back to the sender, for local containers.
    fn mark(&self, out: &mut String) {
        let (ip, network, own) = (self.ip(), self.network, self.own);
        let (value, mask) = self.options.fwmark;
        rule(
            out,
            &format!(
                "{ip} saddr {network} {ip} saddr != {own} {ip} daddr {own} fib saddr . iif oif exists meta mark set meta mark & {:#x} | {value:#x}",
                !mask
            ),
        );
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
        filters(&config, own.expect("a family"), options).script(&["192.168.0.2".parse().expect("ip")].into())
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
        let digest = |own, options: &Options| filters(&config, own, options).digest();
        let base = digest(own("10.5.1.0-24"), &options());
        assert_eq!(base, digest(own("10.5.1.0-24"), &options()));
        assert_ne!(base, digest(own("10.5.2.0-24"), &options()));
        assert_ne!(base, digest(own("10.5.1.0-24"), &Options { masquerade: false, ..options() }));
    }
}
