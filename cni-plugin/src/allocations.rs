//! Allocation files: the only state of the plugin (but for `hints.rs`, which can be lost), `<dataDir>/<network>/`. `add.rs` claims,
//! `del.rs` and `gc.rs` release, `check.rs`, `status.rs` and `bridge.rs` look. Networks below one
//! `dataDir` draw from the same subnet: what one has given no other gives.
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
//! holds its address. What else a crash leaves goes with the next GC. Files are not synced:
//! by default they lie on a tmpfs, and a power failure ends the containers too.
//!
//! ADD's time is spent here where /run is no tmpfs: an inode costs 50 µs on ext4, hence hard
//! links, a mark that is the old file, and no file for the cursor.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use loden_proto::allocation::{Allocation, FREED_DIR, LOCK_FILE, Port};
use loden_proto::name_record::PublishedPort;
use loden_proto::{Family, Mac, Subnet};
use rustix::fs::OFlags;

use crate::error::{Error, Exhaustion};
use crate::folder::{self, Folder};
use crate::hints::{Hints, Key, Known};
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
    data_dir: PathBuf,
    network: String,
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

/// What an attachment is to have.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// One address of each.
    pub pools: &'a [Pool],
    /// These, where they lie in a pool; else the next.
    pub wanted: &'a [IpAddr],
    /// Its MAC, where it is not the one that goes with the address.
    pub mac: Option<Mac>,
    /// The container's name.
    pub name: Option<&'a str>,
    /// Further names of it.
    pub aliases: &'a [String],
    /// Its published ports.
    pub published: &'a [PublishedPort],
    /// The port that its pair will be.
    pub port: Option<&'a Port>,
    /// The daemon's folder of lasting state, where hints are.
    pub state_dir: Option<&'a Path>,
    /// It is to have the address that one of this name had before.
    pub sticky: Option<&'a str>,
}

/// What an attachment has been given.
#[derive(Debug)]
pub struct Claimed {
    /// One per pool.
    pub allocations: Vec<Allocation>,
    /// Locked for as long as ADD works, so that GC leaves the addresses alone although there
    /// is no interface yet. The kernel unlocks them if ADD is killed.
    _in_work: Vec<File>,
}

/// How full a subnet is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// Addresses that this network has given.
    pub own: usize,
    /// Addresses that other networks and host-local have given.
    pub foreign: usize,
}

/// An allocation that no ADD works on, as it was when it was looked at.
#[derive(Debug)]
pub struct Idle {
    /// What it says.
    pub allocation: Allocation,
    file: File,
}

/// The open folders.
struct Open {
    top: Folder,
    dir: Folder,
}

