//! Tombstones: "this pack is about to be deleted". One for each pack and pass, so that no pass takes away what another relies on.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::envelope::{self, ObjectKind};
use crate::repository::id::{Digest, PackId};
use crate::repository::name::NameKind;
use crate::repository::{Repository, RepositoryError};
use crate::storage::{ObjectName, Storage};

/// The body of `tombstones/<pack>/<pass>`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tombstone {
    pub version: u32,
    pub pack: PackId,
    /// Random.
    pub pass: Digest,
    /// By the clock of whoever wrote it.
    pub marked: Timestamp,
    /// Where those of its chunks lie that are needed.
    pub survivors: Vec<PackId>,
}

/// The pack that a tombstone's name tells of.
pub(super) fn pack_in(name: &ObjectName) -> Option<PackId> {
    name.as_str().strip_prefix(NameKind::Tombstone.prefix())?.split('/').next()?.parse().ok()
}

/// The packs that have a tombstone, whatever it holds: nothing new may rely on them.
pub async fn tombstoned(storage: &dyn Storage) -> Result<HashSet<PackId>, RepositoryError> {
    let listed = storage.list(NameKind::Tombstone.prefix());
    Ok(listed.try_filter_map(async |meta| Ok(pack_in(&meta.name))).try_collect().await?)
}

/// What a tombstone says.
pub async fn read(repository: &Repository, name: &ObjectName) -> Result<Tombstone, RepositoryError> {
    let bytes = repository.storage.get(name).await?;
    let body = envelope::read::<Tombstone>(ObjectKind::Tombstone, &repository.secrets, name, &bytes)?.body;
    if body.version == 1
        && format!("{}/{}", body.pack, body.pass) == name.as_str()[NameKind::Tombstone.prefix().len()..]
    {
        Ok(body)
    } else {
        let message = "it tells of another pack, or was written by a newer program".to_owned();
        Err(RepositoryError::Damaged { name: name.clone(), message })
    }
}

/// Marks a pack.
pub(super) async fn write(repository: &Repository, tombstone: &Tombstone) -> Result<(), RepositoryError> {
    let name = NameKind::Tombstone.named(format!("{}/{}", tombstone.pack, tombstone.pass))?;
    repository.put_signed(ObjectKind::Tombstone, &name, tombstone).await
}

/// By pack: the tombstones and when the storage wrote them.
pub(super) type Tombstones = HashMap<PackId, Vec<(ObjectName, Timestamp)>>;
