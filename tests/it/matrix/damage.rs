//! The damage matrix: each kind of object × each way to damage it. Each cell is found and named by every check that could, or stands
//! in [`undetectable`] with the reason; and in no cell does a wrong byte come out.
//!
//! The kinds are those of the code ([`NameKind`], [`ChunkKind`]): a new one without a row does not compile. Run with
//! `-- damage --nocapture` to see the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use jiff::SignedDuration;
use restante::repository::changes;
use restante::repository::chunk::ChunkKind;
use restante::repository::drills::{self, Drill};
use restante::repository::envelope::{self, Author, ObjectKind};
use restante::repository::forgotten::{self, GRACE};
use restante::repository::id::{ObjectId, PackId};
use restante::repository::index::Fragment;
use restante::repository::manifest::Certificate;
use restante::repository::name::{NameKind, pack_of};
use restante::repository::pack;
use restante::repository::prune::{PruneOptions, prune, tombstone};
use restante::repository::ring::{Ring, ring_place};
use restante::repository::seal::{Secret, Signer};
use restante::repository::verified;
use restante::storage::{ObjectName, Storage};
use restante::verify::{Level, Report};

use super::long;
use super::memory::{Memory, Objects, copy_of};
use super::sample::{Keys, Rows, monitor, rows_of, store};
use crate::server::TestServer;

/// A repository with a history: a snapshot, a second reader, a new epoch, two more snapshots, one of them held, and two that are forgotten.
pub struct Sample {
    pub keys: Keys,
    pub objects: Objects,
    /// By snapshot, oldest first.
    pub expected: Vec<(ObjectId, Rows)>,
    /// Another repository of the same shape.
    other: Objects,
}

async fn history(keys: &Keys, storage: &Arc<dyn Storage>) -> Vec<(ObjectId, Rows)> {
    let (database, role) = store(&TestServer::shared(), 40, 2).await;
    let dsn = database.dsn_as(&role);
    let mut expected = Vec::new();
    for step in 0..5 {
        let snapshot = keys.snapshot(storage, &dsn).await.unwrap();
        let writer = keys.as_writer(storage).await.unwrap();
        match step {
            1 | 2 => forgotten::forget(&writer, &snapshot.id, GRACE).await.unwrap(),
            3 => forgotten::hold(&writer, &snapshot.id).await.unwrap(),
            _ => {}
        }
        if !(1..3).contains(&step) {
            expected.push((snapshot.id, rows_of(&database).await));
        }
        if step == 0 {
            keys.add_reader(storage).await;
            keys.rotate(storage).await;
        }
        let change = "UPDATE messages SET subject = subject || '!' WHERE id % 5 = 0; \
                      INSERT INTO messages (account, subject, body) SELECT 1, 'new', repeat('y', 700)::bytea \
                      FROM generate_series(1, 3)";
        database.execute(change).await;
    }
    // Of the forgotten ones alone: marked, and not yet removed.
    let options =
        PruneOptions { grace: SignedDuration::ZERO, listing_delay: Default::default(), repack: 0, dry_run: false };
    let writer = keys.as_writer(storage).await.unwrap();
    let pruned = prune(&writer, &options, &monitor()).await.unwrap();
    assert!(pruned.marked.packs > 1 && pruned.snapshots.is_empty() && pruned.unexpected.is_empty(), "{pruned:?}");
    // What jobs leave: the packs were hashed, one of them was damaged and mended since, and a drill was held.
    let packs: Vec<PackId> = copy_of(&**storage).await.keys().filter_map(pack_of).collect();
    verified::write(&writer, &packs.iter().copied().collect(), &[]).await.unwrap();
    tombstone::mark_damaged(&writer, &packs[0]).await.unwrap();
    drills::write(&writer, &drill(expected[0].0)).await.unwrap();
    for number in 1..=2 {
        let record = BTreeMap::from([("number", number)]);
        changes::put(&writer, &format!("log/x/{number:08}"), &record).await.unwrap();
    }
    expected
}

