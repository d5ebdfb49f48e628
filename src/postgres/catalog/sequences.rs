//! The values of sequences. They are not part of any snapshot: read after the export, they are at least what the rows of
//! the snapshot used.

use std::fmt::Write as _;

use super::{Sequence, SequenceValue};
use crate::postgres::error::PostgresError;
use crate::postgres::session::Session;

/// Sequences in one statement: the planner's work grows with the square of a long UNION.
const BATCH: usize = 100;

/// Fills in the values, inside the session's open transaction. A sequence that is gone or unreadable stays without.
pub async fn read_values(session: &Session, sequences: &mut [Sequence]) -> Result<(), PostgresError> {
    for batch in sequences.chunks_mut(BATCH) {
        // Sequences cannot be locked: one that is dropped meanwhile fails its batch, which is then read one by one.
        if !attempt(session, batch).await? && batch.len() > 1 {
            for sequence in batch {
                attempt(session, std::slice::from_mut(sequence)).await?;
            }
        }
    }
    Ok(())
}

async fn attempt(session: &Session, batch: &mut [Sequence]) -> Result<bool, PostgresError> {
    let mut sql = String::new();
    for (at, sequence) in batch.iter().enumerate().filter(|(_, sequence)| sequence.readable) {
        let union = if sql.is_empty() { "" } else { " UNION ALL " };
        // Writing to a String cannot fail.
        let _ = write!(sql, "{union}SELECT {at}::int4, last_value, is_called FROM {}", sequence.name.quoted());
    }
    if sql.is_empty() {
        return Ok(true);
    }
    let doing = "reading the sequences";
    session.execute(doing, "SAVEPOINT restante_sequences").await?;
    match session.client().query(&sql, &[]).await {
        Ok(rows) => {
            for row in rows {
                let at = usize::try_from(row.get::<_, i32>(0)).unwrap_or_default();
                if let Some(sequence) = batch.get_mut(at) {
                    sequence.value = Some(SequenceValue { last_value: row.get(1), is_called: row.get(2) });
                }
            }
            session.execute(doing, "RELEASE restante_sequences").await?;
            Ok(true)
        }
        // The object is gone, is no longer a sequence, or the right to it.
        Err(error)
            if error
                .code()
                .is_some_and(|code| matches!(code.code(), "42P01" | "3F000" | "42501" | "42703" | "42809")) =>
        {
            session.execute(doing, "ROLLBACK TO restante_sequences").await?;
            Ok(false)
        }
        Err(error) => Err(PostgresError::server(doing)(error)),
    }
}
