//! Signed objects: index fragments, manifests, certificates and the like. A fixed header, the body (deterministic CBOR,
//! zstd, AES-256-GCM under the epoch's seal secret and a random salt), the signer's public key, an Ed25519 signature over
//! everything before it. Sealing authenticates nobody; the signature does.
//!
//! ```text
//! offset  length  field (little endian)
//!      0       8  magic "RSTOBJ01"
//!      8       1  kind
//!      9       3  zero
//!     12       4  epoch of the seal secret
//!     16      16  repository id
//!     32      32  salt
//!     64       4  length of the body's plaintext (CBOR) before zstd
//!     68       4  length n of the sealed body
//!     72       n  body
//!   72+n      32  signer
//!  104+n      64  signature over "restante 1 sign " + kind name + NUL + bytes [0, 104+n)
//! ```

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cbor;
use super::config::ConfigSigner;
use super::error::RepositoryError;
use super::id::{Epoch, RepositoryId, SignerId};
use super::seal::{self, Sealer, Signer};
use super::secrets::Secrets;
use crate::storage::{MAX_OBJECT_BYTES, ObjectName};

const MAGIC: &[u8; 8] = b"RSTOBJ01";
const HEADER: usize = 72;
const TRAILER: usize = 32 + 64;

/// What a signed object is. Each kind has its own sealing key and signing context, so none can pass for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    Index,
    Manifest,
    Certificate,
    Checkpoint,
    Tombstone,
    Forgotten,
    Verified,
    Change,
    Replay,
    Lease,
    Hold,
    Drill,
}

impl ObjectKind {
    pub const ALL: [Self; 12] = [
        Self::Index,
        Self::Manifest,
        Self::Certificate,
        Self::Checkpoint,
        Self::Tombstone,
        Self::Forgotten,
        Self::Verified,
        Self::Change,
        Self::Replay,
        Self::Lease,
        Self::Hold,
        Self::Drill,
    ];

    pub fn code(self) -> u8 {
        match self {
            Self::Index => 1,
            Self::Manifest => 2,
            Self::Certificate => 3,
            Self::Checkpoint => 4,
            Self::Tombstone => 5,
            Self::Forgotten => 6,
            Self::Verified => 7,
            Self::Change => 8,
            Self::Replay => 9,
            Self::Lease => 10,
            Self::Hold => 11,
            Self::Drill => 12,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Certificate => "certificate",
            Self::Checkpoint => "checkpoint",
            Self::Tombstone => "tombstone",
            Self::Forgotten => "forgotten",
            Self::Verified => "verified",
            Self::Change => "change",
            Self::Replay => "replay",
            Self::Lease => "lease",
            Self::Hold => "hold",
            Self::Drill => "drill",
        }
    }

    /// May a verifier sign it?
    pub(super) fn is_a_verifiers(self) -> bool {
        matches!(self, Self::Verified | Self::Drill | Self::Tombstone)
    }

    pub(super) fn seal_context(self) -> String {
        format!("restante 1 seal {}", self.name())
    }

    pub(super) fn signed_message(self, bytes: &[u8]) -> Vec<u8> {
        let mut message = format!("restante 1 sign {}\0", self.name()).into_bytes();
        message.extend_from_slice(bytes);
        message
    }
}

/// With what objects are written: the current epoch and the signer.
pub struct Author<'a> {
    pub repository: RepositoryId,
    pub epoch: Epoch,
    pub secrets: &'a Secrets,
    pub signer: &'a Signer,
}

