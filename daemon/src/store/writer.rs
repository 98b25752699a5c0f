//! Writes. Every write of a lease is a transaction on the revision that it replaces: two hosts can
//! never both believe that they hold one subnet.

use std::sync::Arc;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp, TxnOpResponse,
};
use loden_core::leases::LeaseRecord;
use loden_core::names::{NameKey, Write};
use loden_proto::lease::{LeaseKey, LeaseValue};
use tokio::sync::watch;

use super::sync::record;
use super::{Connection, Keys, StoreError};

/// etcd takes 128 operations in a transaction, unless told otherwise (`--max-txn-ops`).
const WRITES_AT_ONCE: usize = 100;
/// And 1.5 MiB (`--max-request-bytes`): so many records of names at their longest.
const RECORDS_AT_ONCE: usize = 16;

/// What became of a transaction.
#[derive(Debug)]
pub enum Outcome {
    /// It was carried out at this revision.
    Written(i64),
    /// The key is not what we thought: this is what stands there now.
    Conflict(Option<Box<LeaseRecord>>),
}

/// What etcd says of a lease, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeToLive {
    /// As granted.
    pub granted: u64,
    /// Until it ends.
    pub remaining: u64,
}

/// Writes through whatever connection there is.
#[derive(Clone)]
pub struct Writer {
    keys: Keys,
    connections: watch::Receiver<Option<Connection>>,
}

impl Writer {
    /// A writer that uses the reading task's connections.
    pub fn new(prefix: &str, connections: watch::Receiver<Option<Connection>>) -> Self {
        Self { keys: Keys::new(prefix), connections }
    }

    /// A writer on one connection, for the command line.
    pub fn on(prefix: &str, connection: Connection) -> Self {
        Self::new(prefix, watch::channel(Some(connection)).1)
    }

    fn client(&self) -> Result<Client, StoreError> {
        self.connections.borrow().as_ref().map(|c| c.client.clone()).ok_or(StoreError::Away)
    }

    /// Writes a lease's value on an etcd lease (0: none, it stays for ever), if its key is at this
    /// `mod_revision` (0: does not exist).
    pub async fn put(
        &self,
        key: &LeaseKey,
        value: &LeaseValue,
        etcd_lease: i64,
        mod_revision: i64,
    ) -> Result<Outcome, StoreError> {
        let name = self.keys.lease(key);
        let options = PutOptions::new().with_lease(etcd_lease);
        let put = TxnOp::put(name.clone(), value.to_json(), Some(options));
        self.transact(name, mod_revision, [put]).await
    }

    /// Deletes a lease's key and the names of its endpoints, if it is at this revision.
    pub async fn delete(&self, key: &LeaseKey, mod_revision: i64) -> Result<Outcome, StoreError> {
        let name = self.keys.lease(key);
        let names = self.keys.names(&NameKey { lease: *key, endpoint: "".into() });
        let names = TxnOp::delete(names, Some(DeleteOptions::new().with_prefix()));
        self.transact(name.clone(), mod_revision, [TxnOp::delete(name, None), names]).await
    }

    async fn transact<const N: usize>(
        &self,
        name: String,
        mod_revision: i64,
        writes: [TxnOp; N],
    ) -> Result<Outcome, StoreError> {
        let txn = Txn::new()
            .when([Compare::mod_revision(name.clone(), CompareOp::Equal, mod_revision)])
            .and_then(writes)
            .or_else([TxnOp::get(name, None)]);
        let response = self.client()?.txn(txn).await?;
        if response.succeeded() {
            return Ok(Outcome::Written(response.header().map_or(0, |h| h.revision())));
        }
        let found = response.op_responses().into_iter().find_map(|r| match r {
            TxnOpResponse::Get(get) => get.kvs().first().map(record),
            _ => None,
        });
        Ok(Outcome::Conflict(found.map(Box::new)))
    }

