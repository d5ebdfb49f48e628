//! A repository from `init` to a certificate, over a storage in memory.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use bytes::Bytes;
use jiff::Timestamp;

use super::storage::{Fault, Memory};
use crate::repository::chunk::ChunkKind;
use crate::repository::envelope::{self, Author, ObjectKind};
use crate::repository::id::{ChunkId, Fingerprint, ObjectId};
use crate::repository::index::Fragment;
use crate::repository::manifest::{self, Manifest, Schema, ServerSummary, StoreIdentity, Totals};
use crate::repository::reader::{ChunkReader, fragment_name};
use crate::repository::secrets::WriterKey;
use crate::repository::snapshots;
use crate::repository::writer::RepositoryWriter;
use crate::repository::{Access, InitOptions, Repository, RepositoryError, init};
use crate::storage::ObjectName;

pub struct Reader {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
    pub recipient: String,
}

impl Reader {
    pub fn at(folder: tempfile::TempDir, path: PathBuf, recipient: String) -> Self {
        Self { _folder: folder, path, recipient }
    }
}

pub fn reader() -> Reader {
    let folder = tempfile::tempdir().unwrap();
    let identity = age::x25519::Identity::generate();
    let path = folder.path().join("reader.key");
    std::fs::write(&path, format!("# a reader\n{}\n", identity.to_string().expose_secret())).unwrap();
    Reader { _folder: folder, path, recipient: identity.to_public().to_string() }
}

pub async fn made(storage: &Memory, readers: &[&Reader]) -> WriterKey {
    let readers = readers.iter().map(|reader| reader.recipient.clone()).collect();
    init(storage, InitOptions { readers, created: Timestamp::UNIX_EPOCH }).await.unwrap().writer_key
}

/// A key lies in a file, so its copy goes through the text.
pub fn copy(key: &WriterKey) -> WriterKey {
    WriterKey::parse(&key.to_toml()).unwrap()
}

pub async fn as_writer(storage: &Arc<Memory>, key: &WriterKey) -> Result<Repository, RepositoryError> {
    Repository::open(storage.clone(), Access::Writer(copy(key)), None).await
}

pub async fn as_reader(storage: &Arc<Memory>, reader: &Reader) -> Result<Repository, RepositoryError> {
    Repository::open(storage.clone(), Access::Reader(vec![reader.path.clone()]), None).await
}

pub fn manifest(repository: &Repository, fragments: Vec<ObjectId>) -> Manifest {
    let epoch = repository.writer_key().unwrap().epoch;
    Manifest {
        version: 1,
        repository: repository.config.repository,
        epoch,
        features: vec!["rows-1".into()],
        critical: vec![],
        program: "test".into(),
        store: StoreIdentity { system_identifier: Some(u64::MAX), database: "mail".into(), database_oid: 5 },
        sequence: 1,
        previous: None,
        parent: None,
        started: Timestamp::UNIX_EPOCH,
        finished: Timestamp::UNIX_EPOCH,
        taken: "2014-08-10T12:00:00.123456Z".parse().unwrap(),
        server: ServerSummary {
            version_num: 150_000,
            encoding: "UTF8".into(),
            timeline: Some(1),
            standby: false,
            data_checksums: None,
            xmin: 3,
            xmax: 4,
            in_progress: Vec::new(),
            marker: Some(-1),
            durable: true,
            fsync: None,
        },
        tables: vec![],
        schema: Schema::default(),
        totals: Totals::default(),
        complete: true,
        not_covered: vec![],
        read_whole: vec![],
        suspect: vec![],
        tags: vec!["nightly".into()],
        fragments,
    }
}

pub type Stored = HashMap<ChunkId, (ChunkKind, Vec<u8>)>;

