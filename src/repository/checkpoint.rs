//! Checkpoints: finished segments of a snapshot that is not finished, so that the next run goes on from them.
//!
//! A checkpoint promises nothing of the storage: whoever takes a segment over looks whether its chunks are there. It tells what the
//! server was when the run began, as a manifest does, with the token that the run left at the marker.

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::envelope::{self, ObjectKind};
use super::error::RepositoryError;
use super::id::{Digest, SignerId};
use super::manifest::{ServerSummary, StoreIdentity, Table};
use super::name::NameKind;
use super::seal::fill_random;
use super::segment::SegmentEntry;
use crate::storage::ObjectName;

/// The body of a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkpoint {
    pub version: u32,
    pub store: StoreIdentity,
    pub started: Timestamp,
    /// The instant that the run reads, and the server.
    pub taken: Timestamp,
    pub server: ServerSummary,
    /// Tables with segments that are finished since the object before. Their `pages` are empty, their sums are zero.
    pub tables: Vec<CheckpointTable>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointTable {
    pub table: Table,
    /// Numbers and entries.
    pub segments: Vec<(u32, SegmentEntry)>,
}

/// The checkpoints of one run.
#[derive(Debug, Clone)]
pub struct Run {
    pub id: Digest,
    /// In the order in which they were written.
    pub checkpoints: Vec<Checkpoint>,
    pub names: Vec<ObjectName>,
}

/// Writes the checkpoints of a run.
pub struct CheckpointWriter<'a> {
    repository: &'a Repository,
    run: Digest,
    next: u32,
    written: Vec<ObjectName>,
}

impl<'a> CheckpointWriter<'a> {
    pub fn new(repository: &'a Repository) -> Result<Self, RepositoryError> {
        let mut run = [0; 16];
        fill_random(&mut run)?;
        Ok(Self { repository, run: Digest(run), next: 0, written: Vec::new() })
    }

    pub async fn write(&mut self, checkpoint: &Checkpoint) -> Result<(), RepositoryError> {
        let name = format!("{}{}/{}", folder(self.repository)?, self.run.to_hex(), self.next);
        let name = ObjectName::new(name).map_err(|e| RepositoryError::malformed("object name", e.to_string()))?;
        self.repository.put_signed(ObjectKind::Checkpoint, &name, checkpoint).await?;
        self.next += 1;
        self.written.push(name);
        Ok(())
    }

    /// Removes the run's checkpoints, and those of earlier runs: a snapshot of the store stands in their place. A storage that lets nobody
    /// delete keeps them; they mean nothing any more.
    pub async fn clear(self, earlier: &[Run], store: &StoreIdentity) {
        let is_over = |run: &&Run| run.checkpoints.first().is_none_or(|first| first.store == *store);
        let earlier = earlier.iter().filter(is_over).flat_map(|run| &run.names);
        for name in self.written.iter().chain(earlier) {
            let _ = self.repository.storage.delete(name).await;
        }
    }
}

fn folder(repository: &Repository) -> Result<String, RepositoryError> {
    Ok(format!("{}{}/", NameKind::Checkpoint.prefix(), repository.writer_key()?.signer()?.id().to_hex()))
}

/// Who wrote it, and what it says.
pub(super) async fn read(
    repository: &Repository,
    name: &ObjectName,
) -> Result<(SignerId, Checkpoint), RepositoryError> {
    let bytes = repository.storage.get(name).await?;
    let opened = envelope::read::<Checkpoint>(ObjectKind::Checkpoint, &repository.secrets, name, &bytes)?;
    Ok((opened.signer, opened.body))
}

/// The runs of this writer that were cut short. A checkpoint that does not open is as good as none, and ends its run.
pub async fn runs(repository: &Repository) -> Result<Vec<Run>, RepositoryError> {
    let folder = folder(repository)?;
    let names: Vec<ObjectName> = repository.storage.list(&folder).map_ok(|meta| meta.name).try_collect().await?;
    let mut placed: Vec<(Digest, u32, ObjectName)> = names
        .into_iter()
        .filter_map(|name| {
            let (run, number) = name.as_str().strip_prefix(&folder)?.split_once('/')?;
            Some((run.parse().ok()?, number.parse().ok()?, name.clone()))
        })
        .collect();
    placed.sort();
    let signer = repository.writer_key()?.signer()?.id();
    let mut runs: Vec<Run> = Vec::new();
    for (id, number, name) in placed {
        if runs.last().is_none_or(|run| run.id != id) {
            runs.push(Run { id, checkpoints: Vec::new(), names: Vec::new() });
        }
        let Some(run) = runs.last_mut() else { continue };
        run.names.push(name.clone());
        if number as usize != run.checkpoints.len() {
            continue;
        }
        match read(repository, &name).await {
            Ok((by, checkpoint)) if by == signer && checkpoint.version == 1 => run.checkpoints.push(checkpoint),
            Ok(_) => {}
            Err(e) if e.is_about_an_object() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(runs)
}
