//! Who can open what. A *writer key* lies on the database host and gives names, counts and lengths; the private half of an
//! epoch's recipient lies in the key ring, which only readers open, and gives the mail.
//!
//! Everything sealed names its epoch; [`Secrets`] holds what this process knows of each.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use data_encoding::HEXLOWER;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::chunk::ChunkKind;
use super::config::ConfigSigner;
use super::error::RepositoryError;
use super::id::{Epoch, Fingerprint, RepositoryId, SignerId};
use super::seal::{Secret, SecretText, Signer};
use super::verifier::VerifierKey;
use crate::storage::ObjectName;

/// Context strings of BLAKE3 `derive_key`, one for each use (FORMAT "Keys").
pub mod context {
    pub const CHUNK_ID_META: &str = "restante 1 chunk-id meta";
    pub const CHUNK_ID_ROW: &str = "restante 1 chunk-id row";
    pub const CHUNK_ID_PAYLOAD: &str = "restante 1 chunk-id payload";
    pub const VALUE_HASH: &str = "restante 1 value-hash";
    pub const ROW_DIGEST: &str = "restante 1 row-digest";
    pub const SEAL_DIRECTORY: &str = "restante 1 seal directory";
    pub const PACK_META: &str = "restante 1 pack-meta";
}

/// What is known of one epoch. Verifiers and pruners have the seal secret only, writers the id secret too, readers all.
pub struct EpochSecrets {
    pub seal: Secret,
    pub id: Option<Secret>,
    pub identity: Option<age::x25519::Identity>,
    /// Whose signatures count in this epoch.
    pub signers: Vec<SignerId>,
}

impl EpochSecrets {
    /// The key under which ids of chunks of `kind` are hashed. Ids of metadata come from the seal secret, so that a verifier
    /// checks them without being able to confirm a guess about mail.
    pub fn chunk_id_key(&self, kind: ChunkKind) -> Option<Secret> {
        match kind {
            ChunkKind::Meta => Some(self.seal.derive(context::CHUNK_ID_META, &[])),
            ChunkKind::Row => Some(self.id.as_ref()?.derive(context::CHUNK_ID_ROW, &[])),
            ChunkKind::Payload => Some(self.id.as_ref()?.derive(context::CHUNK_ID_PAYLOAD, &[])),
        }
    }
}

/// All that this process can open, by epoch.
pub struct Secrets {
    pub repository: RepositoryId,
    pub epochs: BTreeMap<Epoch, EpochSecrets>,
    /// Whose signatures count on what checks and drills found.
    pub verifiers: Vec<ConfigSigner>,
}

impl Secrets {
    pub fn epoch(&self, epoch: Epoch) -> Result<&EpochSecrets, RepositoryError> {
        self.epochs.get(&epoch).ok_or(RepositoryError::UnknownEpoch { epoch })
    }

    /// Opens an age file that holds 32 bytes, with the private half of `epoch`.
    pub fn unwrap_data_key(&self, epoch: Epoch, wrapped: &[u8]) -> Result<Secret, RepositoryError> {
        let identity = self.epoch(epoch)?.identity.as_ref().ok_or(RepositoryError::ReaderNeeded)?;
        let plain = open_age(wrapped, std::iter::once(identity as &dyn age::Identity))?;
        let bytes: [u8; 32] = plain
            .as_slice()
            .try_into()
            .map_err(|_| RepositoryError::KeyObject("a data key does not have 32 bytes".into()))?;
        Ok(Secret::new(bytes))
    }
}

/// Encrypts to the recipients as one age file (age-encryption.org/v1).
pub fn seal_age<'a>(
    plain: &[u8],
    recipients: impl Iterator<Item = &'a dyn age::Recipient>,
) -> Result<Vec<u8>, RepositoryError> {
    let fail = |e: String| RepositoryError::KeyObject(format!("age cannot encrypt: {e}"));
    let encryptor = age::Encryptor::with_recipients(recipients).map_err(|e| fail(e.to_string()))?;
    let mut sealed = Vec::with_capacity(plain.len() + 512);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(|e| fail(e.to_string()))?;
    writer.write_all(plain).map_err(|e| fail(e.to_string()))?;
    writer.finish().map_err(|e| fail(e.to_string()))?;
    Ok(sealed)
}

