//! The first packet of a container: how long after ADD has returned does it get an answer? Used
//! by `mod.rs`.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use loden_tests::Ns;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

/// When nothing was answered for so long, the next packet is sent: the first may be lost for ever.
const AGAIN: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(5);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// A socket in a container's namespace, there before the container has an interface: a process
/// that runs already.
#[derive(Debug)]
pub(crate) struct Pinger {
    socket: UdpSocket,
}

impl Pinger {
    /// In the namespace.
    pub(crate) fn new(ns: &Ns) -> Result<Self> {
        let open =
            || socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP));
        let fd: OwnedFd = ns.within(open).context("a raw socket")?;
        // The standard library has no raw sockets, but its calls work on one.
        let socket = UdpSocket::from(fd);
        socket.set_nonblocking(true).context("a non-blocking socket")?;
        Ok(Self { socket })
    }

    /// Sends ICMP echo requests until one is answered; the time since `start`. The answer comes
    /// from the target's kernel, so no process has to be woken for it.
    pub(crate) fn time_since(&self, start: Instant, target: Ipv4Addr) -> Result<Duration> {
        let packet = echo_request();
        let mut buffer = [0; 256];
        while start.elapsed() < PATIENCE {
            match self.socket.send_to(&packet, (target, 0)) {
                Ok(_) => {}
                // No route yet, or nobody answers ARP.
                Err(e) if matches!(e.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) => {}
                Err(e) => return Err(e).context("send an echo request"),
            }
            let sent = Instant::now();
            while sent.elapsed() < AGAIN {
                match self.socket.recv(&mut buffer) {
                    // An IPv4 header without options comes first.
                    Ok(length)
                        if length >= 28 && buffer[20] == ECHO_REPLY && buffer[12..16] == target.octets() =>
                    {
                        return Ok(start.elapsed());
                    }
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                    Err(e) if e.kind() == ErrorKind::HostUnreachable => {}
                    Err(e) => return Err(e).context("receive an echo reply"),
                }
            }
        }
        bail!("{target} has not answered within {PATIENCE:?}")
    }
}

/// With its checksum: the ones' complement of the sum of all 16-bit words.
fn echo_request() -> [u8; 16] {
    let mut packet = *b"\x08\0\0\0bench   \0\0\0\0";
    packet[0] = ECHO_REQUEST;
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}
