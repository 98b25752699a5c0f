//! An allocation file's text: what is read and written again is the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loden_proto::allocation::Allocation;

fuzz_target!(|text: &str| {
    let Ok(allocation) = Allocation::parse(text) else { return };
    let written = allocation.to_json();
    assert_eq!(Allocation::parse(&written).expect("our own text"), allocation);
    assert_eq!(Allocation::parse(&written).expect("our own text").to_json(), written);
    // The file's name.
    assert_eq!(allocation.address.to_string().parse(), Ok(allocation.address));
});
