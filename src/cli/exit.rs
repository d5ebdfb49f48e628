//! Exit codes, and how an error becomes one.

use std::process::ExitCode;

use crate::compare::CompareError;
use crate::postgres::PostgresError;
use crate::repository::RepositoryError;
use crate::restore::ReplayError;
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

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error of the caller: what is missing or contradictory. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Ctrl-C. Exit code 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Prints the error and says how to exit.
pub fn report(error: &anyhow::Error, json: bool) -> Exit {
    let exit = classify(error);
    if json {
        let message = serde_json::json!({ "type": "error", "message": text(error), "exit_code": exit.code() });
        println!("{message}");
    } else {
        eprintln!("restante: {}", text(error));
    }
    exit
}

/// The chain, without links that repeat what the one before already says.
fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for link in error.chain().map(|link| super::output::inert(&link.to_string())) {
        if !text.contains(&link) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = text + separator + &link;
        }
    }
    text
}

fn classify(error: &anyhow::Error) -> Exit {
    for link in error.chain() {
        if link.is::<UsageError>() {
            return Exit::Usage;
        }
        if link.is::<Interrupted>() {
            return Exit::Interrupted;
        }
        if link.downcast_ref::<CompareError>().is_some_and(CompareError::is_refusal) {
            return Exit::Refused;
        }
        if link.downcast_ref::<ReplayError>().is_some_and(ReplayError::is_not_found) {
            return Exit::NotFound;
        }
        let repository = link.downcast_ref::<RepositoryError>().or_else(|| match link.downcast_ref() {
            Some(SnapshotError::Repository(e)) => Some(e),
            _ => match link.downcast_ref() {
                Some(CompareError::Repository(e)) => Some(e),
                _ => None,
            },
        });
        match repository {
            Some(e) if e.is_wrong_key() => return Exit::WrongKey,
            Some(e) if e.is_not_found() => return Exit::NotFound,
            Some(RepositoryError::KeyObjectsChanged { .. } | RepositoryError::RolledBack { .. }) => {
                return Exit::Refused;
            }
            _ => {}
        }
        if matches!(link.downcast_ref(), Some(StorageError::NotFound { .. })) {
            return Exit::NotFound;
        }
        if matches!(link.downcast_ref(), Some(PostgresError::Dsn(_))) {
            return Exit::Usage;
        }
    }
    Exit::Failed
}
