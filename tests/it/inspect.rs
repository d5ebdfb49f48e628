//! `inspect`: what it makes of stores, held against the profile that a person wrote for each; and of those that no profile can describe.

mod hidden;
mod measure;

use std::collections::BTreeMap;

use restante::compare::fit;
use restante::inspect::{self, Description, live};
use restante::postgres::catalog::Catalog;
use restante::postgres::dsn::Dsn;
use restante::postgres::session::{Session, SessionOptions};
use restante::postgres::sql;
use restante::profile::{Body, Profile, Severity};
use tokio_postgres::Client;

use crate::restore::names::Names;
use crate::restore::store::{REFERENCE, REFERENCE_DRIVER};
use crate::server::{TestDatabase, TestServer};
use crate::snapshot::support::{Place, everything, snapshot_role, text};
use crate::stores::{DRIVER, STORES};
use hidden::Hidden;
use measure::Measure;

const OPAQUE: &str = include_str!("../../fixtures/stores/opaque/schema.sql");
const UNKNOWN: [&str; 2] =
    [include_str!("../../fixtures/stores/unknown/schema.sql"), include_str!("../../fixtures/stores/unknown/mail.sql")];
const DOCUMENT: &str = include_str!("../../docs/profiles.md");
const LETTERS: &str = include_str!("../../fixtures/stores/letters/mail.sql");
const UNKNOWN_PROFILE: &str = include_str!("../../fixtures/stores/unknown/profile.toml");

fn run(place: &Place, store: &str, arguments: &[&str]) -> (i32, String) {
    let output = place.program(store).args(arguments).output().unwrap();
    (output.status.code().unwrap(), text(&output))
}

/// Three people with three mailboxes each, and what a few days bring: mails with and without attachments, some copied, moved, read, deleted.
async fn fill(client: &Client) {
    let text = async |sql: &str, values: &[&(dyn tokio_postgres::types::ToSql + Sync)]| -> String {
        client.query_one(sql, values).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    };
    let mut boxes = Vec::new();
    for (number, person) in ["ann", "bob", "cyd"].into_iter().enumerate() {
        let account = text("SELECT driver.account($1)", &[&format!("{person}@example.org")]).await;
        for (at, name) in ["INBOX", "Sent", "Projects"].into_iter().enumerate() {
            let made = format!("2026-01-0{}T0{at}:00:00Z", number + 1);
            let mailbox = "SELECT driver.mailbox($1, $2, $3::text::timestamptz)";
            boxes.push(text(mailbox, &[&account, &name, &made]).await);
        }
    }
    let mut links = Vec::new();
    for number in 0..72_usize {
        // Mailboxes of different length, so that their counters differ.
        let mailbox = &boxes[(number * number / 7) % boxes.len()];
        let time = format!("2026-02-{:02}T{:02}:{:02}:07Z", 1 + number % 20, number % 24, (number * 7) % 60);
        let sent = format!("{} Jan 2026 {:02}:00:{:02} +0000", 1 + number % 28, number % 24, number % 60);
        let id = format!("<{number}.mail@example.net>");
        let header = format!(
            "Received: from a.example.net by mx.example.org; {sent}\r\nFrom: \"Sender {n}\" <sender{n}@example.net>\r\nTo: ann@example.org\r\n\
             Subject: subject {number}\r\nMessage-ID: {id}\r\nDate: {sent}\r\n\r\n",
            n = number % 9
        );
        let attachment = (number % 3 == 0).then(|| format!("attachment {}", number % 12).repeat(90).into_bytes());
        let body = format!("text of {number}\r\n").repeat(1 + number % 60).into_bytes();
        let deliver = "SELECT driver.deliver($1, $2, $3, $4, $5, $6::text::timestamptz, $6::text::timestamptz)";
        links.push(text(deliver, &[mailbox, &id, &header.into_bytes(), &body, &attachment, &time]).await);
    }
    for at in 0..links.len() {
        let own = (at * at / 7) % boxes.len();
        let (link, other) = (&links[at], &boxes[(own + 1 + at % 5) % boxes.len()]);
        match at % 12 {
            1 => _ = text("SELECT driver.copy($1, $2, now())", &[link, other]).await,
            2 => _ = text("SELECT driver.move($1, $2, now())", &[link, other]).await,
            3 | 7 => _ = client.execute("SELECT driver.expunge($1)", &[link]).await.unwrap(),
            4 => _ = client.execute("SELECT driver.seen($1, true)", &[link]).await.unwrap(),
            _ => {}
        }
    }
}

