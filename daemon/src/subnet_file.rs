//! `subnet.env`, kept true: written when the lease, the MTU or the config changes.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use loden_core::options::Options;
use loden_core::plan::container_mtu;
use loden_core::underlay::Underlay;
use loden_proto::config::{Dns, NetworkConfig};
use loden_proto::lease::LeaseKey;
use loden_proto::subnet_env::{DnsEnv, LeaseState as FileState, SubnetEnv};
use loden_proto::{Family, Subnet};

use crate::files::write_atomically;
use crate::lease::{LeaseState, OwnLease};
use crate::state::StateDir;

/// flannel's file: read for the former subnet, and kept current where it exists.
pub const FLANNEL_FILE: &str = "/run/flannel/subnet.env";

/// The file of this lease; `None` while there is none.
pub fn contents(
    config: &NetworkConfig,
    own: &OwnLease,
    underlay: &Underlay,
    options: &Options,
    state: &StateDir,
    dns: Option<DnsEnv>,
) -> Option<SubnetEnv> {
    let key = own.key?;
    let shared = key.subnets().filter(|_| state.docker_shares());
    let lease = match own.state {
        LeaseState::None(_) => return None,
        LeaseState::Held | LeaseState::Unconfirmed => FileState::Held,
        LeaseState::Contested(_) | LeaseState::Lost(_) => FileState::Lost,
    };
    Some(SubnetEnv {
        networks: config.pools().map(|p| p.network).collect(),
        subnets: key.subnets().collect(),
        mtu: container_mtu(config, underlay),
        masquerade: options.masquerade,
        lease,
        bridge: Some(options.bridge()),
        docker_ranges: shared.filter_map(|s| s.upper_half()).collect(),
        port_filter: Some(options.network.clone()),
        dns,
        // A plugin may run in another folder.
        state_dir: std::path::absolute(state.folder()).ok(),
    })
}

/// Who containers of this host ask: of each family that they have the address that every host has, where we
/// answer on it, else the gateway.
pub fn resolvers(dns: &Dns, own: Option<LeaseKey>, served: &[IpAddr]) -> Vec<IpAddr> {
    let subnets = own.iter().flat_map(LeaseKey::subnets);
    let of_family = |subnet: Subnet| {
        let candidates = dns.addresses.iter().copied().chain([subnet.gateway()]);
        let mut fitting = candidates.filter(|a| Family::of(*a) == subnet.family());
        fitting.find(|a| served.contains(a))
    };
    subnets.filter_map(of_family).collect()
}

/// Whether the file holds just this.
pub fn stands(path: &Path, env: &SubnetEnv) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text == env.to_text(true))
}

/// Writes our file, and flannel's where it exists.
pub fn write(path: &Path, env: &SubnetEnv) -> std::io::Result<()> {
    write_atomically(path, env.to_text(true).as_bytes(), 0o644)?;
    let flannel = Path::new(FLANNEL_FILE);
    if flannel.exists() && flannel != path {
        // A lost lease has no word in flannel's file, and it serves flannel's plugin only.
        if let Err(error) = write_atomically(flannel, env.to_text(false).as_bytes(), 0o644) {
            tracing::warn!(%error, "cannot keep flannel's subnet.env current");
        }
    }
    Ok(())
}

/// Subnets that files of a former life name: our own file first, then flannel's.
pub fn former(path: &Path) -> Vec<LeaseKey> {
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        match SubnetEnv::parse(&text) {
            Ok(env) => LeaseKey::new(env.subnet(Family::V4), env.subnet(Family::V6)),
            Err(error) => {
                tracing::warn!("ignored {}: it {error}", path.display());
                None
            }
        }
    };
    let mut keys: Vec<LeaseKey> =
        [path.to_owned(), FLANNEL_FILE.into()].into_iter().filter_map(read).collect();
    keys.dedup();
    keys
}
