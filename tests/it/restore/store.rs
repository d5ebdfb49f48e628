//! A mail store in small, driven by hand: each call is one transaction, as its mail server would make it. It speaks to all stores by the
//! functions of `fixtures/stores`, so it knows no table; without another word it is the reference store.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

use restante::compare::{self, Comparison, Window};
use restante::monitor::Silent;
use restante::postgres::dsn::Dsn;
use restante::postgres::session::{Session, SessionOptions};
use restante::profile::Profile;
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayReport};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::memory::MemorySource;
use super::names::Names;
use super::ways::{self, Ways};
use crate::server::{ServerOptions, TestDatabase, TestServer, sessions_end};
use crate::stores::{DRIVER, STORES};

/// A mail by its number: what it says, whether it has a Message-ID, whether it has an attachment. From 1,000 on it is the mail of the last
/// three digits as others hand it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Content(pub u32);

/// The same mail: it came another way; list software wrapped its text again. Another mail: list software added its footer.
pub const ANOTHER_WAY: u32 = 1000;
pub const WRAPPED_AGAIN: u32 = 2000;
pub const WITH_FOOTER: u32 = 3000;

impl Content {
    /// Header, body and attachment.
    fn parts(self) -> (Vec<u8>, Vec<u8>, Option<Vec<u8>>) {
        let (number, as_handed_on) = (self.0 % 1000, self.0 / 1000 * 1000);
        let id = self.message_id().map(|id| format!("Message-ID: {id}\r\n")).unwrap_or_default();
        let (received, encoding) = match as_handed_on {
            ANOTHER_WAY => ("Received: by backup.example.org\r\n", ""),
            WRAPPED_AGAIN => ("", "Content-Transfer-Encoding: quoted-printable\r\n"),
            _ => ("", ""),
        };
        let header = format!(
            "{received}From: a@example.org\r\nDate: Mon, 11 Aug 2014 10:00:00 +0000\r\nSubject: {number}\r\n{id}{encoding}\r\n"
        );
        // Over and under the limit at which values go into the payload.
        let mut body = format!("text of {number}\r\n").repeat(if number.is_multiple_of(2) { 1 } else { 60 });
        match as_handed_on {
            WRAPPED_AGAIN => body = body.replace("of ", "of=\r\n "),
            WITH_FOOTER => body += "--\r\nthe list\r\n",
            _ => {}
        }
        // Shared: one mail of a dozen has the same one.
        let attachment = (number % 3 != 1).then(|| format!("attachment {}", number % 12).repeat(70).into_bytes());
        (header.into_bytes(), body.into_bytes(), attachment)
    }

    /// As the reference store gives it out, with the attachment before the last two bytes of the body.
    pub fn raw(self) -> Vec<u8> {
        let (mut raw, body, attachment) = self.parts();
        raw.extend(body);
        let end = raw.split_off(raw.len() - 2);
        raw.extend(attachment.unwrap_or_default());
        raw.extend(end);
        raw
    }

    /// Some have none, some share one with other content.
    pub fn message_id(self) -> Option<String> {
        let number = self.0 % 1000;
        match number % 7 {
            0 => None,
            1 => Some("<shared@example.org>".to_owned()),
            _ => Some(format!("<{number}@example.org>")),
        }
    }
}

pub struct Store {
    pub database: TestDatabase,
    pub client: Client,
    /// One responder's session, for work that nobody interrupts: a fresh one reads the whole catalog again.
    pub reader: Session,
    pub profile: Profile,
    pub ways: Ways,
    keys: Mutex<Keys>,
    /// What `driver.found()` says of each content.
    contents: Mutex<HashMap<Vec<u8>, Content>>,
}

/// Keys of the store as numbers: what is one already, and any other by the order of appearance, below zero.
#[derive(Debug, Default)]
struct Keys {
    numbers: HashMap<String, i64>,
    texts: Vec<String>,
}

impl Keys {
    fn number(&mut self, text: &str) -> i64 {
        if let Some(number) = text.parse().ok().filter(|number| *number >= 0) {
            return number;
        }
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        self.texts.push(text.to_owned());
        let number = -(self.texts.len() as i64);
        self.numbers.insert(text.to_owned(), number);
        number
    }

    fn text(&self, number: i64) -> String {
        if number >= 0 { number.to_string() } else { self.texts[(-number - 1) as usize].clone() }
    }
}

/// A message as it is in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    pub mailbox: i64,
    pub name: String,
    pub content: Option<Content>,
    pub id: i64,
    /// 0 where the store has none.
    pub uid: i64,
    pub uidvalidity: i64,
    pub seen: bool,
    pub restored: bool,
}

