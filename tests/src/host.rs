//! A host: namespaces that look like a machine, one NIC `eth0` on the underlay.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use loden_proto::Family;
use loden_proto::status::Status;
use loden_proto::subnet_env::SubnetEnv;
use serde_json::Value;

use crate::foreign::Foreign;
use crate::lab::{Segment, Shared, plug_member};
use crate::process::{Process, lock};
use crate::story::SOON;
use crate::{Ns, Output, eventually, world};

/// A host of the lab. Clones are the same host.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    number: u8,
    segment: Segment,
    disk: PathBuf,
    lab: Weak<Shared>,
    life: Mutex<Life>,
    foreign: Mutex<Option<Foreign>>,
}

/// What a reboot ends.
#[derive(Debug)]
struct Life {
    ns: Arc<Ns>,
    port: String,
}

impl Host {
    pub(crate) fn new(lab: &Arc<Shared>, name: &str, number: u8, segment: Segment) -> Self {
        let disk = lab.dir.join(format!("disk-{name}"));
        let life = boot(lab, name, number, segment, &disk);
        let inner = Inner {
            name: name.into(),
            number,
            segment,
            disk,
            lab: Arc::downgrade(lab),
            life: Mutex::new(life),
            foreign: Mutex::default(),
        };
        let host = Self { inner: Arc::new(inner) };
        host.write_file("/etc/machine-id", &format!("{}\n", world::uuid().replace('-', "")));
        *lock(&host.inner.foreign) = Some(Foreign::place(&host));
        host
    }

