//! A replay under traffic: deliveries, expunges, moves, copies and flag changes on other sessions from before its first batch until after its
//! last. None of their transactions is aborted, and every mail is where the model has it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use restante::restore::{ApplyOptions, Plan, PlanOptions};
use tokio::sync::Barrier;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error};

use crate::restore::history::Random;
use crate::restore::memory::MemorySource;
use crate::restore::store::{Store, clock};

/// Sessions of users. Each has the mails whose number it divides, so that it alone knows where they are.
const WORKERS: usize = 4;
const MAILS: usize = 360;
/// What each does at least while the replay runs, and before it begins.
const STEPS: usize = 60;
const BEFORE: usize = 4;

/// Header, body and attachment; of an attachment a dozen mails have the same one, lost mails and new ones.
fn parts(number: usize) -> (Vec<u8>, Vec<u8>, Option<Vec<u8>>) {
    let header =
        format!("From: a@example.org\r\nSubject: {number}\r\nMessage-ID: <traffic-{number}@example.org>\r\n\r\n");
    let attachment = (!number.is_multiple_of(3)).then(|| format!("attachment {}", number % 12).repeat(90).into_bytes());
    (header.into_bytes(), format!("text of {number}\r\n").into_bytes(), attachment)
}

/// As the store gives it out.
fn raw(number: usize) -> Vec<u8> {
    let (header, mut body, attachment) = parts(number);
    let end = body.split_off(body.len() - 2);
    [header, body, attachment.unwrap_or_default(), end].concat()
}

fn number(raw: &[u8]) -> usize {
    let text = String::from_utf8_lossy(raw);
    text.split("Subject: ").nth(1).and_then(|rest| rest.lines().next()).unwrap().parse().unwrap()
}

/// A mail as its user knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    number: usize,
    mailbox: String,
    seen: bool,
}

/// All that users see, by link, and what of it bears the mark of a restore.
async fn found(client: &Client) -> (HashMap<String, Known>, HashSet<String>) {
    let sql = "SELECT link, content, mailbox, seen, link IN (SELECT link FROM driver.restored()) FROM driver.found()";
    let (mut all, mut marked) = (HashMap::new(), HashSet::new());
    for row in client.query(sql, &[]).await.unwrap() {
        let (link, content): (String, Vec<u8>) = (row.get(0), row.get(1));
        let number = number(&content);
        assert_eq!(content, raw(number), "mail {number} has other bytes");
        if row.get(4) {
            marked.insert(link.clone());
        }
        all.insert(link, Known { number, mailbox: row.get(2), seen: row.get(3) });
    }
    (all, marked)
}

async fn deliver(client: &Client, mailbox: &str, number: usize, minute: i64) -> Result<String, Error> {
    let sql = "SELECT driver.deliver($1, $2, $3, $4, $5, $6::text::timestamptz, $6::text::timestamptz)";
    let (header, body, attachment) = parts(number);
    let id = format!("<traffic-{number}@example.org>");
    let at = clock(minute).to_string();
    Ok(client.query_one(sql, &[&mailbox, &id, &header, &body, &attachment, &at]).await?.get(0))
}

struct Worker<'a> {
    at: usize,
    client: Client,
    random: Random,
    /// Of each account.
    mailboxes: &'a [Vec<String>],
    lost: &'a HashMap<usize, Known>,
    own: HashMap<String, Known>,
    /// Restored mails that it has found.
    came_back: HashSet<usize>,
    next: usize,
    done: BTreeMap<&'static str, usize>,
    /// Transactions that the server aborted.
    aborted: Vec<SqlState>,
}

