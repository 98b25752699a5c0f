//! Notices of allocation files that come and go (inotify(7)). They only say "look again".

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// Watches a folder of allocations and the folders in it.
#[derive(Debug)]
pub(crate) struct FolderWatch {
    inotify: AsyncFd<Inotify>,
}

#[derive(Debug)]
struct Inotify(OwnedFd);

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FolderWatch {
    /// Watches nothing yet.
    pub(crate) fn open() -> io::Result<Self> {
        let fd = Inotify(inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?);
        // SAFETY: it owns its descriptor, shows the same one for its whole life, and closes it only
        // when it is dropped, which is after AsyncFd has taken it out of epoll.
        Ok(Self { inotify: unsafe { AsyncFd::register(fd) }? })
    }

    /// Watches the folder, the one above it, in which it comes and goes, and the networks' in it. To be
    /// called before each look, for folders that are new; those watched already cost nothing.
    pub(crate) fn cover(&self, folder: &Path) {
        use inotify::WatchFlags as F;
        let mask = F::CREATE | F::DELETE | F::MOVED_TO | F::MOVED_FROM | F::ONLYDIR;
        let networks = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        let above = folder.parent().map(Path::to_path_buf);
        for path in above.into_iter().chain([folder.to_path_buf()]).chain(networks) {
            // A file, a folder that is not there yet, or too many watches: the periodic look sees it.
            let _ = inotify::add_watch(self.inotify.get_ref(), &path, mask);
        }
    }

    /// Returns when something has come or gone.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        loop {
            let mut ready = self.inotify.readable().await?;
            let read = ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer).map(|_| ())?));
            match read {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}
