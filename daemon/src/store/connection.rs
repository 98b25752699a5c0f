//! Connecting: endpoints, TLS, user and password, all read from files anew at each connection.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};

use super::StoreError;

/// How to reach etcd.
#[derive(Debug, Clone, Default)]
pub struct EtcdOptions {
    /// `http://` or `https://` addresses.
    pub endpoints: Vec<String>,
    /// Key prefix.
    pub prefix: String,
    /// CA that signed the servers' certificates.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and its key.
    pub cert_file: Option<PathBuf>,
    /// The key.
    pub key_file: Option<PathBuf>,
    /// User name.
    pub username: Option<String>,
    /// File that holds the password.
    pub password_file: Option<PathBuf>,
    /// The password itself, from the environment. Never from a flag, which `ps` would show.
    pub password: Option<Secret>,
}

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// A client and when its files were read.
#[derive(Clone)]
pub struct Connection {
    pub(super) client: Client,
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

/// How soon a silent or half-open connection is noticed.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For one request; streams are not cut by it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl EtcdOptions {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.ca_file, &self.cert_file, &self.key_file, &self.password_file].into_iter().flatten()
    }

    /// Connects. etcd-client connects lazily, so success does not mean that etcd is there, unless
    /// a user is set.
    pub async fn connect(&self) -> Result<Connection, StoreError> {
        // Before reading: a file that changes meanwhile is read again.
        let files = self.files().map(|p| (p.clone(), modified(p))).collect();
        let mut options = ConnectOptions::new()
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(REQUEST_TIMEOUT)
            .with_require_leader(true);
        if self.ca_file.is_some() || self.endpoints.iter().any(|e| e.starts_with("https:")) {
            let mut tls = TlsOptions::new();
            if let Some(path) = &self.ca_file {
                tls = tls.ca_certificate(Certificate::from_pem(read(path)?));
            }
            if let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        if let Some(user) = &self.username {
            let password = match (&self.password_file, &self.password) {
                (Some(path), _) => read(path)?.trim_end_matches(['\r', '\n']).to_owned(),
                (None, Some(secret)) => secret.0.clone(),
                (None, None) => String::new(),
            };
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        let client = Client::connect(&self.endpoints, Some(options)).await?;
        Ok(Connection { client, files })
    }

    /// What can be told wrong without connecting.
    pub fn check(&self) -> Result<(), String> {
        if self.endpoints.is_empty() {
            return Err("--etcd-endpoints is empty; give at least one, such as http://127.0.0.1:2379".into());
        }
        for endpoint in &self.endpoints {
            let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            if host.is_none_or(str::is_empty) {
                return Err(format!("--etcd-endpoints {endpoint:?} does not begin with http:// or https://"));
            }
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err("--etcd-certfile and --etcd-keyfile go together; give both or none".into());
        }
        if self.username.is_none() && self.password_file.is_some() {
            return Err("--etcd-password-file needs --etcd-username".into());
        }
        if !self.prefix.starts_with('/') {
            return Err(format!("--etcd-prefix {:?} does not begin with '/'", self.prefix));
        }
        if let Some(path) = self.files().find(|p| std::fs::metadata(p).is_err()) {
            return Err(format!("{} cannot be read; check the path and its mode", path.display()));
        }
        Ok(())
    }
}

impl Connection {
    /// Whether a file was changed since the client was made: certificates and passwords rotate.
    pub fn outdated(&self) -> bool {
        self.files.iter().any(|(path, when)| modified(path) != *when)
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn read(path: &Path) -> Result<String, StoreError> {
    std::fs::read_to_string(path)
        .map_err(|error| StoreError::File { path: path.display().to_string(), error })
}
