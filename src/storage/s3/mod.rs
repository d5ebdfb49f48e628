//! Objects in an S3 bucket, Amazon's or any other server's.
//!
//! Requests are retried by the SDK alone (standard mode; what cannot be repeated safely is said below), and never by a loop
//! around it. The one thing the SDK does not cover is the *body* of an answer: when a connection breaks while it is
//! read, the rest is asked for, a few times, with the ETag as a condition.
//!
//! Servers differ. `PutMode::Create` sends `If-None-Match: *`, which some ignore, as some ignore retention; `probe`
//! finds out. Checksums beyond what S3 has always had are sent only where S3 demands them (retention), because
//! several servers refuse them.

mod client;
mod errors;
mod past;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    BucketVersioningStatus, ChecksumAlgorithm, ObjectLockEnabled, ObjectLockMode, ObjectLockRetentionMode,
};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Semaphore, SemaphorePermit};

use self::errors::{code, status};
pub use self::past::Past;
use super::location::S3Location;
use super::{
    Capabilities, MAX_OBJECT_BYTES, ObjectMeta, ObjectName, PROBES, PutMode, Retention, Storage, StorageError,
    random_probe_name,
};

/// How often the rest of a body is asked for after a broken connection.
const CONTINUATIONS: u32 = 3;
/// Long enough for a server whose clock is ahead, short enough that the probe's object can soon be removed.
const PROBE_RETENTION: SignedDuration = SignedDuration::from_mins(5);

/// A prefix of an S3 bucket that keeps objects.
pub struct S3 {
    client: Client,
    location: S3Location,
    requests: Semaphore,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3").field(&self.address()).finish()
    }
}

impl S3 {
    /// Finds credentials and region; the bucket is first spoken to by the first call.
    pub async fn connect(location: &S3Location) -> Result<Self, StorageError> {
        Ok(Self {
            client: client::client(location).await?,
            location: location.clone(),
            requests: Semaphore::new(location.concurrency),
        })
    }

