//! Which name had which address last, so that a container that is made anew finds its own again, after
//! a reboot too: JVMs, and Hadoop above them, resolve a name once and keep what they got. Called by
//! `allocations.rs` under its lock; `ipam.rs` says what a hint counts for.
//!
//! ```text
//! <state-dir>/addresses/given   network, interface, name, addresses: a line for each ADD, the last counts
//! ```
//!
//! One file for all names, and lines are appended: reading it and appending takes 50 µs on ext4 with 250 hints.
//! A file for each name took 300 µs to write (an inode, and a name to be replaced), and to read 250 of them 2 ms,
//! all that an ADD may take; measured on a busy machine. One for all networks, since they draw from one subnet.
//!
//! Hints can be lost. Whatever is wrong with them, an ADD goes on without: what is missing, torn or not ours
//! says nothing, what cannot be written is not written.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::IpAddr;
use std::path::Path;

use rustix::fs::OFlags;

use crate::folder::Folder;

const DIR: &str = "addresses";
const FILE: &str = "given";
const NEW_FILE: &str = ".new";
/// As many names are remembered as the subnet has addresses, but no more than this.
const MOST_NAMES: u128 = 1024;
/// The file is written anew when it has this many times the lines that it needs, and so many at least.
const SLACK: usize = 2;
const FEW_LINES: usize = 64;
/// What no file needs: twice the most lines with names of the greatest length.
const MAX_LENGTH: u64 = 1024 * 1024;

/// The file as it stands.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    folder: Option<Folder>,
    text: String,
}

/// Who is remembered. Tabs cannot be in any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key<'a> {
    pub(crate) network: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) name: &'a str,
}

/// What is known, the newest first. An address is in one hint at most.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Known<'a> {
    hints: Vec<(Key<'a>, Vec<IpAddr>)>,
}

impl Hints {
    /// Reads what there is below the daemon's folder of lasting state.
    pub(crate) fn read(state_dir: Option<&Path>) -> Self {
        // The folder above is the daemon's to make.
        let Some(state_dir) = state_dir.filter(|dir| dir.is_dir()) else { return Self::default() };
        let Ok(folder) = Folder::make(&state_dir.join(DIR)) else { return Self::default() };
        let mut bytes = Vec::new();
        let read = folder.regular(FILE).and_then(|file| file.take(MAX_LENGTH).read_to_end(&mut bytes));
        match read {
            Err(e) if e.kind() != ErrorKind::NotFound => Self::default(),
            _ => Self { folder: Some(folder), text: String::from_utf8_lossy(&bytes).into_owned() },
        }
    }

    /// What it says.
    pub(crate) fn known(&self) -> Known<'_> {
        let (mut keys, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        let lines = self.text.lines().rev().filter_map(parse);
        let newest = lines.filter(|(key, _)| keys.insert(*key));
        let hints = newest.map(|(key, mut of_key)| {
            of_key.retain(|address| addresses.insert(*address));
            (key, of_key)
        });
        Known { hints: hints.collect() }
    }

    /// Remembers what somebody has been given; `room` is how many addresses there are, `taken` those in
    /// use, whose hints are forgotten last.
    pub(crate) fn note(&self, key: Key<'_>, given: &[IpAddr], room: u128, taken: &BTreeSet<IpAddr>) {
        let Some(folder) = self.folder.as_ref().filter(|_| key.fits()) else { return };
        let known = self.known();
        if known.hints.first().is_some_and(|(newest, of)| *newest == key && of == given) {
            return;
        }
        let names = usize::try_from(room.min(MOST_NAMES)).unwrap_or_default();
        // What cannot be remembered is found out by nobody but the next ADD, which goes on as well.
        let _ = if self.text.lines().count() < (SLACK * names).max(FEW_LINES) {
            self.append(folder, key, given)
        } else {
            rewrite(folder, &known, key, given, names, taken)
        };
    }

