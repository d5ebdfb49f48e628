//! Making and opening a repository.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::{self, Config, Operation};
use super::envelope::{self, Author, ObjectKind, Opened};
use super::error::RepositoryError;
use super::id::{Epoch, Fingerprint, ObjectId, RepositoryId};
use super::name::NameKind;
use super::reader::check_name;
use super::ring::{self, Ring, RingEpoch};
use super::seal::{self, Secret, Signer};
use super::secrets::{Secrets, WriterKey};
use super::verifier::VerifierKey;
use super::writer::put_checked;
use crate::storage::{ObjectName, Storage, StorageError};

/// How a process comes to the secrets.
pub enum Access {
    Writer(WriterKey),
    Verifier(VerifierKey),
    /// Identity files; any that opens the ring will do.
    Reader(Vec<PathBuf>),
}

/// An open repository.
pub struct Repository {
    pub storage: Arc<dyn Storage>,
    pub config: Config,
    pub fingerprint: Fingerprint,
    pub secrets: Arc<Secrets>,
    /// Present when opened with a writer key.
    pub writer: Option<Arc<WriterKey>>,
    /// Present when opened with a verifier's key.
    pub verifier: Option<Arc<VerifierKey>>,
    /// Why newer key rings than the one that was opened did not open: damaged, a stranger's, or for other readers.
    pub passed_over: Vec<(ObjectName, RepositoryError)>,
}

pub struct InitOptions {
    /// `age1…` or SSH public keys.
    pub readers: Vec<String>,
    pub created: Timestamp,
}

pub struct Initialised {
    pub writer_key: WriterKey,
    pub fingerprint: Fingerprint,
}

/// Everything of a new repository, nothing stored yet.
pub struct NewRepository {
    /// To be kept before [`Self::commit`]: its secrets are nowhere else but in the key ring, which readers alone open.
    pub writer_key: WriterKey,
    ring: (ObjectName, Bytes),
    config: Bytes,
}

impl NewRepository {
    pub fn prepare(options: InitOptions) -> Result<Self, RepositoryError> {
        let mut id = [0; 16];
        seal::fill_random(&mut id)?;
        let (repository, epoch) = (RepositoryId(id), Epoch(1));
        let (id_secret, seal_secret, signing_seed) = (Secret::random()?, Secret::random()?, Secret::random()?);
        let signer = Signer::from_seed(&signing_seed)?;
        let identity = age::x25519::Identity::generate();
        let config = Config::first(repository, epoch, signer.id(), options.created).write(&signer)?;
        let fingerprint = config::fingerprint(&config);
        let ring = Ring {
            repository,
            fingerprint,
            epoch,
            number: 1,
            readers: options.readers,
            epochs: vec![RingEpoch::new(epoch, &identity, &id_secret, &seal_secret, vec![signer.id()])],
        };
        let (ring_name, ring_bytes) = ring.write(&signer)?;
        let writer_key = WriterKey {
            repository,
            fingerprint,
            epoch,
            id: id_secret,
            seal: seal_secret,
            signing_seed,
            recipient: identity.to_public().to_string(),
            key_objects: vec![ring_name.clone()],
            previous: Vec::new(),
        };
        Ok(Self { writer_key, ring: (ring_name, ring_bytes.into()), config: config.into() })
    }

    /// Stores it, the head last: a repository that can be opened has its keys. Refuses where there is one, or what is left
    /// of one.
    pub async fn commit(&self, storage: &dyn Storage) -> Result<(), RepositoryError> {
        let address = storage.address();
        if storage.head(&config_name()?).await?.is_some() {
            return Err(RepositoryError::AlreadyInitialised { address });
        }
        if !key_objects(storage).await?.is_empty() {
            return Err(RepositoryError::HeadMissing { address });
        }
        put_checked(storage, &self.ring.0, self.ring.1.clone()).await?;
        match put_checked(storage, &config_name()?, self.config.clone()).await {
            Err(RepositoryError::Storage(StorageError::AlreadyExists { .. })) => {
                Err(RepositoryError::AlreadyInitialised { address })
            }
            other => other,
        }
    }
}

