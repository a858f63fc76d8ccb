//! The program; the library contains all of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    flowledger::cli::main()
}
