//! The port filter's table, of family `bridge`, as the text that `nft -f` takes; and which elements
//! its sets lack or have too many of. Sets and keys are those of [`loden_proto::port_filter`].
//!
//! A frame from a guarded port passes only with the container's own MAC, and as
//!
//! - ARP that says nothing but the container's own address and MAC;
//! - IPv4 from its own address, but no answer of a DHCP server;
//! - IPv6 from its own addresses, but no router advertisement, no redirect, no answer of a DHCP server,
//!   no neighbour advertisement for addresses that are not its own, and no fragment whose headers go on
//!   in the next one, where any of these could hide;
//! - neither of them what makes a multicast router of a port: queries of group members, PIM.
//!
//! Everything else is dropped: VLAN tags and tunnels of other protocols would carry addresses past it.
//! Frames to the addresses that bridges keep for themselves (IEEE 802.1Q-2018, table 8-1) come by no
//! prerouting hook, and some by none (`br_handle_frame`, net/bridge/br_input.c). Where it can, this table
//! drops them; besides, the bridge does not learn from them, and the table `inet` drops what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use loden_proto::allocation::Allocation;
use loden_proto::port_filter::{Element, Parts, PortSet, parts_of, port_of};

use crate::fnv::Fnv;

/// The set that counts what was dropped, by port.
pub const REJECTED: &str = "rejected";

/// The table's contents. Ports of 68 and 546 are DHCP's clients (RFC 2131 §4.1, RFC 8415 §7.2): only a
/// server sends to them, and clients listen by UDP, not UDP-Lite. A neighbour advertisement's target begins at its ninth byte (RFC 4861 §4.4).
const BODY: &str = r"
    set ports { type ifname; }
    set sources4 { type ifname . ether_addr . ipv4_addr; }
    set sources6 { type ifname . ether_addr . ipv6_addr; }
    set targets6 { typeof iifname . ether saddr . @th,64,128; }
    set rejected { type ifname; size 1024; flags dynamic,timeout; timeout 1h; }
    chain from_containers {
        type filter hook prerouting priority dstnat; policy accept;
        iifname @ports goto container
    }
    chain from_containers_to_host {
        type filter hook input priority filter; policy accept;
        iifname @ports ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto refuse
    }
    chain container {
        ether type ip goto container_ipv4
        ether type ip6 goto container_ipv6
        ether type arp goto container_arp
        goto refuse
    }
    chain container_ipv4 {
        ip saddr 0.0.0.0 goto refuse
        udp dport 68 goto refuse
        igmp type membership-query goto refuse
        meta l4proto pim goto refuse
        iifname . ether saddr . ip saddr @sources4 accept
        goto refuse
    }
    chain container_ipv6 {
        ip6 saddr :: goto container_unspecified
        frag nexthdr { 0, 43, 44, 60 } goto refuse
        icmpv6 type { nd-router-advert, nd-redirect, mld-listener-query } goto refuse
        icmpv6 type nd-neighbor-advert iifname . ether saddr . @th,64,128 @targets6 goto container_ipv6_sources
        icmpv6 type nd-neighbor-advert goto refuse
        udp dport 546 goto refuse
        meta l4proto pim goto refuse
        goto container_ipv6_sources
    }
    chain container_ipv6_sources {
        iifname . ether saddr . ip6 saddr @sources6 accept
        goto refuse
    }
    chain container_unspecified {
        icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report } iifname . ether saddr . ip6 saddr @sources6 accept
        goto refuse
    }
    chain container_arp {
        arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @sources4 iifname . arp saddr ether . arp saddr ip @sources4 accept
        goto refuse
    }
    chain refuse {
        update @rejected { iifname counter }
        drop
    }
";

/// The transaction that puts the table in place of whatever is there under its name. Its sets hold
/// these elements from the first moment, so that no port is unguarded in between.
pub fn script(table: &str, elements: &BTreeSet<Element>) -> String {
    // `destroy` needs nft 1.0.7; adding first makes the deletion always succeed.
    let mut script =
        format!("add table bridge {table}\ndelete table bridge {table}\ntable bridge {table} {{{BODY}}}\n");
    for (set, key) in elements {
        if let Some(parts) = parts_of(key) {
            let _ =
                writeln!(script, "add element bridge {table} {} {{ {} }}", set.name(), text(*set, &parts));
        }
    }
    script
}

/// A key as nft writes it.
fn text(set: PortSet, Parts { port, mac, address }: &Parts<'_>) -> String {
    let mut text = format!("\"{port}\"");
    if let Some(mac) = mac {
        let _ = write!(text, " . {mac}");
    }
    match address {
        // What is at an offset in a packet is a number to nft.
        Some(IpAddr::V6(ip)) if set == PortSet::Targets6 => {
            let _ = write!(text, " . {:#x}", ip.to_bits());
        }
        Some(ip) => {
            let _ = write!(text, " . {ip}");
        }
        None => {}
    }
    text
}

/// Tells tables of different releases apart.
pub fn digest() -> String {
    let mut hash = Fnv::default();
    hash.write(BODY.as_bytes());
    format!("{:016x}", hash.finish())
}

/// What the sets lack, and what they have too many of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// To be added.
    pub lacking: BTreeSet<Element>,
    /// To be removed.
    pub surplus: BTreeSet<Element>,
}

impl Difference {
    /// The ports that something is lacking for.
    pub fn lacking_ports(&self) -> BTreeSet<&str> {
        self.lacking.iter().filter_map(|(_, key)| port_of(key)).collect()
    }
}

