//! No change to the database without a certified snapshot: the procedure as a program. `docs/guard.md` tells it for those who follow it.
//!
//! ```text
//! check: policy, signatures, window, log, snapshot, preflight          nothing is touched
//! close: applications out (exclusive, offline)                         step by step into a state file, flushed before
//! snapshot → pause supervisors → stop, prove it down, fence (offline)  each is done, so that whoever comes after a
//! commands, watched                                                    kill or a reboot knows the least that was done
//! unfence, start, resume → compare → open                              `release` goes this way from wherever it stands
//! ```
//! * The server *must* never run while commands are half done unless somebody said so (`release --half-done`).
//! * Applications *must* stay out until the comparison is made.
//! * Nothing is done before the state file says that it begins.
//!
//! Uses `snapshot` (through [`Snapshots`]), `verify`, `compare`, `repository` and `postgres`; `cli` calls it.

pub mod approval;
pub mod canonical;
pub mod certified;
pub mod change;
pub mod check;
mod columns;
mod commands;
pub mod comparison;
mod document;
mod error;
pub mod exclusion;
mod fence;
mod finish;
mod keys;
pub mod log;
pub mod policy;
pub mod preflight;
mod processes;
pub mod run;
mod server;
pub mod state;
pub mod status;
pub mod supervisors;

use tokio_util::sync::CancellationToken;

use crate::monitor::SharedMonitor;
use crate::postgres::dsn::Dsn;
use crate::repository::snapshots::Snapshot;
use crate::repository::{Repository, changes};

pub use error::GuardError;
pub use finish::{Outcome, Release, release};
use state::{Folder, Step};

/// What every step needs.
pub struct Guard<'a> {
    /// Opened as the writer; absent where it cannot be opened, and a change that stands half-way must be put back all the same.
    pub repository: Option<&'a Repository>,
    /// The same for a reader, if there is an identity.
    pub reader: Option<&'a Repository>,
    pub dsn: &'a Dsn,
    pub folder: Folder,
    pub monitor: SharedMonitor,
    pub cancel: CancellationToken,
    /// Hears of each step as it begins.
    pub tell: &'a dyn Fn(Step),
}

impl<'a> Guard<'a> {
    fn repository(&self) -> Result<&'a Repository, GuardError> {
        self.repository.ok_or(GuardError::NoRepository)
    }
}

/// Takes snapshots of the store, as `restante snapshot` does.
#[allow(async_fn_in_trait)] // One caller, which awaits it where it stands.
pub trait Snapshots {
    async fn take(
        &self,
        tags: Vec<String>,
        accept_loss: bool,
    ) -> Result<Snapshot, Box<dyn std::error::Error + Send + Sync>>;
}

/// What is wrong with what the guard keeps in the repository: its log, policies and approvals. Sentences.
pub async fn problems(repository: &Repository) -> Result<Vec<String>, GuardError> {
    let mut problems = log::Log::load(repository).await?.problems;
    match policy::in_force(repository).await {
        Ok(_) => {}
        Err(GuardError::Repository(e)) if e.is_about_an_object() => problems.push(e.to_string()),
        Err(e) => return Err(e),
    }
    for name in changes::names(repository, "approvals/").await? {
        match changes::read::<serde::de::IgnoredAny>(repository, name).await {
            Ok(_) => {}
            Err(e) if e.is_about_an_object() => problems.push(e.to_string()),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(problems)
}
