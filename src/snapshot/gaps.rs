//! Rows and blocks that the server cannot read: a row over 1 GiB, which no protocol carries, damaged TOAST, a damaged page.
//! Without this one such row would keep all the others out of the backup. They are named in the snapshot, which is then
//! not complete; everything else is taken.
//!
//! COPY sends every row before the one that fails, so the next visible row after the last that came is the culprit. Each
//! attempt runs behind a savepoint, because an error ends a transaction, and with it our locks and the snapshot.

use super::SnapshotError;
use crate::postgres::PostgresError;
use crate::postgres::catalog::{Column, Table, TableName};
use crate::postgres::copy::Tid;
use crate::postgres::reading::Reader;
use crate::repository::manifest::NotCovered;

/// COPY of the segment before may have left another encoding, and names in our questions are UTF-8.
pub const SAVEPOINT: &str = "SET LOCAL client_encoding = 'UTF8'; SAVEPOINT restante_segment";
pub const RELEASE: &str = "RELEASE SAVEPOINT restante_segment";
pub const ROLL_BACK: &str = "ROLLBACK TO SAVEPOINT restante_segment";

/// So many gaps of a table are named one by one.
const NAMED: usize = 100;
/// A row that cannot be read with others but can alone is tried again so often.
const PATIENCE: u32 = 3;

/// Something that could not be read, and the server's reason.
pub enum Gap {
    Row(Tid, String),
    Block(u32, String),
}

pub fn not_covered(table: &TableName, gaps: Vec<Gap>) -> Vec<NotCovered> {
    let more = gaps.len().saturating_sub(NAMED);
    let mut list: Vec<NotCovered> = gaps
        .into_iter()
        .take(NAMED)
        .map(|gap| match gap {
            Gap::Row(tid, reason) => NotCovered { object: format!("row {tid} of table {table}"), reason },
            Gap::Block(block, reason) => NotCovered { object: format!("block {block} of table {table}"), reason },
        })
        .collect();
    if more > 0 {
        let reason = "could not be read either".to_owned();
        list.push(NotCovered { object: format!("{more} more rows or blocks of table {table}"), reason });
    }
    list
}

/// The place behind a row.
pub fn after(tid: Tid) -> Tid {
    match tid.offset.checked_add(1) {
        Some(offset) => Tid { block: tid.block, offset },
        None => Tid { block: tid.block.saturating_add(1), offset: 0 },
    }
}

/// `(block,offset)`.
fn parse(text: &str) -> Option<Tid> {
    let (block, offset) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(Tid { block: block.parse().ok()?, offset: offset.parse().ok()? })
}

/// Finds the way around what cannot be read.
pub struct Detour<'a> {
    reader: &'a Reader,
    table: &'a Table,
    columns: &'a [&'a Column],
    end: Option<u32>,
    /// Attempts that changed nothing.
    idle: u32,
}

impl<'a> Detour<'a> {
    pub fn new(reader: &'a Reader, table: &'a Table, columns: &'a [&'a Column], end: Option<u32>) -> Self {
        Self { reader, table, columns, end, idle: 0 }
    }

    /// After `error` at the first row from `from` on: what to leave out, and where to go on.
    pub async fn around(&mut self, from: Tid, error: PostgresError) -> Result<(Option<Gap>, Tid), SnapshotError> {
        self.roll_back().await?;
        match self.first_row(from).await {
            Ok(Some(tid)) => match self.reads(tid).await {
                Ok(()) => self.again(tid, error),
                Err(e) if e.is_about_data() => {
                    self.roll_back().await?;
                    self.idle = 0;
                    Ok((Some(Gap::Row(tid, e.to_string())), after(tid)))
                }
                Err(e) => Err(e.into()),
            },
            Ok(None) => self.again(from, error),
            Err(e) if e.is_about_data() => {
                self.roll_back().await?;
                self.idle = 0;
                let (block, reason) = self.bad_block(from.block).await?.unwrap_or((from.block, e.to_string()));
                Ok((Some(Gap::Block(block, reason)), Tid { block: block.saturating_add(1), offset: 0 }))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn again(&mut self, from: Tid, error: PostgresError) -> Result<(Option<Gap>, Tid), SnapshotError> {
        self.idle += 1;
        if self.idle > PATIENCE { Err(error.into()) } else { Ok((None, from)) }
    }

    async fn roll_back(&self) -> Result<(), PostgresError> {
        self.reader.session().execute("going on behind an error", ROLL_BACK).await.map_err(|e| self.reader.explain(e))
    }

    /// The first visible row from `from` on; no column of it is touched.
    async fn first_row(&self, from: Tid) -> Result<Option<Tid>, PostgresError> {
        let doing = format!("looking for the next row of {}", self.table.name);
        let end = self.end.map(|end| format!(" AND ctid < '({end},0)'")).unwrap_or_default();
        let table = self.table.name.quoted();
        let sql = format!("SELECT ctid::text FROM ONLY {table} WHERE ctid >= '{from}'{end} LIMIT 1");
        let row = self.reader.session().client().query_opt(&sql, &[]).await.map_err(PostgresError::server(&*doing))?;
        row.map(|row| {
            let text: &str = row.get(0);
            parse(text).ok_or_else(|| PostgresError::Answer { doing, reason: format!("{text:?} is no ctid") })
        })
        .transpose()
    }

    async fn reads(&self, tid: Tid) -> Result<(), PostgresError> {
        let mut rows = self.reader.copy_tids(&self.table.name, self.columns, &[tid]).await?;
        while rows.next(&mut Vec::new()).await?.is_some() {}
        Ok(())
    }

    /// The first block from `from` on that cannot be read.
    async fn bad_block(&self, from: u32) -> Result<Option<(u32, String)>, SnapshotError> {
        let session = self.reader.session();
        let size = format!("SELECT pg_relation_size({}) / current_setting('block_size')::int8", self.table.oid);
        let blocks: i64 =
            session.client().query_one_scalar(&size, &[]).await.map_err(PostgresError::server("measuring a table"))?;
        let end = self.end.unwrap_or(u32::try_from(blocks).unwrap_or(u32::MAX));
        for block in from..end {
            let start = Tid { block, offset: 0 };
            let tried = async {
                let mut rows = self.reader.copy_from(&self.table.name, &[], start, Some(block + 1)).await?;
                while rows.next(&mut Vec::new()).await?.is_some() {}
                Ok::<_, PostgresError>(())
            };
            match tried.await {
                Ok(()) => {}
                Err(e) if e.is_about_data() => {
                    self.roll_back().await?;
                    return Ok(Some((block, e.to_string())));
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hundreds_of_damaged_rows_are_counted_not_listed() {
        let table = TableName { schema: "public".into(), name: "t".into() };
        let gaps = (0..250).map(|block| Gap::Block(block, "damaged".into())).collect();
        let list = not_covered(&table, gaps);
        assert_eq!(list.len(), 101);
        assert_eq!(list[100].object, "150 more rows or blocks of table public.t");
    }

    #[test]
    fn a_place_is_read_as_the_server_writes_it() {
        assert_eq!(parse("(4294967294,17)"), Some(Tid { block: 4_294_967_294, offset: 17 }));
        assert_eq!(parse("(1,x)"), None);
    }

    #[test]
    fn the_place_after_the_last_of_a_block_is_in_the_next() {
        assert_eq!(after(Tid { block: 3, offset: u16::MAX }), Tid { block: 4, offset: 0 });
        assert_eq!(after(Tid { block: 3, offset: 7 }), Tid { block: 3, offset: 8 });
    }
}
