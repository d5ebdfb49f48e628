//! Packs: what went in comes out, and nothing else does.

use proptest::prelude::*;

use super::{Keys, reader_secrets, without_identity};
use crate::repository::RepositoryError;
use crate::repository::chunk::{self, ChunkKind};
use crate::repository::id::{ChunkId, Epoch, ObjectId, PackId};
use crate::repository::index::{FragmentPack, Index};
use crate::repository::pack::{self, Entry, FinishedPack, PackBuilder, PackInfo, SealedCopy};
use crate::repository::seal::Sealer;
use crate::repository::secrets::Secrets;

fn id(secrets: &Secrets, epoch: Epoch, kind: ChunkKind, plain: &[u8]) -> ChunkId {
    chunk::chunk_id(&secrets.epoch(epoch).unwrap().chunk_id_key(kind).unwrap(), plain)
}

fn build(secrets: &Secrets, keys: &Keys, epoch: Epoch, kind: ChunkKind, plains: &[&[u8]]) -> FinishedPack {
    let mut builder = PackBuilder::new(kind, secrets, epoch, &keys.identity.to_public()).unwrap();
    for plain in plains {
        chunk::compress(id(secrets, epoch, kind, plain), plain, |chunk| builder.add(chunk)).unwrap().unwrap();
    }
    builder.finish(secrets).unwrap()
}

fn open(secrets: &Secrets, info: &PackInfo, bytes: &[u8], entry: &Entry) -> Result<Vec<u8>, RepositoryError> {
    let slot = &info.slots[usize::from(entry.slot)];
    let sealer = Sealer::new(&slot.unwrap(secrets)?)?;
    let id_key = secrets.epoch(slot.epoch)?.chunk_id_key(info.kind).ok_or(RepositoryError::ReaderNeeded)?;
    let start = (info.data_start + entry.offset) as usize;
    let sealed = bytes.get(start..start + entry.stored_length as usize).unwrap_or_default();
    entry.sealed_as(info.kind).open(&secrets.repository, &sealer, &id_key, sealed)
}

