//! `restante completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::exit::Exit;

/// Print shell completions
#[derive(Args)]
pub struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> anyhow::Result<Exit> {
        clap_complete::generate(self.shell, &mut super::Cli::command(), "restante", &mut std::io::stdout());
        Ok(Exit::Done)
    }
}
