//! Tombstones: "nothing new may rely on this pack". `tombstones/<pack>/<pass>` says that it is about to be deleted: one for each pack and pass, so
//! that no pass takes away what another relies on. `tombstones/<pack>/damaged` says that a check found other bytes than were put: what lies in it is stored
//! again where the store still has it, and when nothing needs the pack any more it goes like any other.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::envelope::{self, ObjectKind, Opened};
use crate::repository::id::{Digest, PackId};
use crate::repository::name::NameKind;
use crate::repository::{Repository, RepositoryError};
use crate::storage::{ObjectName, Storage, StorageError};

/// In the place of a pass.
const DAMAGED: &str = "damaged";
const NO_PASS: Digest = Digest([0; Digest::LENGTH]);

/// The body of `tombstones/<pack>/<pass>` and `tombstones/<pack>/damaged`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tombstone {
    pub version: u32,
    pub pack: PackId,
    /// Random; zero in `…/damaged`.
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

/// The pack that `tombstones/<pack>/damaged` tells of.
pub fn damaged_in(name: &ObjectName) -> Option<PackId> {
    pack_in(name).filter(|_| name.file_name() == DAMAGED)
}

/// Packs that nothing new may rely on, whatever their tombstones hold.
#[derive(Default)]
pub struct Unreliable {
    pub all: HashSet<PackId>,
    /// Of these: what a check found damaged.
    pub damaged: HashSet<PackId>,
}

pub async fn unreliable(storage: &dyn Storage) -> Result<Unreliable, RepositoryError> {
    let mut found = Unreliable::default();
    let mut listed = storage.list(NameKind::Tombstone.prefix());
    while let Some(meta) = listed.try_next().await? {
        found.all.extend(pack_in(&meta.name));
        found.damaged.extend(damaged_in(&meta.name));
    }
    Ok(found)
}

/// What a tombstone says.
pub async fn read(repository: &Repository, name: &ObjectName) -> Result<Tombstone, RepositoryError> {
    let bytes = repository.storage.get(name).await?;
    let Opened { signer, epoch, body } =
        envelope::read::<Tombstone>(ObjectKind::Tombstone, &repository.secrets, name, &bytes)?;
    // A verifier marks what is damaged, not what goes.
    if damaged_in(name).is_none() && !repository.secrets.epoch(epoch)?.signers.contains(&signer) {
        return Err(RepositoryError::UnknownSigner { name: name.clone(), signer });
    }
    let pass = if body.pass == NO_PASS { DAMAGED.to_owned() } else { body.pass.to_string() };
    if body.version == 1 && format!("{}/{pass}", body.pack) == name.as_str()[NameKind::Tombstone.prefix().len()..] {
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

fn damaged_name(pack: &PackId) -> Result<ObjectName, RepositoryError> {
    NameKind::Tombstone.named(format!("{pack}/{DAMAGED}"))
}

/// Says that a pack is damaged.
pub async fn mark_damaged(repository: &Repository, pack: &PackId) -> Result<(), RepositoryError> {
    let tombstone =
        Tombstone { version: 1, pack: *pack, pass: NO_PASS, marked: Timestamp::now(), survivors: Vec::new() };
    match repository.put_signed(ObjectKind::Tombstone, &damaged_name(pack)?, &tombstone).await {
        // Somebody else found it too.
        Err(RepositoryError::Storage(StorageError::AlreadyExists { .. })) => Ok(()),
        other => other,
    }
}

/// Says that a pack is sound again: somebody brought it back.
pub async fn unmark_damaged(repository: &Repository, pack: &PackId) -> Result<(), RepositoryError> {
    Ok(repository.storage.delete(&damaged_name(pack)?).await?)
}

/// By pack: the tombstones and when the storage wrote them.
pub(super) type Tombstones = HashMap<PackId, Vec<(ObjectName, Timestamp)>>;
