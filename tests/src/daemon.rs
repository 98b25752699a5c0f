//! Overlay daemons on a host: `loden daemon`, and real flanneld for comparison and mixing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::process::{Process, lock};
use crate::{Host, PREFIX, eventually};

/// A daemon on a host, over all its restarts.
#[derive(Debug)]
pub struct Daemon {
    host: Host,
    name: String,
    argv: Vec<String>,
    running: Mutex<Option<Life>>,
}

/// From one start to the end of the process.
type Life = (Arc<Process>, Arc<Mutex<Notified>>);

/// What the daemon told its service manager.
#[derive(Debug, Default)]
struct Notified {
    /// When it said READY=1.
    ready: Option<Instant>,
    status: String,
}

/// Generous: two cores carry several scenarios at once.
const READY_LIMIT: Duration = Duration::from_secs(15);

impl Host {
    /// Starts `loden daemon` with the flags that reach the lab's etcd, and these.
    pub fn daemon(&self, flags: &[&str]) -> Daemon {
        self.daemon_under(&[""; 0], flags)
    }

    /// The same, started by a program that changes its circumstances: `setpriv`, `strace`, `env`.
    pub fn daemon_under(&self, wrapper: &[impl AsRef<str>], flags: &[&str]) -> Daemon {
        let mut argv: Vec<String> = wrapper.iter().map(|w| w.as_ref().to_owned()).collect();
        argv.extend([binary("loden"), "daemon".into()]);
        if !flags.iter().any(|f| f.starts_with("--etcd-endpoints")) {
            argv.extend(self.lab().etcd_flags());
        }
        argv.extend(flags.iter().map(|&f| f.to_owned()));
        Daemon::start_first(self, "loden", argv)
    }

    /// Gives the daemon's folders to the user nobody, and returns what starts it as that user, with these
    /// capabilities (`+net_admin`) alone: for [`Host::daemon_under`]. `groups` is setpriv's flag for them.
    pub fn as_nobody(&self, groups: &str, capabilities: &str) -> Vec<String> {
        self.run(&["mkdir", "-p", "/run/loden", "/var/lib/loden"]);
        self.run(&["chown", "-R", "nobody", "/run/loden", "/var/lib/loden"]);
        let sets = ["inh-caps", "ambient-caps", "bounding-set"];
        let mut argv = vec!["/usr/bin/setpriv".to_owned(), "--reuid=nobody".into(), groups.into()];
        argv.extend(sets.map(|set| format!("--{set}=-all,{capabilities}")));
        argv
    }

    /// Runs a `loden` command to its end.
    pub fn loden(&self, args: &[&str]) -> crate::Output {
        self.loden_under(&[], args)
    }

    /// The same, started by a program that changes its circumstances.
    pub fn loden_under(&self, wrapper: &[&str], args: &[&str]) -> crate::Output {
        self.exec(&[wrapper, &[binary("loden").as_str()], args].concat())
    }

    /// Starts another program of the workspace that follows etcd, with the address of the lab's etcd
    /// and these arguments.
    pub fn follower(&self, program: &str, arguments: &[&str]) -> Daemon {
        let mut argv = vec![binary(program)];
        argv.extend(self.lab().etcd_flags());
        argv.extend(arguments.iter().map(|&a| a.to_owned()));
        Daemon::start_first(self, program, argv)
    }

    /// Starts real flanneld; `None`, with a note, where it has not been built.
    pub fn flanneld(&self, flags: &[&str]) -> Option<Daemon> {
        let Some(flanneld) = Daemon::flanneld_path() else {
            eprintln!("skipped: no flanneld, run make peers");
            return None;
        };
        let mut argv = vec![flanneld];
        argv.extend(self.lab().etcd_flags());
        argv.push(format!("--etcd-prefix={PREFIX}"));
        argv.extend(flags.iter().map(|&f| f.to_owned()));
        Some(Daemon::start_first(self, "flanneld", argv))
    }
}

impl Daemon {
    /// Where flanneld is: `FLANNELD`, else `target/peers/flanneld` of the workspace.
    pub fn flanneld_path() -> Option<String> {
        let named = std::env::var("FLANNELD").ok().filter(|path| !path.is_empty());
        let path = named
            .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/flanneld").to_owned());
        Path::new(&path).is_file().then_some(path)
    }

    fn start_first(host: &Host, kind: &str, argv: Vec<String>) -> Self {
        let name = format!("{kind}{}", host.lab().next());
        let daemon = Self { host: host.clone(), name, argv, running: Mutex::new(None) };
        daemon.start();
        daemon
    }

    /// Starts it again; it must not run.
    #[track_caller]
    pub fn start(&self) {
        let mut running = lock(&self.running);
        if let Some((process, _)) = &*running {
            assert!(process.exited().is_some(), "{} on {} runs already", self.name, self.host.name());
        }
        let lab = self.host.lab();
        // Each life has a socket of its own, so that a late READY=1 of the former one is not taken for it.
        let path = lab.dir.join(format!("notify{}", lab.next()));
        let notified = Arc::new(Mutex::new(Notified::default()));
        listen(&path, &notified);
        let argv: Vec<&str> = self.argv.iter().map(String::as_str).collect();
        let mut command = self.host.ns().command(&argv);
        command.env("NOTIFY_SOCKET", &path);
        let process = self.host.spawn_command(&self.name, command);
        *running = Some((process, notified));
    }

