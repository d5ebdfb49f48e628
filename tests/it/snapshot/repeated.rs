//! The second snapshot and the interrupted one: nothing is stored twice, nothing unfinished is used, nobody takes a rolled-back
//! storage for the real one.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::sync::Arc;

use restante::repository::RepositoryError;
use restante::repository::chunk::ChunkKind;
use restante::repository::reader::load_index;
use restante::repository::snapshots;
use restante::snapshot::{Head, SnapshotError, SnapshotOptions, take};
use restante::storage::layers::Counting;

use super::support::{Place, dsn, filled, monitor, options, restored, snapshot, snapshot_role, text};
use crate::server::TestServer;

pub async fn stored(place: &Place, kind: ChunkKind) -> u64 {
    let reader = place.reader().await;
    let index = load_index(&*reader.storage, &reader.secrets, None).await.unwrap();
    index.packs().filter(|pack| pack.kind == kind).map(|pack| u64::from(pack.size)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_snapshot_of_an_unchanged_store_stores_almost_nothing_and_asks_little() {
    let (place, database) = (Place::new().await, filled(800).await);
    let store = database.dsn_as(&snapshot_role(&database).await);
    let mut counts = Vec::new();
    let mut snapshots = Vec::new();
    for _ in 0..2 {
        let counting = Arc::new(Counting::new(place.storage.clone()));
        let repository = place.writer_over(counting.clone()).await;
        snapshots.push(take(&repository, &dsn(&store), &options(), &monitor()).await.unwrap());
        counts.push(counting.counts());
    }
    println!("requests of the first and of the second: {counts:?}");
    let [first, second] = &snapshots[..] else { unreachable!() };
    let (before, after) = (&first.manifest.totals, &second.manifest.totals);
    assert_eq!((before.rows, before.value_bytes), (after.rows, after.value_bytes));
    // The catalog, whose statistics have moved, and descriptors.
    assert!(after.stored_bytes * 200 < before.stored_bytes, "{after:?}");
    // A pack is put once and fetched back once; four small objects more: fragment, manifest, certificate, each fetched back.
    assert_eq!(counts[0].put, before.new_packs + 3);
    // No fragment where nothing is new.
    assert_eq!(counts[1].put, after.new_packs + 2 + u64::from(after.new_packs > 0));
    assert!(counts[0].bytes_in < counts[0].bytes_out + 100_000, "{:?}", counts[0]);
    // The second reads key ring, configuration, the first's manifest, certificate and fragment, and what it wrote itself.
    assert!(counts[1].get <= after.new_packs + 12, "{:?}", counts[1]);
    // No more than twenty in all, whatever the store holds, and one for each listing of 1,000 objects.
    let all = |c: &restante::storage::layers::Counts| c.put + c.get + c.get_range + c.head + c.list + c.delete;
    assert!(all(&counts[1]) <= 21, "{:?}", counts[1]);
    assert!(counts[1].bytes_in < before.stored_bytes / 50, "{:?}", counts[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attachment_that_moves_is_not_stored_again() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    // Bytes that nothing compresses, as an attachment of a mail, wrapped at 72 and at 76. The NUL in front keeps chance from making
    // them begin like a header field, which once in a thousand runs moved all cuts.
    database
        .execute(
            r#"CREATE EXTENSION pgcrypto; CREATE TABLE raw AS SELECT '\x00'::bytea || string_agg(gen_random_bytes(1000), '') AS b FROM generate_series(1, 3000);
             CREATE TABLE mail (id int PRIMARY KEY, body bytea);
             CREATE FUNCTION mail(line int) RETURNS bytea LANGUAGE sql AS $$ SELECT convert_to(format(E'From: a\r\nSubject: %s\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n', line)
               || regexp_replace(translate(encode(b, 'base64'), E'\n', ''), '(.{' || line || '})', E'\\1\r\n', 'g') || E'\r\n', 'UTF8') FROM raw $$;
             INSERT INTO mail VALUES (1, mail(76)); CREATE TABLE empty (id int)"#,
        )
        .await;
    let store = database.dsn_as(&snapshot_role(&database).await);
    snapshot(&place, &store, &options()).await.unwrap();
    let before = stored(&place, ChunkKind::Payload).await;
    assert!(before < 3_600_000, "the attachment and the raw bytes are one: {before}");
    database
        .execute(
            "INSERT INTO mail VALUES (2, mail(72)), (3, mail(76)); DELETE FROM mail WHERE id = 1; INSERT INTO mail SELECT 4, body FROM mail WHERE id = 3;
             CREATE TABLE archive AS TABLE mail",
        )
        .await;
    database.execute("VACUUM FULL mail").await;
    let second = snapshot(&place, &store, &SnapshotOptions { accept_loss: true, ..options() }).await.unwrap();
    let after = stored(&place, ChunkKind::Payload).await;
    assert!(after - before < 20_000, "{before} {after}");
    let target = TestServer::shared().database(None).await;
    let superuser = super::support::restore_into(&place, &second, &target.superuser_dsn()).await.unwrap();
    assert_eq!(superuser.problems, Vec::<String>::new());
    let same = "SELECT bool_and(a.body = m.body) AND count(*) = 3 FROM archive a JOIN mail m USING (id)";
    assert!(target.superuser().await.query_one(same, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_grows_keeps_its_segments_until_it_is_rewritten() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database
        .execute(
            "CREATE TABLE mail (id int, body bytea); ALTER TABLE mail ALTER body SET STORAGE EXTERNAL;
             INSERT INTO mail SELECT g, '\\x00' FROM generate_series(1, 20000) g",
        )
        .await;
    let store = database.dsn_as(&snapshot_role(&database).await);
    let options = SnapshotOptions { segment_bytes: 1 << 20, accept_loss: true, ..options() };
    let mut blocks = Vec::new();
    // Bodies of 8 kB make a block weigh much more than before.
    let grow = "INSERT INTO mail SELECT g, decode(repeat('00', 8000), 'hex') FROM generate_series(1, 2000) g";
    for change in ["SELECT", grow, "VACUUM FULL mail"] {
        database.execute(change).await;
        let taken = snapshot(&place, &store, &options).await.unwrap();
        blocks.push(taken.manifest.table("public", "mail").unwrap().blocks_per_segment);
    }
    assert!(blocks[0] == blocks[1] && blocks[2] < blocks[1], "{blocks:?}");
}

/// Interrupts the program as soon as it has stored some packs.
fn interrupt_after_packs(mut program: Command, place: &Place, packs: usize) -> std::process::Output {
    let child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while place.objects().keys().filter(|name| name.starts_with("packs/")).count() < packs {
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_leaves_a_clean_repository_and_the_next_run_stores_nothing_twice() {
    let (place, database) = (Place::new().await, filled(1500).await);
    let store = database.dsn_as(&snapshot_role(&database).await);
    let program = || {
        let mut program = place.program(&store);
        program.args(["snapshot", "--jobs", "1", "--memory", "16MiB"]);
        program
    };
    let output = interrupt_after_packs(program(), &place, 3);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert!(text(&output).contains("interrupted"), "{}", text(&output));
    let left: HashSet<String> = place.objects().keys().map(|name| name.split('/').next().unwrap().to_owned()).collect();
    assert!(!left.contains("snapshots") && !left.contains("certificates") && left.contains("index"), "{left:?}");
    // No backend of ours stays behind with its locks.
    let watching = database.superuser().await;
    let backends =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'restante'";
    while watching.query_one(backends, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::task::yield_now().await;
    }

    let output = program().output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let reader = place.reader().await;
    let index = load_index(&*reader.storage, &reader.secrets, None).await.unwrap();
    let mut seen = HashSet::new();
    for pack in index.packs() {
        for entry in &pack.entries {
            assert!(seen.insert(entry.id), "{} was stored twice", entry.id);
        }
    }
    // Every pack is known to the index: nothing lies there that nobody would ever use or remove.
    let packs = place.objects().keys().filter(|name| name.starts_with("packs/")).count();
    assert_eq!(packs, index.packs().count());
    let verify = place.program("").args(["verify", "--data", "-i"]).arg(place.path("reader.key")).output().unwrap();
    assert_eq!(verify.status.code(), Some(0), "{}", text(&verify));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_its_certificate_is_never_used() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    let store = database.dsn_as(&snapshot_role(&database).await);
    let first = snapshot(&place, &store, &options()).await.unwrap();
    let second = snapshot(&place, &store, &options()).await.unwrap();
    std::fs::remove_file(place.path(&format!("repository/certificates/{}", second.id))).unwrap();
    let (all, _) = snapshots::list(&place.reader().await).await.unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(snapshots::select(&all, "latest").unwrap().id, first.id);
    let refused = snapshots::select(&all, &second.short()).unwrap_err();
    assert!(matches!(refused, RepositoryError::NotCertified { .. }), "{refused}");
    let run = |arguments: &[&str]| {
        let mut program = place.program("");
        program.args(arguments).arg("-i").arg(place.path("reader.key"));
        program.output().unwrap()
    };
    let target = TestServer::shared().database(None).await;
    let restore = run(&["restore", &second.short(), "--full", "--into", &target.superuser_dsn()]);
    assert_eq!(restore.status.code(), Some(4), "{}", text(&restore));
    assert!(!text(&run(&["snapshots"])).contains(&second.short()));
    assert!(text(&run(&["snapshots", "--uncertified"])).contains("not certified"));
    assert_eq!(run(&["verify"]).status.code(), Some(3));
    // It still counts: the next one does not take its number, nor is it measured by it.
    let third = snapshot(&place, &store, &options()).await.unwrap();
    assert_eq!(third.manifest.sequence, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_was_rolled_back_stops_the_writer() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database.execute("CREATE TABLE t (a int)").await;
    let store = database.dsn_as(&snapshot_role(&database).await);
    let run = || place.program(&store).arg("snapshot").output().unwrap();
    assert_eq!(run().status.code(), Some(0));
    let copy = |from: &str, to: &str| {
        let (from, to) = (place.path(from), place.path(to));
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy("repository", "earlier");
    assert_eq!(run().status.code(), Some(0));
    // Another store in the same repository does not make it forget the first.
    let other = TestServer::shared().database(None).await;
    let other = other.dsn_as(&snapshot_role(&other).await);
    copy("repository", "before");
    assert_eq!(place.program(&other).arg("snapshot").output().unwrap().status.code(), Some(0));
    std::fs::remove_dir_all(place.path("repository")).unwrap();
    copy("earlier", "repository");
    let output = run();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert!(text(&output).contains("rolled back"), "{}", text(&output));
    let heads = vec![Head {
        store: snapshots::list(&place.reader().await).await.unwrap().0[0].manifest.store.clone(),
        sequence: 2,
    }];
    let refused = snapshot(&place, &store, &SnapshotOptions { heads, ..options() }).await.unwrap_err();
    let rolled_back =
        matches!(refused, SnapshotError::Repository(RepositoryError::RolledBack { expected: 2, found: 1 }));
    assert!(rolled_back, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_store_comes_back_whole() {
    let (place, database) = (Place::new().await, filled(600).await);
    let store = database.dsn_as(&snapshot_role(&database).await);
    let taken = snapshot(&place, &store, &options()).await.unwrap();
    assert!(taken.manifest.complete, "{:?}", taken.manifest.not_covered);
    let target = TestServer::shared().database(None).await;
    assert_eq!(restored(&place, &taken, &target).await.problems, Vec::<String>::new());
    super::support::same(&super::support::everything(&database).await, &super::support::everything(&target).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_on_though_nobody_reads_what_it_says() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    let role = snapshot_role(&database).await;
    for json in [&["--json"][..], &[]] {
        let mut program = place.program(&database.dsn_as(&role));
        program.arg("snapshot").args(json).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap();
        drop((child.stdout.take(), child.stderr.take()));
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
