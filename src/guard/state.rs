//! Where a change stands, on the disk of the host that runs it: written and flushed before each step, so that whoever comes after a kill
//! or a reboot knows the least that may have been done.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::canonical::Canonical;
use super::error::GuardError;
use super::exclusion::Closed;
use super::policy::SupervisorCommands;
use super::server::Local;
use crate::repository::id::ObjectId;

/// What was begun last. A step is written before it is done: at `Stopping` the server may be up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Begun,
    Closing,
    Snapshot,
    Pausing,
    Stopping,
    Fencing,
    /// Everything is ready, no command was run.
    Ready,
    /// Commands run, or one failed, or nobody knows: data may be in between.
    Commands,
    /// All commands ended with success.
    Done,
    Unfencing,
    Starting,
    Resuming,
    Comparing,
    Opening,
    Ended,
}

impl Step {
    pub const ALL: [Self; 15] = [
        Self::Begun,
        Self::Closing,
        Self::Snapshot,
        Self::Pausing,
        Self::Stopping,
        Self::Fencing,
        Self::Ready,
        Self::Commands,
        Self::Done,
        Self::Unfencing,
        Self::Starting,
        Self::Resuming,
        Self::Comparing,
        Self::Opening,
        Self::Ended,
    ];

    const ALL_ARE_THERE: () = assert!(Self::ALL.len() == Self::Ended as usize + 1);

    /// The name of its failpoint.
    pub fn failpoint(self) -> &'static str {
        let () = Self::ALL_ARE_THERE;
        match self {
            Self::Begun => "guard:begun",
            Self::Pausing => "guard:pausing",
            Self::Closing => "guard:closing",
            Self::Snapshot => "guard:snapshot",
            Self::Stopping => "guard:stopping",
            Self::Fencing => "guard:fencing",
            Self::Ready => "guard:ready",
            Self::Commands => "guard:commands",
            Self::Done => "guard:done",
            Self::Unfencing => "guard:unfencing",
            Self::Starting => "guard:starting",
            Self::Resuming => "guard:resuming",
            Self::Comparing => "guard:comparing",
            Self::Opening => "guard:opening",
            Self::Ended => "guard:ended",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begun => "begun, nothing touched",
            Self::Pausing => "pausing supervisors",
            Self::Closing => "sending applications out",
            Self::Snapshot => "taking the snapshot",
            Self::Stopping => "stopping the server",
            Self::Fencing => "fencing the data directory",
            Self::Ready => "ready, no command run",
            Self::Commands => "commands running or failed: data may be in between",
            Self::Done => "all commands done",
            Self::Unfencing => "taking the fence away",
            Self::Starting => "starting the server",
            Self::Resuming => "resuming supervisors",
            Self::Comparing => "comparing with the snapshot",
            Self::Opening => "letting applications in",
            Self::Ended => "ended",
        })
    }
}

/// A supervisor that the guard paused, or began to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    pub commands: SupervisorCommands,
    pub done: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    pub version: u32,
    /// Random: stands in the fence and in the environment of every command.
    pub run: String,
    pub canonical: Canonical,
    pub change: ObjectId,
    pub step: Step,
    pub begun: Timestamp,
    pub updated: Timestamp,
    /// The commands were begun at some time: what was `Done` or later, and what failed.
    pub commands_begun: bool,
    /// Commands that ended with success.
    pub commands_done: usize,
    pub failure: Option<String>,
    /// Somebody said that what is half done is as it shall be.
    pub settled: bool,
    pub snapshot: Option<ObjectId>,
    /// When the snapshot was complete; damage is later.
    pub taken: Option<Timestamp>,
    pub closed: Option<Closed>,
    pub paused: Vec<Paused>,
    /// Supervisors that somebody says he paused himself.
    pub paused_by_hand: Vec<String>,
    pub local: Option<Local>,
    /// The server is the one that the commands made: [`super::change::After`].
    #[serde(default)]
    pub succeeded: bool,
}

