//! The protocol between a writer and prunes, tried: the real program, one writer and two pruners who also forget, take back and hold, over one
//! storage that stops each of them before each request for as long as a random schedule says, days of its clock included.
//!
//! What must hold at every instant: whatever is certified can be read whole. `RESTANTE_SEED` and `RESTANTE_SCHEDULES` say which schedules;
//! `docs/testing.md` lists what was broken on purpose and the schedule that saw it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;

use super::storage::Memory;
use super::whole::{copy, made, manifest, reader};
use super::world::{Dice, Trouble, World};
use crate::monitor::{SharedMonitor, Silent};
use crate::repository::cbor;
use crate::repository::chunk::ChunkKind;
use crate::repository::forgotten;
use crate::repository::id::{ChunkId, Digest, Epoch, ObjectId};
use crate::repository::manifest::Table;
use crate::repository::prune::{PruneOptions, Report, prune};
use crate::repository::retention::Retention;
use crate::repository::secrets::WriterKey;
use crate::repository::segment::{Descriptor, Increment, Page, SegmentEntry};
use crate::repository::snapshots::{self, Snapshot, SnapshotReader};
use crate::repository::writer::RepositoryWriter;
use crate::repository::{Access, Repository, RepositoryError};
use crate::storage::directory::Directory;
use crate::storage::{PutMode, Storage, StorageError};

pub const GRACE: SignedDuration = SignedDuration::from_hours(72);
/// By how much listings are behind where they are.
const DELAY: Duration = Duration::from_millis(3);

pub async fn open(storage: Arc<dyn Storage>, key: &WriterKey) -> Repository {
    Repository::open(storage, Access::Writer(copy(key)), None).await.unwrap()
}

/// One of a few contents, so that it comes again: each is a pack of its own.
pub fn content(n: u64) -> Vec<u8> {
    let mut plain = vec![0; 1500];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut plain);
    plain
}

/// Takes a snapshot of some contents: from the newest one whole segments, others by what they hold.
pub async fn snapshot(
    repository: &Repository,
    contents: &[u64],
    take_over: bool,
    at: Timestamp,
) -> Result<ObjectId, RepositoryError> {
    let (all, _) = snapshots::list(repository).await?;
    let parent = all.iter().rfind(|one| one.is_usable()).filter(|_| take_over);
    let writer = RepositoryWriter::open(repository, 1000).await?;
    let mut entries: Vec<SegmentEntry> = Vec::new();
    if let Some(parent) = parent {
        let reader = writer.reader(repository);
        let pages = reader.fetch_all(&parent.manifest.tables[0].pages).await;
        match pages.and_then(|pages| snapshots::segments_of(&parent.manifest.tables[0], &pages)) {
            Ok(before) => entries.extend(before.into_iter().take(2)),
            Err(e) => {
                writer.abandon().await;
                return Err(e);
            }
        }
    }
    let (sink, inherited, contents) = (writer.sink(), writer.sink(), contents.to_vec());
    let work = tokio::task::spawn_blocking(move || {
        for n in contents {
            let id = sink.store(ChunkKind::Meta, &content(n))?;
            let increment = Increment {
                epoch: Epoch(1),
                rows: 0,
                row_chunks: Vec::new(),
                row_map: Vec::new(),
                value_map: Vec::new(),
                payload: id.0.to_vec(),
                dead: Vec::new(),
                zone: None,
                value_bytes: 0,
            };
            let digest = Digest([0; 16]);
            let increments = vec![increment];
            let descriptor = Descriptor { first_block: 0, end_block: None, rows: n, digest, increments };
            let descriptor = sink.store(ChunkKind::Meta, &cbor::encode("descriptor", &descriptor)?)?;
            let (map_hash, zones) = ([0; 32], Vec::new());
            entries.push(SegmentEntry { descriptor, rows: n, map_hash, digest, value_bytes: 0, zones });
        }
        let page = sink.store(ChunkKind::Meta, &cbor::encode("page", &Page { segments: entries.clone() })?)?;
        Ok::<_, RepositoryError>((page, entries.len() as u64))
    });
    let (page, segments) = match work.await.unwrap() {
        Ok(done) => done,
        Err(e) => return Err(writer.abandon().await.unwrap_or(e)),
    };
    let stored = writer.finish_chunks().await?;
    let mut manifest = manifest(repository, stored.fragments.clone());
    (manifest.taken, manifest.started, manifest.finished) = (at, at, at);
    manifest.parent = parent.map(|parent| parent.id);
    manifest.fragments.extend(parent.into_iter().flat_map(|parent| inherited.current(&parent.manifest.fragments)));
    manifest.sequence = all.last().map_or(1, |last| last.manifest.sequence + 1);
    manifest.tables = vec![Table {
        oid: 1,
        schema: "public".into(),
        name: "t".into(),
        kind: "r".into(),
        relfilenode: None,
        partition_of: None,
        block_size: 8192,
        blocks_per_segment: 1,
        columns: Vec::new(),
        schema_digest: String::new(),
        pages: vec![page],
        segments,
        rows: 0,
        value_bytes: 0,
        digest: Digest([0; 16]),
        updated: None,
        deleted: None,
    }];
    Ok(stored.commit(&manifest).await?.0)
}

