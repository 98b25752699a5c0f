//! Tests of `allocations.rs`, on a folder of their own.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime};

use super::*;
use crate::ifname::IfName;

struct Fixture {
    root: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("tempdir");
        let mut store = Store::new(&root.path().join("ipam"), "net");
        store.host_local = root.path().join("host-local");
        Self { root, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("ipam/net").join(name)
    }

    fn claim(&self, id: &str, subnet: &str) -> Result<Vec<String>, Error> {
        let pools: Vec<Pool> = subnet.split(' ').map(|s| Pool::new(s.parse().expect("subnet"))).collect();
        let claim = Claim { pools: &pools, ..NO_HINTS };
        let claimed = self.store.claim(&who(id), claim)?;
        Ok(claimed.allocations.iter().map(|a| a.address.to_string()).collect())
    }

    fn rested(&self, address: &str) {
        let mark = File::options().write(true).open(self.path("freed").join(address)).expect("mark");
        mark.set_modified(SystemTime::now() - Duration::from_secs(61)).expect("mtime");
    }
}

fn who(id: &str) -> Attachment {
    Attachment {
        network: "net".into(),
        container_id: id.into(),
        ifname: IfName::new("eth0").expect("valid"),
        netns: format!("/run/netns/{id}"),
        own_netns_allowed: false,
    }
}

const SMALL: &str = "10.5.7.0/29";

const NO_HINTS: Claim<'static> = Claim {
    pools: &[],
    wanted: &[],
    mac: None,
    name: None,
    aliases: &[],
    published: &[],
    port: None,
    state_dir: None,
    sticky: None,
};

#[test]
fn a_claim_is_one_file_named_like_its_address() {
    let f = Fixture::new();
    assert_eq!(f.claim("a", "10.5.7.0/24 fd00::/64").expect("free"), ["10.5.7.2", "fd00::2"]);
    let text = fs::read_to_string(f.path("fd00::2")).expect("file");
    let allocation = Allocation::parse(&text).expect("JSON");
    assert_eq!((allocation.container_id.as_str(), allocation.ifname.as_str()), ("a", "eth0"));
    assert_eq!(allocation.mac.to_string(), "0a:58:0a:05:07:02");
    assert_eq!(allocation.netns, "/run/netns/a");
    assert_eq!(allocation.host_veth, naming::host_end(&who("a")).name);
    let mut names: Vec<String> = fs::read_dir(f.path(""))
        .expect("dir")
        .map(|e| e.expect("entry").file_name().into_string().expect("name"))
        .collect();
    names.sort();
    assert_eq!(names, ["10.5.7.2", "by-veth", "fd00::2"]);
}

#[test]
fn a_released_address_rests_before_it_is_given_again() {
    let f = Fixture::new();
    for (id, address) in [("a", "10.5.7.2"), ("b", "10.5.7.3"), ("c", "10.5.7.4")] {
        assert_eq!(f.claim(id, SMALL).expect("free"), [address]);
    }
    for id in ["a", "b"] {
        assert_eq!(f.store.release(&who(id), Rest::CoolDown).expect("released").len(), 1);
    }
    assert!(f.path("freed/10.5.7.2").exists() && !f.path("10.5.7.2").exists());
    assert_eq!(f.claim("d", SMALL).expect("free"), ["10.5.7.5"]);
    assert_eq!(f.claim("e", SMALL).expect("free"), ["10.5.7.6"]);
    f.rested("10.5.7.3");
    assert_eq!(f.claim("f", SMALL).expect("free"), ["10.5.7.3"], "the rested one before the cooling one");
    assert_eq!(f.claim("g", SMALL).expect("free"), ["10.5.7.2"], "cooling is better than none");
    assert!(!f.path("freed/10.5.7.2").exists(), "an address in use has no mark");
    let error = f.claim("h", SMALL).expect_err("all taken");
    assert_eq!(
        (error.code(), error.to_string().as_str()),
        (11, "no IP addresses available in 10.5.7.0/29: 5 of 5 are taken")
    );
}

