//! The kinds of object that a repository holds, told by their names. `docs/format.md` lists the names; a check uses this to tell
//! what is Restante's from what somebody else left there, and tests use it to forget no kind.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::config;
use super::error::RepositoryError;
use super::id::{ObjectId, PackId};
use super::ring::ring_place;
use crate::storage::ObjectName;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NameKind {
    /// `repository.json`, the first version of the configuration.
    Configuration,
    /// `config/<n>-<hash>`
    LaterConfiguration,
    /// `keys/<epoch>/<n>-<hash>.age`
    KeyRing,
    /// `packs/<hh>/<id>`
    Pack,
    /// `index/<id>`
    Index,
    /// `snapshots/<time>-<id>`
    Manifest,
    /// `certificates/<snapshot>`
    Certificate,
    /// `checkpoints/<writer>/<run>/<n>`
    Checkpoint,
    /// `leases/<writer>/<run>`
    Lease,
    /// `tombstones/<pack>/<pass>`, `tombstones/<pack>/damaged`
    Tombstone,
    /// `forgotten/<snapshot>`
    Forgotten,
    /// `holds/<snapshot>`
    Hold,
    /// `verified/<time>-<id>`
    Verified,
    /// `drills/<time>-<id>`
    Drill,
    Change,
    Replay,
}

impl NameKind {
    pub const ALL: [Self; 16] = [
        Self::Configuration,
        Self::LaterConfiguration,
        Self::KeyRing,
        Self::Pack,
        Self::Index,
        Self::Manifest,
        Self::Certificate,
        Self::Checkpoint,
        Self::Lease,
        Self::Tombstone,
        Self::Forgotten,
        Self::Hold,
        Self::Verified,
        Self::Drill,
        Self::Change,
        Self::Replay,
    ];

    /// With what the names begin.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Configuration => config::NAME,
            Self::LaterConfiguration => "config/",
            Self::KeyRing => "keys/",
            Self::Pack => "packs/",
            Self::Index => "index/",
            Self::Manifest => "snapshots/",
            Self::Certificate => "certificates/",
            Self::Checkpoint => "checkpoints/",
            Self::Lease => "leases/",
            Self::Tombstone => "tombstones/",
            Self::Forgotten => "forgotten/",
            Self::Hold => "holds/",
            Self::Verified => "verified/",
            Self::Drill => "drills/",
            Self::Change => "changes/",
            Self::Replay => "replays/",
        }
    }

    /// The object of this kind whose name ends so.
    pub fn named(self, rest: impl fmt::Display) -> Result<ObjectName, RepositoryError> {
        ObjectName::new(format!("{}{rest}", self.prefix()))
            .map_err(|e| RepositoryError::malformed("object name", e.to_string()))
    }

    /// `<prefix><time>-<id>`: the time sorts, the id proves.
    pub fn dated(self, at: Timestamp, id: &ObjectId) -> Result<ObjectName, RepositoryError> {
        self.named(format_args!("{}-{id}", at.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// `None`: no object of Restante has such a name.
    pub fn of(name: &ObjectName) -> Option<Self> {
        let kind = Self::ALL.into_iter().find(|kind| name.as_str().starts_with(kind.prefix()))?;
        let rest = &name.as_str()[kind.prefix().len()..];
        let numbered = |text: &str| text.split_once('-').is_some_and(|(_, hash)| hash.parse::<ObjectId>().is_ok());
        let fits = match kind {
            Self::Configuration => rest.is_empty(),
            Self::LaterConfiguration | Self::Manifest | Self::Verified | Self::Drill => numbered(rest),
            Self::KeyRing => ring_place(name).is_some(),
            Self::Pack => pack_of(name).is_some(),
            Self::Index | Self::Certificate | Self::Forgotten | Self::Hold => rest.parse::<ObjectId>().is_ok(),
            Self::Tombstone => rest.split_once('/').is_some_and(|(pack, _)| pack.parse::<PackId>().is_ok()),
            Self::Checkpoint | Self::Lease | Self::Change | Self::Replay => true,
        };
        fits.then_some(kind)
    }
}

/// The pack that lies under this name.
pub fn pack_of(name: &ObjectName) -> Option<PackId> {
    let (folder, id) = name.as_str().strip_prefix(NameKind::Pack.prefix())?.split_once('/')?;
    id.starts_with(folder).then_some(()).filter(|()| folder.len() == 2).and_then(|()| id.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_kind_and_a_strange_one_has_none() {
        let hash = "ab".repeat(32);
        let known = [
            ("repository.json".to_owned(), NameKind::Configuration),
            (format!("config/2-{hash}"), NameKind::LaterConfiguration),
            (format!("keys/1/3-{hash}.age"), NameKind::KeyRing),
            (format!("packs/ab/{hash}"), NameKind::Pack),
            (format!("index/{hash}"), NameKind::Index),
            (format!("snapshots/20140810T120000Z-{hash}"), NameKind::Manifest),
            (format!("certificates/{hash}"), NameKind::Certificate),
            (format!("tombstones/{hash}/7"), NameKind::Tombstone),
        ];
        for (name, kind) in known {
            assert_eq!(NameKind::of(&ObjectName::new(name).unwrap()), Some(kind));
        }
        let strange = [
            "repository.json.bak".to_owned(),
            format!("packs/ac/{hash}"),
            format!("packs/{hash}"),
            format!("index/x-{hash}"),
            format!("keys/1/3-{hash}"),
            "probe/1".to_owned(),
        ];
        for name in strange {
            assert_eq!(NameKind::of(&ObjectName::new(name).unwrap()), None);
        }
    }
}
