//! Packs: 16 to 32 MiB of sealed chunks of one kind in one object, named by the hash of its bytes.
//!
//! ```text
//! offset  length  field (little endian)
//!      0       8  magic "RSTPACK1"
//!      8       1  kind: 1 meta, 2 row, 3 payload
//!      9       1  flags, zero
//!     10       2  number s of key slots
//!     12       4  length d of the sealed directory
//!     16      16  repository id
//!     32       4  epoch of the directory's seal
//!     36       4  zero
//!     40      32  salt
//!     72       –  s slots: epoch u32, wrap u8 (1 age, 2 seal), zero u8, length u16, the wrapped data key
//!      –       d  directory, sealed
//!      –       –  the sealed chunks, one after the other
//!      –       d  the directory once more
//!      –       4  d
//!      –       8  magic "RSTTAIL1"
//! ```
//! The directory is a u32 count and records of 52 bytes: chunk id 32, slot u16, codec u8, zero u8, ordinal u32, offset u32
//! (from the first sealed chunk), stored length u32, raw length u32. It is sealed with the seal secret, because the
//! lengths of attachments are nobody's business; associated data are all bytes before it.
//!
//! A data key is random, used for one pack, and forgotten with it: a pack of rows or payload cannot be opened by whoever wrote it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::chunk::{ChunkKind, Codec, Compressed, MAX_CHUNK, SealedAs};
use super::error::RepositoryError;
use super::id::{ChunkId, Epoch, PackId, RepositoryId};
use super::seal::{self, Sealer, Secret};
use super::secrets::{Secrets, context, seal_age};
use crate::storage::buffer::Buffer;

const MAGIC: &[u8; 8] = b"RSTPACK1";
const TAIL: &[u8; 8] = b"RSTTAIL1";
const HEADER: usize = 72;
const RECORD: usize = 52;
pub const MAX_PACK: usize = 64 << 20;
pub const MAX_DIRECTORY: usize = 4 << 20;
/// As many key slots as a number of 16 bits counts.
const MAX_SLOTS: usize = u16::MAX as usize;
/// The fixed parts around slots, directories and chunks, and the slot that a builder makes (an age file of about 200 bytes).
const OVERHEAD: usize = 4096;
/// As many chunks as a directory holds.
const MAX_CHUNKS: usize = (MAX_DIRECTORY - 4 - seal::TAG_LENGTH) / RECORD;

/// How a data key lies in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrap {
    /// An age file to the epoch's recipient: row and payload packs.
    Age,
    /// AES-256-GCM under a key derived from the seal secret and the first 32 bytes of the slot (a salt): meta packs.
    Seal,
}

