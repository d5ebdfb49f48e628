//! What a writer remembers outside the storage, so that a storage that was rolled back is found out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::context::read_optional;
use crate::repository::manifest::StoreIdentity;
use crate::repository::snapshots::Snapshot;

/// The number of the last snapshot of each store that this writer made, kept beside its key: whoever rolls the bucket back
/// cannot roll this back with it.
pub struct Heads {
    path: PathBuf,
    numbers: BTreeMap<String, u64>,
}

impl Heads {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let numbers = match read_optional(path)? {
            Some(text) => serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?,
            None => BTreeMap::new(),
        };
        Ok(Self { path: path.to_owned(), numbers })
    }

    /// With a single store its number; several are told apart once the server was asked.
    pub fn newest(&self) -> Option<u64> {
        (self.numbers.len() == 1).then(|| self.numbers.values().copied().next()).flatten()
    }

    pub fn record(mut self, store: &StoreIdentity, sequence: u64) -> anyhow::Result<()> {
        self.numbers.insert(label(store), sequence);
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, &self.numbers)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// In words, each store whose newest snapshot is older than the last one that this writer made.
    pub fn behind(&self, snapshots: &[Snapshot]) -> Vec<String> {
        let newest = |store: &str| {
            let of_store = snapshots.iter().filter(|snapshot| label(&snapshot.manifest.store) == store);
            of_store.map(|snapshot| snapshot.manifest.sequence).max().unwrap_or(0)
        };
        let behind = self.numbers.iter().filter(|(store, number)| newest(store) < **number);
        behind
            .map(|(store, number)| {
                let found = newest(store);
                format!(
                    "the storage is behind this writer: its last snapshot of {store} had number {number}, the newest one \
                     found has {found}; somebody deleted snapshots or rolled back the storage"
                )
            })
            .collect()
    }
}

fn label(store: &StoreIdentity) -> String {
    let system = store.system_identifier.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
    format!("{system}/{}", store.database)
}