/// Contents that the tests use.
pub const CONTENTS: u32 = 60;

pub const REFERENCE: &str = include_str!("../../../src/profile/builtin/reference.toml");
pub const REFERENCE_DRIVER: &str = include_str!("../../../fixtures/stores/reference/driver.sql");

impl Store {
    pub async fn new() -> Self {
        Self::made(Self::database().await).await
    }

    /// The same store with another name for its schema, each table, column and sequence. `client` alone still knows the old names, as
    /// temporary views of its session.
    pub async fn renamed() -> Self {
        let database = Self::database().await;
        Self::lay_out(&database).await;
        let client = database.superuser().await;
        let names = Names::of(&client).await.renamed();
        names.rename(&client).await;
        let profile = Profile::parse("renamed", &names.profile(REFERENCE)).unwrap();
        Self::over(database, client, profile, ways::REFERENCE).await
    }

    /// The store of another project, by its name. `None` where the server lacks what it needs.
    pub async fn named(name: &str) -> Option<Self> {
        Self::named_in(name, "TEMPLATE template0").await
    }

    /// In a database with other options.
    pub async fn named_in(name: &str, options: &str) -> Option<Self> {
        let database = Self::database_with(options).await;
        let client = database.superuser().await;
        if !STORES.iter().find(|store| store.name == name).unwrap().make(&client).await {
            return None;
        }
        let profile = Profile::builtin(name).unwrap().unwrap();
        let store = Self::over(database, client, profile, Ways::of(name)).await;
        store.clear().await;
        Some(store)
    }

    async fn database() -> TestDatabase {
        Self::database_with("TEMPLATE template0").await
    }

    async fn database_with(options: &str) -> TestDatabase {
        Self::server().database_with(options).await
    }

