//! What a restored database holds, held against the snapshot: every table's rows by their keyed digests, sequences, keys, indexes, triggers, policies.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use super::DrillError;
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::catalog::{self, Catalog, ConstraintKind, TableName};
use crate::postgres::copy::BlockRange;
use crate::postgres::dsn::Dsn;
use crate::postgres::reading::{Reader, ReadingOptions, ReadingSet};
use crate::repository::manifest::{Table, Wire};
use crate::repository::rows::{INLINE_LIMIT, MultisetDigest, RowHasher};
use crate::repository::snapshots::SnapshotReader;

#[derive(Debug, Default)]
pub struct Compared {
    /// As `server_version_num`.
    pub server: u32,
    pub tables: u64,
    pub rows: u64,
    pub sequences: u64,
    pub constraints: u64,
    pub indexes: u64,
    /// Sentences.
    pub differences: Vec<String>,
}

/// Reads all of the database, under one snapshot of it.
pub async fn compare(
    reader: &SnapshotReader,
    dsn: &Dsn,
    cancel: &CancellationToken,
    monitor: &SharedMonitor,
) -> Result<Compared, DrillError> {
    let manifest = reader.manifest();
    let then = reader.catalog().await?;
    let options = ReadingOptions { yield_after: None, cancel: cancel.clone(), ..ReadingOptions::default() };
    let set = ReadingSet::open(dsn, 1, options, monitor).await?;
    let (found, wanted) = (set.facts.encoding.clone().unwrap_or_default(), manifest.server.encoding.clone());
    if found != wanted {
        return Err(DrillError::Encoding { found, wanted });
    }
    let mut compared = Compared { server: set.facts.version_num, ..Compared::default() };
    monitor.stage("comparison", Unit::Rows, Some(manifest.totals.rows));
    if let Some(live) = set.readers.first() {
        let hasher = reader.current_hasher()?;
        for table in &manifest.tables {
            compared.table(live, &set.catalog, table, hasher, monitor).await?;
        }
    }
    // What servers of another major version say of the same key may read otherwise.
    let by_word = set.facts.version_num / 10_000 == manifest.server.version_num / 10_000;
    compared.catalogs(&then, &set.catalog, by_word);
    Ok(compared)
}

impl Compared {
    fn differs(&mut self, what: impl Into<String>) {
        self.differences.push(what.into());
    }

    async fn table(
        &mut self,
        live: &Reader,
        now: &Catalog,
        table: &Table,
        hasher: &RowHasher,
        monitor: &SharedMonitor,
    ) -> Result<(), DrillError> {
        self.tables += 1;
        let label = table.label();
        let Some(found) = now.table(&table.schema, &table.name) else {
            self.differs(format!("table {label} is missing"));
            return Ok(());
        };
        let mut columns = Vec::with_capacity(table.columns.len());
        for wanted in &table.columns {
            let Some(column) = found.live_columns().find(|column| column.name == wanted.name) else {
                self.differs(format!("table {label}: column {} is missing", wanted.name));
                return Ok(());
            };
            // As the snapshot read it.
            let wire = match wanted.wire {
                Wire::Binary => catalog::Wire::Binary,
                Wire::Text => catalog::Wire::Text,
            };
            columns.push(catalog::Column { wire, ..column.clone() });
        }
        if !found.holds_rows() {
            if table.rows > 0 {
                self.differs(format!("table {label} holds no rows of its own"));
            }
            return Ok(());
        }
        let name = TableName { schema: table.schema.clone(), name: table.name.clone() };
        let columns: Vec<&catalog::Column> = columns.iter().collect();
        let mut rows = live.copy_range(&name, &columns, BlockRange::ALL).await?;
        let (mut bounds, mut all, mut count) = (Vec::new(), MultisetDigest::default(), 0);
        while let Some(row) = rows.next(&mut bounds).await? {
            let mut digest = hasher.row();
            for field in &bounds {
                match field.of(&row.bytes) {
                    None => digest.null(),
                    Some(value) if value.len() <= INLINE_LIMIT => digest.inline(value),
                    Some(value) => digest.large(value.len() as u64, &hasher.value(value)),
                }
            }
            all.add(&digest.finish());
            count += 1;
            monitor.advance(1);
        }
        self.rows += count;
        if count != table.rows {
            self.differs(format!("table {label} has {count} rows, the snapshot {}", table.rows));
        } else if all.finish() != table.digest {
            self.differs(format!("table {label} has as many rows as the snapshot, but not the same"));
        }
        Ok(())
    }

