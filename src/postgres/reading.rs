//! The opening protocol of a snapshot: lock, then snapshot, then read; and giving way.
//!
//! PostgreSQL's snapshots do not cover TRUNCATE and rewriting ALTERs: a table that is truncated after the snapshot and
//! before the first read shows **no rows and no error** (documented under "Caveats" of MVCC, and tried). So every reader
//! locks every table first (`ACCESS SHARE`; `LOCK TABLE` takes no snapshot), only then one of them exports a snapshot and
//! the others take it, and only then is the catalog read. If the tables under the snapshot are not those that are locked,
//! all begins anew. Every reader, because a reader that asks for its lock later queues behind an ALTER that waits for us.
//!
//! The first reader is the one that exports; no connection only holds the snapshot. A watcher on a connection of its own
//! looks whether somebody waits behind our locks, and ends the readers' transactions when that lasts.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::catalog::{self, Catalog, TableName};
use super::dsn::Dsn;
use super::error::PostgresError;
use super::marker::{Marker, Token};
use super::session::{self, ServerFacts, Session, SessionOptions};
use crate::monitor::SharedMonitor;

mod watcher;

/// How a [`ReadingSet`] behaves towards the others on the server.
#[derive(Debug, Clone)]
pub struct ReadingOptions {
    /// How long somebody may wait behind our locks before we give way; `None` never gives way.
    pub yield_after: Option<Duration>,
    /// How old the snapshot may become; VACUUM is held back as long.
    pub max_snapshot_age: Option<Duration>,
    /// How long to try to get the locks.
    pub lock_wait: Duration,
    /// How often to begin anew when tables come and go.
    pub attempts: u32,
    /// Ends everything, as Ctrl-C does.
    pub cancel: CancellationToken,
}

impl Default for ReadingOptions {
    fn default() -> Self {
        Self {
            yield_after: Some(Duration::from_secs(10)),
            max_snapshot_age: None,
            lock_wait: Duration::from_secs(60),
            attempts: 20,
            cancel: CancellationToken::new(),
        }
    }
}

/// What `pg_current_snapshot()` says: which transactions the snapshot sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visibility {
    /// All below are decided: visible if committed.
    pub xmin: u64,
    /// All from here on are not visible.
    pub xmax: u64,
    /// Those between that were still open.
    pub in_progress: Vec<u64>,
}

/// Somebody who waits behind our locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub backend: i32,
    pub application: String,
    /// Which lock is wanted, as `AccessExclusiveLock`.
    pub mode: String,
    /// On what.
    pub relation: String,
    pub waited: Duration,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The application's name and the relation's are other people's text.
        let Self { backend, application, mode, relation, waited } = self;
        write!(f, "process {backend} ({application:?}) with {mode} on {relation:?} for {} s", waited.as_secs())
    }
}

/// What ended a set before its owner did.
#[derive(Debug, Clone)]
enum Ending {
    Yielded(Vec<Waiting>),
    TooOld(Duration),
    /// Why the watcher's connection was lost.
    Unwatched(String),
}

/// What readers and watcher share.
#[derive(Debug, Default)]
struct Shared {
    ending: OnceLock<Ending>,
    /// Cancelled when the readers must stop, for whatever reason.
    stop: CancellationToken,
}

impl Shared {
    fn explain(&self, error: PostgresError) -> PostgresError {
        match self.ending.get() {
            Some(Ending::Yielded(waiting)) => PostgresError::Yielded { waiting: waiting.clone() },
            Some(Ending::TooOld(age)) => PostgresError::TooOld { age: *age },
            Some(Ending::Unwatched(reason)) if matches!(error, PostgresError::Cancelled) => {
                PostgresError::Unwatched { reason: reason.clone() }
            }
            // A reader's own connection may have been lost as well: its words are as good.
            Some(Ending::Unwatched(_)) | None => error,
        }
    }
}

/// A session inside the set's snapshot, with all tables locked.
pub struct Reader {
    session: Session,
    shared: Arc<Shared>,
    /// The server's encoding, when it is not UTF-8: COPY then sends text as it is stored.
    pub(super) encoding: Option<String>,
}

