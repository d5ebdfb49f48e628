//! What can go wrong with a repository, in one flat enum: what happened, to which object, what a person can do.

use std::path::PathBuf;

use super::cbor::CborError;
use super::id::{ChunkId, Epoch, ObjectId, SignerId};
use super::seal::CryptoError;
use crate::storage::{ObjectName, StorageError};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    #[error(transparent)]
    Cbor(#[from] CborError),

    #[error("there is no repository in {address} (repository.json is missing): make one with `restante init`")]
    NoRepository { address: String },
    #[error("there is a repository in {address} already; `init` never touches one")]
    AlreadyInitialised { address: String },
    #[error(
        "there are key objects in {address} but no repository.json: an `init` was interrupted, or somebody deleted the head \
         of a repository. Take another place, or put the head back"
    )]
    HeadMissing { address: String },
    #[error(
        "this repository needs format {format} or the feature {feature:?} to {operation}, which this program does not know: use a newer restante"
    )]
    Unsupported { format: u32, feature: String, operation: &'static str },
    #[error(
        "repository.json has the fingerprint {found}, the key expects {expected}: this is another repository, or somebody replaced it"
    )]
    AnotherRepository { found: String, expected: String },

    #[error(
        "this verifier's key is of epoch {epoch}: a rotation ended it, or the configuration that names it was taken away; make a new one with \
         `restante key verifier`"
    )]
    EndedVerifier { epoch: Epoch },
    #[error("writer key {path}: {message}")]
    WriterKey { path: PathBuf, message: String },
    #[error("the identity opens no key ring of this repository: it is not one of its readers")]
    WrongIdentity,
    #[error("this needs a reader identity (`-i FILE`): a writer key cannot open mail")]
    ReaderNeeded,
    #[error("this needs the writer key (`--key FILE`)")]
    WriterNeeded,
    #[error(
        "something was sealed in epoch {epoch}, of which no secrets are known: was the key rotated? fetch the newest writer key or use a reader identity"
    )]
    UnknownEpoch { epoch: Epoch },
    #[error(
        "object {name} says that it was sealed in epoch {epoch}, of which no secrets are known: either the key was rotated (then fetch the newest writer key or use a reader identity) or the object is damaged"
    )]
    SealedInUnknownEpoch { name: ObjectName, epoch: Epoch },
    #[error("key object: {0}")]
    KeyObject(String),
    #[error(
        "the key objects in the repository are not those that the writer key knows ({difference}): what is gone or was changed bring back from your copy; if a reader was added on purpose, run `restante key accept`; if the key was rotated, only a copy of the new key goes on"
    )]
    KeyObjectsChanged { difference: String },
    #[error("the reader {recipient:?} is not an age recipient (age1…) or an SSH public key: {message}")]
    BadRecipient { recipient: String, message: String },
    #[error("identity {path}: {message}")]
    Identity { path: PathBuf, message: String },

    #[error("object {name} is damaged: {message}")]
    Damaged { name: ObjectName, message: String },
    #[error("object {name} is signed by {signer}, who is not known to this repository")]
    UnknownSigner { name: ObjectName, signer: SignerId },
    #[error("chunk {id} is damaged in {name}: {message}")]
    DamagedChunk { id: ChunkId, name: ObjectName, message: String },
    #[error("chunk {id} is in no pack that the index knows")]
    MissingChunk { id: ChunkId },
    #[error("chunk {id} is in no pack that the index knows; {problem}")]
    Unindexed { id: ChunkId, problem: String },
    #[error("{what} is damaged: {message}")]
    Malformed { what: &'static str, message: String },

    #[error("no snapshot fits {wanted:?}")]
    SnapshotNotFound { wanted: String },
    #[error("{wanted:?} fits several snapshots ({candidates}): give more digits")]
    SnapshotAmbiguous { wanted: String, candidates: String },
    #[error(
        "the snapshot {snapshot} is not certified: it was never read back in full, so it is not used (see `restante snapshots --uncertified`)"
    )]
    NotCertified { snapshot: ObjectId },
    #[error(
        "the storage is behind this writer: its last snapshot had number {expected}, the newest one found has {found}; somebody deleted or rolled back the bucket, or the newest manifest does not open (`restante verify`). Bring it back from a copy; when that cannot be, `restante snapshot --storage-lost`"
    )]
    RolledBack { expected: u64, found: u64 },

    #[error("snapshot {snapshot} is kept: {reason}")]
    Kept { snapshot: ObjectId, reason: String },
    #[error("snapshot {snapshot} was removed by a prune already and cannot be taken back")]
    Pruned { snapshot: ObjectId },

    #[error("a {what} of {size} bytes is larger than the {limit} that format 1 allows")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    #[error("the work was interrupted")]
    Interrupted,
}

