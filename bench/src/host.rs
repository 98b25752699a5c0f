//! A host for a group to measure on: a network namespace and a mount namespace of its own, with
//! an empty /run. Used by the groups. Not the lab's hosts: those start a child by fork, with code
//! in between, and a runtime does not.

use std::fs;
use std::thread;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use loden_tests::Ns;

/// Runs code on a thread that is in the new host. Programs that it starts are there as well, and
/// the host is gone when the thread and they have ended.
pub(crate) fn on_new_host<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let work = || {
        // SAFETY: only this thread's namespaces, root and working folder become its own, and
        // nothing that it shares with other threads depends on them.
        unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS | UnshareFlags::NEWNET) }
            .context("a new namespace; measuring needs root")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("private mounts")?;
        mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID, Some(c"mode=0755")).context("mount /run")?;
        fs::create_dir("/run/netns").context("make /run/netns")?;
        use_cubic();
        work()
    };
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// The machine's congestion control may be another, and results must not depend on it. The kernel
/// lets a namespace have only what the machine allows; no measurement here fails for that.
fn use_cubic() {
    if let Err(error) = fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "cubic") {
        eprintln!(
            "TCP keeps the machine's congestion control, not cubic ({error}): add cubic to its \
             net.ipv4.tcp_allowed_congestion_control to compare TCP results with other machines'"
        );
    }
}

/// A container's network namespace, made before any clock runs.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Unlike all others'.
    pub(crate) number: u8,
    /// What the runtime calls the container.
    pub(crate) id: String,
    /// Where runtimes keep it: `/run/netns/…`.
    pub(crate) path: String,
    /// Keeps it.
    pub(crate) ns: Ns,
}

impl Sandbox {
    /// A new one with its loopback up, as runtimes hand them over.
    pub(crate) fn new(number: u8) -> Result<Self> {
        // As long as containerd's.
        let id = format!("{number:064x}");
        let path = format!("/run/netns/bench-{number}");
        let ns = Ns::new();
        fs::write(&path, "").with_context(|| format!("make {path}"))?;
        mount_bind(ns.path(), &path).with_context(|| format!("bind {path}"))?;
        Ok(Self { number, id, path, ns })
    }
}
