//! Namespaces held by descriptors, and running code and programs inside them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::process::{self, Output};

/// A network namespace, for hosts also a mount and a UTS namespace. It vanishes when the last
/// descriptor is closed: when this value is dropped, or the test process dies.
#[derive(Debug)]
pub struct Ns {
    net: OwnedFd,
    others: Vec<(OwnedFd, LinkNameSpaceType)>,
}

impl Ns {
    /// A new network namespace with its loopback up.
    pub fn new() -> Self {
        let ns = Self::build(UnshareFlags::NEWNET, || ());
        ns.ip("link set lo up");
        ns
    }

    /// An existing network namespace.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { net: File::open(path)?.into(), others: Vec::new() })
    }

    /// New namespaces; `prepare` runs inside them on a thread of its own before they are kept.
    pub(crate) fn build(flags: UnshareFlags, prepare: impl FnOnce() + Send) -> Self {
        let work = move || {
            // SAFETY: the thread shares no state that unsharing mount, network or UTS
            // namespaces could pull from under other threads; descriptors stay shared.
            unsafe { unshare_unsafe(flags) }.unwrap_or_else(|e| panic!("the lab needs root: unshare: {e}"));
            prepare();
            let open = |kind: &str| -> OwnedFd {
                let path = format!("/proc/thread-self/ns/{kind}");
                File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}")).into()
            };
            let mut others = Vec::new();
            if flags.contains(UnshareFlags::NEWUTS) {
                others.push((open("uts"), LinkNameSpaceType::HostNameAndNISDomainName));
            }
            if flags.contains(UnshareFlags::NEWNS) {
                others.push((open("mnt"), LinkNameSpaceType::Mount));
            }
            Self { net: open("net"), others }
        };
        thread::scope(|scope| joined(scope.spawn(work)))
    }

    /// A path of the network namespace that other programs of this machine can open.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.net.as_raw_fd())
    }

    /// How a person enters it while the scenario stands.
    pub fn enter_command(&self) -> String {
        let mut line = format!("nsenter --net={}", self.path());
        for (fd, kind) in &self.others {
            if *kind == LinkNameSpaceType::Mount {
                line += &format!(" --mount=/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
            }
        }
        line
    }

    /// Runs code on a thread in the network namespace. Sockets made there stay in it and may be
    /// used from any thread.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            enter(self.net.as_fd(), LinkNameSpaceType::Network);
            work()
        };
        thread::scope(|scope| joined(scope.spawn(work)))
    }

    /// The same, in all its namespaces: paths are the host's.
    pub fn within_all<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            // SAFETY: only this thread's root and working folder become its own; setns(2)
            // demands it before a thread enters a mount namespace.
            unsafe { unshare_unsafe(UnshareFlags::FS) }.expect("unshare(CLONE_FS)");
            enter(self.net.as_fd(), LinkNameSpaceType::Network);
            for (fd, kind) in &self.others {
                enter(fd.as_fd(), *kind);
            }
            work()
        };
        thread::scope(|scope| joined(scope.spawn(work)))
    }

    /// A command that will run inside. Must be started while `self` lives.
    pub fn command(&self, argv: &[&str]) -> Command {
        let (program, args) = argv.split_first().expect("a program");
        let mut command = Command::new(program);
        command.args(args);
        let duplicate = |fd: &OwnedFd| fd.try_clone().expect("a second descriptor");
        let mut fds = vec![(duplicate(&self.net), LinkNameSpaceType::Network)];
        fds.extend(self.others.iter().map(|(fd, kind)| (duplicate(fd), *kind)));
        // SAFETY: after fork the child has one thread; setns is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                for (fd, kind) in &fds {
                    move_into_link_name_space(fd.as_fd(), Some(*kind))?;
                }
                Ok(())
            });
        }
        command
    }

    /// Runs a program inside to its end.
    pub fn exec(&self, argv: &[&str]) -> Output {
        process::run(self.command(argv), b"")
    }

    /// Runs a program inside that must succeed; returns its standard output.
    #[track_caller]
    pub fn run(&self, argv: &[&str]) -> String {
        self.exec(argv).expect_success()
    }

    /// Runs `ip` commands, one a line, in one process; all must succeed.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        process::run(self.command(&["ip", "-batch", "-"]), lines.as_bytes()).expect_success();
    }

    /// The same with `bridge`.
    #[track_caller]
    pub fn bridge(&self, lines: &str) {
        process::run(self.command(&["bridge", "-batch", "-"]), lines.as_bytes()).expect_success();
    }

    /// Loads nft commands from a text.
    #[track_caller]
    pub fn nft(&self, text: &str) {
        process::run(self.command(&["nft", "-f", "-"]), text.as_bytes()).expect_success();
    }

    /// Writes a sysctl of this namespace, named with slashes: `net/ipv4/ip_forward`.
    #[track_caller]
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{name}");
        self.within(|| std::fs::write(&path, value)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    /// Reads a sysctl of this namespace.
    #[track_caller]
    pub fn read_sysctl(&self, name: &str) -> String {
        let path = format!("/proc/sys/{name}");
        let text = self.within(|| std::fs::read_to_string(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        text.trim().to_owned()
    }
}

impl Default for Ns {
    fn default() -> Self {
        Self::new()
    }
}

fn enter(fd: BorrowedFd<'_>, kind: LinkNameSpaceType) {
    move_into_link_name_space(fd, Some(kind)).expect("setns into a namespace that we hold");
}

/// Passes a panic of the thread on, so that its message and place stay.
fn joined<T>(handle: thread::ScopedJoinHandle<'_, T>) -> T {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