fn drill(snapshot: ObjectId) -> Drill {
    let now = jiff::Timestamp::now();
    Drill {
        version: 1,
        snapshot,
        taken: now,
        began: now,
        server: 15,
        tables: 3,
        rows: 42,
        value_bytes: 1000,
        sequences: 2,
        constraints: 5,
        indexes: 4,
        recovery_seconds: 1.5,
        compare_seconds: 0.5,
        check_seconds: None,
        differences: Vec::new(),
    }
}

pub async fn sample() -> Sample {
    let made = async || {
        let storage: Arc<dyn Storage> = Memory::of(Objects::new());
        let keys = Keys::init(&*storage).await;
        let expected = history(&keys, &storage).await;
        (keys, copy_of(&*storage).await, expected)
    };
    let (keys, objects, expected) = made().await;
    Sample { keys, objects, expected, other: made().await.1 }
}

/// A row of the matrix: what stands in its first column, and the objects that it is tried on.
struct Row {
    label: &'static str,
    objects: Vec<ObjectName>,
}

/// The rows of a kind of name. Exhaustive on purpose.
fn rows(kind: NameKind, sample: &Sample) -> Vec<Row> {
    let all = || -> Vec<ObjectName> {
        let of_kind = sample.objects.keys().filter(|name| NameKind::of(name) == Some(kind));
        of_kind.cloned().collect()
    };
    let one = |label| vec![Row { label, objects: all() }];
    match kind {
        NameKind::Configuration => one("repository.json"),
        NameKind::LaterConfiguration => one("later configuration"),
        NameKind::KeyRing => one("key ring"),
        NameKind::Pack => ChunkKind::ALL
            .into_iter()
            .map(|of| {
                let label = match of {
                    ChunkKind::Meta => "pack of metadata",
                    ChunkKind::Row => "pack of rows",
                    ChunkKind::Payload => "pack of payload",
                };
                let objects = all().into_iter().filter(|name| sample.objects[name][8] == of.code()).collect();
                Row { label, objects }
            })
            .collect(),
        NameKind::Index => one("index fragment"),
        NameKind::Manifest => one("manifest"),
        NameKind::Certificate => one("certificate"),
        NameKind::Forgotten => one("forgotten"),
        NameKind::Hold => one("hold"),
        NameKind::Tombstone => {
            let (damaged, passes) = all().into_iter().partition(|name| tombstone::damaged_in(name).is_some());
            vec![Row { label: "tombstone", objects: passes }, Row { label: "damage mark", objects: damaged }]
        }
        NameKind::Verified => one("record of a check"),
        NameKind::Drill => one("record of a drill"),
        NameKind::Change => one("record of the guard"),
        // Nothing writes these yet. Whoever begins to makes an honest one in `sample`, and the row gets its label here.
        NameKind::Checkpoint | NameKind::Lease | NameKind::Replay => {
            assert_eq!(all(), [], "{kind:?} is written now and has no row in the damage matrix");
            Vec::new()
        }
    }
}

/// A way to damage an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    Deleted,
    Emptied,
    Truncated,
    Extended,
    BitFlipped,
    /// The bytes of another object of the same kind.
    Swapped,
    /// The bytes of one of the same kind that is older.
    SwappedForOlder,
    /// The bytes of one of the same kind of another repository.
    SwappedForForeign,
    /// The bytes of an object of another kind.
    SwappedForOtherKind,
    /// A good object once more, under a second name.
    Copied,
    /// One that an attacker made and signed himself, under the name of the good one.
    Replaced,
    /// The same as one more object, under a name that fits it.
    Planted,
    /// A manifest and its certificate deleted: the snapshot was never there.
    Hidden,
}

impl Damage {
    const ALL: [Self; 13] = [
        Self::Deleted,
        Self::Emptied,
        Self::Truncated,
        Self::Extended,
        Self::BitFlipped,
        Self::Swapped,
        Self::SwappedForOlder,
        Self::SwappedForForeign,
        Self::SwappedForOtherKind,
        Self::Copied,
        Self::Replaced,
        Self::Planted,
        Self::Hidden,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Emptied => "emptied",
            Self::Truncated => "truncated",
            Self::Extended => "extended",
            Self::BitFlipped => "bit flipped",
            Self::Swapped => "swapped with another of its kind",
            Self::SwappedForOlder => "swapped with an older one",
            Self::SwappedForForeign => "swapped with another repository's",
            Self::SwappedForOtherKind => "swapped with another kind",
            Self::Copied => "copied to a second name",
            Self::Replaced => "replaced by an attacker's own",
            Self::Planted => "an attacker's own added",
            Self::Hidden => "deleted with its certificate",
        }
    }
}

