//! The reference store in small, driven by hand: each call is one transaction, as a mail server would make it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use restante::compare::{self, Comparison, Window};
use restante::monitor::Silent;
use restante::postgres::dsn::Dsn;
use restante::postgres::session::{Session, SessionOptions};
use restante::postgres::sql;
use restante::profile::Profile;
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayReport};
use sha2_of::sha256;
use tokio_postgres::Client;

use super::memory::MemorySource;
use super::names::Names;
use crate::server::{ServerOptions, TestDatabase, TestServer, sessions_end};

/// The server's own hash, so that the tests need no crate for it.
mod sha2_of {
    pub fn sha256(bytes: &[u8]) -> Vec<u8> {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec()
    }
}

/// A mail by its number: what it says, whether it has a Message-ID, whether its attachment is kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content(pub u32);

impl Content {
    /// Body as stored, and the attachment with its place.
    fn stored(self) -> (Vec<u8>, Option<(usize, Vec<u8>)>) {
        let number = self.0;
        // Some have no Message-ID, some share one with other content.
        let id = match number % 7 {
            0 => String::new(),
            1 => "Message-ID: <shared@example.org>\r\n".to_owned(),
            _ => format!("Message-ID: <{number}@example.org>\r\n"),
        };
        let head =
            format!("From: a@example.org\r\nDate: Mon, 11 Aug 2014 10:00:00 +0000\r\nSubject: {number}\r\n{id}\r\n");
        let mut body = head.into_bytes();
        // Over and under the limit at which values go into the payload.
        body.extend(format!("text of {number}\r\n").repeat(if number.is_multiple_of(2) { 1 } else { 60 }).into_bytes());
        let attachment = (number % 3 != 1).then(|| {
            // Shared: one mail of a dozen has the same one.
            (body.len() - 2, format!("attachment {}", number % 12).repeat(70).into_bytes())
        });
        (body, attachment)
    }

    pub fn raw(self) -> Vec<u8> {
        let (mut body, attachment) = self.stored();
        if let Some((at, bytes)) = attachment {
            let rest = body.split_off(at);
            body.extend(bytes);
            body.extend(rest);
        }
        body
    }

    fn message_id(self) -> Option<String> {
        match self.0 % 7 {
            0 => None,
            1 => Some("<shared@example.org>".to_owned()),
            _ => Some(format!("<{}@example.org>", self.0)),
        }
    }
}

pub struct Store {
    pub database: TestDatabase,
    pub client: Client,
    /// One responder's session, for work that nobody interrupts: a fresh one reads the whole catalog again.
    pub reader: Session,
    pub profile: Profile,
    names: Names,
    contents: HashMap<Vec<u8>, Content>,
}

/// A message as it is in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub mailbox: i64,
    pub name: String,
    pub content: Option<Content>,
    pub id: i64,
    pub uid: i64,
    pub uidvalidity: i64,
    pub seen: bool,
    pub restored: bool,
}

/// Contents that the tests use.
pub const CONTENTS: u32 = 60;

pub const REFERENCE: &str = include_str!("../../../src/profile/builtin/reference.toml");

impl Store {
    pub async fn new() -> Self {
        Self::of(Self::database().await).await
    }

    /// The same store with another name for its schema, each table, column and sequence. `client` alone still knows the old names, as
    /// temporary views of its session.
    pub async fn renamed() -> Self {
        let database = Self::database().await;
        let client = database.superuser().await;
        let names = Names::of(&client).await.renamed();
        names.rename(&client).await;
        let profile = Profile::parse("renamed", &names.profile(REFERENCE)).unwrap();
        Self::over(database, client, names, profile).await
    }

    async fn database() -> TestDatabase {
        static SERVER: OnceLock<Arc<TestServer>> = OnceLock::new();
        let settings = || ServerOptions { in_memory: true, ..Default::default() }.set("max_wal_size", "128MB");
        let server = SERVER.get_or_init(|| TestServer::dedicated(settings()));
        let database = server.database(None).await;
        database.execute(restante_fixtures::store::SCHEMA).await;
        database.execute(restante_fixtures::store::CHECKS).await;
        database
    }

