//! A small mail store that lost a window of its mail, and the repository of the night before: what `restore` must make of it, what
//! `undo` must, and copies of it to let them fail on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use restante::compare::layout;
use restante::postgres::catalog;
use restante::postgres::grants::{self, GrantsFor, Purpose};
use restante::restore::{journal, rights};
use restante::storage::Storage;
use restante::storage::directory::Directory;
use restante::verify::Level;
use tokio::process::{Child, Command};

use super::memory::{Objects, copy_of};
use super::sample::Keys;
use crate::restore::store::{Content, Store};
use crate::server::{TestDatabase, TestServer, sessions_end};

/// Account, mailbox, hash of the mail put together again, flags and keywords.
pub type Mail = (String, String, String, String);

/// What is run, and made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaying {
    Restore,
    Undo,
}

pub struct Incident {
    pub server: Arc<TestServer>,
    pub keys: Keys,
    pub repository: tempfile::TempDir,
    pub objects: Objects,
    /// May do what `grants --for restore` prints, and also make the journal: that is one of the commits.
    role: String,
    /// Templates: after the damage, and after a restore.
    lost: TestDatabase,
    restored: TestDatabase,
    replay: String,
    /// Multisets: after the restore, after undo.
    whole: Vec<Mail>,
    taken_back: Vec<Mail>,
    /// The first UID that no client has ever seen, by mailbox.
    fresh: BTreeMap<i64, i64>,
    relations: BTreeSet<String>,
}

const MAILS: u32 = 44;
/// What came from this minute of the store's clock on is lost; two mailboxes and an account with it.
pub const DAMAGE: u32 = 14;

impl Incident {
    /// `weight`: bytes that do not compress, put into each lost mail.
    pub async fn new(server: &Arc<TestServer>, weight: i32) -> Self {
        let store = Store::made(server.database(None).await).await;
        let (one, two) = (store.account("a@example.org").await, store.account("b@example.org").await);
        let gone = store.account("c@example.org").await;
        let mut boxes = Vec::new();
        for (account, name) in [(one, "INBOX"), (two, "INBOX"), (one, "Archive"), (one, "lost"), (gone, "INBOX")] {
            boxes.push(store.mailbox(account, name, boxes.len() as i64).await);
        }
        let mut ids = Vec::new();
        for number in 0..MAILS {
            // The mailboxes that are lost as a whole hold nothing older.
            let among = if number < DAMAGE { 3 } else { boxes.len() as u32 };
            let id = store.deliver(boxes[(number % among) as usize], Content(number), i64::from(number), 0).await;
            if number % 3 == 0 {
                store.seen(id, true).await;
            }
            if number % 5 == 0 {
                store.client.execute("INSERT INTO keywords VALUES ($1, 'work')", &[&id]).await.unwrap();
            }
            ids.push(id);
        }
        // The same mail twice in a mailbox: multiplicity counts.
        for _ in 0..2 {
            ids.push(store.deliver(boxes[0], Content(20), i64::from(MAILS), 0).await);
        }
        if weight > 0 {
            let sql = "UPDATE messages SET size = size + $1::int4 / 32 * 32, body = body || (SELECT string_agg(sha256(convert_to(id || ':' || i, 'UTF8')), '')
                       FROM generate_series(1, $1::int4 / 32) i) WHERE id = ANY($2)";
            store.client.execute(sql, &[&weight, &&ids[DAMAGE as usize..]]).await.unwrap();
        }
        let repository = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> = Arc::new(Directory::new(repository.path()).unwrap());
        let keys = Keys::init(&*storage).await;
        let reading = crate::postgres::support::reading_role(&store.database).await;
        keys.snapshot(&storage, &store.database.dsn_as(&reading)).await.unwrap();
        let objects = copy_of(&*storage).await;

