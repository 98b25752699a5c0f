//! Allocation files: the only state of the plugin, `<dataDir>/<network>/`. `add.rs` claims,
//! `del.rs` releases, `check.rs` and `bridge.rs` look. Networks below one `dataDir` draw from the same
//! subnet: what one has given no other gives.
//!
//! ```text
//! 10.5.7.2             proto's Allocation as JSON; written beside and renamed, so never half there
//! by-veth/veth….ipv4   the same file once more (a hard link): an index for ADD
//! freed/10.5.7.9       the cool-down counts from its modification time; holds what it held last
//! ../lock              held while an address is chosen or freed, never while the kernel works;
//!                      it contains the last address given of each family, which may be lost
//! ```
//!
//! A crash between two steps can waste an address until the same container's next ADD or
//! DEL, but never give it twice: the index comes before the file and is believed only if
//! the file agrees, the file turns into its mark in one step, and a file that cannot be read
//! holds its address. Files are not synced: by default they lie on a tmpfs, and a power
//! failure ends the containers too.
//!
//! ADD's time is spent here where /run is no tmpfs: an inode costs 50 µs on ext4, hence hard
//! links, a mark that is the old file, and no file for the cursor.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use loden_proto::allocation::{Allocation, FREED_DIR, LOCK_FILE};
use loden_proto::{Family, Subnet};

use crate::error::{Error, Exhaustion};
use crate::ipam::{self, Pool, Usage};
use crate::naming;
use crate::request::Attachment;

/// Where host-local (of flannel's CNI chain) keeps its files: `<network>/<address>`.
pub const HOST_LOCAL_DIR: &str = "/var/lib/cni/networks";
const INDEX_DIR: &str = "by-veth";
const NEW_FILE: &str = ".new";
/// Room for one address and a line feed in the lock file; the longest IPv6 address has 45 characters.
const CURSOR_LEN: usize = 48;
/// From this many marks on, those whose time is over are removed.
const MANY_MARKS: usize = 512;

/// The allocations of one network.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    host_local: PathBuf,
}

/// What happens to an address that is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// It cools down: a container has used it.
    CoolDown,
    /// It is free at once: no container ever used it.
    None,
}

