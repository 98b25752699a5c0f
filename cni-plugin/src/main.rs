//! The binary: hands environment, arguments and standard streams to the library.

use std::io::{stderr, stdin, stdout};
use std::process::ExitCode;

use loden_cni::netavark;
use loden_cni::request::Environment;
use loden_cni::run::{Streams, run};
use rustix::fs::Mode;

/// musl's own maps and returns pages for every few allocations, a tenth of ADD's time.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    // The daemon reads the allocation files as a user of its own, whatever mask the runtime has.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let streams =
        Streams { stdin: &mut stdin().lock(), stdout: &mut stdout().lock(), stderr: &mut stderr().lock() };
    let environment = Environment::of_process();
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let code = match netavark::is_meant(&arguments, &environment.command) {
        true => netavark::run(&arguments, streams),
        false => run(&environment, streams),
    };
    ExitCode::from(code)
}
