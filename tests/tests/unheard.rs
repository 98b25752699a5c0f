//! What others change at the same time as the daemon. While it makes many changes it does not listen to these kinds;
//! what others change meanwhile is found all the same.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use loden_core::diff::Operation;
use loden_core::filters::{Member, PeerSet};
use loden_daemon::kernel::{Kernel, Notice, Watch};
use loden_netlink::nftset::{FAMILY_INET, Set};
use loden_netlink::route::AddressFamily;
use loden_netlink::route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use loden_netlink::{Events, Request, Socket, message_type};
use loden_proto::{Family, Mac};
use loden_tests::story::{SOON, vxlan_lease};
use loden_tests::{Etcd, Lab, Ns, eventually, kernel};
use tokio::runtime::{Builder, Runtime};

const CONFIG: &str = r#"{"Network":"10.0.0.0/8","SubnetMin":"10.50.0.0","SubnetMax":"10.59.255.0","Backend":{"Type":"vxlan"}}"#;
const A_MOMENT: Duration = Duration::from_millis(300);
/// `RTNLGRP_NEIGH`
const NEIGHBOURS: u32 = 3;

/// The MAC and the host of the peer with the subnet `10.<second>.<third>.0/24`.
fn peer(second: u8, third: u8) -> (Mac, Ipv4Addr) {
    (Mac([2, 0, 0, 0, second, third]), [172, 16, second, third].into())
}

/// An FDB entry that somebody deletes in the middle of the daemon's own deletions of hundreds comes back.
#[test]
fn an_fdb_entry_deleted_while_many_peers_leave_comes_back() {
    const EACH: u8 = 200;
    let lab = Lab::new("unheard_fdb");
    let etcd = lab.etcd();
    etcd.config(CONFIG);
    let all = (1..=6).flat_map(|second| (0..EACH).map(move |third| (second, third)));
    let leases = all.map(|(second, third)| {
        let (mac, host) = peer(second, third);
        (Etcd::key(format!("10.{second}.{third}.0/24")), vxlan_lease(host, &mac.to_string()))
    });
    etcd.put_all(leases);
    let a = lab.host("a");
    let _daemon = a.daemon(&[]).ready();
    a.sees_peers(6 * usize::from(EACH));
    let (device, victim) = (a.device_of(Family::V4).name, peer(6, 0));
    let index = kernel::link(&a, &device).expect("the device")["ifindex"].as_u64().expect("an index") as u32;
    let sockets = a.ns().within(|| (Events::route(&[NEIGHBOURS]), Socket::route()));
    let (events, socket) = (sockets.0.expect("events"), sockets.1.expect("a socket"));
    let deleting = thread::spawn(move || delete_at_first_deletion(&events, socket, index, victim));
    // Two of six: more than half would be held.
    etcd.ctl(&["del", &Etcd::key("10.1."), &Etcd::key("10.3.")]).expect_success();
    deleting.join().expect("it was deleted");
    a.sees_peers(4 * usize::from(EACH));
    eventually(Duration::from_secs(3), "the entry is back", || {
        kernel::fdb(&a, &device).iter().any(|entry| entry["mac"] == victim.0.to_string())
    });
}

/// Waits until the daemon has deleted a first FDB entry, and at once deletes another's.
fn delete_at_first_deletion(
    events: &Events,
    mut socket: Socket,
    device: u32,
    (mac, endpoint): (Mac, Ipv4Addr),
) {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet(endpoint)),
    ];
    let (bridge, end) = (u8::from(AddressFamily::Bridge), Instant::now() + SOON);
    let mut seen = false;
    while !seen {
        assert!(Instant::now() < end, "no FDB entry was deleted");
        // There is mostly nothing to be read.
        let _ = events.read(|kind, payload| {
            seen |= kind == message_type::DELETE_NEIGHBOUR && payload.first() == Some(&bridge);
        });
    }
    socket.request(&Request::of(message_type::DELETE_NEIGHBOUR, &message, 0)).expect("it is there");
}

