//! The modelled kernel of one host: operations change it as the kernel would be changed
//! ([`loden_core::diff::applied`], with which the daemon keeps its own belief, and devices, which it
//! observes again). It outlives the daemon, as a kernel does.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use loden_core::diff::{Operation, applied};
use loden_core::observed::{Address, FdbEntry, Link, Observed, VxlanLink};
use loden_core::plan::Device;
use loden_daemon::kernel::{DataPlane, Failed, Interest, KernelError, Notice, Notices};
use loden_proto::Family;
use tokio::sync::watch;

use crate::process::lock;

const UNDERLAY: u32 = 2;
/// Index of the first device that a daemon makes.
const FIRST_DEVICE: u32 = 10;

/// A host's kernel. Clones are the same one.
#[derive(Debug, Clone)]
pub struct ModelledKernel {
    observed: Arc<Mutex<Observed>>,
    /// Told when something was written.
    written: watch::Sender<()>,
    refuses: Arc<AtomicBool>,
}

impl ModelledKernel {
    /// A kernel with an underlay interface of this address and nothing else.
    pub fn new(address: Ipv4Addr) -> Self {
        let mut observed = Observed { has_nexthops: true, ..Observed::default() };
        observed.links.insert(UNDERLAY, link(UNDERLAY, "eth0", 1500));
        let address =
            Address { address: address.into(), length: 12, permanent: true, unusable: false, ours: false };
        observed.addresses.insert(UNDERLAY, vec![address]);
        observed.default_routes.insert(Family::V4, UNDERLAY);
        Self {
            observed: Arc::new(Mutex::new(observed)),
            written: watch::channel(()).0,
            refuses: Arc::default(),
        }
    }

    /// From now on it refuses every operation, as a kernel without memory does.
    pub fn refuse_all(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }

    /// Looks at what it holds.
    pub fn look<T>(&self, at: impl FnOnce(&Observed) -> T) -> T {
        at(&lock(&self.observed))
    }

    /// Waits until it holds what is asked for.
    pub async fn until(&self, holds: impl Fn(&Observed) -> bool) {
        let mut written = self.written.subscribe();
        while !self.look(&holds) {
            if written.changed().await.is_err() {
                return;
            }
        }
    }

    fn change(&self, operation: &Operation) {
        let mut observed = lock(&self.observed);
        match operation {
            Operation::AddDevice(device) => add_device(&mut observed, device),
            Operation::DeleteDevice { index, .. } => remove_device(&mut observed, *index),
            other => applied(&mut observed, other),
        }
    }
}

impl DataPlane for ModelledKernel {
    fn observe(&mut self, _: &Interest) -> Result<Observed, KernelError> {
        Ok(self.look(Observed::clone))
    }

    fn observe_rules(&mut self, _: &Interest, observed: &mut Observed) -> Result<(), KernelError> {
        self.look(|now| {
            observed.forwarding.clone_from(&now.forwarding);
            observed.filters.clone_from(&now.filters);
            observed.admitted.clone_from(&now.admitted);
        });
        Ok(())
    }

    async fn apply(&mut self, operations: &[Operation]) -> Result<Vec<Failed>, KernelError> {
        if self.refuses.load(Ordering::Relaxed) {
            return Ok(operations.iter().map(refusal).enumerate().collect());
        }
        for operation in operations {
            self.change(operation);
        }
        self.written.send_replace(());
        Ok(Vec::new())
    }

    fn hear_fdb_deletions(&mut self, _: bool) {}

    fn fdb(&mut self, _: &[u32]) -> Result<BTreeSet<FdbEntry>, KernelError> {
        Ok(self.look(|now| now.fdb.clone()))
    }

    fn route_to(&mut self, _: IpAddr) -> Option<u32> {
        Some(UNDERLAY)
    }
}

fn refusal(operation: &Operation) -> KernelError {
    let reason = "Cannot allocate memory".to_owned();
    KernelError::Refused { operation: format!("{operation:?}"), reason, hint: "" }
}

/// Nobody else writes to a modelled kernel, and the daemon's own writes are no news to it.
#[derive(Debug, Default)]
pub(super) struct Silence;

impl Notices for Silence {
    async fn next(&self) -> io::Result<Vec<Notice>> {
        std::future::pending().await
    }
}

fn link(index: u32, name: &str, mtu: u32) -> Link {
    Link {
        index,
        name: name.into(),
        mac: None,
        mtu,
        up: true,
        loopback: false,
        bridge: false,
        controller: 0,
        other_names: Vec::new(),
        vxlan: None,
    }
}

fn add_device(observed: &mut Observed, device: &Device) {
    let index = observed.links.keys().next_back().map_or(FIRST_DEVICE, |last| (last + 1).max(FIRST_DEVICE));
    let vxlan = VxlanLink {
        vni: device.vni,
        port: device.port,
        local: Some(device.local),
        lower: device.lower,
        learning: device.learning,
        gbp: device.gbp,
        group: false,
        external: false,
        family: device.family,
    };
    let made = Link {
        mac: Some(device.mac),
        up: false,
        vxlan: Some(vxlan),
        ..link(index, &device.name, device.mtu)
    };
    observed.links.insert(index, made);
}

/// With a device go its addresses, neighbours, FDB entries, nexthops and their routes.
fn remove_device(observed: &mut Observed, index: u32) {
    observed.links.remove(&index);
    observed.addresses.remove(&index);
    observed.neighbours.retain(|(device, _), _| *device != index);
    observed.fdb.retain(|(device, ..)| *device != index);
    let on_it = |(id, hop): (&u32, &loden_core::observed::Nexthop)| (hop.device == index).then_some(*id);
    let hops: Vec<u32> = observed.nexthops.iter().filter_map(on_it).collect();
    for id in hops {
        applied(observed, &Operation::DeleteNexthop(id));
    }
}
