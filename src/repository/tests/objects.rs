//! Signed objects, key rings and configurations: every bit counts, and the right hand must have signed.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Keys, REPOSITORY, reader_secrets, secret};
use crate::repository::RepositoryError;
use crate::repository::config::{self, Config, ConfigSigner};
use crate::repository::envelope::{self, Author, ObjectKind};
use crate::repository::id::{Epoch, Fingerprint, ObjectId};
use crate::repository::ring::{Ring, RingEpoch};
use crate::repository::secrets::Secrets;
use crate::storage::ObjectName;

type Body = BTreeMap<String, u32>;

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn object(kind: ObjectKind, secrets: &Secrets, keys: &Keys, epoch: Epoch) -> Vec<u8> {
    let author = Author { repository: REPOSITORY, epoch, secrets, signer: &keys.signer };
    envelope::write(kind, &author, &Body::from([("mails".to_owned(), 3)])).unwrap().to_vec()
}

fn read(kind: ObjectKind, secrets: &Secrets, bytes: &[u8]) -> Result<Body, RepositoryError> {
    envelope::read::<Body>(kind, secrets, &name("index/x"), bytes).map(|opened| opened.body)
}

#[test]
fn a_flipped_bit_anywhere_in_a_signed_object_is_noticed() {
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    let bytes = object(ObjectKind::Manifest, &secrets, &keys, Epoch(1));
    assert_eq!(read(ObjectKind::Manifest, &secrets, &bytes).unwrap()["mails"], 3);
    for at in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(read(ObjectKind::Manifest, &secrets, &bytes).is_err(), "bit {at}");
    }
    for length in 0..bytes.len() {
        assert!(read(ObjectKind::Manifest, &secrets, &bytes[..length]).is_err(), "cut to {length}");
    }
    assert!(read(ObjectKind::Manifest, &secrets, &[&bytes[..], &[0]].concat()).is_err());
}

#[test]
fn no_kind_of_object_passes_for_another() {
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    for kind in ObjectKind::ALL {
        for other in ObjectKind::ALL {
            let mut bytes = object(kind, &secrets, &keys, Epoch(1));
            assert_eq!(read(other, &secrets, &bytes).is_ok(), kind == other, "{kind:?} as {other:?}");
            bytes[8] = other.code();
            assert_eq!(read(other, &secrets, &bytes).is_ok(), kind == other, "{kind:?} relabelled as {other:?}");
        }
    }
}

#[test]
fn only_a_signer_of_the_very_epoch_counts() {
    let (old, new) = (Keys::new(), Keys::new());
    let secrets = reader_secrets(&[&old, &new]);
    assert!(read(ObjectKind::Index, &secrets, &object(ObjectKind::Index, &secrets, &new, Epoch(2))).is_ok());
    for (keys, epoch) in [(&old, Epoch(2)), (&new, Epoch(1)), (&Keys::new(), Epoch(2))] {
        let bytes = object(ObjectKind::Index, &secrets, keys, epoch);
        assert!(matches!(read(ObjectKind::Index, &secrets, &bytes), Err(RepositoryError::UnknownSigner { .. })));
    }
    let bytes = object(ObjectKind::Index, &secrets, &new, Epoch(2));
    let before = reader_secrets(&[&old]);
    assert!(matches!(read(ObjectKind::Index, &before, &bytes), Err(RepositoryError::SealedInUnknownEpoch { .. })));
}

const FINGERPRINT: Fingerprint = Fingerprint([9; 32]);

fn config(keys: &[&Keys]) -> Config {
    let mut config = Config::first(REPOSITORY, Epoch(1), keys[0].signer.id(), Timestamp::UNIX_EPOCH);
    config.epoch = Epoch(keys.len() as u32);
    config.signers =
        (1..).zip(keys).map(|(epoch, keys)| ConfigSigner { epoch: Epoch(epoch), key: keys.signer.id() }).collect();
    config
}

fn ring(keys: &Keys, readers: &[String]) -> Ring {
    let epoch = RingEpoch::new(Epoch(1), &keys.identity, &secret(1, 2), &secret(1, 1), vec![keys.signer.id()]);
    Ring {
        repository: REPOSITORY,
        fingerprint: FINGERPRINT,
        epoch: Epoch(1),
        number: 1,
        readers: readers.to_vec(),
        epochs: vec![epoch],
    }
}

fn open_ring(
    name: &ObjectName,
    bytes: &[u8],
    identity: &dyn age::Identity,
    config: &Config,
) -> Result<Ring, RepositoryError> {
    Ring::read(name, bytes, std::iter::once(identity), config, FINGERPRINT)
}

// Keys made for this test alone.
const SSH_PUBLIC: &str = include_str!("ssh_ed25519.pub");
const SSH_PRIVATE: &str = include_str!("ssh_ed25519");

#[test]
fn a_ring_opens_for_each_of_its_readers_and_nobody_else() {
    let (keys, reader, stranger) = (Keys::new(), age::x25519::Identity::generate(), age::x25519::Identity::generate());
    let readers = [reader.to_public().to_string(), SSH_PUBLIC.trim().to_owned()];
    let (name, bytes) = ring(&keys, &readers).write(&keys.signer).unwrap();
    let ssh = age::ssh::Identity::from_buffer(SSH_PRIVATE.as_bytes(), None).unwrap();
    let config = config(&[&keys]);
    for identity in [&reader as &dyn age::Identity, &ssh] {
        let secrets = open_ring(&name, &bytes, identity, &config).unwrap().secrets().unwrap();
        assert_eq!(secrets.epoch(Epoch(1)).unwrap().seal.expose(), secret(1, 1).expose());
    }
    assert!(matches!(open_ring(&name, &bytes, &stranger, &config), Err(RepositoryError::WrongIdentity)));
}

