//! Which packs are needed for a set of chunks, and where else the needed chunks of the others lie.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::repository::id::{ChunkId, PackId};
use crate::repository::index::Index;

#[derive(Default)]
pub struct Choice {
    needed: HashSet<PackId>,
    survivors: HashMap<PackId, BTreeSet<PackId>>,
}

impl Choice {
    /// `index`: of packs that are there. Of a chunk that lies in several, one is needed that is not `tombstoned`; if all are, all of them.
    pub fn new<'a>(index: &Index, chunks: impl Iterator<Item = &'a ChunkId>, tombstoned: &HashSet<PackId>) -> Self {
        let mut choice = Self::default();
        let mut several: Vec<BTreeSet<PackId>> = Vec::new();
        for id in chunks {
            let places: BTreeSet<PackId> =
                index.find(id).into_iter().chain(index.others(id)).map(|(info, _)| info.id).collect();
            if places.len() > 1 { several.push(places) } else { choice.needed.extend(places) }
        }
        let lasting = |places: &BTreeSet<PackId>| -> Vec<PackId> {
            places.iter().filter(|pack| !tombstoned.contains(*pack)).copied().collect()
        };
        for places in &several {
            match lasting(places).as_slice() {
                [] => choice.needed.extend(places),
                lasting if lasting.iter().any(|pack| choice.needed.contains(pack)) => {}
                // The same whoever chooses.
                [first, ..] => drop(choice.needed.insert(*first)),
            }
        }
        for places in &several {
            let stays = lasting(places).into_iter().find(|pack| choice.needed.contains(pack));
            for pack in places.iter().filter(|pack| !choice.needed.contains(*pack)) {
                choice.survivors.entry(*pack).or_default().extend(stays);
            }
        }
        choice
    }

    pub fn needs(&self, pack: &PackId) -> bool {
        self.needed.contains(pack)
    }

    /// The packs that hold what is needed of one that is not.
    pub fn survivors(&self, pack: &PackId) -> impl Iterator<Item = &PackId> {
        self.survivors.get(pack).into_iter().flatten()
    }
}
