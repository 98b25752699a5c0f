//! Sockets of the load: opened in a namespace, with the same options on every side. Used by
//! `traffic.rs`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size_force, set_socket_timeout, set_tcp_congestion,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// How long a blocked end sleeps before it looks whether the measurement has ended.
const GLANCE: Duration = Duration::from_millis(100);
/// Bytes that wait for a UDP receiver: a burst must not be lost because it was not scheduled.
const ROOM: usize = 4 << 20;
const PORT: u16 = 5201;

/// The congestion control of all TCP sockets here: cubic, which root may choose for a socket
/// whatever `tcp_allowed_congestion_control` says; reno, which every kernel has, in one without it.
/// Both without pacing, so that no timer is in the numbers.
pub(crate) fn congestion_control() -> &'static str {
    static CHOSEN: OnceLock<&str> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let cubic = probe.is_ok_and(|socket| set_tcp_congestion(&socket, "cubic").is_ok());
        if cubic { "cubic" } else { "reno" }
    })
}

/// Connections that wait to be accepted: what the kernel allows by default (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A listener whose `accept` returns now and then without a connection. What it accepts inherits
/// its options.
pub(crate) fn listen(address: IpAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind((address, PORT)).context("a TCP listener")?;
    // The standard library's 128 are full before the server, on the client's CPU, has its turn.
    rustix::net::listen(&listener, BACKLOG).context("listen")?;
    set_tcp_congestion(&listener, congestion_control()).context("set TCP_CONGESTION")?;
    returns_now_and_then(&listener)?;
    Ok(listener)
}

/// A connection to the listener.
pub(crate) fn connect(address: IpAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect((address, PORT)).context("connect")?;
    set_tcp_congestion(&stream, congestion_control()).context("set TCP_CONGESTION")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(stream)
}

/// A UDP socket that receives.
pub(crate) fn receive(address: IpAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((address, PORT)).context("a UDP socket")?;
    set_socket_recv_buffer_size_force(&socket, ROOM).context("set SO_RCVBUFFORCE")?;
    returns_now_and_then(&socket)?;
    Ok(socket)
}

/// A UDP socket with a port of its own that sends to the receiver.
pub(crate) fn send(address: IpAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("a UDP socket")?;
    socket.connect(SocketAddr::new(address, PORT)).context("connect a UDP socket")?;
    returns_now_and_then(&socket)?;
    Ok(socket)
}

fn returns_now_and_then(socket: &impl AsFd) -> Result<()> {
    set_socket_timeout(socket, Timeout::Recv, Some(GLANCE)).context("set SO_RCVTIMEO")
}

/// Lets this process have so many descriptors at a time.
pub(crate) fn allow_descriptors(count: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(count));
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum })
        .with_context(|| format!("allow {count} descriptors (ulimit -n)"))
}

/// Gives the calling thread, which does nothing but be a client, descriptors of its own: the limit
/// holds for each of the two ends then.
pub(crate) fn own_descriptors() -> Result<()> {
    // SAFETY: from here on the thread hands no descriptor to another and takes none.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.context("unshare(CLONE_FILES)")
}