        store.expunge(ids[3], "expunge").await;
        store.expunge(ids[30], "expunge").await;
        store.seen(ids[1], true).await;
        let truth = mails(&store).await;
        let fresh = store.client.query("SELECT id, uidnext FROM mailboxes", &[]).await.unwrap();
        let fresh = fresh.iter().map(|row| (row.get(0), row.get(1))).collect();
        store.lose_parts(&ids[5..7]).await;
        store.lose(&ids[DAMAGE as usize..], &boxes[3..], true).await;
        store.client.execute("DELETE FROM accounts WHERE id = $1", &[&gone]).await.unwrap();
        let survivors: BTreeSet<i64> = mails(&store).await.into_keys().collect();
        for number in 50..53 {
            store.deliver(boxes[0], Content(number), i64::from(number), 0).await;
        }
        let now = mails(&store).await;
        let newer = || now.iter().filter(|(id, _)| !survivors.contains(id)).map(|(_, mail)| mail.clone());
        let sorted = |mut mails: Vec<Mail>| {
            mails.sort();
            mails
        };
        let kept = truth.iter().filter(|(id, _)| survivors.contains(id)).map(|(_, mail)| mail.clone());
        let mut incident = Self {
            server: server.clone(),
            role: granted(&store).await,
            keys,
            repository,
            objects,
            replay: String::new(),
            whole: sorted(truth.values().cloned().chain(newer()).collect()),
            taken_back: sorted(kept.chain(newer()).collect()),
            fresh,
            relations: relations(&store).await,
            restored: server.database(None).await,
            lost: store.let_go(),
        };
        let place = incident.copy(Replaying::Restore).await;
        place.completes(Replaying::Restore, "the first restore").await;
        let replay = place.store.client.query_one("SELECT id FROM restante.replay", &[]).await.unwrap();
        let made = (replay.get(0), place.store.let_go());
        (incident.replay, incident.restored) = made;
        incident
    }

    fn template(&self, what: Replaying) -> &TestDatabase {
        match what {
            Replaying::Restore => &self.lost,
            Replaying::Undo => &self.restored,
        }
    }

    /// A store to run it on.
    pub async fn copy(&self, what: Replaying) -> Place<'_> {
        self.copy_on(what, "pg_default").await
    }

    pub async fn copy_on(&self, what: Replaying, tablespace: &str) -> Place<'_> {
        let options = format!("TEMPLATE {} TABLESPACE {tablespace}", self.template(what).name());
        let database = self.server.database_with(&options).await;
        let grant = format!("GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}", database.name(), self.role);
        database.execute(&grant).await;
        Place { incident: self, dsn: database.dsn_as(&self.role), store: Store::of(database).await, crashed: false }
    }

    /// KiB that a copy takes.
    pub async fn size(&self, what: Replaying) -> i64 {
        let admin = crate::server::connect(&self.server.superuser_dsn("postgres")).await;
        let sql = "SELECT pg_database_size($1::text::name) / 1024";
        admin.query_one(sql, &[&self.template(what).name()]).await.unwrap().get(0)
    }

    /// Nobody wrote to the repository, and it is sound.
    pub async fn repository_is_untouched(&self) {
        let storage: Arc<dyn Storage> = Arc::new(Directory::new(self.repository.path()).unwrap());
        assert!(copy_of(&*storage).await == self.objects, "the repository was changed");
        let report = self.keys.verify(&storage, true, Level::Rows).await.unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

/// A copy of the store, with a repository that all share: nothing here writes to it.
pub struct Place<'a> {
    pub incident: &'a Incident,
    pub store: Store,
    pub dsn: String,
    /// Temporary tables outlive a server that crashes, until autovacuum or the next owner of their schema comes by.
    pub crashed: bool,
}

