//! Kernel parameters of one interface. They belong to the namespace of the thread that opens
//! the file, so callers run this inside [`crate::netns::Netns::run`]. Called by `bridge.rs`
//! and `container.rs`.

use std::fs;
use std::io::ErrorKind;

use crate::error::Error;
use crate::ifname::IfName;

/// Sets `net/<family>/conf/<interface>/<name>` where it differs. Reading first lets it work
/// where /proc/sys is mounted read-only with the right values. A parameter that this kernel
/// does not have (IPv6 is off, or the kernel is older) is passed over.
pub(crate) fn set(family: &str, interface: &IfName, name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{family}/conf/{interface}/{name}");
    match fs::read_to_string(&path) {
        Ok(current) if current.trim_end() == value => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        // A file that cannot be read but written does not exist; the write has the reason.
        _ => fs::write(&path, value).map_err(Error::file("write", path)),
    }
}
