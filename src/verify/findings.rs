//! What a check found, for people and for programs (`docs/json.md`).

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use crate::repository::RepositoryError;
use crate::repository::id::ObjectId;
use crate::storage::ObjectName;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Something that is referenced is not there.
    Missing,
    /// Bytes that are not those that were written.
    Damaged,
    /// Key objects that this key does not know, or that are not its repository's.
    Keys,
    /// The newest snapshot of a store was not finished.
    Uncertified,
    /// Rows that do not come out as they went in.
    Rows,
    /// Rows of the live store that are not what they were, though nobody changed them.
    Live,
    /// A snapshot whose time is not the storage's.
    Dated,
    /// A snapshot or a check that should have been made by now.
    Overdue,
    /// Left behind by an interrupted run, or not Restante's: harmless.
    Leftover,
}

#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub kind: FindingKind,
    pub object: Option<ObjectName>,
    /// A sentence that names the object.
    pub message: String,
    /// The snapshots that cannot be restored in full because of it, as far as that is known.
    pub snapshots: BTreeSet<ObjectId>,
}

impl Finding {
    pub fn new(kind: FindingKind, message: impl Into<String>) -> Self {
        Self { kind, object: None, message: message.into(), snapshots: BTreeSet::new() }
    }

    pub fn at(mut self, object: &ObjectName) -> Self {
        self.object = Some(object.clone());
        self
    }

    pub fn of(mut self, snapshot: &ObjectId) -> Self {
        self.snapshots.insert(*snapshot);
        self
    }

    /// Damage becomes a finding about `object`, or about the one that the error names. No access, no connection: an error.
    pub fn from_error(error: RepositoryError, object: Option<&ObjectName>) -> Result<Self, RepositoryError> {
        use crate::storage::StorageError::NotFound;
        if !error.is_about_an_object() {
            return Err(error);
        }
        let kind = match &error {
            RepositoryError::Storage(NotFound { .. })
            | RepositoryError::MissingChunk { .. }
            | RepositoryError::Unindexed { .. } => FindingKind::Missing,
            RepositoryError::KeyObject(_) | RepositoryError::KeyObjectsChanged { .. } => FindingKind::Keys,
            _ => FindingKind::Damaged,
        };
        let object = error.object().or(object).cloned();
        let mut message = error.to_string();
        if let Some(object) = object.as_ref().filter(|object| !message.contains(object.as_str())) {
            message = format!("object {object}: {message}");
        }
        Ok(Self { kind, object, message, snapshots: BTreeSet::new() })
    }
}

/// Collects findings; of several about one object the first is kept, with the snapshots of all.
#[derive(Default)]
pub struct Findings {
    list: Vec<Finding>,
    known: HashMap<String, usize>,
}

impl Findings {
    pub fn add(&mut self, finding: Finding) {
        let subject = finding.object.as_ref().map_or_else(|| finding.message.clone(), |object| object.to_string());
        match self.known.get(&subject) {
            Some(at) => self.list[*at].snapshots.extend(finding.snapshots),
            None => {
                self.known.insert(subject, self.list.len());
                self.list.push(finding);
            }
        }
    }

    /// See [`Finding::from_error`].
    pub fn add_error(
        &mut self,
        error: RepositoryError,
        object: Option<&ObjectName>,
        snapshots: impl IntoIterator<Item = ObjectId>,
    ) -> Result<(), RepositoryError> {
        let mut finding = Finding::from_error(error, object)?;
        finding.snapshots.extend(snapshots);
        self.add(finding);
        Ok(())
    }

    pub fn about(&self, object: &ObjectName) -> bool {
        self.known.contains_key(object.as_str())
    }

    pub fn into_list(self) -> Vec<Finding> {
        self.list
    }
}
