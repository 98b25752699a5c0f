//! Other people's rules that break the overlay are named in `status`, with their mend.

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Host, eventually, matrix};

fn rules(host: &Host, lines: &[&str]) {
    for line in lines {
        host.run(&line.split(' ').collect::<Vec<_>>());
    }
}

#[test]
fn a_firewall_that_drops_vxlan_is_named_and_believed_when_opened() {
    let cluster = Cluster::<2>::start("rules_vxlan", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    a.status_is_content();
    a.ns().nft(
        "table inet guard {
             chain in {
                 type filter hook input priority 0; policy drop;
                 ct state established,related accept
                 tcp dport 22 accept
                 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
             }
         }",
    );
    assert!(!b1.pings(a1.address()), "the model is right: nothing gets in");
    a.status_names(&["chain in of inet guard", "8472", "eth0"]);
    a.ns().nft("add rule inet guard in ip saddr 192.168.77.0/24 udp dport 8472 accept");
    matrix(&[&a1, &b1]);
    a.status_is_content();
    // The same by the older iptables.
    rules(a, &["iptables-legacy -P INPUT DROP"]);
    a.status_names(&["chain INPUT of iptables-legacy filter", "8472"]);
    rules(a, &["iptables-legacy -A INPUT -p udp -m udp --dport 8472 -j ACCEPT"]);
    matrix(&[&a1, &b1]);
    a.status_is_content();
    cluster.lab.check_invariants();
}

#[test]
fn a_forwarding_policy_and_a_masquerade_are_named() {
    let cluster = Cluster::<2>::start("rules_forward", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    matrix(&[&a1, &b1]);
    rules(a, &["iptables-nft -P FORWARD DROP"]);
    assert!(!a1.pings(b1.address()));
    a.status_names(&["chain FORWARD of ip filter", "from loden0 to loden.1"]);
    rules(a, &["iptables-nft -A FORWARD -i loden0 -j ACCEPT", "iptables-nft -A FORWARD -o loden0 -j ACCEPT"]);
    matrix(&[&a1, &b1]);
    a.status_is_content();
    // As Docker or a CNI plugin with ipMasq would.
    let own = a.subnet().to_string();
    rules(a, &[&format!("iptables-nft -t nat -A POSTROUTING -s {own} ! -o loden0 -j MASQUERADE")]);
    a.status_names(&["chain POSTROUTING of ip nat", "masquerades", "ip-masq=false"]);
    // As Docker 28 does for each container.
    let container = a1.address().to_string();
    rules(a, &[&format!("iptables-nft -t raw -A PREROUTING -d {container} ! -i loden0 -j DROP")]);
    a.status_names(&["chain PREROUTING of ip raw", "from loden.1 to loden0"]);
}

#[test]
fn what_flannel_left_is_noted() {
    let cluster = Cluster::<1>::start("rules_leftovers", VXLAN, &[]);
    let [a] = &cluster.hosts;
    rules(
        a,
        &[
            "iptables-nft -t nat -N FLANNEL-POSTRTG",
            "iptables-legacy -N FLANNEL-FWD",
            "nft add table ip flannel-ipv4",
        ],
    );
    let note = eventually(SOON, "status notes it", || {
        let notes = a.try_status(&[])?.notes;
        notes.iter().find(|n| n.contains("loden cleanup --flannel")).cloned().ok_or(format!("{notes:?}"))
    });
    for left in ["FLANNEL-POSTRTG", "FLANNEL-FWD of iptables-legacy filter", "ip flannel-ipv4"] {
        assert!(note.contains(left), "{note}");
    }
    a.status_is_content();
    cluster.lab.check_invariants();
}
