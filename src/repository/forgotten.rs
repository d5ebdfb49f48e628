//! Snapshots that are forgotten, and those that are held.
//!
//! Forgetting removes nothing: a signed object says that the snapshot is not wanted, and from when on a prune may remove it. Until then it can be
//! taken back. A hold keeps a snapshot from being forgotten.
//!
//! * A snapshot is forgotten only if the object opens and was signed in the epoch that counts now: who may only write to the storage, or has
//!   keys that were replaced, hides nothing.
//! * A hold counts by its name alone: one that is damaged keeps the snapshot all the same.
//! * Both names may come again after they were removed, unlike all others: nothing is concluded from their absence but at the instant
//!   that it is asked for.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Repository;
use super::envelope::{self, ObjectKind, Opened};
use super::error::RepositoryError;
use super::id::{Epoch, ObjectId};
use super::name::NameKind;
use super::secrets::Secrets;
use super::snapshots::Snapshot;
use super::writer::certificate_name;
use crate::storage::{self, ObjectName, Storage, StorageError};

/// How long a forgotten snapshot can be taken back as a rule.
pub const GRACE: SignedDuration = SignedDuration::from_hours(72);

/// The body of `forgotten/<snapshot>` and of `holds/<snapshot>`.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    version: u32,
    snapshot: ObjectId,
    /// By the clock of whoever made it.
    made: Timestamp,
    /// Seconds, from the time at which the storage wrote this object: so long nothing is removed. Of a hold 0.
    grace: u32,
}

/// The names of an `<id>` each that lie below a prefix, with the time at which the storage wrote them.
async fn ids_below(storage: &dyn Storage, kind: NameKind) -> Result<HashMap<ObjectId, Timestamp>, RepositoryError> {
    let listed = storage.list(kind.prefix());
    let ids = listed.try_filter_map(async |meta| Ok(meta.name.file_name().parse().ok().map(|id| (id, meta.modified))));
    Ok(ids.try_collect().await?)
}

/// Snapshots that somebody says are forgotten, and when the storage heard of it. Whether that counts, [`removable`] tells.
pub(super) async fn claimed(storage: &dyn Storage) -> Result<HashMap<ObjectId, Timestamp>, RepositoryError> {
    ids_below(storage, NameKind::Forgotten).await
}

/// The snapshots that are held.
pub async fn held(storage: &dyn Storage) -> Result<HashSet<ObjectId>, RepositoryError> {
    Ok(ids_below(storage, NameKind::Hold).await?.into_keys().collect())
}

/// Opens what says that a snapshot is forgotten or held.
async fn read(storage: &dyn Storage, secrets: &Secrets, name: &ObjectName) -> Result<Opened<Mark>, RepositoryError> {
    let kind = if NameKind::of(name) == Some(NameKind::Hold) { ObjectKind::Hold } else { ObjectKind::Forgotten };
    let opened = envelope::read::<Mark>(kind, secrets, name, &storage.get(name).await?)?;
    if opened.body.version == 1 && opened.body.snapshot.to_hex() == name.file_name() {
        Ok(opened)
    } else {
        let message = "it tells of another snapshot, or was written by a newer program".to_owned();
        Err(RepositoryError::Damaged { name: name.clone(), message })
    }
}

/// Is this object what its name says? For checks.
pub async fn check(repository: &Repository, name: &ObjectName) -> Result<(), RepositoryError> {
    read(&*repository.storage, &repository.secrets, name).await.map(drop)
}

/// From when on a prune may remove a snapshot of which `forgotten/…` was written at `stored`; `None`: it is not forgotten.
pub(super) async fn removable(
    storage: &dyn Storage,
    secrets: &Secrets,
    epoch: Epoch,
    snapshot: &ObjectId,
    stored: Timestamp,
) -> Result<Option<Timestamp>, RepositoryError> {
    let opened = match read(storage, secrets, &NameKind::Forgotten.named(snapshot)?).await {
        Err(RepositoryError::Storage(StorageError::NotFound { .. })) => return Ok(None),
        other => other?,
    };
    let grace = SignedDuration::from_secs(opened.body.grace.into());
    Ok((opened.epoch >= epoch).then(|| stored.saturating_add(grace).unwrap_or(Timestamp::MAX)))
}

