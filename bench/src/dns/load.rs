//! The load: questions from several clients to one server, in two ways, and every answer is judged. One thread
//! of this process, on a CPU of its own, for the same reasons as in `data/traffic.rs`. Used by `serve.rs`.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use loden_tests::Ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::question::{self, Question};
use crate::control::usage;
use crate::cpus;

/// Questions of one client under way at once while the server is saturated.
const DEPTH: usize = 8;
/// A saturated server that says nothing for so long does not work, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(5);
/// A timed answer that has not come by then is lost, and counts as so long: the server is too slow for the rate,
/// or has no room for the questions that come while others have its CPU.
const LOST: Duration = Duration::from_secs(1);
const LARGEST: usize = 4096;

/// By what questions come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Datagrams, from one socket a client.
    Udp,
    /// A connection a client, which is kept, and a question at a time on it.
    Tcp,
}

/// Who asks whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a> {
    /// Where the clients are.
    pub(crate) ns: &'a Ns,
    /// Their addresses.
    pub(crate) clients: &'a [Ipv4Addr],
    /// The server.
    pub(crate) server: SocketAddr,
    /// Its process.
    pub(crate) pid: u32,
}

/// What a saturated server does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// Answers.
    pub(crate) per_second: f64,
    /// Seconds of CPU of its process for one answer.
    pub(crate) cpu: f64,
}

/// Asks as fast as the server answers: each client's next question goes out when an answer has come.
pub(crate) fn saturate(
    path: &Path<'_>,
    questions: &[Question],
    transport: Transport,
    warm_up: Duration,
    window: Duration,
) -> Result<Rate> {
    on_client(path, || {
        let depth = if transport == Transport::Udp { DEPTH } else { 1 };
        let mut lines = Line::all(path, transport)?;
        let mut chance = Chance::new();
        let mut message = Vec::new();
        // What each line waits for: questions, by the lowest digits of their ids.
        let mut waiting = vec![[(0u16, 0usize); DEPTH]; lines.len()];
        let mut ask = |line: &mut Line, slot: &mut (u16, usize)| {
            *slot = (slot.0.wrapping_add(DEPTH as u16), chance.below(questions.len()));
            questions[slot.1].write(slot.0, &mut message);
            line.send(&message)
        };
        for (line, slots) in lines.iter_mut().zip(&mut waiting) {
            for (number, slot) in slots.iter_mut().enumerate().take(depth) {
                slot.0 = number as u16;
                ask(line, slot)?;
            }
        }
        let mut buffer = [0; LARGEST];
        let (mut answered, mut counted_from) = (0u64, None);
        let begin = Instant::now();
        let mut last = begin;
        loop {
            let before = answered;
            for (line, slots) in lines.iter_mut().zip(&mut waiting) {
                while let Some(length) = line.receive(&mut buffer)? {
                    let answer = &buffer[..length];
                    let id = question::id(answer)?;
                    let slot = &mut slots[usize::from(id) % DEPTH];
                    ensure!(slot.0 == id, "an answer to a question that is not under way");
                    questions[slot.1].judge(answer)?;
                    answered += 1;
                    ask(line, slot)?;
                }
            }
            let now = Instant::now();
            match counted_from {
                None if now - begin >= warm_up => {
                    counted_from = Some((now, answered, usage::cpu_seconds(path.pid)?));
                }
                Some((start, count, cpu)) if now - start >= window && answered > count => {
                    let cpu = usage::cpu_seconds(path.pid)? - cpu;
                    let count = (answered - count) as f64;
                    return Ok(Rate { per_second: count / (now - start).as_secs_f64(), cpu: cpu / count });
                }
                _ => {}
            }
            if answered > before {
                last = now;
            } else {
                ensure!(now - last < PATIENCE, "no answer for {PATIENCE:?}");
                wait(&lines)?;
            }
        }
    })
}

