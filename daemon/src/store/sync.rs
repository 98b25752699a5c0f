//! Keeping a [`View`] of etcd current: list at a revision, watch from the next, and look again
//! whenever the stream cannot be trusted.
//!
//! - A watch that ended is resumed from where it stood, without a list, if etcd is the same and has
//!   not gone back in time (wiped, or restored from a backup).
//! - A compacted revision leaves etcd's stream open and mute after one response; then we list.
//! - Every six hours or some more a list, against events that etcd never sent.
//! - In a rush, such as the start of a fleet, what comes within 20 ms is taken in together ([`Throttle`]), so
//!   that each task that hears of it wakes once and not for every event.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions};
use futures_util::FutureExt;
use loden_core::backoff::{Backoff, Throttle};
use loden_core::leases::{LeaseRecord, LeaseTable};
use loden_core::names::{NameEntry, NameTable};
use loden_proto::lease::LeaseValue;
use loden_proto::name_record::NameRecord;
use tokio::sync::{Notify, watch};

use super::{Connection, EtcdOptions, Keys, StoreError, Subject, View};
use crate::clock;

/// Keys per page. 2,000 leases take some 700 kB, a sixth of the client's limit.
const PAGE: i64 = 2000;
pub(super) const RELIST: Duration = Duration::from_secs(6 * 3600);
/// How often certificate and password files are looked at.
const FILE_CHECK: Duration = Duration::from_secs(5);

/// What the reading task publishes.
#[derive(Clone)]
pub struct Feeds {
    /// Config and leases.
    pub views: watch::Receiver<View>,
    /// The names of endpoints.
    pub names: watch::Receiver<NameTable>,
    /// How to talk to etcd at the moment.
    pub connections: watch::Receiver<Option<Connection>>,
}

/// What stands below the prefix.
#[derive(Default)]
struct Contents {
    table: LeaseTable,
    config: Option<String>,
    names: NameTable,
}

/// The reading task.
pub struct Sync {
    options: EtcdOptions,
    keys: Keys,
    view: watch::Sender<View>,
    /// Apart from the view: containers come and go more often than hosts, and tasks that need the leases alone
    /// are not to wake for their names.
    names: watch::Sender<NameTable>,
    connections: watch::Sender<Option<Connection>>,
    cluster: Option<u64>,
    /// Revision from which a watch goes on.
    resume: i64,
    /// Told when this host's own address changed, and connections hang in the air.
    moved: Arc<Notify>,
}

impl Sync {
    /// The task, and what it publishes.
    pub fn new(options: EtcdOptions, moved: Arc<Notify>) -> (Self, Feeds) {
        let (view, views) = watch::channel(View { away_since: Some(clock::now()), ..View::default() });
        let (names, all_names) = watch::channel(NameTable::default());
        let (connections, connection) = watch::channel(None);
        let keys = Keys::new(&options.prefix);
        let published = Feeds { views, names: all_names, connections: connection };
        (Self { options, keys, view, names, connections, cluster: None, resume: 0, moved }, published)
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(100, 5000);
        loop {
            let error = match self.session(&mut backoff).await {
                Ok(()) => continue,
                Err(error) => error.to_string(),
            };
            self.view.send_modify(|view| {
                if view.error.as_deref() != Some(&error) || view.connected {
                    tracing::warn!(%error, "etcd is away; the data plane stays as it is");
                }
                view.connected = false;
                view.away_since.get_or_insert_with(clock::now);
                view.error = Some(error);
            });
            tokio::time::sleep(Duration::from_millis(backoff.wait(clock::chance()))).await;
        }
    }

