//! Objects of somebody else on each host, which nothing in the lab may touch.

use crate::Host;

const TABLE: &str = r#"table inet foreign {
    set visited { type ipv4_addr; elements = { 198.51.100.7 }; }
    chain watch {
        type filter hook forward priority 10; policy accept;
        ip saddr @visited counter accept comment "not ours"
    }
    chain nat { type nat hook postrouting priority srcnat + 50; policy accept; }
}"#;

/// How they looked when they were placed.
#[derive(Debug)]
pub(crate) struct Foreign {
    seen: String,
}

impl Foreign {
    /// A route, a rule, a nexthop, a VXLAN device with its neighbour, FDB entry and route, and a
    /// nft table.
    pub(crate) fn place(host: &Host) -> Self {
        let ns = host.ns();
        let via = match host.address() {
            std::net::IpAddr::V4(ip) => format!("192.168.{}.1", ip.octets()[2]),
            std::net::IpAddr::V6(_) => unreachable!("hosts have IPv4 addresses"),
        };
        ns.ip(&format!(
            "route add 198.51.100.0/24 via {via} proto static\n\
             rule add pref 1234 from 198.51.100.0/24 lookup 177\n\
             route add 198.51.100.128/25 via {via} table 177\n\
             nexthop add id 9 via {via} dev eth0\n\
             link add foreign9 type vxlan id 999 dstport 4789 dev eth0 nolearning\n\
             addr add 203.0.113.0/32 dev foreign9\n\
             link set foreign9 up\n\
             route add 203.0.113.0/28 via 203.0.113.1 dev foreign9 onlink\n\
             neigh add 203.0.113.1 lladdr 02:00:5e:00:00:01 dev foreign9 nud permanent"
        ));
        ns.run(&["bridge", "fdb", "add", "02:00:5e:00:00:01", "dev", "foreign9", "dst", "192.168.77.200"]);
        ns.nft(TABLE);
        Self { seen: look(host) }
    }

    /// Removes them.
    pub(crate) fn remove(self, host: &Host) {
        host.ip("link del foreign9\nnexthop del id 9\nrule del pref 1234\n\
             route del 198.51.100.128/25 table 177\nroute del 198.51.100.0/24");
        host.run(&["nft", "delete", "table", "inet", "foreign"]);
    }

    /// What has changed, line by line.
    pub(crate) fn damage(&self, host: &Host) -> Option<String> {
        let now = look(host);
        let missing: Vec<&str> = self.seen.lines().filter(|l| !now.lines().any(|n| n == *l)).collect();
        let new: Vec<&str> = now.lines().filter(|l| !self.seen.lines().any(|s| s == *l)).collect();
        (!missing.is_empty() || !new.is_empty()).then(|| {
            format!("foreign objects of {} changed\n  gone: {missing:#?}\n  new: {new:#?}", host.name())
        })
    }
}

fn look(host: &Host) -> String {
    let ns = host.ns();
    [
        ["ip", "route", "show", "198.51.100.0/24"].as_slice(),
        &["ip", "route", "show", "table", "177"],
        &["ip", "rule", "show", "pref", "1234"],
        &["ip", "nexthop", "show", "id", "9"],
        &["ip", "-d", "link", "show", "foreign9"],
        &["ip", "-4", "addr", "show", "foreign9"],
        &["ip", "route", "show", "dev", "foreign9"],
        &["ip", "-4", "neigh", "show", "dev", "foreign9"],
        &["bridge", "fdb", "show", "dev", "foreign9"],
        &["nft", "-s", "list", "table", "inet", "foreign"],
    ]
    .iter()
    .map(|argv| {
        let output = ns.exec(argv);
        if output.success() { output.stdout } else { output.describe() }
    })
    .collect()
}
