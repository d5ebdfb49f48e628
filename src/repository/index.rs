//! Which chunk lies in which pack. Index fragments are signed objects that list packs with their directories and key slots,
//! so that a reader fetches the ranges it needs and nothing else of a pack.
//!
//! In memory: an entry of 24 bytes a chunk for finding it (16 bytes of the id, pack, position) beside the pack's own
//! entries; the full id is compared on each hit.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;

use serde::{Deserialize, Serialize};

use super::chunk::ChunkKind;
use super::error::RepositoryError;
use super::id::{ChunkId, ObjectId, PackId, SignerId};
use super::pack::{self, Entry, PackInfo, Slot};

/// A fragment is closed at so many chunks (about 2.6 MB of records; the cap for a fragment is 8 MiB).
pub const FRAGMENT_CHUNKS: usize = 50_000;

/// The body of an index fragment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Fragment {
    pub version: u32,
    /// 0 as written by a snapshot, one more at each compaction.
    pub level: u32,
    /// Fragments that this one replaces.
    pub supersedes: Vec<ObjectId>,
    pub packs: Vec<FragmentPack>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct FragmentPack {
    pub id: PackId,
    pub kind: ChunkKind,
    pub size: u32,
    pub data_start: u32,
    pub slots: Vec<Slot>,
    /// As in a pack's directory.
    #[serde(with = "serde_bytes")]
    pub entries: Vec<u8>,
}

impl From<&PackInfo> for FragmentPack {
    fn from(info: &PackInfo) -> Self {
        Self {
            id: info.id,
            kind: info.kind,
            size: info.size,
            data_start: info.data_start,
            slots: info.slots.clone(),
            entries: pack::encode_entries(&info.entries),
        }
    }
}

impl FragmentPack {
    pub fn info(&self) -> Result<PackInfo, RepositoryError> {
        let entries = pack::decode_entries(&self.entries)?;
        if self.size as usize > pack::MAX_PACK || self.data_start > self.size {
            return Err(RepositoryError::malformed("index fragment", "a pack has a size that no pack can have"));
        }
        pack::check(self.kind, &self.slots, &entries, u64::from(self.size - self.data_start))?;
        Ok(PackInfo {
            id: self.id,
            kind: self.kind,
            size: self.size,
            data_start: self.data_start,
            slots: self.slots.clone(),
            entries,
        })
    }
}

#[derive(Clone, Copy)]
struct Place {
    pack: u32,
    entry: u32,
}

struct KnownPack {
    info: PackInfo,
    signer: SignerId,
    fragment: ObjectId,
}

/// The packs and chunks that this process knows of.
#[derive(Default)]
pub struct Index {
    packs: Vec<KnownPack>,
    numbers: HashMap<PackId, u32>,
    places: HashMap<[u8; 16], Place>,
    /// Of the few chunks that lie in several packs, the places after the first.
    more: HashMap<[u8; 16], Vec<Place>>,
    /// Fragments that were read, and those that they replace, with who tells now what they told.
    fragments: HashMap<ObjectId, ObjectId>,
}

fn prefix(id: &ChunkId) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix.copy_from_slice(&id.0[..16]);
    prefix
}

impl Index {
    /// Adding the same pack twice changes nothing.
    pub fn add(&mut self, info: PackInfo, signer: SignerId, fragment: ObjectId) {
        let number = self.packs.len() as u32;
        if *self.numbers.entry(info.id).or_insert(number) != number {
            return;
        }
        for (position, entry) in info.entries.iter().enumerate() {
            let place = Place { pack: number, entry: position as u32 };
            match self.places.entry(prefix(&entry.id)) {
                MapEntry::Vacant(first) => _ = first.insert(place),
                MapEntry::Occupied(first) => self.more.entry(*first.key()).or_default().push(place),
            }
        }
        self.packs.push(KnownPack { info, signer, fragment });
    }

    /// A fragment was read; it replaces others.
    pub fn add_fragment(&mut self, id: ObjectId, supersedes: &[ObjectId]) {
        self.fragments.extend(supersedes.iter().chain([&id]).map(|one| (*one, id)));
    }

    /// The fragment that was read and tells what this one told: itself, or one that replaced it.
    pub fn current(&self, fragment: &ObjectId) -> Option<ObjectId> {
        self.fragments.get(fragment).copied()
    }

    /// Forgets the packs that `keep` does not want; a chunk that lies in another one too is found there. `false`: none was forgotten.
    pub fn forget_packs(&mut self, keep: impl Fn(&PackInfo) -> bool) -> bool {
        if self.packs.iter().all(|known| keep(&known.info)) {
            return false;
        }
        let Self { packs, fragments, .. } = std::mem::take(self);
        self.fragments = fragments;
        for known in packs.into_iter().filter(|known| keep(&known.info)) {
            self.add(known.info, known.signer, known.fragment);
        }
        true
    }

    /// Finds chunks in the packs that `first` wants before it finds them in others.
    pub fn prefer(&mut self, first: impl Fn(&PackInfo) -> bool) {
        let Self { packs, fragments, .. } = std::mem::take(self);
        self.fragments = fragments;
        let (wanted, others): (Vec<_>, Vec<_>) = packs.into_iter().partition(|known| first(&known.info));
        for known in wanted.into_iter().chain(others) {
            self.add(known.info, known.signer, known.fragment);
        }
    }

    pub fn find(&self, id: &ChunkId) -> Option<(&PackInfo, &Entry)> {
        self.at(self.places.get(&prefix(id))?, id)
    }

    /// Where else a chunk lies.
    pub fn others(&self, id: &ChunkId) -> impl Iterator<Item = (&PackInfo, &Entry)> {
        self.more.get(&prefix(id)).into_iter().flatten().filter_map(|place| self.at(place, id))
    }

    fn at(&self, place: &Place, id: &ChunkId) -> Option<(&PackInfo, &Entry)> {
        let info = &self.packs.get(place.pack as usize)?.info;
        let entry = info.entries.get(place.entry as usize)?;
        (entry.id == *id).then_some((info, entry))
    }

    /// Who signed the fragment that named the pack: deduplication trusts its own writer only.
    pub fn signer(&self, pack: &PackId) -> Option<SignerId> {
        self.packs.get(*self.numbers.get(pack)? as usize).map(|known| known.signer)
    }

    /// The fragment that named the pack.
    pub fn fragment(&self, pack: &PackId) -> Option<ObjectId> {
        self.packs.get(*self.numbers.get(pack)? as usize).map(|known| known.fragment)
    }

    pub fn pack(&self, id: &PackId) -> Option<&PackInfo> {
        self.packs.get(*self.numbers.get(id)? as usize).map(|known| &known.info)
    }

    pub fn packs(&self) -> impl Iterator<Item = &PackInfo> {
        self.packs.iter().map(|known| &known.info)
    }

    pub fn chunk_count(&self) -> usize {
        self.places.len()
    }
}
