//! The `CNI_…` environment variables and the command that they make. Used by `request.rs`
//! and `run.rs`.

use crate::error::Error;

/// What the runtime wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect a container.
    Del,
    /// Verify a connection.
    Check,
    /// Tell the supported versions.
    Version,
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
            netns_override: read("CNI_NETNS_OVERRIDE"),
        }
    }

    /// The command, once everything it requires is set. `CNI_PATH` is not required: the
    /// specification makes it optional, and this plugin calls no other.
    pub fn command(&self) -> Result<Command, Error> {
        let command = match self.command.as_str() {
            "ADD" => Some(Command::Add),
            "DEL" => Some(Command::Del),
            "CHECK" => Some(Command::Check),
            "VERSION" => Some(Command::Version),
            _ => None,
        };
        let attachment = matches!(command, Some(Command::Add | Command::Del | Command::Check));
        let required = [
            ("CNI_COMMAND", &self.command, true),
            ("CNI_CONTAINERID", &self.container_id, attachment),
            ("CNI_NETNS", &self.netns, attachment && command != Some(Command::Del)),
            ("CNI_IFNAME", &self.ifname, attachment),
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
