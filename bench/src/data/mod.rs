//! Group `data`: what a packet costs. Streams, round trips, connections and datagrams between
//! containers on two hosts, and between containers of one host: by Loden, by flannel, and between
//! the two hosts themselves, in turns. Called by `main.rs`.
//!
//! Two hosts of one kernel share its CPUs, so throughput is what a byte costs, and both ends' CPU
//! time is counted.

mod cpu;
mod gains;
mod sides;
mod sockets;
mod traffic;
pub(crate) mod underlay;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use crate::quiet;
use crate::report::Row;
use sides::Side;
use traffic::{Cost, Load, Timing};
use underlay::Mode;

pub(crate) use gains::run as run_gains;

/// What is measured, under which name, with which segmentation offloads on the underlay.
struct Metric {
    name: String,
    /// Of the rate.
    unit: &'static str,
    /// Units of the rate in one of what [`Load`] counts.
    scale: f64,
    /// Of the CPU time: what it is spent on.
    each: &'static str,
    mode: Mode,
    place: Place,
    load: Load,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Between containers on two hosts, or between the hosts.
    Hosts,
    /// Between two containers of one host.
    SameHost,
}

/// Gigabits in a byte.
const GIGABITS: f64 = 8.0 / 1e9;
/// Thousands.
const THOUSANDS: f64 = 1e-3;
const TIMING: Timing = Timing { warm_up: Duration::from_millis(300), window: Duration::from_millis(1500) };
const FLOWS: [(usize, &str); 3] = [(1, "1 flow"), (100, "100 flows"), (10_000, "10,000 flows")];

fn metrics() -> Vec<Metric> {
    let tcp = sockets::congestion_control();
    let metric = |name: &str, load: Load, mode, place| {
        let (unit, scale, each) = match load {
            Load::Stream => ("Gbit/s", GIGABITS, "byte"),
            Load::RoundTrips { .. } => ("k/s", THOUSANDS, "round trip"),
            Load::Connections => ("k/s", THOUSANDS, "connection"),
            Load::Datagrams { .. } => ("k/s", THOUSANDS, "datagram"),
        };
        Metric { name: name.into(), unit, scale, each, mode, place, load }
    };
    let mut all = vec![
        metric(&format!("TCP stream, {tcp}, offloads"), Load::Stream, Mode::Offloads, Place::Hosts),
        metric(&format!("TCP stream, {tcp}, wire"), Load::Stream, Mode::Wire, Place::Hosts),
        metric("TCP connections", Load::Connections, Mode::Wire, Place::Hosts),
        metric("UDP 1,400 B", Load::Datagrams { size: 1400, flows: 1 }, Mode::Wire, Place::Hosts),
    ];
    for (flows, text) in FLOWS {
        let round_trips = Load::RoundTrips { flows };
        all.push(metric(&format!("TCP round trips, {text}"), round_trips, Mode::Wire, Place::Hosts));
        let datagrams = Load::Datagrams { size: 64, flows };
        all.push(metric(&format!("UDP 64 B, {text}"), datagrams, Mode::Wire, Place::Hosts));
    }
    let local =
        |name: &str, load| metric(&format!("same host, {name}"), load, Mode::Offloads, Place::SameHost);
    all.extend([
        local("TCP stream", Load::Stream),
        local("TCP round trips", Load::RoundTrips { flows: 1 }),
        local("TCP connections", Load::Connections),
        local("UDP 64 B", Load::Datagrams { size: 64, flows: 1 }),
    ]);
    all
}

/// Costs of the rounds, by metric and side.
type Found = BTreeMap<(usize, usize), Vec<Cost>>;

/// Measures this many rounds; the table's rows.
pub(crate) fn run(rounds: u32) -> Result<Vec<Row>> {
    let arena = sides::Arena::new("bench_data");
    let mut sides = vec![arena.loden("loden")?, arena.host_to_host()];
    sides.extend(arena.flannel()?);
    let metrics = metrics();
    let mut found = Found::new();
    for round in 0..rounds as usize {
        for (number, metric) in metrics.iter().enumerate() {
            eprintln!("data: round {} of {rounds}, {}", round + 1, metric.name);
            quiet::wait()?;
            for turn in 0..sides.len() {
                let which = (round + turn) % sides.len();
                if let Some(cost) = measure(metric, &sides[which])? {
                    found.entry((number, which)).or_default().push(cost);
                }
            }
        }
    }
    Ok(rows(&metrics, &sides, &found))
}

/// What a metric is on a side; `None` where there is no such place.
fn measure(metric: &Metric, side: &Side) -> Result<Option<Cost>> {
    let path = match metric.place {
        Place::Hosts => side.between_hosts(),
        Place::SameHost => match side.on_one_host() {
            Some(path) => path,
            None => return Ok(None),
        },
    };
    side.underlay().switch_to(metric.mode);
    metric.load.measure(&path, TIMING).map(Some)
}

fn rows(metrics: &[Metric], sides: &[Side], found: &Found) -> Vec<Row> {
    let mut rows = Vec::new();
    for (number, metric) in metrics.iter().enumerate() {
        // None for a side that has no such place.
        let of_side = |which: usize, value: &dyn Fn(&Cost) -> f64| -> Option<Vec<f64>> {
            found.get(&(number, which)).map(|costs| costs.iter().map(value).collect())
        };
        let mut row = |name: &str, unit: &'static str, value: &dyn Fn(&Cost) -> f64| {
            let Some(loden) = of_side(0, value) else { return };
            let before = rows.len();
            for (which, side) in sides.iter().enumerate().skip(1) {
                if let Some(baseline) = of_side(which, value) {
                    rows.push(Row::new(name, unit, &loden).beside(side.name(), &baseline));
                }
            }
            if rows.len() == before {
                rows.push(Row::new(name, unit, &loden));
            }
        };
        row(&metric.name, metric.unit, &|cost| cost.per_second * metric.scale);
        let cpu = format!("{}, CPU per {}", metric.name, metric.each);
        match metric.load {
            // A byte costs less than a nanosecond.
            Load::Stream => row(&cpu, "ps", &|cost| cost.cpu * 1e12),
            _ => row(&cpu, "us", &|cost| cost.cpu * 1e6),
        }
    }
    rows
}
