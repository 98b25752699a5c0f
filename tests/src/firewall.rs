//! Real host firewalls on a host: firewalld on a bus of its own, and ufw.
//!
//! Both begin with what their packages install, whatever this machine's /etc says.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::process::{Process, lock};
use crate::{Host, eventually};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");

/// Python programs start slowly beside other scenarios.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running firewalld.
#[derive(Debug)]
pub struct Firewalld {
    host: Host,
    process: Mutex<Arc<Process>>,
}

impl Host {
    /// A D-Bus system bus, at the usual place of this host.
    pub fn system_bus(&self) {
        self.run(&["mkdir", "-p", "/run/dbus"]);
        self.spawn("dbus", &["dbus-daemon", "--system", "--nofork", "--nopidfile", "--nosyslog"]);
        eventually(START_LIMIT, "the system bus is there", || {
            self.ns().within_all(|| Path::new("/run/dbus/system_bus_socket").exists())
        });
    }

    /// Starts firewalld with one of its back ends (`nftables`, `iptables`); `None`, with a note,
    /// where it is not installed.
    pub fn firewalld(&self, backend: &str) -> Option<Firewalld> {
        if !self.has("firewalld") || !self.has("dbus-daemon") {
            return None;
        }
        self.run(&["rm", "-rf", "/etc/firewalld"]);
        self.write_file("/etc/firewalld/firewalld.conf", &format!("FirewallBackend={backend}\n"));
        self.system_bus();
        let process = Mutex::new(start_firewalld(self));
        Some(Firewalld { host: self.clone(), process })
    }

    /// Turns ufw on with its default rules; false, with a note, where it is not installed.
    pub fn ufw(&self) -> bool {
        if !self.has("ufw") {
            return false;
        }
        self.run(&["ufw", "--force", "reset"]);
        self.run(&["ufw", "--force", "enable"]);
        true
    }

    /// Puts Loden's application profile where `make install` puts it.
    pub fn install_ufw_profile(&self) {
        self.run(&["cp", &format!("{PACKAGING}/ufw/loden"), "/etc/ufw/applications.d/loden"]);
    }

    /// Makes `iptables` on this host the one of the old interface; false, with a note, where the
    /// kernel or this machine lacks it.
    pub fn legacy_iptables(&self) -> bool {
        if !self.exec(&["iptables-legacy", "-S"]).success() {
            eprintln!("skipped: no iptables-legacy here");
            return false;
        }
        for family in ["iptables", "ip6tables"] {
            for program in ["", "-save", "-restore"] {
                let target = format!("/usr/sbin/{family}-legacy{program}");
                self.run(&["ln", "-sf", &target, &format!("/etc/alternatives/{family}{program}")]);
            }
        }
        true
    }

    fn has(&self, program: &str) -> bool {
        let found = self.exec(&["sh", "-c", &format!("command -v {program}")]).success();
        if !found {
            eprintln!("skipped: {program} is not installed, run make deps");
        }
        found
    }
}

fn start_firewalld(host: &Host) -> Arc<Process> {
    let process = host.spawn("firewalld", &["firewalld", "--nofork", "--nopid", "--log-target=console"]);
    eventually(START_LIMIT, "firewalld runs", || {
        assert!(process.exited().is_none(), "firewalld has ended\n{}", process.log());
        host.exec(&["firewall-cmd", "--state"]).success()
    });
    process
}

impl Firewalld {
    /// Puts Loden's zones, policies and service where `make install` puts them.
    pub fn install_files(&self) {
        let layers = format!("lowerdir={PACKAGING}/firewalld:/usr/lib/firewalld");
        self.host.run(&["mount", "-t", "overlay", "-o", &layers, "overlay", "/usr/lib/firewalld"]);
    }

    /// `systemctl restart firewalld`: its rules are gone in between.
    pub fn restart(&self) {
        let mut process = lock(&self.process);
        process.terminate();
        *process = start_firewalld(&self.host);
    }
}
