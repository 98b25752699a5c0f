//! A host and its containers, as network namespaces with names of their own, gone when the
//! test ends, also by a panic. The plugin never runs in the machine's own namespace.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use loden_core::port_filter;
use loden_proto::allocation::Allocation;
use loden_proto::port_filter::PortSet;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_loden-cni");
const PREFIX: &str = "lcni-";

/// The subnet of most tests.
pub(crate) const SUBNET: &str = "10.5.7.1/24";
/// The port filter's table.
const TABLE: &str = "testnet";

pub(crate) struct Lab {
    id: usize,
    dir: tempfile::TempDir,
    namespaces: std::sync::Mutex<Vec<String>>,
}

impl Lab {
    /// A host whose daemon has leased [`SUBNET`].
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        static ONCE: Once = Once::new();
        assert!(rustix::process::geteuid().is_root(), "these tests make network namespaces and so need root");
        ONCE.call_once(remove_leftovers);
        let lab = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            dir: tempfile::tempdir().expect("tempdir"),
            namespaces: Default::default(),
        };
        lab.namespace("host");
        lab.lease(&[SUBNET]);
        lab.nft(&["-f", "-"], &port_filter::script(TABLE, &BTreeSet::new()));
        lab
    }

    /// Runs `nft` on the host.
    pub(crate) fn nft(&self, arguments: &[&str], input: &str) -> String {
        let mut command = Command::new("nft");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = inside(&self.host(), || command.spawn()).expect("nft is installed");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("input");
        let output = child.wait_with_output().expect("wait");
        assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Removes the port filter's table, as a flush of all rules does.
    pub(crate) fn remove_port_filter(&self) {
        self.nft(&["delete", "table", "bridge", TABLE], "");
    }

    /// The elements of the port filter's sets as nft shows them, each with its set's name.
    pub(crate) fn guarded(&self) -> BTreeSet<(&'static str, String)> {
        let mut all = BTreeSet::new();
        for set in PortSet::ALL {
            let shown = self.nft(&["-j", "list", "set", "bridge", TABLE, set.name()], "");
            let shown: Value = serde_json::from_str(&shown).expect("JSON");
            let elements = shown["nftables"][1]["set"]["elem"].as_array().cloned().unwrap_or_default();
            all.extend(elements.iter().map(|element| (set.name(), element.to_string())));
        }
        all
    }

    /// Writes `subnet.env` for these gateways.
    pub(crate) fn lease(&self, gateways: &[&str]) {
        let mut text = String::new();
        for gateway in gateways {
            if gateway.contains(':') {
                text += &format!("FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET={gateway}\n");
            } else {
                text += &format!("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={gateway}\n");
            }
        }
        text +=
            &format!("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nLODEN_LEASE=held\nLODEN_PORT_FILTER={TABLE}\n");
        self.write_subnet_env(&text);
    }

    pub(crate) fn write_subnet_env(&self, text: &str) {
        fs::write(self.subnet_file(), text).expect("subnet.env");
    }

    pub(crate) fn subnet_file(&self) -> PathBuf {
        self.dir.path().join("subnet.env")
    }

    /// The folder of the network's allocations.
    pub(crate) fn ipam(&self) -> PathBuf {
        self.dir.path().join("ipam/testnet")
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a namespace and returns its path.
    pub(crate) fn namespace(&self, name: &str) -> String {
        let full = format!("{PREFIX}{}-{}-{name}", std::process::id(), self.id);
        command("ip", &["netns", "add", &full]);
        self.namespaces.lock().expect("lock").push(full.clone());
        format!("/run/netns/{full}")
    }

    pub(crate) fn host(&self) -> String {
        format!("/run/netns/{PREFIX}{}-{}-host", std::process::id(), self.id)
    }

    /// The plugin's configuration.
    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "testnet",
            "type": "loden",
            "subnetFile": self.subnet_file(),
            "dataDir": self.dir.path().join("ipam"),
        })
    }

    /// A call for a container whose id is the last part of the namespace's name.
    pub(crate) fn call(&self, command: &str, netns: &str) -> Call {
        let id = netns.rsplit('-').next().expect("a name").to_owned();
        let env = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &id),
            ("CNI_NETNS", netns),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        Call {
            host: self.host(),
            program: vec![PLUGIN.into()],
            env: env.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            stdin: self.config().to_string(),
            stdout: None,
        }
    }

    /// ADD that must succeed.
    pub(crate) fn add(&self, netns: &str) -> Value {
        self.call("ADD", netns).run().success()
    }

    /// DEL that must succeed.
    pub(crate) fn del(&self, netns: &str) {
        self.call("DEL", netns).run().success();
    }

    /// Files whose names are addresses.
    pub(crate) fn allocated(&self) -> BTreeSet<IpAddr> {
        let entries = fs::read_dir(self.ipam()).into_iter().flatten();
        entries.filter_map(|e| e.expect("entry").file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes a namespace that [`Self::namespace`] made.
    pub(crate) fn remove(&self, netns: &str) {
        let name = netns.trim_start_matches("/run/netns/");
        command("ip", &["netns", "del", name]);
        self.namespaces.lock().expect("lock").retain(|n| n != name);
    }

    /// Asserts that the host has exactly these containers, connected dual-stack: the files and the
    /// index of their addresses and nothing else, a pair each and no other, and no lock is held.
    pub(crate) fn assert_only(&self, living: &[&str], context: &str) {
        let id = |netns: &&str| netns.rsplit('-').next().expect("a name").to_owned();
        let ids: BTreeSet<String> = living.iter().map(id).collect();
        let (mut held, mut pairs, mut indexed) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for address in self.allocated() {
            let text = fs::read_to_string(self.ipam().join(address.to_string())).expect("file");
            let allocation = Allocation::parse(&text).expect("an allocation");
            assert_eq!(allocation.address, address, "{context}");
            let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
            indexed.insert(format!("{}.{family}", allocation.host_veth));
            held.push((allocation.container_id, family));
            pairs.insert(allocation.host_veth);
        }
        held.sort();
        let expected: Vec<_> = ids.iter().flat_map(|i| [(i.clone(), "ipv4"), (i.clone(), "ipv6")]).collect();
        assert_eq!(held, expected, "{context}: allocations");
        let names = |folder: &Path| -> BTreeSet<String> {
            let entries = fs::read_dir(folder).into_iter().flatten();
            entries.map(|e| e.expect("entry").file_name().into_string().expect("UTF-8")).collect()
        };
        assert_eq!(names(&self.ipam().join("by-veth")), indexed, "{context}: the index");
        let mut files = names(&self.ipam());
        files.retain(|n| n.parse::<IpAddr>().is_err() && n != "by-veth" && n != "freed");
        assert_eq!(files, BTreeSet::new(), "{context}: other files");
        let mut veths: BTreeSet<String> = interfaces(&self.host()).into_iter().collect();
        veths.remove("loden0");
        assert_eq!(veths, pairs, "{context}: interfaces of the host");
        for netns in living {
            assert_eq!(interfaces(netns), ["eth0"], "{context}: interfaces of {netns}");
        }
        if let Ok(lock) = File::open(self.path().join("ipam/lock")) {
            lock.try_lock().unwrap_or_else(|e| panic!("{context}: the lock: {e}"));
        }
        self.assert_guarded(&pairs, context);
    }

    /// Asserts that the port filter guards these ports, of dual-stack containers. What else it has is the
    /// daemon's to remove.
    fn assert_guarded(&self, ports: &BTreeSet<String>, context: &str) {
        let guarded = self.guarded();
        for port in ports {
            let elements = guarded.iter().filter(|(_, element)| element.contains(port));
            assert!(elements.count() >= 1 + 2 + 3 + 2, "{context}: {port} in {guarded:?}");
        }
    }

    /// Names of all interfaces of a namespace but `lo`.
    pub(crate) fn links(&self, netns: &str) -> Vec<String> {
        let links: Value = serde_json::from_str(&ip(netns, "-j link show")).expect("JSON");
        let names =
            links.as_array().expect("array").iter().map(|l| l["ifname"].as_str().expect("name").to_owned());
        names.filter(|n| n != "lo").collect()
    }

    /// Asserts that nothing of a container is left on the host, and nothing in it.
    pub(crate) fn assert_nothing_left(&self, netns: &str, context: &str) {
        assert_eq!(self.allocated(), BTreeSet::new(), "{context}: allocations");
        let index = fs::read_dir(self.ipam().join("by-veth")).into_iter().flatten().count();
        assert_eq!(index, 0, "{context}: the index");
        let host: Vec<String> = self.links(&self.host()).into_iter().filter(|n| n != "loden0").collect();
        assert_eq!(host, Vec::<String>::new(), "{context}: interfaces of the host");
        assert_eq!(self.links(netns), Vec::<String>::new(), "{context}: interfaces of the container");
        assert!(!self.ipam().join(".new").exists(), "{context}: a half-written file");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.namespaces.lock().expect("lock").iter() {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
    }
}

/// Namespaces of test runs that were killed.
fn remove_leftovers() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// One call of the plugin, to be changed before it runs.
#[derive(Clone)]
pub(crate) struct Call {
    host: String,
    program: Vec<String>,
    env: Vec<(String, String)>,
    stdin: String,
    stdout: Option<&'static str>,
}

impl Call {
    pub(crate) fn env(mut self, name: &str, value: Option<&str>) -> Self {
        self.env.retain(|(n, _)| n != name);
        self.env.extend(value.map(|v| (name.to_owned(), v.to_owned())));
        self
    }

    pub(crate) fn id(self, id: &str) -> Self {
        self.env("CNI_CONTAINERID", Some(id))
    }

    pub(crate) fn stdin(mut self, text: impl Into<String>) -> Self {
        self.stdin = text.into();
        self
    }

    /// Changes the configuration.
    pub(crate) fn config(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut config: Value = serde_json::from_str(&self.stdin).expect("JSON");
        change(&mut config);
        self.stdin = config.to_string();
        self
    }

    /// Runs another plugin instead.
    pub(crate) fn program(mut self, path: &str) -> Self {
        self.program = vec![path.to_owned()];
        self
    }

    /// Runs the plugin under another program, which gets it as its last argument.
    pub(crate) fn under(mut self, program: &[&str]) -> Self {
        self.program.splice(0..0, program.iter().map(|s| (*s).to_owned()));
        self
    }

    /// Sends the result to a file such as /dev/full.
    pub(crate) fn stdout(mut self, path: &'static str) -> Self {
        self.stdout = Some(path);
        self
    }

    pub(crate) fn spawn(&self) -> Child {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        let stdout = match self.stdout {
            Some(path) => File::options().write(true).open(path).expect("stdout").into(),
            None => Stdio::piped(),
        };
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped());
        // The child is born in the namespace of the thread that makes it.
        let mut child = inside(&self.host, || command.spawn()).expect("the plugin starts");
        // VERSION does not read it, which is fine.
        let _ = child.stdin.take().expect("piped").write_all(self.stdin.as_bytes());
        child
    }

    pub(crate) fn run(&self) -> Outcome {
        Outcome::of(self.spawn())
    }
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().expect("wait");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The result; `null` when standard output is empty.
    pub(crate) fn success(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        if self.stdout.is_empty() { Value::Null } else { serde_json::from_str(&self.stdout).expect("JSON") }
    }

    /// Asserts an error with this code and these words, and returns its text.
    pub(crate) fn failure(&self, code: u32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).expect("an error as JSON");
        assert_eq!(error["code"], code, "{error}");
        assert!(error["cniVersion"].is_string(), "{error}");
        let text = format!(
            "{} {}",
            error["msg"].as_str().expect("msg"),
            error["details"].as_str().unwrap_or_default()
        );
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
        text
    }
}

