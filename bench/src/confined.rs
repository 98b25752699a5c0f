//! Nothing is left behind, however a run ends: everything happens in a child with a PID namespace
//! and a mount namespace of its own. When this process ends (Ctrl-C, SIGTERM, SIGKILL), the kernel
//! kills the child, which is the namespace's first process, and so all that it has started; network
//! namespaces, mounts and temporary files go with them. Called by `main.rs`.

use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Tells the child that it is one.
const INSIDE: &str = "LODEN_BENCH_INSIDE";
/// Memory that is in every system, and where nobody keeps programs. The lab's folders are there.
const TEMPORARY: &str = "/dev/shm";

/// Runs this program again, confined, and gives its end; `None` in that second program.
pub(crate) fn run() -> Result<Option<ExitCode>> {
    if std::env::var_os(INSIDE).is_some() {
        prepare()?;
        return Ok(None);
    }
    // SAFETY: there is one thread, which shares nothing; its PID namespace is its children's.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID | UnshareFlags::NEWNS) }
        .context("new namespaces; measuring needs root")?;
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args_os().skip(1)).env(INSIDE, "1").env("TMPDIR", TEMPORARY);
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
    unsafe {
        again.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let status = again.status().context("start this program again")?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(Some(ExitCode::from(u8::try_from(code).unwrap_or(1))))
}

fn prepare() -> Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("private mounts")?;
    mount("proc", "/proc", "proc", MountFlags::empty(), None).context("mount /proc")?;
    mount("tmpfs", TEMPORARY, "tmpfs", MountFlags::NOSUID, Some(c"mode=1777"))
        .with_context(|| format!("mount {TEMPORARY}"))
}
