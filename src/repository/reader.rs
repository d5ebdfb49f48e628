//! Fetching chunks: the index says where they lie, neighbours are fetched with one range request, each chunk is opened,
//! decompressed and its id computed again before anybody sees it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use lru::LruCache;
use tokio::sync::{OnceCell, Semaphore};

use super::envelope::{self, ObjectKind, Opened};
use super::error::RepositoryError;
use super::id::{ChunkId, ObjectId, PackId, SignerId};
use super::index::{Fragment, FragmentPack, Index};
use super::name::{NameKind, pack_of};
use super::pack::{self, Entry, PackInfo};
use super::seal::{Sealer, Secret};
use super::secrets::Secrets;
use super::{Repository, chunk::ChunkKind};
use crate::storage::{ObjectMeta, ObjectName, Storage};

/// Two chunks with less between them are fetched by one request.
const COALESCE_GAP: u32 = 8 << 10;
/// Of metadata the maps of all segments are wanted, or few: what lies between is small, and a request costs more.
const COALESCE_META_GAP: u32 = 128 << 10;
/// The longest range of one request.
const MAX_RANGE: u32 = 8 << 20;
/// Requests in flight, and what they ask for in bytes.
const CONCURRENCY: usize = 16;
const IN_FLIGHT: u32 = 32 << 20;
/// So much of a pack is fetched for its directory: as long as most have it, and the longest with its key slots.
const FRONT: u32 = 128 << 10;
const LONGEST_FRONT: u32 = 8 << 20;

/// Reads chunks of a repository.
#[derive(Clone)]
pub struct ChunkReader {
    storage: Arc<dyn Storage>,
    secrets: Arc<Secrets>,
    index: Arc<Index>,
    /// Why the index may be incomplete.
    problem: Option<Arc<str>>,
    /// The repository, if the index has some of its fragments alone.
    hinted: Option<Arc<Hinted>>,
    keys: Arc<Mutex<OpenSlots>>,
    kept: Option<Arc<Mutex<Kept>>>,
}

/// Where to look for what is not where the hints say.
struct Hinted {
    /// Reads what all fragments name, once it was needed.
    whole: OnceCell<ChunkReader>,
}

/// Chunks that were opened, the least recently used one first to go.
struct Kept {
    chunks: LruCache<ChunkId, Bytes>,
    bytes: usize,
    limit: usize,
}

impl Kept {
    fn insert(&mut self, id: ChunkId, bytes: Bytes) {
        self.bytes += bytes.len();
        if let Some((_, replaced)) = self.chunks.push(id, bytes) {
            self.bytes -= replaced.len();
        }
        while self.bytes > self.limit
            && let Some((_, oldest)) = self.chunks.pop_lru()
        {
            self.bytes -= oldest.len();
        }
    }
}

/// Data keys that were opened, by pack and slot.
type OpenSlots = HashMap<(PackId, u16), Arc<OpenSlot>>;

struct OpenSlot {
    sealer: Sealer,
    id_key: Secret,
}

struct Piece {
    pack: ObjectName,
    pack_id: PackId,
    kind: ChunkKind,
    data_start: u32,
    entries: Vec<Entry>,
}

impl Piece {
    fn new(info: &PackInfo, entry: Entry) -> Result<Self, RepositoryError> {
        let (pack, entries) = (pack_name(&info.id)?, vec![entry]);
        Ok(Self { pack, pack_id: info.id, kind: info.kind, data_start: info.data_start, entries })
    }

    /// In bytes.
    fn length(&self) -> u32 {
        let (first, last) = (self.entries[0], self.entries[self.entries.len() - 1]);
        last.offset - first.offset + last.stored_length
    }
}

impl ChunkReader {
    /// Loads the given index fragments, or all of them. The given ones are hints: when one is gone (later ones took its
    /// place) or does not open, all that open are loaded, and the error is told when a chunk is in none of them.
    pub async fn open(repository: &Repository, fragments: Option<&[ObjectId]>) -> Result<Self, RepositoryError> {
        let (storage, secrets) = (&*repository.storage, &*repository.secrets);
        let mut problem = None;
        let hinted = match fragments {
            Some(ids) => match load_index(storage, secrets, Some(ids)).await {
                Ok(index) => Some(index),
                Err(e) if e.is_about_an_object() => {
                    problem = Some(e);
                    None
                }
                Err(e) => return Err(e),
            },
            None => None,
        };
        let is_hinted = hinted.is_some();
        let index = match hinted {
            Some(index) => index,
            None => {
                let (mut index, problems) = load_sound_index(storage, secrets, None).await?;
                problem = problem.or_else(|| problems.into_iter().next());
                if problem.is_some() {
                    add_unnamed(storage, secrets, &mut index).await?;
                }
                index
            }
        };
        let problem = problem.map(|e| e.to_string().into());
        let hinted = is_hinted.then(|| Arc::new(Hinted { whole: OnceCell::new() }));
        Ok(Self { problem, hinted, ..Self::over(repository, Arc::new(index)) })
    }