#[test]
fn an_address_that_was_never_used_needs_no_rest() {
    let f = Fixture::new();
    f.claim("a", "10.5.7.0/30").expect("free");
    f.store.release(&who("a"), Rest::None).expect("released");
    assert!(!f.path("freed/10.5.7.2").exists());
    assert_eq!(f.claim("b", "10.5.7.0/30").expect("free"), ["10.5.7.2"]);
}

#[test]
fn a_repeated_claim_keeps_its_address_and_moves_with_the_subnet() {
    let f = Fixture::new();
    assert_eq!(f.claim("a", SMALL).expect("free"), ["10.5.7.2"]);
    assert_eq!(f.claim("b", SMALL).expect("free"), ["10.5.7.3"]);
    assert_eq!(f.claim("a", SMALL).expect("kept"), ["10.5.7.2"]);
    assert_eq!(f.claim("a", "10.5.9.0/24").expect("moved"), ["10.5.9.2"]);
    assert!(!f.path("10.5.7.2").exists(), "the old one is free");
    assert!(f.path("10.5.7.3").exists(), "another's is not touched");
    assert_eq!(f.store.find(&who("a")).expect("found").len(), 1);
}

#[test]
fn a_file_that_cannot_be_read_holds_its_address() {
    let f = Fixture::new();
    f.claim("a", SMALL).expect("free");
    for (name, content) in [("10.5.7.3", ""), ("10.5.7.4", "{\"address\":\"10.5."), ("10.5.7.5", "{}")] {
        fs::write(f.path(name), content).expect("write");
    }
    // It speaks of another address than its name: just as unfit.
    fs::copy(f.path("10.5.7.2"), f.path("10.5.7.6")).expect("copy");
    let text = f.claim("b", SMALL).expect_err("all taken").to_string();
    for address in ["10.5.7.3", "10.5.7.4", "10.5.7.5", "10.5.7.6"] {
        assert!(text.contains(f.path(address).to_str().expect("path")), "{text}");
    }
    assert!(!text.contains("net/10.5.7.2"), "{text}");
    // DEL of anybody leaves them; their owner is not known.
    f.store.release(&who("a"), Rest::CoolDown).expect("released");
    assert!(f.path("10.5.7.3").exists() && f.path("10.5.7.6").exists());
}

#[test]
fn an_allocation_without_its_index_is_found_by_reading() {
    let f = Fixture::new();
    f.claim("a", SMALL).expect("free");
    fs::remove_dir_all(f.path("by-veth")).expect("remove");
    assert_eq!(f.store.find(&who("a")).expect("found").len(), 1);
    assert_eq!(f.store.release(&who("a"), Rest::CoolDown).expect("released").len(), 1);
    assert!(!f.path("10.5.7.2").exists());
}

#[test]
fn an_index_that_the_files_do_not_agree_with_is_not_believed() {
    let f = Fixture::new();
    f.claim("a", SMALL).expect("free");
    let index = f.path(&index_name(&naming::host_end(&who("b")).name, Family::V4));
    fs::hard_link(f.path("10.5.7.2"), &index).expect("another's file");
    assert!(f.store.release(&who("b"), Rest::CoolDown).expect("released").is_empty());
    assert!(f.path("10.5.7.2").exists() && !index.exists());
    let text = fs::read_to_string(f.path("10.5.7.2")).expect("file");
    fs::write(&index, text.replace("10.5.7.2", "10.5.7.5").replace("\"a\"", "\"b\""))
        .expect("a file that is gone");
    assert_eq!(f.claim("b", SMALL).expect("free"), ["10.5.7.3"]);
}

