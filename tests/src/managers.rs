//! Other programs that think a host's network is theirs: firewalld, ufw, systemd-networkd and
//! NetworkManager, really running. They begin as their packages install them, whatever this
//! machine's own settings in /etc are.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::process::{Process, lock};
use crate::{Host, eventually};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");

const BUS: &str = r#"<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
"#;

/// Python programs start slowly beside other scenarios.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running firewalld.
#[derive(Debug)]
pub struct Firewalld {
    host: Host,
    process: Mutex<Arc<Process>>,
}

impl Host {
    /// A D-Bus system bus of this host, started by the first call. It starts no services, which would outlive the lab.
    fn system_bus(&self) {
        let there = || self.ns().within_all(|| Path::new("/run/dbus/system_bus_socket").exists());
        if there() {
            return;
        }
        self.write_file("/run/dbus/system.conf", BUS);
        self.spawn(
            "dbus",
            &["dbus-daemon", "--config-file=/run/dbus/system.conf", "--nofork", "--nopidfile"],
        );
        eventually(START_LIMIT, "the system bus is there", there);
    }

    /// Puts Loden's zones, policies and service where `make install` puts them.
    pub fn install_firewalld_files(&self) {
        let layers = format!("lowerdir={PACKAGING}/firewalld:/usr/lib/firewalld");
        let mount = format!("mount -t overlay -o {layers} overlay /usr/lib/firewalld");
        self.run(&["sh", "-c", &format!("[ ! -d /usr/lib/firewalld ] || {mount}")]);
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

    /// Puts Loden's settings for systemd-networkd and udev in place.
    pub fn install_networkd_files(&self) {
        self.run(&["mkdir", "-p", "/etc/systemd/network", "/etc/systemd/networkd.conf.d"]);
        let put = format!("cd {PACKAGING}/networkd && cp *.network *.link /etc/systemd/network/");
        self.run(&["sh", "-c", &format!("{put} && cp *.conf /etc/systemd/networkd.conf.d/")]);
    }

    /// Starts systemd-networkd; `None`, with a note, where it is not installed.
    pub fn networkd(&self) -> Option<Arc<Process>> {
        const NETWORKD: &str = "/lib/systemd/systemd-networkd";
        if !self.has(NETWORKD) || !self.has("dbus-daemon") {
            return None;
        }
        self.without_udev();
        self.system_bus();
        // systemd makes these before it starts it.
        let made = "install -d -o systemd-network -g systemd-network /run/systemd/netif";
        self.run(&["sh", "-c", &format!("cd / && {made}; for f in links leases lldp; do {made}/$f; done")]);
        let process = self.spawn("networkd", &["env", "SYSTEMD_LOG_TARGET=console", NETWORKD]);
        eventually(START_LIMIT, "networkd has set eth0 up", || {
            assert!(process.exited().is_none(), "networkd has ended\n{}", process.log());
            let list = self.run(&["networkctl", "list", "--no-legend", "--no-pager"]);
            let done = list.lines().any(|l| l.contains(" eth0 ") && l.contains(" configured"));
            if done { Ok(()) } else { Err(format!("{list}{}", process.log())) }
        });
        Some(process)
    }

    /// Puts Loden's settings for NetworkManager in place.
    pub fn install_network_manager_file(&self) {
        self.run(&["mkdir", "-p", "/etc/NetworkManager/conf.d"]);
        self.run(&[
            "cp",
            &format!("{PACKAGING}/NetworkManager/90-loden.conf"),
            "/etc/NetworkManager/conf.d/",
        ]);
    }

    /// Starts NetworkManager; false, with a note, where it is not installed.
    pub fn network_manager(&self) -> bool {
        if !self.has("NetworkManager") || !self.has("dbus-daemon") {
            return false;
        }
        self.without_udev();
        self.system_bus();
        self.run(&["mkdir", "-p", "/etc/NetworkManager"]);
        self.write_file("/etc/NetworkManager/NetworkManager.conf", "[main]\nplugins=keyfile\n");
        self.spawn("NetworkManager", &["NetworkManager", "--no-daemon"]);
        eventually(START_LIMIT, "NetworkManager knows all devices", || {
            let states = self.exec(&["nmcli", "-t", "-f", "STATE", "general"]).stdout;
            if states.starts_with("connected") { Ok(()) } else { Err(states) }
        });
        true
    }

    /// Nobody tells a host of the lab's devices by udev, so its programs must not wait for that:
    /// they do not where /sys is read-only, as in a container.
    fn without_udev(&self) {
        self.run(&["mount", "-o", "remount,bind,ro", "/sys"]);
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
    /// `systemctl restart firewalld`: its rules are gone in between.
    pub fn restart(&self) {
        let mut process = lock(&self.process);
        process.terminate();
        *process = start_firewalld(&self.host);
    }
}
