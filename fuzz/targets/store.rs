//! The allocation folder: whatever lies in it, no address is given twice, nothing outside is
//! touched, and what is freed is free.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use loden_cni::allocations::{Claim, Rest, Store};
use loden_cni::ifname::IfName;
use loden_cni::ipam::Pool;
use loden_cni::naming;
use loden_cni::request::Attachment;
use loden_fuzz::assert_error;
use loden_proto::allocation::{Allocation, Port};
use loden_proto::{Family, Mac, Subnet};

/// File system, folder, not now.
const CODES: [u32; 3] = [5, 11, 104];
const NETWORKS: [&str; 2] = ["net", "other"];

#[derive(Debug, Arbitrary)]
struct Input {
    entries: Vec<Entry>,
    steps: Vec<Step>,
}

/// What lies there before the first step.
#[derive(Debug, Arbitrary)]
struct Entry {
    place: Place,
    name: Name,
    content: Content,
}

#[derive(Debug, Arbitrary)]
enum Place {
    Top,
    Network(bool),
    Index(bool),
    Freed(bool),
}

#[derive(Debug, Arbitrary)]
enum Name {
    Address(u8),
    Index(u8, bool),
    Known(u8),
    Raw(String),
}

#[derive(Debug, Arbitrary)]
enum Content {
    Allocation { who: u8, network: bool, address: u8 },
    Bytes(Vec<u8>),
    Folder,
    Link,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Claim { who: u8, network: bool, wanted: Option<u8>, mac: bool, families: u8 },
    Release { who: u8, network: bool, cool_down: bool },
    Collect { network: bool },
    Look { network: bool },
}

fuzz_target!(|input: Input| {
    let root = root();
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("ipam")).expect("a folder of our own");
    fs::write(root.join("canary"), "canary").expect("written");
    for entry in input.entries.iter().take(32) {
        put(&root, entry);
    }
    for step in input.steps.iter().take(16) {
        take(&root, step);
    }
    assert_eq!(fs::read_to_string(root.join("canary")).expect("still there"), "canary");
    assert_eq!(names(&root), BTreeSet::from(["canary".into(), "ipam".into()]));
    fs::remove_dir_all(&root).expect("removed");
});

/// A folder in memory; a crash leaves it for a look.
fn root() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    parent.join(format!("loden-fuzz-{}", std::process::id()))
}

fn network(other: bool) -> &'static str {
    NETWORKS[usize::from(other)]
}

fn who(number: u8, other: bool) -> Attachment {
    Attachment {
        network: network(other).into(),
        container_id: format!("c{}", number % 3),
        ifname: IfName::new(["eth0", "eth1"][usize::from(number / 3 % 2)]).expect("valid"),
        netns: "/nonexistent".into(),
        own_netns_allowed: false,
    }
}

/// Small subnets, so that what is there and what is claimed meet.
fn subnets(families: u8) -> Vec<Subnet> {
    let all = ["10.5.7.0/28", "fd00::/124"].map(|s| s.parse::<Subnet>().expect("subnet"));
    match families % 4 {
        1 => vec![all[0]],
        2 => vec![all[1]],
        3 => vec!["10.5.8.0/29".parse().expect("subnet"), all[1]],
        _ => all.to_vec(),
    }
}

fn address(number: u8) -> IpAddr {
    let text = match (number / 16) % 3 {
        0 => format!("10.5.7.{}", number % 16),
        1 => format!("fd00::{:x}", number % 16),
        _ => format!("10.5.8.{}", number % 16),
    };
    text.parse().expect("address")
}

fn put(root: &Path, entry: &Entry) {
    let top = root.join("ipam");
    let folder = match entry.place {
        Place::Top => top,
        Place::Network(other) => top.join(network(other)),
        Place::Index(other) => top.join(network(other)).join("by-veth"),
        Place::Freed(other) => top.join(network(other)).join("freed"),
    };
    let name = match &entry.name {
        Name::Address(number) => address(*number).to_string(),
        Name::Index(number, other) => {
            let family = if number / 8 % 2 == 0 { "ipv4" } else { "ipv6" };
            format!("{}.{family}", naming::host_end(&who(*number, *other)).name)
        }
        Name::Known(number) => {
            ["lock", ".new", "net", "other", "by-veth", "freed"][usize::from(*number) % 6].into()
        }
        Name::Raw(name) => name.clone(),
    };
    if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) {
        return;
    }
    let path = folder.join(&name);
    // What cannot be put there (a name too long, something there already) is not there.
    let _ = fs::create_dir_all(folder);
    let _ = match &entry.content {
        Content::Allocation { who: number, network, address: a } => {
            let attachment = who(*number, *network);
            let allocation = Allocation {
                address: address(*a),
                host_veth: naming::host_end(&attachment).name,
                container_id: attachment.container_id,
                ifname: attachment.ifname.to_string(),
                netns: attachment.netns,
                mac: naming::mac_of(address(*a)),
                name: None,
                aliases: Vec::new(),
                published: Vec::new(),
                port: None,
            };
            create(&path, allocation.to_json().as_bytes())
        }
        Content::Bytes(bytes) => create(&path, bytes),
        Content::Folder => fs::create_dir(&path),
        Content::Link => symlink(root.join("canary"), &path),
    };
}