    pub(crate) fn lab(&self) -> Arc<Shared> {
        self.inner.lab.upgrade().expect("hosts are used while their lab stands")
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.inner.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name, also its host name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its IPv4 address on the underlay.
    pub fn address(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 168, self.inner.segment.number(), self.inner.number))
    }

    /// Its address on the underlay in a family.
    pub fn address_of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.address(),
            Family::V6 => {
                let text = format!("fd{}::{}", self.inner.segment.number(), self.inner.number);
                text.parse().expect("an address")
            }
        }
    }

    /// Its namespaces, until a reboot.
    pub fn ns(&self) -> Arc<Ns> {
        self.life().ns.clone()
    }

    /// Name of the wire's end of `eth0`: set it down to pull the plug.
    pub fn port(&self) -> String {
        self.life().port.clone()
    }

    /// Runs a program on the host to its end.
    pub fn exec(&self, argv: &[&str]) -> Output {
        self.ns().exec(argv)
    }

    /// Runs a program on the host that must succeed; returns its standard output.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> String {
        self.ns().run(argv)
    }

    /// Runs `ip` commands, one a line; all must succeed.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        self.ns().ip(lines);
    }

    /// Runs `bridge` commands, one a line; all must succeed.
    #[track_caller]
    pub fn bridge(&self, lines: &str) {
        self.ns().bridge(lines);
    }

    /// Runs a program that prints JSON.
    #[track_caller]
    pub fn json(&self, argv: &[&str]) -> Value {
        let text = self.run(argv);
        // iproute2 prints nothing at all for some empty lists.
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{argv:?} printed no JSON ({e}): {text}"))
    }

    /// Starts a program that goes on running; it ends with the lab, a reboot, or a kill.
    pub fn spawn(&self, name: &str, argv: &[&str]) -> Arc<Process> {
        self.spawn_command(name, self.ns().command(argv))
    }

    pub(crate) fn spawn_command(&self, name: &str, command: std::process::Command) -> Arc<Process> {
        let lab = self.lab();
        let log = lab.dir.join(format!("{}-{name}.log", self.name()));
        let process = Process::start(name, command, &log)
            .unwrap_or_else(|e| panic!("cannot start {name} on {}: {e}", self.name()));
        let process = Arc::new(process);
        lock(&lab.processes).push((self.name().into(), process.clone()));
        process
    }

    /// Reads a file of the host.
    pub fn read_file(&self, path: &str) -> Option<String> {
        self.ns().within_all(|| fs::read_to_string(path).ok())
    }

    /// Writes a file of the host, making its folder.
    #[track_caller]
    pub fn write_file(&self, path: &str, text: &str) {
        self.ns().within_all(|| {
            let path = PathBuf::from(path);
            fs::create_dir_all(path.parent().expect("a path below /"))
                .and_then(|()| fs::write(&path, text))
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        });
    }

    /// The daemon's `subnet.env`, if it is there and whole.
    pub fn subnet_env(&self) -> Option<SubnetEnv> {
        SubnetEnv::parse(&self.read_file("/run/loden/subnet.env")?).ok()
    }

    /// `loden status --json`.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status(&[]).unwrap_or_else(|e| panic!("status of {}: {e}", self.name()))
    }

    /// Asserts that `loden status` names a problem in a line that holds all of these texts.
    #[track_caller]
    pub fn status_names(&self, words: &[&str]) {
        eventually(SOON, &format!("status of {} names {words:?}", self.name()), || {
            let problems = self.try_status(&[])?.problems;
            let told = problems.iter().any(|p| words.iter().all(|w| p.contains(w)));
            if told { Ok(()) } else { Err(format!("{problems:#?}")) }
        });
    }

    /// Asserts that `loden status` knows of no problem.
    #[track_caller]
    pub fn status_is_content(&self) {
        eventually(SOON, &format!("status of {} has no problem", self.name()), || {
            let problems = self.try_status(&[])?.problems;
            if problems.is_empty() { Ok(()) } else { Err(format!("{problems:#?}")) }
        });
    }

    /// `loden status --json` with further flags; the error says what came instead.
    pub fn try_status(&self, flags: &[&str]) -> Result<Status, String> {
        let loden = crate::daemon::binary("loden");
        let mut argv = vec![loden.as_str(), "status", "--json"];
        argv.extend(flags);
        let output = self.exec(&argv);
        serde_json::from_str(&output.stdout).map_err(|e| format!("{e} in {}", output.describe()))
    }

    /// Power off and on: processes and containers die, /run is empty, the network is new; disk,
    /// machine id and underlay address stay.
    pub fn reboot(&self) {
        let lab = self.lab();
        lab.kill_processes(self.name());
        lock(&lab.containers).retain(|(host, _), _| host != self.name());
        let inner = &self.inner;
        {
            let mut life = self.life();
            if !life.port.is_empty() {
                lab.wire.ip(&format!("link del {}", life.port));
            }
            *life = boot(&lab, &inner.name, inner.number, inner.segment, &inner.disk);
        }
        if lock(&inner.foreign).is_some() {
            *lock(&inner.foreign) = Some(Foreign::place(self));
        }
    }

    /// Makes this host's disk and machine id a copy of another's, as a cloned VM's are.
    pub fn clone_identity_from(&self, other: &Host) {
        let copy = format!(
            "cp -a {0}/lib/. {1}/lib/ && cp -a {0}/etc/machine-id {1}/etc/machine-id",
            other.inner.disk.display(),
            self.inner.disk.display()
        );
        // Layers below a mounted overlay must not change, so the copy happens between two boots.
        let lab = self.lab();
        lab.kill_processes(self.name());
        crate::process::run(shell(&copy), b"").expect_success();
        self.reboot();
    }

    /// A new installation on the same hardware and address: empty disk, new machine id.
    pub fn reinstall(&self) {
        self.lab().kill_processes(self.name());
        for layer in ["etc", "opt", "lib"] {
            crate::process::run(shell(&format!("rm -rf {}/{layer}", self.inner.disk.display())), b"")
                .expect_success();
        }
        self.reboot();
        self.write_file("/etc/machine-id", &format!("{}\n", world::uuid().replace('-', "")));
    }

    /// Removes `eth0`, and with it all routes of the underlay.
    pub fn unplug(&self) {
        let mut life = self.life();
        life.ns.ip("link del eth0");
        life.port.clear();
    }

    /// Puts `eth0` back, with its address and default route.
    pub fn plug(&self) {
        let mut life = self.life();
        life.port = plug_member(&self.lab(), &life.ns, self.inner.number, self.inner.segment);
    }

    /// A further NIC with these addresses (`192.168.79.40/24`), up.
    pub fn add_nic(&self, interface: &str, segment: Segment, addresses: &[&str]) {
        let ns = self.ns();
        let mut lines = String::new();
        for address in addresses {
            // IPv6 addresses are taken as unique, or they would be tentative for a second.
            let nodad = if address.contains(':') { "nodad" } else { "" };
            lines += &format!("addr add {address} dev {interface} {nodad}\n");
        }
        self.lab().plug(&ns, interface, segment, &lines);
    }

    /// From here on the lab does not check that foreign objects on this host stay: the scenario
    /// itself destroys them (`nft flush ruleset`, the NIC down).
    pub fn forget_foreign(&self) {
        *lock(&self.inner.foreign) = None;
    }

    /// Takes the foreign objects away, for measurements: a second tunnel and further rules cost time.
    pub fn remove_foreign(&self) {
        if let Some(foreign) = lock(&self.inner.foreign).take() {
            foreign.remove(self);
        }
    }

    /// What became of the foreign objects, if not as they were placed.
    pub(crate) fn foreign_damage(&self) -> Option<String> {
        lock(&self.inner.foreign).as_ref().and_then(|foreign| foreign.damage(self))
    }
}

fn shell(line: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", line]);
    command
}

fn boot(lab: &Shared, name: &str, number: u8, segment: Segment, disk: &Path) -> Life {
    let ns = world::boot(name, disk, &world::uuid());
    let port = plug_member(lab, &ns, number, segment);
    Life { ns: Arc::new(ns), port }
}
