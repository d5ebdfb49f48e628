//! What was done, in the repository: a chain of signed entries for each writer. An entry names the one before it by its hash, so that none
//! can be taken out, changed or put in between without being seen. What is missing at the end only the writer notices, who remembers his
//! last entry outside the storage ([`Memory`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::GuardError;
use super::state::{Folder, write_durably};
use crate::repository::id::{ObjectId, SignerId};
use crate::repository::{Repository, RepositoryError, changes};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A policy was put in force.
    Policy,
    Approved,
    /// The guard began with a change: nothing of it is run yet.
    Begun,
    /// Its commands are about to be run. After this no approval of this form of the change counts any more.
    Commands,
    Failed,
    /// Somebody went on from a change that had not ended.
    Released,
    Ended,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    pub number: u64,
    /// Hash of the entry before it.
    pub previous: Option<ObjectId>,
    pub at: Timestamp,
    pub event: Event,
    /// The account and host that did it.
    pub by: String,
    /// Absent: it is about no change.
    pub id: Option<String>,
    /// Hash of the change's canonical text.
    pub change: Option<ObjectId>,
    pub policy: Option<ObjectId>,
    pub snapshot: Option<ObjectId>,
    /// Sentences: who signed, what was waived and why, what was found.
    pub notes: Vec<String>,
}

/// What an entry is about.
#[derive(Debug, Clone, Default)]
pub struct About {
    pub id: Option<String>,
    pub change: Option<ObjectId>,
    pub policy: Option<ObjectId>,
    pub snapshot: Option<ObjectId>,
    pub notes: Vec<String>,
}

/// An entry with the writer who signed it.
#[derive(Debug, Clone, Serialize)]
pub struct Signed {
    pub signer: SignerId,
    #[serde(flatten)]
    pub entry: Entry,
}

/// All entries, oldest first, and what is wrong with the chains.
#[derive(Debug, Default)]
pub struct Log {
    pub entries: Vec<Signed>,
    pub problems: Vec<String>,
    heads: BTreeMap<SignerId, (u64, ObjectId)>,
}

impl Log {
    pub async fn load(repository: &Repository) -> Result<Self, GuardError> {
        let mut log = Self::default();
        for name in changes::names(repository, "log/").await? {
            let found = match changes::read::<Entry>(repository, name.clone()).await {
                Ok(found) => found,
                Err(e) if e.is_about_an_object() => {
                    log.problems.push(e.to_string());
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let entry = found.record;
            let (number, before) =
                log.heads.get(&found.signer).map_or((1, None), |(number, id)| (number + 1, Some(*id)));
            if name.as_str() != format!("changes/{}", place(&found.signer, entry.number)) {
                log.problems.push(format!("object {name} does not lie in the log of the writer who signed it"));
                continue;
            }
            if entry.number != number || entry.previous != before {
                log.problems.push(format!(
                    "log entry {name} does not follow the one before it: entries are missing or were replaced"
                ));
            }
            log.heads.insert(found.signer, (entry.number, found.id));
            log.entries.push(Signed { signer: found.signer, entry });
        }
        log.entries.sort_by_key(|signed| signed.entry.at);
        Ok(log)
    }

    /// Were the commands of exactly this change begun before?
    pub fn was_run(&self, change: &ObjectId) -> Option<&Entry> {
        let mut entries = self.entries.iter().map(|signed| &signed.entry);
        entries.find(|entry| entry.event == Event::Commands && entry.change == Some(*change))
    }

    /// Was another change of this id run before?
    pub fn knows_id(&self, id: &str) -> Option<&Entry> {
        let mut entries = self.entries.iter().map(|signed| &signed.entry);
        entries.find(|entry| entry.event == Event::Commands && entry.id.as_deref() == Some(id))
    }

    /// Adds an entry of ours.
    pub async fn append(
        &mut self,
        repository: &Repository,
        memory: &Memory,
        event: Event,
        about: About,
    ) -> Result<(), GuardError> {
        let signer = repository.writer_key()?.signer()?.id();
        let (number, previous) = self.heads.get(&signer).map_or((1, None), |(number, id)| (number + 1, Some(*id)));
        let About { id, change, policy, snapshot, notes } = about;
        let entry =
            Entry { number, previous, at: Timestamp::now(), event, by: by(), id, change, policy, snapshot, notes };
        let put = changes::put(repository, &place(&signer, number), &entry).await?;
        self.heads.insert(signer, (number, put));
        self.entries.push(Signed { signer, entry });
        memory.remember(&signer, number, put)
    }
}

fn place(signer: &SignerId, number: u64) -> String {
    format!("log/{signer}/{number:08}")
}

fn by() -> String {
    let account = whoami::username().unwrap_or_else(|_| "?".into());
    let host = whoami::hostname().unwrap_or_else(|_| "?".into());
    format!("{account}@{host}")
}

/// The last entry that was written from here, outside the storage: whoever rolls that back cannot roll this back with it.
pub struct Memory {
    path: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    signer: SignerId,
    number: u64,
    id: ObjectId,
}

impl Memory {
    /// In the guard's folder.
    pub fn of(folder: &Path) -> Self {
        Self { path: folder.join("log.json") }
    }

    fn remember(&self, signer: &SignerId, number: u64, id: ObjectId) -> Result<(), GuardError> {
        if let Some(folder) = self.path.parent() {
            Folder { path: folder.to_owned() }.make()?;
        }
        write_durably(&self.path, &Remembered { signer: *signer, number, id })
    }

    /// An error when the log in the storage ends before the entry that was last written from here.
    pub fn check(&self, log: &Log) -> Result<(), GuardError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(GuardError::file(&self.path, e)),
        };
        let last: Remembered = serde_json::from_str(&text).map_err(|e| GuardError::file(&self.path, e))?;
        match log.heads.get(&last.signer) {
            Some((number, _)) if *number > last.number => Ok(()),
            Some((number, id)) if *number == last.number && *id == last.id => Ok(()),
            found => {
                let found = found.map_or(0, |(number, _)| *number);
                Err(GuardError::Repository(RepositoryError::RolledBack { expected: last.number, found }))
            }
        }
    }
}