/// Writes a new file: not into one that is a link.
fn create(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    fs::File::create_new(path)?.write_all(bytes)
}

fn take(root: &Path, step: &Step) {
    let top = root.join("ipam");
    let store = |other| Store::new(&top, network(other));
    match step {
        Step::Claim { who: number, network, wanted, mac, families } => {
            claim(&top, &who(*number, *network), wanted.map(address), *mac, *families);
        }
        Step::Release { who: number, network, cool_down } => {
            let (store, who) = (store(*network), who(*number, *network));
            let rest = if *cool_down { Rest::CoolDown } else { Rest::None };
            // The first goes by the index where there is one; then there is none.
            for _ in 0..2 {
                if let Err(error) = store.release(&who, rest) {
                    return assert_error(&error, &CODES);
                }
            }
            assert_eq!(store.find(&who).expect("readable as before"), []);
        }
        Step::Collect { network: other } => {
            let store = store(*other);
            let before = holders(&top);
            if let Err(error) = store.tidy() {
                return assert_error(&error, &CODES);
            }
            assert_eq!(holders(&top), before, "tidying frees no address");
            let folder = top.join(network(*other));
            assert!(!names(&folder).contains(".new"));
            let idle = match store.idle() {
                Ok((idle, _)) => idle,
                Err(error) => return assert_error(&error, &CODES),
            };
            for one in &idle {
                if let Err(error) = store.release_idle(one) {
                    return assert_error(&error, &CODES);
                }
            }
            drop(idle);
            assert!(store.idle().expect("readable as before").0.is_empty());
        }
        Step::Look { network } => {
            let store = store(*network);
            for subnet in subnets(0) {
                for error in [store.uses(subnet).err(), store.level(Pool::new(subnet)).err()] {
                    error.iter().for_each(|error| assert_error(error, &CODES));
                }
            }
        }
    }
}

fn claim(top: &Path, who: &Attachment, wanted: Option<IpAddr>, mac: bool, families: u8) {
    let pools: Vec<Pool> = subnets(families).into_iter().map(Pool::new).collect();
    let store = Store::new(top, &who.network);
    let before = holders(top);
    let wanted: Vec<IpAddr> = wanted.into_iter().collect();
    let mac = mac.then_some(Mac([2, 0, 0, 0, 0, 1]));
    let port = Port { bridge: "loden0".into(), filter: Some("loden".into()), ..Port::default() };
    let claimed = match store.claim(
        who,
        Claim {
            pools: &pools,
            wanted: &wanted,
            mac,
            name: None,
            aliases: &[],
            published: &[],
            port: Some(&port),
            state_dir: None,
            sticky: None,
        },
    ) {
        Ok(claimed) => claimed,
        Err(error) => return assert_error(&error, &CODES),
    };
    assert_eq!(claimed.allocations.len(), pools.len());
    for (allocation, pool) in claimed.allocations.iter().zip(&pools) {
        let address = allocation.address;
        assert!(pool.contains(address));
        assert!(wanted.iter().all(|w| !pool.contains(*w) || *w == address));
        for (network, holder) in before.get(&address).into_iter().flatten() {
            let own = holder.as_ref().is_some_and(|h| belongs(h, who)) && *network == who.network;
            assert!(own, "{address} of {network} {holder:?} was given to {who:?}");
        }
        let text = fs::read_to_string(top.join(&who.network).join(address.to_string())).expect("its file");
        assert_eq!(Allocation::parse(&text).expect("our own text"), *allocation);
    }
    let found = store.find(who).expect("readable as before");
    let by_family = |mut all: Vec<Allocation>| {
        all.sort_by_key(|a| Family::of(a.address));
        all
    };
    assert_eq!(by_family(found), by_family(claimed.allocations.clone()));
    // Kept as long as ADD works on it.
    let idle = store.idle().expect("readable as before").0;
    assert!(!idle.iter().any(|i| claimed.allocations.contains(&i.allocation)));
}

fn belongs(allocation: &Allocation, who: &Attachment) -> bool {
    (allocation.container_id.as_str(), allocation.ifname.as_str())
        == (who.container_id.as_str(), who.ifname.as_str())
}

type Holders = BTreeMap<IpAddr, Vec<(String, Option<Allocation>)>>;

/// Every address that has a file in a network, with what can be read of its holder.
fn holders(top: &Path) -> Holders {
    let mut holders = Holders::new();
    for network in names(top) {
        for name in names(&top.join(&network)) {
            let Ok(address) = name.parse::<IpAddr>() else { continue };
            let path = top.join(&network).join(&name);
            let plain = fs::symlink_metadata(&path).is_ok_and(|m| m.is_file());
            let text = fs::read_to_string(&path).ok().filter(|_| plain);
            let allocation = text.and_then(|text| Allocation::parse(&text).ok());
            let holder = allocation.filter(|a| a.address == address);
            holders.entry(address).or_default().push((network.clone(), holder));
        }
    }
    holders
}

fn names(folder: &Path) -> BTreeSet<String> {
    // Not through a link.
    if fs::symlink_metadata(folder).is_ok_and(|m| !m.is_dir()) {
        return BTreeSet::new();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
