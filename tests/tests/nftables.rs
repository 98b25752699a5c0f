//! Whether somebody changed a table, by what the kernel tells of it.

use loden_netlink::{Socket, nftset, nfttable};
use loden_tests::Ns;

const FAMILY: u8 = nftset::FAMILY_INET;
const TABLE: &str = "
table inet loden {
    set peers4 { type ipv4_addr; }
    set rejected4 { type ipv4_addr; size 1024; flags dynamic,timeout; timeout 1h; }
    chain vxlan_in {
        type filter hook input priority filter - 10; policy accept;
        ip saddr @peers4 accept
        update @rejected4 { ip saddr counter }
        ip daddr { 192.0.2.1, 192.0.2.2 } accept
        ip protocol icmp counter accept
    }
}
";

fn contents(ns: &Ns) -> Option<Vec<u8>> {
    let look = || nfttable::contents(&mut Socket::netfilter()?, FAMILY, "loden");
    ns.within(look).expect("a kernel with nf_tables")
}

fn table() -> Ns {
    let ns = Ns::new();
    ns.ip("link set lo up");
    ns.nft(TABLE);
    ns
}

#[test]
fn what_changes_by_itself_is_no_change_of_a_table() {
    let ns = table();
    let before = contents(&ns).expect("a table");
    ns.run(&["ping", "-c1", "-W1", "127.0.0.1"]);
    let counted = ns.run(&["nft", "list", "table", "inet", "loden"]);
    assert!(counted.contains("127.0.0.1") && !counted.contains("counter packets 0 "), "{counted}");
    ns.nft("add element inet loden peers4 { 10.0.0.1 }");
    ns.nft("add table inet other\nadd chain inet other loden\nadd set inet other peers4 { type ipv4_addr; }");
    assert!(contents(&ns).as_ref() == Some(&before), "counters, elements and other tables");
    // As a daemon does whose lasting state was lost.
    ns.nft(&format!("delete table inet loden\n{TABLE}"));
    assert!(contents(&ns) == Some(before), "the same, made anew");
}

#[test]
fn every_change_of_a_table_is_seen() {
    for change in [
        "insert rule inet loden vxlan_in accept",
        "add rule inet loden vxlan_in ip protocol icmp counter",
        "flush chain inet loden vxlan_in",
        "add chain inet loden more",
        "add chain inet loden vxlan_in { policy drop; }",
        "add set inet loden more { type ipv4_addr; }",
        "add table inet loden { flags dormant; }",
        "delete table inet loden",
    ] {
        let ns = table();
        let before = contents(&ns);
        assert!(before.is_some());
        ns.nft(change);
        assert!(contents(&ns) != before, "{change}");
    }
}

#[test]
fn a_dormant_table_is_taken_for_none() {
    let ns = table();
    ns.nft("add table inet loden { flags dormant; }");
    assert_eq!(contents(&ns), None);
}

#[test]
fn a_rule_that_is_replaced_by_another_is_seen() {
    let ns = table();
    let before = contents(&ns);
    let listing = ns.run(&["nft", "-a", "list", "chain", "inet", "loden", "vxlan_in"]);
    let handle = |what: &str| {
        let line = listing.lines().find(|line| line.contains(what)).expect("the rule");
        line.rsplit(' ').next().expect("its handle").to_owned()
    };
    ns.nft(&format!(
        "replace rule inet loden vxlan_in handle {} ip protocol udp counter accept",
        handle("icmp")
    ));
    let replaced = contents(&ns);
    assert!(replaced != before, "another protocol");
    // The set that is a part of it gets the name of the one before.
    let (rule, place) = ("ip daddr { 192.0.2.1, 192.0.2.3 } accept", handle("icmp"));
    ns.nft(&format!("delete rule inet loden vxlan_in handle {}", handle("192.0.2.1")));
    ns.nft(&format!("insert rule inet loden vxlan_in handle {place} {rule}"));
    assert!(contents(&ns) != replaced, "another address");
}

#[test]
fn to_wait_for_others_changes_nothing() {
    let ns = table();
    let mut socket = ns.within(Socket::netfilter).expect("a socket");
    let before = nftset::generation(&mut socket).expect("a generation");
    nftset::wait_for_others(&mut socket).expect("it waited");
    assert_eq!(nftset::generation(&mut socket).expect("a generation"), before);
}
