//! A store as `inspect` sees it: tables with their keys, how many rows they have, and a bounded sample of rows. It is the same whether a
//! live database or a snapshot was read.
//!
//! Of a value no more is kept than its length, a print to compare it by and its first bytes; nothing here shows them.

use bytes::Bytes;

use crate::postgres::catalog::{Catalog, ConstraintKind, TableKind, TableName};

/// Rows of each table that are looked at.
pub const SAMPLE_ROWS: usize = 2000;
/// First bytes of a value that are looked at: the header of a mail begins there.
pub const START_BYTES: usize = 2048;

#[derive(Debug, Default)]
pub struct Description {
    pub tables: Vec<Table>,
    pub sequences: Vec<Sequence>,
    pub not_seen: Vec<NotSeen>,
    /// In which the server writes a time without one, unless a client says otherwise. A snapshot does not tell.
    pub zone: Option<String>,
}

/// A table that nothing could be learnt of but what the catalog says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NotSeen {
    pub table: String,
    pub reason: String,
}

#[derive(Debug)]
pub struct Sequence {
    pub name: TableName,
    /// Does a column own it, or draw from it by default?
    pub drawn: bool,
    /// The number issued last.
    pub issued: Option<i64>,
}

#[derive(Debug)]
pub struct Table {
    pub name: TableName,
    pub columns: Vec<Column>,
    /// Places among `columns`.
    pub primary_key: Vec<usize>,
    /// Of unique constraints and plain unique indexes, the primary key among them.
    pub unique: Vec<Vec<usize>>,
    pub foreign_keys: Vec<ForeignKey>,
    pub triggers: Vec<String>,
    pub row_security: bool,
    /// How many rows there are, as far as is known.
    pub rows: Option<u64>,
    /// The sample has every row.
    pub whole: bool,
    pub sample: Vec<Vec<Value>>,
}

#[derive(Debug)]
pub struct Column {
    pub name: String,
    pub type_name: String,
    pub kind: Kind,
    pub not_null: bool,
    pub identity: bool,
    pub default: Option<String>,
}

#[derive(Debug)]
pub struct ForeignKey {
    pub columns: Vec<usize>,
    /// Place of the table in [`Description::tables`].
    pub table: usize,
    pub referenced: Vec<usize>,
}

/// What kind of values a column has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Integer,
    Boolean,
    /// With a zone.
    Instant,
    /// Without.
    Timestamp,
    Uuid,
    Text,
    Bytes,
    Other,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    /// Integers; times in microseconds since 1970; 0 and 1.
    Number(i64),
    Bytes {
        length: u64,
        /// Equal values have equal prints.
        print: u64,
        start: Bytes,
    },
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Null => "NULL",
            Self::Number(_) => "a number",
            Self::Bytes { .. } => "bytes",
        })
    }
}

impl Value {
    pub fn number(&self) -> Option<i64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    pub fn start(&self) -> Option<&[u8]> {
        if let Self::Bytes { start, .. } = self { Some(start) } else { None }
    }

    pub fn length(&self) -> Option<u64> {
        if let Self::Bytes { length, .. } = self { Some(*length) } else { None }
    }

    /// What it is compared by; `None` for NULL.
    pub fn print(&self) -> Option<u64> {
        match self {
            Self::Null => None,
            Self::Number(number) => Some(number.cast_unsigned()),
            Self::Bytes { print, .. } => Some(*print),
        }
    }

    /// Of a value of which only a beginning is at hand.
    pub fn of_start(length: u64, start: &[u8]) -> Self {
        let start = &start[..start.len().min(START_BYTES)];
        let hash = blake3::Hasher::new().update(&length.to_le_bytes()).update(start).finalize();
        let mut print = [0; 8];
        print.copy_from_slice(&hash.as_bytes()[..8]);
        Self::Bytes { length, print: u64::from_le_bytes(print), start: Bytes::copy_from_slice(start) }
    }

    /// As PostgreSQL's send functions write it. What is too short for its kind counts as NULL.
    pub fn of_binary(kind: Kind, type_name: &str, bytes: &[u8]) -> Self {
        let number = |bytes: &[u8]| match *bytes {
            [a] => Some(i64::from(a)),
            [a, b] => Some(i64::from(i16::from_be_bytes([a, b]))),
            [a, b, c, d] => Some(i64::from(i32::from_be_bytes([a, b, c, d]))),
            [a, b, c, d, e, f, g, h] => Some(i64::from_be_bytes([a, b, c, d, e, f, g, h])),
            _ => None,
        };
        match kind {
            Kind::Integer | Kind::Boolean => number(bytes).map_or(Self::Null, Self::Number),
            // PostgreSQL counts from 2000; infinities stay far away.
            Kind::Instant | Kind::Timestamp => {
                number(bytes).map_or(Self::Null, |time| Self::Number(time.saturating_add(946_684_800_000_000)))
            }
            Kind::Other if type_name == "jsonb" => Self::of_start(bytes.len() as u64, bytes.get(1..).unwrap_or(bytes)),
            _ => Self::of_start(bytes.len() as u64, bytes),
        }
    }
}

