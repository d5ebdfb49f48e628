//! The parsers that `scripts/fuzz` runs under libFuzzer, over everything that the stored repository holds and over damages of it. With `RESTANTE_SEEDS` what they
//! begin from is written there.

use std::sync::Arc;

use restante::repository::name::NameKind;
use restante::repository::reader::ChunkReader;
use restante::repository::{cbor, snapshots};
use restante::storage::Storage;

use super::memory::Memory;
use super::stored::stored;

#[path = "../../fuzz/src/parsers.rs"]
mod fuzz;

/// What goes to a parser.
fn seed(parser: &str, bytes: &[u8]) -> Vec<u8> {
    let number = fuzz::PARSERS.iter().position(|(name, _)| *name == parser).unwrap();
    [&[number as u8], bytes].concat()
}

async fn seeds() -> Vec<Vec<u8>> {
    let (keys, objects) = stored();
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for (name, bytes) in &objects {
        seeds.push(seed("names", name.as_str().as_bytes()));
        match NameKind::of(name) {
            Some(NameKind::Pack) => seeds.push(seed("pack", bytes)),
            Some(NameKind::Configuration | NameKind::LaterConfiguration) => seeds.push(seed("configuration", bytes)),
            Some(NameKind::KeyRing) | None => {}
            Some(_) => seeds.push(seed("object", bytes)),
        }
    }
    let storage: Arc<dyn Storage> = Memory::of(objects);
    let repository = keys.as_reader(&storage).await.unwrap();
    for snapshot in snapshots::list_all(&repository).await.unwrap().0 {
        seeds.push(seed("metadata", &cbor::encode("manifest", &*snapshot.manifest).unwrap()));
        seeds.push(seed("metadata", &cbor::encode("certificate", &snapshot.certificate).unwrap()));
    }
    let reader = ChunkReader::open(&repository, None).await.unwrap();
    for pack in reader.index().packs() {
        seeds.push(seed("directory", &restante::repository::pack::encode_entries(&pack.entries)));
        let ids: Vec<_> = pack.entries.iter().map(|entry| entry.id).collect();
        for plain in reader.fetch_all(&ids).await.unwrap().values() {
            seeds.extend(["metadata", "row map", "value map", "rows", "mail"].map(|parser| seed(parser, plain)));
            seeds.push(seed("chunk", &zstd::bulk::compress(plain, 3).unwrap()));
        }
    }
    let boundary = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\n";
    seeds.push(seed(
        "mail",
        format!("From: a@example.org\r\nMessage-ID: <1@x>\r\nMIME-Version: 1.0\r\n{boundary}").as_bytes(),
    ));
    seeds.push(seed("base64", b"QUJD\r\nREVG\r\nRw==\r\n"));
    seeds.push(seed("copy", b"\x02\x00\x02\x00\x00\x00\x01x\xff\xff\xff\xff\xff\xff"));
    for text in [
        include_str!("../../../src/profile/builtin/dbmail.toml"),
        include_str!("../../../fixtures/format-1/writer.key"),
        "signatures = 1\nallowed_signers = [\"a ssh-ed25519 AAAA\"]\nsnapshot_age = \"1h\"\nhash_age = \"30d\"",
        "postgresql://user:word@[::1]:5432,host/base?sslmode=verify-full&options=-c%20x%3Dy",
        "host=/tmp port=1 user='a b' password='\\''",
        "s3://bucket/prefix?endpoint=http://127.0.0.1:1&region=x",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== a",
    ] {
        seeds.push(seed("text", text.as_bytes()));
    }
    seeds
}

#[tokio::test(flavor = "multi_thread")]
async fn no_bytes_that_are_stored_or_received_make_a_parser_panic() {
    let seeds = seeds().await;
    if let Ok(folder) = std::env::var("RESTANTE_SEEDS") {
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(format!("{folder}/seed-{number}"), seed).unwrap();
        }
    }
    for (number, seed) in seeds.iter().enumerate() {
        fuzz::any(seed);
        // A byte that is another one, and an end that is missing.
        let at = 1 + number * 7919 % (seed.len() - 1).max(1);
        for change in [1, 0x80, 0xff] {
            let mut damaged = seed.clone();
            damaged.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= change);
            fuzz::any(&damaged);
        }
        fuzz::any(&seed[..at]);
    }
}