/// One damaged repository: what was done to which object.
struct Cell {
    row: &'static str,
    damage: Damage,
    /// The object that has to be named, and what was done exactly.
    object: ObjectName,
    detail: String,
    objects: Objects,
    /// The manifest of the newest snapshot.
    newest: bool,
    /// The object that was changed too, when two changed places.
    swapped: Option<ObjectName>,
    /// Looked at without its data too; of bits that are flipped some are.
    structure: bool,
    /// How long the good object is.
    length: usize,
}

impl Cell {
    /// Is what lies there now as long as the good object?
    fn is_as_long(&self) -> bool {
        self.objects.get(&self.object).is_some_and(|bytes| bytes.len() == self.length)
    }
}

/// So many bits are flipped, and so many lengths cut, in an object that is not the first of its row.
const FEW: usize = 5;

/// Where to cut and to flip: around every border that the formats have, and in between.
fn lengths(size: usize) -> Vec<usize> {
    let mut at = vec![1, 8, 16, 71, 72, 104, size / 4, size / 2, size - 97, size - 13, size - 1];
    at.retain(|length| *length < size);
    at.sort_unstable();
    at.dedup();
    at
}

fn bits(size: usize) -> Vec<usize> {
    let step = if long() { 1 + size / 2000 } else { 1 + size / 12 };
    // Magic, kind, reserved, epoch or slots, repository, salt, lengths; the tail; and evenly in between.
    let mut bytes: Vec<usize> = [0, 8, 9, 12, 16, 33, 40, 64, 68, 72, 77, 110, 300].into_iter().collect();
    bytes.extend((0..size).step_by(step));
    bytes.extend([size.saturating_sub(1), size.saturating_sub(9), size.saturating_sub(33), size.saturating_sub(100)]);
    bytes.retain(|byte| *byte < size);
    bytes.sort_unstable();
    bytes.dedup();
    bytes.into_iter().map(|byte| byte * 8 + byte % 8).collect()
}

fn cells(sample: &Sample) -> Vec<Cell> {
    let mut cells = Vec::new();
    for kind in NameKind::ALL {
        for row in rows(kind, sample) {
            assert!(!row.objects.is_empty(), "the sample holds no {}", row.label);
            // Objects of a kind are alike: the first and the last of many. Each of few.
            let few = row.objects.len() <= 3 || long();
            let tried: Vec<&ObjectName> = match row.objects.as_slice() {
                all if few => all.iter().collect(),
                [first, .., last] => vec![first, last],
                one => one.iter().collect(),
            };
            for (at, name) in tried.into_iter().enumerate() {
                for damage in Damage::ALL {
                    let all = damaged(sample, kind, &row, name, damage);
                    // Every border of the format in the first of a row; in the others some.
                    let step = if at > 0 && !long() { all.len().div_ceil(FEW) } else { 1 };
                    cells.extend(all.into_iter().step_by(step.max(1)));
                }
            }
        }
    }
    cells
}

