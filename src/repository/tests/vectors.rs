//! The test vectors of `docs/format.md`, computed by the code and compared with the very text of the page.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;

use super::REPOSITORY;
use crate::mail::base64::{Base64Form, LineEnding, encode_slice};
use crate::repository::cbor;
use crate::repository::chunk::{self, ChunkKind, Codec, SealedAs};
use crate::repository::envelope::ObjectKind;
use crate::repository::id::{Digest, Epoch, ObjectId};
use crate::repository::index::Fragment;
use crate::repository::pack::{self, Entry, Slot, Wrap};
use crate::repository::recipe::{Operation, Recipe};
use crate::repository::rows::{self, MultisetDigest, RowHasher};
use crate::repository::seal::{Sealer, Secret, Signer};
use crate::repository::secrets::{EpochSecrets, Secrets, context};
use crate::repository::segment::{self, MapHasher, MapRow, MapValue, TupleId};
use crate::repository::zone::{ColumnZone, ZoneBuilder, ZoneColumn};

const PAGE: &str = include_str!("../../../docs/format.md");

fn vectors() -> BTreeMap<String, Vec<u8>> {
    let block = PAGE.split_once("```vectors\n").unwrap().1.split_once("```").unwrap().0;
    block
        .lines()
        .map(|line| {
            let (name, value) = line.split_once(" = ").unwrap();
            (name.trim().to_owned(), HEXLOWER.decode(value.as_bytes()).unwrap())
        })
        .collect()
}

fn computed(filter: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let bytes: [u8; 32] = std::array::from_fn(|i| i as u8);
    let salt: [u8; 32] = std::array::from_fn(|i| 32 + i as u8);
    let (secret, plain, large) = (Secret::new(bytes), b"poste restante".as_slice(), [b'a'; 600]);
    let mut all = vec![("secret", bytes.to_vec()), ("salt", salt.to_vec()), ("plain", plain.to_vec())];
    for (name, context, salt) in [
        ("key chunk-id meta", context::CHUNK_ID_META, &[][..]),
        ("key chunk-id row", context::CHUNK_ID_ROW, &[]),
        ("key chunk-id payload", context::CHUNK_ID_PAYLOAD, &[]),
        ("key value-hash", context::VALUE_HASH, &[]),
        ("key row-digest", context::ROW_DIGEST, &[]),
        ("key seal directory", context::SEAL_DIRECTORY, &salt),
        ("key pack-meta", context::PACK_META, &salt),
        ("key seal index", "restante 1 seal index", &salt),
        ("key seal manifest", "restante 1 seal manifest", &salt),
        ("key seal certificate", "restante 1 seal certificate", &salt),
    ] {
        all.push((name, secret.derive(context, salt).expose().to_vec()));
    }
    assert_eq!(ObjectKind::Index.seal_context(), "restante 1 seal index");
    assert_eq!(ObjectKind::Manifest.seal_context(), "restante 1 seal manifest");
    assert_eq!(ObjectKind::Certificate.seal_context(), "restante 1 seal certificate");

    let id = chunk::chunk_id(&secret.derive(context::CHUNK_ID_ROW, &[]), plain);
    let raw_length = plain.len() as u32;
    let sealed_as = SealedAs { kind: ChunkKind::Row, id, raw_length, codec: Codec::Raw, ordinal: 258 };
    let mut sealed = plain.to_vec();
    sealed_as.seal(&REPOSITORY, &Sealer::new(&secret).unwrap(), &mut sealed, 0).unwrap();
    let stored_length = sealed.len() as u32;
    let entry = Entry { id, slot: 0, codec: Codec::Raw, ordinal: 258, offset: 4096, stored_length, raw_length };
    all.push(("chunk id row", id.0.to_vec()));
    all.push(("chunk associated data", sealed_as.associated_data(&REPOSITORY)));
    all.push(("chunk sealed", sealed));
    all.push(("entry", pack::encode_entries(&[entry])));

    let hasher = RowHasher::new(&secret);
    let value_hash = hasher.value(&large);
    let mut digest = hasher.row();
    digest.null();
    digest.inline(&42i32.to_be_bytes());
    digest.large(600, &value_hash);
    let digest = digest.finish();
    let mut sum = MultisetDigest::default();
    sum.add(&digest);
    sum.add(&digest);
    let mut row = Vec::new();
    rows::put_null(&mut row);
    rows::put_inline(&mut row, &42i32.to_be_bytes());
    rows::put_large(&mut row);
    let place = TupleId { block: 1, offset: 2 };
    let mut map_hash = MapHasher::default();
    map_hash.add(place, 3);
    all.push(("value hash", value_hash.to_vec()));
    all.push(("row digest", digest.0.to_vec()));
    all.push(("multiset digest", sum.finish().0.to_vec()));
    all.push(("row chunk", row));
    all.push(("row map", segment::encode_row_map(&[MapRow { place, xmin: 3, digest }])));
    all.push(("map hash", map_hash.finish().to_vec()));

    let form = Base64Form { line_length: 76, line_ending: LineEnding::CrLf, final_line_ending: true };
    let recipe = Recipe {
        length: 378,
        operations: vec![
            Operation { chunk: 0, offset: 10, length: 300, base64: None },
            Operation { chunk: 1, offset: 0, length: 57, base64: Some(form) },
        ],
    };
    let mut encoded = Vec::new();
    recipe.encode(&mut encoded);
    all.push(("recipe", encoded));
    let value = MapValue { hash: Digest::from_slice(&value_hash[..16]).unwrap(), recipe };
    all.push(("value map", segment::encode_value_map(&[value])));
    let mut text = Vec::new();
    let form = Base64Form { line_length: 4, line_ending: LineEnding::Lf, final_line_ending: true };
    encode_slice(plain, form, &mut text);
    all.push(("base64", text));

    let signer = Signer::from_seed(&secret).unwrap();
    all.push(("signer", signer.id().0.to_vec()));
    all.push(("signature", signer.sign(&ObjectKind::Manifest.signed_message(plain)).to_vec()));
    let mut wrapped = secret.expose().to_vec();
    Sealer::new(&secret.derive(context::PACK_META, &salt)).unwrap().seal(0, &[], &mut wrapped).unwrap();
    let wrapped = [&salt[..], &wrapped].concat();
    let slot = Slot { epoch: Epoch(1), wrap: Wrap::Seal, wrapped: wrapped.clone() };
    let epoch = EpochSecrets { seal: secret.clone(), id: None, identity: None, signers: vec![] };
    let secrets =
        Secrets { repository: REPOSITORY, epochs: BTreeMap::from([(Epoch(1), epoch)]), verifiers: Vec::new() };
    assert_eq!(slot.unwrap(&secrets).unwrap().expose(), secret.expose());
    all.push(("slot seal", wrapped));
    let fragment = Fragment { version: 1, level: 0, supersedes: vec![ObjectId(bytes)], packs: vec![] };
    all.push(("cbor", cbor::encode("index", &fragment).unwrap()));

    // How a filter is built is not part of the format, only what it answers.
    all.push(("filter", filter.to_vec()));
    all
}

