//! `loden-counted [OPERATION]`: does one operation of the pure core with 10,000 leases, once, and
//! prints how often it allocated, how many bytes, and how many were in use at once. Without an
//! argument lists the operations. Started by `loden-counts`, below callgrind.
//!
//! Every input follows from a number, and the allocator is a part of the program (dlmalloc, as in
//! the CNI plugin), so the counts depend on this program alone. Preparations are not counted.

mod allocator;
mod fleet;
mod names;
mod operations;

use std::io::{self, Write as _, stdout};
use std::process::ExitCode;

use operations::OPERATIONS;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loden-counted: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut out = stdout();
    let Some(wanted) = std::env::args().nth(1) else {
        return OPERATIONS.iter().try_for_each(|(name, _)| writeln!(out, "{name}"));
    };
    let Some((_, operation)) = OPERATIONS.iter().find(|(name, _)| *name == wanted) else {
        return Err(io::Error::other(format!("there is no operation {wanted:?}")));
    };
    operation();
    let counts = allocator::counts();
    writeln!(out, "{} {} {}", counts.allocations, counts.bytes, counts.peak)
}
