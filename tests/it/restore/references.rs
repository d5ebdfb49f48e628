//! What rows refer to besides their message: shared values, accounts and mailboxes, whose keys were issued again to others; and a sequence
//! that numbers the changes of all mailboxes. The reference store has none of these, so its tables get them here.

use restante::profile::Profile;
use restante::restore::undo::{UndoOptions, undo};
use restante::restore::{Apply, ApplyOptions, ReplayError};

use super::memory::MemorySource;
use super::store::{Content, REFERENCE, Store};

/// A store with more columns, and a profile with more lines.
async fn store(ddl: &str, profile: impl Fn(&str) -> String) -> Store {
    let mut store = Store::new().await;
    store.client.batch_execute(ddl).await.unwrap();
    store.profile = Profile::parse("changed", &profile(REFERENCE)).unwrap();
    store
}

const SENDERS: &str = "CREATE TABLE senders (id serial PRIMARY KEY, address text NOT NULL UNIQUE, name text UNIQUE);
    ALTER TABLE messages ADD sender int REFERENCES senders; ALTER TABLE keywords ADD setter int REFERENCES senders";

fn with_senders(profile: &str) -> String {
    format!("{profile}\n[[dictionary]]\ntable = \"senders\"\nnatural = [\"address\"]\n")
}

async fn senders(store: &Store, addresses: &[&str]) -> Vec<i32> {
    let sql = "INSERT INTO senders (address, name) SELECT a, left(a, 1) FROM unnest($1::text[]) a RETURNING id";
    store.client.query(sql, &[&addresses]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// Of each mail its sender's address, and who set its keyword.
async fn addresses(store: &Store) -> Vec<(Option<String>, Option<String>)> {
    let sql = "SELECT s.address, t.address FROM messages m LEFT JOIN senders s ON s.id = m.sender
               LEFT JOIN keywords k ON k.message_id = m.id AND k.keyword = 'work' LEFT JOIN senders t ON t.id = k.setter ORDER BY m.saved_at";
    store.client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_shared_value_is_found_by_what_it_says_though_its_key_was_issued_again() {
    let store = store(SENDERS, with_senders).await;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    // Over the limit at which values leave their row.
    let long = format!("d{}@example.org", "d".repeat(600));
    let known = senders(&store, &["a@example.org", "b@example.org", "c@example.org", &long]).await;
    assert_eq!(known, [1, 2, 3, 4]);
    let mut ids = Vec::new();
    for (minute, sender) in [Some(1), Some(2), Some(3), Some(4), None].into_iter().enumerate() {
        let id = store.deliver(inbox, Content(minute as u32), minute as i64, 0).await;
        store.client.execute("UPDATE messages SET sender = $1 WHERE id = $2", &[&sender, &id]).await.unwrap();
        store.client.execute("INSERT INTO keywords VALUES ($1, 'work', $2)", &[&id, &sender]).await.unwrap();
        ids.push(id);
    }
    let before = addresses(&store).await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&ids, &[], true).await;
    let lost = "DELETE FROM senders WHERE id > 1; SELECT setval('senders_id_seq', 1)";
    store.client.batch_execute(lost).await.unwrap();
    assert_eq!(senders(&store, &["c@example.org", "stranger@example.org"]).await, [2, 3]);

    let report = store.restore(&snapshot, None).await;
    assert_eq!((report.mail.restored, report.mail.changed_columns.len()), (5, 0), "{report:?}");
    assert_eq!(addresses(&store).await, before);
    assert_eq!(report.counters.sequences.iter().filter(|name| name.ends_with("senders_id_seq")).count(), 1);
    // Undone and put back they refer to the same, and nothing was made twice.
    let layout = store.compare(&snapshot, None).await.layout;
    let options = UndoOptions { replay: report.replay.unwrap(), ..Default::default() };
    assert_eq!(undo(&store.reader, &layout, &options).await.unwrap().undone, 5);
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 5);
    assert_eq!(addresses(&store).await, before);
    let all: i64 = store.client.query_one("SELECT count(*) FROM senders", &[]).await.unwrap().get(0);
    assert_eq!(all, 5);
}

#[tokio::test]
async fn a_shared_value_that_cannot_be_put_in_stops_the_restore_before_anything_is_written() {
    let store = store(SENDERS, with_senders).await;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let sender = senders(&store, &["b@example.org"]).await[0];
    let id = store.deliver(inbox, Content(1), 1, 0).await;
    store.client.execute("UPDATE messages SET sender = $1 WHERE id = $2", &[&sender, &id]).await.unwrap();
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&[id], &[], true).await;
    // Another address of the same name, and names are unique as well.
    store.client.batch_execute("DELETE FROM senders").await.unwrap();
    senders(&store, &["bob@example.org"]).await;

    let apply = Apply::new(store.plan(&snapshot, None).await, ApplyOptions::default());
    let session = store.session().await;
    let error = apply.run(&session, &snapshot, &store.profile, &restante::monitor::Silent).await.unwrap_err();
    assert!(matches!(&error, ReplayError::ValueTaken { rows: 1, .. }), "{error}");
    assert!(error.to_string().contains("public.senders"), "{error}");
    assert_eq!(store.found().await.len(), 0);
}

