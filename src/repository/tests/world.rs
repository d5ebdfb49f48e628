//! One storage that several parties see, with a clock of its own: each party stops before each of its requests until a test lets it go on, and may be told what a bad
//! storage tells.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::storage::{Capabilities, ObjectMeta, ObjectName, PutMode, Retention as Lock, Storage, StorageError};

/// Numbers that look random, of a seed.
pub struct Dice(pub u64, pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.1 += 1;
        let hash = blake3::hash(&[self.0.to_le_bytes(), self.1.to_le_bytes()].concat());
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap()) % n
    }
}

type Waiting = (String, oneshot::Sender<()>);

/// What a bad storage does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// Of one request in so many the answer gets lost, though it was done.
    pub lost: Option<u64>,
    /// What is there is written over.
    pub ignores_conditions: bool,
    /// By how much listings may be behind: what came is not there yet, what went still is.
    pub behind: Duration,
}

/// The storage that all see, its clock, and who waits before a request.
pub struct World {
    trouble: Mutex<(Trouble, Dice)>,
    /// What changed a moment ago: put, or removed with what it was.
    recent: Mutex<HashMap<ObjectName, (Instant, Option<ObjectMeta>)>>,
    pub inner: Arc<dyn Storage>,
    clock: Mutex<Timestamp>,
    written: Mutex<HashMap<ObjectName, Timestamp>>,
    /// By party: what it is about to ask, and how to let it.
    waiting: Mutex<BTreeMap<usize, Vec<Waiting>>>,
    changed: Notify,
    /// Objects whose names begin so are not let go.
    pub locked: Mutex<Option<&'static str>>,
}

impl World {
    pub fn new(inner: Arc<dyn Storage>) -> Arc<Self> {
        let clock = Mutex::new("2014-08-10T12:00:00Z".parse().unwrap());
        Arc::new(Self {
            trouble: Mutex::new((Trouble::default(), Dice(0, 0))),
            recent: Mutex::default(),
            inner,
            clock,
            written: Mutex::default(),
            waiting: Mutex::default(),
            changed: Notify::new(),
            locked: Mutex::default(),
        })
    }

    pub fn now(&self) -> Timestamp {
        *self.clock.lock().unwrap()
    }

    pub fn pass(&self, time: SignedDuration) {
        *self.clock.lock().unwrap() += time;
    }

    fn dated(&self, mut meta: ObjectMeta) -> ObjectMeta {
        meta.modified = self.written.lock().unwrap().get(&meta.name).copied().unwrap_or(self.now());
        meta
    }

    /// From now on, for those who are stopped.
    pub fn trouble(&self, trouble: Trouble, seed: u64) {
        *self.trouble.lock().unwrap() = (trouble, Dice(seed, 1 << 40));
    }

    /// How one of them sees it. `None`: nobody stops him, and nothing goes wrong for him.
    pub fn seen_by(self: &Arc<Self>, party: Option<usize>) -> Arc<dyn Storage> {
        self.mortal(party).0
    }

    /// The same, and what ends his process before its next request.
    pub fn mortal(self: &Arc<Self>, party: Option<usize>) -> (Arc<dyn Storage>, Arc<AtomicBool>) {
        let dead = Arc::new(AtomicBool::new(false));
        (Arc::new(Seen { world: self.clone(), party, dead: dead.clone() }), dead)
    }

    /// Nobody waits for the party any more.
    pub fn bury(&self, party: usize, dead: &AtomicBool) {
        dead.store(true, Ordering::SeqCst);
        self.waiting.lock().unwrap().remove(&party);
    }

