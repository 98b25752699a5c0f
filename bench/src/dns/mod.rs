//! The group `dns`: how many questions does the server answer, how fast, and how soon is a changed name known
//! everywhere? Called by `main.rs`, part by part.
//!
//! Loden, CoreDNS and dnsmasq have the same names ([`names`]) and take turns; every answer is judged
//! ([`question`]).

mod distribution;
mod found;
mod load;
mod names;
mod question;
mod serve;
mod servers;

use anyhow::Result;
use loden_tests::{Etcd, Lab};

use crate::control::fleet::Fleet;
use crate::report::Row;
use names::Store;

/// How many questions are answered, and how fast.
pub(crate) fn serve(rounds: u32) -> Result<Vec<Row>> {
    on_stage(|lab, etcd, store| serve::measure(lab, etcd, store, rounds))
}

/// How soon a change is answered on other hosts.
pub(crate) fn distribution(rounds: u32) -> Result<Vec<Row>> {
    on_stage(|lab, etcd, store| distribution::measure(lab, etcd, store, rounds))
}

/// With a fleet of hosts in etcd whose containers have the names.
fn on_stage(measure: impl FnOnce(&Lab, &Etcd, &mut Store) -> Result<Vec<Row>> + Send) -> Result<Vec<Row>> {
    let lab = Lab::new("bench_dns");
    let etcd = lab.etcd();
    // Sockets of this thread, and of the clients that it makes, are then in etcd's namespace.
    etcd.ns().within(|| {
        let mut fleet = Fleet::connect(&etcd)?;
        fleet.configure()?;
        fleet.resize(names::HOSTS)?;
        measure(&lab, &etcd, &mut Store::connect(&etcd)?)
    })
}
