//! The `CNI_…` environment variables and the command that they make. Used by `request.rs`
//! and `run.rs`.
//!
//! | variable | ADD | DEL | CHECK | GC | STATUS | VERSION |
//! |---|---|---|---|---|---|---|
//! | CNI_CONTAINERID, CNI_IFNAME | required | required | required | | | |
//! | CNI_NETNS | required | optional | required | | | |
//! | CNI_ARGS | optional | ignored | ignored | | | |
//! | CNI_PATH | optional | optional | optional | required | optional | |
//!
//! This is the specification's table. Go's library requires CNI_PATH of all but VERSION,
//! which would refuse a runtime that goes by the specification.

use crate::error::Error;
use crate::version::Version;

/// What the runtime wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect a container.
    Del,
    /// Verify a connection.
    Check,
    /// Free what no container has any more.
    Gc,
    /// Tell whether ADD would work.
    Status,
    /// Tell the supported versions.
    Version,
}

impl Command {
    /// Name and first version of a command that not every version has.
    pub(crate) fn since(self) -> Option<(&'static str, Version)> {
        match self {
            Self::Check => Some(("CHECK", Version::V0_4_0)),
            Self::Gc => Some(("GC", Version::V1_1_0)),
            Self::Status => Some(("STATUS", Version::V1_1_0)),
            Self::Add | Self::Del | Self::Version => None,
        }
    }

    /// Whether it is about one container's interface.
    pub(crate) fn has_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// The `CNI_…` variables, each empty where it is not set.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: String,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_NETNS`
    pub netns: String,
    /// `CNI_IFNAME`
    pub ifname: String,
    /// `CNI_ARGS`
    pub args: String,
    /// `CNI_PATH`
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: not in the specification, but known to all Go plugins.
    pub netns_override: String,
}

impl Environment {
    /// Reads the process's environment.
    pub fn of_process() -> Self {
        // Bytes that are no UTF-8 turn into U+FFFD, which no check below lets through but
        // that of the namespace's path, whose opening then fails by name.
        let read =
            |name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
        Self {
            command: read("CNI_COMMAND"),
            container_id: read("CNI_CONTAINERID"),
            netns: read("CNI_NETNS"),
            ifname: read("CNI_IFNAME"),
            args: read("CNI_ARGS"),
            path: read("CNI_PATH"),
            netns_override: read("CNI_NETNS_OVERRIDE"),
        }
    }

    /// The command, once everything it requires is set.
    pub fn command(&self) -> Result<Command, Error> {
        let command = match self.command.as_str() {
            "ADD" => Some(Command::Add),
            "DEL" => Some(Command::Del),
            "CHECK" => Some(Command::Check),
            "GC" => Some(Command::Gc),
            "STATUS" => Some(Command::Status),
            "VERSION" => Some(Command::Version),
            _ => None,
        };
        let attachment = command.is_some_and(Command::has_attachment);
        let required = [
            ("CNI_COMMAND", &self.command, true),
            ("CNI_CONTAINERID", &self.container_id, attachment),
            ("CNI_NETNS", &self.netns, attachment && command != Some(Command::Del)),
            ("CNI_IFNAME", &self.ifname, attachment),
            ("CNI_PATH", &self.path, command == Some(Command::Gc)),
        ];
        let missing: Vec<&str> =
            required.iter().filter(|(_, v, req)| *req && v.is_empty()).map(|r| r.0).collect();
        if !missing.is_empty() {
            return Err(Error::Environment(format!(
                "required env variables [{}] missing",
                missing.join(",")
            )));
        }
        command.ok_or_else(|| Error::Environment(format!("unknown CNI_COMMAND: {}", self.command)))
    }
}