    /// Reads what an index names that is loaded already.
    pub fn over(repository: &Repository, index: Arc<Index>) -> Self {
        let (storage, secrets) = (repository.storage.clone(), repository.secrets.clone());
        Self { storage, secrets, index, problem: None, hinted: None, keys: Arc::default(), kept: None }
    }

    /// Keeps so many bytes of opened chunks for the next question: for who asks for small values of one group again and again.
    pub fn keeping(mut self, bytes: usize) -> Self {
        let kept = Kept { chunks: LruCache::unbounded(), bytes: 0, limit: bytes };
        self.kept = Some(Arc::new(Mutex::new(kept)));
        self
    }

    /// Where a chunk lies.
    pub fn locate(&self, id: &ChunkId) -> Result<(&PackInfo, &Entry), RepositoryError> {
        self.index.find(id).ok_or_else(|| match &self.problem {
            None => RepositoryError::MissingChunk { id: *id },
            Some(problem) => RepositoryError::Unindexed { id: *id, problem: problem.to_string() },
        })
    }

    pub fn index(&self) -> &Index {
        &self.index
    }

    /// One chunk.
    pub async fn fetch(&self, id: &ChunkId) -> Result<Bytes, RepositoryError> {
        let mut found = self.fetch_all(std::slice::from_ref(id)).await?;
        found.remove(id).ok_or(RepositoryError::MissingChunk { id: *id })
    }

    /// The chunks concatenated in order.
    pub async fn fetch_joined(&self, ids: &[ChunkId]) -> Result<Vec<u8>, RepositoryError> {
        let found = self.fetch_all(ids).await?;
        let mut joined = Vec::new();
        for id in ids {
            joined.extend_from_slice(found.get(id).ok_or(RepositoryError::MissingChunk { id: *id })?);
        }
        Ok(joined)
    }

    /// All of the chunks, each once. The caller bounds how many he asks for at a time.
    pub async fn fetch_all(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, Bytes>, RepositoryError> {
        let Some(kept) = &self.kept else { return self.fetch_anew(ids, HashMap::with_capacity(ids.len())).await };
        let lock = || kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (mut known, mut unknown) = (HashMap::with_capacity(ids.len()), Vec::new());
        {
            let mut kept = lock();
            for id in ids {
                match kept.chunks.get(id) {
                    Some(bytes) => _ = known.insert(*id, bytes.clone()),
                    None => unknown.push(*id),
                }
            }
        }
        let all = self.fetch_anew(&unknown, known).await?;
        let mut kept = lock();
        for id in unknown {
            if let Some(bytes) = all.get(&id) {
                kept.insert(id, bytes.clone());
            }
        }
        drop(kept);
        Ok(all)
    }

    /// Fetches as many of these chunks, from the first on, as `limit` and a quarter of what is kept hold: for who will ask for one after the other, and would
    /// wait for the storage each time. What fails is told when it is asked for.
    pub async fn warm(&self, ids: Vec<ChunkId>, limit: usize) -> Result<(), RepositoryError> {
        let mut room = limit.min(self.kept_limit() / 4);
        let fits = |id: &ChunkId| {
            let size = self.index.find(id).map_or(0, |(_, entry)| entry.raw_length as usize);
            room.checked_sub(size).map(|left| room = left).is_some()
        };
        let ids: Vec<ChunkId> = ids.into_iter().take_while(fits).collect();
        match self.fetch_all(&ids).await {
            Err(e) if !e.is_about_an_object() => Err(e),
            _ => Ok(()),
        }
    }

    fn kept_limit(&self) -> usize {
        self.kept.as_ref().map_or(0, |kept| kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).limit)
    }