fn damaged(sample: &Sample, kind: NameKind, row: &Row, name: &ObjectName, damage: Damage) -> Vec<Cell> {
    let good = &sample.objects[name];
    let newest = sample.expected.last().is_some_and(|(id, _)| name.as_str().ends_with(&id.to_hex()));
    let cell = |object: &ObjectName, detail: String, change: &dyn Fn(&mut Objects)| {
        let mut objects = sample.objects.clone();
        change(&mut objects);
        assert!(objects != sample.objects, "{damage:?} of {name} changes nothing");
        let (object, length) = (object.clone(), good.len());
        Cell { row: row.label, damage, object, detail, objects, newest, swapped: None, structure: true, length }
    };
    let put =
        |detail: String, bytes: Bytes| cell(name, detail, &|objects| drop(objects.insert(name.clone(), bytes.clone())));
    let of_kind = |objects: &Objects| -> Vec<(ObjectName, Bytes)> {
        let same = |(other, bytes): &(&ObjectName, &Bytes)| {
            *other != name && NameKind::of(other) == Some(kind) && (kind != NameKind::Pack || bytes[8] == good[8])
        };
        objects.iter().filter(same).map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
    };
    match damage {
        Damage::Deleted => vec![cell(name, String::new(), &|objects| drop(objects.remove(name)))],
        Damage::Emptied => vec![put(String::new(), Bytes::new())],
        Damage::Truncated => {
            lengths(good.len()).into_iter().map(|n| put(format!("to {n} bytes"), good.slice(..n))).collect()
        }
        Damage::Extended => vec![put("by a byte".into(), [good.as_ref(), b"\n"].concat().into())],
        Damage::BitFlipped => bits(good.len())
            .into_iter()
            .enumerate()
            .map(|(at, bit)| {
                let mut bytes = good.to_vec();
                bytes[bit / 8] ^= 1 << (bit % 8);
                let structure = long() || at % 5 == 0;
                let detail = format!("bit {} of byte {} of {}", bit % 8, bit / 8, good.len());
                Cell { structure, ..put(detail, bytes.into()) }
            })
            .collect(),
        Damage::Swapped => {
            let others = of_kind(&sample.objects);
            let other = others.into_iter().next_back();
            let swap = |(other, bytes): (ObjectName, Bytes)| {
                let mut cell = cell(name, format!("with {other}"), &|objects| {
                    objects.insert(name.clone(), bytes.clone());
                    objects.insert(other.clone(), good.clone());
                });
                cell.swapped = Some(other);
                cell
            };
            other.map(swap).into_iter().collect()
        }
        Damage::SwappedForOlder => {
            let older = of_kind(&sample.objects).into_iter().rfind(|(other, _)| other < name);
            older.map(|(other, bytes)| put(format!("by {other}"), bytes)).into_iter().collect()
        }
        Damage::SwappedForForeign => {
            let foreign = of_kind(&sample.other).into_iter().next();
            foreign.map(|(other, bytes)| put(format!("by {other}"), bytes)).into_iter().collect()
        }
        Damage::SwappedForOtherKind => {
            let others = sample.objects.iter().filter(|(other, _)| NameKind::of(other) != Some(kind));
            others.step_by(7).map(|(other, bytes)| put(format!("by {other}"), bytes.clone())).collect()
        }
        Damage::Hidden if kind == NameKind::Manifest => {
            let id = name.file_name().rsplit('-').next().unwrap();
            let certificate = ObjectName::new(format!("certificates/{id}")).unwrap();
            vec![cell(name, String::new(), &|objects| objects.retain(|n, _| n != name && *n != certificate))]
        }
        Damage::Hidden => Vec::new(),
        Damage::Copied => {
            let second = second_name(kind, name);
            let copy = |second: ObjectName| {
                cell(&second, String::new(), &|objects| drop(objects.insert(second.clone(), good.clone())))
            };
            second.map(copy).into_iter().collect()
        }
        Damage::Replaced => {
            let forged = forged(sample, kind, name);
            forged.map(|(_, bytes)| put(String::new(), bytes)).into_iter().collect()
        }
        Damage::Planted => {
            let plant = |(planted, bytes): (ObjectName, Bytes)| {
                cell(&planted, String::new(), &|objects| drop(objects.insert(planted.clone(), bytes.clone())))
            };
            forged(sample, kind, name).filter(|(planted, _)| planted != name).map(plant).into_iter().collect()
        }
    }
}

