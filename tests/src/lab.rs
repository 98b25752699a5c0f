//! One scenario's lab: the wire (underlay bridges in a namespace of their own), and the list of
//! everything that hangs on it. Dropping it kills all processes and removes all files.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use loden_proto::Family;

use crate::process::{Process, lock};
use crate::{Etcd, Host, Ns, Security, docker, eventually, invariants, world};

/// A layer-2 segment of the underlay. The wire's namespace routes between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// 192.168.77.0/24, fd77::/64
    First,
    /// 192.168.79.0/24, fd79::/64
    Second,
}

impl Segment {
    /// The third number of its IPv4 addresses, and the first of its IPv6 addresses.
    pub(crate) fn number(self) -> u8 {
        match self {
            Segment::First => 77,
            Segment::Second => 79,
        }
    }

    /// Name of its bridge in the wire's namespace.
    pub(crate) fn bridge(self) -> &'static str {
        match self {
            Segment::First => "br0",
            Segment::Second => "br1",
        }
    }
}

/// The lab of one scenario.
#[derive(Debug)]
pub struct Lab {
    pub(crate) shared: Arc<Shared>,
}

/// What hosts, etcd and containers know of their lab.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) wire: Ns,
    counter: AtomicU32,
    etcd: Mutex<Option<Etcd>>,
    outside: Mutex<Option<Arc<Ns>>>,
    pub(crate) hosts: Mutex<Vec<Host>>,
    /// Processes by the name of the host that they run on.
    pub(crate) processes: Mutex<Vec<(String, Arc<Process>)>>,
    /// Addresses of live containers by (host, container).
    pub(crate) containers: Mutex<BTreeMap<(String, String), Vec<IpAddr>>>,
}

impl Shared {
    /// A number that no one else in this lab has.
    pub(crate) fn next(&self) -> u32 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Connects a namespace to a segment: `interface` inside, set up by these lines for `ip`, and
    /// `v<number>` on the wire. Packets pass when it returns: a bridge's port drops them until the
    /// kernel has got round to telling it of its carrier, and ARP tries again only after a second.
    pub(crate) fn plug(&self, ns: &Ns, interface: &str, segment: Segment, setup: &str) -> String {
        let port = format!("v{}", self.next());
        self.wire.ip(&format!(
            "link add {port} type veth peer name {interface} netns {}\nlink set {port} master {} up",
            ns.path(),
            segment.bridge()
        ));
        ns.ip(&format!("{setup}\nlink set {interface} up"));
        eventually(Duration::from_secs(10), "the wire's port forwards", || {
            self.wire.run(&["bridge", "link", "show", "dev", &port]).contains("state forwarding")
        });
        port
    }

    /// A namespace on the first segment that is no member of the overlay.
    pub(crate) fn bystander(&self, last: u8) -> Ns {
        let ns = Ns::new();
        plug_member(self, &ns, last, Segment::First);
        ns
    }

    /// The `--etcd-…` flags that reach this lab's etcd.
    pub(crate) fn etcd_flags(&self) -> Vec<String> {
        match &*lock(&self.etcd) {
            Some(etcd) => etcd.flags(),
            None => vec![format!("--etcd-endpoints=http://{}:2379", Etcd::ADDRESS)],
        }
    }

    /// Kills and forgets the processes of one host.
    pub(crate) fn kill_processes(&self, host: &str) {
        let mut all = lock(&self.processes);
        for (_, process) in all.iter().filter(|(name, _)| name == host) {
            process.kill9();
        }
        all.retain(|(name, _)| name != host);
    }
}

/// Connects a namespace by `eth0`, with the addresses of this number and a default route.
pub(crate) fn plug_member(lab: &Shared, ns: &Ns, number: u8, segment: Segment) -> String {
    let net = segment.number();
    let addresses =
        format!("addr add 192.168.{net}.{number}/24 dev eth0\naddr add fd{net}::{number}/64 dev eth0 nodad");
    let port = lab.plug(ns, "eth0", segment, &addresses);
    ns.ip(&format!("route add default via 192.168.{net}.1\nroute add default via fd{net}::1"));
    port
}

