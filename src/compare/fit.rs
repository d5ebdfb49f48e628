//! Does a profile fit this store? Finds the one that does, and what does not.

use super::error::CompareError;
use crate::postgres::catalog::{Catalog, ConstraintKind};
use crate::postgres::session::Session;
use crate::profile::{self, CatalogView, Finding, ForeignKeyView, Profile, TableView};

/// The catalog as profiles see it.
pub fn view(catalog: &Catalog) -> CatalogView {
    let tables = catalog.tables.iter().map(|table| {
        let of = |kind: ConstraintKind| table.constraints.iter().filter(move |constraint| constraint.kind == kind);
        let indexes = table.indexes.iter().filter(|index| index.unique && index.valid && !index.partial);
        let plain = indexes.filter_map(|index| index.columns.iter().cloned().collect::<Option<Vec<String>>>());
        let view = TableView {
            columns: table.live_columns().map(|column| (column.name.clone(), column.type_name.clone())).collect(),
            primary_key: table.primary_key().map(|key| key.columns.clone()).unwrap_or_default(),
            unique_keys: of(ConstraintKind::Unique).map(|constraint| constraint.columns.clone()).chain(plain).collect(),
            foreign_keys: of(ConstraintKind::Foreign)
                .filter_map(|constraint| {
                    let reference = constraint.references.as_ref()?;
                    Some(ForeignKeyView {
                        columns: constraint.columns.clone(),
                        table: reference.table.to_string(),
                        referenced: reference.columns.clone(),
                    })
                })
                .collect(),
            triggers: table.triggers.iter().filter(|one| one.enabled != "D").map(|one| one.name.clone()).collect(),
        };
        (table.name.to_string(), view)
    });
    CatalogView {
        tables: tables.collect(),
        sequences: catalog.sequences.iter().map(|sequence| sequence.name.to_string()).collect(),
    }
}

/// What of the profile does not fit the store.
pub fn findings(profile: &Profile, catalog: &Catalog) -> Vec<Finding> {
    let mut view = view(catalog);
    // What the profile calls by an old name is there under its new one.
    for (old, changed) in &profile.changed {
        let Some(table) = view.tables.get_mut(&profile.qualify(old)) else { continue };
        for (old, now) in &changed.columns {
            if let Some(kind) = table.columns.get(now).cloned() {
                table.columns.insert(old.clone(), kind);
            }
            let keys = table.unique_keys.iter().filter(|key| key.contains(now));
            let by_old =
                |key: &Vec<String>| key.iter().map(|name| if name == now { old } else { name }.clone()).collect();
            let keys: Vec<Vec<String>> = keys.map(by_old).collect();
            table.unique_keys.extend(keys);
        }
    }
    profile.validate(&view)
}

/// The built-in profile whose marks the store has. A store of which no profile can speak is refused with the reason.
pub async fn recognise(session: &Session, catalog: &Catalog) -> Result<Option<Profile>, CompareError> {
    for profile in marked(catalog)? {
        // A store of another kind may not even have the tables that are asked.
        let fits = match &profile.recognise.sql {
            Some(sql) => session.client().query_one(sql, &[]).await.is_ok_and(|row| row.try_get(0).unwrap_or(false)),
            None => true,
        };
        if fits {
            return Ok(Some(profile));
        }
    }
    match profile::opaque_tables(&view(catalog)) {
        Some(tables) => Err(CompareError::Opaque { tables }),
        None => Ok(None),
    }
}

/// The built-in profiles all of whose marked columns a catalog has, from a live store or a snapshot; their SQL is not asked.
pub fn marked(catalog: &Catalog) -> Result<Vec<Profile>, CompareError> {
    let view = view(catalog);
    let mut found = Vec::new();
    for profile in Profile::builtin_names().filter_map(Profile::builtin) {
        let profile = profile?;
        let has = |mark: &String| {
            mark.rsplit_once('.').is_some_and(|(table, column)| {
                view.tables.get(&profile.qualify(table)).is_some_and(|table| table.columns.contains_key(column))
            })
        };
        let marks = &profile.recognise;
        if !(marks.columns.is_empty() && marks.sql.is_none()) && marks.columns.iter().all(has) {
            found.push(profile);
        }
    }
    Ok(found)
}
