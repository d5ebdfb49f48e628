//! What no two rows of a table may have in common.

use crate::compare::layout::{Message, Table, Unique};
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
        message.table.key.contains(at)
            || [message.uid, message.modseq].contains(&Some(*at))
            || message.set.contains_key(at)
            || message.regenerate.contains(at)
            || message.table.columns[*at].live.is_none()
            || message.refers.iter().any(|(column, _)| column == at)
    };
    keys(catalog, &message.table).into_iter().filter(|one| !one.columns.iter().any(anew)).collect()
}
