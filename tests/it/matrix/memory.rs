//! A storage in memory that is copied for nothing: each cell of the damage matrix spoils a copy.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use restante::storage::{Capabilities, ObjectMeta, ObjectName, PutMode, Retention, Storage, StorageError};

pub type Objects = BTreeMap<ObjectName, Bytes>;

#[derive(Debug, Default)]
pub struct Memory(Mutex<Objects>);

impl Memory {
    pub fn of(objects: Objects) -> Arc<Self> {
        Arc::new(Self(Mutex::new(objects)))
    }

    pub fn objects(&self) -> Objects {
        self.0.lock().unwrap().clone()
    }

    fn missing(&self, name: &ObjectName) -> StorageError {
        StorageError::NotFound { name: name.clone(), address: self.address() }
    }
}

/// Everything that a storage holds.
pub async fn copy_of(storage: &dyn Storage) -> Objects {
    let listed: Vec<ObjectMeta> = storage.list("").try_collect().await.unwrap();
    let mut objects = Objects::new();
    for meta in listed {
        objects.insert(meta.name.clone(), storage.get(&meta.name).await.unwrap());
    }
    objects
}

/// Its clock stands still, and nothing comes from its future.
fn written() -> Timestamp {
    "2100-01-01T00:00:00Z".parse().unwrap()
}

#[async_trait]
impl Storage for Memory {
    fn address(&self) -> String {
        "memory".into()
    }

    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        _: Option<Retention>,
    ) -> Result<(), StorageError> {
        let mut objects = self.0.lock().unwrap();
        if mode == PutMode::Create && objects.contains_key(name) {
            return Err(StorageError::AlreadyExists { name: name.clone(), address: self.address() });
        }
        objects.insert(name.clone(), bytes);
        Ok(())
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.0.lock().unwrap().get(name).cloned().ok_or_else(|| self.missing(name))
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let bytes = self.get(name).await?;
        let (actual, wanted) = (bytes.len() as u64, range.end);
        if wanted > actual {
            return Err(StorageError::Truncated { name: name.clone(), address: self.address(), actual, wanted });
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        let size = self.0.lock().unwrap().get(name).map(|bytes| bytes.len() as u64);
        Ok(size.map(|size| ObjectMeta { name: name.clone(), size, modified: written() }))
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        let objects = self.0.lock().unwrap();
        let listed = objects.iter().filter(|(name, _)| name.as_str().starts_with(prefix));
        let meta = |(name, bytes): (&ObjectName, &Bytes)| {
            Ok(ObjectMeta { name: name.clone(), size: bytes.len() as u64, modified: written() })
        };
        stream::iter(listed.map(meta).collect::<Vec<_>>()).boxed()
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        Ok(Capabilities { conditional_create: true, object_lock: None, versioning: None })
    }
}
