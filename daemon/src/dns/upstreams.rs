//! The servers that the host itself asks (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the host's resolver reads.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the servers that it asks itself (systemd-resolved.service(8)): its own
/// address, which the first file has, is this host's alone, and asks nobody for the names of an overlay.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
/// systemd-resolved's address.
const RESOLVED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
/// The DNS's port (RFC 1035 §4.2).
pub const PORT: u16 = 53;

/// The servers, kept current with their file.
#[derive(Debug)]
pub(super) struct Upstreams {
    paths: Vec<PathBuf>,
    read: Option<(PathBuf, SystemTime)>,
    servers: Vec<SocketAddr>,
}

impl Upstreams {
    /// The host's.
    pub(super) fn of_the_host() -> Self {
        Self { paths: vec![RESOLV_CONF.into(), BEHIND_RESOLVED.into()], read: None, servers: Vec::new() }
    }

    /// These, whatever the host's resolver does; or the host's, if there is none of them.
    pub(super) fn chosen(servers: &[IpAddr]) -> Self {
        if servers.is_empty() {
            return Self::of_the_host();
        }
        let servers = servers.iter().map(|server| SocketAddr::new(*server, PORT)).collect();
        Self { paths: Vec::new(), read: None, servers }
    }

    /// The servers now. An unreadable file has none.
    pub(super) fn servers(&mut self) -> &[SocketAddr] {
        let stamp = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let current = self.read.as_ref().is_some_and(|(path, at)| stamp(path) == Some(*at));
        if !current && !self.paths.is_empty() {
            self.servers.clear();
            self.read = None;
            for path in &self.paths {
                let Ok(text) = std::fs::read_to_string(path) else { continue };
                self.servers = parse(&text);
                self.read = stamp(path).map(|at| (path.clone(), at));
                if self.servers.iter().any(|server| server.ip() != RESOLVED) {
                    break;
                }
            }
        }
        &self.servers
    }
}

/// The `nameserver` lines, in order. One with a scope (`fe80::1%eth0`) is left out.
fn parse(text: &str) -> Vec<SocketAddr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        Some(SocketAddr::new(words.next()?.parse().ok()?, PORT))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_count_and_nothing_else() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1 \n\tnameserver fd00::1\nnameserver fe80::1%eth0\nnameserver\noptions ndots:2\n";
        let servers: Vec<String> = parse(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fd00::1]:53"]);
    }

    #[test]
    fn behind_resolved_are_the_real_servers_and_a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().expect("folder");
        let paths = vec![folder.path().join("a"), folder.path().join("b")];
        let mut upstreams = Upstreams { paths: paths.clone(), read: None, servers: Vec::new() };
        assert!(upstreams.servers().is_empty());
        std::fs::write(&paths[0], "nameserver 127.0.0.53\n").expect("write");
        std::fs::write(&paths[1], "nameserver 192.0.2.1\n").expect("write");
        assert_eq!(upstreams.servers(), ["192.0.2.1:53".parse().expect("address")]);
        std::fs::write(&paths[1], "nameserver 192.0.2.2\n").expect("write");
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        std::fs::File::options()
            .write(true)
            .open(&paths[1])
            .and_then(|f| f.set_modified(later))
            .expect("touch");
        assert_eq!(upstreams.servers(), ["192.0.2.2:53".parse().expect("address")]);
    }
}