    fn catalogs(&mut self, then: &Catalog, now: &Catalog, by_word: bool) {
        for wanted in &then.tables {
            // What an extension brings is the extension's.
            if wanted.extension.is_some() {
                continue;
            }
            let Some(found) = now.table(&wanted.name.schema, &wanted.name.name) else {
                // Tables are told above, where the snapshot has their rows.
                if !wanted.holds_rows() {
                    self.differs(format!("{} is missing", wanted.name));
                }
                continue;
            };
            self.table_facts(wanted, found, by_word);
        }
        let found: BTreeMap<_, _> = now.sequences.iter().map(|sequence| (&sequence.name, sequence)).collect();
        for wanted in &then.sequences {
            self.sequences += 1;
            let name = &wanted.name;
            match found.get(name) {
                None => self.differs(format!("sequence {name} is missing")),
                Some(found) if wanted.value.is_some() && wanted.value != found.value => {
                    self.differs(format!("sequence {name} does not stand where it stood"));
                }
                Some(found) if wanted.owned_by != found.owned_by || wanted.increment != found.increment => {
                    self.differs(format!("sequence {name} is another"));
                }
                Some(_) => {}
            }
        }
    }

    fn table_facts(&mut self, wanted: &catalog::Table, found: &catalog::Table, by_word: bool) {
        let table = &wanted.name;
        let columns = |of: &catalog::Table| -> Vec<_> {
            let facts = |c: &catalog::Column| {
                (
                    c.name.clone(),
                    c.type_name.clone(),
                    c.not_null,
                    c.identity.clone(),
                    c.generated.clone(),
                    c.has_default,
                )
            };
            of.live_columns().map(facts).collect()
        };
        if wanted.kind != found.kind || columns(wanted) != columns(found) {
            self.differs(format!("{table} has other columns"));
        }
        if wanted.partition_of != found.partition_of || wanted.partition_bound != found.partition_bound && by_word {
            self.differs(format!("{table} is another partition"));
        }
        if (wanted.row_security, wanted.force_row_security) != (found.row_security, found.force_row_security) {
            self.differs(format!("row security of {table} is not as it was"));
        }
        let word = |text: &str| by_word.then(|| text.to_owned());
        // Each with what makes it the same.
        let constraints = |of: &catalog::Table| -> BTreeMap<_, _> {
            // Of these older servers make no constraints; the columns tell.
            let all = of.constraints.iter().filter(|one| one.kind != ConstraintKind::NotNull);
            all.map(|one| (one.name.clone(), format!("{:?} {} {:?}", one.kind, one.validated, word(&one.definition))))
                .collect()
        };
        let indexes = |of: &catalog::Table| -> BTreeMap<_, _> {
            let facts = |one: &catalog::Index| format!("{} {} {:?}", one.unique, one.valid, word(&one.definition));
            of.indexes.iter().map(|one| (one.name.clone(), facts(one))).collect()
        };
        let triggers = |of: &catalog::Table| -> BTreeMap<_, _> {
            of.triggers
                .iter()
                .map(|one| (one.name.clone(), format!("{} {:?}", one.enabled, word(&one.definition))))
                .collect()
        };
        let policies = |of: &catalog::Table| -> BTreeMap<_, _> {
            let facts = |one: &catalog::Policy| {
                let (using, check) = (one.using.as_deref().map(word), one.with_check.as_deref().map(word));
                format!("{} {} {using:?} {check:?}", one.permissive, one.command)
            };
            of.policies.iter().map(|one| (one.name.clone(), facts(one))).collect()
        };
        self.constraints += constraints(wanted).len() as u64;
        self.indexes += wanted.indexes.len() as u64;
        let kinds = [
            ("constraint", constraints(wanted), constraints(found)),
            ("index", indexes(wanted), indexes(found)),
            ("trigger", triggers(wanted), triggers(found)),
            ("policy", policies(wanted), policies(found)),
        ];
        for (kind, wanted, mut found) in kinds {
            for (name, facts) in wanted {
                match found.remove(&name) {
                    None => self.differs(format!("{table}: {kind} {name} is missing")),
                    Some(other) if other != facts => {
                        self.differs(format!("{table}: {kind} {name} is another, or not valid"))
                    }
                    Some(_) => {}
                }
            }
            for name in found.into_keys() {
                self.differs(format!("{table}: {kind} {name} was not there"));
            }
        }
    }
}
