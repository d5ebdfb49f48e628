//! From wherever a change stands to its end: fence away, server started, supervisors resumed, comparison, applications in. Each step may
//! be made again, so that a killed `release` is followed by another.

use jiff::Timestamp;
use serde::Serialize;

use super::change::Mode;
use super::comparison::{self, Comparison};
use super::error::GuardError;
use super::keys::Keys;
use super::log::{About, Event, Log, Memory};
use super::run::{about_with, enter, succeed};
use super::state::{State, Step};
use super::{Guard, Snapshots, exclusion, fence, processes, supervisors};
use crate::postgres::session::{Session, SessionOptions};
use crate::repository::snapshots::{self, Snapshot, SnapshotReader};
use crate::repository::{Repository, forgotten};

/// How a change ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub id: String,
    /// Did its commands run?
    pub commands_begun: bool,
    pub commands_done: usize,
    /// Of before the change.
    pub snapshot: Option<crate::repository::id::ObjectId>,
    /// When the snapshot was taken: damage is later.
    pub taken: Option<Timestamp>,
    /// Absent: no command was run, or somebody went without it.
    pub comparison: Option<Comparison>,
    pub seconds: f64,
}

/// How `release` goes on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Release {
    /// What is half done is as it shall be, or was put back by hand.
    pub half_done: bool,
    /// What the commands made is given up: the server is the one of before. Implies `half_done`.
    pub went_back: bool,
    /// Go without a comparison that cannot be made.
    pub without_comparison: bool,
    /// End what the commands left running.
    pub end_commands: bool,
}

/// Goes on with a change that did not end.
pub async fn release(guard: &Guard<'_>, release: Release, snapshots: &impl Snapshots) -> Result<Outcome, GuardError> {
    let _lock = guard.folder.lock()?;
    let mut state = guard.folder.load()?.ok_or(GuardError::Nothing)?;
    let left = processes::marked(&state.run);
    if !left.is_empty() && release.end_commands {
        super::commands::end(&state.run).await;
    } else if let Some(process) = left.first() {
        return Err(GuardError::HalfDone(format!(
            "a command of {} still runs (process {}): wait for it, or end it with `restante guard release --end-commands`",
            state.canonical.change.id, process.pid
        )));
    }
    let half_done = release.half_done || release.went_back;
    if state.step == Step::Commands && !half_done && !state.settled {
        let change = &state.canonical.change;
        let output = super::commands::output_file(&guard.folder, &state);
        return Err(GuardError::HalfDone(format!(
            "{} of {} commands of {} ended with success, and what the others did nobody knows{}. Look ({} has what they said), then finish by hand or go back ({}); when the data are as they shall be: {}",
            state.commands_done,
            change.commands.len(),
            change.id,
            state.failure.as_ref().map(|why| format!(" ({why})")).unwrap_or_default(),
            output.display(),
            change.way_back,
            state.settle()
        )));
    }
    if release.went_back {
        state.succeeded = false;
    } else if state.step == Step::Commands && !state.settled {
        succeed(&mut state).await?;
    }
    state.settled |= half_done;
    let mut about = about_with(&state);
    about.notes.push(format!("from: {}", state.step));
    if release.went_back {
        about.notes.push("somebody went back to the server of before".into());
    } else if release.half_done {
        about.notes.push("somebody said that what is half done is as it shall be".into());
    }
    if release.without_comparison {
        about.notes.push("somebody went without the comparison".into());
    }
    if let Err(e) = append(guard, Event::Released, about).await {
        guard.monitor.warn(&format!("the release could not be written into the log: {e}"));
    }
    finish(guard, &mut state, snapshots, release.without_comparison).await
}

