//! The sockets of one address, and what one client can have of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use loden_core::names::{self, Reply, Transport};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::forward::Forwarder;
use super::turns::Turns;
use super::{PORT, SharedZone};

/// What all sockets share.
pub(super) struct Shared {
    pub(super) zone: SharedZone,
    pub(super) forwarder: Forwarder,
    /// Where we answer.
    pub(super) own: watch::Receiver<Vec<IpAddr>>,
    /// Connections of each client.
    pub(super) connections: RefCell<HashMap<IpAddr, usize>>,
}

/// Connections of one client, and altogether. Each costs a descriptor, and the daemon needs its own.
const MOST_OF_CLIENT: usize = 16;
const MOST: usize = 256;
/// How long a connection may be silent (RFC 7766 §6.2.3: a few seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Datagrams taken from one socket, and of these answered, before others have their turn. To take one costs a
/// tenth of what an answer does, so that a flood fills its sender's queue and not the kernel's.
const TAKEN_AT_ONCE: usize = 512;
const ANSWERED_AT_ONCE: usize = 32;
/// What the kernel keeps for us while others have the CPU, in bytes: some 5,000 requests. It is one queue for
/// all clients, so what overflows it is anybody's.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Opens both sockets of an address, which need not be there yet.
pub(super) fn open(address: IpAddr) -> anyhow::Result<(UdpSocket, TcpListener)> {
    let at = SocketAddr::new(address, PORT);
    let open = |kind, protocol| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        match address {
            IpAddr::V4(_) => socket.set_freebind_v4(true)?,
            IpAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        Ok(socket)
    };
    let explained = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {PORT} is taken by another server (ss -lnup sport = :{PORT}); have it listen on its own addresses alone, or choose ours by --dns-listen"
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("port {PORT} needs CAP_NET_BIND_SERVICE, which the packaged unit gives")
        }
        _ => error.into(),
    };
    let datagrams = open(Type::DGRAM, Protocol::UDP)?;
    // Beyond the host's limit (net.core.rmem_max), as CAP_NET_ADMIN may; else as much as it grants.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&datagrams, RECEIVE_BUFFER).is_err() {
        let _ = datagrams.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    datagrams.bind(&at.into()).map_err(explained)?;
    let connections = open(Type::STREAM, Protocol::TCP)?;
    // Connections of our former life may still be closing.
    connections.set_reuse_address(true)?;
    connections.bind(&at.into()).map_err(explained)?;
    connections.listen(128)?;
    Ok((UdpSocket::from_std(datagrams.into())?, TcpListener::from_std(connections.into())?))
}

/// Answers on an address for ever.
pub(super) async fn serve((datagrams, connections): (UdpSocket, TcpListener), shared: Rc<Shared>) {
    tokio::join!(serve_datagrams(Rc::new(datagrams), shared.clone()), serve_connections(connections, shared));
}

impl Shared {
    fn reply(&self, request: &[u8], client: IpAddr, transport: Transport, turn: usize) -> Reply {
        // A panic elsewhere that poisoned it brings the daemon down as well.
        let zone = self.zone.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        names::reply(zone.as_ref(), request, client, transport, turn)
    }

    async fn forward(&self, request: &[u8], client: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let own = self.own.borrow().clone();
        match self.forwarder.ask(request, client, transport, &own).await {
            Some(answer) => Some(answer),
            None => match names::failure(request) {
                Reply::Send(answer) => Some(answer),
                Reply::Forward | Reply::Silence => None,
            },
        }
    }
}

async fn serve_datagrams(socket: Rc<UdpSocket>, shared: Rc<Shared>) {
    // The largest request that makes sense, and a byte more to know a larger one by.
    let mut buffer = [0; 4097];
    let mut turns = Turns::default();
    let mut turn = 0usize;
    loop {
        if turns.is_empty()
            && let Err(error) = socket.readable().await
        {
            tracing::warn!(%error, "cannot wait for DNS requests");
            return;
        }
        for _ in 0..TAKEN_AT_ONCE {
            match socket.try_recv_from(&mut buffer) {
                // An answer to port 0 reaches nobody; a cut request means nothing.
                Ok((length, client)) if client.port() != 0 && length < buffer.len() => {
                    turns.push(client.ip(), (buffer[..length].to_vec(), client));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Such as an earlier client's "port unreachable".
                Ok(_) | Err(_) => {}
            }
        }
        for (request, client) in std::iter::from_fn(|| turns.pop()).take(ANSWERED_AT_ONCE) {
            turn = turn.wrapping_add(1);
            match shared.reply(&request, client.ip(), Transport::Udp, turn) {
                // A full buffer or an unreachable client: it will ask again.
                Reply::Send(answer) => _ = socket.try_send_to(&answer, client),
                Reply::Silence => {}
                Reply::Forward => {
                    let (socket, shared) = (socket.clone(), shared.clone());
                    tokio::task::spawn_local(async move {
                        if let Some(answer) = shared.forward(&request, client.ip(), Transport::Udp).await {
                            let _ = socket.send_to(&answer, client).await;
                        }
                    });
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn serve_connections(listener: TcpListener, shared: Rc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let client = client.ip();
                if !shared.enter(client) {
                    continue;
                }
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve_connection(stream, client, &shared).await {
                        tracing::debug!(%client, %error, "a DNS connection broke off");
                    }
                    shared.leave(client);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept DNS connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Shared {
    fn enter(&self, client: IpAddr) -> bool {
        let mut connections = self.connections.borrow_mut();
        let all: usize = connections.values().sum();
        let of_client = connections.entry(client).or_default();
        let fits = all < MOST && *of_client < MOST_OF_CLIENT;
        *of_client += usize::from(fits);
        if *of_client == 0 {
            connections.remove(&client);
        }
        fits
    }

    fn leave(&self, client: IpAddr) {
        let mut connections = self.connections.borrow_mut();
        match connections.get_mut(&client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = connections.remove(&client),
        }
    }
}

/// Requests and answers, each after its length in two bytes (RFC 1035 §4.2.2), until the client ends it, is
/// silent for too long or sends what is no request.
async fn serve_connection(mut stream: TcpStream, client: IpAddr, shared: &Shared) -> io::Result<()> {
    let mut turn = 0usize;
    loop {
        let read = timeout(IDLE, async {
            let length = match stream.read_u16().await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
                length => length?,
            };
            let mut request = vec![0; length.into()];
            stream.read_exact(&mut request).await?;
            io::Result::Ok(request)
        });
        let Ok(request) = read.await else { return Ok(()) };
        let request = request?;
        turn = turn.wrapping_add(1);
        let answer = match shared.reply(&request, client, Transport::Tcp, turn) {
            Reply::Send(answer) => Some(answer),
            Reply::Forward => shared.forward(&request, client, Transport::Tcp).await,
            Reply::Silence => None,
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes();
        let sent = timeout(IDLE, async { stream.write_all(&[&length[..], &answer].concat()).await });
        match sent.await {
            Ok(sent) => sent?,
            // A client that does not read.
            Err(_) => return Ok(()),
        }
    }
}