/// Opens an age file with whichever of the identities fits.
pub fn open_age<'a>(
    sealed: &[u8],
    identities: impl Iterator<Item = &'a dyn age::Identity>,
) -> Result<Zeroizing<Vec<u8>>, RepositoryError> {
    let decryptor =
        age::Decryptor::new(sealed).map_err(|e| RepositoryError::KeyObject(format!("not an age file: {e}")))?;
    let mut reader = decryptor.decrypt(identities).map_err(|e| match e {
        age::DecryptError::NoMatchingKeys => RepositoryError::WrongIdentity,
        other => RepositoryError::KeyObject(format!("age cannot decrypt: {other}")),
    })?;
    let mut plain = Zeroizing::new(Vec::new());
    reader.read_to_end(&mut plain).map_err(|e| RepositoryError::KeyObject(format!("age cannot decrypt: {e}")))?;
    Ok(plain)
}

/// What lies on the database host: enough to take snapshots, list and verify structure, not to read mail.
pub struct WriterKey {
    pub repository: RepositoryId,
    pub fingerprint: Fingerprint,
    pub epoch: Epoch,
    pub id: Secret,
    pub seal: Secret,
    pub signing_seed: Secret,
    /// To whom data keys are sealed: the epoch's public half. It comes from this file, never from the storage.
    pub recipient: String,
    /// The key objects that were there when the key was made or last accepted.
    pub key_objects: Vec<ObjectName>,
    /// Earlier epochs, so that what they stored is still found and not stored again.
    pub previous: Vec<PreviousEpoch>,
}

pub struct PreviousEpoch {
    pub epoch: Epoch,
    pub id: Secret,
    pub seal: Secret,
    pub signer: SignerId,
}

/// The TOML form of [`WriterKey`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriterKeyFile {
    restante_writer_key: u32,
    repository: RepositoryId,
    fingerprint: Fingerprint,
    epoch: Epoch,
    recipient: String,
    id_secret: SecretText,
    seal_secret: SecretText,
    signing_seed: SecretText,
    key_objects: Vec<ObjectName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    previous: Vec<PreviousFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PreviousFile {
    epoch: Epoch,
    id_secret: SecretText,
    seal_secret: SecretText,
    signer: SignerId,
}

pub(super) fn hex(secret: &Secret) -> SecretText {
    SecretText::new(HEXLOWER.encode(secret.expose()))
}

pub(super) fn unhex(name: &str, text: &SecretText) -> Result<Secret, String> {
    let bytes = HEXLOWER.decode(text.expose().as_bytes()).ok().and_then(|b| <[u8; 32]>::try_from(b.as_slice()).ok());
    bytes.map(Secret::new).ok_or_else(|| format!("{name} is not 64 hexadecimal digits"))
}

/// A key file's TOML. The message of the TOML reader quotes the line, which may hold a secret: only its position is passed on.
pub(super) fn parse_key<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|e| match e.span() {
        Some(span) => format!("line {}: {}", text[..span.start].lines().count().max(1), e.message()),
        None => e.message().to_owned(),
    })
}

/// Writes a key file with mode 0600, atomically; never over an existing one unless `replace`.
pub(super) fn save_key(path: &Path, text: &str, replace: bool) -> Result<(), RepositoryError> {
    let fail = |message: String| RepositoryError::WriterKey { path: path.to_owned(), message };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // NamedTempFile is created with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| fail(e.to_string()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(|e| fail(e.to_string()))?;
    if replace {
        file.persist(path).map_err(|e| fail(e.error.to_string()))?;
    } else {
        file.persist_noclobber(path).map_err(|e| fail(e.error.to_string()))?;
    }
    Ok(())
}

