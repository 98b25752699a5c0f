//! Whether the holder of a lease lives: asked of etcd, and watched if the answer leaves doubt.
//! Only ever asked in a conflict.

use std::time::Duration;

use loden_core::claim::{self, Liveness};
use loden_core::leases::LeaseRecord;

use crate::store::{StoreError, Writer};

/// Finds out. Takes up to one and a half keep-alive intervals of the holder.
pub(super) async fn ask(writer: &Writer, record: &LeaseRecord) -> Result<Liveness, StoreError> {
    if record.etcd_lease == 0 {
        // A reservation in use has no lease to refresh. Taking it wrongly cuts a host off.
        return Ok(Liveness::Alive);
    }
    let Some(first) = writer.time_to_live(record.etcd_lease).await? else { return Ok(Liveness::Dead) };
    let interval = claim::holders_interval(record, first.granted);
    if let Some(verdict) = claim::liveness(first.granted, first.remaining, interval) {
        return Ok(verdict);
    }
    let mut before = first.remaining;
    let step = Duration::from_millis((interval * 1500 / 16).max(250));
    for _ in 0..16 {
        tokio::time::sleep(step).await;
        match writer.time_to_live(record.etcd_lease).await? {
            None => return Ok(Liveness::Dead),
            // Only a refresh makes the remaining time grow.
            Some(now) if now.remaining > before => return Ok(Liveness::Alive),
            Some(now) => before = now.remaining,
        }
    }
    Ok(Liveness::Dead)
}
