//! Commands of the user around those of ours that run by themselves: `[hooks]` in `restante.toml`.

use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::exit::Exit;
use crate::config::Hooks;

/// Commands that run by themselves.
pub const JOBS: [&str; 5] = ["snapshot", "verify", "drill", "forget", "prune"];

/// The hooks of one run.
pub struct Around<'a> {
    hooks: Option<&'a Hooks>,
    command: &'a str,
}

impl<'a> Around<'a> {
    /// `command`: of ours, by its name. In a dry run there are none.
    pub fn new(hooks: &'a Hooks, command: &'a str, dry_run: bool) -> Self {
        Self { hooks: Some(hooks).filter(|_| JOBS.contains(&command) && !dry_run), command }
    }

    /// What fails here stops the command.
    pub fn before(&self) -> anyhow::Result<()> {
        self.run("before", self.hooks.and_then(|hooks| hooks.before.as_deref()), None)
    }

    /// However it ended. All of them run; the first that fails is told.
    pub fn end(&self, exit: Exit) -> anyhow::Result<()> {
        let Some(hooks) = self.hooks else { return Ok(()) };
        let (name, hook) = match exit {
            Exit::Done | Exit::Findings => ("after", &hooks.after),
            _ => ("failed", &hooks.failed),
        };
        let ended = self.run(name, hook.as_deref(), Some(exit));
        ended.and(self.run("finally", hooks.finally.as_deref(), Some(exit)))
    }

    fn run(&self, name: &str, hook: Option<&str>, exit: Option<Exit>) -> anyhow::Result<()> {
        let Some(hook) = hook else { return Ok(()) };
        let mut shell = Command::new("/bin/sh");
        // Standard output is for results.
        shell.arg("-c").arg(hook).stdin(Stdio::null()).stdout(std::io::stderr());
        shell.env("RESTANTE_COMMAND", self.command);
        if let Some(exit) = exit {
            shell.env("RESTANTE_OUTCOME", exit.name()).env("RESTANTE_EXIT_CODE", exit.code().to_string());
        }
        let status = shell.status().with_context(|| format!("the hook `{name}` could not be started"))?;
        anyhow::ensure!(status.success(), "the hook `{name}` ended with {status}");
        Ok(())
    }
}
