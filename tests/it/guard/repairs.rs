//! Bad changes of a mail store: each is found, the commands that are printed are run as they stand, and the store is what it was.

use std::collections::BTreeMap;
use std::process::Command;

use super::scene::Scene;
use crate::restore::store::{Content, Store};
use crate::server::{as_server_user, binaries};
use crate::snapshot::support::text;

/// A small mail store whose tables belong to the guard's role.
async fn scene() -> (Scene, Store) {
    let store = Store::new().await;
    let (one, two) = (store.account("a@example.org").await, store.account("b@example.org").await);
    let mut boxes = Vec::new();
    for (account, name) in [(one, "INBOX"), (two, "INBOX"), (one, "Archive")] {
        boxes.push(store.mailbox(account, name, 0).await);
    }
    for number in 0..40 {
        let id = store.deliver(boxes[number as usize % 3], Content(number), i64::from(number) * 10, 0).await;
        if number % 4 == 0 {
            store.seen(id, true).await;
        }
        if number % 5 == 0 {
            store.tag(id, "work").await;
        }
    }
    let scene = Scene::over(store.database.server().called(store.database.name())).await;
    let own = format!(
        "DO $$ DECLARE t record; BEGIN FOR t IN SELECT c.oid::regclass AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'public' AND c.relkind = 'r' LOOP EXECUTE format('ALTER TABLE %s OWNER TO {}', t.name); END LOOP; END $$; \
         GRANT USAGE ON SCHEMA driver TO {0}",
        scene.role
    );
    scene.database.execute(&own).await;
    (scene, store)
}

/// What users see: mailbox, content, seen, keywords; UIDs and keys may be others.
async fn mails(store: &Store) -> BTreeMap<(String, Option<u32>, bool, String), usize> {
    let tags = store.tags().await;
    let mut found = BTreeMap::new();
    for mail in store.found().await {
        let mut words: Vec<String> = tags.get(&mail.id).cloned().unwrap_or_default();
        words.retain(|word| word != "$Restored");
        words.sort();
        *found.entry((mail.name, mail.content.map(|content| content.0), mail.seen, words.join(","))).or_default() += 1;
    }
    found
}

/// Runs a change, then every command that it prints; what it printed.
async fn repaired(scene: &Scene, store: &Store, id: &str, sql: &str, tables: &str, wanted: &[&str]) {
    let before = mails(store).await;
    let change = scene.approved(scene.sql(id, "online", sql, tables));
    let reader = scene.place.path("reader.key");
    let ended = scene.json(3, "guard_ended", &["guard", "run", &change, "--jobs", "1", "-i", reader.to_str().unwrap()]);
    assert_ne!(mails(store).await, before, "{id}: it is damaged");
    let commands: Vec<&str> =
        ended["commands"].as_array().unwrap().iter().map(|command| command.as_str().unwrap()).collect();
    for words in wanted {
        assert!(commands.iter().any(|command| command.contains(words)), "{id}: {words:?} is not in {commands:#?}");
    }
    for command in &commands {
        paste(scene, command);
    }
    assert_eq!(mails(store).await, before, "{id}: {commands:#?}");
}

/// Runs a command as it was printed; what it said.
fn paste(scene: &Scene, command: &str) -> String {
    let words = shlex::split(command).unwrap();
    let words: Vec<&str> = words.iter().map(|word| if word == "DSN" { &scene.store } else { word.as_str() }).collect();
    let output = match words[0] {
        "restante" => scene.output(&[&["-y"], &words[1..]].concat()),
        program => as_server_user(Command::new(binaries().join(program))).args(&words[1..]).output().unwrap(),
    };
    // `gap` finds something, which is no failure.
    let fits = output.status.success() || output.status.code() == Some(3);
    assert!(fits, "{command}: {}", text(&output));
    text(&output)
}