impl Place<'_> {
    pub fn command(&self, what: Replaying) -> Command {
        let reader = self.incident.keys.reader();
        let arguments = match what {
            Replaying::Restore => format!(
                "restore|--from|2026-01-01T00:{DAMAGE}:00Z|--batch|7|-r|{}|-i|{}",
                self.incident.repository.path().display(),
                reader.display()
            ),
            Replaying::Undo => format!("undo|{}|--batch|5", self.incident.replay),
        };
        let mut command = program(self.incident.repository.path());
        command.args(arguments.split('|')).args(["--yes", "--progress", "none", "-d", &self.dsn]);
        command
    }

    /// The same with one session, so that its points come in one order, and nothing is kept between two of them by another.
    pub fn in_order(&self, what: Replaying) -> Command {
        let mut command = self.command(what);
        if what == Replaying::Restore {
            command.arg("--jobs=1");
        }
        command
    }

    /// With a failpoint, in order.
    pub async fn run(&self, what: Replaying, failpoint: Option<&str>) -> Ended {
        let mut command = self.command(what);
        if let Some(failpoint) = failpoint {
            command = self.in_order(what);
            command.env("RESTANTE_FAILPOINT", failpoint);
        }
        Ended::of(command.spawn().unwrap()).await
    }

    /// Run again, it completes, all is in its place, and there is nothing left to do.
    pub async fn completes(&self, what: Replaying, when: &str) {
        let again = self.run(what, None).await;
        assert!(again.status.code() == Some(0), "{when}, run again: {again:?}");
        self.is_done(what, when).await;
        let third = self.run(what, None).await;
        let said = if what == Replaying::Restore { "\nnothing to do\n" } else { "0 messages taken back\n" };
        assert!(third.status.code() == Some(0) && third.said.contains(said), "{when}, a third time: {third:?}");
        self.is_done(what, &format!("{when}, a third time")).await;
    }

    /// No mail is lost, doubled or altered; counters are right and nothing of ours is left behind but the journal.
    pub async fn is_done(&self, what: Replaying, when: &str) {
        let wanted = if what == Replaying::Restore { &self.incident.whole } else { &self.incident.taken_back };
        let mut found: Vec<Mail> = mails(&self.store).await.into_values().collect();
        found.sort();
        let missing = difference(wanted, &found);
        let surplus = difference(&found, wanted);
        assert!(missing.is_empty() && surplus.is_empty(), "{when}: missing {missing:?}, too many {surplus:?}");
        self.store.check_counters().await;

        let client = &self.store.client;
        let reused = "SELECT count(*) FROM (SELECT mailbox_id, uid FROM messages UNION ALL SELECT mailbox_id, uid FROM expunged) u
                      GROUP BY mailbox_id, uid HAVING count(*) > 1";
        assert!(client.query(reused, &[]).await.unwrap().is_empty(), "{when}: a UID was issued twice");
        let restored = "SELECT mailbox_id, min(uid) FROM messages m JOIN keywords k ON k.message_id = m.id
                        WHERE keyword = '$Restored' GROUP BY 1";
        for row in client.query(restored, &[]).await.unwrap() {
            let (mailbox, uid): (i64, i64) = (row.get(0), row.get(1));
            let fresh = self.incident.fresh.get(&mailbox).copied().unwrap_or(1);
            assert!(uid >= fresh, "{when}: UID {uid} had been issued before {fresh}");
        }
        let journal = "SELECT (SELECT count(*) FROM restante.journal WHERE undone IS NULL),
                              (SELECT count(*) FROM restante.journal j JOIN messages m ON m.id::text = j.key WHERE undone IS NULL),
                              (SELECT count(*) FROM keywords WHERE keyword = '$Restored'),
                              (SELECT count(*) FROM restante.replay WHERE ended IS NULL)";
        let row = client.query_one(journal, &[]).await.unwrap();
        let counts: [i64; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
        let back = if what == Replaying::Restore { wanted.len() - self.incident.taken_back.len() } else { 0 } as i64;
        assert_eq!(counts, [back, back, back, 0], "{when}: the journal is wrong");

        sessions_end(&self.store.client).await;
        let mut left = relations(&self.store).await;
        left.retain(|name| !self.incident.relations.contains(name) && !name.starts_with("restante."));
        left.retain(|name| !self.crashed || !(name.starts_with("pg_temp_") || name.starts_with("pg_toast_temp_")));
        assert!(left.is_empty(), "{when}: left behind: {left:?}");
    }

    /// Everything in the store that a replay changes, in numbers that are the same for every copy. Sequences are left out: what was
    /// drawn from them is gone, whatever becomes of the transaction.
    pub async fn kept(&self) -> String {
        let mut counts: Vec<String> =
            ["accounts", "mailboxes", "messages", "attachments", "message_attachments", "keywords", "expunged"]
                .map(|table| format!("(SELECT count(*) FROM {table})"))
                .into();
        counts.push("(SELECT sum(uidnext) FROM mailboxes)".into());
        counts.push("(SELECT sum(highestmodseq) FROM mailboxes)".into());
        counts.push("(SELECT sum(used_bytes) FROM accounts)".into());
        let journal = "SELECT to_regclass('restante.journal') IS NOT NULL";
        if self.store.client.query_one(journal, &[]).await.unwrap().get(0) {
            counts.push("(SELECT row(count(*), count(undone), count(DISTINCT replay)) FROM restante.journal)".into());
            counts.push("(SELECT row(count(*), count(ended)) FROM restante.replay)".into());
        }
        let sql = format!("SELECT row({})::text", counts.join(", "));
        self.store.client.query_one(&sql, &[]).await.unwrap().get(0)
    }
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub said: String,
}

