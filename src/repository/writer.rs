//! Writing a snapshot's chunks: deduplicate, compress, seal, pack, put, fetch back and open, index; then the manifest, and at
//! last the certificate.
//!
//! [`ChunkSink::store`] is called from CPU threads and blocks when the storage is slower than they are: at most
//! one pack of each kind is open, `QUEUE` wait, `UPLOADS` are on their way.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Repository;
use super::chunk::{self, ChunkKind, Compressed};
use super::config::Operation;
use super::envelope::{self, Author, ObjectKind};
use super::error::RepositoryError;
use super::forgotten;
use super::id::{ChunkId, Epoch, ObjectId, PackId};
use super::index::{FRAGMENT_CHUNKS, Fragment, FragmentPack, Index};
use super::manifest::{Certificate, Manifest, manifest_name};
use super::name::{NameKind, pack_of};
use super::pack::{self, FinishedPack, PackBuilder, PackInfo};
use super::prune::tombstone::unreliable;
use super::reader::{ChunkReader, fragment_name, load_sound_index, pack_name, run_blocking};
use super::seal::{Sealer, Secret, Signer};
use super::secrets::Secrets;
use crate::storage::{ObjectName, PutMode, Storage, StorageError};

/// Packs that wait for an upload.
const QUEUE: usize = 1;
/// Packs that are being put and read back at a time.
const UPLOADS: usize = 2;
/// So much work at most is lost by a run that dies.
const FRAGMENT_EVERY: Duration = Duration::from_secs(60);
/// Packs in memory at a time: one of each kind open, one that is full, those above, and each upload's copy that was fetched back.
pub const PACKS_IN_MEMORY: usize = 3 + 1 + QUEUE + 2 * UPLOADS;
/// Buffers of packs that wait for the next one ([`crate::storage::buffer`]).
pub const PACKS_KEPT: usize = 2;

/// What a run added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    pub chunks: u64,
    pub packs: u64,
    pub stored_bytes: u64,
}

/// Takes plaintext chunks from CPU threads.
#[derive(Clone)]
pub struct ChunkSink(Arc<Shared>);

struct Shared {
    secrets: Arc<Secrets>,
    epoch: Epoch,
    recipient: age::x25519::Recipient,
    id_keys: HashMap<ChunkKind, Secret>,
    /// Of packs that are there: nothing is deduplicated against one that was lost, cut short or found damaged.
    index: Arc<Index>,
    /// Packs that are about to be deleted: nothing new relies on them.
    tombstoned: HashSet<PackId>,
    /// Packs were lost or damaged, or fragments.
    is_short: bool,
    signer: Signer,
    open: [Mutex<Option<PackBuilder>>; 3],
    seen: Mutex<Seen>,
    pack_target: usize,
    uploads: Mutex<Option<mpsc::Sender<FinishedPack>>>,
    chunks: AtomicU64,
    /// The next pack that arrives is indexed at once, with those before it.
    fragment_wanted: AtomicBool,
}

