//! The underlay between two hosts: one pair of virtual Ethernet devices. Used by `sides.rs` and group `dns`.

use std::cell::Cell;
use std::net::IpAddr;

use loden_tests::Host;

/// Name of the NIC on both hosts; `eth0` leads to etcd.
pub(crate) const NIC: &str = "eth1";

/// How packets cross the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As a pair of virtual devices does by itself: 64 KiB packets cross as they are, tunnelled or not, and
    /// checksums are never computed. A machine's virtual network, at its best.
    Offloads,
    /// As by a NIC that has no segmentation but checksums: the sender's kernel cuts packets to the
    /// MTU, the receiver's puts them together again (GRO).
    Wire,
}

/// The devices of a pair of hosts.
#[derive(Debug)]
pub(crate) struct Underlay {
    number: u8,
    hosts: [Host; 2],
    mode: Cell<Mode>,
}

/// The offloads by which a NIC cuts packets.
const OFFLOADS: [&str; 6] = [
    "tcp-segmentation-offload",
    "tx-gso-partial",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
    "tx-gso-list",
];

impl Underlay {
    /// Connects two hosts; their addresses are 198.18.`number`.1 and .2 (RFC 2544's for benchmarks).
    pub(crate) fn between(hosts: [Host; 2], number: u8) -> Self {
        let [a, b] = &hosts;
        a.ip(&format!("link add {NIC} type veth peer name {NIC} netns {}", b.ns().path()));
        for (host, last) in [(a, 1), (b, 2)] {
            host.ip(&format!("addr add 198.18.{number}.{last}/24 dev {NIC}\nlink set {NIC} up"));
        }
        Self { number, hosts, mode: Cell::new(Mode::Offloads) }
    }

    /// Address of one of the two hosts on it, 0 or 1.
    pub(crate) fn address(&self, which: u8) -> IpAddr {
        [198, 18, self.number, which + 1].into()
    }

    /// Sets the offloads of both ends, unless they are so.
    pub(crate) fn switch_to(&self, mode: Mode) {
        if self.mode.replace(mode) == mode {
            return;
        }
        let (offload, gro) = match mode {
            Mode::Offloads => ("on", "off"),
            Mode::Wire => ("off", "on"),
        };
        for host in &self.hosts {
            let mut argv = vec!["ethtool", "-K", NIC, "gro", gro];
            argv.extend(OFFLOADS.iter().flat_map(|feature| [*feature, offload]));
            host.run(&argv);
        }
    }
}
