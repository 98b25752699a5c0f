//! `loden doctor`: compares what different parts of the overlay say of the same thing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use loden_core::names::{View, reverse_name};
use loden_proto::Subnet;
use loden_proto::dns_name::DnsName;
use loden_proto::status::{EndpointStatus, Endpoints, NameStatus, Names, Request, Status};
use loden_proto::subnet_env::SubnetEnv;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;

use super::daemon::PlaceArgs;
use super::output::{duration, print, print_json, table};
use super::question::{Answer, ask};
use crate::clock;
use crate::dns::ask::{self, RecordType};

/// Compare what different parts of the overlay say of the same thing.
#[derive(Debug, Subcommand)]
pub(super) enum DoctorCommand {
    /// Names: what every host's DNS server answers, forward and reverse, and what containers call themselves
    #[command(
        after_help = "It asks the DNS server of every host at its underlay address, and this host's at the address that\ncontainers ask, for each name's addresses and each address's name, and compares the answers with what this\nhost's daemon knows. A name that has just come or gone may differ for a second or two; ask again.\n\nOf this host's containers, as root, it compares the host name inside with the name as well: what Hadoop and\nothers announce is the former. Column OUTSIDE is what clients outside of the overlay are told;\nevery host is asked for that as well.\n\nExit code 0: all agree; 1: something does not, or a host did not answer."
    )]
    Dns(DnsArgs),
}

