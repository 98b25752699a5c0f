//! What `loden attach` and `loden detach` are told to work on: a network namespace by name or path,
//! a process, a machine of systemd's or LXC's. [`Target::readings`] and [`Target::id`] are pure;
//! [`Target::followed`] and [`resolve`] ask the file system. No program is run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where `ip netns` mounts namespaces.
const NETNS_DIR: &str = "/run/netns";
/// Where systemd-machined tells of its machines.
const MACHINES_DIR: &str = "/run/systemd/machines";
/// The longest name that a machine or namespace can have as a file.
const MAX_NAME: usize = 255;
/// As many links as the kernel follows (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// One reading of what was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A name of `ip netns`.
    Netns(String),
    /// A process.
    Pid(u32),
    /// A machine of systemd's, or a container of LXC's.
    Machine(String),
    /// Another path.
    Path(String),
}

impl Target {
    /// The same where links lead to, as far as they lead anywhere: by whatever path, it is one target.
    pub fn followed(self) -> Self {
        let Self::Path(path) = self else { return self };
        let mut at = PathBuf::from(&path);
        for _ in 0..MAX_LINKS {
            let (Some(folder), Some(name)) = (at.parent(), at.file_name()) else { break };
            let Ok(folder) = folder.canonicalize() else { break };
            let here = folder.join(name);
            match here.to_str().map(Self::of_path) {
                Some(Ok(Self::Path(_))) => {}
                Some(Ok(name_or_pid)) => return name_or_pid,
                _ => break,
            }
            // A namespace below /proc is a link too, but to no path.
            let Some(next) = fs::read_link(&here).ok().map(|to| folder.join(to)).filter(|to| to.exists())
            else {
                return here.to_str().map_or(Self::Path(path), |here| Self::Path(here.into()));
            };
            at = next;
        }
        Self::Path(path)
    }

    /// All that a text can mean, in the order in which it is tried.
    pub fn readings(text: &str) -> Result<Vec<Self>, String> {
        if text.contains('/') && !text.chars().any(char::is_control) {
            return Ok(vec![Self::of_path(text)?]);
        }
        let name = !text.is_empty() && !text.starts_with('.') && text.len() <= MAX_NAME;
        if !name || text.chars().any(char::is_control) {
            return Err(format!(
                "{text:?} is no target: give the name of a namespace or machine, a pid, or a path with a slash"
            ));
        }
        let pid = Some(text).filter(|t| t.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse().ok());
        let mut readings = vec![Self::Netns(text.into())];
        readings.extend(pid.map(Self::Pid));
        readings.push(Self::Machine(text.into()));
        Ok(readings)
    }

    /// A path that is another way to say a name or a pid is that.
    fn of_path(path: &str) -> Result<Self, String> {
        if !path.starts_with('/') {
            return Err(format!("{path} is relative to somewhere; give the path from / on"));
        }
        let within = |dir: &str| path.strip_prefix(dir)?.strip_prefix('/').filter(|name| !name.contains('/'));
        if let Some(name) = within(NETNS_DIR).or_else(|| within("/var/run/netns")).filter(|n| !n.is_empty()) {
            return Ok(Self::Netns(name.into()));
        }
        let pid = path.strip_prefix("/proc/").and_then(|p| p.strip_suffix("/ns/net"));
        match pid.and_then(|p| p.parse().ok()) {
            Some(pid) => Ok(Self::Pid(pid)),
            None => Ok(Self::Path(path.into())),
        }
    }

    /// The container id of its attachments. It follows from the text alone, so that what is gone can
    /// be detached, and of no two targets it is the same. It has only letters, digits and `_.-`.
    pub fn id(&self) -> String {
        let (kind, text) = match self {
            Self::Netns(name) => ("netns", name.clone()),
            Self::Pid(pid) => ("pid", pid.to_string()),
            Self::Machine(name) => ("machine", name.clone()),
            Self::Path(path) => ("path", path.clone()),
        };
        let mut id = format!("{kind}-");
        for byte in text.bytes() {
            match byte {
                b'.' | b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => id.push(byte.into()),
                other => id.push_str(&format!("_{other:02x}")),
            }
        }
        id
    }
}

/// The first reading that leads somewhere, and the path of its namespace.
pub fn resolve(text: &str) -> anyhow::Result<(Target, String)> {
    let mut tried = Vec::new();
    for target in Target::readings(text).map_err(anyhow::Error::msg)? {
        let target = target.followed();
        let path = match &target {
            Target::Path(path) => Some(path.clone()),
            Target::Netns(name) => Some(format!("{NETNS_DIR}/{name}")),
            Target::Pid(pid) => Some(format!("/proc/{pid}/ns/net")),
            Target::Machine(name) => leader(name)?.map(|pid| format!("/proc/{pid}/ns/net")),
        };
        match path {
            Some(path) if Path::new(&path).exists() => return Ok((target, path)),
            Some(path) => tried.push(path),
            None => tried.extend([
                format!("{MACHINES_DIR}/{text} (systemd)"),
                format!("a process in the cgroup lxc.payload.{text} (LXC)"),
            ]),
        }
    }
    bail!("nothing here is called {text}: tried {}; give the pid of one of its processes", tried.join(", "))
}

