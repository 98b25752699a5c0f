//! Part `distribution`: how soon a name that comes or goes on one host is answered so on others. Their servers
//! are asked again and again, at [`INTERVAL`].

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use loden_tests::{Etcd, Host, Lab, Ns};

use super::found::{Found, Who};
use super::names::{self, Change, Store, ZONE};
use super::question::{self, Question, Said};
use super::servers::{Place, Server};
use crate::control::fleet;
use crate::quiet;
use crate::report::{Row, percentile};

/// Names that are there meanwhile.
const FEW: u32 = 3;
const MANY: u32 = 10_000;
/// Names in a round that come and go, one after the other: by `loden name`, which is a process each, and as
/// records.
const BY_COMMAND: u32 = 100;
const RECORDS: u32 = 200;
/// From one question to the next to a server: what times are read to.
const INTERVAL: Duration = Duration::from_micros(200);
/// A change that is not known by then is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a name that comes stands for: a machine beside the overlay, and a container of the fleet's first host.
const BESIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const LAST: u32 = 200;
/// Loden's, on every host.
const SHARED: Ipv4Addr = Ipv4Addr::new(169, 254, 53, 53);
/// CoreDNS's, beside Loden on the same host.
const COREDNS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);
/// What is promised of a name's way to every host, in milliseconds.
const BUDGET: f64 = 50.0;

/// A server that is asked again and again.
struct Watched {
    ns: Arc<Ns>,
    server: SocketAddr,
}

pub(super) fn measure(lab: &Lab, etcd: &Etcd, store: &mut Store, rounds: u32) -> Result<Vec<Row>> {
    let hosts: [Host; 3] = lab.hosts();
    let place = |host| Place { host, folder: lab.folder(), cpu: None };
    for host in &hosts {
        host.remove_foreign();
    }
    let [a, b, c] = &hosts;
    let loden = hosts.each_ref().map(|host| Server::loden(&place(host), SHARED, &[]));
    let coredns = Server::coredns_with_etcd(&place(b), COREDNS, etcd)?;
    let watched = |host: &Host, server: &Server| Watched { ns: host.ns(), server: server.address };
    let others = [watched(b, &loden[1]), watched(c, &loden[2])];
    let beside_loden = coredns.as_ref().map(|coredns| [watched(b, coredns)]);
    let mut rows = Vec::new();
    for count in [FEW, MANY] {
        eprintln!("dns: {count} names");
        store.set(count)?;
        let known = names::forward(count);
        let known: Vec<&Question> = known.iter().take(1).chain(known.last()).collect();
        for (host, server) in [(b, Some(&loden[1])), (c, Some(&loden[2])), (b, coredns.as_ref())] {
            if let Some(server) = server {
                server.wait_until_right(&host.ns(), Ipv4Addr::UNSPECIFIED.into(), &known)?;
            }
        }
        let mut found = Found::default();
        for round in 0..rounds {
            eprintln!("dns: changes among {count} names, round {} of {rounds}", round + 1);
            quiet::wait()?;
            let mut took = |what: &str, who, times: &[Duration]| {
                let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
                let name = |number: &str| format!("{what} among {count}: {number}");
                found.push(&name("p50"), "ms", who, percentile(&times, 50.0));
                found.push(&name("p99"), "ms", who, percentile(&times, 99.0));
            };
            let (come, go) = by_command(a, &others)?;
            took("name added, on all hosts,", Who::Loden, &come);
            took("name removed, on all hosts,", Who::Loden, &go);
            // Who begins changes from round to round.
            for turn in 0..3 {
                let who = [Who::Loden, Who::CoreDnsEtcd, Who::Bare][(round + turn) as usize % 3];
                let (put, deleted) = match (who, &beside_loden) {
                    (Who::Loden, _) => by_record(store, &others[..1], who)?,
                    (Who::Bare, _) => bare_watch(store)?,
                    (_, Some(server)) => by_record(store, server, who)?,
                    (_, None) => continue,
                };
                took("record put", who, &put);
                took("record deleted", who, &deleted);
            }
        }
        for what in ["added", "removed"] {
            found.limit(&format!("name {what}, on all hosts, among {count}: p99"), BUDGET);
        }
        rows.extend(found.rows()?);
    }
    Ok(rows)
}

/// Times until a name had come, and until it was gone.
type Times = (Vec<Duration>, Vec<Duration>);

/// `loden name add` and `loden name remove` on a host, from before the command is started until all of these
/// answer so.
fn by_command(host: &Host, others: &[Watched]) -> Result<Times> {
    let (mut come, mut go) = (Vec::new(), Vec::new());
    for number in 0..BY_COMMAND {
        let name = format!("beside{number}");
        let [comes, goes] = comes_and_goes(&name, BESIDE);
        let address = BESIDE.to_string();
        let run = |arguments: &[&str]| {
            let start = Instant::now();
            let output = host.loden(arguments);
            ensure!(output.success(), "{}", output.describe());
            Ok(start)
        };
        come.push(until_all(others, &comes, || run(&["name", "add", &name, "--address", &address]))?);
        go.push(until_all(others, &goes, || run(&["name", "remove", &name]))?);
    }
    Ok((come, go))
}

