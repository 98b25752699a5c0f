//! Following the keys below a prefix that is not ours: all of them at one revision, then each change, as for our
//! own ([`super::Sync`]), on its connections.

use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, WatchOptions};
use loden_core::backoff::Backoff;
use tokio::sync::watch;

use super::sync::{RELIST, jittered, prefix_end, too_large};
use super::{Connection, StoreError};
use crate::clock;

/// Values per page: they may be of any size that etcd takes.
const PAGE: i64 = 500;

/// What is told of the keys.
#[derive(Debug)]
pub enum Change<'a> {
    /// All of them follow; what was known counts no more.
    Anew,
    /// This stands there; `None`: nothing any more.
    Key(&'a str, Option<&'a [u8]>),
    /// So far all is told.
    Done,
    /// etcd cannot be followed; what was told stands.
    Failed(&'a StoreError),
}

/// From where a watch goes on, and in which cluster.
#[derive(Default)]
struct Position {
    cluster: u64,
    revision: i64,
}

/// Tells of the keys below a prefix that ends with a slash; for ever, or until the daemon's own connection ends
/// for good.
pub async fn follow(
    mut connections: watch::Receiver<Option<Connection>>,
    prefix: &str,
    mut tell: impl FnMut(Change<'_>),
) -> Result<(), watch::error::RecvError> {
    let mut backoff = Backoff::new(100, 5000);
    let mut known = None;
    loop {
        let connection = connections.wait_for(Option::is_some).await?.clone();
        let Some(Connection { mut client, .. }) = connection else { continue };
        connections.mark_unchanged();
        let ended = tokio::select! {
            ended = session(&mut client, prefix, &mut known, &mut backoff, &mut tell) => ended,
            changed = connections.changed() => {
                changed?;
                continue;
            }
        };
        if let Err(error) = ended {
            tell(Change::Failed(&error));
            tokio::time::sleep(Duration::from_millis(backoff.wait(clock::chance()))).await;
        }
    }
}

/// Until the stream cannot be trusted any more.
async fn session(
    client: &mut Client,
    prefix: &str,
    known: &mut Option<Position>,
    backoff: &mut Backoff,
    tell: &mut impl FnMut(Change<'_>),
) -> Result<(), StoreError> {
    let options = GetOptions::new().with_keys_only().with_limit(1);
    let head = client.get(prefix, Some(options)).await?;
    let (cluster, revision) = head.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
    if known.as_ref().is_none_or(|known| known.cluster != cluster || known.revision > revision) {
        *known = None;
        let revision = list(client, prefix, tell).await?;
        *known = Some(Position { cluster, revision });
    }
    let Some(position) = known else { return Ok(()) };
    let options =
        WatchOptions::new().with_prefix().with_start_revision(position.revision + 1).with_fragment();
    let mut stream = client.watch(prefix, Some(options)).await?;
    let relist = tokio::time::sleep(jittered(RELIST));
    tokio::pin!(relist);
    loop {
        let response = tokio::select! {
            response = stream.message() => response,
            () = &mut relist => {
                *known = None;
                return Ok(());
            }
        };
        let response = match response {
            // A single event beyond the limit: a list, page by page, gets past it.
            Err(error) if too_large(&error) => {
                *known = None;
                return Ok(());
            }
            response => response?.ok_or_else(|| StoreError::Ended("the stream closed".into()))?,
        };
        if response.compact_revision() > 0 {
            *known = None;
            return Ok(());
        }
        if response.canceled() {
            return Err(StoreError::Ended(response.cancel_reason().to_owned()));
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let put = event.event_type() == EventType::Put;
            tell(Change::Key(&String::from_utf8_lossy(kv.key()), put.then(|| kv.value())));
            // There may be more of this revision in the next response; to hear it twice changes nothing.
            position.revision = position.revision.max(kv.mod_revision() - 1);
        }
        tell(Change::Done);
        backoff.reset();
    }
}

/// Everything at one revision, which is returned.
async fn list(
    client: &mut Client,
    prefix: &str,
    tell: &mut impl FnMut(Change<'_>),
) -> Result<i64, StoreError> {
    let (mut from, mut revision, mut limit) = (prefix.as_bytes().to_vec(), 0, PAGE);
    tell(Change::Anew);
    loop {
        let mut options = GetOptions::new().with_range(prefix_end(prefix)).with_limit(limit);
        if revision > 0 {
            options = options.with_revision(revision);
        }
        let page = match client.get(from.clone(), Some(options)).await {
            Err(error) if too_large(&error) && limit > 1 => {
                limit = (limit / 8).max(1);
                continue;
            }
            page => page?,
        };
        if revision == 0 {
            revision = page.header().map_or(0, |h| h.revision());
        }
        for kv in page.kvs() {
            tell(Change::Key(&String::from_utf8_lossy(kv.key()), Some(kv.value())));
        }
        match page.kvs().last().filter(|_| page.more()) {
            Some(last) => from = [last.key(), b"\0"].concat(),
            None => break,
        }
    }
    tell(Change::Done);
    Ok(revision)
}
