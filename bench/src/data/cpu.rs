//! How long CPUs were busy, softirq included: that is where packets are forwarded. Used by
//! `traffic.rs`.

use std::fs;

use anyhow::{Context as _, Result};
use rustix::param::clock_ticks_per_second;
use rustix::process::Pid;

/// Seconds that all CPUs together were not idle since boot: user, nice, system, irq and softirq of
/// /proc/stat (proc(5)). What other programs take is in it, what a hypervisor took away is not.
pub(crate) fn busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    parse(&text).context("the first line of /proc/stat")
}

fn parse(text: &str) -> Option<f64> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let fields: Vec<u64> = fields.by_ref().map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else { return None };
    Some((user + nice + system + irq + softirq) as f64 / clock_ticks_per_second() as f64)
}

/// The kernel's threads that forward packets when there are many.
pub(crate) fn softirq_threads() -> Vec<Pid> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    pids.filter(|pid| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.starts_with("ksoftirqd/")
    })
    .collect()
}

/// Seconds that threads have run, softirq in their context included (unless the kernel has
/// CONFIG_IRQ_TIME_ACCOUNTING).
pub(crate) fn of_threads(threads: &[Pid]) -> Result<f64> {
    let of_thread = |pid: &Pid| {
        // Nanoseconds come first (Documentation/scheduler/sched-stats.rst).
        let path = format!("/proc/{pid}/schedstat");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let nanoseconds = text.split(' ').next().and_then(|field| field.parse::<u64>().ok());
        Ok(nanoseconds.with_context(|| format!("{path}: {text:?}"))? as f64 / 1e9)
    };
    threads.iter().map(of_thread).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softirq_is_busy_and_stolen_time_is_not() {
        let ticks = clock_ticks_per_second() as f64;
        assert_eq!(parse("cpu  1 2 4 1000 1000 8 16 1000 0 0\ncpu0 1"), Some(31.0 / ticks));
        assert_eq!(parse("cpu0 1 2 3"), None);
    }
}
