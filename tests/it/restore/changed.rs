//! Tables that changed after the snapshot: lost mail goes into what they are now, or nothing is written and it is said why.

use restante::compare::{self, Class, CompareError, Leftover, Reason, Window, choose};
use restante::monitor::Silent;
use restante::postgres::catalog;
use restante::profile::Profile;
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayError};

use super::memory::MemorySource;
use super::store::{Content, REFERENCE, Store, clock};

/// Two mails of five are lost from a store that was like this and its user deletes one, then it is changed.
async fn lost(was: &str, changed: &str, profile: &str) -> (Store, MemorySource) {
    let mut store = Store::new().await;
    store.client.batch_execute(was).await.unwrap_or_else(|error| panic!("{was}: {error:?}"));
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let mut ids = Vec::new();
    // With an attachment, with long values, and without either.
    for number in [2, 3, 4, 5, 6] {
        ids.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
    }
    store.seen(ids[1], true).await;
    store.tag(ids[2], "work").await;
    let snapshot = MemorySource::take(&store.session().await).await;
    store.expunge(ids[4], "expunge").await;
    store.lose(&ids[1..3], &[], true).await;
    store.client.batch_execute(changed).await.unwrap_or_else(|error| panic!("{changed}: {error:?}"));
    store.profile = Profile::parse("changed", &format!("{REFERENCE}\n{profile}")).unwrap();
    (store, snapshot)
}

async fn run(store: &Store, snapshot: &MemorySource) -> Result<u64, ReplayError> {
    let session = store.session().await;
    let comparison = compare::compare(&session, snapshot, &store.profile, &Default::default()).await?;
    let same = comparison.same + comparison.changed;
    let deleted = |leftover: &&Leftover| leftover.class == Class::DeletedByUser && leftover.reason == Reason::Tombstone;
    let (deleted, left) = (comparison.leftovers.iter().filter(deleted).count(), comparison.leftovers.len());
    let apply = Apply::new(Plan::new(comparison, &PlanOptions::default()), ApplyOptions::default());
    let report = apply.run(&session, snapshot, &store.profile, &Silent).await?;
    assert!(report.mail.changed_columns.is_empty(), "{report:?}");
    assert_eq!((same, deleted, left), (2, 1, 3), "the living ones are the same, and one is known to be deleted");
    Ok(report.mail.restored)
}

/// All four mails are in the store, once, and a second restore has nothing to do. `back` makes the store what its driver knows.
async fn comes_back(was: &str, changed: &str, profile: &str, back: &str) -> (Store, MemorySource) {
    let (store, snapshot) = lost(was, changed, profile).await;
    assert_eq!(run(&store, &snapshot).await.unwrap_or_else(|error| panic!("{changed}: {error}")), 2);
    let again = store.restore(&snapshot, None).await;
    assert_eq!((again.replay, again.mail.restored), (None, 0), "{changed}");
    store.client.batch_execute(back).await.unwrap_or_else(|error| panic!("{back}: {error:?}"));
    let mut found = store.found().await;
    found.sort_by_key(|one| one.content);
    let contents: Vec<_> =
        found.iter().map(|one| (&*one.name, one.content.unwrap_or(Content(999)).0, one.seen)).collect();
    assert_eq!(
        contents,
        [("INBOX", 2, false), ("INBOX", 3, true), ("INBOX", 4, false), ("INBOX", 5, false)],
        "{changed}"
    );
    let tags: Vec<_> = store.tags().await.into_values().collect();
    assert_eq!(tags, [["work"]], "{changed}");
    store.check_counters().await;
    (store, snapshot)
}

