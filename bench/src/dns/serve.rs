//! Part `serve`: how many questions a server answers, for how much CPU, and how fast at a rate that it can
//! bear. Servers on one CPU of a host, clients on another, with a pair of virtual Ethernet devices between them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::Result;
use loden_tests::{Etcd, Host, Lab};

use super::found::{Found, Who};
use super::load::{self, Path, Rate, Transport};
use super::names::{self, Store};
use super::question::Question;
use super::servers::{self, Place, Server};
use crate::control::fleet;
use crate::cpus;
use crate::data::underlay::{NIC, Underlay};
use crate::quiet;
use crate::report::{Row, percentile};

/// Names. Few, as of a small cluster, and many.
const FEW: u32 = 3;
const MANY: u32 = 10_000;
/// Clients: hosts of the fleet, so that Loden tells them everything. It answers clients in turns.
const CLIENTS: u32 = 8;
const WARM_UP: Duration = Duration::from_millis(200);
const WINDOW: Duration = Duration::from_millis(800);
/// Questions a second, of all clients together, while answers are timed.
const RATE: u32 = 2000;
const TIMED: Duration = Duration::from_millis(1500);
/// The last numbers of the servers' addresses on the underlay; 1 is the host's own, and Loden's.
const COREDNS: u8 = 11;
const DNSMASQ: u8 = 12;
const COREDNS_WITH_ETCD: u8 = 13;

/// The two hosts of the part.
struct Stage<'a> {
    etcd: &'a Etcd,
    lab: &'a Lab,
    server: Host,
    client: Host,
    underlay: Underlay,
    clients: Vec<Ipv4Addr>,
    rounds: u32,
}

/// Questions of one kind.
struct Asked {
    name: &'static str,
    questions: Vec<Question>,
    /// Who is asked.
    whom: &'static [Who],
}

/// CoreDNS with etcd is not timed: etcd would wait for the CPU of the client, which never sleeps then.
const SERVERS: &[Who] = &[Who::Loden, Who::CoreDns, Who::Dnsmasq, Who::CoreDnsEtcd];
const IN_MEMORY: &[Who] = &[Who::Loden, Who::CoreDns, Who::Dnsmasq];
/// dnsmasq ends a connection after a hundred questions.
const KEEP_CONNECTIONS: &[Who] = &[Who::Loden, Who::CoreDns];

pub(super) fn measure(lab: &Lab, etcd: &Etcd, store: &mut Store, rounds: u32) -> Result<Vec<Row>> {
    let stage = Stage::new(lab, etcd, rounds);
    let mut rows = Vec::new();
    for count in [FEW, MANY] {
        eprintln!("dns: {count} names");
        store.set(count)?;
        let mut found = Found::default();
        stage.with_names(count, &mut found)?;
        rows.extend(found.rows()?);
    }
    Ok(rows)
}

impl<'a> Stage<'a> {
    fn new(lab: &'a Lab, etcd: &'a Etcd, rounds: u32) -> Self {
        let [server, client] = ["server", "client"].map(|name| lab.host(name));
        for host in [&server, &client] {
            host.remove_foreign();
        }
        let underlay = Underlay::between([server.clone(), client.clone()], 1);
        let clients: Vec<Ipv4Addr> = (0..CLIENTS).map(fleet::public).collect();
        for address in &clients {
            client.ip(&format!("addr add {address}/32 dev {NIC}"));
            server.ip(&format!("route add {address} via {} dev {NIC}", underlay.address(1)));
        }
        for last in [COREDNS, DNSMASQ, COREDNS_WITH_ETCD] {
            server.ip(&format!("addr add {}/24 dev {NIC}", at(&underlay, last)));
        }
        Self { etcd, lab, server, client, underlay, clients, rounds }
    }

