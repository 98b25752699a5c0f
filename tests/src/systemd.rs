//! A host with a real systemd as its first process, which starts the packaged unit, sandbox and all. Its root is
//! an overlay over this machine's; network, address and name are the host's.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::docker::{cgroup_roots, first_pid};
use crate::process::Process;
use crate::{Host, Output, daemon, eventually};

const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");
const SYSTEMD: &str = "/lib/systemd/systemd";
const START_LIMIT: Duration = Duration::from_secs(40);

/// Run by a shell that is the first process of its namespaces, with what `Host::systemd` sets. Nothing is
/// started that this machine starts at its boot.
const BOOT: &str = r#"
mount --make-rprivate /
mkdir $root
mount -t tmpfs tmpfs $root
mkdir $root/upper $root/work $root/root
mount -t overlay -o lowerdir=/,upperdir=$root/upper,workdir=$root/work overlay $root/root
cd $root/root
rm -rf etc/fstab etc/systemd/system/*.wants etc/systemd/system/*.requires var/lib/loden etc/loden
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir -p opt/cni/bin etc/loden etc/systemd/system usr/lib/tmpfiles.d
cp $packaging/loden.service etc/systemd/system/
cp $packaging/tmpfiles.d/loden.conf usr/lib/tmpfiles.d/
systemd-sysusers --root=. $packaging/sysusers.d/loden.conf
touch usr/bin/loden opt/cni/bin/loden
mount --bind $loden usr/bin/loden
mount --bind $plugin opt/cni/bin/loden
echo "LODEN_ETCD_ENDPOINTS=$etcd" > etc/loden/loden.env
mkdir old
pivot_root . old
umount -l old
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_LOG_TARGET=journal \
    "$systemd" --unit=multi-user.target
"#;

/// A host's systemd.
#[derive(Debug)]
pub struct Systemd {
    host: Host,
    _first: Arc<Process>,
    pid: String,
}

impl Host {
    /// Boots systemd; `None`, with a note, where it is not installed or this machine has no cgroup v2.
    pub fn systemd(&self) -> Option<Systemd> {
        let lab = self.lab();
        // Beside the hierarchies of v1, or alone.
        let unified = cgroup_roots().into_iter().find(|root| root.join("cgroup.controllers").exists());
        let Some(unified) = unified.filter(|_| Path::new(SYSTEMD).exists()) else {
            eprintln!("skipped: there is no {SYSTEMD}, or no cgroup v2");
            return None;
        };
        let cgroup = unified.join(lab.dir.file_name().expect("a lab's folder"));
        fs::create_dir_all(&cgroup).expect("a cgroup");
        // No program is run before `unshare`, whose first child is systemd.
        let enter = format!(
            "echo $$ > {}/cgroup.procs; \
             exec unshare --pid --mount --uts --ipc --cgroup --fork --kill-child sh -ec \"$boot\"",
            cgroup.display()
        );
        let mut command = self.ns().command(&["sh", "-ec", &enter]);
        command
            .env("boot", BOOT)
            .env("root", lab.dir.join(format!("root-{}", self.name())))
            .env("packaging", PACKAGING)
            .env("loden", daemon::binary("loden"))
            .env("plugin", daemon::binary("loden-cni"))
            .env("etcd", format!("http://{}:2379", crate::Etcd::ADDRESS))
            .env("systemd", SYSTEMD);
        let first = self.spawn_command("systemd", command);
        let pid = eventually(START_LIMIT, "systemd has a first process", || first_pid(&first))
            .as_raw_nonzero()
            .to_string();
        let systemd = Systemd { host: self.clone(), _first: first, pid };
        eventually(START_LIMIT, "systemd has booted", || {
            let state = systemd.exec(&["systemctl", "is-active", "multi-user.target"]);
            if state.success() { Ok(()) } else { Err(state.describe()) }
        });
        Some(systemd)
    }
}

impl Systemd {
    /// Runs a program in it to its end.
    pub fn exec(&self, argv: &[&str]) -> Output {
        self.host.exec(&[&["nsenter", "--all", "--target", &self.pid, "--"], argv].concat())
    }

    /// Runs a program in it that must succeed; returns its standard output.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> String {
        self.exec(argv).expect_success()
    }

    /// Starts or restarts a unit; waits until it is ready.
    #[track_caller]
    pub fn restart(&self, unit: &str) {
        let done = self.exec(&["systemctl", "restart", unit]);
        assert!(done.success(), "{}\n{}", done.describe(), self.journal(unit));
    }

    /// What a unit's processes have said, and systemd of it.
    pub fn journal(&self, unit: &str) -> String {
        self.run(&["journalctl", "--unit", unit, "--output=cat"])
    }
}
