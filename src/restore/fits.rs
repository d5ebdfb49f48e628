//! Can all that a plan puts back be put into the tables as they are now? Asked before anything is written.

use std::collections::HashMap;

use bytes::Bytes;

use super::batch::staged;
use super::error::ReplayError;
use super::plan::Plan;
use super::staging::new_key;
use crate::compare::CompareError;
use crate::compare::layout::{Child, Limit, Parent, Table};
use crate::compare::row::{LargeValue, Row, Value};
use crate::compare::source::Source;

/// Refuses a plan whose tables changed so that meaning would be lost, or in which no key can be made for what comes back under a new one.
pub async fn fits(plan: &Plan, source: &dyn Source) -> Result<(), ReplayError> {
    let comparison = &plan.comparison;
    let layout = &comparison.layout;
    for table in layout.tables() {
        if let Some((column, reason)) = table.obstacles.first() {
            return Err(changed(table, column, reason.clone()));
        }
    }
    let message = &layout.message;
    let links = (!plan.moves.is_empty() && message.link.key.len() == 1).then_some(&message.link);
    let contents = message.content.as_ref().filter(|content| !plan.moves.is_empty() && !content.keeps_key());
    let made = [(layout.owner.as_ref(), &plan.owners), (Some(&layout.mailbox), &plan.mailboxes)];
    let made = made.into_iter().filter(|(_, made)| !made.is_empty()).filter_map(|(parent, _)| parent);
    // A name, or what proves which it is, comes back as it was.
    let kept = |parent: &Parent| {
        parent.table.key.iter().any(|key| parent.natural.contains(key) || parent.evidence.contains(key))
    };
    let made = made.filter(|parent| !kept(parent)).map(|parent| &parent.table);
    for table in links.into_iter().chain(contents.map(|content| &content.table)).chain(made) {
        new_key(table)?;
    }
    let lost = || plan.moves.iter().map(|one| &comparison.leftovers[one.leftover]);
    let given = [message.table.single_key().ok(), Some(message.mailbox), message.uid, message.modseq];
    let given =
        given.into_iter().flatten().chain(message.set.keys().copied()).chain(message.regenerate.iter().copied());
    check(source, &message.table, &given.collect::<Vec<_>>(), lost().map(|one| &one.row)).await?;
    let given = |child: &Child| -> Vec<usize> {
        child.of.iter().chain(child.set.keys()).chain(&child.issued).copied().collect()
    };
    for (kind, part) in layout.parts.iter().enumerate() {
        let rows = lost().flat_map(|one| &one.via[kind]).chain(&comparison.incomplete.via[kind]);
        check(source, &part.via.table, &given(&part.via), rows).await?;
        check(source, &part.table, &[], comparison.parts[kind].values()).await?;
    }
    for (kind, child) in layout.children.iter().enumerate() {
        let rows = lost().flat_map(|one| &one.children[kind]).chain(&comparison.incomplete.children[kind]);
        check(source, &child.table, &given(child), rows).await?;
    }
    for (kind, dictionary) in layout.dictionaries.iter().enumerate() {
        check(source, &dictionary.table, &dictionary.table.key, comparison.dictionaries[kind].values()).await?;
    }
    let parents = &comparison.parents;
    let mailboxes = plan.mailboxes.iter().chain(&plan.aside).map(|at| &parents.mailboxes[*at].row);
    check(source, &layout.mailbox.table, &layout.mailbox.table.key, mailboxes).await?;
    if let Some(owner) = &layout.owner {
        let owners = plan.owners.iter().map(|at| &parents.owners[*at].row);
        check(source, &owner.table, &owner.table.key, owners).await?;
    }
    Ok(())
}

fn changed(table: &Table, column: &str, reason: String) -> ReplayError {
    CompareError::Changed { table: table.label(), column: column.to_owned(), reason }.into()
}

/// Does every value fit into columns that are narrower now? Those in `given` get other values.
async fn check(
    source: &dyn Source,
    table: &Table,
    given: &[usize],
    rows: impl Iterator<Item = &Row>,
) -> Result<(), ReplayError> {
    let limits = table.columns.iter().enumerate().filter(|(at, _)| !given.contains(at));
    let limits: Vec<(usize, &str, Limit)> =
        limits.filter_map(|(at, column)| Some((at, &*column.name, column.limit?))).collect();
    if limits.is_empty() {
        return Ok(());
    }
    let mut much: HashMap<&str, u64> = HashMap::new();
    for row in rows {
        for (at, name, limit) in &limits {
            let found: HashMap<LargeValue, Bytes> = match row[*at] {
                Value::Large(large) => [large].into_iter().zip(source.values(&[large]).await?).collect(),
                _ => HashMap::new(),
            };
            let one = staged(&[row[*at].clone()], &found).pop().flatten();
            let fits = one.is_none_or(|field| limit.holds(&field));
            if !fits {
                *much.entry(name).or_default() += 1;
            }
        }
    }
    let Some((column, count)) = much.into_iter().min() else { return Ok(()) };
    Err(changed(table, column, format!("it is narrower now, and {count} values do not fit into it")))
}