impl Wrap {
    /// The only way that a pack of this kind wraps its data keys.
    pub fn of(kind: ChunkKind) -> Self {
        match kind {
            ChunkKind::Meta => Self::Seal,
            ChunkKind::Row | ChunkKind::Payload => Self::Age,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub epoch: Epoch,
    pub wrap: Wrap,
    #[serde(with = "serde_bytes")]
    pub wrapped: Vec<u8>,
}

impl Slot {
    /// Opens the data key.
    pub fn unwrap(&self, secrets: &Secrets) -> Result<Secret, RepositoryError> {
        match self.wrap {
            Wrap::Age => secrets.unwrap_data_key(self.epoch, &self.wrapped),
            Wrap::Seal => {
                let (salt, sealed) = self
                    .wrapped
                    .split_at_checked(seal::SALT_LENGTH)
                    .ok_or_else(|| RepositoryError::malformed("key slot", "it is too short"))?;
                let key = secrets.epoch(self.epoch)?.seal.derive(context::PACK_META, salt);
                let plain = Sealer::new(&key)?.open(0, &[], sealed)?;
                let bytes = plain.try_into().map_err(|_| RepositoryError::malformed("key slot", "not 32 bytes"))?;
                Ok(Secret::new(bytes))
            }
        }
    }
}

/// One chunk in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub id: ChunkId,
    pub slot: u16,
    pub codec: Codec,
    pub ordinal: u32,
    /// From the first sealed chunk.
    pub offset: u32,
    pub stored_length: u32,
    pub raw_length: u32,
}

impl Entry {
    pub fn sealed_as(&self, kind: ChunkKind) -> SealedAs {
        SealedAs { kind, id: self.id, raw_length: self.raw_length, codec: self.codec, ordinal: self.ordinal }
    }
}

/// The records of a directory or of an index fragment.
pub fn encode_entries(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + entries.len() * RECORD);
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        bytes.extend_from_slice(&entry.id.0);
        bytes.extend_from_slice(&entry.slot.to_le_bytes());
        bytes.extend_from_slice(&[entry.codec.code(), 0]);
        for word in [entry.ordinal, entry.offset, entry.stored_length, entry.raw_length] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

pub fn decode_entries(bytes: &[u8]) -> Result<Vec<Entry>, RepositoryError> {
    let malformed = |message: &str| RepositoryError::malformed("pack directory", message);
    let (count, records) = bytes.split_at_checked(4).ok_or_else(|| malformed("it is empty"))?;
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    if records.len() as u64 != u64::from(word(count)) * RECORD as u64 {
        return Err(malformed("its length does not fit its count"));
    }
    records
        .chunks_exact(RECORD)
        .map(|r| {
            let mut id = [0; 32];
            id.copy_from_slice(&r[..32]);
            if r[35] != 0 {
                return Err(malformed("a reserved byte is not zero: a newer program wrote it"));
            }
            Ok(Entry {
                id: ChunkId(id),
                slot: u16::from_le_bytes([r[32], r[33]]),
                codec: Codec::from_code(r[34]).ok_or_else(|| malformed("unknown codec"))?,
                ordinal: word(&r[36..]),
                offset: word(&r[40..]),
                stored_length: word(&r[44..]),
                raw_length: word(&r[48..]),
            })
        })
        .collect()
}

/// Refuses what no writer of format 1 makes, before anybody allocates or fetches by it: entries that reach outside the
/// `data_length` bytes of sealed chunks, chunks over the cap, slots that are not there or are wrapped for another class.
pub fn check(kind: ChunkKind, slots: &[Slot], entries: &[Entry], data_length: u64) -> Result<(), RepositoryError> {
    let malformed = |message: &str| Err(RepositoryError::malformed("pack directory", message));
    if slots.len() > MAX_SLOTS || slots.iter().any(|slot| slot.wrapped.len() > usize::from(u16::MAX)) {
        return malformed("it has more or larger key slots than a pack holds");
    }
    if slots.iter().any(|slot| slot.wrap != Wrap::of(kind)) {
        return malformed("a key slot is wrapped for another class of chunks");
    }
    for entry in entries {
        if entry.raw_length as usize > MAX_CHUNK {
            return malformed("a chunk is larger than format 1 allows");
        }
        if !(seal::TAG_LENGTH..=MAX_CHUNK + seal::TAG_LENGTH).contains(&(entry.stored_length as usize)) {
            return malformed("a sealed chunk has a length that no chunk can have");
        }
        let end = u64::from(entry.offset) + u64::from(entry.stored_length);
        if end > data_length || usize::from(entry.slot) >= slots.len() {
            return malformed("it points outside the pack");
        }
    }
    Ok(())
}

/// What an index fragment, and the head of a pack, say of it.
#[derive(Debug, Clone)]
pub struct PackInfo {
    pub id: PackId,
    pub kind: ChunkKind,
    /// Of the object, in bytes.
    pub size: u32,
    /// Where the first sealed chunk starts.
    pub data_start: u32,
    pub slots: Vec<Slot>,
    pub entries: Vec<Entry>,
}

/// A finished pack with the key that still opens it, for reading it back. Dropping it forgets the key.
pub struct FinishedPack {
    pub info: PackInfo,
    pub bytes: Bytes,
    pub data_key: Secret,
}

/// Collects sealed chunks of one kind.
pub struct PackBuilder {
    kind: ChunkKind,
    repository: RepositoryId,
    epoch: Epoch,
    data_key: Secret,
    sealer: Sealer,
    slot: Slot,
    entries: Vec<Entry>,
    data: PackData,
}

impl PackBuilder {
    /// `recipient` is the epoch's, from the writer key.
    pub fn new(
        kind: ChunkKind,
        secrets: &Secrets,
        epoch: Epoch,
        recipient: &age::x25519::Recipient,
    ) -> Result<Self, RepositoryError> {
        let data_key = Secret::random()?;
        let slot = match kind {
            ChunkKind::Meta => {
                let salt = seal::random_salt()?;
                let key = secrets.epoch(epoch)?.seal.derive(context::PACK_META, &salt);
                let mut sealed = data_key.expose().to_vec();
                Sealer::new(&key)?.seal(0, &[], &mut sealed)?;
                Slot { epoch, wrap: Wrap::Seal, wrapped: [salt.as_slice(), &sealed].concat() }
            }
            ChunkKind::Row | ChunkKind::Payload => {
                let wrapped = seal_age(data_key.expose(), std::iter::once(recipient as &dyn age::Recipient))?;
                Slot { epoch, wrap: Wrap::Age, wrapped }
            }
        };
        let sealer = Sealer::new(&data_key)?;
        let repository = secrets.repository;
        Ok(Self { kind, repository, epoch, data_key, sealer, slot, entries: Vec::new(), data: PackData::new() })
    }