impl Reader {
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Says why, when the watcher ended the transaction under this reader.
    pub fn explain(&self, error: PostgresError) -> PostgresError {
        self.shared.explain(error)
    }

    /// Cancelled when the set gives way, grows too old or is interrupted.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.shared.stop
    }
}

/// Readers that see one snapshot of a database whose tables cannot change their shape meanwhile.
pub struct ReadingSet {
    /// Hand them out; the snapshot ends with the last.
    pub readers: Vec<Reader>,
    /// What the snapshot holds. Sequences were read after the export.
    pub catalog: Catalog,
    pub facts: ServerFacts,
    pub visibility: Visibility,
    /// When the snapshot was taken, by the server's clock, in UTC as `2026-11-21T20:00:00.123456Z`. Not `now()`, which is when
    /// the transaction began: the wait for the locks lies between.
    pub taken_at: String,
    /// For `pg_dump --snapshot`; valid while the first reader's transaction is open.
    pub exported: String,
    /// What the marker was set to, and committed, after the export.
    pub token: Option<Token>,
    shared: Arc<Shared>,
    watcher: JoinHandle<()>,
}

impl fmt::Debug for ReadingSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadingSet({} readers, snapshot {})", self.readers.len(), self.exported)
    }
}

impl Drop for ReadingSet {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Tables in one LOCK statement: enough that 2,000 tables cost few round trips, short enough to be read in a log.
const LOCK_BATCH: usize = 200;

/// A single wait for a lock. Below `deadlock_timeout` (1 s), so that in a deadlock with us nobody else is the victim, and short,
/// because everybody who comes after us queues behind our wait.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Between two attempts all locks are given back.
const LOCK_PAUSE: Duration = Duration::from_millis(250);

impl ReadingSet {
    /// Opens up to `jobs` readers; fewer, with a word to `monitor`, when the server's table of locks is small.
    pub async fn open(
        dsn: &Dsn,
        jobs: usize,
        options: ReadingOptions,
        monitor: &SharedMonitor,
    ) -> Result<Self, PostgresError> {
        Self::open_marked(dsn, jobs, options, None, monitor).await
    }

    /// As [`ReadingSet::open`], and leaves a token at the marker right after each export.
    pub async fn open_marked(
        dsn: &Dsn,
        jobs: usize,
        options: ReadingOptions,
        marker: Option<&Leave<'_>>,
        monitor: &SharedMonitor,
    ) -> Result<Self, PostgresError> {
        session::refuse_pooler(dsn).await?;
        let mut sessions = Vec::new();
        for _ in 0..jobs.max(1) {
            sessions.push(
                Session::connect(dsn, SessionOptions { lock_timeout: LOCK_TIMEOUT, ..Default::default() }).await?,
            );
        }
        let facts = sessions[0].facts().await?;
        let begun = Instant::now();
        let mut unstable = 0;
        loop {
            if options.cancel.is_cancelled() {
                return Err(PostgresError::Cancelled);
            }
            match attempt(&mut sessions, &facts, marker, monitor).await? {
                Attempt::Opened(opened) => return Self::begin(dsn, sessions, facts, *opened, options).await,
                Attempt::LocksTaken if begun.elapsed() >= options.lock_wait => {
                    return Err(PostgresError::LockTimeout { waited: begun.elapsed() });
                }
                Attempt::Changed if unstable + 1 >= options.attempts => {
                    return Err(PostgresError::Unstable { attempts: options.attempts });
                }
                Attempt::LocksTaken => tokio::time::sleep(LOCK_PAUSE).await,
                Attempt::Changed => unstable += 1,
            }
        }
    }

    async fn begin(
        dsn: &Dsn,
        sessions: Vec<Session>,
        facts: ServerFacts,
        opened: Opened,
        options: ReadingOptions,
    ) -> Result<Self, PostgresError> {
        let shared = Arc::new(Shared { ending: OnceLock::new(), stop: options.cancel.child_token() });
        let watching = Session::connect(dsn, SessionOptions::default()).await?;
        let backends = sessions.iter().map(Session::backend).collect();
        let watcher = tokio::spawn(watcher::watch(watching, backends, options, shared.clone()));
        let encoding = facts.encoding.clone().filter(|encoding| encoding != "UTF8");
        let readers = sessions
            .into_iter()
            .map(|session| Reader { session, shared: shared.clone(), encoding: encoding.clone() })
            .collect();
        let Opened { catalog, visibility, taken_at, exported, token } = opened;
        Ok(Self { readers, catalog, facts, visibility, taken_at, exported, token, shared, watcher })
    }

