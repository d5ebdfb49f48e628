//! Where the objects of a repository are kept: a directory or an S3 prefix.
//!
//! The layer ships bytes under names and knows nothing of what they mean. It may use nothing else of Restante
//! but [`crate::monitor`]; `repository` is its only caller besides the commands that open it.
//!
//! * [`location`] reads addresses and opens them; [`directory`] and [`s3`] are the two kinds of place.
//! * [`buffer`] keeps the memory of large objects for the next one.
//! * [`layers`] counts calls for statistics and budgets; [`faults`] makes tests live with broken storages.
//!
//! The contract that every implementation keeps, and that one conformance suite (`tests/it/storage/`) checks:
//!
//! * **Durability.** When [`Storage::put`] returns `Ok`, the object *must* survive a crash of this process and of the host.
//! * **Atomicity.** A reader *must* see the whole object or none; a failed or interrupted `put` leaves no part of one under the name.
//! * **Write-once.** With [`PutMode::Create`] an existing object *should* never be replaced; the caller *must not* rely on it
//!   (some servers ignore the condition and answer 200), only defend with it.
//! * **Read after write.** `get`, `get_range` and `head` see a finished `put` at once. `list` *may* lag behind by the
//!   delay that the storage declares.
//! * **Names.** No object's name is the folder of another (`a` and `a/b`): a directory cannot hold both.
//! * **Errors** tell permanent from transient ([`StorageError::is_transient`]); an implementation has already retried what it can.
//!   After a transient error of `put` the object *may* be there: nobody heard the answer.

pub mod buffer;
pub mod directory;
pub mod faults;
pub mod layers;
pub mod location;
#[cfg(feature = "s3")]
pub mod s3;

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;

pub use location::{Location, LocationError, S3Credentials, S3Location, open};

/// No object of format 1 is larger, so a whole object fits in memory and multipart upload is not needed.
pub const MAX_OBJECT_BYTES: u64 = 64 << 20;

/// The name of an object below the root of its repository: `packs/3f/3fa9…`, `repository.json`.
///
/// Only `A-Z a-z 0-9 . _ -` in segments separated by `/`, no empty segment, none that starts with a dot: the same
/// name is valid as a relative path and as an S3 key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

impl ObjectName {
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        let ok = name.len() <= 512
            && name.split('/').all(|segment| {
                !segment.is_empty()
                    && !segment.starts_with('.')
                    && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            });
        if ok { Ok(Self(name)) } else { Err(InvalidName(name)) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands after the last `/`.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for ObjectName {
    type Error = InvalidName;
    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> String {
        name.0
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a valid object name")]
pub struct InvalidName(String);

/// What [`Storage::head`] and [`Storage::list`] tell of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    pub name: ObjectName,
    /// Length in bytes.
    pub size: u64,
    /// The storage's own clock when the object was written.
    pub modified: Timestamp,
}

/// May a `put` replace an object of the same name?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// No: [`StorageError::AlreadyExists`] if there is one (as far as the storage honours the condition).
    Create,
    /// Yes. For leases only.
    Replace,
}

/// Retention that a `put` asks for (S3 object lock in compliance mode). Read it back: some servers ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub until: Timestamp,
}

/// What [`Storage::probe`] found out about the place.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Capabilities {
    /// A second `put` with [`PutMode::Create`] under the same name was refused.
    pub conditional_create: bool,
    /// Object lock is on and a retention that was asked for could be read back. `None`: not asked for, or cannot be known.
    pub object_lock: Option<bool>,
    /// Old versions of an object are kept. `None`: cannot be known.
    pub versioning: Option<bool>,
}

/// With what the names of objects begin that only show what a storage does.
const PROBES: &str = "probe/";

/// A name that no other probe has or had: two of them may run at once, and a probe must not meet what an earlier one left.
fn random_probe_name() -> ObjectName {
    let mut random = [0; 16];
    // Never fails on the systems that aws-lc supports; if it did, the probe would only meet an object of its own making.
    let _ = aws_lc_rs::rand::fill(&mut random);
    ObjectName(format!("{PROBES}{}", data_encoding::HEXLOWER.encode(&random)))
}

/// What time it is by the storage's own clock, with which it dates its objects.
pub async fn now(storage: &dyn Storage) -> Result<Timestamp, StorageError> {
    let name = random_probe_name();
    storage.put(&name, Bytes::from_static(b"now"), PutMode::Create, None).await?;
    let meta = storage.head(&name).await?;
    let meta = meta.ok_or_else(|| StorageError::NotFound { name: name.clone(), address: storage.address() })?;
    match storage.delete(&name).await {
        // It only lies there a little longer.
        Ok(()) | Err(StorageError::Locked { .. }) => Ok(meta.modified),
        Err(error) => Err(error),
    }
}

/// A place that keeps objects. See the module text for the contract.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync {
    /// The address for messages to people, secrets masked.
    fn address(&self) -> String;

    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        retention: Option<Retention>,
    ) -> Result<(), StorageError>;

    /// The whole object, never more than [`MAX_OBJECT_BYTES`].
    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError>;

    /// Exactly the bytes of the range; [`StorageError::Truncated`] when the object is shorter.
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError>;

    /// `None` when there is no such object.
    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError>;

    /// The objects whose names start with `prefix` (`""` = all), each once, in ascending byte order of the names *within each
    /// folder*. Whether `a-b` comes before `a/c` (S3, directory) or after it (SeaweedFS) depends on the place.
    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>>;

    /// Deleting what is not there is no error.
    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError>;

    /// Tries out, with objects below `probe/` that it removes again, what the place honours. For `init`, `prune` and
    /// `doctor`; not at each open.
    async fn probe(&self) -> Result<Capabilities, StorageError>;
}

/// What went wrong, with which object, and what a person can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    #[error("object {name} is not in {address}")]
    NotFound { name: ObjectName, address: String },
    #[error("object {name} is already in {address}")]
    AlreadyExists { name: ObjectName, address: String },
    #[error("object {name} in {address} has {actual} bytes, {wanted} were expected: it is damaged or was cut short")]
    Truncated { name: ObjectName, address: String, actual: u64, wanted: u64 },
    #[error("object {name} in {address} has {size} bytes, more than any object of a repository may have")]
    TooLarge { name: ObjectName, address: String, size: u64 },
    #[error("object {name} in {address} is under retention and cannot be deleted yet")]
    Locked { name: ObjectName, address: String },
    #[error("no space left in {address}: free some, then run the command again, it goes on where it stopped")]
    Full { address: String },
    #[error("access to {address} was denied while trying to {doing}: {message}")]
    Denied { address: String, doing: String, message: String },
    #[error("{address} could not be reached while trying to {doing}: {message}")]
    Unreachable { address: String, doing: String, message: String },
    #[error("could not {doing} in {address}: {message}")]
    Failed { address: String, doing: String, message: String },
}

impl StorageError {
    /// Might the same call succeed later without anybody doing anything?
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
