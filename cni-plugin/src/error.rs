//! Every way in which a CNI command fails, with the number and the words that the runtime
//! gets. Made by all other modules, turned into JSON by `run.rs`.
//!
//! Codes below 100 are CNI's (SPEC.md "Error", and Go's `types.Err…`); from 100 on they are ours:
//!
//! | code | meaning |
//! |---|---|
//! | 1 | version not supported, or the command needs a newer one |
//! | 2 | the configuration asks for what this plugin does not do |
//! | 4 | environment variable missing or malformed |
//! | 5 | a file or stream could not be read or written |
//! | 6 | the configuration is no JSON of the expected form |
//! | 7 | the configuration has a value that cannot be right |
//! | 8 | `CNI_NETNS` is no namespace, or the plugin's own |
//! | 11 | not now: no subnet yet, lease lost, no address free, the requested one taken, or names not served |
//! | 50 | STATUS: ADD would fail |
//! | 51 | STATUS: ADD would fail, and containers may be cut off: the lease is lost |
//! | 100 | the kernel refused an operation |
//! | 101 | something else holds the bridge's name or the gateway's address |
//! | 102 | the container has an interface of that name |
//! | 103 | the veth pair did not come up |
//! | 104 | the allocation folder is not root's alone |
//! | 110 | CHECK: the container's network is not as ADD left it |
//! | 111 | GC: not all could be looked at or freed |

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use loden_proto::Subnet;
use serde_json::{Value, json};

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration's version is not one of ours.
    #[error("incompatible CNI versions")]
    Version {
        /// As the configuration has it.
        config: String,
    },
    /// The command is newer than the configuration's version.
    #[error("config version does not allow {0}")]
    CommandTooNew(&'static str),
    /// The configuration's version is newer than the plugin.
    #[error("plugin version does not allow {0}")]
    ConfigTooNew(&'static str),
    /// The configuration asks for what this plugin does not do.
    #[error("unsupported field {key} = {value}: {why}")]
    Unsupported {
        /// The field.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// Why not, or what to do instead.
        why: &'static str,
    },
    /// The environment is incomplete or malformed.
    #[error("{0}")]
    Environment(String),
    /// The environment has a value that cannot be right.
    #[error("{msg}")]
    EnvironmentValue {
        /// What is wrong.
        msg: String,
        /// The value.
        details: String,
    },
    /// Standard input could not be read.
    #[error("error reading from stdin: {0}")]
    Stdin(io::Error),
    /// The result could not be handed over.
    #[error("error writing to stdout: {0}")]
    Stdout(io::Error),
    /// The configuration cannot be decoded.
    #[error("{0}")]
    Decode(String),
    /// The configuration has a value that cannot be right.
    #[error("{0}")]
    Config(String),
    /// `CNI_NETNS` is the plugin's own namespace.
    #[error("plugin's netns and netns from CNI_NETNS should not be the same")]
    OwnNamespace,
    /// `CNI_NETNS` cannot be entered.
    #[error("cannot enter the network namespace {path} of CNI_NETNS: {source}")]
    Namespace {
        /// Its path.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no `subnet.env`.
    #[error(
        "{} does not exist, so this host has no subnet yet; is the loden daemon running? See journalctl -u loden, \
         or set subnetFile in the CNI configuration", .0.display()
    )]
    NoSubnet(PathBuf),
    /// `subnet.env` says that the lease is lost.
    #[error(
        "this host has lost the lease of its subnet ({}), so no container may join it; \
         `loden status` and journalctl -u loden say who holds it", .0.display()
    )]
    LeaseLost(PathBuf),
    /// `subnet.env` is malformed.
    #[error("{} {reason}; the loden daemon writes this file anew when it restarts", .path.display())]
    SubnetFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}{}", .path.display(), next_step(.action, .path, .source))]
    File {
        /// A verb phrase such as `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder that only root may write to is not root's.
    #[error(
        "{} {reason}, so that somebody else could redirect what this plugin writes as root; remove it, and the \
         plugin makes it anew", .path.display()
    )]
    Untrusted {
        /// The folder.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The port filter that was asked for is not there.
    #[error(
        "the nftables table bridge {0}, which was to guard the container's port (portFilter), is not there; the loden \
         daemon makes it: see `loden status` and journalctl -u loden"
    )]
    NoPortFilter(String),
    /// No address is free.
    #[error("{0}")]
    Exhausted(Exhaustion),
    /// Somebody else has what was requested.
    #[error("the requested {what} is taken by {holder}; ask for another, or for none")]
    Taken {
        /// The address or MAC.
        what: String,
        /// Who has it.
        holder: String,
    },
    /// The kernel refused an operation.
    #[error("cannot {action}: {source}")]
    Kernel {
        /// What was tried.
        action: String,
        /// The kernel's reason.
        source: loden_netlink::Error,
    },
    /// Another interface has the address that the bridge needs.
    #[error(
        "the gateway address {address} of this host's subnet is held by {holder}, but must be on {bridge}; \
         remove it there (ip address del {address} dev {holder}), or set \"bridge\": \"{holder}\" to share it"
    )]
    GatewayHeld {
        /// The gateway's address.
        address: IpAddr,
        /// The interface that has it.
        holder: String,
        /// The bridge that needs it.
        bridge: String,
    },
    /// The bridge's name belongs to something that is no bridge.
    #[error(
        "{0} exists and is no bridge; rename or remove it, or set another \"bridge\" in the CNI configuration"
    )]
    NotABridge(String),
    /// ADD for a name that is taken.
    #[error("the container already has an interface {ifname} in {netns}; DEL must come before another ADD")]
    InterfaceExists {
        /// The name.
        ifname: String,
        /// The namespace's path.
        netns: String,
    },
    /// The pair has no carrier.
    #[error("{0} did not come up within the time the kernel has for it; see ip link show {0}")]
    NotUp(String),
    /// The container's names are not served in time.
    #[error(
        "the names of the container are not known to the overlay: {reason} ({}); the runtime may try again, or \
         \"DNS\": false in the network config turns names off", .socket.display()
    )]
    Names {
        /// The daemon's socket.
        socket: PathBuf,
        /// What it says.
        reason: String,
    },
    /// CHECK found a difference.
    #[error("{0}")]
    Check(String),
    /// ADD would fail.
    #[error("{0}")]
    NotReady(Box<Error>),
    /// GC went on after these, each about one allocation.
    #[error("{}", .0.join("; "))]
    Gc(Vec<String>),
}

