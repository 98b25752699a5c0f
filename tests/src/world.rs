//! What makes a namespace look like a machine: its own /etc, /opt, /var/lib, /run, /sys, host name,
//! machine id and boot id.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_bind_recursive, mount_change, mount_move,
};
use rustix::system::sethostname;
use rustix::thread::UnshareFlags;

use crate::Ns;

/// The namespaces of a host. Its disk, the upper layers over /etc, /opt and /var/lib, lies in `disk`
/// and outlives them; /run and the boot id do not.
pub(crate) fn boot(name: &str, disk: &Path, boot_id: &str) -> Ns {
    for folder in ["etc", "etc.work", "opt", "opt.work", "lib", "lib.work", "cgroup"] {
        fs::create_dir_all(disk.join(folder)).expect("a folder of the host's disk");
    }
    let boot_file = disk.join("boot_id");
    fs::write(&boot_file, format!("{boot_id}\n")).expect("the boot id");
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
    let ns = Ns::build(flags, || {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).expect("private mounts");
        // A fresh sysfs shows this namespace's interfaces; the machine's cgroups stay.
        let cgroup = disk.join("cgroup");
        mount_bind_recursive("/sys/fs/cgroup", &cgroup).expect("binding the cgroups");
        mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).expect("mounting sysfs");
        mount_move(&cgroup, "/sys/fs/cgroup").expect("moving the cgroups");
        // Absent from kernels without BPF.
        let _ = mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None);
        overlay("/etc", &disk.join("etc"), &disk.join("etc.work"));
        overlay("/opt", &disk.join("opt"), &disk.join("opt.work"));
        overlay("/var/lib", &disk.join("lib"), &disk.join("lib.work"));
        mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID, Some(c"mode=0755")).expect("mounting /run");
        fs::create_dir_all("/run/netns").and_then(|()| fs::create_dir_all("/run/lock")).expect("/run");
        mount_bind(&boot_file, "/proc/sys/kernel/random/boot_id").expect("binding the boot id");
        sethostname(name.as_bytes()).expect("setting the host name");
    });
    ns.ip("link set lo up");
    ns
}

/// Shows the files of these folders in another, as if they had been installed there, to the calling
/// thread's mount namespace.
pub(crate) fn cover(target: &str, folders: &[PathBuf]) {
    let upper: String = folders.iter().map(|folder| format!("{}:", folder.display())).collect();
    let options = CString::new(format!("lowerdir={upper}{target}")).expect("no NUL in paths");
    mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .unwrap_or_else(|e| panic!("mounting {folders:?} over {target}: {e}"));
}

fn overlay(target: &str, upper: &Path, work: &Path) {
    let options = format!("lowerdir={target},upperdir={},workdir={}", upper.display(), work.display());
    let options = CString::new(options).expect("no NUL in paths");
    mount("overlay", target, "overlay", MountFlags::empty(), Some(options.as_c_str()))
        .unwrap_or_else(|e| panic!("mounting an overlay on {target}: {e}"));
}

/// Removes a folder; what the kernel still holds is swept by a later run.
pub(crate) fn remove_dir(dir: &Path) {
    if let Err(e) = fs::remove_dir_all(dir) {
        eprintln!("cannot remove {}: {e}", dir.display());
    }
}

/// Random text in the form of a UUID.
pub(crate) fn uuid() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid").expect("the kernel's random UUID");
    id.trim().to_owned()
}