    fn key(&self, name: &str) -> String {
        if self.location.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.location.prefix) }
    }

    /// What the address asks for, of everything that is written once.
    fn retention(&self, name: &ObjectName, mode: PutMode) -> Option<Retention> {
        let lock = self.location.lock.filter(|_| mode == PutMode::Create && !name.as_str().starts_with(PROBES))?;
        Timestamp::now().checked_add(lock).ok().map(|until| Retention { until })
    }

    /// Bounds the requests that run at once. The semaphore is never closed, so there is always a permit to come.
    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        self.requests.acquire().await.ok()
    }

    fn failed(&self, doing: &str, message: impl Into<String>) -> StorageError {
        StorageError::Failed { address: self.address(), doing: doing.into(), message: message.into() }
    }

    fn timestamp(&self, doing: &str, time: Option<&DateTime>) -> Result<Timestamp, StorageError> {
        time.and_then(|time| Timestamp::new(time.secs(), time.subsec_nanos() as i32).ok())
            .ok_or_else(|| self.failed(doing, "the server did not tell when the object was written"))
    }

    /// Sends one `PutObject` and says how many attempts the SDK made.
    async fn send(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        retention: Option<Retention>,
    ) -> (Result<(), StorageError>, u32) {
        let attempts = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&attempts);
        let mut request = self
            .client
            .put_object()
            .bucket(&self.location.bucket)
            .key(self.key(name.as_str()))
            .content_type("application/octet-stream")
            .set_if_none_match((mode == PutMode::Create).then(|| "*".to_owned()))
            .body(ByteStream::from(bytes));
        if let Some(Retention { until }) = retention {
            // The date has whole seconds: round up, never keep for less than was asked.
            let seconds = until.as_second().saturating_add(i64::from(until.subsec_nanosecond() > 0));
            request = request
                .object_lock_mode(ObjectLockMode::Compliance)
                .object_lock_retain_until_date(DateTime::from_secs(seconds))
                .checksum_algorithm(ChecksumAlgorithm::Crc32);
        }
        let sent = request
            .customize()
            .mutate_request(move |_| {
                counter.fetch_add(1, Ordering::Relaxed);
            })
            .config_override(aws_sdk_s3::config::Builder::new().timeout_config(client::put_timeouts()))
            .send()
            .await;
        let outcome = match sent {
            Ok(_) => Ok(()),
            Err(error) if mode == PutMode::Create && status(&error) == Some(412) => {
                Err(StorageError::AlreadyExists { name: name.clone(), address: self.address() })
            }
            Err(error) => Err(self.error(format!("write {name}"), Some(name), &error)),
        };
        (outcome, attempts.load(Ordering::Relaxed))
    }

    /// `version`: not the newest.
    async fn fetch(
        &self,
        name: &ObjectName,
        wanted: Option<Range<u64>>,
        version: Option<&str>,
    ) -> Result<Bytes, StorageError> {
        let permit = self.permit().await;
        let doing = || format!("read {name}");
        let start = wanted.as_ref().map_or(0, |range| range.start);
        let mut end = wanted.as_ref().map(|range| range.end);
        let mut bytes = Vec::new();
        let mut etag: Option<String> = None;
        let mut broken = String::new();
        for continuation in 0..=CONTINUATIONS {
            let from = start + bytes.len() as u64;
            let range = (wanted.is_some() || from > 0).then(|| match end {
                Some(end) => format!("bytes={from}-{}", end.saturating_sub(1)),
                None => format!("bytes={from}-"),
            });
            let request = self.client.get_object().bucket(&self.location.bucket).key(self.key(name.as_str()));
            let request = request.set_version_id(version.map(str::to_owned));
            let answer = match request.set_range(range.clone()).set_if_match(etag.clone()).send().await {
                Ok(answer) => answer,
                Err(error) if status(&error) == Some(416) => {
                    let actual = match errors::size_of_unsatisfied_range(&error) {
                        Some(size) => size,
                        None => {
                            drop(permit);
                            self.head(name).await?.map_or(0, |meta| meta.size)
                        }
                    };
                    return Err(self.truncated(name, actual, end.unwrap_or(from)));
                }
                Err(error) => return Err(self.error(doing(), Some(name), &error)),
            };
            if range.is_some() {
                let (first, until, total) = content_range(&answer).ok_or_else(|| {
                    self.failed(&doing(), "the server does not answer requests for a part of an object")
                })?;
                if let Some(end) = end.filter(|end| until < *end) {
                    return Err(self.truncated(name, total.unwrap_or(until), end));
                }
                if first != from || end.is_some_and(|end| until != end) {
                    let message = format!("the server sent the bytes from {first} until {until} instead of {range:?}");
                    return Err(self.failed(&doing(), message));
                }
            } else {
                end = answer.content_length().and_then(|length| u64::try_from(length).ok());
            }
            let too_large = |size| StorageError::TooLarge { name: name.clone(), address: self.address(), size };
            if let Some(size) = end.map(|end| end - start).filter(|size| *size > MAX_OBJECT_BYTES) {
                return Err(too_large(size));
            }
            if continuation == 0 {
                etag = answer.e_tag().map(str::to_owned);
                bytes.reserve_exact(end.map_or(0, |end| end - start) as usize);
            }
            let mut body = answer.body;
            broken = loop {
                match body.next().await {
                    Some(Ok(chunk)) => bytes.extend_from_slice(&chunk),
                    Some(Err(error)) => break errors::chain(&error),
                    None if end.is_none_or(|end| start + bytes.len() as u64 == end) => return Ok(bytes.into()),
                    None => break "the answer ended early".to_owned(),
                }
                match end {
                    Some(end) if bytes.len() as u64 > end - start => {
                        return Err(self.failed(&doing(), "the server sent more than it had announced"));
                    }
                    None if bytes.len() as u64 > MAX_OBJECT_BYTES => return Err(too_large(bytes.len() as u64)),
                    _ => {}
                }
            };
            // Without an ETag the rest might be of another object, and what came so far cannot be kept.
            if etag.is_none() {
                bytes.clear();
            }
        }
        let message = format!("the connection broke {} times, the last time so: {broken}", CONTINUATIONS + 1);
        Err(StorageError::Unreachable { address: self.address(), doing: doing(), message })
    }

    fn truncated(&self, name: &ObjectName, actual: u64, wanted: u64) -> StorageError {
        StorageError::Truncated { name: name.clone(), address: self.address(), actual, wanted }
    }

    /// One page of a listing, and the token of the next.
    async fn page(
        &self,
        prefix: &str,
        token: Option<String>,
    ) -> Result<(VecDeque<ObjectMeta>, Option<String>), StorageError> {
        let _permit = self.permit().await;
        let doing = format!("list {prefix:?}");
        let request = self.client.list_objects_v2().bucket(&self.location.bucket).prefix(self.key(prefix));
        let answer = request
            .set_continuation_token(token)
            .send()
            .await
            .map_err(|error| self.error(doing.clone(), None, &error))?;
        let mut page = VecDeque::with_capacity(answer.contents().len());
        let root = self.key("").len();
        for object in answer.contents() {
            // Objects that are not ours may lie there too: placeholders of folders, a colleague's notes.
            let Some(Ok(name)) = object.key().and_then(|key| key.get(root..)).map(ObjectName::new) else { continue };
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            let size =
                size.ok_or_else(|| self.failed(&doing, format!("the server did not tell the size of {name}")))?;
            page.push_back(ObjectMeta { name, size, modified: self.timestamp(&doing, object.last_modified())? });
        }
        let next = match (answer.is_truncated(), answer.next_continuation_token) {
            (Some(true), Some(token)) => Some(token),
            (Some(true), None) => return Err(self.failed(&doing, "the server said that there is more, but not where")),
            _ => None,
        };
        Ok((page, next))
    }

    /// Asks for retention on a fresh object and reads it back. `None`: the server does not say.
    async fn probe_lock(&self) -> Option<bool> {
        let bucket = &self.location.bucket;
        let lock = match self.client.get_object_lock_configuration().bucket(bucket).send().await {
            Ok(answer) => answer.object_lock_configuration,
            Err(error) if code(&error) == Some("ObjectLockConfigurationNotFoundError") => return Some(false),
            Err(_) => return None,
        };
        if lock.and_then(|lock| lock.object_lock_enabled) != Some(ObjectLockEnabled::Enabled) {
            return Some(false);
        }
        let name = random_probe_name();
        let until = Timestamp::now().checked_add(PROBE_RETENTION).ok()?;
        self.send(&name, Bytes::from_static(b"locked"), PutMode::Create, Some(Retention { until })).await.0.ok()?;
        let read = self.client.get_object_retention().bucket(bucket).key(self.key(name.as_str())).send().await;
        // Leaves a marker over the version that is still locked; a lifecycle rule of the bucket clears both.
        let _ = self.delete(&name).await;
        let retention = match read {
            Ok(answer) => answer.retention,
            // A server that forgot the retention says so with 404; one that may not tell, with 403.
            Err(error) if status(&error) == Some(403) => return None,
            Err(_) => None,
        };
        Some(retention.is_some_and(|retention| {
            retention.mode == Some(ObjectLockRetentionMode::Compliance)
                && retention.retain_until_date.is_some_and(|date| date.secs() >= until.as_second())
        }))
    }
}

