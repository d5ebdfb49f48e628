//! What is needed of many small packs, or of packs that nothing else in them is needed of, put together in new ones. Sealed chunks are copied as they are, so
//! it takes no reader's key. Nothing is removed here: a chunk lies in two packs afterwards, and later passes keep the new one (`super::choice`).

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::{Pass, Present, fragments};
use crate::repository::RepositoryError;
use crate::repository::chunk::ChunkKind;
use crate::repository::id::{ChunkId, PackId};
use crate::repository::index::{FRAGMENT_CHUNKS, Fragment, FragmentPack, Index};
use crate::repository::pack::{PackInfo, SealedCopy};
use crate::repository::reader::{pack_name, run_blocking};
use crate::repository::writer::put_checked;

/// As large as packs are made.
const FULL: u64 = 16 << 20;
/// Smaller ones are put together, when there are some.
const SMALL: u64 = FULL / 4;
const SOME: usize = 8;

/// A pack of which something is wanted.
struct Source<'a> {
    info: &'a PackInfo,
    stored: Timestamp,
    /// Bytes of sealed chunks.
    wanted: u64,
}

impl Source<'_> {
    /// Less than half of it is wanted.
    fn is_mostly_dead(&self) -> bool {
        let all = self.info.entries.iter().map(|entry| u64::from(entry.stored_length)).sum::<u64>();
        2 * self.wanted < all
    }

    fn is_small(&self) -> bool {
        u64::from(self.info.size) < SMALL
    }
}

