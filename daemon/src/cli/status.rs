//! `loden status`: the daemon's answer, or, when it is down, what kernel and files tell.

use clap::Args;
use loden_core::observed::Observed;
use loden_core::peers;
use loden_proto::config::NetworkConfig;
use loden_proto::lease::LeaseKey;
use loden_proto::status::{ConfigStatus, DeviceStatus, LeaseStatus, PeerStatus, Request, Status};

use super::daemon::PlaceArgs;
use super::output::{duration, print, print_json, table};
use super::question::{Answer, ask};
use crate::kernel::{self, Interest, Kernel};
use crate::state::StateDir;
use crate::{clock, endpoints};

/// Show what this host knows.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Print everything as JSON with stable names
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: StatusArgs) -> anyhow::Result<()> {
    let status = match ask(&args.place.run_dir(), Request::Status)? {
        Answer::Given(status) => status,
        Answer::None { state, reason } => {
            let mut status = without_daemon(&args.place)?;
            status.state = state.into();
            status.problems.insert(0, reason);
            status
        }
    };
    if args.json { print_json(&status) } else { print(&text(&status)) }
}

/// What can be told without the daemon: its last state, and the kernel's.
fn without_daemon(place: &PlaceArgs) -> anyhow::Result<Status> {
    let mut status = Status {
        version: env!("CARGO_PKG_VERSION").into(),
        network: place.network.clone(),
        source: "kernel".into(),
        state: "stopped".into(),
        ..Status::default()
    };
    let last = match place.state_dir().exists() {
        true => StateDir::open(&place.state_dir())?.last(),
        false => Default::default(),
    };
    let config = NetworkConfig::parse(&last.config).ok();
    if let Ok(key) = LeaseKey::parse(&last.key) {
        status.lease = Some(LeaseStatus {
            state: "unconfirmed".into(),
            subnets: key.subnets().collect(),
            host_id: String::new(),
            expires_in_seconds: Some(last.deadline.saturating_sub(clock::unix_seconds())),
        });
    }
    status.endpoints = endpoints::count(&place.run_dir().join("ipam"));
    let Some(config) = config else { return Ok(status) };
    let interest = Interest { networks: config.pools().map(|p| p.network).collect(), ..Interest::default() };
    let observed = Kernel::open(&place.run_dir(), &place.network)?.observe(&interest)?;
    status.config = Some(ConfigStatus {
        networks: interest.networks.clone(),
        backend: config.backend.name().into(),
        pending: None,
    });
    status.devices = devices(&config, &observed);
    status.peers = peers::found_in_kernel(&observed, &config)
        .into_iter()
        .map(|peer| PeerStatus {
            subnet: peer.subnet,
            public_address: peer.public_address,
            vtep_mac: peer.vtep_mac(),
            host_name: String::new(),
            version: String::new(),
            state: if observed.routes_to(peer.subnet).next().is_some() { "programmed" } else { "pending" }
                .into(),
            reason: None,
        })
        .collect();
    if let Ok(false) = kernel::table_exists(&kernel::Table::overlay(&place.network)) {
        status.problems.push(format!("the nftables table inet {} is missing", place.network));
    }
    Ok(status)
}

fn devices(config: &NetworkConfig, observed: &Observed) -> Vec<DeviceStatus> {
    let loden_proto::config::Backend::Vxlan(vxlan) = &config.backend else { return Vec::new() };
    let families = config.pools().map(|p| p.network.family());
    families
        .filter_map(|family| observed.vxlan(vxlan.vni, vxlan.port, family))
        .filter_map(|link| {
            Some(DeviceStatus {
                name: link.name.clone(),
                vni: vxlan.vni,
                port: vxlan.port,
                mac: link.mac?,
                mtu: link.mtu,
                up: link.up,
            })
        })
        .collect()
}

