//! When to look at the kernel, and at how much of it: the reconciler's schedule, without its work.
//!
//! | what happens | what follows |
//! |---|---|
//! | inputs change | a pass at once |
//! | a notice contradicts the belief | a look as large as needed; at once, or when the calm after a repair is over |
//! | the kernel refuses something | a full look after a pause that grows while the same is refused, up to the period |
//! | nothing, for a period | a full look, in case a notice was lost; the period is long enough for the looks' cost |
//! | a pass cannot get through, say for want of an underlay | the next pass owes what it was to look at; what was read is read again only if it was wrong |

use crate::Millis;
use crate::backoff::{Backoff, Pace};

/// How much a pass looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Look {
    /// What inputs changed.
    Changes,
    /// Filters, devices, addresses, forwarding too: rules and forwarding are read anew.
    Base,
    /// Everything; the kernel is read anew for it unless it just was.
    Full,
}

/// What a pass that got through met with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing out of order.
    Well,
    /// Somebody else's changes, which it took back.
    Repaired,
    /// Operations were refused, as they were before.
    RefusedAgain,
    /// Operations were refused that were not before.
    Refused,
}

/// The period if nobody sets one; longer where a full look costs more than its [`SHARE`] of that.
const PERIOD: Millis = 30_000;
/// Reading the kernel costs at most so small a part of a CPU. Comparing takes half of that again, and what
/// else the daemon does in its rest about as much as both.
const SHARE: Millis = 3_000;
/// The longest it gets: a host on which reading takes a second still finds what no notice told.
const LONGEST: Millis = 300_000;
/// The first wait after a refusal.
const PAUSE: Millis = 20;

/// The schedule. Time is `CLOCK_BOOTTIME` in milliseconds, `chance` any random number.
#[derive(Debug)]
pub struct Agenda {
    /// As it was set.
    wished: Option<Millis>,
    period: Millis,
    next_full: Millis,
    /// What the next pass has to look at, whenever and for whatever reason it comes.
    owed: Look,
    /// Whether nothing was found wrong since the kernel was last read.
    read: bool,
    /// How much of the belief was contradicted.
    contradicted: Look,
    pace: Pace,
    calm_until: Millis,
    retry: Backoff,
    retry_at: Option<Millis>,
}

impl Agenda {
    /// A schedule that begins with a full look and has one every `period`, by default every 30 seconds or
    /// so much less often that all looks together take half a thousandth of a CPU.
    pub fn new(now: Millis, wished: Option<Millis>) -> Self {
        let period = wished.unwrap_or(PERIOD);
        Self {
            wished,
            period,
            next_full: now.saturating_add(period),
            owed: Look::Full,
            read: false,
            contradicted: Look::Changes,
            pace: Pace::new(now),
            calm_until: now,
            retry: Backoff::new(PAUSE, period),
            retry_at: None,
        }
    }

    /// So much of the belief is wrong.
    pub fn contradict(&mut self, look: Look) {
        self.contradicted = self.contradicted.max(look);
    }

    /// Whether something of the belief is wrong and waits to be looked at.
    pub fn is_contradicted(&self) -> bool {
        self.contradicted > Look::Changes
    }

    /// When a pass is due without further news.
    pub fn deadline(&self) -> Millis {
        let contradicted = self.is_contradicted().then_some(self.calm_until);
        [contradicted, self.retry_at].into_iter().flatten().fold(self.next_full, Millis::min)
    }

    /// A pass begins: what it has to look at.
    pub fn begin(&mut self, now: Millis) -> Look {
        let mut due = Look::Changes;
        if self.calm_until <= now {
            due = std::mem::replace(&mut self.contradicted, Look::Changes);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            due = Look::Full;
        }
        if self.next_full <= now {
            self.next_full = now.saturating_add(self.period);
            due = Look::Full;
        }
        self.read &= due == Look::Changes;
        self.owed = self.owed.max(due);
        self.owed
    }

    /// Whether the pass that has begun is to read the kernel anew.
    pub fn must_read(&self) -> bool {
        self.owed == Look::Full && !self.read
    }

    /// The whole kernel has been read, which took so much time of the CPU (`cost`).
    pub fn was_read(&mut self, now: Millis, cost: Millis) {
        self.read = true;
        self.period = self.wished.unwrap_or_else(|| cost.saturating_mul(SHARE).clamp(PERIOD, LONGEST));
        self.next_full = now.saturating_add(self.period);
    }

    /// The kernel could not be read: the belief is as old as it was, and notices of it are gone.
    pub fn unreadable(&mut self, now: Millis, chance: u64) {
        self.contradict(Look::Full);
        self.calm_until = now + self.pace.trouble(now, chance);
    }