#[test]
fn a_crash_before_the_file_has_its_name_harms_nobody() {
    let f = Fixture::new();
    f.claim("a", SMALL).expect("free");
    // As if killed between the index and the rename.
    fs::rename(f.path("10.5.7.2"), f.path(".new")).expect("rename");
    assert_eq!(f.claim("b", SMALL).expect("free"), ["10.5.7.3"]);
    assert_eq!(f.claim("a", SMALL).expect("free"), ["10.5.7.4"]);
    for (id, address) in [("a", "10.5.7.4"), ("b", "10.5.7.3")] {
        let found = f.store.find(&who(id)).expect("found");
        assert_eq!(found.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(), [address]);
    }
}

#[test]
fn old_marks_do_not_pile_up() {
    let f = Fixture::new();
    f.claim("a", "fd00::/64").expect("free");
    fs::create_dir_all(f.path("freed")).expect("dir");
    for i in 0..MANY_MARKS {
        let address = format!("fd00::1:{i:x}");
        fs::write(f.path("freed").join(&address), "").expect("mark");
        if i % 2 == 0 {
            f.rested(&address);
        }
    }
    f.claim("b", "fd00::/64").expect("free");
    assert_eq!(fs::read_dir(f.path("freed")).expect("dir").count(), MANY_MARKS / 2);
}

#[test]
fn a_lost_cursor_costs_only_the_order() {
    let f = Fixture::new();
    f.claim("a", "10.5.7.0/24 fd00::/64").expect("free");
    for torn in ["", "10.5", "nonsense\u{fffd}"] {
        fs::write(f.path("../lock"), torn).expect("write");
        f.store.release(&who("b"), Rest::None).expect("released");
        assert_eq!(f.claim("b", "10.5.7.0/24 fd00::/64").expect("free"), ["10.5.7.3", "fd00::3"]);
    }
    f.store.release(&who("b"), Rest::None).expect("released");
    assert_eq!(f.claim("b", "10.5.7.0/24 fd00::/64").expect("free"), ["10.5.7.4", "fd00::4"]);
}

#[test]
fn an_address_that_changes_hands_before_the_lock_is_ours_stays_with_the_new_one() {
    let f = Fixture::new();
    f.claim("a", SMALL).expect("free");
    let inode = f.path("../lock").metadata().expect("lock").ino();
    let lock = f.store.open().expect("ours").expect("there").lock().expect("lock");
    std::thread::scope(|scope| {
        let release = scope.spawn(|| f.store.release(&who("a"), Rest::CoolDown));
        // Blocked on the lock, it has looked already.
        let waits = |line: &str| line.contains("->") && line.contains(&format!(":{inode} "));
        while !fs::read_to_string("/proc/locks").expect("locks").lines().any(waits) {
            assert!(!release.is_finished(), "it did not wait for the lock");
            std::thread::yield_now();
        }
        let text = fs::read_to_string(f.path("10.5.7.2")).expect("file").replace("\"a\"", "\"b\"");
        fs::write(f.path("10.5.7.2"), text).expect("write");
        drop(lock);
        assert!(release.join().expect("thread").expect("released").is_empty());
    });
    assert!(f.path("10.5.7.2").exists());
}

#[test]
fn release_of_the_unknown_leaves_nothing_behind() {
    let f = Fixture::new();
    assert!(f.store.release(&who("a"), Rest::CoolDown).expect("nothing to do").is_empty());
    assert!(!f.root.path().join("ipam").exists());
}

#[test]
fn two_networks_of_one_folder_never_give_the_same_address() {
    let f = Fixture::new();
    let mut other = Store::new(&f.root.path().join("ipam"), "other");
    other.host_local = f.root.path().join("host-local");
    assert_eq!(f.claim("a", SMALL).expect("free"), ["10.5.7.2"]);
    let subnet: Subnet = SMALL.parse().expect("subnet");
    let claim = Claim {
        pools: &[Pool::new(subnet)],
        wanted: &[],
        mac: None,
        name: None,
        aliases: &[],
        published: &[],
        port: None,
        ..NO_HINTS
    };
    let theirs = other.claim(&who("b"), claim).expect("free").allocations;
    assert_eq!(theirs[0].address.to_string(), "10.5.7.3");
    assert_eq!(f.claim("c", SMALL).expect("free"), ["10.5.7.4"]);
    assert!(other.uses(subnet).expect("listed"));
}

