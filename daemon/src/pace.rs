//! How soon to look again after trouble, so that two managers never fight in a hot loop.

use std::time::Duration;

use loden_core::backoff::Backoff;
use tokio::time::Instant;

use crate::clock;

/// After this long without trouble, the next trouble is met at once again.
const PEACE: Duration = Duration::from_secs(10);

/// Waits that grow while trouble goes on, from 20 ms to a second.
#[derive(Debug)]
pub(crate) struct Pace {
    calm: Backoff,
    last_trouble: Instant,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { calm: Backoff::new(20, 1000), last_trouble: Instant::now() }
    }

    /// Notes trouble; how long to wait now.
    pub(crate) fn trouble(&mut self) -> Duration {
        if self.last_trouble.elapsed() > PEACE {
            self.calm.reset();
        }
        self.last_trouble = Instant::now();
        Duration::from_millis(self.calm.wait(clock::chance()))
    }
}
