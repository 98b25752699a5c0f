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

/// How soon to look again after trouble: waits that grow while it goes on, from some 20 ms to some second, so that
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

/// Lets single events through at once, and makes those of a rush wait for one another: a token bucket. To
/// deal with ten events together costs little more than to deal with one.
#[derive(Debug, Clone)]
pub struct Throttle {
    /// When the bucket is full again.
    full_at: Millis,
}

impl Throttle {
    /// Tokens in the bucket: a rack or two of hosts that come one by one are met at once each.
    pub const BURST: u64 = 600;
    /// A token comes back each so many milliseconds: far below the second in which a fault is to be healed, far
    /// above the time that an event takes.
    pub const INTERVAL: Millis = 20;

    /// One that has met no event.
    pub fn new(now: Millis) -> Self {
        Self { full_at: now }
    }

    /// Takes a token for events that have been dealt with. Tells for how long, in milliseconds, to let further
    /// ones gather before they are.
    pub fn take(&mut self, now: Millis) -> Millis {
        self.full_at = self.full_at.max(now).saturating_add(Self::INTERVAL);
        self.full_at.saturating_sub(Self::BURST * Self::INTERVAL).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_events_are_met_at_once_and_a_rush_of_them_by_the_interval() {
        let (mut now, mut throttle) = (10_000, Throttle::new(0));
        for _ in 0..Throttle::BURST {
            assert_eq!(throttle.take(now), 0, "one right after the other");
        }
        for _ in 0..100 {
            // Waits of a timer that is late now and then.
            let wait = throttle.take(now);
            assert!((1..=Throttle::INTERVAL).contains(&wait), "{wait}");
            now += wait + now % 3;
        }
        now += 50 * Throttle::INTERVAL;
        let at_once = (0..100).take_while(|_| throttle.take(now) == 0).count();
        assert!((49..=51).contains(&at_once), "calm is made use of: {at_once}");
    }

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
