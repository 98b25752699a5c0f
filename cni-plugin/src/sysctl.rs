//! Kernel parameters of one interface. They belong to the namespace of the thread that opens
//! the file, so callers run this inside [`crate::netns::Netns::run`]. Called by `bridge.rs`
//! and `container.rs`.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};

use crate::error::Error;

/// Sets `net/<family>/conf/<interface>/<name>`. Works where /proc/sys is mounted read-only
/// with the right value. A parameter that this kernel does not have (IPv6 is off, or the
/// kernel is older) is passed over.
pub(crate) fn set(family: &str, interface: &str, name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{family}/conf/{interface}/{name}");
    let written =
        OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(_) if fs::read_to_string(&path).is_ok_and(|current| current.trim_end() == value) => Ok(()),
        other => other.map_err(Error::file("write", path)),
    }
}
