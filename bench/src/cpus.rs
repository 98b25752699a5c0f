//! On which CPU somebody works, where the scheduler's choice would be a part of what is measured.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, getpid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Two CPUs if this process may use two, else the same twice.
pub(crate) fn two() -> Result<(usize, usize)> {
    let allowed = sched_getaffinity(Some(getpid())).context("the CPUs of this process")?;
    let mut usable = (0..CpuSet::MAX_CPU).rev().filter(|cpu| allowed.is_set(*cpu));
    let last = usable.next().context("no CPU at all")?;
    Ok((usable.next().unwrap_or(last), last))
}

/// Keeps the calling thread on a CPU.
pub(crate) fn stay_on(cpu: usize) -> Result<()> {
    sched_setaffinity(None, &only(cpu)).with_context(|| format!("stay on CPU {cpu}"))
}

fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

/// Processes that stay on a CPU each for as long as this value lives.
pub(crate) struct Pinned(Vec<(u32, CpuSet)>);

impl Pinned {
    /// Keeps all threads of these processes on these CPUs; of one that is named twice the last counts.
    pub(crate) fn new(processes: &[(u32, usize)]) -> Result<Self> {
        let mut pinned = Self(Vec::new());
        for (pid, cpu) in processes {
            pinned.0.push((*pid, sched_getaffinity(Pid::from_raw(*pid as i32))?));
            pin(*pid, &only(*cpu)).with_context(|| format!("keep process {pid} on CPU {cpu}"))?;
        }
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for (pid, former) in self.0.iter().rev() {
            // It may have ended.
            let _ = pin(*pid, former);
        }
    }
}

fn pin(pid: u32, set: &CpuSet) -> Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = thread?.file_name().to_string_lossy().parse()?;
        match sched_setaffinity(Pid::from_raw(thread), set) {
            // A thread that has ended since.
            Err(rustix::io::Errno::SRCH) => {}
            other => other?,
        }
    }
    Ok(())
}