    /// Carries out writes of our own names, as long as the lease is ours: its key hangs on our etcd lease.
    /// `false`: it does not.
    pub async fn publish(
        &self,
        key: LeaseKey,
        etcd_lease: i64,
        writes: &[Write],
    ) -> Result<bool, StoreError> {
        let name = |endpoint: &Arc<str>| self.keys.names(&NameKey { lease: key, endpoint: endpoint.clone() });
        let operation = |write: &Write| match write {
            Write::Put(endpoint, record) => {
                TxnOp::put(name(endpoint), record.to_json(), Some(PutOptions::new().with_lease(etcd_lease)))
            }
            Write::Delete(endpoint) => TxnOp::delete(name(endpoint), None),
        };
        for part in writes.chunks(RECORDS_AT_ONCE) {
            let operations = part.iter().map(operation).collect();
            if !self.as_holder(key, etcd_lease, Vec::new(), operations).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts values that stand outside of our prefix on our etcd lease, and deletes keys, each as long as it hangs
    /// on the etcd lease named beside it: somebody else may have it by now. `false`: that, or our lease, is not so
    /// any more.
    pub async fn export(
        &self,
        key: LeaseKey,
        etcd_lease: i64,
        puts: &[(&String, &String)],
        deletes: &[(String, i64)],
    ) -> Result<bool, StoreError> {
        for part in deletes.chunks(WRITES_AT_ONCE) {
            let hangs =
                part.iter().map(|(name, lease)| Compare::lease(name.as_str(), CompareOp::Equal, *lease));
            let operations = part.iter().map(|(name, _)| TxnOp::delete(name.as_str(), None));
            if !self.as_holder(key, etcd_lease, hangs.collect(), operations.collect()).await? {
                return Ok(false);
            }
        }
        for part in puts.chunks(WRITES_AT_ONCE) {
            let options = || Some(PutOptions::new().with_lease(etcd_lease));
            let operations =
                part.iter().map(|(name, value)| TxnOp::put(name.as_str(), value.as_str(), options()));
            if !self.as_holder(key, etcd_lease, Vec::new(), operations.collect()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Carries out operations if the lease is ours and all this is so.
    async fn as_holder(
        &self,
        key: LeaseKey,
        etcd_lease: i64,
        mut conditions: Vec<Compare>,
        operations: Vec<TxnOp>,
    ) -> Result<bool, StoreError> {
        conditions.push(Compare::lease(self.keys.lease(&key), CompareOp::Equal, etcd_lease));
        let txn = Txn::new().when(conditions).and_then(operations);
        Ok(self.client()?.txn(txn).await?.succeeded())
    }

    /// The keys outside of our prefix that hang on an etcd lease of ours; none, where it does not exist.
    pub async fn exported(&self, etcd_lease: i64) -> Result<Vec<String>, StoreError> {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let response = self.client()?.lease_time_to_live(etcd_lease, Some(options)).await?;
        let keys = response.keys().iter().map(|key| String::from_utf8_lossy(key).into_owned());
        let below = self.keys.all();
        Ok(keys.filter(|key| !key.starts_with(&below)).collect())
    }

    /// Writes the network config, unconditionally: an operator's word.
    pub async fn put_config(&self, text: &str) -> Result<(), StoreError> {
        self.client()?.put(self.keys.config(), text, None).await?;
        Ok(())
    }

    /// Writes the network config if there is none; `false` if there is one.
    pub async fn create_config(&self, text: &str) -> Result<bool, StoreError> {
        let name = self.keys.config();
        let txn = Txn::new()
            .when([Compare::version(name.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(name, text, None)]);
        Ok(self.client()?.txn(txn).await?.succeeded())
    }

    /// A new etcd lease of this many seconds.
    pub async fn grant(&self, seconds: u64) -> Result<i64, StoreError> {
        Ok(self.client()?.lease_grant(seconds as i64, None).await?.id())
    }

    /// Refreshes an etcd lease; `false` when it does not exist any more.
    pub async fn keep_alive(&self, lease: i64) -> Result<bool, StoreError> {
        // Opening the stream sends a first keep-alive and reads its answer, which is all we need.
        match self.client()?.lease_keep_alive(lease).await {
            Ok(_stream) => Ok(true),
            Err(etcd_client::Error::LeaseKeepAliveError(reason)) if reason.contains("not found") => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// How long an etcd lease has; `None` when it does not exist.
    pub async fn time_to_live(&self, lease: i64) -> Result<Option<TimeToLive>, StoreError> {
        let response = self.client()?.lease_time_to_live(lease, None).await?;
        let (granted, remaining) = (response.granted_ttl(), response.ttl());
        Ok((remaining >= 0).then_some(TimeToLive { granted: granted as u64, remaining: remaining as u64 }))
    }
}
