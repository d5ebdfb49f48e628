//! Which columns hold keys that became others, or refer to such.

use std::sync::Arc;

use super::Lay;
use crate::compare::error::CompareError;
use crate::compare::keys::Keys;
use crate::compare::layout::changed::{integer, is_like, no_integer, refers};
use crate::compare::source::{SourceColumn, Widened};
use crate::postgres::catalog::{TableName, Wire};
use crate::profile::ProfileError;

/// A column, as it is called now.
type At = (TableName, String);

impl Lay<'_> {
    /// Finds the keys that the profile speaks of and that the snapshot has as they were, and all that refers to them: by foreign keys of the
    /// live store, or as the profile says.
    pub(super) fn find_keys(&mut self) -> Result<(), CompareError> {
        for (old, changed) in &self.profile.changed {
            let table = self.name(old);
            for (column, sql) in &changed.keys {
                let missing = |place| {
                    let message = format!("{old}.{column} is not in the {place}");
                    ProfileError::Inconsistent { at: self.profile.place(sql), message }
                };
                let now = self.now(&table, column).to_owned();
                let live = self.catalog.table(&table.schema, &table.name);
                let live = live.and_then(|live| live.live_columns().find(|column| column.name == now));
                let live = live.ok_or_else(|| missing("live store"))?;
                let then = self.before(&table).ok_or_else(|| missing("snapshot"))?;
                let at = then.columns.iter().position(|column| self.now(&table, &column.name) == now);
                let at = at.ok_or_else(|| missing("snapshot"))?;
                let was = &then.columns[at].type_name;
                // A snapshot that was taken since has the new keys.
                if *was != live.type_name {
                    if integer(was).is_none() {
                        let reason = no_integer(was);
                        return Err(CompareError::Changed { table: table.to_string(), column: now, reason });
                    }
                    let keys = Arc::new(Keys::new(then, at, sql, &live.type_name, live.wire == Wire::Text));
                    self.keys.push(keys.clone());
                    self.led.insert((table.clone(), now), keys);
                }
            }
        }
        if self.keys.is_empty() {
            return Ok(());
        }
        let references = self.all_references();
        loop {
            let open = references.iter().filter(|(from, _)| !self.led.contains_key(from));
            let more: Vec<(At, Arc<Keys>)> =
                open.filter_map(|(from, to)| Some((from.clone(), self.led.get(to)?.clone()))).collect();
            if more.is_empty() {
                return Ok(());
            }
            self.led.extend(more);
        }
    }

    /// Which column refers to which.
    fn all_references(&self) -> Vec<(At, At)> {
        let mut found = Vec::new();
        for table in &self.catalog.tables {
            for constraint in &table.constraints {
                let Some(to) = &constraint.references else { continue };
                let columns = constraint.columns.iter().zip(&to.columns);
                found.extend(
                    columns.map(|(own, there)| ((table.name.clone(), own.clone()), (to.table.clone(), there.clone()))),
                );
            }
        }
        for (table, columns, to) in self.profile.references() {
            let (table, name) = (self.name(table), self.name(to));
            let live = self.catalog.table(&name.schema, &name.name).and_then(|live| live.primary_key());
            let Some(key) = self.profile.key(to).or(live.map(|key| &key.columns)) else { continue };
            found.extend(columns.into_iter().zip(key).map(|(own, there)| {
                let own = (table.clone(), self.now(&table, own).to_owned());
                (own, (name.clone(), self.now(&name, there).to_owned()))
            }));
        }
        found
    }

    /// A column of a table that is read in the live store alone refers to what `to` holds: it must do so by keys as they are now.
    pub(super) fn refers_to_new_keys(
        &self,
        table: &TableName,
        column: &str,
        to: &SourceColumn,
    ) -> Result<(), CompareError> {
        let Some(Widened::Keys(keys)) = &to.widened else { return Ok(()) };
        let live = self.catalog.table(&table.schema, &table.name);
        let own = live.and_then(|live| live.live_columns().find(|own| own.name == column));
        match own {
            Some(own) if !is_like(&own.type_name, &keys.kind) => {
                let (table, column) = (table.to_string(), column.to_owned());
                Err(CompareError::Changed { table, column, reason: refers(keys, &own.type_name) })
            }
            _ => Ok(()),
        }
    }

    /// The keys that a column of a table holds or refers to, if they became others.
    pub(in crate::compare::layout) fn led(&self, table: &TableName, column: &str) -> Option<&Arc<Keys>> {
        self.led.get(&(table.clone(), column.to_owned()))
    }
}