/// Makes a new repository at once, for callers that can afford to lose the writer key when they die in between.
pub async fn init(storage: &dyn Storage, options: InitOptions) -> Result<Initialised, RepositoryError> {
    let new = NewRepository::prepare(options)?;
    new.commit(storage).await?;
    let fingerprint = new.writer_key.fingerprint;
    Ok(Initialised { writer_key: new.writer_key, fingerprint })
}

fn config_name() -> Result<ObjectName, RepositoryError> {
    ObjectName::new(config::NAME).map_err(|e| RepositoryError::malformed("object name", e.to_string()))
}

impl Repository {
    /// `expected` is the fingerprint that the caller knows, if any; a writer key brings its own, and both must fit.
    pub async fn open(
        storage: Arc<dyn Storage>,
        access: Access,
        expected: Option<Fingerprint>,
    ) -> Result<Self, RepositoryError> {
        let known = match &access {
            Access::Writer(key) => Some(key.fingerprint),
            Access::Verifier(key) => Some(key.fingerprint),
            Access::Reader(_) => None,
        };
        let (config, fingerprint) = load_config(&*storage, known.or(expected)).await?.into_parts();
        if let Some(expected) = expected.filter(|expected| *expected != fingerprint) {
            let (found, expected) = (fingerprint.to_string(), expected.to_string());
            return Err(RepositoryError::AnotherRepository { found, expected });
        }
        config.check_features(Operation::Read)?;
        let (mut writer, mut verifier, mut passed_over) = (None, None, Vec::new());
        let mut secrets = match access {
            Access::Writer(key) => writer.insert(Arc::new(key)).secrets()?,
            Access::Verifier(key) => verifier.insert(Arc::new(key)).secrets(&config)?,
            Access::Reader(paths) => {
                let (ring, newer) = find_ring(&*storage, &paths, &config, fingerprint).await?;
                passed_over = newer;
                ring.secrets()?
            }
        };
        secrets.verifiers = config.verifiers.clone();
        if secrets.repository != config.repository {
            let (found, expected) = (config.repository.to_string(), secrets.repository.to_string());
            return Err(RepositoryError::AnotherRepository { found, expected });
        }
        Ok(Self { storage, config, fingerprint, secrets: Arc::new(secrets), writer, verifier, passed_over })
    }

    /// The same repository over a layer of its storage.
    pub fn over(&self, storage: Arc<dyn Storage>) -> Self {
        let (config, secrets) = (self.config.clone(), self.secrets.clone());
        let (writer, verifier) = (self.writer.clone(), self.verifier.clone());
        Self { storage, config, fingerprint: self.fingerprint, secrets, writer, verifier, passed_over: Vec::new() }
    }

    pub fn writer_key(&self) -> Result<&WriterKey, RepositoryError> {
        self.writer.as_deref().ok_or(RepositoryError::WriterNeeded)
    }

    /// An object, signed with the writer key, or with a verifier's if that may sign it.
    pub(super) fn sign<T: Serialize>(&self, kind: ObjectKind, body: &T) -> Result<Bytes, RepositoryError> {
        let (epoch, signer) = match self.verifier.as_deref().filter(|_| kind.is_a_verifiers()) {
            Some(key) => (key.epoch, key.signer()?),
            None => (self.writer_key()?.epoch, self.writer_key()?.signer()?),
        };
        let secrets = &*self.secrets;
        let author = Author { repository: secrets.repository, epoch, secrets, signer: &signer };
        envelope::write(kind, &author, body)
    }

    /// Can it sign what a check finds?
    pub fn signs_checks(&self) -> bool {
        self.writer.is_some() || self.verifier.is_some()
    }