#[test]
fn a_flipped_bit_anywhere_in_a_key_ring_is_noticed() {
    let (keys, reader) = (Keys::new(), age::x25519::Identity::generate());
    let (good, bytes) = ring(&keys, &[reader.to_public().to_string()]).write(&keys.signer).unwrap();
    let config = config(&[&keys]);
    assert!(open_ring(&good, &bytes, &reader, &config).is_ok());
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(open_ring(&good, &bytes, &reader, &config).is_err(), "byte {at}");
        // Even if the storage fits the name to it.
        let renamed = name(&format!("keys/1/1-{}.age", ObjectId::of(&bytes)));
        assert!(open_ring(&renamed, &bytes, &reader, &config).is_err(), "byte {at}, renamed");
        let cut = &bytes[..at];
        assert!(open_ring(&name(&format!("keys/1/1-{}.age", ObjectId::of(cut))), cut, &reader, &config).is_err());
    }
}

#[test]
fn a_ring_of_a_stranger_an_old_signer_or_under_another_name_is_refused() {
    let (keys, thief, reader) = (Keys::new(), Keys::new(), age::x25519::Identity::generate());
    let readers = [reader.to_public().to_string()];
    // Anybody can encrypt to a reader.
    let (forged, bytes) = ring(&thief, &readers).write(&thief.signer).unwrap();
    let refused = open_ring(&forged, &bytes, &reader, &config(&[&keys]));
    assert!(matches!(refused, Err(RepositoryError::UnknownSigner { .. })));
    // A key that was stolen and replaced signs no ring of the new epoch.
    let (late, bytes) = Ring { epoch: Epoch(2), ..ring(&keys, &readers) }.write(&keys.signer).unwrap();
    let refused = open_ring(&late, &bytes, &reader, &config(&[&keys, &Keys::new()]));
    assert!(matches!(refused, Err(RepositoryError::UnknownSigner { .. })));
    // An old ring does not become the newest by its name.
    let (_, bytes) = ring(&keys, &readers).write(&keys.signer).unwrap();
    let renamed = name(&format!("keys/1/9-{}.age", ObjectId::of(&bytes)));
    assert!(open_ring(&renamed, &bytes, &reader, &config(&[&keys])).is_err());
    let (own, bytes) = Ring { fingerprint: Fingerprint([0; 32]), ..ring(&keys, &readers) }.write(&keys.signer).unwrap();
    assert!(open_ring(&own, &bytes, &reader, &config(&[&keys])).is_err(), "of another repository");
}

#[test]
fn a_flipped_bit_anywhere_in_the_head_is_noticed() {
    let keys = Keys::new();
    let bytes = config(&[&keys]).write(&keys.signer).unwrap();
    let head = name(config::NAME);
    assert!(Config::read(&head, &bytes, None).is_ok());
    for at in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[at / 8] ^= 1 << (at % 8);
        assert!(Config::read(&head, &changed, None).is_err(), "bit {at}");
        assert_ne!(config::fingerprint(&changed), config::fingerprint(&bytes));
    }
    for length in 0..bytes.len() {
        assert!(Config::read(&head, &bytes[..length], None).is_err(), "cut to {length}");
    }
}

#[test]
fn a_newer_format_is_called_by_its_name_and_not_damage() {
    let (keys, head) = (Keys::new(), name(config::NAME));
    let newer = b"{\"magic\":\"restante repository\",\"format\":2,\"wholly\":\"different\"}\n{}\n";
    assert!(matches!(Config::read(&head, newer, None), Err(RepositoryError::Unsupported { format: 2, .. })));
    let mut needs = config(&[&keys]);
    needs.needs.write.push("leases-2".into());
    assert!(needs.check_features(config::Operation::Read).is_ok());
    let refused = needs.check_features(config::Operation::Write);
    assert!(matches!(refused, Err(RepositoryError::Unsupported { feature, .. }) if feature == "leases-2"));
}

#[test]
fn only_a_current_signer_makes_the_next_configuration() {
    let (first, second, stranger) = (Keys::new(), Keys::new(), Keys::new());
    let (one, two) = (config(&[&first]), config(&[&first, &second]));
    let at = name("config/2-x");
    assert!(Config::read(&at, &two.write(&first.signer).unwrap(), Some(&one)).is_ok());
    assert!(Config::read(&at, &two.write(&stranger.signer).unwrap(), Some(&one)).is_err());
    assert!(Config::read(&at, &two.write(&second.signer).unwrap(), Some(&one)).is_err(), "it vouches for itself");
    assert!(Config::read(&at, &two.write(&second.signer).unwrap(), Some(&two)).is_ok());
    assert!(Config::read(&at, &two.write(&first.signer).unwrap(), Some(&two)).is_err(), "its time is over");
    assert!(Config::read(&at, &one.write(&second.signer).unwrap(), Some(&two)).is_err(), "an earlier epoch");
}
