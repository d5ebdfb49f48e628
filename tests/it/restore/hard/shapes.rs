//! The reference store in other shapes: what its columns are made of, and how its tables are laid out.

use super::trial::Trial;
use crate::restore::store::REFERENCE;

/// The reference store, changed.
pub struct Shape {
    pub ddl: &'static str,
    /// What its profile says besides or instead.
    pub profile: fn() -> String,
}

impl Shape {
    pub const fn of(ddl: &'static str) -> Self {
        Self { ddl, profile: || REFERENCE.to_owned() }
    }
}

/// A mailbox and most of the mail are lost, and new mail takes old keys. `set` gives the columns values, `kept` asks for them.
async fn lost_and_restored(trial: &mut Trial<'_>, set: &str, kept: &'static str) {
    let (inbox, folder) = (trial.inbox("a").await, trial.folder("folder").await);
    let ids = trial.deliver(inbox, [2, 3, 4, 5, 6]).await;
    let [in_folder] = trial.deliver(folder, [9]).await;
    trial.store.tag(ids[3], "work").await;
    trial.run(set).await;
    trial.expect_kept(kept).await;
    trial.snapshot().await;
    trial.lose_with(&[ids[2], ids[3], ids[4], in_folder], &[folder]).await;
    trial.deliver(inbox, [20]).await;
    trial.expect("a/INBOX: 2 3 4 5#work 6 20; a/folder: 9");
}

pub const IDENTITY_ALWAYS: Shape = Shape::of(
    "DO $$ DECLARE name text; BEGIN
         FOREACH name IN ARRAY ARRAY['accounts', 'mailboxes', 'messages', 'expunged'] LOOP
             EXECUTE format('ALTER TABLE %I ALTER id DROP DEFAULT', name);
             EXECUTE format('DROP SEQUENCE %I', name || '_id_seq');
             EXECUTE format('ALTER TABLE %I ALTER id ADD GENERATED ALWAYS AS IDENTITY', name);
         END LOOP; END $$",
);

pub async fn identity_always(trial: &mut Trial<'_>) {
    lost_and_restored(trial, "", "SELECT count(*)::text FROM accounts").await;
}

pub const GENERATED: Shape = Shape::of(
    "ALTER TABLE messages ADD twice bigint GENERATED ALWAYS AS (size * 2) STORED;
     ALTER TABLE mailboxes ADD lower_name text GENERATED ALWAYS AS (lower(name)) STORED;
     ALTER TABLE keywords ADD upper_word text GENERATED ALWAYS AS (upper(keyword)) STORED",
);

pub async fn generated_columns(trial: &mut Trial<'_>) {
    lost_and_restored(trial, "", "SELECT lower_name || twice FROM messages m JOIN mailboxes b ON b.id = mailbox_id WHERE message_id <> '<20@example.org>' ORDER BY 1").await;
}

/// A partitioned table can be unique in its partition key alone.
pub const PARTITIONED: Shape = Shape::of(
    "CREATE TABLE m (LIKE messages INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY HASH (id);
     CREATE TABLE messages_0 PARTITION OF m FOR VALUES WITH (MODULUS 2, REMAINDER 0);
     CREATE TABLE messages_1 (LIKE messages INCLUDING DEFAULTS);
     -- Its columns stand in another order, and one is gone.
     ALTER TABLE messages_1 DROP size, ADD size bigint NOT NULL, ADD gone int; ALTER TABLE messages_1 DROP gone;
     ALTER TABLE m ATTACH PARTITION messages_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
     ALTER TABLE m ADD FOREIGN KEY (mailbox_id) REFERENCES mailboxes ON DELETE CASCADE;
     ALTER SEQUENCE messages_id_seq OWNED BY m.id;
     DROP TABLE messages CASCADE;
     ALTER TABLE m RENAME TO messages;
     ALTER TABLE message_attachments ADD FOREIGN KEY (message_id) REFERENCES messages ON DELETE CASCADE;
     CREATE TABLE k (LIKE keywords, PRIMARY KEY (message_id, keyword)) PARTITION BY LIST (keyword);
     CREATE TABLE keywords_work PARTITION OF k FOR VALUES IN ('work');
     CREATE TABLE keywords_other PARTITION OF k DEFAULT;
     DROP TABLE keywords;
     ALTER TABLE k RENAME TO keywords;
     ALTER TABLE keywords ADD FOREIGN KEY (message_id) REFERENCES messages ON DELETE CASCADE;
     CREATE TRIGGER messages_inserted AFTER INSERT ON messages
         REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION messages_inserted();
     CREATE TRIGGER messages_deleted AFTER DELETE ON messages
         REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION messages_deleted();
     CREATE TRIGGER messages_updated AFTER UPDATE ON messages
         REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION messages_updated()",
);

