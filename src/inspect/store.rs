//! A description with what follows from it at once: features of columns, and which tables refer to which.

use std::collections::{HashMap, HashSet};

use super::description::{Column, Description, Kind, Table, Value};
use super::features::{Features, says, words};

/// A column by its table's place and its own.
pub type At = (usize, usize);

/// Columns of a table that refer to rows of another.
#[derive(Debug, Clone)]
pub struct Reference {
    pub from: usize,
    pub columns: Vec<usize>,
    pub to: usize,
    pub referenced: Vec<usize>,
    /// By a foreign key; else values or names say so.
    pub declared: bool,
}

pub struct Store<'a> {
    pub told: &'a Description,
    pub features: Vec<Vec<Features>>,
    pub references: Vec<Reference>,
    /// The values of each column.
    prints: Vec<Vec<HashSet<u64>>>,
}

impl<'a> Store<'a> {
    pub fn new(told: &'a Description) -> Self {
        let features: Vec<Vec<Features>> = told
            .tables
            .iter()
            .map(|table| (0..table.columns.len()).map(|column| Features::of(table, column)).collect())
            .collect();
        let prints = |table: &Table, column: usize| table.sample.iter().filter_map(|row| row[column].print()).collect();
        let prints = |table: &Table| (0..table.columns.len()).map(|column| prints(table, column)).collect();
        let prints = told.tables.iter().map(prints).collect();
        let mut store = Self { told, features, references: Vec::new(), prints };
        for (from, table) in told.tables.iter().enumerate() {
            store.references.extend(table.foreign_keys.iter().map(|key| Reference {
                from,
                columns: key.columns.clone(),
                to: key.table,
                referenced: key.referenced.clone(),
                declared: true,
            }));
        }
        for from in 0..told.tables.len() {
            let soft = store.soft_references(from);
            store.references.extend(soft);
        }
        store
    }

    /// In which the server writes a time without one, where that is known.
    pub fn zone(&self) -> Option<&'a str> {
        let zone = self.told.zone.as_deref()?;
        Some(if zone == "Etc/UTC" { "UTC" } else { zone })
    }

    pub fn table(&self, at: usize) -> &'a Table {
        &self.told.tables[at]
    }

    pub fn tables(&self) -> std::ops::Range<usize> {
        0..self.told.tables.len()
    }

    pub fn column(&self, (table, column): At) -> &'a Column {
        &self.told.tables[table].columns[column]
    }

    pub fn of(&self, (table, column): At) -> &Features {
        &self.features[table][column]
    }

    pub fn columns(&self, table: usize) -> impl Iterator<Item = (At, &'a Column)> + use<'a> {
        self.table(table).columns.iter().enumerate().map(move |(at, column)| ((table, at), column))
    }

    pub fn says(&self, at: At, any: &[&str]) -> bool {
        says(&self.column(at).name, any)
    }

    pub fn table_says(&self, table: usize, any: &[&str]) -> bool {
        says(&self.table(table).name.name, any)
    }

    /// How many rows a table has, as far as is known.
    pub fn rows(&self, table: usize) -> u64 {
        self.table(table).rows.unwrap_or(self.table(table).sample.len() as u64)
    }

    pub fn references_of(&self, from: usize) -> impl Iterator<Item = &Reference> {
        self.references.iter().filter(move |reference| reference.from == from)
    }

    pub fn reference(&self, from: usize, to: usize) -> Option<&Reference> {
        let mut found: Vec<&Reference> = self.references_of(from).filter(|reference| reference.to == to).collect();
        found.sort_by_key(|reference| !reference.declared);
        found.first().copied()
    }

    /// Does the column refer to something, or is it part of what does?
    pub fn refers(&self, (table, column): At) -> bool {
        self.references_of(table).any(|reference| reference.columns.contains(&column))
    }

    pub fn is_key(&self, (table, column): At) -> bool {
        self.table(table).primary_key == [column]
    }

    /// Does the catalog make these columns unique?
    pub fn is_unique(&self, table: usize, columns: &[usize]) -> bool {
        self.table(table).unique.iter().any(|key| !key.is_empty() && key.iter().all(|column| columns.contains(column)))
    }

    /// Where each value of a column stands; of a value that is there twice the last.
    pub fn rows_by(&self, (table, column): At) -> HashMap<u64, &'a [Value]> {
        let rows = &self.table(table).sample;
        rows.iter().filter_map(|row| Some((row[column].print()?, row.as_slice()))).collect()
    }

    pub fn prints(&self, (table, column): At) -> &HashSet<u64> {
        &self.prints[table][column]
    }

    /// References that no foreign key declares: by values that are no accident (UUIDs, hashes, names), or by a name that says
    /// which table is meant and values that are all there.
    fn soft_references(&self, from: usize) -> Vec<Reference> {
        let mut found = Vec::new();
        for (at, column) in self.columns(from) {
            if self.refers(at) || self.of(at).values == 0 {
                continue;
            }
            let mut best: Option<(u32, Reference)> = None;
            for to in self.tables().filter(|to| *to != from) {
                for key in &self.table(to).unique {
                    let [key] = key.as_slice() else { continue };
                    if self.column((to, *key)).kind != column.kind || self.of((to, *key)).values == 0 {
                        continue;
                    }
                    let named = self.names(at, (to, *key));
                    let telling = match column.kind {
                        Kind::Uuid => true,
                        Kind::Text | Kind::Bytes => self.of(at).distinct > 1 && self.of(at).longest > 3,
                        Kind::Integer => named > 0,
                        _ => false,
                    };
                    // A key that itself is a key of something else follows it; that one refers to this table, not this one to it.
                    let reversed = self.is_key(at) && self.rows(from) < self.rows(to) && named == 0;
                    if !telling || reversed || !self.contains((to, *key), at) {
                        continue;
                    }
                    let points = named + u32::from(self.is_key((to, *key)));
                    if best.as_ref().is_none_or(|(most, _)| points > *most) {
                        let reference =
                            Reference { from, columns: vec![at.1], to, referenced: vec![*key], declared: false };
                        best = Some((points, reference));
                    }
                }
            }
            found.extend(best.map(|(_, reference)| reference));
        }
        found
    }

    /// Are all values of one column among those of another, as far as the samples can tell?
    fn contains(&self, key: At, column: At) -> bool {
        let (keys, values) = (self.prints(key), self.prints(column));
        if self.table(key.0).whole {
            return values.is_subset(keys);
        }
        let there = values.intersection(keys).count();
        let share = self.table(key.0).sample.len() as f64 / self.rows(key.0).max(1) as f64;
        there > 0 && there as f64 >= 0.3 * share * values.len() as f64
    }

    /// Does the name of a column say that it means this key: by the key's own name, or by the table's?
    fn names(&self, column: At, key: At) -> u32 {
        let (name, key_name) = (&self.column(column).name, &self.column(key).name);
        let generic = words(key_name).len() == 1 && words(key_name)[0].len() <= 3;
        if name == key_name && !generic {
            return 3;
        }
        let table = words(&self.table(key.0).name.name);
        let meant = words(name);
        let Some(last) = table.last() else { return 0 };
        let stem = last.strip_suffix("es").filter(|stem| meant.iter().any(|word| word == stem));
        let stem = stem.unwrap_or(last.strip_suffix('s').unwrap_or(last));
        if meant.first().is_some_and(|word| word == stem || word == last) { 2 } else { 0 }
    }
}
