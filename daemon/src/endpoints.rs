//! Containers that hold an address: read from the plugin's allocation files, never written.

use std::collections::BTreeSet;
use std::path::Path;

use loden_proto::allocation::Allocation;
use loden_proto::lease::LeaseKey;

/// All allocations below `<run-dir>/ipam`, over all networks of the plugin. Files that cannot be
/// read are skipped: they are the plugin's to report.
pub fn all(folder: &Path) -> Vec<Allocation> {
    let list = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    list(folder)
        .filter(|p| p.is_dir())
        .flat_map(|network| list(&network).collect::<Vec<_>>())
        .filter(|p| {
            p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.parse::<std::net::IpAddr>().is_ok())
        })
        .filter_map(|p| std::fs::read_to_string(p).ok())
        .filter_map(|text| Allocation::parse(&text).ok())
        .collect()
}

/// How many containers hold an address; one of two families is one container.
pub fn count(folder: &Path) -> usize {
    let containers: BTreeSet<(String, String)> =
        all(folder).into_iter().map(|a| (a.container_id, a.ifname)).collect();
    containers.len()
}

/// How many addresses of this lease are in use.
pub fn count_in(folder: &Path, key: &LeaseKey) -> usize {
    all(folder).iter().filter(|a| key.subnets().any(|s| s.contains(a.address))).count()
}