/// Nothing is written, and the error says what is lost.
async fn is_refused(was: &str, changed: &str, profile: &str, said: &str) {
    let (store, snapshot) = lost(was, changed, profile).await;
    let error = run(&store, &snapshot).await.unwrap_err();
    assert!(
        error.is_refusal() && matches!(error, ReplayError::Compare(CompareError::Changed { .. })),
        "{changed}: {error}"
    );
    assert!(error.to_string().contains(said), "{changed}: {error}");
    let written = "SELECT to_regclass('restante.journal') IS NOT NULL";
    assert!(!store.client.query_one(written, &[]).await.unwrap().get::<_, bool>(0), "{changed}: something was written");
}

#[tokio::test]
async fn mail_goes_into_columns_and_tables_with_other_names() {
    comes_back(
        "",
        "ALTER TABLE messages RENAME body TO content; ALTER TABLE messages RENAME saved_at TO stored_at;
         ALTER TABLE messages RENAME TO mail; ALTER TABLE mailboxes RENAME name TO title;
         ALTER TABLE expunged RENAME saved_at TO stored_at; ALTER TABLE message_attachments RENAME hash TO digest",
        "[changed.messages]
         table = 'mail'
         columns = { body = 'content', saved_at = 'stored_at' }
         [changed.mailboxes]
         columns = { name = 'title' }
         [changed.'public.message_attachments']
         columns = { hash = 'digest' }
         [changed.expunged]
         columns = { saved_at = 'stored_at' }",
        "ALTER TABLE mail RENAME content TO body; ALTER TABLE mail RENAME stored_at TO saved_at;
         ALTER TABLE mail RENAME TO messages; ALTER TABLE mailboxes RENAME title TO name;
         ALTER TABLE expunged RENAME stored_at TO saved_at; ALTER TABLE message_attachments RENAME digest TO hash",
    )
    .await;
}

#[tokio::test]
async fn mail_goes_into_tables_with_columns_that_were_added_and_dropped() {
    comes_back(
        "",
        "ALTER TABLE messages ADD score real, ADD label text NOT NULL DEFAULT 'none';
         ALTER TABLE message_attachments DROP content_type",
        "",
        "ALTER TABLE message_attachments ADD content_type text",
    )
    .await;
}