impl RepositoryError {
    pub(crate) fn malformed(what: &'static str, message: impl Into<String>) -> Self {
        Self::Malformed { what, message: message.into() }
    }

    /// Was the wrong key given, or none? (Exit code 6.)
    pub fn is_wrong_key(&self) -> bool {
        matches!(
            self,
            Self::WrongIdentity
                | Self::ReaderNeeded
                | Self::WriterNeeded
                | Self::UnknownEpoch { .. }
                | Self::SealedInUnknownEpoch { .. }
                | Self::AnotherRepository { .. }
                | Self::Identity { .. }
                | Self::WriterKey { .. }
                | Self::EndedVerifier { .. }
                | Self::BadRecipient { .. }
        )
    }

    /// Is something named that is not there? (Exit code 5.)
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::NoRepository { .. }
                | Self::SnapshotNotFound { .. }
                | Self::Pruned { .. }
                | Self::Storage(StorageError::NotFound { .. })
        )
    }

    /// Does it tell of an object that is missing, damaged, forged or of a newer program? Then a list or a check can tell it and
    /// go on. Everything else (no connection, no access, no key) says nothing about the object, and ends the work.
    pub fn is_about_an_object(&self) -> bool {
        match self {
            Self::Storage(e) => matches!(
                e,
                StorageError::NotFound { .. }
                    | StorageError::Truncated { .. }
                    | StorageError::TooLarge { .. }
                    | StorageError::Failed { .. }
            ),
            Self::Crypto(_)
            | Self::Cbor(_)
            | Self::Unsupported { .. }
            | Self::UnknownEpoch { .. }
            | Self::SealedInUnknownEpoch { .. }
            | Self::KeyObject(_)
            | Self::KeyObjectsChanged { .. }
            | Self::Damaged { .. }
            | Self::UnknownSigner { .. }
            | Self::DamagedChunk { .. }
            | Self::MissingChunk { .. }
            | Self::Unindexed { .. }
            | Self::Malformed { .. }
            | Self::TooLarge { .. } => true,
            Self::NoRepository { .. }
            | Self::AlreadyInitialised { .. }
            | Self::HeadMissing { .. }
            | Self::AnotherRepository { .. }
            | Self::WriterKey { .. }
            | Self::EndedVerifier { .. }
            | Self::WrongIdentity
            | Self::ReaderNeeded
            | Self::WriterNeeded
            | Self::BadRecipient { .. }
            | Self::Identity { .. }
            | Self::SnapshotNotFound { .. }
            | Self::SnapshotAmbiguous { .. }
            | Self::NotCertified { .. }
            | Self::RolledBack { .. }
            | Self::Kept { .. }
            | Self::Pruned { .. }
            | Self::Interrupted => false,
        }
    }

    /// The object that it tells of.
    pub fn object(&self) -> Option<&ObjectName> {
        match self {
            Self::Storage(
                StorageError::NotFound { name, .. }
                | StorageError::Truncated { name, .. }
                | StorageError::TooLarge { name, .. },
            )
            | Self::SealedInUnknownEpoch { name, .. }
            | Self::Damaged { name, .. }
            | Self::UnknownSigner { name, .. }
            | Self::DamagedChunk { name, .. } => Some(name),
            _ => None,
        }
    }
}