    /// Bytes of sealed chunks so far.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Would a chunk of `stored` bytes still fit?
    pub fn has_room(&self, stored: usize) -> bool {
        self.entries.len() < MAX_CHUNKS && self.data.len() + stored + 2 * MAX_DIRECTORY + OVERHEAD < MAX_PACK
    }

    pub fn add(&mut self, chunk: Compressed<'_>) -> Result<(), RepositoryError> {
        let Compressed { id, codec, raw_length, bytes } = chunk;
        let (ordinal, offset) = (self.entries.len() as u32, self.data.len());
        let buffer = &mut self.data.0;
        let start = buffer.len();
        buffer.extend_from_slice(bytes);
        let sealed_as = SealedAs { kind: self.kind, id, raw_length, codec, ordinal };
        sealed_as.seal(&self.repository, &self.sealer, buffer, start)?;
        let stored_length = (self.data.len() - offset) as u32;
        self.entries.push(Entry { id, slot: 0, codec, ordinal, offset: offset as u32, stored_length, raw_length });
        Ok(())
    }

    pub fn finish(self, secrets: &Secrets) -> Result<FinishedPack, RepositoryError> {
        let slots = vec![self.slot];
        let head = Head { kind: self.kind, repository: self.repository, epoch: self.epoch, salt: seal::random_salt()? };
        let (bytes, data_start) = assemble(&head, secrets, &slots, &self.entries, self.data)?;
        let id = PackId::of(&bytes);
        let info = PackInfo { id, kind: self.kind, size: bytes.len() as u32, data_start, slots, entries: self.entries };
        Ok(FinishedPack { info, bytes, data_key: self.data_key })
    }
}

/// The sealed chunks of a pack, behind room for what stands before them: so they are never copied.
struct PackData(Buffer);

impl PackData {
    /// Room for the header, a slot and a directory of a thousand chunks.
    const ROOM: usize = 64 << 10;
    /// As much as most packs have at most. It costs address space, not memory.
    const USUAL: usize = 20 << 20;

    fn new() -> Self {
        let mut buffer = Buffer::with_capacity(Self::USUAL);
        buffer.resize(Self::ROOM, 0);
        Self(buffer)
    }

    fn len(&self) -> usize {
        self.0.len() - Self::ROOM
    }