/// Why no address could be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exhaustion {
    /// The subnet.
    pub subnet: Subnet,
    /// How many addresses containers can have in it.
    pub usable: u128,
    /// How many of them have an allocation file.
    pub taken: usize,
    /// How many are in files of the host-local plugin.
    pub foreign: usize,
    /// Allocation files that cannot be read; their addresses count as taken.
    pub unreadable: Vec<PathBuf>,
}

impl std::fmt::Display for Exhaustion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { subnet, usable, taken, foreign, unreadable } = self;
        write!(f, "no IP addresses available in {subnet}: {taken} of {usable} are taken")?;
        if *foreign > 0 {
            write!(f, ", {foreign} more by other networks or host-local (/var/lib/cni/networks)")?;
        }
        if !unreadable.is_empty() {
            let names: Vec<String> = unreadable.iter().take(8).map(|p| p.display().to_string()).collect();
            write!(
                f,
                "; {} allocation files cannot be read and hold their address until removed: {}",
                unreadable.len(),
                names.join(", ")
            )?;
        }
        Ok(())
    }
}

fn next_step(action: &str, path: &Path, source: &io::Error) -> &'static str {
    match source.kind() {
        _ if action == "read" => "",
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied if path.starts_with("/proc") => {
            "; the plugin must run as root with /proc/sys writable"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room on that file system, or set another dataDir in the CNI configuration"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; it must be writable for root, or set another dataDir in the CNI configuration"
        }
        _ => "",
    }
}

