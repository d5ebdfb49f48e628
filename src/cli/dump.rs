//! `restante dump`

use std::io::{IsTerminal, Write};

use clap::Args;

use super::context::Context;
use super::exit::{Exit, UsageError};
use super::restore::find_table;
use crate::repository::snapshots::SnapshotReader;
use crate::repository::table_rows::TableRows;

/// Print the rows of a table from a snapshot, as COPY BINARY (for `COPY … FROM … (FORMAT binary)`)
#[derive(Args)]
pub struct Dump {
    /// Id prefix, latest, latest:tag=…, or @TIME
    snapshot: String,
    /// schema.table
    table: String,
}

/// Signature, flags, length of the extension (PostgreSQL documentation, COPY, "Binary Format").
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

impl Dump {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        if std::io::stdout().is_terminal() {
            return Err(UsageError("binary rows do not belong on a terminal: send them into a file".into()).into());
        }
        let repository = context.open_as_reader().await?;
        let snapshot = context.snapshot(&repository, &self.snapshot).await?;
        let table = find_table(&snapshot, &self.table)?;
        let reader = SnapshotReader::open(&repository, &snapshot).await?;
        let mut rows = TableRows::open(&reader, table).await?;
        let mut out = std::io::BufWriter::with_capacity(1 << 18, std::io::stdout().lock());
        out.write_all(HEADER)?;
        while let Some(batch) = rows.next_batch().await? {
            for row in batch {
                out.write_all(&(row.fields.len() as i16).to_be_bytes())?;
                for field in row.fields {
                    match field {
                        None => out.write_all(&(-1i32).to_be_bytes())?,
                        Some(bytes) => {
                            out.write_all(&(bytes.len() as i32).to_be_bytes())?;
                            out.write_all(&bytes)?;
                        }
                    }
                }
            }
        }
        out.write_all(&(-1i16).to_be_bytes())?;
        out.flush()?;
        Ok(Exit::Done)
    }
}
