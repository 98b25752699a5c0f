//! Debian's Podman 4 on a lab's host, wired by CNI.

use serde_json::Value;

use crate::runtimes::{IMAGE, Runtimes};
use crate::{Container, Output};

/// Podman on a host. It has no daemon: each command is a life of its own.
#[derive(Debug)]
pub struct Podman {
    runtimes: Runtimes,
    flags: Vec<String>,
}

/// The recipe of docs/cni.md.
const CONTAINERS_CONF: &str = r#"[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin", "/usr/lib/cni"]
"#;

/// Its locks lie in /dev/shm by default, where those of the machine's own Podman are.
const OWN_LOCKS: &str = "[engine]\nlock_type = \"file\"\n";

impl Runtimes {
    /// Podman, which finds the network as a person would have configured it. `None`, with a note, where
    /// Debian's has no CNI: since version 5.
    #[track_caller]
    pub fn podman(&self) -> Option<Podman> {
        let version = self.run(&["podman", "--version"]);
        if !version.contains(" version 4.") {
            eprintln!("skipped: no CNI in {version}");
            return None;
        }
        let config = format!("{CONTAINERS_CONF}{OWN_LOCKS}");
        self.host().write_file("/etc/containers/containers.conf", &config);
        self.host().write_file(
            "/etc/containers/policy.json",
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        );
        let flags = [
            format!("--root={}", self.folder("podman")),
            "--runroot=/run/podman".into(),
            "--storage-driver=vfs".into(),
            "--runtime=runc".into(),
            "--cgroup-manager=cgroupfs".into(),
            "--events-backend=none".into(),
        ];
        let podman = Podman { runtimes: self.clone(), flags: flags.into() };
        podman.run(&["load", "--input", &self.image()]);
        Some(podman)
    }
}

impl Podman {
    /// Runs Podman to its end.
    pub fn exec(&self, args: &[&str]) -> Output {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        self.runtimes.exec(&[&["podman"], flags.as_slice(), args].concat())
    }

    /// Runs Podman; it must succeed.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        self.exec(args).expect_success()
    }

    /// A container by `podman run` on Loden's network with further flags.
    #[track_caller]
    pub fn container(&self, name: &str, flags: &[&str]) -> Container {
        let cgroup = format!("--cgroup-parent=/{}", self.runtimes.cgroup());
        let mut args =
            vec!["run", "--detach", "--network=loden", "--stop-signal=KILL", "--name", name, &cgroup];
        args.extend(flags);
        args.extend([IMAGE, "sleep", "1000000"]);
        self.run(&args);
        self.find(name)
    }

    /// A container that runs, as after `podman restart`.
    #[track_caller]
    pub fn find(&self, name: &str) -> Container {
        let pid = self.inspect(name)["State"]["Pid"].as_u64().expect("a process");
        self.runtimes.find(name, pid).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// What `podman inspect` shows of a container.
    #[track_caller]
    pub fn inspect(&self, name: &str) -> Value {
        let text = self.run(&["inspect", name]);
        let found: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        found[0].clone()
    }

    /// `podman rm --force`.
    #[track_caller]
    pub fn remove(&self, container: Container) {
        self.run(&["rm", "--force", "--time=0", container.name()]);
        container.delete();
    }
}
