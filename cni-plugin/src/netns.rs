//! Network namespaces: opening one by path, and running code inside. Called by `add.rs`,
//! `del.rs`, `check.rs`, `gc.rs`, `attached.rs` and the daemon's `loden attach`.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{FsWord, fstatfs};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// The file system of namespaces (linux/magic.h).
const NSFS_MAGIC: FsWord = 0x6e73_6673;

/// An open network namespace. Nothing is lost when its path is removed meanwhile.
#[derive(Debug)]
pub struct Netns {
    file: File,
    own: File,
    path: String,
}

impl Netns {
    /// Opens the namespace at a path (`/run/netns/x`, `/proc/1/ns/net`). Does not enter it.
    pub fn open(path: &str) -> Result<Self, Error> {
        let open =
            |path: &str| File::open(path).map_err(|source| Error::Namespace { path: path.into(), source });
        Ok(Self { file: open(path)?, own: open(OWN)?, path: path.into() })
    }

    /// The namespace at a path; `None` when it is gone: there is nothing at the path, or the
    /// plain file that a namespace had been mounted on.
    pub fn find(path: &str) -> Result<Option<Self>, Error> {
        match Self::open(path) {
            Ok(netns) => {
                let system = fstatfs(&netns.file).map_err(|e| netns.error(e.into()))?;
                Ok(Some(netns).filter(|_| system.f_type == NSFS_MAGIC))
            }
            Err(Error::Namespace { source, .. })
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Whether it is the calling thread's own.
    pub fn is_own(&self) -> Result<bool, Error> {
        let id = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).map_err(|e| self.error(e));
        Ok(id(&self.file)? == id(&self.own)?)
    }

    /// Runs code with the calling thread inside the namespace. Afterwards the thread is
    /// where it was; should the kernel refuse the way back, the thread is of no more use and
    /// the error must end it.
    pub fn run<T>(&self, code: impl FnOnce() -> T) -> Result<T, Error> {
        self.enter(&self.file)?;
        let result = code();
        self.enter(&self.own)?;
        Ok(result)
    }

    /// For `IFLA_NET_NS_FD`; valid while `self` lives.
    pub fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn enter(&self, namespace: &File) -> Result<(), Error> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| self.error(e.into()))
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Namespace { path: self.path.clone(), source }
    }
}
