//! `restante verify --live`: what a disk did to rows that nobody changed.

use std::os::unix::fs::FileExt;

use crate::retention::commands::Small;
use crate::server::{ServerOptions, TestServer};

fn live(small: &Small, wanted: i32, arguments: &[&str]) -> serde_json::Value {
    small.lines(wanted, "verified", &[&["verify", "--live"], arguments].concat()).remove(0)["live"].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_nobody_changed_say_what_they_said() {
    let server = TestServer::dedicated(ServerOptions { fsync: true, ..ServerOptions::default() });
    let small = Small::over(
        server.database(None).await,
        "INSERT INTO t SELECT g, repeat('y', 600) FROM generate_series(2, 40) g",
    )
    .await;
    let nothing = live(&small, 3, &[]);
    assert!(nothing["reason"].as_str().unwrap().contains("marker"), "{nothing}");
    small.snapshot(&[]).await;
    small.run(2, &["verify", "--live=0"]);
    small.run(2, &["verify", "--live", "latest"]);
    let table = |report: &serde_json::Value| {
        let table = &report["tables"][0];
        ["same", "changed", "damaged"].map(|what| table[what].as_u64().unwrap())
    };
    assert_eq!(table(&live(&small, 0, &[])), [41, 0, 0]);
    small
        .database
        .execute("UPDATE t SET b = 'other' WHERE a = 7; DELETE FROM t WHERE a = 8; INSERT INTO t VALUES (99, 'new')")
        .await;
    assert_eq!(table(&live(&small, 0, &[])), [39, 2, 0]);
    // A letter on the disk.
    let client = small.database.superuser().await;
    client.batch_execute("CHECKPOINT").await.unwrap();
    let file: String = client.query_one("SELECT pg_relation_filepath('t')", &[]).await.unwrap().get(0);
    drop(client);
    let path = server.data_directory().join(file);
    server.stop();
    let bytes = std::fs::read(&path).unwrap();
    // The last one: what was removed may still lie about.
    let at = bytes.windows(600).rposition(|window| window == [b'y'; 600]).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().write_at(b"z", at as u64 + 300).unwrap();
    server.start();
    let report = live(&small, 3, &[]);
    // With data checksums the server sees it too, and says so.
    if report["tables"][0]["unreadable"].is_null() {
        assert_eq!(table(&report), [38, 2, 1], "{report}");
        assert_eq!(report["tables"][0]["places"].as_array().unwrap().len(), 1);
    }
    let said = small.run(3, &["verify", "--live"]);
    assert!(said.contains("public.t: 1 rows of the live store") || said.contains("cannot be read"), "{said}");
    if !report["tables"][0]["unreadable"].is_null() {
        return;
    }
    // The next snapshot reads what came, and nothing else: it would not see it.
    small.snapshot(&[]).await;
    live(&small, 3, &[]);
}
