//! Stores whose tables say nothing of what lies in them: keys and values of bytes that only their own server can read.
//!
//! They are known by structure, not by name. No profile can describe one, because no column says which row is a mail, whose it is or
//! when it came.

use super::validate::{CatalogView, TableView};

/// So many tables of the kind make a store; fewer may be a cache beside one.
const LEAST: usize = 3;

/// How many tables with a key of bytes and at most one value make up this database; `None` if it is another kind of store.
pub fn opaque_tables(catalog: &CatalogView) -> Option<usize> {
    let of = |value: &str| catalog.tables.values().filter(|table| is_key_and(table, value)).count();
    let (values, counters, keys) = (of("bytea"), of("bigint"), of(""));
    let tables = values + counters + keys;
    // A table beside them that a program keeps its version in changes nothing.
    let others = catalog.tables.len() - tables;
    (values > 0 && tables >= LEAST && others * 10 <= tables).then_some(tables)
}

/// Is it a primary key of bytes, and one column of the type `value`, or none if that is empty?
fn is_key_and(table: &TableView, value: &str) -> bool {
    let [key] = table.primary_key.as_slice() else { return false };
    let mut others = table.columns.iter().filter(|(column, _)| *column != key).map(|(_, kind)| kind.as_str());
    table.columns.get(key).is_some_and(|kind| kind == "bytea")
        && table.foreign_keys.is_empty()
        && others.next().unwrap_or_default() == value
        && others.next().is_none()
}