impl WriterKey {
    pub fn parse(text: &str) -> Result<Self, String> {
        if VerifierKey::is_one(text) {
            return Err("this is a verifier's key: it checks and does nothing else; give the writer's".to_owned());
        }
        let file: WriterKeyFile = parse_key(text)?;
        if file.restante_writer_key != 1 {
            return Err(format!("writer key version {} is newer than this program", file.restante_writer_key));
        }
        file.recipient.parse::<age::x25519::Recipient>().map_err(|e| format!("recipient: {e}"))?;
        Ok(Self {
            repository: file.repository,
            fingerprint: file.fingerprint,
            epoch: file.epoch,
            id: unhex("id_secret", &file.id_secret)?,
            seal: unhex("seal_secret", &file.seal_secret)?,
            signing_seed: unhex("signing_seed", &file.signing_seed)?,
            recipient: file.recipient,
            key_objects: file.key_objects,
            previous: file
                .previous
                .into_iter()
                .map(|p| {
                    let (id, seal) = (unhex("id_secret", &p.id_secret)?, unhex("seal_secret", &p.seal_secret)?);
                    Ok(PreviousEpoch { epoch: p.epoch, id, seal, signer: p.signer })
                })
                .collect::<Result<_, String>>()?,
        })
    }

    pub fn to_toml(&self) -> Zeroizing<String> {
        let file = WriterKeyFile {
            restante_writer_key: 1,
            repository: self.repository,
            fingerprint: self.fingerprint,
            epoch: self.epoch,
            recipient: self.recipient.clone(),
            id_secret: hex(&self.id),
            seal_secret: hex(&self.seal),
            signing_seed: hex(&self.signing_seed),
            key_objects: self.key_objects.clone(),
            previous: self
                .previous
                .iter()
                .map(|p| PreviousFile {
                    epoch: p.epoch,
                    id_secret: hex(&p.id),
                    seal_secret: hex(&p.seal),
                    signer: p.signer,
                })
                .collect(),
        };
        let text = toml::to_string(&file).unwrap_or_default();
        Zeroizing::new(format!(
            "# Restante writer key. It can take snapshots and list them; it cannot read mail. Keep it on the database host\n\
             # with mode 0600, and a copy with the reader identities.\n{text}"
        ))
    }

    pub fn load(path: &Path) -> Result<Self, RepositoryError> {
        let fail = |message: String| RepositoryError::WriterKey { path: path.to_owned(), message };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?);
        Self::parse(&text).map_err(fail)
    }

    /// Writes the file with mode 0600, atomically; never over an existing one unless `replace`.
    pub fn save(&self, path: &Path, replace: bool) -> Result<(), RepositoryError> {
        save_key(path, &self.to_toml(), replace)
    }

    pub fn signer(&self) -> Result<Signer, RepositoryError> {
        Ok(Signer::from_seed(&self.signing_seed)?)
    }

    /// With what this writer signs, and signed in earlier epochs.
    pub fn signers(&self) -> Result<Vec<SignerId>, RepositoryError> {
        Ok(std::iter::once(self.signer()?.id()).chain(self.previous.iter().map(|earlier| earlier.signer)).collect())
    }

    /// What a process with this key can open.
    pub fn secrets(&self) -> Result<Secrets, RepositoryError> {
        let signer = self.signer()?.id();
        let mut epochs = BTreeMap::new();
        for p in &self.previous {
            let seal = p.seal.clone();
            epochs.insert(
                p.epoch,
                EpochSecrets { seal, id: Some(p.id.clone()), identity: None, signers: vec![p.signer] },
            );
        }
        let (seal, id) = (self.seal.clone(), Some(self.id.clone()));
        epochs.insert(self.epoch, EpochSecrets { seal, id, identity: None, signers: vec![signer] });
        Ok(Secrets { repository: self.repository, epochs, verifiers: Vec::new() })
    }
}