    fn append(&self, folder: &Folder, key: Key<'_>, given: &[IpAddr]) -> io::Result<()> {
        let mut file = folder.file(FILE, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE, 0o640)?;
        // Behind a line that a crash has torn.
        let torn = if self.text.is_empty() || self.text.ends_with('\n') { "" } else { "\n" };
        file.write_all(format!("{torn}{}", line(key, given)).as_bytes())
    }
}

/// Writes the file anew with the hints that are worth it.
fn rewrite(
    folder: &Folder,
    known: &Known<'_>,
    key: Key<'_>,
    given: &[IpAddr],
    names: usize,
    taken: &BTreeSet<IpAddr>,
) -> io::Result<()> {
    let others = known.hints.iter().filter(|(other, _)| *other != key);
    let (in_use, idle): (Vec<_>, Vec<_>) = others.partition(|(_, of)| of.iter().any(|a| taken.contains(a)));
    let kept = idle.into_iter().take(names.saturating_sub(in_use.len() + 1));
    // Oldest first, and what is in use counts as seen now.
    let mut text: String = kept.rev().map(|(key, of)| line(*key, of)).collect();
    text.extend(in_use.into_iter().rev().map(|(key, of)| line(*key, of)));
    text += &line(key, given);
    let write = |file: &mut File| file.write_all(text.as_bytes());
    // Only its name is removed: a crash may have left it.
    let _ = folder.remove(NEW_FILE);
    write(&mut folder.file(NEW_FILE, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, 0o640)?)?;
    folder.rename(NEW_FILE, FILE)
}

impl Key<'_> {
    fn fits(&self) -> bool {
        ![self.network, self.ifname, self.name].iter().any(|part| part.contains(char::is_control))
    }
}

impl Known<'_> {
    /// The addresses that it had.
    pub(crate) fn of(&self, key: Key<'_>) -> &[IpAddr] {
        self.hints.iter().find(|(other, _)| *other == key).map_or(&[], |(_, of)| of)
    }

    /// The addresses that others had.
    pub(crate) fn of_others(&self, key: Option<Key<'_>>) -> impl Iterator<Item = IpAddr> {
        self.hints.iter().filter(move |(other, _)| Some(*other) != key).flat_map(|(_, of)| of).copied()
    }
}

fn line(key: Key<'_>, addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    format!("{}\t{}\t{}\t{}\n", key.network, key.ifname, key.name, addresses.join(" "))
}

