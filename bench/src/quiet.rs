//! Waits until the CPUs do what they are told, and tells whether they went on to. A hypervisor that gives them to others
//! for milliseconds at a time is in every p99 and in every cache; it does so for minutes, whoever is measured next.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::cpus;

/// For so long a thread on each CPU looks whether it runs all the time.
const LOOK: Duration = Duration::from_millis(200);
/// Reading the clock takes some tens of nanoseconds, a timer's interrupt some microseconds.
const GAP: Duration = Duration::from_micros(50);
/// Percent of the time that may go to others.
const ACCEPTED: f64 = 2.0;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How long this process, which is a part's, may still wait, in sum.
static PATIENCE: Mutex<Duration> = Mutex::new(Duration::from_secs(600));
/// How many of its measurements this process may still make again.
static REPEATS: AtomicU32 = AtomicU32::new(120);

/// What the machine was when a clock began to run.
#[derive(Debug)]
pub(crate) struct Quiet {
    stolen: u64,
}

impl Quiet {
    /// Whether what was measured since can be used: no hypervisor has taken CPU time, as far as the kernel knows, or
    /// no repeat is left.
    pub(crate) fn accepted(&self) -> Result<bool> {
        if stolen()? == self.stolen {
            return Ok(true);
        }
        let left = REPEATS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let left = left.unwrap_or(0);
        match left {
            0 => eprintln!("the hypervisor took CPU time meanwhile: the numbers will be noisy"),
            left => {
                eprintln!("the hypervisor took CPU time meanwhile: measuring again ({left} repeats left)")
            }
        }
        Ok(left == 0)
    }
}

/// Whether this process has used up its patience or its repeats, so that what it measured may be noisy.
pub(crate) fn given_up() -> bool {
    PATIENCE.lock().unwrap_or_else(PoisonError::into_inner).is_zero() || REPEATS.load(Ordering::Relaxed) == 0
}

/// Returns when the machine is quiet, or when there is no patience left. To be called right before a clock runs, while
/// the process may use all CPUs.
pub(crate) fn wait() -> Result<Quiet> {
    let mut patience = PATIENCE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut looks = 0;
    while !patience.is_zero() {
        let percent = taken()? * 100.0;
        if percent <= ACCEPTED {
            break;
        }
        *patience = patience.saturating_sub(LOOK + PAUSE);
        let left = patience.as_secs();
        if patience.is_zero() {
            eprintln!(
                "others still take {percent:.0} % of the CPU time: going on, the numbers will be noisy"
            );
        } else if looks % 10 == 0 {
            eprintln!("others take {percent:.0} % of the CPU time: waiting for less, {left} s at most");
        }
        looks += 1;
        thread::sleep(PAUSE);
    }
    Ok(Quiet { stolen: stolen()? })
}

/// The time for which CPUs had work and the hypervisor did not run them, in ticks (proc_stat(5), `steal`: the eighth
/// number of the first line); it stands still where there is none.
fn stolen() -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let steal = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
    steal.context("no steal time in /proc/stat")
}

/// Part of the time for which threads that never wait do not run, on the CPUs that the measurements use.
fn taken() -> Result<f64> {
    let (one, other) = cpus::two()?;
    let looks: Vec<_> =
        BTreeSet::from([one, other]).into_iter().map(|cpu| thread::spawn(move || gaps(cpu))).collect();
    let (mut gaps, mut all) = (Duration::ZERO, Duration::ZERO);
    for look in looks {
        let (of_one, took) = look.join().map_err(|_| anyhow!("a look at a CPU panicked"))??;
        gaps += of_one;
        all += took;
    }
    Ok(gaps.as_secs_f64() / all.as_secs_f64())
}

/// The sum of a CPU's gaps in a look, and how long the look took: more than planned where it ended in a gap.
fn gaps(cpu: usize) -> Result<(Duration, Duration)> {
    cpus::stay_on(cpu)?;
    let start = Instant::now();
    let (mut last, mut sum) = (start, Duration::ZERO);
    while last - start < LOOK {
        let now = Instant::now();
        if now - last > GAP {
            sum += now - last;
        }
        last = now;
    }
    Ok((sum, last - start))
}