    /// As a listing that is behind shows it.
    fn behind(&self, prefix: &str, mut all: Vec<ObjectMeta>) -> Vec<ObjectMeta> {
        let ((trouble, dice), recent) = (&mut *self.trouble.lock().unwrap(), self.recent.lock().unwrap());
        if trouble.behind.is_zero() || dice.below(2) == 0 {
            return all;
        }
        let young =
            recent.iter().filter(|(name, (at, _))| name.as_str().starts_with(prefix) && at.elapsed() < trouble.behind);
        for (name, (_, was)) in young {
            all.retain(|meta| meta.name != *name);
            all.extend(was.clone());
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Waits until the party is about to make a request; `false`: it makes none any more.
    pub async fn settled<T>(&self, party: usize, task: &JoinHandle<T>) -> bool {
        loop {
            let changed = self.changed.notified();
            if self.waiting.lock().unwrap().get(&party).is_some_and(|waiting| !waiting.is_empty()) {
                return true;
            }
            if task.is_finished() {
                return false;
            }
            drop(tokio::time::timeout(Duration::from_millis(2), changed).await);
        }
    }

    /// Lets the party do its next request, and whatever it does until the one after it; `false`: it makes none any more.
    pub async fn step<T>(&self, party: usize, task: &JoinHandle<T>) -> bool {
        if !self.settled(party, task).await {
            return false;
        }
        let next = self.waiting.lock().unwrap().get_mut(&party).map(|waiting| waiting.remove(0));
        let _ = next.map(|(_, next)| next.send(()));
        self.settled(party, task).await
    }

    /// Is this what the party is about to ask?
    pub fn is_next(&self, party: usize, request: &str) -> bool {
        let waiting = self.waiting.lock().unwrap();
        waiting.get(&party).and_then(|waiting| waiting.first()).is_some_and(|(next, _)| next.starts_with(request))
    }

    /// Lets the party go on until it is about to make such a request, as `list tombstones/`; or, without one, to its end.
    pub async fn until<T>(&self, party: usize, task: &JoinHandle<T>, request: Option<&str>) {
        let is_next = || request.is_some_and(|request| self.is_next(party, request));
        while self.settled(party, task).await && !is_next() {
            self.step(party, task).await;
        }
        assert_eq!(request.is_some(), !task.is_finished(), "{request:?} never came");
    }
}

struct Seen {
    world: Arc<World>,
    party: Option<usize>,
    dead: Arc<AtomicBool>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seen({:?})", self.party)
    }
}

impl Seen {
    async fn gate(&self, request: &str, name: impl std::fmt::Display) {
        let Some(party) = self.party else { return };
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let (sender, receiver) = oneshot::channel();
        self.world.waiting.lock().unwrap().entry(party).or_default().push((format!("{request} {name}"), sender));
        self.world.changed.notify_waiters();
        let _ = receiver.await;
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    /// An answer, or that it got lost.
    fn answer<T>(&self, answer: Result<T, StorageError>) -> Result<T, StorageError> {
        let (trouble, dice) = &mut *self.world.trouble.lock().unwrap();
        match trouble.lost.filter(|lost| self.party.is_some() && dice.below(*lost) == 0) {
            None => answer,
            Some(_) => {
                let (doing, message) = ("asking".to_owned(), "the answer got lost".to_owned());
                Err(StorageError::Unreachable { address: self.address(), doing, message })
            }
        }
    }
}

#[async_trait]
impl Storage for Seen {
    fn address(&self) -> String {
        "the world".into()
    }

    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        lock: Option<Lock>,
    ) -> Result<(), StorageError> {
        self.gate("put", name).await;
        let ignores = self.world.trouble.lock().unwrap().0.ignores_conditions;
        let mode = if ignores && self.party.is_some() { PutMode::Replace } else { mode };
        // Who is killed now may have done it all the same.
        self.world.written.lock().unwrap().entry(name.clone()).or_insert(self.world.now());
        let done = self.world.inner.put(name, bytes, mode, lock).await;
        if done.is_ok() {
            self.world.written.lock().unwrap().insert(name.clone(), self.world.now());
            self.world.recent.lock().unwrap().insert(name.clone(), (Instant::now(), None));
        }
        self.answer(done)
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.gate("get", name).await;
        self.answer(self.world.inner.get(name).await)
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.gate("get_range", name).await;
        self.answer(self.world.inner.get_range(name, range).await)
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        self.gate("head", name).await;
        self.answer(Ok(self.world.inner.head(name).await?.map(|meta| self.world.dated(meta))))
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        let prefix = prefix.to_owned();
        stream::once(async move {
            self.gate("list", &prefix).await;
            let all = self.world.inner.list(&prefix).map_ok(|meta| self.world.dated(meta)).try_collect().await;
            let seen = all.map(|all| if self.party.is_some() { self.world.behind(&prefix, all) } else { all });
            match self.answer(seen) {
                Ok(all) => stream::iter(all.into_iter().map(Ok)).boxed(),
                Err(e) => stream::iter([Err(e)]).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.gate("delete", name).await;
        if self.world.locked.lock().unwrap().is_some_and(|prefix| name.as_str().starts_with(prefix)) {
            return Err(StorageError::Locked { name: name.clone(), address: self.address() });
        }
        let was = self.world.inner.head(name).await?.map(|meta| self.world.dated(meta));
        let done = self.world.inner.delete(name).await;
        self.world.recent.lock().unwrap().insert(name.clone(), (Instant::now(), was));
        self.answer(done)
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        self.world.inner.probe().await
    }
}
