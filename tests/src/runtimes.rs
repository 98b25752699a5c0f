//! Where real container runtimes run on a host: in a PID namespace and a mount namespace of their
//! own, which the kernel ends with their first process, and that dies with the test process. So
//! containers that daemonize (conmon, containerd's shims) outlive no scenario. `containerd.rs`,
//! `podman.rs` and `cnitool.rs` put the runtimes there; all of a host share one, as on a machine.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use crate::docker::peers;
use crate::process::{self, Process};
use crate::story::SOON;
use crate::{Container, Host, Ns, Output, daemon, eventually, kernel, world};

/// What a scenario with real runtimes needs beside Loden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// Debian's containerd, from `make docker`.
    Containerd,
    /// Debian's Podman, from `make podman`. Since version 5 it has no CNI.
    Podman,
    /// cnitool, from `make peers`, which needs Go.
    Cnitool,
}

impl Needed {
    /// What must be there, and the command that brings it.
    fn files(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Containerd => {
                (&["docker/usr/bin/containerd", "docker/usr/bin/ctr", "docker/bin/busybox"], "make docker")
            }
            Self::Podman => (
                &["podman/usr/bin/podman", "docker/usr/sbin/runc", "docker/bin/busybox"],
                "make docker podman",
            ),
            Self::Cnitool => (&["cnitool"], "make peers"),
        }
    }

    fn missing(self) -> Option<String> {
        let (files, remedy) = self.files();
        if !Path::new(REFERENCE_PLUGINS).join("portmap").is_file() {
            return Some(format!("no {REFERENCE_PLUGINS}/portmap: run make deps"));
        }
        let absent = files.iter().find(|file| !peers().join(file).is_file())?;
        Some(format!("no {absent}: run {remedy}"))
    }

    /// The folders of unpacked packages that it consists of.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Containerd => &["docker"],
            Self::Podman => &["docker", "podman"],
            Self::Cnitool => &[],
        }
    }
}

/// Debian's reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// The first process: the shell reaps orphans while it waits.
const FIRST: &str = "sleep infinity & wait";
/// The name of the one image, busybox that sleeps.
pub(crate) const IMAGE: &str = "localhost/lab:latest";

/// The runtimes of a host. Clones are the same.
#[derive(Debug, Clone)]
pub struct Runtimes {
    host: Host,
    process: Arc<Process>,
}

impl Host {
    /// A place for these runtimes, with Loden's plugin and Debian's in `/opt/cni/bin`, and this list in
    /// `/etc/cni/net.d`.
    ///
    /// `None`, with a note, where one of them cannot run; in CI only for want of Go.
    #[track_caller]
    pub fn runtimes(&self, needed: &[Needed], conflist: &Value) -> Option<Runtimes> {
        if let Some((what, reason)) = needed.iter().find_map(|n| Some((n, n.missing()?))) {
            let bound = std::env::var_os("CI").is_some() && *what != Needed::Cnitool;
            assert!(!bound, "{what:?} must run in CI: {reason}");
            eprintln!("skipped: {what:?} cannot run here: {reason}");
            return None;
        }
        self.install_plugins();
        self.install_packages(needed);
        self.write_file("/etc/cni/net.d/10-loden.conflist", &conflist.to_string());
        write_image(&self.lab().dir);
        let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", FIRST];
        let process = self.spawn("runtimes", &unshare);
        let first: OwnedFd = eventually(SOON, "the runtimes' first process is there", || {
            pidfd_open(first_pid(&process)?, PidfdFlags::empty()).ok()
        });
        process.takes_along(first);
        let runtimes = Runtimes { host: self.clone(), process };
        eventually(SOON, "the runtimes have a /proc of their own", || {
            runtimes.exec(&["grep", "--quiet", FIRST, "/proc/1/cmdline"]).success()
        });
        Some(runtimes)
    }

    /// All folders at once: overlays upon overlays soon meet the kernel's limit.
    fn install_packages(&self, needed: &[Needed]) {
        let packages: BTreeSet<&str> = needed.iter().flat_map(|n| n.packages()).copied().collect();
        let folders: Vec<PathBuf> = packages.into_iter().map(|p| peers().join(p).join("usr")).collect();
        if !folders.is_empty() {
            self.ns().within_all(|| world::cover("/usr", &folders));
        }
    }

    /// What the machine itself has there is none of this host's business.
    fn install_plugins(&self) {
        self.run(&["sh", "-c", "rm -rf /etc/cni /etc/containers /opt/cni && mkdir -p /opt/cni/bin"]);
        self.run(&["ln", "-s", &daemon::binary("loden-cni"), "/opt/cni/bin/loden"]);
        self.run(&["sh", "-c", &format!("ln -s {REFERENCE_PLUGINS}/* /opt/cni/bin/")]);
    }

    /// The rules, of whatever table, that mention one of these addresses.
    pub fn rules_about(&self, addresses: &[IpAddr]) -> Vec<String> {
        let rules = self.run(&["nft", "--stateless", "list", "ruleset"]);
        // As 10.5.7.2, 10.5.7.2/32 and 10.5.7.2:80.
        let address = |word: &str| match word.parse::<SocketAddr>() {
            Ok(socket) => Some(socket.ip()),
            Err(_) => word.parse().ok(),
        };
        let mentions = |line: &&str| {
            let mut words = line.split(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':');
            words.any(|word| address(word).is_some_and(|a| addresses.contains(&a)))
        };
        rules.lines().filter(mentions).map(|line| line.trim().to_owned()).collect()
    }

