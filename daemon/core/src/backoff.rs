//! Waiting times between tries: doubling from a minimum to a maximum, with jitter so that
//! 10,000 hosts that lost etcd in the same second do not return in the same second.

use crate::Millis;

/// The waits of one series of tries.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Millis,
    max: Millis,
    next: Millis,
}

impl Backoff {
    /// A series that starts at `min` and stays at `max`, both in milliseconds.
    pub fn new(min: Millis, max: Millis) -> Self {
        Self { min, max, next: min }
    }

    /// The next wait, between half and one and a half of the step. `chance` is any random number.
    pub fn wait(&mut self, chance: u64) -> Millis {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step / 2 + chance % (step + 1)
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// After this long without trouble, the next trouble is met at once again, in milliseconds.
pub(crate) const PEACE: Millis = 10_000;

/// How soon to look again after trouble: waits that grow while it goes on, from 20 ms to a second, so that
/// two managers never fight in a hot loop.
#[derive(Debug, Clone)]
pub struct Pace {
    waits: Backoff,
    last_trouble: Millis,
}

impl Pace {
    /// One that has met no trouble.
    pub fn new(now: Millis) -> Self {
        Self { waits: Backoff::new(20, 1_000), last_trouble: now }
    }

    /// Notes trouble; how long to wait now. `chance` is any random number.
    pub fn trouble(&mut self, now: Millis, chance: u64) -> Millis {
        if now > self.last_trouble.saturating_add(PEACE) {
            self.waits.reset();
        }
        self.last_trouble = now;
        self.waits.wait(chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_maximum_and_begin_anew() {
        let mut backoff = Backoff::new(100, 400);
        let middle = |b: &mut Backoff| {
            let step = b.next;
            b.wait(step / 2)
        };
        assert_eq!([0; 4].map(|_| middle(&mut backoff)), [100, 200, 400, 400]);
        backoff.reset();
        assert_eq!(middle(&mut backoff), 100);
    }
}
