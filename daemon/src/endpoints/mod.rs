//! Endpoints: the containers that hold an address of ours. The plugin's allocation files say who they
//! are; they are read here, never written. `task.rs` keeps what the kernel must have for them.

mod task;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use loden_cni::bridge::{self, PortState};
use loden_cni::gc;
use loden_netlink::Socket;
use loden_proto::allocation::Allocation;
use loden_proto::lease::LeaseKey;
use loden_proto::status::{EndpointState, EndpointStatus};
use rustix::fs::OFlags;

use crate::kernel;

pub use task::{Endpoints, Standing};
pub(crate) use watch::FolderWatch;

/// An allocation file.
#[derive(Debug, Clone)]
pub struct Found {
    /// The plugin's name of the network: the folder that the file is in.
    pub network: String,
    /// What is in it.
    pub allocation: Allocation,
    /// Whether an ADD works on it at this moment.
    pub in_work: bool,
    /// When it was written.
    pub since: Option<SystemTime>,
}

/// All allocations below `<run-dir>/ipam`, over all networks of the plugin; files that cannot be read
/// are the plugin's to report.
pub fn all(folder: &Path) -> Vec<Found> {
    look(folder).0
}

/// The same, and what cannot be read.
fn look(folder: &Path) -> (Vec<Found>, Vec<String>) {
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    for (network, _, path) in addresses(folder) {
        match read(&network, &path) {
            Ok(one) => found.push(one),
            // Freed since it was listed.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => unreadable.push(format!(
                "the allocation {} cannot be read ({e}), so it holds its address until somebody removes it",
                path.display()
            )),
        }
    }
    found.sort_by_key(|f| f.allocation.address);
    unreadable.sort();
    (found, unreadable)
}

/// What no allocation needs, by far.
const MAX_LENGTH: u64 = 64 * 1024;

fn read(network: &str, path: &Path) -> io::Result<Found> {
    // What is no file must neither lead elsewhere nor keep us waiting.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is no file"));
    }
    let in_work = file.try_lock_shared().is_err();
    let mut text = String::new();
    (&file).take(MAX_LENGTH).read_to_string(&mut text)?;
    let allocation = Allocation::parse(&text)?;
    Ok(Found { network: network.into(), allocation, in_work, since: metadata.modified().ok() })
}

/// The endpoint table, now: what files and kernel tell; and which files cannot be read.
pub fn survey(folder: &Path) -> anyhow::Result<(Vec<EndpointStatus>, Vec<String>)> {
    let mut socket = Socket::route().context("cannot open an rtnetlink socket")?;
    let (mut found, unreadable) = look(folder);
    let tables: BTreeSet<String> =
        found.iter().filter_map(|f| f.allocation.port.as_ref()?.filter.clone()).collect();
    // Who may not look believes the files.
    let guarded: BTreeMap<String, BTreeSet<String>> = tables
        .into_iter()
        .filter_map(|table| Some((table.clone(), kernel::guarded_ports(&table)?)))
        .collect();
    for Allocation { host_veth, port, .. } in found.iter_mut().map(|f| &mut f.allocation) {
        let Some(port) = port else { continue };
        let is_in = |table: &String| guarded.get(table).is_none_or(|ports| ports.contains(host_veth));
        port.filter = port.filter.take().filter(is_in);
    }
    let mut with_states = Vec::with_capacity(found.len());
    for one in found {
        let state = bridge::port_state(&mut socket, &one.allocation.host_veth)?;
        with_states.push((one, state));
    }
    Ok((table(&with_states), unreadable))
}

/// Frees the addresses of containers that are dead for certain, in all networks of the plugin; returns
/// them, and what went wrong. Needs root, and enters namespaces with the calling thread.
pub fn free_dead(folder: &Path) -> (Vec<Allocation>, Vec<String>) {
    let (mut freed, mut errors) = (Vec::new(), Vec::new());
    let networks: BTreeSet<String> = all(folder).into_iter().map(|f| f.network).collect();
    for network in networks {
        match gc::gc(folder, &network, &BTreeSet::new()) {
            Ok(of_network) => freed.extend(of_network),
            Err(error) => errors.push(format!("network {network}: {error}")),
        }
    }
    (freed, errors)
}

/// How many containers hold an address; one of two families is one container.
pub fn count(folder: &Path) -> usize {
    let attachment = |f: Found| (f.network, f.allocation.container_id, f.allocation.ifname);
    all(folder).into_iter().map(attachment).collect::<BTreeSet<_>>().len()
}

/// How many addresses of this lease are in use.
pub fn count_in(folder: &Path, key: &LeaseKey) -> usize {
    addresses(folder).filter(|(_, address, _)| key.subnets().any(|s| s.contains(*address))).count()
}