#[derive(Default)]
struct Seen {
    new: HashSet<ChunkId>,
    /// Packs of earlier snapshots that this one relies on.
    hits: HashSet<PackId>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChunkSink {
    /// Stores a chunk unless it is known, and names it. Blocks; not for async threads.
    pub fn store(&self, kind: ChunkKind, plain: &[u8]) -> Result<ChunkId, RepositoryError> {
        let shared = &*self.0;
        let id_key = shared.id_keys.get(&kind).ok_or(RepositoryError::WriterNeeded)?;
        let id = chunk::chunk_id(id_key, plain);
        {
            let mut seen = lock(&shared.seen);
            if let Some(pack) = shared.reliable(&id) {
                seen.hits.insert(pack);
                return Ok(id);
            }
            if !seen.new.insert(id) {
                return Ok(id);
            }
        }
        let full = chunk::compress(id, plain, |compressed| shared.add(kind, compressed))??;
        shared.chunks.fetch_add(1, Ordering::Relaxed);
        full.map_or(Ok(()), |pack| self.send(pack))?;
        Ok(id)
    }

    /// May a chunk of an earlier snapshot be relied on, as [`ChunkSink::store`] does when it meets its bytes again?
    pub fn rely_on(&self, id: &ChunkId) -> bool {
        let pack = self.0.reliable(id);
        lock(&self.0.seen).hits.extend(pack);
        pack.is_some()
    }

    /// Is every pack there that any fragment names, and was every one of these fragments read, or what replaced it?
    pub fn is_sound(&self, fragments: &[ObjectId]) -> bool {
        !self.0.is_short && fragments.iter().all(|fragment| self.0.index.current(fragment).is_some())
    }

    /// The fragments that tell now what these told.
    pub fn current(&self, fragments: &[ObjectId]) -> BTreeSet<ObjectId> {
        fragments.iter().map(|fragment| self.0.index.current(fragment).unwrap_or(*fragment)).collect()
    }

    /// Closes the packs that are not payload and sends them on, so that what is finished can be found after a crash.
    pub fn flush(&self) -> Result<(), RepositoryError> {
        for kind in [ChunkKind::Row, ChunkKind::Meta] {
            let open = lock(&self.0.open[usize::from(kind.code() - 1)]).take_if(|pack| !pack.is_empty());
            open.map_or(Ok(()), |pack| self.send(pack))?;
        }
        self.0.fragment_wanted.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn send(&self, pack: PackBuilder) -> Result<(), RepositoryError> {
        let finished = pack.finish(&self.0.secrets)?;
        let sender = lock(&self.0.uploads).clone().ok_or(RepositoryError::Interrupted)?;
        // Closed: the uploads failed, and their error is told at the end.
        sender.blocking_send(finished).map_err(|_| RepositoryError::Interrupted)
    }

    /// Sends the packs that are still open, then no more.
    fn close(&self) -> Result<(), RepositoryError> {
        for open in &self.0.open {
            if let Some(pack) = lock(open).take() {
                self.send(pack)?;
            }
        }
        lock(&self.0.uploads).take();
        Ok(())
    }
}

impl Shared {
    /// A pack that a chunk may be relied on to lie in. Only of what this writer signed: a stolen host must not poison the others.
    fn reliable(&self, id: &ChunkId) -> Option<PackId> {
        let mut places = self.index.find(id).into_iter().chain(self.index.others(id)).map(|(info, _)| info.id);
        places.find(|pack| self.is_trusted(pack) && !self.tombstoned.contains(pack))
    }

    /// Puts a chunk into the open pack of its kind; the pack that is full then.
    fn add(&self, kind: ChunkKind, compressed: Compressed<'_>) -> Result<Option<PackBuilder>, RepositoryError> {
        let mut open = lock(&self.open[usize::from(kind.code() - 1)]);
        let full = open.take_if(|pack| !pack.is_empty() && !pack.has_room(compressed.bytes.len() + 64));
        let pack = match &mut *open {
            Some(pack) => pack,
            empty => empty.insert(PackBuilder::new(kind, &self.secrets, self.epoch, &self.recipient)?),
        };
        pack.add(compressed)?;
        Ok(full.or_else(|| open.take_if(|pack| pack.len() >= self.pack_target)))
    }

    fn is_trusted(&self, pack: &PackId) -> bool {
        let Some(signer) = self.index.signer(pack) else { return false };
        self.secrets.epochs.values().any(|epoch| epoch.signers.contains(&signer))
    }

    fn author(&self) -> Author<'_> {
        Author { repository: self.secrets.repository, epoch: self.epoch, secrets: &self.secrets, signer: &self.signer }
    }
}

/// One run that writes.
pub struct RepositoryWriter {
    /// Index fragments that do not open, for a warning.
    pub problems: Vec<RepositoryError>,
    storage: Arc<dyn Storage>,
    sink: ChunkSink,
    uploader: JoinHandle<Result<Uploaded, RepositoryError>>,
}

struct Uploaded {
    packs: Vec<PackId>,
    fragments: Vec<ObjectId>,
    added: Added,
}

impl RepositoryWriter {
    /// `pack_target`: a pack is closed when it has so many bytes.
    pub async fn open(repository: &Repository, pack_target: usize) -> Result<Self, RepositoryError> {
        let key = repository.writer_key()?;
        repository.config.check_features(Operation::Write)?;
        repository.check_key_objects().await?;
        let secrets = repository.secrets.clone();
        let current = secrets.epoch(key.epoch)?;
        let id_keys = ChunkKind::ALL
            .into_iter()
            .map(|kind| Ok((kind, current.chunk_id_key(kind).ok_or(RepositoryError::WriterNeeded)?)))
            .collect::<Result<_, RepositoryError>>()?;
        // A damaged fragment costs work, not the backup: what it names is stored again.
        let (mut index, problems) = load_sound_index(&*repository.storage, &secrets, None).await?;
        let (storage, present) = (&*repository.storage, present_packs(&*repository.storage).await?);
        let unreliable = unreliable(storage).await?;
        let is_sound = |pack: &PackInfo| {
            present.get(&pack.id) == Some(&u64::from(pack.size)) && !unreliable.damaged.contains(&pack.id)
        };
        let is_short = index.forget_packs(is_sound) || !problems.is_empty();
        let recipient = key.recipient.parse().map_err(|e: &str| RepositoryError::BadRecipient {
            recipient: key.recipient.clone(),
            message: e.to_owned(),
        })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let sink = ChunkSink(Arc::new(Shared {
            epoch: key.epoch,
            signer: key.signer()?,
            recipient,
            id_keys,
            index: Arc::new(index),
            tombstoned: unreliable.all,
            is_short,
            open: Default::default(),
            seen: Mutex::default(),
            pack_target,
            uploads: Mutex::new(Some(sender)),
            chunks: AtomicU64::new(0),
            fragment_wanted: AtomicBool::new(false),
            secrets,
        }));
        let storage = repository.storage.clone();
        let uploader = tokio::spawn(upload_all(storage.clone(), sink.clone(), receiver));
        Ok(Self { problems, storage, sink, uploader })
    }

