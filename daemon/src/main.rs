//! The program `loden`.

use std::process::ExitCode;

fn main() -> ExitCode {
    loden_daemon::cli::main()
}
