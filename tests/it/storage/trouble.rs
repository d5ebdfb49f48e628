//! What Restante does when an S3 server or the network does what it should not: it gets through, or it says clearly what is wrong, and
//! it never takes for done what was not done.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use restante::storage::{
    Capabilities, Location, PutMode, Retention, S3Credentials, S3Location, Storage, StorageError, open,
};

use super::conformance::{create, name, names};
use crate::s3_server::{Bucket, S3Server, SECRET_KEY, Switches, server};

struct Trouble {
    server: &'static S3Server,
    location: S3Location,
    storage: Arc<dyn Storage>,
}

impl Trouble {
    /// A fresh bucket in which one object lies already.
    async fn with(switches: Switches) -> Self {
        let location = server().fresh_bucket();
        let storage = open(&Location::S3(location.clone())).await.unwrap();
        create(&*storage, "old", b"0123456789").await.unwrap();
        let this = Self { server: server(), location, storage };
        this.bucket(|bucket| {
            bucket.switches = switches;
            bucket.requests = 0;
        });
        this
    }

    fn bucket<T>(&self, work: impl FnOnce(&mut Bucket) -> T) -> T {
        self.server.bucket(&self.location, work)
    }

    fn requests(&self) -> u32 {
        self.bucket(|bucket| bucket.requests)
    }
}

/// Opens it with few attempts, for errors that stay.
async fn impatient(mut location: S3Location) -> Arc<dyn Storage> {
    location.attempts = 2;
    open(&Location::S3(location)).await.unwrap()
}