impl Ended {
    pub async fn of(child: Child) -> Self {
        let output = child.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Self { status: output.status, said }
    }
}

/// Restante with nothing of this process's environment.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_restante"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("PG") || name.starts_with("RESTANTE_") {
            command.env_remove(name.as_ref());
        }
    }
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What is in `one` more often than in `other`; both are sorted.
fn difference<'a>(one: &'a [Mail], other: &[Mail]) -> Vec<&'a Mail> {
    let mut left: Vec<Option<&Mail>> = other.iter().map(Some).collect();
    let mut take = |mail: &Mail| left.iter_mut().find(|one| **one == Some(mail)).map(|one| one.take()).is_some();
    one.iter().filter(|mail| !take(mail)).collect()
}

pub async fn mails(store: &Store) -> BTreeMap<i64, Mail> {
    let sql = "SELECT m.id, a.address, b.name, coalesce(encode(sha256(raw_mail(m.id)), 'hex'), ''),
                   concat_ws(' ', m.seen, m.answered, m.flagged, m.draft, m.deleted,
                       (SELECT string_agg(keyword, ' ' ORDER BY keyword) FROM keywords k WHERE k.message_id = m.id AND keyword <> '$Restored'))
               FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id JOIN accounts a ON a.id = b.account_id";
    let rows = store.client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3), row.get(4)))).collect()
}

/// Tables, indexes, sequences, views, temporary ones too.
async fn relations(store: &Store) -> BTreeSet<String> {
    let sql = "SELECT concat(n.nspname, '.', c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')";
    store.client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// A role with the printed grants. The journal is left for the restore to make.
pub async fn granted(store: &Store) -> String {
    let role = store.database.ordinary_role().await;
    let session = store.session().await;
    let read = catalog::read(&session).await.unwrap();
    let live = layout::layout_of_live(&store.profile, &read).unwrap();
    let (schemas, owners) = grants::schemas_and_owners(&session).await.unwrap();
    let made = rights::restore_sql(&live, &role);
    let grants = GrantsFor {
        role: &role,
        database: store.database.name(),
        schemas: &schemas,
        owners: &owners,
        written: &rights::written(&live, &store.profile),
        journal: made.strip_prefix(journal::DDL).unwrap(),
    };
    store.database.execute(&grants::sql(Purpose::Restore, &grants)).await;
    store.database.execute("DROP SCHEMA restante").await;
    role
}