    /// What ended containers may have left: allocations, veth pairs, rules about their addresses.
    fn leftovers(&self, addresses: &[IpAddr]) -> Vec<String> {
        let mut left = self.allocations();
        left.extend(kernel::links(self).into_iter().filter(|link| link.contains("veth")));
        left.extend(self.rules_about(addresses));
        left
    }

    /// The allocation files of all networks, indices included.
    fn allocations(&self) -> Vec<String> {
        let script = "find /run/loden/ipam -type f ! -name lock ! -path '*/freed/*'";
        self.exec(&["sh", "-c", script]).stdout.lines().map(str::to_owned).collect()
    }

    /// Asserts that ended containers with these addresses have left nothing.
    #[track_caller]
    pub fn has_no_leftovers(&self, addresses: &[IpAddr]) {
        eventually(SOON, &format!("nothing of {addresses:?} is left on {}", self.name()), || {
            let left = self.leftovers(addresses);
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    }
}

impl Runtimes {
    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A command in the runtimes' namespaces.
    pub(crate) fn command(&self, argv: &[&str]) -> Command {
        let first = self.first().as_raw_nonzero().to_string();
        let enter = ["nsenter", "--pid", "--mount", "--target", &first, "--"];
        self.host.ns().command(&[&enter, argv].concat())
    }

    /// Runs a program to its end.
    pub fn exec(&self, argv: &[&str]) -> Output {
        process::run(self.command(argv), b"")
    }

    /// Runs a program that must succeed; returns its standard output.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> String {
        self.exec(argv).expect_success()
    }

    fn first(&self) -> Pid {
        first_pid(&self.process).expect("the runtimes' first process lives")
    }

    /// A folder for a runtime's data, on a file system that can carry an overlay.
    pub(crate) fn folder(&self, name: &str) -> String {
        self.host.lab().dir.join(format!("{name}-{}", self.host.name())).display().to_string()
    }

    /// The archive of [`IMAGE`].
    pub(crate) fn image(&self) -> String {
        image(&self.host.lab().dir).display().to_string()
    }

    /// The cgroup of all containers, which the lab removes.
    pub(crate) fn cgroup(&self) -> String {
        let dir = &self.host.lab().dir;
        dir.file_name().expect("a lab's folder").to_string_lossy().into_owned()
    }

    /// The container of which a runtime says that its process has this number.
    pub(crate) fn find(&self, name: &str, pid: u64) -> Result<Container, String> {
        self.open(name, &format!("/proc/{}/root/proc/{pid}/ns/net", self.first().as_raw_nonzero()))
    }

    /// The container of a namespace that the runtime has bound to a path.
    pub(crate) fn find_bound(&self, name: &str, path: &str) -> Result<Container, String> {
        self.open(name, &format!("/proc/{}/root{path}", self.first().as_raw_nonzero()))
    }

    /// A container with the addresses that it sees itself.
    fn open(&self, name: &str, path: &str) -> Result<Container, String> {
        let ns = Ns::open(Path::new(path)).map_err(|e| format!("{path}: {e}"))?;
        let links: Value = serde_json::from_str(&ns.run(&["ip", "-j", "address", "show", "scope", "global"]))
            .map_err(|e| e.to_string())?;
        let of = |link: &Value| link["addr_info"].as_array().cloned().unwrap_or_default();
        let all = links.as_array().into_iter().flatten().flat_map(of);
        let addresses: Vec<IpAddr> = all.filter_map(|a| a["local"].as_str()?.parse().ok()).collect();
        if addresses.is_empty() {
            return Err(format!("{name} has no address: {links}"));
        }
        Ok(Container::new(&self.host, name, Arc::new(ns), addresses, None, Value::Null))
    }
}

/// The first process of the PID namespace that `unshare` has made.
fn first_pid(unshare: &Process) -> Option<Pid> {
    Pid::from_raw(process::children(unshare.pid()).first()?.cast_signed())
}

fn image(dir: &Path) -> PathBuf {
    dir.join("busybox.tar")
}

/// An image archive as `docker save` makes it, which containerd and Podman both read.
fn write_image(dir: &Path) {
    if image(dir).is_file() {
        return;
    }
    let (work, busybox) = (dir.join("busybox"), peers().join("docker/bin/busybox"));
    let script = r#"
        mkdir -p "$1/root/bin" && cp "$2" "$1/root/bin/busybox" && ln -s busybox "$1/root/bin/sleep"
        tar -C "$1/root" -cf "$1/layer.tar" . && sha256sum "$1/layer.tar""#;
    let sum = shell(script, &[&work, &busybox]);
    let sum = sum.split_whitespace().next().expect("a sum");
    let config = json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    for (name, value) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(work.join(name), value.to_string()).expect("writing a file of the image");
    }
    shell(r#"tar -C "$1" -cf "$2" config.json manifest.json layer.tar"#, &[&work, &image(dir)]);
}

fn shell(script: &str, arguments: &[&Path]) -> String {
    let mut command = Command::new("sh");
    command.args(["-euc", script, "sh"]).args(arguments);
    process::run(command, b"").expect_success()
}