/// Records of a container's name put into etcd and deleted, from before the request is sent until all of these
/// answer so.
fn by_record(store: &mut Store, others: &[Watched], who: Who) -> Result<Times> {
    let (mut come, mut go) = (Vec::new(), Vec::new());
    for number in 0..RECORDS {
        let [put, delete] = changes(number, who);
        let [comes, goes] = comes_and_goes(&passing(number), container());
        come.push(until_all(others, &comes, || store.change(put))?);
        go.push(until_all(others, &goes, || store.change(delete))?);
    }
    Ok((come, go))
}

/// The same records, as a client of etcd hears of them that only watches.
fn bare_watch(store: &mut Store) -> Result<Times> {
    let times = store.watch((0..RECORDS).flat_map(|number| changes(number, Who::Loden)))?;
    let (come, go) = times.chunks_exact(2).map(|pair| (pair[0], pair[1])).unzip();
    Ok((come, go))
}

/// A name's put and its deletion, as a server's record.
fn changes(number: u32, who: Who) -> [Change; 2] {
    let name = passing(number);
    let (key, value) = match who {
        Who::CoreDnsEtcd => names::skydns(&format!("{name}.{ZONE}"), container()),
        _ => names::record("veth-passing", 0, &name, container()),
    };
    [Change::Put(key.clone(), value), Change::Delete(key)]
}

/// The name that comes and goes as a record.
fn passing(number: u32) -> String {
    format!("passing{number}")
}

fn container() -> Ipv4Addr {
    Ipv4Addr::from(u32::from(fleet::address(0)) + LAST)
}

/// One question with the answer when the name has come, and with that when it has gone.
fn comes_and_goes(name: &str, address: Ipv4Addr) -> [Question; 2] {
    let name = format!("{name}.{ZONE}");
    [Said::Address(address), Said::NoName].map(|said| Question::address(&name, said))
}

/// Makes a change, which tells when it began, and asks all servers meanwhile; how long until the last of them
/// answers as expected.
fn until_all(
    servers: &[Watched],
    question: &Question,
    change: impl FnOnce() -> Result<Instant>,
) -> Result<Duration> {
    // All have been asked once when the change begins.
    let asked = Barrier::new(servers.len() + 1);
    thread::scope(|scope| {
        let told: Vec<_> =
            servers.iter().map(|server| scope.spawn(|| server.told(question, &asked))).collect();
        asked.wait();
        let began = change();
        let told = told
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let told: Vec<Instant> = told.collect::<Result<_>>()?;
        let last = told.into_iter().max().context("there is a server")?;
        Ok(last.saturating_duration_since(began?))
    })
}

impl Watched {
    /// Asks until the answer is the expected one; when that came.
    fn told(&self, question: &Question, asked: &Barrier) -> Result<Instant> {
        let socket = self.ns.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
        let mut asking = socket.map_err(anyhow::Error::from).and_then(|s| Asking::of(s, self.server));
        let first = asking.as_mut().map(|asking| asking.ask(question).map(|_| ()));
        asked.wait();
        if let Ok(first) = first {
            first?;
        }
        let mut asking = asking?;
        let end = Instant::now() + PATIENCE;
        loop {
            let sent = Instant::now();
            let (said, at) = asking.ask(question)?;
            if said == *question.expected() {
                return Ok(at);
            }
            // It is there, or it is not: anything else is wrong.
            let other = matches!(said, Said::NoName) || *question.expected() == Said::NoName;
            ensure!(other, "{} says {said:?}", self.server);
            if at > end {
                bail!("{} still says {said:?} after {PATIENCE:?}", self.server);
            }
            thread::sleep(INTERVAL.saturating_sub(sent.elapsed()));
        }
    }
}

/// A client's socket.
struct Asking {
    socket: UdpSocket,
    id: u16,
    message: Vec<u8>,
}

impl Asking {
    fn of(socket: UdpSocket, server: SocketAddr) -> Result<Self> {
        socket.connect(server).context("connect a UDP socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, id: 0, message: Vec::new() })
    }

    /// Asks once; what was said and when.
    fn ask(&mut self, question: &Question) -> Result<(Said, Instant)> {
        self.id = self.id.wrapping_add(1);
        question.write(self.id, &mut self.message);
        self.socket.send(&self.message).context("send")?;
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).context("receive")?;
        let at = Instant::now();
        let answer = &buffer[..length];
        ensure!(question::id(answer)? == self.id, "the answer to another question");
        Ok((question.read(answer)?, at))
    }
}
