//! A versioned bucket as it was at an instant: for who finds that objects were overwritten or deleted since. Nothing can be written there.
//!
//! Of each object the version counts that was the newest then, or none if it was deleted. In memory: about 200 bytes for each object that there was.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::S3;
use crate::storage::{Capabilities, ObjectMeta, ObjectName, PutMode, Retention, Storage, StorageError};

/// What a bucket held at an instant.
pub struct Past {
    now: S3,
    at: Timestamp,
    versions: OnceCell<BTreeMap<ObjectName, Version>>,
}

struct Version {
    id: String,
    meta: ObjectMeta,
}

/// The newest that is old enough of one object. Of equal times a version counts before a deletion, and the one that is listed first before others: the
/// server lists the newest first.
#[derive(Default)]
struct Newest {
    at: Option<Timestamp>,
    version: Option<Version>,
}

impl Newest {
    fn see(&mut self, at: Timestamp, version: Option<Version>) {
        let is_newer = match self.at {
            None => true,
            Some(known) => at > known || (at == known && self.version.is_none() && version.is_some()),
        };
        if is_newer {
            (self.at, self.version) = (Some(at), version);
        }
    }
}

impl fmt::Debug for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Past").field(&self.address()).finish()
    }
}

impl Past {
    pub fn new(now: S3, at: Timestamp) -> Self {
        Self { now, at, versions: OnceCell::new() }
    }

    async fn versions(&self) -> Result<&BTreeMap<ObjectName, Version>, StorageError> {
        self.versions.get_or_try_init(async || self.list_versions().await).await
    }

    async fn list_versions(&self) -> Result<BTreeMap<ObjectName, Version>, StorageError> {
        let (s3, doing) = (&self.now, "list the versions of all objects".to_owned());
        let (bucket, prefix, root) = (&s3.location.bucket, s3.key(""), s3.key("").len());
        let name_of =
            |key: Option<&str>| key.and_then(|key| key.get(root..)).and_then(|name| ObjectName::new(name).ok());
        let mut found: BTreeMap<ObjectName, Newest> = BTreeMap::new();
        let (mut key_marker, mut version_marker) = (None, None);
        loop {
            let _permit = s3.permit().await;
            let request = s3.client.list_object_versions().bucket(bucket).prefix(&prefix);
            let answer = request.set_key_marker(key_marker).set_version_id_marker(version_marker).send().await;
            let answer = answer.map_err(|error| s3.error(doing.clone(), None, &error))?;
            for one in answer.versions() {
                let Some(name) = name_of(one.key()) else { continue };
                let modified = s3.timestamp(&doing, one.last_modified())?;
                if modified <= self.at {
                    let size = one.size().and_then(|size| u64::try_from(size).ok());
                    let size =
                        size.ok_or_else(|| s3.failed(&doing, format!("the server did not tell the size of {name}")))?;
                    let id = one.version_id().unwrap_or("null").to_owned();
                    let meta = ObjectMeta { name: name.clone(), size, modified };
                    found.entry(name).or_default().see(modified, Some(Version { id, meta }));
                }
            }
            for one in answer.delete_markers() {
                let Some(name) = name_of(one.key()) else { continue };
                let modified = s3.timestamp(&doing, one.last_modified())?;
                if modified <= self.at {
                    found.entry(name).or_default().see(modified, None);
                }
            }
            let next = (answer.next_key_marker, answer.next_version_id_marker);
            match answer.is_truncated {
                Some(true) if next.0.is_some() => (key_marker, version_marker) = next,
                Some(true) => return Err(s3.failed(&doing, "the server said that there is more, but not where")),
                _ => break,
            }
        }
        Ok(found.into_iter().filter_map(|(name, newest)| Some((name, newest.version?))).collect())
    }

    async fn version(&self, name: &ObjectName) -> Result<&Version, StorageError> {
        let missing = || StorageError::NotFound { name: name.clone(), address: self.address() };
        self.versions().await?.get(name).ok_or_else(missing)
    }

    fn refused<T>(&self, doing: &str) -> Result<T, StorageError> {
        let message = format!("this is the bucket as it was at {}, which nobody can change", self.at);
        Err(StorageError::Denied { address: self.address(), doing: doing.to_owned(), message })
    }
}

#[async_trait]
impl Storage for Past {
    fn address(&self) -> String {
        self.now.address()
    }

    async fn put(&self, name: &ObjectName, _: Bytes, _: PutMode, _: Option<Retention>) -> Result<(), StorageError> {
        self.refused(&format!("write {name}"))
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        let version = self.version(name).await?;
        self.now.fetch(name, None, Some(&version.id)).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let version = self.version(name).await?;
        if version.meta.size < range.end {
            return Err(self.now.truncated(name, version.meta.size, range.end));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.now.fetch(name, Some(range), Some(&version.id)).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        Ok(self.versions().await?.get(name).map(|version| version.meta.clone()))
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        let prefix = prefix.to_owned();
        stream::once(async move {
            match self.versions().await {
                Ok(all) => {
                    let found = all.iter().filter(move |(name, _)| name.as_str().starts_with(&prefix));
                    stream::iter(found.map(|(_, version)| Ok(version.meta.clone()))).boxed()
                }
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.refused(&format!("delete {name}"))
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        self.refused("find out what it can do")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_is_old_enough_counts_and_a_deletion_too() {
        let at = |second: i64| Timestamp::new(second, 0).unwrap();
        let version = |id: &str| {
            let meta = ObjectMeta { name: ObjectName::new("a").unwrap(), size: 1, modified: at(0) };
            Some(Version { id: id.to_owned(), meta })
        };
        let seen = |all: Vec<(i64, Option<Version>)>| {
            let mut newest = Newest::default();
            all.into_iter().for_each(|(second, version)| newest.see(at(second), version));
            newest.version.map(|version| version.id)
        };
        assert_eq!(seen(vec![(3, version("new")), (1, version("old"))]).as_deref(), Some("new"));
        assert_eq!(seen(vec![(1, version("old")), (3, version("new"))]).as_deref(), Some("new"));
        assert_eq!(seen(vec![(1, version("old")), (2, None)]), None);
        assert_eq!(seen(vec![(2, version("same")), (2, version("earlier"))]).as_deref(), Some("same"));
        assert_eq!(seen(vec![(2, None), (2, version("same"))]).as_deref(), Some("same"));
        assert_eq!(seen(vec![(2, None), (3, version("again"))]).as_deref(), Some("again"));
    }
}