    pub fn sink(&self) -> ChunkSink {
        self.sink.clone()
    }

    /// Reads chunks of earlier snapshots.
    pub fn reader(&self, repository: &Repository) -> ChunkReader {
        ChunkReader::over(repository, self.sink.0.index.clone())
    }

    /// Waits until every chunk was read back and is indexed.
    pub async fn finish_chunks(self) -> Result<Stored, RepositoryError> {
        let sink = self.sink.clone();
        let closed = run_blocking(move || sink.close()).await;
        // The error of the uploads comes first: a closed channel is only its consequence.
        let uploaded = self.uploader.await.map_err(|_| RepositoryError::Interrupted)??;
        closed?;
        let hits = std::mem::take(&mut lock(&self.sink.0.seen).hits);
        let mut fragments = uploaded.fragments;
        let reused: BTreeSet<ObjectId> = hits.iter().filter_map(|pack| self.sink.0.index.fragment(pack)).collect();
        fragments.extend(reused);
        let (storage, sink, packs) = (self.storage, self.sink, uploaded.packs);
        Ok(Stored { storage, sink, hits, packs, fragments, added: uploaded.added })
    }

    /// Gives up, but keeps what is there: what was stored is indexed, so that the next run finds it. The error that stopped
    /// the uploads, if one did.
    pub async fn abandon(self) -> Option<RepositoryError> {
        let sink = self.sink.clone();
        let closed = run_blocking(move || sink.close()).await;
        match self.uploader.await {
            Ok(result) => result.err().or(closed.err()),
            Err(_) => Some(RepositoryError::Interrupted),
        }
    }
}

async fn present_packs(storage: &dyn Storage) -> Result<HashMap<PackId, u64>, RepositoryError> {
    let listed = storage.list(NameKind::Pack.prefix());
    Ok(listed.try_filter_map(async |meta| Ok(pack_of(&meta.name).map(|id| (id, meta.size)))).try_collect().await?)
}

/// Puts packs, reads them back, and writes index fragments: at the end, on the way, and when it fails, because a pack that
/// no fragment names is stored again by the next run.
async fn upload_all(
    storage: Arc<dyn Storage>,
    sink: ChunkSink,
    receiver: mpsc::Receiver<FinishedPack>,
) -> Result<Uploaded, RepositoryError> {
    let packs = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let mut done = std::pin::pin!(
        packs.map(|finished| put_and_read_back(storage.clone(), sink.clone(), finished)).buffer_unordered(UPLOADS)
    );
    let mut result = Uploaded { packs: Vec::new(), fragments: Vec::new(), added: Added::default() };
    let mut waiting: Vec<PackInfo> = Vec::new();
    let mut written = Instant::now();
    loop {
        match done.try_next().await {
            Ok(Some(info)) => {
                result.added.packs += 1;
                result.added.chunks += info.entries.len() as u64;
                result.added.stored_bytes += u64::from(info.size);
                result.packs.push(info.id);
                waiting.push(info);
            }
            Ok(None) => break,
            Err(e) => {
                if !waiting.is_empty() {
                    // The first error counts.
                    let _ = write_fragment(&*storage, &sink, &mut waiting).await;
                }
                return Err(e);
            }
        }
        let chunks: usize = waiting.iter().map(|info| info.entries.len()).sum();
        let wanted = sink.0.fragment_wanted.swap(false, Ordering::Relaxed);
        if wanted || chunks >= FRAGMENT_CHUNKS || written.elapsed() >= FRAGMENT_EVERY {
            result.fragments.push(write_fragment(&*storage, &sink, &mut waiting).await?);
            written = Instant::now();
        }
    }
    if !waiting.is_empty() {
        result.fragments.push(write_fragment(&*storage, &sink, &mut waiting).await?);
    }
    Ok(result)
}

async fn put_and_read_back(
    storage: Arc<dyn Storage>,
    sink: ChunkSink,
    finished: FinishedPack,
) -> Result<PackInfo, RepositoryError> {
    let name = pack_name(&finished.info.id)?;
    let FinishedPack { info, bytes, data_key } = finished;
    match storage.put(&name, bytes, PutMode::Create, None).await {
        // An upload whose answer was lost has been tried again; what lies there is compared below.
        Err(StorageError::AlreadyExists { .. }) => {}
        other => other?,
    }
    if crate::failpoint::skips_reading_back() {
        return Ok(info);
    }
    let stored = storage.get(&name).await?;
    run_blocking(move || {
        check_pack(&sink.0.secrets, &name, &info, &data_key, &stored)?;
        Ok(info)
    })
    .await
}

/// Opens everything that a pack holds and compares it with what it should be.
fn check_pack(
    secrets: &Secrets,
    name: &ObjectName,
    info: &PackInfo,
    data_key: &Secret,
    stored: &Bytes,
) -> Result<(), RepositoryError> {
    let damaged = |message: String| RepositoryError::Damaged { name: name.clone(), message };
    let parsed = match pack::parse(secrets, stored) {
        Ok(parsed) if parsed.id == info.id => parsed,
        // Right bytes that do not parse are another matter than wrong bytes.
        Err(e) if PackId::of(stored) == info.id => return Err(e),
        _ => return Err(damaged("what was fetched back is not what was put".into())),
    };
    if parsed.entries != info.entries || parsed.data_start != info.data_start {
        return Err(damaged("its directory does not say what was packed".into()));
    }
    let sealer = Sealer::new(data_key)?;
    let (mut compressed, mut plain) = (Vec::new(), Vec::new());
    for entry in &parsed.entries {
        let slot = &parsed.slots[usize::from(entry.slot)];
        let id_key = secrets.epoch(slot.epoch)?.chunk_id_key(info.kind).ok_or(RepositoryError::WriterNeeded)?;
        let start = info.data_start as usize + entry.offset as usize;
        let sealed = stored.get(start..start + entry.stored_length as usize).unwrap_or_default();
        let sealed_as = entry.sealed_as(info.kind);
        sealed_as.open_into(&secrets.repository, &sealer, &id_key, sealed, &mut compressed, &mut plain)?;
    }
    Ok(())
}

async fn write_fragment(
    storage: &dyn Storage,
    sink: &ChunkSink,
    waiting: &mut Vec<PackInfo>,
) -> Result<ObjectId, RepositoryError> {
    let packs = waiting.iter().map(FragmentPack::from).collect();
    let fragment = Fragment { version: 1, level: 0, supersedes: Vec::new(), packs };
    let bytes = envelope::write(ObjectKind::Index, &sink.0.author(), &fragment)?;
    let id = ObjectId::of(&bytes);
    put_checked(storage, &fragment_name(&id)?, bytes).await?;
    waiting.clear();
    Ok(id)
}

/// Puts an object and insists on fetching the same bytes back. That it is there already is no error if it is the same:
/// an upload whose answer was lost has been tried again.
pub(super) async fn put_checked(storage: &dyn Storage, name: &ObjectName, bytes: Bytes) -> Result<(), RepositoryError> {
    let refused = match storage.put(name, bytes.clone(), PutMode::Create, None).await {
        Err(e @ StorageError::AlreadyExists { .. }) => Some(e),
        other => other.map(|()| None)?,
    };
    if storage.get(name).await? == bytes {
        Ok(())
    } else if let Some(refused) = refused {
        Err(refused.into())
    } else {
        let message = "what was fetched back is not what was put".to_owned();
        Err(RepositoryError::Damaged { name: name.clone(), message })
    }
}

/// Every chunk of the run is stored, read back and indexed: a manifest may name them.
pub struct Stored {
    storage: Arc<dyn Storage>,
    sink: ChunkSink,
    /// Packs of earlier snapshots that this one relies on.
    hits: HashSet<PackId>,
    /// Packs of this one.
    packs: Vec<PackId>,
    /// Fragments that name every pack of the run, new or relied on: a manifest's hints.
    pub fragments: Vec<ObjectId>,
    pub added: Added,
}

impl Stored {
    /// Writes the manifest, checks what it relies on, and certifies it.
    pub async fn commit(self, manifest: &Manifest) -> Result<(ObjectId, Certificate), RepositoryError> {
        let author = self.sink.0.author();
        let bytes = envelope::write(ObjectKind::Manifest, &author, manifest)?;
        let id = ObjectId::of(&bytes);
        put_checked(&*self.storage, &manifest_name(manifest.taken, &id)?, bytes).await?;
        // `repository::prune` says why in this order: the manifest, then tombstones, then existence.
        self.check_packs(&unreliable(&*self.storage).await?.all).await?;
        if let Some(parent) = &manifest.parent {
            self.check_parent(parent).await?;
        }
        let certificate = Certificate {
            version: 1,
            snapshot: id,
            certified: Timestamp::now(),
            complete: manifest.complete,
            suspect: !manifest.suspect.is_empty(),
            packs_read_back: self.added.packs,
            packs_present: self.hits.len() as u64,
        };
        let bytes = envelope::write(ObjectKind::Certificate, &author, &certificate)?;
        put_checked(&*self.storage, &certificate_name(&id)?, bytes).await?;
        Ok((id, certificate))
    }

