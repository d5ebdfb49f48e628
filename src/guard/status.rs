//! Where a change stands: what the state file says, and what can be seen of the server now. The two may differ; both are told.

use jiff::Timestamp;
use serde::Serialize;

use super::change::Mode;
use super::error::GuardError;
use super::fence::{self, Standing};
use super::processes;
use super::state::{Folder, State, Step};

#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub id: String,
    pub title: String,
    pub mode: Mode,
    pub step: Step,
    pub begun: Timestamp,
    pub updated: Timestamp,
    /// A guard works on it now.
    pub busy: bool,
    /// Processes that its commands started and are still there.
    pub commands_running: Vec<i32>,
    pub commands_done: usize,
    pub commands: usize,
    pub failure: Option<String>,
    /// May data be in between?
    pub half_done: bool,
    /// Of an offline change: does a server work in the data directory, and is the fence up?
    pub server_running: Option<bool>,
    pub fenced: Option<bool>,
    /// Are applications kept out?
    pub closed: bool,
    pub paused: Vec<String>,
    pub snapshot: Option<String>,
    /// What to do now.
    pub next: String,
}

pub fn look(folder: &Folder) -> Result<Option<Status>, GuardError> {
    let Some(state) = folder.load()? else { return Ok(None) };
    let busy = folder.is_busy();
    let running: Vec<i32> = processes::marked(&state.run).into_iter().map(|process| process.pid).collect();
    let (mut server_running, mut fenced) = (None, None);
    if let Some(local) = state.server() {
        server_running = Some(local.is_running());
        fenced = Some(matches!(fence::look(&local.data)?, Standing::Of(run) if run == state.run));
    }
    let half_done = state.step == Step::Commands && !state.settled;
    let change = &state.canonical.change;
    Ok(Some(Status {
        id: change.id.clone(),
        title: change.title.clone(),
        mode: change.mode,
        step: state.step,
        begun: state.begun,
        updated: state.updated,
        busy,
        next: next(&state, busy, !running.is_empty(), half_done),
        commands_running: running,
        commands_done: state.commands_done,
        commands: change.commands.len(),
        failure: state.failure.clone(),
        half_done,
        server_running,
        fenced,
        closed: state.closed.is_some() && state.step > Step::Begun,
        paused: state.paused.iter().map(|paused| paused.commands.name.clone()).collect(),
        snapshot: state.snapshot.map(|id| id.to_hex()),
    }))
}

fn next(state: &State, busy: bool, running: bool, half_done: bool) -> String {
    if busy {
        return "a guard works on it: wait".into();
    }
    if running {
        return "its command still runs without a guard: wait for it, or `restante guard release --end-commands`"
            .into();
    }
    if half_done {
        return format!(
            "data may be in between: finish by hand or go back ({}), then {}",
            state.canonical.change.way_back,
            state.settle()
        );
    }
    "`restante guard release`".into()
}