    /// In a database that is empty.
    pub async fn made(database: TestDatabase) -> Self {
        database.execute(restante_fixtures::store::SCHEMA).await;
        database.execute(restante_fixtures::store::CHECKS).await;
        Self::of(database).await
    }

    /// In a database that has the store already.
    pub async fn of(database: TestDatabase) -> Self {
        let client = database.superuser().await;
        let names = Names::of(&client).await;
        Self::over(database, client, names, Profile::builtin("reference").unwrap().unwrap()).await
    }

    async fn over(database: TestDatabase, client: Client, names: Names, profile: Profile) -> Self {
        let reader = connect(&database, "postgres").await;
        // The sessions of restores are waited for; this one stays.
        reader.execute("naming a session", "SET application_name = 'model'").await.unwrap();
        let contents = (0..CONTENTS).map(|number| (sha256(&Content(number).raw()), Content(number))).collect();
        Self { database, client, reader, profile, names, contents }
    }

    /// When it is needed no more.
    pub async fn drop(self) {
        let name = self.database.name();
        drop(self.client);
        let admin = crate::server::connect(&self.database.server().superuser_dsn("postgres")).await;
        admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await.unwrap();
    }

    /// Lets go of the connection, so that the database can be a template.
    pub fn let_go(self) -> TestDatabase {
        self.database
    }

    /// Empty tables and fresh counters, far faster than another database.
    pub async fn clear(&self) {
        let tables = self.names.tables().join(", ");
        let sql = format!("TRUNCATE {tables} RESTART IDENTITY; DROP SCHEMA IF EXISTS restante CASCADE");
        self.client.batch_execute(&sql).await.unwrap();
    }

    pub async fn session(&self) -> Session {
        self.session_as("postgres").await
    }

    pub async fn session_as(&self, role: &str) -> Session {
        connect(&self.database, role).await
    }

    pub async fn account(&self, address: &str) -> i64 {
        let sql = "INSERT INTO accounts (address, created_at) VALUES ($1, clock_timestamp()) RETURNING id";
        self.client.query_one(sql, &[&address]).await.unwrap().get(0)
    }

    /// `minute` is the store's clock.
    pub async fn mailbox(&self, account: i64, name: &str, minute: i64) -> i64 {
        let sql = "INSERT INTO mailboxes AS b (account_id, name, uidvalidity, created_at)
                   VALUES ($1, $2, 1000 + $3::int8, '2026-01-01'::timestamptz + make_interval(mins => $3::int8::int))
                   ON CONFLICT (account_id, name) DO UPDATE SET deleted_at = NULL, created_at = excluded.created_at, uidnext = 1,
                       highestmodseq = 1, uidvalidity = b.uidvalidity + 1 WHERE b.deleted_at IS NOT NULL
                   RETURNING id";
        self.client.query_one(sql, &[&account, &name, &minute]).await.unwrap().get(0)
    }