/// Does something in a namespace with a kernel and the watch that ignores it.
fn watched(ns: &Ns, work: impl FnOnce(&Runtime, &Watch, Kernel) + Send) {
    let folder = tempfile::tempdir().expect("a folder");
    ns.within(|| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _inside = runtime.enter();
        let watch = Watch::open("loden").expect("a watch");
        let mut kernel = Kernel::open(folder.path(), "loden").expect("a kernel");
        watch.ignore(&mut kernel).expect("its own changes are ignored");
        work(&runtime, &watch, kernel);
    });
}

/// So many peers, from 172.16.0.0 on.
fn sources(count: u32) -> Vec<Member> {
    (0..count).map(|n| (PeerSet::Sources, Ipv4Addr::from_bits(0xac10_0000 + n).into())).collect()
}

/// A change of the rule set in the middle of thousands of the daemon's own is as if notices were lost; and
/// these by themselves are no news.
#[test]
fn a_change_of_rules_while_many_peers_are_admitted_is_told() {
    let ns = Ns::new();
    ns.nft("add table inet loden\nadd set inet loden peers4 { type ipv4_addr; }");
    ns.nft("add table inet other\nadd set inet other some { type ipv4_addr; }");
    let members = sources(16_384);
    watched(&ns, |runtime, watch, mut kernel| {
        for disturbed in [false, true] {
            let stop = AtomicBool::new(false);
            let refused = thread::scope(|scope| {
                let other = disturbed.then(|| scope.spawn(|| change_another_table(&ns, &stop)));
                let operations = [Operation::Admit(members.clone()), Operation::Dismiss(members.clone())];
                let refused = runtime.block_on(kernel.apply(&operations)).expect("a kernel that answers");
                stop.store(true, Ordering::Relaxed);
                assert_ne!(
                    other.map(|other| other.join().expect("no panic")),
                    Some(0),
                    "it changed something"
                );
                refused
            });
            assert!(refused.is_empty(), "{refused:?}");
            let news = async { tokio::time::timeout(A_MOMENT, watch.next()).await };
            let told = runtime.block_on(news).ok().map(|read| read.expect("the watch can be read"));
            assert_eq!(
                told,
                disturbed.then(|| vec![Notice::Overrun]),
                "somebody else's changes: {disturbed}"
            );
        }
    });
}

/// What somebody has removed already does not keep the rest in, nor is it an error.
#[test]
fn peers_are_dismissed_although_some_or_all_are_gone_already() {
    let ns = Ns::new();
    ns.nft("add table inet loden\nadd set inet loden peers4 { type ipv4_addr; }");
    let (some, all) = (sources(4500), sources(5000));
    watched(&ns, |runtime, watch, mut kernel| {
        let mut apply = |operation: Operation| {
            let refused = runtime.block_on(kernel.apply(&[operation])).expect("a kernel that answers");
            assert!(refused.is_empty(), "{refused:?}");
        };
        let set = Set { family: FAMILY_INET, table: "loden", set: "peers4" };
        let left = || set.list(&mut Socket::netfilter().expect("a socket")).expect("a set").len();
        apply(Operation::Admit(all.clone()));
        ns.nft("delete element inet loden peers4 { 172.16.0.7, 172.16.17.0 }");
        assert_eq!(left(), 4998);
        let news = || runtime.block_on(async { tokio::time::timeout(A_MOMENT, watch.next()).await });
        assert_eq!(news().expect("somebody else's change").expect("a watch"), [Notice::Rules]);
        apply(Operation::Dismiss(some));
        assert_eq!(left(), 500);
        assert!(news().is_err(), "its own changes are no news");
        ns.nft("delete table inet loden");
        apply(Operation::Dismiss(all));
    });
}

/// Changes a table that is nothing to the daemon until it is told to stop; how often.
fn change_another_table(ns: &Ns, stop: &AtomicBool) -> u32 {
    let mut socket = ns.within(|| Socket::netfilter().expect("socket"));
    let (set, key) = (Set { family: FAMILY_INET, table: "other", set: "some" }, [[10u8, 0, 0, 1]]);
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        changes += set.add(&mut socket, &key).expect("added");
        changes += set.remove(&mut socket, &key).expect("removed");
    }
    changes
}
