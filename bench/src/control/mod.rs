//! The group `control`: what does a daemon cost with few and with many peers, and how soon is the
//! kernel what etcd says? Called by `main.rs`, part by part.
//!
//! One real etcd holds a fleet of leases, each key under an etcd lease of its own. Loden, flanneld
//! and a bare client ([`contender`]) take turns on fresh hosts of the lab; the kernel's own
//! notifications ([`notices`]) tell when an object is in place, and a look at the kernel
//! ([`in_place`]) that all are.

mod cold_start;
mod contender;
mod convergence;
pub(crate) mod fleet;
mod in_place;
mod mass;
mod notices;
mod repair;
mod steady;
pub(crate) mod usage;

use anyhow::Result;
use loden_tests::{Etcd, Host, Lab};

use crate::report::Row;
use contender::Kind;
use fleet::Fleet;

/// The few peers, as in a small cluster.
const FEW: u32 = 3;
/// The many.
const MANY: u32 = 10_000;
/// Factor of rounds for what takes seconds: the median of more of them bears one in which the machine paused.
const SHORT: u32 = 3;

/// What a part works with: a lab, the fleet in its etcd, and who is measured.
struct Stage<'a> {
    lab: &'a Lab,
    etcd: &'a Etcd,
    fleet: &'a mut Fleet,
    /// Rounds of what takes minutes; [`SHORT`] times as many of what takes seconds.
    rounds: u32,
    /// Loden first.
    kinds: Vec<Kind>,
    /// Hosts made so far.
    hosts: u32,
}

impl Stage<'_> {
    /// A host that has never run a daemon.
    fn host(&mut self) -> Host {
        self.hosts += 1;
        self.lab.host(&format!("host-{}", self.hosts))
    }

    /// Measures each contender once a round; who begins changes from round to round.
    fn in_turns(
        &mut self,
        rounds: u32,
        situation: &str,
        mut measure: impl FnMut(&mut Self, Kind) -> Result<()>,
    ) -> Result<()> {
        for round in 0..rounds as usize {
            for turn in 0..self.kinds.len() {
                let kind = self.kinds[(round + turn) % self.kinds.len()];
                eprintln!("control: {situation}, round {} of {rounds}, {}", round + 1, kind.name());
                measure(self, kind)?;
            }
        }
        Ok(())
    }
}

/// How much a start costs.
pub(crate) fn cold_start(rounds: u32) -> Result<Vec<Row>> {
    on_stage(rounds, cold_start::measure)
}

/// How soon a single lease is in the kernel.
pub(crate) fn convergence(rounds: u32) -> Result<Vec<Row>> {
    on_stage(rounds, convergence::measure)
}

/// Many leases that come and go at once.
pub(crate) fn mass(rounds: u32) -> Result<Vec<Row>> {
    on_stage(rounds, mass::measure)
}

/// What a daemon costs while nothing happens.
pub(crate) fn steady(rounds: u32) -> Result<Vec<Row>> {
    on_stage(rounds, steady::measure)
}

/// Full passes, deleted routes, restarts.
pub(crate) fn repair(rounds: u32) -> Result<Vec<Row>> {
    on_stage(rounds, repair::measure)
}

fn on_stage(rounds: u32, measure: fn(&mut Stage<'_>) -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    let lab = Lab::new("bench_control");
    let etcd = lab.etcd_later();
    // etcd stops for a millisecond when it commits, every 100 ms by default, and for several when Go collects
    // garbage: the slowest puts of a hundred would be those, whoever follows.
    etcd.start_with(&["--backend-batch-interval=100s"], &[("GOGC", "1000")]);
    // Sockets of this thread, and of the clients that it makes, are then in etcd's namespace.
    etcd.ns().within(|| {
        let mut fleet = Fleet::connect(&etcd)?;
        fleet.configure()?;
        measure(&mut Stage {
            lab: &lab,
            etcd: &etcd,
            fleet: &mut fleet,
            rounds,
            kinds: Kind::present(),
            hosts: 0,
        })
    })
}