impl Worker<'_> {
    /// Runs a transaction: the rows of its mailboxes first, in one order, as every writer of the store does.
    async fn transaction(
        &self,
        mailboxes: &[&str],
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<String, Error> {
        self.client.batch_execute("BEGIN").await?;
        let lock = "SELECT FROM mailboxes WHERE id = ANY($1::text[]::bigint[]) ORDER BY id FOR UPDATE";
        let done = async {
            self.client.execute(lock, &[&mailboxes]).await?;
            self.client.query_one(sql, values).await
        };
        let done = done.await;
        self.client.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        Ok(done?.try_get(0).unwrap_or_default())
    }

    /// Mail that came back is its user's again.
    async fn look(&mut self) {
        let (all, marked) = found(&self.client).await;
        for (link, known) in all {
            if known.number % WORKERS == self.at && !self.own.contains_key(&link) {
                assert!(marked.contains(&link), "DOUBLED: {known:?}");
                assert_eq!(self.lost.get(&known.number), Some(&known), "not as it was");
                assert!(self.came_back.insert(known.number), "DOUBLED: {known:?}");
                self.own.insert(link, known);
            }
        }
    }

    async fn step(&mut self) {
        if let Err(error) = self.try_step().await {
            self.aborted.push(error.code().unwrap_or_else(|| panic!("{error:?}")).clone());
        }
    }

    async fn try_step(&mut self) -> Result<(), Error> {
        let mut links: Vec<String> = self.own.keys().cloned().collect();
        links.sort();
        let account = self.random.below(self.mailboxes.len());
        let to = &self.mailboxes[account][self.random.below(self.mailboxes[account].len())];
        let what = self.random.below(8);
        if what < 2 || links.is_empty() {
            let number = self.next;
            let link = deliver(&self.client, to, number, 100_000 + number as i64).await?;
            self.next += WORKERS;
            self.own.insert(link, Known { number, mailbox: to.clone(), seen: false });
            *self.done.entry("deliver").or_default() += 1;
            return Ok(());
        }
        let link = links[self.random.below(links.len())].clone();
        let known = self.own[&link].clone();
        let of_account = self.mailboxes.iter().find(|mailboxes| mailboxes.contains(&known.mailbox)).unwrap();
        let other = &of_account[self.random.below(of_account.len())];
        let both = [&*known.mailbox, &**other];
        let at = clock(200_000).to_string();
        let name = match what {
            2 | 3 => {
                self.transaction(&both[..1], "SELECT driver.seen($1, $2)", &[&link, &!known.seen]).await?;
                self.own.get_mut(&link).unwrap().seen = !known.seen;
                "flag"
            }
            4 | 5 => {
                self.transaction(&both[..1], "SELECT driver.expunge($1)", &[&link]).await?;
                self.own.remove(&link);
                "expunge"
            }
            6 => {
                let sql = "SELECT driver.copy($1, $2, $3::text::timestamptz)";
                let copy = self.transaction(&both, sql, &[&link, other, &at]).await?;
                self.own.insert(copy, Known { mailbox: other.clone(), ..known });
                "copy"
            }
            _ => {
                let sql = "SELECT driver.move($1, $2, $3::text::timestamptz)";
                let moved = self.transaction(&both, sql, &[&link, other, &at]).await?;
                self.own.remove(&link);
                self.own.insert(moved, Known { mailbox: other.clone(), ..known });
                "move"
            }
        };
        *self.done.entry(name).or_default() += 1;
        Ok(())
    }
}