/// Runs code on a thread inside a namespace.
pub(crate) fn inside<T: Send>(netns: &str, code: impl FnOnce() -> T + Send) -> T {
    let file = File::open(netns).expect(netns);
    let run = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("setns");
        code()
    };
    std::thread::scope(|scope| scope.spawn(run).join()).expect("the thread inside")
}

/// Names of all interfaces of a namespace but `lo`, without another process.
pub(crate) fn interfaces(netns: &str) -> Vec<String> {
    let table = inside(netns, || fs::read_to_string("/proc/thread-self/net/dev").expect("interfaces"));
    // Two lines of headings.
    let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).filter(|name| name != "lo").collect()
}

/// Runs `ip` for a namespace; the arguments are split at spaces.
pub(crate) fn ip(netns: &str, arguments: &str) -> String {
    let name = netns.trim_start_matches("/run/netns/");
    let mut all = vec!["-n", name];
    all.extend(arguments.split(' '));
    command("ip", &all)
}

pub(crate) fn command(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A kernel parameter of a namespace.
pub(crate) fn sysctl(netns: &str, path: &str) -> String {
    inside(netns, || fs::read_to_string(format!("/proc/sys/net/{path}")).expect(path).trim().to_owned())
}

/// Asserts that a datagram gets from one namespace to an address of another and back.
pub(crate) fn assert_connected(from: &str, to: &str, address: &str) {
    let target: IpAddr = address.parse().expect("address");
    let bind = |ip: IpAddr| {
        let socket = UdpSocket::bind(SocketAddr::new(ip, 0)).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        socket
    };
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let server = inside(to, || bind(target));
    let client = inside(from, || bind(any));
    client.send_to(b"ping", server.local_addr().expect("address")).expect("send");
    let mut buffer = [0; 8];
    // A wait with a limit is broken off when the whole machine is paused and goes on (signal(7), of stop signals).
    let receive = |socket: &UdpSocket, buffer: &mut [u8]| loop {
        match socket.recv_from(buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    };
    let (_, peer) = receive(&server, &mut buffer).unwrap_or_else(|e| panic!("{from} to {address}: {e}"));
    server.send_to(b"pong", peer).expect("answer");
    let (length, _) =
        receive(&client, &mut buffer).unwrap_or_else(|e| panic!("{address} back to {from}: {e}"));
    assert_eq!(&buffer[..length], b"pong");
}

/// The address at this place of an ADD result, without its length.
pub(crate) fn address(result: &Value, index: usize) -> String {
    let text = result["ips"][index]["address"].as_str().expect("address");
    text.split('/').next().expect("address").to_owned()
}
