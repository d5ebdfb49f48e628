//! Stores with schemas of their own, each as small as what it is made for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use restante::compare;
use restante::monitor::Silent;
use restante::postgres::session::Session;
use restante::profile::Profile;
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayError, ReplayReport};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::memory::MemorySource;
use super::store::{Store, connect};
use crate::server::TestDatabase;

struct Plain {
    database: TestDatabase,
    client: Client,
    session: Session,
    profile: Profile,
}

impl Plain {
    async fn new(schema: &str, profile: &str) -> Self {
        let database = Store::server().database(None).await;
        let client = database.superuser().await;
        client.batch_execute(schema).await.unwrap_or_else(|error| panic!("{schema}: {error:?}"));
        let session = connect(&database, "postgres").await;
        let profile = Profile::parse("plain", profile).unwrap_or_else(|error| panic!("{error}"));
        Self { database, client, session, profile }
    }

    async fn say(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Rows of one text.
    async fn ask(&self, sql: &str) -> Vec<String> {
        let rows = self.client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    async fn snapshot(&self) -> MemorySource {
        MemorySource::take(&self.session).await
    }

    async fn restore(&self, snapshot: &MemorySource) -> Result<ReplayReport, ReplayError> {
        let comparison = compare::compare(&self.session, snapshot, &self.profile, &Default::default()).await?;
        let plan = Plan::new(comparison, &PlanOptions::default());
        Apply::new(plan, ApplyOptions::default()).run(&self.session, snapshot, &self.profile, &Silent).await
    }
}

const PEOPLE: &str = "
    CREATE TABLE people (id serial PRIMARY KEY, address text NOT NULL UNIQUE, made timestamptz NOT NULL DEFAULT now());
    CREATE TABLE boxes (id serial PRIMARY KEY, person int NOT NULL REFERENCES people, name text NOT NULL, uidvalidity int NOT NULL,
        uidnext int NOT NULL DEFAULT 1, UNIQUE (person, name));
    INSERT INTO people (address) VALUES ('a@example.org');
    INSERT INTO boxes (person, name, uidvalidity) VALUES (1, 'INBOX', 77), (1, 'Archive', 78);";

const OWNER: &str = r#"
    profile = "plain"
    [owner]
    table = "people"
    natural = ["address"]
    evidence = ["made"]
    "#;

/// Bytes that are stored once, under a unique hash. `KEY` is what numbers them.
fn shared(key: &str) -> String {
    format!(
        "{PEOPLE}
        CREATE TABLE objects (id {key} PRIMARY KEY, person int NOT NULL REFERENCES people, sum bytea NOT NULL, data bytea NOT NULL,
            stored timestamptz NOT NULL DEFAULT clock_timestamp(), UNIQUE (person, sum));
        CREATE TABLE letters (id bigserial PRIMARY KEY, box int NOT NULL REFERENCES boxes, uid int NOT NULL, object {} NOT NULL REFERENCES objects,
            arrived timestamptz NOT NULL DEFAULT clock_timestamp(), UNIQUE (box, uid));
        CREATE FUNCTION deliver(b int, mail text, at timestamptz) RETURNS bigint LANGUAGE sql AS $$
            INSERT INTO objects (person, sum, data) SELECT person, sha256(mail::bytea), mail::bytea FROM boxes WHERE id = b ON CONFLICT DO NOTHING;
            UPDATE boxes SET uidnext = uidnext + 1 WHERE id = b;
            INSERT INTO letters (box, uid, object, arrived) SELECT b, x.uidnext - 1, o.id, at
                FROM boxes x JOIN objects o USING (person) WHERE x.id = b AND o.sum = sha256(mail::bytea) RETURNING id $$;",
        key.replace("serial", "int").replace(" DEFAULT gen_random_uuid()", "")
    )
}

const SHARED: &str = r#"
    [mailbox]
    table = "boxes"
    owner = "person"
    natural = ["person", "name"]
    uid = { kind = "next", column = "uidnext" }
    uidvalidity = { column = "uidvalidity" }
    [link]
    table = "letters"
    mailbox = "box"
    message = "object"
    uid = "uid"
    evidence = ["arrived"]
    [message]
    table = "objects"
    clocks = [{ column = "stored", clock = "saved" }]
    evidence = ["stored"]
    body = { assembly = "raw", column = "data" }
    "#;

/// What users see: mailbox and bytes, in the order of UIDs.
const SEEN: &str = "SELECT concat_ws(' ', b.name, encode(o.data, 'escape')) FROM letters l JOIN boxes b ON b.id = box \
                    JOIN objects o ON o.id = object ORDER BY b.name, l.uid";

#[tokio::test]
async fn bytes_that_came_again_under_another_key_are_linked_to_and_stay_there_once() {
    for key in ["serial", "uuid DEFAULT gen_random_uuid()"] {
        let plain = Plain::new(&shared(key), &format!("{OWNER}{SHARED}")).await;
        for (mailbox, mail, minute) in [(1, "one", 1), (1, "two", 2), (2, "one", 3), (1, "three", 4)] {
            plain.say(&format!("SELECT deliver({mailbox}, '{mail}', '2026-01-01 00:0{minute}Z')")).await;
        }
        let snapshot = plain.snapshot().await;
        // All but "three" goes; "two" comes again in another folder, then something that nobody had, under its number.
        plain.say("DELETE FROM letters WHERE uid < 3; DELETE FROM objects WHERE data <> 'three'").await;
        plain.say("SELECT deliver(2, 'new', '2026-01-01 01:00Z'), deliver(2, 'two', '2026-01-01 01:01Z')").await;
        let report = plain.restore(&snapshot).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!((report.mail.restored, report.mail.place_taken), (3, 0), "{key}: {report:?}");
        let seen = plain.ask(SEEN).await;
        let wanted = ["Archive new", "Archive two", "Archive one", "INBOX three", "INBOX one", "INBOX two"];
        assert_eq!(seen, wanted, "{key}");
        assert_eq!(plain.ask("SELECT count(*)::text FROM objects").await, ["4"], "{key}");
        assert_eq!(plain.restore(&snapshot).await.unwrap().replay, None, "{key}");
    }
}

#[tokio::test]
async fn bytes_that_say_nothing_prove_nothing() {
    let plain = Plain::new(&shared("serial"), &format!("{OWNER}{SHARED}")).await;
    plain.say("SELECT deliver(1, '', '2026-01-01 00:01Z'), deliver(1, 'two', '2026-01-01 00:02Z')").await;
    let snapshot = plain.snapshot().await;
    plain.say("DELETE FROM letters; DELETE FROM objects; SELECT deliver(2, '', '2026-01-01 01:00Z')").await;
    let report = plain.restore(&snapshot).await.unwrap();
    assert_eq!((report.mail.restored, report.mail.place_taken), (1, 1), "{report:?}");
}

#[tokio::test]
async fn bytes_that_only_claim_to_be_the_same_take_the_place_and_nothing_else_is_stopped() {
    let plain = Plain::new(&shared("serial"), &format!("{OWNER}{SHARED}")).await;
    plain.say("SELECT deliver(1, 'one', '2026-01-01 00:01Z'), deliver(1, 'two', '2026-01-01 00:02Z')").await;
    let snapshot = plain.snapshot().await;
    plain.say("DELETE FROM letters; DELETE FROM objects").await;
    plain.say("SELECT deliver(2, 'two', '2026-01-01 01:00Z'); UPDATE objects SET data = 'wrong'").await;
    let report = plain.restore(&snapshot).await.unwrap();
    assert_eq!((report.mail.restored, report.mail.place_taken), (1, 1), "{report:?}");
    assert!(report.has_findings());
    assert_eq!(plain.ask(SEEN).await, ["Archive wrong", "INBOX one"]);
}

/// No mailbox counts: who delivers takes the number above the highest, without a lock. `KEYS` are those of the links.
fn by_rows(keys: &str) -> Vec<String> {
    let schema = format!(
        "{PEOPLE} ALTER TABLE boxes DROP COLUMN uidnext;
        CREATE TABLE objects (id bigserial PRIMARY KEY, data bytea NOT NULL, size int GENERATED ALWAYS AS (octet_length(data)) STORED,
            stored timestamptz NOT NULL DEFAULT clock_timestamp());
        CREATE TABLE letters (box int NOT NULL REFERENCES boxes, uid int NOT NULL, modseq bigint NOT NULL,
            object bigint NOT NULL REFERENCES objects, arrived timestamptz NOT NULL DEFAULT clock_timestamp(), {keys});
        CREATE FUNCTION deliver(b int, mail text, at timestamptz) RETURNS int LANGUAGE sql AS $$
            WITH o AS (INSERT INTO objects (data) VALUES (mail::bytea) RETURNING id)
            INSERT INTO letters (box, uid, modseq, object, arrived)
            SELECT b, (SELECT coalesce(max(uid), 0) + 1 FROM letters WHERE box = b),
                (SELECT coalesce(max(modseq), 0) + 1 FROM letters WHERE box = b), o.id, at FROM o RETURNING uid $$;
        SELECT deliver(1, 'mail ' || n, timestamptz '2026-01-01 00:00Z' + n * interval '1 minute') FROM generate_series(1, 5) n;
        SELECT deliver(2, 'mail ' || n, timestamptz '2026-01-01 00:00Z' + n * interval '1 minute') FROM generate_series(6, 9) n;"
    );
    let counted = r#"uid = { kind = "next", column = "uidnext" }"#;
    let rows = r#"uid = { kind = "max-over-rows" }
    modseq = { kind = "max-over-rows" }"#;
    let profile = SHARED.replace(counted, rows).replace("uid = \"uid\"", "uid = \"uid\"\n    modseq = \"modseq\"");
    let profile = profile.replace("evidence = [\"stored\"]", "evidence = [\"stored\"]\n    size = \"size\"");
    vec![schema, format!("{OWNER}{profile}")]
}

const KEYS: [&str; 2] = ["id bigserial PRIMARY KEY, UNIQUE (box, uid)", "PRIMARY KEY (box, uid)"];

/// Mailbox, UIDVALIDITY as it was or not, UID and bytes; the restored ones are above all that were issued.
const NUMBERED: &str = "SELECT concat_ws(' ', b.name, b.uidvalidity = 76 + b.id, CASE WHEN l.uid > 10000 THEN 'above' ELSE l.uid::text END,
                               CASE WHEN l.modseq > 10000 THEN 'above' ELSE l.modseq::text END, encode(o.data, 'escape'))
                        FROM letters l JOIN boxes b ON b.id = box JOIN objects o ON o.id = object ORDER BY b.name, l.uid";

#[tokio::test]
async fn where_rows_alone_count_no_uid_is_issued_again_and_uidvalidity_changes_where_one_was() {
    for keys in KEYS {
        let made = by_rows(keys);
        let plain = Plain::new(&made[0], &made[1]).await;
        let snapshot = plain.snapshot().await;
        plain.say("DELETE FROM letters WHERE box = 1 AND uid > 3 OR box = 2 AND uid > 2").await;
        // The first of them was issued before.
        plain.say("SELECT deliver(1, 'new', '2026-01-01 01:00Z')").await;
        let compared = compare::compare(&plain.session, &snapshot, &plain.profile, &Default::default()).await.unwrap();
        assert_eq!(compared.counters.low(&compared.layout.mailbox, &compared.parents).len(), 1, "{keys}");
        let report = plain.restore(&snapshot).await.unwrap_or_else(|error| panic!("{keys}: {error}"));
        assert_eq!((report.mail.restored, report.counters.uidvalidity), (4, 1), "{keys}: {report:?}");
        plain.say("SELECT deliver(2, 'next', '2026-01-01 02:00Z')").await;
        let archive = ["Archive t 1 1 mail 6", "Archive t 2 2 mail 7", "Archive t above above mail 8"];
        let inbox = ["INBOX f 1 1 mail 1", "INBOX f 2 2 mail 2", "INBOX f 3 3 mail 3", "INBOX f 4 4 new"];
        let rest = ["INBOX f above above mail 4", "INBOX f above above mail 5"];
        let more = ["Archive t above above mail 9", "Archive t above above next"];
        let wanted = [&archive[..], &more, &inbox, &rest].concat();
        assert_eq!(plain.ask(NUMBERED).await, wanted, "{keys}");
        assert_eq!(plain.restore(&snapshot).await.unwrap().replay, None, "{keys}");
    }
}

#[tokio::test]
async fn a_uid_that_rows_issue_again_before_the_first_mail_is_back_changes_uidvalidity_too() {
    for keys in KEYS {
        let made = by_rows(keys);
        let plain = Plain::new(&made[0], &made[1]).await;
        let snapshot = plain.snapshot().await;
        plain.say("DELETE FROM letters WHERE uid > 2").await;
        let comparison =
            compare::compare(&plain.session, &snapshot, &plain.profile, &Default::default()).await.unwrap();
        let plan = Plan::new(comparison, &PlanOptions::default());
        plain.say("SELECT deliver(2, 'new', '2026-01-01 01:00Z')").await;
        let options = ApplyOptions { batch_messages: 1, ..Default::default() };
        let report = Apply::new(plan, options).run(&plain.session, &snapshot, &plain.profile, &Silent).await.unwrap();
        assert_eq!((report.mail.restored, report.counters.uidvalidity), (5, 1), "{keys}: {report:?}");
        let boxes = "SELECT concat_ws(' ', name, uidvalidity = 76 + id) FROM boxes ORDER BY name";
        assert_eq!(plain.ask(boxes).await, ["Archive f", "INBOX t"], "{keys}");
        assert_eq!(plain.restore(&snapshot).await.unwrap().replay, None, "{keys}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_the_highest_uid_without_a_lock_takes_no_mails_place() {
    for keys in KEYS {
        let made = by_rows(keys);
        let plain = Plain::new(&made[0], &made[1]).await;
        plain.say("SELECT deliver(1, 'mail ' || n, timestamptz '2026-01-01 01:00Z' + n * interval '1 second') FROM generate_series(100, 119) n").await;
        let snapshot = plain.snapshot().await;
        plain.say("DELETE FROM letters WHERE uid > 2").await;
        let comparison =
            compare::compare(&plain.session, &snapshot, &plain.profile, &Default::default()).await.unwrap();
        let plan = Plan::new(comparison, &PlanOptions::default());
        let courier = plain.database.superuser().await;
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let delivering = tokio::spawn(async move {
            let (mut delivered, mut met) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let mail = "SELECT deliver(1, 'new', clock_timestamp()), pg_sleep(0.002)";
                match courier.batch_execute(mail).await {
                    Ok(()) => delivered += 1,
                    Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => met += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
            (delivered, met)
        });
        let options = ApplyOptions { batch_messages: 1, ..Default::default() };
        let report = Apply::new(plan, options).run(&plain.session, &snapshot, &plain.profile, &Silent).await;
        done.store(true, Ordering::Relaxed);
        let (delivered, met) = delivering.await.unwrap();
        let report = report.unwrap_or_else(|error| panic!("{keys}: {error}"));
        println!("{keys}: {delivered} delivered, {met} met a mail of ours");
        assert_eq!((report.mail.restored, report.mail.place_taken), (25, 0), "{keys}: {report:?}");
        let mail = "SELECT concat(count(*), ' ', count(DISTINCT (box, uid))) FROM letters";
        let all = 29 + delivered;
        assert_eq!(plain.ask(mail).await, [format!("{all} {all}")], "{keys}");
    }
}

const LABELLED: &str = r#"
    [mailbox]
    table = "boxes"
    owner = "person"
    natural = ["person", "name"]
    uid = { kind = "next", column = "uidnext" }
    uidvalidity = { column = "uidvalidity" }
    [link]
    mailbox = "box"
    uid = "uid"
    [message]
    table = "letters"
    clocks = [{ column = "arrived", clock = "saved" }]
    evidence = ["arrived"]
    body = { assembly = "raw", column = "data" }
    [[dictionary]]
    table = "labels"
    natural = ["name"]
    [[child]]
    table = "labelled"
    of = "message"
    natural = ["letter", "label"]
    "#;

#[tokio::test]
async fn a_living_mail_whose_label_is_another_row_by_now_misses_nothing() {
    let schema = format!(
        "{PEOPLE}
        CREATE TABLE letters (id bigserial PRIMARY KEY, box int NOT NULL REFERENCES boxes, uid int NOT NULL, data bytea NOT NULL,
            arrived timestamptz NOT NULL DEFAULT clock_timestamp(), UNIQUE (box, uid));
        CREATE TABLE labels (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
        CREATE TABLE labelled (letter bigint REFERENCES letters ON DELETE CASCADE, label int REFERENCES labels ON DELETE CASCADE,
            PRIMARY KEY (letter, label));
        INSERT INTO letters (box, uid, data) SELECT 1, n, convert_to('mail ' || n, 'UTF8') FROM generate_series(1, 3) n;
        UPDATE boxes SET uidnext = 4 WHERE id = 1;
        INSERT INTO labels (name) VALUES ('work'), ('home');
        INSERT INTO labelled SELECT l.id, n.id FROM letters l, labels n;"
    );
    let plain = Plain::new(&schema, &format!("{OWNER}{LABELLED}")).await;
    let snapshot = plain.snapshot().await;
    // A mail is lost with both labels, and what lived under them; users made one anew, and labelled the first mail again.
    plain.say("DELETE FROM letters WHERE uid = 2; DELETE FROM labels; INSERT INTO labels (name) VALUES ('work')").await;
    plain.say("INSERT INTO labelled SELECT l.id, n.id FROM letters l, labels n WHERE uid = 1").await;
    let report = plain.restore(&snapshot).await.unwrap();
    assert_eq!((report.mail.restored, report.repaired_messages, report.repaired_rows), (1, 2, 3), "{report:?}");
    let seen = "SELECT concat_ws(' ', encode(l.data, 'escape'), n.name) FROM letters l JOIN labelled ON letter = l.id JOIN labels n ON n.id = label ORDER BY 1";
    let all = ["mail 1", "mail 2", "mail 3"].map(|mail| [format!("{mail} home"), format!("{mail} work")]).concat();
    assert_eq!(plain.ask(seen).await, all);
    let again = plain.restore(&snapshot).await.unwrap();
    assert_eq!((again.replay, again.repaired_messages), (None, 0));
}

#[tokio::test]
async fn a_predicate_that_the_server_does_not_understand_stops_all_before_anything_is_written() {
    let profile = format!("{OWNER}{SHARED}")
        .replace("evidence = [\"made\"]", "evidence = [\"made\"]\n    over_quota = \"used > allowed\"");
    let plain = Plain::new(&shared("serial"), &profile).await;
    plain.say("SELECT deliver(1, 'one', '2026-01-01 00:01Z')").await;
    let snapshot = plain.snapshot().await;
    plain.say("DELETE FROM letters").await;
    let error = plain.restore(&snapshot).await.unwrap_err().to_string();
    assert!(error.contains("hold more than they may") && error.contains("\"used\" does not exist"), "{error}");
    assert_eq!(plain.ask("SELECT to_regclass('restante.journal')::text IS NULL || ''").await, ["true"]);
}
