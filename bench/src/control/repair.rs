//! Drift: what a full pass over 10,000 peers costs when there is none, how soon 1,000 deleted
//! objects are back, and what a restart writes when everything is in place.

use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use loden_netlink::route::AddressFamily;
use loden_netlink::route::neighbour::NeighbourMessage;
use loden_netlink::route::route::RouteMessage;
use loden_netlink::{Request, Socket, message_type, nexthop};
use loden_tests::{Host, Ns};
use rustix::time::{ClockId, clock_gettime};

use super::contender::{Found, Kind, Limit, Metric};
use super::notices::{Direction, Notices};
use super::{MANY, Stage, fleet, usage};
use crate::quiet;
use crate::report::{Budget, Row};

/// Passes to take the mean of.
const PASSES: u32 = 20;
/// The shortest time between full passes that Loden takes.
const RESYNC: Duration = Duration::from_secs(1);

const ALL_BACK: Metric = Metric { name: "all back", unit: "s" };
const CHANGES: Metric = Metric { name: "changes in the kernel", unit: "" };

pub(super) fn measure(stage: &mut Stage<'_>) -> Result<Vec<Row>> {
    stage.fleet.resize(MANY)?;
    let host = stage.host();
    let notices = Notices::of(&host.ns())?;
    let mut rows = vec![full_pass(stage, &host, &notices)?];
    rows.extend(deleted_objects(stage, &host, &notices)?);
    rows.extend(restart(stage, &host, &notices)?);
    Ok(rows)
}

/// The first start on the host.
fn full_pass(stage: &Stage<'_>, host: &Host, notices: &Notices) -> Result<Row> {
    let running = Kind::Loden.start_with(host, &["--resync=1s"])?;
    running.wait_for_routes(notices, fleet::routes(0..MANY), Direction::Come)?;
    sleep(Duration::from_secs(2));
    let (mut passes, mut dumps) = (Vec::new(), Vec::new());
    for round in 0..stage.rounds {
        eprintln!("control: full passes, round {} of {}", round + 1, stage.rounds);
        quiet::wait()?;
        let dump = dump(&host.ns())?;
        let before = usage::cpu_seconds(running.pid())?;
        // The time to the next begins when the kernel has been read.
        sleep((RESYNC + Duration::from_secs_f64(dump)) * PASSES);
        let pass = (usage::cpu_seconds(running.pid())? - before) / f64::from(PASSES);
        // Loden does not tell of its passes. But none is cheaper than reading what it looks at.
        ensure!(
            pass > dump / 2.0,
            "Loden makes no full passes: with one a second it used {:.2} ms of CPU a second, and reading what \
             it looks at takes {:.2} ms",
            pass * 1000.0,
            dump * 1000.0
        );
        passes.push(pass * 1000.0);
        dumps.push(dump * 1000.0);
    }
    running.has_in_place(MANY)?;
    let row = Row::new("full pass without drift: CPU", "ms", &passes);
    Ok(row.beside("reading alone", &dumps).within(Budget::Value(50.0)))
}

/// Seconds of CPU time for reading the kernel's routes, neighbours, FDB entries and nexthop objects
/// without a look at them.
fn dump(ns: &Ns) -> Result<f64> {
    let neighbours = |family| {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        Request::of(message_type::GET_NEIGHBOUR, &message, 0)
    };
    let mut routes = RouteMessage::default();
    routes.header.address_family = AddressFamily::Inet;
    let requests = [
        Request::of(message_type::GET_ROUTE, &routes, 0),
        neighbours(AddressFamily::Inet),
        neighbours(AddressFamily::Bridge),
        nexthop::dump(),
    ];
    ns.within(|| {
        let mut socket = Socket::route()?;
        let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime));
        let before = cpu()?;
        for request in &requests {
            socket.gather(request, |_, _| None::<()>)?;
        }
        Ok((cpu()? - before).as_secs_f64())
    })
}

/// Some of each kind: 400 routes, 300 neighbours, 300 FDB entries.
fn deleted_objects(stage: &Stage<'_>, host: &Host, notices: &Notices) -> Result<Vec<Row>> {
    const ROUTES: Range<u32> = 0..400;
    const NEIGHBOURS: Range<u32> = 400..700;
    const FDB_ENTRIES: Range<u32> = 700..1000;
    let device = Kind::Loden.device();
    let mut of_ip: String = ROUTES.map(|h| format!("route del {}\n", fleet::subnet(h))).collect();
    of_ip.extend(NEIGHBOURS.map(|h| format!("neigh del {} dev {device}\n", fleet::address(h))));
    let of_bridge: String = FDB_ENTRIES
        .map(|h| format!("fdb del {} dev {device} dst {}\n", fleet::mac(h), fleet::public(h)))
        .collect();
    let mut found = Found::new("1,000 objects deleted");
    let running = Kind::Loden.start(host)?;
    sleep(Duration::from_secs(3));
    for round in 0..stage.rounds {
        eprintln!("control: deleted objects, round {} of {}", round + 1, stage.rounds);
        quiet::wait()?;
        notices.forget();
        let start = Instant::now();
        host.ip(&of_ip);
        host.bridge(&of_bridge);
        let told = running.wait_for_routes(notices, fleet::routes(ROUTES), Direction::Come)?;
        found.push(Kind::Loden, ALL_BACK, (told.last_change - start).as_secs_f64());
        running.has_in_place(MANY)?;
        // Repairs in a row wait longer each time; ten seconds of peace end that.
        sleep(Duration::from_secs(11));
    }
    found.rows(ALL_BACK, Limit::Value(1.0))
}

fn restart(stage: &Stage<'_>, host: &Host, notices: &Notices) -> Result<Vec<Row>> {
    /// Without any notification for so long, it has done what it does.
    const SILENCE: Duration = Duration::from_secs(3);
    let mut found = Found::new("restart with everything in place");
    for round in 0..stage.rounds {
        eprintln!("control: restart, round {} of {}", round + 1, stage.rounds);
        notices.forget();
        let running = Kind::Loden.start(host)?;
        let changes = notices.wait_for_silence(SILENCE)?;
        // One that hangs changes nothing either.
        running.ready_at().with_context(|| format!("Loden is not READY {SILENCE:?} after a restart"))?;
        running.has_in_place(MANY)?;
        found.push(Kind::Loden, CHANGES, f64::from(changes));
    }
    found.rows(CHANGES, Limit::Value(0.0))
}
