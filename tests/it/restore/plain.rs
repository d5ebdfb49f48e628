//! Stores with schemas of their own, each as small as what it is made for.

use restante::compare;
use restante::monitor::Silent;
use restante::postgres::session::Session;
use restante::profile::Profile;
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayError, ReplayReport};
use tokio_postgres::Client;

use super::memory::MemorySource;
use super::store::{Store, connect};
use crate::server::TestDatabase;

struct Plain {
    _database: TestDatabase,
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
        Self { _database: database, client, session, profile }
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
    evidence = ["uidvalidity"]
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
