//! What a prune removes, what it leaves, and what stops it, over a storage in memory whose clock the tests turn.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use jiff::SignedDuration;

use super::protocol::{GRACE, certified_is_whole, content, open, snapshot};
use super::storage::Memory;
use super::whole::{made, manifest, reader};
use super::world::World;
use crate::monitor::{SharedMonitor, Silent};
use crate::repository::chunk::ChunkKind;
use crate::repository::forgotten::{self, Undone};
use crate::repository::id::{ChunkId, ObjectId, PackId};
use crate::repository::manifest::{Manifest, Schema};
use crate::repository::name::pack_of;
use crate::repository::prune::{Amount, PruneOptions, Report, prune, tombstone};
use crate::repository::reader::{ChunkReader, load_index};
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::verified;
use crate::repository::writer::RepositoryWriter;
use crate::repository::{Repository, RepositoryError};
use crate::storage::ObjectName;

struct Place {
    storage: Arc<Memory>,
    world: Arc<World>,
    repository: Repository,
}

impl Place {
    async fn new() -> Self {
        let storage = Memory::new();
        let key = made(&storage, &[&reader()]).await;
        let world = World::new(storage.clone());
        let repository = open(world.seen_by(None), &key).await;
        Self { storage, world, repository }
    }

    /// A snapshot of these contents, and a day.
    async fn snapshot(&self, contents: &[u64]) -> ObjectId {
        let id = snapshot(&self.repository, contents, false, self.world.now()).await.unwrap();
        self.world.pass(SignedDuration::from_hours(24));
        id
    }

    async fn found(&self, id: ObjectId) -> Option<Snapshot> {
        snapshots::list_all(&self.repository).await.unwrap().0.into_iter().find(|one| one.id == id)
    }

    async fn forget(&self, id: ObjectId) {
        forgotten::forget(&self.repository, &self.found(id).await.unwrap().id, GRACE).await.unwrap();
    }

    async fn prune(&self) -> Report {
        self.pruned(false).await.unwrap()
    }

    async fn pruned(&self, dry_run: bool) -> Result<Report, RepositoryError> {
        self.repacked(0, dry_run).await
    }

    async fn repacked(&self, repack: u64, dry_run: bool) -> Result<Report, RepositoryError> {
        let monitor: SharedMonitor = Arc::new(Silent);
        let options = PruneOptions { grace: GRACE, listing_delay: Duration::ZERO, repack, dry_run };
        prune(&self.repository, &options, &monitor).await
    }

    fn days(&self, n: i64) {
        self.world.pass(SignedDuration::from_hours(24 * n));
    }

