//! Keeps what the kernel must have for the endpoints: the port filter with an element for each guarded
//! port, the bridge with its address, every port on it. The plugin makes all of that; this mends it
//! when somebody broke it, and follows the lease to another subnet. A task of its own: no peer's route
//! waits for it, nor it for etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use loden_cni::bridge::{Bridge, PortState};
use loden_cni::ifname::IfName;
use loden_core::backoff::Pace;
use loden_core::port_filter::{Difference, Guarded, difference};
use loden_proto::Subnet;
use loden_proto::allocation::{Allocation, Port};
use loden_proto::port_filter::Element;
use loden_proto::subnet_env::SubnetEnv;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Found;
use super::watch::FolderWatch;
use crate::clock;
use crate::kernel::Ports;

/// How things stand, for `status`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// What was put right, by kind of object.
    pub repairs: BTreeMap<String, u64>,
    /// What could not be.
    pub problems: Vec<String>,
    /// Whether there has been a look.
    pub looked: bool,
}

/// The task and what it hears.
pub struct Endpoints {
    /// Folder of the allocation files.
    pub folder: PathBuf,
    /// The kernel.
    pub ports: Ports,
    /// What `subnet.env` says.
    pub subnet: watch::Receiver<Option<SubnetEnv>>,
    /// Told when a link or an address has changed, or an element of the port filter.
    pub changed: Arc<Notify>,
    /// Told when somebody has changed the port filter's table.
    pub table_changed: Arc<Notify>,
    /// Where it is told how things stand.
    pub standing: watch::Sender<Standing>,
}

/// Changes within this time are answered together: an ADD makes a dozen.
const COALESCE: Duration = Duration::from_millis(100);
/// In case a notice was lost.
const FULL_LOOK: Duration = Duration::from_secs(30);
/// At most so often are elements of the port filter removed: while the kernel frees them, no netfilter
/// socket of the namespace closes, and an ADD has to wait (`nft_rcv_nl_event`,
/// net/netfilter/nf_tables_api.c).
const SWEEP: Duration = Duration::from_secs(5);

/// What one look found.
#[derive(Default)]
struct Look {
    /// Objects put right, and how to say it.
    repaired: Vec<(&'static str, String)>,
    problems: Vec<String>,
    /// Allocation files, which are no reason to look again at once.
    unreadable: Vec<String>,
    /// Whether the port filter had elements that nobody needs.
    surplus: bool,
}

impl Look {
    fn note<T, E: std::fmt::Display>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|e| self.problems.push(format!("{what}{e}"))).ok()
    }
}

/// What died while the daemon was down is freed at its start, where it may: under its unit it is no
/// root, and the unit has done it.
fn free_dead(folder: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = folder.to_path_buf();
    // A thread of its own, since it enters containers' namespaces.
    std::thread::spawn(move || {
        let (freed, errors) = super::free_dead(&folder);
        for Allocation { address, container_id, ifname, .. } in freed {
            tracing::warn!("freed {address} of container {container_id}, interface {ifname}: it is dead");
        }
        for error in errors {
            tracing::warn!("addresses of dead containers may be left: {error}");
        }
    });
}

/// All elements of the port filter's table that allocations call for.
fn needed(table: &str, found: &[Found]) -> BTreeSet<Element> {
    let all = found.iter().map(|f| Guarded { allocation: &f.allocation, settled: true });
    difference(table, all, &BTreeSet::new(), |_| true).lacking
}

