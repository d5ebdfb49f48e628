//! Exit codes, and how an error becomes one.

use std::process::ExitCode;

use super::output;
use crate::compare::CompareError;
use crate::drill::DrillError;
use crate::guard::GuardError;
use crate::postgres::PostgresError;
use crate::report::inert::{inert, inert_json};
use crate::repository::RepositoryError;
use crate::restore::{ReplayError, RestoreError};
use crate::snapshot::SnapshotError;
use crate::storage::StorageError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    Usage,
    /// Done, and something was found that a person should look at.
    Findings,
    /// Refused by policy.
    Refused,
    NotFound,
    WrongKey,
    Interrupted,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Findings => 3,
            Self::Refused => 4,
            Self::NotFound => 5,
            Self::WrongKey => 6,
            Self::Interrupted => 130,
        }
    }
}

impl Exit {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Findings => "findings",
            Self::Refused => "refused",
            Self::NotFound => "not-found",
            Self::WrongKey => "wrong-key",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error of the caller: what is missing or contradictory. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Another process holds what `--exclusive` asks for. Exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("another `restante --exclusive` with this writer key is running: it holds {}", .0.display())]
pub struct AlreadyRunning(pub std::path::PathBuf);

/// Ctrl-C. Exit code 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Prints the error and says how to exit.
pub fn report(error: &anyhow::Error, json: bool) -> Exit {
    let exit = classify(error);
    if json {
        let message = serde_json::json!({ "type": "error", "message": text(error), "exit_code": exit.code() });
        output::print(inert_json(&message));
    } else {
        output::complain(format!("restante: {}", text(error)));
    }
    exit
}

/// The chain, without links that repeat what the one before already says.
fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    // A further line is indented, so that it cannot be taken for a message of its own.
    let shown = |link: &(dyn std::error::Error + 'static)| {
        link.to_string().lines().map(inert).collect::<Vec<_>>().join("\n    ")
    };
    // The client library's own words quote the server's detail line, which may hold a row; ours have said the rest.
    let ours = |link: &&(dyn std::error::Error + 'static)| {
        !link.is::<tokio_postgres::Error>() && !link.is::<tokio_postgres::error::DbError>()
    };
    for link in error.chain().filter(ours).map(shown) {
        if !text.contains(&link) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = text + separator + &link;
        }
    }
    text
}

fn classify(error: &anyhow::Error) -> Exit {
    // Added as context it is no link of its own.
    if error.downcast_ref::<Interrupted>().is_some() {
        return Exit::Interrupted;
    }
    for link in error.chain() {
        if link.is::<UsageError>() {
            return Exit::Usage;
        }
        if link.is::<AlreadyRunning>() {
            return Exit::Refused;
        }
        if matches!(link.downcast_ref(), Some(SnapshotError::Memory(..))) {
            return Exit::Usage;
        }
        if link.downcast_ref::<CompareError>().is_some_and(CompareError::is_refusal) {
            return Exit::Refused;
        }
        if link.downcast_ref::<ReplayError>().is_some_and(ReplayError::is_refusal) {
            return Exit::Refused;
        }
        match link.downcast_ref::<GuardError>() {
            Some(e) if e.is_refusal() => return Exit::Refused,
            Some(GuardError::Document { .. }) => return Exit::Usage,
            Some(GuardError::Nothing) => return Exit::NotFound,
            Some(GuardError::Interrupted) => return Exit::Interrupted,
            _ => {}
        }
        if matches!(link.downcast_ref(), Some(CompareError::NoMail { .. })) {
            return Exit::NotFound;
        }
        if link.downcast_ref::<ReplayError>().is_some_and(ReplayError::is_not_found) {
            return Exit::NotFound;
        }
        if matches!(link.downcast_ref(), Some(DrillError::NoServer { .. })) {
            return Exit::NotFound;
        }
        if matches!(link.downcast_ref(), Some(DrillError::Restore(RestoreError::Interrupted))) {
            return Exit::Interrupted;
        }
        let repository = repository_error(link);
        match repository {
            Some(e) if e.is_wrong_key() => return Exit::WrongKey,
            Some(e) if e.is_not_found() => return Exit::NotFound,
            Some(
                RepositoryError::KeyObjectsChanged { .. }
                | RepositoryError::RolledBack { .. }
                | RepositoryError::NotCertified { .. }
                | RepositoryError::Kept { .. },
            ) => return Exit::Refused,
            _ => {}
        }
        if matches!(link.downcast_ref(), Some(StorageError::NotFound { .. })) {
            return Exit::NotFound;
        }
        if matches!(link.downcast_ref(), Some(RestoreError::NoSuchTable { .. })) {
            return Exit::NotFound;
        }
        if matches!(link.downcast_ref(), Some(RestoreError::Interrupted)) {
            return Exit::Interrupted;
        }
        if matches!(link.downcast_ref(), Some(PostgresError::Dsn(_))) {
            return Exit::Usage;
        }
    }
    Exit::Failed
}

/// Wrapped transparently, an inner error is no link of its own.
fn repository_error<'a>(link: &'a (dyn std::error::Error + 'static)) -> Option<&'a RepositoryError> {
    let wrapped = match (link.downcast_ref(), link.downcast_ref(), link.downcast_ref()) {
        (Some(SnapshotError::Repository(e)), ..)
        | (_, Some(RestoreError::Repository(e)), _)
        | (.., Some(CompareError::Repository(e))) => Some(e),
        _ => None,
    };
    let guarded = match link.downcast_ref() {
        Some(GuardError::Repository(e)) => Some(e),
        _ => None,
    };
    link.downcast_ref().or(wrapped).or(guarded)
}
