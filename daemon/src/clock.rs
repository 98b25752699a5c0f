//! The clocks and the dice: the only place that reads them.

use std::time::{SystemTime, UNIX_EPOCH};

use loden_core::Millis;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, sleep included; never steps back.
pub fn now() -> Millis {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Milliseconds of the CPU that this thread has had.
pub fn cpu_time() -> Millis {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

/// Seconds since 1970, for what must outlive a reboot.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A random number from the kernel.
pub fn chance() -> u64 {
    let mut bytes = [0; 8];
    // Cannot fail for 8 bytes once the pool is seeded (getrandom(2)); the clock is random enough
    // for jitter before that.
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => clock_gettime(ClockId::Monotonic).tv_nsec as u64,
    }
}
