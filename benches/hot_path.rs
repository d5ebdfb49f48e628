//! The pieces that every byte of a store goes through, one by one: `cargo bench --no-default-features`, or with a word after it
//! only those whose name holds it; `cargo bench --profile ci --no-default-features -- --test` runs each once. `scripts/bench` measures the whole against other programs; `docs/performance.md` has figures.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot begin may as well panic")]

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

use restante::compare::classify::row_print;
use restante::compare::pairing::{Paired, Pairs};
use restante::mail::base64::{Base64Form, LineEnding, PIECE_BYTES};
use restante::mail::cut::cuts;
use restante::mail::identity::Fingerprint;
use restante::mail::matching::matching;
use restante::postgres::copy::FrameSplitter;
use restante::repository::chunk::{self, ChunkKind};
use restante::repository::id::{ChunkId, Digest, Epoch, ObjectId, PackId, RepositoryId, SignerId};
use restante::repository::index::Index;
use restante::repository::pack::{self, PackBuilder};
use restante::repository::rows::{self, RowHasher};
use restante::repository::seal::{Sealer, Secret};
use restante::repository::secrets::{EpochSecrets, Secrets};
use restante::repository::segment::{MapHasher, MapRow, TupleId, encode_row_map};
use restante::repository::zone::{ColumnZone, ZoneBuilder, ZoneColumn};

fn main() {
    divan::main();
}

/// Bytes that look random and depend on the seed alone.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Text of `length` bytes that zstd presses to about a third, as it does with single mails.
fn text(length: usize) -> Vec<u8> {
    let words: Vec<String> =
        noise(4096, 1).chunks(2).map(|pair| format!("{:x}", u16::from(pair[0]) * 7 + u16::from(pair[1]))).collect();
    let mut out = Vec::with_capacity(length + 16);
    for (n, pick) in noise(length, 2).chunks(2).enumerate() {
        out.extend_from_slice(words[(usize::from(pick[0]) * 8 + usize::from(pick[1] & 7)) % words.len()].as_bytes());
        out.extend_from_slice(if n % 12 == 11 { b"\r\n" } else { b" " });
        if out.len() >= length {
            break;
        }
    }
    out.truncate(length);
    out
}

const FORM: Base64Form = Base64Form { line_length: 76, line_ending: LineEnding::CrLf, final_line_ending: true };

/// A mail with some text and one attachment.
fn mail(attachment: usize) -> Vec<u8> {
    let mut out =
        b"From: a@example.org\r\nSubject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n".to_vec();
    out.extend(text(4000));
    out.extend_from_slice(b"\r\n--b\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n");
    FORM.encode_into(&noise(attachment, 3), &mut out);
    out.extend_from_slice(b"\r\n--b--\r\n");
    out
}

fn epoch_secrets() -> (Secrets, age::x25519::Recipient) {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public();
    let (seal, id) = (Secret::new([1; 32]), Some(Secret::new([2; 32])));
    let epoch = EpochSecrets { seal, id, identity: Some(identity), signers: Vec::new() };
    (
        Secrets { repository: RepositoryId([7; 16]), epochs: [(Epoch(1), epoch)].into(), verifiers: Vec::new() },
        recipient,
    )
}