pub async fn partitioned_targets(trial: &mut Trial<'_>) {
    lost_and_restored(trial, "", "SELECT count(*)::text FROM accounts").await;
}

pub const TYPES: Shape = Shape::of(
    "CREATE TYPE kind AS ENUM ('plain', 'signed');
     CREATE DOMAIN score AS integer CHECK (value BETWEEN 0 AND 100);
     CREATE TYPE hop AS (host text, seconds numeric, at timestamptz);
     ALTER TABLE messages ADD kind kind, ADD score score, ADD hop hop, ADD labels text[], ADD kinds kind[], ADD hops hop[], ADD scores score[],
         ADD grid integer[], ADD span int4range, ADD facts jsonb, ADD ip inet, ADD ident uuid;
     ALTER TABLE keywords ADD kind kind NOT NULL DEFAULT 'signed', ADD hop hop;
     ALTER TABLE mailboxes ADD kind kind NOT NULL DEFAULT 'plain', ADD labels text[]",
);

pub async fn enum_domain_composite_and_array_columns(trial: &mut Trial<'_>) {
    let set = r#"UPDATE messages SET kind = 'signed', score = 100, hop = ('a,"b"(', 1.50, '2026-01-01Z'), labels = ARRAY['', 'null', NULL, '{"}', repeat('l', 700)],
            kinds = '{plain,signed,NULL}', hops = ARRAY[('x', NULL, 'infinity')::hop, NULL], scores = '{0,100}', grid = '[0:1][2:3]={{1,2},{3,4}}',
            span = '[1,7)', facts = '{"a": [1.0, null]}', ip = '::ffff:10.0.0.1/120', ident = gen_random_uuid() WHERE message_id ~ '[369]';
        UPDATE messages SET labels = '{}', hops = '{}', hop = (NULL, NULL, NULL), span = 'empty' WHERE message_id ~ '4';
        UPDATE keywords SET kind = 'plain', hop = ('k', 0, NULL); UPDATE mailboxes SET kind = 'signed', labels = '{"a b",c}'"#;
    let kept = "SELECT concat_ws('|', message_id, m.kind, score, hop::text, m.labels::text, kinds::text, hops::text, scores::text, grid::text, span::text,
                    facts::text, ip::text, ident::text, b.kind, b.labels::text, (SELECT row(k.kind, k.hop)::text FROM keywords k WHERE k.message_id = m.id AND keyword = 'work'))
                FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id WHERE message_id <> '<20@example.org>' ORDER BY 1";
    lost_and_restored(trial, set, kept).await;
}

pub const TIMES: Shape = Shape::of(
    "ALTER TABLE messages ADD dated timestamp, ADD since_1970 bigint, ADD day date, ADD took interval, ADD clock timetz",
);

pub async fn timestamps_at_the_edges(trial: &mut Trial<'_>) {
    let set = "UPDATE messages m SET saved_at = t.saved, received_at = t.received, dated = t.dated, since_1970 = t.epoch, day = t.day, took = t.took, clock = t.clock
        FROM (VALUES ('<4@example.org>', timestamptz 'infinity', timestamptz '-infinity', timestamp 'infinity', 9223372036854775807, date '-infinity', interval '-178000000 years', timetz '24:00:00-15:59'),
                     ('<5@example.org>', '-infinity', NULL, '-infinity', -9223372036854775808, '4713-01-01 BC', '1 mon -1 day 25:00', '00:00:00+15:59'),
                     ('<6@example.org>', '9999-12-31 23:59:59.999999Z', '294276-12-31 23:59:59.999999Z', '294276-12-31 23:59:59.999999', 253402300799, '5874897-12-31', '0', '02:30:00+02'),
                     ('<9@example.org>', '1969-12-31 23:59:59.999999Z', '4713-01-01 00:00:00Z BC', '1883-11-18 12:03:58', -1, '0001-01-01', NULL, NULL),
                     ('<3@example.org>', '1900-01-01Z', NULL, NULL, NULL, NULL, NULL, NULL)) t (id, saved, received, dated, epoch, day, took, clock)
        WHERE m.message_id = t.id";
    let kept = "SELECT concat_ws('|', message_id, saved_at, received_at, dated, since_1970, day, took, clock) FROM messages WHERE message_id <> '<20@example.org>' ORDER BY 1";
    lost_and_restored(trial, set, kept).await;
    trial.expect_lost_alone();
}

