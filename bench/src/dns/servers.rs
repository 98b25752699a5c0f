//! The servers: Loden's daemon, CoreDNS and dnsmasq, with the same names, each on an address of its own of one
//! host. Used by the parts of the group.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use loden_tests::{Daemon, Etcd, Host, Ns, Process};

use super::found::Who;
use super::names::{self, REVERSE_ZONE, SKYDNS, ZONE};
use super::question::{self, Question, Said};
use crate::peers;

const PORT: u16 = 53;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one try of [`ask`] waits.
const A_TRY: Duration = Duration::from_millis(200);
/// Names outside of the zone, which dnsmasq answers itself: the server that others forward to.
const ELSEWHERE: &str = "example.com";
const ELSEWHERE_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

/// A server that runs. It is killed with the value.
pub(crate) struct Server {
    pub(crate) who: Who,
    pub(crate) address: SocketAddr,
    program: Program,
}

enum Program {
    Loden(Daemon),
    Other(Arc<Process>),
}

/// Where servers are started.
pub(crate) struct Place<'a> {
    /// The host.
    pub(crate) host: &'a Host,
    /// A folder for their files, which the host sees.
    pub(crate) folder: &'a Path,
    /// The CPU that each of them has, if it is not to have all: by its start, so that CoreDNS takes no more
    /// threads than that.
    pub(crate) cpu: Option<usize>,
}

/// For names outside of the zone.
pub(crate) fn elsewhere(count: u32) -> Vec<Question> {
    let name = |number| format!("www{number}.{ELSEWHERE}");
    (0..count).map(|number| Question::address(&name(number), Said::Address(ELSEWHERE_ADDRESS))).collect()
}

impl Server {
    /// Loden's daemon, which answers at `address`, of the host, because of these flags or by itself.
    pub(crate) fn loden(place: &Place<'_>, address: Ipv4Addr, flags: &[&str]) -> Self {
        let daemon = place.host.daemon_under(&place.wrapper(), flags).ready();
        Self { who: Who::Loden, address: (address, PORT).into(), program: Program::Loden(daemon) }
    }

    /// CoreDNS with so many names as zone files, which forwards all else to `upstream`.
    pub(crate) fn coredns(
        place: &Place<'_>,
        address: Ipv4Addr,
        count: u32,
        upstream: Option<Ipv4Addr>,
    ) -> Result<Option<Self>> {
        let mut blocks = String::new();
        for (zone, text) in [ZONE, REVERSE_ZONE].into_iter().zip(names::zone_files(count)) {
            let path = place.write(&format!("{zone}.zone"), &text)?;
            blocks += &format!("{zone} {{\n bind {address}\n file {}\n}}\n", path.display());
        }
        if let Some(upstream) = upstream {
            blocks += &format!(". {{\n bind {address}\n forward . {upstream}\n}}\n");
        }
        Self::coredns_with(place, Who::CoreDns, address, &blocks)
    }

    /// CoreDNS that asks etcd. Without its plugin `cache`, with which a change would be told when what is
    /// remembered has become too old.
    pub(crate) fn coredns_with_etcd(
        place: &Place<'_>,
        address: Ipv4Addr,
        etcd: &Etcd,
    ) -> Result<Option<Self>> {
        let url = etcd.url();
        let block = format!(
            "{ZONE} {REVERSE_ZONE} {{\n bind {address}\n etcd {{\n  path {SKYDNS}\n  endpoint {url}\n }}\n}}\n"
        );
        Self::coredns_with(place, Who::CoreDnsEtcd, address, &block)
    }

    fn coredns_with(place: &Place<'_>, who: Who, address: Ipv4Addr, config: &str) -> Result<Option<Self>> {
        let Some(program) = peers::COREDNS.find() else { return Ok(None) };
        let config = place.write(&format!("{}.Corefile", who.name().replace(' ', "-")), config)?;
        let argv = [program.display().to_string(), "-conf".into(), config.display().to_string()];
        Ok(Some(place.start(who, address, argv.into())))
    }

    /// dnsmasq with so many names as a hosts file. It answers for names elsewhere as well.
    pub(crate) fn dnsmasq(place: &Place<'_>, address: Ipv4Addr, count: u32) -> Result<Option<Self>> {
        let Some(program) = peers::DNSMASQ.find() else { return Ok(None) };
        let hosts = place.write("hosts", &names::hosts_file(count))?;
        let argv = [
            program.display().to_string(),
            "--conf-file=/dev/null".into(),
            "--keep-in-foreground".into(),
            "--no-resolv".into(),
            "--no-hosts".into(),
            "--user=root".into(),
            "--log-facility=-".into(),
            "--pid-file=".into(),
            "--bind-interfaces".into(),
            format!("--listen-address={address}"),
            format!("--addn-hosts={}", hosts.display()),
            format!("--local=/{ZONE}/"),
            format!("--local=/{REVERSE_ZONE}/"),
            format!("--local-ttl={}", names::TTL),
            format!("--address=/{ELSEWHERE}/{ELSEWHERE_ADDRESS}"),
        ];
        Ok(Some(place.start(Who::Dnsmasq, address, argv.into())))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        match &self.program {
            Program::Loden(daemon) => daemon.pid(),
            Program::Other(process) => process.pid(),
        }
    }

    /// Waits until it answers these questions, asked from a namespace by an address there.
    pub(crate) fn wait_until_right(&self, ns: &Ns, client: IpAddr, questions: &[&Question]) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        for question in questions {
            loop {
                let said = ns.within(|| ask(client, self.address, question, A_TRY));
                match said {
                    Ok(said) if said == *question.expected() => break,
                    said if Instant::now() > end => {
                        let said = said.map_or_else(|e| format!("{e:#}"), |said| format!("{said:?}"));
                        let who = self.who.name();
                        bail!("{who} says {said} after {PATIENCE:?}; its log:\n{}", self.log_tail());
                    }
                    _ => sleep(Duration::from_millis(20)),
                }
            }
        }
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = match &self.program {
            Program::Loden(daemon) => daemon.log(),
            Program::Other(process) => process.log(),
        };
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        match &self.program {
            Program::Loden(daemon) => daemon.kill9(),
            Program::Other(process) => process.kill9(),
        }
    }
}

impl Place<'_> {
    fn wrapper(&self) -> Vec<String> {
        self.cpu.map(|cpu| vec!["taskset".into(), "-c".into(), cpu.to_string()]).unwrap_or_default()
    }

    fn start(&self, who: Who, address: Ipv4Addr, argv: Vec<String>) -> Server {
        let argv = [self.wrapper(), argv].concat();
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let name = who.name().replace(' ', "-");
        let process = self.host.spawn(&name, &argv);
        Server { who, address: (address, PORT).into(), program: Program::Other(process) }
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

/// Asks once; called where the client is.
pub(crate) fn ask(client: IpAddr, server: SocketAddr, question: &Question, within: Duration) -> Result<Said> {
    let socket = UdpSocket::bind((client, 0)).with_context(|| format!("a socket at {client}"))?;
    socket.connect(server).context("connect a UDP socket")?;
    socket.set_read_timeout(Some(within))?;
    let (mut message, mut buffer) = (Vec::new(), [0; 4096]);
    question.write(1, &mut message);
    socket.send(&message).context("send")?;
    let length = socket.recv(&mut buffer).context("receive")?;
    ensure!(question::id(&buffer[..length])? == 1, "the answer to another question");
    question.read(&buffer[..length])
}
