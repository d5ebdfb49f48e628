//! The marker: by it the next snapshot knows that the server's history was not set back.
//!
//! A row version is named by its place and its transaction (`ctid`, `xmin`) only as long as history goes forward. A data directory
//! that was set back to a copy, and asynchronous commits that a crash lost, hand the same names out again (both tried). So each
//! attempt at a snapshot leaves a random token right after its export, and the next one believes only a snapshot whose token it finds.
//! The COMMIT flushes all WAL before it, that of every transaction that the snapshot sees among it.
//!
//! An attempt that fails leaves its token all the same. So there are two sequences: one with the last token, and one with the token
//! of the last snapshot that the attempt which left it had believed.
//!
//! Sequences, because a table would become part of publications `FOR ALL TABLES` and break their subscribers (tried). A token is
//! drawn past with `nextval` once: `pg_dump` carries `last_value` and not `log_cnt`, so a marker that was loaded from a dump does not
//! show its token, while that of a server that recovered or follows (`sequence.c`, `SEQ_LOG_VALS`) does.

use super::catalog::OWN_SCHEMA;
use super::dsn::Dsn;
use super::error::PostgresError;
use super::session::{ServerFacts, Session, SessionOptions};
use super::sql;
use crate::failpoint;

/// `nextval` writes so many numbers ahead into the WAL.
const LOGGED_AHEAD: i64 = 32;

/// What a sequence was set to.
pub type Token = i64;

/// A session that reads and sets the marker of one repository.
pub struct Marker {
    session: Session,
    /// With the last token, and with the one that was believed.
    sequences: [String; 2],
    /// What earlier attempts left there, the last one first.
    pub found: Vec<Token>,
}

impl Marker {
    /// Makes the sequences if they are not there; in place of the marker the reason why there can be none.
    pub async fn open(dsn: &Dsn, repository: &str) -> Result<(ServerFacts, Result<Self, String>), PostgresError> {
        let session = Session::connect(dsn, SessionOptions::default()).await?;
        let facts = session.facts().await?;
        if facts.is_in_recovery {
            return Ok((facts, Err("the server is a standby, on which nothing can be written".to_owned())));
        }
        let names = ["marker", "believed"].map(|name| format!("{name}_{}", repository.get(..16).unwrap_or(repository)));
        let sequences = [0, 1].map(|at| sql::qualified(OWN_SCHEMA, &names[at]));
        let asked = async {
            session.execute("preparing the marker", "SET synchronous_commit = local").await?;
            let mut found = Vec::new();
            for (name, sequence) in names.iter().zip(&sequences) {
                // By the catalog first: IF NOT EXISTS wants the right to create even where nothing is to be created.
                let known = "SELECT has_sequence_privilege(c.oid, 'UPDATE') AND has_sequence_privilege(c.oid, 'SELECT') FROM pg_class c \
                             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'S'";
                let failed = PostgresError::server("looking for the marker");
                let known = session.client().query_opt(known, &[&OWN_SCHEMA, name]).await.map_err(failed)?;
                match known.map(|row| row.get::<_, bool>(0)) {
                    Some(true) => found.push(read(&session, sequence).await?),
                    Some(false) => return Ok::<_, PostgresError>(Err(format!("no right to set {sequence}"))),
                    None => {
                        let create = format!("CREATE SEQUENCE IF NOT EXISTS {sequence} AS bigint");
                        failpoint::committing(session.execute("making the marker", &create)).await?;
                    }
                }
            }
            Ok(Ok(found))
        };
        match asked.await {
            Ok(found) => Ok((facts, found.map(|found| Self { session, sequences, found }))),
            // No schema, no right in it, or the sequence is another role's.
            Err(error) if matches!(error.sqlstate(), Some("42501" | "3F000")) => Ok((facts, Err(error.to_string()))),
            Err(error) => Err(error),
        }
    }

    /// Leaves a new token, and the one that is believed. All that was committed before is flushed when this returns.
    /// `None`: there is none to be believed, because `reader` is connected with another server and does not see it, or nothing is random.
    pub async fn set(&self, believed: Option<Token>, reader: &Session) -> Result<Option<Token>, PostgresError> {
        let mut bytes = [0; 8];
        if aws_lc_rs::rand::fill(&mut bytes).is_err() {
            return Ok(None);
        }
        let token = (i64::from_le_bytes(bytes) & (i64::MAX >> 2)) + 1;
        let [last, before] = self.sequences.each_ref().map(|sequence| sql::literal(sequence));
        // Should the server die between the two, the last token is still that of the attempt before.
        let believed = believed.unwrap_or(token);
        let sql = format!(
            "BEGIN; SELECT setval({before}, {believed}); SELECT nextval({before}); SELECT setval({last}, {token}); SELECT nextval({last}); COMMIT"
        );
        failpoint::committing(self.session.execute("setting the marker", &sql)).await?;
        Ok((read(reader, &self.sequences[0]).await? == token).then_some(token))
    }
}

/// Without a marker, on a primary: flushes all WAL that was written before, with a message in it that nobody reads. `false` when the role may not.
pub async fn flush(dsn: &Dsn) -> Result<bool, PostgresError> {
    let session = Session::connect(dsn, SessionOptions::default()).await?;
    session.execute("flushing the WAL", "SET synchronous_commit = local").await?;
    let message = session.execute("flushing the WAL", "SELECT pg_logical_emit_message(true, 'restante', '')");
    match failpoint::committing(message).await {
        Err(error) if error.sqlstate() == Some("42501") => Ok(false),
        done => done.map(|()| true),
    }
}

async fn read(session: &Session, sequence: &str) -> Result<Token, PostgresError> {
    let sql = format!("SELECT last_value, log_cnt FROM {sequence}");
    let row = session.client().query_one(&sql, &[]).await.map_err(PostgresError::server("reading the marker"))?;
    let (last, logged): (i64, i64) = (row.get(0), row.get(1));
    // Drawn once; of what was written ahead, a server that recovered knows the end alone.
    Ok(if logged > 0 { last - 1 } else { last - 1 - LOGGED_AHEAD })
}
