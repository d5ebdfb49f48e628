//! What no two rows of a table may have in common.

use crate::compare::layout::{Message, Refers, Shared, Table, Unique};
use crate::postgres::catalog::{Catalog, ConstraintKind};

/// Unique keys and indexes over plain columns that the snapshot has, the primary key left out.
pub(super) fn keys(catalog: &Catalog, table: &Table) -> Vec<Unique> {
    let name = &table.source.name;
    let Some(facts) = catalog.table(&name.schema, &name.name) else { return Vec::new() };
    let column = |name: &String| table.columns.iter().position(|column| column.name == *name);
    let constraints = facts.constraints.iter().filter(|one| one.kind == ConstraintKind::Unique);
    let constraints = constraints.map(|one| (one.columns.iter().map(column).collect::<Option<Vec<_>>>(), None));
    let indexes = facts.indexes.iter().filter(|one| one.unique && one.valid && !one.primary);
    let indexes = indexes.map(|one| {
        let columns = one.columns.iter().map(|name| column(name.as_ref()?)).collect::<Option<Vec<_>>>();
        // As pg_get_indexdef writes it: the predicate stands last.
        let predicate = one.definition.split_once(" USING ").and_then(|(_, rest)| rest.split_once(" WHERE "));
        (columns, predicate.filter(|_| one.partial).map(|(_, predicate)| predicate.to_owned()))
    });
    let mut found: Vec<Unique> = Vec::new();
    for (columns, predicate) in constraints.chain(indexes) {
        let Some(columns) = columns else { continue };
        if !found.iter().any(|one| one.columns == columns && one.predicate == predicate) {
            found.push(Unique { columns, predicate });
        }
    }
    found
}

/// Those of messages that can be asked for before anything is written: all their columns come back as they were, but for the mailbox.
pub(super) fn of_messages(catalog: &Catalog, message: &Message) -> Vec<Unique> {
    let anew = |at: &usize| {
        message.link.key.contains(at)
            || [message.uid, message.modseq].contains(&Some(*at))
            || message.set.contains_key(at)
            || message.regenerate.contains(at)
            || message.link.columns[*at].live.is_none()
            || message.refers.iter().any(|(column, _)| column == at)
    };
    keys(catalog, &message.link).into_iter().filter(|one| !one.columns.iter().any(anew)).collect()
}

/// Those of contents by which one that came again can be found: all their columns come back as they were, but for account and mailbox.
pub(super) fn of_contents(catalog: &Catalog, content: &Shared) -> Vec<Unique> {
    let leads = |refers: &Refers| matches!(refers, Refers::Owner | Refers::Mailbox);
    let anew = |at: &usize| {
        content.table.key.contains(at)
            || content.set.contains_key(at)
            || content.regenerate.contains(at)
            || content.table.columns[*at].live.is_none()
            || content.refers.iter().any(|(column, refers)| column == at && !leads(refers))
    };
    let keys = keys(catalog, &content.table).into_iter();
    keys.filter(|one| one.predicate.is_none() && !one.columns.iter().any(anew)).collect()
}
