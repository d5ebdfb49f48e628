//! Key rings: `keys/<epoch>/<n>-<hash>.age`, age files to all readers, write-once. A ring holds the private halves of this and all
//! earlier epochs with their secrets, so one reader identity and the storage are enough to restore everything.
//!
//! To add a reader, a reader opens the newest ring and writes it again for all readers and the new one: one small object, no
//! pack is touched. The plaintext is signed, because anybody can encrypt to a reader.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::cbor;
use super::config::Config;
use super::error::RepositoryError;
use super::id::{Epoch, Fingerprint, ObjectId, RepositoryId, SignerId};
use super::seal::{self, Secret, SecretText, Signer};
use super::secrets::{EpochSecrets, Secrets, open_age, seal_age};
use crate::storage::ObjectName;

const MAGIC: &[u8; 8] = b"RSTRING1";
const SIGN: &[u8] = b"restante 1 sign key ring\0";

/// Plaintext of a key ring: magic, signer (32 bytes), signature (64 bytes), CBOR.
#[derive(Clone, Serialize, Deserialize)]
pub struct Ring {
    pub repository: RepositoryId,
    pub fingerprint: Fingerprint,
    /// The newest epoch in it.
    pub epoch: Epoch,
    /// Counts the rings of an epoch, from 1.
    pub number: u32,
    /// To whom it is encrypted, as they were given.
    pub readers: Vec<String>,
    pub epochs: Vec<RingEpoch>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct RingEpoch {
    pub epoch: Epoch,
    /// `AGE-SECRET-KEY-1…`: opens the data keys of the epoch's packs.
    pub identity: SecretText,
    #[serde(with = "serde_bytes")]
    pub id_secret: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub seal_secret: Vec<u8>,
    pub signers: Vec<SignerId>,
}

impl Drop for RingEpoch {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.id_secret);
        zeroize::Zeroize::zeroize(&mut self.seal_secret);
    }
}

impl RingEpoch {
    pub fn new(
        epoch: Epoch,
        identity: &age::x25519::Identity,
        id: &Secret,
        seal: &Secret,
        signers: Vec<SignerId>,
    ) -> Self {
        use age::secrecy::ExposeSecret;
        Self {
            epoch,
            identity: SecretText::new(identity.to_string().expose_secret().to_owned()),
            id_secret: id.expose().to_vec(),
            seal_secret: seal.expose().to_vec(),
            signers,
        }
    }
}

impl Ring {
    /// The name and bytes of the object.
    pub fn write(&self, signer: &Signer) -> Result<(ObjectName, Vec<u8>), RepositoryError> {
        let body = Zeroizing::new(cbor::encode("key ring", self)?);
        let signature = signer.sign(&[SIGN, body.as_slice()].concat());
        let plain = Zeroizing::new([MAGIC.as_slice(), &signer.id().0, &signature, &body].concat());
        let recipients = self.readers.iter().map(|text| parse_recipient(text)).collect::<Result<Vec<_>, _>>()?;
        let sealed = seal_age(&plain, recipients.iter().map(|r| r.as_ref() as &dyn age::Recipient))?;
        let name = format!("keys/{}/{}-{}.age", self.epoch, self.number, ObjectId::of(&sealed));
        let name = ObjectName::new(name).map_err(|e| RepositoryError::KeyObject(e.to_string()))?;
        Ok((name, sealed))
    }

