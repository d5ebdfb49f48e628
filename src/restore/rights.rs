//! The rights that a restore needs in the store, for `grants` to print. No superuser, no ownership.

use super::journal;
use crate::compare::layout::{Dictionary, Layout, Refers};
use crate::postgres::catalog::TableName;
use crate::postgres::sql::identifier;
use crate::profile::Profile;

/// The tables that a restore, or a trigger that it fires, writes.
pub fn written(layout: &Layout, profile: &Profile) -> Vec<TableName> {
    let tables =
        [&layout.mailbox.table, &layout.message.link].into_iter().chain(layout.owner.iter().map(|one| &one.table));
    let tables = tables.chain(layout.message.content.iter().map(|content| &content.table));
    let tables = tables.chain(layout.parts.iter().flat_map(|part| [&part.table, &part.via.table]));
    let tables = tables.chain(layout.dictionaries.iter().map(|one| &one.table));
    let tables = tables.chain(layout.dictionaries.iter().flat_map(|one| one.children.iter().map(|child| &child.table)));
    let tables = tables.chain(layout.children.iter().map(|child| &child.table)).map(|table| table.source.name.clone());
    let hanging = [true, false].into_iter().filter_map(|mailbox| layout.parent(mailbox));
    let hanging = hanging.flat_map(|parent| parent.children.iter().map(|child| child.table.source.name.clone()));
    let tombstones = layout.tombstones.iter().map(|tombstone| tombstone.name.clone());
    let derived = profile.derived.iter().filter_map(|derived| {
        let (schema, name) =
            profile.qualify(&derived.table).split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        Some(TableName { schema, name })
    });
    let mut written: Vec<TableName> = tables.chain(hanging).chain(tombstones).chain(derived).collect();
    written.sort();
    written.dedup();
    written
}

/// The journal, and what undoing needs besides: it deletes messages and what belongs to them.
pub fn restore_sql(layout: &Layout, role: &str) -> String {
    let mut sql = format!("{}\n", journal::DDL);
    let deleted = std::iter::once(&layout.message.link).chain(layout.parts.iter().map(|part| &part.via.table));
    let deleted = deleted.chain(layout.message.content.iter().map(|content| &content.table));
    // What refers back to messages may go with the last of them, as the profile's statements say.
    let back = |one: &&Dictionary| one.refers.iter().any(|(_, refers)| *refers == Refers::Message);
    let back = layout.dictionaries.iter().filter(back);
    let back = back.flat_map(|one| std::iter::once(&one.table).chain(one.children.iter().map(|child| &child.table)));
    for table in deleted.chain(layout.children.iter().map(|child| &child.table)).chain(back) {
        sql += &format!("GRANT DELETE ON {} TO {};\n", table.quoted(), identifier(role));
    }
    sql
}

/// The journal to read: a comparison must know what earlier replays put back.
pub fn gap_sql(role: &str) -> String {
    let role = identifier(role);
    format!(
        "{}\nGRANT USAGE ON SCHEMA restante TO {role};\n\
         GRANT SELECT ON restante.replay, restante.parent, restante.journal TO {role};\n",
        journal::DDL
    )
}