    /// Waits until it says READY=1.
    #[track_caller]
    pub fn ready(self) -> Self {
        self.wait_ready();
        self
    }

    /// Waits until it says READY=1.
    #[track_caller]
    pub fn wait_ready(&self) {
        eventually(READY_LIMIT, &format!("{} on {} is ready", self.name, self.host.name()), || {
            if let Some(end) = self.exited() {
                panic!(
                    "{} on {} has ended ({end}) before it was ready\n{}",
                    self.name,
                    self.host.name(),
                    self.log()
                );
            }
            if self.is_ready() { Ok(()) } else { Err(format!("STATUS={}", self.status_text())) }
        });
    }

    fn with<T>(&self, look: impl FnOnce(&Process, &Mutex<Notified>) -> T) -> T {
        let running = lock(&self.running);
        let (process, notified) = running.as_ref().expect("started by `start_first`");
        look(process, notified)
    }

    /// Whether it has said READY=1.
    pub fn is_ready(&self) -> bool {
        self.ready_at().is_some()
    }

    /// When it said READY=1.
    pub fn ready_at(&self) -> Option<Instant> {
        self.with(|_, notified| lock(notified).ready)
    }

    /// The last STATUS= that it told the service manager.
    pub fn status_text(&self) -> String {
        self.with(|_, notified| lock(notified).status.clone())
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.with(|process, _| process.pid())
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.with(|process, _| process.exited())
    }

    /// Waits for an end that the scenario expects.
    #[track_caller]
    pub fn ends_within(&self, limit: Duration) -> ExitStatus {
        let process = self.with_process();
        process
            .wait_within(limit)
            .unwrap_or_else(|| panic!("{} on {} still runs after {limit:?}", self.name, self.host.name()))
    }

    fn with_process(&self) -> Arc<Process> {
        lock(&self.running).as_ref().expect("started by `start_first`").0.clone()
    }

    /// SIGKILL, and waits.
    pub fn kill9(&self) {
        self.with_process().kill9();
    }

    /// SIGTERM, and waits. flanneld may hang in its own shutdown when it has only just become
    /// ready (v0.28.7); it is then killed.
    #[track_caller]
    pub fn terminate(&self) -> ExitStatus {
        let process = self.with_process();
        if self.name.starts_with("flanneld") {
            process.signal(Signal::TERM);
            if process.wait_within(Duration::from_secs(2)).is_none() {
                process.kill9();
            }
            return process.exited().expect("it was killed");
        }
        process.terminate()
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.with_process().signal(Signal::STOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.with_process().signal(Signal::CONT);
    }

    /// SIGTERM, start, wait until ready.
    #[track_caller]
    pub fn restart(&self) {
        self.terminate();
        self.start();
        self.wait_ready();
    }

    /// Everything that it has logged, over all restarts.
    pub fn log(&self) -> String {
        self.with_process().log()
    }

    /// Asserts that the log says it, in a line that holds all of these texts.
    #[track_caller]
    pub fn logs(&self, words: &[&str]) {
        eventually(
            Duration::from_secs(10),
            &format!("the log of {} has a line with {words:?}", self.name),
            || {
                let log = self.log();
                let found = log.lines().any(|line| words.iter().all(|w| line.contains(w)));
                if found { Ok(()) } else { Err(log) }
            },
        );
    }
}

/// Receives notifications until nobody holds `notified` any more.
fn listen(path: &Path, notified: &Arc<Mutex<Notified>>) {
    let socket = UnixDatagram::bind(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // Daemons that are not root report too.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("opening the socket to all");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout above zero");
    let notified: Weak<_> = Arc::downgrade(notified);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).unwrap_or(0);
            let Some(notified) = notified.upgrade() else { return };
            for line in String::from_utf8_lossy(&buffer[..length]).lines() {
                match line.split_once('=') {
                    Some(("READY", "1")) => lock(&notified).ready = Some(Instant::now()),
                    Some(("STATUS", text)) => lock(&notified).status = text.into(),
                    _ => {}
                }
            }
        }
    });
}

/// A binary of the workspace: in `LODEN_BIN_DIR`, else beside the test executable.
pub(crate) fn binary(name: &str) -> String {
    let dirs: Vec<PathBuf> = match std::env::var_os("LODEN_BIN_DIR") {
        Some(dir) => vec![dir.into()],
        None => {
            let exe = std::env::current_exe().expect("the path of the test executable");
            exe.ancestors().skip(1).take(2).map(Path::to_path_buf).collect()
        }
    };
    let found = dirs.iter().map(|d| d.join(name)).find(|p| p.is_file());
    let found = found.unwrap_or_else(|| {
        panic!("no {name} in {dirs:?}: run `cargo build --workspace` or set LODEN_BIN_DIR")
    });
    found.display().to_string()
}