#[tokio::test]
async fn no_transaction_of_a_user_is_aborted_by_a_replay_and_every_mail_is_where_it_belongs() {
    let store = Store::new().await;
    let mut mailboxes: Vec<Vec<String>> = Vec::new();
    for address in ["a@example.org", "b@example.org"] {
        let account = store.account(address).await;
        let mut own = Vec::new();
        for name in ["INBOX", "Archive", "folder"] {
            own.push(store.mailbox(account, name, 0).await.to_string());
        }
        mailboxes.push(own);
    }
    let all: Vec<String> = mailboxes.concat();
    for number in 0..MAILS {
        let link = deliver(&store.client, &all[number / 2 % all.len()], number, number as i64).await.unwrap();
        if number.is_multiple_of(5) {
            store.client.execute("SELECT driver.seen($1, true)", &[&link]).await.unwrap();
        }
    }
    let snapshot = MemorySource::take(&store.reader).await;
    let (before, _) = found(&store.client).await;
    let (lost, left): (HashMap<_, _>, HashMap<_, _>) =
        before.into_iter().partition(|(_, known)| known.number >= MAILS / 3);
    let links: Vec<i64> = lost.keys().map(|link| link.parse().unwrap()).collect();
    store.lose(&links, &[], true).await;
    let lost: HashMap<usize, Known> = lost.into_values().map(|known| (known.number, known)).collect();

    let (over, ready) = (AtomicBool::new(false), Barrier::new(WORKERS + 1));
    let during = AtomicUsize::new(0);
    let work = async |at: usize| {
        let own = left.iter().filter(|(_, known)| known.number % WORKERS == at);
        let own = own.map(|(link, known)| (link.clone(), known.clone())).collect();
        let client = store.database.superuser().await;
        let (random, next) = (Random::from(at as u64), 10_000 + at);
        let (came_back, done, aborted) = (HashSet::new(), BTreeMap::new(), Vec::new());
        let (mailboxes, lost) = (&mailboxes[..], &lost);
        let mut worker = Worker { at, client, random, mailboxes, lost, own, came_back, next, done, aborted };
        for _ in 0..BEFORE {
            worker.step().await;
        }
        ready.wait().await;
        let mut steps = 0;
        while steps < STEPS || !over.load(Ordering::Relaxed) {
            if steps % 8 == 7 {
                worker.look().await;
            }
            worker.step().await;
            steps += 1;
            if !over.load(Ordering::Relaxed) {
                during.fetch_add(1, Ordering::Relaxed);
            }
        }
        worker
    };
    let replay = async {
        ready.wait().await;
        let session = store.session().await;
        let comparison = restante::compare::compare(&session, &snapshot, &store.profile, &Default::default()).await;
        let plan = Plan::new(comparison.unwrap(), &PlanOptions::default());
        // Small ones, so that each meets other traffic.
        let options = ApplyOptions { batch_messages: 5, ..Default::default() };
        let report = store.apply(&snapshot, plan, options).await;
        over.store(true, Ordering::Relaxed);
        report
    };
    let (report, one, two, three, four) = tokio::join!(replay, work(0), work(1), work(2), work(3));
    let workers = [one, two, three, four];

    assert_eq!(report.mail.restored as usize, lost.len(), "{report:?}");
    let aborted: Vec<&SqlState> = workers.iter().flat_map(|worker| &worker.aborted).collect();
    assert!(aborted.is_empty(), "transactions of users were aborted: {aborted:?}");
    assert!(during.into_inner() >= 20, "the replay was over before its users did anything");
    let (now, marked) = found(&store.client).await;
    let known: HashMap<&String, &Known> = workers.iter().flat_map(|worker| &worker.own).collect();
    let mut came_back: HashSet<usize> = workers.iter().flat_map(|worker| &worker.came_back).copied().collect();
    for (link, known) in &known {
        assert_eq!(now.get(*link), Some(*known), "LOST or CHANGED");
    }
    for (link, one) in now.iter().filter(|(link, _)| !known.contains_key(link)) {
        assert!(marked.contains(link), "RESURRECTED: {one:?}");
        assert_eq!(lost.get(&one.number), Some(one), "not as it was");
        assert!(came_back.insert(one.number), "DOUBLED: {one:?}");
    }
    assert_eq!(came_back.len(), lost.len(), "LOST");
    store.check_counters().await;
    let kinds: HashSet<&str> = workers.iter().flat_map(|worker| worker.done.keys().copied()).collect();
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    let again = store.restore(&snapshot, None).await;
    assert_eq!((&again.replay, again.mail.restored), (&None, 0), "{again:?}");
}

#[tokio::test]
async fn a_uid_issued_again_between_plan_and_restore_changes_uidvalidity_at_once() {
    let store = Store::new().await;
    let account = store.account("a@example.org").await;
    let inbox = store.mailbox(account, "INBOX", 0).await.to_string();
    let mut links = Vec::new();
    for number in 0..3 {
        links.push(deliver(&store.client, &inbox, number, number as i64).await.unwrap().parse().unwrap());
    }
    let snapshot = MemorySource::take(&store.reader).await;
    store.lose(&links[1..], &[], true).await;
    let plan = store.plan(&snapshot, None).await;
    deliver(&store.client, &inbox, 20, 50).await.unwrap();
    let report = store.apply(&snapshot, plan, ApplyOptions::default()).await;
    assert_eq!((report.mail.restored, report.counters.uidvalidity), (2, 1), "{report:?}");
    assert_eq!(store.restore(&snapshot, None).await.replay, None);
}