pub fn write<T: Serialize>(kind: ObjectKind, author: &Author<'_>, body: &T) -> Result<Bytes, RepositoryError> {
    let plain = cbor::encode(kind.name(), body)?;
    let limit = MAX_OBJECT_BYTES as usize - HEADER - TRAILER - seal::TAG_LENGTH;
    let mut sealed = zstd::bulk::compress(&plain, super::chunk::ZSTD_LEVEL)
        .map_err(|e| RepositoryError::malformed("object", format!("zstd cannot compress it: {e}")))?;
    if plain.len() > limit || sealed.len() > limit {
        return Err(RepositoryError::TooLarge { what: kind.name(), size: plain.len(), limit });
    }
    let salt = seal::random_salt()?;
    let mut object = Vec::with_capacity(HEADER + sealed.len() + seal::TAG_LENGTH + TRAILER);
    object.extend_from_slice(MAGIC);
    object.extend_from_slice(&[kind.code(), 0, 0, 0]);
    object.extend_from_slice(&author.epoch.0.to_le_bytes());
    object.extend_from_slice(&author.repository.0);
    object.extend_from_slice(&salt);
    object.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    object.extend_from_slice(&((sealed.len() + seal::TAG_LENGTH) as u32).to_le_bytes());
    let key = author.secrets.epoch(author.epoch)?.seal.derive(&kind.seal_context(), &salt);
    Sealer::new(&key)?.seal(0, &object, &mut sealed)?;
    object.extend_from_slice(&sealed);
    object.extend_from_slice(&author.signer.id().0);
    let signature = author.signer.sign(&kind.signed_message(&object));
    object.extend_from_slice(&signature);
    Ok(object.into())
}

/// A signed object that was opened and whose signer is one of the epoch's.
pub struct Opened<T> {
    pub signer: SignerId,
    pub epoch: Epoch,
    pub body: T,
}

/// The epoch that the header of an object names, unchecked.
pub(super) fn epoch(object: &[u8]) -> Option<Epoch> {
    Some(Epoch(u32::from_le_bytes(object.get(12..16)?.try_into().ok()?)))
}

/// Checks everything before a byte of the body is believed. `name` is for errors.
pub fn read<T: DeserializeOwned>(
    kind: ObjectKind,
    secrets: &Secrets,
    name: &ObjectName,
    object: &[u8],
) -> Result<Opened<T>, RepositoryError> {
    let damaged = |message: &str| RepositoryError::Damaged { name: name.clone(), message: message.to_owned() };
    let word = |at: usize| object.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let (Some(epoch), Some(raw), Some(length)) = (word(12), word(64), word(68)) else {
        return Err(damaged("it is shorter than its header"));
    };
    if &object[..8] != MAGIC {
        return Err(damaged("it does not start as an object of format 1"));
    }
    if object[8] != kind.code() {
        return Err(damaged("it is an object of another kind"));
    }
    if object[9..12] != [0; 3] {
        return Err(damaged("reserved bytes are not zero: a newer program wrote it"));
    }
    if object[16..32] != secrets.repository.0 {
        return Err(damaged("it belongs to another repository"));
    }
    if object.len() as u64 != u64::from(length) + (HEADER + TRAILER) as u64 {
        return Err(damaged("its length does not fit its header: it was cut short or something was added"));
    }
    let (header, salt) = (&object[..HEADER], &object[32..64]);
    let body_end = HEADER + length as usize;
    let signed = &object[..body_end + 32];
    let mut signer = [0; 32];
    signer.copy_from_slice(&object[body_end..body_end + 32]);
    let signer = SignerId(signer);
    let epoch = Epoch(epoch);
    let unknown = |_| RepositoryError::SealedInUnknownEpoch { name: name.clone(), epoch };
    let known = secrets.epoch(epoch).map_err(unknown)?;
    seal::verify(&signer, &kind.signed_message(signed), &object[body_end + 32..])
        .map_err(|_| damaged("its signature does not fit its bytes"))?;
    let is_verifier = || secrets.verifiers.contains(&ConfigSigner { epoch, key: signer });
    let counts = known.signers.contains(&signer) || (kind.is_a_verifiers() && is_verifier());
    if !counts {
        return Err(RepositoryError::UnknownSigner { name: name.clone(), signer });
    }
    let key = known.seal.derive(&kind.seal_context(), salt);
    let compressed =
        Sealer::new(&key)?.open(0, header, &object[HEADER..body_end]).map_err(|_| damaged("its seal does not open"))?;
    if u64::from(raw) > MAX_OBJECT_BYTES {
        return Err(damaged("its body is larger than format 1 allows"));
    }
    let plain = zstd::bulk::decompress(&compressed, raw as usize).map_err(|_| damaged("it does not decompress"))?;
    if plain.len() != raw as usize {
        return Err(damaged("its body does not have the length that its header says"));
    }
    Ok(Opened { signer, epoch, body: cbor::decode(kind.name(), &plain)? })
}
