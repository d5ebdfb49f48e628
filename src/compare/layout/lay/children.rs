//! Rows that hang on others.

use super::{Child, Dictionary, Lay, Message, Table};
use crate::compare::error::CompareError;
use crate::profile;

impl Lay<'_> {
    /// `to`: where the key of the table `of` is.
    pub(super) fn child(&self, child: &profile::Child, of: &Table, to: Vec<usize>) -> Result<Child, CompareError> {
        let table = self.keyed(&child.table, child.natural.as_ref())?;
        let natural = match &child.natural {
            Some(natural) => self.columns(&table, natural)?,
            None => table.key.clone(),
        };
        let of = self.references(&table, child.columns.as_ref(), of)?;
        let mut set = self.assignments(&table, &child.set)?;
        if let Some(flags) = self.profile.flags.as_ref().filter(|flags| flags.table.as_ref() == Some(&child.table)) {
            set.extend(self.assignments(&table, &flags.set)?);
        }
        let issued = table.key.iter().copied();
        let issued = issued.filter(|at| !of.contains(at) && !natural.contains(at) && table.filled(*at)).collect();
        let refers = self.refers(&table, &child.references, &of)?;
        let foreign = self.foreign(&table, &of, &refers);
        Ok(Child { of, to, natural, set, issued, refers, foreign, mutable: child.mutable, table })
    }

    /// Rows that hang on those that name the parts of a mail belong to the mail.
    pub(super) fn under_via(&self, child: &profile::Child, via: &Child) -> Result<Child, CompareError> {
        let mut laid = self.child(child, &via.table, via.table.key.clone())?;
        let places = via.of.iter().map(|of| via.table.key.iter().position(|at| at == of)).collect::<Option<Vec<_>>>();
        let Some(places) = places else {
            return Err(CompareError::NotYet {
                what: "rows hang on others that name parts and do not say of which mail",
            });
        };
        laid.of = places.into_iter().map(|place| laid.of[place]).collect();
        laid.to = via.to.clone();
        Ok(laid)
    }

    /// The columns of header fields that say something: all but what a copy of the mail has another of.
    pub(super) fn header(
        &self,
        child: &Child,
        mail: &Message,
        dictionaries: &[Dictionary],
    ) -> Result<Vec<usize>, CompareError> {
        if mail.content.as_ref().is_some_and(|content| child.to != [content.of]) {
            return Err(CompareError::NotYet { what: "header fields hang on links" });
        }
        let columns = child.table.all().into_iter();
        let columns: Vec<usize> = columns.filter(|at| !child.of.contains(at) && !child.issued.contains(at)).collect();
        let mut values = columns.iter().filter_map(|at| child.dictionary(*at)).map(|kind| &dictionaries[kind]);
        if values.any(|one| one.refers.iter().any(|(at, _)| one.natural.contains(at))) {
            return Err(CompareError::NotYet { what: "header fields refer to values that refer to others" });
        }
        Ok(columns)
    }
}
