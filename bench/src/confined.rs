//! Nothing is left behind, however a part ends: each is measured by this program, started again as a
//! child with a PID namespace and a mount namespace of its own. When the child ends, a panic or a
//! crash included, the kernel kills all that it has started, since it is the namespace's first
//! process; network namespaces, mounts and temporary files go with them. And when this process ends
//! (Ctrl-C, SIGTERM, SIGKILL), the kernel kills the child. Called by `main.rs`.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Tells the child that it is one.
const INSIDE: &str = "LODEN_BENCH_INSIDE";
/// Memory that is in every system, and where nobody keeps programs. The lab's folders are there.
const TEMPORARY: &str = "/dev/shm";

/// Whether this is the child.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs this program again, confined, with this argument; how it ended and what it wrote to its
/// standard output.
pub(crate) fn run(argument: &str) -> Result<Output> {
    let run = || {
        // SAFETY: this thread only starts a child; the PID namespace is its children's, and nothing
        // that it shares with other threads depends on its mount namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID | UnshareFlags::NEWNS) }
            .context("new namespaces; measuring needs root")?;
        let mut again = Command::new(std::env::current_exe()?);
        again.arg(argument).env(INSIDE, "1").env("TMPDIR", TEMPORARY).stderr(Stdio::inherit());
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            again.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        again.output().context("start this program again")
    };
    // A thread can make only one PID namespace for its children.
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Prepares the child's namespaces.
pub(crate) fn prepare() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("private mounts")?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None).context("mount /proc")?;
    mount("tmpfs", TEMPORARY, "tmpfs", MountFlags::NOSUID, Some(c"mode=1777"))
        .with_context(|| format!("mount {TEMPORARY}"))
}
