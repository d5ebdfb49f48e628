//! Exit codes and words of `hold`, `forget` and `snapshots`.

use std::time::{Duration, SystemTime};

use crate::server::{TestDatabase, TestServer};
use crate::snapshot::support::{Place, snapshot_role, text};

/// A store of one small table, and its repository.
pub struct Small {
    pub place: Place,
    pub database: TestDatabase,
    store: String,
}

impl Small {
    pub async fn new() -> Self {
        Self::with("").await
    }

    /// And what this makes.
    pub async fn with(more: &str) -> Self {
        Self::over(TestServer::shared().database(None).await, more).await
    }

    pub async fn over(database: TestDatabase, more: &str) -> Self {
        database.execute(&format!("CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'one'); {more}")).await;
        let store = database.dsn_as(&snapshot_role(&database).await);
        Self { place: Place::new().await, database, store }
    }

    pub fn store(&self) -> &str {
        &self.store
    }

    /// Runs the program; what it said.
    pub fn run(&self, wanted: i32, arguments: &[&str]) -> String {
        let output = self.place.program(&self.store).args(arguments).output().unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(wanted), "{arguments:?}: {said}");
        said
    }

    /// The JSON lines of a type.
    pub fn lines(&self, wanted: i32, kind: &str, arguments: &[&str]) -> Vec<serde_json::Value> {
        let (code, lines) = self.either(kind, arguments);
        assert_eq!(code, wanted, "{arguments:?}: {lines:?}");
        lines
    }

    /// The exit code too.
    pub fn either(&self, kind: &str, arguments: &[&str]) -> (i32, Vec<serde_json::Value>) {
        let output = self.place.program(&self.store).arg("--json").args(arguments).output().unwrap();
        let said = text(&output);
        let lines = said.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
        (output.status.code().unwrap(), lines.filter(|line| line["type"] == kind).collect())
    }

    /// Takes a snapshot of a row more; its id.
    pub async fn snapshot(&self, arguments: &[&str]) -> String {
        self.database.execute("INSERT INTO t SELECT max(a) + 1, repeat('x', 600) FROM t").await;
        let lines = self.lines(0, "snapshot", &[&["snapshot"], arguments].concat());
        lines[0]["snapshot"].as_str().unwrap().to_owned()
    }

    pub fn listed(&self, arguments: &[&str]) -> Vec<String> {
        let lines = self.lines(0, "snapshot_listed", &[&["snapshots"], arguments].concat());
        lines.iter().map(|line| line["snapshot"].as_str().unwrap().to_owned()).collect()
    }

    /// The storage wrote all objects whose names begin so that much earlier. Manifests by their own prefix alone: their time tells when the snapshot was taken,
    /// and then they come from the future.
    pub fn age(&self, prefix: &str, by: Duration) {
        let is_meant =
            |name: &String| name.starts_with(prefix) && (!name.starts_with("snapshots/") || !prefix.is_empty());
        for name in self.place.objects().into_keys().filter(is_meant) {
            let file = std::fs::File::options().write(true).open(self.place.path("repository").join(name)).unwrap();
            let then = file.metadata().unwrap().modified().unwrap_or_else(|_| SystemTime::now()) - by;
            file.set_modified(then).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_forgotten_held_and_taken_back() {
    let small = Small::new().await;
    let (a, b, c) = (small.snapshot(&["--tag", "first"]).await, small.snapshot(&[]).await, small.snapshot(&[]).await);
    let short = |id: &str| id[..12].to_owned();
    // Nothing is asked for, or two things.
    for wrong in [
        &["forget"][..],
        &["forget", "--keep-last", "0"],
        &["forget", "--keep-within", "0d"],
        &["forget", "--keep-last", "1", "abcd"],
        &["forget", "--keep-last", "1", "--time-zone", "Nowhere/Land"],
        &["forget", "--keep-within=-1d"],
        &["forget", "--undo"],
        &["forget", "--keep-last", "1"], // nobody to ask
        &["hold"],
    ] {
        small.run(2, wrong);
    }
    assert_eq!(small.listed(&[]), [a.clone(), b.clone(), c.clone()], "nothing of it did anything");
    small.run(5, &["forget", "-y", "0123456789ab"]);
    small.run(5, &["forget", "--undo", &a]);

    small.run(0, &["hold", &short(&a)]);
    let said = small.run(4, &["forget", "-y", &a]);
    assert!(said.contains("held"), "{said}");
    small.run(4, &["forget", "-y", &c]);
    let judged = small.lines(0, "snapshot_judged", &["forget", "-n", "--keep-last", "1"]);
    let keeps: Vec<_> = judged.iter().map(|one| (one["snapshot"].as_str().unwrap(), one["keep"] == true)).collect();
    assert_eq!(keeps, [(&*c, true), (&*b, false), (&*a, true)]);
    assert_eq!(judged[2]["reasons"], serde_json::json!(["held"]));
    assert_eq!(small.listed(&[]).len(), 3, "a dry run");

    let forgot = small.lines(0, "forgotten", &["forget", "-y", "--keep-last", "1"]);
    assert_eq!(forgot[0]["snapshots"], serde_json::json!([b]));
    assert_eq!((small.listed(&[]), small.listed(&["--forgotten"])), (vec![a.clone(), c.clone()], vec![b.clone()]));
    small.run(5, &["show", &b]);
    small.run(0, &["verify", "--data"]);
    let said = small.run(0, &["forget", "--undo", &b]);
    assert!(said.contains("took back") && !said.contains("look again"), "{said}");
    assert_eq!(small.listed(&[]).len(), 3);
    small.run(0, &["hold", "--release", &a]);
    small.run(0, &["forget", "-y", "--keep-last", "1"]);
    assert_eq!(small.listed(&[]), vec![c.clone()]);
    // What was forgotten is no measure and no source: the next one is taken from the newest, which never goes.
    let d = small.snapshot(&[]).await;
    let shown = small.lines(0, "snapshot_shown", &["show"]);
    assert_eq!((shown[0]["snapshot"].as_str(), shown[0]["manifest"]["parent"].as_str()), (Some(&*d), Some(&*c)));
    // One whose time is not the storage's is told, and stays; it is not the latest of any.
    small.age("snapshots/", Duration::from_secs(3 * 86_400));
    small.run(5, &["show"]);
    let said = small.run(3, &["verify"]);
    assert_eq!(said.matches("ALARM").count(), 4, "{said}");
    let said = small.run(3, &["forget", "-y", "--keep-last", "1"]);
    assert!(said.contains("ALARM"), "{said}");
    assert_eq!(small.listed(&[]), [c, d]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prune_removes_what_was_forgotten_and_marked_days_ago() {
    let small = Small::new().await;
    let days = |n: u64| Duration::from_secs(n * 86_400);
    let (a, b) = (small.snapshot(&[]).await, small.snapshot(&["--full"]).await);
    small.run(0, &["forget", "-y", &a]);
    small.run(2, &["prune"]); // nobody to ask
    small.run(2, &["prune", "-y", "--grace", "1m"]);
    small.run(2, &["prune", "-y", "--grace", "2h", "--listing-delay", "3600"]);
    small.age("", days(4));
    let before = small.place.objects();
    let would = small.lines(0, "pruned", &["prune", "-n"]);
    assert!(would[0]["marked"]["packs"].as_u64() > Some(0) && small.place.objects() == before, "{would:?}");
    let marked = small.lines(0, "pruned", &["prune", "-y"]);
    assert_eq!((&marked[0]["snapshots"], &marked[0]["removed"]["packs"]), (&serde_json::json!([a]), &0.into()));
    assert_eq!((&marked[0]["marked"], &would[0]["dry_run"]), (&would[0]["marked"], &true.into()));
    small.run(5, &["forget", "--undo", &a]);
    small.age("tombstones/", days(4));
    let would = small.lines(0, "pruned", &["prune", "-n"]);
    let removed = small.lines(0, "pruned", &["prune", "-y"]);
    assert_eq!((&removed[0]["removed"], &would[0]["removed"]), (&marked[0]["marked"], &marked[0]["marked"]));
    assert!(removed[0]["requests"]["delete"].as_u64() > Some(2), "{removed:?}");
    small.run(0, &["verify", "--data"]);
    assert_eq!(small.listed(&[]), [b]);
    small.snapshot(&[]).await;
    // Something that does not open.
    let manifest = small.place.objects().into_keys().find(|name| name.starts_with("snapshots/")).unwrap();
    std::fs::write(small.place.path("repository").join(&manifest), "x").unwrap();
    let said = small.run(3, &["prune", "-y"]);
    assert!(said.contains("UNEXPECTED") && said.contains("is damaged"), "{said}");
    let id = manifest.rsplit('-').next().unwrap();
    small.run(0, &["forget", "-y", &id[..12], "--grace", "0s"]);
    assert!(small.run(0, &["prune", "-y"]).contains("1 forgotten snapshots removed"));
    // A storage that was set back.
    let small = Small::new().await;
    small.snapshot(&[]).await;
    for (name, _) in small.place.objects().into_iter().filter(|(name, _)| name.starts_with("snapshots/")) {
        std::fs::remove_file(small.place.path("repository").join(name)).unwrap();
    }
    small.run(4, &["prune", "-y"]);
    let said = small.run(4, &["snapshot"]);
    assert!(said.contains("--storage-lost"), "{said}");
    small.snapshot(&["--storage-lost"]).await;
    small.snapshot(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_packs_of_many_snapshots_become_few() {
    let small = Small::new().await;
    let mut snapshots = Vec::new();
    for _ in 0..8 {
        snapshots.push(small.snapshot(&[]).await);
    }
    let identity = small.place.path("reader.key");
    let read = |snapshot: &str| {
        let rows =
            small.place.program(&small.store).args(["dump", snapshot, "t", "-i"]).arg(&identity).output().unwrap();
        assert_eq!(rows.status.code(), Some(0), "{}", text(&rows));
        rows.stdout
    };
    let rows: Vec<_> = snapshots.iter().map(|snapshot| read(snapshot)).collect();
    assert_ne!(rows[0], rows[7]);
    let passed = |arguments: &[&str]| {
        small.age("", Duration::from_secs(4 * 86_400));
        small.lines(0, "pruned", &[&["prune", "-y"], arguments].concat()).remove(0)
    };
    let packs = |pass: &serde_json::Value, what: &str| pass[what]["packs"].as_u64().unwrap();
    assert_eq!(packs(&passed(&["--repack", "0"]), "repacked"), 0);
    let copied = passed(&[]);
    let old = packs(&copied, "repacked");
    assert!(old >= 16 && packs(&copied, "repacked_into") <= 3, "of three kinds: {copied}");
    assert_eq!(packs(&passed(&[]), "marked"), old);
    snapshots.push(small.snapshot(&[]).await);
    assert_eq!(packs(&passed(&[]), "removed"), old);
    small.run(0, &["verify", "--data", "-i", identity.to_str().unwrap()]);
    for (snapshot, rows) in snapshots.iter().zip(rows) {
        assert!(read(snapshot) == rows, "{snapshot}");
    }
}
