//! The kill matrix: the process dies before and after each call to the storage, and at random instants. Whatever it leaves, the
//! repository opens, what is certified is whole, and the next run completes.
//!
//! [`OPERATIONS`] are tried at every point: a new one is a line there.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use restante::storage::directory::Directory;
use restante::storage::{PutMode, Storage};
use tokio::process::{Child, Command};

use super::long;
use super::sample::Scene;
use crate::server::TestServer;

/// A command that is killed.
struct Operation {
    name: &'static str,
    arguments: fn(&Run<'_>) -> Vec<String>,
}

/// On a repository where there is something to remove and something to mark ([`Scene::with_something_to_prune`]).
#[cfg(feature = "failpoints")]
const PRUNE: Operation = Operation {
    name: "prune",
    arguments: |run| format!("prune|-y|--key|{}", run.key.display()).split('|').map(str::to_owned).collect(),
};

const OPERATIONS: [Operation; 2] = [
    Operation {
        name: "snapshot",
        arguments: |run| {
            let (key, dump) = (run.key.display(), run.scene.keys.pg_dump());
            let dump = dump.display();
            format!("snapshot|--key|{key}|--jobs|1|--memory|16MiB|--pg-dump|{dump}|-d|{}", run.scene.dsn)
                .split('|')
                .map(str::to_owned)
                .collect()
        },
    },
    Operation {
        name: "verify",
        arguments: |run| {
            let reader = run.scene.keys.reader();
            format!("verify|--data|-i|{}", reader.display()).split('|').map(str::to_owned).collect()
        },
    },
];

/// One process on a copy of the repository of its own.
struct Run<'a> {
    scene: &'a Scene,
    folder: tempfile::TempDir,
    key: PathBuf,
}

