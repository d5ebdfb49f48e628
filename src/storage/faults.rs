//! A storage that breaks on purpose, for tests of everything above: [`Faulty`] lies over a working one and lets chosen calls
//! fail, die, lose their answer or return damaged bytes.
//!
//! ```
//! # use std::sync::Arc;
//! # use restante::storage::{directory::Directory, faults::{Fault, Faulty}};
//! # fn main() -> Result<(), restante::storage::StorageError> {
//! let storage = Faulty::new(Arc::new(Directory::new("/srv/backup")?));
//! storage.inject(|call| call.number == 17, Fault::DieAfter);
//! storage.inject(|call| call.name.starts_with("packs/"), Fault::FlipBit(1000));
//! # Ok(()) }
//! ```

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};

use super::{Capabilities, ObjectMeta, ObjectName, PutMode, Retention, Storage, StorageError};

/// What can be asked of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    Put,
    Get,
    GetRange,
    Head,
    List,
    Delete,
    Probe,
}

/// One thing that was asked. Counted from 1 over all verbs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub number: u64,
    pub verb: Verb,
    /// The object, or the prefix of a listing; empty for a probe.
    pub name: String,
}

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing was done; the storage cannot be reached.
    FailBefore,
    /// It was done, but the answer got lost: the caller hears that the storage cannot be reached.
    FailAfter,
    /// As `FailBefore`, and so does every later call: the process died before this one.
    DieBefore,
    /// As `FailAfter`, and every later call fails: the process died after this one.
    DieAfter,
    /// No space left; nothing was written.
    NoSpace,
    /// Only so many bytes come back, as a success.
    Truncate(usize),
    /// This bit of what comes back is the wrong way round.
    FlipBit(usize),
    /// What this `put` writes is not listed before [`Faulty::settle`].
    HideFromLists,
}

type Matcher = Box<dyn Fn(&Call) -> bool + Send + Sync>;

#[derive(Default)]
struct State {
    rules: Vec<(Matcher, Fault)>,
    calls: Vec<Call>,
    hidden: HashSet<String>,
    dead: bool,
}

/// Lets chosen calls to the storage beneath go wrong, and remembers all of them.
pub struct Faulty {
    inner: Arc<dyn Storage>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Faulty {
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// From now on every matching call goes wrong so. Of several rules the first one counts.
    pub fn inject(&self, matching: impl Fn(&Call) -> bool + Send + Sync + 'static, fault: Fault) {
        self.state().rules.push((Box::new(matching), fault));
    }

    /// All rules are forgotten, and who was dead lives again. Hidden objects stay hidden.
    pub fn heal(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.dead = false;
    }

    /// Listings catch up with what was hidden from them.
    pub fn settle(&self) {
        self.state().hidden.clear();
    }

    /// Everything that was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, verb: Verb) -> StorageError {
        let doing = format!("{verb:?}").to_lowercase();
        StorageError::Unreachable { address: self.address(), doing, message: "the test says so".into() }
    }

    /// Notes the call and finds what goes wrong with it; `Err` when it is not to be done at all.
    fn begin(&self, verb: Verb, name: &str) -> Result<Option<Fault>, StorageError> {
        let mut state = self.state();
        if state.dead {
            return Err(self.lost(verb));
        }
        let call = Call { number: state.calls.len() as u64 + 1, verb, name: name.to_owned() };
        let fault = state.rules.iter().find(|(matching, _)| matching(&call)).map(|(_, fault)| *fault);
        state.calls.push(call);
        match fault {
            Some(Fault::DieBefore) => {
                state.dead = true;
                Err(self.lost(verb))
            }
            Some(Fault::FailBefore) => Err(self.lost(verb)),
            Some(Fault::NoSpace) => Err(StorageError::Full { address: self.address() }),
            Some(Fault::HideFromLists) if verb == Verb::Put => {
                state.hidden.insert(name.to_owned());
                Ok(fault)
            }
            _ => Ok(fault),
        }
    }

    /// Lets the answer get lost if that is the fault.
    fn end<T>(&self, verb: Verb, fault: Option<Fault>, answer: Result<T, StorageError>) -> Result<T, StorageError> {
        match fault {
            Some(Fault::FailAfter) => Err(self.lost(verb)),
            Some(Fault::DieAfter) => {
                self.state().dead = true;
                Err(self.lost(verb))
            }
            _ => answer,
        }
    }
}

fn damaged(bytes: Bytes, fault: Option<Fault>) -> Bytes {
    match fault {
        Some(Fault::Truncate(keep)) => bytes.slice(..keep.min(bytes.len())),
        Some(Fault::FlipBit(bit)) if bit / 8 < bytes.len() => {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.into()
        }
        _ => bytes,
    }
}