impl Error {
    /// The number in the error's JSON.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version { .. } | Self::CommandTooNew(_) | Self::ConfigTooNew(_) => 1,
            Self::Unsupported { .. } => 2,
            Self::Environment(_) | Self::EnvironmentValue { .. } => 4,
            Self::Stdin(_) | Self::Stdout(_) | Self::File { .. } => 5,
            Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::OwnNamespace | Self::Namespace { .. } => 8,
            Self::NoSubnet(_) | Self::LeaseLost(_) | Self::SubnetFile { .. } => 11,
            Self::Exhausted(_) | Self::Taken { .. } | Self::NoPortFilter(_) | Self::Names { .. } => 11,
            Self::NotReady(error) if matches!(**error, Self::LeaseLost(_)) => 51,
            Self::NotReady(_) => 50,
            Self::Kernel { .. } => 100,
            Self::GatewayHeld { .. } | Self::NotABridge(_) => 101,
            Self::InterfaceExists { .. } => 102,
            Self::NotUp(_) => 103,
            Self::Untrusted { .. } => 104,
            Self::Check(_) => 110,
            Self::Gc(_) => 111,
        }
    }

    /// The longer text in the error's JSON, where there is one.
    pub fn details(&self) -> Option<String> {
        match self {
            Self::Version { config } => {
                let ours: Vec<String> =
                    crate::request::Version::ALL.iter().map(|v| format!("{:?}", v.as_str())).collect();
                Some(format!("config is {config:?}, plugin supports [{}]", ours.join(" ")))
            }
            Self::EnvironmentValue { details, .. } => Some(details.clone()),
            _ => None,
        }
    }

    /// The error as CNI wants it on standard output.
    pub fn to_json(&self, version: &str) -> Value {
        let mut out = json!({ "cniVersion": version, "code": self.code(), "msg": self.to_string() });
        if let (Some(details), Some(object)) = (self.details(), out.as_object_mut()) {
            object.insert("details".into(), details.into());
        }
        out
    }

    /// A value of the configuration that this plugin has no use for.
    pub(crate) fn unsupported(key: &str, value: impl Into<Value>, why: &'static str) -> Self {
        Self::Unsupported { key: key.into(), value: value.into().to_string(), why }
    }

    /// For `map_err` on a file operation.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` on a netlink operation.
    pub(crate) fn kernel<E: Into<loden_netlink::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_error_lists_what_is_supported_as_go_does() {
        let json = Error::Version { config: "9.9.9".into() }.to_json("9.9.9");
        assert_eq!(json["code"], 1);
        assert_eq!(json["msg"], "incompatible CNI versions");
        assert_eq!(
            json["details"],
            r#"config is "9.9.9", plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#
        );
    }

    #[test]
    fn a_full_disk_is_named_with_its_path_and_the_next_step() {
        let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        let error = Error::file("write", "/run/loden/ipam/x/10.5.7.2")(full);
        let text = error.to_string();
        assert_eq!(error.code(), 5);
        assert!(text.contains("/run/loden/ipam/x/10.5.7.2") && text.contains("make room"), "{text}");
    }

    #[test]
    fn the_next_step_fits_the_file() {
        let text = |action, path: &str| {
            let read_only = io::Error::from_raw_os_error(rustix::io::Errno::ROFS.raw_os_error());
            Error::file(action, path)(read_only).to_string()
        };
        assert!(text("open", "/run/loden/ipam/n/lock").contains("dataDir"));
        assert!(text("write", "/proc/sys/net/ipv4/conf/loden0/forwarding").contains("/proc/sys writable"));
        assert!(!text("read", "/run/loden/subnet.env").contains("writable"));
    }

    #[test]
    fn exhaustion_names_the_files_that_cannot_be_read() {
        let mut why = Exhaustion {
            subnet: "10.5.7.0/30".parse().expect("subnet"),
            usable: 1,
            taken: 1,
            foreign: 0,
            unreadable: Vec::new(),
        };
        assert_eq!(why.to_string(), "no IP addresses available in 10.5.7.0/30: 1 of 1 are taken");
        why.unreadable.push("/run/loden/ipam/n/10.5.7.2".into());
        why.foreign = 3;
        let text = why.to_string();
        assert!(
            text.contains("/run/loden/ipam/n/10.5.7.2")
                && text.contains("3 more by other networks or host-local"),
            "{text}"
        );
    }
}