impl Store {
    /// The store of a network below `dataDir`. Touches no file.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self { data_dir: data_dir.into(), network: network.into(), host_local: HOST_LOCAL_DIR.into() }
    }

    /// Claims one address in each pool. What this attachment holds already (an ADD that was
    /// killed, then repeated) is kept where it fits and released where not.
    pub fn claim(&self, who: &Attachment, claim: Claim<'_>) -> Result<Claimed, Error> {
        let top = Folder::make(&self.data_dir)?;
        let open = Open { dir: top.make_sub(&self.network)?, top };
        let lock = open.lock()?;
        let host_veth = naming::host_end(who).name;
        let held = open.indexed(who, &host_veth);
        let mut taken = open.addresses()?;
        let hints = Hints::read(claim.state_dir);
        let known = hints.known();
        let key = claim.sticky.map(|name| Key { network: &self.network, ifname: who.ifname.as_str(), name });
        let mut addresses = Vec::with_capacity(claim.pools.len());
        for pool in claim.pools {
            let address = match claim.wanted.iter().find(|a| pool.contains(**a)) {
                Some(wanted) => {
                    self.is_free(&open, *wanted, who)?;
                    *wanted
                }
                None => match held.iter().find(|a| pool.contains(a.address)) {
                    Some(allocation) => allocation.address,
                    None => self.choose(&open, *pool, &taken, &lock, (&known, key))?,
                },
            };
            taken.insert(address);
            addresses.push(address);
        }
        if let Some(mac) = claim.mac {
            open.is_free_mac(mac, who)?;
        }
        for stale in held.iter().filter(|a| !addresses.contains(&a.address)) {
            open.remove(stale.address, Rest::CoolDown)?;
        }
        let derived = || naming::mac_of(addresses.first().copied().unwrap_or(IpAddr::from([0; 4])));
        let mac = claim.mac.unwrap_or_else(derived);
        let mut claimed = Claimed { allocations: Vec::with_capacity(addresses.len()), _in_work: Vec::new() };
        for address in &addresses {
            let allocation = Allocation {
                address: *address,
                container_id: who.container_id.clone(),
                ifname: who.ifname.to_string(),
                netns: who.netns.clone(),
                host_veth: host_veth.clone(),
                mac,
                name: claim.name.map(str::to_owned),
                aliases: claim.aliases.to_vec(),
                published: claim.published.to_vec(),
                port: claim.port.cloned(),
            };
            let written = open.write(&allocation);
            claimed.allocations.push(allocation);
            match written {
                Ok(file) => claimed._in_work.push(file),
                Err(error) => {
                    for allocation in &claimed.allocations {
                        // The error at hand is the one to tell; what cannot be undone here, DEL will.
                        let _ = open.remove(allocation.address, Rest::None);
                    }
                    open.remove_index(&host_veth);
                    return Err(error);
                }
            }
        }
        if let Some(key) = key {
            let room = claim.pools.iter().map(Pool::usable).max().unwrap_or_default();
            hints.note(key, &addresses, room, &taken);
        }
        Ok(claimed)
    }

    /// The allocations of this attachment: by the index, else by reading every file.
    pub fn find(&self, who: &Attachment) -> Result<Vec<Allocation>, Error> {
        match self.open()? {
            Some(open) => open.find(who),
            None => Ok(Vec::new()),
        }
    }

    /// Frees what this attachment holds and returns it. Nothing held is fine, no folder too.
    pub fn release(&self, who: &Attachment, rest: Rest) -> Result<Vec<Allocation>, Error> {
        let Some(open) = self.open()? else { return Ok(Vec::new()) };
        let host_veth = naming::host_end(who).name;
        let found = open.find(who)?;
        let indexed = Family::ALL.iter().any(|f| open.dir.has(&index_name(&host_veth, *f)));
        if found.is_empty() && !indexed {
            return Ok(Vec::new());
        }
        let _lock = open.lock()?;
        let mut released = Vec::new();
        for allocation in found {
            // Read again: until the lock was ours, another DEL may have freed it and another
            // ADD taken it.
            if open.read(allocation.address).is_ok_and(|now| belongs(&now, who)) {
                open.remove(allocation.address, rest)?;
                released.push(allocation);
            }
        }
        open.remove_index(&host_veth);
        Ok(released)
    }

    /// Every allocation of the network that no ADD works on, and what could not be read.
    pub fn idle(&self) -> Result<(Vec<Idle>, Vec<Error>), Error> {
        let (mut idle, mut errors) = (Vec::new(), Vec::new());
        let Some(open) = self.open()? else { return Ok((idle, errors)) };
        for address in open.addresses()? {
            match open.look(address) {
                Ok(found) => idle.extend(found),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => errors.push(Error::file("read", open.dir.path(&address.to_string()))(e)),
            }
        }
        Ok((idle, errors))
    }

    /// Frees an allocation, unless it has been freed or given anew since it was looked at.
    pub fn release_idle(&self, idle: &Idle) -> Result<(), Error> {
        let Some(open) = self.open()? else { return Ok(()) };
        let (address, path) = (idle.allocation.address, open.dir.path(&idle.allocation.address.to_string()));
        let _lock = open.lock()?;
        // Each ADD writes a file of its own.
        let number = |file: &File| file.metadata().map(|m| m.ino());
        match open.dir.file(&address.to_string(), OFlags::RDONLY, 0).and_then(|now| number(&now)) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::file("read", path)(e)),
            Ok(now) if now != number(&idle.file).map_err(Error::file("look at", path))? => return Ok(()),
            Ok(_) => {}
        }
        open.remove(address, Rest::CoolDown)?;
        let _ = open.dir.remove(&index_name(&idle.allocation.host_veth, Family::of(address)));
        Ok(())
    }

    /// Removes what commands that were killed have left beside the allocations.
    pub fn tidy(&self) -> Result<(), Error> {
        let Some(open) = self.open()? else { return Ok(()) };
        if open.remains().is_empty() {
            return Ok(());
        }
        let _lock = open.lock()?;
        // Looked at again: until the lock was ours, they were perhaps an ADD's at work.
        for name in open.remains() {
            absent_is_fine(open.dir.remove(&name)).map_err(Error::file("remove", open.dir.path(&name)))?;
        }
        Ok(())
    }

    /// Whether a container has an address in this subnet.
    pub fn uses(&self, subnet: Subnet) -> Result<bool, Error> {
        let Some(open) = self.open()? else { return Ok(false) };
        Ok(open.addresses()?.into_iter().chain(open.others(&self.network)).any(|a| subnet.contains(a)))
    }

    /// How full a pool is. Takes no lock.
    pub fn level(&self, pool: Pool) -> Result<Level, Error> {
        let open = self.open()?;
        let own = open.as_ref().map_or(Ok(BTreeSet::new()), Open::addresses)?;
        let foreign = self.foreign(open.as_ref(), pool, &own);
        Ok(Level { own: own.iter().filter(|a| pool.contains(**a)).count(), foreign: foreign.len() })
    }

    /// The folders, if they are there.
    fn open(&self) -> Result<Option<Open>, Error> {
        let Some(top) = Folder::open(&self.data_dir)? else { return Ok(None) };
        Ok(top.sub(&self.network)?.map(|dir| Open { top, dir }))
    }

    /// Addresses of a pool that others than this network have given.
    fn foreign(&self, open: Option<&Open>, pool: Pool, own: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let others = open.map(|open| open.others(&self.network)).unwrap_or_default();
        let foreign = foreign_addresses(&self.host_local).into_iter().chain(others);
        foreign.filter(|a| pool.contains(*a) && !own.contains(a)).collect()
    }

    /// Refuses a requested address that somebody else has.
    fn is_free(&self, open: &Open, address: IpAddr, who: &Attachment) -> Result<(), Error> {
        let taken = |holder: String| Err(Error::Taken { what: format!("address {address}"), holder });
        match open.read(address) {
            Ok(held) if belongs(&held, who) => return Ok(()),
            Ok(held) => return taken(holder(&held)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(_) => {
                let path = open.dir.path(&address.to_string());
                return taken(format!("{}, which cannot be read", path.display()));
            }
        }
        if open.others(&self.network).contains(&address) {
            return taken(format!("another network below {}", self.data_dir.display()));
        }
        if foreign_addresses(&self.host_local).contains(&address) {
            return taken(format!("host-local, see {}", self.host_local.display()));
        }
        Ok(())
    }

    fn choose(
        &self,
        open: &Open,
        pool: Pool,
        taken: &BTreeSet<IpAddr>,
        lock: &File,
        (known, key): (&Known<'_>, Option<Key<'_>>),
    ) -> Result<IpAddr, Error> {
        let foreign = self.foreign(Some(open), pool, taken);
        let now = SystemTime::now();
        let mut usage = Usage {
            taken: taken.iter().filter(|a| pool.contains(**a)).copied().collect(),
            last: read_cursor(lock, pool.subnet().family()),
            freed: open.marks(now),
            own: key.and_then(|key| known.of(key).iter().copied().find(|a| pool.contains(*a))),
            hinted: known.of_others(key).filter(|a| pool.contains(*a)).collect(),
        };
        let own = usage.taken.len();
        usage.taken.extend(&foreign);
        let Some(address) = ipam::choose(pool, &usage, |a| open.dir.modified(&mark_name(a)), now) else {
            let unreadable = usage
                .taken
                .iter()
                .filter(|a| taken.contains(a) && open.read(**a).is_err())
                .map(|a| open.dir.path(&a.to_string()));
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
}

impl Open {
    fn find(&self, who: &Attachment) -> Result<Vec<Allocation>, Error> {
        let indexed = self.indexed(who, &naming::host_end(who).name);
        if !indexed.is_empty() {
            return Ok(indexed);
        }
        Ok(self
            .addresses()?
            .into_iter()
            .filter_map(|a| self.read(a).ok())
            .filter(|a| belongs(a, who))
            .collect())
    }

    /// Addresses that other networks below the same `dataDir` have given.
    fn others(&self, network: &str) -> BTreeSet<IpAddr> {
        let networks = self.top.names("").unwrap_or_default().into_iter();
        let others = networks.filter(|name| name != network && name != LOCK_FILE);
        others.filter_map(|name| addresses_in(&self.top, &name).ok()).flatten().collect()
    }

    /// Refuses a requested MAC that another container has. Reads every file, which only a
    /// request for a MAC costs.
    fn is_free_mac(&self, mac: Mac, who: &Attachment) -> Result<(), Error> {
        for network in self.top.names("").unwrap_or_default() {
            for address in addresses_in(&self.top, &network).unwrap_or_default() {
                let text = self.top.read(&format!("{network}/{address}"));
                let held = text.ok().and_then(|text| Allocation::parse(&text).ok());
                let other = |a: &Allocation| a.mac == mac && (network != who.network || !belongs(a, who));
                if let Some(held) = held.filter(other) {
                    return Err(Error::Taken { what: format!("MAC {mac}"), holder: holder(&held) });
                }
            }
        }
        Ok(())
    }

    /// The freed addresses. Marks whose time is over mean nothing and are mostly left for
    /// their address's next turn; an IPv6 subnet has too many addresses for that.
    fn marks(&self, now: SystemTime) -> BTreeSet<IpAddr> {
        let mut marks = addresses_in(&self.dir, FREED_DIR).unwrap_or_default();
        if marks.len() >= MANY_MARKS {
            marks.retain(|address| {
                let mark = mark_name(*address);
                let rested = self.dir.modified(&mark).is_none_or(|at| ipam::has_rested(at, now));
                !(rested && self.dir.remove(&mark).is_ok())
            });
        }
        marks
    }

    /// Writes the file under another name, enters it in the index, and gives it its name.
    /// Returns it locked.
    fn write(&self, allocation: &Allocation) -> Result<File, Error> {
        let name = allocation.address.to_string();
        let index = index_name(&allocation.host_veth, Family::of(allocation.address));
        let write = || {
            // A file left here by a crash may be linked from the index: never written into.
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut file = self.or_after_removal(NEW_FILE, || self.dir.file(NEW_FILE, flags, 0o640))?;
            file.try_lock().map_err(io::Error::from)?;
            file.write_all(allocation.to_json().as_bytes())?;
            // One that leads here stays: removed and made again, it could be missing after a crash,
            // and the next ADD would not find what this attachment holds.
            if self.indexed_at(&index) != Some(allocation.address) {
                self.or_after_removal(&index, || self.dir.link(NEW_FILE, &index))?;
            }
            self.dir.rename(NEW_FILE, &name)?;
            Ok(file)
        };
        let written = write();
        if written.is_err() {
            let _ = self.dir.remove(NEW_FILE);
        }
        let file = written.map_err(Error::file("write", self.dir.path(&name)))?;
        // Next to its file a mark means nothing; it only must not be there for ever.
        let _ = self.dir.remove(&mark_name(allocation.address));
        Ok(file)
    }

    /// Runs it, and once more after removing what is in its way.
    fn or_after_removal<T>(&self, name: &str, create: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match create() {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                self.dir.remove(name)?;
                create()
            }
            result => result,
        }
    }

    fn remove(&self, address: IpAddr, rest: Rest) -> Result<(), Error> {
        let (name, mark) = (address.to_string(), mark_name(address));
        if rest == Rest::CoolDown {
            let file = self.dir.file(&name, OFlags::WRONLY, 0);
            let freed = file.and_then(|file| file.set_modified(SystemTime::now()));
            if freed.and_then(|()| self.dir.rename(&name, &mark)).is_ok() {
                return Ok(());
            }
            // Without a mark (no inode left for the folder) the address is free at once,
            // which beats a DEL that fails for ever.
        }
        absent_is_fine(self.dir.remove(&name)).map_err(Error::file("remove", self.dir.path(&name)))
    }

    fn remove_index(&self, host_veth: &str) {
        for family in Family::ALL {
            // One that disagrees with the files is ignored by all readers.
            let _ = self.dir.remove(&index_name(host_veth, family));
        }
    }

    /// What the index says, as far as the files agree with it.
    fn indexed(&self, who: &Attachment, host_veth: &str) -> Vec<Allocation> {
        let entry = |family| self.read(self.indexed_at(&index_name(host_veth, family))?).ok();
        Family::ALL.into_iter().filter_map(entry).filter(|a| belongs(a, who)).collect()
    }

    /// The address that an entry of the index leads to.
    fn indexed_at(&self, index: &str) -> Option<IpAddr> {
        Some(Allocation::parse(&self.dir.read(index).ok()?).ok()?.address)
    }

    /// Names of what no command needs unless it is at work right now: the file that is being
    /// written, and entries of the index that no file agrees with.
    fn remains(&self) -> Vec<String> {
        let agrees = |index: &String| {
            let file = self.indexed_at(index).and_then(|address| self.read(address).ok());
            file.is_some_and(|a| index_name(&a.host_veth, Family::of(a.address)) == *index)
        };
        let entries = self.dir.names(INDEX_DIR).unwrap_or_default().into_iter();
        let mut remains: Vec<String> =
            entries.map(|name| format!("{INDEX_DIR}/{name}")).filter(|index| !agrees(index)).collect();
        remains.extend(Some(NEW_FILE.to_owned()).filter(|name| self.dir.has(name)));
        remains
    }

    /// Every address that has a file, whatever is in it.
    fn addresses(&self) -> Result<BTreeSet<IpAddr>, Error> {
        addresses_in(&self.dir, "").map_err(Error::file("list", self.dir.path("")))
    }

    fn read(&self, address: IpAddr) -> io::Result<Allocation> {
        parse(&self.dir.read(&address.to_string())?, address)
    }

    /// An allocation with its file; `None` while an ADD works on it.
    fn look(&self, address: IpAddr) -> io::Result<Option<Idle>> {
        let file = self.dir.regular(&address.to_string())?;
        if file.try_lock_shared().is_err() {
            return Ok(None);
        }
        let allocation = parse(&folder::text(&file)?, address)?;
        Ok(Some(Idle { allocation, file }))
    }

    /// Takes the lock, for as long as the file lives. Only root can open it: whoever can open
    /// a file can lock it, and would stop every ADD.
    fn lock(&self) -> Result<File, Error> {
        let path = self.top.path(LOCK_FILE);
        let file = self.top.file(LOCK_FILE, OFlags::RDWR | OFlags::CREATE, 0o600);
        let file = file.map_err(Error::file("open", &path))?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(file)
    }
}

fn parse(text: &str, address: IpAddr) -> io::Result<Allocation> {
    let allocation = Allocation::parse(text).map_err(io::Error::other)?;
    if allocation.address == address { Ok(allocation) } else { Err(ErrorKind::InvalidData.into()) }
}

fn mark_name(address: IpAddr) -> String {
    format!("{FREED_DIR}/{address}")
}

fn index_name(host_veth: &str, family: Family) -> String {
    let suffix = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    format!("{INDEX_DIR}/{host_veth}.{suffix}")
}

fn belongs(allocation: &Allocation, who: &Attachment) -> bool {
    allocation.container_id == who.container_id && allocation.ifname == who.ifname.as_str()
}

/// Who has an allocation, for a message.
fn holder(allocation: &Allocation) -> String {
    let name = allocation.name.as_deref().map(|n| format!(" ({n})")).unwrap_or_default();
    format!("container {}{name}, interface {}", allocation.container_id, allocation.ifname)
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

/// The names in a folder's folder that are addresses.
fn addresses_in(folder: &Folder, name: &str) -> io::Result<BTreeSet<IpAddr>> {
    Ok(folder.names(name)?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Addresses that host-local gave out. It has no say in this plugin's being able to work:
/// what cannot be read is no address.
fn foreign_addresses(dir: &Path) -> BTreeSet<IpAddr> {
    let networks = fs::read_dir(dir).into_iter().flatten().flatten();
    let files = networks.flat_map(|network| fs::read_dir(network.path()).into_iter().flatten().flatten());
    files.filter_map(|file| file.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
#[path = "allocations_tests.rs"]
mod tests;