    /// The whole object.
    fn between(self, head: &[u8], tail: [&[u8]; 3]) -> Bytes {
        let mut buffer = self.0;
        if head.len() > Self::ROOM {
            buffer.splice(..0, std::iter::repeat_n(0, head.len() - Self::ROOM));
        }
        let end = head.len().max(Self::ROOM);
        buffer[end - head.len()..end].copy_from_slice(head);
        tail.iter().for_each(|part| buffer.extend_from_slice(part));
        buffer.freeze().slice(end - head.len()..)
    }
}

struct Head {
    kind: ChunkKind,
    repository: RepositoryId,
    epoch: Epoch,
    salt: [u8; 32],
}

impl Head {
    fn directory_key(&self, secrets: &Secrets) -> Result<Sealer, RepositoryError> {
        Ok(Sealer::new(&secrets.epoch(self.epoch)?.seal.derive(context::SEAL_DIRECTORY, &self.salt))?)
    }
}

fn assemble(
    head: &Head,
    secrets: &Secrets,
    slots: &[Slot],
    entries: &[Entry],
    data: PackData,
) -> Result<(Bytes, u32), RepositoryError> {
    let mut directory = encode_entries(entries);
    let directory_length = directory.len() + seal::TAG_LENGTH;
    let slot_length: usize = slots.iter().map(|slot| 8 + slot.wrapped.len()).sum();
    let size = HEADER + slot_length + 2 * directory_length + data.len() + 12;
    if size > MAX_PACK || directory_length > MAX_DIRECTORY || slots.len() > MAX_SLOTS {
        return Err(RepositoryError::TooLarge { what: "pack", size, limit: MAX_PACK });
    }
    let mut bytes = Vec::with_capacity(size - data.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[head.kind.code(), 0]);
    bytes.extend_from_slice(&(slots.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&(directory_length as u32).to_le_bytes());
    bytes.extend_from_slice(&head.repository.0);
    bytes.extend_from_slice(&head.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&head.salt);
    for slot in slots {
        let wrap = match slot.wrap {
            Wrap::Age => 1,
            Wrap::Seal => 2,
        };
        bytes.extend_from_slice(&slot.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&[wrap, 0]);
        bytes.extend_from_slice(&(slot.wrapped.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&slot.wrapped);
    }
    head.directory_key(secrets)?.seal(0, &bytes, &mut directory)?;
    bytes.extend_from_slice(&directory);
    let data_start = bytes.len() as u32;
    let tail = [&directory[..], &(directory_length as u32).to_le_bytes(), TAIL];
    Ok((data.between(&bytes, tail), data_start))
}

/// Reads head, slots and directory of a whole pack. The caller has compared the hash of the bytes with the name, or
/// wants to know what can be read of a damaged one.
pub fn parse(secrets: &Secrets, bytes: &[u8]) -> Result<PackInfo, RepositoryError> {
    if bytes.len() > MAX_PACK {
        return Err(RepositoryError::TooLarge { what: "pack", size: bytes.len(), limit: MAX_PACK });
    }
    let (info, sealed) = parse_front(secrets, PackId::of(bytes), bytes, bytes.len() as u32)?;
    let tail = [sealed, &(sealed.len() as u32).to_le_bytes(), TAIL].concat();
    if bytes.ends_with(&tail) {
        return Ok(info);
    }
    Err(RepositoryError::malformed("pack", "its end is not that of a pack, or its two directories differ"))
}

/// Reads the same from the first bytes of a pack of `size` bytes, which hold the directory. What its chunks are is proven when they are opened.
pub fn parse_front<'a>(
    secrets: &Secrets,
    id: PackId,
    bytes: &'a [u8],
    size: u32,
) -> Result<(PackInfo, &'a [u8]), RepositoryError> {
    let malformed = |message: &str| RepositoryError::malformed("pack", message);
    let header = bytes.get(..HEADER).ok_or_else(|| malformed("it is shorter than its header"))?;
    if &header[..8] != MAGIC {
        return Err(malformed("it does not start as a pack of format 1"));
    }
    if header[9] != 0 || header[36..40] != [0; 4] {
        return Err(malformed("reserved bytes are not zero: a newer program wrote it"));
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let kind = ChunkKind::from_code(header[8]).ok_or_else(|| malformed("unknown kind"))?;
    let (slot_count, directory_length) = (u16::from_le_bytes([header[10], header[11]]), word(12) as usize);
    if header[16..32] != secrets.repository.0 {
        return Err(malformed("it belongs to another repository"));
    }
    if directory_length > MAX_DIRECTORY {
        return Err(RepositoryError::TooLarge { what: "pack directory", size: directory_length, limit: MAX_DIRECTORY });
    }
    let mut salt = [0; 32];
    salt.copy_from_slice(&header[40..72]);
    let head = Head { kind, repository: secrets.repository, epoch: Epoch(word(32)), salt };

    let mut at = HEADER;
    let mut take = |length: usize| {
        let part = bytes.get(at..at.saturating_add(length));
        at += length;
        part.ok_or_else(|| malformed("it was cut short"))
    };
    let mut slots = Vec::with_capacity(usize::from(slot_count));
    for _ in 0..slot_count {
        let fixed = take(8)?;
        let wrap = match fixed[4] {
            1 if fixed[5] == 0 => Wrap::Age,
            2 if fixed[5] == 0 => Wrap::Seal,
            _ => return Err(malformed("unknown way of wrapping a data key")),
        };
        let epoch = Epoch(u32::from_le_bytes([fixed[0], fixed[1], fixed[2], fixed[3]]));
        let length = u16::from_le_bytes([fixed[6], fixed[7]]);
        slots.push(Slot { epoch, wrap, wrapped: take(usize::from(length))?.to_vec() });
    }
    let sealed = take(directory_length)?;
    let data_start = at;
    let before = &bytes[..data_start - directory_length];
    let entries = decode_entries(&head.directory_key(secrets)?.open(0, before, sealed)?)?;
    let data_end = (size as usize).checked_sub(directory_length + 12).filter(|end| *end >= data_start);
    let data_length = data_end.ok_or_else(|| malformed("it was cut short"))? - data_start;
    check(kind, &slots, &entries, data_length as u64)?;
    Ok((PackInfo { id, kind, size, data_start: data_start as u32, slots, entries }, sealed))
}

/// Copies sealed chunks as they are, with their key slots, into one new pack: nothing is opened, so it takes no reader's key.
pub struct SealedCopy {
    kind: ChunkKind,
    slots: Vec<Slot>,
    entries: Vec<Entry>,
    data: PackData,
}

impl SealedCopy {
    pub fn new(kind: ChunkKind) -> Self {
        Self { kind, slots: Vec::new(), entries: Vec::new(), data: PackData::new() }
    }

    /// Adds those chunks of a pack of the same kind that are wanted.
    pub fn add(
        &mut self,
        info: &PackInfo,
        bytes: &[u8],
        mut is_wanted: impl FnMut(&Entry) -> bool,
    ) -> Result<(), RepositoryError> {
        if info.kind != self.kind {
            return Err(RepositoryError::malformed("pack", "sources of several kinds"));
        }
        let outside = || RepositoryError::malformed("pack", "its directory points outside it");
        for entry in info.entries.iter().filter(|entry| is_wanted(entry)) {
            let slot = info.slots.get(usize::from(entry.slot)).ok_or_else(outside)?;
            let position = self.slots.iter().position(|s| s == slot).unwrap_or_else(|| {
                self.slots.push(slot.clone());
                self.slots.len() - 1
            });
            let start = info.data_start as usize + entry.offset as usize;
            let sealed = bytes.get(start..start + entry.stored_length as usize).ok_or_else(outside)?;
            self.entries.push(Entry { slot: position as u16, offset: self.data.len() as u32, ..*entry });
            self.data.0.extend_from_slice(sealed);
        }
        Ok(())
    }

    pub fn finish(self, secrets: &Secrets, epoch: Epoch) -> Result<(PackInfo, Bytes), RepositoryError> {
        let head = Head { kind: self.kind, repository: secrets.repository, epoch, salt: seal::random_salt()? };
        let (bytes, data_start) = assemble(&head, secrets, &self.slots, &self.entries, self.data)?;
        let (id, size) = (PackId::of(&bytes), bytes.len() as u32);
        Ok((PackInfo { id, kind: self.kind, size, data_start, slots: self.slots, entries: self.entries }, bytes))
    }
}