/// Whatever is certified can be read whole, forgotten or not; how many there are.
pub async fn certified_is_whole(repository: &Repository, what: &str) -> usize {
    let (all, problems) = snapshots::list_all(repository).await.unwrap();
    assert!(problems.is_empty(), "{what}: {problems:?}");
    let certified: Vec<&Snapshot> = all.iter().filter(|one| one.certificate.is_some()).collect();
    for snapshot in &certified {
        let read = async {
            let reader = SnapshotReader::open(repository, snapshot).await?;
            let mut wanted: Vec<ChunkId> = Vec::new();
            for table in &reader.manifest().tables {
                for entry in reader.segments(table).await? {
                    let descriptor = reader.descriptor(&entry).await?;
                    wanted.extend(descriptor.increments.iter().flat_map(Increment::chunks));
                }
            }
            reader.chunks.fetch_all(&wanted).await
        };
        if let Err(e) = read.await {
            panic!("{what}: {} of {} cannot be read: {e}", snapshot.short(), snapshot.stored);
        }
    }
    certified.len()
}

/// Others were faster with an object, or an answer got lost.
fn is_usual(e: &RepositoryError) -> bool {
    e.is_about_an_object() || matches!(e, RepositoryError::Storage(StorageError::Unreachable { .. }))
}

#[derive(Default)]
struct Counts {
    killed: u64,
    snapshots: u64,
    refused: u64,
    packs: u64,
    copied: u64,
    removed: u64,
    undone: u64,
    unexpected: u64,
}

/// Forgets, takes back, holds, prunes, in an order of its own.
async fn keep_house(repository: Repository, mut dice: Dice, done: Arc<AtomicBool>, counts: Arc<Mutex<Counts>>) {
    let monitor: SharedMonitor = Arc::new(Silent);
    let mut options = PruneOptions { grace: GRACE, listing_delay: DELAY, repack: 0, dry_run: false };
    while !done.load(Ordering::SeqCst) {
        let Ok((all, _)) = snapshots::list_all(&repository).await else { continue };
        let some = |dice: &mut Dice, forgotten: bool| {
            let fit: Vec<&Snapshot> = all.iter().filter(|one| one.removable.is_some() == forgotten).collect();
            (!fit.is_empty()).then(|| fit[dice.below(fit.len() as u64) as usize].clone())
        };
        for _ in 0..2 {
            let held = HashSet::new();
            let retention = Retention::new(&all, &held, &[]);
            match some(&mut dice, false).filter(|one| retention.check(one).is_ok()) {
                // The other one may take it back at the same instant.
                Some(one) if dice.below(3) > 0 => match forgotten::forget(&repository, &one.id, GRACE).await {
                    Err(e) if !is_usual(&e) => panic!("{e}"),
                    _ => {}
                },
                _ => {}
            }
        }
        if let Some(one) = some(&mut dice, true).filter(|_| dice.below(4) == 0) {
            let undone = forgotten::undo(&repository, &one).await.is_ok();
            counts.lock().unwrap().undone += u64::from(undone);
        }
        options.repack = [0, 10_000, u64::MAX][dice.below(3) as usize];
        match prune(&repository, &options, &monitor).await {
            Ok(report) => {
                let mut counts = counts.lock().unwrap();
                counts.copied += report.repacked.packs;
                counts.packs += report.removed.packs;
                counts.removed += report.snapshots.len() as u64;
                counts.unexpected += u64::from(!report.unexpected.is_empty());
            }
            // The other one was faster with an object, or an answer got lost.
            Err(e) if is_usual(&e) => counts.lock().unwrap().unexpected += 1,
            Err(e) => panic!("{e}"),
        }
    }
}