    /// Resolves when the readers must stop, with the reason: [`PostgresError::Yielded`], [`PostgresError::TooOld`],
    /// [`PostgresError::Unwatched`] or [`PostgresError::Cancelled`].
    pub async fn must_end(&self) -> PostgresError {
        self.shared.stop.cancelled().await;
        self.shared.explain(PostgresError::Cancelled)
    }

    /// Says why, when the watcher ended the transactions.
    pub fn explain(&self, error: PostgresError) -> PostgresError {
        self.shared.explain(error)
    }
}

/// What is left at the marker after each export.
pub struct Leave<'a> {
    pub marker: &'a Marker,
    /// The token of the snapshot that this one believes.
    pub believed: Option<Token>,
}

struct Opened {
    catalog: Catalog,
    visibility: Visibility,
    taken_at: String,
    exported: String,
    token: Option<Token>,
}

enum Attempt {
    Opened(Box<Opened>),
    /// Somebody holds a stronger lock.
    LocksTaken,
    /// A table came, went or was replaced.
    Changed,
}

/// One round of the protocol. Leaves no transaction behind unless it opened; gives up sessions when locks are scarce.
async fn attempt(
    sessions: &mut Vec<Session>,
    facts: &ServerFacts,
    marker: Option<&Leave<'_>>,
    monitor: &SharedMonitor,
) -> Result<Attempt, PostgresError> {
    let tables = catalog::relations(&sessions[0]).await?;
    afford(sessions, facts, tables.len(), monitor)?;
    match protocol(sessions, &tables, marker).await {
        Ok(Some(opened)) => Ok(Attempt::Opened(Box::new(opened))),
        Ok(None) => roll_back(sessions).await.map(|()| Attempt::Changed),
        Err(error) => match error.sqlstate() {
            Some("55P03" | "40P01") => roll_back(sessions).await.map(|()| Attempt::LocksTaken),
            // The table, its schema or the right to it went since the list was read; or it became a view.
            Some("42P01" | "3F000" | "42501" | "42809") => roll_back(sessions).await.map(|()| Attempt::Changed),
            Some("53200") if sessions.len() > 1 => {
                roll_back(sessions).await?;
                let fewer = sessions.len() / 2;
                sessions.truncate(fewer);
                monitor.warn(&format!(
                    "the server's table of locks is full: reading {} tables with {fewer} readers; more \
                     max_locks_per_transaction would help",
                    tables.len()
                ));
                Ok(Attempt::Changed)
            }
            Some("53200") => Err(out_of_locks(facts, tables.len())),
            _ => Err(error),
        },
    }
}

async fn roll_back(sessions: &[Session]) -> Result<(), PostgresError> {
    for session in sessions {
        session.execute("giving the locks back", "ROLLBACK").await?;
    }
    Ok(())
}

/// How many locks all sessions of the server share (`lock.c`, `NLOCKENTS`).
fn slots(facts: &ServerFacts) -> u64 {
    let sessions = facts.max_connections.unwrap_or(100) + facts.max_prepared_transactions.unwrap_or(0);
    u64::from(facts.max_locks_per_transaction.unwrap_or(64)) * u64::from(sessions)
}

fn out_of_locks(facts: &ServerFacts, tables: usize) -> PostgresError {
    let per_transaction = u64::from(facts.max_locks_per_transaction.unwrap_or(64));
    let slots = slots(facts);
    // Two readers in half of the room.
    let needed = (tables as u64 * 4).div_ceil((slots / per_transaction.max(1)).max(1));
    PostgresError::OutOfLocks { tables, slots, per_transaction, needed }
}

