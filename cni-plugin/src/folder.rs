//! Folders that root alone writes to, below one that another user owns: `/run/loden` is the
//! daemon's, and whoever takes over the daemon could put a link where the plugin, as root,
//! writes. So such a folder is opened once, not through a link, and refused unless it is
//! ours; all below it is reached from the open folder. Used by `allocations.rs`.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, Dir, Gid, Mode, OFlags, fchmod, fchown, fstat, linkat, mkdirat, openat, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::Error;

/// What no allocation needs, by far.
const MAX_LENGTH: u64 = 64 * 1024;

/// An open folder. Names of its methods' files are relative and may have one folder in them.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens the folder at a path, if it is there. The folders above it are trusted to lead
    /// to nothing worse than their owner could do anyway.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, Error> {
        Self::at(CWD, path, path)
    }

    /// The same, made if it is not there.
    pub(crate) fn make(path: &Path) -> Result<Self, Error> {
        if let Some(folder) = Self::open(path)? {
            return folder.share();
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::file("make", parent))?;
        }
        make_at(CWD, path).map_err(Error::file("make", path))?;
        Self::open(path)?.ok_or_else(|| Error::file("open", path)(ErrorKind::NotFound.into()))?.share()
    }

    /// Shares what will be in it with the group of the folder above, which is the daemon's: whoever can
    /// open a file can lock it, and locks say what is being worked on.
    fn share(self) -> Result<Self, Error> {
        const SET_GROUP_ID: u32 = 0o2000;
        let share = || -> io::Result<()> {
            if fstat(&self.fd)?.st_mode & SET_GROUP_ID != 0 {
                return Ok(());
            }
            let above = self.path.parent().map(fs::metadata).transpose()?;
            fchown(&self.fd, None, above.map(|above| Gid::from_raw(above.gid())))?;
            Ok(fchmod(&self.fd, Mode::from_raw_mode(SET_GROUP_ID | 0o755))?)
        };
        share().map_err(Error::file("share", &self.path))?;
        Ok(self)
    }

    /// A folder in this one, if it is there.
    pub(crate) fn sub(&self, name: &str) -> Result<Option<Self>, Error> {
        Self::at(&self.fd, Path::new(name), &self.path(name))
    }

    /// The same, made if it is not there.
    pub(crate) fn make_sub(&self, name: &str) -> Result<Self, Error> {
        if let Some(folder) = self.sub(name)? {
            return folder.share();
        }
        let path = self.path(name);
        make_at(&self.fd, Path::new(name)).map_err(Error::file("make", &path))?;
        self.sub(name)?.ok_or_else(|| Error::file("open", path)(ErrorKind::NotFound.into()))?.share()
    }

    fn at(parent: impl AsFd, name: &Path, path: &Path) -> Result<Option<Self>, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(parent, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            // A link with O_DIRECTORY is either, depending on where it leads.
            Err(e @ (Errno::LOOP | Errno::NOTDIR)) => {
                let link = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode).is_symlink());
                return Err(match link {
                    true => Error::Untrusted { path: path.into(), reason: "is a link".into() },
                    false => Error::file("open", path)(e.into()),
                });
            }
            Err(e) => return Err(Error::file("open", path)(e.into())),
        };
        let stat = fstat(&fd).map_err(|e| Error::file("look at", path)(e.into()))?;
        let us = geteuid().as_raw();
        if stat.st_uid == us {
            return Ok(Some(Self { fd, path: path.into() }));
        }
        let reason = format!("belongs to user {}, not to user {us}", stat.st_uid);
        Err(Error::Untrusted { path: path.into(), reason })
    }

    /// Path of a file in it, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of all that is in it, or in a folder in it.
    pub(crate) fn names(&self, name: &str) -> io::Result<Vec<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = if name.is_empty() { "." } else { name };
        let mut names = Vec::new();
        for entry in Dir::new(openat(&self.fd, name, flags, Mode::empty())?)? {
            names.extend(entry?.file_name().to_str().map(str::to_owned));
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// Opens a file, with a folder made for it where that is missing and the file may be new.
    pub(crate) fn file(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        let open = || openat(&self.fd, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode.into());
        Ok(File::from(if flags.contains(OFlags::CREATE) { self.in_folder(name, open)? } else { open()? }))
    }

    /// The text of a file.
    pub(crate) fn read(&self, name: &str) -> io::Result<String> {
        text(&self.regular(name)?)
    }

    /// Opens a file to be read. What is none must not keep us waiting.
    pub(crate) fn regular(&self, name: &str) -> io::Result<File> {
        let file = self.file(name, OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::new(ErrorKind::InvalidData, "it is no file")),
        }
    }

    /// When a file was last written to; `None` when it is not there.
    pub(crate) fn modified(&self, name: &str) -> Option<SystemTime> {
        // One system call: on a busy host ADD asks of every address that was freed in the last minute.
        let stat = statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        let seconds = Duration::from_secs(stat.st_mtime.try_into().ok()?);
        let nanoseconds = Duration::from_nanos(stat.st_mtime_nsec);
        SystemTime::UNIX_EPOCH.checked_add(seconds + nanoseconds)
    }

    /// Whether there is something of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Gives a file a second name.
    pub(crate) fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.in_folder(to, || linkat(&self.fd, from, &self.fd, to, AtFlags::empty()))
    }

    /// Gives a file another name, in the place of what has that.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.in_folder(to, || renameat(&self.fd, from, &self.fd, to))
    }

    /// Removes a file.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    /// Runs it, and once more after making the file's folder if that is what was missing.
    fn in_folder<T>(&self, name: &str, write: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
        match (write(), name.split_once('/')) {
            (Err(Errno::NOENT), Some((folder, _))) => {
                make_at(&self.fd, Path::new(folder))?;
                Ok(write()?)
            }
            (result, _) => Ok(result?),
        }
    }
}