impl Kind {
    /// `type_name` as `format_type` writes it, of a domain that of its base.
    pub fn of(type_name: &str) -> Self {
        let word = type_name.rsplit_once('.').map_or(type_name, |(_, name)| name);
        match word.split('(').next().unwrap_or_default() {
            "smallint" | "integer" | "bigint" => Self::Integer,
            "boolean" => Self::Boolean,
            "timestamp" if type_name.ends_with("without time zone") => Self::Timestamp,
            "timestamp without time zone" => Self::Timestamp,
            "timestamp" | "timestamp with time zone" => Self::Instant,
            "uuid" => Self::Uuid,
            "text" | "character varying" | "character" | "citext" | "name" => Self::Text,
            "bytea" => Self::Bytes,
            _ => Self::Other,
        }
    }

    pub fn is_time(self) -> bool {
        matches!(self, Self::Instant | Self::Timestamp)
    }
}

impl Description {
    /// Of everything that a catalog says; without rows.
    pub fn of_catalog(catalog: &Catalog) -> Self {
        let tables: Vec<_> = catalog.tables.iter().filter(|table| is_told(table)).collect();
        let place = |name: &TableName| tables.iter().position(|table| table.name == *name);
        let default = |table: &TableName, column: &str| {
            let found =
                catalog.sensitive.defaults.iter().find(|one| one.column.table == *table && one.column.column == column);
            found.map(|one| one.expression.clone())
        };
        let described = tables.iter().map(|table| {
            let columns: Vec<Column> = table
                .stored_columns()
                .map(|column| {
                    let base = catalog.types.iter().find(|facts| facts.oid == column.type_oid);
                    let base = base.and_then(|facts| facts.base_type.as_ref());
                    Column {
                        name: column.name.clone(),
                        kind: Kind::of(base.unwrap_or(&column.type_name)),
                        type_name: column.type_name.clone(),
                        not_null: column.not_null,
                        identity: column.identity.is_some(),
                        default: default(&table.name, &column.name),
                    }
                })
                .collect();
            let at = |name: &String| columns.iter().position(|column| column.name == *name);
            let places = |names: &[String]| names.iter().map(at).collect::<Option<Vec<usize>>>();
            let keys = table
                .constraints
                .iter()
                .filter(|one| matches!(one.kind, ConstraintKind::Primary | ConstraintKind::Unique));
            let indexes = table.indexes.iter().filter(|index| index.unique && index.valid && !index.partial);
            let plain = indexes.filter_map(|index| index.columns.iter().cloned().collect::<Option<Vec<String>>>());
            let mut unique: Vec<Vec<usize>> =
                keys.map(|key| key.columns.clone()).chain(plain).filter_map(|names| places(&names)).collect();
            unique.sort();
            unique.dedup();
            let foreign_keys = table.constraints.iter().filter_map(|constraint| {
                let reference = constraint.references.as_ref()?;
                let to = place(&reference.table)?;
                let referenced = reference
                    .columns
                    .iter()
                    .map(|name| tables[to].stored_columns().position(|column| column.name == *name));
                Some(ForeignKey {
                    columns: places(&constraint.columns)?,
                    table: to,
                    referenced: referenced.collect::<Option<_>>()?,
                })
            });
            Table {
                name: table.name.clone(),
                primary_key: table.primary_key().and_then(|key| places(&key.columns)).unwrap_or_default(),
                foreign_keys: foreign_keys.collect(),
                unique,
                triggers: table.triggers.iter().filter(|one| one.enabled != "D").map(|one| one.name.clone()).collect(),
                row_security: table.row_security,
                rows: None,
                whole: false,
                sample: Vec::new(),
                columns,
            }
        });
        let drawn = |name: &TableName| {
            let quoted =
                [name.name.as_str(), &crate::postgres::sql::identifier(&name.name)].map(|name| format!("{name}'"));
            catalog
                .sensitive
                .defaults
                .iter()
                .any(|one| quoted.iter().any(|name| one.expression.contains(name.as_str())))
        };
        let sequences = catalog.sequences.iter().map(|sequence| Sequence {
            name: sequence.name.clone(),
            drawn: sequence.owned_by.is_some() || drawn(&sequence.name),
            issued: sequence.value.map(|value| value.last_value - if value.is_called { 0 } else { sequence.increment }),
        });
        Self { tables: described.collect(), sequences: sequences.collect(), not_seen: Vec::new(), zone: None }
    }

    /// Notes what could not be looked at.
    pub fn miss(&mut self, table: &TableName, reason: &str) {
        self.not_seen.push(NotSeen { table: table.to_string(), reason: reason.to_owned() });
    }
}

/// Tables with rows of their own; a partitioned one stands for its partitions.
fn is_told(table: &crate::postgres::catalog::Table) -> bool {
    matches!(table.kind, TableKind::Ordinary | TableKind::Partitioned)
        && table.partition_of.is_none()
        && table.extension.is_none()
}
