//! A snapshot in memory, with the same wire bytes and the same boundary between small and large values as a repository.

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use restante::compare::CompareError;
use restante::compare::live;
use restante::compare::row::{Cell, LargeValue};
use restante::compare::source::{Facts, Numbers, Pick, RowSink, SegmentFacts, Source, SourceColumn, SourceTable};
use restante::postgres::catalog::{self, TableKind};
use restante::postgres::session::Session;
use restante::postgres::sql;
use restante::repository::id::Digest;
use restante::repository::manifest::{StoreIdentity, Wire};
use restante::repository::rows::INLINE_LIMIT;
use restante::repository::zone;

/// Few, so that a window of a small store leaves segments out.
const SEGMENT_ROWS: usize = 4;

pub struct MemorySource {
    facts: Facts,
    tables: HashMap<String, Vec<Vec<Option<Bytes>>>>,
}

impl MemorySource {
    pub async fn take(session: &Session) -> Self {
        let encoding = "SELECT current_setting('server_encoding')";
        let encoding: String = session.client().query_one(encoding, &[]).await.unwrap().get(0);
        session.carry(&encoding);
        live::begin(session).await.unwrap();
        let mut read = catalog::read(session).await.unwrap();
        catalog::read_sequence_values(session, &mut read.sequences).await.unwrap();
        let (mut tables, mut rows) = (Vec::new(), HashMap::new());
        for table in read.tables.iter().filter(|table| table.holds_rows() || table.kind == TableKind::Partitioned) {
            let columns: Vec<SourceColumn> = table
                .stored_columns()
                .map(|column| SourceColumn {
                    number: column.number,
                    name: column.name.clone(),
                    type_name: column.type_name.clone(),
                    wire: Wire::Binary,
                })
                .collect();
            let list: Vec<String> = columns.iter().map(|column| sql::identifier(&column.name)).collect();
            let select = format!("SELECT {} FROM {}", list.join(", "), table.name.quoted());
            let mut held: Vec<Vec<Option<Bytes>>> = Vec::new();
            live::copy(session, "taking a snapshot", &select, columns.len(), &mut |row| {
                held.push(row.iter().map(|field| field.map(Bytes::copy_from_slice)).collect());
                Ok(())
            })
            .await
            .unwrap();
            tables.push(SourceTable {
                name: table.name.clone(),
                columns,
                leaves: vec![table.name.clone()],
                rows: held.len() as u64,
            });
            rows.insert(table.name.to_string(), held);
        }
        let taken: String = session.client().query_one("SELECT now()::text", &[]).await.unwrap().get(0);
        live::end(session).await.unwrap();
        let sequences = read.sequences.iter().filter_map(|sequence| {
            let value = sequence.value?;
            Some((sequence.name.clone(), value.last_value - i64::from(!value.is_called)))
        });
        let facts = Facts {
            repository: "00".repeat(16),
            snapshot: "11".repeat(32),
            store: StoreIdentity { system_identifier: Some(1), database: "store".to_owned(), database_oid: 1 },
            taken: taken.parse().unwrap_or(jiff::Timestamp::UNIX_EPOCH),
            encoding,
            tables,
            sequences: sequences.collect(),
        };
        Self { facts, tables: rows }
    }

    fn large(&self, value: &LargeValue) -> Bytes {
        let table = &self.facts.tables[value.increment as usize];
        let (row, column) =
            (value.ordinal as usize / table.columns.len(), value.ordinal as usize % table.columns.len());
        self.tables[&table.name.to_string()][row][column].clone().unwrap()
    }
}

#[async_trait]
impl Source for MemorySource {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    async fn segments(&self, table: &SourceTable) -> Result<Vec<SegmentFacts>, CompareError> {
        let rows = &self.tables[&table.name.to_string()];
        let facts = rows.chunks(SEGMENT_ROWS).map(|rows| {
            let mut hash = blake3::Hasher::new();
            for field in rows.iter().flatten() {
                hash.update(&field.as_ref().map_or(-1, |bytes| bytes.len() as i64).to_le_bytes());
                hash.update(field.as_deref().unwrap_or_default());
            }
            let mut digest = Digest([0; 16]);
            digest.0.copy_from_slice(&hash.finalize().as_bytes()[..16]);
            let columns = table.columns.iter().enumerate().map(|(at, column)| {
                let time = match &*column.type_name {
                    "smallint" | "integer" | "bigint" => false,
                    "date" | "timestamp with time zone" | "timestamp without time zone" => true,
                    _ => return None,
                };
                let mut numbers = Numbers::default();
                for row in rows {
                    match row[at].as_deref().and_then(|field| zone::integer(field, time)) {
                        Some(number) => numbers.intervals.push((number, number)),
                        None => numbers.has_nulls = true,
                    }
                }
                Some(numbers)
            });
            SegmentFacts { rows: rows.len() as u64, digest, columns: columns.collect() }
        });
        Ok(facts.collect())
    }

    async fn scan(&self, table: &SourceTable, pick: Pick<'_>, sink: &mut RowSink<'_>) -> Result<(), CompareError> {
        let number = self.facts.tables.iter().position(|one| one.name == table.name).unwrap();
        let width = table.columns.len();
        for (at, row) in self.tables[&table.name.to_string()].iter().enumerate() {
            let cells: Vec<Cell<'_>> = row
                .iter()
                .enumerate()
                .map(|(column, field)| match field {
                    None => Cell::Null,
                    Some(bytes) if bytes.len() <= INLINE_LIMIT => Cell::Bytes(bytes),
                    Some(_) => {
                        Cell::Large(LargeValue { increment: number as u32, ordinal: (at * width + column) as u32 })
                    }
                })
                .collect();
            let is_picked = match pick {
                Pick::Segments(segments) => segments.contains(&(at / SEGMENT_ROWS)),
                pick => pick.holds(&cells),
            };
            if is_picked {
                sink(&cells)?;
            }
        }
        Ok(())
    }

    async fn lengths(&self, wanted: &[LargeValue]) -> Result<Vec<u64>, CompareError> {
        Ok(wanted.iter().map(|value| self.large(value).len() as u64).collect())
    }

    async fn is(&self, value: LargeValue, bytes: &[u8]) -> Result<bool, CompareError> {
        Ok(self.large(&value) == bytes)
    }

    async fn values(&self, wanted: &[LargeValue]) -> Result<Vec<Bytes>, CompareError> {
        Ok(wanted.iter().map(|value| self.large(value)).collect())
    }
}
