//! The load: a client and a server thread in two namespaces, pinned, that count what arrives.
//! Threads of this process rather than programs of their own: what is measured is the time between
//! two looks at a counter and at the CPUs, with neither start nor end in it, and nothing is left
//! when this process dies. Used by `mod.rs` and `gains.rs`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use loden_tests::Ns;
use rustix::process::Pid;
use rustix::thread::gettid;

use super::{cpu, sockets};
use crate::cpus;

/// Within this time each flow must have been used once.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of one write of a stream, as iperf3's.
const CHUNK: usize = 128 << 10;
/// A reader that takes more at once than the writer gives.
const BUFFER: usize = 4 * CHUNK;

/// Files and sockets that this process has besides those of one end.
const OTHER_DESCRIPTORS: u64 = 1000;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// One TCP connection, as fast as it can; counts bytes.
    Stream,
    /// A byte there and one back, by so many TCP connections in turn; counts answers.
    RoundTrips { flows: usize },
    /// TCP connections one after the other: a byte there, one back, the server closes first.
    Connections,
    /// UDP, as fast as the sender can, from so many ports in turn; counts what arrives.
    Datagrams { size: usize, flows: usize },
}

/// For how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Before anything is counted: slow start is over, caches are warm.
    pub(crate) warm_up: Duration,
    /// While it is counted.
    pub(crate) window: Duration,
}

/// Where it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a> {
    pub(crate) client: &'a Ns,
    pub(crate) server: &'a Ns,
    pub(crate) address: IpAddr,
}

/// What one measurement found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Of what the load counts.
    pub(crate) per_second: f64,
    /// Seconds that all CPUs were busy for one of them.
    pub(crate) cpu: f64,
    /// Seconds of the two ends and the kernel's softirq threads for one of them.
    pub(crate) own_cpu: f64,
}

/// What the threads of one measurement share.
#[derive(Debug, Default)]
struct Shared {
    counted: AtomicU64,
    stop: AtomicBool,
    /// The client has ended: only now does the server stop accepting, or the client would wait for ever
    /// for an answer to a connection that the kernel took for the server.
    left: AtomicBool,
    /// Those whose CPU time is counted.
    threads: Mutex<Vec<Pid>>,
}

/// Ends the other threads when one of them ends, for whatever reason.
struct StopsAll<'a>(&'a Shared);

