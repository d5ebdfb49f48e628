//! What a database holds, as plain structures for manifests: tables with columns, constraints, indexes, triggers and
//! policies; types; sequences; extensions; publications.
//!
//! Everything is read under the current transaction, so that [`super::reading`] can read it again under its snapshot.
//! Lists are ordered by name, columns by number. What may tell secrets of the application (default expressions, the
//! values that `ADD COLUMN … DEFAULT` left behind) stands apart in [`Catalog::sensitive`].
//!
//! Restante's own schema, the system's schemas and temporary tables are left out.

use serde::{Deserialize, Serialize};

use super::sql;

mod queries;
mod sequences;
mod types;

pub use queries::{read, relations};
pub use sequences::read_values as read_sequence_values;
pub use types::{TypeFacts, TypeKind};

/// The schema that holds Restante's own objects: the marker's sequence, the journal.
pub const OWN_SCHEMA: &str = "restante";

/// What a database holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    pub tables: Vec<Table>,
    /// The types that columns use, and the ones that users made.
    pub types: Vec<TypeFacts>,
    pub sequences: Vec<Sequence>,
    pub extensions: Vec<Extension>,
    pub publications: Vec<Publication>,
    /// How many large objects (`pg_largeobject`) there are; their contents are not covered.
    pub large_objects: i64,
    /// When the database's statistics began, as PostgreSQL prints it in UTC.
    pub statistics_reset: Option<String>,
    pub sensitive: Sensitive,
}

/// Which table: its oid names it only within one database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    /// `"schema"."name"`, for SQL.
    pub fn quoted(&self) -> String {
        sql::qualified(&self.schema, &self.name)
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    #[serde(alias = "r")]
    Ordinary,
    #[serde(alias = "p")]
    Partitioned,
    #[serde(alias = "f")]
    Foreign,
    #[serde(alias = "m")]
    MaterializedView,
    #[serde(alias = "v")]
    View,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    #[serde(flatten)]
    pub name: TableName,
    pub oid: u32,
    /// The name of its file, which every rewrite changes; `None` without storage.
    pub relfilenode: Option<u32>,
    pub kind: TableKind,
    pub unlogged: bool,
    pub access_method: Option<String>,
    pub owner: String,
    /// The extension that made it.
    pub extension: Option<String>,
    /// Estimates of the last VACUUM or ANALYZE; `tuples` is -1 when there was none.
    pub pages: i64,
    pub tuples: f64,
    /// Bytes of the heap, and with TOAST, visibility and free space map, when it was asked.
    pub heap_bytes: Option<i64>,
    pub table_bytes: Option<i64>,
    pub toast_oid: Option<u32>,
    pub partition_of: Option<TableName>,
    pub partition_bound: Option<String>,
    /// `RANGE (received)`.
    pub partition_key: Option<String>,
    pub inherits: Vec<TableName>,
    pub row_security: bool,
    pub force_row_security: bool,
    /// Would policies hide rows from the role that asked?
    pub row_security_applies: bool,
    /// May the role that asked read all of it?
    pub readable: bool,
    /// `d`, `n`, `f` or `i`, as `pg_class.relreplident`.
    pub replica_identity: String,
    pub options: Vec<String>,
    #[serde(default)]
    pub columns: Vec<Column>,
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    #[serde(default)]
    pub indexes: Vec<Index>,
    #[serde(default)]
    pub triggers: Vec<Trigger>,
    #[serde(default)]
    pub policies: Vec<Policy>,
    /// What the statistics collector counted since [`Catalog::statistics_reset`].
    pub inserted: Option<i64>,
    pub updated: Option<i64>,
    pub deleted: Option<i64>,
    pub live_estimate: Option<i64>,
    pub dead_estimate: Option<i64>,
    /// BLAKE3, in hex, over everything that decides what the stored rows mean: columns with dropped ones, their types in
    /// full depth, and the values that stand for columns added later. Without oids: equal schemas have equal digests.
    #[serde(default)]
    pub schema_digest: String,
}

impl Table {
    /// Has it rows of its own that a snapshot reads: a heap that is no view, no foreign table, no partitioned parent?
    pub fn holds_rows(&self) -> bool {
        self.kind == TableKind::Ordinary && self.access_method.as_deref() == Some("heap")
    }

    /// The columns that a SELECT shows.
    pub fn live_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| !column.dropped)
    }

    /// The columns that a row has bytes of. A virtual one (18) is computed whenever it is read, and may fail then.
    pub fn stored_columns(&self) -> impl Iterator<Item = &Column> {
        self.live_columns().filter(|column| column.generated.as_deref() != Some("v"))
    }

    pub fn primary_key(&self) -> Option<&Constraint> {
        self.constraints.iter().find(|constraint| constraint.kind == ConstraintKind::Primary)
    }
}

