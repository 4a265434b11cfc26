//! The `kimup` binary: see `kimup::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kimup::cli::main()
}
