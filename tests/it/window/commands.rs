//! `find` and `diff` as people run them.

use restante_fixtures::{load, store};
use serde_json::Value;

use crate::server::TestServer;
use crate::snapshot::support::{Place, snapshot_role, text};

fn run(place: &Place, store: &str, arguments: &[&str]) -> (i32, String) {
    let output = place.program(store).args(arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output))
}

fn lines(said: &str, kind: &str) -> Vec<Value> {
    let parsed = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["type"] == kind).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn find_says_what_became_of_a_message_and_diff_what_changed() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    let client = database.superuser().await;
    store::create(&client).await.unwrap();
    let options = load::Options { messages: 300, accounts: 4, max_size: 20_000, ..Default::default() };
    load::load(&client, &options).await.unwrap();
    // Sees every table, reads and no more; the journal of replays is not there yet.
    let dsn = database.dsn_as(&snapshot_role(&database).await);
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    assert_eq!(run(&place, &dsn, &["snapshot", "--tag", "before"]).0, 0);

    let row = client
        .query_one(
            "SELECT m.id, m.uid, m.message_id, b.name, a.address FROM messages m JOIN mailboxes b ON b.id = mailbox_id
             JOIN accounts a ON a.id = account_id WHERE message_id IS NOT NULL
             AND (SELECT count(*) FROM messages o WHERE o.message_id = m.message_id) = 1 ORDER BY m.id LIMIT 1",
            &[],
        )
        .await
        .unwrap();
    let (id, uid): (i64, i64) = (row.get(0), row.get(1));
    let (message_id, mailbox, account): (String, String, String) = (row.get(2), row.get(3), row.get(4));
    let look = |by: &[&str]| {
        let arguments = [&["find", "--json", "-i", reader, "latest:tag=before"], by].concat();
        let (code, said) = run(&place, &dsn, &arguments);
        assert_eq!(code, 0, "{said}");
        lines(&said, "found")
    };
    let bare = message_id.trim_matches(['<', '>']).to_owned();
    let found = look(&["--message-id", &bare]);
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0]["account"], &found[0]["mailbox"]), (&account.clone().into(), &mailbox.clone().into()));
    assert_eq!((&found[0]["uid"], &found[0]["class"]), (&uid.into(), &Value::Null));

    client.batch_execute("SET session_replication_role = replica").await.unwrap();
    client.execute("DELETE FROM message_attachments WHERE message_id = $1", &[&id]).await.unwrap();
    client.execute("DELETE FROM keywords WHERE message_id = $1", &[&id]).await.unwrap();
    client.execute("DELETE FROM messages WHERE id = $1", &[&id]).await.unwrap();
    client.execute("UPDATE messages SET seen = NOT seen WHERE id = (SELECT min(id) FROM messages)", &[]).await.unwrap();
    client.batch_execute("CREATE TABLE fresh (a int); INSERT INTO fresh VALUES (1), (2)").await.unwrap();
    client.batch_execute("GRANT SELECT ON fresh TO public").await.unwrap();
    assert_eq!(look(&["--account", &account, "--mailbox", &mailbox, "--uid", &uid.to_string()])[0]["class"], "absent");
    assert!(look(&["--account", &account, "--from", "2199-01-01T00:00:00Z"]).is_empty());
    let (code, said) = run(&place, &dsn, &["find", "-i", reader]);
    assert_eq!(code, 2, "{said}");
    let (_, said) = run(&place, &dsn, &["find", "-i", reader, "--message-id", &message_id, "latest:tag=before"]);
    assert!(said.contains(&account) && said.contains("lost"), "{said}");

    assert_eq!(run(&place, &dsn, &["snapshot", "--accept-loss"]).0, 0);
    // The writer key will do.
    let (code, said) = run(&place, &dsn, &["diff", "--json", "latest:tag=before"]);
    assert_eq!(code, 0, "{said}");
    let diffs = lines(&said, "table_compared");
    let of = |table: &str| diffs.iter().find(|diff| diff["table"] == table).unwrap();
    let messages = of("public.messages");
    assert_eq!((&messages["removed"], &messages["added"]), (&2.into(), &1.into()), "{messages}");
    let before = messages["rows_before"].as_u64().unwrap();
    assert_eq!(messages["rows_after"], before - 1);
    assert_eq!((&of("public.accounts")["removed"], &of("public.accounts")["added"]), (&0.into(), &0.into()));
    assert_eq!((&of("public.fresh")["note"], &of("public.fresh")["rows_after"]), (&"new".into(), &2.into()));
    let (_, said) = run(&place, &dsn, &["diff", "latest:tag=before"]);
    assert!(said.contains("public.messages") && !said.contains("public.accounts"), "{said}");
}
