//! What the options of `restore` do, on the command line, over the reference store.

use std::collections::BTreeMap;
use std::sync::Arc;

use restante::storage::Storage;
use restante::storage::directory::Directory;
use serde_json::Value;

use crate::matrix::incident::{granted, program};
use crate::matrix::sample::Keys;
use crate::restore::store::{Content, Store};
use crate::server::TestServer;

/// A store, a repository, and a role that may restore.
struct Scene {
    store: Store,
    folder: tempfile::TempDir,
    storage: Arc<dyn Storage>,
    keys: Keys,
    reading: String,
    dsn: String,
}

impl Scene {
    async fn new() -> Self {
        let store = Store::made(TestServer::shared().database(None).await).await;
        let folder = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(Directory::new(folder.path().join("repository")).unwrap());
        let keys = Keys::init(&*storage).await;
        let reading = crate::postgres::support::reading_role(&store.database).await;
        let role = granted(&store).await;
        store.database.execute(&format!("GRANT CREATE ON DATABASE {} TO {role}", store.database.name())).await;
        let (reading, dsn) = (store.database.dsn_as(&reading), store.database.dsn_as(&role));
        Self { store, folder, storage, keys, reading, dsn }
    }

    async fn snapshot(&self) {
        self.keys.snapshot(&self.storage, &self.reading).await.unwrap();
    }

    /// Runs `restante restore …` and gives what it printed.
    async fn text(&self, code: i32, arguments: &[&str]) -> String {
        let reader = self.keys.reader();
        let repository = self.folder.path().join("repository");
        let places = ["-r", repository.to_str().unwrap(), "-i", reader.to_str().unwrap(), "-d", &self.dsn];
        let mut command = program(self.folder.path());
        command.arg("restore").args(arguments).args(places).args(["--progress", "none"]);
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    /// The same as JSON: the objects of one type.
    async fn json(&self, code: i32, arguments: &[&str], kind: &str) -> Vec<Value> {
        let said = self.text(code, &[arguments, &["--json"]].concat()).await;
        let lines =
            said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}")));
        lines.filter(|line| line["type"] == kind).collect()
    }

    /// Contents by mailbox, sorted.
    async fn found(&self) -> BTreeMap<String, Vec<u32>> {
        let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for one in self.store.found().await {
            found.entry(one.name).or_default().push(one.content.map_or(u32::MAX, |content| content.0));
        }
        found.values_mut().for_each(|contents| contents.sort_unstable());
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_account_is_told_how_many_when_where_and_what_is_missing_and_why() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let (one, two) = (store.account("one@example.org").await, store.account("two@example.org").await);
    let inbox = store.mailbox(one, "INBOX", 0).await;
    let deleted = store.mailbox(one, "deleted", 0).await;
    let other = store.mailbox(two, "INBOX", 0).await;
    let ids = [
        store.deliver(inbox, Content(1), 10, 0).await,
        store.deliver(inbox, Content(2), 30, 0).await,
        store.deliver(deleted, Content(3), 20, 0).await,
        store.deliver(other, Content(4), 50, 0).await,
    ];
    scene.snapshot().await;
    store.lose(&ids, &[], true).await;
    store.delete_mailbox(deleted).await;
    // Under a UID that clients have seen.
    store.deliver(other, Content(5), 60, 0).await;

    let window = ["--to", "2026-01-01T00:40:00Z", "--per-account"];
    let wanted = |were: &str, was: &str, not: &str| {
        [
            format!(
                "\"one@example.org\": 2 messages from 2026-01-01 00:10 UTC to 2026-01-01 00:30 UTC {were} into \"INBOX\" (2). \
                 1 message {not}: in a folder that was deleted."
            ),
            format!("\"two@example.org\": no message {was}. 1 message {not}: not part of this restore."),
        ]
    };
    let page = scene.folder.path().join("page.html");
    let html = format!("--html={}", page.display());
    let dry = scene.text(3, &[&window[..], &["-n", &html]].concat()).await;
    let shown = std::fs::read_to_string(&page).unwrap();
    for line in wanted("will be put back", "will be put back", "will not be put back") {
        assert!(dry.lines().any(|said| said == line), "{line}\n{dry}");
        assert!(shown.contains(&line.replace('"', "&quot;")), "{line}\n{shown}");
    }
    assert!(dry.contains("POP: clients") && dry.contains("1 mailbox gets another UIDVALIDITY"), "{dry}");
    let planned = scene.json(3, &[&window[..], &["-n"]].concat(), "account").await;
    assert_eq!((&planned[0]["planned"], &planned[0]["messages"]), (&true.into(), &2.into()));

    let said = scene.text(3, &[&window[..], &["--yes", &html]].concat()).await;
    assert!(said.contains("POP: clients") && said.contains("1 mailbox gets another UIDVALIDITY"), "{said}");
    let shown = std::fs::read_to_string(&page).unwrap();
    for line in wanted("were put back", "was put back", "was not put back") {
        assert!(said.lines().any(|said| said == line), "{line}\n{said}");
        assert!(shown.contains(&line.replace('"', "&quot;")), "{line}\n{shown}");
    }
    // A second run, as after one that was cut short, tells the user the same.
    let again = scene.json(3, &[&window[..], &["--yes"]].concat(), "account").await;
    assert_eq!(
        (&again[0]["account"], &again[0]["line"]),
        (&"one@example.org".into(), &wanted("were put back", "was put back", "was not put back")[0].as_str().into())
    );
    assert_eq!(again[0]["not_restored"], serde_json::json!({ "folder-deleted": 1 }));
    assert_eq!(again[0]["folders"], serde_json::json!({ "INBOX": 2 }));
}