/// Local times that occur twice and never, in a clock without a zone.
pub const LOCAL_TIMES: Shape = Shape {
    ddl: "ALTER TABLE messages ALTER saved_at DROP DEFAULT, ALTER saved_at TYPE timestamp USING saved_at AT TIME ZONE 'UTC';
          ALTER TABLE expunged ALTER saved_at TYPE timestamp USING saved_at AT TIME ZONE 'UTC'",
    profile: || {
        let clock = r#"{ column = "saved_at", clock = "saved" }"#;
        assert!(REFERENCE.contains(clock));
        REFERENCE.replacen(clock, r#"{ column = "saved_at", clock = "saved", type = "timestamp", zone = "Europe/Berlin" }"#, 1)
    },
};

pub async fn local_times_of_a_daylight_saving_hour(trial: &mut Trial<'_>) {
    let set = "UPDATE messages m SET saved_at = t.saved FROM (VALUES
            ('<4@example.org>', timestamp '2026-10-25 02:30:00'), ('<5@example.org>', '2026-10-25 02:30:00'),
            ('<6@example.org>', '2026-03-29 02:30:00'), ('<9@example.org>', 'infinity')) t (id, saved)
        WHERE m.message_id = t.id";
    let kept =
        "SELECT concat_ws('|', message_id, saved_at) FROM messages WHERE message_id <> '<20@example.org>' ORDER BY 1";
    lost_and_restored(trial, set, kept).await;
    trial.expect_lost_alone();
}

pub const SENDERS: Shape = Shape {
    ddl: "CREATE TABLE senders (id serial PRIMARY KEY, address text NOT NULL UNIQUE);
          ALTER TABLE messages ADD sender integer REFERENCES senders; ALTER TABLE keywords ADD setter integer REFERENCES senders",
    profile: || format!("{REFERENCE}\n[[dictionary]]\ntable = \"senders\"\nnatural = [\"address\"]\n"),
};

pub async fn a_dictionary_row_issued_again(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let ids = trial.deliver(inbox, [2, 3, 4]).await;
    trial.store.tag(ids[2], "work").await;
    trial
        .run(
            "INSERT INTO senders (address) VALUES ('a'), ('b'), ('c');
             UPDATE messages SET sender = CASE message_id WHEN '<2@example.org>' THEN 1 WHEN '<3@example.org>' THEN 2 ELSE 3 END;
             UPDATE keywords SET setter = 2",
        )
        .await;
    let kept = "SELECT concat_ws('|', m.message_id, s.address, t.address) FROM messages m JOIN senders s ON s.id = m.sender
                LEFT JOIN keywords k ON k.message_id = m.id AND k.keyword = 'work' LEFT JOIN senders t ON t.id = k.setter ORDER BY 1";
    trial.expect_kept(kept).await;
    trial.snapshot().await;
    trial.lose(&ids[1..]).await;
    let again = "DELETE FROM senders WHERE id > 1; SELECT setval('senders_id_seq', 1);
                 INSERT INTO senders (address) VALUES ('c'), ('stranger')";
    trial.run(again).await;
    trial.deliver(inbox, [20]).await;
    trial.expect("a/INBOX: 2 3 4#work 20");
}

pub async fn names_in_another_encoding(trial: &mut Trial<'_>) {
    let inbox = trial.inbox("a").await;
    let (drafts, sent) = (trial.folder("Entwürfe").await, trial.folder("Envoyés").await);
    trial.deliver(inbox, [2]).await;
    let ids = trial.deliver(drafts, [3, 5]).await;
    let [of_sent] = trial.deliver(sent, [4]).await;
    trial.store.tag(ids[1], "größer").await;
    trial.snapshot().await;
    trial.lose_with(&[ids[1], of_sent], &[sent]).await;
    trial.deliver(inbox, [20]).await;
    trial.expect("a/INBOX: 2 20; a/Entwürfe: 3 5#größer; a/Envoyés: 4");
}