/// The status for people.
fn text(status: &Status) -> String {
    let join = |all: &[String]| all.join(", ");
    let strings = |all: &[std::net::IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut rows: Vec<(&str, String)> = Vec::new();
    let pid = status.pid.map_or(String::new(), |p| format!(", process {p}"));
    rows.push(("state", format!("{} (loden {}{pid})", status.state, status.version)));
    if let Some(config) = &status.config {
        let networks: Vec<String> = config.networks.iter().map(ToString::to_string).collect();
        rows.push(("network", format!("{} {}, {}", status.network, join(&networks), config.backend)));
    } else {
        rows.push(("network", status.network.clone()));
    }
    rows.push((
        "lease",
        match &status.lease {
            Some(lease) => {
                let subnets: Vec<String> = lease.subnets.iter().map(ToString::to_string).collect();
                let end = lease.expires_in_seconds.map_or_else(
                    || if lease.state == "held" { ", for ever".to_owned() } else { String::new() },
                    |s| format!(", ends in {} unless refreshed", duration(s)),
                );
                format!("{} {}{end}", join(&subnets), lease.state)
            }
            None => "none".into(),
        },
    ));
    rows.push((
        "underlay",
        match &status.underlay {
            Some(underlay) => {
                let public = strings(&underlay.public_addresses);
                let public =
                    if public.is_empty() { String::new() } else { format!(", public {}", join(&public)) };
                format!(
                    "{} {}{public}, MTU {}",
                    underlay.interface,
                    join(&strings(&underlay.addresses)),
                    underlay.mtu
                )
            }
            None => "none".into(),
        },
    ));
    for device in &status.devices {
        let up = if device.up { "up" } else { "down" };
        rows.push((
            "device",
            format!(
                "{} {up}, VNI {}, port {}, MAC {}, MTU {}",
                device.name, device.vni, device.port, device.mac, device.mtu
            ),
        ));
    }
    let etcd = match (status.etcd.connected, status.etcd.away_seconds) {
        _ if status.etcd.endpoints.is_empty() => "unknown".to_owned(),
        (true, _) => format!("connected, revision {}", status.etcd.revision),
        (false, away) => format!("away since {}", duration(away.unwrap_or(0))),
    };
    rows.push(("etcd", format!("{etcd} ({}{})", join(&status.etcd.endpoints), status.etcd.prefix)));
    rows.push(("containers", status.endpoints.to_string()));
    if let Some(dns) = &status.dns {
        let unpublished = match dns.unpublished {
            0 => String::new(),
            count => format!(", {count} of this host not in etcd yet"),
        };
        let addresses: Vec<String> = dns.addresses.iter().map(ToString::to_string).collect();
        let at = if addresses.is_empty() { "nowhere".into() } else { addresses.join(" ") };
        rows.push((
            "names",
            format!("{} endpoints in {}{unpublished}, served on {at}", dns.endpoints, dns.zone),
        ));
    }
    let repairs: Vec<String> = status.repairs.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    rows.push(("repairs", if repairs.is_empty() { "none".into() } else { join(&repairs) }));
    let mut out: String = rows.iter().map(|(name, value)| format!("{name:11} {value}\n")).collect();
    for (title, lines) in [("Problems", &status.problems), ("Notes", &status.notes)] {
        if !lines.is_empty() {
            out.push_str(&format!("\n{title}\n"));
            out.extend(lines.iter().map(|l| format!("  - {l}\n")));
        }
    }
    if !status.peers.is_empty() {
        let rows: Vec<Vec<String>> = status
            .peers
            .iter()
            .map(|p| {
                vec![
                    p.subnet.to_string(),
                    p.public_address.to_string(),
                    p.vtep_mac.map_or("direct".into(), |m| m.to_string()),
                    p.host_name.clone(),
                    p.version.clone(),
                    p.reason.as_ref().map_or(p.state.clone(), |r| format!("{}: {r}", p.state)),
                ]
            })
            .collect();
        out.push_str(&format!("\nPeers ({})\n", status.peers.len()));
        out.push_str(&table(&["SUBNET", "PUBLIC ADDRESS", "VTEP MAC", "HOST", "VERSION", "STATE"], &rows));
    }
    if !status.rejected.is_empty() {
        let rows: Vec<Vec<String>> =
            status.rejected.iter().map(|r| vec![r.key.clone(), r.reason.clone()]).collect();
        out.push_str(&format!("\nRefused leases ({})\n", status.rejected.len()));
        out.push_str(&table(&["KEY", "REASON"], &rows));
    }
    if !status.rejected_vxlan.is_empty() {
        let rows: Vec<Vec<String>> =
            status.rejected_vxlan.iter().map(|(a, n)| vec![a.to_string(), n.to_string()]).collect();
        out.push_str("\nVXLAN packets dropped, from no peer (a flannel peer behind NAT needs --vtep-source-check=off)\n");
        out.push_str(&table(&["SOURCE", "PACKETS"], &rows));
    }
    out
}