    /// Opens a ring. Its signer must be one that the configuration names for the ring's epoch, and what it says of
    /// itself must agree with its name and the repository: the storage could have renamed it, or taken it from elsewhere.
    pub fn read<'a>(
        name: &ObjectName,
        bytes: &[u8],
        identities: impl Iterator<Item = &'a dyn age::Identity>,
        config: &Config,
        fingerprint: Fingerprint,
    ) -> Result<Self, RepositoryError> {
        let damaged = |message: &str| RepositoryError::Damaged { name: name.clone(), message: message.to_owned() };
        let (epoch, number, _) = ring_place(name)
            .filter(|(.., hash)| *hash == ObjectId::of(bytes))
            .ok_or_else(|| damaged("its bytes do not have the hash that its name says"))?;
        let plain = open_age(bytes, identities)?;
        if plain.len() < 104 || &plain[..8] != MAGIC {
            return Err(damaged("this is not a key ring of format 1"));
        }
        let signer = SignerId::from_slice(&plain[8..40]).ok_or_else(|| damaged("it has no signer"))?;
        seal::verify(&signer, &[SIGN, &plain[104..]].concat(), &plain[40..104])
            .map_err(|_| damaged("its signature does not fit"))?;
        if !config.signers.iter().any(|known| known.key == signer && known.epoch == epoch) {
            return Err(RepositoryError::UnknownSigner { name: name.clone(), signer });
        }
        let ring: Self = cbor::decode("key ring", &plain[104..])?;
        if ring.repository != config.repository || ring.fingerprint != fingerprint {
            return Err(damaged("it is the key ring of another repository"));
        }
        if (ring.epoch, ring.number) != (epoch, number) {
            return Err(damaged("it does not lie under its own name"));
        }
        Ok(ring)
    }

    /// All secrets in it.
    pub fn secrets(&self) -> Result<Secrets, RepositoryError> {
        let secret = |bytes: &[u8]| {
            <[u8; 32]>::try_from(bytes)
                .map(Secret::new)
                .map_err(|_| RepositoryError::KeyObject("a secret in the key ring does not have 32 bytes".into()))
        };
        let mut epochs = BTreeMap::new();
        for entry in &self.epochs {
            let identity = entry
                .identity
                .expose()
                .parse::<age::x25519::Identity>()
                .map_err(|e| RepositoryError::KeyObject(format!("epoch {}: {e}", entry.epoch)))?;
            epochs.insert(
                entry.epoch,
                EpochSecrets {
                    seal: secret(&entry.seal_secret)?,
                    id: Some(secret(&entry.id_secret)?),
                    identity: Some(identity),
                    signers: entry.signers.clone(),
                },
            );
        }
        Ok(Secrets { repository: self.repository, epochs, verifiers: Vec::new() })
    }
}

/// Epoch, number and hash in `keys/<epoch>/<n>-<hash>.age`.
pub fn ring_place(name: &ObjectName) -> Option<(Epoch, u32, ObjectId)> {
    let (epoch, file) = name.as_str().strip_prefix("keys/")?.split_once('/')?;
    let (number, hash) = file.strip_suffix(".age")?.split_once('-')?;
    Some((Epoch(epoch.parse().ok()?), number.parse().ok()?, hash.parse().ok()?))
}

/// `age1…` or an SSH public key.
pub fn parse_recipient(text: &str) -> Result<Box<dyn age::Recipient + Send>, RepositoryError> {
    let bad = |message: String| RepositoryError::BadRecipient { recipient: text.chars().take(80).collect(), message };
    if text.starts_with("ssh-") {
        let recipient = text.parse::<age::ssh::Recipient>().map_err(|e| bad(format!("{e:?}")))?;
        return Ok(Box::new(recipient));
    }
    text.parse::<age::x25519::Recipient>().map(|r| Box::new(r) as _).map_err(|e| bad(e.to_owned()))
}

/// The identities in a file: age's own format, or an SSH private key without a passphrase.
pub fn load_identities(path: &Path) -> Result<Vec<Box<dyn age::Identity + Send + Sync>>, RepositoryError> {
    let fail = |message: String| RepositoryError::Identity { path: path.to_owned(), message };
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?);
    if text.starts_with("-----BEGIN") {
        let identity = age::ssh::Identity::from_buffer(text.as_bytes(), None).map_err(|e| fail(e.to_string()))?;
        return match identity {
            age::ssh::Identity::Unencrypted(_) => Ok(vec![Box::new(identity)]),
            age::ssh::Identity::Encrypted(_) => {
                Err(fail("the SSH key has a passphrase: decrypt it first, or use an age identity".into()))
            }
            age::ssh::Identity::Unsupported(_) => {
                Err(fail("this kind of SSH key cannot decrypt: use ed25519 or RSA".into()))
            }
        };
    }
    let mut identities: Vec<Box<dyn age::Identity + Send + Sync>> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let identity = line.parse::<age::x25519::Identity>().map_err(|e| fail(e.to_owned()))?;
        identities.push(Box::new(identity));
    }
    if identities.is_empty() { Err(fail("it holds no identity (AGE-SECRET-KEY-1…)".into())) } else { Ok(identities) }
}

/// Makes an age identity, writes it with mode 0600 to a new file, and gives its recipient.
pub fn generate_identity(path: &Path) -> Result<String, RepositoryError> {
    use age::secrecy::ExposeSecret;
    use std::io::Write;
    let fail = |message: String| RepositoryError::Identity { path: path.to_owned(), message };
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // NamedTempFile is created with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| fail(e.to_string()))?;
    writeln!(file, "# Restante reader identity. Whoever has it can read all mail in its repositories.")
        .and_then(|()| writeln!(file, "# public key: {recipient}"))
        .and_then(|()| writeln!(file, "{}", identity.to_string().expose_secret()))
        .and_then(|()| file.as_file().sync_all())
        .map_err(|e| fail(e.to_string()))?;
    file.persist_noclobber(path).map_err(|e| fail(e.error.to_string()))?;
    Ok(recipient)
}
