//! etcd, where configs and leases stand. The only module that talks to it; no etcd type leaves it.
//!
//! Reading is one task (`sync`): a list at one revision, then a watch from the next, published
//! as whole [`View`]s; what others keep elsewhere in etcd is followed by `follow`. Writing is by transactions that compare the key's revision ([`Writer`]).

mod connection;
mod follow;
mod sync;
mod writer;

use loden_core::Millis;
use loden_core::leases::LeaseTable;
use loden_core::names::NameKey;
use loden_proto::lease::LeaseKey;

pub use connection::{Connection, EtcdOptions, Secret};
pub use follow::{Change, follow};
pub use sync::{Feeds, Sync, read_once};
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
    /// etcd cannot be reached or does not answer in time.
    #[error("etcd does not answer: {0}; is it up, and does --etcd-endpoints name it?")]
    Silent(String),
    /// etcd does not let us in.
    #[error("etcd refuses us: {0}; check --etcd-username, --etcd-password-file and what the user may do")]
    Refused(String),
    /// Anything else that etcd or its client says.
    #[error("etcd: {0}")]
    Other(String),
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

impl From<etcd_client::Error> for StoreError {
    fn from(error: etcd_client::Error) -> Self {
        // gRPC status codes (google.rpc.Code): 7 PERMISSION_DENIED, 16 UNAUTHENTICATED, 4
        // DEADLINE_EXCEEDED, 14 UNAVAILABLE; a connection that breaks off is 2 UNKNOWN.
        let (code, text) = match &error {
            etcd_client::Error::GRpcStatus(status) => (status.code() as i32, status.message().to_owned()),
            other => (-1, other.to_string()),
        };
        let about_user = [
            "user name is empty",
            "authentication failed",
            "invalid auth token",
            "authentication is not enabled",
        ];
        if code == 7 || code == 16 || about_user.iter().any(|part| text.contains(part)) {
            return StoreError::Refused(text);
        }
        let text = match innermost(&error).filter(|cause| !text.contains(cause.as_str())) {
            Some(cause) => format!("{text}: {cause}"),
            None => text,
        };
        match code {
            2 | 4 | 14 => StoreError::Silent(text),
            _ => StoreError::Other(text),
        }
    }
}

/// The first cause of an error: "Connection refused" says more than "transport error".
fn innermost(error: &etcd_client::Error) -> Option<String> {
    let mut cause: &dyn std::error::Error = match error {
        // The client does not name the status as its source.
        etcd_client::Error::GRpcStatus(status) => status,
        other => other,
    };
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

/// What a key below the prefix stands for.
#[derive(Debug, PartialEq)]
enum Subject<'a> {
    /// The network config.
    Config,
    /// A lease.
    Lease(LeaseKey),
    /// What stands among the leases by this name and is none.
    NoLease(&'a str),
    /// The names of an endpoint.
    Names(NameKey),
    /// Nothing that we know.
    Other,
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
        format!("{}/{}{key}", self.prefix, folder(key))
    }

    /// The names of one endpoint.
    pub fn names(&self, key: &NameKey) -> String {
        format!("{}/loden/names/{}/{}", self.prefix, key.lease, key.endpoint)
    }

    /// What a key stands for.
    fn subject<'a>(&self, key: &'a str) -> Subject<'a> {
        let Some(rest) = self.below(key) else { return Subject::Other };
        if rest == "config" {
            return Subject::Config;
        }
        if let Some(name) = rest.strip_prefix("subnets/").or_else(|| rest.strip_prefix("loden/subnets/")) {
            return match LeaseKey::parse(name) {
                Ok(lease) if rest.strip_prefix(folder(&lease)) == Some(name) => Subject::Lease(lease),
                // With its folder's name it is no key to `LeaseTable::put`, and listed as malformed.
                Ok(_) => Subject::NoLease(rest),
                Err(_) => Subject::NoLease(name),
            };
        }
        let names = || {
            let (lease, endpoint) = rest.strip_prefix("loden/names/")?.split_once('/')?;
            Some(NameKey { lease: LeaseKey::parse(lease).ok()?, endpoint: endpoint.into() })
        };
        names().map_or(Subject::Other, Subject::Names)
    }

    fn below<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.prefix)?.strip_prefix('/')
    }
}

/// Where a lease stands; in the other folder it is none.
fn folder(key: &LeaseKey) -> &'static str {
    if key.subnet(loden_proto::Family::V4).is_some() { "subnets/" } else { "loden/subnets/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_in_the_wrong_folder_is_none_and_does_not_hide_the_right_one() {
        let keys = Keys::new("/coreos.com/network/");
        let path = |key: &str| format!("/coreos.com/network/{key}");
        for right in ["subnets/10.5.1.0-24", "subnets/10.5.1.0-24&fd00::-64", "loden/subnets/fd00::-64"] {
            match keys.subject(&path(right)) {
                Subject::Lease(lease) => assert_eq!(keys.lease(&lease), path(right)),
                other => panic!("{right}: {other:?}"),
            }
        }
        for wrong in ["subnets/fd00::-64", "loden/subnets/10.5.1.0-24"] {
            let path = path(wrong);
            let Subject::NoLease(name) = keys.subject(&path) else { panic!("{wrong} is a lease") };
            let error = LeaseKey::parse(name).expect_err(wrong).to_string();
            assert!(error.contains("loden/subnets/"), "{error}");
        }
        assert_eq!(keys.subject(&path("config")), Subject::Config);
        assert_eq!(keys.subject(&path("subnets/garbage")), Subject::NoLease("garbage"));
        assert_eq!(keys.subject("/coreos.com/network2/subnets/10.5.1.0-24"), Subject::Other);
    }
}