#[tokio::test]
async fn a_server_that_asks_to_slow_down_is_waited_for() {
    let trouble = Trouble::with(Switches { slow_down: 2, ..Switches::default() }).await;
    create(&*trouble.storage, "new", b"x").await.unwrap();
    assert_eq!(trouble.requests(), 3);
    for calls in 0..4 {
        trouble.bucket(|bucket| bucket.switches.slow_down = 1);
        match calls {
            0 => drop(trouble.storage.get(&name("old")).await.unwrap()),
            1 => assert!(trouble.storage.head(&name("old")).await.unwrap().is_some()),
            2 => assert_eq!(names(&*trouble.storage, "").await, ["new", "old"]),
            _ => trouble.storage.delete(&name("old")).await.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_server_that_stays_overloaded_is_a_transient_error_after_as_many_attempts_as_were_allowed() {
    let trouble = Trouble::with(Switches { slow_down: u32::MAX, ..Switches::default() }).await;
    let storage = impatient(trouble.location.clone()).await;
    let error = create(&*storage, "new", b"x").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("SlowDown"), "{error}");
    assert_eq!(trouble.requests(), 2, "nobody retries on top of the SDK");
}

#[tokio::test]
async fn a_lost_answer_to_a_done_creation_is_a_success() {
    let trouble = Trouble::with(Switches { lose_put_answers: 1, ..Switches::default() }).await;
    create(&*trouble.storage, "new", b"mine").await.unwrap();
    assert_eq!(trouble.bucket(|bucket| bucket.bytes("new")).unwrap(), &b"mine"[..]);
    // Write, write again and be refused, read what is there.
    assert_eq!(trouble.requests(), 3);
}

#[tokio::test]
async fn a_retried_creation_does_not_take_anothers_object_for_its_own() {
    let trouble = Trouble::with(Switches { slow_down: 1, ..Switches::default() }).await;
    let error = create(&*trouble.storage, "old", b"different!").await.unwrap_err();
    assert!(matches!(error, StorageError::AlreadyExists { .. }), "{error}");
}

#[tokio::test]
async fn a_conflict_with_a_rival_is_tried_again() {
    let trouble = Trouble::with(Switches { conflict: 1, ..Switches::default() }).await;
    create(&*trouble.storage, "new", b"mine").await.unwrap();
    assert_eq!(trouble.requests(), 2);
}

#[tokio::test]
async fn a_connection_that_breaks_while_reading_is_continued_where_it_broke() {
    for (times, after) in [(1, 0), (1, 9), (3, 2)] {
        let trouble = Trouble::with(Switches { cut_bodies: Some((times, after)), ..Switches::default() }).await;
        assert_eq!(trouble.storage.get(&name("old")).await.unwrap(), &b"0123456789"[..], "{times} × {after}");
        trouble.bucket(|bucket| bucket.switches.cut_bodies = Some((times, after.min(2))));
        assert_eq!(trouble.storage.get_range(&name("old"), 1..9).await.unwrap(), &b"12345678"[..], "{times} × {after}");
    }
}

#[tokio::test]
async fn a_connection_that_always_breaks_is_a_transient_error() {
    let trouble = Trouble::with(Switches { cut_bodies: Some((u32::MAX, 1)), ..Switches::default() }).await;
    let error = trouble.storage.get(&name("old")).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("broke 4 times"), "{error}");
}

#[tokio::test]
async fn a_part_that_is_too_short_is_never_taken_for_the_whole() {
    let trouble = Trouble::with(Switches { shorten_bodies: Some(3), ..Switches::default() }).await;
    assert_eq!(trouble.storage.get_range(&name("old"), 2..8).await.unwrap(), &b"234567"[..], "the rest was asked for");
    // A whole object that the server itself holds to be shorter cannot be told from a short object: names are hashes for that.
    assert_eq!(trouble.storage.get(&name("old")).await.unwrap(), &b"012"[..]);
    trouble.bucket(|bucket| bucket.switches.shorten_bodies = Some(1));
    let error = trouble.storage.get_range(&name("old"), 2..8).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_found_out() {
    let trouble = Trouble::with(Switches { ignores_ranges: true, ..Switches::default() }).await;
    let error = trouble.storage.get_range(&name("old"), 0..5).await.unwrap_err();
    assert!(error.to_string().contains("part of an object"), "{error}");
}

#[tokio::test]
async fn a_server_that_ignores_conditions_and_retention_is_found_out() {
    let trouble =
        Trouble::with(Switches { ignores_conditions: true, ignores_retention: true, ..Switches::default() }).await;
    let found = trouble.storage.probe().await.unwrap();
    assert_eq!(found, Capabilities { conditional_create: false, object_lock: Some(false), versioning: Some(false) });
    trouble.bucket(|bucket| bucket.locked = true);
    let found = trouble.storage.probe().await.unwrap();
    assert_eq!(found.object_lock, Some(false), "it says that lock is on, but forgets what it was asked to keep");
    assert_eq!(trouble.bucket(|bucket| bucket.keys()), ["old".to_owned()].into());
}

#[tokio::test]
async fn retention_is_asked_for_and_read_back() {
    let trouble = Trouble::with(Switches::default()).await;
    trouble.bucket(|bucket| bucket.locked = true);
    let found = trouble.storage.probe().await.unwrap();
    assert_eq!(found, Capabilities { conditional_create: true, object_lock: Some(true), versioning: Some(true) });
    let until = Timestamp::now() + SignedDuration::from_hours(24);
    trouble
        .storage
        .put(&name("kept"), Bytes::from_static(b"x"), PutMode::Create, Some(Retention { until }))
        .await
        .unwrap();
    let kept = trouble.bucket(|bucket| bucket.retained_until("kept")).unwrap();
    assert!(kept >= std::time::SystemTime::from(until).into(), "never shorter than asked");
    let versions = trouble.bucket(|bucket| bucket.old_versions());
    trouble.storage.delete(&name("kept")).await.unwrap();
    assert_eq!(trouble.bucket(|bucket| bucket.old_versions()), versions + 1);
}

#[tokio::test]
async fn retention_in_a_bucket_without_it_is_refused_and_writes_nothing() {
    let trouble = Trouble::with(Switches::default()).await;
    let until = Timestamp::now() + SignedDuration::from_hours(24);
    let retention = Some(Retention { until });
    let put = trouble.storage.put(&name("kept"), Bytes::from_static(b"x"), PutMode::Create, retention).await;
    let error = put.unwrap_err();
    assert!(error.to_string().contains("Object Lock"), "{error}");
    assert_eq!(trouble.storage.head(&name("kept")).await.unwrap(), None);
}

#[tokio::test]
async fn a_real_server_keeps_what_it_was_asked_to_keep() {
    let Some(location) = crate::seaweedfs::fresh_locked_prefix().await else { return };
    let storage = open(&Location::S3(location)).await.unwrap();
    let found = storage.probe().await.unwrap();
    assert_eq!(found, Capabilities { conditional_create: true, object_lock: Some(true), versioning: Some(true) });
}

#[tokio::test]
async fn a_deletion_that_retention_forbids_is_named() {
    let refuse = Some((403, "AccessDenied"));
    let trouble = Trouble::with(Switches {
        refuse,
        says: "Access Denied because object protected by object lock.",
        ..Switches::default()
    })
    .await;
    let error = trouble.storage.delete(&name("old")).await.unwrap_err();
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
    let error = trouble.storage.get(&name("old")).await.unwrap_err();
    assert!(matches!(error, StorageError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_listing_that_lags_hides_nothing_from_direct_reads() {
    let known = ["old".to_owned()].into();
    let trouble = Trouble::with(Switches { stale_list: Some(known), ..Switches::default() }).await;
    create(&*trouble.storage, "new", b"x").await.unwrap();
    assert_eq!(names(&*trouble.storage, "").await, ["old"]);
    assert!(trouble.storage.head(&name("new")).await.unwrap().is_some());
    assert!(trouble.storage.get(&name("new")).await.is_ok());
    assert!(matches!(create(&*trouble.storage, "new", b"x").await, Err(StorageError::AlreadyExists { .. })));
}

#[tokio::test]
async fn a_listing_out_of_order_is_an_error_and_not_a_wrong_answer() {
    let trouble = Trouble::with(Switches { list_backwards: true, ..Switches::default() }).await;
    create(&*trouble.storage, "new", b"x").await.unwrap();
    let error = trouble.storage.list("").try_collect::<Vec<_>>().await.unwrap_err();
    assert!(error.to_string().contains("not in order"), "{error}");
}

#[tokio::test]
async fn what_is_not_ours_in_a_bucket_is_not_listed() {
    let trouble = Trouble::with(Switches::default()).await;
    let mut above = trouble.location.clone();
    above.prefix = "other".into();
    create(&*open(&Location::S3(above)).await.unwrap(), "theirs", b"x").await.unwrap();
    let mut within = trouble.location.clone();
    within.prefix = "oth".into();
    let storage = open(&Location::S3(within)).await.unwrap();
    assert_eq!(names(&*storage, "").await, [""; 0], "`oth` is no folder of `other/theirs`");
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    let cases = [
        ((403, "AccessDenied"), "was denied", false),
        ((403, "SignatureDoesNotMatch"), "the secret key is wrong", false),
        ((403, "InvalidAccessKeyId"), "does not know the access key", false),
        ((403, "ExpiredToken"), "expired", false),
        ((403, "RequestTimeTooSkewed"), "clocks", false),
        ((404, "NoSuchBucket"), "the bucket does not exist", false),
        ((507, "InsufficientStorage"), "no space left", false),
        ((400, "InvalidRequest"), "InvalidRequest says the test", false),
        ((501, "NotImplemented"), "NotImplemented", false),
        ((503, "ServiceUnavailable"), "try again later", true),
        ((500, "InternalError"), "try again later", true),
    ];
    for (refuse, said, transient) in cases {
        let trouble = Trouble::with(Switches { refuse: Some(refuse), ..Switches::default() }).await;
        let storage = impatient(trouble.location.clone()).await;
        for error in [create(&*storage, "new", b"x").await.unwrap_err(), storage.get(&name("old")).await.unwrap_err()] {
            assert!(error.to_string().contains(said), "{refuse:?}: {error}");
            assert_eq!(error.is_transient(), transient, "{refuse:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_bucket_in_another_region_is_named() {
    let trouble = Trouble::with(Switches { redirect_to_region: Some("eu-south-2"), ..Switches::default() }).await;
    let error = create(&*trouble.storage, "new", b"x").await.unwrap_err();
    assert!(error.to_string().contains("put region=eu-south-2 into the address"), "{error}");
}

#[tokio::test]
async fn a_missing_bucket_is_not_a_missing_object() {
    let storage = open(&Location::S3(server().location("no-such-bucket"))).await.unwrap();
    for error in [
        storage.get(&name("repository.json")).await.unwrap_err(),
        storage.list("").try_collect::<Vec<_>>().await.unwrap_err(),
        create(&*storage, "new", b"x").await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("the bucket does not exist"), "{error}");
    }
}

#[tokio::test]
async fn wrong_keys_are_named_and_no_secret_is_shown() {
    let mut location = server().fresh_bucket();
    let wrong = "another-secret-that-must-never-be-shown";
    location.credentials = Some(S3Credentials { access_key: "AKTEST".into(), secret_key: wrong.into() });
    let storage = open(&Location::S3(location.clone())).await.unwrap();
    let error = create(&*storage, "new", b"x").await.unwrap_err();
    assert!(matches!(error, StorageError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("the secret key is wrong"), "{error}");
    let shown = format!("{error} {error:?} {storage:?} {} {location:?}", storage.address());
    assert!(!shown.contains(wrong) && !shown.contains(SECRET_KEY), "{shown}");
}

#[tokio::test]
async fn nobody_there_is_a_transient_error_with_the_reason() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut location = server().location("bucket");
    location.endpoint = Some(format!("http://127.0.0.1:{port}"));
    let error = create(&*impatient(location).await, "new", b"x").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_private_authority_is_trusted_only_when_it_is_named() {
    let mut location = server().fresh_bucket();
    location.endpoint = Some(format!("https://localhost:{}", server().tls_address.port()));
    let error = create(&*impatient(location.clone()).await, "new", b"x").await.unwrap_err();
    assert!(!error.is_transient(), "{error}");
    assert!(error.to_string().contains("add ca_bundle=FILE"), "{error}");
    location.ca_bundle = Some(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/tls/authority.pem").into());
    create(&*impatient(location).await, "new", b"x").await.unwrap();
}

#[tokio::test]
async fn a_bad_ca_bundle_is_named_before_anything_is_sent() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (content, said) in [("", "holds no certificate"), (broken, "has a certificate that cannot be read")] {
        std::fs::write(file.path(), content).unwrap();
        let mut location = server().fresh_bucket();
        location.ca_bundle = Some(file.path().to_owned());
        let error = open(&Location::S3(location)).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    let mut location = server().fresh_bucket();
    location.ca_bundle = Some("/no/such/file".into());
    assert!(open(&Location::S3(location)).await.unwrap_err().to_string().contains("cannot be read"));
}

#[tokio::test]
async fn no_more_requests_run_at_once_than_were_allowed() {
    let trouble = Trouble::with(Switches::default()).await;
    let mut location = trouble.location.clone();
    location.concurrency = 1;
    let storage = open(&Location::S3(location)).await.unwrap();
    let name = name("old");
    let reads = futures_util::future::join_all((0..20).map(|_| storage.get(&name))).await;
    assert!(reads.iter().all(Result::is_ok));
    assert_eq!(trouble.bucket(|bucket| bucket.most_at_once), 1);
}