/// Lets readers go until all their locks fit in half of the server's room: the other half is for the applications, whose statements
/// fail with "out of shared memory" when we fill it.
fn afford(
    sessions: &mut Vec<Session>,
    facts: &ServerFacts,
    tables: usize,
    monitor: &SharedMonitor,
) -> Result<(), PostgresError> {
    let room = slots(facts) / 2;
    let affordable = usize::try_from(room / (tables as u64).max(1)).unwrap_or(usize::MAX);
    if affordable == 0 && tables as u64 > slots(facts) {
        return Err(out_of_locks(facts, tables));
    }
    let affordable = affordable.max(1);
    if sessions.len() > affordable {
        monitor.warn(&format!(
            "reading with {affordable} instead of {} readers: each locks {tables} tables, and the server has room for {} locks; \
             more max_locks_per_transaction would help",
            sessions.len(),
            slots(facts)
        ));
        sessions.truncate(affordable);
    }
    Ok(())
}

/// `None` when the snapshot shows other tables than are locked.
async fn protocol(
    sessions: &[Session],
    tables: &[(TableName, u32)],
    marker: Option<&Leave<'_>>,
) -> Result<Option<Opened>, PostgresError> {
    for session in sessions {
        session.execute("beginning to read", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    }
    for batch in tables.chunks(LOCK_BATCH) {
        // Partitions are locked by their own names.
        let names: Vec<String> = batch.iter().map(|(name, _)| format!("ONLY {}", name.quoted())).collect();
        let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        for session in sessions {
            session.execute("locking the tables", &lock).await?;
        }
    }
    // From here on no locked table can be dropped, renamed, truncated or rewritten.
    let first = &sessions[0];
    let export = "SELECT pg_export_snapshot(), pg_current_snapshot()::text, \
         to_char(statement_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let row = first.client().query_one(export, &[]).await.map_err(PostgresError::server("exporting the snapshot"))?;
    let (exported, snapshot, taken_at): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let visibility = parse_visibility(&snapshot).ok_or_else(|| PostgresError::Answer {
        doing: "pg_current_snapshot()".to_owned(),
        reason: format!("{snapshot:?} is no snapshot"),
    })?;
    let token = match marker {
        Some(leave) => leave.marker.set(leave.believed, first).await?,
        None => None,
    };
    for session in &sessions[1..] {
        let import = format!("SET TRANSACTION SNAPSHOT '{exported}'");
        session.execute("taking over the snapshot", &import).await?;
    }
    let seen = catalog::relations(first).await?;
    if seen != tables {
        return Ok(None);
    }
    // A schema can be renamed under our locks, so that a name led elsewhere: ask what is locked indeed.
    let held =
        "SELECT DISTINCT relation FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted";
    for session in sessions {
        let rows = session.client().query(held, &[]).await.map_err(PostgresError::server("asking for our locks"))?;
        let locked: BTreeSet<u32> = rows.iter().map(|row| row.get(0)).collect();
        if !seen.iter().all(|(_, oid)| locked.contains(oid)) {
            return Ok(None);
        }
    }
    let mut catalog = catalog::read(first).await?;
    catalog::read_sequence_values(first, &mut catalog.sequences).await?;
    Ok(Some(Opened { catalog, visibility, taken_at, exported, token }))
}

/// `xmin:xmax:a,b,c`.
fn parse_visibility(text: &str) -> Option<Visibility> {
    let mut parts = text.split(':');
    let xmin = parts.next()?.parse().ok()?;
    let xmax = parts.next()?.parse().ok()?;
    let open = parts.next()?;
    let in_progress =
        open.split(',').filter(|_| !open.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
    Some(Visibility { xmin, xmax, in_progress })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_with_and_without_open_transactions() {
        let some = Visibility { xmin: 10, xmax: 20, in_progress: vec![10, 14] };
        assert_eq!(parse_visibility("10:20:10,14"), Some(some));
        assert_eq!(parse_visibility("7:7:"), Some(Visibility { xmin: 7, xmax: 7, in_progress: vec![] }));
        assert_eq!(parse_visibility("7:7"), None);
        assert_eq!(parse_visibility("7:7:x"), None);
    }
}
