//! `repository.json`: what a program must know before it has any key. Two lines: a JSON object, and its signature by the
//! writer that made the repository. Later versions lie in `config/<n>-<hash>`, in the same form, each signed by a signer
//! of the version before it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::RepositoryError;
use super::id::{Epoch, Fingerprint, ObjectId, RepositoryId, SignerId};
use super::seal::{self, Signer};
use crate::storage::ObjectName;

pub const NAME: &str = "repository.json";
const MAGIC: &str = "restante repository";
pub const FORMAT: u32 = 1;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub magic: String,
    pub format: u32,
    pub repository: RepositoryId,
    pub created: Timestamp,
    /// 1 for `repository.json`, one more for each later version.
    pub version: u32,
    /// BLAKE3 of the version before this one.
    pub previous: Option<ObjectId>,
    /// The epoch in which new objects are written.
    pub epoch: Epoch,
    pub signers: Vec<ConfigSigner>,
    /// Whose signatures count on what checks and drills found, and on nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verifiers: Vec<ConfigSigner>,
    /// Features that a program must know, per operation.
    pub needs: Needs,
    /// The snapshots of earlier epochs that were there when this epoch began. No other snapshot of an earlier epoch counts, or
    /// whoever stole the keys of one could go on making snapshots that look like those of the victim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<ObjectId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSigner {
    pub epoch: Epoch,
    pub key: SignerId,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Needs {
    pub read: Vec<String>,
    pub write: Vec<String>,
    pub prune: Vec<String>,
}

/// What a program is about to do, for [`Config::check_features`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Prune,
}

/// Features of a repository that this program knows.
const FEATURES: &[&str] = &[];

/// What every format keeps, so that an older program can say that it is too old.
#[derive(Deserialize)]
struct Head {
    magic: String,
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct SignatureLine {
    signer: SignerId,
    signature: String,
}

impl Config {
    pub fn first(repository: RepositoryId, epoch: Epoch, signer: SignerId, created: Timestamp) -> Self {
        Self {
            magic: MAGIC.into(),
            format: FORMAT,
            repository,
            created,
            version: 1,
            previous: None,
            epoch,
            signers: vec![ConfigSigner { epoch, key: signer }],
            verifiers: Vec::new(),
            needs: Needs::default(),
            kept: Vec::new(),
        }
    }

    /// The bytes of the object.
    pub fn write(&self, signer: &Signer) -> Result<Vec<u8>, RepositoryError> {
        let fail = |e: serde_json::Error| RepositoryError::malformed("repository.json", e.to_string());
        let mut bytes = serde_json::to_vec(self).map_err(fail)?;
        bytes.push(b'\n');
        let signature = data_encoding::HEXLOWER.encode(&signer.sign(&signed(&bytes)));
        serde_json::to_writer(&mut bytes, &SignatureLine { signer: signer.id(), signature }).map_err(fail)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Whose signature counts now: a signer of an earlier epoch has none, so that a stolen and replaced writer key makes
    /// neither a configuration nor a key ring.
    pub fn is_current_signer(&self, key: &SignerId) -> bool {
        self.signers.iter().any(|signer| signer.epoch == self.epoch && signer.key == *key)
    }

    /// Does a snapshot that was written in `epoch` count?
    pub fn admits(&self, epoch: Epoch, snapshot: &ObjectId) -> bool {
        epoch >= self.epoch || self.kept.contains(snapshot)
    }

    /// Refuses an operation that needs a feature which this program does not know.
    pub fn check_features(&self, operation: Operation) -> Result<(), RepositoryError> {
        let (needs, operation) = match operation {
            Operation::Read => (&self.needs.read, "read the repository"),
            Operation::Write => (&self.needs.write, "write to the repository"),
            Operation::Prune => (&self.needs.prune, "prune the repository"),
        };
        match needs.iter().find(|feature| !FEATURES.contains(&feature.as_str())) {
            None => Ok(()),
            Some(feature) => {
                Err(RepositoryError::Unsupported { format: self.format, feature: feature.clone(), operation })
            }
        }
    }

    /// Reads a version and checks that a current signer of the version before it (`before`) signed it; the first version
    /// vouches for itself (its fingerprint is what people compare).
    pub fn read(name: &ObjectName, bytes: &[u8], before: Option<&Self>) -> Result<Self, RepositoryError> {
        let damaged = |message: String| RepositoryError::Damaged { name: name.clone(), message };
        let mut lines = bytes.split_inclusive(|b| *b == b'\n');
        let (Some(body), Some(signature), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err(damaged("it does not have two lines".into()));
        };
        let head: Head = serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?;
        if head.magic != MAGIC {
            return Err(damaged("this is not the head of a Restante repository".into()));
        }
        if head.format != FORMAT {
            let operation = "open the repository (says its repository.json)";
            return Err(RepositoryError::Unsupported { format: head.format, feature: String::new(), operation });
        }
        let config: Self = serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?;
        let line: SignatureLine = serde_json::from_slice(signature).map_err(|e| damaged(e.to_string()))?;
        if !signature.ends_with(b"\n") {
            return Err(damaged("it was cut short".into()));
        }
        let raw = data_encoding::HEXLOWER
            .decode(line.signature.as_bytes())
            .map_err(|_| damaged("its signature is not hexadecimal".into()))?;
        seal::verify(&line.signer, &signed(body), &raw).map_err(|_| damaged("its signature does not fit".into()))?;
        if !before.unwrap_or(&config).is_current_signer(&line.signer) {
            return Err(RepositoryError::UnknownSigner { name: name.clone(), signer: line.signer });
        }
        if before.is_some_and(|before| before.repository != config.repository || before.epoch > config.epoch) {
            return Err(damaged("it is for another repository or goes back to an earlier epoch".into()));
        }
        Ok(config)
    }

    /// `config/<n>-<hash>`.
    pub fn place(&self, bytes: &[u8]) -> Result<ObjectName, RepositoryError> {
        ObjectName::new(format!("config/{}-{}", self.version, ObjectId::of(bytes)))
            .map_err(|e| RepositoryError::malformed("object name", e.to_string()))
    }
}

fn signed(line: &[u8]) -> Vec<u8> {
    [b"restante 1 sign configuration\0", line].concat()
}

pub fn fingerprint(first_version: &[u8]) -> Fingerprint {
    Fingerprint(*blake3::hash(first_version).as_bytes())
}