    /// Signs an object, puts it and insists on fetching the same bytes back.
    pub(super) async fn put_signed<T: Serialize>(
        &self,
        kind: ObjectKind,
        name: &ObjectName,
        body: &T,
    ) -> Result<(), RepositoryError> {
        put_checked(&*self.storage, name, self.sign(kind, body)?).await
    }

    /// The same under `<kind>/<time>-<id>`.
    pub(crate) async fn put_dated<T: Serialize>(
        &self,
        kind: ObjectKind,
        place: NameKind,
        at: Timestamp,
        body: &T,
    ) -> Result<(), RepositoryError> {
        let bytes = self.sign(kind, body)?;
        put_checked(&*self.storage, &place.dated(at, &ObjectId::of(&bytes))?, bytes).await
    }

    /// Opens what [`Self::put_dated`] put, and insists on its own name: a copy under another is nobody's word.
    pub(crate) async fn get_dated<T: DeserializeOwned>(
        &self,
        kind: ObjectKind,
        place: NameKind,
        name: &ObjectName,
        at: impl FnOnce(&T) -> Timestamp,
    ) -> Result<Opened<T>, RepositoryError> {
        let bytes = self.storage.get(name).await?;
        let id = check_name(name, &bytes)?;
        let opened = envelope::read(kind, &self.secrets, name, &bytes)?;
        if *name != place.dated(at(&opened.body), &id)? {
            let message = "it does not lie under its own name".to_owned();
            return Err(RepositoryError::Damaged { name: name.clone(), message });
        }
        Ok(opened)
    }

    /// For a writer: refuses when the key objects are not those that the key knows, or the epoch is another.
    pub async fn check_key_objects(&self) -> Result<(), RepositoryError> {
        let key = self.writer_key()?;
        let known = &key.key_objects;
        let found = key_objects(&*self.storage).await?;
        let mut difference: Vec<String> =
            found.iter().filter(|name| !known.contains(name)).map(|name| format!("{name} is new")).collect();
        difference.extend(known.iter().filter(|name| !found.contains(name)).map(|name| format!("{name} is gone")));
        for name in known.iter().filter(|name| found.contains(name)) {
            let bytes = self.storage.get(name).await?;
            if ring::ring_place(name).is_none_or(|(_, _, hash)| hash != ObjectId::of(&bytes)) {
                difference.push(format!("{name} was changed"));
            }
        }
        if key.epoch != self.config.epoch {
            difference
                .push(format!("the newest config/… begins epoch {}, the key is of {}", self.config.epoch, key.epoch));
        } else if !self.config.is_current_signer(&key.signer()?.id()) {
            difference.push("the key's signature does not count in this repository".to_owned());
        }
        if difference.is_empty() {
            Ok(())
        } else {
            Err(RepositoryError::KeyObjectsChanged { difference: difference.join(", ") })
        }
    }
}

/// The names of all key rings.
pub async fn key_objects(storage: &dyn Storage) -> Result<Vec<ObjectName>, RepositoryError> {
    Ok(storage.list("keys/").map_ok(|meta| meta.name).try_collect().await?)
}

/// The configuration as it stands: its newest version, and what a version after it must name.
pub(super) struct LoadedConfig {
    pub config: Config,
    /// Of the first version.
    pub fingerprint: Fingerprint,
    /// Hash of the newest version.
    pub newest: ObjectId,
}

impl LoadedConfig {
    fn into_parts(self) -> (Config, Fingerprint) {
        (self.config, self.fingerprint)
    }
}