/// How a column's values travel in COPY BINARY.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    #[default]
    Binary,
    /// Cast to text, because the type has no binary form in both directions, or one that means nothing elsewhere (oids).
    Text,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub number: i16,
    pub name: String,
    pub dropped: bool,
    /// Zero for a dropped column.
    pub type_oid: u32,
    /// With its modifier, as `character varying(255)`; of a dropped column only length and alignment are left.
    #[serde(rename = "type")]
    pub type_name: String,
    pub not_null: bool,
    /// `a` always, `d` by default.
    pub identity: Option<String>,
    /// `s` stored, `v` virtual.
    pub generated: Option<String>,
    pub has_default: bool,
    pub has_missing: bool,
    pub collation: Option<String>,
    pub storage: String,
    pub compression: Option<String>,
    #[serde(default)]
    pub wire: Wire,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintKind {
    #[serde(alias = "p")]
    Primary,
    #[serde(alias = "u")]
    Unique,
    #[serde(alias = "f")]
    Foreign,
    #[serde(alias = "c")]
    Check,
    #[serde(alias = "x")]
    Exclusion,
    #[serde(alias = "n")]
    NotNull,
    #[serde(alias = "t")]
    Trigger,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Constraint {
    pub name: String,
    pub kind: ConstraintKind,
    /// In the order of the key.
    pub columns: Vec<String>,
    pub definition: String,
    pub deferrable: bool,
    pub deferred: bool,
    pub validated: bool,
    pub references: Option<Reference>,
}

/// What a foreign key points at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    #[serde(flatten)]
    pub table: TableName,
    pub columns: Vec<String>,
    /// As `pg_constraint.confdeltype`: `a` no action, `r` restrict, `c` cascade, `n` set null, `d` set default.
    pub on_delete: String,
    pub on_update: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Index {
    pub name: String,
    pub definition: String,
    pub unique: bool,
    pub primary: bool,
    pub valid: bool,
    pub partial: bool,
    /// The key's columns; `None` in place of an expression.
    pub columns: Vec<Option<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trigger {
    pub name: String,
    /// As `pg_trigger.tgenabled`: `O` on, `D` off, `R` on replicas, `A` always.
    pub enabled: String,
    pub function: String,
    pub definition: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub name: String,
    pub permissive: bool,
    /// `ALL`, `SELECT`, …
    pub command: String,
    pub roles: Vec<String>,
    pub using: Option<String>,
    pub with_check: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sequence {
    #[serde(flatten)]
    pub name: TableName,
    pub oid: u32,
    #[serde(rename = "type")]
    pub type_name: String,
    pub start: i64,
    pub increment: i64,
    pub minimum: i64,
    pub maximum: i64,
    pub cache: i64,
    pub cycles: bool,
    /// The table and column that it numbers.
    pub owned_by: Option<ColumnName>,
    pub identity: bool,
    pub readable: bool,
    /// Read by [`read_sequence_values`], after the snapshot's export; `None` when it cannot be read.
    #[serde(default)]
    pub value: Option<SequenceValue>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceValue {
    pub last_value: i64,
    /// Was `last_value` handed out? Otherwise it is the next.
    pub is_called: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnName {
    #[serde(flatten)]
    pub table: TableName,
    pub column: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    pub name: String,
    pub version: String,
    pub schema: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub name: String,
    pub all_tables: bool,
}

/// What may tell secrets of the application.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sensitive {
    pub defaults: Vec<ColumnExpression>,
    /// What a column added later shows in older rows, as the text of a one-element array.
    pub missing: Vec<ColumnExpression>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnExpression {
    #[serde(flatten)]
    pub column: ColumnName,
    pub expression: String,
}

/// A table that a snapshot cannot read, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub table: TableName,
    pub reason: String,
    /// SQL to paste.
    pub remedy: String,
}

impl Catalog {
    pub fn table(&self, schema: &str, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name.schema == schema && table.name.name == name)
    }

    /// The sequence that fills a column: it belongs to the column, or the column's default draws from it.
    pub fn sequence_of(&self, column: &ColumnName) -> Option<&Sequence> {
        let owned = |sequence: &&Sequence| sequence.owned_by.as_ref() == Some(column);
        let default = self.sensitive.defaults.iter().find(|default| default.column == *column);
        let drawn = |sequence: &&Sequence| {
            let Some(default) = default else { return false };
            let name = default.expression.strip_prefix("nextval('").and_then(|rest| rest.split_once("'::regclass)"));
            // Written with quotes where they are needed.
            name.is_some_and(|(name, rest)| rest.is_empty() && name.replace('"', "") == sequence.name.to_string())
        };
        self.sequences.iter().find(owned).or_else(|| self.sequences.iter().find(drawn))
    }

    /// The tables with rows that `role`, which read this catalog, cannot read in full, each with the SQL that helps.
    pub fn unreadable(&self, role: &str) -> Vec<Unreadable> {
        let with_rows = |table: &&Table| matches!(table.kind, TableKind::Ordinary | TableKind::Partitioned);
        self.tables
            .iter()
            .filter(with_rows)
            .filter_map(|table| {
                let (quoted, to) = (table.name.quoted(), sql::identifier(role));
                let (reason, remedy) = if !table.readable {
                    let schema = sql::identifier(&table.name.schema);
                    let grants = format!("GRANT USAGE ON SCHEMA {schema} TO {to}; GRANT SELECT ON {quoted} TO {to};");
                    ("no right to read it", grants)
                } else if table.row_security_applies {
                    ("row security would hide rows", format!("ALTER ROLE {to} BYPASSRLS;"))
                } else {
                    return None;
                };
                Some(Unreadable { table: table.name.clone(), reason: reason.to_owned(), remedy })
            })
            .collect()
    }
}