/// Another name under which a lazy program would take the object for a good one.
fn second_name(kind: NameKind, name: &ObjectName) -> Option<ObjectName> {
    let file = name.file_name();
    let hash = file.rsplit('-').next().unwrap();
    // One in 256 ends in these digits already.
    let ending = if file.ends_with("00") { "11" } else { "00" };
    let second = match kind {
        NameKind::Configuration => return None,
        NameKind::LaterConfiguration => format!("config/3-{hash}"),
        NameKind::KeyRing => format!("keys/9/1-{hash}"),
        NameKind::Pack => format!("packs/{}/{}{ending}", &file[..2], &file[..62]),
        NameKind::Index => format!("index/{}{ending}", &file[..62]),
        NameKind::Manifest | NameKind::Verified | NameKind::Drill => {
            format!("{}20991231T235959Z-{hash}", kind.prefix())
        }
        NameKind::Certificate | NameKind::Forgotten | NameKind::Hold => {
            format!("{}{}{ending}", kind.prefix(), &file[..62])
        }
        NameKind::Tombstone | NameKind::Change => format!("{}{ending}", &name.as_str()[..name.as_str().len() - 2]),
        _ => return None,
    };
    Some(ObjectName::new(second).unwrap())
}

/// What somebody with all the names, and the sealed bytes, but without any secret of the repository makes: his own keys.
/// The worst case is assumed: he has stolen the *secrets* of the epoch, and lacks only the signing key.
fn forged(sample: &Sample, kind: NameKind, name: &ObjectName) -> Option<(ObjectName, Bytes)> {
    let key = sample.keys.key();
    let (secrets, signer) = (key.secrets().unwrap(), Signer::from_seed(&Secret::random().unwrap()).unwrap());
    let author = Author { repository: key.repository, epoch: key.epoch, secrets: &secrets, signer: &signer };
    let good = &sample.objects[name];
    let named = |name: String| ObjectName::new(name).unwrap();
    match kind {
        NameKind::Configuration => {
            let mut config = restante::repository::config::Config::read(name, good, None).unwrap();
            config.signers[0].key = signer.id();
            Some((name.clone(), config.write(&signer).unwrap().into()))
        }
        NameKind::LaterConfiguration => {
            let mut config: restante::repository::config::Config =
                serde_json::from_slice(good.split(|b| *b == b'\n').next().unwrap()).unwrap();
            (config.version, config.previous) = (config.version + 1, Some(ObjectId::of(good)));
            let bytes = config.write(&signer).unwrap();
            Some((config.place(&bytes).unwrap(), bytes.into()))
        }
        NameKind::KeyRing => {
            // To all readers and himself: he knows their public halves.
            let (epoch, number, _) = ring_place(name).unwrap();
            let mut ring = opened_ring(sample, name)?;
            ring.readers.push(age::x25519::Identity::generate().to_public().to_string());
            (ring.epoch, ring.number) = (epoch, number + 1);
            let (name, bytes) = ring.write(&signer).unwrap();
            Some((name, bytes.into()))
        }
        NameKind::Pack => {
            // A pack that opens: but no fragment of the repository's names it.
            let mut builder =
                pack::PackBuilder::new(ChunkKind::Meta, &secrets, key.epoch, &key.recipient.parse().unwrap()).unwrap();
            let id_key = secrets.epoch(key.epoch).unwrap().chunk_id_key(ChunkKind::Meta).unwrap();
            let plain = b"what an attacker wants to be read";
            let id = restante::repository::chunk::chunk_id(&id_key, plain);
            restante::repository::chunk::compress(id, plain, |chunk| builder.add(chunk)).unwrap().unwrap();
            let pack = builder.finish(&secrets).unwrap();
            Some((restante::repository::reader::pack_name(&pack.info.id).unwrap(), pack.bytes))
        }
        NameKind::Index => {
            let fragment = Fragment { version: 1, level: 0, supersedes: Vec::new(), packs: Vec::new() };
            let bytes = envelope::write(ObjectKind::Index, &author, &fragment).unwrap();
            Some((named(format!("index/{}", ObjectId::of(&bytes))), bytes))
        }
        NameKind::Manifest => {
            let opened =
                envelope::read::<restante::repository::manifest::Manifest>(ObjectKind::Manifest, &secrets, name, good);
            let mut manifest = opened.unwrap().body;
            manifest.epoch = key.epoch;
            manifest.tables.clear();
            let bytes = envelope::write(ObjectKind::Manifest, &author, &manifest).unwrap();
            let id = ObjectId::of(&bytes);
            Some((restante::repository::manifest::manifest_name(manifest.taken, &id).unwrap(), bytes))
        }
        NameKind::Certificate => {
            let opened = envelope::read::<Certificate>(ObjectKind::Certificate, &secrets, name, good).unwrap();
            Some((name.clone(), envelope::write(ObjectKind::Certificate, &author, &opened.body).unwrap()))
        }
        NameKind::Forgotten | NameKind::Hold => {
            // Of a snapshot that is there and wanted.
            let of = if kind == NameKind::Hold { ObjectKind::Hold } else { ObjectKind::Forgotten };
            let mut body: BTreeMap<String, ciborium::Value> = envelope::read(of, &secrets, name, good).unwrap().body;
            let (wanted, _) = &sample.expected[0];
            body.insert("snapshot".into(), ciborium::Value::Bytes(wanted.0.to_vec()));
            Some((kind.named(wanted).unwrap(), envelope::write(of, &author, &body).unwrap()))
        }
        NameKind::Tombstone => {
            let body: ciborium::Value = envelope::read(ObjectKind::Tombstone, &secrets, name, good).unwrap().body;
            Some((name.clone(), envelope::write(ObjectKind::Tombstone, &author, &body).unwrap()))
        }
        NameKind::Change => {
            let body: ciborium::Value = envelope::read(ObjectKind::Change, &secrets, name, good).unwrap().body;
            Some((name.clone(), envelope::write(ObjectKind::Change, &author, &body).unwrap()))
        }
        NameKind::Verified | NameKind::Drill => {
            let of = if kind == NameKind::Drill { ObjectKind::Drill } else { ObjectKind::Verified };
            let body: ciborium::Value = envelope::read(of, &secrets, name, good).unwrap().body;
            let bytes = envelope::write(of, &author, &body).unwrap();
            let time = name.file_name().split('-').next().unwrap();
            Some((kind.named(format!("{time}-{}", ObjectId::of(&bytes))).unwrap(), bytes))
        }
        _ => None,
    }
}