impl Endpoints {
    /// Runs for ever.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let files = FolderWatch::open()?;
        free_dead(&self.folder);
        let mut pace = Pace::new(clock::now());
        let mut suspect = true;
        let mut former = None;
        let mut next_sweep = Instant::now();
        loop {
            files.cover(&self.folder);
            let env = self.subnet.borrow_and_update().clone();
            let sweeps = next_sweep <= Instant::now();
            let look = self.look(env.as_ref(), suspect, sweeps).await;
            let surplus = look.surplus;
            if surplus && sweeps {
                next_sweep = Instant::now() + SWEEP;
            }
            // What changes because the subnet did is no repair.
            let same = self.standing.borrow().looked && former == env;
            former = env;
            let trouble = !look.problems.is_empty() || same && !look.repaired.is_empty();
            suspect = !look.problems.is_empty();
            self.tell(look, same);
            if trouble {
                tokio::time::sleep(Duration::from_millis(pace.trouble(clock::now(), clock::chance()))).await;
                if suspect {
                    continue;
                }
            }
            tokio::select! {
                changed = self.subnet.changed() => changed?,
                () = self.changed.notified() => {}
                () = self.table_changed.notified() => suspect = true,
                changed = files.changed() => changed?,
                () = tokio::time::sleep(FULL_LOOK) => suspect = true,
                () = tokio::time::sleep_until(next_sweep), if surplus && !sweeps => {}
            }
            tokio::time::sleep(COALESCE).await;
        }
    }

    /// One look: what is, what should be, and the difference carried out.
    async fn look(&mut self, env: Option<&SubnetEnv>, suspect: bool, sweeps: bool) -> Look {
        let mut look = Look::default();
        if suspect {
            let (found, _) = super::look(&self.folder);
            let brought = self.ports.bring_table(&needed(self.ports.table(), &found)).await;
            if look.note("containers are not held to their own addresses: ", brought) == Some(true) {
                let table = self.ports.table();
                look.repaired.push(("port_filter", format!("made the nftables table bridge {table}")));
                look.note("the port filter does not follow the containers: ", self.add_needed());
            }
        }
        // Without the table there are no sets.
        let elements = match look.problems.is_empty() {
            true => look.note("the port filter cannot be read: ", self.ports.elements()),
            false => None,
        };
        // After the sets, so that what an ADD adds in between is not taken for surplus.
        let (found, unreadable) = super::look(&self.folder);
        // Whatever these say, no element is surplus before that is known.
        let sweeps = sweeps && unreadable.is_empty();
        let gone = self.bring_bridges(env, &found, &mut look);
        if let Some(elements) = elements {
            self.guard(&found, &gone, &elements, sweeps, &mut look);
        }
        look.unreadable = unreadable;
        look
    }

    /// Brings the port filter's sets to what the allocations say; leaves surplus elements alone unless
    /// it `sweeps`.
    fn guard(
        &mut self,
        found: &[Found],
        gone: &BTreeSet<String>,
        elements: &BTreeSet<Element>,
        sweeps: bool,
        look: &mut Look,
    ) {
        let table = self.ports.table().to_owned();
        let guarded = found.iter().map(|f| Guarded {
            allocation: &f.allocation,
            settled: !f.in_work && !gone.contains(&f.allocation.host_veth),
        });
        // What cannot be looked up is taken to be there.
        let exists = |port: &str| self.ports.exists(port).unwrap_or(true);
        let mut difference = difference(&table, guarded, elements, exists);
        let surplus = std::mem::take(&mut difference.surplus);
        look.surplus = !surplus.is_empty();
        let lacking: Vec<String> = difference.lacking_ports().into_iter().map(str::to_owned).collect();
        let mut changed = self.ports.change(difference);
        if sweeps && look.surplus && changed.is_ok() {
            changed = self.sweep(surplus);
        }
        if look.note("the port filter does not follow the containers: ", changed).is_some()
            && !lacking.is_empty()
        {
            look.repaired.push(("port", format!("guarded {}", lacking.join(", "))));
        }
    }

    /// Removes elements that nobody needs.
    fn sweep(&mut self, surplus: BTreeSet<Element>) -> Result<(), loden_netlink::Error> {
        self.ports.change(Difference { surplus, ..Difference::default() })?;
        self.add_needed()
    }

    /// Adds what the files say by now, right after elements were removed or the table made anew: an ADD may have
    /// added some since the files were read, or have counted on those of a former container, and has not made
    /// its pair yet.
    fn add_needed(&mut self) -> Result<(), loden_netlink::Error> {
        let (found, _) = super::look(&self.folder);
        let lacking = needed(self.ports.table(), &found);
        self.ports.change(Difference { lacking, ..Difference::default() })
    }

    /// Mends the bridge of the containers, and puts their ports back on it. Returns the ports that are gone.
    fn bring_bridges(
        &mut self,
        env: Option<&SubnetEnv>,
        found: &[Found],
        look: &mut Look,
    ) -> BTreeSet<String> {
        let mut gone = BTreeSet::new();
        let Some(env) = env else { return gone };
        let mut by_bridge: BTreeMap<&str, Vec<(&str, &Port)>> = BTreeMap::new();
        for Allocation { host_veth, port, .. } in found.iter().map(|f| &f.allocation) {
            if let Some(port) = port {
                by_bridge.entry(&port.bridge).or_default().push((host_veth, port));
            }
        }
        if by_bridge.is_empty()
            && let Some(name) =
                env.bridge.as_deref().filter(|name| self.ports.exists(name).unwrap_or_default())
        {
            // Without containers the next ADD makes it; but one that is there follows the lease.
            by_bridge.insert(name, Vec::new());
        }
        for (bridge_name, ports) in by_bridge {
            let Some(bridge) = self.bring_bridge(env, bridge_name, found, look) else { continue };
            for (name, port) in ports {
                match look.note("", self.ports.state(name)) {
                    Some(PortState::Gone) => {
                        gone.insert(name.to_owned());
                    }
                    Some(PortState::Detached) => {
                        let connected = self.ports.connect(&bridge, name, port);
                        if look.note("", connected).is_some() {
                            look.repaired.push(("port", format!("connected {name} to {bridge_name}")));
                        }
                    }
                    Some(PortState::On(_)) | None => {}
                }
            }
        }
        gone
    }

    fn bring_bridge(
        &mut self,
        env: &SubnetEnv,
        name: &str,
        found: &[Found],
        look: &mut Look,
    ) -> Option<Bridge> {
        let name = look.note("", IfName::new(name))?;
        let in_use = |subnet: Subnet| found.iter().any(|f| subnet.contains(f.allocation.address));
        let brought = self.ports.bring_bridge(&name, env, in_use);
        let bridge = look.note("", brought)?;
        // Before a container's ADD is done with it, the bridge is not broken but half made.
        let stood = found.iter().any(|f| {
            !f.in_work && f.allocation.port.as_ref().is_some_and(|port| port.bridge == name.as_str())
        });
        if bridge.mended && stood {
            look.repaired.push(("bridge", format!("set up {name}")));
        }
        Some(bridge)
    }

    fn tell(&mut self, look: Look, repairing: bool) {
        let known = self.standing.borrow().clone();
        let problems: Vec<String> = look.problems.into_iter().chain(look.unreadable).collect();
        for problem in problems.iter().filter(|p| !known.problems.contains(p)) {
            tracing::error!("{problem}");
        }
        let mut standing = Standing { looked: true, problems, repairs: known.repairs };
        for (object, what) in look.repaired {
            if repairing {
                tracing::warn!("repaired: {what}");
                *standing.repairs.entry(object.to_owned()).or_default() += 1;
            } else {
                tracing::debug!("{what}");
            }
        }
        self.standing.send_replace(standing);
    }
}
