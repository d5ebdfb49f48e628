//! The promises of the contract in `restante::storage`, for any place.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::future::join_all;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use restante::storage::{Capabilities, ObjectName, PutMode, Storage, StorageError};

pub fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

pub async fn create(storage: &dyn Storage, text: &str, bytes: &'static [u8]) -> Result<(), StorageError> {
    storage.put(&name(text), Bytes::from_static(bytes), PutMode::Create, None).await
}

pub async fn names(storage: &dyn Storage, prefix: &str) -> Vec<String> {
    let listed: Vec<_> = storage.list(prefix).try_collect().await.unwrap();
    listed.into_iter().map(|meta| meta.name.to_string()).collect()
}

pub async fn what_was_put_is_got(storage: &dyn Storage) {
    for (text, bytes) in [("packs/aa/1", &b"some bytes"[..]), ("repository.json", b"{}"), ("empty", b"")] {
        create(storage, text, bytes).await.unwrap();
        assert_eq!(storage.get(&name(text)).await.unwrap(), bytes);
        let meta = storage.head(&name(text)).await.unwrap().unwrap();
        assert_eq!((meta.name.as_str(), meta.size), (text, bytes.len() as u64));
        let listed: Vec<_> = storage.list(text).try_collect().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((&listed[0].name, listed[0].size), (&meta.name, meta.size));
        // HTTP dates have whole seconds.
        assert_eq!(listed[0].modified.as_second(), meta.modified.as_second());
        let age = jiff::Timestamp::now().duration_since(meta.modified);
        assert!(age.abs() < jiff::SignedDuration::from_mins(2), "written {age} ago by the storage's clock");
    }
}

pub async fn an_object_is_never_replaced_by_create(storage: &dyn Storage) {
    create(storage, "a", b"first").await.unwrap();
    for again in [&b"second"[..], b"first"] {
        let error = storage.put(&name("a"), Bytes::from_static(again), PutMode::Create, None).await.unwrap_err();
        assert!(matches!(error, StorageError::AlreadyExists { .. }), "{error}");
        assert!(!error.is_transient());
    }
    assert_eq!(storage.get(&name("a")).await.unwrap(), &b"first"[..]);
}

pub async fn a_lease_is_replaced_whole(storage: &dyn Storage) {
    for bytes in [&b"a long first lease"[..], b"short"] {
        storage.put(&name("leases/w/1"), Bytes::from_static(bytes), PutMode::Replace, None).await.unwrap();
        assert_eq!(storage.get(&name("leases/w/1")).await.unwrap(), bytes);
    }
    assert_eq!(names(storage, "").await, ["leases/w/1"]);
}

