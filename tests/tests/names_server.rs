//! The DNS server among others, and under those who mean ill.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Host, Lab, Process, dig, eventually};

const SHARED: &str = "169.254.53.53";
/// The second host's address.
const OTHER: &str = "192.168.77.12";

/// A real server of other names, on a host without a daemon.
fn dnsmasq(lab: &Lab, options: &[&str]) -> Arc<Process> {
    let host = lab.host("other");
    assert_eq!(host.address().to_string(), OTHER);
    let all = [
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--log-queries",
        "--log-facility=-",
        "--pid-file=",
        "--bind-interfaces",
        "--listen-address",
        OTHER,
    ];
    host.spawn("dnsmasq", &[&all, options].concat())
}

#[test]
fn other_names_are_asked_of_the_hosts_servers() {
    let cluster = Cluster::<1>::start("names-forward", &Stack::Four.vxlan(), &["--dns-upstream", OTHER]);
    let [a] = &cluster.hosts;
    let server = dnsmasq(&cluster.lab, &["--address=/example.com/203.0.113.5"]);
    let c = a.container("c");
    for way in ["+notcp", "+tcp"] {
        eventually(SOON, "a container asks for others' names here", || {
            let answer = dig(c.ns(), &format!("@{SHARED} www.example.com A {way}"));
            if answer.answers == ["203.0.113.5"] { Ok(()) } else { Err(answer.text) }
        });
    }
    server.kill9();
    let before = Instant::now();
    let answer = dig(c.ns(), &format!("@{SHARED} www.example.com A +time=10"));
    assert_eq!(answer.status, "SERVFAIL", "{}", answer.text);
    assert!(before.elapsed() < Duration::from_secs(8), "{:?}", before.elapsed());
    let ours = dig(c.ns(), &format!("@{SHARED} gw.a.host.loden.internal A"));
    assert_eq!(ours.answers, [a.subnet().gateway().to_string()], "{}", ours.text);
}

#[test]
fn servers_that_ask_each_other_make_no_storm() {
    // Each leaves itself out, and asks the other.
    let both = ["--dns-upstream", "192.168.77.11,192.168.77.12"];
    let cluster = Cluster::<2>::start("names-loop", &Stack::Four.vxlan(), &both);
    let [a, b] = &cluster.hosts;
    for host in [a, b] {
        host.ns().nft("table inet questions { chain out { type filter hook output priority 0; udp dport 53 counter; }; }");
    }
    let c = a.container("c");
    let answer = dig(c.ns(), &format!("@{SHARED} www.example.com A +time=10"));
    assert_eq!(answer.status, "SERVFAIL", "{}", answer.text);
    // Whatever goes round goes on doing so while its questions are under way.
    std::thread::sleep(Duration::from_secs(1));
    for host in [a, b] {
        let shown = host.json(&["nft", "-j", "list", "table", "inet", "questions"]);
        let packets = shown["nftables"][3]["rule"]["expr"][1]["counter"]["packets"].as_u64();
        assert!(packets.is_some_and(|packets| packets < 10), "{} asked {packets:?} times", host.name());
    }
}

/// Sends requests for a name as fast as it is told to until it is dropped, and counts the answers.
struct Flood {
    ended: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flood {
    fn start(container: &loden_tests::Container, per_second: usize) -> Self {
        let socket = container.ns().within(|| UdpSocket::bind("0.0.0.0:0").expect("a socket"));
        socket.connect((SHARED, 53)).expect("connected");
        socket.set_nonblocking(true).expect("nonblocking");
        let (ended, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, count) = (ended.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            // gw.a.host.loden.internal, A, IN.
            let mut request = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in ["gw", "a", "host", "loden", "internal"] {
                request.push(label.len() as u8);
                request.extend(label.bytes());
            }
            request.extend([0, 0, 1, 0, 1]);
            let start = Instant::now();
            let mut answer = [0; 512];
            while !until.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * per_second as f64) as usize;
                while count.load(Ordering::Relaxed) < due {
                    let _ = socket.send(&request);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                while socket.recv(&mut answer).is_ok() {}
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { ended, sent, thread: Some(thread) }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn who_asks_without_end_starves_nobody() {
    let cluster = Cluster::<1>::start("names-flood", &Stack::Four.vxlan(), &[]);
    let [a] = &cluster.hosts;
    let (greedy, modest) = (a.container("greedy"), a.container("modest"));
    let flood = Flood::start(&greedy, 10_000);
    eventually(SOON, "the flood is under way", || {
        let sent = flood.sent.load(Ordering::Relaxed);
        if sent > 5_000 { Ok(()) } else { Err(sent.to_string()) }
    });
    let before = flood.sent.load(Ordering::Relaxed);
    for _ in 0..50 {
        let answer = dig(modest.ns(), &format!("@{SHARED} gw.a.host.loden.internal A"));
        assert_eq!(answer.answers.len(), 1, "{}", answer.text);
    }
    assert!(flood.sent.load(Ordering::Relaxed) > before, "the flood went on meanwhile");
}

fn connect(host: &Host, container: &loden_tests::Container) -> TcpStream {
    let server: SocketAddr = (host.subnet().gateway(), 53).into();
    let stream = container.ns().within(|| TcpStream::connect(server).expect("a connection"));
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
    stream
}

#[test]
fn connections_that_send_rubbish_or_nothing_harm_nobody_else() {
    let cluster = Cluster::<1>::start("names-rubbish", &Stack::Four.vxlan(), &[]);
    let [a] = &cluster.hosts;
    let (ill, well) = (a.container("ill"), a.container("well"));
    let fine = || {
        let answer = dig(well.ns(), &format!("@{SHARED} gw.a.host.loden.internal A +tcp"));
        assert_eq!(answer.answers.len(), 1, "{}", answer.text);
    };
    let ended = |mut stream: TcpStream| {
        let mut rest = Vec::new();
        // Closed or reset, not silent.
        let read = stream.read_to_end(&mut rest);
        assert!(
            !matches!(&read, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
            "still open after 15 s"
        );
        rest
    };
    // A length and nothing after it; half a length; an empty message; one that is none.
    for rubbish in
        [&[0xff, 0xff][..], &[0], &[0, 0], &[0, 3, 1, 2, 3], &[0, 12, 9, 9, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        let mut stream = connect(a, &ill);
        stream.write_all(rubbish).expect("sent");
        fine();
        assert!(ended(stream).is_empty(), "{rubbish:?}");
    }
    // A head that promises a question has an id, and is told that it is malformed.
    let mut stream = connect(a, &ill);
    stream.write_all(&[0, 12, 7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]).expect("sent");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!((&answer[2..4], answer[5] & 0xf), (&[7, 7][..], 1), "{answer:?}");
    // Many at once: the client's own are turned away, others' are not.
    let idle: Vec<TcpStream> = (0..100).map(|_| connect(a, &ill)).collect();
    fine();
    let open = idle.into_iter().filter(|mut stream| {
        stream.set_nonblocking(true).expect("nonblocking");
        matches!(stream.read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    });
    let open = open.count();
    assert!((1..=16).contains(&open), "{open} connections of one client");
    fine();
}