#[test]
fn the_page_says_what_the_program_does() {
    let written = vectors();
    let filter = written.get("filter").cloned().unwrap_or_else(|| {
        let mut builder = ZoneBuilder::new(1, ZoneColumn::Key);
        ["alice", "bob", "carol"].iter().for_each(|key| builder.add(key.as_bytes()));
        builder.finish().unwrap().filter
    });
    let computed = computed(&filter);
    let block: String = computed.iter().map(|(name, value)| format!("{name} = {}\n", HEXLOWER.encode(value))).collect();
    let expected: BTreeMap<String, Vec<u8>> =
        computed.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert!(written == expected, "the vectors in docs/format.md should be:\n{block}");

    let zone = ColumnZone { column: 1, has_nulls: false, intervals: vec![], filter };
    let answers = ["alice", "bob", "carol", "dave"].map(|key| zone.may_contain_key(key.as_bytes()));
    assert_eq!(answers, [true, true, true, false]);
}

#[test]
fn the_page_names_the_limits_that_the_program_has() {
    for limit in [
        format!(
            "| rows in a chunk of a row map | {},{:03} |",
            segment::ROW_MAP_ROWS / 1000,
            segment::ROW_MAP_ROWS % 1000
        ),
        format!("| segments in a page | {} |", segment::PAGE_SEGMENTS),
        format!("| inline value | {} bytes |", rows::INLINE_LIMIT),
        format!("| chunk, plaintext | {} MiB |", chunk::MAX_CHUNK >> 20),
        format!("| object, pack | {} MiB |", pack::MAX_PACK >> 20),
        format!("| sealed directory | {} MiB,", pack::MAX_DIRECTORY >> 20),
    ] {
        assert!(PAGE.contains(&limit), "docs/format.md lacks: {limit}");
    }
    for kind in ObjectKind::ALL {
        assert!(PAGE.contains(&format!("{} `{}`", kind.code(), kind.name())), "{kind:?}");
    }
}
