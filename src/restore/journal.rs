//! The journal of replays, in Restante's own schema of the live store.
//!
//! A row says: this message of a snapshot was put back, as that live row. It is written in the transaction that puts the row back, and
//! is unique over all replays, repositories and snapshots, so a crash, a second run or a second responder puts nothing back twice.
//! Accounts and mailboxes that a replay made stand beside it, with their new keys.
//! Prints are hashes over keys and times; no address and no content stands here, except that what a column held before it was put back stands
//! in `repaired`: no snapshot has it.

use serde::Serialize;

use super::columns::REPAIRED;
use super::error::ReplayError;
use super::plan::Plan;
use crate::compare::past::JOURNAL;
use crate::failpoint;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// What `grants --for restore` prints; the role that restores runs it itself when it may.
pub const DDL: &str = r#"CREATE SCHEMA IF NOT EXISTS restante;
CREATE TABLE IF NOT EXISTS restante.replay (
    id text PRIMARY KEY,
    repository text NOT NULL,
    snapshot text NOT NULL,
    asked text NOT NULL DEFAULT '',
    begun timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended timestamptz
);
CREATE TABLE IF NOT EXISTS restante.parent (
    source bytea NOT NULL,
    key text NOT NULL,
    replay text NOT NULL REFERENCES restante.replay (id),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (source, key)
);
CREATE TABLE IF NOT EXISTS restante.journal (
    entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source bytea NOT NULL,
    copy integer NOT NULL DEFAULT 0,
    replay text NOT NULL REFERENCES restante.replay (id),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    mailbox text NOT NULL,
    key text NOT NULL,
    uid bigint,
    restored bytea,
    state text,
    undone timestamptz,
    next_uid bigint,
    buried bytea
);
CREATE TABLE IF NOT EXISTS restante.repaired (
    entry bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    replay text NOT NULL REFERENCES restante.replay (id),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    mailbox text NOT NULL,
    key text NOT NULL,
    columns text[] NOT NULL,
    former text[] NOT NULL,
    state text,
    undone timestamptz
);
CREATE INDEX IF NOT EXISTS repaired_replay ON restante.repaired (replay);
CREATE UNIQUE INDEX IF NOT EXISTS journal_once ON restante.journal (source, copy) WHERE undone IS NULL;
CREATE INDEX IF NOT EXISTS journal_replay ON restante.journal (replay);
CREATE INDEX IF NOT EXISTS journal_restored ON restante.journal (restored);"#;

/// Makes sure that there is a journal.
pub async fn prepare(session: &Session) -> Result<(), ReplayError> {
    let failed = PostgresError::server("looking for the journal of replays");
    // The second is younger.
    let there =
        format!("SELECT num_nulls(pg_catalog.to_regclass('{JOURNAL}'), pg_catalog.to_regclass('{REPAIRED}')) = 0");
    if session.client().query_one(&there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
        return Ok(());
    }
    // Two responders may both find none.
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('restante journal', 0))";
    let sql = format!("BEGIN; {lock}; {DDL} COMMIT");
    match failpoint::committing(session.execute("making the journal of replays", &sql)).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let _ = session.execute("giving up", "ROLLBACK").await;
            // A full disk is nothing that an administrator's SQL would mend.
            let forbidden = error.sqlstate() == Some("42501");
            Err(if forbidden { ReplayError::NoJournal { message: error.to_string() } } else { error.into() })
        }
    }
}

/// A journal of an older version has no table of columns.
pub(super) async fn has_repaired(session: &Session) -> Result<bool, ReplayError> {
    let failed = PostgresError::server("looking for the journal of replays");
    let there = format!("SELECT pg_catalog.to_regclass('{REPAIRED}') IS NOT NULL");
    Ok(session.client().query_one(&there, &[]).await.map_err(failed)?.get(0))
}

