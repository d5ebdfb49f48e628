//! What the options of `restore` do, on the command line, over the reference store.

use std::collections::BTreeMap;
use std::sync::Arc;

use restante::storage::Storage;
use restante::storage::directory::Directory;
use serde_json::Value;

use crate::matrix::incident::{granted, program};
use crate::matrix::sample::Keys;
use crate::restore::store::{Content, REFERENCE, Store};
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
        self.run(code, &[&["restore"], arguments].concat()).await
    }

    async fn run(&self, code: i32, arguments: &[&str]) -> String {
        let reader = self.keys.reader();
        let repository = self.folder.path().join("repository");
        let places = ["-r", repository.to_str().unwrap(), "-i", reader.to_str().unwrap(), "-d", &self.dsn];
        let mut command = program(self.folder.path());
        command.args(arguments).args(places).args(["--progress", "none"]);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_nobody_has_is_an_error_and_no_empty_answer() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let id = store.deliver(inbox, Content(1), 10, 0).await;
    scene.snapshot().await;
    scene.snapshot().await;
    store.lose(&[id], &[], true).await;

    let unknown = |said: &str, name: &str| said.contains("neither the snapshot nor the store") && said.contains(name);
    for (arguments, name) in [
        (
            &["restore", "--yes", "--account", "A@example.org"][..],
            "an account \"A@example.org\", but \"a@example.org\"",
        ),
        (
            &["restore", "--yes", "--account", "a@example.org", "--mailbox", "Inbox"],
            "a mailbox \"Inbox\", but \"INBOX\"",
        ),
        (&["restore", "-n", "--account", "b@example.org"], "an account \"b@example.org\""),
        (&["restore", "--yes", "--union", "--account", "b@example.org"], "an account \"b@example.org\""),
        (&["find", "--account", "b@example.org"], "an account \"b@example.org\""),
        (&["find", "--mailbox", "Sent"], "a mailbox \"Sent\""),
    ] {
        let said = scene.run(2, arguments).await;
        assert!(unknown(&said, name), "{arguments:?}: {said}");
    }
    assert!(scene.found().await.is_empty());
    let done = scene.json(0, &["--yes", "--account", "a@example.org", "--mailbox", "INBOX"], "replayed").await;
    let replay = done[0]["replay"].as_str().unwrap();
    let said = scene.run(5, &["undo", replay, "--yes", "--account", "b@example.org"]).await;
    assert!(said.contains("no mailbox of these names") && said.contains("\"b@example.org\""), "{said}");
    assert_eq!(scene.found().await["INBOX"], [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_of_a_file_come_first_and_an_unknown_one_stops_all() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let mut ids = Vec::new();
    for (at, address) in ["a@example.org", "b@example.org", "c@example.org"].into_iter().enumerate() {
        let account = store.account(address).await;
        let inbox = store.mailbox(account, "INBOX", 0).await;
        for minute in [10, 40] {
            ids.push(
                store.deliver(inbox, Content(10 * at as u32 + minute / 40), i64::from(minute) + at as i64, 0).await,
            );
        }
    }
    scene.snapshot().await;
    store.lose(&ids, &[], true).await;

    let file = scene.folder.path().join("first");
    let order = format!("--order=account-file={}", file.display());
    std::fs::write(&file, "# paying\nb@example.org\n\nB@example.org\n").unwrap();
    let said = scene.text(2, &["--yes", &order]).await;
    assert!(said.contains("line 4") && said.contains("\"B@example.org\""), "{said}");
    let journal = "SELECT to_regclass('restante.journal') IS NULL";
    assert!(store.client.query_one(journal, &[]).await.unwrap().get::<_, bool>(0), "something was written");

    // Keys ascend as mail is put back. Its accounts in their order, then the rest, each with the newest first.
    std::fs::write(&file, "# paying\n b@example.org\r\na@example.org\n").unwrap();
    let put_back = async |jobs: &str| -> Vec<u32> {
        scene.text(0, &["--yes", "--batch=1", jobs, &order]).await;
        let mut found = store.found().await;
        found.sort_by_key(|one| one.id);
        store.check_counters().await;
        found.iter().map(|one| one.content.unwrap().0).collect()
    };
    assert_eq!(put_back("--jobs=1").await, [11, 10, 1, 0, 21, 20]);
    // Side by side each session keeps the order of its own accounts: a and c are one's, b the other's.
    let restored: Vec<i64> = store.found().await.iter().map(|one| one.id).collect();
    store.lose(&restored, &[], true).await;
    store.client.batch_execute("DELETE FROM restante.journal").await.unwrap();
    let side_by_side = put_back("--jobs=2").await;
    let of = |own: &[u32]| side_by_side.iter().copied().filter(|one| own.contains(one)).collect::<Vec<_>>();
    assert_eq!((of(&[1, 0, 21, 20]), of(&[11, 10])), (vec![1, 0, 21, 20], vec![11, 10]));
    assert_eq!(side_by_side.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_that_holds_more_than_it_may_gets_its_mail_and_it_is_told() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let mut ids = Vec::new();
    for (at, address) in ["a@example.org", "b@example.org", "c@example.org"].into_iter().enumerate() {
        let account = store.account(address).await;
        let inbox = store.mailbox(account, "INBOX", 0).await;
        for number in 0..3 {
            ids.push(store.deliver(inbox, Content(10 * at as u32 + number), i64::from(number), 0).await);
        }
    }
    scene.snapshot().await;
    store.lose(&ids[..5], &[], true).await;
    // Since the snapshot. The last one is full as well, and lost nothing.
    store.client.batch_execute("UPDATE accounts SET quota_bytes = 1 WHERE address <> 'b@example.org'").await.unwrap();
    let told = scene.json(0, &["--yes", "--per-account"], "account").await;
    let told: Vec<_> = told
        .iter()
        .map(|one| (one["account"].as_str().unwrap(), one["messages"].as_u64().unwrap(), &one["over_quota"]))
        .collect();
    assert_eq!(told, [("a@example.org", 3, &true.into()), ("b@example.org", 2, &false.into())]);
    let again = scene.text(0, &["--yes", "--per-account"]).await;
    assert!(again.contains("\"a@example.org\": 3 messages") && again.contains("more than its quota now"), "{again}");
    assert_eq!(again.matches("more than its quota now").count(), 1, "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sessions_put_mail_back_or_one_where_there_is_no_other_and_one_that_fails_ends_both() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let (mut ids, mut inboxes) = (Vec::new(), Vec::new());
    for (at, address) in ["a@example.org", "b@example.org"].into_iter().enumerate() {
        let account = store.account(address).await;
        let inbox = store.mailbox(account, "INBOX", 0).await;
        inboxes.push(inbox);
        for number in 0..6 {
            ids.push(store.deliver(inbox, Content(10 * at as u32 + number), i64::from(number), 0).await);
        }
    }
    scene.snapshot().await;
    store.lose(&ids, &[], true).await;
    // New since, so that a restored row gets it: who wrote it.
    store.client.batch_execute("ALTER TABLE messages ADD writer int DEFAULT pg_backend_pid()").await.unwrap();
    let lose_again = async || {
        let restored: Vec<i64> = store.found().await.iter().map(|one| one.id).collect();
        store.lose(&restored, &[], true).await;
        store.client.batch_execute("DELETE FROM restante.journal").await.unwrap();
    };
    let writers = "SELECT count(DISTINCT writer), count(*) FROM messages";
    let writers = async || {
        let row = store.client.query_one(writers, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1))
    };
    for (jobs, sessions) in [("--jobs=1", 1), ("--jobs=2", 2)] {
        scene.text(0, &["--yes", "--batch=1", jobs]).await;
        assert_eq!(writers().await, (sessions, 12), "{jobs}");
        lose_again().await;
    }

    let role = scene.dsn.split("user=").nth(1).unwrap().split_whitespace().next().unwrap();
    store.client.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 1")).await.unwrap();
    let said = scene.text(0, &["--yes", "--batch=1"]).await;
    assert!(said.contains("going on with 1 sessions"), "{said}");
    assert_eq!(writers().await, (1, 12));
    store.client.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await.unwrap();
    lose_again().await;

    // One session meets what it cannot write; nothing of either is left half done.
    let refuse = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON messages FOR EACH ROW WHEN (NEW.mailbox_id = {}) EXECUTE FUNCTION refuse()",
        inboxes[1]
    );
    store.client.batch_execute(&refuse).await.unwrap();
    let said = scene.text(1, &["--yes", "--batch=1"]).await;
    assert!(said.contains("not this one"), "{said}");
    let journal = "SELECT count(*) FROM restante.journal j JOIN messages m ON m.id::text = j.key";
    let journalled: i64 = store.client.query_one(journal, &[]).await.unwrap().get(0);
    assert_eq!(writers().await.1, journalled);
    store.client.batch_execute("DROP TRIGGER refuse ON messages").await.unwrap();
    scene.text(0, &["--yes"]).await;
    let found = scene.found().await["INBOX"].clone();
    assert_eq!(found, (0..6).chain(10..16).collect::<Vec<u32>>());
    store.check_counters().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_mail_goes_into_the_folder_that_is_named() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let lost = store.mailbox(account, "lost", 0).await;
    let deleted = store.mailbox(account, "deleted", 0).await;
    let mut ids = Vec::new();
    for (number, mailbox) in [inbox, inbox, lost, deleted].into_iter().enumerate() {
        ids.push(store.deliver(mailbox, Content(number as u32), number as i64, 0).await);
    }
    scene.snapshot().await;
    store.lose(&ids[1..], &[lost], true).await;
    store.delete_mailbox(deleted).await;

    for wrong in ["", "/a", "a/", "a\u{7}"] {
        scene.text(2, &["--yes", &format!("--into-folder={wrong}")]).await;
    }
    let arguments = ["--yes", "--into-folder=Found again", "--orphans", "--per-account"];
    let accounts = scene.json(0, &arguments, "account").await;
    let folders = serde_json::json!({ "Found again/INBOX": 1, "Found again/deleted": 1, "Found again/lost": 1 });
    assert_eq!(accounts[0]["folders"], folders);
    let wanted = [("Found again/INBOX", 1), ("Found again/deleted", 3), ("Found again/lost", 2), ("INBOX", 0)];
    let wanted: BTreeMap<String, Vec<u32>> = wanted.map(|(name, content)| (name.to_owned(), vec![content])).into();
    assert_eq!(scene.found().await, wanted);
    store.check_counters().await;
    // It has come back, wherever it lies: nothing is put into its own mailbox besides.
    let plan = scene.json(0, &["--yes"], "plan").await;
    assert_eq!(plan[0]["messages"], 0);
    assert_eq!(scene.found().await, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doubtful_mail_goes_where_it_is_told() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let archive = store.mailbox(account, "Archive", 0).await;
    let ids = [store.deliver(inbox, Content(2), 5, 0).await, store.deliver(inbox, Content(3), 6, 0).await];
    scene.snapshot().await;
    store.lose(&ids, &[], true).await;
    // Copied, or moved while nobody wrote it down.
    store.deliver(archive, Content(2), 50, 0).await;

    for (doubtful, code, numbers) in [("restore", 0, [2, 0, 0]), ("side-folder", 0, [2, 1, 0]), ("skip", 3, [1, 0, 1])]
    {
        let doubtful = format!("--doubtful={doubtful}");
        let plan = scene.json(0, &["-n", &doubtful], "plan").await;
        let found = ["messages", "aside", "left_out"].map(|name| plan[0][name].as_i64().unwrap());
        assert_eq!(found, numbers, "{doubtful}");
        if code == 3 {
            let said = scene.text(3, &["--yes", "--per-account", &doubtful]).await;
            assert!(said.contains("1 message was not put back: possibly deleted by you."), "{said}");
            assert_eq!(scene.found().await["INBOX"], [3]);
        }
    }
    scene.text(2, &["--yes", "--doubtful=perhaps"]).await;
    scene.text(0, &["--yes", "--doubtful=side-folder"]).await;
    let found = scene.found().await;
    assert_eq!((&found["INBOX"][..], &found["Recovered/INBOX"][..]), (&[3][..], &[2][..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_from_before_the_damage_stands_for_no_lost_one() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let id = store.deliver(inbox, Content(2), 5, 0).await;
    scene.snapshot().await;
    // An equal mail that lay beside it when the damage came.
    store.deliver(inbox, Content(2), 30, 0).await;
    store.lose(&[id], &[], false).await;

    scene.text(2, &["-n", "--damaged-at=yesterday"]).await;
    for (damaged, messages) in [("00:20", 0), ("00:40", 1)] {
        let damaged = format!("--damaged-at=2026-01-01T{damaged}:00Z");
        let plan = scene.json(0, &["-n", &damaged], "plan").await;
        assert_eq!(plan[0]["messages"], messages, "{damaged}");
    }
    scene.text(0, &["--yes", "--damaged-at=2026-01-01T01:40[Europe/Zurich]"]).await;
    assert_eq!(scene.found().await["INBOX"], [2, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_merged_and_each_mail_comes_back_once() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let mut ids = Vec::new();
    for number in 1..5 {
        ids.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
    }
    scene.snapshot().await;
    scene.snapshot().await;
    let good = format!("--damaged-at={}", jiff::Timestamp::now());
    // One is lost, one is deleted by its user, one arrives; then one of each kind that is left is lost.
    store.lose(&ids[..1], &[], false).await;
    store.expunge(ids[1], "expunge").await;
    let late = store.deliver(inbox, Content(5), 20, 0).await;
    scene.snapshot().await;
    store.lose(&[ids[2], late], &[], true).await;
    assert_eq!(scene.found().await["INBOX"], [4]);

    let said = scene.text(2, &["-n", "latest", "@2199-01-01T00:00:00Z"]).await;
    assert!(said.contains("--union"), "{said}");
    let dry = scene.json(0, &["-n", "--union"], "union").await;
    assert_eq!((dry[0]["snapshots"].as_array().unwrap().len(), &dry[0]["messages"]), (3, &3.into()));
    // What was gone before the damage it did not take.
    let dry = scene.json(0, &["-n", "--union", &good], "union").await;
    assert_eq!(dry[0]["snapshots"].as_array().unwrap().len(), 2);
    let dry = scene.json(0, &["-n", "--union", "latest"], "union").await;
    assert_eq!((dry[0]["snapshots"].as_array().unwrap().len(), &dry[0]["messages"]), (1, &2.into()));

    // Who records no deletions must say what to do with what may be one.
    let (start, end) = (REFERENCE.find("[[tombstone]]").unwrap(), REFERENCE.find("[[derived]]").unwrap());
    let profile = scene.folder.path().join("profile.toml");
    std::fs::write(&profile, [&REFERENCE[..start], &REFERENCE[end..]].concat()).unwrap();
    let profile = format!("--profile={}", profile.display());
    let refused = scene.text(2, &["--yes", "--union", &profile]).await;
    assert!(refused.contains("--doubtful"), "{refused}");
    scene.text(0, &["-n", "--union", "--doubtful=skip", &profile]).await;

    let page = scene.folder.path().join("page.html");
    let html = format!("--html={}", page.display());
    let done = scene.json(0, &["--yes", "--union", &html], "union").await;
    assert_eq!((&done[0]["messages"], &done[0]["restored"]), (&3.into(), &3.into()));
    assert_eq!(scene.found().await["INBOX"], [1, 3, 4, 5], "what its user deleted stays deleted");
    assert_eq!(std::fs::read_to_string(&page).unwrap().matches("<p>Snapshot").count(), 3);
    store.check_counters().await;

    let again = scene.json(0, &["--yes", "--union", "--per-account"], "account").await;
    assert_eq!((again.len(), &again[0]["messages"]), (1, &3.into()));
    assert_eq!(scene.found().await["INBOX"], [1, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_come_back_where_nobody_touched_the_message_and_undo_gives_back_what_was_there() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let mut ids = Vec::new();
    for number in 1..7 {
        ids.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
    }
    store.client.execute("UPDATE messages SET message_id = repeat('x', 600) WHERE id = $1", &[&ids[4]]).await.unwrap();
    let state = async || {
        let sql = "SELECT id, message_id, flagged, modseq FROM messages ORDER BY id";
        let rows = store.client.query(sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
            .collect::<Vec<(i64, Option<String>, bool, i64)>>()
    };
    let right = state().await;
    scene.snapshot().await;
    let damaged = format!("--damaged-at={}", jiff::Timestamp::now());
    store.seen(ids[2], true).await;
    let newer = store.deliver(inbox, Content(8), 8, 0).await;
    store.client.batch_execute("UPDATE messages SET message_id = 'wrong', flagged = id % 2 = 0").await.unwrap();
    let wrong = state().await;

    for (column, said) in [
        ("messages.id", "proves which message is which"),
        ("messages.saved_at", "proves which message is which"),
        ("messages.mailbox_id", "in which mailbox"),
        ("messages.uid", "numbers are issued anew"),
        ("public.messages.modseq", "numbers are issued anew"),
        ("mailboxes.uidnext", "only columns of the table of messages"),
        ("flagged", "TABLE.COLUMN"),
    ] {
        let refused = scene.text(4, &["--yes", "--repair-columns", column]).await;
        assert!(refused.contains(said), "{column}: {refused}");
    }
    let columns = ["--repair-columns=messages.message_id", "--repair-columns=public.messages.flagged"];
    let refused = scene.text(2, &columns).await;
    assert!(refused.contains("--damaged-at"), "{refused}");
    let late = scene.text(2, &[&columns[..], &["-n", "--damaged-at=2026-01-01T00:00:00Z"]].concat()).await;
    assert!(late.contains("taken after the damage"), "{late}");
    let plan = scene.json(0, &[&columns[..], &["-n"]].concat(), "plan").await;
    assert_eq!((&plan[0]["columns"], &plan[0]["columns_touched"]), (&5.into(), &1.into()));
    assert_eq!(state().await, wrong);

    let done = scene.json(3, &[&columns[..], &["--yes", &damaged]].concat(), "replayed").await;
    assert_eq!(
        (&done[0]["columns"], &done[0]["columns_touched"], &done[0]["restored"]),
        (&5.into(), &1.into(), &0.into())
    );
    let now = state().await;
    for (at, (id, message_id, flagged, modseq)) in now.iter().enumerate() {
        let touched = *id == ids[2] || *id == newer;
        let wanted = if touched { &wrong[at] } else { &right[at] };
        assert_eq!((message_id, flagged), (&wanted.1, &wanted.2), "message {id}");
        assert_eq!(*modseq > wrong[at].3, !touched, "MODSEQ of message {id}");
    }
    store.check_counters().await;
    let again = scene.json(3, &[&columns[..], &["--yes"]].concat(), "replayed").await;
    assert_eq!((&again[0]["columns"], &again[0]["replay"]), (&0.into(), &Value::Null));

    store.seen(ids[0], true).await;
    let replay = done[0]["replay"].as_str().unwrap();
    let said = scene.run(3, &["undo", replay, "--yes", "--json"]).await;
    let undone: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&undone["columns"], &undone["touched"], &undone["undone"]), (&4.into(), &1.into(), &0.into()));
    for (at, (id, message_id, flagged, modseq)) in state().await.iter().enumerate() {
        let wanted = if *id == ids[0] { &right[at] } else { &wrong[at] };
        assert_eq!((message_id, flagged), (&wanted.1, &wanted.2), "message {id}");
        assert!(*modseq >= now[at].3);
    }
    store.check_counters().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_column_is_named_on_the_command_line() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let ids = [store.deliver(inbox, Content(2), 5, 0).await, store.deliver(inbox, Content(3), 6, 0).await];
    scene.snapshot().await;
    store.lose(&ids[1..], &[], true).await;
    store.client.batch_execute("ALTER TABLE messages RENAME body TO content").await.unwrap();
    let refused = scene.text(1, &["--yes", "--profile=reference"]).await;
    assert!(refused.contains("no column body"), "{refused}");
    scene.text(2, &["--yes", "--renamed=body"]).await;
    let renamed = ["--profile=reference", "--renamed=messages.body=content"];
    let gap = scene.run(3, &[&["gap"], &renamed[..]].concat()).await;
    assert!(gap.contains("restante restore") && gap.contains("--renamed=messages.body=content"), "{gap}");
    let done = scene.json(0, &[&["--yes"], &renamed[..]].concat(), "replayed").await;
    assert_eq!(done[0]["restored"], 1);
    scene.run(0, &[&["undo", done[0]["replay"].as_str().unwrap(), "--yes"], &renamed[..]].concat()).await;
    scene.text(0, &[&["--yes"], &renamed[..]].concat()).await;
    // What no mapping mends is refused, and the dry run says so as well.
    let new = "ALTER TABLE messages ADD owner text NOT NULL DEFAULT 'x'; ALTER TABLE messages ALTER owner DROP DEFAULT";
    store.client.batch_execute(new).await.unwrap();
    for mode in ["-n", "--yes"] {
        let refused = scene.text(4, &[&[mode], &renamed[..]].concat()).await;
        assert!(refused.contains("messages.owner"), "{refused}");
    }
}

/// The mail of two providers in one repository: what belongs to others is never put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_of_another_store_in_the_repository_is_not_put_into_this_one() {
    let scene = Scene::new().await;
    let store = &scene.store;
    let inbox = store.mailbox(store.account("ours@example.org").await, "INBOX", 0).await;
    let ids = [store.deliver(inbox, Content(1), 10, 0).await];
    scene.snapshot().await;
    store.lose(&ids, &[], true).await;
    let others = Store::made(TestServer::shared().database(None).await).await;
    let theirs = others.mailbox(others.account("theirs@example.org").await, "INBOX", 0).await;
    others.deliver(theirs, Content(2), 20, 0).await;
    let reading = crate::postgres::support::reading_role(&others.database).await;
    let newest = scene.keys.snapshot(&scene.storage, &others.database.dsn_as(&reading)).await.unwrap();
    let said = scene.text(2, &[&newest.short(), "--yes"]).await;
    assert!(said.contains("belongs to others"), "{said}");
    let said = scene.text(2, &["--union", &newest.short(), "--yes"]).await;
    assert!(said.contains("belongs to others"), "{said}");
    for snapshot in [&["latest", "--yes"][..], &["--yes"]] {
        scene.text(0, snapshot).await;
        assert_eq!(scene.found().await, [("INBOX".to_owned(), vec![1])].into());
    }
    let said = scene.run(0, &["show", "latest"]).await;
    assert!(said.contains(store.database.name()) && !said.contains(others.database.name()), "{said}");
}
