//! A flanneld that runs on this host: two daemons on one device and one lease would undo each
//! other's work.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Where flanneld finds config and leases when nothing else is said.
const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// The process id of a flanneld in our network namespace that works below this etcd prefix.
pub fn running(prefix: &str) -> Option<u32> {
    let wanted = prefix.trim_end_matches('/');
    all().find(|(_, theirs)| theirs.as_ref().is_some_and(|p| p.trim_end_matches('/') == wanted)).map(|f| f.0)
}

/// The process id of a flanneld in our network namespace, whatever its store.
pub fn any() -> Option<u32> {
    all().next().map(|f| f.0)
}

/// Every flanneld in our network namespace with its etcd prefix.
fn all() -> impl Iterator<Item = (u32, Option<String>)> {
    let own = namespace(Path::new("/proc/self"));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let folder = entry.path();
        let named = fs::read(folder.join("comm")).ok()?.starts_with(b"flanneld");
        (named && namespace(&folder) == own).then_some(())?;
        let words = |file| -> Vec<String> {
            let bytes = fs::read(folder.join(file)).unwrap_or_default();
            bytes.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect()
        };
        // Another user's environment is not readable: then only the command line counts.
        Some((pid, etcd_prefix(&words("cmdline"), &words("environ"))))
    })
}

/// Tells network namespaces apart for any user: files below `net` get their inode numbers from the
/// namespace, and may be looked at by everybody, unlike `ns/net` (seen on Linux 6.18, as root and
/// as a user with CAP_NET_ADMIN alone). A zombie has none.
fn namespace(process: &Path) -> Option<u64> {
    fs::metadata(process.join("net/dev")).ok().map(|m| m.ino())
}

/// The etcd prefix of a flanneld by its command line and environment; `None` when its store is
/// Kubernetes. A flag wins over its variable, as in flanneld.
fn etcd_prefix(command_line: &[String], environment: &[String]) -> Option<String> {
    let value_of = |flag: &str| {
        let given = flag_value(command_line, flag);
        let variable = format!("FLANNELD_{}=", flag.replace('-', "_").to_ascii_uppercase());
        given.or_else(|| environment.iter().find_map(|v| v.strip_prefix(&variable).map(str::to_owned)))
    };
    // Words that Go takes for true; the bare flag is one more.
    let kube = value_of("kube-subnet-mgr");
    if kube.is_some_and(|v| ["1", "t", "T", "true", "TRUE", "True"].contains(&v.as_str())) {
        return None;
    }
    Some(value_of("etcd-prefix").unwrap_or_else(|| DEFAULT_PREFIX.to_owned()))
}

/// The last value of a flag as Go reads it: one dash or two, `=` or the next word. A flag that
/// stands last or before another flag is a switch.
fn flag_value(command_line: &[String], flag: &str) -> Option<String> {
    let mut found = None;
    for (position, word) in command_line.iter().enumerate().skip(1) {
        let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        match rest.strip_prefix(flag) {
            Some("") => {
                let next = command_line.get(position + 1).filter(|n| !n.is_empty() && !n.starts_with('-'));
                found = Some(next.cloned().unwrap_or_else(|| "true".to_owned()));
            }
            Some(rest) => found = rest.strip_prefix('=').map(str::to_owned).or(found),
            None => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(command_line: &str, environment: &[&str]) -> Option<String> {
        let words: Vec<String> = command_line.split(' ').map(str::to_owned).collect();
        let environment: Vec<String> = environment.iter().map(|v| (*v).to_owned()).collect();
        etcd_prefix(&words, &environment)
    }

    #[test]
    fn the_prefix_is_found_in_every_form() {
        for line in [
            "flanneld --etcd-prefix=/a/b",
            "flanneld -etcd-prefix=/a/b --ip-masq",
            "/usr/bin/flanneld --ip-masq --etcd-prefix /a/b --iface=eth0",
            "flanneld -etcd-prefix /a/b",
            "flanneld --etcd-prefix=/x --etcd-prefix=/a/b",
            "flanneld --etcd-prefix=/a/b --kube-subnet-mgr=false",
        ] {
            assert_eq!(prefix(line, &["FLANNELD_ETCD_PREFIX=/other"]).as_deref(), Some("/a/b"), "{line}");
        }
        assert_eq!(prefix("flanneld", &["A=b", "FLANNELD_ETCD_PREFIX=/a/b"]).as_deref(), Some("/a/b"));
        assert_eq!(prefix("flanneld --etcd-prefix-not=/x", &[]).as_deref(), Some(DEFAULT_PREFIX));
    }

    #[test]
    fn kubernetes_as_the_store_is_none_of_ours() {
        for line in [
            "flanneld --kube-subnet-mgr",
            "flanneld -kube-subnet-mgr=true",
            "flanneld --kube-subnet-mgr --ip-masq",
        ] {
            assert_eq!(prefix(line, &[]), None, "{line}");
        }
        assert_eq!(prefix("flanneld", &["FLANNELD_KUBE_SUBNET_MGR=true"]), None);
    }
}