fn open_all(secrets: &Secrets, bytes: &[u8]) -> Result<Vec<Vec<u8>>, RepositoryError> {
    let info = pack::parse(secrets, bytes)?;
    info.entries.iter().map(|entry| open(secrets, &info, bytes, entry)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_packed_is_opened(plains in prop::collection::vec(prop::collection::vec(0u8..3, 0..3000), 1..8), kind in prop::sample::select(&ChunkKind::ALL)) {
        let keys = Keys::new();
        let secrets = reader_secrets(&[&keys]);
        let plains: Vec<&[u8]> = plains.iter().map(Vec::as_slice).collect();
        let finished = build(&secrets, &keys, Epoch(1), kind, &plains);
        let info = pack::parse(&secrets, &finished.bytes).unwrap();
        prop_assert_eq!(info.id, PackId::of(&finished.bytes));
        prop_assert_eq!(&info.entries, &finished.info.entries);
        prop_assert_eq!(info.data_start, finished.info.data_start);
        prop_assert_eq!(open_all(&secrets, &finished.bytes).unwrap(), plains);
        let told = FragmentPack::from(&info).info().unwrap();
        prop_assert_eq!(told.entries, info.entries);
        prop_assert_eq!(told.slots, info.slots);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_pack_is_noticed_even_without_its_hash() {
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    for kind in ChunkKind::ALL {
        let finished = build(&secrets, &keys, Epoch(1), kind, &[b"one", b"two two two two two two two two"]);
        assert!(open_all(&secrets, &finished.bytes).is_ok());
        for at in 0..finished.bytes.len() {
            let mut bytes = finished.bytes.to_vec();
            bytes[at] ^= 1 << (at % 8);
            assert!(open_all(&secrets, &bytes).is_err(), "byte {at} of a pack of {kind:?}");
            assert_ne!(PackId::of(&bytes), finished.info.id);
        }
        for length in 0..finished.bytes.len() {
            assert!(open_all(&secrets, &finished.bytes[..length]).is_err(), "cut to {length}");
        }
        assert!(open_all(&secrets, &[&finished.bytes[..], &[0]].concat()).is_err());
    }
}

#[test]
fn a_chunk_opens_in_its_own_place_only() {
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    let plains: [&[u8]; 2] = [b"first", b"other"];
    let finished = build(&secrets, &keys, Epoch(1), ChunkKind::Row, &plains);
    let other = build(&secrets, &keys, Epoch(1), ChunkKind::Row, &plains);
    let (info, bytes) = (&finished.info, &finished.bytes);
    let [first, second] = info.entries[..] else { panic!() };
    let refused = |info: &PackInfo, bytes: &[u8], entry: Entry, why| {
        assert!(open(&secrets, info, bytes, &entry).is_err(), "{why}");
    };
    assert!(open(&secrets, info, bytes, &first).is_ok());
    refused(info, bytes, Entry { offset: second.offset, ..first }, "the bytes of another chunk");
    refused(info, bytes, Entry { id: second.id, ..first }, "the id of another chunk");
    refused(info, bytes, Entry { ordinal: second.ordinal, ..first }, "the ordinal of another chunk");
    refused(info, bytes, Entry { raw_length: first.raw_length + 1, ..first }, "another length");
    refused(info, bytes, Entry { codec: chunk::Codec::Zstd, ..first }, "another codec");
    refused(info, &other.bytes, first, "the same chunk sealed for another pack");
    refused(&PackInfo { kind: ChunkKind::Payload, ..info.clone() }, bytes, first, "another kind");
    let elsewhere = Secrets { repository: crate::repository::id::RepositoryId([8; 16]), ..reader_secrets(&[&keys]) };
    assert!(open(&elsewhere, info, bytes, &first).is_err(), "another repository");
}

#[test]
fn plaintext_under_a_foreign_id_does_not_come_out() {
    // Whoever holds a data key can seal anything, but not make the keyed id of a chunk.
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    let claimed = id(&secrets, Epoch(1), ChunkKind::Row, b"the mail of Alice");
    let mut builder = PackBuilder::new(ChunkKind::Row, &secrets, Epoch(1), &keys.identity.to_public()).unwrap();
    chunk::compress(claimed, b"something else ..", |chunk| builder.add(chunk)).unwrap().unwrap();
    let finished = builder.finish(&secrets).unwrap();
    assert!(matches!(open_all(&secrets, &finished.bytes), Err(RepositoryError::Malformed { .. })));
}

#[test]
fn a_writer_opens_metadata_and_never_rows_or_payload() {
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    let writer = without_identity(&secrets);
    for kind in ChunkKind::ALL {
        let finished = build(&writer, &keys, Epoch(1), kind, &[b"mail"]);
        assert_eq!(pack::parse(&writer, &finished.bytes).unwrap().entries, finished.info.entries);
        match open_all(&writer, &finished.bytes) {
            Ok(plain) => assert_eq!((kind, plain), (ChunkKind::Meta, vec![b"mail".to_vec()])),
            Err(e) => assert!(kind != ChunkKind::Meta && matches!(e, RepositoryError::ReaderNeeded), "{kind:?}: {e}"),
        }
        assert_eq!(open_all(&secrets, &finished.bytes).unwrap(), [b"mail"]);
    }
}

#[test]
fn sealed_chunks_of_two_epochs_are_copied_without_any_reader_key() {
    let (old, new) = (Keys::new(), Keys::new());
    let secrets = reader_secrets(&[&old, &new]);
    for kind in ChunkKind::ALL {
        let a = build(&secrets, &old, Epoch(1), kind, &[b"a1", b"a2", b"a3"]);
        let b = build(&secrets, &new, Epoch(2), kind, &[b"b1", b"b2"]);
        let (wanted_a, wanted_b) = ([a.info.entries[0].id, a.info.entries[2].id], [b.info.entries[1].id]);
        let mut pruner = without_identity(&secrets);
        pruner.epochs.values_mut().for_each(|epoch| epoch.id = None);
        let mut copy = SealedCopy::new(kind);
        copy.add(&a.info, &a.bytes, |entry| wanted_a.contains(&entry.id)).unwrap();
        copy.add(&b.info, &b.bytes, |entry| wanted_b.contains(&entry.id)).unwrap();
        let (info, bytes) = copy.finish(&pruner, Epoch(2)).unwrap();
        assert_eq!(info.slots.len(), 2);
        assert_eq!(open_all(&secrets, &bytes).unwrap(), [b"a1", b"a3", b"b2"]);
        assert_eq!(pack::parse(&pruner, &bytes).unwrap().entries, info.entries);
    }
    let row = build(&secrets, &old, Epoch(1), ChunkKind::Row, &[b"r"]);
    assert!(SealedCopy::new(ChunkKind::Meta).add(&row.info, &row.bytes, |_| true).is_err());
}

#[test]
fn a_fragment_cannot_make_a_reader_fetch_or_allocate_beyond_a_pack() {
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    let finished = build(&secrets, &keys, Epoch(1), ChunkKind::Row, &[b"row"]);
    let entry = finished.info.entries[0];
    let told = |change: &dyn Fn(&mut PackInfo)| {
        let mut info = finished.info.clone();
        change(&mut info);
        FragmentPack::from(&info).info().is_ok()
    };
    assert!(told(&|_| {}));
    assert!(!told(&|info| info.size = u32::MAX));
    assert!(!told(&|info| info.data_start = u32::MAX));
    assert!(!told(&|info| info.slots.clear()));
    assert!(!told(&|info| info.slots[0].wrap = pack::Wrap::Seal));
    assert!(!told(&|info| info.slots[0].wrapped = vec![0; 1 << 16]));
    for lie in [
        Entry { offset: u32::MAX, ..entry },
        Entry { stored_length: u32::MAX, ..entry },
        Entry { stored_length: 15, ..entry },
        Entry { raw_length: u32::MAX, ..entry },
        Entry { slot: 1, ..entry },
    ] {
        assert!(!told(&|info| info.entries = vec![lie]), "{lie:?}");
    }
}

#[test]
fn an_index_finds_what_was_added_and_compares_whole_ids() {
    let keys = Keys::new();
    let secrets = reader_secrets(&[&keys]);
    let finished = build(&secrets, &keys, Epoch(1), ChunkKind::Row, &[b"one", b"two"]);
    let mut index = Index::default();
    index.add(finished.info.clone(), keys.signer.id(), ObjectId([1; 32]));
    index.add(finished.info.clone(), Keys::new().signer.id(), ObjectId([2; 32]));
    assert_eq!((index.chunk_count(), index.packs().count()), (2, 1));
    assert_eq!(index.signer(&finished.info.id), Some(keys.signer.id()), "the first who named it");
    for entry in &finished.info.entries {
        assert_eq!(index.find(&entry.id).unwrap().1, entry);
        let mut alike = entry.id;
        alike.0[31] ^= 1;
        assert!(index.find(&alike).is_none(), "the same first half is not enough");
    }
}

#[test]
fn a_chunk_over_the_cap_is_neither_made_nor_opened() {
    let over = vec![0; chunk::MAX_CHUNK + 1];
    assert!(chunk::compress(ChunkId([0; 32]), &over, |_| ()).is_err());
    assert!(chunk::decompress(chunk::Codec::Zstd, &[], u32::MAX, &mut Vec::new()).is_err());
    let bomb = zstd::bulk::compress(&over, 3).unwrap();
    assert!(chunk::decompress(chunk::Codec::Zstd, &bomb, 100, &mut Vec::new()).is_err());
}
