//! Debian's containerd on a lab's host: containers by `ctr run --cni`, pods by its CRI (`cri.rs`).

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cri::Cri;
use crate::process::{self, Process, lock};
use crate::runtimes::{IMAGE, Runtimes};
use crate::{Container, Output, eventually};

/// A cold start on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// containerd on a host, over all its restarts.
#[derive(Debug)]
pub struct Containerd {
    runtimes: Runtimes,
    running: Mutex<Option<Arc<Process>>>,
    /// One `ctr run` for each container, which calls the plugins.
    clients: Mutex<Vec<(String, Arc<Process>)>>,
}

impl Runtimes {
    /// Starts containerd; it finds plugins and networks where they are by default.
    #[track_caller]
    pub fn containerd(&self) -> Containerd {
        let containerd =
            Containerd { runtimes: self.clone(), running: Mutex::default(), clients: Mutex::default() };
        let config = format!(
            r#"version = 2
               root = "{folder}/root"
               state = "{folder}/state"
               [grpc]
               address = "{folder}/socket"
               [plugins."io.containerd.grpc.v1.cri"]
               sandbox_image = "{IMAGE}"
               restrict_oom_score_adj = true
               [plugins."io.containerd.grpc.v1.cri".cni]
               bin_dir = "/opt/cni/bin"
               conf_dir = "/etc/cni/net.d"
               [plugins."io.containerd.internal.v1.opt"]
               path = "{folder}/opt""#,
            folder = containerd.folder()
        );
        self.host().write_file("/etc/containerd/config.toml", &config);
        containerd.start();
        // A namespace of containerd's is also the name of the cgroup of its containers.
        for namespace in [self.cgroup().as_str(), "k8s.io"] {
            containerd.ctr_in(namespace, &["images", "import", &self.image()]).expect_success();
        }
        containerd
    }
}

impl Containerd {
    fn folder(&self) -> String {
        self.runtimes.folder("containerd")
    }

    fn socket(&self) -> String {
        format!("{}/socket", self.folder())
    }

    fn start(&self) {
        let command = self.runtimes.command(&["containerd", "--config", "/etc/containerd/config.toml"]);
        let host = self.runtimes.host();
        let process = host.spawn_command("containerd", command);
        *lock(&self.running) = Some(process.clone());
        eventually(START_LIMIT, &format!("containerd on {} answers", host.name()), || {
            if let Some(end) = process.exited() {
                panic!("containerd on {} has ended ({end})\n{}", host.name(), process.log());
            }
            let answer = self.ctr_in("default", &["version"]);
            if answer.success() { Ok(()) } else { Err(answer.describe()) }
        });
    }

    /// SIGTERM and start, as `systemctl restart` does: containers run on.
    #[track_caller]
    pub fn restart(&self) {
        let process = lock(&self.running).take().expect("a containerd that was started");
        let containerd =
            process::children(process.pid()).first().and_then(|p| Pid::from_raw(p.cast_signed()));
        kill_process(containerd.expect("a running containerd"), Signal::TERM).expect("an own child's child");
        assert!(process.wait_within(START_LIMIT).is_some(), "containerd runs on\n{}", process.log());
        self.start();
    }

    fn ctr_in(&self, namespace: &str, args: &[&str]) -> Output {
        let socket = self.socket();
        self.runtimes.exec(&[&["ctr", "--address", &socket, "--namespace", namespace], args].concat())
    }

    /// Runs ctr in the lab's namespace; it must succeed.
    #[track_caller]
    pub fn ctr(&self, args: &[&str]) -> String {
        self.ctr_in(&self.runtimes.cgroup(), args).expect_success()
    }

    /// A container by `ctr run --cni`, which wires it before its first process starts, and calls DEL
    /// when that has ended.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        let (socket, namespace) = (self.socket(), self.runtimes.cgroup());
        let client = ["ctr", "--address", &socket, "--namespace", &namespace, "run", "--rm", "--cni"];
        let container = ["--null-io", IMAGE, name, "/bin/sleep", "1000000"];
        let command = self.runtimes.command(&[&client[..], &container].concat());
        let process = self.runtimes.host().spawn_command(&format!("ctr-{name}"), command);
        lock(&self.clients).push((name.into(), process.clone()));
        eventually(START_LIMIT, &format!("containerd runs {name}"), || {
            if let Some(end) = process.exited() {
                panic!("ctr run of {name} has ended ({end})\n{}", process.log());
            }
            self.runtimes.find(name, self.pid(name)?)
        })
    }

    /// The number of a running container's first process, inside the runtimes' PID namespace.
    fn pid(&self, name: &str) -> Result<u64, String> {
        let tasks = self.ctr(&["tasks", "list"]);
        let words = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let found = words.filter(|w| w.first() == Some(&name) && w.last() == Some(&"RUNNING"));
        let pid = found.filter_map(|w| w.get(1)?.parse().ok()).next();
        pid.ok_or_else(|| format!("{name} does not run:\n{tasks}"))
    }

    /// Kills a container's first process; `ctr run` then deletes its network and itself.
    #[track_caller]
    pub fn remove(&self, container: Container) {
        let name = container.name().to_owned();
        self.ctr(&["tasks", "kill", "--signal", "SIGKILL", &name]);
        let client = lock(&self.clients).iter().find(|(n, _)| *n == name).map(|(_, p)| p.clone());
        let client = client.expect("a container that was made here");
        assert!(client.wait_within(START_LIMIT).is_some(), "ctr run of {name} goes on\n{}", client.log());
        lock(&self.clients).retain(|(n, _)| *n != name);
        container.delete();
    }

    /// Its Kubernetes interface.
    pub fn cri(&self) -> Cri {
        Cri::new(self.runtimes.clone(), self.socket())
    }
}