    /// Fetches the packs in which these chunks lie and keeps what is in them, unless they are larger than what is kept: for who will ask for
    /// most of it, a piece at a time.
    pub async fn keep_neighbours(&self, ids: &[ChunkId]) -> Result<(), RepositoryError> {
        let packs: BTreeMap<PackId, &PackInfo> =
            ids.iter().filter_map(|id| self.index.find(id)).map(|(info, _)| (info.id, info)).collect();
        let limit = self.kept_limit();
        let all: Vec<&Entry> = packs.values().flat_map(|info| &info.entries).collect();
        if all.iter().map(|entry| entry.raw_length as usize).sum::<usize>() <= limit {
            self.fetch_all(&all.iter().map(|entry| entry.id).collect::<Vec<_>>()).await?;
        }
        Ok(())
    }

    async fn fetch_anew(
        &self,
        ids: &[ChunkId],
        known: HashMap<ChunkId, Bytes>,
    ) -> Result<HashMap<ChunkId, Bytes>, RepositoryError> {
        // What was put together with others since lies where no hint tells.
        let reader = if ids.iter().all(|id| self.index.find(id).is_some()) { self } else { self.whole().await? };
        let (pieces, room) = (reader.plan(ids)?, Semaphore::new(IN_FLIGHT as usize));
        let fetch = async |piece: Piece| {
            let _room = room.acquire_many(piece.length().min(IN_FLIGHT)).await;
            reader.fetch_somewhere(piece).await
        };
        stream::iter(pieces.into_iter().map(fetch))
            .buffer_unordered(CONCURRENCY)
            .try_fold(known, |mut all, chunks| async move {
                all.extend(chunks);
                Ok(all)
            })
            .await
    }

    /// Range requests, sorted by pack and offset.
    fn plan(&self, ids: &[ChunkId]) -> Result<Vec<Piece>, RepositoryError> {
        let mut places = Vec::with_capacity(ids.len());
        for id in ids {
            let (info, entry) = self.locate(id)?;
            places.push((info, *entry));
        }
        places.sort_by_key(|(info, entry)| (info.id, entry.offset));
        places.dedup_by_key(|(info, entry)| (info.id, entry.offset));
        let mut pieces: Vec<Piece> = Vec::new();
        for (info, entry) in places {
            if let Some(piece) = pieces.last_mut().filter(|piece| piece.pack_id == info.id) {
                let (first, last) = (piece.entries[0], piece.entries[piece.entries.len() - 1]);
                let gap = entry.offset.saturating_sub(last.offset + last.stored_length);
                let most = if info.kind == ChunkKind::Meta { COALESCE_META_GAP } else { COALESCE_GAP };
                if gap <= most && entry.offset + entry.stored_length - first.offset <= MAX_RANGE {
                    piece.entries.push(entry);
                    continue;
                }
            }
            pieces.push(Piece::new(info, entry)?);
        }
        Ok(pieces)
    }

    /// A chunk that is missing or damaged may lie in another pack too: any place whose id verifies will do. A later snapshot may have stored it again,
    /// of which the hints do not tell.
    async fn fetch_somewhere(&self, piece: Piece) -> Result<Vec<(ChunkId, Bytes)>, RepositoryError> {
        let ids: Vec<ChunkId> = piece.entries.iter().map(|entry| entry.id).collect();
        let failed = match self.fetch_piece(piece).await {
            Err(e) if e.is_about_an_object() => e,
            done => return done,
        };
        let whole = self.whole().await?;
        if !ids.iter().any(|id| whole.index.others(id).next().is_some()) {
            return Err(failed);
        }
        let mut failed = Some(failed);
        let mut chunks = Vec::with_capacity(ids.len());
        for id in ids {
            let mut found = None;
            for (info, entry) in whole.index.find(&id).into_iter().chain(whole.index.others(&id)) {
                match whole.fetch_piece(Piece::new(info, *entry)?).await {
                    Ok(chunk) => found = Some(chunk),
                    Err(e) if e.is_about_an_object() => failed = failed.or(Some(e)),
                    Err(e) => return Err(e),
                }
                if found.is_some() {
                    break;
                }
            }
            let missing = || failed.take().unwrap_or(RepositoryError::MissingChunk { id });
            chunks.extend(found.ok_or_else(missing)?);
        }
        Ok(chunks)
    }

