//! Ethernet frames made by hand, sent and caught at a container's interface: what a container can do
//! that has the right to open packet sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Stdio};
use std::time::Duration;

use loden_proto::Mac;

use crate::probe::checksum;
use crate::{Ns, eventually, process};

/// To everybody.
pub const BROADCAST: Mac = Mac([0xff; 6]);

/// What ends every payload; its last two bytes become the frame's number. Part of the payload, since a
/// bridge may cut off what an IP header does not count (net/bridge/br_netfilter_hooks.c).
const MARK: [u8; 8] = *b"loden#\0\0";

/// A frame; RFC 894.
pub fn ethernet(source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&BROADCAST.0[..], &source.0, &kind.to_be_bytes(), payload, &MARK].concat()
}

/// An IP packet of protocol `next` in a frame; RFC 791, RFC 8200.
pub fn ip(mac: Mac, source: IpAddr, target: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + MARK.len()).expect("a short payload");
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let total = (length + 20).to_be_bytes();
            let head = [0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, next, 0, 0];
            let mut head = [&head[..], &source.octets(), &target.octets()].concat();
            let sum = checksum(&head).to_be_bytes();
            head[10..12].copy_from_slice(&sum);
            ethernet(mac, 0x0800, &[&head[..], payload].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let [high, low] = length.to_be_bytes();
            let head = [0x60, 0, 0, 0, high, low, next, 255];
            ethernet(mac, 0x86dd, &[&head[..], &source.octets(), &target.octets(), payload].concat())
        }
        _ => panic!("{source} and {target} are of two families"),
    }
}

/// A datagram's header without a checksum; RFC 768.
pub fn udp(source: u16, target: u16) -> Vec<u8> {
    let length = 8 + MARK.len() as u16;
    [source.to_be_bytes(), target.to_be_bytes(), length.to_be_bytes(), [0; 2]].concat()
}

/// A message of ICMPv6 about an address (RFC 4861 §4.3 and §4.4), or one of the same length.
pub fn icmpv6(kind: u8, target: Ipv6Addr) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

/// An ARP message in which the sender says that it is these; RFC 826.
pub fn arp(frame: Mac, operation: u8, mac: Mac, address: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    let body = [&head[..], &mac.0, &address.octets(), &[0; 6], &target.octets()].concat();
    ethernet(frame, 0x0806, &body)
}

/// Sends frames from the namespace's eth0, numbered from `first` on.
#[track_caller]
pub fn send(from: &Ns, frames: &[Vec<u8>], first: usize) {
    for (number, frame) in frames.iter().enumerate() {
        let mut bytes = frame.clone();
        let number = u16::try_from(first + number).expect("few frames").to_be_bytes();
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&number);
        process::run(from.command(&["socat", "-u", "STDIN", "INTERFACE:eth0"]), &bytes).expect_success();
    }
}

/// Catches every frame at a namespace's eth0 until it is dropped.
#[derive(Debug)]
pub struct Catcher {
    file: tempfile::NamedTempFile,
    child: Child,
}

impl Catcher {
    /// Begins, and returns when it catches.
    #[track_caller]
    pub fn start(ns: &Ns) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let out = format!("OPEN:{}", file.path().display());
        let mut command = ns.command(&["socat", "-u", "INTERFACE:eth0", &out]);
        let child = command.stdin(Stdio::null()).spawn().expect("socat is installed");
        let catcher = Self { file, child };
        eventually(Duration::from_secs(5), "a packet socket is open", || {
            let sockets = ns.run(&["cat", "/proc/net/packet"]);
            sockets.lines().count() > 1
        });
        catcher
    }

    /// The numbers of the frames that came.
    pub fn caught(&self) -> Vec<usize> {
        let bytes = std::fs::read(self.file.path()).expect("what was caught");
        let number = |window: &[u8]| {
            (window[..6] == MARK[..6]).then(|| usize::from(u16::from_be_bytes([window[6], window[7]])))
        };
        bytes.windows(MARK.len()).filter_map(number).collect()
    }
}

impl Drop for Catcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
