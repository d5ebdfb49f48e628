//! What the guard keeps below `changes/`: policies, approvals, and its log. All are signed objects of one
//! kind; each says under which name it lies, so that none passes for another.
//!
//! ```text
//! changes/policies/<n>                      the policies of the repository, counted from 1
//! changes/approvals/<change>/<signature>    who approved a change: an OpenSSH signature over its canonical form
//! changes/log/<signer>/<n>                  what was done, a chain for each writer, counted from 1
//! ```
//! What the records mean, `guard` knows. Numbers in names have eight digits, so that lists are in order.

use futures_util::TryStreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Repository;
use super::envelope::{self, ObjectKind};
use super::error::RepositoryError;
use super::id::{ObjectId, SignerId};
use super::name::NameKind;
use crate::storage::{ObjectMeta, ObjectName, StorageError};

/// The body of an object below `changes/`.
#[derive(Debug, Serialize, Deserialize)]
struct Body<T> {
    version: u32,
    /// Under which it lies.
    name: String,
    record: T,
}

/// A record as it was found.
#[derive(Debug, Clone)]
pub struct Found<T> {
    pub name: ObjectName,
    pub signer: SignerId,
    /// Hash of the object's bytes: what the next link of a chain names.
    pub id: ObjectId,
    pub record: T,
}

/// Puts a record under `changes/<rest>` and reads it back; its hash. A name that is taken by another record is an error.
pub async fn put<T: Serialize>(repository: &Repository, rest: &str, record: &T) -> Result<ObjectId, RepositoryError> {
    let name = NameKind::Change.named(rest)?;
    let body = Body { version: 1, name: name.to_string(), record };
    let bytes = repository.sign(ObjectKind::Change, &body)?;
    let id = ObjectId::of(&bytes);
    super::writer::put_checked(&*repository.storage, &name, bytes).await?;
    Ok(id)
}

/// One record; `None`: there is none of that name.
pub async fn get<T: DeserializeOwned>(
    repository: &Repository,
    rest: &str,
) -> Result<Option<Found<T>>, RepositoryError> {
    match read(repository, NameKind::Change.named(rest)?).await {
        Err(RepositoryError::Storage(StorageError::NotFound { .. })) => Ok(None),
        other => other.map(Some),
    }
}

/// The names below `changes/<prefix>`, in order.
pub async fn names(repository: &Repository, prefix: &str) -> Result<Vec<ObjectName>, RepositoryError> {
    Ok(metas(repository, prefix).await?.into_iter().map(|meta| meta.name).collect())
}

/// The same with sizes and times.
pub async fn metas(repository: &Repository, prefix: &str) -> Result<Vec<ObjectMeta>, RepositoryError> {
    let prefix = format!("{}{prefix}", NameKind::Change.prefix());
    let mut metas: Vec<ObjectMeta> = repository.storage.list(&prefix).try_collect().await?;
    metas.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(metas)
}

/// Opens the record that lies under a name.
pub async fn read<T: DeserializeOwned>(repository: &Repository, name: ObjectName) -> Result<Found<T>, RepositoryError> {
    let bytes = repository.storage.get(&name).await?;
    let opened = envelope::read::<Body<T>>(ObjectKind::Change, &repository.secrets, &name, &bytes)?;
    if opened.body.version != 1 || opened.body.name != name.as_str() {
        let message = "it was written for another name, or by a newer program".to_owned();
        return Err(RepositoryError::Damaged { name, message });
    }
    Ok(Found { name, signer: opened.signer, id: ObjectId::of(&bytes), record: opened.body.record })
}
