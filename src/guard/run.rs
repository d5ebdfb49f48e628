//! A change from its check to its last command; `finish` does the rest.

use jiff::Timestamp;

use super::change::{Change, Mode};
use super::check::{self, Checked, Given};
use super::commands::{self, Watch};
use super::error::GuardError;
use super::exclusion::Closed;
use super::finish::{self, Outcome};
use super::keys::Keys;
use super::log::{About, Event, Log, Memory};
use super::preflight::Preflight;
use super::server::Local;
use super::state::{Paused, State, Step};
use super::{Guard, Snapshots, certified, exclusion, fence, supervisors};
use crate::postgres::session::{Session, SessionOptions};
use crate::repository::RepositoryError;
use crate::repository::seal;
use crate::repository::snapshots::Snapshot;

/// Runs a change. Refused before anything is touched, or done, or it says how to go on.
pub async fn run(
    guard: &Guard<'_>,
    change: &Change,
    given: &Given,
    snapshots: &impl Snapshots,
) -> Result<Outcome, GuardError> {
    let _lock = guard.folder.lock()?;
    if let Some(state) = guard.folder.load()? {
        return Err(GuardError::Unfinished { id: state.canonical.change.id, step: state.step });
    }
    let mut checked = check::check(guard, change, given, true).await?;
    // What a snapshot mends is mended at once: one of before applications are sent out, so that the one of after takes but a moment.
    let unbound = &checked.judged.canonical.change;
    if !checked.reasons.snapshot.is_empty()
        && checked.reasons.approval.is_empty()
        && checked.reasons.preflight.is_empty()
    {
        let unfit = checked.snapshot.as_ref().map(certified::unfit).unwrap_or_default();
        if unfit.is_empty() {
            let taken = take(guard, snapshots, &unbound.id).await?;
            checked.reasons.snapshot = certified_now(guard, &checked, &taken).await?;
        }
    }
    let reasons = checked.reasons.all();
    if !reasons.is_empty() {
        return Err(GuardError::Refused(reasons));
    }
    let Checked { judged, preflight, .. } = &checked;
    let mut random = [0; 16];
    seal::fill_random(&mut random).map_err(RepositoryError::from)?;
    let now = Timestamp::now();
    let mut state = State {
        version: 1,
        run: data_encoding::HEXLOWER.encode(&random),
        canonical: judged.canonical.clone(),
        change: judged.canonical.hash()?,
        step: Step::Begun,
        begun: now,
        updated: now,
        commands_begun: false,
        commands_done: 0,
        failure: None,
        settled: false,
        snapshot: None,
        taken: None,
        closed: None,
        paused: Vec::new(),
        paused_by_hand: given.paused.clone(),
        local: preflight.as_ref().and_then(|found| found.local.clone()).filter(|_| unbound.mode == Mode::Offline),
        succeeded: false,
    };
    let mut log = Log::load(guard.repository()?).await?;
    let memory = Memory::of(&guard.folder.path);
    let mut notes: Vec<String> = judged.waived.iter().map(|waived| format!("BREAK GLASS: {waived}")).collect();
    notes.push(format!("approved by {}", list(judged.approved_by.iter().map(String::as_str))));
    notes.extend(given.paused.iter().map(|name| format!("{name} is said to be paused by hand")));
    let about = About { policy: Some(judged.policy.hash), notes, ..about(&state) };
    log.append(guard.repository()?, &memory, Event::Begun, about).await?;
    commands::lay_out(&guard.folder, &state, change)?;
    enter(guard, &mut state, Step::Begun)?;

    match prepare(guard, &mut state, &checked, preflight.as_ref(), snapshots).await {
        Ok(()) => {}
        Err(error) => return Err(undone(guard, &mut state, snapshots, error).await),
    }
    // From here on its approvals are used up, in the repository before anything is done.
    if let Err(error) = log.append(guard.repository()?, &memory, Event::Commands, about_with(&state)).await {
        return Err(undone(guard, &mut state, snapshots, error).await);
    }
    state.commands_begun = true;
    enter(guard, &mut state, Step::Commands)?;
    if let Err(error) = commands(guard, &mut state).await {
        state.failure = Some(error.to_string());
        guard.folder.save(&mut state)?;
        // The log is for later; that it cannot be reached must not hide why the change failed.
        let mut about = about_with(&state);
        about.notes.extend(state.failure.clone());
        if let Err(e) = log.append(guard.repository()?, &memory, Event::Failed, about).await {
            guard.monitor.warn(&format!("the failure could not be written into the log: {e}"));
        }
        return Err(error);
    }
    finish::finish(guard, &mut state, snapshots, false).await
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

pub(super) fn about(state: &State) -> About {
    About { id: Some(state.canonical.change.id.clone()), change: Some(state.change), ..About::default() }
}

pub(super) fn about_with(state: &State) -> About {
    About { snapshot: state.snapshot, ..about(state) }
}

pub(super) fn enter(guard: &Guard<'_>, state: &mut State, step: Step) -> Result<(), GuardError> {
    (guard.tell)(step);
    guard.folder.enter(state, step)
}

async fn take(guard: &Guard<'_>, snapshots: &impl Snapshots, id: &str) -> Result<Snapshot, GuardError> {
    let _ = guard;
    snapshots.take(vec![format!("pre-change:{id}")], false).await.map_err(GuardError::Snapshot)
}

/// Why the snapshot that was just taken is none to begin with.
async fn certified_now(guard: &Guard<'_>, checked: &Checked, snapshot: &Snapshot) -> Result<Vec<String>, GuardError> {
    let (policy, target) = (&checked.judged.policy.policy, &checked.judged.canonical.change.target);
    let mut reasons = certified::unfit(snapshot);
    if !certified::is_of(snapshot, target) {
        reasons.push(format!("snapshot {} is of another server or database", snapshot.short()));
    }
    let now = Timestamp::now();
    let (stale, problems) = certified::stale_packs(guard.repository()?, snapshot, policy, now, &guard.monitor).await?;
    reasons.extend(problems);
    reasons.extend(certified::hash_now(guard.repository()?, &stale, &guard.monitor).await?);
    Ok(reasons)
}

/// Everything before the first command. Whatever it did is in the state.
async fn prepare(
    guard: &Guard<'_>,
    state: &mut State,
    checked: &Checked,
    preflight: Option<&Preflight>,
    snapshots: &impl Snapshots,
) -> Result<(), GuardError> {
    let mode = state.canonical.change.mode;
    if mode != Mode::Online {
        let session = Session::connect(guard.dsn, SessionOptions::default()).await?;
        let closed = exclusion::plan(&session).await?;
        state.closed = Some(closed.clone());
        enter(guard, state, Step::Closing)?;
        exclusion::close(&session, &closed).await?;
    }
    stop_if_asked(guard)?;
    enter(guard, state, Step::Snapshot)?;
    let snapshot = take(guard, snapshots, &state.canonical.change.id).await?;
    let reasons = certified_now(guard, checked, &snapshot).await?;
    if !reasons.is_empty() {
        return Err(GuardError::Refused(reasons));
    }
    (state.snapshot, state.taken) = (Some(snapshot.id), Some(snapshot.manifest.taken));
    guard.folder.save(state)?;
    let session = Session::connect(guard.dsn, SessionOptions::default()).await?;
    let encoding = &snapshot.manifest.server.encoding;
    Keys::of(&guard.folder, state).keep(&state.canonical.change, &session, encoding).await?;
    drop(session);
    stop_if_asked(guard)?;
    if let (Mode::Offline, Some(local)) = (mode, state.local.clone()) {
        for commands in preflight.map(|found| found.pause.clone()).unwrap_or_default() {
            state.paused.push(Paused { commands: commands.clone(), done: false });
            enter(guard, state, Step::Pausing)?;
            supervisors::pause(&commands).await?;
            if let Some(last) = state.paused.last_mut() {
                last.done = true;
            }
            guard.folder.save(state)?;
            crate::failpoint::hit("guard:pausing:done");
        }
        stop_if_asked(guard)?;
        enter(guard, state, Step::Stopping)?;
        local.stop().await?;
        crate::failpoint::hit("guard:stopped");
        if !state.canonical.change.hand_over {
            enter(guard, state, Step::Fencing)?;
            fence::raise(&local.data, &state.run, &note(state))?;
            // Nobody came between the proof and the fence.
            local.prove_down().await?;
        }
    }
    stop_if_asked(guard)?;
    enter(guard, state, Step::Ready)
}

fn stop_if_asked(guard: &Guard<'_>) -> Result<(), GuardError> {
    if guard.cancel.is_cancelled() { Err(GuardError::Interrupted) } else { Ok(()) }
}

/// For whoever wonders why the server does not start.
fn note(state: &State) -> String {
    of_change(
        state,
        "This PostgreSQL server is stopped for a change to its files. Starting it now would damage it.\n\
         Do not remove this directory: ask whoever runs the change, or see `restante guard status` and `restante guard release`.\n",
    )
}

fn of_change(state: &State, note: &str) -> String {
    let change = &state.canonical.change;
    let (id, title, since, minutes) = (&change.id, &change.title, state.begun, change.duration_seconds / 60);
    format!("{note}change: {id} {title}\nsince: {since}\nexpected minutes: {minutes}")
}

/// Nothing was run: everything is put back as it was, and the error that stopped it is told, with one that stopped this.
async fn undone(guard: &Guard<'_>, state: &mut State, snapshots: &impl Snapshots, error: GuardError) -> GuardError {
    guard.monitor.warn("nothing was run; putting everything back");
    match finish::finish(guard, state, snapshots, false).await {
        Ok(_) => error,
        Err(second) => {
            guard
                .monitor
                .warn(&format!("not everything could be put back ({second}): go on with `restante guard release`"));
            error
        }
    }
}

async fn commands(guard: &Guard<'_>, state: &mut State) -> Result<(), GuardError> {
    let change = state.canonical.change.clone();
    let (local, run) = (state.local.clone(), state.run.clone());
    let made = local.as_ref().zip(change.after.as_ref()).map(|(local, after)| local.made(after));
    let session = match change.mode {
        Mode::Offline => None,
        _ => Some(Session::connect(guard.dsn, SessionOptions::default()).await?),
    };
    let environment =
        commands::environment(guard.dsn, session.as_ref(), change.mode, local.as_ref(), made.as_ref()).await;
    drop(session);
    let scripts = guard.folder.run_folder(state).join("scripts");
    let output = commands::output_file(&guard.folder, state);
    let watch = Watch {
        run: &run,
        local: local.as_ref(),
        made: made.as_ref(),
        hand_over: change.hand_over,
        cancel: &guard.cancel,
    };
    for (at, command) in change.commands.iter().enumerate() {
        let done = commands::run(at + 1, command, &environment, &scripts, &output, &watch).await;
        if done.is_err() {
            // The files may be half changed: no server may run on them, and one that was handed over is fenced now.
            for local in [&local, &made].into_iter().flatten() {
                if !local.strangers(&run).is_empty() {
                    local.stop_stranger().await;
                }
                if local.data.join("PG_VERSION").is_file()
                    && let Err(e) = fence::raise(&local.data, &run, &note(state))
                {
                    guard.monitor.warn(&format!("the fence could not be put up: {e}"));
                }
            }
        }
        done?;
        state.commands_done = at + 1;
        guard.folder.save(state)?;
        crate::failpoint::hit("guard:command:done");
    }
    if change.hand_over {
        // What the commands started they must have stopped.
        if [local, made].iter().flatten().any(Local::is_running) {
            return Err(GuardError::Server("the commands left a server running; stop it in order, then go on with `restante guard release --half-done`".into()));
        }
        succeed(state).await?;
    }
    enter(guard, state, Step::Done)
}

/// From now on the server is the one that the commands made, if they made one. That of before stays fenced: whoever starts it, as a supervisor
/// that was not told, would have users write into the past.
pub(super) async fn succeed(state: &mut State) -> Result<(), GuardError> {
    let Some((local, after)) = state.local.as_ref().zip(state.canonical.change.after.as_ref()) else { return Ok(()) };
    local.made(after).prove_down().await?;
    let opening: Vec<String> = state.closed.iter().flat_map(Closed::opening).map(|sql| sql + ";\n").collect();
    let (data, opening) = (after.data.display(), opening.concat());
    let note = of_change(
        state,
        &format!(
            "The server in {data} took the place of this one, in which users would write into the past.\n\
             To go back: stop that one, remove this directory, start this one, and give back what was taken here:\n{opening}"
        ),
    );
    fence::raise(&local.data, &state.run, &note)?;
    state.succeeded = true;
    Ok(())
}