fn parse(line: &str) -> Option<(Key<'_>, Vec<IpAddr>)> {
    let mut parts = line.split('\t');
    let (network, ifname, name, addresses) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let addresses: Option<Vec<IpAddr>> = addresses.split(' ').map(|a| a.parse().ok()).collect();
    let addresses = addresses.filter(|_| parts.next().is_none())?;
    Some((Key { network, ifname, name }, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn key(name: &str) -> Key<'_> {
        Key { network: "net", ifname: "eth0", name }
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|a| a.parse().expect("address")).collect()
    }

    fn note(dir: &Path, name: &str, given: &str) {
        Hints::read(Some(dir)).note(key(name), &ips(given), 253, &BTreeSet::new());
    }

    fn of(dir: &Path, name: &str) -> Vec<IpAddr> {
        Hints::read(Some(dir)).known().of(key(name)).to_vec()
    }

    #[test]
    fn the_last_address_of_a_name_and_the_last_name_of_an_address_count() {
        let dir = tempfile::tempdir().expect("folder");
        note(dir.path(), "db", "10.5.7.9 fd00::9");
        note(dir.path(), "shop/web", "10.5.7.8");
        assert_eq!(of(dir.path(), "db"), ips("10.5.7.9 fd00::9"));
        note(dir.path(), "db", "10.5.7.10 fd00::a");
        note(dir.path(), "new", "10.5.7.8");
        assert_eq!(of(dir.path(), "db"), ips("10.5.7.10 fd00::a"));
        assert_eq!(of(dir.path(), "shop/web"), ips(""), "its address is another's now");
        let hints = Hints::read(Some(dir.path()));
        let others: Vec<IpAddr> = hints.known().of_others(Some(key("db"))).collect();
        assert_eq!(others, ips("10.5.7.8"), "10.5.7.9 is nobody's any more");
        let other = Key { ifname: "net1", ..key("db") };
        assert!(hints.known().of(other).is_empty());
    }

    #[test]
    fn what_is_damaged_says_nothing_and_harms_nothing_else() {
        let dir = tempfile::tempdir().expect("folder");
        note(dir.path(), "db", "10.5.7.9");
        let path = dir.path().join(DIR).join(FILE);
        let torn =
            [&fs::read(&path).expect("file")[..], b"\0\0\xff\n\nnet\teth0\tx\t10.5\nnet\teth0\ty\t10.5.7.1"];
        fs::write(&path, torn.concat()).expect("write");
        note(dir.path(), "web", "10.5.7.8");
        assert_eq!((of(dir.path(), "db"), of(dir.path(), "web")), (ips("10.5.7.9"), ips("10.5.7.8")));
        // A name that would be two lines.
        note(dir.path(), "a\nnet\teth0\tb", "10.5.7.7");
        assert_eq!(of(dir.path(), "b"), ips(""));
        for folder in [None, Some(dir.path().join("nowhere"))] {
            assert_eq!(Hints::read(folder.as_deref()).known(), Known::default());
        }
    }

    #[test]
    fn nothing_is_written_through_a_link_or_into_a_folder_of_others() {
        let dir = tempfile::tempdir().expect("folder");
        let (state, elsewhere) = (dir.path().join("state"), dir.path().join("elsewhere"));
        fs::create_dir_all(&state).expect("folder");
        fs::create_dir_all(&elsewhere).expect("folder");
        let folder = state.join(DIR);
        symlink(&elsewhere, &folder).expect("link");
        note(&state, "db", "10.5.7.9");
        fs::remove_file(&folder).expect("removed");
        fs::create_dir(&folder).expect("folder");
        fs::write(elsewhere.join("file"), "whole").expect("write");
        for name in [FILE, NEW_FILE] {
            symlink(elsewhere.join("file"), folder.join(name)).expect("link");
        }
        note(&state, "db", "10.5.7.9");
        assert_eq!(fs::read_to_string(elsewhere.join("file")).expect("file"), "whole");
        fs::remove_file(folder.join(FILE)).expect("removed");
        std::os::unix::fs::chown(&folder, Some(65534), None).expect("chown");
        note(&state, "db", "10.5.7.9");
        assert!(!folder.join(FILE).exists());
        assert_eq!(fs::read_dir(&elsewhere).expect("folder").count(), 1);
    }

    #[test]
    fn names_that_are_long_gone_are_forgotten_and_those_in_use_are_not() {
        let dir = tempfile::tempdir().expect("folder");
        note(dir.path(), "db", "10.5.7.9");
        let (room, taken) = (3, BTreeSet::from_iter(ips("10.5.7.9")));
        for i in 0..200u8 {
            let name = format!("job{i}");
            Hints::read(Some(dir.path())).note(key(&name), &[IpAddr::from([10, 5, 8, i])], room, &taken);
        }
        let file = dir.path().join(DIR).join(FILE);
        let lines = fs::read_to_string(&file).expect("file").lines().count();
        assert!(lines <= FEW_LINES, "{lines}");
        assert_eq!(of(dir.path(), "db"), ips("10.5.7.9"));
        assert_eq!((of(dir.path(), "job199"), of(dir.path(), "job0")), (ips("10.5.8.199"), ips("")));
        // Somebody who comes again and again costs no write.
        let before = fs::metadata(&file).expect("file").len();
        Hints::read(Some(dir.path())).note(key("job199"), &ips("10.5.8.199"), room, &taken);
        assert_eq!(fs::metadata(&file).expect("file").len(), before);
        assert_eq!(fs::metadata(&file).expect("file").mode() & 0o022, 0);
    }
}