/// One allocation as the filter sees it.
#[derive(Debug, Clone, Copy)]
pub struct Guarded<'a> {
    /// What the plugin says of it.
    pub allocation: &'a Allocation,
    /// Whether the plugin is done with it and its port is there. Else its elements may be in the sets,
    /// but need not be: an ADD is about to add them, or a DEL is under way.
    pub settled: bool,
}

/// Compares the sets with the allocations, which were read after the sets: what an ADD adds while
/// somebody looks is then never surplus. Nor is what guards a port that is there (`exists`) but that no
/// allocation names: the allocation may be somewhere else, or unreadable.
pub fn difference<'a>(
    table: &str,
    allocations: impl IntoIterator<Item = Guarded<'a>>,
    found: &BTreeSet<Element>,
    mut exists: impl FnMut(&str) -> bool,
) -> Difference {
    // With a truth value beside each: whether it must be there.
    let mut allowed: BTreeMap<Element, bool> = BTreeMap::new();
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for Guarded { allocation, settled } in allocations {
        known.insert(&allocation.host_veth);
        for element in allocation.filter_elements(table) {
            *allowed.entry(element).or_default() |= settled;
        }
    }
    let mut needless = |(_, key): &Element| {
        let port = port_of(key).unwrap_or_default();
        known.contains(port) || !exists(port)
    };
    Difference {
        surplus: found.iter().filter(|e| !allowed.contains_key(*e) && needless(e)).cloned().collect(),
        lacking: allowed
            .into_iter()
            .filter(|(e, must)| *must && !found.contains(e))
            .map(|(e, _)| e)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use loden_proto::Mac;
    use loden_proto::allocation::Port;

    use super::*;

    fn allocation(last: u8, filter: Option<&str>) -> Allocation {
        Allocation {
            address: [10, 5, 7, last].into(),
            container_id: format!("c{last}"),
            ifname: "eth0".into(),
            netns: "/run/netns/c".into(),
            host_veth: format!("veth{last}"),
            mac: Mac([0x0a, 0x58, 10, 5, 7, last]),
            name: None,
            aliases: Vec::new(),
            published: Vec::new(),
            port: Some(Port {
                bridge: "loden0".into(),
                filter: filter.map(str::to_owned),
                ..Port::default()
            }),
        }
    }

    fn gone(_: &str) -> bool {
        false
    }

    fn guarded(allocation: &Allocation, settled: bool) -> Guarded<'_> {
        Guarded { allocation, settled }
    }

    #[test]
    fn every_set_of_the_contract_is_in_the_table() {
        let script = script("blue", &BTreeSet::new());
        for set in PortSet::ALL {
            assert!(script.contains(&format!("set {} {{", set.name())), "{}", set.name());
        }
        assert!(script.contains(&format!("set {REJECTED} {{")) && script.contains("table bridge blue {"));
    }

    #[test]
    fn the_table_has_its_elements_from_the_first_moment() {
        let mut six = allocation(2, Some("loden"));
        six.address = "fd00::2".parse().expect("ip");
        let script = script("loden", &six.filter_elements("loden").into_iter().collect());
        for line in [
            r#"ports { "veth2" }"#,
            r#"sources4 { "veth2" . 0a:58:0a:05:07:02 . 0.0.0.0 }"#,
            r#"sources6 { "veth2" . 0a:58:0a:05:07:02 . fd00::2 }"#,
            r#"targets6 { "veth2" . 0a:58:0a:05:07:02 . 0xfd000000000000000000000000000002 }"#,
        ] {
            assert!(script.contains(&format!("add element bridge loden {line}\n")), "{script}");
        }
    }

    #[test]
    fn the_sets_come_to_what_the_allocations_say() {
        let (one, two, other) =
            (allocation(2, Some("loden")), allocation(3, Some("loden")), allocation(4, Some("blue")));
        let free = allocation(5, None);
        let all = || [guarded(&one, true), guarded(&other, true), guarded(&free, true)];
        let stray: BTreeSet<Element> = two.filter_elements("loden").into_iter().collect();
        let first = difference("loden", all(), &stray, gone);
        assert_eq!(first.lacking_ports(), ["veth2"].into());
        assert_eq!(first.surplus.len(), stray.len());
        assert_eq!(difference("loden", all(), &first.lacking, gone), Difference::default());
    }

    #[test]
    fn a_port_that_no_allocation_names_is_guarded_as_long_as_it_is_there() {
        let (here, elsewhere) = (allocation(2, Some("loden")), allocation(3, Some("loden")));
        let mut moved = here.clone();
        moved.address = [10, 5, 7, 9].into();
        let found: BTreeSet<Element> =
            [&here, &elsewhere, &moved].into_iter().flat_map(|a| a.filter_elements("loden")).collect();
        let surplus = |there: bool| difference("loden", [guarded(&here, true)], &found, |_| there).surplus;
        assert_eq!(surplus(true).len(), 1, "the former address of a known port");
        assert_eq!(surplus(false).len(), 1 + elsewhere.filter_elements("loden").len());
    }

    #[test]
    fn what_the_plugin_works_on_is_left_to_it() {
        let one = allocation(2, Some("loden"));
        let elements: BTreeSet<Element> = one.filter_elements("loden").into_iter().collect();
        for found in [BTreeSet::new(), elements] {
            assert_eq!(difference("loden", [guarded(&one, false)], &found, gone), Difference::default());
        }
    }
}