impl Store {
    /// The store of a network below `dataDir`. Touches no file.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self { dir: data_dir.join(network), host_local: HOST_LOCAL_DIR.into() }
    }

    /// Claims one address in each pool. What this attachment holds already (an ADD that was
    /// killed, then repeated) is kept where it fits and released where not.
    pub fn claim(&self, who: &Attachment, pools: &[Pool]) -> Result<Vec<Allocation>, Error> {
        let lock = self.lock()?;
        let host_veth = naming::host_end(who).name;
        let held = self.indexed(who, &host_veth);
        let mut taken = self.addresses().map_err(Error::file("list", &self.dir))?;
        let mut addresses = Vec::with_capacity(pools.len());
        for pool in pools {
            let address = match held.iter().find(|a| pool.contains(a.address)) {
                Some(allocation) => allocation.address,
                None => self.choose(*pool, &taken, &lock)?,
            };
            taken.insert(address);
            addresses.push(address);
        }
        for stale in held.iter().filter(|a| !addresses.contains(&a.address)) {
            self.remove(stale.address, Rest::CoolDown)?;
        }
        let mac = naming::mac_of(addresses.first().copied().unwrap_or(IpAddr::from([0; 4])));
        let mut written = Vec::with_capacity(addresses.len());
        for address in addresses {
            let allocation = Allocation {
                address,
                container_id: who.container_id.clone(),
                ifname: who.ifname.to_string(),
                netns: who.netns.clone(),
                host_veth: host_veth.clone(),
                mac,
                name: None,
            };
            written.push(allocation);
            let Some(Err(error)) = written.last().map(|allocation| self.write(allocation)) else { continue };
            for allocation in &written {
                // The error at hand is the one to tell; what cannot be undone here, DEL will.
                let _ = self.remove(allocation.address, Rest::None);
            }
            self.remove_index(&host_veth);
            return Err(error);
        }
        Ok(written)
    }

    /// The allocations of this attachment: by the index, else by reading every file.
    pub fn find(&self, who: &Attachment) -> Result<Vec<Allocation>, Error> {
        let indexed = self.indexed(who, &naming::host_end(who).name);
        if !indexed.is_empty() {
            return Ok(indexed);
        }
        let addresses = self.addresses().map_err(Error::file("list", &self.dir))?;
        Ok(addresses.into_iter().filter_map(|a| self.read(a).ok()).filter(|a| belongs(a, who)).collect())
    }

    /// Frees what this attachment holds and returns it. Nothing held is fine, no folder too.
    pub fn release(&self, who: &Attachment, rest: Rest) -> Result<Vec<Allocation>, Error> {
        let host_veth = naming::host_end(who).name;
        let found = self.find(who)?;
        let indexed = Family::ALL.iter().any(|f| self.index_path(&host_veth, *f).exists());
        if found.is_empty() && !indexed {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let mut released = Vec::new();
        for allocation in found {
            // Read again: until the lock was ours, another DEL may have freed it and another
            // ADD taken it.
            if self.read(allocation.address).is_ok_and(|now| belongs(&now, who)) {
                self.remove(allocation.address, rest)?;
                released.push(allocation);
            }
        }
        self.remove_index(&host_veth);
        Ok(released)
    }

    /// Whether a container has an address in this subnet.
    pub fn uses(&self, subnet: Subnet) -> Result<bool, Error> {
        let addresses = self.addresses().map_err(Error::file("list", &self.dir))?;
        Ok(addresses.into_iter().chain(self.others()).any(|a| subnet.contains(a)))
    }

    /// Addresses that other networks below the same `dataDir` have given.
    fn others(&self) -> BTreeSet<IpAddr> {
        let networks = fs::read_dir(self.data_dir()).into_iter().flatten().flatten();
        let others = networks.map(|network| network.path()).filter(|path| *path != self.dir);
        others.filter_map(|path| addresses_in(&path).ok()).flatten().collect()
    }

    fn data_dir(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    fn choose(&self, pool: Pool, taken: &BTreeSet<IpAddr>, lock: &File) -> Result<IpAddr, Error> {
        let foreign: BTreeSet<IpAddr> = foreign_addresses(&self.host_local)
            .into_iter()
            .chain(self.others())
            .filter(|a| pool.contains(*a) && !taken.contains(a))
            .collect();
        let now = SystemTime::now();
        let mut usage = Usage {
            taken: taken.iter().filter(|a| pool.contains(**a)).copied().collect(),
            last: read_cursor(lock, pool.subnet().family()),
            freed: self.marks(now),
        };
        let own = usage.taken.len();
        usage.taken.extend(&foreign);
        let Some(address) = ipam::choose(pool, &usage, |a| self.freed_at(a), now) else {
            let unreadable = usage
                .taken
                .iter()
                .filter(|a| taken.contains(a) && self.read(**a).is_err())
                .map(|a| self.path(*a));
            return Err(Error::Exhausted(Exhaustion {
                subnet: pool.subnet(),
                usable: pool.usable(),
                taken: own,
                foreign: foreign.len(),
                unreadable: unreadable.collect(),
            }));
        };
        write_cursor(lock, address);
        Ok(address)
    }

    /// The freed addresses. Marks whose time is over mean nothing and are mostly left for
    /// their address's next turn; an IPv6 subnet has too many addresses for that.
    fn marks(&self, now: SystemTime) -> BTreeSet<IpAddr> {
        let mut marks = addresses_in(&self.dir.join(FREED_DIR)).unwrap_or_default();
        if marks.len() >= MANY_MARKS {
            marks.retain(|address| {
                let rested = self.freed_at(*address).is_none_or(|at| ipam::has_rested(at, now));
                !(rested && fs::remove_file(self.freed_path(*address)).is_ok())
            });
        }
        marks
    }

    fn freed_at(&self, address: IpAddr) -> Option<SystemTime> {
        fs::metadata(self.freed_path(address)).ok()?.modified().ok()
    }

    /// Writes the file under another name, enters it in the index, and gives it its name.
    fn write(&self, allocation: &Allocation) -> Result<(), Error> {
        let (new, path) = (self.dir.join(NEW_FILE), self.path(allocation.address));
        let index = self.index_path(&allocation.host_veth, Family::of(allocation.address));
        let write = || {
            let mut options = OpenOptions::new();
            // A file left here by a crash may be linked from the index: never written into.
            options.write(true).create_new(true).mode(0o644);
            let mut file = in_folder(&new, || or_after_removal(&new, || options.open(&new)))?;
            file.write_all(allocation.to_json().as_bytes())?;
            in_folder(&index, || or_after_removal(&index, || fs::hard_link(&new, &index)))?;
            fs::rename(&new, &path)
        };
        let written = write();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written.map_err(Error::file("write", &path))?;
        // Next to its file a mark means nothing; it only must not be there for ever.
        let _ = fs::remove_file(self.freed_path(allocation.address));
        Ok(())
    }

    fn remove(&self, address: IpAddr, rest: Rest) -> Result<(), Error> {
        let (path, mark) = (self.path(address), self.freed_path(address));
        if rest == Rest::CoolDown {
            let freed = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            if freed.and_then(|()| in_folder(&mark, || fs::rename(&path, &mark))).is_ok() {
                return Ok(());
            }
            // Without a mark (no inode left for the folder) the address is free at once,
            // which beats a DEL that fails for ever.
        }
        absent_is_fine(fs::remove_file(&path)).map_err(Error::file("remove", &path))
    }

    fn remove_index(&self, host_veth: &str) {
        for family in Family::ALL {
            // One that disagrees with the files is ignored by all readers.
            let _ = fs::remove_file(self.index_path(host_veth, family));
        }
    }

    /// What the index says, as far as the files agree with it.
    fn indexed(&self, who: &Attachment, host_veth: &str) -> Vec<Allocation> {
        let entry = |family| {
            let text = fs::read_to_string(self.index_path(host_veth, family)).ok()?;
            self.read(Allocation::parse(&text).ok()?.address).ok()
        };
        Family::ALL.into_iter().filter_map(entry).filter(|a| belongs(a, who)).collect()
    }

    /// Every address that has a file, whatever is in it.
    fn addresses(&self) -> io::Result<BTreeSet<IpAddr>> {
        match addresses_in(&self.dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
            result => result,
        }
    }

    fn read(&self, address: IpAddr) -> io::Result<Allocation> {
        let allocation =
            Allocation::parse(&fs::read_to_string(self.path(address))?).map_err(io::Error::other)?;
        if allocation.address == address { Ok(allocation) } else { Err(ErrorKind::InvalidData.into()) }
    }

    /// Takes the lock, for as long as the file lives. Only root can open it: whoever can open
    /// a file can lock it, and would stop every ADD.
    fn lock(&self) -> Result<File, Error> {
        let path = self.data_dir().join(LOCK_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = in_folder(&path, || options.open(&path)).map_err(Error::file("open", &path))?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(file)
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    fn freed_path(&self, address: IpAddr) -> PathBuf {
        self.dir.join(FREED_DIR).join(address.to_string())
    }

    fn index_path(&self, host_veth: &str, family: Family) -> PathBuf {
        self.dir.join(INDEX_DIR).join(format!("{host_veth}.{}", suffix(family)))
    }
}

fn suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn belongs(allocation: &Allocation, who: &Attachment) -> bool {
    allocation.container_id == who.container_id && allocation.ifname == who.ifname.as_str()
}

/// Runs it, and once more after making the file's folder if that is what was missing.
fn in_folder<T>(path: &Path, mut write: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match (write(), path.parent()) {
        (Err(e), Some(parent)) if e.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            write()
        }
        (result, _) => result,
    }
}

/// Runs it, and once more after removing what is in its way.
fn or_after_removal<T>(path: &Path, create: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match create() {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            create()
        }
        result => result,
    }
}

/// The last address given of a family; `None` when that is not known (any more).
fn read_cursor(lock: &File, family: Family) -> Option<IpAddr> {
    let mut line = [0; CURSOR_LEN];
    let length = lock.read_at(&mut line, cursor_offset(family)).ok()?;
    str::from_utf8(&line[..length]).ok()?.trim().parse().ok()
}

fn write_cursor(lock: &File, address: IpAddr) {
    let line = format!("{address:<width$}\n", width = CURSOR_LEN - 1, address = address.to_string());
    // A lost cursor costs only the order.
    let _ = lock.write_all_at(line.as_bytes(), cursor_offset(Family::of(address)));
}

fn cursor_offset(family: Family) -> u64 {
    match family {
        Family::V4 => 0,
        Family::V6 => CURSOR_LEN as u64,
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// The names in a folder that are addresses.
fn addresses_in(dir: &Path) -> io::Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        found.extend(entry?.file_name().to_str().and_then(|n| n.parse::<IpAddr>().ok()));
    }
    Ok(found)
}

/// Addresses that host-local gave out. It has no say in this plugin's being able to work:
/// what cannot be read is no address.
fn foreign_addresses(dir: &Path) -> BTreeSet<IpAddr> {
    let networks = fs::read_dir(dir).into_iter().flatten().flatten();
    networks.filter_map(|network| addresses_in(&network.path()).ok()).flatten().collect()
}

#[cfg(test)]
#[path = "allocations_tests.rs"]
mod tests;
