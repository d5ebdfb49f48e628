//! The verifier's key: for jobs that check a repository, hold drills and write down what they found, on a host that is neither the database's nor a reader's.
//! It has seal secrets and a signing key of its own. It opens metadata; it opens no row, confirms no guess about mail, and what it signs counts as a record of a
//! check or a drill, or as the mark of a damaged pack, and as nothing else.
//!
//! The configuration names it for an epoch: `key rotate` ends it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::config::{Config, ConfigSigner};
use super::error::RepositoryError;
use super::id::{Epoch, Fingerprint, RepositoryId, SignerId};
use super::open::load_config;
use super::seal::{Secret, SecretText, Signer};
use super::secrets::{EpochSecrets, Secrets, WriterKey, hex, parse_key, save_key, unhex};
use super::writer::put_checked;
use crate::storage::Storage;

pub struct VerifierKey {
    pub repository: RepositoryId,
    pub fingerprint: Fingerprint,
    pub epoch: Epoch,
    pub signing_seed: Secret,
    /// Of this epoch and earlier ones.
    pub seals: Vec<(Epoch, Secret)>,
}

/// The TOML form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    restante_verifier_key: u32,
    repository: RepositoryId,
    fingerprint: Fingerprint,
    epoch: Epoch,
    signing_seed: SecretText,
    seals: Vec<Seal>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    epoch: Epoch,
    seal_secret: SecretText,
}

impl VerifierKey {
    /// Does the text look like one, rather than like a writer key?
    pub fn is_one(text: &str) -> bool {
        text.lines().any(|line| line.starts_with("restante_verifier_key"))
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = parse_key(text)?;
        if file.restante_verifier_key != 1 {
            return Err(format!("verifier key version {} is newer than this program", file.restante_verifier_key));
        }
        let seal = |seal: Seal| Ok((seal.epoch, unhex("seal_secret", &seal.seal_secret)?));
        Ok(Self {
            repository: file.repository,
            fingerprint: file.fingerprint,
            epoch: file.epoch,
            signing_seed: unhex("signing_seed", &file.signing_seed)?,
            seals: file.seals.into_iter().map(seal).collect::<Result<_, String>>()?,
        })
    }

    /// Writes the file with mode 0600; never over an existing one.
    pub fn save(&self, path: &Path) -> Result<(), RepositoryError> {
        let seal = |(epoch, secret): &(Epoch, Secret)| Seal { epoch: *epoch, seal_secret: hex(secret) };
        let file = File {
            restante_verifier_key: 1,
            repository: self.repository,
            fingerprint: self.fingerprint,
            epoch: self.epoch,
            signing_seed: hex(&self.signing_seed),
            seals: self.seals.iter().map(seal).collect(),
        };
        let text = toml::to_string(&file).unwrap_or_default();
        let text = Zeroizing::new(format!(
            "# Restante verifier key. It checks a repository and signs what it found; it takes no snapshot and reads no mail.\n{text}"
        ));
        save_key(path, &text, false)
    }

    pub fn signer(&self) -> Result<Signer, RepositoryError> {
        Ok(Signer::from_seed(&self.signing_seed)?)
    }

    /// What a process with this key can open. Refuses a key that the configuration does not name for the epoch that counts now.
    pub fn secrets(&self, config: &Config) -> Result<Secrets, RepositoryError> {
        let own = ConfigSigner { epoch: config.epoch, key: self.signer()?.id() };
        if self.epoch != config.epoch || !config.verifiers.contains(&own) {
            return Err(RepositoryError::EndedVerifier { epoch: self.epoch });
        }
        let signers = |epoch: Epoch| -> Vec<SignerId> {
            config.signers.iter().filter(|signer| signer.epoch == epoch).map(|signer| signer.key).collect()
        };
        let epochs = self.seals.iter().map(|(epoch, seal)| {
            (*epoch, EpochSecrets { seal: seal.clone(), id: None, identity: None, signers: signers(*epoch) })
        });
        Ok(Secrets { repository: self.repository, epochs: epochs.collect(), verifiers: Vec::new() })
    }
}

/// Makes a verifier's key and names it in a new version of the configuration. Keep the key first: `keep` gets it before anything is stored.
pub async fn add(
    storage: &dyn Storage,
    key: &WriterKey,
    keep: impl FnOnce(&VerifierKey) -> Result<(), RepositoryError>,
) -> Result<SignerId, RepositoryError> {
    let loaded = load_config(storage, Some(key.fingerprint)).await?;
    let (repository, fingerprint, epoch) = (key.repository, key.fingerprint, key.epoch);
    let mut seals = vec![(epoch, key.seal.clone())];
    seals.extend(key.previous.iter().map(|earlier| (earlier.epoch, earlier.seal.clone())));
    let verifier = VerifierKey { repository, fingerprint, epoch, signing_seed: Secret::random()?, seals };
    let id = verifier.signer()?.id();
    keep(&verifier)?;
    let mut verifiers = loaded.config.verifiers.clone();
    verifiers.push(ConfigSigner { epoch, key: id });
    let too_many = || RepositoryError::KeyObject("there are no more versions".into());
    let version = loaded.config.version.checked_add(1).ok_or_else(too_many)?;
    let config = Config { version, previous: Some(loaded.newest), verifiers, ..loaded.config };
    let bytes = config.write(&key.signer()?)?;
    put_checked(storage, &config.place(&bytes)?, bytes.into()).await?;
    Ok(id)
}
