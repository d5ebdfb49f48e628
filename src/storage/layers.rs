//! Layers over a storage: [`Counting`] tells what was asked of it (for `--json` and for budgets of requests in tests), [`Listed`] lists once,
//! `Dying` (cargo feature `failpoints`) has a point before and after each call at which a test ends the process.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::{self, BoxStream, StreamExt};

use super::{Capabilities, ObjectMeta, ObjectName, PutMode, Retention, Storage, StorageError};

/// How often each verb was called, failed calls included, and how many bytes went each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub put: u64,
    pub get: u64,
    pub get_range: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
    pub probe: u64,
    /// Bytes of objects that were sent.
    pub bytes_out: u64,
    /// Bytes of objects that were received.
    pub bytes_in: u64,
    /// Objects that listings told of.
    pub listed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    put: AtomicU64,
    get: AtomicU64,
    get_range: AtomicU64,
    head: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    probe: AtomicU64,
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
    listed: AtomicU64,
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Counts what is asked of the storage beneath.
#[derive(Debug)]
pub struct Counting {
    inner: Arc<dyn Storage>,
    counters: Counters,
}

impl Counting {
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, counters: Counters::default() }
    }

    /// What was asked since the beginning.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        Counts {
            put: read(&c.put),
            get: read(&c.get),
            get_range: read(&c.get_range),
            head: read(&c.head),
            list: read(&c.list),
            delete: read(&c.delete),
            probe: read(&c.probe),
            bytes_out: read(&c.bytes_out),
            bytes_in: read(&c.bytes_in),
            listed: read(&c.listed),
        }
    }
}

#[async_trait]
impl Storage for Counting {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        retention: Option<Retention>,
    ) -> Result<(), StorageError> {
        add(&self.counters.put, 1);
        add(&self.counters.bytes_out, bytes.len() as u64);
        self.inner.put(name, bytes, mode, retention).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        add(&self.counters.get, 1);
        let bytes = self.inner.get(name).await?;
        add(&self.counters.bytes_in, bytes.len() as u64);
        Ok(bytes)
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        add(&self.counters.get_range, 1);
        let bytes = self.inner.get_range(name, range).await?;
        add(&self.counters.bytes_in, bytes.len() as u64);
        Ok(bytes)
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        add(&self.counters.head, 1);
        self.inner.head(name).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        add(&self.counters.list, 1);
        self.inner.list(prefix).inspect(|_| add(&self.counters.listed, 1)).boxed()
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        add(&self.counters.delete, 1);
        self.inner.delete(name).await
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        add(&self.counters.probe, 1);
        self.inner.probe().await
    }
}

/// Passes `storage:before` and `storage:after` around each call, which takes as long as a test wants (see [`crate::failpoint`]).
#[cfg(feature = "failpoints")]
#[derive(Debug)]
pub struct Dying {
    inner: Arc<dyn Storage>,
}

/// Lists everything once and answers from that until it is told to forget: who begins to work asks for one prefix after the other.
pub struct Listed {
    inner: Arc<dyn Storage>,
    names: Mutex<Option<Vec<ObjectMeta>>>,
}

impl Listed {
    pub async fn of(inner: Arc<dyn Storage>) -> Result<Self, StorageError> {
        let names = inner.list("").try_collect().await?;
        Ok(Self { inner, names: Mutex::new(Some(names)) })
    }

    /// From now on the storage itself is asked.
    pub fn forget(&self) {
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listed({:?})", self.inner)
    }
}

#[async_trait]
impl Storage for Listed {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        retention: Option<Retention>,
    ) -> Result<(), StorageError> {
        self.inner.put(name, bytes, mode, retention).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.inner.get(name).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.inner.get_range(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        self.inner.head(name).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match &*names {
            Some(names) => {
                let fitting = names.iter().filter(|meta| meta.name.as_str().starts_with(prefix)).cloned();
                stream::iter(fitting.map(Ok).collect::<Vec<_>>()).boxed()
            }
            None => self.inner.list(prefix),
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.inner.delete(name).await
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        self.inner.probe().await
    }
}

#[cfg(feature = "failpoints")]
impl Dying {
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner }
    }

    async fn around<T>(&self, call: impl Future<Output = T>) -> T {
        crate::failpoint::hit("storage:before");
        crate::failpoint::delay().await;
        let answer = call.await;
        crate::failpoint::hit("storage:after");
        answer
    }
}

#[cfg(feature = "failpoints")]
#[async_trait]
impl Storage for Dying {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        retention: Option<Retention>,
    ) -> Result<(), StorageError> {
        self.around(self.inner.put(name, bytes, mode, retention)).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.around(self.inner.get(name)).await
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.around(self.inner.get_range(name, range)).await
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        self.around(self.inner.head(name)).await
    }

    /// One call, whatever its length: a reading has nothing to leave behind.
    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        crate::failpoint::hit("storage:before");
        self.inner.list(prefix)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.around(self.inner.delete(name)).await
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        self.around(self.inner.probe()).await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::storage::directory::Directory;

    #[tokio::test]
    async fn every_request_and_byte_is_counted() {
        let root = tempfile::tempdir().unwrap();
        let storage = Counting::new(Arc::new(Directory::new(root.path()).unwrap()));
        let name = ObjectName::new("a/b").unwrap();
        let bytes = Bytes::from_static(b"0123456789");
        storage.put(&name, bytes.clone(), PutMode::Create, None).await.unwrap();
        storage.put(&name, bytes, PutMode::Create, None).await.unwrap_err();
        storage.get(&name).await.unwrap();
        storage.get_range(&name, 2..5).await.unwrap();
        storage.head(&name).await.unwrap();
        storage.list("").try_collect::<Vec<_>>().await.unwrap();
        storage.probe().await.unwrap();
        storage.delete(&name).await.unwrap();
        storage.get(&name).await.unwrap_err();
        let wanted = Counts {
            put: 2,
            get: 2,
            get_range: 1,
            head: 1,
            list: 1,
            delete: 1,
            probe: 1,
            bytes_out: 20,
            bytes_in: 13,
            listed: 1,
        };
        assert_eq!(storage.counts(), wanted);
    }
}
