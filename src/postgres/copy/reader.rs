//! Reading ranges of a table's heap blocks as COPY BINARY.

use std::fmt::{self, Write as _};
use std::pin::Pin;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio_postgres::CopyOutStream;

use super::frames::{FieldBounds, FrameError, FrameSplitter};
use crate::postgres::catalog::{Column, TableName, Wire};
use crate::postgres::error::PostgresError;
use crate::postgres::reading::Reader;
use crate::postgres::sql;

/// Heap blocks from `from` on, up to and without `to`; `None` reads to the end, wherever that is by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockRange {
    pub from: u32,
    pub to: Option<u32>,
}

impl BlockRange {
    /// The whole table.
    pub const ALL: Self = Self { from: 0, to: None };
}

/// Where a row version lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tid {
    pub block: u32,
    /// From 1.
    pub offset: u16,
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.block, self.offset)
    }
}

/// A row as it came.
#[derive(Debug, Clone)]
pub struct CopiedRow {
    pub tid: Tid,
    /// The raw 32-bit transaction id that made this version.
    pub xmin: u32,
    /// The whole frame, count of fields, ctid and xmin included.
    pub bytes: Bytes,
}

/// In front of the table's columns in every row: ctid and xmin.
pub const IDENTITY_FIELDS: usize = 2;

/// Rows on their way. Either take them to the end or [`CopyRows::cancel`]: a stream that is merely dropped is drained by
/// the connection first.
pub struct CopyRows<'a> {
    reader: &'a Reader,
    stream: Pin<Box<CopyOutStream>>,
    splitter: FrameSplitter,
    ended: bool,
    doing: String,
}

impl Reader {
    /// Reads `columns` of the rows in a range of blocks, in the order of the heap. No column reads ctid and xmin alone,
    /// which never touches TOAST.
    pub async fn copy_range(
        &self,
        table: &TableName,
        columns: &[&Column],
        range: BlockRange,
    ) -> Result<CopyRows<'_>, PostgresError> {
        self.copy_from(table, columns, Tid { block: range.from, offset: 0 }, range.to).await
    }

    /// As [`Reader::copy_range`], but from a place within a block on.
    pub async fn copy_from(
        &self,
        table: &TableName,
        columns: &[&Column],
        from: Tid,
        to: Option<u32>,
    ) -> Result<CopyRows<'_>, PostgresError> {
        let mut condition = format!("ctid >= '{from}'");
        if let Some(to) = to {
            // Writing to a String cannot fail.
            let _ = write!(condition, " AND ctid < '({to},0)'");
        }
        self.copy(table, columns, &condition).await
    }

    /// Reads single rows by their places; those that are not visible are left out.
    pub async fn copy_tids(
        &self,
        table: &TableName,
        columns: &[&Column],
        tids: &[Tid],
    ) -> Result<CopyRows<'_>, PostgresError> {
        let mut list = String::with_capacity(tids.len() * 12);
        for tid in tids {
            let separator = if list.is_empty() { "" } else { "," };
            let _ = write!(list, "{separator}\"{tid}\"");
        }
        self.copy(table, columns, &format!("ctid = ANY ('{{{list}}}'::tid[])")).await
    }

    async fn copy(
        &self,
        table: &TableName,
        columns: &[&Column],
        condition: &str,
    ) -> Result<CopyRows<'_>, PostgresError> {
        let doing = format!("reading {table}");
        let mut list = String::from("ctid, xmin");
        for column in columns {
            let cast = if column.wire == Wire::Text { "::text" } else { "" };
            let _ = write!(list, ", {}{cast}", sql::identifier(&column.name));
        }
        let quoted = table.quoted();
        let copy = format!("COPY (SELECT {list} FROM ONLY {quoted} WHERE {condition}) TO STDOUT (FORMAT binary)");
        let fields = u16::try_from(columns.len() + IDENTITY_FIELDS).unwrap_or(u16::MAX);
        let work = async {
            let client = self.session().client();
            if self.encoding.is_some() {
                self.session().execute(&doing, "SET LOCAL client_encoding = 'UTF8'").await?;
            }
            let statement = client.prepare(&copy).await.map_err(PostgresError::server(doing.clone()))?;
            if let Some(encoding) = &self.encoding {
                // Names went as UTF-8; values come as they are stored, so that nothing fails to convert.
                let set = format!("SET LOCAL client_encoding = {}", sql::literal(encoding));
                self.session().execute(&doing, &set).await?;
            }
            client.copy_out(&statement).await.map_err(PostgresError::server(doing.clone()))
        };
        let stream = self.session().until(self.stop_token(), work).await.map_err(|error| self.explain(error))?;
        Ok(CopyRows {
            reader: self,
            stream: Box::pin(stream),
            splitter: FrameSplitter::new(fields),
            ended: false,
            doing,
        })
    }
}

impl CopyRows<'_> {
    /// The next row. `bounds` is cleared and filled with the places of the table's columns (ctid and xmin left out); use
    /// one vector for all rows. `None` only after the server's end mark was seen.
    pub async fn next(&mut self, bounds: &mut Vec<FieldBounds>) -> Result<Option<CopiedRow>, PostgresError> {
        loop {
            if let Some(bytes) = self.splitter.next(bounds)? {
                let row = self.splitter.rows();
                let identity = identity(&bytes, bounds).ok_or(FrameError::RowIdentity { row })?;
                bounds.drain(..IDENTITY_FIELDS);
                return Ok(Some(CopiedRow { tid: identity.0, xmin: identity.1, bytes }));
            }
            if self.ended {
                self.splitter.finish()?;
                return Ok(None);
            }
            let stop = self.reader.stop_token();
            let piece = tokio::select! {
                biased;
                // Cancelled on the server first: a dropped stream is read to its end by the connection.
                () = stop.cancelled() => {
                    self.reader.session().canceller().cancel().await;
                    return Err(self.reader.explain(PostgresError::Cancelled));
                }
                piece = self.stream.next() => piece,
            };
            match piece {
                Some(Ok(piece)) => self.splitter.push(piece),
                Some(Err(error)) => {
                    let error = PostgresError::server(self.doing.clone())(error);
                    return Err(self.reader.explain(error));
                }
                None => self.ended = true,
            }
        }
    }

    /// Rows so far; after `next` gave `None`, all of them.
    pub fn rows(&self) -> u64 {
        self.splitter.rows()
    }

    /// Stops early: cancels on the server, then lets the stream go.
    pub async fn cancel(self) {
        self.reader.session().canceller().cancel().await;
    }
}

fn identity(row: &[u8], bounds: &[FieldBounds]) -> Option<(Tid, u32)> {
    let ctid = bounds.first()?.of(row)?;
    let (block, offset) = ctid.split_first_chunk::<4>()?;
    let tid = Tid { block: u32::from_be_bytes(*block), offset: u16::from_be_bytes(offset.try_into().ok()?) };
    let xmin = bounds.get(1)?.of(row)?;
    Some((tid, u32::from_be_bytes(xmin.try_into().ok()?)))
}
