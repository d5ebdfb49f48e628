//! Who may read: adding a reader, and telling a writer that the key objects were changed on purpose.
//!
//! Adding needs both halves in one place for a moment: a reader identity, which opens the key ring, and the writer key, which
//! signs the next one. To take a reader away, rotate ([`super::rotate`]): what was sealed before stays open to him.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::RepositoryError;
use super::id::ObjectId;
use super::open::{LoadedConfig, key_objects, load_config, newest_ring};
use super::ring::{self, Ring};
use super::seal::Signer;
use super::secrets::WriterKey;
use super::writer::put_checked;
use crate::storage::{ObjectName, Storage};

/// The writer key and the opened key ring together, found to agree.
pub struct KeyHolder {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) loaded: LoadedConfig,
    pub(super) ring: Ring,
    pub(super) key: WriterKey,
    pub(super) signer: Signer,
}

impl KeyHolder {
    /// Refuses unless the key is the current one, the key objects are those that it knows, and the ring holds its secrets.
    pub async fn open(
        storage: Arc<dyn Storage>,
        key: WriterKey,
        identities: &[PathBuf],
    ) -> Result<Self, RepositoryError> {
        let repository = super::Repository::open(storage.clone(), super::Access::Writer(key), None).await?;
        repository.check_key_objects().await?;
        let key = repository.writer.and_then(Arc::into_inner).ok_or(RepositoryError::WriterNeeded)?;
        let loaded = load_config(&*storage, Some(key.fingerprint)).await?;
        let ring = newest_ring(&*storage, identities, &loaded.config, loaded.fingerprint).await?;
        let secrets = ring.secrets()?;
        let agrees = ring.epoch == key.epoch
            && secrets.epoch(key.epoch).is_ok_and(|epoch| {
                epoch.seal.expose() == key.seal.expose()
                    && epoch.id.as_ref().is_some_and(|id| id.expose() == key.id.expose())
                    && epoch.identity.as_ref().is_some_and(|identity| identity.to_public().to_string() == key.recipient)
            });
        if !agrees {
            let message = "the newest key ring that the identity opens does not hold the secrets of this writer key";
            return Err(RepositoryError::KeyObject(message.to_owned()));
        }
        let signer = key.signer()?;
        Ok(Self { storage, loaded, ring, key, signer })
    }

    /// To whom the newest key ring is encrypted.
    pub fn readers(&self) -> &[String] {
        &self.ring.readers
    }

    /// Writes the key ring once more, for one more reader. The writer key that comes back knows it; every other copy of the
    /// key has to `key accept`.
    pub async fn add_reader(mut self, reader: &str) -> Result<WriterKey, RepositoryError> {
        ring::parse_recipient(reader)?;
        if self.ring.readers.iter().any(|known| known == reader) {
            let (recipient, message) = (reader.chars().take(80).collect(), "is a reader already".to_owned());
            return Err(RepositoryError::BadRecipient { recipient, message });
        }
        self.ring.readers.push(reader.to_owned());
        self.ring.number += 1;
        let (name, bytes) = self.ring.write(&self.signer)?;
        put_checked(&*self.storage, &name, bytes.into()).await?;
        self.key.key_objects.push(name);
        Ok(self.key)
    }
}

/// What [`accept`] found, for a person to look at before the key is saved.
pub struct Accepted {
    pub key: WriterKey,
    pub added: Vec<ObjectName>,
    pub gone: Vec<ObjectName>,
}

/// Takes over the key objects that are there now. Each must have the hash that its name says; with identities each new one
/// must also open and be signed by this repository's signer. Without any, a writer cannot see whom a ring is for, so
/// whoever accepts vouches for it; recipients of new packs come from the writer key either way.
pub async fn accept(
    storage: &dyn Storage,
    mut key: WriterKey,
    identities: &[PathBuf],
) -> Result<Accepted, RepositoryError> {
    let loaded = load_config(storage, Some(key.fingerprint)).await?;
    if loaded.config.epoch != key.epoch {
        return Err(RepositoryError::UnknownEpoch { epoch: loaded.config.epoch });
    }
    let mut opened = Vec::new();
    for path in identities {
        opened.extend(ring::load_identities(path)?);
    }
    let found = key_objects(storage).await?;
    for name in &found {
        let bytes = storage.get(name).await?;
        if ring::ring_place(name).is_none_or(|(_, _, hash)| hash != ObjectId::of(&bytes)) {
            let message = "it is not a key ring with the hash that its name says".to_owned();
            return Err(RepositoryError::Damaged { name: name.clone(), message });
        }
        if !opened.is_empty() && !key.key_objects.contains(name) {
            let identities = opened.iter().map(|identity| identity.as_ref() as &dyn age::Identity);
            Ring::read(name, &bytes, identities, &loaded.config, loaded.fingerprint)?;
        }
    }
    let is_current = |name: &ObjectName| ring::ring_place(name).is_some_and(|(epoch, ..)| epoch == key.epoch);
    if !found.iter().any(is_current) {
        let message = format!(
            "no key ring of epoch {} is there: nobody could read what would be stored. Bring keys/{} back from your copy, or begin a new repository",
            key.epoch, key.epoch
        );
        return Err(RepositoryError::KeyObject(message));
    }
    let added = found.iter().filter(|name| !key.key_objects.contains(name)).cloned().collect();
    let gone = key.key_objects.iter().filter(|name| !found.contains(name)).cloned().collect();
    key.key_objects = found;
    Ok(Accepted { key, added, gone })
}
