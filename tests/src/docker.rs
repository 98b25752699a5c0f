//! Real Docker on a lab's host. dockerd, its containerd and its containers run in a PID namespace
//! and a mount namespace of their own, which the kernel ends with their first process, and that
//! dies with the test process. So nothing outlives a scenario but a folder and empty cgroups.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use crate::process::{self, Process, lock};
use crate::{Container, Host, Output, eventually};

/// A Docker Engine, and what it makes its firewall of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Debian's docker.io with iptables-nft.
    DebianNft,
    /// Debian's docker.io with iptables-legacy.
    DebianLegacy,
    /// Docker 29 with iptables-nft.
    Docker29Iptables,
    /// Docker 29 with its own nftables table.
    Docker29Nftables,
}

impl Engine {
    /// A short name, for folders and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::DebianNft => "nft",
            Self::DebianLegacy => "legacy",
            Self::Docker29Iptables => "29_iptables",
            Self::Docker29Nftables => "29_nftables",
        }
    }

    /// Whether it is Docker 29, which `make docker29` builds.
    pub fn is_29(self) -> bool {
        matches!(self, Self::Docker29Iptables | Self::Docker29Nftables)
    }

    /// Whether it works by iptables, and so has the chain `DOCKER-USER` and a policy of `FORWARD`.
    pub fn by_iptables(self) -> bool {
        self != Self::Docker29Nftables
    }

    /// Which iptables it finds.
    fn iptables(self) -> &'static str {
        if self == Self::DebianLegacy { "legacy" } else { "nft" }
    }

    /// How long the daemon may take to put its rules back into `DOCKER-USER`. It is told of a
    /// change, and waits up to a second between repairs; legacy tables tell nobody.
    pub fn repair_limit(self) -> Duration {
        Duration::from_secs(if self == Self::DebianLegacy { 5 } else { 2 })
    }

    /// What dockerd needs beside the options that a scenario gives.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::DebianNft | Self::DebianLegacy => &[],
            Self::Docker29Iptables => &["--firewall-backend=iptables"],
            Self::Docker29Nftables => &["--firewall-backend=nftables"],
        }
    }

    /// Where its programs lie, those it must find first in front.
    fn folders(self) -> Vec<PathBuf> {
        let debian = peers().join("docker");
        // busybox lies in bin; later releases of Debian have docker-proxy in libexec.
        let folders = ["usr/sbin", "usr/bin", "bin", "usr/libexec/docker"];
        let mut folders: Vec<PathBuf> = folders.map(|folder| debian.join(folder)).into();
        if self.is_29() {
            folders.insert(0, peers().join("docker29"));
        }
        folders
    }

    /// Why it cannot run here.
    fn missing(self) -> Option<String> {
        let programs = ["dockerd", "docker", "docker-proxy", "containerd", "runc", "busybox"];
        let absent: Vec<&str> = programs.into_iter().filter(|p| self.program(p).is_none()).collect();
        if !absent.is_empty() {
            return Some(format!("no {}: run make docker", absent.join(", ")));
        }
        (self.is_29() && !peers().join("docker29/dockerd").is_file()).then(|| "run make docker29".into())
    }

    fn program(self, name: &str) -> Option<PathBuf> {
        self.folders().iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }
}

/// Where `make peers`, `make docker`, `make docker29` and `make podman` put what they fetch and build.
pub(crate) fn peers() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers"))
}

/// The name of the one image: busybox.
const IMAGE: &str = "lab";
/// A cold start on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Docker gives its containers ten seconds.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Docker on a host, over all its restarts.
#[derive(Debug)]
pub struct Docker {
    host: Host,
    engine: Engine,
    dir: PathBuf,
    environment: Mutex<String>,
    running: Mutex<Option<Arc<Process>>>,
}

impl Host {
    /// Docker, installed but not started. As on a fresh machine nothing is forwarded yet, so that
    /// Docker's start with iptables sets the policy of `FORWARD` to DROP; with its nftables back end
    /// it refuses to start on such a host.
    ///
    /// `None`, with a note, where this engine cannot run at all; not in CI, where it must.
    #[track_caller]
    pub fn docker(&self, engine: Engine) -> Option<Docker> {
        let old_tables = || self.exec(&["iptables-legacy", "-S"]).success();
        let missing = engine.missing().or_else(|| {
            (engine == Engine::DebianLegacy && !old_tables())
                .then(|| "this kernel has no tables for iptables-legacy".to_owned())
        });
        if let Some(reason) = missing {
            assert!(std::env::var_os("CI").is_none(), "Docker ({}) must run in CI: {reason}", engine.name());
            eprintln!("skipped: Docker ({}) cannot run here: {reason}", engine.name());
            return None;
        }
        let dir = self.lab().dir.join(format!("docker-{}", self.name()));
        for program in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                link(
                    &dir,
                    &format!("{program}-{}{suffix}", engine.iptables()),
                    &format!("{program}{suffix}"),
                );
            }
        }
        write_image(&dir, &engine.program("busybox").expect("nothing is missing"));
        // What the machine itself tells a Docker of its own.
        self.run(&["sh", "-c", "rm -rf /etc/docker && mkdir /etc/docker"]);
        for forwarding in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            self.ns().sysctl(forwarding, if engine.by_iptables() { "0" } else { "1" });
        }
        let host = self.clone();
        Some(Docker { host, engine, dir, environment: Mutex::default(), running: Mutex::default() })
    }
}

