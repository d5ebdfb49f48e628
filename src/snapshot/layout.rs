//! Which tables are read, and in which ranges of blocks.

use crate::postgres::catalog::ConstraintKind::{Foreign, Primary, Unique};
use crate::postgres::catalog::{Catalog, Column, Table, TableKind, TableName};
use crate::postgres::session::ServerFacts;
use crate::repository::manifest::{self, NotCovered};
use crate::repository::snapshots::Snapshot;
use crate::repository::zone::ZoneColumn;

/// What a segment holds with its TOAST, about. Small enough that a scattered restore reads little, large enough that the maps
/// of a terabyte stay small.
pub const SEGMENT_BYTES: u64 = 32 << 20;

/// `table`, `schema.table` or either with a trailing `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    schema: Option<String>,
    name: String,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{0:?} is not a table name: write `table`, `schema.table` or `schema.prefix*`")]
pub struct InvalidPattern(String);

impl std::str::FromStr for TablePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema.to_owned()), name.to_owned()),
            None => (None, text.to_owned()),
        };
        if name.is_empty() || schema.as_deref() == Some("") || name.trim_end_matches('*').contains('*') {
            return Err(InvalidPattern(text.to_owned()));
        }
        Ok(Self { schema, name })
    }
}

impl TablePattern {
    pub fn matches(&self, table: &TableName) -> bool {
        self.schema.as_ref().is_none_or(|schema| *schema == table.schema)
            && match self.name.strip_suffix('*') {
                Some(prefix) => table.name.starts_with(prefix),
                None => table.name == self.name,
            }
    }
}

/// What a snapshot reads.
pub struct Layout {
    pub tables: Vec<TableLayout>,
    pub not_covered: Vec<NotCovered>,
    pub block_size: u32,
}

pub struct TableLayout {
    /// Position in the catalog.
    pub table: usize,
    pub columns: Vec<Column>,
    pub blocks: u32,
    pub blocks_per_segment: u32,
    /// Position in the row, `attnum`, kind.
    pub zones: Vec<(usize, i16, ZoneColumn)>,
    /// Heap and TOAST, for balancing and progress.
    pub bytes: u64,
}

impl TableLayout {
    /// The last segment is open: the table may have grown since it was measured.
    pub fn segments(&self) -> u32 {
        self.blocks.div_ceil(self.blocks_per_segment).max(1)
    }
}

/// `exclude`: tables that are left out; `segment_bytes`: what a segment of a new table shall hold; `before`: into how many blocks a table was cut in the store's last snapshot, if it is the same file. It keeps its segments however it
/// grew, so that equal ranges of blocks can be compared.
pub fn plan(
    catalog: &Catalog,
    facts: &ServerFacts,
    exclude: &[TablePattern],
    segment_bytes: u64,
    before: impl Fn(&Table, u32) -> Option<u32>,
) -> Layout {
    let block_size = facts.block_size.unwrap_or(8192);
    let (mut tables, mut not_covered) = (Vec::new(), Vec::new());
    let unreadable = catalog.unreadable(&facts.role);
    for (position, table) in catalog.tables.iter().enumerate() {
        if exclude.iter().any(|pattern| pattern.matches(&table.name)) {
            continue;
        }
        if let Some(found) = unreadable.iter().find(|u| u.table == table.name) {
            not_covered.push(NotCovered {
                object: format!("table {}", table.name),
                reason: format!("{}; {}", found.reason, found.remedy),
            });
        } else if table.holds_rows() {
            if table.unlogged && facts.is_in_recovery {
                let reason = "unlogged tables are empty on a standby".to_owned();
                not_covered.push(NotCovered { object: format!("table {}", table.name), reason });
            } else {
                let before = before(table, block_size);
                tables.push(layout(position, table, block_size, segment_bytes, before));
            }
        } else if table.kind == TableKind::Ordinary {
            let method = table.access_method.as_deref().unwrap_or("unknown");
            let reason = format!("the access method {method} has no heap to read by ranges");
            not_covered.push(NotCovered { object: format!("table {}", table.name), reason });
        }
    }
    Layout { tables, not_covered, block_size }
}

/// Into how many blocks a snapshot cut a table, if it is the same file.
pub fn before(snapshot: &Snapshot, table: &Table, block_size: u32) -> Option<u32> {
    let same = |one: &&manifest::Table| {
        one.oid == table.oid && one.relfilenode == table.relfilenode && one.block_size == block_size
    };
    Some(snapshot.manifest.tables.iter().find(same)?.blocks_per_segment)
}

fn layout(position: usize, table: &Table, block_size: u32, segment_bytes: u64, before: Option<u32>) -> TableLayout {
    let heap = table.heap_bytes.unwrap_or(0).max(0) as u64;
    let bytes = table.table_bytes.unwrap_or(0).max(heap as i64) as u64;
    let blocks = heap / u64::from(block_size);
    let per_block = bytes.checked_div(blocks).unwrap_or(0).max(u64::from(block_size));
    let wanted = (segment_bytes / per_block).max(1);
    // A power of two: segments of two layouts of a table lie within each other.
    let blocks_per_segment = before.filter(|before| *before > 0).unwrap_or(1 << wanted.ilog2());
    let columns: Vec<Column> = table.stored_columns().cloned().collect();
    let zones =
        columns.iter().enumerate().filter_map(|(at, column)| Some((at, column.number, zone(table, column)?))).collect();
    TableLayout { table: position, columns, blocks: blocks as u32, blocks_per_segment, zones, bytes }
}

/// Integers and times always; other types where they are a key or refer to one.
fn zone(table: &Table, column: &Column) -> Option<ZoneColumn> {
    if column.wire != crate::postgres::catalog::Wire::Binary {
        return None;
    }
    match column.type_oid {
        // int8, int2, int4, oid
        20 | 21 | 23 | 26 => Some(ZoneColumn::Integer { time: false }),
        // date, timestamp, timestamptz
        1082 | 1114 | 1184 => Some(ZoneColumn::Integer { time: true }),
        _ => table
            .constraints
            .iter()
            .any(|constraint| {
                matches!(constraint.kind, Primary | Unique | Foreign) && constraint.columns.contains(&column.name)
            })
            .then_some(ZoneColumn::Key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, name: &str) -> TableName {
        TableName { schema: schema.into(), name: name.into() }
    }

    #[test]
    fn a_pattern_names_a_table_a_schema_and_a_prefix() {
        let fits = |pattern: &str, table: &TableName| pattern.parse::<TablePattern>().unwrap().matches(table);
        let table = name("public", "messages_2014");
        assert!(fits("messages_2014", &table));
        assert!(fits("public.messages*", &table));
        assert!(!fits("other.messages*", &table));
        assert!(!fits("messages", &table));
        for bad in ["", ".", "a.", ".b", "a*b"] {
            assert!(bad.parse::<TablePattern>().is_err(), "{bad}");
        }
    }
}