#[async_trait]
impl Storage for Faulty {
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
        let fault = self.begin(Verb::Put, name.as_str())?;
        self.end(Verb::Put, fault, self.inner.put(name, bytes, mode, retention).await)
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        let fault = self.begin(Verb::Get, name.as_str())?;
        self.end(Verb::Get, fault, self.inner.get(name).await.map(|bytes| damaged(bytes, fault)))
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        let fault = self.begin(Verb::GetRange, name.as_str())?;
        self.end(Verb::GetRange, fault, self.inner.get_range(name, range).await.map(|bytes| damaged(bytes, fault)))
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        let fault = self.begin(Verb::Head, name.as_str())?;
        self.end(Verb::Head, fault, self.inner.head(name).await)
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        match self.begin(Verb::List, prefix).and_then(|fault| self.end(Verb::List, fault, Ok(()))) {
            Err(error) => stream::iter([Err(error)]).boxed(),
            Ok(()) => {
                let hidden = self.state().hidden.clone();
                let listed = move |entry: &Result<ObjectMeta, _>| match entry {
                    Ok(meta) => !hidden.contains(meta.name.as_str()),
                    Err(_) => true,
                };
                self.inner.list(prefix).filter(move |entry| std::future::ready(listed(entry))).boxed()
            }
        }
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        let fault = self.begin(Verb::Delete, name.as_str())?;
        self.end(Verb::Delete, fault, self.inner.delete(name).await)
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        let fault = self.begin(Verb::Probe, "")?;
        self.end(Verb::Probe, fault, self.inner.probe().await)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::storage::directory::Directory;

    fn name(text: &str) -> ObjectName {
        ObjectName::new(text).unwrap()
    }

    async fn put(storage: &Faulty, text: &str) -> Result<(), StorageError> {
        storage.put(&name(text), Bytes::from_static(b"01234567"), PutMode::Create, None).await
    }

    fn storage() -> (tempfile::TempDir, Faulty) {
        let root = tempfile::tempdir().unwrap();
        let storage = Faulty::new(Arc::new(Directory::new(root.path()).unwrap()));
        (root, storage)
    }

    #[tokio::test]
    async fn a_lost_answer_leaves_the_object_and_a_death_ends_everything() {
        let (_root, storage) = storage();
        storage.inject(|call| call.number == 1, Fault::FailAfter);
        storage.inject(|call| call.number == 3, Fault::DieAfter);
        assert!(put(&storage, "a").await.unwrap_err().is_transient());
        assert!(storage.head(&name("a")).await.unwrap().is_some());
        assert!(put(&storage, "b").await.is_err());
        assert!(storage.get(&name("a")).await.is_err(), "dead");
        storage.heal();
        assert!(storage.head(&name("b")).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_was_not_done_left_nothing() {
        let (_root, storage) = storage();
        storage.inject(|call| call.name == "a", Fault::FailBefore);
        storage.inject(|call| call.name == "b", Fault::NoSpace);
        storage.inject(|call| call.name == "c", Fault::DieBefore);
        assert!(put(&storage, "a").await.unwrap_err().is_transient());
        assert!(matches!(put(&storage, "b").await, Err(StorageError::Full { .. })));
        assert!(put(&storage, "c").await.is_err());
        storage.heal();
        assert_eq!(storage.list("").try_collect::<Vec<_>>().await.unwrap(), []);
    }

    #[tokio::test]
    async fn bytes_come_back_damaged_and_lists_lag() {
        let (_root, storage) = storage();
        storage.inject(|call| call.verb == Verb::Put, Fault::HideFromLists);
        storage.inject(|call| call.verb == Verb::Get, Fault::FlipBit(9));
        storage.inject(|call| call.verb == Verb::GetRange, Fault::Truncate(1));
        put(&storage, "a").await.unwrap();
        assert_eq!(&storage.get(&name("a")).await.unwrap()[..], b"03234567");
        assert_eq!(&storage.get_range(&name("a"), 1..4).await.unwrap()[..], b"1");
        assert_eq!(storage.list("").try_collect::<Vec<_>>().await.unwrap(), []);
        storage.settle();
        assert_eq!(storage.list("").try_collect::<Vec<_>>().await.unwrap().len(), 1);
        let verbs: Vec<Verb> = storage.calls().iter().map(|call| call.verb).collect();
        assert_eq!(verbs, [Verb::Put, Verb::Get, Verb::GetRange, Verb::List, Verb::List]);
    }
}