async fn take_snapshots(repository: Repository, world: Arc<World>, mut dice: Dice, counts: Arc<Mutex<Counts>>) {
    for _ in 0..8 {
        let contents: Vec<u64> = (0..1 + dice.below(3)).map(|_| dice.below(6)).collect();
        let taken = snapshot(&repository, &contents, dice.below(3) > 0, world.now()).await;
        let mut counts = counts.lock().unwrap();
        match taken {
            Ok(_) => counts.snapshots += 1,
            Err(e) if is_usual(&e) => counts.refused += 1,
            Err(e) => panic!("{e}"),
        }
    }
}

/// One schedule.
async fn run(seed: u64, inner: Arc<dyn Storage>, key: &WriterKey, counts: &Arc<Mutex<Counts>>) {
    let world = World::new(inner);
    let what = format!("schedule {seed}");
    let watcher = open(world.seen_by(None), key).await;
    for n in 0..2 {
        snapshot(&watcher, &[n, n + 1], false, world.now()).await.unwrap();
        world.pass(SignedDuration::from_hours(100));
    }
    let mut dice = Dice(seed, 0);
    world.trouble(
        Trouble {
            lost: seed.is_multiple_of(2).then_some(150),
            ignores_conditions: seed.is_multiple_of(3),
            behind: if seed % 5 < 3 { DELAY } else { Duration::ZERO },
        },
        seed,
    );
    let done = Arc::new(AtomicBool::new(false));
    let begin = |party: usize, life: u64| -> (JoinHandle<()>, Arc<AtomicBool>) {
        let (storage, dead) = world.mortal(Some(party));
        let (repository, of) = (watcher.over(storage), Dice(seed, (party as u64 + 1 + 3 * life) << 32));
        let task = match party {
            0 => tokio::spawn(take_snapshots(repository, world.clone(), of, counts.clone())),
            _ => tokio::spawn(keep_house(repository, of, done.clone(), counts.clone())),
        };
        (task, dead)
    };
    let mut tasks: Vec<_> = (0..3).map(|party| begin(party, 0)).collect();
    let (mut left, mut lives): (Vec<usize>, u64) = ((0..tasks.len()).collect(), 0);
    while !left.is_empty() {
        let at = dice.below(left.len() as u64) as usize;
        let party = left[at];
        // Its process is killed, and another one begins.
        if lives < 4 && dice.below(25) == 0 {
            lives += 1;
            world.bury(party, &tasks[party].1);
            tasks[party].0.abort();
            tasks[party] = begin(party, lives);
            counts.lock().unwrap().killed += 1;
        }
        // A pass is some hundred requests, a snapshot thirty: the writer is stopped in the middle, and passes go through meanwhile.
        let most = if party == 0 { [1, 4, 12, 30] } else { [12, 80, 300, 300] }[dice.below(4) as usize];
        for _ in 0..1 + dice.below(most) {
            if !world.step(party, &tasks[party].0).await {
                left.remove(at);
                break;
            }
        }
        done.store(!left.contains(&0), Ordering::SeqCst);
        world.pass(SignedDuration::from_hours([0, 0, 1, 25, 80][dice.below(5) as usize]));
        if dice.below(8) == 0 {
            certified_is_whole(&watcher, &what).await;
        }
    }
    for (task, _) in tasks {
        task.await.unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    assert!(certified_is_whole(&watcher, &what).await > 0, "{what}");
    // In the end everything goes that nothing needs.
    let last = async || pass(watcher.over(world.seen_by(None))).await;
    for _ in 0..8 {
        world.pass(SignedDuration::from_hours(100));
        assert_eq!(last().await.unexpected, [""; 0], "{what}");
    }
    let report = last().await;
    assert_eq!((report.marked, report.removed, report.young, report.waiting), Default::default(), "{what}");
    certified_is_whole(&watcher, &what).await;
}

fn from_environment(name: &str, or: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(or)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_schedule_does_what_is_certified_can_be_read() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let (seed, schedules) = (from_environment("RESTANTE_SEED", 1), from_environment("RESTANTE_SCHEDULES", 5));
    let counts = Arc::new(Mutex::new(Counts::default()));
    for seed in seed..seed + schedules {
        let folder = tempfile::tempdir().unwrap();
        let inner: Arc<dyn Storage> = match seed % 8 {
            0 => Arc::new(Directory::new(folder.path()).unwrap()),
            _ => Memory::new(),
        };
        for name in storage.names("") {
            inner.put(&name, storage.bytes(&name), PutMode::Create, None).await.unwrap();
        }
        run(seed, inner, &key, &counts).await;
    }
    let counts = counts.lock().unwrap();
    println!(
        "{schedules} schedules from {seed}: {} snapshots certified, {} refused, {} forgotten ones removed, {} taken back, {} packs removed, {} copied, {} passes stopped, {} killed",
        counts.snapshots,
        counts.refused,
        counts.removed,
        counts.undone,
        counts.packs,
        counts.copied,
        counts.unexpected,
        counts.killed
    );
    assert!(
        counts.packs > schedules
            && counts.copied > schedules
            && counts.removed > schedules / 2
            && counts.snapshots > schedules,
        "too little was done"
    );
}

async fn pass(repository: Repository) -> Report {
    let monitor: SharedMonitor = Arc::new(Silent);
    let options = PruneOptions { grace: GRACE, listing_delay: Duration::ZERO, repack: u64::MAX, dry_run: false };
    prune(&repository, &options, &monitor).await.unwrap()
}

/// Pruner and writer, stopped where the order between them matters: the pass has looked before the manifest came, and deletes while the writer checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_goes_while_the_writer_looks_is_missed() {
    let storage = Memory::new();
    let key = made(&storage, &[&reader()]).await;
    let world = World::new(storage.clone());
    let watcher = open(world.seen_by(None), &key).await;
    let days = |n: i64| world.pass(SignedDuration::from_hours(24 * n));
    let old = snapshot(&watcher, &[1], false, world.now()).await.unwrap();
    days(1);
    snapshot(&watcher, &[2], false, world.now()).await.unwrap();
    days(4);
    // It knows of no tombstone, and finds the content of the first snapshot again.
    let (repository, at) = (watcher.over(world.seen_by(Some(0))), world.now());
    let writer = tokio::spawn(async move { snapshot(&repository, &[1], false, at).await });
    world.until(0, &writer, Some("put ")).await;
    let all = snapshots::list_all(&watcher).await.unwrap().0;
    forgotten::forget(&watcher, &all.iter().find(|one| one.id == old).unwrap().id, GRACE).await.unwrap();
    assert!(pass(watcher.over(world.seen_by(None))).await.marked.packs > 0);
    days(4);
    // The pass has looked and is about to delete; then the writer puts its manifest and begins to look.
    let removing = tokio::spawn(pass(watcher.over(world.seen_by(Some(1)))));
    world.until(1, &removing, Some("delete packs/")).await;
    world.until(0, &writer, Some("put snapshots/")).await;
    world.until(0, &writer, Some("list tombstones/")).await;
    world.until(1, &removing, None).await;
    assert!(removing.await.unwrap().removed.packs > 0);
    world.until(0, &writer, None).await;
    let refused = writer.await.unwrap();
    assert!(matches!(refused, Err(RepositoryError::Damaged { .. })), "{refused:?}");
    certified_is_whole(&watcher, "after it").await;
}