fn link(dir: &Path, program: &str, name: &str) {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)
        .and_then(|()| symlink(Path::new("/usr/sbin").join(program), bin.join(name)))
        .unwrap_or_else(|e| panic!("{name} in {}: {e}", bin.display()));
}

/// The archive that `docker import` makes an image of.
fn write_image(dir: &Path, busybox: &Path) {
    let bin = dir.join("image/bin");
    fs::create_dir_all(&bin)
        .and_then(|()| fs::copy(busybox, bin.join("busybox")).map(drop))
        .and_then(|()| symlink("busybox", bin.join("sleep")))
        .unwrap_or_else(|e| panic!("{}: {e}", bin.display()));
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(dir.join("image")).arg("-cf").arg(dir.join("image.tar")).arg(".");
    process::run(tar, b"").expect_success();
}

impl Docker {
    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Which Docker it is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// A command on the host that finds this Docker's programs and its iptables first.
    fn command(&self, argv: &[&str]) -> Command {
        let mut path = vec![self.dir.join("bin")];
        path.extend(self.engine.folders());
        path.extend(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
        let path = std::env::join_paths(path).expect("no colons in folders");
        let mut command = self.host.ns().command(argv);
        for variable in ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_INSECURE_NO_IPTABLES_RAW"] {
            command.env_remove(variable);
        }
        command.env("PATH", path).env("DOCKER_CONFIG", self.dir.join("client"));
        command
    }

    /// Runs a program on the host to its end, with this Docker's PATH.
    pub fn exec(&self, argv: &[&str]) -> Output {
        process::run(self.command(argv), b"")
    }

