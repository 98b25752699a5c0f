//! Which addresses containers get, seen from outside.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::lab::{Lab, Outcome, address, ip};

/// Makes the cool-down of every freed address be over.
fn let_rest(lab: &Lab) {
    for entry in fs::read_dir(lab.ipam().join("freed")).expect("freed") {
        let mark = File::options().write(true).open(entry.expect("entry").path()).expect("mark");
        mark.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("mtime");
    }
}

#[test]
fn fifty_at_once_on_a_host_without_a_bridge_get_fifty_addresses() {
    let lab = Lab::new();
    let namespaces: Vec<String> = (0..50).map(|i| lab.namespace(&format!("c{i}"))).collect();
    let all = |command: &str| {
        let children: Vec<_> = namespaces.iter().map(|n| lab.call(command, n).spawn()).collect();
        children.into_iter().map(|c| Outcome::of(c).success()).collect::<Vec<Value>>()
    };
    let results = all("ADD");
    let addresses: BTreeSet<String> = results.iter().map(|r| address(r, 0)).collect();
    assert_eq!(addresses.len(), 50, "{addresses:?}");
    assert_eq!(lab.allocated(), addresses.iter().map(|a| a.parse().expect("ip")).collect());
    assert_eq!(lab.links(&lab.host()).len(), 51);
    let bridge: Value =
        serde_json::from_str(&ip(&lab.host(), "-j -4 address show dev loden0")).expect("JSON");
    assert_eq!(bridge[0]["addr_info"].as_array().map(Vec::len), Some(1));
    for (netns, result) in namespaces.iter().zip(&results) {
        let inside: Value = serde_json::from_str(&ip(netns, "-j -4 address show dev eth0")).expect("JSON");
        assert_eq!(inside[0]["addr_info"][0]["local"], address(result, 0).as_str());
    }
    all("DEL");
    assert_eq!(lab.links(&lab.host()), ["loden0"]);
    assert!(lab.allocated().is_empty());
}

#[test]
fn a_freed_address_is_not_given_again_at_once() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/29"]);
    let netns = lab.namespace("c");
    let turn = || {
        let result = lab.add(&netns);
        lab.del(&netns);
        address(&result, 0)
    };
    let first: Vec<String> = (0..5).map(|_| turn()).collect();
    assert_eq!(first, ["10.5.7.2", "10.5.7.3", "10.5.7.4", "10.5.7.5", "10.5.7.6"]);
    // All are cooling, wherever the cursor stands.
    fs::write(lab.ipam().with_file_name("lock"), format!("{:<47}\n", "10.5.7.4")).expect("cursor");
    assert_eq!(turn(), "10.5.7.2", "the longest-freed, wherever the cursor stands");
    let_rest(&lab);
    fs::write(lab.ipam().with_file_name("lock"), format!("{:<47}\n", "10.5.7.4")).expect("cursor");
    assert_eq!(turn(), "10.5.7.5", "round robin when all have rested");
}

#[test]
fn a_full_subnet_is_an_error_that_says_so_until_one_goes() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/30"]);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    lab.add(&a);
    lab.call("ADD", &b).run().failure(11, &["no IP addresses available in 10.5.7.0/30", "1 of 1 are taken"]);
    assert!(lab.links(&b).is_empty());
    lab.del(&b);
    assert_eq!(lab.links(&a), ["eth0"]);
    lab.del(&a);
    assert_eq!(address(&lab.add(&b), 0), "10.5.7.2");
}

#[test]
fn a_corrupt_allocation_file_never_leads_to_a_duplicate() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/29"]);
    let (a, b) = (lab.namespace("a"), lab.namespace("b"));
    assert_eq!(address(&lab.add(&a), 0), "10.5.7.2");
    // A container with this address lives; its file got lost in a crash of the host's disk.
    let file = lab.ipam().join("10.5.7.2");
    fs::write(&file, "").expect("truncate");
    fs::write(lab.ipam().join("10.5.7.4"), "{\"addr").expect("torn");
    for expected in ["10.5.7.3", "10.5.7.5", "10.5.7.6"] {
        let netns = lab.namespace(&expected.replace('.', "x"));
        assert_eq!(address(&lab.add(&netns), 0), expected);
    }
    let text = lab.call("ADD", &b).run().failure(11, &["10.5.7.2", "10.5.7.4", "cannot be read"]);
    assert!(!text.contains("ipam/testnet/10.5.7.3"), "{text}");
    lab.del(&a);
    assert!(file.exists(), "nobody knows whose it is");
    assert!(lab.links(&a).is_empty());
    fs::remove_file(file).expect("the operator removes it");
    assert_eq!(address(&lab.add(&b), 0), "10.5.7.2");
}

#[test]
fn addresses_of_flannels_chain_are_passed_over() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    // /var/lib of the plugin's own mount namespace, not of the machine.
    let script = "mount -t tmpfs none /var/lib && mkdir -p /var/lib/cni/networks/cbr0 \
        && touch /var/lib/cni/networks/cbr0/10.5.7.2 /var/lib/cni/networks/cbr0/10.5.7.3 && exec \"$0\"";
    let result = lab.call("ADD", &netns).under(&["unshare", "-m", "sh", "-c", script]).run().success();
    assert_eq!(address(&result, 0), "10.5.7.4");
}

#[test]
fn the_daemon_can_read_what_was_allocated_whatever_mask_the_runtime_has() {
    use std::os::unix::fs::PermissionsExt as _;
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.call("ADD", &netns).under(&["sh", "-c", "umask 077 && exec \"$0\""]).run().success();
    let mode = |name: &str| lab.ipam().join(name).metadata().expect(name).permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("10.5.7.2"), mode("../lock")), (0o755, 0o640, 0o600));
    // The group of the folder above, which is the daemon's; nobody else may open, and so lock, the file.
    let group =
        |path: &std::path::Path| std::os::unix::fs::MetadataExt::gid(&path.metadata().expect("metadata"));
    assert_eq!(group(&lab.ipam().join("10.5.7.2")), group(lab.path()));
    let text = fs::read_to_string(lab.ipam().join("10.5.7.2")).expect("file");
    let allocation = loden_proto::allocation::Allocation::parse(&text).expect("JSON");
    assert_eq!((allocation.container_id.as_str(), allocation.netns.as_str()), ("c", netns.as_str()));
}