    fn count(&self, prefix: &str) -> usize {
        self.storage.names(prefix).len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_forgotten_snapshot_alone_needs_goes_in_two_passes() {
    let place = Place::new().await;
    let (old, new) = (place.snapshot(&[1, 2]).await, place.snapshot(&[2, 3]).await);
    place.days(5);
    assert_eq!(place.prune().await.marked, Amount::default(), "everything is needed");
    place.forget(old).await;
    let before = place.storage.objects.lock().unwrap().clone();
    // By the clock of this machine, which is years ahead.
    let would = place.pruned(true).await.unwrap();
    assert_eq!(would.snapshots, [old]);
    assert!(would.marked.packs > 0 && *place.storage.objects.lock().unwrap() == before, "a dry run");
    let marked = place.prune().await;
    assert_eq!((marked.marked, marked.removed, marked.snapshots.len()), (would.marked, Amount::default(), 0));
    // Before the grace is over nothing goes, and all of it can be taken back.
    place.days(2);
    let waits = place.prune().await;
    assert_eq!((waits.waiting, waits.removed, waits.snapshots.len()), (marked.marked, Amount::default(), 0));
    let snapshot = place.found(old).await.unwrap();
    assert_eq!(forgotten::undo(&place.repository, &snapshot).await.unwrap(), Undone::Kept);
    place.days(2);
    let again = place.prune().await;
    assert_eq!((again.needed_again, again.removed), (marked.marked, Amount::default()), "it is needed again");
    place.forget(old).await;
    place.days(4);
    let gone = place.prune().await;
    assert_eq!((gone.snapshots, gone.removed), (vec![old], marked.marked));
    assert!(place.found(old).await.is_none() && certified_is_whole(&place.repository, "after it").await == 1);
    assert_eq!((place.count("tombstones/"), place.count("certificates/")), (0, 1));
    // The index names what is there and nothing else, and the next snapshot may rely on all of it.
    let index = load_index(&*place.storage, &place.repository.secrets, None).await.unwrap();
    assert_eq!(index.packs().count(), place.count("packs/"));
    let writer = RepositoryWriter::open(&place.repository, 1000).await.unwrap();
    assert!(writer.sink().is_sound(&place.found(new).await.unwrap().manifest.fragments));
    writer.abandon().await;
    place.days(4);
    place.prune().await;
    assert_eq!(place.count("forgotten/"), 0, "nobody asks for it any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_relies_on_what_is_marked() {
    let place = Place::new().await;
    let (old, _) = (place.snapshot(&[1]).await, place.snapshot(&[2]).await);
    place.days(5);
    place.forget(old).await;
    assert!(place.prune().await.marked.packs > 0);
    let packs = place.count("packs/");
    place.snapshot(&[1]).await;
    assert!(place.count("packs/") > packs, "it is stored anew");
    place.days(4);
    assert!(place.prune().await.removed.packs > 0);
    certified_is_whole(&place.repository, "the old place is gone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_two_places_stays_in_one_that_is_sound() {
    let place = Place::new().await;
    let old = place.snapshot(&[1]).await;
    place.snapshot(&[2]).await;
    place.days(5);
    place.forget(old).await;
    place.prune().await;
    let first = place.storage.names("packs/");
    place.snapshot(&[1]).await;
    // Needed in both places now: by the old one, which is taken back, and the new one.
    forgotten::undo(&place.repository, &place.found(old).await.unwrap()).await.unwrap();
    place.days(4);
    let twins: Vec<ObjectName> =
        place.storage.names("packs/").into_iter().filter(|name| !first.contains(name)).collect();
    let good: Vec<_> = twins.iter().map(|name| place.storage.bytes(name)).collect();
    for (name, bytes) in twins.iter().zip(&good) {
        let mut damaged = bytes.to_vec();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        place.storage.set(name, damaged);
    }
    let packs = place.count("packs/");
    // Metadata may not open at all then: either way nothing goes.
    let report = place.prune().await;
    assert!(!report.unexpected.is_empty() && place.count("packs/") == packs, "{report:?}");
    twins.iter().zip(good).for_each(|(name, bytes)| place.storage.set(name, bytes));
    let report = place.prune().await;
    assert!(report.removed.packs > 0 && report.unexpected.is_empty(), "{report:?}");
    assert_eq!(certified_is_whole(&place.repository, "one of two").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_and_was_stored_again_goes() {
    let place = Place::new().await;
    place.snapshot(&[1]).await;
    let damaged: Vec<PackId> = place.storage.names("packs/").iter().filter_map(pack_of).collect();
    for pack in &damaged {
        tombstone::mark_damaged(&place.repository, pack).await.unwrap();
        // Somebody else found it too.
        tombstone::mark_damaged(&place.repository, pack).await.unwrap();
    }
    place.days(5);
    // It is the last that holds its chunks.
    assert_eq!(place.prune().await.marked, Amount::default());
    place.snapshot(&[1]).await;
    assert_eq!(place.count("packs/"), 2 * damaged.len(), "nothing new relies on it");
    place.days(4);
    assert_eq!(place.prune().await.marked.packs, damaged.len() as u64);
    place.days(4);
    assert_eq!(place.prune().await.removed.packs, damaged.len() as u64);
    assert_eq!((place.count("tombstones/"), place.count("packs/")), (0, damaged.len()));
    assert_eq!(certified_is_whole(&place.repository, "stored again").await, 2);
    // Records of checks stay for a year, and as long as they tell of something that is there.
    let packs: HashSet<PackId> = place.storage.names("packs/").iter().filter_map(pack_of).collect();
    for _ in 0..2 {
        verified::write(&place.repository, &packs, &[]).await.unwrap();
    }
    place.prune().await;
    assert_eq!(place.count("verified/"), 2);
    // The clock of this machine is years ahead.
    place.days(30_000);
    place.prune().await;
    assert_eq!(place.count("verified/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn anything_unexpected_leaves_everything() {
    let place = Place::new().await;
    let (old, new) = (place.snapshot(&[1, 2]).await, place.snapshot(&[2, 3]).await);
    place.days(5);
    place.forget(old).await;
    place.prune().await;
    place.days(4);
    let sound = place.storage.objects.lock().unwrap().clone();
    let manifest = place.found(new).await.unwrap();
    let pages = &manifest.manifest.tables[0].pages;
    let chunks = ChunkReader::open(&place.repository, None).await.unwrap();
    let needed = crate::repository::reader::pack_name(&chunks.locate(&pages[0]).unwrap().0.id).unwrap();
    let spoiled = [
        manifest.name().unwrap(),
        place.storage.names("index/")[0].clone(),
        needed,
        place.storage.names("tombstones/")[0].clone(),
    ];
    for name in spoiled {
        place.storage.set(&name, "x");
        let before = place.storage.objects.lock().unwrap().clone();
        let report = place.prune().await;
        assert!(!report.unexpected.is_empty(), "{name}");
        let packs = |objects: &std::collections::BTreeMap<ObjectName, bytes::Bytes>| -> Vec<ObjectName> {
            objects
                .keys()
                .filter(|name| !name.as_str().starts_with("snapshots/"))
                .filter(|name| !name.as_str().starts_with("certificates/"))
                .cloned()
                .collect()
        };
        assert_eq!(packs(&place.storage.objects.lock().unwrap()), packs(&before), "{name}");
        *place.storage.objects.lock().unwrap() = sound.clone();
    }
    assert!(place.prune().await.removed.packs > 0, "sound again");
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_is_a_normal_answer() {
    let place = Place::new().await;
    let (old, _) = (place.snapshot(&[1, 2]).await, place.snapshot(&[2, 3]).await);
    place.days(5);
    place.forget(old).await;
    place.prune().await;
    place.days(4);
    for prefix in ["certificates/", "snapshots/", "index/", "packs/"] {
        *place.world.locked.lock().unwrap() = Some(prefix);
        let report = place.prune().await;
        assert!(!report.locked.is_empty() && report.removed == Amount::default(), "{prefix}: {report:?}");
        assert_eq!(report.unexpected, [""; 0], "{prefix}");
        certified_is_whole(&place.repository, prefix).await;
    }
    *place.world.locked.lock().unwrap() = None;
    assert!(place.prune().await.removed.packs > 0);
    assert_eq!(certified_is_whole(&place.repository, "unlocked").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_names_yet_gets_its_time() {
    let place = Place::new().await;
    place.snapshot(&[1]).await;
    place.days(5);
    // A run that stores and stands still.
    let store = async |n: u64| {
        let writer = RepositoryWriter::open(&place.repository, 1000).await.unwrap();
        let sink = writer.sink();
        tokio::task::spawn_blocking(move || sink.store(ChunkKind::Meta, &content(n)).unwrap()).await.unwrap();
        writer.finish_chunks().await.unwrap()
    };
    let stored = store(7).await;
    let report = place.prune().await;
    assert_eq!((report.young.packs, report.marked.packs), (1, 0));
    stored.commit(&manifest(&place.repository, Vec::new())).await.unwrap();
    // For days: what it stored is gone, and it notices.
    for passes in [1, 2] {
        let stored = store(7 + passes).await;
        for _ in 0..passes {
            place.days(4);
            place.prune().await;
        }
        let refused = stored.commit(&manifest(&place.repository, Vec::new())).await;
        assert!(matches!(refused, Err(RepositoryError::Damaged { .. })), "{passes}: {refused:?}");
    }
    // What it left, a manifest of chunks that are gone, stops nobody.
    let stored = store(30).await;
    let lost = manifest(&place.repository, stored.fragments.clone());
    let catalog = vec![ChunkId([9; 32])];
    let lost = Manifest { schema: Schema { catalog, ..Schema::default() }, sequence: 9, ..lost };
    place.days(4);
    place.prune().await;
    stored.commit(&lost).await.unwrap_err();
    assert_eq!(place.prune().await.unexpected, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_over_needs_what_it_was_taken_from() {
    let place = Place::new().await;
    let (parent, _) = (place.snapshot(&[1]).await, place.snapshot(&[2]).await);
    let child = async || {
        let writer = RepositoryWriter::open(&place.repository, 1000).await.unwrap();
        let mut manifest = manifest(&place.repository, Vec::new());
        manifest.parent = Some(parent);
        (writer.finish_chunks().await.unwrap(), manifest)
    };
    let (stored, manifest) = child().await;
    stored.commit(&manifest).await.unwrap();
    let (stored, manifest) = child().await;
    place.forget(parent).await;
    let refused = stored.commit(&manifest).await;
    assert!(matches!(refused, Err(RepositoryError::Damaged { .. })), "forgotten: {refused:?}");
    let (stored, manifest) = child().await;
    place.days(4);
    assert_eq!(place.prune().await.snapshots, [parent]);
    for name in place.storage.names("forgotten/") {
        place.storage.objects.lock().unwrap().remove(&name);
    }
    let refused = stored.commit(&manifest).await;
    assert!(matches!(refused, Err(RepositoryError::Damaged { .. })), "gone: {refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_stops_when_the_keys_are_not_those_it_knows() {
    let place = Place::new().await;
    place.snapshot(&[1]).await;
    let ring = place.repository.storage.list("keys/").map_ok(|meta| meta.name).try_next().await.unwrap().unwrap();
    place.storage.set(&ring, "x");
    let stopped = place.pruned(false).await;
    assert!(matches!(stopped, Err(RepositoryError::KeyObjectsChanged { .. })), "{stopped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_packs_come_together_and_the_old_ones_go() {
    let place = Place::new().await;
    for n in 0..8 {
        place.snapshot(&[n, n + 1]).await;
    }
    place.days(5);
    let (packs, sound) = (place.count("packs/"), place.storage.objects.lock().unwrap().clone());
    let would = place.repacked(u64::MAX, true).await.unwrap();
    assert!(would.repacked.packs == packs as u64 && *place.storage.objects.lock().unwrap() == sound, "{would:?}");
    let report = place.repacked(u64::MAX, false).await.unwrap();
    assert_eq!((report.repacked, report.repacked_into.packs, report.marked.packs), (would.repacked, 1, 0));
    // A run that began before it may be about to name the old ones.
    place.days(1);
    let young = place.repacked(u64::MAX, false).await.unwrap();
    assert_eq!((young.young.packs, young.marked.packs, young.repacked.packs), (packs as u64, 0, 0));
    // One that begins now relies on the new one alone, and is none the worse when the old ones are marked before it ends.
    let writer = RepositoryWriter::open(&place.repository, 1000).await.unwrap();
    let sink = writer.sink();
    tokio::task::spawn_blocking(move || sink.store(ChunkKind::Meta, &content(5)).unwrap()).await.unwrap();
    let stored = writer.finish_chunks().await.unwrap();
    place.days(3);
    assert_eq!(place.repacked(u64::MAX, false).await.unwrap().marked.packs, packs as u64);
    let fragments = stored.fragments.clone();
    stored.commit(&Manifest { sequence: 20, ..manifest(&place.repository, fragments) }).await.unwrap();
    place.days(4);
    let gone = place.repacked(u64::MAX, false).await.unwrap();
    assert_eq!((gone.removed.packs, gone.unexpected), (packs as u64, vec![]));
    assert_eq!(certified_is_whole(&place.repository, "put together").await, 9);
    assert!(place.count("packs/") <= 3 && place.count("tombstones/") == 0);
    // The next one finds what was put together by its bytes.
    let before = place.count("packs/");
    let writer = RepositoryWriter::open(&place.repository, 1000).await.unwrap();
    let sink = writer.sink();
    tokio::task::spawn_blocking(move || sink.store(ChunkKind::Meta, &content(5)).unwrap()).await.unwrap();
    writer.finish_chunks().await.unwrap();
    assert_eq!(place.count("packs/"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_not_put_together() {
    let place = Place::new().await;
    for n in 0..8 {
        place.snapshot(&[n]).await;
    }
    place.days(5);
    let needed = place.storage.names("packs/");
    let (name, before) = (&needed[3], place.storage.bytes(&needed[3]));
    let mut damaged = before.to_vec();
    let at = damaged.len() - 100;
    damaged[at] ^= 1;
    place.storage.set(name, damaged);
    let packs = place.count("packs/");
    let report = place.repacked(u64::MAX, false).await.unwrap();
    assert!(!report.unexpected.is_empty() && place.count("packs/") == packs, "{report:?}");
    place.storage.set(name, before);
    assert_eq!(place.repacked(u64::MAX, false).await.unwrap().repacked_into.packs, 1);
}

/// Copied, marked, removed: whenever a pass dies, the next one ends its work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_that_dies_before_anything_it_changes_leaves_work_for_the_next() {
    let place = Place::new().await;
    for n in 0..8 {
        place.snapshot(&[n]).await;
    }
    let mut party = 0;
    for step in ["copies", "marks", "removes"] {
        place.days(5);
        let before = place.storage.objects.lock().unwrap().clone();
        for deaths in 0.. {
            party += 1;
            *place.storage.objects.lock().unwrap() = before.clone();
            let repository = place.repository.over(place.world.seen_by(Some(party)));
            let options =
                PruneOptions { grace: GRACE, listing_delay: Duration::ZERO, repack: u64::MAX, dry_run: false };
            let task = tokio::spawn(async move {
                let monitor: SharedMonitor = Arc::new(Silent);
                prune(&repository, &options, &monitor).await.unwrap();
            });
            let mut changes = 0;
            while place.world.settled(party, &task).await {
                changes += u64::from(["put", "delete"].iter().any(|kind| place.world.is_next(party, kind)));
                if changes > deaths {
                    break;
                }
                place.world.step(party, &task).await;
            }
            task.abort();
            let what = format!("{step}, dead after {deaths}");
            assert_eq!(certified_is_whole(&place.repository, &what).await, 8);
            if changes <= deaths {
                assert!(deaths > 1, "{step}: nothing was done");
                break;
            }
            assert_eq!(place.repacked(u64::MAX, false).await.unwrap().unexpected, [""; 0], "{what}");
            assert_eq!(certified_is_whole(&place.repository, &what).await, 8);
        }
    }
    assert!(place.count("packs/") == 1 && place.count("tombstones/") == 0, "all that was small is one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_does_not_open_is_given_up_by_its_id() {
    let place = Place::new().await;
    let (lost, kept) = (place.snapshot(&[1, 2]).await, place.snapshot(&[2, 3]).await);
    place.days(5);
    let name = place.found(lost).await.unwrap().name().unwrap();
    place.storage.set(&name, "x");
    assert!(!place.prune().await.unexpected.is_empty(), "nobody said that it may go");
    let (all, _) = snapshots::list_all(&place.repository).await.unwrap();
    assert_eq!(forgotten::unreadable(&place.repository, &all).await.unwrap(), [lost]);
    forgotten::forget(&place.repository, &lost, GRACE).await.unwrap();
    place.days(2);
    assert!(!place.prune().await.unexpected.is_empty(), "its grace is not over");
    place.days(2);
    forgotten::hold(&place.repository, &lost).await.unwrap();
    assert!(!place.prune().await.unexpected.is_empty(), "it is held");
    forgotten::release(&place.repository, &lost).await.unwrap();
    let report = place.prune().await;
    assert_eq!((report.snapshots, report.unexpected), (vec![lost], vec![]));
    assert!(report.marked.packs > 0, "what it alone needed");
    assert_eq!((place.count("snapshots/"), place.count("certificates/")), (1, 1));
    assert!(place.found(kept).await.is_some() && certified_is_whole(&place.repository, "the other").await == 1);
}
