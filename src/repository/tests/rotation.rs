//! Epochs and readers come and go; what was stored stays readable.

use super::storage::Memory;
use super::whole::{Reader, all_read, as_reader, as_writer, copy, made, manifest, reader, snapshot};
use crate::repository::chunk::ChunkKind;
use crate::repository::envelope::{self, Author, ObjectKind};
use crate::repository::forgotten;
use crate::repository::id::{Digest, Epoch, ObjectId, PackId};
use crate::repository::manifest::manifest_name;
use crate::repository::name::{NameKind, pack_of};
use crate::repository::prune::tombstone;
use crate::repository::reader::ChunkReader;
use crate::repository::readers::{KeyHolder, accept};
use crate::repository::ring;
use crate::repository::rotate::{RotateOptions, Rotation, rotate};
use crate::repository::secrets::WriterKey;
use crate::repository::verified::{self, Log};
use crate::repository::verifier::{self, VerifierKey};
use crate::repository::{Access, Repository, RepositoryError, pack, snapshots};
use std::sync::Arc;

use jiff::Timestamp;

async fn holder(storage: &Arc<Memory>, key: &WriterKey, reader: &Reader) -> Result<KeyHolder, RepositoryError> {
    KeyHolder::open(storage.clone(), copy(key), std::slice::from_ref(&reader.path)).await
}