/// Networks, addresses and paths of all allocations, whatever is in them.
fn addresses(folder: &Path) -> impl Iterator<Item = (String, IpAddr, PathBuf)> {
    let list = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let networks = list(folder).filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
    networks.flat_map(move |network| {
        let name = network.file_name().to_string_lossy().into_owned();
        list(&network.path()).filter_map(move |entry| {
            Some((name.clone(), entry.file_name().to_str()?.parse().ok()?, entry.path()))
        })
    })
}

/// The endpoint table: one row for each interface of a container, in order of the addresses.
fn table(found: &[(Found, PortState)]) -> Vec<EndpointStatus> {
    let mut rows: Vec<EndpointStatus> = Vec::new();
    for (Found { network, allocation, in_work, since }, state) in found {
        let same = |row: &&mut EndpointStatus| {
            (&row.network, &row.container_id, &row.interface)
                == (network, &allocation.container_id, &allocation.ifname)
        };
        if let Some(row) = rows.iter_mut().find(same) {
            row.addresses.push(allocation.address);
            continue;
        }
        let port = allocation.port.clone().unwrap_or_default();
        let state = match state {
            _ if *in_work => EndpointState::Connecting,
            // The first release did not note the bridge.
            PortState::On(bridge) if port.bridge.is_empty() || *bridge == port.bridge => {
                EndpointState::Connected
            }
            PortState::On(_) => EndpointState::Elsewhere,
            PortState::Detached => EndpointState::Detached,
            PortState::Gone => EndpointState::Gone,
        };
        rows.push(EndpointStatus {
            addresses: vec![allocation.address],
            name: allocation.name.clone(),
            network: network.clone(),
            container_id: allocation.container_id.clone(),
            interface: allocation.ifname.clone(),
            netns: allocation.netns.clone(),
            mac: allocation.mac,
            port: allocation.host_veth.clone(),
            bridge: port.bridge,
            guarded: port.filter.is_some(),
            rejected_frames: 0,
            since_unix_seconds: since
                .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
                .map(|age| age.as_secs()),
            state,
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, network: &str, address: &str, port: &str) {
        let dir = folder.join(network);
        std::fs::create_dir_all(&dir).expect("folder");
        let allocation = Allocation {
            address: address.parse().expect("ip"),
            container_id: format!("c-{port}"),
            ifname: "eth0".into(),
            netns: "/run/netns/c".into(),
            host_veth: port.into(),
            mac: loden_proto::Mac([2, 0, 0, 0, 0, 1]),
            name: None,
            aliases: Vec::new(),
            published: Vec::new(),
            port: None,
        };
        std::fs::write(dir.join(address), allocation.to_json()).expect("file");
    }

    #[test]
    fn a_container_of_two_families_is_one_row() {
        let folder = tempfile::tempdir().expect("folder");
        write(folder.path(), "loden", "10.5.7.2", "veth1");
        write(folder.path(), "loden", "fd00::2", "veth1");
        write(folder.path(), "other", "10.5.7.3", "veth2");
        std::fs::write(folder.path().join("loden/10.5.7.9"), "half a fi").expect("file");
        let found = all(folder.path());
        let state = |f: Found| match f.allocation.host_veth.as_str() {
            "veth1" => (f, PortState::On("loden0".into())),
            _ => (f, PortState::Gone),
        };
        let rows = table(&found.into_iter().map(state).collect::<Vec<_>>());
        let states: Vec<_> = rows.iter().map(|r| (r.addresses.len(), r.state)).collect();
        assert_eq!(states, [(2, EndpointState::Connected), (1, EndpointState::Gone)]);
        assert_eq!(count(folder.path()), 2);
    }

    #[test]
    fn what_is_no_allocation_is_told_and_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().expect("folder");
        write(folder.path(), "loden", "10.5.7.2", "veth1");
        let path = |name: &str| folder.path().join("loden").join(name);
        std::fs::write(path("10.5.7.3"), "half a fi").expect("file");
        std::fs::create_dir(path("10.5.7.4")).expect("folder");
        std::os::unix::fs::symlink("/etc/passwd", path("10.5.7.5")).expect("link");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("10.5.7.6"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .expect("fifo");
        let (found, unreadable) = look(folder.path());
        assert_eq!((found.len(), unreadable.len()), (1, 4), "{unreadable:?}");
        assert!(unreadable.iter().zip(3..).all(|(text, n)| text.contains(&format!("/10.5.7.{n} cannot"))));
    }

    #[test]
    fn what_an_add_works_on_is_connecting() {
        let folder = tempfile::tempdir().expect("folder");
        write(folder.path(), "loden", "10.5.7.2", "veth1");
        let lock = File::open(folder.path().join("loden/10.5.7.2")).expect("open");
        lock.lock().expect("lock");
        let rows: Vec<_> = all(folder.path()).into_iter().map(|f| (f, PortState::Gone)).collect();
        let rows = table(&rows);
        assert_eq!(rows[0].state, EndpointState::Connecting);
    }
}
