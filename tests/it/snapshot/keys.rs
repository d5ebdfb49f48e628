//! What the writer key and the storage tell of the mail: names, counts, lengths, places, transaction ids; nothing of any content.

use std::collections::BTreeMap;

use restante::repository::RepositoryError;
use restante::repository::chunk::ChunkKind;
use restante::repository::reader::{ChunkReader, load_index};
use restante::repository::{cbor, segment, snapshots};

use super::support::{Place, everything, restored, same, snapshot_of};
use crate::server::TestServer;

/// `(what, bytes to look for)`: the form that COPY BINARY, text or the catalog has.
fn canaries() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |text: &str| text.as_bytes().to_vec();
    let mut canaries = vec![
        ("a short text", bytes("CanaryShortText")),
        ("a long text", bytes("CanaryLongText")),
        ("a subject in a body", bytes("CanarySubjectLine")),
        ("an attachment", bytes("CanaryDecodedAttachment")),
        ("its base64", bytes("Q2FuYXJ5RGVjb2RlZEF0dGFjaG1lbnQ")),
        ("json", bytes("CanaryJsonKey")),
        ("xml", bytes("CanaryXmlTag")),
        ("an enum's label", bytes("CanaryEnumLabel")),
        ("a default", bytes("CanaryDefaultValue")),
        ("a value of a column added later", bytes("CanaryMissingValue")),
        ("a comment", bytes("CanaryTableComment")),
        ("a function's body", bytes("CanaryFunctionBody")),
        ("a view", bytes("CanaryViewLiteral")),
        ("a check", bytes("CanaryCheckLiteral")),
        ("an index's predicate", bytes("CanaryIndexLiteral")),
        ("a policy", bytes("CanaryPolicyLiteral")),
        ("a trigger", bytes("CanaryTriggerLiteral")),
        ("a domain's check", bytes("CanaryDomainLiteral")),
        ("a composite", bytes("CanaryComposite")),
        ("an array", bytes("CanaryArrayElement")),
        ("a range of text", bytes("CanaryRangeBound")),
        ("a tsvector", bytes("canarylexeme")),
        ("a partition's bound", bytes("CanaryPartitionBound")),
        ("a key that goes into filters", bytes("CanaryTextKey")),
        ("bytea", vec![0xca, 0x4a, 0x97, 0x11, 0xfe, 0xed, 0xbe, 0xef]),
        ("uuid", vec![0xca, 0x4a, 0x97, 0x22, 0xfe, 0xed, 0x4e, 0xef, 0x8a, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07]),
        ("inet", vec![2, 32, 0, 4, 203, 77, 19, 141]),
        ("macaddr", vec![0xca, 0x4a, 0x97, 0x33, 0x44, 0x55]),
    ];
    let integers: [(&str, i64); 4] = [
        ("a bigint", 6_158_741_276_419_283_774),
        ("a time", 460_994_417_123_457),
        ("a bigint that is a key", 7_023_114_655_908_112_233),
        ("a sequence's value", 5_871_236_498_123_459_871),
    ];
    for (what, value) in integers {
        canaries.push((what, value.to_be_bytes().to_vec()));
        canaries.push((what, value.to_le_bytes().to_vec()));
    }
    canaries.push(("a float", 1.234_567_890_123e-77_f64.to_be_bytes().to_vec()));
    // numeric 9182736455463728.1928: digits in base 10,000
    canaries.push(("a numeric", [9182u16, 7364, 5546, 3728, 1928].iter().flat_map(|d| d.to_be_bytes()).collect()));
    canaries
}

/// Hashes of guesses that an outsider could try: without a key they must not be there either.
fn guesses() -> Vec<Vec<u8>> {
    ["CanaryShortText", "CanaryTextKey"]
        .iter()
        .map(|text| blake3::hash(text.as_bytes()).as_bytes()[..8].to_vec())
        .collect()
}