/// Stores chunks of every kind, about one pack each two of them, and commits.
pub async fn snapshot(repository: &Repository, salt: u8) -> Result<(ObjectId, Stored, u64), RepositoryError> {
    let writer = RepositoryWriter::open(repository, 10_000).await?;
    let sink = writer.sink();
    let work = tokio::task::spawn_blocking(move || {
        let mut stored = Stored::new();
        for n in 0..9u8 {
            for kind in ChunkKind::ALL {
                let mut plain = vec![0; 6000];
                blake3::Hasher::new().update(&[salt, n]).finalize_xof().fill(&mut plain[..5000]);
                stored.insert(sink.store(kind, &plain)?, (kind, plain));
            }
        }
        Ok::<_, RepositoryError>(stored)
    });
    let stored = match work.await.unwrap() {
        Ok(stored) => stored,
        Err(e) => return Err(writer.abandon().await.unwrap_or(e)),
    };
    let done = writer.finish_chunks().await?;
    let added = done.added.chunks;
    let manifest = manifest(repository, done.fragments.clone());
    let (id, certificate) = done.commit(&manifest).await?;
    assert_eq!(certificate.snapshot, id);
    Ok((id, stored, added))
}

pub async fn all_read(repository: &Repository, stored: &Stored) -> Result<(), RepositoryError> {
    let chunks = ChunkReader::open(repository, None).await?;
    let ids: Vec<ChunkId> = stored.keys().copied().collect();
    let found = chunks.fetch_all(&ids).await?;
    assert_eq!(found.len(), ids.len());
    for (id, (_, plain)) in stored {
        assert_eq!(found[id], Bytes::from(plain.clone()));
    }
    Ok(())
}