/// What an ordinary role sees of a store.
async fn seen(database: &TestDatabase) -> (Catalog, Description) {
    let dsn = database.dsn_as(&snapshot_role(database).await);
    let dsn = Dsn::parse(&dsn, &Default::default()).unwrap();
    let session = Session::connect(&dsn, SessionOptions::default()).await.unwrap();
    live::describe(&session).await.unwrap()
}

/// A store of `fixtures`, filled. `None` where the server lacks what it needs.
async fn filled(name: &str) -> Option<TestDatabase> {
    let database = TestServer::shared().database(None).await;
    let client = database.superuser().await;
    if name == "reference" {
        for sql in [restante_fixtures::store::SCHEMA, restante_fixtures::store::CHECKS, DRIVER, REFERENCE_DRIVER] {
            database.execute(sql).await;
        }
    } else if name == "unknown" {
        for sql in UNKNOWN {
            database.execute(sql).await;
        }
        return Some(database);
    } else if !STORES.iter().find(|store| store.name == name)?.make(&client).await {
        return None;
    }
    fill(&client).await;
    Some(database)
}

/// What is found in a store, with its names and with others that tell nothing: roles and columns each. The draft fits the catalog.
async fn measure(name: &str, named: (usize, usize), nameless: (usize, usize)) {
    let Some(database) = filled(name).await else { return };
    let wanted = match name {
        "unknown" => Profile::parse("unknown", UNKNOWN_PROFILE),
        name => Profile::builtin(name).unwrap(),
    };
    let wanted = wanted.unwrap();
    let (catalog, mut told) = seen(&database).await;
    for (how, expected) in [("", named), (" without names", nameless)] {
        let hidden = (!how.is_empty()).then(|| Hidden::hide(&mut told));
        let draft = inspect::draft(&told).unwrap_or_else(|| panic!("{name}{how}: nothing was found"));
        let toml = inspect::toml(&draft, "a test");
        let toml = hidden.as_ref().map_or(toml.clone(), |hidden| hidden.translate(&toml));
        let profile = Profile::parse("draft", &toml).unwrap_or_else(|error| panic!("{name}{how}: {error}\n{toml}"));
        let findings = fit::findings(&profile, &catalog);
        let errors: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{name}{how}: {errors:#?}");
        let measure = Measure::of(&wanted, &profile, draft.questions().len());
        println!("{name}{how}: {measure}");
        assert_eq!(measure.found(), expected, "{name}{how}: {measure}");
    }
}

#[tokio::test]
async fn the_stores_that_the_guesses_were_made_on() {
    measure("reference", (9, 35), (8, 35)).await;
    measure("dbmail", (17, 28), (13, 16)).await;
    measure("sora", (10, 29), (7, 23)).await;
}

#[tokio::test]
async fn the_stores_that_nobody_tuned_the_guesses_for() {
    measure("archiveopteryx", (22, 31), (19, 26)).await;
    measure("hyperkitty", (11, 11), (10, 6)).await;
    measure("james", (8, 21), (7, 19)).await;
    measure("unknown", (10, 28), (9, 24)).await;
}

#[tokio::test]
async fn a_time_without_a_zone_gets_that_of_the_database_and_is_asked_for() {
    let database = filled("dbmail").await.unwrap();
    database.execute(&format!("ALTER DATABASE {} SET timezone = 'Europe/Berlin'", database.name())).await;
    let (_, told) = seen(&database).await;
    let draft = inspect::draft(&told).unwrap();
    let toml = inspect::toml(&draft, "a test");
    assert!(toml.contains("zone = \"Europe/Berlin\""), "{toml}");
    let asked = draft.questions().into_iter().any(|one| one.question.contains("Europe/Berlin is the database's own"));
    assert!(asked, "{toml}");
}

#[tokio::test]
async fn where_names_tell_nothing_structure_and_samples_find_mail_mailbox_owner_body_and_clock() {
    let database = filled("reference").await.unwrap();
    let client = database.superuser().await;
    let names = Names::of(&client).await.renamed();
    names.rename(&client).await;
    let wanted = Profile::parse("renamed", &names.profile(REFERENCE)).unwrap();
    // Hostile names hold the words of the old ones, so they are hidden as well.
    let (catalog, mut told) = seen(&database).await;
    let hidden = Hidden::hide(&mut told);
    let draft = inspect::draft(&told).unwrap();
    // In TOML a name is quoted, in SQL twice.
    let toml: toml::Table = inspect::toml(&draft, "a test").parse().unwrap();
    let name = |value: &toml::Value| hidden.name(value.as_str().unwrap()).to_owned();
    let (message, mailbox) = (toml["message"].as_table().unwrap(), toml["mailbox"].as_table().unwrap());
    assert_eq!(name(&message["table"]), wanted.message.table);
    assert_eq!(name(&mailbox["table"]), wanted.mailbox.table);
    assert_eq!(name(&toml["owner"]["table"]), wanted.owner.as_ref().unwrap().table);
    let Body::Spliced { column } = &wanted.message.body else { panic!("{:?}", wanted.message.body) };
    assert_eq!(message["body"]["assembly"].as_str(), Some("spliced"));
    assert_eq!(name(&message["body"]["column"]), *column);
    assert_eq!(name(&message["clocks"][0]["column"]), wanted.message.clocks[0].column);
    assert_eq!(message["clocks"][0]["clock"].as_str(), Some("saved"));

    // With the hostile names themselves the draft is TOML and SQL all the same.
    let (_, told) = seen(&database).await;
    let toml = inspect::toml(&inspect::draft(&told).unwrap(), "a \"test\"\nof = lines");
    let profile = Profile::parse("draft", &toml).unwrap_or_else(|error| panic!("{error}\n{toml}"));
    assert_eq!(fit::findings(&profile, &catalog).iter().filter(|one| one.severity == Severity::Error).count(), 0);
    let measure = Measure::of(&wanted, &profile, 0);
    assert_eq!(measure.found(), (9, 35), "{measure}");
    let live = profile.mailbox.live.as_ref().unwrap();
    let select = format!(
        "SELECT count(*) FROM {}.{} WHERE {live}",
        sql::identifier(&profile.schema),
        sql::identifier(&profile.mailbox.table)
    );
    assert_eq!(client.query_one(&select, &[]).await.unwrap().get::<_, i64>(0), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_drafts_the_same_from_a_snapshot_says_what_it_could_not_see_and_shows_no_mail() {
    let (place, database) = (Place::new().await, filled("reference").await.unwrap());
    let role = snapshot_role(&database).await;
    let dsn = database.dsn_as(&role);
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    let stranger = place.path("stranger.key");
    let stranger = stranger.to_str().unwrap();
    let expect = |wanted: i32, store: &str, arguments: &[&str]| {
        let (code, said) = run(&place, store, arguments);
        assert_eq!(code, wanted, "{arguments:?}: {said}");
        for secret in ["example.", "subject", "text of", "attachment 1", "Sender", ".mail"] {
            assert!(!said.contains(secret), "{arguments:?} shows {secret}: {said}");
        }
        said
    };
    expect(0, &dsn, &["snapshot", "-q"]);
    expect(0, &dsn, &["key", "generate", "-o", stranger]);
    for arguments in [&["inspect"][..], &["inspect", "latest", "-i", reader]] {
        assert!(expect(0, &dsn, arguments).contains("the built-in profile reference"));
    }
    let live = expect(3, &dsn, &["inspect", "--draft"]);
    // No server, no writer key.
    let from_snapshot = expect(3, "host=/nonexistent", &["inspect", "latest", "--draft", "-i", reader]);
    let lines = |said: &str| said.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&live), lines(&from_snapshot));
    assert!(live.contains("at most 2000 of each"), "{live}");
    let said = expect(3, &dsn, &["inspect", "--draft", "--json"]);
    let line: serde_json::Value = said.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap();
    assert_eq!((&line["type"], &line["recognised"]), (&"inspected".into(), &"reference".into()), "{line}");
    assert!(
        line["questions"].as_array().is_some_and(|all| !all.is_empty())
            && line["sections"][1]["guesses"][0]["evidence"].is_array()
    );

    // The draft is a profile that `gap` takes as it is, and is never written over.
    let draft = place.path("draft.toml");
    let draft = draft.to_str().unwrap();
    expect(3, &dsn, &["inspect", "--draft", "-o", draft]);
    expect(2, &dsn, &["inspect", "--draft", "-o", draft]);
    let (code, said) = run(&place, &dsn, &["gap", "latest", "--profile", draft, "-i", reader]);
    assert_eq!(code, 0, "{said}");
    expect(5, &dsn, &["inspect", "0123456789ab", "-i", reader]);
    expect(6, &dsn, &["inspect", "latest", "-i", stranger]);

    database.execute(&format!("REVOKE SELECT ON attachments FROM {role}")).await;
    let said = expect(3, &dsn, &["inspect", "--draft"]);
    assert!(said.contains("public.attachments was not looked at: no right to read it"), "{said}");
    let other = TestServer::shared().database(None).await;
    other.execute("CREATE TABLE t (a int)").await;
    let said = expect(5, &other.dsn_as(&snapshot_role(&other).await), &["inspect"]);
    assert!(said.contains("none looks like mailboxes with mail"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opaque_store_is_kept_whole_and_refuses_a_window_with_the_reason() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database.execute(OPAQUE).await;
    let dsn = database.dsn_as(&snapshot_role(&database).await);
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    let (code, said) = run(&place, &dsn, &["snapshot"]);
    assert_eq!(code, 0, "{said}");
    let restore = ["restore", "--from", "2026-01-01T00:00:00Z", "-i", reader, "-y"];
    for arguments in [&["gap", "-i", reader][..], &restore, &["find", "--uid", "1", "-i", reader, "latest"]] {
        let (code, said) = run(&place, &dsn, arguments);
        assert_eq!(code, 4, "{arguments:?}: {said}");
        assert!(said.contains("opaque key-value store: 23 tables") && said.contains("--full"), "{said}");
    }
    for arguments in [&["inspect"][..], &["inspect", "latest", "-i", reader]] {
        let (code, said) = run(&place, &dsn, arguments);
        assert_eq!(code, 3, "{arguments:?}: {said}");
        assert!(said.contains("opaque key-value store: 23 tables"), "{said}");
    }

    let copy = TestServer::shared().database(None).await;
    let owner = copy.owning_role().await;
    let (code, said) =
        run(&place, &dsn, &["restore", "latest", "--full", "--into", &copy.dsn_as(&owner), "-i", reader]);
    assert_eq!(code, 0, "{said}");
    let rows = |sections: BTreeMap<String, Vec<String>>| -> BTreeMap<String, Vec<String>> {
        sections.into_iter().filter(|(name, _)| name.contains("Type: TABLE DATA")).collect()
    };
    let (before, after) = (rows(everything(&database).await), rows(everything(&copy).await));
    assert_eq!(before.len(), 23);
    assert!(before.values().eq(after.values()), "the copy is another store");
}

/// The only block of a language in the document.
fn block(language: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_s_worked_example_is_drafted_and_restored_as_it_says() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    let dsn = database.dsn_as(&database.owning_role().await);
    let client = crate::server::connect(&dsn).await;
    client.batch_execute(&[block("sql"), LETTERS].concat()).await.unwrap();
    let reader = place.path("reader.key");
    let reader = reader.to_str().unwrap();
    let (code, said) = run(&place, &dsn, &["inspect"]);
    assert_eq!(code, 3, "{said}");
    let asked = said.lines().filter(|line| line.starts_with("#   ")).collect::<Vec<_>>();
    for word in ["came", "flags, which may change", "\\Recent", "burnt", "Is anything of it mail"] {
        assert_eq!(asked.iter().filter(|line| line.contains(word)).count(), 1, "{word}: {asked:#?}");
    }
    assert_eq!(asked.len(), 5, "{asked:#?}");

    let profile = place.path("letters.toml");
    std::fs::write(&profile, block("toml")).unwrap();
    let profile = profile.to_str().unwrap();
    let gap = |wanted: i32| {
        let (code, said) = run(&place, &dsn, &["gap", "--profile", profile, "-i", reader, "--json"]);
        assert_eq!(code, wanted, "{said}");
        said.lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .find(|line| line["type"] == "gap")
            .unwrap()
    };
    let (code, said) = run(&place, &dsn, &["snapshot"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(gap(0)["lost"], 0);
    let burn = "WITH gone AS (DELETE FROM letters WHERE folder = 1 AND number = 2 RETURNING *)
        INSERT INTO burnt SELECT folder, number, id, kept_since FROM gone";
    client.batch_execute(&format!("DELETE FROM letters WHERE folder = 1 AND number = 1; {burn}")).await.unwrap();
    let report = gap(3);
    assert_eq!((&report["lost"], &report["classes"]["deleted-by-user"]), (&1.into(), &1.into()), "{report}");
    let (code, said) = run(&place, &dsn, &["restore", "--profile", profile, "-i", reader, "-y"]);
    assert_eq!(code, 0, "{said}");
    // The lost one under a fresh number, with its label; the burnt one stays burnt.
    let found = "SELECT string_agg(ident, ' ' ORDER BY number), max(number) > 4,
        (SELECT string_agg(label, ' ' ORDER BY label) FROM labels JOIN letters l ON l.id = letter WHERE l.folder = 1)
        FROM letters WHERE folder = 1";
    let row = client.query_one(found, &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "<1.3@example.net> <1.4@example.net> <1.1@example.net>");
    assert!(row.get::<_, bool>(1));
    assert_eq!(row.get::<_, String>(2), "$Restored work");
    assert_eq!(gap(0)["lost"], 0);
}