async fn rotated(
    storage: &Arc<Memory>,
    key: &WriterKey,
    with: &Reader,
    to: &[&Reader],
    new_id_secret: bool,
) -> Rotation {
    let readers = to.iter().map(|reader| reader.recipient.clone()).collect();
    let rotation =
        rotate(holder(storage, key, with).await.unwrap(), RotateOptions { readers, new_id_secret }).await.unwrap();
    rotation.commit().await.unwrap();
    rotation
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_reads_the_old_one_and_stores_no_mail_again() {
    let (storage, one) = (Memory::new(), reader());
    let old = made(&storage, &[&one]).await;
    let (_, before, _) = snapshot(&as_writer(&storage, &old).await.unwrap(), 1).await.unwrap();
    let old_packs = storage.names("packs/");
    let new = rotated(&storage, &old, &one, &[&one], false).await.writer_key;
    let writer = as_writer(&storage, &new).await.unwrap();
    let (_, again, added) = snapshot(&writer, 1).await.unwrap();
    assert_eq!(added, 9, "metadata alone: its ids come from the seal secret");
    let (_, after, _) = snapshot(&writer, 2).await.unwrap();
    let repository = as_reader(&storage, &one).await.unwrap();
    for stored in [&before, &again, &after] {
        all_read(&repository, stored).await.unwrap();
    }
    assert_eq!(snapshots::list(&writer).await.unwrap().0.len(), 3);
    assert_eq!(snapshots::list(&repository).await.unwrap().0.len(), 3);

    // The stolen key opens nothing of it and writes nothing.
    let thief = as_writer(&storage, &old).await.unwrap();
    let (found, problems) = snapshots::list(&thief).await.unwrap();
    assert_eq!((found.len(), problems.len()), (1, 2));
    assert!(matches!(snapshot(&thief, 3).await, Err(RepositoryError::KeyObjectsChanged { .. })));
    for name in storage.names("packs/").iter().filter(|name| !old_packs.contains(name)) {
        let refused = pack::parse(&thief.secrets, &storage.bytes(name));
        assert!(matches!(refused, Err(RepositoryError::UnknownEpoch { epoch: Epoch(2) })));
    }
    // Not even if he relabels the epoch: the secrets differ.
    assert_ne!(old.seal.expose(), new.seal.expose());
    assert_ne!(old.recipient, new.recipient);
    assert_ne!(old.signer().unwrap().id(), new.signer().unwrap().id());
    // And he cannot rotate once more, though he kept a reader's identity.
    assert!(holder(&storage, &old, &one).await.is_err());
    assert!(holder(&storage, &new, &one).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_and_replaced_key_makes_no_more_snapshots() {
    let (storage, one) = (Memory::new(), reader());
    let mut key = made(&storage, &[&one]).await;
    let thief = as_writer(&storage, &key).await.unwrap();
    let (kept, ..) = snapshot(&thief, 1).await.unwrap();
    for forged in 1..3usize {
        key = rotated(&storage, &key, &one, &[&one], false).await.writer_key;
        // The thief has the old secrets and may write to the storage.
        let stolen = thief.writer_key().unwrap();
        let (signer, repository) = (stolen.signer().unwrap(), stolen.repository);
        let author = Author { repository, epoch: stolen.epoch, secrets: &thief.secrets, signer: &signer };
        let mut lie = manifest(&thief, vec![]);
        lie.taken = Timestamp::from_second(1_900_000_000 + forged as i64).unwrap();
        let bytes = envelope::write(ObjectKind::Manifest, &author, &lie).unwrap();
        storage.set(&manifest_name(lie.taken, &ObjectId::of(&bytes)).unwrap(), bytes);
        for repository in [as_reader(&storage, &one).await.unwrap(), as_writer(&storage, &key).await.unwrap()] {
            let (found, problems) = snapshots::list(&repository).await.unwrap();
            assert_eq!(found.iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), [kept]);
            assert_eq!(problems.len(), forged);
        }
    }
    let holder = holder(&storage, &key, &one).await.unwrap();
    let options = RotateOptions { readers: vec![one.recipient.clone()], new_id_secret: false };
    assert_eq!(rotate(holder, options).await.unwrap().left_out.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_id_secret_stores_everything_once_more() {
    let (storage, one) = (Memory::new(), reader());
    let old = made(&storage, &[&one]).await;
    let (_, before, _) = snapshot(&as_writer(&storage, &old).await.unwrap(), 1).await.unwrap();
    let new = rotated(&storage, &old, &one, &[&one], true).await.writer_key;
    let (_, again, added) = snapshot(&as_writer(&storage, &new).await.unwrap(), 1).await.unwrap();
    assert_eq!(added, 27);
    assert!(again.keys().all(|id| !before.contains_key(id)));
    let repository = as_reader(&storage, &one).await.unwrap();
    all_read(&repository, &before).await.unwrap();
    all_read(&repository, &again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_was_taken_away_reads_what_he_could_and_nothing_new() {
    let (storage, stays, goes) = (Memory::new(), reader(), reader());
    let old = made(&storage, &[&stays, &goes]).await;
    let (_, before, _) = snapshot(&as_writer(&storage, &old).await.unwrap(), 1).await.unwrap();
    let new = rotated(&storage, &old, &stays, &[&stays], true).await.writer_key;
    let (_, after, _) = snapshot(&as_writer(&storage, &new).await.unwrap(), 2).await.unwrap();
    all_read(&as_reader(&storage, &stays).await.unwrap(), &after).await.unwrap();
    let repository = as_reader(&storage, &goes).await.unwrap();
    let rows = before.iter().filter(|(_, (kind, _))| *kind == ChunkKind::Row).count();
    assert_eq!(rows, 9);
    assert!(repository.secrets.epoch(Epoch(1)).is_ok());
    assert!(matches!(repository.secrets.epoch(Epoch(2)), Err(RepositoryError::UnknownEpoch { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_was_added_reads_everything_and_no_pack_is_touched() {
    let (storage, one, two, ssh) = (Memory::new(), reader(), reader(), tempfile::tempdir().unwrap());
    let key = made(&storage, &[&one]).await;
    let (_, stored, _) = snapshot(&as_writer(&storage, &key).await.unwrap(), 1).await.unwrap();
    let packs = storage.names("packs/");
    let key_two = holder(&storage, &key, &one).await.unwrap().add_reader(&two.recipient).await.unwrap();
    let public = include_str!("ssh_ed25519.pub").trim();
    let key_three = holder(&storage, &key_two, &two).await.unwrap().add_reader(public).await.unwrap();
    assert_eq!(storage.names("packs/"), packs);
    let path = ssh.path().join("id_ed25519");
    std::fs::write(&path, include_str!("ssh_ed25519")).unwrap();
    let three = Reader::at(ssh, path, public.to_owned());
    for reader in [&one, &two, &three] {
        all_read(&as_reader(&storage, reader).await.unwrap(), &stored).await.unwrap();
    }
    let numbers: Vec<u32> = storage.names("keys/").iter().map(|name| ring::ring_place(name).unwrap().1).collect();
    assert_eq!(numbers, [1, 2, 3]);
    snapshot(&as_writer(&storage, &key_three).await.unwrap(), 2).await.unwrap();
    assert!(holder(&storage, &key_three, &one).await.unwrap().add_reader(&two.recipient).await.is_err(), "twice");
    assert!(holder(&storage, &key_three, &one).await.unwrap().add_reader("nobody").await.is_err());

    // Another copy of the writer key stops until somebody accepts.
    let behind = as_writer(&storage, &key).await.unwrap();
    assert!(matches!(snapshot(&behind, 3).await, Err(RepositoryError::KeyObjectsChanged { .. })));
    for identities in [vec![], vec![one.path.clone()]] {
        let accepted = accept(&*storage, copy(&key), &identities).await.unwrap();
        assert_eq!((accepted.added.len(), accepted.gone.len()), (2, 0));
        snapshot(&as_writer(&storage, &accepted.key).await.unwrap(), 3).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accepting_with_an_identity_refuses_a_forged_ring() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let elsewhere = Memory::new();
    made(&elsewhere, &[&one]).await;
    let forged = elsewhere.names("keys/")[0].clone();
    storage.set(&forged, elsewhere.bytes(&forged));
    let refused = accept(&*storage, copy(&key), std::slice::from_ref(&one.path)).await;
    assert!(matches!(refused.err(), Some(RepositoryError::UnknownSigner { .. })));
    // A reader passes it over.
    assert!(as_reader(&storage, &one).await.is_ok());
    storage.set(&forged, "something else");
    assert!(accept(&*storage, copy(&key), &[]).await.is_err(), "its hash is not its name");
    // After a rotation there is nothing to accept: a new key is needed.
    storage.objects.lock().unwrap().remove(&forged);
    rotated(&storage, &key, &one, &[&one], false).await;
    assert!(matches!(accept(&*storage, copy(&key), &[]).await.err(), Some(RepositoryError::UnknownEpoch { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_broke_off_leaves_the_old_epoch_in_force() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    rotated(&storage, &key, &one, &[&one], false).await;
    for name in storage.names("config/") {
        storage.objects.lock().unwrap().remove(&name);
    }
    let accepted = accept(&*storage, copy(&key), &[]).await.unwrap().key;
    let (_, stored, _) = snapshot(&as_writer(&storage, &accepted).await.unwrap(), 1).await.unwrap();
    all_read(&as_reader(&storage, &one).await.unwrap(), &stored).await.unwrap();
    let new = rotated(&storage, &accepted, &one, &[&one], false).await.writer_key;
    assert!(snapshot(&as_writer(&storage, &new).await.unwrap(), 2).await.is_ok());
}

/// A verifier signs what checks find. Whatever else he signs is refused, and so is he when the epoch is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_verifier_signs_what_checks_find_and_nothing_else() {
    let (storage, one) = (Memory::new(), reader());
    let old = made(&storage, &[&one]).await;
    let (id, ..) = snapshot(&as_writer(&storage, &old).await.unwrap(), 1).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("verifier.key");
    verifier::add(&*storage, &old, |key| key.save(&file)).await.unwrap();
    let open = async || {
        let key = VerifierKey::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        Repository::open(storage.clone(), Access::Verifier(key), None).await
    };
    let checks = open().await.unwrap();
    assert!(checks.writer_key().is_err() && checks.secrets.epochs.values().all(|epoch| epoch.id.is_none()));
    // He opens metadata and no mail.
    let chunks = ChunkReader::open(&checks, None).await.unwrap();
    for pack in chunks.index().packs() {
        let opened = chunks.fetch(&pack.entries[0].id).await;
        assert_eq!(opened.is_ok(), pack.kind == ChunkKind::Meta, "{opened:?}");
    }
    let packs: Vec<PackId> = storage.names("packs/").iter().filter_map(pack_of).collect();
    verified::write(&checks, &packs.iter().copied().collect(), &[]).await.unwrap();
    tombstone::mark_damaged(&checks, &packs[0]).await.unwrap();
    let writer = as_writer(&storage, &old).await.unwrap();
    assert!(Log::read(&writer).await.unwrap().checked(&packs[0], None).at > Timestamp::UNIX_EPOCH);
    for name in storage.names("tombstones/") {
        tombstone::read(&writer, &name).await.unwrap();
    }

    // Through the program he cannot; with a program of his own, and his key, he is not believed.
    let (found, _) = snapshots::list(&writer).await.unwrap();
    assert!(forgotten::forget(&checks, &found[0].id, forgotten::GRACE).await.is_err());
    let signer = checks.verifier.as_ref().unwrap().signer().unwrap();
    let author = Author { repository: old.repository, epoch: old.epoch, secrets: &writer.secrets, signer: &signer };
    for kind in ObjectKind::ALL {
        let bytes = envelope::write(kind, &author, &"what he likes").unwrap();
        let name = storage.names("packs/").remove(0);
        let read = envelope::read::<String>(kind, &writer.secrets, &name, &bytes);
        let may = [ObjectKind::Verified, ObjectKind::Drill, ObjectKind::Tombstone].contains(&kind);
        assert_eq!(read.is_ok(), may, "{kind:?}");
    }
    // Nor does he say that a pack may go.
    let pass = tombstone::Tombstone {
        version: 1,
        pack: packs[1],
        pass: Digest([7; 16]),
        marked: Timestamp::now(),
        survivors: vec![],
    };
    let name = NameKind::Tombstone.named(format!("{}/{}", pass.pack, pass.pass)).unwrap();
    storage.set(&name, envelope::write(ObjectKind::Tombstone, &author, &pass).unwrap());
    assert!(matches!(tombstone::read(&writer, &name).await, Err(RepositoryError::UnknownSigner { .. })));
    storage.objects.lock().unwrap().remove(&name);

    let new = rotated(&storage, &old, &one, &[&one], false).await.writer_key;
    assert!(matches!(open().await, Err(RepositoryError::EndedVerifier { .. })));
    let writer = as_writer(&storage, &new).await.unwrap();
    assert_eq!(Log::read(&writer).await.unwrap().checked(&packs[0], None).at, Timestamp::MIN, "it begins anew");
    assert!(snapshots::list(&writer).await.unwrap().0.iter().any(|one| one.id == id));
}
