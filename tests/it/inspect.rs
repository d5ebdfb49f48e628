//! Stores that no profile can describe.

use std::collections::BTreeMap;

use crate::server::TestServer;
use crate::snapshot::support::{Place, everything, snapshot_role, text};

const OPAQUE: &str = include_str!("../../fixtures/stores/opaque/schema.sql");

fn run(place: &Place, store: &str, arguments: &[&str]) -> (i32, String) {
    let output = place.program(store).args(arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opaque_store_is_kept_whole_and_refuses_a_window_with_the_reason() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database.execute(OPAQUE).await;
    let dsn = database.dsn_as(&snapshot_role(&database).await);
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    let (code, said) = run(&place, &dsn, &["snapshot"]);
    assert_eq!(code, 0, "{said}");
    let restore = ["restore", "--from", "2026-01-01T00:00:00Z", "-i", reader, "-y"];
    for arguments in [&["gap", "-i", reader][..], &restore, &["find", "--uid", "1", "-i", reader, "latest"]] {
        let (code, said) = run(&place, &dsn, arguments);
        assert_eq!(code, 4, "{arguments:?}: {said}");
        assert!(said.contains("opaque key-value store: 23 tables") && said.contains("--full"), "{said}");
    }

    let copy = TestServer::shared().database(None).await;
    let owner = copy.owning_role().await;
    let (code, said) =
        run(&place, &dsn, &["restore", "latest", "--full", "--into", &copy.dsn_as(&owner), "-i", reader]);
    assert_eq!(code, 0, "{said}");
    let rows = |sections: BTreeMap<String, Vec<String>>| -> BTreeMap<String, Vec<String>> {
        sections.into_iter().filter(|(name, _)| name.contains("Type: TABLE DATA")).collect()
    };
    let (before, after) = (rows(everything(&database).await), rows(everything(&copy).await));
    assert_eq!(before.len(), 23);
    assert!(before.values().eq(after.values()), "the copy is another store");
}
