//! A real etcd in a namespace of its own on the underlay, driven by etcdctl.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::lab::Shared;
use crate::process::{self, Process, lock};
use crate::tls::Tls;
use crate::{Ns, Output, Security, eventually};

/// flannel's prefix, the default of `--etcd-prefix`.
pub const PREFIX: &str = "/coreos.com/network";

/// The lab's etcd. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lab: Weak<Shared>,
    ns: Ns,
    dir: PathBuf,
    tls: Tls,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts the data folders, of which each wipe begins a new one.
    life: u32,
    process: Option<Arc<Process>>,
}

impl Etcd {
    /// Its address on the underlay.
    pub const ADDRESS: &str = "192.168.77.2";

    pub(crate) fn new(lab: &Arc<Shared>, security: Security) -> Self {
        let inner = Inner {
            lab: Arc::downgrade(lab),
            ns: lab.bystander(2),
            dir: lab.dir.clone(),
            tls: Tls::new(security, &lab.dir),
            state: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Its namespace.
    pub fn ns(&self) -> &Ns {
        &self.inner.ns
    }

    /// Where daemons reach it.
    pub fn url(&self) -> String {
        format!("{}://{}:2379", self.inner.tls.scheme(), Self::ADDRESS)
    }

    /// The flags of a daemon that reach it.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec![format!("--etcd-endpoints={}", self.url())];
        flags.extend(self.inner.tls.daemon_flags());
        flags
    }

    /// Starts it and waits until it answers.
    pub fn start(&self) {
        self.start_with(&[], &[]);
    }

    /// The same with further flags and variables.
    pub fn start_with(&self, flags: &[&str], environment: &[(&str, &str)]) {
        let first = {
            let mut state = lock(&self.inner.state);
            if state.process.as_ref().is_some_and(|p| p.exited().is_none()) {
                return;
            }
            let data = self.inner.dir.join(format!("etcd-{}", state.life));
            let first = !data.exists();
            let url = self.url();
            let mut argv = vec!["etcd".to_owned(), format!("--data-dir={}", data.display())];
            argv.push(format!("--listen-client-urls={}://0.0.0.0:2379", self.inner.tls.scheme()));
            argv.push(format!("--advertise-client-urls={url}"));
            argv.push("--listen-peer-urls=http://127.0.0.1:2380".into());
            argv.push("--initial-advertise-peer-urls=http://127.0.0.1:2380".into());
            argv.push("--initial-cluster=default=http://127.0.0.1:2380".into());
            // One member elects itself; the default of a second only makes the lab slow.
            argv.extend(["--heartbeat-interval=20".into(), "--election-timeout=200".into()]);
            argv.extend(self.inner.tls.server_flags());
            let argv: Vec<&str> = argv.iter().map(String::as_str).chain(flags.iter().copied()).collect();
            let log = self.inner.dir.join("etcd.log");
            let mut command = self.inner.ns.command(&argv);
            command.envs(environment.iter().copied());
            let process = Process::start("etcd", command, &log).expect("starting etcd");
            let process = Arc::new(process);
            if let Some(lab) = self.inner.lab.upgrade() {
                lock(&lab.processes).insert(0, (String::new(), process.clone()));
            }
            state.process = Some(process);
            first
        };
        // Right after a first start there are no users yet.
        let credentials =
            if first { self.inner.tls.ctl_flags_without_user() } else { self.inner.tls.ctl_flags() };
        eventually(Duration::from_secs(20), "etcd answers", || {
            let output = self.ctl_as(&credentials, &["get", "answers?"], b"");
            if output.success() { Ok(()) } else { Err(output.describe()) }
        });
        if first {
            for step in self.inner.tls.auth_steps() {
                let step: Vec<&str> = step.iter().map(String::as_str).collect();
                self.ctl_as(&credentials, &step, b"").expect_success();
            }
        }
    }

    fn process(&self) -> Option<Arc<Process>> {
        lock(&self.inner.state).process.clone()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process().filter(|p| p.exited().is_none()).map(|p| p.pid())
    }

    /// SIGTERM, and waits.
    pub fn stop(&self) {
        if let Some(process) = self.process() {
            process.terminate();
        }
    }

    /// SIGKILL, and waits.
    pub fn kill9(&self) {
        if let Some(process) = self.process() {
            process.kill9();
        }
    }

    /// SIGSTOP: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.process().expect("a running etcd").signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process().expect("a running etcd").signal(Signal::CONT);
    }

    /// Loses all data: killed, and started with a new, empty folder (a new cluster id, revision 1).
    pub fn wipe(&self) {
        self.kill9();
        lock(&self.inner.state).life += 1;
        self.start();
    }

    fn ctl_as(&self, credentials: &[String], args: &[&str], input: &[u8]) -> Output {
        let endpoint = format!("--endpoints={}", self.url());
        let mut argv = vec!["etcdctl", endpoint.as_str()];
        argv.extend(credentials.iter().map(String::as_str));
        argv.extend(args);
        let mut command = self.inner.ns.command(&argv);
        command.env("ETCDCTL_API", "3");
        process::run(command, input)
    }