#[tokio::test]
async fn rows_that_name_their_account_and_mailbox_name_those_that_came_back() {
    let ddl = "ALTER TABLE messages ADD account bigint REFERENCES accounts; ALTER TABLE keywords ADD mailbox bigint REFERENCES mailboxes";
    let store = store(ddl, str::to_owned).await;
    let (one, two) = (store.account("a@example.org").await, store.account("b@example.org").await);
    let (kept, lost) = (store.mailbox(one, "INBOX", 0).await, store.mailbox(two, "INBOX", 1).await);
    let mut ids = Vec::new();
    for (minute, (account, mailbox)) in [(one, kept), (two, lost)].into_iter().enumerate() {
        let id = store.deliver(mailbox, Content(minute as u32), 5 + minute as i64, 0).await;
        store.client.execute("UPDATE messages SET account = $1 WHERE id = $2", &[&account, &id]).await.unwrap();
        store.client.execute("INSERT INTO keywords VALUES ($1, 'work', $2)", &[&id, &mailbox]).await.unwrap();
        ids.push(id);
    }
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&ids, &[lost], true).await;
    store.client.execute("DELETE FROM accounts WHERE id = $1", &[&two]).await.unwrap();
    store.client.batch_execute("SELECT setval('accounts_id_seq', 1)").await.unwrap();
    // A stranger has the account's and the mailbox's keys.
    let stranger = store.account("z@example.org").await;
    assert_eq!((stranger, store.mailbox(stranger, "INBOX", 30).await), (two, lost));

    let report = store.restore(&snapshot, None).await;
    assert_eq!((report.mail.restored, report.owners, report.mailboxes), (2, 1, 1), "{report:?}");
    assert!(report.mail.changed_columns.is_empty(), "{report:?}");
    let sql = "SELECT count(*) FILTER (WHERE m.account = b.account_id AND k.mailbox = b.id), count(*) FROM messages m
               JOIN mailboxes b ON b.id = m.mailbox_id JOIN keywords k ON k.message_id = m.id AND k.keyword = 'work'";
    let row = store.client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 2));
}

#[tokio::test]
async fn modseqs_of_one_sequence_for_all_mailboxes_ascend_past_all_that_were_issued() {
    let ddl = "CREATE SEQUENCE changes; SELECT setval('changes', 1000)";
    let modseq = r#"modseq = { kind = "last", column = "highestmodseq" }"#;
    let global = r#"modseq = { kind = "global-sequence", sequence = "changes" }"#;
    let store = store(ddl, |profile| {
        assert!(profile.contains(modseq));
        profile.replacen(modseq, global, 1)
    })
    .await;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let mut ids = Vec::new();
    for minute in 0..4 {
        let id = store.deliver(inbox, Content(minute), i64::from(minute), 0).await;
        store.client.execute("UPDATE messages SET modseq = nextval('changes') WHERE id = $1", &[&id]).await.unwrap();
        ids.push(id);
    }
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&ids[1..], &[], true).await;
    store.client.batch_execute("SELECT setval('changes', 7)").await.unwrap();
    let report = store.restore(&snapshot, None).await;
    assert_eq!(report.mail.restored, 3);
    let rows = store.client.query("SELECT modseq FROM messages ORDER BY uid", &[]).await.unwrap();
    let modseqs: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert!(modseqs[1..].iter().all(|modseq| *modseq > 1004), "{modseqs:?}");
    assert!(modseqs.is_sorted_by(|one, next| one < next), "{modseqs:?}");
}

