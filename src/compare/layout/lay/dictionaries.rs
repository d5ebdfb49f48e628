//! Dictionaries in the order in which they can be put in: what one refers to stands before it.

use std::collections::BTreeSet;

use super::{Dictionary, Lay, Refers, Table};
use crate::compare::error::CompareError;
use crate::postgres::catalog::TableName;
use crate::profile::{self, SoftReferences};

/// Also makes the dictionaries known to the rest of the layout. Rows that hang on them are not here yet.
pub(super) fn lay(lay: &mut Lay<'_>) -> Result<Vec<Dictionary>, CompareError> {
    let profile = lay.profile;
    let mut open = Vec::new();
    for one in &profile.dictionary {
        let mut soft = one.references.clone();
        soft.extend(one.cycle.0.iter().map(|column| (column.clone(), profile.message.table.clone())));
        open.push((lay.dictionary(one)?, soft));
    }
    // A part that messages refer to by the hash of its bytes is a value that they share.
    for part in profile.part.iter().filter(|part| part.referred_by.is_some()) {
        open.push((lay.hashed(part)?, SoftReferences::new()));
    }
    // And one with a number for its key is found again by its bytes.
    for part in &profile.part {
        open.extend(lay.numbered(part)?.map(|(table, natural)| (bare(natural, table), SoftReferences::new())));
    }
    let others = lay.known.clone();
    let know = |lay: &mut Lay<'_>, all: &[(Dictionary, SoftReferences)]| {
        let names =
            all.iter().enumerate().map(|(at, (one, _))| (Refers::Dictionary(at), one.table.source.name.clone()));
        lay.known = others.iter().cloned().chain(names).collect();
    };
    know(lay, &open);
    let mut needs: Vec<(TableName, BTreeSet<TableName>)> = Vec::new();
    for (one, soft) in &open {
        let name = &one.table.source.name;
        let mut refers = lay.refers(&one.table, soft, &[])?;
        for child in profile.child.iter().filter(|child| lay.name(profile.parent_of(child)) == *name) {
            let child = lay.child(child, &one.table, one.table.key.clone())?;
            refers.extend(child.refers);
        }
        let named = refers.iter().filter_map(|(_, refers)| match refers {
            Refers::Dictionary(at) => Some(open[*at].0.table.source.name.clone()),
            _ => None,
        });
        needs.push((name.clone(), named.collect()));
    }
    let mut done: Vec<(Dictionary, SoftReferences)> = Vec::with_capacity(open.len());
    while !open.is_empty() {
        let there = |name: &TableName| done.iter().any(|(one, _)| one.table.source.name == *name);
        let ready = |name: &TableName| needs.iter().any(|(of, needs)| of == name && needs.iter().all(there));
        let Some(next) = open.iter().position(|(one, _)| ready(&one.table.source.name)) else {
            return Err(CompareError::NotYet { what: "dictionary tables refer to each other in a circle" });
        };
        done.push(open.remove(next));
    }
    know(lay, &done);
    done.into_iter()
        .map(|(mut one, soft)| {
            one.refers = lay.refers(&one.table, &soft, &[])?;
            Ok(one)
        })
        .collect()
}

impl Lay<'_> {
    fn dictionary(&self, dictionary: &profile::Dictionary) -> Result<Dictionary, CompareError> {
        let table = self.table(&dictionary.table, dictionary.key.as_ref())?;
        table.single_key()?;
        let lower = self.columns(&table, &dictionary.lower)?;
        let fixed = dictionary.fixed.clone();
        Ok(Dictionary { lower, fixed, ..bare(self.columns(&table, &dictionary.natural)?, table) })
    }

    fn hashed(&self, part: &profile::Part) -> Result<Dictionary, CompareError> {
        let table = self.table(&part.table, part.key.as_ref())?;
        let key = table.single_key()?;
        if self.optional(&table, part.hash.as_ref())? != Some(key) {
            return Err(CompareError::NotYet { what: "messages refer to parts by a number" });
        }
        Ok(bare(vec![key], table))
    }
}

fn bare(natural: Vec<usize>, table: Table) -> Dictionary {
    Dictionary { natural, table, lower: Vec::new(), fixed: None, refers: Vec::new(), children: Vec::new() }
}
