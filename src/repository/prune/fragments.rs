//! The index without packs that go: fragments that name one are put together anew, and the old ones removed, before any pack is. Killed at any
//! instant it leaves an index that names every pack that stays.

use std::collections::HashSet;
use std::sync::Arc;

use crate::repository::envelope::ObjectKind;
use crate::repository::id::{ObjectId, PackId};
use crate::repository::index::{FRAGMENT_CHUNKS, Fragment, FragmentPack, Index};
use crate::repository::pack::PackInfo;
use crate::repository::reader::{fragment_name, read_fragment};
use crate::repository::writer::put_checked;
use crate::repository::{Repository, RepositoryError};
use crate::storage::{ObjectName, StorageError};

/// What a fragment that counts names.
struct Part {
    id: ObjectId,
    level: u32,
    supersedes: Vec<ObjectId>,
    packs: Vec<PackId>,
}

pub struct Fragments {
    /// Of packs that are there.
    pub index: Arc<Index>,
    parts: Vec<Part>,
    /// Replaced by others, but still there.
    replaced: Vec<ObjectId>,
}

impl Fragments {
    /// Reads all of them; those that do not open are told.
    pub async fn read(
        repository: &Repository,
        names: &[ObjectName],
        is_there: impl Fn(&PackInfo) -> bool,
    ) -> Result<(Self, Vec<RepositoryError>), RepositoryError> {
        let (mut read, mut problems) = (Vec::new(), Vec::new());
        for name in names {
            match read_fragment(&*repository.storage, &repository.secrets, name).await {
                Ok(fragment) => read.push(fragment),
                Err(e) if e.is_about_an_object() => problems.push(e),
                Err(e) => return Err(e),
            }
        }
        let superseded: HashSet<ObjectId> = read.iter().flat_map(|one| one.supersedes.iter().copied()).collect();
        let (mut index, mut parts, mut replaced) = (Index::default(), Vec::new(), Vec::new());
        for one in read {
            if superseded.contains(&one.id) {
                replaced.push(one.id);
                continue;
            }
            let packs = one.packs.iter().map(|pack| pack.id).collect();
            parts.push(Part { id: one.id, level: one.level, supersedes: one.supersedes, packs });
            for pack in one.packs.into_iter().filter(&is_there) {
                index.add(pack, one.signer, one.id);
            }
        }
        Ok((Self { index: index.into(), parts, replaced }, problems))
    }

    /// Writes the index without the packs that `stays` does not want. `hints`: the fragments that any manifest names, whose successors must be
    /// known. The packs that an old fragment still names, because the storage does not let it go yet.
    pub async fn without(
        &self,
        repository: &Repository,
        stays: impl Fn(&PackId) -> bool,
        hints: &HashSet<ObjectId>,
        locked: &mut Vec<ObjectName>,
    ) -> Result<HashSet<PackId>, RepositoryError> {
        let names_some = |part: &&Part| part.packs.iter().any(|pack| !stays(pack));
        let is_hinted = |part: &Part| hints.contains(&part.id) || part.supersedes.iter().any(|old| hints.contains(old));
        let is_useless = |part: &&Part| part.packs.is_empty() && !is_hinted(part);
        let changed: Vec<&Part> = self.parts.iter().filter(|part| names_some(part) || is_useless(part)).collect();
        let mut group: Vec<&Part> = Vec::new();
        let mut chunks = 0;
        let count = |part: &Part| {
            let stay = part.packs.iter().filter(|pack| stays(pack)).filter_map(|pack| self.index.pack(pack));
            stay.map(|info| info.entries.len()).sum::<usize>()
        };
        // Each new fragment holds all that its old ones named, so none needs another.
        for part in &changed {
            if !group.is_empty() && chunks + count(part) > FRAGMENT_CHUNKS {
                self.join(repository, &group, &stays, hints).await?;
                (group, chunks) = (Vec::new(), 0);
            }
            chunks += count(part);
            group.push(part);
        }
        if !group.is_empty() {
            self.join(repository, &group, &stays, hints).await?;
        }
        let mut named = HashSet::new();
        for part in &changed {
            if !delete(repository, &part.id, locked).await? {
                named.extend(part.packs.iter().copied());
            }
        }
        for id in &self.replaced {
            delete(repository, id, locked).await?;
        }
        Ok(named)
    }

    async fn join(
        &self,
        repository: &Repository,
        parts: &[&Part],
        stays: impl Fn(&PackId) -> bool,
        hints: &HashSet<ObjectId>,
    ) -> Result<(), RepositoryError> {
        let packs: Vec<FragmentPack> = parts
            .iter()
            .flat_map(|part| &part.packs)
            .filter(|pack| stays(pack))
            .filter_map(|pack| self.index.pack(pack))
            .map(FragmentPack::from)
            .collect();
        let earlier = parts.iter().flat_map(|part| &part.supersedes).filter(|old| hints.contains(*old));
        let mut supersedes: Vec<ObjectId> = parts.iter().map(|part| part.id).chain(earlier.copied()).collect();
        supersedes.sort_unstable();
        supersedes.dedup();
        if packs.is_empty() && !supersedes.iter().any(|old| hints.contains(old)) {
            return Ok(());
        }
        let level = parts.iter().map(|part| part.level).max().unwrap_or(0).saturating_add(1);
        put(repository, &Fragment { version: 1, level, supersedes, packs }).await
    }
}

pub(super) async fn put(repository: &Repository, fragment: &Fragment) -> Result<(), RepositoryError> {
    let bytes = repository.sign(ObjectKind::Index, fragment)?;
    put_checked(&*repository.storage, &fragment_name(&ObjectId::of(&bytes))?, bytes).await
}

/// `false`: the storage does not let it go yet.
async fn delete(repository: &Repository, id: &ObjectId, locked: &mut Vec<ObjectName>) -> Result<bool, RepositoryError> {
    let name = fragment_name(id)?;
    match repository.storage.delete(&name).await {
        Ok(()) => Ok(true),
        Err(StorageError::Locked { .. }) => {
            locked.push(name);
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}