impl State {
    /// What somebody runs who has settled what is half done.
    pub fn settle(&self) -> &'static str {
        match self.canonical.change.after {
            None => "`restante guard release --half-done`",
            Some(_) => "`restante guard release --half-done`, or `--went-back` to the server of before",
        }
    }

    /// The server of an offline change: the one of before, or the one that the commands made of it.
    pub fn server(&self) -> Option<Local> {
        let local = self.local.as_ref()?;
        let after = self.canonical.change.after.as_ref().filter(|_| self.succeeded);
        Some(after.map_or_else(|| local.clone(), |after| local.made(after)))
    }
}

/// The folder of the guard: state, logs of commands, copies of scripts. One change at a time.
#[derive(Debug, Clone)]
pub struct Folder {
    pub path: PathBuf,
}

impl Folder {
    /// Nothing is made before something is written.
    pub fn at(path: &Path) -> Result<Self, GuardError> {
        // Commands run elsewhere, and name it.
        let path = std::path::absolute(path).map_err(|e| GuardError::file(path, e))?;
        Ok(Self { path })
    }

    /// Makes it if it is not there, for its owner alone.
    pub fn make(&self) -> Result<(), GuardError> {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|e| GuardError::file(&self.path, e))
    }

    fn state_path(&self) -> PathBuf {
        self.path.join("state.json")
    }

    /// Scripts and outputs of a run.
    pub fn run_folder(&self, state: &State) -> PathBuf {
        self.path.join(format!("{}-{}", state.canonical.change.id, &state.run[..8.min(state.run.len())]))
    }

    pub fn load(&self) -> Result<Option<State>, GuardError> {
        let path = self.state_path();
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let state: State = serde_json::from_str(&text).map_err(|e| GuardError::file(&path, e))?;
                if state.version == 1 {
                    Ok(Some(state))
                } else {
                    Err(GuardError::file(&path, "a newer program wrote it"))
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(GuardError::file(&path, e)),
        }
    }

    pub fn save(&self, state: &mut State) -> Result<(), GuardError> {
        state.updated = Timestamp::now();
        write_durably(&self.state_path(), state)
    }

    /// Writes that a step begins; then nothing of it was done yet.
    pub fn enter(&self, state: &mut State, step: Step) -> Result<(), GuardError> {
        state.step = step;
        self.save(state)?;
        crate::failpoint::hit(step.failpoint());
        Ok(())
    }

    /// A change that has ended; what it leaves is its folder with the last state.
    pub fn clear(&self, state: &State) -> Result<(), GuardError> {
        let folder = self.run_folder(state);
        if folder.is_dir() {
            write_durably(&folder.join("state.json"), state)?;
        }
        std::fs::remove_file(self.state_path()).map_err(|e| GuardError::file(self.state_path(), e))?;
        sync_folder(&self.path)
    }

    /// Held while a guard works, so that there are never two; given back when the process ends, however it does.
    pub fn lock(&self) -> Result<std::fs::File, GuardError> {
        self.make()?;
        let path = self.path.join("lock");
        let file = std::fs::File::options().create(true).write(true).truncate(false).open(&path);
        let file = file.map_err(|e| GuardError::file(&path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => {
                Err(GuardError::Refused(vec!["another guard works in this folder: see `restante guard status`".into()]))
            }
            Err(std::fs::TryLockError::Error(e)) => Err(GuardError::file(&path, e)),
        }
    }

    /// Does a guard work here now?
    pub fn is_busy(&self) -> bool {
        self.path.join("lock").exists() && self.lock().is_err()
    }
}

/// Writes a file so that after a power cut either the old one is there or the new one, whole.
pub(super) fn write_durably<T: Serialize>(path: &Path, value: &T) -> Result<(), GuardError> {
    let fail = |e: std::io::Error| GuardError::file(path, e);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    serde_json::to_writer_pretty(&mut file, value).map_err(|e| GuardError::file(path, e))?;
    file.write_all(b"\n").and_then(|()| file.as_file().sync_all()).map_err(fail)?;
    file.persist(path).map_err(|e| fail(e.error))?;
    sync_folder(folder)
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), GuardError> {
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| GuardError::file(folder, e))
}