    /// One connection's life. `Ok`: it should be made anew, since its files changed.
    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), StoreError> {
        let connection = self.options.connect().await?;
        let mut client = connection.client.clone();
        let seen = {
            let view = self.view.borrow();
            view.synced.then_some(view.table.revision)
        };
        match seen {
            None => self.list(&mut client).await?,
            Some(seen) => {
                let head = client.get(self.keys.config(), None).await?;
                let (cluster, revision) = head.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
                if self.cluster != Some(cluster) || revision < seen {
                    tracing::warn!(
                        revision,
                        seen,
                        "etcd is another one or went back in time; reading everything anew"
                    );
                    self.list(&mut client).await?;
                }
            }
        }
        self.connections.send_replace(Some(connection.clone()));
        loop {
            let result = self.watch(&mut client, &connection, backoff).await?;
            match result {
                WatchEnd::List => self.list(&mut client).await?,
                WatchEnd::Reconnect => return Ok(()),
            }
        }
    }

    /// Everything at one revision.
    async fn list(&mut self, client: &mut Client) -> Result<(), StoreError> {
        let Contents { mut table, mut config, mut names } = Contents::default();
        let mut cluster = None;
        let mut limit = PAGE;
        let mut from = self.keys.all();
        let end = prefix_end(&from);
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
            if table.revision > 0 {
                options = options.with_revision(table.revision);
            }
            let mut page = match client.get(from.clone(), Some(options)).await {
                // Values of up to 1.5 MB are somebody's mishap, and must not hide all others.
                Err(error) if too_large(&error) && limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                page => page?,
            };
            if table.revision == 0 {
                table.revision = page.header().map_or(0, |h| h.revision());
                cluster = page.header().map(|h| h.cluster_id());
            }
            let more = page.more();
            let kvs = page.take_kvs();
            if let Some(last) = kvs.last().filter(|_| more) {
                from = String::from_utf8_lossy(last.key()).into_owned() + "\0";
            }
            for kv in &kvs {
                let key = String::from_utf8_lossy(kv.key());
                match self.keys.subject(&key) {
                    Subject::Config => config = Some(text(kv)),
                    Subject::Lease(lease) => table.insert(lease, record(kv)),
                    Subject::NoLease(name) => table.put(name, record(kv)),
                    Subject::Names(key) => names.put(key, name_entry(kv)),
                    Subject::Other => {}
                }
            }
            if !more || kvs.is_empty() {
                break;
            }
        }
        table.pack();
        // Before the view, which says that all is known.
        self.names.send_if_modified(|told| std::mem::replace(told, names.clone()) != names);
        self.view.send_modify(|view| {
            if table.revision < view.table.revision || self.cluster != cluster {
                view.epoch += 1;
            }
            view.synced = true;
            view.table = table;
            view.config = config;
        });
        self.cluster = cluster;
        self.resume = self.view.borrow().table.revision + 1;
        Ok(())
    }

    async fn watch(
        &mut self,
        client: &mut Client,
        connection: &Connection,
        backoff: &mut Backoff,
    ) -> Result<WatchEnd, StoreError> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.resume)
            .with_progress_notify()
            .with_fragment();
        let mut stream = client.watch(self.keys.all(), Some(options)).await?;
        let relist = tokio::time::sleep(jittered(RELIST));
        tokio::pin!(relist);
        let mut files = tokio::time::interval(FILE_CHECK);
        let mut throttle = Throttle::new(clock::now());
        // Whether others were told of something since the last wait. Names wake nobody who routes.
        let mut told = false;
        loop {
            // Others have their turns, however much is here.
            tokio::task::consume_budget().await;
            let response = match stream.message().now_or_never() {
                Some(response) => response,
                None => {
                    let wait = if std::mem::take(&mut told) { throttle.take(clock::now()) } else { 0 };
                    // Even a sleep for no time would take a millisecond.
                    if wait > 0 {
                        tokio::time::sleep(Duration::from_millis(wait)).await;
                    }
                    tokio::select! {
                        response = stream.message() => response,
                        () = &mut relist => return Ok(WatchEnd::List),
                        () = self.moved.notified() => {
                            tracing::info!("the underlay's address changed; connecting to etcd anew");
                            return Ok(WatchEnd::Reconnect);
                        }
                        _ = files.tick() => {
                            if connection.outdated() {
                                tracing::info!("certificate or password files changed; connecting to etcd anew");
                                return Ok(WatchEnd::Reconnect);
                            }
                            continue;
                        }
                    }
                }
            };
            let response = match response {
                // A single event beyond the limit: a list, page by page, gets past it.
                Err(error) if too_large(&error) => return Ok(WatchEnd::List),
                response => response?,
            };
            let Some(response) = response else { return Err(StoreError::Ended("the stream closed".into())) };
            if response.compact_revision() > 0 {
                tracing::info!(
                    revision = response.compact_revision(),
                    "etcd compacted what we had not seen; reading everything anew"
                );
                return Ok(WatchEnd::List);
            }
            if response.canceled() {
                return Err(StoreError::Ended(response.cancel_reason().to_owned()));
            }
            let events = response.events();
            let header = response.header().map_or(0, |h| h.revision());
            // A response may carry a part of what stands at the header's revision, and even a part of
            // the last event's: go on from that one again, which changes nothing twice. Without events
            // it is a progress notice, and the header is right.
            let seen = events.last().and_then(|e| e.kv()).map(|kv| kv.mod_revision());
            if !response.created() {
                self.resume = self.resume.max(seen.unwrap_or(header + 1));
            }
            let mut names = None;
            told |= self.view.send_if_modified(|view| {
                let mut news = !view.connected;
                if !view.connected {
                    tracing::info!(
                        revision = view.table.revision,
                        leases = view.table.len(),
                        "watching etcd"
                    );
                    view.connected = true;
                    view.away_since = None;
                    view.error = None;
                }
                for event in events {
                    let Some(kv) = event.kv() else { continue };
                    let put = event.event_type() == EventType::Put;
                    let key = String::from_utf8_lossy(kv.key());
                    let subject = self.keys.subject(&key);
                    news |= matches!(subject, Subject::Config | Subject::Lease(_) | Subject::NoLease(_));
                    match subject {
                        Subject::Config => view.config = put.then(|| text(kv)),
                        Subject::Lease(lease) if put => view.table.insert(lease, record(kv)),
                        Subject::Lease(lease) => view.table.remove(&lease),
                        Subject::NoLease(name) if put => view.table.put(name, record(kv)),
                        Subject::NoLease(name) => view.table.delete(name),
                        Subject::Names(key) => {
                            let names = names.get_or_insert_with(|| self.names.borrow().clone());
                            if put { names.put(key, name_entry(kv)) } else { names.delete(&key) }
                        }
                        Subject::Other => {}
                    }
                }
                if !response.created() {
                    view.table.revision = view.table.revision.max(seen.unwrap_or(header));
                }
                news
            });
            if let Some(names) = names {
                self.names.send_replace(names);
            }
            if !response.created() {
                backoff.reset();
            }
        }
    }
}