#[derive(Debug, Args)]
pub(super) struct DnsArgs {
    /// This name alone, with or without the zone
    #[arg(value_name = "NAME")]
    name: Option<DnsName>,
    /// Print everything as JSON with stable names
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What was found; `loden doctor dns --json`.
#[derive(Debug, Default, Serialize)]
struct Findings {
    zone: String,
    /// What does not agree, and what to do.
    problems: Vec<String>,
    /// What could not be looked at.
    notes: Vec<String>,
    names: Vec<NameFinding>,
    servers: Vec<Server>,
}

#[derive(Debug, Serialize)]
struct NameFinding {
    name: String,
    addresses: Vec<IpAddr>,
    outside_addresses: Vec<IpAddr>,
    hosts: Vec<String>,
    since_unix_seconds: u64,
    /// How many servers say the same as this host's daemon, of how many that answered.
    agreeing: usize,
    answering: usize,
    /// The host name inside, where it could be looked at.
    hostname: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Server {
    host: String,
    address: IpAddr,
    /// Of its state of the zone; each host counts for itself.
    serial: Option<u32>,
    milliseconds: Option<u64>,
    error: Option<String>,
}

/// A question that every server is asked, and the answers that are right.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    /// Whose finding it belongs to.
    about: String,
    asked: String,
    kind: RecordType,
    view: View,
    /// All of these, or, of an address's names, one of them.
    expected: Vec<String>,
}

impl Question {
    fn is_right(&self, answers: &[String]) -> bool {
        match self.kind {
            RecordType::PTR if !self.expected.is_empty() => {
                matches!(answers, [one] if self.expected.contains(one))
            }
            _ => answers == self.expected,
        }
    }
}

pub(super) async fn run(command: DoctorCommand) -> anyhow::Result<()> {
    let DoctorCommand::Dns(args) = command;
    let run_dir = args.place.run_dir();
    let names: Names = asked(&run_dir, Request::Names)?;
    let status: Status = asked(&run_dir, Request::Status)?;
    let endpoints: Endpoints = asked(&run_dir, Request::Endpoints)?;
    if names.zone.is_empty() {
        bail!(
            "no names are served: there is no network config yet, or its member DNS is false (loden config show)"
        );
    }
    let zone: DnsName = names.zone.parse()?;
    let wanted = args.name.map(|name| match name.relative_to(&zone) {
        Some(_) => name.to_string(),
        None => format!("{name}.{zone}"),
    });
    let networks = status.config.as_ref().map(|c| c.networks.clone()).unwrap_or_default();
    let (mut found, questions) = compile(&names, wanted.as_deref(), &networks);
    let at = std::fs::read_to_string(args.place.subnet_file()).ok().and_then(|t| SubnetEnv::parse(&t).ok());
    found.servers = servers(&status, at.and_then(|env| env.dns).map(|dns| dns.addresses).unwrap_or_default());
    let without: Vec<&str> =
        status.peers.iter().filter(|p| p.version == "flannel").map(|p| p.host_name.as_str()).collect();
    if !without.is_empty() {
        found.notes.push(format!("{} hosts run flannel, which serves no names: not asked", without.len()));
    }
    let progress = Progress::default();
    let shown = tokio::spawn(progress.clone().show());
    greet(&mut found, &progress).await;
    let answers = ask_all(&found.servers, &questions, &progress).await;
    shown.abort();
    judge(&mut found, &questions, &answers);
    hostnames(&mut found, &names, &endpoints.endpoints);
    found.problems.sort();
    if args.json {
        print_json(&found)?;
    } else {
        print(&text(&found))?;
    }
    match found.problems.len() {
        0 => Ok(()),
        1 => bail!("one thing does not agree"),
        number => bail!("{number} things do not agree"),
    }
}

fn asked<T: serde::de::DeserializeOwned>(run_dir: &Path, request: Request) -> anyhow::Result<T> {
    match ask(run_dir, request)? {
        Answer::Given(answer) => Ok(answer),
        Answer::None { reason, .. } => bail!("{reason}; the doctor compares with what the daemon knows"),
    }
}

/// What is to be asked, and what this host's daemon says of it.
fn compile(names: &Names, wanted: Option<&str>, networks: &[Subnet]) -> (Findings, Vec<Question>) {
    let mut found = Findings { zone: names.zone.clone(), ..Findings::default() };
    let mut questions = Vec::new();
    let mut by_name: BTreeMap<&str, Vec<&NameStatus>> = BTreeMap::new();
    for row in names.names.iter().filter(|n| wanted.is_none_or(|wanted| n.name == wanted)) {
        by_name.entry(&row.name).or_default().push(row);
    }
    if let Some(wanted) = wanted.filter(|wanted| !by_name.contains_key(wanted)) {
        found.notes.push(format!("this host knows no {wanted} (loden names); others are asked all the same"));
        by_name.insert(wanted, Vec::new());
    }
    for (name, rows) in by_name {
        let has_owner = rows.iter().any(|n| !n.group && n.state != "withdrawn");
        let rows: Vec<&&NameStatus> =
            rows.iter().filter(|n| n.state != "withdrawn" && n.group != has_owner).collect();
        let addresses: BTreeSet<IpAddr> = rows.iter().flat_map(|n| n.addresses.iter().copied()).collect();
        let outside: BTreeSet<IpAddr> =
            rows.iter().flat_map(|n| n.outside_addresses.iter().copied()).collect();
        let of = |v4: bool| {
            let mut texts: Vec<String> =
                addresses.iter().filter(|a| a.is_ipv4() == v4).map(ToString::to_string).collect();
            texts.sort();
            texts
        };
        for (kind, expected) in [(RecordType::A, of(true)), (RecordType::AAAA, of(false))] {
            let view = View::Overlay;
            questions.push(Question { about: name.into(), asked: name.into(), kind, view, expected });
        }
        for (kind, v4) in [(RecordType::A, true), (RecordType::AAAA, false)] {
            let of_family = outside.iter().filter(|a| a.is_ipv4() == v4);
            let mut expected: Vec<String> = of_family.map(ToString::to_string).collect();
            expected.sort();
            let view = View::Outside;
            questions.push(Question { about: name.into(), asked: name.into(), kind, view, expected });
        }
        // Of addresses elsewhere others are the servers.
        let inside = |a: &&IpAddr| has_owner && networks.iter().any(|network| network.contains(**a));
        for address in addresses.iter().filter(inside) {
            let named = names.names.iter().filter(|n| !n.group && n.addresses.contains(address));
            questions.push(Question {
                about: name.into(),
                asked: reverse_name(*address),
                kind: RecordType::PTR,
                view: View::Overlay,
                expected: named.filter(|n| n.state != "withdrawn").map(|n| format!("{}.", n.name)).collect(),
            });
        }
        for row in rows.iter().filter(|n| n.state == "local") {
            found.problems.push(format!(
                "{name}: etcd does not have it yet, so {} alone knows it; see loden status there",
                row.host
            ));
        }
        found.names.push(NameFinding {
            name: name.into(),
            addresses: addresses.into_iter().collect(),
            outside_addresses: outside.into_iter().collect(),
            hosts: rows.iter().map(|n| n.host.clone()).collect::<BTreeSet<_>>().into_iter().collect(),
            since_unix_seconds: rows.iter().map(|n| n.since_unix_seconds).max().unwrap_or_default(),
            agreeing: 0,
            answering: 0,
            hostname: None,
        });
    }
    (found, questions)
}

/// Everybody who is to be asked: this host at each of its addresses, the others at theirs.
fn servers(status: &Status, resolvers: Vec<IpAddr>) -> Vec<Server> {
    let here = status.underlay.iter().flat_map(|u| u.addresses.clone()).chain(resolvers);
    let here = here.map(|address| ("this host".to_owned(), address));
    let others = status.peers.iter().filter(|peer| peer.version != "flannel");
    let others = others.map(|peer| (peer.host_name.clone(), peer.public_address));
    let mut seen = BTreeSet::new();
    let server = |(host, address)| Server { host, address, serial: None, milliseconds: None, error: None };
    here.chain(others).filter(|(_, address)| seen.insert(*address)).map(server).collect()
}

/// How far it has come.
#[derive(Debug, Clone, Default)]
struct Progress(Arc<Mutex<(usize, usize)>>);

impl Progress {
    fn expect(&self, more: usize) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 += more;
    }