fn found(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writer_key_and_every_object_tell_nothing_of_any_content_and_one_reader_restores_everything() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database
        .execute(
            r#"CREATE TYPE kind AS ENUM ('x', 'CanaryEnumLabel');
CREATE TYPE pair AS (a int, b text); CREATE TYPE text_span AS RANGE (subtype = text);
CREATE DOMAIN checked AS text CHECK (value <> 'CanaryDomainLiteral');
CREATE TABLE canary (k text PRIMARY KEY, short text, long text, mail bytea, j jsonb, x xml, e kind, d text DEFAULT 'CanaryDefaultValue', c pair, a text[],
  r text_span, v tsvector, b bytea, u uuid UNIQUE, i inet, m macaddr, big bigint, big_key bigint UNIQUE, t timestamp, f float8, n numeric, dom checked,
  CHECK (short <> 'CanaryCheckLiteral'));
INSERT INTO canary VALUES ('CanaryTextKey', 'CanaryShortText', repeat('CanaryLongText ', 300),
  convert_to(E'From: a@example.org\r\nSubject: CanarySubjectLine\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n'
    || replace(encode(convert_to(repeat('CanaryDecodedAttachment!', 3000), 'UTF8'), 'base64'), E'\n', E'\r\n') || E'\r\n', 'UTF8'),
  '{"CanaryJsonKey": 1}', '<CanaryXmlTag/>', 'CanaryEnumLabel', DEFAULT, ROW(1, 'CanaryComposite'), '{CanaryArrayElement}', '[CanaryRangeBound,z)', 'canarylexeme',
  '\xca4a9711feedbeef', 'ca4a9722-feed-4eef-8a01-020304050607', '203.77.19.141', 'ca:4a:97:33:44:55', 6158741276419283774, 7023114655908112233,
  timestamp '2000-01-01' + interval '460994417.123457 s', 1.234567890123e-77, 9182736455463728.1928, 'ok');
ALTER TABLE canary ADD COLUMN late text DEFAULT 'CanaryMissingValue';
CREATE TABLE kept (k text) PARTITION BY LIST (k); CREATE TABLE kept_1 PARTITION OF kept FOR VALUES IN ('CanaryPartitionBound');
COMMENT ON TABLE canary IS 'CanaryTableComment';
CREATE FUNCTION body() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'CanaryFunctionBody'; RETURN new; END $$;
CREATE VIEW seen AS SELECT * FROM canary WHERE short = 'CanaryViewLiteral';
CREATE INDEX partial ON canary (short) WHERE long = 'CanaryIndexLiteral';
CREATE POLICY hides ON canary USING (short <> 'CanaryPolicyLiteral');
CREATE TRIGGER fires BEFORE UPDATE ON canary FOR EACH ROW WHEN (new.short = 'CanaryTriggerLiteral') EXECUTE FUNCTION body();
CREATE SEQUENCE counter; SELECT setval('counter', 5871236498123459871);"#,
        )
        .await;
    let snapshot = snapshot_of(&place, &database).await;
    assert!(snapshot.manifest.complete, "{:?}", snapshot.manifest.not_covered);

    let writer = place.writer().await;
    let index = load_index(&*writer.storage, &writer.secrets, None).await.unwrap();
    let chunks = ChunkReader::open(&writer, None).await.unwrap();
    // Everything that this key and these objects give: the objects, what opens, and what can be read from it.
    let mut seen: Vec<(String, Vec<u8>)> = place.objects().into_iter().collect();
    let mut told: BTreeMap<&str, usize> = BTreeMap::new();
    for pack in index.packs() {
        for entry in &pack.entries {
            match chunks.fetch(&entry.id).await {
                Ok(plain) => {
                    assert_eq!(pack.kind, ChunkKind::Meta);
                    *told.entry("chunks of metadata").or_default() += 1;
                    if let Ok(rows) = segment::decode_row_map(&plain) {
                        *told.entry("places (ctid) and transactions (xmin) of rows").or_default() += rows.len();
                    }
                    seen.push(("a metadata chunk".into(), plain.to_vec()));
                }
                Err(RepositoryError::ReaderNeeded) => {
                    assert_ne!(pack.kind, ChunkKind::Meta);
                    *told.entry("lengths of sealed chunks").or_default() += 1;
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
    let (listed, _) = snapshots::list(&writer).await.unwrap();
    for listed in &listed {
        *told.entry("names of tables").or_default() += listed.manifest.tables.len();
        *told.entry("names and types of columns").or_default() +=
            listed.manifest.tables.iter().map(|t| t.columns.len()).sum::<usize>();
        seen.push(("the manifest".into(), cbor::encode("manifest", &*listed.manifest).unwrap()));
        seen.push(("the manifest as JSON".into(), serde_json::to_vec(&*listed.manifest).unwrap()));
    }
    seen.push(("the writer key".into(), std::fs::read(place.path("writer.key")).unwrap()));
    println!("the writer key and the storage tell: {told:#?}");
    for (what, canary) in canaries() {
        for (place, bytes) in &seen {
            assert!(!found(bytes, &canary), "{what} is in {place}");
        }
    }
    for guess in guesses() {
        for (place, bytes) in &seen {
            assert!(!found(bytes, &guess), "a hash without a key is in {place}");
        }
    }

    // The same search finds every one of them when a reader opens the chunks: it would have found them above.
    let reader = place.reader().await;
    let chunks = ChunkReader::open(&reader, None).await.unwrap();
    let mut opened = Vec::new();
    for pack in index.packs() {
        for entry in &pack.entries {
            opened.push(chunks.fetch(&entry.id).await.unwrap());
        }
    }
    for (what, canary) in canaries() {
        let decoded = what == "its base64"
            || matches!(what, "a bigint" | "a time" | "a bigint that is a key" | "a sequence's value");
        let hit = opened.iter().any(|plain| found(plain, &canary));
        assert!(hit || decoded, "{what} is nowhere");
    }
    for value in [6_158_741_276_419_283_774i64, 460_994_417_123_457, 7_023_114_655_908_112_233] {
        assert!(opened.iter().any(|plain| found(plain, &value.to_be_bytes())));
    }

    let target = TestServer::shared().database(None).await;
    assert_eq!(restored(&place, &snapshot, &target).await.problems, Vec::<String>::new());
    same(&everything(&database).await, &everything(&target).await);
}
