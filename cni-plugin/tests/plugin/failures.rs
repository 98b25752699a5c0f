//! What fails is undone. `killed.rs` has what is killed.

use crate::lab::{Lab, PLUGIN, address, assert_connected, ip};

#[test]
fn an_interface_of_that_name_stays_and_add_fails() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    ip(&netns, "link add eth0 type bridge");
    lab.call("ADD", &netns).run().failure(102, &["eth0", &netns]);
    lab.del(&netns);
    assert_eq!(lab.links(&netns), ["eth0"], "DEL after a failed ADD spares what is not ours");
    ip(&netns, "link delete eth0");
    lab.assert_nothing_left(&netns, "after the refusal");
    // A veth of another plugin's, down as ours would be.
    ip(&netns, "link add eth0 type veth peer name other");
    lab.call("ADD", &netns).run().failure(102, &["eth0"]);
    lab.del(&netns);
    assert_eq!(lab.links(&netns).len(), 2);
}

#[test]
fn a_second_add_fails_and_leaves_the_first_alone() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    lab.add(&netns);
    let before = (lab.links(&lab.host()), lab.allocated());
    lab.call("ADD", &netns).run().failure(102, &["eth0"]);
    assert_eq!((lab.links(&lab.host()), lab.allocated()), before);
    assert_connected(&netns, &lab.host(), "10.5.7.1");
}

#[test]
fn a_container_that_moved_keeps_its_address() {
    // Its namespace was made anew, and DEL never came.
    let lab = Lab::new();
    let (old, new) = (lab.namespace("old"), lab.namespace("new"));
    lab.call("ADD", &old).id("x").run().success();
    let result = lab.call("ADD", &new).id("x").run().success();
    assert_eq!(address(&result, 0), "10.5.7.2");
    assert!(lab.links(&old).is_empty());
    assert_connected(&new, &lab.host(), "10.5.7.1");
    assert_eq!((lab.allocated().len(), lab.links(&lab.host()).len()), (1, 2));
}

#[test]
fn a_result_that_nobody_hears_is_taken_back() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let out = lab.call("ADD", &netns).stdout("/dev/full").run();
    assert_eq!(out.code, Some(1));
    assert!(out.stderr.contains("error writing to stdout"), "{out:?}");
    lab.assert_nothing_left(&netns, "after a full stdout");
}

/// A tmpfs over dataDir, in a mount namespace of the plugin's own; `$0` is the plugin.
fn on_file_system(lab: &Lab, netns: &str, prepare: &str) -> crate::lab::Outcome {
    let dir = lab.path().join("ipam");
    std::fs::create_dir_all(&dir).expect("dir");
    let dir = dir.display();
    let script = format!(
        "mount -t tmpfs -o size=64k none {dir} && cd {dir} && {prepare} && \"$0\"; code=$?; find . -type f -path '*/10.*' >&2; exit $code"
    );
    lab.call("ADD", netns).under(&["unshare", "-m", "sh", "-c", &script]).run()
}

#[test]
fn a_full_disk_is_named_and_nothing_is_half_done() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let fill = "mkdir testnet && { dd if=/dev/zero of=fill bs=1k 2>/dev/null || true; }";
    let out = on_file_system(&lab, &netns, fill);
    out.failure(5, &["cannot write", "ipam/testnet/10.5.7.2", "make room"]);
    assert_eq!(out.stderr, "", "no allocation is left");
    lab.assert_nothing_left(&netns, "full");
    on_file_system(&lab, &netns, "true").success();
}

#[test]
fn a_read_only_disk_is_named_and_nothing_is_half_done() {
    let lab = Lab::new();
    let netns = lab.namespace("c");
    let dir = lab.path().join("ipam");
    let out = on_file_system(&lab, &netns, &format!("mount -o remount,ro {}", dir.display()));
    out.failure(5, &["/ipam", "must be writable"]);
    lab.assert_nothing_left(&netns, "read-only");
}

#[test]
fn whatever_call_fails_everything_is_undone() {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    let netns = lab.namespace("c");
    let mut spoilt = 0;
    for call in ["sendto", "recvfrom", "setns", "openat", "renameat", "linkat", "flock", "pwrite64"] {
        // Each of its calls, until an ADD gets through unspoilt.
        for n in 1.. {
            assert!(n < 200, "{call} is never called less often than {n} times");
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error=ENOBUFS:when={n}"));
            let log = lab.path().join("strace");
            let strace = ["strace", "-qq", "-o", log.to_str().expect("path"), "-e", &trace, "-e", &inject];
            let out = lab.call("ADD", &netns).under(&strace).run();
            if !std::fs::read_to_string(&log).expect("strace's log").contains("(INJECTED)") {
                out.success();
                lab.del(&netns);
                break;
            }
            spoilt += 1;
            if out.code == Some(0) {
                // A failure that does not matter, such as that of a look for a file that
                // need not be there.
                lab.del(&netns);
            }
            let context = format!("{call} {n}: {} {}", out.stdout.trim(), out.stderr.trim());
            lab.assert_nothing_left(&netns, &context);
        }
    }
    assert!(spoilt > 30, "only {spoilt} calls were spoilt");
}

#[test]
fn the_plugin_is_the_one_under_test() {
    assert!(PLUGIN.ends_with("loden-cni"), "{PLUGIN}");
}
