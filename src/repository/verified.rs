//! What was hashed, and how it was found: `verified/<time>-<id>`, signed, one object or more a run. So a job that may read ten gigabytes a night
//! takes those packs that nobody looked at for the longest time, and those that failed before any other.
//!
//! Times are those that were signed, not the storage's: whoever runs the storage could make a pack look as if it had just been hashed. A pack that no record
//! names was last looked at when it was put: it was fetched back and opened then. A record counts only if it was signed in the epoch that counts
//! now: keys that were replaced make no pack look sound.
//!
//! In memory: about 40 bytes for each pack that was ever hashed in this epoch.

use std::collections::{HashMap, HashSet};

use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::envelope::ObjectKind;
use super::id::{Epoch, PackId};
use super::name::NameKind;
use super::{Repository, RepositoryError};
use crate::storage::ObjectName;

/// So many packs at most are in one record.
pub const RECORD_PACKS: usize = 100_000;
/// So long a record stays that later ones replaced.
const KEPT: SignedDuration = SignedDuration::from_hours(24 * 366);
/// Of the packs' ids so many bytes are written down.
const PREFIX: usize = 16;
type Prefix = [u8; PREFIX];

fn prefix(pack: &PackId) -> Prefix {
    let mut prefix = [0; PREFIX];
    prefix.copy_from_slice(&pack.0[..PREFIX]);
    prefix
}

/// The body of `verified/<time>-<id>`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    ended: Timestamp,
    /// The first 16 bytes of the ids of packs that had their hash, one after the other, ascending.
    #[serde(with = "serde_bytes")]
    sound: Vec<u8>,
    /// Packs that had not, or were not there.
    failed: Vec<PackId>,
}

/// Writes down what was hashed a moment ago.
pub async fn write(repository: &Repository, sound: &HashSet<PackId>, failed: &[PackId]) -> Result<(), RepositoryError> {
    let mut sound: Vec<Prefix> = sound.iter().map(prefix).collect();
    sound.sort_unstable();
    let ended = Timestamp::now();
    let record = Record { version: 1, ended, sound: sound.concat(), failed: failed.to_vec() };
    repository.put_dated(ObjectKind::Verified, NameKind::Verified, ended, &record).await
}

/// How a pack was found when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Checked {
    pub is_sound: bool,
    pub at: Timestamp,
}

/// All records together.
#[derive(Default)]
pub struct Log {
    /// By pack: the newest record that names it, and what that says.
    last: HashMap<Prefix, (usize, bool)>,
    records: Vec<(ObjectName, Timestamp)>,
    /// Why records were left out.
    pub problems: Vec<RepositoryError>,
}

impl Log {
    pub async fn read(repository: &Repository) -> Result<Self, RepositoryError> {
        let listed = repository.storage.list(NameKind::Verified.prefix());
        let names: Vec<ObjectName> = listed.map_ok(|meta| meta.name).try_collect().await?;
        let (mut log, mut counting) = (Self::default(), Vec::new());
        for name in names {
            match read(repository, &name).await {
                // What was signed in an epoch that is over can go.
                Ok((epoch, record)) if epoch < repository.config.epoch => log.records.push((name, record.ended)),
                Ok((_, record)) => counting.push((name, record)),
                Err(e) if e.is_about_an_object() => log.problems.push(e),
                Err(e) => return Err(e),
            }
        }
        counting.sort_by_key(|(_, record)| std::cmp::Reverse(record.ended));
        counting.into_iter().for_each(|(name, record)| log.add(name, record));
        Ok(log)
    }

    fn add(&mut self, name: ObjectName, record: Record) {
        let number = self.records.len();
        // A clock that was ahead makes nothing look newer than now.
        self.records.push((name, record.ended.min(Timestamp::now())));
        let (sound, _) = record.sound.as_chunks::<PREFIX>();
        let failed = record.failed.iter().map(|pack| (prefix(pack), false));
        for (pack, is_sound) in sound.iter().map(|pack| (*pack, true)).chain(failed) {
            self.last.entry(pack).or_insert((number, is_sound));
        }
    }

    /// How a pack was found last. `stored`: when it was put, if that is known.
    pub fn checked(&self, pack: &PackId, stored: Option<Timestamp>) -> Checked {
        match self.last.get(&prefix(pack)) {
            Some((record, is_sound)) => Checked { is_sound: *is_sound, at: self.records[*record].1 },
            None => Checked { is_sound: true, at: stored.unwrap_or(Timestamp::MIN) },
        }
    }

    /// Records that nobody needs any more: older than a year, and of every pack that is there a newer one tells.
    pub fn replaced<'a>(&self, present: impl Iterator<Item = &'a PackId>, now: Timestamp) -> Vec<ObjectName> {
        let needed: HashSet<usize> =
            present.filter_map(|pack| self.last.get(&prefix(pack))).map(|(record, _)| *record).collect();
        let is_old = |at: Timestamp| now.duration_since(at) > KEPT;
        let records = self.records.iter().enumerate();
        records
            .filter(|(number, (_, at))| !needed.contains(number) && is_old(*at))
            .map(|(_, (name, _))| name.clone())
            .collect()
    }
}

async fn read(repository: &Repository, name: &ObjectName) -> Result<(Epoch, Record), RepositoryError> {
    let (kind, place) = (ObjectKind::Verified, NameKind::Verified);
    let opened = repository.get_dated(kind, place, name, |record: &Record| record.ended).await?;
    if opened.body.version != 1 || opened.body.sound.len() % PREFIX != 0 {
        let message = "it was written by a newer program".to_owned();
        return Err(RepositoryError::Damaged { name: name.clone(), message });
    }
    Ok((opened.epoch, opened.body))
}