/// Packs that become one each, of one kind, those of one time together; `most`: bytes to be read in all.
fn groups(mut sources: Vec<Source<'_>>, most: u64) -> Vec<Vec<Source<'_>>> {
    let count = |kind| sources.iter().filter(|one| one.info.kind == kind && one.is_small()).count();
    let small: HashMap<u8, bool> = ChunkKind::ALL.map(|kind| (kind.code(), count(kind) >= SOME)).into();
    sources.retain(|one| one.is_mostly_dead() || one.is_small() && small.get(&one.info.kind.code()) == Some(&true));
    sources.sort_by_key(|one| (one.info.kind.code(), one.stored, one.info.id));
    let mut groups: Vec<Vec<Source<'_>>> = Vec::new();
    let (mut wanted, mut read) = (0, 0);
    for one in sources {
        read += u64::from(one.info.size);
        if read > most {
            break;
        }
        match groups.last_mut().filter(|group| group[0].info.kind == one.info.kind && wanted + one.wanted <= FULL) {
            Some(group) => {
                wanted += one.wanted;
                group.push(one);
            }
            None => {
                wanted = one.wanted;
                groups.push(vec![one]);
            }
        }
    }
    groups.retain(|group| group.len() > 1 || group.iter().any(Source::is_mostly_dead));
    groups
}

impl Pass<'_> {
    /// `is_kept`: is it one of those that stay, and not about to go? `is_wanted`: does anything that stays need it?
    pub(super) async fn repack(
        &mut self,
        present: &Present,
        index: &Index,
        is_kept: impl Fn(&PackId) -> bool,
        is_wanted: impl Fn(&ChunkId) -> bool,
    ) -> Result<(), RepositoryError> {
        let old = |pack: &PackId| present.packs.get(pack).filter(|(_, stored)| *stored <= self.before_grace());
        let sources = index.packs().filter(|info| is_kept(&info.id)).filter_map(|info| {
            let stored = old(&info.id)?.1;
            let wanted = info.entries.iter().filter(|entry| is_wanted(&entry.id));
            Some(Source { info, stored, wanted: wanted.map(|entry| u64::from(entry.stored_length)).sum() })
        });
        let groups = groups(sources.collect(), self.options.repack);
        let mut made: Vec<PackInfo> = Vec::new();
        for group in &groups {
            group.iter().for_each(|one| self.report.repacked.add(u64::from(one.info.size)));
            if self.options.dry_run {
                self.report.repacked_into.add(group.iter().map(|one| one.wanted).sum());
                continue;
            }
            match self.put_together(group, &is_wanted).await {
                Ok(info) => {
                    self.report.repacked_into.add(u64::from(info.size));
                    made.push(info);
                }
                Err(e) if e.is_about_an_object() => self.unexpected(&e),
                Err(e) => return Err(e),
            }
            if made.iter().map(|info| info.entries.len()).sum::<usize>() >= FRAGMENT_CHUNKS {
                self.name(std::mem::take(&mut made)).await?;
            }
        }
        self.name(made).await
    }

    async fn put_together(
        &self,
        group: &[Source<'_>],
        is_wanted: impl Fn(&ChunkId) -> bool,
    ) -> Result<PackInfo, RepositoryError> {
        let (repository, epoch) = (self.repository, self.repository.writer_key()?.epoch);
        let mut copy = SealedCopy::new(group[0].info.kind);
        let mut known = HashSet::new();
        for one in group {
            let bytes = self.sound(&one.info.id).await?;
            copy.add(one.info, &bytes, |entry| is_wanted(&entry.id) && known.insert(entry.id))?;
        }
        let secrets = repository.secrets.clone();
        let (info, bytes) = run_blocking(move || copy.finish(&secrets, epoch)).await?;
        put_checked(&*repository.storage, &pack_name(&info.id)?, bytes).await?;
        Ok(info)
    }

    /// An index fragment for new packs. A pack that none names goes like any that nothing needs.
    async fn name(&self, packs: Vec<PackInfo>) -> Result<(), RepositoryError> {
        if packs.is_empty() {
            return Ok(());
        }
        let packs = packs.iter().map(FragmentPack::from).collect();
        fragments::put(self.repository, &Fragment { version: 1, level: 1, supersedes: Vec::new(), packs }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::chunk::Codec;
    use crate::repository::pack::Entry;

    fn info(n: u8, kind: ChunkKind, size: u64) -> PackInfo {
        let (id, size) = (PackId([n; 32]), size as u32);
        let (ordinal, stored_length) = (0, size);
        let entry =
            Entry { id: ChunkId(id.0), slot: 0, codec: Codec::Raw, ordinal, offset: 0, stored_length, raw_length: 0 };
        PackInfo { id, kind, size, data_start: 0, slots: Vec::new(), entries: vec![entry] }
    }

    /// Which packs come together: number, kind, size and what is wanted of it.
    fn together(packs: &[(u8, ChunkKind, u64, u64)], most: u64) -> Vec<Vec<u8>> {
        let infos: Vec<PackInfo> = packs.iter().map(|(n, kind, size, _)| info(*n, *kind, *size)).collect();
        let source =
            |(info, of): (_, &(u8, ChunkKind, u64, u64))| Source { info, stored: Timestamp::UNIX_EPOCH, wanted: of.3 };
        let groups = groups(infos.iter().zip(packs).map(source).collect(), most);
        groups.iter().map(|group| group.iter().map(|one| one.info.id.0[0]).collect()).collect()
    }

    #[test]
    fn small_packs_come_together_when_there_are_some_and_mostly_dead_ones_alone_too() {
        use ChunkKind::{Payload, Row};
        let small = |count: u8| (0..count).map(|n| (n, Row, 1 << 20, 1 << 20)).collect::<Vec<_>>();
        assert!(together(&small(SOME as u8 - 1), u64::MAX).is_empty());
        assert_eq!(together(&small(20), u64::MAX), [(0..16).collect::<Vec<_>>(), (16..20).collect()]);
        // One that would stay alone is not copied for nothing.
        assert_eq!(together(&small(17), u64::MAX), [(0..16).collect::<Vec<_>>()]);
        assert_eq!(together(&small(20), 3 << 20), [[0, 1, 2]]);
        let mut kinds = small(SOME as u8);
        kinds[3].1 = Payload;
        assert!(together(&kinds, u64::MAX).is_empty());
        assert_eq!(together(&[(1, Row, 10 << 20, 4 << 20), (2, Row, 10 << 20, 5 << 20)], u64::MAX), [[1]]);
        assert!(together(&[(1, Row, 10 << 20, 4 << 20)], 9 << 20).is_empty());
        // A short chunk takes less than its line in the directory: that is not dead, or it would be copied for ever.
        let mut short = info(1, Row, 300);
        short.entries[0].stored_length = 50;
        assert!(groups(vec![Source { info: &short, stored: Timestamp::UNIX_EPOCH, wanted: 50 }], u64::MAX).is_empty());
    }
}
