//! An honest storage in memory, and one that spoils what is fetched.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;

use crate::storage::{Capabilities, ObjectMeta, ObjectName, PutMode, Retention, Storage, StorageError};

/// What happens to objects whose name starts with a prefix, from the moment they are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    FlipsABit,
    CutsShort,
    Loses,
    /// Keeps the object, but the answer to the put is lost and the put tried again.
    AnswersTwice,
}

#[derive(Debug, Default)]
pub struct Memory {
    pub objects: Mutex<BTreeMap<ObjectName, Bytes>>,
    fault: Mutex<Option<(&'static str, Fault)>>,
}

impl Memory {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn with_fault(self: &Arc<Self>, prefix: &'static str, fault: Fault) {
        *self.fault.lock().unwrap() = Some((prefix, fault));
    }

    pub fn names(&self, prefix: &str) -> Vec<ObjectName> {
        self.objects.lock().unwrap().keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect()
    }

    pub fn set(&self, name: &ObjectName, bytes: impl Into<Bytes>) {
        self.objects.lock().unwrap().insert(name.clone(), bytes.into());
    }

    pub fn bytes(&self, name: &ObjectName) -> Bytes {
        self.objects.lock().unwrap()[name].clone()
    }

    fn missing(&self, name: &ObjectName) -> StorageError {
        StorageError::NotFound { name: name.clone(), address: self.address() }
    }
}

/// Its clock stands still, and nothing comes from its future.
pub const WRITTEN: Timestamp = Timestamp::constant(4_102_444_800, 0);

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
        let fault = self.fault.lock().unwrap().filter(|(prefix, _)| name.as_str().starts_with(prefix)).map(|f| f.1);
        let mut objects = self.objects.lock().unwrap();
        let exists = || StorageError::AlreadyExists { name: name.clone(), address: "memory".into() };
        if mode == PutMode::Create && objects.contains_key(name) {
            return Err(exists());
        }
        let mut kept = bytes.to_vec();
        let middle = kept.len() / 2;
        match fault {
            Some(Fault::FlipsABit) => kept[middle] ^= 1,
            Some(Fault::CutsShort) => kept.truncate(middle),
            Some(Fault::Loses) => return Ok(()),
            Some(Fault::AnswersTwice) | None => {}
        }
        objects.insert(name.clone(), kept.into());
        if fault == Some(Fault::AnswersTwice) { Err(exists()) } else { Ok(()) }
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.objects.lock().unwrap().get(name).cloned().ok_or_else(|| self.missing(name))
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let bytes = self.get(name).await?;
        let truncated = || StorageError::Truncated {
            name: name.clone(),
            address: self.address(),
            actual: bytes.len() as u64,
            wanted: range.end,
        };
        if range.end > bytes.len() as u64 {
            Err(truncated())
        } else {
            Ok(bytes.slice(range.start as usize..range.end as usize))
        }
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        let size = self.objects.lock().unwrap().get(name).map(|bytes| bytes.len() as u64);
        Ok(size.map(|size| ObjectMeta { name: name.clone(), size, modified: WRITTEN }))
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        let metas: Vec<_> = self
            .names(prefix)
            .into_iter()
            .map(|name| Ok(ObjectMeta { size: self.bytes(&name).len() as u64, name, modified: WRITTEN }))
            .collect();
        stream::iter(metas).boxed()
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.objects.lock().unwrap().remove(name);
        Ok(())
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        Ok(Capabilities { conditional_create: true, object_lock: None, versioning: None })
    }
}
