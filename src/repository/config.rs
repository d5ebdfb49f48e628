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
    /// Features that a program must know, per operation.
    pub needs: Needs,
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
            needs: Needs::default(),
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

    /// Reads a version and checks that one of `trusted` signed it; the first version vouches for itself (its fingerprint is
    /// what people compare).
    pub fn read(name: &ObjectName, bytes: &[u8], trusted: Option<&[ConfigSigner]>) -> Result<Self, RepositoryError> {
        let damaged = |message: String| RepositoryError::Damaged { name: name.clone(), message };
        let mut lines = bytes.split_inclusive(|b| *b == b'\n');
        let (Some(body), Some(signature), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err(damaged("it does not have two lines".into()));
        };
        let config: Self = serde_json::from_slice(body).map_err(|e| damaged(e.to_string()))?;
        let line: SignatureLine = serde_json::from_slice(signature).map_err(|e| damaged(e.to_string()))?;
        if config.magic != MAGIC {
            return Err(damaged("this is not the head of a Restante repository".into()));
        }
        if config.format != FORMAT {
            let operation = "open the repository";
            return Err(RepositoryError::Unsupported { format: config.format, feature: String::new(), operation });
        }
        let raw = data_encoding::HEXLOWER
            .decode(line.signature.as_bytes())
            .map_err(|_| damaged("its signature is not hexadecimal".into()))?;
        seal::verify(&line.signer, &signed(body), &raw).map_err(|_| damaged("its signature does not fit".into()))?;
        let signers = trusted.unwrap_or(&config.signers);
        if !signers.iter().any(|signer| signer.key == line.signer) {
            return Err(RepositoryError::UnknownSigner { name: name.clone(), signer: line.signer });
        }
        Ok(config)
    }
}

fn signed(line: &[u8]) -> Vec<u8> {
    [b"restante 1 sign configuration\0", line].concat()
}

pub fn fingerprint(first_version: &[u8]) -> Fingerprint {
    Fingerprint(*blake3::hash(first_version).as_bytes())
}
