//! Writing rows with COPY BINARY.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use tokio_postgres::{Client, CopyInSink};

use crate::postgres::catalog::TableName;
use crate::postgres::error::PostgresError;
use crate::postgres::sql;

/// Sent at once. The client library passes larger pieces on unbuffered, one at a time.
const SEND_BYTES: usize = 128 << 10;

/// Sends rows into a table. Rows arrive when [`CopyInWriter::finish`] returns; dropped before that, nothing does.
pub struct CopyInWriter {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    buffer: BytesMut,
    fields: i16,
    rows: u64,
    doing: String,
}

impl CopyInWriter {
    /// Begins `COPY table (columns) FROM STDIN (FORMAT binary)`. No column: a table that has none to be written.
    pub async fn begin(client: &Client, table: &TableName, columns: &[&str]) -> Result<Self, PostgresError> {
        Self::begin_encoded(client, table, columns, "UTF8").await
    }

    /// As [`CopyInWriter::begin`], for text in the given encoding. The session keeps that encoding: set it back after
    /// [`CopyInWriter::finish`].
    pub async fn begin_encoded(
        client: &Client,
        table: &TableName,
        columns: &[&str],
        encoding: &str,
    ) -> Result<Self, PostgresError> {
        let doing = format!("writing into {table}");
        let fail = || PostgresError::server(doing.clone());
        let list: Vec<String> = columns.iter().map(|column| sql::identifier(column)).collect();
        let list = if list.is_empty() { String::new() } else { format!(" ({})", list.join(", ")) };
        let copy = format!("COPY {}{list} FROM STDIN (FORMAT binary)", table.quoted());
        let statement = client.prepare(&copy).await.map_err(fail())?;
        if encoding != "UTF8" {
            // Names went as UTF-8; values go as they were stored.
            let set = format!("SET client_encoding = {}", sql::literal(encoding));
            client.batch_execute(&set).await.map_err(fail())?;
        }
        let sink = client.copy_in(&statement).await.map_err(fail())?;
        let mut buffer = BytesMut::with_capacity(SEND_BYTES + (16 << 10));
        buffer.put_slice(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
        // A table has at most 1,600 columns.
        let fields = i16::try_from(columns.len()).unwrap_or(i16::MAX);
        Ok(Self { sink: Box::pin(sink), buffer, fields, rows: 0, doing })
    }

    /// One row: as many fields as columns, in the binary form of the columns' types; `None` is NULL.
    pub async fn row<'f>(&mut self, fields: impl IntoIterator<Item = Option<&'f [u8]>>) -> Result<(), PostgresError> {
        self.buffer.put_i16(self.fields);
        let mut count = 0;
        for field in fields {
            count += 1;
            match field {
                None => self.buffer.put_i32(-1),
                Some(field) => {
                    let length =
                        i32::try_from(field.len()).map_err(|_| self.answer("a value is over 2 GiB".to_owned()))?;
                    self.buffer.put_i32(length);
                    // In pieces: two more copies of a value of 200 MB are two too many.
                    for piece in field.chunks(SEND_BYTES) {
                        self.buffer.put_slice(piece);
                        if self.buffer.len() >= SEND_BYTES {
                            self.send().await?;
                        }
                    }
                }
            }
        }
        if count != i32::from(self.fields) {
            return Err(self.answer(format!("a row has {count} fields instead of {}", self.fields)));
        }
        self.rows += 1;
        if self.buffer.len() >= SEND_BYTES { self.send().await } else { Ok(()) }
    }

    /// Ends the COPY; the number of rows, which the server has confirmed.
    pub async fn finish(mut self) -> Result<u64, PostgresError> {
        self.buffer.put_i16(-1);
        self.send().await?;
        let written = self.sink.as_mut().finish().await.map_err(PostgresError::server(self.doing.clone()))?;
        // A BEFORE trigger may drop rows: that is for the caller to see, never to pass over.
        if written != self.rows {
            return Err(self.answer(format!("{} rows were sent, {written} arrived", self.rows)));
        }
        Ok(written)
    }

    async fn send(&mut self) -> Result<(), PostgresError> {
        let piece = self.buffer.split().freeze();
        self.sink.send(piece).await.map_err(PostgresError::server(self.doing.clone()))
    }

    fn answer(&self, reason: String) -> PostgresError {
        PostgresError::Answer { doing: self.doing.clone(), reason }
    }
}
