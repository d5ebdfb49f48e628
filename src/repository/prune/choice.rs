//! Which packs are needed for a set of chunks, and where else the needed chunks of the others lie.

use std::cmp::Reverse;
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
        let mut shared: HashMap<PackId, usize> = HashMap::new();
        several.iter().flatten().for_each(|pack| *shared.entry(*pack).or_default() += 1);
        // The one that saves most others: what was put together, before what it was put together from. The same whoever chooses.
        let rank = |pack: &PackId| {
            let size = index.pack(pack).map_or(0, |info| info.size);
            (shared.get(pack).copied(), Reverse(size), Reverse(*pack))
        };
        let mut chosen: HashSet<PackId> = HashSet::new();
        for places in &several {
            match lasting(places) {
                none if none.is_empty() => chosen.extend(places),
                lasting if lasting.iter().any(|pack| choice.needed.contains(pack)) => {}
                lasting => chosen.extend(lasting.into_iter().max_by_key(rank)),
            }
        }
        choice.needed.extend(chosen);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::chunk::{ChunkKind, Codec};
    use crate::repository::id::{ObjectId, SignerId};
    use crate::repository::pack::{Entry, PackInfo};

    fn index(packs: &[(u8, &[u8])]) -> Index {
        let mut index = Index::default();
        for (pack, chunks) in packs {
            let entry = |n: &u8| Entry {
                id: ChunkId([*n; 32]),
                slot: 0,
                codec: Codec::Raw,
                ordinal: 0,
                offset: 0,
                stored_length: 0,
                raw_length: 0,
            };
            let info = PackInfo {
                id: PackId([*pack; 32]),
                kind: ChunkKind::Meta,
                size: 0,
                data_start: 0,
                slots: Vec::new(),
                entries: chunks.iter().map(entry).collect(),
            };
            index.add(info, SignerId([0; 32]), ObjectId([0; 32]));
        }
        index
    }

    /// Which of three packs are needed for the chunks 1 and 2, and where those of the others lie.
    fn chosen(packs: &[(u8, &[u8])], tombstoned: &[u8]) -> Vec<(u8, bool, Vec<u8>)> {
        let tombstoned = tombstoned.iter().map(|pack| PackId([*pack; 32])).collect();
        let choice = Choice::new(&index(packs), [ChunkId([1; 32]), ChunkId([2; 32])].iter(), &tombstoned);
        let of = |pack: &u8| {
            let id = PackId([*pack; 32]);
            (*pack, choice.needs(&id), choice.survivors(&id).map(|survivor| survivor.0[0]).collect())
        };
        packs.iter().map(|(pack, _)| of(pack)).collect()
    }

    #[test]
    fn of_a_chunk_in_several_packs_one_stays_that_is_not_about_to_go() {
        let both: [(u8, &[u8]); 3] = [(10, &[1]), (20, &[1, 9]), (30, &[2])];
        assert_eq!(chosen(&both, &[]), [(10, true, vec![]), (20, false, vec![10]), (30, true, vec![])]);
        assert_eq!(chosen(&both, &[10]), [(10, false, vec![20]), (20, true, vec![]), (30, true, vec![])]);
        // Two passes marked one each: none may rely on the other.
        assert_eq!(chosen(&both, &[10, 20]), [(10, true, vec![]), (20, true, vec![]), (30, true, vec![])]);
        let in_one: [(u8, &[u8]); 3] = [(10, &[1]), (20, &[1, 2]), (30, &[9])];
        assert_eq!(chosen(&in_one, &[]), [(10, false, vec![20]), (20, true, vec![]), (30, false, vec![])]);
        assert_eq!(chosen(&in_one, &[20]), [(10, true, vec![]), (20, true, vec![]), (30, false, vec![])]);
    }
}
