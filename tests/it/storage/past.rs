//! A versioned bucket after somebody wrote over everything, as it was before; and objects that nobody can remove.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use restante::storage::location::{Location, open};
use restante::storage::{ObjectMeta, ObjectName, PutMode, S3Location, Storage, StorageError, now};

use crate::matrix::sample::Scene;
use crate::seaweedfs;
use crate::server::TestServer;

async fn opened(location: &S3Location) -> Arc<dyn Storage> {
    open(&Location::S3(location.clone())).await.unwrap()
}

async fn all(storage: &dyn Storage) -> Vec<ObjectMeta> {
    storage.list("").try_collect().await.unwrap()
}

/// By the server's clock, when everything so far is older and everything from now on is newer: it dates to the second.
async fn between(storage: &dyn Storage) -> Timestamp {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let at = now(storage).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_overwrites_and_deletes_everything_takes_nothing_from_the_bucket_of_before() {
    let Some(mut location) = seaweedfs::fresh_locked_prefix().await else { return };
    let storage = opened(&location).await;
    let scene = Scene::new(&TestServer::shared(), 40, 36).await;
    scene.copy_into(&*storage).await;
    // An older version of an object, and one that was removed before.
    let (twice, gone) = (ObjectName::new("leases/a").unwrap(), ObjectName::new("leases/b").unwrap());
    for bytes in ["first", "second"] {
        storage.put(&twice, Bytes::from(bytes), PutMode::Replace, None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    storage.put(&gone, Bytes::from("gone"), PutMode::Create, None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    storage.delete(&gone).await.unwrap();
    let before = all(&*storage).await;
    let at = between(&*storage).await;
    // With the right to PUT alone; and, worse, to delete.
    for (number, meta) in before.iter().enumerate() {
        storage.put(&meta.name, Bytes::from("not mail"), PutMode::Replace, None).await.unwrap();
        if number % 2 == 0 {
            storage.delete(&meta.name).await.unwrap();
        }
    }
    assert!(scene.keys.as_reader(&storage).await.is_err(), "nothing of it is a repository any more");
    location.as_of = Some(at);
    let past = opened(&location).await;
    let seen: Vec<_> = all(&*past).await.into_iter().filter(|meta| !meta.name.as_str().starts_with("probe/")).collect();
    let names = |all: &[ObjectMeta]| all.iter().map(|meta| (meta.name.clone(), meta.size)).collect::<Vec<_>>();
    assert_eq!(names(&seen), names(&before));
    assert_eq!(past.get(&twice).await.unwrap(), "second");
    assert!(matches!(past.get(&gone).await, Err(StorageError::NotFound { .. })));
    assert_eq!(scene.certified_is_whole(&past, "as of before").await, 1);
    // Nobody writes there.
    assert!(matches!(past.put(&gone, Bytes::new(), PutMode::Create, None).await, Err(StorageError::Denied { .. })));
    assert!(matches!(past.delete(&twice).await, Err(StorageError::Denied { .. })));
    assert!(scene.keys.snapshot(&past, &scene.dsn).await.is_err());
    // As of a time before it was made there is nothing.
    location.as_of = Some(at - SignedDuration::from_hours(1));
    assert!(all(&*opened(&location).await).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_under_lock_stays() {
    let Some(mut location) = seaweedfs::fresh_locked_prefix().await else { return };
    location.lock = Some(SignedDuration::from_hours(1));
    let storage = opened(&location).await;
    let (kept, lease) = (ObjectName::new("packs/kept").unwrap(), ObjectName::new("leases/x").unwrap());
    storage.put(&kept, Bytes::from("kept"), PutMode::Create, None).await.unwrap();
    storage.put(&lease, Bytes::from("lease"), PutMode::Replace, None).await.unwrap();
    let client = seaweedfs::client().await.unwrap();
    let key = |name: &ObjectName| format!("{}/{name}", location.prefix);
    for (name, is_locked) in [(&kept, true), (&lease, false)] {
        let versions = client.list_object_versions().bucket(&location.bucket).prefix(key(name)).send().await.unwrap();
        let version = versions.versions()[0].version_id().unwrap();
        let removed = client.delete_object().bucket(&location.bucket).key(key(name)).version_id(version).send().await;
        assert_eq!(removed.is_err(), is_locked, "{name}: {removed:?}");
    }
    assert_eq!(storage.get(&kept).await.unwrap(), "kept");
}

/// Asked for where the bucket has none: nothing is put there that somebody believes to be locked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_the_bucket_does_not_keep_is_refused() {
    let Some(mut location) = seaweedfs::fresh_prefix().await else { return };
    location.lock = Some(SignedDuration::from_hours(1));
    let (access, secret) = seaweedfs::KEYS;
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_restante"))
        .args(["init", "--single-reader", "--reader", "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"])
        .args(["--key", "writer.key", "-r", &location.to_string()])
        .env("AWS_ACCESS_KEY_ID", access)
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("lock= asks for object lock"), "{said}");
    assert!(all(&*opened(&location).await).await.is_empty() && !folder.path().join("writer.key").exists());
}
