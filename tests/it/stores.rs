//! The mail stores of others, as `fixtures/stores` has them: the built-in profile of each is recognised and fits, and what the store's own
//! server would ask works.

use restante::compare::{fit, layout};
use restante::postgres::catalog;
use restante::postgres::dsn::Dsn;
use restante::postgres::session::{Session, SessionOptions};
use restante::profile::Severity;
use tokio_postgres::Client;

use crate::server::TestServer;

/// A mail store as `fixtures/stores` has it.
pub struct MailStore {
    pub name: &'static str,
    schema: &'static str,
    driver: &'static str,
    queries: &'static str,
}

macro_rules! store {
    ($name:literal) => {
        MailStore {
            name: $name,
            schema: include_str!(concat!("../../fixtures/stores/", $name, "/schema.sql")),
            driver: include_str!(concat!("../../fixtures/stores/", $name, "/driver.sql")),
            queries: include_str!(concat!("../../fixtures/stores/", $name, "/queries.sql")),
        }
    };
}

/// What the drivers of all stores share.
pub const DRIVER: &str = include_str!("../../fixtures/stores/driver.sql");

pub const STORES: [MailStore; 5] =
    [store!("archiveopteryx"), store!("dbmail"), store!("hyperkitty"), store!("james"), store!("sora")];

impl MailStore {
    /// Makes its tables and its driver in an empty database. `false`, and said, where the server comes without an extension that it needs.
    pub async fn make(&self, client: &Client) -> bool {
        let name = self.name;
        let wanted = self.schema.lines().filter_map(|line| line.strip_prefix("create extension if not exists "));
        let wanted: Vec<&str> = wanted.map(|extension| extension.trim_end_matches(';')).collect();
        let there = "SELECT count(*) FROM pg_available_extensions WHERE name = ANY($1)";
        let there: i64 = client.query_one(there, &[&wanted]).await.unwrap().get(0);
        if there < wanted.len() as i64 {
            println!("{name}: left out, this server comes without {wanted:?}");
            return false;
        }
        // An extension belongs to a superuser, and so does what the fixture makes.
        client.batch_execute(self.schema).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        client.batch_execute(&[DRIVER, self.driver].concat()).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        true
    }
}

#[tokio::test]
async fn each_built_in_profile_is_recognised_and_fits_its_store_and_the_store_works() {
    for store in STORES {
        let name = store.name;
        let database = TestServer::shared().database(None).await;
        let client = database.superuser().await;
        if !store.make(&client).await {
            continue;
        }
        let dsn = Dsn::parse(&database.superuser_dsn(), &Default::default()).unwrap();
        let session = Session::connect(&dsn, SessionOptions::default()).await.unwrap();
        let read = catalog::read(&session).await.unwrap();
        let profile = fit::recognise(&session, &read).await.unwrap().unwrap_or_else(|| panic!("{name} is not known"));
        assert_eq!(profile.profile, name);
        let findings = fit::findings(&profile, &read);
        let errors: Vec<String> =
            findings.iter().filter(|one| one.severity == Severity::Error).map(|one| one.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");

        let laid = layout::layout_of_live(&profile, &read);
        assert!(laid.is_ok(), "{name}: {laid:?}");

        for statement in store.queries.split("-- @").skip(1) {
            let (label, sql) = statement.split_once('\n').unwrap();
            client.prepare(sql).await.unwrap_or_else(|error| panic!("{name}, {label}: {error:?}"));
        }
        let derived: Vec<&str> = profile.derived.iter().filter_map(|derived| derived.sql.as_deref()).collect();
        lives(&client, name, &derived).await;
    }
}

/// A user, a few mails, a loss; the store's own rules are kept, and one that is broken is found. `derived`: the profile's statements.
async fn lives(client: &Client, name: &str, derived: &[&str]) {
    let text = async |sql: &str, values: &[&(dyn tokio_postgres::types::ToSql + Sync)]| -> String {
        client.query_one(sql, values).await.unwrap_or_else(|error| panic!("{name}: {sql}: {error:?}")).get(0)
    };
    let made = "2026-01-01T00:00:00Z";
    let account = text("SELECT driver.account('a@example.org')", &[]).await;
    let mailbox = "SELECT driver.mailbox($1, $2, $3::text::timestamptz)";
    let inbox = text(mailbox, &[&account, &"INBOX", &made]).await;
    let archive = text(mailbox, &[&account, &"Archive", &made]).await;
    let mut links = Vec::new();
    for number in 0..6_i32 {
        let deliver = "SELECT driver.deliver($1, $2, $3, $4, $5, $6::text::timestamptz, $6::text::timestamptz)";
        let id = format!("<{number}@example.org>");
        let header = format!(
            "From: b@example.org\r\nTo: a@example.org\r\nSubject: {number}\r\nMessage-ID: {id}\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n\r\n"
        );
        let attachment = (number % 2 == 0).then(|| b"attached".to_vec());
        let body = format!("mail {number}\r\n").into_bytes();
        links.push(text(deliver, &[&inbox, &id, &header.into_bytes(), &body, &attachment, &made]).await);
    }
    text("SELECT driver.copy($1, $2, now())", &[&links[0], &archive]).await;
    text("SELECT driver.move($1, $2, now())", &[&links[1], &archive]).await;
    client.execute("SELECT driver.expunge($1)", &[&links[2]]).await.unwrap();
    client.execute("SELECT driver.seen($1, true)", &[&links[3]]).await.unwrap();
    client.execute("SELECT driver.check()", &[]).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let found = "SELECT count(*), count(content), count(*) FILTER (WHERE mailbox = $1) FROM driver.found()";
    let row = client.query_one(found, &[&archive]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (6, 6, 2), "{name}");

    // A damaged table tells no trigger; what the store derives is computed anew, its counters go back.
    let all: Vec<String> =
        client.query("SELECT link FROM driver.found()", &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    client.batch_execute("SET session_replication_role = replica").await.unwrap();
    client.execute("SELECT driver.lose($1, '{}')", &[&&all[..3]]).await.unwrap();
    client.batch_execute("RESET session_replication_role; SELECT driver.roll_back()").await.unwrap();
    for sql in derived {
        client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{name}: {sql}: {error:?}"));
    }
    client.execute("SELECT driver.check()", &[]).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let row = client.query_one("SELECT count(*) FROM driver.found()", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 3, "{name}");

    // Mailboxes gone from under their mail.
    client.batch_execute("SET session_replication_role = replica").await.unwrap();
    for table in ["mailboxes", "dbmail_mailboxes", "hyperkitty_mailinglist", "mailbox"] {
        let there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await.unwrap();
        if there.get(0) {
            client.batch_execute(&format!("DELETE FROM {table}")).await.unwrap();
        }
    }
    client.batch_execute("RESET session_replication_role").await.unwrap();
    assert!(client.execute("SELECT driver.check()", &[]).await.is_err(), "{name}: mail of no mailbox is not found");
    client
        .batch_execute("SELECT driver.clear(), driver.check()")
        .await
        .unwrap_or_else(|error| panic!("{name}: {error:?}"));
}
