//! The live side: narrow columns of whole tables, and whole rows of a few, by `COPY (SELECT …) TO STDOUT (FORMAT binary)`.
//!
//! Nothing is written, not even a temporary table, so a hot standby will do.

use futures_util::StreamExt;
use tokio_postgres::Statement;

use super::error::CompareError;
use crate::postgres::PostgresError;
use crate::postgres::copy::FrameSplitter;
use crate::postgres::session::Session;

/// Takes one row after the other; `None` is NULL.
pub type LiveSink<'a> = dyn FnMut(&[Option<&[u8]>]) -> Result<(), CompareError> + Send + 'a;

/// Runs `select`, text in the encoding that the session carries, and gives each of its rows, of `fields` fields, to `sink`.
pub async fn copy(
    session: &Session,
    doing: &str,
    select: &str,
    fields: usize,
    sink: &mut LiveSink<'_>,
) -> Result<(), CompareError> {
    let failed = |error| PostgresError::server(doing)(error);
    let sql = format!("COPY ({select}) TO STDOUT (FORMAT binary)");
    let work = async |statement: &Statement| {
        let mut stream = Box::pin(session.client().copy_out(statement).await.map_err(failed)?);
        let mut splitter = FrameSplitter::new(fields as u16);
        let mut bounds = Vec::new();
        loop {
            while let Some(row) = splitter.next(&mut bounds).map_err(PostgresError::from)? {
                let cells: Vec<Option<&[u8]>> = bounds.iter().map(|field| field.of(&row)).collect();
                sink(&cells)?;
            }
            match stream.next().await {
                Some(piece) => splitter.push(piece.map_err(failed)?),
                None => {
                    splitter.finish().map_err(PostgresError::from)?;
                    return Ok(());
                }
            }
        }
    };
    session.encoded(doing, &sql, work).await
}

/// One instant of the live store for all that follows, without a lock that anybody would wait for.
pub async fn begin(session: &Session) -> Result<(), CompareError> {
    Ok(session.execute("reading the live store", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
}

pub async fn end(session: &Session) -> Result<(), CompareError> {
    Ok(session.execute("reading the live store", "COMMIT").await?)
}
