//! A new epoch: new recipient, new seal secret, new signing key, and if asked a new id secret. What was stored before stays as
//! it is, readable to whoever could read it; nothing new opens or verifies with the keys of before.
//!
//! When a database host was stolen, ask for a new id secret too: with the old one guesses about new mail could be confirmed,
//! and the thief could sign fragments of the old epoch that claim chunks which are not there. The price is that everything is
//! stored once more.
//!
//! Order: the caller keeps the new writer key *first* (the signing seed is nowhere else), then [`Rotation::commit`] puts the ring, then
//! the configuration, with which the epoch begins. A crash in between leaves a ring that nobody's configuration names.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;

use super::config::{Config, ConfigSigner};
use super::envelope;
use super::error::RepositoryError;
use super::id::{Epoch, ObjectId};
use super::reader::check_name;
use super::readers::KeyHolder;
use super::ring::{Ring, RingEpoch};
use super::seal::{Secret, Signer};
use super::secrets::{PreviousEpoch, WriterKey};
use super::writer::put_checked;
use crate::storage::{ObjectName, Storage};

pub struct RotateOptions {
    /// All readers of the new epoch: those of before ([`KeyHolder::readers`]) unless one is to be taken away.
    pub readers: Vec<String>,
    /// Store everything once more, under ids that the old writer key cannot tell.
    pub new_id_secret: bool,
}

/// Everything of the new epoch, nothing stored yet.
pub struct Rotation {
    pub writer_key: WriterKey,
    /// Snapshots that do not count in the new epoch: damaged, or of an epoch that was over when they came.
    pub left_out: Vec<ObjectName>,
    storage: Arc<dyn Storage>,
    ring: (ObjectName, Bytes),
    config: (ObjectName, Bytes),
}

/// Makes the keys of the next epoch. No snapshot should be running: the ones that are there now are kept, one that the old key
/// finishes later does not count.
pub async fn rotate(holder: KeyHolder, options: RotateOptions) -> Result<Rotation, RepositoryError> {
    let KeyHolder { storage, loaded, ring, key, signer: old_signer } = holder;
    let too_many = || RepositoryError::KeyObject("there are no more epochs or versions".into());
    let epoch = Epoch(key.epoch.0.checked_add(1).ok_or_else(too_many)?);
    let (seal, signing_seed) = (Secret::random()?, Secret::random()?);
    let id = if options.new_id_secret { Secret::random()? } else { key.id.clone() };
    let identity = age::x25519::Identity::generate();
    let signer = Signer::from_seed(&signing_seed)?;

    let mut epochs = ring.epochs.clone();
    epochs.push(RingEpoch::new(epoch, &identity, &id, &seal, vec![signer.id()]));
    let ring = Ring { epoch, number: 1, readers: options.readers, epochs, ..ring };
    let (ring_name, ring_bytes) = ring.write(&signer)?;

    let mut signers = loaded.config.signers.clone();
    signers.push(ConfigSigner { epoch, key: signer.id() });
    let version = loaded.config.version.checked_add(1).ok_or_else(too_many)?;
    let (kept, left_out) = snapshots_to_keep(&*storage, &loaded.config).await?;
    let config = Config { version, previous: Some(loaded.newest), epoch, signers, kept, ..loaded.config };
    let config_bytes = config.write(&old_signer)?;
    let config_name = config.place(&config_bytes)?;

    let mut previous = key.previous;
    previous.push(PreviousEpoch { epoch: key.epoch, id: key.id, seal: key.seal, signer: old_signer.id() });
    let mut key_objects = key.key_objects;
    key_objects.push(ring_name.clone());
    let writer_key = WriterKey {
        repository: key.repository,
        fingerprint: key.fingerprint,
        epoch,
        id,
        seal,
        signing_seed,
        recipient: identity.to_public().to_string(),
        key_objects,
        previous,
    };
    Ok(Rotation {
        writer_key,
        storage,
        left_out,
        ring: (ring_name, ring_bytes.into()),
        config: (config_name, config_bytes.into()),
    })
}

/// Those that count now. The epoch stands in the header, so the bytes must be those of the name; a person looks at the rest.
async fn snapshots_to_keep(
    storage: &dyn Storage,
    config: &Config,
) -> Result<(Vec<ObjectId>, Vec<ObjectName>), RepositoryError> {
    let names: Vec<ObjectName> = storage.list("snapshots/").map_ok(|meta| meta.name).try_collect().await?;
    let (mut kept, mut left_out) = (BTreeSet::new(), Vec::new());
    for name in names {
        let bytes = storage.get(&name).await?;
        match check_name(&name, &bytes).ok().filter(|id| envelope::epoch(&bytes).is_some_and(|e| config.admits(e, id)))
        {
            Some(id) => drop(kept.insert(id)),
            None => left_out.push(name),
        }
    }
    Ok((kept.into_iter().collect(), left_out))
}

impl Rotation {
    /// Begins the epoch. Keep [`Self::writer_key`] before: its signing seed is nowhere else.
    pub async fn commit(&self) -> Result<(), RepositoryError> {
        for (name, bytes) in [&self.ring, &self.config] {
            put_checked(&*self.storage, name, bytes.clone()).await?;
        }
        Ok(())
    }
}