/// A ring with all its secrets, as a thief of a reader's machine has it.
fn opened_ring(sample: &Sample, name: &ObjectName) -> Option<Ring> {
    let config_bytes = &sample.objects[&ObjectName::new("repository.json").unwrap()];
    let first =
        restante::repository::config::Config::read(&ObjectName::new("repository.json").unwrap(), config_bytes, None);
    let mut config = first.unwrap();
    for (later, bytes) in sample.objects.iter().filter(|(n, _)| NameKind::of(n) == Some(NameKind::LaterConfiguration)) {
        config = restante::repository::config::Config::read(later, bytes, Some(&config)).unwrap();
    }
    let identities = restante::repository::ring::load_identities(&sample.keys.reader()).unwrap();
    let fingerprint = sample.keys.key().fingerprint;
    let identities = identities.iter().map(|identity| identity.as_ref() as &dyn age::Identity);
    Ring::read(name, &sample.objects[name], identities, &config, fingerprint).ok()
}

/// What looks at a damaged repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Look {
    StructureAsWriter,
    DataAsWriter,
    StructureAsReader,
    DataAsReader,
}

impl Look {
    const ALL: [Self; 4] = [Self::StructureAsWriter, Self::DataAsWriter, Self::StructureAsReader, Self::DataAsReader];

    fn is_structure(self) -> bool {
        matches!(self, Self::StructureAsWriter | Self::StructureAsReader)
    }

    fn letter(self) -> char {
        match self {
            Self::StructureAsWriter => 'w',
            Self::DataAsWriter => 'W',
            Self::StructureAsReader => 'r',
            Self::DataAsReader => 'R',
        }
    }
}

