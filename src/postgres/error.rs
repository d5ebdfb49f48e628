//! What can go wrong between Restante and a PostgreSQL server, in sentences with advice.

use std::time::Duration;

use super::copy::FrameError;
use super::dsn::DsnError;
use super::reading::Waiting;
use super::tls::TlsError;

/// What can go wrong with a server. No variant holds a password or a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresError {
    #[error(transparent)]
    Dsn(#[from] DsnError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot reach the server at {endpoint}: {reason}")]
    Unreachable { endpoint: String, reason: String },
    #[error("the server at {endpoint} refused the connection: {reason}{}", advice(.reason))]
    Refused { endpoint: String, reason: String },
    #[error("no server of {tried} is {wanted}; check target_session_attrs")]
    NoSuchServer { tried: String, wanted: &'static str },
    #[error("the server is PostgreSQL {version}; Restante works with 14 to 18")]
    Version { version: String },
    #[error(
        "a pooler that shares server connections stands between: the server process behind a session changed. Connect to the server itself, or to a pool with pool_mode = session"
    )]
    Pooler,
    #[error("{doing}: {}", explained(.source))]
    Server { doing: String, source: tokio_postgres::Error },
    #[error("the server's answer to {doing} is not understood: {reason}")]
    Answer { doing: String, reason: String },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{}", gave_way(.waiting))]
    Yielded { waiting: Vec<Waiting> },
    #[error(
        "the connection that watches whether somebody waits behind the snapshot's locks was lost ({reason}), so the snapshot ended; run it again"
    )]
    Unwatched { reason: String },
    #[error("the snapshot is {} seconds old, the limit; VACUUM was held back so long. Raise the limit or give more readers", .age.as_secs())]
    TooOld { age: Duration },
    #[error(
        "the standby ended the snapshot because it conflicts with replay ({reason}); try again, or set hot_standby_feedback = on"
    )]
    RecoveryConflict { reason: String },
    #[error("the tables could not be locked within {} seconds, because others hold stronger locks; see pg_locks, or wait longer", .waited.as_secs())]
    LockTimeout { waited: Duration },
    #[error(
        "tables came and went through {attempts} attempts to lock them all; run it again when the schema is at rest"
    )]
    Unstable { attempts: u32 },
    #[error(
        "{tables} tables need more locks than the server has room for ({slots} shared by all sessions); raise \
         max_locks_per_transaction (now {per_transaction}) to {needed} or more, which needs a restart, or exclude tables"
    )]
    OutOfLocks { tables: usize, slots: u64, per_transaction: u64, needed: u64 },
    #[error("interrupted")]
    Cancelled,
}

impl PostgresError {
    /// Wraps an error of the client library with what was being done.
    pub(crate) fn server(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let doing = doing.into();
        move |source| match source.as_db_error() {
            // Both codes come with a conflict: 40001 at a statement or at termination.
            Some(error) if error.code().code() == "40001" && error.message().contains("recovery") => {
                Self::RecoveryConflict { reason: error.message().to_owned() }
            }
            // The client library's statement names are unique in a session: unknown or taken, it is another's session.
            Some(error) if matches!(error.code().code(), "26000" | "42P05") => Self::Pooler,
            _ => Self::Server { doing, source },
        }
    }

    /// The SQLSTATE, when the server gave one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { source, .. } => source.code().map(|code| code.code()),
            _ => None,
        }
    }

    /// Is it about the data of a row or block, so that others can be read all the same? Rows over 1 GiB (54000, 53200, XX000),
    /// damaged pages, TOAST and transaction status (XX001, XX002, 58030, 58P01), values that cannot be shown (class 22).
    pub fn is_about_data(&self) -> bool {
        self.sqlstate().is_some_and(|code| {
            ["XX", "22", "54"].iter().any(|class| code.starts_with(class))
                || matches!(code, "53200" | "58030" | "58P01")
        })
    }

    /// Is it worth while to begin again with a new snapshot?
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Yielded { .. } | Self::RecoveryConflict { .. } | Self::LockTimeout { .. } => true,
            Self::Unreachable { .. } | Self::Unwatched { .. } => true,
            // Serialization failure, deadlock, lock timeout; the server stops or starts.
            Self::Server { source, .. } => {
                source.is_closed()
                    || source.code().is_some_and(|code| {
                        matches!(code.code(), "40001" | "40P01" | "55P03" | "57P01" | "57P02" | "57P03")
                    })
            }
            _ => false,
        }
    }
}

/// The server's own words. Its detail line may quote a row ("Key (id)=(…) already exists"), so it stays out.
pub(crate) fn explained(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let hint = db.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            // A trigger may raise several lines.
            format!("{} ({}){hint}", db.message(), db.code().code()).replace('\n', " ")
        }
        None => {
            // The library's text for its own errors says only the kind; the cause says what.
            use std::error::Error as _;
            match error.source() {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }
        }
    }
}

fn advice(reason: &str) -> &'static str {
    if reason.contains("password missing") {
        "; give a password in PGPASSWORD or ~/.pgpass"
    } else if reason.contains("no pg_hba.conf entry") {
        "; the server's pg_hba.conf must admit this host, role and database, and sslmode must suit it"
    } else {
        ""
    }
}

fn gave_way(waiting: &[Waiting]) -> String {
    let mut who: Vec<String> = waiting.iter().take(3).map(Waiting::to_string).collect();
    if waiting.len() > 3 {
        who.push(format!("{} more", waiting.len() - 3));
    }
    format!(
        "gave way to {}, which waited behind the snapshot's locks; what was stored is kept, run it again",
        who.join(", ")
    )
}
