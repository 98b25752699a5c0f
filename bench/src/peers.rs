//! The programs of others that groups measure beside. What is missing is named, with what the tables
//! lack for it and what gets it, and the rest is measured without it. And the tools that a group
//! cannot do without. Used by the groups and `main.rs`.

use std::path::PathBuf;

/// A program of others.
#[derive(Debug)]
pub(crate) struct Peer {
    /// For people.
    name: &'static str,
    /// The variable that says where it is, if not in its usual place.
    variable: &'static str,
    usual: Option<&'static str>,
    /// What is not measured without it.
    lost: &'static str,
    /// What gets it.
    get: &'static str,
}

/// The CNI plugin `bridge`, `host-local` beside it.
pub(crate) const BRIDGE: Peer = Peer {
    name: "the CNI plugins bridge and host-local",
    variable: "CNI_PLUGIN_BRIDGE",
    usual: Some("/usr/lib/cni/bridge"),
    lost: "no comparison with flannel's containers",
    get: "`make deps` installs containernetworking-plugins",
};

/// flannel's CNI plugin, which is not in Debian and not in the Go proxy.
pub(crate) const FLANNEL_CNI: Peer = Peer {
    name: "flannel's CNI plugin",
    variable: "FLANNEL_CNI",
    usual: None,
    lost: "flannel's containers are connected by bridge alone",
    get: "build it from https://github.com/flannel-io/cni-plugin, and give its path in FLANNEL_CNI",
};

/// flannel's daemon.
pub(crate) const FLANNELD: Peer = Peer {
    name: "flanneld",
    variable: "FLANNELD",
    usual: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/flanneld")),
    lost: "no comparison with flannel's daemon",
    get: "`make peers` builds it (needs Go)",
};

/// The DNS server that Kubernetes has; with its plugin `etcd` it took SkyDNS's place.
pub(crate) const COREDNS: Peer = Peer {
    name: "CoreDNS",
    variable: "COREDNS",
    usual: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/coredns")),
    lost: "no comparison with it",
    get: "`make peers` builds it (needs Go)",
};

/// The DNS server that reads hosts files.
pub(crate) const DNSMASQ: Peer = Peer {
    name: "dnsmasq",
    variable: "DNSMASQ",
    usual: Some("/usr/sbin/dnsmasq"),
    lost: "no comparison with it, and no server to forward to",
    get: "`make deps` installs dnsmasq-base",
};

impl Peer {
    /// Where it is. A variable that names what is not there counts as missing: somebody wanted that one.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let named = std::env::var_os(self.variable).filter(|value| !value.is_empty()).map(PathBuf::from);
        named.or_else(|| self.usual.map(PathBuf::from)).filter(|path| path.is_file())
    }

    /// What to say if it is missing.
    pub(crate) fn missing(&self) -> Option<String> {
        if self.find().is_some() {
            return None;
        }
        let named = std::env::var(self.variable).ok().filter(|value| !value.is_empty());
        let named = named.map(|value| format!(" ({}={value} is no file)", self.variable)).unwrap_or_default();
        Some(format!("without {}{named}: {}; {}", self.name, self.lost, self.get))
    }
}

/// Which of these programs are not in PATH.
pub(crate) fn missing_tools(tools: &[&'static str]) -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    tools.iter().copied().filter(|tool| !there(tool)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn peer(usual: Option<&'static str>) -> Peer {
        Peer {
            name: "a thing",
            variable: "LODEN_BENCH_NO_SUCH_VARIABLE",
            usual,
            lost: "no things",
            get: "make it",
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_gets_it() {
        for missing in [peer(None), peer(Some("/no/such/file")), peer(Some("/"))] {
            let remark = "without a thing: no things; make it";
            assert_eq!((missing.find(), missing.missing().as_deref()), (None, Some(remark)));
        }
        assert_eq!(missing_tools(&["sh", "loden-bench-no-such-tool"]), ["loden-bench-no-such-tool"]);
    }

    #[test]
    fn what_is_there_is_not_missing() {
        let there = peer(Some("/proc/self/exe"));
        assert_eq!((there.find(), there.missing()), (Some("/proc/self/exe".into()), None));
    }
}