/// One execution of a restore.
#[derive(Debug, Clone, Serialize)]
pub struct Replay {
    pub id: String,
    pub repository: String,
    pub snapshot: String,
    pub begun: String,
    /// Absent: it was cut short; running the restore again finishes the work.
    pub ended: Option<String>,
    pub restored: i64,
    pub undone: i64,
}

/// All replays, oldest first.
pub async fn replays(session: &Session) -> Result<Vec<Replay>, ReplayError> {
    let doing = "listing the replays";
    let there = format!("SELECT pg_catalog.to_regclass('{JOURNAL}') IS NOT NULL");
    if !session.client().query_one(&there, &[]).await.map_err(PostgresError::server(doing))?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let sql = "SELECT r.id, r.repository, r.snapshot, to_char(r.begun AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
         to_char(r.ended AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
         count(j.entry) FILTER (WHERE j.undone IS NULL), count(j.entry) FILTER (WHERE j.undone IS NOT NULL AND j.restored IS NOT NULL) \
         FROM restante.replay r LEFT JOIN restante.journal j ON j.replay = r.id GROUP BY r.id ORDER BY r.begun, r.id";
    let rows = session.client().query(sql, &[]).await.map_err(PostgresError::server(doing))?;
    let replay = |row: &tokio_postgres::Row| Replay {
        id: row.get(0),
        repository: row.get(1),
        snapshot: row.get(2),
        begun: row.get(3),
        ended: row.get(4),
        restored: row.get(5),
        undone: row.get(6),
    };
    Ok(rows.iter().map(replay).collect())
}

/// Locked by the session that runs a replay, for as long as it lives.
const ALIVE: &str = "hashtextextended('restante replay ' || id, 0)";

/// What tells replays apart that were asked for the same: a restore that is run again goes on with the one that was cut short.
fn same(plan: &Plan) -> [&str; 3] {
    let facts = &plan.comparison.facts;
    [&facts.repository, &facts.snapshot, &plan.asked]
}

/// Begins a replay: a name by which people undo it.
pub(super) async fn begin(session: &Session, plan: &Plan) -> Result<String, ReplayError> {
    let sql = format!(
        "WITH begun AS (INSERT INTO restante.replay (id, repository, snapshot, asked) \
         VALUES (to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD\"T\"HH24MISS') || '-' \
         || left(replace(gen_random_uuid()::text, '-', ''), 6), $1, $2, $3) RETURNING id) \
         SELECT id, pg_advisory_lock({ALIVE})::text FROM begun"
    );
    let [repository, snapshot, asked] = same(plan);
    let row = failpoint::committing(session.client().query_one(&sql, &[&repository, &snapshot, &asked])).await;
    Ok(row.map_err(PostgresError::server("beginning the replay"))?.get(0))
}

/// Replays that were asked for the same and whose session is gone before their end: what is left of them is this run's to do.
pub(super) async fn cut_short(session: &Session, plan: &Plan) -> Result<Vec<String>, ReplayError> {
    let failed = || PostgresError::server("looking for replays that were cut short");
    let there = format!("SELECT pg_catalog.to_regclass('{JOURNAL}') IS NOT NULL");
    if !session.client().query_one(&there, &[]).await.map_err(failed())?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT id FROM restante.replay WHERE ended IS NULL AND repository = $1 AND snapshot = $2 AND asked = $3 \
         AND pg_try_advisory_xact_lock({ALIVE}) ORDER BY begun, id"
    );
    let [repository, snapshot, asked] = same(plan);
    let rows = session.client().query(&sql, &[&repository, &snapshot, &asked]).await.map_err(failed())?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

pub(super) async fn end(session: &Session, replays: &[String]) -> Result<(), ReplayError> {
    let sql = "UPDATE restante.replay SET ended = clock_timestamp() WHERE id = ANY($1) AND ended IS NULL";
    let ended = failpoint::committing(session.client().execute(sql, &[&replays])).await;
    ended.map_err(PostgresError::server("ending the replay"))?;
    Ok(())
}
