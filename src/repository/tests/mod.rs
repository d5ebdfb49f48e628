//! What format 1 promises, tried on the whole layer: an honest storage in memory, one that damages, and small fixed secrets.

mod bytes;
mod objects;
mod packs;
mod protocol;
mod pruning;
mod retention;
mod rotation;
mod states;
mod storage;
mod tables;
mod vectors;
mod whole;
mod world;

use std::collections::BTreeMap;

use super::id::{Epoch, RepositoryId};
use super::seal::{Secret, Signer};
use super::secrets::{EpochSecrets, Secrets};

/// What one epoch consists of, for tests that need no storage.
struct Keys {
    identity: age::x25519::Identity,
    signer: Signer,
}

impl Keys {
    fn new() -> Self {
        Self {
            identity: age::x25519::Identity::generate(),
            signer: Signer::from_seed(&Secret::random().unwrap()).unwrap(),
        }
    }
}

const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

fn secret(epoch: u32, which: u8) -> Secret {
    Secret::new([epoch as u8 * 16 + which; 32])
}

/// All secrets of the epochs 1, 2, …
fn reader_secrets(keys: &[&Keys]) -> Secrets {
    let epochs = (1..).zip(keys).map(|(epoch, keys)| {
        let (seal, id) = (secret(epoch, 1), Some(secret(epoch, 2)));
        let (identity, signers) = (Some(keys.identity.clone()), vec![keys.signer.id()]);
        (Epoch(epoch), EpochSecrets { seal, id, identity, signers })
    });
    Secrets { repository: REPOSITORY, epochs: epochs.collect(), verifiers: Vec::new() }
}

fn without_identity(secrets: &Secrets) -> Secrets {
    let epochs: BTreeMap<_, _> = secrets
        .epochs
        .iter()
        .map(|(epoch, known)| {
            let (seal, id, signers) = (known.seal.clone(), known.id.clone(), known.signers.clone());
            (*epoch, EpochSecrets { seal, id, identity: None, signers })
        })
        .collect();
    Secrets { repository: secrets.repository, epochs, verifiers: Vec::new() }
}
