//! The `restante` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    restante::cli::main()
}