impl Drop for StopsAll<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Tells that the client has ended.
struct Leaves<'a>(&'a Shared);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.left.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, what: usize) {
        self.counted.fetch_add(what as u64, Ordering::Relaxed);
    }

    /// Runs while the other threads work: waits until at least `least` is counted, then looks twice.
    fn observe(&self, timing: Timing, least: usize) -> Result<Cost> {
        let _stops = StopsAll(self);
        thread::sleep(timing.warm_up);
        self.wait_for(least as u64)?;
        let mut threads = cpu::softirq_threads();
        threads.extend_from_slice(&self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let look = || -> Result<_> {
            let counted = self.counted.load(Ordering::Relaxed);
            Ok((counted, cpu::busy()?, cpu::of_threads(&threads)?, Instant::now()))
        };
        let (counted, busy, own, start) = look()?;
        thread::sleep(timing.window);
        // On a busy machine a short window may be somebody else's.
        self.wait_for(counted + 1)?;
        let (counted_after, busy_after, own_after, end) = look()?;
        let counted = (counted_after - counted) as f64;
        Ok(Cost {
            per_second: counted / (end - start).as_secs_f64(),
            cpu: (busy_after - busy) / counted,
            own_cpu: (own_after - own) / counted,
        })
    }

    fn wait_for(&self, count: u64) -> Result<()> {
        let began = Instant::now();
        while self.counted.load(Ordering::Relaxed) < count {
            if self.stopped() || began.elapsed() > PATIENCE {
                bail!("nothing or too little arrived within {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Keeps the calling thread on a CPU and counts its time.
    fn join_in(&self, cpu: usize) -> Result<()> {
        cpus::stay_on(cpu)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(gettid());
        Ok(())
    }
}

impl Load {
    /// Measures once.
    pub(crate) fn measure(self, path: &Path<'_>, timing: Timing) -> Result<Cost> {
        let shared = &Shared::default();
        let (client_cpu, server_cpu) = self.cpus()?;
        sockets::allow_descriptors(self.flows() as u64 + OTHER_DESCRIPTORS)?;
        // Bound before the client starts, so that it need not try again.
        let server = path.server.within(|| Server::new(self, path.address))?;
        thread::scope(|scope| {
            // The server's socket is closed with it, so that no client waits for one that failed.
            let serving = scope.spawn(move || {
                let _stops = StopsAll(shared);
                shared.join_in(server_cpu)?;
                server.run(self, shared)
            });
            let calling = scope.spawn(|| {
                let (_stops, _leaves) = (StopsAll(shared), Leaves(shared));
                path.client.within(|| {
                    shared.join_in(client_cpu)?;
                    self.call(path.address, shared)
                })
            });
            let cost = shared.observe(timing, self.flows());
            // Their errors say more than that nothing arrived.
            joined(calling).and(joined(serving)).and(cost)
        })
        .with_context(|| format!("{self:?} to {}", path.address))
    }

    fn flows(self) -> usize {
        match self {
            Self::RoundTrips { flows } | Self::Datagrams { flows, .. } => flows,
            Self::Stream | Self::Connections => 1,
        }
    }

    /// The client's and the server's CPU: two where both have work at a time; one where they wait for
    /// each other, since waking the other CPU would take longer than everything else.
    fn cpus(self) -> Result<(usize, usize)> {
        let (one, other) = cpus::two()?;
        Ok(match self {
            Self::Stream | Self::Datagrams { .. } => (one, other),
            Self::RoundTrips { .. } | Self::Connections => (other, other),
        })
    }

    fn call(self, address: IpAddr, shared: &Shared) -> Result<()> {
        match self {
            Self::Stream => {
                let mut stream = sockets::connect(address)?;
                let chunk = vec![0x5a; CHUNK];
                while !shared.stopped() {
                    stream.write_all(&chunk).context("send")?;
                }
            }
            Self::RoundTrips { flows } => {
                sockets::own_descriptors()?;
                let connect = |_| {
                    let stream = sockets::connect(address)?;
                    stream.set_read_timeout(Some(PATIENCE)).context("set SO_RCVTIMEO")?;
                    Ok(stream)
                };
                let mut streams = (0..flows).map(connect).collect::<Result<Vec<TcpStream>>>()?;
                while !shared.stopped() {
                    for stream in &mut streams {
                        exchange(stream, shared)?;
                    }
                }
            }
            Self::Connections => {
                while !shared.stopped() {
                    let mut stream = sockets::connect(address)?;
                    exchange(&mut stream, shared)?;
                    // The server closes first, and keeps the closed connection.
                    let _ = stream.read(&mut [0]).context("wait for the end")?;
                }
            }
            Self::Datagrams { size, flows } => {
                sockets::own_descriptors()?;
                let sockets = (0..flows).map(|_| sockets::send(address)).collect::<Result<Vec<_>>>()?;
                let datagram = vec![0x5a; size];
                while !shared.stopped() {
                    for socket in &sockets {
                        socket.send(&datagram).context("send")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A byte there and one back.
fn exchange(stream: &mut TcpStream, shared: &Shared) -> Result<()> {
    stream.write_all(&[1]).context("send")?;
    stream.read_exact(&mut [0]).context("receive")?;
    shared.count(1);
    Ok(())
}

enum Server {
    Tcp(TcpListener),
    Udp(std::net::UdpSocket),
}

impl Server {
    fn new(load: Load, address: IpAddr) -> Result<Self> {
        Ok(match load {
            Load::Datagrams { .. } => Self::Udp(sockets::receive(address)?),
            _ => Self::Tcp(sockets::listen(address)?),
        })
    }

    fn run(&self, load: Load, shared: &Shared) -> Result<()> {
        match self {
            Self::Udp(socket) => {
                let mut buffer = [0; 2048];
                while !shared.stopped() {
                    match socket.recv(&mut buffer) {
                        Ok(_) => shared.count(1),
                        Err(e) if is_glance(&e) => {}
                        Err(e) => return Err(e).context("receive"),
                    }
                }
                Ok(())
            }
            Self::Tcp(listener) => match load {
                Load::Stream => accept(listener, shared)?.map_or(Ok(()), |stream| drain(stream, shared)),
                Load::Connections => {
                    while let Some(mut stream) = accept(listener, shared)? {
                        answer(&mut stream)?;
                    }
                    Ok(())
                }
                _ => answer_in_turn(listener, load.flows(), shared),
            },
        }
    }
}

fn drain(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).context("receive")? {
            0 => return Ok(()),
            count => shared.count(count),
        }
    }
}

/// The client uses its connections in the order in which it made them, so nothing need be asked which
/// of them has something to read.
fn answer_in_turn(listener: &TcpListener, flows: usize, shared: &Shared) -> Result<()> {
    let mut streams = Vec::with_capacity(flows);
    while streams.len() < flows {
        let Some(stream) = accept(listener, shared)? else { return Ok(()) };
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        streams.push(stream);
    }
    loop {
        for stream in &mut streams {
            if !answer(stream)? {
                return Ok(());
            }
        }
    }
}

/// A byte back for one; false at the end of the connection.
fn answer(stream: &mut TcpStream) -> Result<bool> {
    if stream.read(&mut [0]).context("receive")? == 0 {
        return Ok(false);
    }
    stream.write_all(&[1]).context("send")?;
    Ok(true)
}

/// The next connection; `None` when the client has ended.
fn accept(listener: &TcpListener, shared: &Shared) -> Result<Option<TcpStream>> {
    while !shared.left.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                // The listener's, inherited.
                stream.set_read_timeout(None).context("set SO_RCVTIMEO")?;
                return Ok(Some(stream));
            }
            Err(e) if is_glance(&e) => {}
            Err(e) => return Err(e).context("accept"),
        }
    }
    Ok(None)
}

fn is_glance(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn joined(handle: thread::ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