/// Two pruners: one that saw the pack needed, before its snapshot was forgotten for good, must leave its tombstone to the one that is about to delete it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_a_tombstone_from_under_another_pass() {
    let storage = Memory::new();
    let key = made(&storage, &[&reader()]).await;
    let world = World::new(storage.clone());
    let watcher = open(world.seen_by(None), &key).await;
    let days = |n: i64| world.pass(SignedDuration::from_hours(24 * n));
    let old = snapshot(&watcher, &[1], false, world.now()).await.unwrap();
    days(1);
    snapshot(&watcher, &[2], false, world.now()).await.unwrap();
    days(4);
    let (repository, at) = (watcher.over(world.seen_by(Some(0))), world.now());
    let writer = tokio::spawn(async move { snapshot(&repository, &[1], false, at).await });
    world.until(0, &writer, Some("put ")).await;
    let found = async || snapshots::list_all(&watcher).await.unwrap().0.into_iter().find(|one| one.id == old).unwrap();
    forgotten::forget(&watcher, &found().await.id, GRACE).await.unwrap();
    assert!(pass(watcher.over(world.seen_by(None))).await.marked.packs > 0);
    forgotten::undo(&watcher, &found().await).await.unwrap();
    days(4);
    // Sees that the pack is needed again.
    let first = tokio::spawn(pass(watcher.over(world.seen_by(Some(1)))));
    world.until(1, &first, Some("get_range packs/")).await;
    while !world.is_next(1, "delete tombstones/") && world.step(1, &first).await {}
    forgotten::forget(&watcher, &found().await.id, GRACE).await.unwrap();
    days(4);
    let second = tokio::spawn(pass(watcher.over(world.seen_by(Some(2)))));
    world.until(2, &second, Some("delete packs/")).await;
    world.until(1, &first, None).await;
    assert!(first.await.unwrap().needed_again.packs > 0);
    world.until(0, &writer, None).await;
    world.until(2, &second, None).await;
    assert!(second.await.unwrap().removed.packs > 0);
    let refused = writer.await.unwrap();
    assert!(matches!(refused, Err(RepositoryError::Damaged { .. })), "{refused:?}");
    certified_is_whole(&watcher, "after it").await;
}