#[test]
fn addresses_of_host_local_are_passed_over() {
    let f = Fixture::new();
    let cbr0 = f.root.path().join("host-local/cbr0");
    fs::create_dir_all(&cbr0).expect("dir");
    for name in ["10.5.7.2", "10.5.7.4", "192.0.2.1", "last_reserved_ip.0", "lock"] {
        fs::write(cbr0.join(name), "x\r\neth0").expect("write");
    }
    assert_eq!(f.claim("a", SMALL).expect("free"), ["10.5.7.3"]);
    for (id, address) in [("b", "10.5.7.5"), ("c", "10.5.7.6")] {
        assert_eq!(f.claim(id, SMALL).expect("free"), [address]);
    }
    let text = f.claim("d", SMALL).expect_err("all taken").to_string();
    assert!(text.contains("3 of 5 are taken, 2 more by other networks or host-local"), "{text}");
}

#[test]
fn when_one_family_has_no_address_the_other_stays_free() {
    let f = Fixture::new();
    f.claim("a", "fd00::/127 fd00::/126").expect_err("a /127 has none");
    f.claim("a", "10.5.7.0/30").expect("free");
    assert_eq!(f.claim("b", "fd00::/64 10.5.7.0/30").expect_err("IPv4 is full").code(), 11);
    assert!(!f.path("fd00::2").exists());
}

#[test]
fn a_folder_that_cannot_be_made_is_named_with_the_next_step() {
    let f = Fixture::new();
    fs::write(f.root.path().join("ipam"), "a file").expect("write");
    let error = f.claim("a", SMALL).expect_err("no folder");
    assert_eq!(error.code(), 5);
    assert!(error.to_string().contains("ipam"), "{error}");
}

#[test]
fn nobody_but_root_can_hold_the_lock() {
    use std::os::unix::fs::PermissionsExt as _;
    let f = Fixture::new();
    f.claim("a", SMALL).expect("free");
    assert_eq!(f.path("../lock").metadata().expect("lock").permissions().mode() & 0o077, 0);
    assert_eq!(f.path("10.5.7.2").metadata().expect("file").permissions().mode() & 0o022, 0);
}

fn ask(f: &Fixture, id: &str, wanted: &str, mac: Option<&str>) -> Result<Vec<Allocation>, Error> {
    let pools = [Pool::new("10.5.7.0/24".parse().expect("subnet"))];
    let wanted: Vec<IpAddr> = wanted.split_whitespace().map(|a| a.parse().expect("address")).collect();
    let mac = mac.map(|m| m.parse().expect("MAC"));
    let claim = Claim {
        pools: &pools,
        wanted: &wanted,
        mac,
        name: Some("shop/web"),
        aliases: &[],
        published: &[],
        port: None,
        ..NO_HINTS
    };
    Ok(f.store.claim(&who(id), claim)?.allocations)
}

#[test]
fn a_requested_address_is_given_and_does_not_move_the_cursor() {
    let f = Fixture::new();
    let given = ask(&f, "a", "10.5.7.9", None).expect("free");
    assert_eq!(
        (given[0].address.to_string().as_str(), given[0].name.as_deref()),
        ("10.5.7.9", Some("shop/web"))
    );
    assert_eq!(f.claim("b", "10.5.7.0/24").expect("free"), ["10.5.7.2"], "the cursor stands where it stood");
    let error = ask(&f, "c", "10.5.7.9", None).expect_err("taken");
    assert_eq!(error.code(), 11);
    assert!(error.to_string().contains("address 10.5.7.9 is taken by container a (shop/web)"), "{error}");
    // Its own is given again, another instead of it, and one that cools down.
    ask(&f, "a", "10.5.7.9", None).expect("its own");
    ask(&f, "a", "10.5.7.10", None).expect("another");
    assert!(!f.path("10.5.7.9").exists() && f.path("freed/10.5.7.9").exists());
    ask(&f, "c", "10.5.7.9", None).expect("cooling, but asked for");
    assert_eq!(f.store.find(&who("a")).expect("found").len(), 1);
}