/// The text of an open file, of a length that an allocation may have.
pub(crate) fn text(file: &File) -> io::Result<String> {
    io::read_to_string(file.take(MAX_LENGTH))
}

fn make_at(parent: impl AsFd, name: &Path) -> io::Result<()> {
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_is_refused_wherever_it_leads() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).expect("dir");
        symlink(&real, &link).expect("link");
        for result in [Folder::open(&link).map(drop), Folder::make(&link).map(drop)] {
            let text = result.expect_err("a link").to_string();
            assert!(text.contains("is a link") && text.contains(link.to_str().expect("path")), "{text}");
        }
        symlink("/nonexistent", dir.path().join("dangling")).expect("link");
        assert!(matches!(Folder::make(&dir.path().join("dangling")), Err(Error::Untrusted { .. })));
        symlink("/etc", real.join("sub")).expect("link");
        let folder = Folder::open(&real).expect("ours").expect("there");
        assert!(matches!(folder.sub("sub"), Err(Error::Untrusted { .. })));
        symlink("/etc/passwd", real.join("file")).expect("link");
        folder.read("file").expect_err("a file that is a link");
        rustix::fs::mknodat(&folder.fd, "fifo", rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .expect("fifo");
        folder.read("fifo").expect_err("it would wait for a writer");
    }

    #[test]
    fn files_are_shared_with_the_group_above_and_nobody_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::os::unix::fs::chown(dir.path(), None, Some(65534)).expect("chown");
        // As a former release made it.
        fs::create_dir(dir.path().join("ipam")).expect("dir");
        let folder = Folder::make(&dir.path().join("ipam")).expect("ours").make_sub("net").expect("made");
        let file = folder.file("x", OFlags::CREATE | OFlags::WRONLY, 0o640).expect("a file");
        assert_eq!(file.metadata().expect("metadata").gid(), 65534);
    }

    #[test]
    fn what_others_own_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).expect("dir");
        std::os::unix::fs::chown(&theirs, Some(65534), None).expect("chown");
        let text = Folder::open(&theirs).expect_err("theirs").to_string();
        assert!(text.contains("belongs to user 65534"), "{text}");
    }

    #[test]
    fn folders_are_made_as_needed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a/b");
        assert!(Folder::open(&path).expect("absent").is_none());
        let folder = Folder::make(&path).expect("made").make_sub("c").expect("made");
        let flags = OFlags::CREATE | OFlags::WRONLY;
        folder.file("x", flags, 0o644).expect("a file");
        folder.file("d/y", flags, 0o644).expect("a file in a folder");
        folder.link("x", "e/x").expect("linked");
        folder.rename("x", "f/x").expect("renamed");
        let mut names = folder.names("").expect("names");
        names.sort();
        assert_eq!(names, ["d", "e", "f"]);
        assert_eq!(folder.names("f").expect("names"), ["x"]);
        assert!(folder.has("e/x") && !folder.has("x"));
    }
}