    /// Runs etcdctl with everything it needs to be let in.
    pub fn ctl(&self, args: &[&str]) -> Output {
        self.ctl_as(&self.inner.tls.ctl_flags(), args, b"")
    }

    /// Puts a key.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        // By standard input, for values that look like flags or are none at all.
        self.ctl_as(&self.inner.tls.ctl_flags(), &["put", key], value.as_bytes()).expect_success();
    }

    /// Puts keys without a lease, many at a time.
    #[track_caller]
    pub fn put_all(&self, all: impl IntoIterator<Item = (String, String)>) {
        /// `--max-txn-ops` of etcd, by default.
        const AT_ONCE: usize = 128;
        let puts: Vec<String> = all.into_iter().map(|(key, value)| format!("put {key} {value:?}")).collect();
        for some in puts.chunks(AT_ONCE) {
            // Conditions, of which there are none; what is done; what is done otherwise.
            let transaction = format!("\n{}\n\n\n", some.join("\n"));
            self.ctl_as(&self.inner.tls.ctl_flags(), &["txn"], transaction.as_bytes()).expect_success();
        }
    }

    /// Puts a key with a new lease of so many seconds; returns the lease's id.
    #[track_caller]
    pub fn put_leased(&self, key: &str, value: &str, seconds: u32) -> String {
        let answer = self.ctl(&["lease", "grant", &seconds.to_string()]).expect_success();
        let id = answer.split_whitespace().nth(1).expect("`lease ID granted …`").to_owned();
        let lease = format!("--lease={id}");
        self.ctl_as(&self.inner.tls.ctl_flags(), &["put", &lease, key], value.as_bytes()).expect_success();
        id
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<String> {
        let text = self.ctl(&["get", "--print-value-only", key]).expect_success();
        (!text.is_empty()).then(|| text.trim_end_matches('\n').to_owned())
    }

    /// Deletes a key; true if it was there.
    pub fn delete(&self, key: &str) -> bool {
        self.ctl(&["del", key]).expect_success().trim() == "1"
    }

    /// The keys below a prefix, in order.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let text = self.ctl(&["get", "--prefix", "--keys-only", prefix]).expect_success();
        text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()
    }

    /// The subnets that are leased, as in the keys: `10.5.7.0-24`.
    pub fn subnets(&self) -> Vec<String> {
        let names = |folder: String| {
            let keys = self.keys(&folder);
            keys.iter().map(|k| k[folder.len()..].to_owned()).collect::<Vec<_>>()
        };
        [names(format!("{PREFIX}/subnets/")), names(format!("{PREFIX}/loden/subnets/"))].concat()
    }

    /// Key of a subnet, or of two: `10.5.7.0/24&fd00:10:5:7::/64`.
    pub fn key(subnet: impl std::fmt::Display) -> String {
        let name = subnet.to_string().replace('/', "-");
        // flannel cannot parse an IPv6-only key, so those stand elsewhere.
        let folder = if name.contains('.') { "subnets" } else { "loden/subnets" };
        format!("{PREFIX}/{folder}/{name}")
    }

    /// Puts the network config.
    #[track_caller]
    pub fn config(&self, json: &str) {
        self.put(&format!("{PREFIX}/config"), json);
    }

    /// A key's `mod_revision`, `create_revision`, `version` and `lease`, as etcd counts them.
    pub fn revisions(&self, key: &str) -> Option<Value> {
        let text = self.ctl(&["get", key, "-w", "json"]).expect_success();
        let answer: Value = serde_json::from_str(&text).expect("etcdctl prints JSON");
        answer["kvs"].get(0).cloned()
    }

    /// Id of the lease that a key hangs on, in hexadecimal as etcdctl takes it.
    pub fn lease_of(&self, key: &str) -> Option<String> {
        self.revisions(key)?["lease"].as_i64().map(|id| format!("{id:x}"))
    }

    /// Ends a lease, and with it its keys.
    #[track_caller]
    pub fn revoke(&self, lease: &str) {
        self.ctl(&["lease", "revoke", lease]).expect_success();
    }

    /// Keeps a lease alive as its holder would, until the returned process is killed or dropped.
    pub fn keep_alive(&self, lease: &str) -> Process {
        let endpoint = format!("--endpoints={}", self.url());
        let mut argv = vec!["etcdctl".to_owned(), endpoint];
        argv.extend(self.inner.tls.ctl_flags());
        argv.extend(["lease".into(), "keep-alive".into(), lease.to_owned()]);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut command = self.inner.ns.command(&argv);
        command.env("ETCDCTL_API", "3");
        let log = self.inner.dir.join(format!("keep-alive-{lease}"));
        Process::start("keep-alive", command, &log).expect("starting etcdctl")
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        let text = self.ctl(&["get", "answers?", "-w", "json"]).expect_success();
        let answer: Value = serde_json::from_str(&text).expect("etcdctl prints JSON");
        answer["header"]["revision"].as_i64().expect("a revision")
    }

    /// Forgets all history up to now.
    pub fn compact(&self) {
        self.ctl(&["compact", &self.revision().to_string()]).expect_success();
    }
}