pub async fn one_of_many_creators_wins(storage: &dyn Storage) {
    for round in 0..4 {
        let raced = name(&format!("raced/{round}"));
        let rivals = (0..6u8).map(|rival| {
            let raced = &raced;
            async move { storage.put(raced, Bytes::from(vec![rival; 1000]), PutMode::Create, None).await }
        });
        let outcomes = join_all(rivals).await;
        let winners: Vec<usize> = (0..outcomes.len()).filter(|rival| outcomes[*rival].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        for outcome in &outcomes {
            assert!(matches!(outcome, Ok(()) | Err(StorageError::AlreadyExists { .. })), "{outcome:?}");
        }
        assert_eq!(storage.get(&raced).await.unwrap(), vec![winners[0] as u8; 1000]);
    }
}

pub async fn a_range_is_exactly_what_was_asked_for(storage: &dyn Storage) {
    create(storage, "a", b"0123456789").await.unwrap();
    for (range, wanted) in
        [(0..10, &b"0123456789"[..]), (0..1, b"0"), (3..7, b"3456"), (9..10, b"9"), (4..4, b""), (10..10, b"")]
    {
        assert_eq!(storage.get_range(&name("a"), range.clone()).await.unwrap(), wanted, "{range:?}");
    }
    for range in [0..11, 9..12, 10..11, 50..60, 11..11] {
        let error = storage.get_range(&name("a"), range.clone()).await.unwrap_err();
        match error {
            StorageError::Truncated { actual, wanted, .. } => {
                assert_eq!((actual, wanted), (10, range.end), "{range:?}")
            }
            other => panic!("{range:?}: {other}"),
        }
    }
    let huge = storage.get_range(&name("a"), 0..u64::MAX).await.unwrap_err();
    assert!(matches!(huge, StorageError::TooLarge { .. }), "{huge}");
}

pub async fn what_is_not_there_is_said_to_be_not_there(storage: &dyn Storage) {
    create(storage, "packs/aa/1", b"x").await.unwrap();
    for text in ["packs/aa/2", "packs/bb/1", "nothing"] {
        let missing = name(text);
        assert_eq!(storage.head(&missing).await.unwrap(), None);
        for error in [
            storage.get(&missing).await.unwrap_err(),
            storage.get_range(&missing, 0..1).await.unwrap_err(),
            storage.get_range(&missing, 0..0).await.unwrap_err(),
        ] {
            assert!(matches!(&error, StorageError::NotFound { name, .. } if *name == missing), "{error}");
            assert!(!error.is_transient());
        }
    }
}

pub async fn deleting_twice_is_no_error(storage: &dyn Storage) {
    create(storage, "packs/aa/1", b"x").await.unwrap();
    create(storage, "packs/aa/2", b"x").await.unwrap();
    for _ in 0..2 {
        storage.delete(&name("packs/aa/1")).await.unwrap();
        assert_eq!(storage.head(&name("packs/aa/1")).await.unwrap(), None);
        assert_eq!(names(storage, "").await, ["packs/aa/2"]);
    }
    storage.delete(&name("never/was")).await.unwrap();
    // A name may be created again after its object is gone (the formats above never do).
    create(storage, "packs/aa/1", b"y").await.unwrap();
}

pub async fn lists_are_in_order_and_complete(storage: &dyn Storage) {
    // `-` and `.` sort before `/`, digits and letters after it: a folder is not where its bare name would be.
    let all: BTreeSet<&str> =
        ["a/1", "a/2/x", "a-b", "a.b", "a0", "A/z", "b", "packs/3e/1", "packs/3f/1", "packs/3f/2", "packs/4", "z_/1"]
            .into();
    for text in all.iter().rev() {
        create(storage, text, b"x").await.unwrap();
    }
    for prefix in [
        "",
        "a",
        "a/",
        "a/2",
        "a-",
        "packs/",
        "packs/3",
        "packs/3f",
        "packs/3f/",
        "packs/3f/1",
        "nothing",
        "packs/3f/1/",
    ] {
        let wanted: Vec<&str> = all.iter().filter(|text| text.starts_with(prefix)).copied().collect();
        // Either S3's order of whole names or, as SeaweedFS has it, folder by folder.
        let mut by_folder = wanted.clone();
        by_folder.sort_by(|a, b| a.split('/').cmp(b.split('/')));
        let listed = names(storage, prefix).await;
        assert!(listed == wanted || listed == by_folder, "prefix {prefix:?}: {listed:?}");
    }
}

pub async fn an_empty_place_lists_nothing(storage: &dyn Storage) {
    assert_eq!(names(storage, "").await, [""; 0]);
    assert_eq!(names(storage, "packs/").await, [""; 0]);
}

pub async fn a_probe_finds_creation_guarded_and_leaves_nothing(storage: &dyn Storage) {
    let Capabilities { conditional_create, .. } = storage.probe().await.unwrap();
    assert!(conditional_create);
    assert_eq!(storage.probe().await.unwrap(), storage.probe().await.unwrap());
    assert_eq!(names(storage, "").await, [""; 0]);
}

pub async fn large_objects_come_back_whole(storage: &dyn Storage) {
    let bytes: Bytes = (0..12_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    storage.put(&name("packs/aa/large"), bytes.clone(), PutMode::Create, None).await.unwrap();
    // Not assert_eq: nobody wants to see 24 MB of differences.
    assert!(storage.get(&name("packs/aa/large")).await.unwrap() == bytes);
    assert!(
        storage.get_range(&name("packs/aa/large"), 8_388_600..8_388_700).await.unwrap() == bytes[8_388_600..8_388_700]
    );
}

/// Property: after any sequence of calls a place holds the names and bytes that a map holds; so any two places hold the same.
pub async fn it_holds_the_same_as_a_map(storage: &dyn Storage) {
    // Few names, so that calls meet each other; no name is the folder of another.
    let call = (0..4u8, "[ab][-.]?/[a-c]", proptest::collection::vec(proptest::num::u8::ANY, 0..40));
    let calls = proptest::collection::vec(call, 60).new_tree(&mut TestRunner::default()).unwrap().current();
    let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (verb, text, bytes) in &calls {
        let object = name(text);
        match verb {
            0 | 1 => {
                let outcome = storage.put(&object, bytes.clone().into(), PutMode::Create, None).await;
                assert_eq!(outcome.is_ok(), !model.contains_key(text), "{calls:?}");
                model.entry(text.clone()).or_insert_with(|| bytes.clone());
            }
            2 => {
                storage.put(&object, bytes.clone().into(), PutMode::Replace, None).await.unwrap();
                model.insert(text.clone(), bytes.clone());
            }
            _ => {
                storage.delete(&object).await.unwrap();
                model.remove(text);
            }
        }
    }
    let listed: Vec<_> = storage.list("").try_collect().await.unwrap();
    let mut held = BTreeMap::new();
    for meta in &listed {
        let bytes = storage.get(&meta.name).await.unwrap();
        assert_eq!(meta.size, bytes.len() as u64);
        held.insert(meta.name.to_string(), bytes.to_vec());
    }
    assert_eq!(held, model, "{calls:?}");
    assert_eq!(listed.len(), model.len(), "each once");
}
