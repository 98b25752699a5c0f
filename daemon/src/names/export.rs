//! Our names once more, where CoreDNS reads them (`--dns-export`). A task of its own: no container waits for it.
//! Without the flag it removes what a former life has exported; with another prefix, what stands below the former.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loden_core::backoff::Backoff;
use loden_proto::lease::LeaseKey;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::store::{StoreError, View, Writer};

/// What should stand there.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Our lease and its etcd lease.
    pub(super) lease: (LeaseKey, i64),
    /// Values by key.
    pub(super) records: Arc<BTreeMap<String, String>>,
}

/// The task and what it hears.
pub struct Exporter {
    /// Whether there is anything to export in this life (`--dns-export`).
    pub on: bool,
    /// Writes to etcd.
    pub writer: Writer,
    /// What should stand there; absent while nobody knows.
    pub wanted: watch::Receiver<Option<Wanted>>,
    /// How etcd is.
    pub views: watch::Receiver<View>,
    /// Where it is told what is in the way.
    pub problem: watch::Sender<Option<String>>,
}

/// How long etcd may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether all is there still: others can write below the prefix.
const CHECK: Duration = Duration::from_secs(30);
/// What fails once may only have met another's write.
const TOLD_AFTER: u32 = 3;

impl Exporter {
    /// Runs for ever.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut written: Option<Wanted> = None;
        let mut backoff = Backoff::new(100, 5000);
        let mut failures = 0;
        let mut checked = Instant::now();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let mut next = if self.on { Some(checked + CHECK) } else { None };
            if let Some(wanted) = wanted
                && (written.as_ref() != Some(&wanted) || next.is_some_and(|at| at <= Instant::now()))
            {
                let brought = tokio::time::timeout(PATIENCE, self.bring(&wanted, written.as_ref())).await;
                let problem = match brought {
                    Ok(Ok(true)) => None,
                    Ok(Ok(false)) if wanted.lease.1 == 0 => {
                        Some("this host's subnet is reserved, so its names hang on no etcd lease".to_owned())
                    }
                    Ok(Ok(false)) => Some("others write the same keys of etcd".to_owned()),
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("etcd does not answer".into()),
                };
                if let Some(reason) = &problem {
                    tracing::debug!(%reason, "names are not exported");
                    failures += 1;
                    // A part may have been written, nobody knows which; where, is known.
                    if let Some(written) = &mut written {
                        written.records = Arc::default();
                    }
                    next = Some(Instant::now() + Duration::from_millis(backoff.wait(clock::chance())));
                } else {
                    backoff.reset();
                    failures = 0;
                    checked = Instant::now();
                    next = next.map(|_| checked + CHECK);
                    written = Some(wanted);
                }
                // That etcd is away is told elsewhere.
                let told = problem.is_none() || (failures >= TOLD_AFTER && self.views.borrow().connected);
                if told {
                    self.tell(problem);
                }
            }
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => changed?,
                () = due => {}
            }
        }
    }

    /// Brings what stands there to this. `false`: somebody else has changed it meanwhile.
    async fn bring(&self, wanted: &Wanted, written: Option<&Wanted>) -> Result<bool, StoreError> {
        let (key, etcd_lease) = wanted.lease;
        if etcd_lease == 0 {
            // Nothing would ever take away what a host without an etcd lease has written there.
            return Ok(wanted.records.is_empty());
        }
        let there = self.writer.exported(etcd_lease).await?;
        let value = |key: &String| {
            let known = written.filter(|written| written.lease == wanted.lease)?;
            known.records.get(key).filter(|_| there.contains(key))
        };
        let puts: Vec<_> = wanted.records.iter().filter(|(key, now)| value(key) != Some(now)).collect();
        let mut deletes: Vec<_> = there.iter().map(|key| (key.clone(), etcd_lease)).collect();
        // Our lease is another: the former's etcd lease may live on for a day.
        if let Some((_, former)) = written.map(|written| written.lease).filter(|lease| *lease != wanted.lease)
        {
            deletes.extend(self.writer.exported(former).await?.into_iter().map(|key| (key, former)));
        }
        deletes.retain(|(key, _)| !wanted.records.contains_key(key));
        self.writer.export(key, etcd_lease, &puts, &deletes).await
    }

    fn tell(&self, problem: Option<String>) {
        let problem = problem.map(|reason| {
            let what =
                if self.on { "are not exported" } else { "that were exported formerly are not removed" };
            format!("names {what} for CoreDNS (--dns-export): {reason}")
        });
        self.problem.send_if_modified(|told| {
            if let Some(problem) = problem.as_ref().filter(|problem| told.as_ref() != Some(problem)) {
                tracing::warn!("{problem}");
            }
            std::mem::replace(told, problem.clone()) != problem
        });
    }
}
