//! What is counted, each operation with its preparations. Called by `main.rs`.

use std::hint::black_box;

use loden_core::diff::{Scope, all_applied, base, peers};
use loden_core::leases::LeaseTable;
use loden_core::observed::Observed;
use loden_core::peers::PeerBook;
use loden_core::plan::Desired;

use crate::allocator::counted;
use crate::fleet::{self, LEAVING, Own, PEERS};
use crate::names::{self, ANSWERS};

/// When nobody is kept any more whose lease went at 0, in milliseconds.
const LATER: u64 = 60_000;

/// Name and work.
type Operation = (&'static str, fn());

/// All of them, in the order in which a lease passes through. The names are those in the table.
pub(crate) const OPERATIONS: [Operation; 15] = [
    ("decode-10000", decode),
    ("table-10000", table),
    ("book-10000", book),
    ("plan-base", plan),
    ("diff-empty-kernel", diff_empty),
    ("diff-no-drift", diff_no_drift),
    ("diff-one-peer", diff_one),
    ("book-one-lease", book_one),
    ("book-one-lease-kept", book_one_kept),
    ("book-4000-leave", book_leave),
    ("diff-4000-leave", diff_leave),
    ("one-lease-to-operations", one_lease),
    ("answer-address", || answer(names::forward)),
    ("answer-reverse", || answer(names::reverse)),
    ("answer-no-name", || answer(names::nobody)),
];

/// The value of every lease, as the store reads them.
fn decode() {
    let stored = fleet::all_stored();
    let mut records = Vec::with_capacity(stored.len());
    counted(|| records.extend(black_box(&stored).iter().map(fleet::record)));
    assert!(records.iter().all(|record| record.value.is_ok()));
}

/// Every lease into the table.
fn table() {
    let stored = fleet::all_stored();
    let records: Vec<_> = stored.iter().map(|stored| (stored.name.as_str(), fleet::record(stored))).collect();
    let mut table = LeaseTable::default();
    counted(|| black_box(records).into_iter().for_each(|(name, record)| table.put(name, record)));
    assert_eq!(table.len(), PEERS as usize);
}

/// A first table into the book.
fn book() {
    let (table, rules) = (fleet::table(), Own::new().rules());
    let mut book = PeerBook::default();
    counted(|| book.update(black_box(table), rules, 0));
    assert_eq!(book.peers().len(), PEERS as usize);
}

/// What the kernel should hold beside the peers' objects, whose number is nothing to it.
fn plan() {
    let own = Own::new();
    let base = counted(|| black_box(&own).base());
    assert_eq!(base.devices.len(), 1);
}

/// Both stages of the diff, for all peers, on a host that has nothing yet.
fn diff_empty() {
    let desired = desired();
    let mut kernel = fleet::empty_kernel();
    counted(|| black_box(base(&desired, black_box(&kernel))));
    fleet::bring_base(&desired, &mut kernel);
    let (operations, _) = counted(|| peers(&desired, black_box(&kernel), Scope::All));
    assert!(operations.len() > 3 * PEERS as usize, "a neighbour, an FDB entry, a nexthop and a route each");
}

/// The same on a host that has everything: what a periodic full pass costs.
fn diff_no_drift() {
    let desired = desired();
    let kernel = full_kernel(&desired);
    let (first, second) =
        counted(|| (base(&desired, black_box(&kernel)), peers(&desired, black_box(&kernel), Scope::All)));
    assert!(first.0.is_empty() && second.0.is_empty(), "nothing to do");
}

/// One peer among them has changed.
fn diff_one() {
    let own = Own::new();
    let (mut table, rules) = (fleet::table(), own.rules());
    let mut book = fleet::book(&table, &rules);
    let former = Desired { base: own.base().into(), peers: book.peers() };
    let kernel = full_kernel(&former);
    let changed = fleet::stored(PEERS / 2, 2);
    table.put(&changed.name, fleet::record(&changed));
    book.update(table, rules, 1);
    let desired = Desired { peers: book.peers(), ..former.clone() };
    let (operations, _) = counted(|| peers(&desired, black_box(&kernel), Scope::Since(&former.peers)));
    assert!(!operations.is_empty());
}

/// A table with one changed lease into the book.
fn book_one() {
    let rules = Own::new().rules();
    let mut table = fleet::table();
    let mut book = fleet::book(&table, &rules);
    let changed = fleet::stored(PEERS / 2, 2);
    table.put(&changed.name, fleet::record(&changed));
    let before = book.peers();
    counted(|| book.update(black_box(table), rules, 1));
    assert!(before != book.peers());
}

/// The same while four in ten peers are kept whose leases are gone.
fn book_one_kept() {
    let rules = Own::new().rules();
    let mut table = fleet::table();
    let mut book = fleet::book(&table, &rules);
    fleet::leave(&mut table);
    book.update(table.clone(), rules.clone(), 1);
    let changed = fleet::stored(PEERS / 2, 2);
    table.put(&changed.name, fleet::record(&changed));
    let before = book.peers();
    counted(|| book.update(black_box(table), rules, 2));
    assert!(before != book.peers() && book.peers().len() == PEERS as usize);
}

/// Four in ten leases are gone, and some time later their peers.
fn book_leave() {
    let rules = Own::new().rules();
    let mut table = fleet::table();
    let mut book = fleet::book(&table, &rules);
    fleet::leave(&mut table);
    counted(|| {
        book.update(black_box(table.clone()), rules.clone(), 0);
        book.update(black_box(table), rules, LATER)
    });
    assert_eq!(book.peers().len(), (PEERS - LEAVING) as usize);
}

/// What these peers had in the kernel, to operations and out of what is believed of it.
fn diff_leave() {
    let own = Own::new();
    let (mut table, rules) = (fleet::table(), own.rules());
    let mut book = fleet::book(&table, &rules);
    let former = Desired { base: own.base().into(), peers: book.peers() };
    let mut kernel = full_kernel(&former);
    fleet::leave(&mut table);
    book.update(table.clone(), rules.clone(), 0);
    book.update(table, rules, LATER);
    let desired = Desired { peers: book.peers(), ..former.clone() };
    counted(|| {
        let (operations, _) = peers(&desired, black_box(&kernel), Scope::Since(&former.peers));
        all_applied(&mut kernel, &operations);
    });
    assert_eq!(kernel.routes.len(), (PEERS - LEAVING) as usize);
}

/// From the bytes of etcd's event to the operations; what is beside the peers is as it was.
fn one_lease() {
    let own = Own::new();
    let (mut table, rules) = (fleet::table(), own.rules());
    let mut book = fleet::book(&table, &rules);
    let former = Desired { base: own.base().into(), peers: book.peers() };
    let kernel = full_kernel(&former);
    let changed = fleet::stored(PEERS / 2, 2);
    let (operations, _) = counted(|| {
        table.put(&changed.name, fleet::record(black_box(&changed)));
        book.update(table.clone(), rules, 1);
        let desired = Desired { peers: book.peers(), ..former.clone() };
        peers(&desired, &kernel, Scope::Since(&former.peers))
    });
    assert!(!operations.is_empty());
}

/// The DNS server's answers to questions for these names, from the request's bytes to the answer's.
fn answer(question: fn(u32) -> Vec<u8>) {
    let zone = names::zone();
    let questions: Vec<Vec<u8>> = (0..ANSWERS).map(question).collect();
    let mut answers = Vec::with_capacity(questions.len());
    counted(|| answers.extend(black_box(&questions).iter().map(|question| names::answer(&zone, question))));
    assert!(answers.iter().zip(&questions).all(|(answer, question)| answer.len() > question.len()));
}

fn desired() -> Desired {
    let own = Own::new();
    let peers = fleet::book(&fleet::table(), &own.rules()).peers();
    Desired { base: own.base().into(), peers }
}

fn full_kernel(desired: &Desired) -> Observed {
    let mut kernel = fleet::empty_kernel();
    fleet::bring_base(desired, &mut kernel);
    fleet::bring_peers(desired, &mut kernel);
    kernel
}