enum WatchEnd {
    /// The watch is of no more use; list and watch again.
    List,
    /// Connect anew.
    Reconnect,
}

/// A key-value pair as a lease record; an unreadable value is kept as such.
pub(super) fn record(kv: &KeyValue) -> LeaseRecord {
    LeaseRecord {
        value: LeaseValue::parse(kv.value()).map_err(|e| e.to_string()),
        etcd_lease: kv.lease(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
    }
}

fn text(kv: &KeyValue) -> String {
    String::from_utf8_lossy(kv.value()).into_owned()
}

/// A key-value pair as an endpoint's names.
fn name_entry(kv: &KeyValue) -> NameEntry {
    NameEntry { record: NameRecord::parse(kv.value()), etcd_lease: kv.lease() }
}

/// gRPC status OUT_OF_RANGE, with which the client refuses an answer of more than 4 MiB.
pub(super) fn too_large(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.code() as i32 == 11)
}

/// The first key after all that begin with a prefix.
pub(super) fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // The prefix ends with '/', never with 0xff.
        *last += 1;
    }
    end
}

/// Up to a fifth longer.
pub(super) fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(1.0 + (clock::chance() % 1000) as f64 / 5000.0)
}

/// Reads everything once, for the command line.
pub async fn read_once(options: &EtcdOptions) -> Result<(View, Connection), StoreError> {
    let (mut sync, published) = Sync::new(options.clone(), Arc::default());
    let connection = options.connect().await?;
    sync.list(&mut connection.client.clone()).await?;
    let view = published.views.borrow().clone();
    Ok((view, connection))
}