    /// Reads what any fragment names.
    async fn whole(&self) -> Result<&Self, RepositoryError> {
        let Some(hinted) = &self.hinted else { return Ok(self) };
        let load = async || {
            let (mut index, problems) = load_sound_index(&*self.storage, &self.secrets, None).await?;
            if !problems.is_empty() {
                add_unnamed(&*self.storage, &self.secrets, &mut index).await?;
            }
            let (storage, secrets) = (self.storage.clone(), self.secrets.clone());
            let (index, keys) = (Arc::new(index), Arc::default());
            let problem = problems.first().map(|e| e.to_string().into());
            Ok(Self { storage, secrets, index, problem, hinted: None, keys, kept: None })
        };
        hinted.whole.get_or_try_init(load).await
    }

    async fn fetch_piece(&self, piece: Piece) -> Result<Vec<(ChunkId, Bytes)>, RepositoryError> {
        let first = piece.entries[0];
        let start = u64::from(piece.data_start) + u64::from(first.offset);
        let bytes = self.storage.get_range(&piece.pack, start..start + u64::from(piece.length())).await?;
        let reader = self.clone();
        run_blocking(move || {
            piece
                .entries
                .iter()
                .map(|entry| {
                    let damaged = |e: RepositoryError| RepositoryError::DamagedChunk {
                        id: entry.id,
                        name: piece.pack.clone(),
                        message: e.to_string(),
                    };
                    let slot = reader.slot(&piece.pack_id, entry.slot)?;
                    let at = (entry.offset - first.offset) as usize;
                    let sealed = bytes.get(at..at + entry.stored_length as usize).unwrap_or_default();
                    let plain = entry
                        .sealed_as(piece.kind)
                        .open(&reader.secrets.repository, &slot.sealer, &slot.id_key, sealed)
                        .map_err(damaged)?;
                    Ok((entry.id, Bytes::from(plain)))
                })
                .collect()
        })
        .await
    }

    fn slot(&self, pack: &PackId, number: u16) -> Result<Arc<OpenSlot>, RepositoryError> {
        let lock = || self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(open) = lock().get(&(*pack, number)) {
            return Ok(open.clone());
        }
        let info = self.index.pack(pack).ok_or_else(|| RepositoryError::malformed("index", "an unknown pack"))?;
        let slot = info
            .slots
            .get(usize::from(number))
            .ok_or_else(|| RepositoryError::malformed("index", "an entry names a key slot that is not there"))?;
        let id_key = self.secrets.epoch(slot.epoch)?.chunk_id_key(info.kind).ok_or(RepositoryError::ReaderNeeded)?;
        let open = Arc::new(OpenSlot { sealer: Sealer::new(&slot.unwrap(&self.secrets)?)?, id_key });
        lock().insert((*pack, number), open.clone());
        Ok(open)
    }
}

/// `packs/<first two digits>/<id>`.
pub fn pack_name(id: &PackId) -> Result<ObjectName, RepositoryError> {
    let hex = id.to_hex();
    ObjectName::new(format!("packs/{}/{hex}", &hex[..2]))
        .map_err(|e| RepositoryError::malformed("object name", e.to_string()))
}

pub fn fragment_name(id: &ObjectId) -> Result<ObjectName, RepositoryError> {
    ObjectName::new(format!("index/{id}")).map_err(|e| RepositoryError::malformed("object name", e.to_string()))
}

/// Reads index fragments: those given, or all. A fragment that another one supersedes is left out.
pub async fn load_index(
    storage: &dyn Storage,
    secrets: &Secrets,
    fragments: Option<&[ObjectId]>,
) -> Result<Index, RepositoryError> {
    let (index, problems) = load_sound_index(storage, secrets, fragments).await?;
    problems.into_iter().next().map_or(Ok(index), Err)
}