    fn with_names(&self, count: u32, found: &mut Found) -> Result<()> {
        let servers = self.start(count)?;
        let (forward, reverse) = (names::forward(count), names::reverse(count));
        let ends = |questions: &'_ [Question]| [0, questions.len() - 1].map(|at| questions[at].clone());
        let check = [ends(&forward), ends(&reverse)].concat();
        let check: Vec<&Question> = check.iter().collect();
        for server in &servers {
            server.wait_until_right(&self.client.ns(), IpAddr::V4(self.clients[0]), &check)?;
        }
        let mut all = vec![Asked { name: "A", questions: forward, whom: SERVERS }];
        if count == MANY {
            all.push(Asked { name: "PTR", questions: reverse, whom: SERVERS });
            all.push(Asked { name: "no such name", questions: names::nobody(count), whom: SERVERS });
            if servers.iter().any(|server| server.who == Who::Dnsmasq) {
                let questions = servers::elsewhere(count);
                all.push(Asked { name: "forwarded", questions, whom: IN_MEMORY });
            }
        }
        for round in 0..self.rounds as usize {
            for asked in &all {
                eprintln!("dns: {count} names, {}, round {} of {}", asked.name, round + 1, self.rounds);
                quiet::wait()?;
                for turn in 0..servers.len() {
                    // Who begins changes from round to round.
                    self.ask(&servers[(round + turn) % servers.len()], asked, count, found)?;
                }
            }
        }
        Ok(())
    }

    fn start(&self, count: u32) -> Result<Vec<Server>> {
        let (_, cpu) = cpus::two()?;
        let place = Place { host: &self.server, folder: self.lab.folder(), cpu: Some(cpu) };
        let [coredns, dnsmasq, with_etcd] =
            [COREDNS, DNSMASQ, COREDNS_WITH_ETCD].map(|last| at(&self.underlay, last));
        let other = Server::dnsmasq(&place, dnsmasq, count)?;
        let upstream = other.as_ref().map(|_| dnsmasq);
        let iface = format!("--iface={NIC}");
        let to_dnsmasq = upstream.map(|upstream| format!("--dns-upstream={upstream}"));
        let flags: Vec<&str> =
            [Some(&iface), to_dnsmasq.as_ref()].into_iter().flatten().map(String::as_str).collect();
        let mut servers = vec![Server::loden(&place, at(&self.underlay, 1), &flags)];
        servers.extend(Server::coredns(&place, coredns, count, upstream)?);
        servers.extend(other);
        if count == MANY {
            servers.extend(Server::coredns_with_etcd(&place, with_etcd, self.etcd)?);
        }
        Ok(servers)
    }

    fn ask(&self, server: &Server, asked: &Asked, count: u32, found: &mut Found) -> Result<()> {
        let who = server.who;
        if !asked.whom.contains(&who) {
            return Ok(());
        }
        let ns = self.client.ns();
        let path = Path { ns: &ns, clients: &self.clients, server: server.address, pid: server.pid() };
        let name = |what: &str| format!("{count} names, {}: {what}", asked.name);
        let saturate = |transport| load::saturate(&path, &asked.questions, transport, WARM_UP, WINDOW);
        let mut push = |what: &str, rate: Rate| {
            found.push(&name(&format!("{what}answers")), "k/s", who, rate.per_second / 1e3);
            found.push(&name(&format!("{what}CPU per answer")), "us", who, rate.cpu * 1e6);
        };
        push("", saturate(Transport::Udp)?);
        if asked.name == "A" && count == MANY && KEEP_CONNECTIONS.contains(&who) {
            push("TCP, ", saturate(Transport::Tcp)?);
        }
        if IN_MEMORY.contains(&who) {
            let times = load::at_rate(&path, &asked.questions, RATE, TIMED)?;
            found.push(&name("p50"), "us", who, percentile(&times, 50.0) * 1e6);
            found.push(&name("p99"), "us", who, percentile(&times, 99.0) * 1e6);
        }
        Ok(())
    }
}

/// An address of the server's host.
fn at(underlay: &Underlay, last: u8) -> Ipv4Addr {
    match underlay.address(0) {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            Ipv4Addr::new(a, b, c, last)
        }
        IpAddr::V6(_) => unreachable!("the underlay is IPv4's"),
    }
}