/// Manifests that do not open, and are not forgotten: only by their ids can they be given up.
pub async fn unreadable(repository: &Repository, all: &[Snapshot]) -> Result<Vec<ObjectId>, RepositoryError> {
    let known: HashSet<ObjectId> = all.iter().map(|one| one.id).collect();
    let claimed = claimed(&*repository.storage).await?;
    let listed = repository.storage.list(NameKind::Manifest.prefix());
    let ids = listed.try_filter_map(async |meta| Ok(id_in(&meta.name)));
    Ok(ids.try_filter(|id| std::future::ready(!known.contains(id) && !claimed.contains_key(id))).try_collect().await?)
}

/// The id in the name of a manifest.
pub(super) fn id_in(manifest: &ObjectName) -> Option<ObjectId> {
    manifest.file_name().rsplit('-').next()?.parse().ok()
}

/// Forgets a snapshot: it is not listed any more, and goes with a prune when `grace` is over. [`super::retention`] says which may be.
pub async fn forget(
    repository: &Repository,
    snapshot: &ObjectId,
    grace: SignedDuration,
) -> Result<(), RepositoryError> {
    let name = NameKind::Forgotten.named(snapshot)?;
    let (storage, epoch) = (&*repository.storage, repository.config.epoch);
    match removable(storage, &repository.secrets, epoch, snapshot, Timestamp::UNIX_EPOCH).await {
        // Somebody else was faster.
        Ok(Some(_)) => return Ok(()),
        // One that is there all the same does not count.
        Ok(None) => storage.delete(&name).await?,
        Err(e) if e.is_about_an_object() => storage.delete(&name).await?,
        Err(e) => return Err(e),
    }
    let grace = grace.as_secs().clamp(0, u32::MAX.into()) as u32;
    let body = Mark { version: 1, snapshot: *snapshot, made: Timestamp::now(), grace };
    unless_there(repository.put_signed(ObjectKind::Forgotten, &name, &body).await)
}

/// Somebody else was faster, and said the same.
fn unless_there(done: Result<(), RepositoryError>) -> Result<(), RepositoryError> {
    match done {
        Err(RepositoryError::Storage(StorageError::AlreadyExists { .. })) => Ok(()),
        other => other,
    }
}

/// How a snapshot was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// It is there, and stays.
    Kept,
    /// It is there, but a prune that is running may have decided to remove it.
    Doubtful,
}

/// Takes a forgotten snapshot back; an error if a prune has removed it.
pub async fn undo(repository: &Repository, snapshot: &Snapshot) -> Result<Undone, RepositoryError> {
    let storage = &*repository.storage;
    storage.delete(&NameKind::Forgotten.named(snapshot.id)?).await?;
    // In this order: a prune that looks after this instant keeps it.
    let now = storage::now(storage).await?;
    let needed =
        [Some(snapshot.name()?), snapshot.certificate.is_some().then(|| certificate_name(&snapshot.id)).transpose()?];
    for name in needed.into_iter().flatten() {
        if storage.head(&name).await?.is_none() {
            return Err(RepositoryError::Pruned { snapshot: snapshot.id });
        }
    }
    let is_sure = snapshot.removable.is_none_or(|removable| now < removable);
    Ok(if is_sure { Undone::Kept } else { Undone::Doubtful })
}

/// Keeps a snapshot from being forgotten.
pub async fn hold(repository: &Repository, snapshot: &ObjectId) -> Result<(), RepositoryError> {
    let name = NameKind::Hold.named(snapshot)?;
    let body = Mark { version: 1, snapshot: *snapshot, made: Timestamp::now(), grace: 0 };
    unless_there(repository.put_signed(ObjectKind::Hold, &name, &body).await)
}

/// Lets a snapshot be forgotten again.
pub async fn release(repository: &Repository, snapshot: &ObjectId) -> Result<(), RepositoryError> {
    Ok(repository.storage.delete(&NameKind::Hold.named(snapshot)?).await?)
}