    fn done(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 += 1;
    }

    async fn show(self) {
        loop {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let (done, all) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("loden: {done} of {all} questions are answered");
        }
    }
}

/// Questions under way at one time.
const AT_ONCE: usize = 64;

/// Runs work for each of these numbers, some at a time; results in their order.
async fn each<T, F>(number: usize, progress: &Progress, work: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    progress.expect(number);
    let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = Vec::with_capacity(number);
    for i in 0..number {
        let place = places.clone().acquire_owned().await;
        let (work, progress) = (work(i), progress.clone());
        tasks.push(tokio::spawn(async move {
            let result = work.await;
            progress.done();
            drop(place);
            result
        }));
    }
    let mut results = Vec::with_capacity(number);
    for task in tasks {
        results.extend(task.await.ok());
    }
    results
}

/// Who answers at all, and in which state of the zone.
async fn greet(found: &mut Findings, progress: &Progress) {
    let zone: Arc<str> = found.zone.as_str().into();
    let servers = found.servers.clone();
    let told = each(servers.len(), progress, |i| {
        let (zone, address) = (zone.clone(), servers[i].address);
        async move {
            let asked = Instant::now();
            (ask::ask(address, &zone, RecordType::SOA, View::Overlay).await, asked.elapsed())
        }
    })
    .await;
    for (server, (told, took)) in found.servers.iter_mut().zip(told) {
        let next = match told {
            Ok(told) if told.serial.is_some() => {
                server.serial = told.serial;
                server.milliseconds = Some(took.as_millis() as u64);
                continue;
            }
            Ok(told) => {
                server.error = Some(format!("{}: it does not serve {zone}", told.code));
                "is it of this overlay, and of the same network config? (loden config show)"
            }
            Err(error) => {
                server.error = Some(error);
                "does its daemon run (loden status there), with underlay in its --dns-listen, and does a firewall let UDP to port 53 in?"
            }
        };
        let error = server.error.clone().unwrap_or_default();
        found
            .problems
            .push(format!("{} does not answer at {}: {error}; {next}", server.host, server.address));
    }
}

type Answers = Vec<(usize, usize, Result<ask::Told, String>)>;

/// Asks everybody who answers everything; server, question, answer.
async fn ask_all(servers: &[Server], questions: &[Question], progress: &Progress) -> Answers {
    let answering = servers.iter().enumerate().filter(|(_, server)| server.error.is_none());
    let pairs: Vec<(usize, usize)> =
        answering.flat_map(|(s, _)| (0..questions.len()).map(move |q| (s, q))).collect();
    each(pairs.len(), progress, |i| {
        let (s, q) = pairs[i];
        let (address, question) = (servers[s].address, questions[q].clone());
        async move { (s, q, ask::ask(address, &question.asked, question.kind, question.view).await) }
    })
    .await
}

fn judge(found: &mut Findings, questions: &[Question], answers: &Answers) {
    let mut wrong: BTreeSet<(&str, usize)> = BTreeSet::new();
    for (s, q, answer) in answers {
        let (server, question) = (&found.servers[*s], &questions[*q]);
        let (said, right) = match answer {
            Ok(told) => {
                let said = if told.answers.is_empty() { told.code.clone() } else { told.answers.join(" ") };
                (said, question.is_right(&told.answers))
            }
            Err(error) => (error.clone(), false),
        };
        if right {
            continue;
        }
        wrong.insert((&question.about, *s));
        let expected = match question.expected.as_slice() {
            [] => "nothing".into(),
            some => some.join(" "),
        };
        found.problems.push(format!(
            "{}: {} ({}) answers {said} to {} {}{}, but this host's daemon knows {expected}; if that stays, see loden names and loden status there",
            question.about, server.host, server.address, question.asked, question.kind,
            if question.view == View::Outside { " from outside" } else { "" }
        ));
    }
    let answering = found.servers.iter().filter(|server| server.error.is_none()).count();
    for name in &mut found.names {
        let disagreeing = wrong.iter().filter(|(about, _)| *about == name.name).count();
        (name.answering, name.agreeing) = (answering, answering - disagreeing);
    }
}