/// The first byte, the one after the last, and the size of the whole object.
fn content_range(answer: &GetObjectOutput) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = answer.content_range()?.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?, total.parse().ok()))
}

/// Byte order of the whole names, as S3 has it, or folder by folder (SeaweedFS: `a/c` before `a-b`).
fn in_order(a: &ObjectName, b: &ObjectName) -> bool {
    a < b || a.as_str().split('/').lt(b.as_str().split('/'))
}

#[async_trait]
impl Storage for S3 {
    fn address(&self) -> String {
        self.location.to_string()
    }

    /// A refused creation may be of our own making: the first attempt was done, its answer got lost, the SDK tried again and
    /// met its own object. Only then what is there is compared, and the same bytes are a success.
    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        retention: Option<Retention>,
    ) -> Result<(), StorageError> {
        let retention = retention.or_else(|| self.retention(name, mode));
        let (outcome, attempts) = {
            let _permit = self.permit().await;
            self.send(name, bytes.clone(), mode, retention).await
        };
        match outcome {
            Err(StorageError::AlreadyExists { .. }) if attempts > 1 && self.fetch(name, None, None).await? == bytes => {
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.fetch(name, None, None).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let length = range.end.saturating_sub(range.start);
        if length > MAX_OBJECT_BYTES {
            return Err(StorageError::TooLarge { name: name.clone(), address: self.address(), size: length });
        }
        // HTTP has no way to ask for nothing; whether there is an object is asked all the same.
        if length == 0 {
            return match self.head(name).await? {
                Some(meta) if meta.size < range.end => Err(self.truncated(name, meta.size, range.end)),
                Some(_) => Ok(Bytes::new()),
                None => Err(StorageError::NotFound { name: name.clone(), address: self.address() }),
            };
        }
        self.fetch(name, Some(range), None).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        let _permit = self.permit().await;
        let doing = format!("look at {name}");
        match self.client.head_object().bucket(&self.location.bucket).key(self.key(name.as_str())).send().await {
            Ok(answer) => {
                let size = answer.content_length().and_then(|length| u64::try_from(length).ok());
                let size = size.ok_or_else(|| self.failed(&doing, "the server did not tell its size"))?;
                let modified = self.timestamp(&doing, answer.last_modified())?;
                Ok(Some(ObjectMeta { name: name.clone(), size, modified }))
            }
            // The answer to HEAD has no body, so a missing bucket looks the same.
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.error(doing, Some(name), &error)),
        }
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        struct Listing {
            prefix: String,
            page: VecDeque<ObjectMeta>,
            /// `None` when the last page was read.
            next: Option<Option<String>>,
            last: Option<ObjectName>,
        }
        let listing = Listing { prefix: prefix.to_owned(), page: VecDeque::new(), next: Some(None), last: None };
        stream::try_unfold(listing, move |mut listing| async move {
            loop {
                if let Some(meta) = listing.page.pop_front() {
                    // Callers merge and search by the order; and a server that sends the same page for ever is stopped.
                    if listing.last.as_ref().is_some_and(|last| !in_order(last, &meta.name)) {
                        let message = format!("the server's list is not in order at {}", meta.name);
                        return Err(self.failed(&format!("list {:?}", listing.prefix), message));
                    }
                    listing.last = Some(meta.name.clone());
                    return Ok(Some((meta, listing)));
                }
                let Some(token) = listing.next.take() else { return Ok(None) };
                let (page, next) = self.page(&listing.prefix, token).await?;
                (listing.page, listing.next) = (page, next.map(Some));
            }
        })
        .boxed()
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let _permit = self.permit().await;
        match self.client.delete_object().bucket(&self.location.bucket).key(self.key(name.as_str())).send().await {
            Ok(_) => Ok(()),
            Err(error) if code(&error) == Some("NoSuchKey") => Ok(()),
            Err(error) if errors::is_locked(&error) => {
                Err(StorageError::Locked { name: name.clone(), address: self.address() })
            }
            Err(error) => Err(self.error(format!("delete {name}"), Some(name), &error)),
        }
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        let name = random_probe_name();
        self.put(&name, Bytes::from_static(b"first"), PutMode::Create, None).await?;
        let second = self.put(&name, Bytes::from_static(b"second"), PutMode::Create, None).await;
        let kept = self.get(&name).await;
        self.delete(&name).await?;
        let conditional_create = match second {
            Ok(()) => false,
            // Believe the refusal only if the object is still the first one.
            Err(StorageError::AlreadyExists { .. }) => kept? == b"first"[..],
            Err(error) => return Err(error),
        };
        let versioning = match self.client.get_bucket_versioning().bucket(&self.location.bucket).send().await {
            Ok(answer) => Some(answer.status == Some(BucketVersioningStatus::Enabled)),
            Err(_) => None,
        };
        Ok(Capabilities { conditional_create, object_lock: self.probe_lock().await, versioning })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_content_range_makes_it_panic() {
        let read = |header: &str| content_range(&GetObjectOutput::builder().content_range(header).build());
        assert_eq!(read("bytes 3-6/10"), Some((3, 7, Some(10))));
        assert_eq!(read("bytes 3-6/*"), Some((3, 7, None)));
        for wrong in ["", "bytes */10", "bytes 3-/10", "bytes 0-18446744073709551615/1", "bytes -1-2/3", "3-6/10"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn both_orders_of_a_listing_are_orders() {
        let name = |text: &str| ObjectName::new(text).unwrap();
        for (a, b) in [("a-b", "a/c"), ("a/c", "a-b"), ("a/1", "a/2"), ("a", "b/c")] {
            assert!(in_order(&name(a), &name(b)), "{a} {b}");
        }
        for (a, b) in [("a/2", "a/1"), ("b", "a"), ("a", "a"), ("a/b/2", "a/b/10")] {
            assert!(!in_order(&name(a), &name(b)), "{a} {b}");
        }
    }
}
