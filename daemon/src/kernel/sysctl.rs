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
fn is(family: Family, interface: &str, key: &str, value: &str) -> bool {
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

/// Whether packets that come in by this interface are forwarded.
pub(super) fn forwards(family: Family, interface: &str) -> bool {
    match family {
        Family::V4 => is(family, interface, "forwarding", "1"),
        Family::V6 => is(family, interface, FORCE, "1") || is(family, "all", "forwarding", "1"),
    }
}

/// Turns forwarding on for what comes in by an interface. Not `ip_forward`: the host does not
/// become a router for everything, and Docker's policy still follows its own rule.
pub(super) fn forward(family: Family, interface: &str) -> io::Result<()> {
    if family == Family::V4 {
        return write(family, interface, "forwarding", "1");
    }
    // In IPv6 `forwarding` of one interface only makes it act as a router towards its link; what is
    // forwarded was told by `all` alone (net/ipv6/ip6_output.c: ip6_forward) until Linux 6.17 brought
    // this one.
    if path(family, interface, FORCE).exists() {
        return write(family, interface, FORCE, "1");
    }
    if is(family, interface, "accept_ra", "1") {
        // A forwarding interface ignores router advertisements unless this is 2
        // (Documentation/networking/ip-sysctl.rst), and the host would lose its default route.
        write(family, interface, "accept_ra", "2")?;
    }
    write(family, "all", "forwarding", "1")
}

/// Documentation/networking/ip-sysctl.rst
const FORCE: &str = "force_forwarding";