    /// The same for a program that must succeed; returns its standard output.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> String {
        self.exec(argv).expect_success()
    }

    /// Runs the docker client; it must succeed.
    #[track_caller]
    pub fn client(&self, args: &[&str]) -> String {
        self.run(&[&["docker"], args].concat())
    }

    /// Feeds a text to a program on the host, which must succeed.
    #[track_caller]
    pub fn feed(&self, argv: &[&str], text: &str) {
        process::run(self.command(argv), text.as_bytes()).expect_success();
    }

    /// What `loden docker-opts` with these flags prints for this Docker.
    #[track_caller]
    pub fn options(&self, flags: &[&str]) -> String {
        let loden = crate::daemon::binary("loden");
        self.run(&[&[loden.as_str(), "docker-opts"], flags].concat())
    }

    /// Starts it as the drop-in of docker.service does: the text is an EnvironmentFile, its
    /// variables are dockerd's, and DOCKER_OPTS are its arguments.
    #[track_caller]
    pub fn start(&self, environment: &str) {
        *lock(&self.environment) = environment.to_owned();
        self.start_again();
        if !self.exec(&["docker", "image", "inspect", IMAGE]).success() {
            self.client(&["import", &self.dir.join("image.tar").display().to_string(), IMAGE]);
        }
    }

    /// Starts it with the options of its last start.
    #[track_caller]
    pub fn start_again(&self) {
        let environment = lock(&self.environment).clone();
        let cgroup = self.host.lab().dir.file_name().expect("a lab's folder").to_string_lossy().into_owned();
        let data = format!("--data-root={}", self.dir.join("data").display());
        let cgroup = format!("--cgroup-parent=/{cgroup}");
        let mut argv = vec!["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "dockerd"];
        argv.extend([data.as_str(), &cgroup, "--exec-opt=native.cgroupdriver=cgroupfs"]);
        argv.extend(self.engine.flags());
        let variables: Vec<(&str, &str)> = environment.lines().filter_map(variable).collect();
        let options = variables.iter().find(|(name, _)| *name == "DOCKER_OPTS");
        argv.extend(options.map(|(_, value)| value.split_whitespace()).into_iter().flatten());
        let mut command = self.command(&argv);
        command.envs(variables);
        let process = self.host.spawn_command("dockerd", command);
        *lock(&self.running) = Some(process.clone());
        let mut known = false;
        eventually(START_LIMIT, &format!("dockerd on {} answers", self.host.name()), || {
            if let Some(end) = process.exited() {
                panic!("dockerd on {} has ended ({end})\n{}", self.host.name(), tail(&process.log()));
            }
            if !known && let Some(dockerd) = first_inside(&process) {
                process.takes_along(dockerd);
                known = true;
            }
            let answer = self.exec(&["docker", "version"]);
            if answer.success() { Ok(()) } else { Err(tail(&process.log())) }
        });
    }

    fn process(&self) -> Arc<Process> {
        lock(&self.running).clone().expect("a Docker that was started")
    }

    /// Ends it as `systemctl stop` does, with its containers.
    #[track_caller]
    pub fn stop(&self) {
        let process = self.process();
        let dockerd = first_pid(&process).expect("a running dockerd");
        kill_process(dockerd, Signal::TERM).expect("an own child's child");
        let end = process.wait_within(STOP_LIMIT);
        assert!(end.is_some(), "dockerd on {} runs on\n{}", self.host.name(), tail(&process.log()));
        process.kill9();
    }

    /// Stops it and starts it with the same options.
    #[track_caller]
    pub fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// dockerd and everything that it has started, its containers' processes included.
    pub fn processes(&self) -> Vec<u32> {
        let first = first_pid(&self.process()).map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
        let mut all: Vec<u32> = first.into_iter().collect();
        let mut known = 0;
        while let Some(pid) = all.get(known).copied() {
            all.extend(process::children(pid));
            known += 1;
        }
        all
    }

    /// Everything that dockerd has logged, over all restarts.
    pub fn log(&self) -> String {
        self.process().log()
    }

    /// A container on the default network.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        self.container_with(name, &[])
    }

    /// A container by `docker run` with these flags: `-p`, `--network`, `--restart`.
    #[track_caller]
    pub fn container_with(&self, name: &str, flags: &[&str]) -> Container {
        // The first process of a PID namespace does not hear a SIGTERM that it has not asked for.
        let mut args = vec!["run", "--detach", "--stop-signal=KILL", "--name", name];
        args.extend(flags);
        args.extend([IMAGE, "sleep", "1000000"]);
        self.client(&args);
        self.find(name)
    }

    /// A container that runs already, as after a restart of Docker.
    #[track_caller]
    pub fn find(&self, name: &str) -> Container {
        self.try_find(name).unwrap_or_else(|e| panic!("{name} on {}: {e}", self.host.name()))
    }

    /// The same, or why it does not run.
    pub fn try_find(&self, name: &str) -> Result<Container, String> {
        let output = self.exec(&["docker", "inspect", name]);
        let found: Value = serde_json::from_str(&output.stdout).map_err(|_| output.describe())?;
        let pid = found[0]["State"]["Pid"].as_u64().filter(|pid| *pid != 0);
        let pid = pid.ok_or_else(|| format!("it does not run: {}", found[0]["State"]))?;
        let settings = &found[0]["NetworkSettings"];
        let networks = || settings["Networks"].as_object().into_iter().flat_map(|n| n.values());
        let of = |key: &'static str| networks().filter_map(move |n| n[key].as_str()?.parse().ok());
        let addresses: Vec<IpAddr> = of("IPAddress").chain(of("GlobalIPv6Address")).collect();
        if addresses.is_empty() {
            return Err(format!("it has no address: {settings}"));
        }
        let dockerd = first_pid(&self.process()).ok_or("dockerd has ended")?;
        // Docker tells the number inside its own PID namespace.
        let path = format!("/proc/{}/root/proc/{pid}/ns/net", dockerd.as_raw_nonzero());
        let ns = crate::Ns::open(Path::new(&path)).map_err(|e| format!("{path}: {e}"))?;
        Ok(Container::new(&self.host, name, Arc::new(ns), addresses, None, Value::Null))
    }

    /// `docker rm --force`.
    #[track_caller]
    pub fn remove(&self, container: Container) {
        self.client(&["rm", "--force", container.name()]);
        container.delete();
    }
}

/// A line of an EnvironmentFile.
fn variable(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    Some((name, value.trim_matches('"')))
}

/// The end of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// The first process of the PID namespace that `unshare` has made.
pub(crate) fn first_pid(unshare: &Process) -> Option<Pid> {
    Pid::from_raw(process::children(unshare.pid()).first()?.cast_signed())
}

fn first_inside(unshare: &Process) -> Option<OwnedFd> {
    pidfd_open(first_pid(unshare)?, PidfdFlags::empty()).ok()
}

/// The folders in which cgroups of Docker's lie: one in cgroup v2, one for each hierarchy in v1.
pub(crate) fn cgroup_roots() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    below.filter(|p| p.is_dir()).chain([root.to_path_buf()]).collect()
}

/// Removes a cgroup and those below it.
pub(crate) fn remove_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // The kernel lets go of a cgroup a little after its last process. What is held for longer is
    // swept by a later run.
    for _ in 0..20 {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == ErrorKind::ResourceBusy => thread::sleep(Duration::from_millis(50)),
            _ => return,
        }
    }
}
