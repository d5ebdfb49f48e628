//! What a writer remembers outside the storage, so that a storage that was rolled back is found out.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::context::read_optional;
use crate::repository::RepositoryError;
use crate::repository::manifest::StoreIdentity;
use crate::repository::snapshots::Snapshot;
use crate::snapshot::Head;

/// The number of the last snapshot of each store that this writer made, kept beside its key: whoever rolls the bucket back
/// cannot roll this back with it.
pub struct Heads {
    path: PathBuf,
    pub heads: Vec<Head>,
}

impl Heads {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let heads = match read_optional(path)? {
            Some(text) => serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?,
            None => Vec::new(),
        };
        Ok(Self { path: path.to_owned(), heads })
    }

    pub fn record(mut self, store: &StoreIdentity, sequence: u64) -> anyhow::Result<()> {
        self.heads.retain(|head| head.store != *store);
        self.heads.push(Head { store: store.clone(), sequence });
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, &self.heads)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// What a storage that was rolled back does not show may be needed.
    pub fn check(&self, snapshots: &[Snapshot]) -> Result<(), RepositoryError> {
        let behind = self.heads.iter().map(|head| (head.sequence, newest(snapshots, &head.store)));
        match behind.into_iter().find(|(expected, found)| found < expected) {
            Some((expected, found)) => Err(RepositoryError::RolledBack { expected, found }),
            None => Ok(()),
        }
    }

    /// In words, each store whose newest snapshot is older than the last one that this writer made.
    pub fn behind(&self, snapshots: &[Snapshot]) -> Vec<String> {
        let behind = self.heads.iter().filter(|head| newest(snapshots, &head.store) < head.sequence);
        behind
            .map(|head| {
                let (found, number, store) = (newest(snapshots, &head.store), head.sequence, &head.store);
                format!(
                    "the storage is behind this writer: its last snapshot of {store} had number {number}, the newest one \
                     found has {found}; somebody deleted snapshots or rolled back the storage"
                )
            })
            .collect()
    }
}

/// The number of the newest snapshot of a store; 0: there is none.
fn newest(snapshots: &[Snapshot], store: &StoreIdentity) -> u64 {
    let of_store = snapshots.iter().filter(|snapshot| snapshot.manifest.store == *store);
    of_store.map(|snapshot| snapshot.manifest.sequence).max().unwrap_or(0)
}