#[test]
fn a_requested_address_that_others_have_is_refused() {
    let f = Fixture::new();
    fs::create_dir_all(f.path("../other")).expect("dir");
    fs::write(f.path("../other/10.5.7.8"), "").expect("file");
    fs::create_dir_all(f.root.path().join("host-local/cbr0")).expect("dir");
    fs::write(f.root.path().join("host-local/cbr0/10.5.7.7"), "").expect("file");
    ask(&f, "a", "", None).expect("free");
    fs::write(f.path("10.5.7.6"), "torn").expect("file");
    for (address, words) in
        [("10.5.7.8", "another network"), ("10.5.7.7", "host-local"), ("10.5.7.6", "cannot be read")]
    {
        let text = ask(&f, "b", address, None).expect_err(address).to_string();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_requested_mac_belongs_to_one_container() {
    let f = Fixture::new();
    let mac = Some("02:00:00:00:00:01");
    assert_eq!(ask(&f, "a", "", mac).expect("free")[0].mac.to_string(), "02:00:00:00:00:01");
    ask(&f, "a", "", mac).expect("its own");
    let error = ask(&f, "b", "", mac).expect_err("taken");
    assert!(error.code() == 11 && error.to_string().contains("taken by container a"), "{error}");
    assert!(f.store.find(&who("b")).expect("none").is_empty());
}

#[test]
fn what_an_add_works_on_is_not_idle() {
    let f = Fixture::new();
    let pools = [Pool::new(SMALL.parse().expect("subnet"))];
    let claim = Claim { pools: &pools, ..NO_HINTS };
    let working = f.store.claim(&who("a"), claim).expect("free");
    assert!(f.store.idle().expect("listed").0.is_empty());
    drop(working);
    let (idle, errors) = f.store.idle().expect("listed");
    assert_eq!((idle.len(), errors.len()), (1, 0));
    // Another ADD of the same container comes before GC frees what it has looked at.
    let again = f.store.claim(&who("a"), claim).expect("its own");
    f.store.release_idle(&idle[0]).expect("nothing to do");
    assert!(f.path("10.5.7.2").exists());
    drop(again);
    let (idle, _) = f.store.idle().expect("listed");
    f.store.release_idle(&idle[0]).expect("released");
    f.store.release_idle(&idle[0]).expect("gone already");
    assert!(!f.path("10.5.7.2").exists() && f.path("freed/10.5.7.2").exists());
    assert_eq!(fs::read_dir(f.path("by-veth")).expect("dir").count(), 0);
}

#[test]
fn a_folder_that_is_not_ours_is_not_written_to() {
    let f = Fixture::new();
    let elsewhere = f.root.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("dir");
    for name in ["ipam", "ipam/net"] {
        std::os::unix::fs::symlink(&elsewhere, f.root.path().join(name)).expect("link");
        for error in [
            f.claim("a", SMALL).expect_err("a link"),
            f.store.find(&who("a")).expect_err("a link"),
            f.store.release(&who("a"), Rest::None).expect_err("a link"),
            f.store.level(Pool::new(SMALL.parse().expect("subnet"))).expect_err("a link"),
        ] {
            assert_eq!(error.code(), 104);
            assert!(error.to_string().contains(name), "{error}");
        }
        fs::remove_file(f.root.path().join(name)).expect("removed");
        fs::create_dir_all(f.root.path().join("ipam")).expect("dir");
    }
    assert_eq!(fs::read_dir(&elsewhere).expect("dir").count(), 0);
}

#[test]
fn a_repeated_claim_leaves_its_index_alone() {
    let f = Fixture::new();
    f.claim("a", SMALL).expect("free");
    let index = f.path(&index_name(&naming::host_end(&who("a")).name, Family::V4));
    let before = fs::metadata(&index).expect("entry").ino();
    assert_eq!(f.claim("a", SMALL).expect("kept"), ["10.5.7.2"]);
    assert_eq!(fs::metadata(&index).expect("entry").ino(), before, "it was never missing");
    assert_eq!(f.claim("a", "10.5.9.0/24").expect("moved"), ["10.5.9.2"]);
    let moved = f.store.find(&who("a")).expect("found");
    assert_eq!(moved.iter().map(|a| a.address.to_string()).collect::<Vec<_>>(), ["10.5.9.2"]);
}

#[test]
fn what_killed_commands_left_is_tidied() {
    let f = Fixture::new();
    f.store.tidy().expect("no folder is fine");
    f.claim("a", "10.5.7.0/24 fd00::/64").expect("free");
    f.claim("b", SMALL).expect("free");
    let entries = || -> BTreeSet<String> {
        let entries = fs::read_dir(f.path("by-veth")).expect("dir");
        entries.map(|e| e.expect("entry").file_name().into_string().expect("name")).collect()
    };
    let whole = entries();
    f.store.tidy().expect("nothing to do");
    assert_eq!(entries(), whole);
    // A DEL that was killed before it came to the index, an ADD before it gave the file its name.
    fs::remove_file(f.path("10.5.7.3")).expect("freed");
    fs::write(f.path(".new"), "{").expect("written");
    fs::hard_link(f.path(".new"), f.path("by-veth/veth0.ipv4")).expect("linked");
    fs::copy(f.path("10.5.7.2"), f.path("by-veth/veth1.ipv4")).expect("copied");
    f.store.tidy().expect("tidied");
    let ours = naming::host_end(&who("a")).name;
    assert_eq!(entries(), BTreeSet::from([format!("{ours}.ipv4"), format!("{ours}.ipv6")]));
    assert!(!f.path(".new").exists() && f.path("10.5.7.2").exists());
}

#[test]
fn a_name_finds_its_address_again() {
    let f = Fixture::new();
    let state = f.root.path().join("state");
    fs::create_dir(&state).expect("folder");
    let pools = [Pool::new(SMALL.parse().expect("subnet"))];
    let claim = |id: &str, name: Option<&str>, sticky: bool| {
        let sticky = name.filter(|_| sticky);
        let claim = Claim { pools: &pools, name, state_dir: Some(&state), sticky, ..NO_HINTS };
        Ok::<_, Error>(f.store.claim(&who(id), claim)?.allocations[0].address.to_string())
    };
    let release = |id: &str| f.store.release(&who(id), Rest::CoolDown).expect("released");
    assert_eq!(claim("a", Some("db"), true).expect("free"), "10.5.7.2");
    release("a");
    assert_eq!(claim("b", Some("web"), true).expect("free"), "10.5.7.3");
    // The next in turn, then round: 10.5.7.2 stays db's.
    for (id, address) in [("c", "10.5.7.4"), ("d", "10.5.7.5"), ("e", "10.5.7.6")] {
        assert_eq!(claim(id, None, true).expect("free"), address);
    }
    release("d");
    assert_eq!(claim("f", Some("job"), true).expect("free"), "10.5.7.5", "cooling, but nobody's");
    assert_eq!(claim("g", Some("db"), true).expect("free"), "10.5.7.2", "its own");
    release("g");
    // As after a reboot.
    fs::remove_dir_all(f.path("..")).expect("removed");
    assert_eq!(claim("h", None, true).expect("free"), "10.5.7.4", "neither db's nor web's");
    assert_eq!(claim("i", Some("db"), false).expect("free"), "10.5.7.6", "it does not want its own");
    assert_eq!(claim("j", Some("db"), true).expect("free"), "10.5.7.2");
    // A folder that cannot be written to costs the hint alone.
    fs::remove_dir_all(&state).expect("removed");
    fs::write(&state, "no folder").expect("written");
    claim("k", Some("other"), true).expect("free");
}
