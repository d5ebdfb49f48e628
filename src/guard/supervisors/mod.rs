//! Who would start the server again behind our back: told by what started the postmaster (its parent, its environment, its cgroup) and by
//! the configuration of monit daemons that run here. Which of them Restante can pause, and how, is data ([`SupervisorCommands`]): monit's
//! is found, others come with the policy. Every other one is refused until somebody says that he paused it himself.

pub mod evidence;
mod monit;

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::error::GuardError;
use super::policy::SupervisorCommands;
use super::processes::Process;
use super::server::Local;
use evidence::{Evidence, Sign};

/// A supervisor that was found, why, and how it is paused if that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub evidence: String,
    pub commands: Option<SupervisorCommands>,
}

/// Everything that would start the server again.
pub async fn find(local: &Local, known: &[SupervisorCommands]) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut add = |name: String, evidence: String, commands: Option<SupervisorCommands>| match found
        .iter_mut()
        .find(|one| one.name == name)
    {
        Some(one) => {
            one.commands = one.commands.take().or(commands);
            one.evidence = format!("{}; {evidence}", one.evidence);
        }
        None => found.push(Found { name, evidence, commands }),
    };
    if let Some(postmaster) = local.postmaster() {
        for Sign { supervisor, evidence } in Evidence::of(&postmaster).signs() {
            add(supervisor.to_owned(), evidence, None);
        }
    }
    for daemon in monit::daemons() {
        match monit::watches(&daemon, &local.data).await {
            Ok(Some(commands)) => {
                add(
                    "monit".into(),
                    format!("monit, process {}, watches it as {}", daemon.process.pid, commands.name),
                    Some(commands),
                );
            }
            Ok(None) => {}
            // Somebody asked monit something: that was no daemon.
            Err(_) if Process::of(daemon.process.pid).is_none_or(|process| process.is_zombie()) => {}
            Err(why) => add(
                "monit".into(),
                format!("monit runs (process {}), and what it watches cannot be told: {why}", daemon.process.pid),
                None,
            ),
        }
    }
    for one in &mut found {
        if let Some(known) = known.iter().find(|known| known.name == one.name) {
            one.commands = Some(known.clone());
        }
    }
    found
}

async fn run(command: &[String]) -> Result<(bool, String), GuardError> {
    let Some((program, arguments)) = command.split_first() else { return Ok((true, String::new())) };
    let fail = |message: String| GuardError::Program { program: program.clone(), message };
    let mut call = Command::new(program);
    call.args(arguments).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(120), call.output()).await;
    let output =
        output.map_err(|_| fail("it did not end within two minutes".into()))?.map_err(|e| fail(e.to_string()))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.success(), said))
}

/// Does the supervisor say that it is paused?
pub async fn is_paused(commands: &SupervisorCommands) -> Result<bool, GuardError> {
    let (success, said) = run(&commands.status).await?;
    Ok(match &commands.status_says {
        Some(words) => said.contains(words.as_str()),
        None => success,
    })
}

/// Waits until it says so: monit obeys in its next cycle.
async fn until(commands: &SupervisorCommands, paused: bool) -> Result<(), GuardError> {
    for _ in 0..300 {
        if is_paused(commands).await? == paused {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let state = if paused { "paused" } else { "watching again" };
    let message =
        format!("{} does not say that it is {state}; ask it with: {}", commands.name, commands.status.join(" "));
    Err(GuardError::Program { program: commands.name.clone(), message })
}

pub async fn pause(commands: &SupervisorCommands) -> Result<(), GuardError> {
    call(commands, &commands.pause).await?;
    until(commands, true).await
}

pub async fn resume(commands: &SupervisorCommands) -> Result<(), GuardError> {
    call(commands, &commands.resume).await?;
    until(commands, false).await
}

async fn call(commands: &SupervisorCommands, command: &[String]) -> Result<(), GuardError> {
    let (success, said) = run(command).await?;
    let last = said.trim().lines().last().unwrap_or_default().to_owned();
    if success {
        Ok(())
    } else {
        Err(GuardError::Program { program: format!("{} ({})", commands.name, command.join(" ")), message: last })
    }
}