    /// That of all these stores.
    pub fn server() -> &'static Arc<TestServer> {
        static SERVER: OnceLock<Arc<TestServer>> = OnceLock::new();
        let settings = || ServerOptions { in_memory: true, ..Default::default() }.set("max_wal_size", "128MB");
        SERVER.get_or_init(|| TestServer::dedicated(settings()))
    }

    async fn lay_out(database: &TestDatabase) {
        for sql in [restante_fixtures::store::SCHEMA, restante_fixtures::store::CHECKS, DRIVER, REFERENCE_DRIVER] {
            database.execute(sql).await;
        }
    }

    /// In a database that is empty.
    pub async fn made(database: TestDatabase) -> Self {
        Self::lay_out(&database).await;
        Self::of(database).await
    }

    /// In a database that has the store already.
    pub async fn of(database: TestDatabase) -> Self {
        let client = database.superuser().await;
        let profile = Profile::builtin("reference").unwrap().unwrap();
        Self::over(database, client, profile, ways::REFERENCE).await
    }

    async fn over(database: TestDatabase, client: Client, profile: Profile, ways: Ways) -> Self {
        let reader = connect(&database, "postgres").await;
        // The sessions of restores are waited for; this one stays.
        reader.execute("naming a session", "SET application_name = 'model'").await.unwrap();
        // What the reference store must give out is known; of the others each content is learnt.
        let known = (0..if ways == ways::REFERENCE { CONTENTS } else { 0 }).map(Content);
        let contents = Mutex::new(known.map(|content| (content.raw(), content)).collect());
        Self { database, client, reader, profile, ways, keys: Mutex::default(), contents }
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
        self.client.batch_execute("SELECT driver.clear(); DROP SCHEMA IF EXISTS restante CASCADE").await.unwrap();
        *self.keys.lock().unwrap() = Keys::default();
    }

    fn number(&self, key: &str) -> i64 {
        self.keys.lock().unwrap().number(key)
    }

    fn key(&self, number: i64) -> String {
        self.keys.lock().unwrap().text(number)
    }

    fn all_keys(&self, numbers: &[i64]) -> Vec<String> {
        numbers.iter().map(|number| self.key(*number)).collect()
    }

    /// Runs a function that gives no key.
    async fn act(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) {
        self.client.execute(sql, values).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Runs a function that gives a key.
    async fn made_by(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> i64 {
        let row = self.client.query_one(sql, values).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        self.number(row.get(0))
    }

    /// Runs SQL over links as the store names them; no trigger sees it.
    pub async fn act_on_links(&self, sql: &str, links: &[&String]) {
        self.client.batch_execute("SET session_replication_role = replica").await.unwrap();
        self.act(sql, &[&links]).await;
        self.client.batch_execute("RESET session_replication_role").await.unwrap();
    }

    async fn links(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<i64> {
        let rows = self.client.query(sql, values).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| self.number(row.get(0))).collect()
    }

    pub async fn session(&self) -> Session {
        self.session_as("postgres").await
    }

    pub async fn session_as(&self, role: &str) -> Session {
        connect(&self.database, role).await
    }

    pub async fn account(&self, address: &str) -> i64 {
        self.made_by("SELECT driver.account($1)", &[&address]).await
    }

    /// `minute` is the store's clock.
    pub async fn mailbox(&self, account: i64, name: &str, minute: i64) -> i64 {
        let sql = "SELECT driver.mailbox($1, $2, $3::text::timestamptz)";
        self.made_by(sql, &[&self.key(account), &name, &clock(minute).to_string()]).await
    }

    /// Those that users see: account, key and name.
    pub async fn mailboxes(&self) -> Vec<(i64, i64, String)> {
        let rows = self.client.query("SELECT account, mailbox, name FROM driver.mailboxes()", &[]).await.unwrap();
        rows.iter().map(|row| (self.number(row.get(0)), self.number(row.get(1)), row.get(2))).collect()
    }

    /// Delivers; `back` minutes lie between arrival (as a client says at APPEND) and saving. A store that does not take an equal mail twice
    /// answers with the key of the one that is there.
    pub async fn deliver(&self, mailbox: i64, content: Content, minute: i64, back: i64) -> i64 {
        let (header, body, attachment) = content.parts();
        let (saved, arrival) = (clock(minute).to_string(), clock(minute - back).to_string());
        let is_new = !self.contents.lock().unwrap().values().any(|known| *known == content);
        let links = "SELECT link FROM driver.found()";
        let before = if is_new { self.links(links, &[]).await } else { Vec::new() };
        let sql = "SELECT driver.deliver($1, $2, $3, $4, $5, $6::text::timestamptz, $7::text::timestamptz)";
        let id = content.message_id();
        let id = self.made_by(sql, &[&self.key(mailbox), &id, &header, &body, &attachment, &saved, &arrival]).await;
        if is_new && !before.contains(&id) {
            let sql = "SELECT content FROM driver.found() WHERE link = $1";
            let bytes: Vec<u8> = self.client.query_one(sql, &[&self.key(id)]).await.unwrap().get(0);
            let known = *self.contents.lock().unwrap().entry(bytes).or_insert(content);
            // By the text alone a mail that others handed on is the very same.
            let is_same = known == content || !self.ways.headers && known.0 % 1000 == content.0 % 1000;
            assert!(is_same, "the store gives out the same for {content:?} and {known:?}");
        }
        id
    }

    pub async fn seen(&self, id: i64, seen: bool) {
        self.act("SELECT driver.seen($1, $2)", &[&self.key(id), &seen]).await;
    }

    /// Any reason but "expunge" is for the reference store alone.
    pub async fn expunge(&self, id: i64, reason: &str) {
        match reason {
            "expunge" => self.act("SELECT driver.expunge($1)", &[&self.key(id)]).await,
            reason => self.act("SELECT driver.expunge($1, $2)", &[&self.key(id), &reason]).await,
        }
    }

    pub async fn copy(&self, id: i64, to: i64, minute: i64) -> i64 {
        let sql = "SELECT driver.copy($1, $2, $3::text::timestamptz)";
        self.made_by(sql, &[&self.key(id), &self.key(to), &clock(minute).to_string()]).await
    }

    /// As the store moves mail: most copy it and expunge it.
    pub async fn move_to(&self, id: i64, to: i64, minute: i64) -> i64 {
        let sql = "SELECT driver.move($1, $2, $3::text::timestamptz)";
        self.made_by(sql, &[&self.key(id), &self.key(to), &clock(minute).to_string()]).await
    }

    /// Moves the very row, where `ways.moves_row`.
    pub async fn move_row(&self, id: i64, to: i64) {
        self.act("SELECT driver.move_row($1, $2)", &[&self.key(id), &self.key(to)]).await;
    }

    pub async fn delete_mailbox(&self, mailbox: i64) {
        self.act("SELECT driver.delete_mailbox($1)", &[&self.key(mailbox)]).await;
    }

    /// Rows vanish and no trigger sees it. `roll` takes the counters back to what is left.
    pub async fn lose(&self, messages: &[i64], mailboxes: &[i64], roll: bool) {
        self.client.batch_execute("SET session_replication_role = replica").await.unwrap();
        let sql = "SELECT driver.lose($1, $2)";
        self.act(sql, &[&self.all_keys(messages), &self.all_keys(mailboxes)]).await;
        self.client.batch_execute("RESET session_replication_role").await.unwrap();
        if roll {
            self.act("SELECT driver.roll_back()", &[]).await;
        }
        self.derive().await;
    }

    /// What the store derives and no trigger keeps is computed anew.
    pub async fn derive(&self) {
        for sql in self.profile.derived.iter().filter_map(|derived| derived.sql.as_deref()) {
            self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
    }

    /// The last mails as they lie on disk: what a truncated file loses.
    pub async fn tail(&self, rows: usize) -> Vec<i64> {
        self.links("SELECT link FROM driver.tail($1)", &[&(rows as i32)]).await
    }

    /// Living messages lose their attachments.
    pub async fn lose_parts(&self, messages: &[i64]) {
        self.act("SELECT driver.lose_parts($1)", &[&self.all_keys(messages)]).await;
    }

    /// Living messages lose what their users said of them.
    pub async fn lose_children(&self, messages: &[i64]) {
        self.unseen("SELECT driver.lose_children($1)", messages).await;
    }

    /// After their mailboxes.
    pub async fn lose_account(&self, account: i64) {
        self.unseen("SELECT driver.lose_accounts($1)", &[account]).await;
        self.act("SELECT driver.roll_back()", &[]).await;
    }

    /// No trigger sees it.
    async fn unseen(&self, sql: &str, keys: &[i64]) {
        self.client.batch_execute("SET session_replication_role = replica").await.unwrap();
        self.act(sql, &[&self.all_keys(keys)]).await;
        self.client.batch_execute("RESET session_replication_role").await.unwrap();
    }

    pub async fn delete_account(&self, account: i64) {
        self.act("SELECT driver.delete_account($1)", &[&self.key(account)]).await;
    }

    pub async fn rename_mailbox(&self, mailbox: i64, name: &str) {
        self.act("SELECT driver.rename_mailbox($1, $2)", &[&self.key(mailbox), &name]).await;
    }

    pub async fn tag(&self, id: i64, keyword: &str) {
        self.act("SELECT driver.tag($1, $2)", &[&self.key(id), &keyword]).await;
    }

    /// Address of each account.
    pub async fn addresses(&self) -> HashMap<i64, String> {
        let rows = self.client.query("SELECT account, address FROM driver.accounts()", &[]).await.unwrap();
        rows.iter().map(|row| (self.number(row.get(0)), row.get(1))).collect()
    }

    /// Keywords of each message, sorted, but for the mark.
    pub async fn tags(&self) -> HashMap<i64, Vec<String>> {
        let sql = "SELECT link, array_agg(keyword ORDER BY keyword) FROM driver.tags() GROUP BY link";
        let rows = self.client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (self.number(row.get(0)), row.get(1))).collect()
    }

    pub async fn modseqs(&self) -> HashMap<i64, i64> {
        let rows =
            self.client.query("SELECT link, modseq FROM driver.modseqs() WHERE modseq IS NOT NULL", &[]).await.unwrap();
        rows.iter().map(|row| (self.number(row.get(0)), row.get(1))).collect()
    }

    /// Everything that users see in the store, by mailbox and UID.
    pub async fn found(&self) -> Vec<Found> {
        let sql =
            "SELECT mailbox, name, content, link, uid, uidvalidity, seen, link IN (SELECT link FROM driver.restored())
                   FROM driver.found()";
        let rows = self.client.query(sql, &[]).await.unwrap();
        let contents = self.contents.lock().unwrap();
        let mut found: Vec<Found> = rows
            .iter()
            .map(|row| Found {
                mailbox: self.number(row.get(0)),
                name: row.get(1),
                content: row.get::<_, Option<&[u8]>>(2).and_then(|bytes| contents.get(bytes)).copied(),
                id: self.number(row.get(3)),
                uid: row.get::<_, Option<i64>>(4).unwrap_or_default(),
                uidvalidity: row.get::<_, Option<i64>>(5).unwrap_or_default(),
                seen: row.get(6),
                restored: row.get(7),
            })
            .collect();
        found.sort_by_key(|found| (found.mailbox, found.uid, found.id));
        found
    }

    /// The store's own rules: counters that triggers keep and counters of UIDs agree with the rows, and no row refers to nothing.
    pub async fn check_counters(&self) {
        self.act("SELECT driver.check()", &[]).await;
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

pub async fn connect(database: &TestDatabase, role: &str) -> Session {
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