    /// Every pack that the snapshot wrote, or relies on by itself, is there to stay. Of its own too: a run that stood still for days may have lost
    /// what nothing named yet.
    async fn check_packs(&self, tombstoned: &HashSet<PackId>) -> Result<(), RepositoryError> {
        let relied: HashSet<PackId> = self.hits.iter().chain(&self.packs).copied().collect();
        if let Some(pack) = relied.iter().find(|pack| tombstoned.contains(*pack)) {
            return Err(pruned(pack_name(pack)?));
        }
        let present = if relied.is_empty() { HashMap::new() } else { present_packs(&*self.storage).await? };
        for pack in relied.iter().filter(|pack| !present.contains_key(*pack)) {
            let name = pack_name(pack)?;
            // A listing may lag.
            if self.storage.head(&name).await?.is_none() {
                return Err(pruned(name));
            }
        }
        Ok(())
    }

    /// What was taken over whole is safe as long as the snapshot that it was taken from is kept.
    async fn check_parent(&self, parent: &ObjectId) -> Result<(), RepositoryError> {
        let (storage, shared) = (&*self.storage, &self.sink.0);
        let forgotten = forgotten::removable(storage, &shared.secrets, shared.epoch, parent, Timestamp::UNIX_EPOCH);
        match forgotten.await {
            Ok(None) => {}
            Ok(Some(_)) => return Err(pruned(NameKind::Forgotten.named(parent)?)),
            // One that does not open hides nothing.
            Err(e) if e.is_about_an_object() => {}
            Err(e) => return Err(e),
        }
        // At last: it goes before anything else of its snapshot does.
        let certificate = certificate_name(parent)?;
        match storage.head(&certificate).await? {
            Some(_) => Ok(()),
            None => Err(pruned(certificate)),
        }
    }
}

fn pruned(name: ObjectName) -> RepositoryError {
    let message =
        "the snapshot relies on it, but it was pruned or forgotten meanwhile: run the snapshot again".to_owned();
    RepositoryError::Damaged { name, message }
}

pub fn certificate_name(snapshot: &ObjectId) -> Result<ObjectName, RepositoryError> {
    NameKind::Certificate.named(snapshot)
}
