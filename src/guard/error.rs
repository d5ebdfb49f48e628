//! What can go wrong with a change, in sentences: what happened, in which file or to what, and what a person can do.

use std::path::PathBuf;

use super::state::Step;
use crate::postgres::PostgresError;
use crate::repository::RepositoryError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error("{path}: {message}", path = .path.display())]
    File { path: PathBuf, message: String },
    #[error("{path}, line {line}: {message}", path = .path.display())]
    Document { path: PathBuf, line: usize, message: String },
    #[error("the change is refused:{}", listed(.0))]
    Refused(Vec<String>),
    #[error("{0}")]
    Signature(String),
    #[error("the snapshot could not be taken")]
    Snapshot(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("{program}: {message}")]
    Program { program: String, message: String },
    #[error("the server: {0}")]
    Server(String),
    #[error("command {number} ({program}) failed: {message}")]
    Command { number: usize, program: String, message: String },
    #[error("{0}")]
    Breached(String),
    #[error(
        "the change {id} has not ended (it stands at: {step}): look with `restante guard status`, go on with `restante guard release`"
    )]
    Unfinished { id: String, step: Step },
    #[error(
        "the repository cannot be opened, so what the change did cannot be compared. Applications stay out: mend the way to it and run \
         `restante guard release` again, or let them in as it is with `restante guard release --without-comparison`"
    )]
    NoRepository,
    #[error("no change is under way here")]
    Nothing,
    #[error("{0}")]
    HalfDone(String),
    #[error("interrupted")]
    Interrupted,
}

impl GuardError {
    /// Refused by the policy, or because it would not be safe (exit code 4).
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Signature(_) | Self::HalfDone(_) | Self::Unfinished { .. })
    }

    pub(super) fn file(path: impl Into<PathBuf>, message: impl ToString) -> Self {
        Self::File { path: path.into(), message: message.to_string() }
    }
}

fn listed(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("\n- {reason}")).collect()
}
