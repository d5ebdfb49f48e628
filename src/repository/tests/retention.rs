//! Which snapshots rules keep, and what being forgotten and held means, over a storage in memory.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

use super::storage::{Memory, WRITTEN};
use super::whole::{as_reader, as_writer, made, manifest, reader, snapshot};
use crate::repository::forgotten::{self, GRACE, Undone};
use crate::repository::id::{ObjectId, SignerId};
use crate::repository::manifest::Certificate;
use crate::repository::name::NameKind;
use crate::repository::retention::{Policy, Retention};
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::{Repository, RepositoryError};

const OURS: SignerId = SignerId([1; 32]);
const THEIRS: SignerId = SignerId([2; 32]);

fn nothing() -> Policy {
    let (within, tags, zone) = (None, Vec::new(), TimeZone::UTC);
    Policy { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, within, tags, zone }
}

async fn repository() -> (Arc<Memory>, Repository) {
    let storage = Memory::new();
    let key = made(&storage, &[&reader()]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    (storage, writer)
}

/// Snapshots that never were: `n` is the id, `stored` when the storage wrote it; certified, good, ours.
struct Made(Repository);

impl Made {
    async fn new() -> Self {
        Self(repository().await.1)
    }

    fn at(&self, n: u8, stored: &str) -> Snapshot {
        let mut manifest = manifest(&self.0, Vec::new());
        let stored: Timestamp = stored.parse().unwrap();
        (manifest.taken, manifest.started, manifest.finished) = (stored, stored, stored);
        manifest.tags.clear();
        let id = ObjectId([n; 32]);
        let certificate = Certificate {
            version: 1,
            snapshot: id,
            certified: stored,
            complete: true,
            suspect: false,
            packs_read_back: 0,
            packs_present: 0,
        };
        Snapshot {
            id,
            manifest: manifest.into(),
            signer: OURS,
            certificate: Some(certificate),
            stored,
            removable: None,
        }
    }
}

fn change(snapshot: &mut Snapshot) -> &mut crate::repository::manifest::Manifest {
    Arc::make_mut(&mut snapshot.manifest)
}

/// The numbers of those that are kept.
fn kept(snapshots: &[Snapshot], policy: &Policy, held: &[u8]) -> Vec<u8> {
    let held: HashSet<ObjectId> = held.iter().map(|n| ObjectId([*n; 32])).collect();
    let judged = Retention::new(snapshots, &held, &[OURS]).judge(policy);
    assert!(judged.iter().all(|one| !one.reasons.is_empty()));
    let mut kept: Vec<u8> = judged.iter().filter(|one| one.keep).map(|one| one.snapshot.id.0[0]).collect();
    kept.sort_unstable();
    kept
}

#[tokio::test]
async fn of_each_period_that_has_one_the_newest_is_kept() {
    let made = Made::new().await;
    let times = [
        "2024-12-30T10:00:00Z", // 2025-W01
        "2025-01-01T10:00:00Z", // 2025-W01
        "2025-02-10T10:00:00Z",
        "2025-02-11T09:10:00Z",
        "2025-02-11T09:50:00Z",
        "2025-02-11T23:30:00Z", // in Zurich the 12th
        "2025-02-12T08:00:00Z",
    ];
    let all: Vec<Snapshot> = (1..).zip(times).map(|(n, at)| made.at(n, at)).collect();
    let keeps = |change: fn(&mut Policy)| {
        let mut policy = nothing();
        change(&mut policy);
        kept(&all, &policy, &[])
    };
    assert_eq!(keeps(|p| p.last = 3), [5, 6, 7]);
    assert_eq!(keeps(|p| p.hourly = 3), [5, 6, 7]);
    assert_eq!(keeps(|p| p.hourly = 4), [3, 5, 6, 7]);
    assert_eq!(keeps(|p| p.daily = 2), [6, 7]);
    assert_eq!(keeps(|p| p.weekly = 2), [2, 7], "the week before has none: it is not counted");
    assert_eq!(keeps(|p| p.monthly = 9), [1, 2, 7]);
    assert_eq!(keeps(|p| p.yearly = 2), [1, 7]);
    assert_eq!(keeps(|p| p.within = Some(1.days())), [4, 5, 6, 7]);
    assert_eq!(keeps(|p| (p.last, p.yearly) = (2, 2)), [1, 6, 7]);
    let zone = TimeZone::get("Europe/Zurich").unwrap();
    assert_eq!(kept(&all, &Policy { daily: 2, zone, ..nothing() }, &[]), [5, 7], "days are those of the zone");
    assert_eq!(kept(&all, &Policy { last: 1, ..nothing() }, &[3]), [3, 7], "held");
    let mut tagged = all.clone();
    change(&mut tagged[1]).tags = vec!["month end".into()];
    let tags = vec!["month end".into()];
    assert_eq!(kept(&tagged, &Policy { tags, ..nothing() }, &[]), [2, 7], "and the newest");
    assert!(nothing().is_empty() && Policy { within: Some(0.days()), ..nothing() }.is_empty());
}

#[tokio::test]
async fn what_somebody_makes_up_evicts_nothing() {
    let made = Made::new().await;
    let policy = Policy { last: 2, daily: 2, ..nothing() };
    let days = ["2025-02-10T10:00:00Z", "2025-02-11T10:00:00Z", "2025-02-12T10:00:00Z"];
    let all: Vec<Snapshot> = (1..).zip(days).map(|(n, at)| made.at(n, at)).collect();
    assert_eq!(kept(&all, &policy, &[]), [2, 3]);
    // Stored today, whatever the name says: it does not count, and is told.
    for time in ["2015-01-01T00:00:00Z", "2035-01-01T00:00:00Z"] {
        let mut forged = made.at(9, "2025-02-12T11:00:00Z");
        let time = time.parse().unwrap();
        (change(&mut forged).taken, change(&mut forged).started, change(&mut forged).finished) = (time, time, time);
        let with: Vec<Snapshot> = all.iter().cloned().chain([forged]).collect();
        assert_eq!(kept(&with, &policy, &[]), [2, 3, 9]);
        let held = HashSet::new();
        let judged = Retention::new(&with, &held, &[OURS]).judge(&policy);
        assert_eq!(judged.iter().filter(|one| one.alarm).map(|one| one.snapshot.id.0[0]).collect::<Vec<_>>(), [9]);
        // As they are listed.
        let mut listed = with.clone();
        listed.sort_by_key(|one| one.manifest.taken);
        for newest in ["latest", "@2045-01-01T00:00:00Z"] {
            assert_eq!(snapshots::select(&listed, newest).unwrap().id.0[0], 3, "{time}: {newest}");
        }
    }
    // A hundred of another writer, with good names.
    let mut theirs: Vec<Snapshot> = (100..200).map(|n| made.at(n, "2025-02-12T12:00:00Z")).collect();
    theirs.iter_mut().for_each(|one| one.signer = THEIRS);
    let with: Vec<Snapshot> = all.iter().cloned().chain(theirs).collect();
    assert_eq!(kept(&with, &policy, &[]).iter().filter(|n| **n < 100).copied().collect::<Vec<_>>(), [2, 3]);
    // Of another store.
    let mut other = all.clone();
    for (n, one) in (50..).zip(&mut other) {
        (one.id, change(one).store.database_oid) = (ObjectId([n; 32]), 6);
    }
    let with: Vec<Snapshot> = all.iter().cloned().chain(other).collect();
    assert_eq!(kept(&with, &policy, &[]), [2, 3, 51, 52]);
    // A run of three days shows what was three days ago.
    let mut long = made.at(4, "2025-02-13T10:00:00Z");
    change(&mut long).taken = "2025-02-10T11:00:00Z".parse().unwrap();
    let with: Vec<Snapshot> = all.iter().cloned().chain([long]).collect();
    assert_eq!(kept(&with, &policy, &[]), [3, 4]);
}

#[tokio::test]
async fn what_is_not_good_takes_no_place_of_what_is() {
    let made = Made::new().await;
    let policy = Policy { last: 2, ..nothing() };
    let hours = ["01", "02", "03", "04", "05"].map(|hour| format!("2025-02-10T{hour}:00:00Z"));
    let all: Vec<Snapshot> = (1..).zip(&hours).map(|(n, at)| made.at(n, at)).collect();
    let with = |spoil: fn(&mut Snapshot)| {
        let mut all = all.clone();
        all[3..].iter_mut().for_each(spoil);
        all
    };
    let suspect = with(|one| change(one).suspect = vec!["rows are gone".into()]);
    assert_eq!(kept(&suspect, &policy, &[]), [2, 3, 4, 5]);
    assert_eq!(kept(&suspect, &Policy { last: 1, ..nothing() }, &[]), [3, 5], "the last good one stays");
    assert_eq!(kept(&with(|one| change(one).complete = false), &policy, &[]), [2, 3, 4, 5]);
    // Not certified: a run that is under way, or one that was left behind and goes.
    let uncertified = with(|one| one.certificate = None);
    assert_eq!(kept(&uncertified, &policy, &[]), [2, 3, 4, 5], "they may be under way");
    let later = made.at(6, "2025-02-11T05:00:01Z");
    let uncertified: Vec<Snapshot> = uncertified.into_iter().chain([later]).collect();
    assert_eq!(kept(&uncertified, &policy, &[]), [3, 6], "a day later nobody finishes them");
    // A suspect one holds what it was taken from.
    let mut child = suspect.clone();
    change(&mut child[4]).parent = Some(ObjectId([1; 32]));
    assert_eq!(kept(&child, &Policy { last: 1, ..nothing() }, &[]), [1, 3, 5]);
    let held = HashSet::from([ObjectId([2; 32])]);
    let retention = Retention::new(&child, &held, &[OURS]);
    for (n, kept) in [(1, true), (2, true), (3, true), (4, false), (5, true)] {
        assert_eq!(retention.check(&child[n - 1]).is_err(), kept, "by name: {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_snapshot_is_not_listed_and_comes_back() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    let (id, ..) = snapshot(&writer, 1).await.unwrap();
    let listed = async || snapshots::list(&as_reader(&storage, &one).await.unwrap()).await.unwrap();
    let all = async || snapshots::list_all(&writer).await.unwrap().0;
    assert_eq!(listed().await.0.len(), 1);
    for _ in 0..2 {
        forgotten::forget(&writer, &all().await[0].id, GRACE).await.unwrap();
        let (found, problems) = listed().await;
        assert!(found.is_empty() && problems.is_empty(), "{problems:?}");
        let found = all().await;
        // The storage of these tests has one time for everything.
        assert_eq!(found[0].removable, Some(WRITTEN + GRACE));
        assert!(!found[0].is_usable());
        assert_eq!(forgotten::undo(&writer, &found[0]).await.unwrap(), Undone::Kept);
        assert_eq!(listed().await.0[0].id, id);
    }
    forgotten::forget(&writer, &all().await[0].id, SignedDuration::ZERO).await.unwrap();
    let found = all().await;
    assert_eq!(forgotten::undo(&writer, &found[0]).await.unwrap(), Undone::Doubtful, "its grace was over");
    forgotten::forget(&writer, &found[0].id, GRACE).await.unwrap();
    let certificate = storage.names("certificates/")[0].clone();
    storage.objects.lock().unwrap().remove(&certificate);
    let gone = forgotten::undo(&writer, &found[0]).await;
    assert!(matches!(gone, Err(RepositoryError::Pruned { .. })), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_the_signing_key_of_now_hides_a_snapshot() {
    let (storage, writer) = repository().await;
    let (id, ..) = snapshot(&writer, 1).await.unwrap();
    let name = NameKind::Forgotten.named(id).unwrap();
    storage.set(&name, "x");
    let (found, problems) = snapshots::list(&writer).await.unwrap();
    assert_eq!((found.len(), problems.len()), (1, 1), "{problems:?}");
    // One that tells of another snapshot; and one that does not open is no reason not to forget.
    forgotten::forget(&writer, &found[0].id, GRACE).await.unwrap();
    assert!(snapshots::list(&writer).await.unwrap().0.is_empty());
    let bytes = storage.bytes(&name);
    storage.objects.lock().unwrap().remove(&name);
    let (other, ..) = snapshot(&writer, 2).await.unwrap();
    storage.set(&NameKind::Forgotten.named(other).unwrap(), bytes);
    let (found, problems) = snapshots::list(&writer).await.unwrap();
    assert_eq!((found.len(), problems.len()), (2, 1), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_holds_whatever_it_says() {
    let (storage, writer) = repository().await;
    let (id, ..) = snapshot(&writer, 1).await.unwrap();
    forgotten::hold(&writer, &id).await.unwrap();
    forgotten::hold(&writer, &id).await.unwrap();
    storage.set(&NameKind::Hold.named(id).unwrap(), "x");
    assert_eq!(forgotten::held(&*storage).await.unwrap(), HashSet::from([id]));
    forgotten::release(&writer, &id).await.unwrap();
    assert!(forgotten::held(&*storage).await.unwrap().is_empty());
}
