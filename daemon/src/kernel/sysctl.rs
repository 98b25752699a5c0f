//! Per-interface settings below `/proc/sys/net`. Written only when they differ, so that a
//! read-only `/proc/sys` with the right values is no error.

use std::io;
use std::path::PathBuf;

use loden_proto::Family;

fn path(family: Family, interface: &str, key: &str) -> PathBuf {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    PathBuf::from(format!("/proc/sys/net/{family}/conf/{interface}/{key}"))
}

/// Whether a setting has this value; `false` also when it cannot be read.
pub(super) fn is(family: Family, interface: &str, key: &str, value: &str) -> bool {
    std::fs::read_to_string(path(family, interface, key)).is_ok_and(|v| v.trim() == value)
}

/// Sets a setting.
pub(super) fn write(family: Family, interface: &str, key: &str, value: &str) -> io::Result<()> {
    if is(family, interface, key, value) {
        return Ok(());
    }
    let path = path(family, interface, key);
    std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}

/// Turns forwarding on for an interface. Not `ip_forward`: the host does not become a router
/// for everything, and Docker's policy still follows its own rule.
pub(super) fn forward(family: Family, interface: &str) -> io::Result<()> {
    if family == Family::V6 && is(family, interface, "accept_ra", "1") {
        // A forwarding interface ignores router advertisements unless this is 2
        // (Documentation/networking/ip-sysctl.rst), and the host would lose its default route.
        write(family, interface, "accept_ra", "2")?;
    }
    write(family, interface, "forwarding", "1")
}
