//! What a process and its children use: CPU time, memory, wake-ups, read from /proc. Used by the
//! parts of the group, and by group `dns`.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Seconds of CPU time of a process, to the nanosecond, and of its children that have ended, in ticks
/// of a hundredth.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second field is a name in parentheses that may hold anything; cutime and cstime are fields
    // 16 and 17, in ticks (proc_pid_stat(5)).
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = rest.split_whitespace().skip(13).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(own_cpu_seconds(pid)? + ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Its utime and stime would be in ticks too, which at rest is as much as it uses in ten seconds.
fn own_cpu_seconds(pid: u32) -> Result<f64> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: it writes one clockid_t.
    let error = unsafe { libc::clock_getcpuclockid(pid.try_into()?, &raw mut clock) };
    ensure!(error == 0, "the CPU clock of process {pid}: {}", std::io::Error::from_raw_os_error(error));
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(result == 0, "the CPU time of process {pid}: {}", std::io::Error::last_os_error());
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Resident memory in MiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    Ok(status(pid, "VmRSS:")? as f64 / 1024.0)
}

/// How often its threads have gone to sleep and been woken.
pub(crate) fn wake_ups(pid: u32) -> Result<f64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        sum += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
    }
    Ok(sum as f64)
}

fn status(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    field(&text, name).with_context(|| format!("{name} in {path}"))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Watches the memory of a process with its children from its start, for the highest sum.
pub(crate) struct Peak {
    pid: u32,
    highest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
}

/// Between two samples: an nft process lives for 3 ms.
const SAMPLE: Duration = Duration::from_millis(1);

impl Peak {
    /// Begins to watch.
    pub(crate) fn of(pid: u32) -> Self {
        let (highest, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&highest), Arc::clone(&stop));
        let sampler = thread::spawn(move || {
            let (highest, stop) = shared;
            while !stop.load(Ordering::Relaxed) {
                let own_command = command(pid);
                // Until it runs its program, a child shows its parent's memory as its own.
                let children = children(pid).filter(|child| command(*child) != own_command);
                let children: u64 = children.filter_map(|child| status(child, "VmRSS:").ok()).sum();
                if children > 0 {
                    let own = status(pid, "VmRSS:").unwrap_or(0);
                    highest.fetch_max(own + children, Ordering::Relaxed);
                }
                thread::sleep(SAMPLE);
            }
        });
        Self { pid, highest, stop, sampler: Some(sampler) }
    }

    /// The peak so far, in MiB: of the process alone as the kernel knows it, or of a sample with
    /// children.
    pub(crate) fn mebibytes(&self) -> Result<f64> {
        let alone = status(self.pid, "VmHWM:")?;
        Ok(alone.max(self.highest.load(Ordering::Relaxed)) as f64 / 1024.0)
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
    }
}

/// The command line; `None` once it has ended.
fn command(pid: u32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/cmdline")).ok()
}

/// The children of all its threads.
fn children(pid: u32) -> impl Iterator<Item = u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|c| c.parse().ok()).collect::<Vec<u32>>())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_counts_from_when_it_runs_its_program() {
        let own = std::process::id();
        let memory = vec![1_u8; 64 << 20];
        let before = Peak::of(own);
        let mut late = Command::new("cat");
        // SAFETY: it only sleeps.
        unsafe {
            late.pre_exec(|| {
                thread::sleep(Duration::from_millis(200));
                Ok(())
            })
        };
        let mut late = late.stdin(Stdio::piped()).spawn().expect("cat");
        let shared = before.mebibytes().expect("this process runs");
        assert!(shared < 100.0, "{shared} MiB with a child that has not run its program");

        let after = Peak::of(own);
        thread::sleep(Duration::from_millis(100));
        assert!(after.highest.load(Ordering::Relaxed) > 0, "cat was not counted");
        drop(late.stdin.take());
        late.wait().expect("its input has ended");
        drop(memory);
    }
}