/// The way out.
pub(super) async fn finish(
    guard: &Guard<'_>,
    state: &mut State,
    snapshots: &impl Snapshots,
    without_comparison: bool,
) -> Result<Outcome, GuardError> {
    if let Some(local) = state.server().filter(|_| state.canonical.change.mode == Mode::Offline) {
        enter(guard, state, Step::Unfencing)?;
        fence::lower(&local.data, &state.run)?;
        crate::failpoint::hit("guard:unfenced");
        enter(guard, state, Step::Starting)?;
        // One that is started by its supervisor is not started twice.
        let starts = state.paused.iter().any(|paused| paused.commands.starts_server);
        if !starts {
            local.start(&guard.folder.run_folder(state).join("server.log")).await?;
        }
        enter(guard, state, Step::Resuming)?;
        for paused in state.paused.clone().iter().rev() {
            // One that was never paused is left alone.
            if paused.done || supervisors::is_paused(&paused.commands).await? {
                supervisors::resume(&paused.commands).await?;
            }
            state.paused.retain(|one| one != paused);
            guard.folder.save(state)?;
        }
        local.answers().await?;
        local.is_behind(&Session::connect(guard.dsn, SessionOptions::default()).await?).await?;
    }
    let mut comparison = None;
    if state.commands_begun && !without_comparison {
        enter(guard, state, Step::Comparing)?;
        strangers(guard, state).await?;
        comparison = Some(compare(guard, state, snapshots).await?);
    }
    if let Some(closed) = state.closed.clone() {
        enter(guard, state, Step::Opening)?;
        let session = Session::connect(guard.dsn, SessionOptions::default()).await?;
        exclusion::open(&session, &closed).await?;
        state.closed = None;
    }
    enter(guard, state, Step::Ended)?;
    let outcome = Outcome {
        id: state.canonical.change.id.clone(),
        commands_begun: state.commands_begun,
        commands_done: state.commands_done,
        snapshot: state.snapshot,
        taken: state.taken,
        comparison,
        seconds: Timestamp::now().duration_since(state.begun).as_secs_f64(),
    };
    if let Err(e) = ended(guard, state, &outcome).await {
        guard.monitor.warn(&format!("the end could not be written into the log: {e}"));
    }
    Keys::of(&guard.folder, state).forget();
    guard.folder.clear(state)?;
    Ok(outcome)
}

/// Superusers and the owner cannot be kept out. Whoever of them is there is told: what he writes is in the comparison.
async fn strangers(guard: &Guard<'_>, state: &State) -> Result<(), GuardError> {
    if state.closed.is_none() {
        return Ok(());
    }
    let session = Session::connect(guard.dsn, SessionOptions::default()).await?;
    for other in exclusion::others(&session).await? {
        let (pid, role) = (other.pid, &other.role);
        guard.monitor.warn(&format!(
            "process {pid} of {role} is connected though applications are out: what it writes counts as the change's"
        ));
    }
    Ok(())
}

async fn ended(guard: &Guard<'_>, state: &State, outcome: &Outcome) -> Result<(), GuardError> {
    let mut about = about_with(state);
    match &outcome.comparison {
        None if !state.commands_begun => about.notes.push("nothing was run".into()),
        None => about.notes.push("not compared".into()),
        Some(comparison) => {
            for table in comparison.findings() {
                about.notes.push(format!("FINDING {}: {}", table.table, table.finding.as_deref().unwrap_or_default()));
            }
            if about.notes.is_empty() {
                about.notes.push("compared: no finding".into());
            }
        }
    }
    append(guard, Event::Ended, about).await
}

async fn append(guard: &Guard<'_>, event: Event, about: About) -> Result<(), GuardError> {
    let mut log = Log::load(guard.repository()?).await?;
    log.append(guard.repository()?, &Memory::of(&guard.folder.path), event, about).await
}

/// Takes the snapshot of after the change and holds it against the one of before. With a finding the latter is held: nothing forgets it.
async fn compare(guard: &Guard<'_>, state: &State, snapshots: &impl Snapshots) -> Result<Comparison, GuardError> {
    let change = &state.canonical.change;
    let id = state.snapshot.ok_or_else(|| GuardError::Server("the state names no snapshot".into()))?;
    // What is lost the comparison tells, more exactly than a suspicion.
    let after = snapshots.take(vec![format!("post-change:{}", change.id)], true).await.map_err(GuardError::Snapshot)?;
    let before = find(guard.repository()?, &id).await?;
    let open = async |repository: &Repository| -> Result<(SnapshotReader, SnapshotReader), GuardError> {
        Ok((SnapshotReader::open(repository, &before).await?, SnapshotReader::open(repository, &after).await?))
    };
    let (old, new) = open(guard.repository()?).await?;
    let readers = match guard.reader {
        Some(reader) => Some(open(reader).await?),
        None => None,
    };
    let session = Session::connect(guard.dsn, SessionOptions::default()).await?;
    let keys = Keys::of(&guard.folder, state);
    let comparison = comparison::compare(&old, &new, change, &keys, &session, readers.as_ref()).await?;
    if comparison.findings().next().is_some() {
        forgotten::hold(guard.repository()?, &id).await?;
    }
    Ok(comparison)
}

async fn find(repository: &Repository, id: &crate::repository::id::ObjectId) -> Result<Snapshot, GuardError> {
    let (all, _) = snapshots::list(repository).await?;
    Ok(snapshots::select(&all, &id.to_hex())?.clone())
}