/// Why a look may miss the damage; `None`: it has to find it.
fn undetectable(cell: &Cell, look: Look) -> Option<&'static str> {
    use Look::*;
    let structure = look.is_structure();
    let reader = matches!(look, StructureAsReader | DataAsReader);
    let old_ring = cell.row == "key ring" && ring_place(&cell.object).is_some_and(|(epoch, ..)| epoch.0 == 1);
    match cell.damage {
        // Two packs may be equally long by chance.
        Damage::BitFlipped | Damage::Swapped | Damage::SwappedForOlder | Damage::SwappedForForeign
            if cell.row.starts_with("pack of ") && structure && cell.is_as_long() =>
        {
            Some("without --data the length of a pack is compared, not its bytes")
        }
        Damage::Deleted if old_ring && reader => Some(
            "no later ring of its epoch tells of it; a reader needs none but the newest, which holds the secrets of all epochs",
        ),
        Damage::Planted if old_ring && reader => {
            Some("a ring that is older than the one in use is never opened; the writer key knows all rings by name")
        }
        Damage::Deleted if matches!(cell.row, "forgotten" | "hold") => {
            Some("it is taken back, or released, by deleting it: without it more is kept, never less")
        }
        Damage::Deleted if cell.row == "tombstone" => Some("its pack is marked anew by the next prune"),
        Damage::Deleted if cell.row == "damage mark" => Some("the next check that hashes its pack marks it anew"),
        Damage::Deleted if cell.row == "record of the guard" => {
            Some("whoever follows the guard's chain finds the gap: `restante verify` does, `tests/it/guard` tries it")
        }
        Damage::Deleted if cell.row.starts_with("record of a ") => {
            Some("what it tells was over: packs are hashed sooner for it, and a history is shorter")
        }
        Damage::Deleted | Damage::Hidden if cell.row == "manifest" && is_forgotten(cell) => {
            Some("it is forgotten: a prune removes it in the end")
        }
        Damage::Hidden if cell.newest => Some(
            "nothing that is left tells of it: whoever was not there cannot know. The writer can, by the number that lies \
             beside its key (`restante verify --key`, and no further snapshot)",
        ),
        _ => None,
    }
}

fn is_forgotten(cell: &Cell) -> bool {
    let id = cell.object.file_name().rsplit('-').next().unwrap();
    cell.objects.keys().any(|name| NameKind::of(name) == Some(NameKind::Forgotten) && name.file_name() == id)
}

/// What a look said, as text; and whether it names the object.
fn named(cell: &Cell, said: &str) -> bool {
    let file = cell.object.file_name();
    let hash = file.trim_end_matches(".age").rsplit('-').next().unwrap();
    let place = cell.object.as_str().strip_suffix(file).unwrap().to_owned() + &file[..file.find(hash).unwrap()];
    // Of what is gone the hash may be known to nobody: `keys/1/2-…`.
    let gone = cell.damage == Damage::Deleted && (said.contains(&(place + "…")) || said.contains("config/…"));
    let swapped = cell.swapped.as_ref().is_some_and(|other| said.contains(other.as_str()));
    said.contains(cell.object.as_str()) || said.contains(hash) || swapped || gone
}

fn said(report: &Report) -> String {
    report.findings.iter().chain(&report.notes).fold(String::new(), |all, finding| all + &finding.message + "\n")
}

struct Outcome {
    cell: Cell,
    /// What each look said; `None`: nothing.
    looks: BTreeMap<Look, Option<String>>,
    /// Snapshots that were read in full, of three.
    read: usize,
    problems: Vec<String>,
}

