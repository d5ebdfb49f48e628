//! Every parser of bytes that are stored or received, as a function that must not panic whatever it is given. What can be told of a right answer is told too:
//! what was read is written as it was, what was cut is put together again.

use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use restante::guard::approval::Signer;
use restante::guard::policy::Policy;
use restante::mail::base64;
use restante::mail::cut::{CutKind, SMALLEST_PART, cuts};
use restante::mail::identity::Fingerprint;
use restante::postgres::catalog::Catalog;
use restante::postgres::copy::FrameSplitter;
use restante::postgres::dsn::{Dsn, Environment};
use restante::profile::Profile;
use restante::repository::checkpoint::Checkpoint;
use restante::repository::chunk::{self, ChunkKind, Codec};
use restante::repository::config::Config;
use restante::repository::drills::Drill;
use restante::repository::envelope::{self, ObjectKind};
use restante::repository::id::{ObjectId, PackId};
use restante::repository::index::Fragment;
use restante::repository::manifest::{Certificate, Manifest};
use restante::repository::name::NameKind;
use restante::repository::prune::tombstone::{self, Tombstone};
use restante::repository::recipe::MAX_VALUE;
use restante::repository::ring::{Ring, parse_recipient, ring_place};
use restante::repository::rows::RowReader;
use restante::repository::secrets::{Secrets, WriterKey};
use restante::repository::segment::{self, Descriptor, Page};
use restante::repository::verifier::VerifierKey;
use restante::repository::zone::Zone;
use restante::repository::{cbor, pack};
use restante::storage::ObjectName;
use restante::storage::location::Location;

