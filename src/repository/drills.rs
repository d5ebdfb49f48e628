//! The drills that were held: `drills/<time>-<id>`, signed, for the history of recovery times.

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::envelope::ObjectKind;
use super::id::ObjectId;
use super::name::NameKind;
use super::{Repository, RepositoryError};
use crate::storage::ObjectName;

/// How a drill went: the body of `drills/<time>-<id>`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Drill {
    pub version: u32,
    pub snapshot: ObjectId,
    /// When the snapshot was taken.
    pub taken: Timestamp,
    pub began: Timestamp,
    /// The major version of the server that was restored into.
    pub server: u32,
    pub tables: u64,
    pub rows: u64,
    pub value_bytes: u64,
    pub sequences: u64,
    pub constraints: u64,
    pub indexes: u64,
    /// Until every row was there and every constraint checked: the recovery time, without what it takes to get a server.
    pub recovery_seconds: f64,
    pub compare_seconds: f64,
    /// Absent: there was no such command.
    pub check_seconds: Option<f64>,
    /// Sentences; none: what was restored is what was there.
    pub differences: Vec<String>,
}

impl Drill {
    pub fn is_proven(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Adds one.
pub async fn write(repository: &Repository, drill: &Drill) -> Result<(), RepositoryError> {
    repository.put_dated(ObjectKind::Drill, NameKind::Drill, drill.began, drill).await
}

/// All of them, oldest first, and why some were left out.
pub async fn list(repository: &Repository) -> Result<(Vec<Drill>, Vec<RepositoryError>), RepositoryError> {
    let listed = repository.storage.list(NameKind::Drill.prefix());
    let mut names: Vec<ObjectName> = listed.map_ok(|meta| meta.name).try_collect().await?;
    names.sort();
    let (mut drills, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        match read(repository, &name).await {
            Ok(drill) => drills.push(drill),
            Err(e) if e.is_about_an_object() => problems.push(e),
            Err(e) => return Err(e),
        }
    }
    Ok((drills, problems))
}

/// Is this object what its name says? For checks.
pub async fn check(repository: &Repository, name: &ObjectName) -> Result<(), RepositoryError> {
    read(repository, name).await.map(drop)
}

async fn read(repository: &Repository, name: &ObjectName) -> Result<Drill, RepositoryError> {
    let (kind, place) = (ObjectKind::Drill, NameKind::Drill);
    let drill = repository.get_dated(kind, place, name, |drill: &Drill| drill.began).await?.body;
    if drill.version == 1 {
        Ok(drill)
    } else {
        let message = "it was written by a newer program".to_owned();
        Err(RepositoryError::Damaged { name: name.clone(), message })
    }
}
