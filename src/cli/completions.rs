//! `restante completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::exit::Exit;
use super::output;

/// Print shell completions
#[derive(Args)]
pub struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<Exit> {
        // It panics where nobody reads what it writes; into memory it cannot.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "restante", &mut script);
        output::print(String::from_utf8_lossy(&script).trim_end());
        Ok(Exit::Done)
    }
}