    /// Delivers; `back` minutes lie between arrival (as a client says at APPEND) and saving.
    pub async fn deliver(&self, mailbox: i64, content: Content, minute: i64, back: i64) -> i64 {
        let (body, attachment) = content.stored();
        let size = content.raw().len() as i64;
        let id: i64 = self
            .client
            .query_one(
                "WITH b AS (UPDATE mailboxes SET uidnext = uidnext + 1, highestmodseq = highestmodseq + 1 WHERE id = $1
                            RETURNING uidnext - 1 AS uid, highestmodseq AS modseq)
                 INSERT INTO messages (mailbox_id, uid, modseq, received_at, saved_at, size, message_id, body)
                 SELECT $1, uid, modseq, '2026-01-01'::timestamptz + make_interval(mins => ($2::int8 - $3::int8)::int),
                     '2026-01-01'::timestamptz + make_interval(mins => $2::int8::int), $4, $5, $6 FROM b RETURNING id",
                &[&mailbox, &minute, &back, &size, &content.message_id(), &body],
            )
            .await
            .unwrap()
            .get(0);
        if let Some((at, bytes)) = attachment {
            let hash = sha256(&bytes);
            let (length, at) = (bytes.len() as i64, at as i64);
            let sql = "INSERT INTO attachments VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            self.client.execute(sql, &[&hash, &length, &bytes]).await.unwrap();
            let sql = "INSERT INTO message_attachments VALUES ($1, 0, $2, $3, 'a.bin', 'application/octet-stream')";
            self.client.execute(sql, &[&id, &at, &hash]).await.unwrap();
        }
        id
    }

    pub async fn seen(&self, id: i64, seen: bool) {
        let sql = "WITH b AS (UPDATE mailboxes SET highestmodseq = highestmodseq + 1
                              WHERE id = (SELECT mailbox_id FROM messages WHERE id = $1) RETURNING highestmodseq)
                   UPDATE messages SET seen = $2, recent = false, modseq = b.highestmodseq FROM b WHERE id = $1";
        self.client.execute(sql, &[&id, &seen]).await.unwrap();
    }

    pub async fn expunge(&self, id: i64, reason: &str) {
        let sql = "WITH b AS (UPDATE mailboxes SET highestmodseq = highestmodseq + 1
                              WHERE id = (SELECT mailbox_id FROM messages WHERE id = $1) RETURNING highestmodseq),
                   gone AS (DELETE FROM messages WHERE id = $1 RETURNING mailbox_id, uid, id, saved_at, size)
                   INSERT INTO expunged (mailbox_id, uid, modseq, message_id, saved_at, size, reason)
                   SELECT mailbox_id, uid, highestmodseq, id, saved_at, size, $2 FROM gone, b";
        self.client.execute(sql, &[&id, &reason]).await.unwrap();
    }

    pub async fn copy(&self, id: i64, to: i64, minute: i64) -> i64 {
        let sql = "WITH b AS (UPDATE mailboxes SET uidnext = uidnext + 1, highestmodseq = highestmodseq + 1 WHERE id = $2
                              RETURNING uidnext - 1 AS uid, highestmodseq AS modseq)
                   INSERT INTO messages (mailbox_id, uid, modseq, received_at, saved_at, size, message_id, seen, body)
                   SELECT $2, b.uid, b.modseq, received_at, '2026-01-01'::timestamptz + make_interval(mins => $3::int8::int), size,
                       message_id, seen, body FROM messages, b WHERE id = $1 RETURNING id";
        let copy: i64 = self.client.query_one(sql, &[&id, &to, &minute]).await.unwrap().get(0);
        let sql = "INSERT INTO message_attachments SELECT $2, ordinal, position, hash, filename, content_type
                   FROM message_attachments WHERE message_id = $1";
        self.client.execute(sql, &[&id, &copy]).await.unwrap();
        copy
    }

    /// Moves the very row, as stores do that keep no trace of a move: another mailbox and UID, the same key.
    pub async fn move_row(&self, id: i64, to: i64) {
        let sql =
            "WITH b AS (UPDATE mailboxes SET uidnext = uidnext + 1, highestmodseq = highestmodseq + 1 WHERE id = $2
                              RETURNING uidnext - 1 AS uid, highestmodseq AS modseq)
                   UPDATE messages SET mailbox_id = $2, uid = b.uid, modseq = b.modseq FROM b WHERE id = $1";
        self.client.execute(sql, &[&id, &to]).await.unwrap();
    }

    pub async fn delete_mailbox(&self, mailbox: i64) {
        let sql = "WITH gone AS (DELETE FROM messages WHERE mailbox_id = $1 RETURNING mailbox_id, uid, modseq, id, saved_at, size)
                   INSERT INTO expunged (mailbox_id, uid, modseq, message_id, saved_at, size, reason)
                   SELECT mailbox_id, uid, modseq + 1, id, saved_at, size, 'mailbox' FROM gone";
        self.client.execute(sql, &[&mailbox]).await.unwrap();
        self.client.execute("UPDATE mailboxes SET deleted_at = now() WHERE id = $1", &[&mailbox]).await.unwrap();
    }

    /// Rows vanish and no trigger sees it. `roll` takes the counters back to what is left.
    pub async fn lose(&self, messages: &[i64], mailboxes: &[i64], roll: bool) {
        self.client.execute("SELECT set_config('session_replication_role', 'replica', false)", &[]).await.unwrap();
        for sql in [
            "DELETE FROM message_attachments WHERE message_id = ANY($1)",
            "DELETE FROM keywords WHERE message_id = ANY($1)",
            "DELETE FROM messages WHERE id = ANY($1)",
        ] {
            self.client.execute(sql, &[&messages]).await.unwrap();
        }
        for sql in ["DELETE FROM mailbox_stats WHERE mailbox_id = ANY($1)", "DELETE FROM mailboxes WHERE id = ANY($1)"]
        {
            self.client.execute(sql, &[&mailboxes]).await.unwrap();
        }
        let mut sql =
            "DELETE FROM attachments a WHERE NOT EXISTS (SELECT FROM message_attachments p WHERE p.hash = a.hash);"
                .to_owned();
        if roll {
            for table in ["messages", "mailboxes"] {
                let sequence = sql::literal(&self.names.sequence_of(table));
                sql += &format!("SELECT setval({sequence}, greatest(1, (SELECT max(id) FROM {table})));");
            }
            sql += "UPDATE mailboxes b SET
                        uidnext = 1 + greatest((SELECT coalesce(max(uid), 0) FROM messages m WHERE m.mailbox_id = b.id),
                                               (SELECT coalesce(max(uid), 0) FROM expunged e WHERE e.mailbox_id = b.id)),
                        highestmodseq = greatest(1, (SELECT coalesce(max(modseq), 0) FROM messages m WHERE m.mailbox_id = b.id));";
        }
        sql += "UPDATE mailbox_stats s SET messages = (SELECT count(*) FROM messages m WHERE m.mailbox_id = s.mailbox_id),
                    bytes = (SELECT coalesce(sum(size), 0) FROM messages m WHERE m.mailbox_id = s.mailbox_id);
                UPDATE accounts a SET used_bytes = (SELECT coalesce(sum(size), 0) FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id
                    WHERE b.account_id = a.id);
                RESET session_replication_role";
        self.client.batch_execute(&sql).await.unwrap();
    }

    /// The last rows of the table as it lies on disk, where updated rows are too: what a truncated file loses.
    pub async fn tail(&self, rows: usize) -> Vec<i64> {
        let table = self.names.table("messages");
        let id = self.names.column("messages", "id");
        let sql = format!("SELECT {id} FROM {table} ORDER BY ctid DESC LIMIT {rows}");
        self.client.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Living messages lose their attachments.
    pub async fn lose_parts(&self, messages: &[i64]) {
        self.client.execute("DELETE FROM message_attachments WHERE message_id = ANY($1)", &[&messages]).await.unwrap();
        self.client
            .batch_execute(
                "DELETE FROM attachments a WHERE NOT EXISTS (SELECT FROM message_attachments p WHERE p.hash = a.hash)",
            )
            .await
            .unwrap();
    }

    /// Everything in the store, by the hash of the mail put together.
    pub async fn found(&self) -> Vec<Found> {
        let sql = "SELECT b.id, b.name, coalesce(raw_mail(m.id), ''), m.id, m.uid, b.uidvalidity, m.seen,
                       EXISTS (SELECT FROM keywords k WHERE k.message_id = m.id AND k.keyword = '$Restored')
                   FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id ORDER BY b.id, m.uid";
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter()
            .map(|row| Found {
                mailbox: row.get(0),
                name: row.get(1),
                content: self.contents.get(&sha256(row.get(2))).copied(),
                id: row.get(3),
                uid: row.get(4),
                uidvalidity: row.get(5),
                seen: row.get(6),
                restored: row.get(7),
            })
            .collect()
    }

    /// Counters that triggers keep, and counters of UIDs, agree with the rows.
    pub async fn check_counters(&self) {
        let sql = "SELECT
            (SELECT count(*) FROM mailboxes b LEFT JOIN mailbox_stats s ON s.mailbox_id = b.id
                WHERE (coalesce(s.messages, 0), coalesce(s.bytes, 0)) IS DISTINCT FROM
                (SELECT (count(*), coalesce(sum(size), 0)::int8) FROM messages m WHERE m.mailbox_id = b.id)),
            (SELECT count(*) FROM accounts a WHERE used_bytes IS DISTINCT FROM (SELECT coalesce(sum(size), 0)::int8
                FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id WHERE b.account_id = a.id)),
            (SELECT count(*) FROM messages m JOIN mailboxes b ON b.id = m.mailbox_id WHERE m.uid >= b.uidnext OR m.modseq > b.highestmodseq)";
        let row = self.client.query_one(sql, &[]).await.unwrap();
        let wrong: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(wrong, (0, 0, 0), "mailbox_stats, used_bytes, UIDNEXT or MODSEQ are wrong");
    }

    pub async fn compare(&self, source: &MemorySource, damaged_at: Option<i64>) -> Comparison {
        self.compare_in(&self.reader, source, damaged_at, Window::default()).await
    }

    async fn compare_in(
        &self,
        session: &Session,
        source: &MemorySource,
        damaged_at: Option<i64>,
        window: Window,
    ) -> Comparison {
        let options = compare::Options { damaged_at: damaged_at.map(clock), window };
        compare::compare(session, source, &self.profile, &options).await.unwrap()
    }

    pub async fn restore(&self, source: &MemorySource, damaged_at: Option<i64>) -> ReplayReport {
        let plan = self.plan(source, damaged_at).await;
        self.apply_in(&self.reader, source, plan, ApplyOptions::default()).await
    }

    /// Lets go of a restore after so many steps of its own, each about one answer of the server: its connection breaks wherever it is.
    /// `None`: it had come to its end before.
    pub async fn crash(&self, source: &MemorySource, damaged_at: Option<i64>, steps: usize) -> Option<ReplayReport> {
        let options = ApplyOptions { batch_messages: 1, ..Default::default() };
        let plan = self.plan(source, damaged_at).await;
        let work = self.apply(source, plan, options);
        let report = Cut { work: Box::pin(work), steps }.await;
        // The server may still be at the last statement.
        sessions_end(&self.client).await;
        report
    }

    /// A responder of his own: more than one may be at it.
    pub async fn restore_with(
        &self,
        source: &MemorySource,
        damaged_at: Option<i64>,
        plan: &PlanOptions,
        options: ApplyOptions,
    ) -> ReplayReport {
        let session = self.session().await;
        let comparison = self.compare_in(&session, source, damaged_at, plan.window).await;
        self.apply_in(&session, source, Plan::new(comparison, plan), options).await
    }

    pub async fn plan(&self, source: &MemorySource, damaged_at: Option<i64>) -> Plan {
        Plan::new(self.compare(source, damaged_at).await, &PlanOptions::default())
    }

    pub async fn apply(&self, source: &MemorySource, plan: Plan, options: ApplyOptions) -> ReplayReport {
        self.apply_in(&self.session().await, source, plan, options).await
    }

    async fn apply_in(
        &self,
        session: &Session,
        source: &MemorySource,
        plan: Plan,
        options: ApplyOptions,
    ) -> ReplayReport {
        let apply = Apply::new(plan, options);
        apply.run(session, source, &self.profile, &Silent).await.unwrap_or_else(|error| panic!("{error}"))
    }
}

async fn connect(database: &TestDatabase, role: &str) -> Session {
    let dsn = Dsn::parse(&database.dsn_as(role), &Default::default()).unwrap();
    Session::connect(&dsn, SessionOptions::default()).await.unwrap()
}

/// Work that is dropped when it has been woken so many times.
struct Cut<F> {
    work: Pin<Box<F>>,
    steps: usize,
}

impl<F: Future> Future for Cut<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(left) = self.steps.checked_sub(1) else { return Poll::Ready(None) };
        self.steps = left;
        self.work.as_mut().poll(context).map(Some)
    }
}

/// The store's clock.
pub fn clock(minute: i64) -> jiff::Timestamp {
    let begin: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    begin.checked_add(jiff::SignedDuration::from_mins(minute)).unwrap()
}