type Parser = (&'static str, fn(&[u8]));

/// The first byte says which; the rest is for it.
pub const PARSERS: [Parser; 14] = [
    ("metadata", metadata),
    ("row map", row_map),
    ("value map", value_map),
    ("rows", rows),
    ("pack", a_pack),
    ("directory", directory),
    ("object", object),
    ("configuration", configuration),
    ("chunk", a_chunk),
    ("mail", mail),
    ("base64", encoded),
    ("copy", copy),
    ("text", text),
    ("names", names),
];

pub fn any(data: &[u8]) {
    if let Some((first, rest)) = data.split_first() {
        PARSERS[usize::from(*first) % PARSERS.len()].1(rest);
    }
}

/// Of the stored repository, so that what lies in it opens.
static SECRETS: LazyLock<Option<Secrets>> =
    LazyLock::new(|| WriterKey::parse(include_str!("../../../fixtures/format-1/writer.key")).ok()?.secrets().ok());

fn metadata(data: &[u8]) {
    _ = cbor::decode::<Manifest>("manifest", data);
    _ = cbor::decode::<Certificate>("certificate", data);
    _ = cbor::decode::<Catalog>("catalog", data);
    _ = cbor::decode::<Checkpoint>("checkpoint", data);
    _ = cbor::decode::<Tombstone>("tombstone", data);
    _ = cbor::decode::<Drill>("drill", data);
    _ = cbor::decode::<Ring>("key ring", data);
    if let Ok(page) = cbor::decode::<Page>("page", data) {
        let again = cbor::encode("page", &page).expect("what was decoded encodes");
        assert!(cbor::decode::<Page>("page", &again).is_ok());
    }
    if let Ok(descriptor) = cbor::decode::<Descriptor>("descriptor", data) {
        for increment in &descriptor.increments {
            _ = increment.chunks().count();
            _ = (increment.is_dead(0), increment.is_dead(u32::MAX), increment.payload_chunk(u32::MAX));
        }
    }
    if let Ok(fragment) = cbor::decode::<Fragment>("fragment", data) {
        fragment.packs.iter().for_each(|pack| _ = pack.info());
    }
    if let Ok(zone) = cbor::decode::<Zone>("zone", data) {
        for column in (-1..4).filter_map(|number| zone.column(number)) {
            _ = column.may_contain_range(i64::MIN, i64::MAX);
            _ = column.may_contain_key(b"a key");
        }
    }
}

fn row_map(data: &[u8]) {
    if let Ok(rows) = segment::decode_row_map(data) {
        assert_eq!(segment::encode_row_map(&rows), data);
    }
}

fn value_map(data: &[u8]) {
    let chunk = [b'x'; 256];
    for value in segment::decode_value_map(data).into_iter().flatten() {
        assert!(value.recipe.length <= MAX_VALUE);
        if value.recipe.length < 1 << 20
            && let Ok(bytes) = value.recipe.assemble(|_| Some(&chunk))
        {
            assert_eq!(bytes.len() as u64, value.recipe.length);
        }
    }
}

fn rows(data: &[u8]) {
    let Some((columns, chunk)) = data.split_first() else { return };
    let (mut reader, mut fields) = (RowReader::new(chunk, usize::from(columns % 12), u32::MAX - 3), Vec::new());
    while let Ok(true) = reader.next(&mut fields) {}
}

fn a_pack(data: &[u8]) {
    let Some(secrets) = &*SECRETS else { return };
    _ = pack::parse(secrets, data);
    _ = pack::parse_front(secrets, PackId([0; 32]), data, u32::MAX);
}

fn directory(data: &[u8]) {
    if let Ok(entries) = pack::decode_entries(data) {
        assert!(pack::encode_entries(&entries) == data);
        _ = pack::check(ChunkKind::Row, &[], &entries, data.len() as u64);
    }
}

fn object(data: &[u8]) {
    let (Some(secrets), Ok(name)) = (&*SECRETS, ObjectName::new("index/x")) else { return };
    _ = envelope::read::<Fragment>(ObjectKind::Index, secrets, &name, data);
    _ = envelope::read::<Manifest>(ObjectKind::Manifest, secrets, &name, data);
}

fn configuration(data: &[u8]) {
    let Ok(name) = ObjectName::new("repository.json") else { return };
    if let Ok(config) = Config::read(&name, data, None) {
        _ = Config::read(&name, data, Some(&config));
    }
}

fn a_chunk(data: &[u8]) {
    let mut plain = Vec::new();
    for codec in [Codec::Raw, Codec::Zstd] {
        for length in [0, 1, 1000, 4 << 20, u32::MAX] {
            if chunk::decompress(codec, data, length, &mut plain).is_ok() {
                assert_eq!(plain.len(), length as usize);
            }
        }
    }
}

fn mail(data: &[u8]) {
    _ = Fingerprint::of(data);
    _ = Fingerprint::of_parts(&[data, b"second"]);
    // Nothing shorter is cut.
    let lines = b"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU2Nzg5YWJjZGVmZ2hpamtsbW5vcHFyc3R1\r\n";
    let long = [data, &lines.repeat(SMALLEST_PART / lines.len() + 1), data].concat();
    let mut end = 0;
    for cut in cuts(&long) {
        assert!(end <= cut.range.start && cut.range.end <= long.len(), "in order, and inside");
        end = cut.range.end;
        if let CutKind::Base64(form) = cut.kind {
            let (mut decoded, mut again) = (Vec::new(), Vec::new());
            form.decode_into(&long[cut.range.clone()], &mut decoded).expect("it has this form");
            form.encode_into(&decoded, &mut again);
            assert!(again == long[cut.range], "the same bytes");
        }
    }
}

fn encoded(data: &[u8]) {
    if let Some((decoded, form)) = base64::decode(data) {
        let mut again = Vec::new();
        form.encode_into(&decoded, &mut again);
        assert!(again == data, "the same bytes");
    }
}

fn copy(data: &[u8]) {
    let Some((how, stream)) = data.split_first() else { return };
    let stream = [b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0", stream].concat();
    let (mut splitter, mut bounds) = (FrameSplitter::new(u16::from(how % 5)), Vec::new());
    for piece in stream.chunks(usize::from(how / 5) + 1) {
        splitter.push(Bytes::copy_from_slice(piece));
        loop {
            match splitter.next(&mut bounds) {
                Ok(Some(row)) => bounds.iter().for_each(|field| assert_eq!(field.is_null(), field.of(&row).is_none())),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    _ = splitter.finish();
}

fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    _ = Profile::parse("profile.toml", text);
    _ = Policy::parse(Path::new("policy.toml"), text);
    _ = WriterKey::parse(text);
    _ = VerifierKey::parse(text);
    _ = Signer::parse(text);
    _ = parse_recipient(text);
    _ = Dsn::parse(text, &Environment::default());
    _ = text.parse::<Location>();
}

fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(name) = ObjectName::new(text) else { return };
    _ = (NameKind::of(&name), ring_place(&name), tombstone::damaged_in(&name));
    _ = (text.parse::<ObjectId>(), text.parse::<PackId>());
}