/// The process in whose namespaces a machine lives.
fn leader(name: &str) -> anyhow::Result<Option<u32>> {
    let path = format!("{MACHINES_DIR}/{name}");
    match fs::read_to_string(&path) {
        Ok(text) => match leader_of(&text) {
            Some(pid) => Ok(Some(pid)),
            None => bail!("{path} has no LEADER=, so the machine does not run yet; start it, or give a pid"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => lxc_init(name),
        Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
    }
}

fn leader_of(machine: &str) -> Option<u32> {
    machine.lines().find_map(|line| line.strip_prefix("LEADER=")?.trim().parse().ok())
}

/// The first process of an LXC container: the one that is number 1 to itself.
fn lxc_init(name: &str) -> anyhow::Result<Option<u32>> {
    let processes = fs::read_dir("/proc").context("cannot list /proc")?;
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let read = |pid: u32, file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let found: Vec<u32> =
        pids.filter(|pid| in_lxc(&read(*pid, "cgroup"), name) && is_first(&read(*pid, "status"))).collect();
    match found[..] {
        [] => Ok(None),
        [pid] => Ok(Some(pid)),
        _ => bail!(
            "several LXC containers are called {name}, with the first processes {found:?}; give the pid"
        ),
    }
}

/// Whether a process's cgroups (`/proc/<pid>/cgroup`) are those of an LXC container.
fn in_lxc(cgroups: &str, name: &str) -> bool {
    let current = format!("lxc.payload.{name}");
    cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).any(|path| {
        let parts: Vec<&str> = path.split('/').collect();
        // Before LXC 4 a container's was `lxc/<name>`.
        parts.contains(&current.as_str()) || parts.windows(2).any(|pair| pair == ["lxc", name])
    })
}

/// Whether a process is the first of its own PID namespace, which is not ours.
fn is_first(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|n| {
        let numbers: Vec<&str> = n.split_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&"1")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn netns(name: &str) -> Target {
        Target::Netns(name.into())
    }

    #[test]
    fn a_name_comes_before_a_pid_and_a_pid_before_a_machine() {
        let machine = |name: &str| Target::Machine(name.into());
        let readings = |text| Target::readings(text).expect(text);
        assert_eq!(readings("web"), [netns("web"), machine("web")]);
        assert_eq!(readings("4711"), [netns("4711"), Target::Pid(4711), machine("4711")]);
        // Too large for a pid.
        assert_eq!(readings("99999999999").len(), 2);
        assert_eq!(readings("-1").len(), 2);
    }

    #[test]
    fn a_path_is_a_name_or_a_pid_where_it_can_be() {
        let reading = |text| Target::readings(text).expect(text).remove(0);
        assert_eq!(reading("/run/netns/web"), netns("web"));
        assert_eq!(reading("/var/run/netns/web"), netns("web"));
        assert_eq!(reading("/proc/17/ns/net"), Target::Pid(17));
        for path in ["/run/netns/a/b", "/run/netns/", "/proc/self/ns/net", "/run/netnsx/y", "/x"] {
            assert_eq!(reading(path), Target::Path(path.into()));
        }
    }

    #[test]
    fn a_path_is_what_its_links_lead_to() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().canonicalize().expect("a path without links");
        let path = |name: &str| root.join(name).to_str().expect("UTF-8").to_owned();
        let followed = |name: &str| Target::Path(path(name)).followed();
        fs::write(path("ns"), "").expect("file");
        let pid = std::process::id();
        for (to, link) in [
            ("ns", "relative"),
            (path("relative").as_str(), "absolute"),
            (".", "folder"),
            (&format!("/proc/{pid}/ns/net"), "process"),
            ("loop", "loop"),
        ] {
            std::os::unix::fs::symlink(to, path(link)).expect("link");
        }
        for same in ["ns", "relative", "absolute", "folder/absolute", "folder/folder/ns"] {
            assert_eq!(followed(same), Target::Path(path("ns")), "{same}");
        }
        assert_eq!(followed("process"), Target::Pid(pid));
        assert_eq!(Target::Path("/proc/self/ns/net".into()).followed(), Target::Pid(pid));
        // What leads nowhere is what was typed.
        for same in ["loop", "gone", "gone/ns"] {
            assert_eq!(followed(same), Target::Path(path(same)), "{same}");
        }
        assert_eq!(netns("web").followed(), netns("web"));
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in ["", ".", "..", ".hidden", "a\nb", "/a\nb", "./web", "netns/web"] {
            Target::readings(text).expect_err(text);
        }
    }

    #[test]
    fn no_two_targets_have_one_id() {
        let all = [
            netns("a_b"),
            netns("a b"),
            netns("a_20b"),
            netns("1"),
            Target::Pid(1),
            Target::Machine("1".into()),
            Target::Path("/a/b".into()),
            Target::Path("/a_b".into()),
            netns("ä"),
        ];
        let ids: BTreeSet<String> = all.iter().map(Target::id).collect();
        assert_eq!(ids.len(), all.len(), "{ids:?}");
        assert!(ids.iter().all(|id| id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))));
        assert_eq!(netns("web-1.x").id(), "netns-web-1.x");
    }

    #[test]
    fn systemd_tells_the_leader() {
        assert_eq!(leader_of("# private\nNAME=web\nSCOPE=x\nLEADER=4711\n"), Some(4711));
        assert_eq!(leader_of("NAME=web\n"), None);
    }

    #[test]
    fn an_lxc_container_is_known_by_its_cgroup() {
        for (cgroup, found) in [
            ("0::/lxc.payload.web/init.scope\n", true),
            ("0::/user.slice/user-0.slice/lxc.payload.web\n", true),
            ("3:memory:/lxc/web\n0::/\n", true),
            ("0::/lxc.payload.web2\n", false),
            ("0::/lxc.monitor.web\n", false),
            ("0::/lxc/webby\n", false),
        ] {
            assert_eq!(in_lxc(cgroup, "web"), found, "{cgroup}");
        }
        assert!(is_first("Name:\tinit\nNSpid:\t4711\t1\n") && is_first("NSpid:\t9\t8\t1\n"));
        assert!(!is_first("NSpid:\t1\n") && !is_first("NSpid:\t4712\t2\n") && !is_first(""));
    }
}