    /// The pass got through and in the end had looked at so much. What a pass that does not get through had
    /// to look at stays owed.
    pub fn done(&mut self, look: Look, outcome: Outcome, now: Millis, chance: u64) {
        self.owed = Look::Changes;
        if outcome != Outcome::Well {
            self.calm_until = now + self.pace.trouble(now, chance);
        }
        match outcome {
            Outcome::Refused => {
                self.retry.reset();
                self.retry_at = Some(now + self.retry.wait(chance));
            }
            Outcome::RefusedAgain if self.retry_at.is_none() => {
                self.retry_at = Some(now + self.retry.wait(chance));
            }
            Outcome::Well | Outcome::Repaired if look == Look::Full => self.retry_at = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::PEACE;

    const COST: Millis = 8;
    const NO_CHANCE: u64 = 0;

    /// One whose first look is done.
    fn settled() -> Agenda {
        let mut agenda = Agenda::new(0, None);
        assert_eq!(agenda.begin(0), Look::Full);
        agenda.was_read(0, COST);
        agenda.done(Look::Full, Outcome::Well, 0, NO_CHANCE);
        agenda
    }

    #[test]
    fn a_period_without_news_ends_with_a_full_look() {
        let mut agenda = settled();
        assert_eq!(agenda.begin(100), Look::Changes);
        assert_eq!(agenda.deadline(), PERIOD);
        assert_eq!(agenda.begin(PERIOD), Look::Full);
        agenda.was_read(PERIOD + 40, COST);
        agenda.done(Look::Full, Outcome::Well, PERIOD + 40, NO_CHANCE);
        assert_eq!(agenda.deadline(), 2 * PERIOD + 40);
    }

    #[test]
    fn looks_that_cost_much_come_less_often_unless_somebody_set_the_period() {
        for (wished, period) in [(None, 120_000), (Some(1_000), 1_000)] {
            let mut agenda = Agenda::new(0, wished);
            agenda.begin(0);
            agenda.was_read(100, 40);
            agenda.done(Look::Full, Outcome::Well, 100, NO_CHANCE);
            assert_eq!(agenda.deadline(), 100 + period);
            agenda.begin(agenda.deadline());
            agenda.was_read(100 + period, COST);
            agenda.done(Look::Full, Outcome::Well, 100 + period, NO_CHANCE);
            assert_eq!(agenda.deadline(), 100 + period + wished.unwrap_or(PERIOD));
        }
    }

    #[test]
    fn a_contradiction_is_met_at_once_and_after_repairs_when_the_calm_is_over() {
        let mut agenda = settled();
        agenda.contradict(Look::Full);
        assert!(agenda.deadline() <= 100);
        assert_eq!(agenda.begin(100), Look::Full);
        agenda.was_read(100, COST);
        agenda.done(Look::Full, Outcome::Repaired, 100, NO_CHANCE);
        let mut waits = Vec::new();
        for _ in 0..9 {
            agenda.contradict(Look::Base);
            let (before, at) = (agenda.calm_until, agenda.deadline());
            assert_eq!(agenda.begin(at - 1), Look::Changes, "not before the calm is over");
            assert_eq!(agenda.begin(at), Look::Base);
            agenda.done(Look::Base, Outcome::Repaired, at, NO_CHANCE);
            waits.push(agenda.calm_until - before);
        }
        assert!(waits.is_sorted() && waits.last() == Some(&500), "{waits:?}");
        let later = agenda.calm_until + PEACE;
        agenda.done(Look::Base, Outcome::Repaired, later, NO_CHANCE);
        assert_eq!(agenda.calm_until, later + PAUSE / 2, "after peace the waits begin anew");
    }

    #[test]
    fn what_a_pass_could_not_look_at_the_next_one_does() {
        let mut agenda = settled();
        agenda.contradict(Look::Full);
        assert_eq!(agenda.begin(100), Look::Full);
        // No underlay, say: it is not done, and nothing is due before there is news.
        assert_eq!(agenda.deadline(), PERIOD);
        assert_eq!(agenda.begin(200), Look::Full);
        assert!(agenda.must_read());
        agenda.was_read(200, COST);
        for now in 300..400 {
            assert_eq!((agenda.begin(now), agenda.must_read()), (Look::Full, false), "it is known");
        }
        for wrong in [Look::Base, Look::Full] {
            agenda.contradict(wrong);
            assert_eq!(
                (agenda.begin(400), agenda.must_read()),
                (Look::Full, true),
                "it is known to be wrong"
            );
            agenda.was_read(400, COST);
        }
        let due = agenda.next_full;
        assert_eq!((agenda.begin(due), agenda.must_read()), (Look::Full, true), "a period later it may be");
        agenda.was_read(400, COST);
        agenda.done(Look::Full, Outcome::Well, 400, NO_CHANCE);
        assert_eq!(agenda.begin(500), Look::Changes);
    }

    #[test]
    fn what_is_refused_again_and_again_is_tried_ever_more_rarely() {
        let mut agenda = settled();
        let (mut now, mut waits) = (100, Vec::new());
        let mut outcome = Outcome::Refused;
        for _ in 0..14 {
            agenda.begin(now);
            agenda.was_read(now, COST);
            agenda.done(Look::Full, outcome, now, NO_CHANCE);
            outcome = Outcome::RefusedAgain;
            waits.push(agenda.deadline() - now);
            now = agenda.deadline();
        }
        assert!(waits.is_sorted() && waits[0] == PAUSE / 2 && waits[13] == PERIOD / 2, "{waits:?}");
        // News in between put the next try off no further.
        let at = agenda.deadline();
        agenda.begin(at - 1);
        agenda.done(Look::Changes, Outcome::RefusedAgain, at - 1, NO_CHANCE);
        assert_eq!(agenda.deadline(), at);
        agenda.begin(at);
        agenda.was_read(at, COST);
        agenda.done(Look::Full, Outcome::Refused, at, NO_CHANCE);
        assert_eq!(agenda.deadline(), at + PAUSE / 2, "something new is tried again soon");
        agenda.begin(at + PAUSE);
        agenda.was_read(at + PAUSE, COST);
        agenda.done(Look::Full, Outcome::Well, at + PAUSE, NO_CHANCE);
        assert_eq!(agenda.deadline(), at + PAUSE + PERIOD);
    }
}