/// As [`load_index`], but a fragment that is missing or does not open is left out and told.
pub async fn load_sound_index(
    storage: &dyn Storage,
    secrets: &Secrets,
    fragments: Option<&[ObjectId]>,
) -> Result<(Index, Vec<RepositoryError>), RepositoryError> {
    let names: Vec<ObjectName> = match fragments {
        Some(ids) => ids.iter().map(fragment_name).collect::<Result<_, _>>()?,
        None => storage.list("index/").map_ok(|meta| meta.name).try_collect().await?,
    };
    let (mut read, mut problems) = (Vec::with_capacity(names.len()), Vec::new());
    let mut loaded =
        stream::iter(names.into_iter().map(|name| async move { read_fragment(storage, secrets, &name).await }))
            .buffered(CONCURRENCY);
    while let Some(fragment) = loaded.next().await {
        match fragment {
            Ok(fragment) => read.push(fragment),
            Err(e) if e.is_about_an_object() => problems.push(e),
            Err(e) => return Err(e),
        }
    }
    let superseded: HashSet<ObjectId> = read.iter().flat_map(|f| f.supersedes.iter().copied()).collect();
    // What was put together comes first: of a chunk in two packs the other one is about to go.
    read.sort_by_key(|fragment| std::cmp::Reverse(fragment.level));
    let mut index = Index::default();
    for fragment in read.into_iter().filter(|fragment| !superseded.contains(&fragment.id)) {
        index.add_fragment(fragment.id, &fragment.supersedes);
        for pack in fragment.packs {
            index.add(pack, fragment.signer, fragment.id);
        }
    }
    Ok((index, problems))
}

/// Adds what the packs that no fragment names say of themselves: for who reads, when fragments are lost. Nothing new may rely on them, as nobody signed their
/// directories; a chunk is what its id says or it does not open.
pub async fn add_unnamed(storage: &dyn Storage, secrets: &Secrets, index: &mut Index) -> Result<(), RepositoryError> {
    let mut unnamed = Vec::new();
    let mut listed = storage.list(NameKind::Pack.prefix());
    while let Some(meta) = listed.try_next().await? {
        if let Some(pack) = pack_of(&meta.name).filter(|pack| index.pack(pack).is_none()) {
            unnamed.push(front_of(storage, secrets, pack, meta));
        }
    }
    let mut fronts = stream::iter(unnamed).buffer_unordered(CONCURRENCY);
    while let Some(front) = fronts.next().await {
        match front {
            Ok(info) => index.add(info, SignerId([0; 32]), ObjectId([0; 32])),
            Err(e) if e.is_about_an_object() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What a pack says of itself, without its chunks.
async fn front_of(
    storage: &dyn Storage,
    secrets: &Secrets,
    pack: PackId,
    meta: ObjectMeta,
) -> Result<PackInfo, RepositoryError> {
    let size = u32::try_from(meta.size).map_err(|_| RepositoryError::malformed("pack", "it is too large"))?;
    let mut parsed = Err(RepositoryError::malformed("pack", "it is empty"));
    // Most directories are short.
    for length in [FRONT, LONGEST_FRONT] {
        let bytes = storage.get_range(&meta.name, 0..u64::from(size.min(length))).await?;
        parsed = pack::parse_front(secrets, pack, &bytes, size).map(|(info, _)| info);
        if parsed.is_ok() || size <= length {
            break;
        }
    }
    parsed
}

/// An index fragment whose every pack was checked.
pub struct CheckedFragment {
    pub id: ObjectId,
    pub signer: SignerId,
    pub level: u32,
    pub supersedes: Vec<ObjectId>,
    pub packs: Vec<PackInfo>,
}

pub async fn read_fragment(
    storage: &dyn Storage,
    secrets: &Secrets,
    name: &ObjectName,
) -> Result<CheckedFragment, RepositoryError> {
    let bytes = storage.get(name).await?;
    let id = check_name(name, &bytes)?;
    let Opened { signer, body, .. } = envelope::read::<Fragment>(ObjectKind::Index, secrets, name, &bytes)?;
    if body.version != 1 {
        let (format, operation) = (body.version, "read the index");
        return Err(RepositoryError::Unsupported { format, feature: String::new(), operation });
    }
    let packs = body.packs.iter().map(FragmentPack::info).collect::<Result<_, _>>()?;
    Ok(CheckedFragment { id, signer, level: body.level, supersedes: body.supersedes, packs })
}

/// An object that is named by the hash of its bytes has it.
pub fn check_name(name: &ObjectName, bytes: &[u8]) -> Result<ObjectId, RepositoryError> {
    let id = ObjectId::of(bytes);
    let file = name.file_name();
    if file.rsplit('-').next() == Some(id.to_hex().as_str()) {
        Ok(id)
    } else {
        let message = "its bytes do not have the hash that its name says".to_owned();
        Err(RepositoryError::Damaged { name: name.clone(), message })
    }
}

/// Runs CPU work away from the async threads.
pub async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RepositoryError::Interrupted)?
}
