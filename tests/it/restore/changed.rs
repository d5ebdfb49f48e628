//! Tables that changed after the snapshot: lost mail goes into what they are now, or nothing is written and it is said why.

use restante::compare::{self, CompareError};
use restante::monitor::Silent;
use restante::profile::Profile;
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayError};

use super::memory::MemorySource;
use super::store::{Content, REFERENCE, Store};

/// Two mails of four are lost from a store that was like this, then it is changed.
async fn lost(was: &str, changed: &str, profile: &str) -> (Store, MemorySource, i64) {
    let mut store = Store::new().await;
    store.client.batch_execute(was).await.unwrap_or_else(|error| panic!("{was}: {error:?}"));
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let mut ids = Vec::new();
    // With an attachment, with long values, and without either.
    for number in [2, 3, 4, 5] {
        ids.push(store.deliver(inbox, Content(number), i64::from(number), 0).await);
    }
    store.seen(ids[1], true).await;
    let snapshot = MemorySource::take(&store.session().await).await;
    store.lose(&ids[1..3], &[], true).await;
    store.client.batch_execute(changed).await.unwrap_or_else(|error| panic!("{changed}: {error:?}"));
    store.profile = Profile::parse("changed", &format!("{REFERENCE}\n{profile}")).unwrap();
    (store, snapshot, inbox)
}

async fn run(store: &Store, snapshot: &MemorySource) -> Result<u64, ReplayError> {
    let session = store.session().await;
    let comparison = compare::compare(&session, snapshot, &store.profile, &Default::default()).await?;
    let (same, absent) = (comparison.same + comparison.changed, comparison.leftovers.len());
    let apply = Apply::new(Plan::new(comparison, &PlanOptions::default()), ApplyOptions::default());
    let report = apply.run(&session, snapshot, &store.profile, &Silent).await?;
    assert!(report.mail.changed_columns.is_empty(), "{report:?}");
    assert_eq!((same, absent), (2, 2), "the living ones are the same");
    Ok(report.mail.restored)
}

/// All four mails are in the store, once, and a second restore has nothing to do. `back` makes the store what its driver knows.
async fn comes_back(was: &str, changed: &str, profile: &str, back: &str) -> Store {
    let (store, snapshot, inbox) = lost(was, changed, profile).await;
    assert_eq!(run(&store, &snapshot).await.unwrap_or_else(|error| panic!("{changed}: {error}")), 2);
    let again = store.restore(&snapshot, None).await;
    assert_eq!((again.replay, again.mail.restored), (None, 0), "{changed}");
    store.client.batch_execute(back).await.unwrap_or_else(|error| panic!("{back}: {error:?}"));
    let mut found = store.found().await;
    found.sort_by_key(|one| one.content);
    let contents: Vec<_> =
        found.iter().map(|one| (one.mailbox, one.content.unwrap_or(Content(999)).0, one.seen)).collect();
    assert_eq!(contents, [(inbox, 2, false), (inbox, 3, true), (inbox, 4, false), (inbox, 5, false)], "{changed}");
    store.check_counters().await;
    store
}

/// Nothing is written, and the error says what is lost.
async fn is_refused(was: &str, changed: &str, profile: &str, said: &str) {
    let (store, snapshot, _) = lost(was, changed, profile).await;
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
    let store = comes_back(
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
    let store = comes_back(
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
