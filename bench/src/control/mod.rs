//! The group `control`: what does a daemon cost with few and with many peers, and how soon is the
//! kernel what etcd says? Called by `main.rs`.
//!
//! One real etcd holds a fleet of leases, each key under an etcd lease of its own. Loden, flanneld
//! and a bare client ([`contender`]) take turns on fresh hosts of the lab; the kernel's own
//! notifications ([`notices`]) tell when an object is in place.

mod cold_start;
mod contender;
mod convergence;
mod fleet;
mod mass;
mod notices;
mod repair;
mod steady;
mod usage;

use anyhow::Result;
use loden_tests::Lab;

use crate::report::Row;
use contender::Kind;
use fleet::Fleet;

/// The few peers, as in a small cluster.
const FEW: u32 = 3;
/// The many.
const MANY: u32 = 10_000;

/// What the parts work with: a lab, the fleet in its etcd, and who is measured.
struct Stage<'a> {
    lab: &'a Lab,
    fleet: &'a mut Fleet,
    rounds: u32,
    /// Loden first.
    kinds: Vec<Kind>,
}

/// Measures the group.
pub(crate) fn run(rounds: u32) -> Result<Vec<Row>> {
    let lab = Lab::new("bench_control");
    let etcd = lab.etcd();
    // Sockets of this thread, and of the clients that it makes, are then in etcd's namespace.
    etcd.ns().within(|| {
        let mut fleet = Fleet::connect(&etcd)?;
        let mut stage = Stage { lab: &lab, fleet: &mut fleet, rounds, kinds: Kind::present() };
        stage.fleet.configure()?;
        let mut rows = Vec::new();
        for part in
            [cold_start::measure, convergence::measure, mass::measure, steady::measure, repair::measure]
        {
            rows.extend(part(&mut stage)?);
        }
        Ok(rows)
    })
}