/// `expected`: the fingerprint that the first version must have.
pub(super) async fn load_config(
    storage: &dyn Storage,
    expected: Option<Fingerprint>,
) -> Result<LoadedConfig, RepositoryError> {
    let name = config_name()?;
    let first: Bytes = match storage.get(&name).await {
        Err(StorageError::NotFound { .. }) => {
            return Err(RepositoryError::NoRepository { address: storage.address() });
        }
        other => other?,
    };
    let mut config = Config::read(&name, &first, None)?;
    let fingerprint = config::fingerprint(&first);
    // Before the later versions, which a repository that was put in place of this one cannot have signed.
    if let Some(expected) = expected.filter(|expected| *expected != fingerprint) {
        let (found, expected) = (fingerprint.to_string(), expected.to_string());
        return Err(RepositoryError::AnotherRepository { found, expected });
    }
    let mut previous = ObjectId::of(&first);
    let mut versions: Vec<(u32, ObjectName)> = storage
        .list("config/")
        .try_filter_map(|meta| async move {
            let number = meta.name.file_name().split_once('-').and_then(|(n, _)| n.parse().ok());
            Ok(number.map(|n| (n, meta.name)))
        })
        .try_collect()
        .await?;
    versions.sort();
    for (number, name) in versions {
        let bytes = storage.get(&name).await?;
        check_name(&name, &bytes)?;
        let next = Config::read(&name, &bytes, Some(&config))?;
        if Some(number) != config.version.checked_add(1) || next.version != number || next.previous != Some(previous) {
            let message = "it does not follow the version before it".to_owned();
            return Err(RepositoryError::Damaged { name, message });
        }
        previous = ObjectId::of(&bytes);
        config = next;
    }
    Ok(LoadedConfig { config, fingerprint, newest: previous })
}

/// The ring with the highest epoch and number that one of the identities opens.
pub async fn newest_ring(
    storage: &dyn Storage,
    identities: &[PathBuf],
    config: &Config,
    fingerprint: Fingerprint,
) -> Result<Ring, RepositoryError> {
    Ok(find_ring(storage, identities, config, fingerprint).await?.0)
}

/// Also why newer ones were passed over. Rings that are missing, damaged or signed by a stranger, and objects that are no rings,
/// are passed over only if a good one is found; else their error is told.
async fn find_ring(
    storage: &dyn Storage,
    identities: &[PathBuf],
    config: &Config,
    fingerprint: Fingerprint,
) -> Result<(Ring, Vec<(ObjectName, RepositoryError)>), RepositoryError> {
    let mut opened: Vec<Box<dyn age::Identity + Send + Sync>> = Vec::new();
    for path in identities {
        opened.extend(ring::load_identities(path)?);
    }
    let mut passed_over = Vec::new();
    let mut names: Vec<(Epoch, u32, ObjectName)> = Vec::new();
    for name in key_objects(storage).await? {
        match ring::ring_place(&name) {
            Some((epoch, number, _)) => names.push((epoch, number, name)),
            None => {
                let e = RepositoryError::KeyObject(format!("{name} is not the name of a key ring"));
                passed_over.push((name, e));
            }
        }
    }
    names.sort();
    if names.iter().all(|(epoch, ..)| *epoch != config.epoch) {
        let place = format!("keys/{}", config.epoch);
        let missing = RepositoryError::KeyObject(format!("the key ring of the current epoch, {place}/1-…, is missing"));
        passed_over.extend(ObjectName::new(place).map(|place| (place, missing)));
    }
    for (.., name) in names.into_iter().rev() {
        let bytes = storage.get(&name).await?;
        match Ring::read(&name, &bytes, opened.iter().map(|i| i.as_ref() as &dyn age::Identity), config, fingerprint) {
            Ok(ring) => return Ok((ring, passed_over)),
            Err(e) => passed_over.push((name, e)),
        }
    }
    // A ring made for others is no failure if an older one is ours (we were removed), but it is told last.
    let told = passed_over.iter().position(|(_, e)| !matches!(e, RepositoryError::WrongIdentity)).unwrap_or(0);
    if passed_over.is_empty() {
        return Err(RepositoryError::KeyObject("the repository has no key ring".into()));
    }
    Err(passed_over.swap_remove(told).1)
}
