//! Waits until the CPUs do what they are told. A hypervisor that gives them to others for milliseconds at a time is
//! in every p99 and in every cache; it does so for minutes, whoever is measured next.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::cpus;

/// For so long a thread on each CPU looks whether it runs all the time.
const LOOK: Duration = Duration::from_millis(200);
/// Reading the clock takes some tens of nanoseconds, a timer's interrupt some microseconds.
const GAP: Duration = Duration::from_micros(50);
/// Part of the time that may go to others.
const ACCEPTED: f64 = 0.02;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// How long this process, which is a part's, may still wait, in sum.
static PATIENCE: Mutex<Duration> = Mutex::new(Duration::from_secs(600));

/// Returns when the machine is quiet, or when there is no patience left.
pub(crate) fn wait() -> Result<()> {
    let mut patience = PATIENCE.lock().unwrap_or_else(PoisonError::into_inner);
    while !patience.is_zero() {
        let taken = taken()?;
        if taken <= ACCEPTED {
            break;
        }
        *patience = patience.saturating_sub(LOOK + PAUSE);
        eprintln!(
            "{:.0} % of the CPU time goes to others: {}",
            taken * 100.0,
            match patience.as_secs() {
                0 => "waited long enough for less, so the numbers will be noisy".to_owned(),
                left => format!("waiting for less, {left} s at most"),
            }
        );
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Part of the time for which threads that never wait do not run, on the CPUs that the measurements use.
fn taken() -> Result<f64> {
    let (one, other) = cpus::two()?;
    let looks: Vec<_> =
        BTreeSet::from([one, other]).into_iter().map(|cpu| thread::spawn(move || gaps(cpu))).collect();
    let all = LOOK * u32::try_from(looks.len())?;
    let mut sum = Duration::ZERO;
    for look in looks {
        sum += look.join().map_err(|_| anyhow!("a look at a CPU panicked"))??;
    }
    Ok(sum.as_secs_f64() / all.as_secs_f64())
}

/// The sum of a CPU's gaps in a look.
fn gaps(cpu: usize) -> Result<Duration> {
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
    Ok(sum)
}