/// What this host's containers call themselves.
fn hostnames(found: &mut Findings, names: &Names, endpoints: &[EndpointStatus]) {
    let mut processes = None;
    let mut unseen = BTreeSet::new();
    for finding in &mut found.names {
        let owners =
            names.names.iter().filter(|n| n.name == finding.name && !n.group && n.state != "withdrawn");
        let mut here = owners.filter_map(|n| {
            let same = |e: &&EndpointStatus| e.port == n.endpoint && e.addresses == n.addresses;
            endpoints.iter().find(same)
        });
        let Some(endpoint) = here.next_back() else { continue };
        let processes = processes.get_or_insert_with(by_namespace);
        let inside = match hostname(endpoint, processes) {
            Ok(inside) => inside,
            Err(reason) => {
                unseen.insert(format!("{}: {reason}", finding.name));
                continue;
            }
        };
        let short = finding.name.strip_suffix(&found.zone).and_then(|name| name.strip_suffix('.'));
        let is_id = inside.len() >= SHORT_ID && endpoint.container_id.starts_with(&inside);
        if is_id {
            found.notes.push(format!(
                "{}: the host name inside is the container's id, which nobody can resolve; software that announces its host name needs --hostname {}",
                finding.name,
                short.unwrap_or(&finding.name)
            ));
        } else if inside != finding.name && Some(inside.as_str()) != short {
            found.problems.push(format!(
                "{}: the host name inside is {inside}; start the container with --hostname {}, or with the name {inside}",
                finding.name,
                short.unwrap_or(&finding.name)
            ));
        }
        finding.hostname = Some(inside);
    }
    if !unseen.is_empty() {
        let all: Vec<String> = unseen.into_iter().collect();
        found.notes.push(format!("host names inside that were not looked at: {}", all.join("; ")));
    }
}

/// As much of an id as runtimes make a host name of.
const SHORT_ID: usize = 12;

/// Device and inode number of a namespace.
type Identity = (u64, u64);

fn identity(path: impl AsRef<Path>) -> Option<Identity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// A process of each network namespace.
fn by_namespace() -> BTreeMap<Identity, u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((identity(format!("/proc/{pid}/ns/net"))?, pid))).collect()
}

fn hostname(endpoint: &EndpointStatus, processes: &BTreeMap<Identity, u32>) -> Result<String, String> {
    let net = identity(&endpoint.netns).ok_or_else(|| format!("{} cannot be looked at", endpoint.netns))?;
    let pid = *processes.get(&net).ok_or("no process is seen in it (as root more are)")?;
    let path = format!("/proc/{pid}/ns/uts");
    let own = identity("/proc/thread-self/ns/uts");
    if identity(&path) == own {
        return Err("it shares the host name of this host".into());
    }
    let file = std::fs::File::open(&path).map_err(|e| format!("{path}: {e}"))?;
    // A thread of its own: it does not come back.
    let look = move || {
        let kind = Some(LinkNameSpaceType::HostNameAndNISDomainName);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)?;
        Ok(rustix::system::uname().nodename().to_string_lossy().into_owned())
    };
    let looked: std::thread::Result<Result<String, rustix::io::Errno>> = std::thread::spawn(look).join();
    looked.map_err(|_| "panicked".to_owned())?.map_err(|e| format!("cannot enter {path}: {e}"))
}