/// Keys, texts and times; by then keys are issued that the old type could not hold.
#[tokio::test]
async fn mail_goes_into_columns_that_are_wider() {
    let zone = "SET timezone = 'Europe/Zurich'";
    let (store, _) = comes_back(
        &format!(
            "{zone}; ALTER TABLE messages ALTER id TYPE integer, ALTER message_id TYPE varchar(200), ALTER received_at TYPE timestamp;
             ALTER TABLE message_attachments ALTER message_id TYPE integer, ALTER ordinal TYPE smallint;
             ALTER TABLE keywords ALTER message_id TYPE integer; ALTER TABLE expunged ALTER message_id TYPE integer"
        ),
        "ALTER TABLE messages ALTER id TYPE bigint, ALTER message_id TYPE text,
             ALTER received_at TYPE timestamptz USING received_at AT TIME ZONE 'Europe/Zurich';
         ALTER TABLE message_attachments ALTER message_id TYPE bigint, ALTER ordinal TYPE integer;
         ALTER TABLE keywords ALTER message_id TYPE bigint; ALTER TABLE expunged ALTER message_id TYPE bigint;
         SELECT setval('messages_id_seq', 3000000000); SELECT driver.deliver(id::text, '<x>', 'a', 'b', NULL, now(), now()) FROM mailboxes",
        "[changed.messages]
         zones = { received_at = 'Europe/Zurich' }",
        "DELETE FROM messages WHERE message_id = '<x>'",
    )
    .await;
    let wrong = "SELECT count(*) FROM messages WHERE received_at <> saved_at OR id BETWEEN 5 AND 3000000000";
    assert_eq!(store.client.query_one(wrong, &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// A key may be wider than what refers to it, be it that one of both was forgotten.
#[tokio::test]
async fn what_refers_to_a_wider_key_is_found() {
    let narrow = "ALTER TABLE messages ALTER id TYPE integer, ALTER mailbox_id TYPE integer;
         ALTER TABLE message_attachments ALTER message_id TYPE integer; ALTER TABLE keywords ALTER message_id TYPE integer";
    comes_back(narrow, "ALTER TABLE messages ALTER id TYPE bigint", "", "").await;
}

#[tokio::test]
async fn mail_goes_into_tables_that_are_partitioned() {
    comes_back(
        "",
        "ALTER TABLE messages RENAME TO old_messages;
         ALTER TABLE message_attachments RENAME TO old_attachments;
         CREATE TABLE messages (LIKE old_messages INCLUDING DEFAULTS, PRIMARY KEY (id), FOREIGN KEY (mailbox_id) REFERENCES mailboxes ON DELETE CASCADE)
             PARTITION BY HASH (id);
         CREATE TABLE messages_0 PARTITION OF messages FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE messages_1 PARTITION OF messages FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         INSERT INTO messages SELECT * FROM old_messages;
         ALTER SEQUENCE messages_id_seq OWNED BY messages.id;
         CREATE TABLE message_attachments (LIKE old_attachments INCLUDING DEFAULTS, PRIMARY KEY (message_id, ordinal),
             FOREIGN KEY (message_id) REFERENCES messages ON DELETE CASCADE, FOREIGN KEY (hash) REFERENCES attachments) PARTITION BY RANGE (ordinal);
         CREATE TABLE attachments_first PARTITION OF message_attachments FOR VALUES FROM (MINVALUE) TO (2);
         CREATE TABLE attachments_rest PARTITION OF message_attachments DEFAULT;
         INSERT INTO message_attachments SELECT * FROM old_attachments;
         ALTER TABLE keywords DROP CONSTRAINT keywords_message_id_fkey, ADD FOREIGN KEY (message_id) REFERENCES messages ON DELETE CASCADE;
         DO $$ DECLARE made text; BEGIN
             FOR made IN SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'old_messages'::regclass AND NOT tgisinternal LOOP
                 EXECUTE replace(made, 'old_messages', 'messages');
             END LOOP; END $$;
         DROP TABLE old_attachments, old_messages",
        "",
        "",
    )
    .await;
}

#[tokio::test]
async fn a_column_that_was_split_is_filled_as_the_profile_says() {
    let (store, _) = comes_back(
        "ALTER TABLE message_attachments ALTER content_type SET DEFAULT 'text/plain'",
        "ALTER TABLE message_attachments ADD major text, ADD minor text;
         UPDATE message_attachments SET major = split_part(coalesce(content_type, 'a/b'), '/', 1), minor = split_part(coalesce(content_type, 'a/b'), '/', 2);
         ALTER TABLE message_attachments ALTER major SET NOT NULL, ALTER minor SET NOT NULL, DROP content_type",
        "[changed.message_attachments]
         values = { major = \"split_part(coalesce(content_type, 'a/b'), '/', 1)\", minor = \"split_part(coalesce(content_type, 'a/b'), '/', 2)\" }",
        "ALTER TABLE message_attachments ADD content_type text",
    )
    .await;
    let kinds = "SELECT count(DISTINCT (major, minor)), count(*) FROM message_attachments";
    let row = store.client.query_one(kinds, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1) > 1), (1, true));
}

#[tokio::test]
async fn what_would_lose_its_meaning_is_refused_before_anything_is_written() {
    let uuid = "ALTER TABLE messages DROP CONSTRAINT messages_pkey CASCADE; ALTER TABLE messages ALTER id DROP DEFAULT;
                ALTER TABLE messages ALTER id TYPE uuid USING gen_random_uuid(), ADD PRIMARY KEY (id)";
    is_refused("", uuid, "", "public.messages.id is not what it was").await;
    let new = "ALTER TABLE messages ADD owner text NOT NULL DEFAULT 'x'; ALTER TABLE messages ALTER owner DROP DEFAULT";
    is_refused("", new, "", "public.messages.owner").await;
    let narrow = "UPDATE messages SET message_id = '<x>'; ALTER TABLE messages ALTER message_id TYPE varchar(12)";
    is_refused("", narrow, "", "2 values do not fit").await;
    is_refused("", "ALTER TABLE messages DROP saved_at", "", "the profile needs it").await;
    let was = "ALTER TABLE messages ALTER received_at TYPE timestamp";
    let zone = "ALTER TABLE messages ALTER received_at TYPE timestamptz";
    is_refused(was, zone, "", "say under zones").await;
}

/// Narrower, and yet everything fits.
#[tokio::test]
async fn mail_goes_into_columns_that_are_narrower_where_it_fits() {
    comes_back(
        "",
        "ALTER TABLE messages ALTER message_id TYPE varchar(60); ALTER TABLE message_attachments ALTER position TYPE integer",
        "",
        "",
    )
    .await;
}

/// SQL that makes a UUID of an integer: zeros with the number at the end.
pub(super) const PADDED: &str = "lpad(to_hex({}), 32, '0')::uuid";

/// What the profile says of a key of which that became.
pub(super) fn padded(table: &str, column: &str) -> String {
    format!("[changed.{table}]\nkeys = {{ {column} = \"{}\" }}\n", PADDED.replace("{}", column))
}

/// Gives a key, all columns that refer to it by foreign keys, and those of `soft`, as `table.column`, another type; `new` makes it of the
/// old value `{}`.
pub(super) fn becomes(kind: &str, new: &str, key: &str, soft: &[&str]) -> String {
    let columns: Vec<String> = std::iter::once(&key)
        .chain(soft)
        .filter_map(|name| name.split_once('.'))
        .map(|(table, column)| format!("('{table}'::regclass, '{column}'::name)"))
        .collect();
    let (table, column) = key.split_once('.').unwrap();
    let default = if kind == "uuid" { "gen_random_uuid()" } else { "'m-' || gen_random_uuid()" };
    format!(
        "DO $do$
        DECLARE
            one record;
            again text[] := '{{}}';
        BEGIN
            CREATE TEMPORARY TABLE led AS WITH RECURSIVE l (rel, att) AS (
                SELECT attrelid, attnum FROM pg_attribute WHERE (attrelid, attname) IN ({})
                UNION SELECT c.conrelid, c.conkey[i] FROM l JOIN pg_constraint c ON c.contype = 'f' AND c.confrelid = l.rel
                CROSS JOIN generate_subscripts(c.conkey, 1) i WHERE c.confkey[i] = l.att) TABLE l;
            FOR one IN SELECT c.conrelid::regclass AS of, c.conname AS name, pg_get_constraintdef(c.oid) AS is FROM pg_constraint c WHERE c.contype = 'f'
                AND EXISTS (SELECT FROM led l WHERE l.rel = c.conrelid AND l.att = ANY (c.conkey) OR l.rel = c.confrelid AND l.att = ANY (c.confkey))
            LOOP
                EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.of, one.name);
                again := again || format('ALTER TABLE %s ADD CONSTRAINT %I %s', one.of, one.name, one.is);
            END LOOP;
            FOR one IN SELECT rel::regclass AS of, attname AS name FROM led JOIN pg_attribute ON attrelid = rel AND attnum = att LOOP
                EXECUTE format('ALTER TABLE %s ALTER %I DROP DEFAULT, ALTER %2$I TYPE {kind} USING ', one.of, one.name)
                    || replace($new${new}$new$, '{{}}', one.name);
            END LOOP;
            ALTER TABLE {table} ALTER {column} SET DEFAULT {default};
            FOR one IN SELECT unnest(again) AS sql LOOP EXECUTE one.sql; END LOOP;
            DROP TABLE led;
        END $do$;",
        columns.join(", ")
    )
}

fn messages_become(kind: &str, new: &str) -> String {
    becomes(kind, new, "messages.id", &["expunged.message_id"])
}

/// Gives out mail by keys that are UUIDs.
fn raw_mail() -> String {
    let checks = restante_fixtures::store::CHECKS;
    let checks = checks.replace("raw_mail(of_message bigint)", "raw_mail(of_message uuid)");
    format!("ALTER SEQUENCE messages_id_seq OWNED BY NONE; {checks}")
}

#[tokio::test]
async fn mail_goes_under_keys_that_are_uuids_made_of_the_numbers() {
    comes_back("", &messages_become("uuid", PADDED), &padded("messages", "id"), &raw_mail()).await;
    // The key may be called otherwise as well, and what refers to it may have no foreign key, or nobody may know that it refers to it.
    let changed = messages_become("uuid", "md5({}::text)::uuid")
        + "ALTER TABLE messages RENAME id TO number; ALTER TABLE messages ALTER thread DROP DEFAULT, ALTER thread TYPE uuid USING md5(thread::text)::uuid;
        ALTER TABLE message_attachments DROP CONSTRAINT message_attachments_message_id_fkey";
    let keys = "[changed.messages]\ncolumns = { id = 'number' }
        keys = { id = \"md5(snapshot.id::text)::uuid\", thread = \"md5(thread::text)::uuid\" }";
    let (store, _) = comes_back(
        "ALTER TABLE messages ADD thread bigint DEFAULT 7",
        &changed,
        keys,
        &format!("ALTER TABLE messages RENAME number TO id; {}", raw_mail()),
    )
    .await;
    let threads = "SELECT count(*) FROM messages WHERE thread = md5('7')::uuid";
    assert_eq!(store.client.query_one(threads, &[]).await.unwrap().get::<_, i64>(0), 4);
    // Texts, and what refers to them may be of another length.
    let changed = messages_become("text", "'m-' || {}") + "ALTER TABLE expunged ALTER message_id TYPE varchar(60)";
    let keys = "[changed.messages]\nkeys = { id = \"'m-' || id\" }";
    comes_back("", &changed, keys, &raw_mail().replace("uuid", "text")).await;
}

/// The old key is kept beside the new one, which is random, and tells the new keys of all that is there.
#[tokio::test]
async fn mail_goes_under_keys_that_are_random_uuids() {
    let changed = format!(
        "CREATE TABLE new_keys AS SELECT id AS old, gen_random_uuid() AS new FROM messages UNION ALL SELECT message_id, gen_random_uuid() FROM expunged;
         CREATE FUNCTION new_key(bigint) RETURNS uuid LANGUAGE sql AS 'SELECT new FROM new_keys WHERE old = $1';
         ALTER TABLE messages ADD old_id bigint UNIQUE; UPDATE messages SET old_id = id;
         ALTER TABLE expunged ADD old_id bigint; UPDATE expunged SET old_id = message_id;
         {}; ALTER TABLE messages ALTER id DROP DEFAULT; DROP FUNCTION new_key; DROP TABLE new_keys",
        messages_become("uuid", "new_key({})")
    );
    let keys = "[changed.messages]
        keys = { id = \"\"\"coalesce((SELECT m.id FROM messages m WHERE m.old_id = snapshot.id),
            (SELECT e.message_id FROM expunged e WHERE e.old_id = snapshot.id))\"\"\" }";
    let (store, snapshot) = comes_back("", &changed, keys, &raw_mail()).await;
    let put_back = "SELECT count(*) FROM messages WHERE old_id IS NULL AND substr(id::text, 15, 1) = '4'";
    assert_eq!(store.client.query_one(put_back, &[]).await.unwrap().get::<_, i64>(0), 2, "under random keys");
    // Old keys that are issued again do not make others of what was put back.
    let again =
        "UPDATE messages SET old_id = CASE message_id WHEN '<3@example.org>' THEN 3 ELSE 2 END WHERE old_id IS NULL";
    assert_eq!(store.client.execute(again, &[]).await.unwrap(), 2);
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
}

/// SQL, and what the profile says of it.
fn parents_become_uuids() -> (String, String) {
    let sql = becomes("uuid", PADDED, "accounts.id", &[])
        + &becomes("uuid", PADDED, "mailboxes.id", &["expunged.mailbox_id"]);
    let no_defaults = "ALTER TABLE accounts ALTER id DROP DEFAULT; ALTER TABLE mailboxes ALTER id DROP DEFAULT;
        ALTER SEQUENCE accounts_id_seq OWNED BY NONE; ALTER SEQUENCE mailboxes_id_seq OWNED BY NONE;";
    (sql + no_defaults, padded("accounts", "id") + &padded("mailboxes", "id"))
}

#[tokio::test]
async fn mail_goes_into_mailboxes_and_accounts_whose_keys_are_uuids() {
    let (changed, keys) = parents_become_uuids();
    let changed = changed + &messages_become("uuid", PADDED);
    // More of them than are asked for at a time.
    let many = "INSERT INTO accounts (address) SELECT n || '@example.com' FROM generate_series(1, 10001) n";
    comes_back(many, &changed, &(keys + &padded("messages", "id")), &raw_mail()).await;
}

/// An account and a mailbox of another one are lost with their mail, and one is renamed.
#[tokio::test]
async fn lost_mailboxes_and_accounts_come_back_where_keys_are_uuids() {
    let mut store = Store::new().await;
    let (mut lost, mut mailboxes) = (Vec::new(), Vec::new());
    for (address, name) in [("a@example.org", "INBOX"), ("a@example.org", "work"), ("b@example.org", "INBOX")] {
        let account = match store.addresses().await.into_iter().find(|(_, known)| known == address) {
            Some((account, _)) => account,
            None => store.account(address).await,
        };
        let mailbox = store.mailbox(account, name, 0).await;
        mailboxes.push((account, mailbox));
        lost.push(store.deliver(mailbox, Content(lost.len() as u32), 5, 0).await);
        store.deliver(mailbox, Content(10 + lost.len() as u32), 500, 0).await;
    }
    let snapshot = MemorySource::take(&store.session().await).await;
    let all: Vec<i64> = store.found().await.iter().map(|one| one.id).collect();
    let gone: Vec<i64> = all.iter().copied().filter(|id| *id != all[1]).collect();
    store.rename_mailbox(mailboxes[0].1, "post").await;
    store.lose(&gone, &[mailboxes[1].1, mailboxes[2].1], true).await;
    store.lose_account(mailboxes[2].0).await;
    let (changed, keys) = parents_become_uuids();
    store.client.batch_execute(&changed).await.unwrap();
    store.profile = Profile::parse("changed", &format!("{REFERENCE}\n{keys}")).unwrap();
    let window = Window { from: Some(clock(0)), to: Some(clock(100)) };
    let options = PlanOptions { window, ..Default::default() };
    assert_eq!(store.restore_with(&snapshot, None, &options, ApplyOptions::default()).await.mail.restored, 3);
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 2);
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
    let mut found: Vec<(String, u32)> =
        store.found().await.into_iter().map(|one| (one.name, one.content.map_or(999, |content| content.0))).collect();
    found.sort();
    let wanted = [("INBOX", 2), ("INBOX", 13), ("post", 0), ("post", 11), ("work", 1), ("work", 12)];
    assert_eq!(found, wanted.map(|(name, content)| (name.to_owned(), content)));
    store.check_counters().await;
}

#[tokio::test]
async fn keys_of_which_nothing_sure_is_said_are_refused_before_anything_is_written() {
    let uuid = messages_become("uuid", PADDED);
    for (sql, said) in [
        ("nothing(id)", "cannot be computed (computing new keys: function nothing(bigint) does not exist"),
        ("id > 0", "cannot be computed (computing new keys: cannot cast type boolean to uuid"),
        ("md5((id % 2)::text)::uuid", "are the same for 3 rows and others"),
        ("gen_random_uuid()", "are others each time"),
        ("generate_series(1, id)", "cannot be computed (computing new keys: "),
        (
            "id)::text::uuid FROM (SELECT 1::bigint AS id, 1 AS restante_n) q WHERE (true",
            "cannot be computed (computing new keys: ",
        ),
    ] {
        let keys = format!("[changed.messages]\nkeys = {{ id = \"{sql}\" }}");
        let why = "public.messages.id is not what it was when the snapshot was taken: its new keys,";
        is_refused("", &uuid, &keys, &format!("{why} {sql:?} under keys, {said}")).await;
    }
    let keys = padded("messages", "id");
    let forgotten = format!("{uuid} ALTER TABLE expunged ALTER message_id TYPE bigint USING 1");
    is_refused("", &forgotten, &keys, "public.expunged.message_id is not what it was").await;
    let thread = format!("{uuid} ALTER TABLE messages ALTER thread TYPE uuid USING gen_random_uuid()");
    is_refused("ALTER TABLE messages ADD thread bigint", &thread, &keys, "give the new key under keys").await;
    let number = messages_become("numeric", "{}").replace("SET DEFAULT 'm-' || gen_random_uuid()", "DROP DEFAULT");
    is_refused("", &number, "[changed.messages]\nkeys = { id = \"nullif(id, 2)\" }", "are NULL for some").await;

    let text = "ALTER TABLE messages ALTER message_id TYPE uuid USING gen_random_uuid()";
    is_refused("", text, "[changed.messages]\nkeys = { message_id = \"message_id::uuid\" }", "integers alone").await;

    let (store, snapshot) = lost("", &uuid, "[changed.messages]\nkeys = { ident = \"1\" }").await;
    let error = run(&store, &snapshot).await.unwrap_err().to_string();
    let line = REFERENCE.lines().count() + 3;
    assert!(error.starts_with(&format!("changed, line {line}, column 18, in [changed.messages]: ")), "{error}");
    assert!(error.contains("messages.ident is not in the live store"), "{error}");

    let text = messages_become("text", "{}::text") + "ALTER TABLE messages ALTER id DROP DEFAULT";
    let (store, snapshot) = lost("", &text, "[changed.messages]\nkeys = { id = \"id::text\" }").await;
    let error = run(&store, &snapshot).await.unwrap_err();
    assert!(matches!(error, ReplayError::NoNewKey { .. }), "{error}");
    let written = "SELECT to_regclass('restante.journal') IS NOT NULL";
    assert!(!store.client.query_one(written, &[]).await.unwrap().get::<_, bool>(0), "something was written");
}

/// The bytes of mail have a table of their own since, and the old column is gone or still there.
#[tokio::test]
async fn a_table_that_was_split_in_two_is_refused_before_anything_is_written() {
    let split = "CREATE TABLE bodies (message_id bigint PRIMARY KEY, body bytea NOT NULL); INSERT INTO bodies SELECT id, body FROM messages";
    let dropped = format!("{split}; ALTER TABLE messages DROP body");
    is_refused("", &dropped, "", "public.messages.body is not what it was").await;
    for empty in ["NULL", "''"] {
        let empty =
            format!("{split}; ALTER TABLE messages ALTER body DROP NOT NULL; UPDATE messages SET body = {empty}");
        is_refused("", &empty, "", "no living message has anything in it any more").await;
    }
    // It may have been the damage.
    let emptied = "UPDATE messages SET body = ''";
    let (store, snapshot) = lost("", emptied, "[changed.messages]\nvalues = { body = 'body' }").await;
    assert_eq!(run(&store, &snapshot).await.unwrap(), 2);
    let mut found: Vec<_> = store.found().await.into_iter().filter_map(|one| one.content).collect();
    found.sort();
    assert_eq!(found, [Content(3), Content(4)]);
}

/// Keys of links with two columns, and of contents that links share, in the stores of other projects.
#[tokio::test]
async fn keys_of_links_and_contents_may_be_uuids() {
    for (name, builtin, changed, keys) in [
        (
            "archiveopteryx",
            include_str!("../../../src/profile/builtin/archiveopteryx.toml"),
            becomes("uuid", PADDED, "mailboxes.id", &[]),
            padded("mailboxes", "id"),
        ),
        (
            "dbmail",
            include_str!("../../../src/profile/builtin/dbmail.toml"),
            becomes("uuid", PADDED, "dbmail_physmessage.id", &[])
                + "DO $$ BEGIN EXECUTE replace(pg_get_functiondef('driver.content(bigint)'::regprocedure), 'mail bigint', 'mail uuid'); END $$",
            padded("dbmail_physmessage", "id"),
        ),
    ] {
        let Some(mut store) = Store::named(name).await else { continue };
        let account = store.account("a@example.org").await;
        let inbox = store.mailbox(account, "INBOX", 0).await;
        let archive = store.mailbox(account, "Archive", 0).await;
        let mut links = Vec::new();
        for number in [2, 3, 4, 5] {
            links.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
        }
        links.push(store.copy(links[0], archive, 10).await);
        links.push(store.copy(links[1], archive, 10).await);
        store.tag(links[1], "work").await;
        let seen = async |store: &Store| {
            let found = store.found().await.into_iter();
            let mut seen: Vec<_> = found.map(|one| (one.name, one.content)).collect();
            seen.sort();
            (seen, store.tags().await.into_values().collect::<Vec<_>>())
        };
        let before = seen(&store).await;
        let snapshot = MemorySource::take(&store.session().await).await;
        // One content is gone with both of its links, one with its only one, and one is left without one of its two.
        store.lose(&[links[1], links[2], links[4], links[5]], &[], true).await;
        store.client.batch_execute(&changed).await.unwrap_or_else(|error| panic!("{changed}: {error:?}"));
        store.profile = Profile::parse("changed", &format!("{builtin}\n{keys}")).unwrap();
        let comparison = store.compare(&snapshot, None).await;
        assert_eq!((comparison.same + comparison.changed, comparison.leftovers.len()), (2, 4), "{name}");
        assert_eq!(store.restore(&snapshot, None).await.mail.restored, 4, "{name}");
        assert_eq!(store.restore(&snapshot, None).await.replay, None, "{name}");
        assert_eq!(seen(&store).await, before, "{name}");
    }
}

/// Before the change one was taken before the damage and one after it. Nobody computes new keys to choose between them.
#[tokio::test]
async fn snapshots_with_old_keys_are_held_against_each_other() {
    let mut store = Store::new().await;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let mut ids = Vec::new();
    for number in 0..8 {
        ids.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
    }
    let before = MemorySource::take(&store.session().await).await;
    store.expunge(ids[0], "expunge").await;
    store.lose(&ids[1..5], &[], true).await;
    let after = MemorySource::take(&store.session().await).await;
    store.client.batch_execute(&messages_become("uuid", PADDED)).await.unwrap();
    let new = MemorySource::take(&store.session().await).await;
    store.profile = Profile::parse("changed", &format!("{REFERENCE}\n{}", padded("messages", "id"))).unwrap();
    let read = catalog::read(&store.session().await).await.unwrap();
    let held = choose::holdings(&[&after, &before], &store.profile, &read, &Window::default()).await.unwrap();
    assert_eq!(held, [0, 4]);
    let held = choose::holdings(&[&new, &before], &store.profile, &read, &Window::default()).await.unwrap();
    assert_eq!(held, [0, 0], "what has new keys has nothing in common with it");
    assert_eq!(store.restore(&new, None).await.replay, None);
    assert_eq!(store.restore(&before, None).await.mail.restored, 4);
    // A snapshot of since then knows them by their new keys, as this one did.
    assert_eq!(store.restore(&after, None).await.replay, None);
}
