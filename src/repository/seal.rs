//! The three primitives that everything sealed is built from, all of the `aws-lc-rs` and `blake3` crates: AES-256-GCM, BLAKE3
//! key derivation, Ed25519 signatures. `docs/format.md` says which is used where.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::id::SignerId;

/// What AES-256-GCM adds to each ciphertext.
pub const TAG_LENGTH: usize = 16;
pub const SALT_LENGTH: usize = 32;

/// 32 secret bytes; wiped when dropped, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn random() -> Result<Self, CryptoError> {
        let mut secret = Self([0; 32]);
        fill_random(&mut secret.0)?;
        Ok(secret)
    }

    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key for `context`, by BLAKE3 `derive_key` from this secret and the salt after it (which may be empty).
    pub fn derive(&self, context: &str, salt: &[u8]) -> Secret {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.0);
        hasher.update(salt);
        Secret(*hasher.finalize().as_bytes())
    }
}

/// A secret as text; wiped when dropped, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText(…)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    #[error("the operating system gives no random bytes")]
    NoRandomness,
    #[error("sealing failed: the data is larger than the cipher takes")]
    TooLarge,
    /// Wrong key, or the bytes were changed: the cipher cannot tell which.
    #[error("the seal does not open: the bytes were changed or belong to another key")]
    DoesNotOpen,
    #[error("the signing key is not a valid Ed25519 seed")]
    BadSigningSeed,
    #[error("the signature of {signer} does not fit the bytes")]
    BadSignature { signer: SignerId },
}

pub fn fill_random(bytes: &mut [u8]) -> Result<(), CryptoError> {
    SystemRandom::new().fill(bytes).map_err(|_| CryptoError::NoRandomness)
}

pub fn random_salt() -> Result<[u8; SALT_LENGTH], CryptoError> {
    let mut salt = [0; SALT_LENGTH];
    fill_random(&mut salt)?;
    Ok(salt)
}

/// An AES-256-GCM key under which each nonce is used once: the caller counts them.
pub struct Sealer(LessSafeKey);

impl Sealer {
    pub fn new(key: &Secret) -> Result<Self, CryptoError> {
        UnboundKey::new(&AES_256_GCM, key.expose()).map(LessSafeKey::new).map(Self).map_err(|_| CryptoError::TooLarge)
    }

    /// Turns `bytes` into ciphertext followed by the tag.
    pub fn seal(&self, counter: u32, associated: &[u8], bytes: &mut Vec<u8>) -> Result<(), CryptoError> {
        self.seal_from(counter, associated, bytes, 0)
    }

    /// As [`Sealer::seal`], leaving the bytes before `start` as they are.
    pub fn seal_from(
        &self,
        counter: u32,
        associated: &[u8],
        bytes: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), CryptoError> {
        let plain = bytes.get_mut(start..).unwrap_or_default();
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(counter), Aad::from(associated), plain)
            .map_err(|_| CryptoError::TooLarge)?;
        bytes.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// The plaintext of `bytes` (ciphertext and tag).
    pub fn open(&self, counter: u32, associated: &[u8], bytes: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut plain = Vec::new();
        self.open_into(counter, associated, bytes, &mut plain)?;
        Ok(plain)
    }

    /// As [`Sealer::open`], in place of what `plain` held.
    pub fn open_into(
        &self,
        counter: u32,
        associated: &[u8],
        bytes: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), CryptoError> {
        plain.clear();
        plain.extend_from_slice(bytes);
        let opened = self.0.open_in_place(nonce(counter), Aad::from(associated), plain);
        let length = opened.map_err(|_| CryptoError::DoesNotOpen)?.len();
        plain.truncate(length);
        Ok(())
    }
}

/// The counter little endian, then eight zero bytes.
fn nonce(counter: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Signs with Ed25519.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    pub fn from_seed(seed: &Secret) -> Result<Self, CryptoError> {
        Ed25519KeyPair::from_seed_unchecked(seed.expose()).map(Self).map_err(|_| CryptoError::BadSigningSeed)
    }

    pub fn id(&self) -> SignerId {
        let mut id = [0; 32];
        id.copy_from_slice(self.0.public_key().as_ref());
        SignerId(id)
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.0.sign(message).as_ref());
        signature
    }
}

pub fn verify(signer: &SignerId, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
    UnparsedPublicKey::new(&ED25519, &signer.0)
        .verify(message, signature)
        .map_err(|_| CryptoError::BadSignature { signer: *signer })
}