fn text(found: &Findings) -> String {
    let mut out = String::new();
    for problem in &found.problems {
        out += &format!("problem: {problem}\n");
    }
    for note in &found.notes {
        out += &format!("note: {note}\n");
    }
    if !out.is_empty() {
        out += "\n";
    }
    let now = clock::unix_seconds();
    let joined = |addresses: &[IpAddr]| {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        if texts.is_empty() { "-".into() } else { texts.join(" ") }
    };
    let mut names: Vec<&NameFinding> = found.names.iter().collect();
    names.sort_by_key(|n| (n.agreeing == n.answering, &n.name));
    let row = |n: &&NameFinding| {
        let age = match n.since_unix_seconds {
            0 => "-".into(),
            since => duration(now.saturating_sub(since)),
        };
        vec![
            n.name.clone(),
            joined(&n.addresses),
            joined(&n.outside_addresses),
            if n.hosts.is_empty() { "-".into() } else { n.hosts.join(" ") },
            age,
            format!("{} of {} agree", n.agreeing, n.answering),
            n.hostname.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    let head = ["NAME", "ADDRESS", "OUTSIDE", "HOST", "AGE", "ANSWERS", "HOSTNAME INSIDE"];
    match names.is_empty() {
        true => out += &format!("no container has a name below {}\n", found.zone),
        false => out += &table(&head, &names.iter().map(row).collect::<Vec<_>>()),
    }
    let server = |s: &Server| {
        vec![
            s.host.clone(),
            s.address.to_string(),
            s.serial.map(|serial| serial.to_string()).unwrap_or_else(|| "-".into()),
            match (&s.error, s.milliseconds) {
                (Some(error), _) => error.clone(),
                (None, took) => format!("{} ms", took.unwrap_or_default()),
            },
        ]
    };
    out += "\n";
    out += &table(
        &["SERVER OF", "ADDRESS", "SERIAL", "ANSWERS"],
        &found.servers.iter().map(server).collect::<Vec<_>>(),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, addresses: &[&str], group: bool, state: &str) -> NameStatus {
        NameStatus {
            name: format!("{name}.loden.internal"),
            addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
            host: "r1".into(),
            subnet: "10.5.7.0/24".parse().expect("subnet"),
            endpoint: "veth1".into(),
            source: "cni".into(),
            group,
            outside_addresses: vec!["192.168.77.11".parse().expect("address")],
            state: state.into(),
            since_unix_seconds: 1,
        }
    }

    #[test]
    fn each_name_is_asked_both_ways_for_what_the_daemon_knows() {
        let rows = vec![
            row("all", &["10.5.7.2"], true, "member"),
            row("all", &["10.5.8.2"], true, "member"),
            row("db", &["10.5.7.2", "fd00::2"], false, "owner"),
            row("db", &["10.5.9.2"], false, "withdrawn"),
            row("kdc", &["192.0.2.7"], false, "owner"),
        ];
        let names = Names { zone: "loden.internal".into(), names: rows, problems: Vec::new() };
        let networks = ["10.5.0.0/16", "fd00::/48"].map(|n| n.parse().expect("network"));
        let asked = |wanted, view| {
            let (_, questions) = compile(&names, wanted, &networks);
            let shown = |q: &Question| format!("{} {} {}", q.asked, q.kind, q.expected.join(" "));
            questions.iter().filter(|q| q.view == view).map(shown).collect::<Vec<_>>()
        };
        let v6 = format!("2.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(
            asked(None, View::Overlay),
            [
                "all.loden.internal A 10.5.7.2 10.5.8.2".to_owned(),
                "all.loden.internal AAAA ".into(),
                "db.loden.internal A 10.5.7.2".into(),
                "db.loden.internal AAAA fd00::2".into(),
                "2.7.5.10.in-addr.arpa PTR db.loden.internal.".into(),
                format!("{v6} PTR db.loden.internal."),
                "kdc.loden.internal A 192.0.2.7".into(),
                "kdc.loden.internal AAAA ".into(),
            ]
        );
        assert_eq!(
            asked(Some("db.loden.internal"), View::Outside),
            ["db.loden.internal A 192.168.77.11", "db.loden.internal AAAA "]
        );
        for view in [View::Overlay, View::Outside] {
            let absent = asked(Some("x.loden.internal"), view);
            assert_eq!(absent, ["x.loden.internal A ", "x.loden.internal AAAA "]);
        }
    }

    #[test]
    fn an_answer_is_right_or_it_is_not() {
        let question = |kind, expected: &[&str]| Question {
            about: "x".into(),
            asked: "x".into(),
            kind,
            view: View::Overlay,
            expected: expected.iter().map(|e| (*e).to_owned()).collect(),
        };
        let right = |q: Question, answers: &[&str]| {
            q.is_right(&answers.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
        };
        assert!(right(question(RecordType::A, &["1", "2"]), &["1", "2"]));
        assert!(!right(question(RecordType::A, &["1", "2"]), &["1"]));
        assert!(right(question(RecordType::PTR, &["a.", "b."]), &["b."]));
        assert!(!right(question(RecordType::PTR, &["a."]), &["c."]));
        assert!(!right(question(RecordType::PTR, &["a."]), &[]));
        assert!(right(question(RecordType::PTR, &[]), &[]));
    }
}
