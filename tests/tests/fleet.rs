//! A small fleet of simulated hosts on one real etcd: what `make sim` measures with a thousand, here
//! only checked. No subnet twice, no lease lost, every modelled kernel leads to every peer.

use std::thread;
use std::time::Duration;

use loden_tests::fleet::report::Report;
use loden_tests::fleet::{Fleet, FleetOptions, Scenario, run_beside};
use loden_tests::{Lab, eventually};

const HOSTS: usize = 24;

fn options(lease_ttl: u64) -> FleetOptions {
    FleetOptions {
        hosts: HOSTS,
        lease_ttl,
        limit: Duration::from_secs(60),
        // An interval and a bit of the TTL below.
        steady: Duration::from_secs(11),
        batches: 4,
        progress: false,
    }
}

/// How long etcd holds its breath: more than a request may take (5 s).
const PAUSE: Duration = Duration::from_secs(6);

/// Plays scenarios in order; panics at the first that ends with a finding.
fn play(name: &str, lease_ttl: u64, scenarios: &[Scenario]) -> Vec<Report> {
    let lab = Lab::new(name);
    let reports = run_beside(&lab.etcd(), async || {
        let mut fleet = Fleet::new(&lab, options(lease_ttl)).await?;
        let mut reports = Vec::new();
        for scenario in scenarios {
            let report = fleet.play(*scenario).await?;
            assert!(report.findings.is_empty(), "{report}");
            reports.push(report);
        }
        Ok(reports)
    });
    reports.expect("a fleet can be played with")
}

#[test]
fn a_fleet_starts_and_restarts_at_once_without_a_write_for_a_restart() {
    let reports = play("fleet_restarts", 3600, &[Scenario::Start, Scenario::Restart]);
    assert_eq!(reports[0].cost.etcd.puts, HOSTS as u64, "one lease a host\n{}", reports[0]);
    assert_eq!(reports[1].cost.etcd.writes(), 0, "{}", reports[1]);
    assert_eq!(reports[1].cost.etcd_at_end.watchers, HOSTS as u64, "{}", reports[1]);
}

#[test]
fn answers_that_come_too_late_leave_no_second_subnet_behind() {
    let lab = Lab::new("fleet_late");
    let etcd = lab.etcd();
    let report = thread::scope(|scope| {
        let breath = etcd.clone();
        scope.spawn(move || {
            // Once the first hosts claim, all others' claims are on their way.
            eventually(Duration::from_secs(60), "hosts claim", || breath.subnets().len() > 1);
            breath.freeze();
            thread::sleep(PAUSE);
            breath.thaw();
        });
        run_beside(&etcd, async || {
            let mut fleet = Fleet::new(&lab, options(3600)).await?;
            fleet.play(Scenario::Start).await
        })
    });
    let report = report.expect("a fleet can be played with");
    assert!(report.findings.is_empty(), "{report}");
}

#[test]
fn a_fleet_outlives_its_etcd_without_reading_all_leases_anew() {
    let scenarios = [Scenario::Start, Scenario::EtcdRestart, Scenario::EtcdKill];
    for report in &play("fleet_etcd", 3600, &scenarios)[1..] {
        assert_eq!(report.cost.etcd.writes(), 0, "{report}");
        // A look at the config, which tells whether it is the same etcd; etcdctl asks whether it answers.
        let ranges = report.cost.etcd.requests["Range"];
        assert!(ranges <= HOSTS as u64 + 5, "{ranges} reads\n{report}");
    }
}

#[test]
fn a_rolling_upgrade_costs_one_write_a_host_and_a_rolling_restart_none() {
    let scenarios = [Scenario::Start, Scenario::RollingRestart, Scenario::RollingUpgrade];
    let reports = play("fleet_upgrade", 3600, &scenarios);
    assert_eq!(reports[1].cost.etcd.writes(), 0, "{}", reports[1]);
    assert_eq!(reports[2].cost.etcd.writes(), HOSTS as u64, "{}", reports[2]);
}

#[test]
fn a_fleet_at_rest_sends_keep_alives_alone() {
    // Long enough for a machine that is busy with other tests.
    let reports = play("fleet_rest", 30, &[Scenario::Start, Scenario::Steady]);
    let requests = &reports[1].cost.etcd.requests;
    let (all, keep_alives) = (reports[1].cost.etcd.all_requests(), requests["LeaseKeepAlive"]);
    assert!(keep_alives >= HOSTS as u64 && all == keep_alives, "{}", reports[1]);
}

#[test]
fn a_lease_that_does_not_reach_a_host_is_a_finding() {
    let lab = Lab::new("fleet_deaf");
    let options = FleetOptions {
        hosts: 3,
        limit: Duration::from_secs(10),
        steady: Duration::from_secs(1),
        ..options(3600)
    };
    let report = run_beside(&lab.etcd(), async || {
        let mut fleet = Fleet::new(&lab, options).await?;
        fleet.play(Scenario::Start).await?;
        fleet.hosts()[1].kernel().refuse_all();
        fleet.play(Scenario::Steady).await
    });
    let report = report.expect("a fleet can be played with");
    assert_eq!(report.findings, ["steady, a lease came: host-1 is not done within 10s"], "{report}");
}