async fn try_out(sample: &Sample, cell: Cell) -> Outcome {
    let storage: Arc<dyn Storage> = Memory::of(cell.objects.clone());
    let (mut looks, mut problems) = (BTreeMap::new(), Vec::new());
    let what = format!("{} {} {} ({})", cell.row, cell.object, cell.damage.label(), cell.detail);
    for look in Look::ALL.into_iter().filter(|look| cell.structure || !look.is_structure()) {
        let (reader, level) = match look {
            Look::StructureAsWriter => (false, Level::Structure),
            Look::DataAsWriter => (false, Level::Hashes),
            Look::StructureAsReader => (true, Level::Structure),
            Look::DataAsReader => (true, Level::Rows),
        };
        let heard = match sample.keys.verify(&storage, reader, level).await {
            Ok(report) => said(&report),
            Err(e) => e.to_string(),
        };
        if heard.contains("the work was interrupted") {
            problems.push(format!("{what}: {look:?} panicked: {heard}"));
        }
        match (heard.is_empty(), named(&cell, &heard), undetectable(&cell, look)) {
            (_, true, _) | (true, _, Some(_)) => {}
            (true, _, None) => problems.push(format!("{what}: {look:?} finds nothing")),
            (false, false, _) => problems.push(format!("{what}: {look:?} does not name it: {heard}")),
        }
        looks.insert(look, (!heard.is_empty()).then_some(heard));
    }
    let mut read = 0;
    for (snapshot, expected) in &sample.expected {
        match sample.keys.read(&storage, &snapshot.to_hex()).await {
            Ok((rows, _)) if rows == *expected => read += 1,
            Ok(_) => problems.push(format!("{what}: WRONG ROWS of snapshot {snapshot}")),
            Err((e, listed)) => {
                let heard = listed.iter().fold(e.to_string(), |all, e| format!("{all}\n{e}"));
                let absent =
                    matches!(cell.damage, Damage::Deleted | Damage::Hidden) && heard.contains(&snapshot.to_hex());
                if !named(&cell, &heard) && !absent {
                    problems.push(format!("{what}: reading {snapshot} fails without naming it: {heard}"));
                }
            }
        }
    }
    Outcome { cell, looks, read, problems }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_named_and_no_wrong_byte_comes_out() {
    let sample = Arc::new(sample().await);
    let sound: Arc<dyn Storage> = Memory::of(sample.objects.clone());
    for look in [false, true] {
        let level = if look { Level::Rows } else { Level::Hashes };
        let report = sample.keys.verify(&sound, look, level).await.unwrap();
        assert_eq!(said(&report), "", "the sample itself is sound");
    }
    for (snapshot, expected) in &sample.expected {
        let (rows, problems) = sample.keys.read(&sound, &snapshot.to_hex()).await.map_err(|e| e.0).unwrap();
        assert!(rows == *expected && problems.is_empty(), "the sample itself is read as PostgreSQL tells it");
    }

    let cells = cells(&sample);
    let count = cells.len();
    let outcomes: Vec<Outcome> = stream::iter(cells)
        .map(|cell| {
            let sample = sample.clone();
            async move { tokio::spawn(async move { try_out(&sample, cell).await }).await.expect("no cell panics") }
        })
        .buffered(4)
        .collect()
        .await;
    println!("{}", table(&outcomes));
    println!("{count} cells");
    let problems: Vec<&String> = outcomes.iter().flat_map(|outcome| &outcome.problems).collect();
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.iter().take(40).map(|p| p.as_str()).collect::<Vec<_>>().join("\n")
    );
}

/// The table for `docs/testing.md`: by row and damage the looks that found all cells, and the fewest snapshots that could be read.
fn table(outcomes: &[Outcome]) -> String {
    let mut rows: BTreeMap<(&str, Damage), Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        rows.entry((outcome.cell.row, outcome.cell.damage)).or_default().push(outcome);
    }
    let mut text = String::from(
        "found by: w structure as writer, W --data as writer, r structure as reader, R --data as reader\n\n\
         | object | damage | cells | found by | snapshots still read |\n|---|---|---|---|---|\n",
    );
    let mut reasons: Vec<String> = Vec::new();
    for ((row, damage), outcomes) in rows {
        let found =
            |look: &Look| outcomes.iter().filter_map(|outcome| outcome.looks.get(look)).all(|heard| heard.is_some());
        let letters: String = Look::ALL.iter().filter(|look| found(look)).map(|look| look.letter()).collect();
        let fewest = outcomes.iter().map(|outcome| outcome.read).min().unwrap_or(0);
        let _ = writeln!(text, "| {row} | {} | {} | {letters} | {fewest} of 3 |", damage.label(), outcomes.len());
        for (outcome, look) in outcomes.iter().flat_map(|outcome| Look::ALL.map(|look| (outcome, look))) {
            if let Some(why) = undetectable(&outcome.cell, look) {
                let reason = format!("* {row} {}, {look:?}: undetectable, because {why}", damage.label());
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
        }
    }
    text + "\n" + &reasons.join("\n")
}