/// What a lost index fragment told, packs tell themselves; nothing new relies on that.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_fragment_takes_nothing_with_it() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    let (_, stored, added) = snapshot(&writer, 1).await.unwrap();
    let repository = as_reader(&storage, &one).await.unwrap();
    let ids: Vec<ChunkId> = stored.keys().copied().collect();
    let read = async || -> Result<(), RepositoryError> {
        let (found, _) = snapshots::list(&repository).await?;
        let chunks = ChunkReader::open(&repository, Some(&found[0].manifest.fragments)).await?;
        let all = chunks.fetch_all(&ids).await?;
        assert!(stored.iter().all(|(id, (_, plain))| all[id] == plain[..]));
        Ok(())
    };
    let name = storage.names("index/").remove(0);
    for spoiled in [None, Some(storage.bytes(&name).slice(..100))] {
        match spoiled {
            None => drop(storage.objects.lock().unwrap().remove(&name)),
            Some(bytes) => storage.set(&name, bytes),
        }
        read().await.unwrap();
    }
    // A pack that is not the one whose name it has: what it says of itself is believed as far as its chunks open.
    let packs = storage.names("packs/");
    let good: Vec<Bytes> = packs.iter().map(|name| storage.bytes(name)).collect();
    storage.set(&packs[0], good[1].clone());
    let failed = read().await.unwrap_err();
    assert!(failed.is_about_an_object(), "{failed}");
    storage.set(&packs[0], good[0].clone());
    // A directory that does not open leaves the others.
    let mut flipped = good[0].to_vec();
    flipped[100] ^= 1;
    storage.set(&packs[0], flipped);
    assert!(read().await.unwrap_err().is_about_an_object());
    storage.set(&packs[0], good[0].clone());
    read().await.unwrap();
    let (_, _, again) = snapshot(&writer, 1).await.unwrap();
    assert_eq!(again, added, "all is stored once more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_writer_stores_each_reader_reads() {
    let (storage, one, two) = (Memory::new(), reader(), reader());
    let key = made(&storage, &[&one, &two]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    let (id, stored, added) = snapshot(&writer, 1).await.unwrap();
    assert_eq!(added, 27);
    for reader in [&one, &two] {
        let repository = as_reader(&storage, reader).await.unwrap();
        all_read(&repository, &stored).await.unwrap();
        let (found, problems) = snapshots::list(&repository).await.unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(snapshots::select(&found, "latest").unwrap().id, id);
        assert_eq!(found[0].manifest.store.system_identifier, Some(u64::MAX));
    }
    let chunks = ChunkReader::open(&writer, None).await.unwrap();
    for (id, (kind, plain)) in &stored {
        match chunks.fetch(id).await {
            Ok(bytes) => assert_eq!((*kind, &bytes[..]), (ChunkKind::Meta, &plain[..])),
            Err(e) => assert!(*kind != ChunkKind::Meta && matches!(e, RepositoryError::ReaderNeeded), "{e}"),
        }
    }
    assert!(matches!(chunks.fetch(&ChunkId([0; 32])).await, Err(RepositoryError::MissingChunk { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_not_stored_again() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    snapshot(&writer, 1).await.unwrap();
    let packs = storage.names("packs/");
    assert_eq!(snapshot(&writer, 1).await.unwrap().2, 0);
    assert_eq!(storage.names("packs/"), packs);
    // Nothing relies on a pack that is being pruned: what it holds is stored anew.
    let mark = ObjectName::new(format!("tombstones/{}/1", packs[0].file_name())).unwrap();
    storage.set(&mark, "x");
    assert!(snapshot(&writer, 1).await.unwrap().2 > 0);
    assert_eq!(snapshot(&writer, 1).await.unwrap().2, 0);
    // What a lost one held is stored again.
    storage.objects.lock().unwrap().remove(&packs[1]);
    assert!(snapshot(&writer, 1).await.unwrap().2 > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_does_not_come_back_is_certified() {
    for fault in [Fault::FlipsABit, Fault::CutsShort, Fault::Loses] {
        for prefix in ["packs/", "index/", "snapshots/", "certificates/"] {
            let (storage, one) = (Memory::new(), reader());
            let key = made(&storage, &[&one]).await;
            let writer = as_writer(&storage, &key).await.unwrap();
            storage.with_fault(prefix, fault);
            let failed =
                snapshot(&writer, 1).await.err().unwrap_or_else(|| panic!("{fault:?} in {prefix} went unnoticed"));
            assert!(!matches!(failed, RepositoryError::Interrupted), "the cause is told: {failed}");
            let (found, _) = snapshots::list(&writer).await.unwrap();
            assert!(found.iter().all(|snapshot| snapshot.certificate.is_none()), "{fault:?} in {prefix}");
            if prefix == "packs/" {
                assert!(storage.names("index/").is_empty(), "a pack that was not read back is indexed");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_tried_twice_is_no_failure() {
    let (storage, one) = (Memory::new(), reader());
    storage.with_fault("", Fault::AnswersTwice);
    let key = made(&storage, &[&one]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    let (_, stored, _) = snapshot(&writer, 1).await.unwrap();
    all_read(&as_reader(&storage, &one).await.unwrap(), &stored).await.unwrap();
}

#[tokio::test]
async fn keys_that_do_not_come_back_make_no_repository() {
    for fault in [Fault::FlipsABit, Fault::CutsShort, Fault::Loses] {
        for prefix in ["keys/", "repository.json"] {
            let storage = Memory::new();
            storage.with_fault(prefix, fault);
            let options = InitOptions { readers: vec![reader().recipient], created: Timestamp::UNIX_EPOCH };
            assert!(init(&*storage, options).await.is_err(), "{fault:?} of {prefix}");
        }
    }
}

#[tokio::test]
async fn a_second_init_is_refused_and_changes_nothing() {
    let (storage, one) = (Memory::new(), reader());
    made(&storage, &[&one]).await;
    let before = storage.objects.lock().unwrap().clone();
    let options = InitOptions { readers: vec![reader().recipient], created: Timestamp::UNIX_EPOCH };
    assert!(matches!(init(&*storage, options).await, Err(RepositoryError::AlreadyInitialised { .. })));
    assert_eq!(*storage.objects.lock().unwrap(), before);
}

#[tokio::test]
async fn a_writer_stops_when_the_key_objects_are_not_those_it_knows() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    let ring = storage.names("keys/")[0].clone();
    let bytes = storage.bytes(&ring);
    let stopped = async |why: &str| {
        let opened = RepositoryWriter::open(&writer, 1000).await.err();
        assert!(matches!(opened, Some(RepositoryError::KeyObjectsChanged { .. })), "{why}: {opened:?}");
    };
    let more = ObjectName::new(format!("keys/1/2-{}.age", ObjectId::of(b"x"))).unwrap();
    storage.set(&more, "x");
    stopped("one was added").await;
    storage.objects.lock().unwrap().remove(&more);
    storage.set(&ring, "x");
    stopped("one was changed").await;
    storage.objects.lock().unwrap().remove(&ring);
    stopped("one is gone").await;
    storage.set(&ring, bytes);
    assert!(RepositoryWriter::open(&writer, 1000).await.is_ok());
}

#[tokio::test]
async fn another_repository_and_another_identity_are_told() {
    let (storage, one, stranger) = (Memory::new(), reader(), reader());
    let key = made(&storage, &[&one]).await;
    assert!(matches!(as_reader(&storage, &stranger).await, Err(RepositoryError::WrongIdentity)));
    let replaced = Memory::new();
    made(&replaced, &[&one]).await;
    assert!(matches!(as_writer(&replaced, &key).await, Err(RepositoryError::AnotherRepository { .. })));
    let access = Access::Reader(vec![one.path.clone()]);
    let wrong = Repository::open(storage.clone(), access, Some(Fingerprint([0; 32]))).await;
    assert!(matches!(wrong, Err(RepositoryError::AnotherRepository { .. })));
    assert!(matches!(as_writer(&Memory::new(), &key).await, Err(RepositoryError::NoRepository { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_under_a_second_name_is_told_and_left_out() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    let (id, ..) = snapshot(&writer, 1).await.unwrap();
    let name = storage.names("snapshots/")[0].clone();
    let later = manifest::manifest_name("2030-01-01T00:00:00Z".parse().unwrap(), &id).unwrap();
    storage.set(&later, storage.bytes(&name));
    let (found, problems) = snapshots::list(&writer).await.unwrap();
    assert_eq!((found.len(), problems.len()), (1, 1));
    assert_eq!(snapshots::select(&found, &id.to_hex()[..12]).unwrap().id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_that_are_gone_do_not_stop_a_reader() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let (_, stored, _) = snapshot(&as_writer(&storage, &key).await.unwrap(), 1).await.unwrap();
    let repository = as_reader(&storage, &one).await.unwrap();
    let chunks = ChunkReader::open(&repository, Some(&[ObjectId([1; 32])])).await.unwrap();
    assert!(chunks.fetch(stored.keys().next().unwrap()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_that_is_superseded_is_left_out() {
    let (storage, one) = (Memory::new(), reader());
    let key = made(&storage, &[&one]).await;
    let writer = as_writer(&storage, &key).await.unwrap();
    snapshot(&writer, 1).await.unwrap();
    assert!(ChunkReader::open(&writer, None).await.unwrap().index().chunk_count() > 0);
    let supersedes = storage.names("index/").iter().map(|name| name.file_name().parse().unwrap()).collect();
    let signer = key.signer().unwrap();
    let repository = writer.config.repository;
    let author = Author { repository, epoch: key.epoch, secrets: &writer.secrets, signer: &signer };
    let fragment = Fragment { version: 1, level: 1, supersedes, packs: vec![] };
    let bytes = envelope::write(ObjectKind::Index, &author, &fragment).unwrap();
    storage.set(&fragment_name(&ObjectId::of(&bytes)).unwrap(), bytes);
    assert_eq!(ChunkReader::open(&writer, None).await.unwrap().index().chunk_count(), 0);
}

#[test]
fn a_writer_key_comes_back_from_its_file_and_shows_no_secret() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let key = runtime.block_on(made(&Memory::new(), &[&reader()]));
    let again = copy(&key);
    assert_eq!(*again.to_toml(), *key.to_toml());
    let text = key.to_toml();
    let secret = data_encoding::HEXLOWER.encode(key.seal.expose());
    for broken in [text.replace("seal_secret", "sael_secret"), text.replace(&secret, &secret[..63])] {
        let message = WriterKey::parse(&broken).err().unwrap();
        assert!(!message.contains(&secret[..16]), "{message}");
    }
}