/// A snapshot that was taken from another one is certified in the instant before that goes for good, because it was taken back in the instant before:
/// a pass that has decided to remove it looks for what came meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_over_stays_when_its_source_goes() {
    let storage = Memory::new();
    let key = made(&storage, &[&reader()]).await;
    let world = World::new(storage.clone());
    let watcher = open(world.seen_by(None), &key).await;
    let days = |n: i64| world.pass(SignedDuration::from_hours(24 * n));
    snapshot(&watcher, &[2], false, world.now()).await.unwrap();
    days(1);
    let parent = snapshot(&watcher, &[1], false, world.now()).await.unwrap();
    days(4);
    let (repository, at) = (watcher.over(world.seen_by(Some(0))), world.now());
    let writer = tokio::spawn(async move { snapshot(&repository, &[3], true, at).await });
    world.until(0, &writer, Some("put ")).await;
    let found =
        async || snapshots::list_all(&watcher).await.unwrap().0.into_iter().find(|one| one.id == parent).unwrap();
    forgotten::forget(&watcher, &found().await.id, GRACE).await.unwrap();
    assert!(pass(watcher.over(world.seen_by(None))).await.marked.packs > 0);
    days(4);
    let removing = tokio::spawn(pass(watcher.over(world.seen_by(Some(1)))));
    world.until(1, &removing, Some("delete certificates/")).await;
    assert_eq!(forgotten::undo(&watcher, &found().await).await.unwrap(), forgotten::Undone::Doubtful);
    world.until(0, &writer, None).await;
    let child = writer.await.unwrap().unwrap();
    world.until(1, &removing, None).await;
    assert_eq!(removing.await.unwrap().snapshots, [parent]);
    let all = snapshots::list_all(&watcher).await.unwrap().0;
    assert!(all.iter().any(|one| one.id == child && one.manifest.parent == Some(parent)));
    certified_is_whole(&watcher, "without its source").await;
}