impl Lab {
    /// A new lab; the name shows in folder names and messages.
    pub fn new(name: &str) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let base = base_dir();
        sweep(&base, world::remove_dir);
        for root in docker::cgroup_roots() {
            sweep(&root, docker::remove_cgroup);
        }
        let short: String = name.chars().take(24).collect();
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("{FOLDER}{}-{number}-{short}", std::process::id()));
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let wire = Ns::new();
        for segment in [Segment::First, Segment::Second] {
            let (n, bridge) = (segment.number(), segment.bridge());
            wire.ip(&format!(
                "link add {bridge} type bridge forward_delay 0 mcast_snooping 0\n\
                 addr add 192.168.{n}.1/24 dev {bridge}\naddr add fd{n}::1/64 dev {bridge} nodad\n\
                 link set {bridge} up"
            ));
        }
        wire.sysctl("net/ipv4/ip_forward", "1");
        wire.sysctl("net/ipv6/conf/all/forwarding", "1");
        let shared = Shared {
            dir,
            wire,
            counter: AtomicU32::new(1),
            etcd: Mutex::default(),
            outside: Mutex::default(),
            hosts: Mutex::default(),
            processes: Mutex::default(),
            containers: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Its folder, which goes with it; in memory where the machine has /dev/shm.
    pub fn folder(&self) -> &Path {
        &self.shared.dir
    }

    /// This lab's etcd, started without TLS by the first call.
    pub fn etcd(&self) -> Etcd {
        self.etcd_with(Security::Plain)
    }

    /// This lab's etcd, made and started by the first call.
    pub fn etcd_with(&self, security: Security) -> Etcd {
        let mut slot = lock(&self.shared.etcd);
        let etcd = slot.get_or_insert_with(|| {
            let etcd = Etcd::new(&self.shared, security);
            etcd.start();
            etcd
        });
        etcd.clone()
    }

    /// This lab's etcd, not started: for daemons that come before it.
    pub fn etcd_later(&self) -> Etcd {
        lock(&self.shared.etcd).get_or_insert_with(|| Etcd::new(&self.shared, Security::Plain)).clone()
    }

    /// A new host on the first segment. Addresses count up from 192.168.77.11.
    pub fn host(&self, name: &str) -> Host {
        self.host_on(Segment::First, name)
    }

    /// A new host on a segment.
    pub fn host_on(&self, segment: Segment, name: &str) -> Host {
        let mut hosts = lock(&self.shared.hosts);
        let number = u8::try_from(hosts.len() + 11).expect("fewer than 200 hosts in a lab");
        let host = Host::new(&self.shared, name, number, segment);
        hosts.push(host.clone());
        host
    }

    /// Several hosts: a, b, c …
    pub fn hosts<const N: usize>(&self) -> [Host; N] {
        std::array::from_fn(|i| {
            self.host(&char::from(b'a' + u8::try_from(i).expect("few hosts")).to_string())
        })
    }

    /// The namespace of the underlay: bridges `br0` and `br1`, 192.168.77.1 and 192.168.79.1.
    pub fn wire(&self) -> &Ns {
        &self.shared.wire
    }

    /// A machine on the first segment that is no member, at [`Lab::OUTSIDE`].
    pub fn outside(&self) -> Arc<Ns> {
        lock(&self.shared.outside).get_or_insert_with(|| Arc::new(self.shared.bystander(250))).clone()
    }

    /// Address of [`Lab::outside`].
    pub const OUTSIDE: &str = "192.168.77.250";

    /// Address of [`Lab::outside`] in a family.
    pub fn outside_address(family: Family) -> IpAddr {
        match family {
            Family::V4 => [192, 168, 77, 250].into(),
            Family::V6 => [0xfd77, 0, 0, 0, 0, 0, 0, 0x250].into(),
        }
    }

    /// A folder of this lab for a scenario's own files, seen by the lab and all hosts.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// What must hold at the end of every scenario; see `invariants.rs`.
    #[track_caller]
    pub fn check_invariants(&self) {
        invariants::check(self);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.show();
        }
        // Last come, first killed: daemons before etcd.
        for (_, process) in lock(&self.shared.processes).drain(..).rev() {
            process.kill9();
        }
        // These point back at the shared part, which would keep itself alive.
        let _hosts = std::mem::take(&mut *lock(&self.shared.hosts));
        let _etcd = lock(&self.shared.etcd).take();
        let name = self.shared.dir.file_name().expect("a lab's folder");
        for root in docker::cgroup_roots() {
            docker::remove_cgroup(&root.join(name));
        }
        world::remove_dir(&self.shared.dir);
    }
}

impl Lab {
    /// What a person needs to see after a failure: the tails of all logs.
    fn show(&self) {
        let mut logs: Vec<PathBuf> = fs::read_dir(&self.shared.dir)
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        logs.retain(|p| p.extension().is_some_and(|e| e == "log") && !p.ends_with("etcd.log"));
        logs.sort();
        for path in logs {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            eprintln!("---- {name}: last {} of {} lines\n{}", tail.len(), lines.len(), tail.join("\n"));
        }
        if std::env::var_os("LODEN_LAB_PAUSE").is_some() {
            for host in lock(&self.shared.hosts).iter() {
                eprintln!("host {}: {}", host.name(), host.ns().enter_command());
            }
            eprintln!("wire: {}\nfiles: {}", self.shared.wire.enter_command(), self.shared.dir.display());
            eprintln!("The lab stands for an hour; end it with ^C.");
            thread::sleep(Duration::from_secs(3600));
        }
    }
}

const FOLDER: &str = "loden-lab-";

/// etcd and the hosts' disks live in memory where the machine has such a place.
fn base_dir() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { shm.into() } else { std::env::temp_dir() }
}

/// Removes folders of runs that were killed.
fn sweep(base: &Path, remove: fn(&Path)) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(FOLDER)) else { continue };
        let pid = rest.split('-').next().unwrap_or_default();
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            remove(&entry.path());
        }
    }
}
