//! The sockets of one address, and what one client can have of them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::PoisonError;
use std::time::Duration;

use loden_core::names::{self, Asked, Reply, Transport, View};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::forward::Forwarder;
use super::places::{Place, Places};
use super::turns::Turns;
use super::{PORT, SharedZone};

/// What all sockets share.
pub(super) struct Shared {
    pub(super) zone: SharedZone,
    /// Whether all names are in it.
    pub(super) complete: watch::Receiver<bool>,
    /// For questions that wait for that.
    pub(super) waiting: Rc<Places>,
    pub(super) forwarder: Forwarder,
    /// Where we answer.
    pub(super) own: watch::Receiver<Vec<IpAddr>>,
    /// For connections of clients inside.
    pub(super) inside: Rc<Places>,
    /// For those of clients outside.
    pub(super) outside: Rc<Places>,
}

/// Connections of one client, and of all of a view. Each costs a descriptor, and the daemon needs its own.
pub(super) const MOST_OF_CLIENT: usize = 16;
pub(super) const MOST_INSIDE: usize = 192;
pub(super) const MOST_OUTSIDE: usize = 64;
/// How long a question waits for the names of other hosts, which a daemon that has just started does not know
/// yet, and how many do, of one client and altogether.
const PATIENCE: Duration = Duration::from_secs(2);
pub(super) const MOST_WAITING_OF_CLIENT: usize = 100;
pub(super) const MOST_WAITING: usize = 1000;
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
pub(super) async fn serve(
    at: IpAddr,
    (datagrams, connections): (UdpSocket, TcpListener),
    shared: Rc<Shared>,
) {
    tokio::join!(
        serve_datagrams(at, Rc::new(datagrams), shared.clone()),
        serve_connections(at, connections, shared)
    );
}

impl Shared {
    fn reply(&self, request: &[u8], asked: Asked) -> Reply {
        // A panic elsewhere that poisoned it brings the daemon down as well.
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        names::reply(zone.as_ref(), request, asked)
    }

    fn place(&self, client: IpAddr, at: IpAddr) -> Option<Place> {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        match zone.as_ref().map_or(View::Outside, |zone| zone.view(client, at)) {
            View::Overlay => self.inside.take(client),
            View::Outside => self.outside.take(client),
        }
    }

    /// The answer to a request that got this reply.
    async fn answer(&self, mut reply: Reply, request: &[u8], asked: Asked) -> Option<Vec<u8>> {
        if reply == Reply::Later {
            let mut complete = self.complete.clone();
            if let Some(_place) = self.waiting.take(asked.client) {
                let _ = timeout(PATIENCE, complete.wait_for(|complete| *complete)).await;
            }
            reply = self.reply(request, asked);
        }
        if reply == Reply::Forward {
            let own = self.own.borrow().clone();
            let forwarded = self.forwarder.ask(request, asked.client, asked.transport, &own).await;
            reply = forwarded.map_or(Reply::Later, Reply::Send);
        }
        if reply == Reply::Later {
            reply = names::failure(request);
        }
        match reply {
            Reply::Send(answer) => Some(answer),
            Reply::Forward | Reply::Later | Reply::Silence => None,
        }
    }
}

async fn serve_datagrams(at: IpAddr, socket: Rc<UdpSocket>, shared: Rc<Shared>) {
    // The largest request that makes sense, and a byte more to know a larger one by.
    let mut buffer = [0; names::MAX_DATAGRAM as usize + 1];
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
            let asked = Asked { client: client.ip(), at, transport: Transport::Udp, turn };
            match shared.reply(&request, asked) {
                // A full buffer or an unreachable client: it will ask again.
                Reply::Send(answer) => _ = socket.try_send_to(&answer, client),
                Reply::Silence => {}
                reply @ (Reply::Forward | Reply::Later) => {
                    let (socket, shared) = (socket.clone(), shared.clone());
                    tokio::task::spawn_local(async move {
                        if let Some(answer) = shared.answer(reply, &request, asked).await {
                            let _ = socket.send_to(&answer, client).await;
                        }
                    });
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn serve_connections(at: IpAddr, listener: TcpListener, shared: Rc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let client = client.ip();
                let Some(place) = shared.place(client, at) else { continue };
                let shared = shared.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve_connection(stream, client, at, &shared).await {
                        tracing::debug!(%client, %error, "a DNS connection broke off");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept DNS connections");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Requests and answers, each after its length in two bytes (RFC 1035 §4.2.2), until the client ends it, is
/// silent for too long or sends what is no request.
async fn serve_connection(
    mut stream: TcpStream,
    client: IpAddr,
    at: IpAddr,
    shared: &Shared,
) -> io::Result<()> {
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
        let asked = Asked { client, at, transport: Transport::Tcp, turn };
        let reply = shared.reply(&request, asked);
        let Some(answer) = shared.answer(reply, &request, asked).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?.to_be_bytes();
        let sent = timeout(IDLE, async { stream.write_all(&[&length[..], &answer].concat()).await });
        match sent.await {
            Ok(sent) => sent?,
            // A client that does not read.
            Err(_) => return Ok(()),
        }
    }
}
