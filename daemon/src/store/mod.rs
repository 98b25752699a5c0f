//! etcd, where configs and leases stand. The only module that talks to it; no etcd type leaves it.
//!
//! Reading is one task (`sync`): a list at one revision, then a watch from the next, published
//! as whole [`View`]s. Writing is by transactions that compare the key's revision ([`Writer`]).

mod connection;
mod sync;
mod writer;

use loden_core::Millis;
use loden_core::leases::LeaseTable;
use loden_proto::lease::LeaseKey;

pub use connection::{Connection, EtcdOptions, Secret};
pub use sync::{Sync, read_once};
pub use writer::{Outcome, Writer};

/// All that we know of etcd at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    /// Whether a complete list has arrived in this life of the process. Nothing is deleted before.
    pub synced: bool,
    /// Grows when etcd is another one or went back in time: revisions of before mean nothing then.
    pub epoch: u64,
    /// The leases.
    pub table: LeaseTable,
    /// The text at `<prefix>/config`.
    pub config: Option<String>,
    /// Whether the watch is up.
    pub connected: bool,
    /// Since when it is not.
    pub away_since: Option<Millis>,
    /// The last error.
    pub error: Option<String>,
}

/// What went wrong with etcd.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The client's own words.
    #[error("etcd: {0}")]
    Client(#[from] etcd_client::Error),
    /// A file of ours cannot be read.
    #[error("cannot read {path}: {error}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// There is no connection at the moment.
    #[error("etcd is away")]
    Away,
    /// The stream ended or was cancelled.
    #[error("etcd ended the watch: {0}")]
    Ended(String),
}

/// Where things stand below the prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys below a prefix such as `/coreos.com/network`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    /// Everything of ours and flannel's.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// The network config.
    pub fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// A lease. flannel lists everything that begins with `<prefix>/subnets` and cannot parse an
    /// IPv6-only key, so those stand elsewhere.
    pub fn lease(&self, key: &LeaseKey) -> String {
        match key.subnet(loden_proto::Family::V4) {
            Some(_) => format!("{}/subnets/{key}", self.prefix),
            None => format!("{}/loden/subnets/{key}", self.prefix),
        }
    }

    /// The lease's name in a key, if it is one.
    fn lease_name<'a>(&self, key: &'a str) -> Option<&'a str> {
        let rest = key.strip_prefix(&self.prefix)?;
        rest.strip_prefix("/subnets/").or_else(|| rest.strip_prefix("/loden/subnets/"))
    }
}
