//! What the tables of a mail store mean.
//!
//! The catalog tells keys, foreign keys, sequences and triggers; a profile tells only what it cannot say: which table holds
//! mailboxes, how UIDs are issued, which clock a column follows, how the user's own deletions are recorded. It is TOML of about
//! fifteen lines a store and may be written, or corrected, on the day of the incident: snapshots need none.
//!
//! [`Profile::parse`] refuses what does not fit together and says where; [`Profile::validate`] holds a profile against a
//! catalog, from a live database or from a snapshot, and lists what does not fit. The layer reads text and does no input or
//! output; it uses nothing else of Restante. `compare` and `restore` are its users. Names of tables and columns of a
//! mail store stand in TOML only, never in Rust.

mod check;
pub mod model;
mod opaque;
mod references;
pub mod validate;

use std::ops::{Deref, Range};

use serde::{Deserialize, Deserializer};

pub use model::*;
pub use opaque::opaque_tables;
pub use validate::{CatalogView, Finding, ForeignKeyView, Severity, TableView};

/// Profiles that Restante ships.
const BUILTIN: [(&str, &str); 6] = [
    ("archiveopteryx", include_str!("builtin/archiveopteryx.toml")),
    ("dbmail", include_str!("builtin/dbmail.toml")),
    ("hyperkitty", include_str!("builtin/hyperkitty.toml")),
    ("james", include_str!("builtin/james.toml")),
    ("reference", include_str!("builtin/reference.toml")),
    ("sora", include_str!("builtin/sora.toml")),
];

/// A profile that fits together.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The file that it was read from, or the name of a built-in one.
    pub file: String,
    source: String,
    model: Model,
}

impl Profile {
    /// Reads a profile. `file` is named in errors and findings.
    pub fn parse(file: &str, toml: &str) -> Result<Self, ProfileError> {
        let model = toml::from_str(toml).map_err(|error| ProfileError::Unreadable {
            at: Place::of(file, toml, error.span().unwrap_or(0..0)),
            message: error.message().trim_end().to_owned(),
        })?;
        let profile = Self { file: file.to_owned(), source: toml.to_owned(), model };
        check::check(&profile)?;
        Ok(profile)
    }

    /// Takes in that something has another name since the snapshot: `table=new`, or `table.column=new`.
    pub fn rename(&mut self, text: &str) -> Result<(), String> {
        let parts = text.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty());
        let (old, new) = parts.ok_or_else(|| format!("{text:?}: write TABLE=NEW or TABLE.COLUMN=NEW"))?;
        match old.rsplit_once('.') {
            None => self.model.changed.entry(old.to_owned()).or_default().table = Some(new.to_owned()),
            Some((table, column)) => {
                let changed = self.model.changed.entry(table.to_owned()).or_default();
                changed.columns.insert(column.to_owned(), new.to_owned());
            }
        }
        Ok(())
    }

    /// A profile that Restante ships, by name.
    pub fn builtin(name: &str) -> Option<Result<Self, ProfileError>> {
        BUILTIN.iter().find(|(known, _)| *known == name).map(|(known, toml)| Self::parse(known, toml))
    }

    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// Where a part of this profile stands in its file.
    pub fn place<T>(&self, part: &Located<T>) -> Place {
        Place::of(&self.file, &self.source, part.span.clone())
    }

    /// The table whose rows lie in mailboxes: the link table, or the message table when that is the same.
    pub fn link_table(&self) -> &str {
        self.link.table.as_deref().unwrap_or(&self.message.table)
    }

    /// The row of the message is the one that lies in the mailbox.
    pub fn message_is_link(&self) -> bool {
        self.link.table.is_none()
    }
}

impl Deref for Profile {
    type Target = Model;
    fn deref(&self) -> &Model {
        &self.model
    }
}

/// A place in the text of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The TOML table, such as `[mailbox]`; empty above the first.
    pub table: String,
}

impl Place {
    fn of(file: &str, text: &str, span: Range<usize>) -> Self {
        let mut before = text.get(..span.start).unwrap_or(text);
        // The header of a table stands in front of what is in it.
        let line_end = text[before.len()..].find('\n').map_or(text.len(), |end| before.len() + end);
        let table = text[..line_end].lines().rev().find(|line| line.starts_with('['));
        let table = table.map_or("", |line| line.split('#').next().unwrap_or_default().trim_end()).to_owned();
        let line = before.matches('\n').count() + 1;
        before = &before[before.rfind('\n').map_or(0, |at| at + 1)..];
        Self { file: file.to_owned(), line, column: before.chars().count() + 1, table }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, line {}, column {}", self.file, self.line, self.column)?;
        if self.table.is_empty() { Ok(()) } else { write!(f, ", in {}", self.table) }
    }
}

/// A part of a profile that remembers where it stands.
#[derive(Debug, Clone)]
pub struct Located<T> {
    span: Range<usize>,
    value: T,
}

impl<T> Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        Ok(Self { span: spanned.span(), value: spanned.into_inner() })
    }
}

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    #[error("{at}: {message}")]
    Unreadable { at: Place, message: String },
    #[error("{at}: {message}")]
    Inconsistent { at: Place, message: String },
}

impl ProfileError {
    pub fn place(&self) -> &Place {
        match self {
            Self::Unreadable { at, .. } | Self::Inconsistent { at, .. } => at,
        }
    }
}

#[cfg(test)]
mod tests;