/// The message table dropped and made anew by whoever forgot that it had rows.
fn made_anew() -> String {
    let schema = restante_fixtures::store::SCHEMA;
    let part = |from: &str, to: &str| {
        let from = schema.find(from).unwrap();
        &schema[from..schema[from..].find(to).map_or(schema.len(), |to| from + to)]
    };
    let table = part("create table messages", "create table attachments");
    let key = "ADD FOREIGN KEY (message_id) REFERENCES messages ON DELETE CASCADE NOT VALID";
    format!(
        "DROP TABLE messages CASCADE; {table} ALTER TABLE message_attachments {key}; ALTER TABLE keywords {key}; {}",
        part("create trigger", "no end")
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_change_of_a_mail_store_is_repaired_by_the_commands_that_are_printed() {
    let (scene, store) = scene().await;
    let update = "UPDATE messages SET seen = NOT seen WHERE mailbox_id = (SELECT min(id) FROM mailboxes)";
    repaired(
        &scene,
        &store,
        "UPDATE",
        update,
        "",
        &["restante gap", "--repair-columns public.messages.seen", "--damaged-at"],
    )
    .await;
    let swapped = "UPDATE messages SET seen = flagged, flagged = seen";
    let columns = ["--repair-columns public.messages.seen", "--repair-columns public.messages.flagged"];
    repaired(&scene, &store, "SWAPPED", swapped, "", &columns).await;
    let hour = "DELETE FROM messages WHERE saved_at >= (SELECT min(saved_at) FROM messages) + interval '1 hour' \
                AND saved_at < (SELECT min(saved_at) FROM messages) + interval '2 hours'";
    repaired(&scene, &store, "HOUR", hour, "", &["restante restore"]).await;
    repaired(&scene, &store, "PARTS", "TRUNCATE message_attachments", "", &["restante restore"]).await;
    repaired(&scene, &store, "KEYWORDS", "TRUNCATE keywords", "", &["--table public.keywords", "INSERT INTO"]).await;
    let recreated = "DROP TABLE keywords; CREATE TABLE keywords (message_id bigint NOT NULL REFERENCES messages (id) ON DELETE CASCADE, \
                     keyword text NOT NULL, PRIMARY KEY (message_id, keyword))";
    let declared = "[[table]]\nname = \"public.keywords\"\nmay = \"schema\"\n";
    scene.database.execute("DROP SCHEMA rescue CASCADE").await;
    repaired(&scene, &store, "RECREATED", recreated, declared, &["--table public.keywords", "INSERT INTO"]).await;
    repaired(&scene, &store, "EVERYTHING", "DELETE FROM messages", "", &["restante restore"]).await;
    store.client.execute("SELECT driver.check()", &[]).await.unwrap();
    // Beside the new table lie the children of the old one: no new mail gets them, and they are in the way of the key alone.
    let declared = "[[table]]\nname = \"public.messages\"\nmay = \"schema\"\n";
    repaired(&scene, &store, "MESSAGES", &made_anew(), declared, &["restante gap", "restante restore"]).await;
    for table in ["message_attachments", "keywords"] {
        let sql = format!(
            "DELETE FROM {table} WHERE message_id NOT IN (SELECT id FROM messages); ALTER TABLE {table} VALIDATE CONSTRAINT {table}_message_id_fkey"
        );
        store.client.batch_execute(&sql).await.unwrap();
    }
    // No trigger saw the rows go, and each saw them come: what `docs/guard.md` says to compute anew.
    let counters = "UPDATE mailbox_stats s SET (messages, bytes) = (SELECT count(*), coalesce(sum(size), 0) FROM messages WHERE mailbox_id = s.mailbox_id);
         UPDATE accounts a SET used_bytes = (SELECT coalesce(sum(bytes), 0) FROM mailbox_stats JOIN mailboxes b ON b.id = mailbox_id WHERE b.account_id = a.id)";
    store.client.batch_execute(counters).await.unwrap();
    store.client.execute("SELECT driver.check()", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finding_in_mail_is_shown_by_mailbox_and_hour_to_whoever_has_an_identity() {
    let (scene, _store) = scene().await;
    let reader = scene.place.path("reader.key");
    let reader = ["-i", reader.to_str().unwrap()];
    let bad = |id: &str, rest: u8, more: &str| {
        scene.approved(scene.sql(id, "online", &format!("DELETE FROM messages WHERE id % 4 = {rest};{more}"), ""))
    };
    let said = scene.run(3, &["guard", "run", &bad("WITHOUT", 0, ""), "--jobs", "1"]);
    assert!(said.contains("only a reader's identity tells (-i FILE): `restante gap` shows it"), "{said}");
    let gap = said.lines().find(|line| line.trim().starts_with("restante gap")).unwrap();
    assert!(gap.ends_with(" -i IDENTITY") && !said.contains("Archive"), "{said}");
    // What `gap` says, to the line; from a change that failed half-way, through `release`.
    let change = bad("TEXT", 1, " SELECT 1/0");
    scene.run(1, &["guard", "run", &change, "--jobs", "1"]);
    let said = scene.run(3, &[&["guard", "release", "--half-done", "--jobs", "1"], &reader[..]].concat());
    let gap = paste(&scene, said.lines().find(|line| line.trim().starts_with("restante gap")).unwrap());
    assert!(gap.contains("Archive") && gap.contains("lost") && gap.contains("00Z  "), "{gap}");
    for line in gap.split("to put it back").next().unwrap().lines() {
        assert!(said.contains(line), "{line:?} is not in {said}");
    }
    let change = bad("JSON", 2, "");
    let shown = scene.json(3, "gap", &[&["guard", "run", &change, "--jobs", "1"], &reader[..]].concat());
    let snapshot = shown["snapshot"].as_str().unwrap();
    let taken = shown["taken"].as_str().unwrap();
    let gap = [&["gap", snapshot, "--damaged-at", taken], &reader[..]].concat();
    assert_eq!(shown, scene.json(3, "gap", &gap));
    assert!(shown["mailboxes"].as_array().is_some_and(|boxes| boxes.len() == 3) && shown["lost"] == 10, "{shown}");
}
