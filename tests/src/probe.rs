//! Traffic: single probes, the source address that a receiver saw, and streams that count losses.
//! Sockets are opened inside a namespace and then used from ordinary threads.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};

use crate::Ns;

/// How long a single probe waits for its answer.
pub const PATIENCE: Duration = Duration::from_millis(800);
/// The port of [`Echo`], RFC 862's.
pub const ECHO_PORT: u16 = 7;
/// A datagram that asks an [`Echo`] for the source it saw.
const WHO: &[u8] = b"who";

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A UDP and TCP server that sends everything back, and tells who asked. Ends when dropped.
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Serves on an address of the namespace; the unspecified address serves on all.
    #[track_caller]
    pub fn start(ns: &Ns, address: IpAddr) -> Self {
        let address = SocketAddr::new(address, ECHO_PORT);
        let (udp, tcp) = ns
            .within(|| Ok::<_, std::io::Error>((UdpSocket::bind(address)?, TcpListener::bind(address)?)))
            .unwrap_or_else(|e| panic!("an echo server on {address}: {e}"));
        let stop = Arc::new(AtomicBool::new(false));
        roomy(&udp);
        udp.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout above zero");
        tcp.set_nonblocking(true).expect("a non-blocking listener");
        let (stop_udp, stop_tcp) = (stop.clone(), stop.clone());
        let arrived = Arc::new(AtomicU64::new(0));
        let counter = arrived.clone();
        let threads = vec![
            thread::spawn(move || serve_udp(&udp, &stop_udp, &counter)),
            thread::spawn(move || serve_tcp(&tcp, &stop_tcp)),
        ];
        Self { address, stop, arrived, threads }
    }

    /// How many datagrams of [`Stream`]s have arrived.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Relaxed)
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool, arrived: &AtomicU64) {
    let mut buffer = [0; 65536];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, source)) = socket.recv_from(&mut buffer) else { continue };
        if length == size_of::<u64>() {
            arrived.fetch_add(1, Ordering::Relaxed);
        }
        // Losses are counted by the sender; an unreachable one is its own business.
        let _ = if &buffer[..length] == WHO {
            socket.send_to(source.ip().to_string().as_bytes(), source)
        } else {
            socket.send_to(&buffer[..length], source)
        };
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, source)) => {
                let _ = stream.write_all(format!("{}\n", source.ip()).as_bytes());
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The source of a UDP datagram as the echo server at `target` saw it; `None` without an answer.
pub fn udp_source(from: &Ns, target: IpAddr) -> Option<IpAddr> {
    udp_source_at(from, SocketAddr::new(target, ECHO_PORT))
}

/// The same by another port, which something on the way leads to the server.
pub fn udp_source_at(from: &Ns, target: SocketAddr) -> Option<IpAddr> {
    udp_answer(from, any(target.ip()), target)
}

/// The same, sent from a given address of the sender.
pub fn udp_source_bound(from: &Ns, source: IpAddr, target: IpAddr) -> Option<IpAddr> {
    udp_answer(from, source, SocketAddr::new(target, ECHO_PORT))
}

fn udp_answer(from: &Ns, source: IpAddr, target: SocketAddr) -> Option<IpAddr> {
    let socket = from.within(|| UdpSocket::bind((source, 0))).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    socket.send_to(WHO, target).ok()?;
    let mut buffer = [0; 64];
    let (length, _) = receive_from(&socket, &mut buffer).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()?.parse().ok()
}

/// The source of a TCP connection as the echo server at `target` saw it.
pub fn tcp_source(from: &Ns, target: IpAddr) -> Option<IpAddr> {
    tcp_source_at(from, SocketAddr::new(target, ECHO_PORT))
}

/// The same by another port, which something on the way leads to the server.
pub fn tcp_source_at(from: &Ns, target: SocketAddr) -> Option<IpAddr> {
    let mut stream = from.within(|| TcpStream::connect_timeout(&target, PATIENCE)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Waits for one datagram on a port of the namespace, while `send` provokes it; returns its source.
pub fn datagram_source(at: &Ns, bind: SocketAddr, send: impl FnOnce()) -> Option<SocketAddr> {
    let socket = at.within(|| UdpSocket::bind(bind)).ok()?;
    if let SocketAddr::V4(v4) = bind
        && v4.ip().is_multicast()
    {
        at.within(|| socket.join_multicast_v4(v4.ip(), &Ipv4Addr::UNSPECIFIED)).ok()?;
    }
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    send();
    receive_from(&socket, &mut [0; 2048]).ok().map(|(_, source)| source)
}

/// The next datagram. A wait with a limit is broken off when the whole machine is paused and goes on
/// (signal(7), of stop signals); then it begins again.
fn receive_from(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Sends one datagram from an address of the namespace. For a group, `by` is the address of the
/// interface that it leaves by: else the kernel takes the one that holds the source address.
#[track_caller]
pub fn send_datagram(from: &Ns, source: IpAddr, target: SocketAddr, by: IpAddr) {
    let sent = from.within(|| {
        let socket = UdpSocket::bind((source, 0))?;
        if let (true, IpAddr::V4(by)) = (target.ip().is_multicast(), by) {
            sockopt::set_ip_multicast_if(&socket, &by)?;
        }
        socket.send_to(b"x", target)
    });
    sent.unwrap_or_else(|e| panic!("sending from {source} to {target}: {e}"));
}

/// One ICMP echo; true if it was answered.
pub fn ping(from: &Ns, target: IpAddr) -> bool {
    from.within(|| try_ping(target)).unwrap_or(false)
}

fn try_ping(target: IpAddr) -> std::io::Result<bool> {
    let (family, protocol, request, answer) = match target {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let fd: OwnedFd = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    // The standard library has no raw sockets, but its calls work on one.
    let socket = UdpSocket::from(fd);
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let tag = COUNTER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let mut packet = [0; 16];
    packet[0] = request;
    packet[4..8].copy_from_slice(&tag);
    packet[8..].copy_from_slice(b"loden-ab");
    if target.is_ipv4() {
        // For ICMPv6 the kernel fills it in (RFC 3542 §3.1).
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    socket.send_to(&packet, (target, 0))?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        let (length, source) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        // A raw IPv4 socket delivers the IP header too.
        let header = if target.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let message = &buffer[header.min(length)..length];
        if source.ip() == target && message.first() == Some(&answer) && message.get(4..8) == Some(&tag) {
            return Ok(true);
        }
    }
}

/// The internet checksum, RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | c.get(1).copied().map_or(0, u32::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Datagrams sent at a steady rate to an [`Echo`], each of which should come back.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<(Vec<bool>, Duration)>,
}

/// What became of a stream.
#[derive(Debug, Clone)]
pub struct Losses {
    /// Datagrams sent.
    pub sent: u64,
    /// Those that did not come back.
    pub lost: u64,
    /// The longest time without an answer while it was sending.
    pub silence: Duration,
    /// First and last number of each run of lost datagrams; numbers count from 0 at the stream's
    /// rate, and so tell when.
    pub gaps: Vec<(usize, usize)>,
}

impl Stream {
    /// Starts sending so many a second.
    #[track_caller]
    pub fn start(from: &Ns, to: SocketAddr, per_second: u32) -> Self {
        let socket = from.within(|| UdpSocket::bind((any(to.ip()), 0))).expect("a UDP socket");
        roomy(&socket);
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout above zero");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ended) = (stop.clone(), Arc::new(AtomicBool::new(false)));
        let (socket_out, end) = (socket.try_clone().expect("a second descriptor"), ended.clone());
        let sender = thread::spawn(move || {
            let start = Instant::now();
            let mut sent = 0u64;
            while !stopped.load(Ordering::Relaxed) {
                // Catching up after a late wake-up keeps the rate; sleeping a millisecond keeps the CPU free.
                let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u64 + 1;
                // Bursts well below net.core.netdev_max_backlog, where veth pairs drop.
                let due = due.min(sent + 100);
                while sent < due {
                    // An error is a loss: the datagram will not come back.
                    let _ = socket_out.send_to(&sent.to_be_bytes(), to);
                    sent += 1;
                }
                thread::sleep(Duration::from_millis(1));
            }
            end.store(true, Ordering::Relaxed);
            sent
        });
        let receiver = thread::spawn(move || receive(&socket, &ended));
        Self { stop, sender, receiver }
    }

    /// Stops, waits for stragglers, and counts.
    pub fn stop(self) -> Losses {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic");
        let (mut answered, silence) = self.receiver.join().expect("the receiver does not panic");
        answered.resize(usize::try_from(sent).expect("a number that was counted up to"), false);
        let lost = answered.iter().filter(|a| !**a).count() as u64;
        Losses { sent, lost, silence, gaps: gaps(&answered) }
    }
}

fn gaps(answered: &[bool]) -> Vec<(usize, usize)> {
    let mut gaps: Vec<(usize, usize)> = Vec::new();
    for number in (0..answered.len()).filter(|n| !answered[*n]) {
        match gaps.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => gaps.push((number, number)),
        }
    }
    gaps
}

/// Notes which came back, until the sender has ended and 300 ms were silent.
fn receive(socket: &UdpSocket, ended: &AtomicBool) -> (Vec<bool>, Duration) {
    let mut answered: Vec<bool> = Vec::new();
    let mut silence = Duration::ZERO;
    let mut last = Instant::now();
    let mut buffer = [0; 64];
    loop {
        let over = ended.load(Ordering::Relaxed);
        if let Ok((8, _)) = socket.recv_from(&mut buffer) {
            let mut number = [0; 8];
            number.copy_from_slice(&buffer[..8]);
            let number = u64::from_be_bytes(number) as usize;
            if answered.len() <= number {
                answered.resize(number + 1, false);
            }
            answered[number] = true;
            silence = silence.max(last.elapsed());
            last = Instant::now();
        } else if over && last.elapsed() > Duration::from_millis(300) {
            return (answered, silence);
        } else if !over {
            silence = silence.max(last.elapsed());
        }
    }
}

/// A receive buffer that holds a second of a fast stream, so that a sleeping reader loses nothing.
fn roomy(socket: &UdpSocket) {
    sockopt::set_socket_recv_buffer_size_force(socket, 16 << 20).expect("root may have large buffers");
}