/// Pieces of 8 KiB as the server sends them, rows of an id and a value of `value` bytes.
fn copy_stream(value: usize) -> (Vec<Bytes>, usize) {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    let body = text(value);
    while out.len() < 4 << 20 {
        out.extend_from_slice(&[0, 2, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        out.extend_from_slice(&(value as u32).to_be_bytes());
        out.extend_from_slice(&body);
    }
    out.extend_from_slice(&[0xff, 0xff]);
    let length = out.len();
    let all = Bytes::from(out);
    ((0..length).step_by(8192).map(|at| all.slice(at..length.min(at + 8192))).collect(), length)
}

#[divan::bench(args = [200, 8_000, 500_000])]
fn split_copy_frames(bencher: Bencher, value: usize) {
    let (pieces, length) = copy_stream(value);
    bencher.counter(BytesCount::new(length)).bench(|| {
        let (mut splitter, mut bounds) = (FrameSplitter::new(2), Vec::new());
        for piece in &pieces {
            splitter.push(piece.clone());
            while let Some(row) = splitter.next(&mut bounds).unwrap() {
                black_box(row);
            }
        }
        splitter.finish().unwrap()
    });
}

#[divan::bench(args = [20_000, 2_000_000])]
fn find_cuts(bencher: Bencher, attachment: usize) {
    let mail = mail(attachment);
    bencher.counter(BytesCount::new(mail.len())).bench(|| cuts(black_box(&mail)));
}

/// What a piece of an attachment costs before it is stored: decoded, and encoded again to be compared.
#[divan::bench]
fn base64_round_trip(bencher: Bencher) {
    let mut text = Vec::new();
    FORM.encode_into(&noise(PIECE_BYTES, 3), &mut text);
    let (mut decoded, mut again) = (Vec::new(), Vec::new());
    bencher.counter(BytesCount::new(text.len())).bench_local(|| {
        decoded.clear();
        again.clear();
        FORM.decode_into(&text, &mut decoded).unwrap();
        FORM.encode_into(&decoded, &mut again);
        assert!(again == text);
    });
}

#[divan::bench(args = [64 << 10, 1 << 20])]
fn name_a_chunk(bencher: Bencher, length: usize) {
    let (key, plain) = (Secret::new([3; 32]), text(length));
    bencher.counter(BytesCount::new(length)).bench(|| chunk::chunk_id(&key, black_box(&plain)));
}

#[divan::bench(args = ["text", "noise"])]
fn compress(bencher: Bencher, what: &str) {
    let plain = if what == "text" { text(1 << 20) } else { noise(1 << 20, 4) };
    bencher
        .counter(BytesCount::new(plain.len()))
        .bench(|| chunk::compress(ChunkId([0; 32]), black_box(&plain), |chunk| chunk.bytes.len()).unwrap());
}

/// Sixteen chunks of 1 MiB: named, compressed, sealed, put into a pack.
#[divan::bench]
fn build_a_pack(bencher: Bencher) {
    let ((secrets, recipient), plain) = (epoch_secrets(), text(1 << 20));
    let key = secrets.epochs[&Epoch(1)].chunk_id_key(ChunkKind::Payload).unwrap();
    bencher.counter(BytesCount::new(16 * plain.len())).bench(|| {
        let mut builder = PackBuilder::new(ChunkKind::Payload, &secrets, Epoch(1), &recipient).unwrap();
        for _ in 0..16 {
            chunk::compress(chunk::chunk_id(&key, &plain), &plain, |chunk| builder.add(chunk)).unwrap().unwrap();
        }
        builder.finish(&secrets).unwrap()
    });
}

/// The same pack opened again, as it is after each upload: opened, decompressed, named again.
#[divan::bench]
fn read_a_pack_back(bencher: Bencher) {
    let ((secrets, recipient), plain) = (epoch_secrets(), text(1 << 20));
    let key = secrets.epochs[&Epoch(1)].chunk_id_key(ChunkKind::Payload).unwrap();
    let mut builder = PackBuilder::new(ChunkKind::Payload, &secrets, Epoch(1), &recipient).unwrap();
    for _ in 0..16 {
        chunk::compress(chunk::chunk_id(&key, &plain), &plain, |chunk| builder.add(chunk)).unwrap().unwrap();
    }
    let finished = builder.finish(&secrets).unwrap();
    bencher.counter(BytesCount::new(16 * plain.len())).bench(|| {
        let info = pack::parse(&secrets, &finished.bytes).unwrap();
        let sealer = Sealer::new(&finished.data_key).unwrap();
        for entry in &info.entries {
            let start = (info.data_start + entry.offset) as usize;
            let sealed = &finished.bytes[start..start + entry.stored_length as usize];
            black_box(entry.sealed_as(info.kind).open(&secrets.repository, &sealer, &key, sealed).unwrap());
        }
    });
}

/// What a row of ten small columns costs beside its large values.
#[divan::bench]
fn build_rows(bencher: Bencher) {
    const ROWS: u32 = 10_000;
    let hasher = RowHasher::new(&Secret::new([5; 32]));
    let field = [7_u8; 12];
    bencher.counter(ItemsCount::new(ROWS)).bench(|| {
        let (mut out, mut map, mut map_hash) = (Vec::new(), Vec::new(), MapHasher::default());
        for row in 0..ROWS {
            let mut digest = hasher.row();
            for _ in 0..10 {
                rows::put_inline(&mut out, &field);
                digest.inline(&field);
            }
            let place = TupleId { block: row / 50, offset: (row % 50) as u16 };
            map_hash.add(place, row);
            map.push(MapRow { place, xmin: row, digest: digest.finish() });
        }
        (out, encode_row_map(&map), map_hash.finish())
    });
}

/// An index of 200,000 chunks, as 80 GB of mail have.
fn index() -> (Index, Vec<ChunkId>) {
    let (secrets, recipient) = epoch_secrets();
    let builder = PackBuilder::new(ChunkKind::Payload, &secrets, Epoch(1), &recipient).unwrap();
    let template = builder.finish(&secrets).unwrap().info;
    let (mut index, mut ids) = (Index::default(), Vec::new());
    for number in 0..2_000_u64 {
        let mut info = template.clone();
        info.id = PackId(noise(32, number).try_into().unwrap());
        for chunk in 0..100 {
            let id = ChunkId(noise(32, (number << 20) + chunk + 1).try_into().unwrap());
            let codec = chunk::Codec::Zstd;
            info.entries.push(pack::Entry {
                id,
                slot: 0,
                codec,
                ordinal: 0,
                offset: 0,
                stored_length: 16,
                raw_length: 0,
            });
            ids.push(id);
        }
        index.add(info, SignerId([0; 32]), ObjectId([0; 32]));
    }
    (index, ids)
}

#[divan::bench]
fn look_chunks_up(bencher: Bencher) {
    let (index, ids) = index();
    bencher.counter(ItemsCount::new(ids.len())).bench(|| ids.iter().filter(|id| index.find(id).is_some()).count());
}

fn zone_from(kind: ZoneColumn, first: u64, rows: u64) -> ColumnZone {
    let mut builder = ZoneBuilder::new(1, kind);
    (first..first + rows).for_each(|key| builder.add(&(key * 3).to_be_bytes()));
    builder.finish().unwrap()
}

fn zone(kind: ZoneColumn) -> ColumnZone {
    zone_from(kind, 0, 10_000)
}

#[divan::bench(args = [ZoneColumn::Key, ZoneColumn::Integer { time: false }])]
fn build_a_zone(bencher: Bencher, kind: ZoneColumn) {
    bencher.counter(ItemsCount::new(10_000_u32)).bench(|| zone(kind));
}

#[divan::bench]
fn ask_a_zone(bencher: Bencher) {
    let zone = zone(ZoneColumn::Key);
    let hits = || (0..10_000_u64).filter(|key| zone.may_contain_key(&key.to_be_bytes())).count();
    bencher.counter(ItemsCount::new(10_000_u32)).bench(hits);
}

/// The 32,000 segments of a terabyte, asked for a window of twenty hours out of thirty days.
#[divan::bench]
fn prune_by_time(bencher: Bencher) {
    const SEGMENTS: u64 = 32_000;
    let kind = ZoneColumn::Integer { time: true };
    let zones: Vec<ColumnZone> = (0..SEGMENTS).map(|number| zone_from(kind, number * 50, 50)).collect();
    let (from, to) = (SEGMENTS * 50 * 3 * 35 / 36, SEGMENTS * 50 * 3);
    bencher
        .counter(ItemsCount::new(zones.len()))
        .bench(|| zones.iter().filter(|zone| zone.may_contain_range(from as i64, to as i64)).count());
}

/// The filters of a thousand segments with 500 messages each, asked for the keys of twenty messages.
#[divan::bench]
fn prune_by_key(bencher: Bencher) {
    let zones: Vec<ColumnZone> = (0..1_000).map(|number| zone_from(ZoneColumn::Key, number * 500, 500)).collect();
    let keys: Vec<[u8; 8]> = (0..20_u64).map(|number| (number * 25_000 * 3).to_be_bytes()).collect();
    bencher
        .counter(ItemsCount::new(zones.len() * keys.len()))
        .bench(|| zones.iter().filter(|zone| keys.iter().any(|key| zone.may_contain_key(key))).count());
}

/// Rows of both sides held against each other, of which one in 36 is gone: key, two columns of evidence, and what may change.
#[divan::bench]
fn pair_rows(bencher: Bencher) {
    const ROWS: u64 = 100_000;
    let print = |number: u64| {
        let (key, saved, size) =
            (number.to_be_bytes(), (number * 43_200_000).to_be_bytes(), (number % 9_973).to_be_bytes());
        row_print(Some(&key), [Some(&saved[..]), Some(&size[..])].into_iter())
    };
    bencher.counter(ItemsCount::new(2 * ROWS)).bench(|| {
        let mut pairs = Pairs::default();
        (0..ROWS * 35 / 36).for_each(|number| pairs.live(print(number), number as u32));
        (0..ROWS).filter(|number| pairs.snapshot(print(*number), *number as u32) == Paired::Leftover).count()
    });
}

/// What tells whether two mails are the same: headers without traces, decoded parts.
#[divan::bench(args = [20_000, 2_000_000])]
fn fingerprint(bencher: Bencher, attachment: usize) {
    let mail = mail(attachment);
    bencher.counter(BytesCount::new(mail.len())).bench(|| Fingerprint::of(black_box(&mail)));
}

/// Lost mails looked for among as many living ones: a third of them is there, mostly with other traces.
#[divan::bench]
fn match_mails(bencher: Bencher) {
    let of = |number: u32, trace: u32| {
        let mail = format!(
            "Received: by mx{trace}.example.org\r\nFrom: a@example.org\r\nMessage-ID: <{number}@example.org>\r\n\r\nText {number}\r\n"
        );
        Fingerprint::of(mail.as_bytes())
    };
    let lost: Vec<Fingerprint> = (0..2_000).map(|number| of(number, 0)).collect();
    let live: Vec<Fingerprint> = (0..2_000).map(|number| of(number * 3, number % 4)).collect();
    bencher.counter(ItemsCount::new(lost.len())).bench(|| matching(&lost, &live).pairs.len());
}

#[divan::bench]
fn add_digests(bencher: Bencher) {
    let digests: Vec<Digest> = (0..10_000).map(|seed| Digest(noise(16, seed).try_into().unwrap())).collect();
    bencher.counter(ItemsCount::new(digests.len())).bench(|| {
        let mut sum = rows::MultisetDigest::default();
        digests.iter().for_each(|digest| sum.add(digest));
        sum.finish()
    });
}