impl<'a> Run<'a> {
    async fn new(scene: &'a Scene) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The newest snapshot's number is kept beside the key: each run has its own.
        let key = folder.path().join("writer.key");
        std::fs::copy(scene.keys.writer(), &key).unwrap();
        let repository = folder.path().join("repository");
        for (name, bytes) in &scene.objects {
            let path = repository.join(name.as_str());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, bytes).unwrap();
            // Marks are old enough; a manifest that is older than its snapshot would come from the future.
            if name.as_str().starts_with("snapshots/") {
                continue;
            }
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(4 * 86_400)).unwrap();
        }
        Self { scene, folder, key }
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(Directory::new(self.repository()).unwrap())
    }

    fn start(&self, operation: &Operation, failpoint: Option<String>) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_restante"));
        command.args((operation.arguments)(self)).arg("-q").arg("-r").arg(self.repository());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("PG") || name.starts_with("RESTANTE_") {
                command.env_remove(name.as_ref());
            }
        }
        if let Some(failpoint) = failpoint {
            command.env("RESTANTE_FAILPOINT", failpoint);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
    }

    async fn finish(&self, operation: &Operation, failpoint: Option<String>) -> (ExitStatus, String) {
        let output = self.start(operation, failpoint).wait_with_output().await.unwrap();
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Dies at every pass of the point, or every so many, until a process lives; how many could have died.
#[cfg(feature = "failpoints")]
async fn dies_everywhere(scene: &Scene, operation: &Operation, point: &str, step: usize) -> u32 {
    for pass in (1..).step_by(step) {
        let what = format!("{} dies at {point}:{pass}", operation.name);
        let run = Run::new(scene).await;
        let (status, said) = run.finish(operation, Some(format!("{point}:{pass}"))).await;
        if status.success() {
            scene.certified_is_whole(&run.storage(), &what).await;
            return pass - 1;
        }
        assert_eq!(status.signal(), Some(6), "{what}: it ended otherwise, with {status}: {said}");
        scene.all_is_well(&run.storage(), &what).await;
    }
    unreachable!("the numbers never end")
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_around_any_call_leaves_a_repository_that_is_whole() {
    let scene = Scene::new(&TestServer::shared(), 40, 36).await;
    for operation in &OPERATIONS {
        let (before, after) = tokio::join!(
            dies_everywhere(&scene, operation, "storage:before", 1),
            dies_everywhere(&scene, operation, "storage:after", 1)
        );
        println!("{}: died before {before} calls and after {after}", operation.name);
        // Listings have no point after them.
        assert!(before > after && after > 10, "{}: {before} and {after}", operation.name);
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_prune_that_dies_around_any_call_leaves_work_for_the_next() {
    let scene = Scene::new(&TestServer::shared(), 40, 36).await.with_something_to_prune().await;
    // All of them were tried once; each takes a third of a second.
    let step = if long() { 1 } else { 5 };
    let (before, after) = tokio::join!(
        dies_everywhere(&scene, &PRUNE, "storage:before", step),
        dies_everywhere(&scene, &PRUNE, "storage:after", step)
    );
    println!("prune: before {before} calls and after {after}, every {step}");
    assert!(before > 20 && after > 20, "{before} and {after}");
    // Whatever was left, the next one ends it.
    let run = Run::new(&scene).await;
    let count = |folder: &str| std::fs::read_dir(run.repository().join(folder)).unwrap().count();
    let (snapshots, tombstones) = (count("snapshots"), count("tombstones"));
    for failpoint in [Some("storage:after:40".to_owned()), None] {
        run.finish(&PRUNE, failpoint).await;
    }
    assert_eq!(count("snapshots"), snapshots - 1, "the one whose grace was over is gone");
    assert!(tombstones > 0 && count("tombstones") > 0, "what was marked before is gone, and something is marked");
    scene.all_is_well(&run.storage(), "pruned").await;
}

/// The exit code of `verify` and what it said.
async fn verify(run: &Run<'_>, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_restante"));
    command.arg("verify").args(arguments).env_remove("RESTANTE_CONFIG").current_dir(run.folder.path());
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_by_its_exit_code_what_it_found() {
    let scene = Scene::new(&TestServer::shared(), 10, 1).await;
    let run = Run::new(&scene).await;
    let (repository, reader) = (run.repository(), scene.keys.reader());
    let (repository, reader) = (repository.to_str().unwrap(), reader.to_str().unwrap());
    let key = run.key.to_str().unwrap().to_owned();
    let as_writer = ["-r", repository, "--key", &key];
    let (code, said) = verify(&run, &as_writer).await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = verify(&run, &["--data", "-r", repository, "-i", reader]).await;
    assert_eq!(code, Some(0), "{said}");

    let (status, said) = run.finish(&OPERATIONS[0], None).await;
    assert!(status.success(), "{said}");
    let newest = scene.keys.as_reader(&run.storage()).await.unwrap();
    let (all, _) = restante::repository::snapshots::list(&newest).await.unwrap();
    let hidden = all.last().unwrap().id.to_hex();
    for folder in ["snapshots", "certificates"] {
        for entry in std::fs::read_dir(run.repository().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.to_str().unwrap().ends_with(&hidden) {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    let (code, said) = verify(&run, &as_writer).await;
    assert!(code == Some(3) && said.contains("behind this writer"), "{code:?} {said}");

    let strange = Run::new(&scene).await;
    let another = restante::repository::ring::generate_identity(&strange.folder.path().join("another.key")).unwrap();
    assert!(another.starts_with("age1"));
    let another = strange.folder.path().join("another.key");
    let (code, said) = verify(&strange, &["-r", repository, "-i", another.to_str().unwrap()]).await;
    assert_eq!(code, Some(6), "{said}");

    let pack = scene.objects.keys().find(|name| name.as_str().starts_with("packs/")).unwrap();
    std::fs::remove_file(strange.repository().join(pack.as_str())).unwrap();
    let place = strange.repository();
    let (code, said) = verify(&strange, &["--json", "-r", place.to_str().unwrap(), "-i", reader]).await;
    assert_eq!(code, Some(3), "{said}");
    let report: serde_json::Value =
        serde_json::from_str(said.lines().find(|l| l.contains("verified")).unwrap()).unwrap();
    let finding = &report["findings"][0];
    assert_eq!((finding["kind"].as_str(), finding["object"].as_str()), (Some("missing"), Some(pack.as_str())));
    assert_eq!(finding["snapshots"][0].as_str(), Some(scene.before.0.as_str()), "{finding}");

    std::fs::remove_dir_all(&place).unwrap();
    let (code, said) = verify(&strange, &["-r", place.to_str().unwrap(), "-i", reader]).await;
    assert_eq!(code, Some(5), "{said}");
}

/// Numbers that look random: of the seed in RESTANTE_TEST_SEED, or of this instant.
pub struct Dice {
    pub seed: u64,
    thrown: u64,
}

impl Dice {
    pub fn new() -> Self {
        let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("RESTANTE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(now);
        Self { seed, thrown: 0 }
    }

    /// Between 0 and 1.
    pub fn throw(&mut self) -> f64 {
        self.thrown += 1;
        let hash = blake3::hash(&[self.seed.to_le_bytes(), self.thrown.to_le_bytes()].concat());
        let bytes = hash.as_bytes();
        f64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])) / f64::from(u32::MAX)
    }
}

/// How long a run takes; `dry`: until the repository is open.
async fn duration(scene: &Scene, operation: &Operation, dry: bool) -> Duration {
    let run = Run::new(scene).await;
    let dried = Operation {
        name: operation.name,
        arguments: |run| {
            let mut arguments = (OPERATIONS[0].arguments)(run);
            arguments.push("--dry-run".into());
            arguments
        },
    };
    let begun = Instant::now();
    let (status, said) = run.finish(if dry { &dried } else { operation }, None).await;
    assert!(status.success(), "{said}");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_at_any_instant_leaves_a_repository_that_is_whole() {
    let scene = Scene::new(&TestServer::shared(), 40, 100).await;
    let (operation, wanted) = (&OPERATIONS[0], if long() { 200 } else { 25 });
    let lasts = async || (duration(&scene, operation, true).await, duration(&scene, operation, false).await);
    let (mut opened, mut whole) = lasts().await;
    let mut dice = Dice::new();
    let (mut landed, mut missed) = (0, 0);
    while landed < wanted {
        let run = Run::new(&scene).await;
        let mut child = run.start(operation, None);
        let at = opened + whole.saturating_sub(opened).mul_f64(dice.throw() * 0.9);
        // The instant is what is random here; nothing waits for anything.
        tokio::time::sleep(at).await;
        child.start_kill().ok();
        let status = child.wait().await.unwrap();
        let what = format!("killed after {at:?} of {whole:?} (RESTANTE_TEST_SEED={})", dice.seed);
        scene.all_is_well(&run.storage(), &what).await;
        if status.signal() == Some(9) {
            landed += 1;
        } else {
            // The machine has become faster since it was measured.
            missed += 1;
            (opened, whole) = lasts().await;
        }
        assert!(missed <= wanted, "most kills came too late");
    }
    println!("{landed} kills landed inside work, {missed} came too late; seed {}", dice.seed);
}

/// A file system of a few MiB, mounted for the test; `None` where that is not allowed.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(kib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"], folder.path()).then_some(Self(folder))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn grow(&self, kib: u32) {
        assert!(mount(&["-o", &format!("remount,size={kib}k")], self.0.path()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn mount(arguments: &[&str], place: &Path) -> bool {
    let status = std::process::Command::new("mount").args(arguments).arg(place).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_the_next_run_goes_on() {
    let scene = Scene::new(&TestServer::shared(), 40, 36).await;
    let stored: usize = scene.objects.values().map(|bytes| bytes.len()).sum();
    let Some(disk) = SmallDisk::mount((stored >> 10) as u32 + 400) else {
        println!("skipped: mounting a small file system is not allowed here");
        return;
    };
    let storage: Arc<dyn Storage> = Arc::new(Directory::new(disk.0.path().join("repository")).unwrap());
    for (name, bytes) in &scene.objects {
        storage.put(name, bytes.clone(), PutMode::Create, None).await.unwrap();
    }
    let error = scene.keys.snapshot(&storage, &scene.dsn).await.unwrap_err().to_string();
    assert!(error.contains("no space left"), "{error}");
    disk.grow(64 << 10);
    scene.all_is_well(&storage, "after the disk was full").await;
}