#[tokio::test]
async fn references_of_partitioned_tables_and_to_them_are_followed() {
    let ddl = "CREATE TABLE senders (id serial PRIMARY KEY, address text NOT NULL) PARTITION BY HASH (id);
        CREATE TABLE senders_0 PARTITION OF senders FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE senders_1 PARTITION OF senders FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        ALTER TABLE messages ADD sender int REFERENCES senders;
        CREATE TABLE labels (message_id bigint REFERENCES messages, label text, sender int REFERENCES senders,
            PRIMARY KEY (message_id, label)) PARTITION BY HASH (message_id);
        CREATE TABLE labels_0 PARTITION OF labels FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE labels_1 PARTITION OF labels FOR VALUES WITH (MODULUS 2, REMAINDER 1)";
    let labels = "[[child]]\ntable = \"labels\"\nof = \"message\"\nnatural = [\"label\"]\n";
    let store = store(ddl, |profile| with_senders(profile) + labels).await;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let mut ids = Vec::new();
    let sql = "INSERT INTO senders (address) SELECT unnest($1::text[])";
    store.client.execute(sql, &[&["a", "b", "c", "d"].as_slice()]).await.unwrap();
    for sender in 1..5 {
        let id = store.deliver(inbox, Content(sender as u32), i64::from(sender), 0).await;
        store.client.execute("UPDATE messages SET sender = $1 WHERE id = $2", &[&sender, &id]).await.unwrap();
        store.client.execute("INSERT INTO labels VALUES ($1, 'work', $2)", &[&id, &sender]).await.unwrap();
        ids.push(id);
    }
    let told = async || -> Vec<(String, String)> {
        let sql = "SELECT s.address, t.address FROM messages m JOIN senders s ON s.id = m.sender JOIN labels l ON l.message_id = m.id
                   JOIN senders t ON t.id = l.sender ORDER BY m.saved_at";
        store.client.query(sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let before = told().await;
    let snapshot = MemorySource::take(&store.reader).await;
    store.client.batch_execute("DELETE FROM labels").await.unwrap();
    store.lose(&ids[1..], &[], true).await;
    let lost = "DELETE FROM senders WHERE id > 1; SELECT setval('senders_id_seq', 1)";
    store.client.batch_execute(lost).await.unwrap();
    store.client.execute(sql, &[&["stranger", "c"].as_slice()]).await.unwrap();

    let report = store.restore(&snapshot, None).await;
    assert_eq!((report.mail.restored, report.repaired_rows), (3, 1), "{report:?}");
    assert!(report.mail.changed_columns.is_empty(), "{report:?}");
    assert_eq!(told().await, before);
    assert_eq!(store.client.query_one("SELECT count(*) FROM senders", &[]).await.unwrap().get::<_, i64>(0), 5);
}

const DOMAINS: &str = "CREATE TABLE domains (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
    INSERT INTO domains (name) VALUES ('one'), ('two'); ALTER TABLE accounts ADD domain int NOT NULL DEFAULT 1 REFERENCES domains;
    ALTER TABLE accounts DROP CONSTRAINT accounts_address_key, ADD UNIQUE (domain, address)";

fn with_domains(profile: &str) -> String {
    let named = profile.replacen("natural = [\"address\"]", "natural = [\"domain\", \"address\"]", 1);
    format!("{named}\n[[dictionary]]\ntable = \"domains\"\nnatural = [\"name\"]\n")
}

/// An account is named by its domain and its address, and the domain by a number that is a stranger's now.
#[tokio::test]
async fn mail_goes_to_no_stranger_whose_domain_has_the_number_of_a_lost_one() {
    let store = store(DOMAINS, with_domains).await;
    let account = store.account("a@example.org").await;
    store.client.execute("UPDATE accounts SET domain = 2", &[]).await.unwrap();
    let inbox = store.mailbox(account, "INBOX", 0).await;
    let ids = [store.deliver(inbox, Content(1), 1, 0).await, store.deliver(inbox, Content(2), 2, 0).await];
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&ids, &[inbox], true).await;
    store.lose_account(account).await;
    let stranger = "DELETE FROM domains WHERE id = 2; SELECT setval('domains_id_seq', 1); INSERT INTO domains (name) VALUES ('stranger')";
    store.client.batch_execute(stranger).await.unwrap();
    let theirs = store.account("a@example.org").await;
    store.client.execute("UPDATE accounts SET domain = 2", &[]).await.unwrap();
    store.mailbox(theirs, "INBOX", 0).await;

    let report = store.restore(&snapshot, None).await;
    assert_eq!((report.mail.restored, report.mail.no_mailbox), (0, 2), "{report:?}");
    assert!(report.has_findings());
    assert_eq!(store.found().await, []);
    // Once its domain is there again, under whatever number, the account comes back into it.
    store.client.batch_execute("INSERT INTO domains (name) VALUES ('two')").await.unwrap();
    assert_eq!(store.restore(&snapshot, None).await.mail.restored, 2);
    let sql = "SELECT d.name, count(*) FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id JOIN accounts a ON a.id = b.account_id
               JOIN domains d ON d.id = a.domain GROUP BY 1";
    let found = store.client.query(sql, &[]).await.unwrap();
    let found: Vec<(String, i64)> = found.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, [("two".to_owned(), 2)]);
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
}
