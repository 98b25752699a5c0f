//! The seam between the reconciler and a kernel: what the loop needs of one, whichever it is.
//!
//! [`Kernel`] and [`Watch`] are the real one. The fleet simulator (`tests/src/fleet/`) runs the same
//! loop on a modelled one, a thousand times in one process.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::IpAddr;

use loden_core::diff::Operation;
use loden_core::observed::{FdbEntry, Observed};

use super::{Failed, Interest, Kernel, KernelError, Notice, Watch};

/// A kernel that is looked at and written to.
pub trait DataPlane: Send {
    /// Looks at everything that concerns us.
    fn observe(&mut self, interest: &Interest) -> Result<Observed, KernelError>;

    /// Looks at rules and forwarding alone.
    fn observe_rules(&mut self, interest: &Interest, observed: &mut Observed) -> Result<(), KernelError>;

    /// Carries operations out in order and returns which failed, in their order. One that fails does
    /// not stop those after it; an error is one of the kernel as a whole.
    fn apply(
        &mut self,
        operations: &[Operation],
    ) -> impl Future<Output = Result<Vec<Failed>, KernelError>> + Send;

    /// Whether deletions of FDB entries are told, our own among them.
    fn hear_fdb_deletions(&mut self, heard: bool);

    /// Looks at the permanent FDB entries of these VXLAN devices alone.
    fn fdb(&mut self, devices: &[u32]) -> Result<BTreeSet<FdbEntry>, KernelError>;

    /// The interface index of the route to an address (`--iface-can-reach`).
    fn route_to(&mut self, address: IpAddr) -> Option<u32>;
}

/// What a kernel tells unasked.
pub trait Notices: Send {
    /// The next notices, at least one. Safe to cancel.
    fn next(&self) -> impl Future<Output = io::Result<Vec<Notice>>> + Send;
}

impl DataPlane for Kernel {
    fn observe(&mut self, interest: &Interest) -> Result<Observed, KernelError> {
        Kernel::observe(self, interest)
    }

    fn observe_rules(&mut self, interest: &Interest, observed: &mut Observed) -> Result<(), KernelError> {
        Kernel::observe_rules(self, interest, observed)
    }

    async fn apply(&mut self, operations: &[Operation]) -> Result<Vec<Failed>, KernelError> {
        Kernel::apply(self, operations).await
    }

    fn hear_fdb_deletions(&mut self, heard: bool) {
        Kernel::hear_fdb_deletions(self, heard);
    }

    fn fdb(&mut self, devices: &[u32]) -> Result<BTreeSet<FdbEntry>, KernelError> {
        Kernel::fdb(self, devices)
    }

    fn route_to(&mut self, address: IpAddr) -> Option<u32> {
        Kernel::route_to(self, address)
    }
}

impl Notices for Watch {
    async fn next(&self) -> io::Result<Vec<Notice>> {
        Watch::next(self).await
    }
}
