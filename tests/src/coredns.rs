//! CoreDNS, with its `etcd` plugin on the lab's etcd: what serves names in SkyDNS's layout today.

use std::sync::Arc;

use crate::docker::peers;
use crate::{Etcd, Host, Process};

impl Host {
    /// Starts it on all addresses of this host, for these zones below `/skydns`. Nothing is cached.
    ///
    /// `None`, with a note, where it has not been built (`make peers`), for want of Go.
    pub fn coredns(&self, zones: &[&str]) -> Option<Arc<Process>> {
        let program = peers().join("coredns");
        if !program.is_file() {
            eprintln!("skipped: no CoreDNS, run make peers");
            return None;
        }
        let file = "/etc/Corefile";
        let (zones, etcd) = (zones.join(" "), Etcd::ADDRESS);
        self.write_file(
            file,
            &format!(
                ".:53 {{\n  errors\n  etcd {zones} {{\n    path /skydns\n    endpoint http://{etcd}:2379\n  }}\n}}\n"
            ),
        );
        Some(self.spawn("coredns", &[&program.display().to_string(), "-conf", file]))
    }
}