/// Asks so often a second, whether or not answers come, each client in its turn; how long each answer took,
/// in seconds, without those to the first tenth. One that is lost counts as [`LOST`].
pub(crate) fn at_rate(
    path: &Path<'_>,
    questions: &[Question],
    per_second: u32,
    window: Duration,
) -> Result<Vec<f64>> {
    on_client(path, || {
        let mut lines = Line::all(path, Transport::Udp)?;
        let mut chance = Chance::new();
        let total = (f64::from(per_second) * window.as_secs_f64()) as usize;
        // Ids tell questions apart.
        ensure!(total <= usize::from(u16::MAX), "{total} questions");
        let mut sent: Vec<(usize, Instant)> = Vec::with_capacity(total);
        let mut times = vec![None; total];
        let (mut message, mut buffer) = (Vec::new(), [0; LARGEST]);
        let (mut answered, begin) = (0, Instant::now());
        // Never asleep: to be woken takes longer than an answer.
        while answered < total {
            let now = Instant::now();
            let due = (now - begin).as_secs_f64() * f64::from(per_second);
            if sent.len() < total && sent.len() as f64 <= due {
                let (number, which) = (sent.len(), chance.below(questions.len()));
                questions[which].write(number as u16, &mut message);
                let client = number % lines.len();
                sent.push((which, Instant::now()));
                lines[client].send(&message)?;
            }
            for line in &mut lines {
                let Some(length) = line.receive(&mut buffer)? else { continue };
                let at = Instant::now();
                let answer = &buffer[..length];
                let number = usize::from(question::id(answer)?);
                let (which, from) = sent.get(number).context("an answer to no question")?;
                questions[*which].judge(answer)?;
                ensure!(times[number].is_none(), "a second answer to one question");
                times[number] = Some((at - *from).as_secs_f64());
                answered += 1;
            }
            if now - begin > window + LOST {
                ensure!(answered > 0, "none of {total} questions was answered");
                break;
            }
        }
        // As after a pause of the machine, in which no clock here stands still.
        ensure!(sent.len() == total, "only {} of {total} questions were asked in time", sent.len());
        let lost = LOST.as_secs_f64();
        let times = times.into_iter().skip(total / 10);
        Ok(times.map(|time| time.unwrap_or(lost).min(lost)).collect())
    })
}

/// Runs on a thread among the clients, on their CPU.
fn on_client<T: Send>(path: &Path<'_>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let work = || {
        let (client, _) = cpus::two()?;
        cpus::stay_on(client)?;
        work()
    };
    path.ns.within(work).with_context(|| format!("asking {}", path.server))
}

/// One client's socket.
enum Line {
    Datagrams(UdpSocket),
    /// With what has been read of the next answer.
    Connection(TcpStream, Vec<u8>),
}

impl Line {
    /// One for each client.
    fn all(path: &Path<'_>, transport: Transport) -> Result<Vec<Self>> {
        path.clients.iter().map(|client| Self::of(*client, path.server, transport)).collect()
    }

    fn of(client: Ipv4Addr, server: SocketAddr, transport: Transport) -> Result<Self> {
        Ok(match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind((client, 0)).with_context(|| format!("a socket at {client}"))?;
                socket.connect(server).context("connect a UDP socket")?;
                socket.set_nonblocking(true)?;
                Self::Datagrams(socket)
            }
            Transport::Tcp => {
                let stream = connect(client, server).with_context(|| format!("connect from {client}"))?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Self::Connection(stream, Vec::new())
            }
        })
    }

    fn send(&mut self, message: &[u8]) -> Result<()> {
        match self {
            Self::Datagrams(socket) => _ = socket.send(message).context("send")?,
            Self::Connection(stream, _) => {
                let length = u16::try_from(message.len())?.to_be_bytes();
                stream.write_all(&[&length[..], message].concat()).context("send")?;
            }
        }
        Ok(())
    }

    /// The next answer's length, if one is there.
    fn receive(&mut self, buffer: &mut [u8; LARGEST]) -> Result<Option<usize>> {
        let read = match self {
            Self::Datagrams(socket) => socket.recv(buffer),
            Self::Connection(stream, read) => {
                stream.read(buffer).inspect(|count| read.extend_from_slice(&buffer[..*count]))
            }
        };
        let count = match read {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("receive"),
        };
        let Self::Connection(_, read) = self else { return Ok(Some(count)) };
        ensure!(count > 0, "the server has ended the connection");
        let Some((length, rest)) = read.split_first_chunk() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        let Some(answer) = rest.get(..length) else { return Ok(None) };
        buffer.get_mut(..length).context("a large answer")?.copy_from_slice(answer);
        read.drain(..2 + length);
        Ok(Some(length))
    }
}

/// A connection from an address, which the standard library cannot make.
fn connect(client: Ipv4Addr, server: SocketAddr) -> Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketAddrV4, SocketType, bind, connect, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddrV4::new(client, 0))?;
    connect(&socket, &server)?;
    Ok(socket.into())
}

/// Sleeps until there is something to read, or for a moment.
fn wait(lines: &[Line]) -> Result<()> {
    let mut ready: Vec<PollFd<'_>> = lines
        .iter()
        .map(|line| match line {
            Line::Datagrams(socket) => PollFd::new(socket, PollFlags::IN),
            Line::Connection(stream, _) => PollFd::new(stream, PollFlags::IN),
        })
        .collect();
    poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).context("poll")?;
    Ok(())
}

/// Which name is asked for: none in order, and the same for all servers.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        Self(0x5eed)
    }

    /// A linear congruential generator's higher bits (Knuth's MMIX).
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % count
    }
}
