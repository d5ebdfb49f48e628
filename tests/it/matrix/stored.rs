//! A repository of format 1 that is kept with the tests, with an object of every kind, and what was recorded of it on the day it was written: its rows, and for
//! each of some fifty damages what a check finds and which snapshots can still be read. Every later version reads the one and refuses the other just so.
//!
//! `write_the_stored_repository` wrote it. It is not run again for this format: who changes a record has changed what old repositories mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use restante::repository::name::NameKind;
use restante::storage::{ObjectName, Storage};
use restante::verify::Level;
use serde::{Deserialize, Serialize};

use super::damage::sample;
use super::memory::{Memory, Objects};
use super::sample::{Keys, Rows};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    /// By snapshot and table: BLAKE3 over the rows.
    rows: BTreeMap<String, BTreeMap<String, String>>,
    damaged: Vec<Damaged>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum How {
    Deleted,
    /// To half of its length.
    CutShort,
    /// A bit of the byte in the middle.
    BitFlipped,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Damaged {
    object: ObjectName,
    how: How,
    /// Kind and object of what `verify --data` finds with a reader's identity; or why it could not be opened.
    found: Vec<String>,
    /// Of each snapshot: can all of it be read?
    read: BTreeMap<String, bool>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/format-1")
}

pub fn stored() -> (Keys, Objects) {
    fn walk(folder: &Path, base: &Path, objects: &mut Objects) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, base, objects);
            } else {
                let name = path.strip_prefix(base).unwrap().to_str().unwrap();
                objects.insert(ObjectName::new(name).unwrap(), std::fs::read(&path).unwrap().into());
            }
        }
    }
    let (mut objects, base) = (Objects::new(), folder().join("repository"));
    walk(&base, &base, &mut objects);
    (Keys::stored(&folder()), objects)
}

fn hashed(rows: &Rows) -> BTreeMap<String, String> {
    let hash = |rows: &Vec<Vec<Option<Vec<u8>>>>| blake3::hash(&serde_json::to_vec(rows).unwrap()).to_hex().to_string();
    rows.iter().map(|(table, rows)| (table.clone(), hash(rows))).collect()
}

/// One of each kind of object in each way; of packs one of each kind of chunk.
fn damages(objects: &Objects) -> Vec<(ObjectName, How)> {
    let mut seen = Vec::new();
    let first = objects.iter().filter(|(name, bytes)| {
        let of_pack = if name.as_str().starts_with("packs/") { bytes[8] } else { 0 };
        let kind = (NameKind::of(name), of_pack, name.file_name() == "damaged");
        let is_new = !seen.contains(&kind);
        seen.push(kind);
        is_new
    });
    let ways = [How::Deleted, How::CutShort, How::BitFlipped];
    first.flat_map(|(name, _)| ways.map(|how| (name.clone(), how))).collect()
}

async fn recorded(keys: &Keys, objects: &Objects, snapshots: &[String], object: &ObjectName, how: How) -> Damaged {
    let mut objects = objects.clone();
    let bytes = objects.remove(object).unwrap();
    let spoiled: Option<Bytes> = match how {
        How::Deleted => None,
        How::CutShort => Some(bytes.slice(..bytes.len() / 2)),
        How::BitFlipped => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes.into())
        }
    };
    objects.extend(spoiled.map(|bytes| (object.clone(), bytes)));
    let storage: Arc<dyn Storage> = Memory::of(objects);
    let found = match keys.verify(&storage, true, Level::Rows).await {
        Ok(report) => {
            let name = |name: &Option<ObjectName>| name.as_ref().map(|name| name.to_string()).unwrap_or_default();
            let all = report.findings.iter().map(|one| format!("{:?} {}", one.kind, name(&one.object)));
            let mut all: Vec<String> = all.collect();
            all.sort();
            all
        }
        Err(e) => vec![format!("refused: {}", e.object().map(|name| name.to_string()).unwrap_or_default())],
    };
    let mut read = BTreeMap::new();
    for id in snapshots {
        read.insert(id.clone(), keys.read(&storage, id).await.is_ok());
    }
    Damaged { object: object.clone(), how, found, read }
}

async fn record(keys: &Keys, objects: &Objects, rows: BTreeMap<String, BTreeMap<String, String>>) -> Record {
    let snapshots: Vec<String> = rows.keys().cloned().collect();
    let mut damaged = Vec::new();
    for (object, how) in damages(objects) {
        damaged.push(recorded(keys, objects, &snapshots, &object, how).await);
    }
    Record { rows, damaged }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it was written once; a new format gets a folder of its own"]
async fn write_the_stored_repository() {
    let sample = sample().await;
    let rows = sample.expected.iter().map(|(id, rows)| (id.to_hex(), hashed(rows))).collect();
    let record = record(&sample.keys, &sample.objects, rows).await;
    for (name, bytes) in &sample.objects {
        let file = folder().join("repository").join(name.as_str());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }
    std::fs::copy(sample.keys.writer(), folder().join("writer.key")).unwrap();
    std::fs::copy(sample.keys.reader(), folder().join("reader.key")).unwrap();
    std::fs::write(folder().join("record.json"), serde_json::to_vec_pretty(&record).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_repository_is_read_and_refused_as_it_was_recorded() {
    let (keys, objects) = stored();
    let known: Record = serde_json::from_slice(&std::fs::read(folder().join("record.json")).unwrap()).unwrap();
    let storage: Arc<dyn Storage> = Memory::of(objects.clone());
    let report = keys.verify(&storage, true, Level::Rows).await.unwrap();
    assert!(report.findings.is_empty() && report.snapshots == 5, "{report:?}");
    let mut rows = BTreeMap::new();
    for id in known.rows.keys() {
        let (read, problems) = keys.read(&storage, id).await.map_err(|e| e.0).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        rows.insert(id.clone(), hashed(&read));
    }
    let now = record(&keys, &objects, rows).await;
    assert_eq!(now.rows, known.rows);
    assert!(now.damaged.len() >= 45, "{}", now.damaged.len());
    for (now, known) in now.damaged.iter().zip(&known.damaged) {
        assert_eq!(now, known);
    }
    assert_eq!(now.damaged.len(), known.damaged.len());
}
