//! Random histories against a model in memory.
//!
//! A history delivers, flags, moves, copies, expunges, delivers again, appends with an old date, makes and deletes mailboxes; takes a
//! snapshot; loses a window, the tail, single rows or only parts, with or without its counters; goes on; restores, cut short
//! at any point, by two at once, again; undoes and redoes. After each restore every row of the store must be one that the model knows
//! alive or one lost mail that came back: nothing lost, nothing doubled, nothing resurrected.
//!
//! `RESTANTE_HISTORIES` and `RESTANTE_SEED` say how many and from where; one history alone is `RESTANTE_HISTORIES=1` with its seed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use restante::compare::Class;
use restante::restore::undo::{UndoOptions, undo};
use restante::restore::{ApplyOptions, PlanOptions};

use super::memory::MemorySource;
use super::store::{CONTENTS, Content, Found, Store};

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        if list.is_empty() { None } else { list.get(self.below(list.len())) }
    }
}

#[derive(Debug, Clone)]
struct Mail {
    mailbox: usize,
    content: Content,
    saved: i64,
    seen: bool,
    /// The snapshot has this very row, with this flag.
    held: Option<bool>,
    /// Its arrival took the place of a lost one.
    instead_of: Option<Lost>,
    restored: bool,
}

#[derive(Debug, Clone)]
struct Lost {
    mailbox: usize,
    content: Content,
    seen: bool,
    /// Either answer is right: an equal mail took its place and was expunged.
    optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Alive,
    Deleted,
    Destroyed,
}

#[derive(Debug, Clone)]
struct Mailbox {
    account: i64,
    name: String,
    id: i64,
    created: i64,
    state: State,
    held: bool,
}

struct History<'a> {
    store: &'a Store,
    random: Random,
    minute: i64,
    mailboxes: Vec<Mailbox>,
    alive: BTreeMap<i64, Mail>,
    lost: Vec<Lost>,
    /// Every (mailbox, UIDVALIDITY, UID) that anybody has seen.
    issued: HashSet<(i64, i64, i64)>,
    broken: HashSet<i64>,
    happened: BTreeSet<&'static str>,
    damaged_at: Option<i64>,
    log: Vec<String>,
}

impl<'a> History<'a> {
    async fn begin(store: &'a Store, seed: u64) -> Self {
        store.clear().await;
        let mut history = Self {
            store,
            random: Random(seed),
            minute: 0,
            mailboxes: Vec::new(),
            alive: BTreeMap::new(),
            lost: Vec::new(),
            issued: HashSet::new(),
            broken: HashSet::new(),
            happened: BTreeSet::new(),
            damaged_at: None,
            log: Vec::new(),
        };
        for address in ["a@example.org", "b@example.org"] {
            let account = store.account(address).await;
            for name in ["INBOX", "Archive"] {
                history.make_mailbox(account, name).await;
            }
        }
        history
    }

    fn tell(&mut self, what: &'static str, more: String) {
        self.happened.insert(what);
        self.log.push(format!("{:>3} {what} {more}", self.minute));
    }

    async fn make_mailbox(&mut self, account: i64, name: &str) {
        let id = self.store.mailbox(account, name, self.minute).await;
        self.tell("make mailbox", format!("{id} {name}"));
        let new =
            Mailbox { account, name: name.to_owned(), id, created: self.minute, state: State::Alive, held: false };
        self.mailboxes.push(new);
    }

    fn usable(&self) -> Vec<usize> {
        (0..self.mailboxes.len()).filter(|at| self.mailboxes[*at].state == State::Alive).collect()
    }

    fn arrive(&mut self, id: i64, mailbox: usize, content: Content, seen: bool) {
        let same = |lost: &Lost| lost.mailbox == mailbox && lost.content == content;
        let at =
            self.lost.iter().position(|lost| same(lost) && !lost.optional).or_else(|| self.lost.iter().position(same));
        let instead_of = at.map(|at| self.lost.remove(at));
        if instead_of.is_some() {
            self.happened.insert("a lost mail arrived again");
        }
        let saved = self.minute;
        self.alive.insert(id, Mail { mailbox, content, saved, seen, held: None, instead_of, restored: false });
    }

    fn forget(&mut self, id: i64) {
        if let Some(mail) = self.alive.remove(&id) {
            if mail.restored {
                self.happened.insert("expunged a restored mail");
            }
            self.lost.extend(mail.instead_of.map(|lost| Lost { optional: true, ..lost }));
        }
    }

    async fn step(&mut self) {
        // Several things happen in one minute, so that times of saving are equal.
        self.minute += i64::from(!self.random.one_in(3));
        let boxes = self.usable();
        let Some(mailbox) = self.random.pick(&boxes).copied() else { return };
        let ids: Vec<i64> = self.alive.keys().copied().filter(|id| !self.broken.contains(id)).collect();
        let some = self.random.pick(&ids).copied();
        let to = self.mailboxes[mailbox].id;
        match self.random.below(22) {
            0..=7 => {
                let content = Content(self.random.below(CONTENTS as usize) as u32);
                let back = if self.random.one_in(5) { 5000 } else { 0 };
                let id = self.store.deliver(to, content, self.minute, back).await;
                self.tell(if back > 0 { "append" } else { "deliver" }, format!("{id} {content:?} to {to}"));
                self.arrive(id, mailbox, content, false);
            }
            8 | 9 => {
                // The very mail once more: a lost one, or one that lives.
                let lost: Vec<(usize, Content)> = self
                    .lost
                    .iter()
                    .filter(|lost| self.mailboxes[lost.mailbox].state == State::Alive)
                    .map(|lost| (lost.mailbox, lost.content))
                    .collect();
                let again = self.random.pick(&lost).copied().or_else(|| {
                    let mail = &self.alive[&some?];
                    Some((mail.mailbox, mail.content))
                });
                if let Some((mailbox, content)) = again {
                    let to = self.mailboxes[mailbox].id;
                    let id = self.store.deliver(to, content, self.minute, 0).await;
                    self.tell("deliver again", format!("{id} {content:?} to {to}"));
                    self.arrive(id, mailbox, content, false);
                }
            }
            10 | 11 => {
                if let Some(id) = some {
                    let seen = self.random.one_in(2);
                    self.store.seen(id, seen).await;
                    self.tell("flag", format!("{id} {seen}"));
                    if let Some(mail) = self.alive.get_mut(&id) {
                        mail.seen = seen;
                    }
                }
            }
            12 | 13 => {
                if let Some(id) = some.filter(|id| self.account(*id) == self.mailboxes[mailbox].account) {
                    let moves = self.random.one_in(2) && self.alive[&id].mailbox != mailbox;
                    let copy = self.store.copy(id, to, self.minute).await;
                    self.tell(if moves { "move" } else { "copy" }, format!("{id} to {to} as {copy}"));
                    let (content, seen) = (self.alive[&id].content, self.alive[&id].seen);
                    if moves {
                        self.store.expunge(id, "move").await;
                        self.forget(id);
                    }
                    self.arrive(copy, mailbox, content, seen);
                }
            }
            14..=17 => {
                if let Some(id) = some {
                    self.store.expunge(id, "expunge").await;
                    self.tell("expunge", format!("{id} {:?}", self.alive[&id].content));
                    self.forget(id);
                }
            }
            18 => {
                let account = self.mailboxes[mailbox].account;
                let name = format!("folder {}", self.mailboxes.len());
                self.make_mailbox(account, &name).await;
            }
            19 if mailbox > 3 => {
                self.store.delete_mailbox(to).await;
                self.tell("delete mailbox", format!("{to}"));
                self.mailboxes[mailbox].state = State::Deleted;
                let own: Vec<i64> =
                    self.alive.iter().filter(|(_, mail)| mail.mailbox == mailbox).map(|(id, _)| *id).collect();
                own.iter().for_each(|id| self.forget(*id));
                self.lost.retain(|lost| lost.mailbox != mailbox);
            }
            20 => {
                let deleted: Vec<usize> =
                    (0..self.mailboxes.len()).filter(|at| self.mailboxes[*at].state == State::Deleted).collect();
                // Made anew: another mailbox under the old name.
                if let Some(at) = self.random.pick(&deleted).copied() {
                    let (account, name) = (self.mailboxes[at].account, self.mailboxes[at].name.clone());
                    self.mailboxes[at].name += " (gone)";
                    self.make_mailbox(account, &name).await;
                    self.happened.insert("make a deleted mailbox anew");
                }
            }
            _ => {}
        }
    }

    fn account(&self, id: i64) -> i64 {
        self.mailboxes[self.alive[&id].mailbox].account
    }

    async fn snapshot(&mut self) -> MemorySource {
        let source = MemorySource::take(&self.store.session().await).await;
        self.tell("snapshot", String::new());
        self.alive.values_mut().for_each(|mail| mail.held = Some(mail.seen));
        self.mailboxes.iter_mut().for_each(|mailbox| mailbox.held = mailbox.state == State::Alive);
        source
    }

    async fn damage(&mut self) {
        self.minute += 1;
        let roll = !self.random.one_in(4);
        let ids: Vec<i64> = self.alive.keys().copied().collect();
        let mut boxes: Vec<usize> = Vec::new();
        let (kind, doomed): (_, Vec<i64>) = match self.random.below(8) {
            0..=3 => {
                let since = self.random.below(self.minute as usize) as i64;
                if self.random.one_in(2) {
                    boxes = self
                        .usable()
                        .into_iter()
                        .filter(|at| *at > 3 && self.mailboxes[*at].created >= since)
                        .collect();
                }
                let doomed = |mail: &Mail| mail.saved >= since || boxes.contains(&mail.mailbox);
                ("lose a window", ids.iter().copied().filter(|id| doomed(&self.alive[id])).collect())
            }
            4 => ("lose the tail", ids[self.random.below(ids.len())..].to_vec()),
            5 | 6 => ("lose single rows", ids.iter().copied().filter(|_| self.random.one_in(3)).collect()),
            _ => {
                let broken: Vec<i64> = ids.into_iter().filter(|_| self.random.one_in(2)).collect();
                self.store.lose_parts(&broken).await;
                // Those that share a part with them are broken too; a part that somebody has stays.
                for found in self.store.found().await.iter().filter(|found| found.content.is_none()) {
                    self.broken.insert(found.id);
                }
                ("lose only parts", Vec::new())
            }
        };
        let gone: Vec<i64> = boxes.iter().map(|at| self.mailboxes[*at].id).collect();
        if !gone.is_empty() {
            self.happened.insert("lose mailboxes");
        }
        if kind != "lose only parts" {
            self.store.lose(&doomed, &gone, roll).await;
        }
        if roll {
            self.happened.insert("roll counters back");
        }
        self.tell(kind, format!("{doomed:?}, mailboxes {gone:?}, counters {roll}"));
        for at in boxes {
            self.mailboxes[at].state = State::Destroyed;
        }
        for id in doomed {
            let Some(mail) = self.alive.remove(&id) else { continue };
            if let Some(seen) = mail.held {
                self.lost.push(Lost { mailbox: mail.mailbox, content: mail.content, seen, optional: false });
            }
        }
        self.minute += 1;
        self.damaged_at = Some(self.minute);
    }

    /// Holds the store against the model, and takes into the model what came back.
    async fn check(&mut self, complete: bool) {
        let found = self.store.found().await;
        let ids: HashSet<i64> = found.iter().map(|found| found.id).collect();
        for (id, mail) in &self.alive {
            assert!(ids.contains(id), "message {id} is gone: {mail:?}\n{}", self.told());
        }
        for mailbox in self.mailboxes.iter_mut().filter(|mailbox| mailbox.state == State::Destroyed && mailbox.held) {
            let sql = "SELECT id FROM mailboxes WHERE account_id = $1 AND name = $2 AND deleted_at IS NULL";
            if let Some(row) = self.store.client.query_opt(sql, &[&mailbox.account, &mailbox.name]).await.unwrap() {
                mailbox.id = row.get(0);
                mailbox.state = State::Alive;
                self.happened.insert("a mailbox came back");
            }
        }
        for found in &found {
            if let Some(mail) = self.alive.get(&found.id) {
                let whole = found.content == Some(mail.content);
                // What came after the snapshot cannot be made whole from it.
                let excused = self.broken.contains(&found.id) && (!complete || mail.held.is_none());
                assert!(whole || excused, "{found:?} is not {mail:?}\n{}", self.told());
                assert_eq!(found.seen, mail.seen, "{found:?}\n{}", self.told());
            } else {
                self.came_back(found);
            }
            self.issued.insert((found.mailbox, found.uidvalidity, found.uid));
        }
        if complete {
            let alive = &self.alive;
            self.broken.retain(|id| alive.get(id).is_some_and(|mail| mail.held.is_none()));
            let lost: Vec<&Lost> = self.lost.iter().filter(|lost| !lost.optional).collect();
            let lost: Vec<_> = lost.into_iter().filter(|lost| self.mailboxes[lost.mailbox].held).collect();
            assert!(lost.is_empty(), "still lost: {lost:?}\n{}", self.told());
        }
        self.store.check_counters().await;
    }

    fn came_back(&mut self, found: &Found) {
        let content = found.content.unwrap_or_else(|| panic!("{found:?} is no mail\n{}", self.told()));
        let fits = |lost: &&Lost| lost.content == content && self.mailboxes[lost.mailbox].id == found.mailbox;
        let fitting: Vec<&Lost> = self.lost.iter().filter(fits).collect();
        let at = self
            .lost
            .iter()
            .position(|lost| fits(&lost) && !lost.optional && lost.seen == found.seen)
            .or_else(|| self.lost.iter().position(|lost| fits(&lost) && !lost.optional))
            .or_else(|| self.lost.iter().position(|lost| fits(&lost)));
        let Some(at) = at else { panic!("{found:?} is doubled or resurrected\n{}", self.told()) };
        assert!(found.restored, "{found:?} has no mark\n{}", self.told());
        let known = self.issued.contains(&(found.mailbox, found.uidvalidity, found.uid));
        assert!(!known, "{found:?} has a UID that was seen before\n{}", self.told());
        if fitting.len() == 1
            && !self.alive.values().any(|mail| mail.content == content && mail.mailbox == fitting[0].mailbox)
        {
            assert_eq!(found.seen, fitting[0].seen, "{found:?} lost its flags\n{}", self.told());
        }
        let lost = self.lost.remove(at);
        let mail = Mail {
            mailbox: lost.mailbox,
            content,
            saved: self.minute,
            seen: found.seen,
            held: None,
            instead_of: None,
            restored: true,
        };
        self.alive.insert(found.id, mail);
    }

    async fn remember_uids(&mut self) {
        for found in self.store.found().await {
            self.issued.insert((found.mailbox, found.uidvalidity, found.uid));
        }
    }

    fn told(&self) -> String {
        self.log.join("\n")
    }
}

async fn history(store: &Store, seed: u64) -> BTreeSet<&'static str> {
    let mut history = History::begin(store, seed).await;
    for _ in 0..4 + history.random.below(14) {
        history.step().await;
    }
    let snapshot = history.snapshot().await;
    for _ in 0..history.random.below(8) {
        history.step().await;
    }
    history.remember_uids().await;
    history.damage().await;
    for _ in 0..history.random.below(12) {
        history.step().await;
    }
    history.remember_uids().await;
    let damaged_at = history.damaged_at;
    let comparison = store.compare(&snapshot, damaged_at).await;
    for leftover in &comparison.leftovers {
        history.happened.insert(match leftover.class {
            Class::Absent => "class: absent",
            Class::ReusedId => "class: re-used id",
            Class::Duplicate => "class: duplicate",
            Class::DeletedByUser => "class: deleted by the user",
            Class::CannotTell => "class: cannot tell",
            Class::Orphan => "class: orphan",
        });
    }
    if !comparison.incomplete.messages.is_empty() {
        history.happened.insert("class: incomplete");
    }
    drop(comparison);
    let mut replay = None;
    if history.random.one_in(3) {
        let after = history.random.below(60_000) as u64;
        let finished = store.crash(&snapshot, damaged_at, after).await;
        history
            .tell(if finished { "restored before the crash" } else { "crash in restore" }, format!("after {after} µs"));
        history.check(false).await;
        for _ in 0..history.random.below(4) {
            history.step().await;
        }
        history.remember_uids().await;
    }
    if history.random.one_in(3) {
        let options = || ApplyOptions { batch_messages: 2, ..Default::default() };
        let plan = PlanOptions::default();
        let (one, two) = tokio::join!(
            store.restore_with(&snapshot, damaged_at, &plan, options()),
            store.restore_with(&snapshot, damaged_at, &plan, options())
        );
        history.tell("two responders", format!("{} and {}", one.mail.restored, two.mail.restored));
    } else {
        let report = store.restore(&snapshot, damaged_at).await;
        assert!(report.mail.changed_columns.is_empty(), "{report:?}");
        history.tell("restore", format!("{} {:?}", report.mail.restored, report.replay));
        replay = report.replay.filter(|_| report.mail.restored > 0);
    }
    history.check(true).await;
    for _ in 0..history.random.below(6) {
        history.step().await;
    }
    history.remember_uids().await;
    if let Some(replay) = replay.filter(|_| history.random.one_in(2)) {
        // What nobody touched goes, and is lost once more.
        let untouched = store.found().await;
        let layout = store.compare(&snapshot, damaged_at).await.layout;
        let options = UndoOptions { replay, ..Default::default() };
        let undone = undo(&store.session().await, &layout, &options).await.unwrap();
        history.tell("undo", format!("{undone:?}"));
        let left: HashMap<i64, ()> = store.found().await.iter().map(|found| (found.id, ())).collect();
        let mut gone = 0;
        for found in untouched.iter().filter(|found| !left.contains_key(&found.id)) {
            let mail = history.alive.remove(&found.id).unwrap();
            assert!(mail.restored, "undo took {mail:?}\n{}", history.told());
            gone += 1;
            history.lost.push(Lost { mailbox: mail.mailbox, content: mail.content, seen: mail.seen, optional: false });
        }
        assert_eq!(gone, undone.undone, "{}", history.told());
        for _ in 0..history.random.below(3) {
            history.step().await;
        }
        history.remember_uids().await;
        store.restore(&snapshot, damaged_at).await;
        history.tell("redo", String::new());
        history.check(true).await;
    }
    let again = store.restore(&snapshot, damaged_at).await;
    history.tell("restore again", format!("{}", again.mail.restored));
    history.check(true).await;
    let nothing = store.restore(&snapshot, damaged_at).await;
    assert_eq!((nothing.replay.clone(), nothing.mail.restored), (None, 0), "{nothing:?}\n{}", history.told());
    history.happened
}

#[test]
fn no_history_loses_doubles_or_resurrects_a_mail() {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
    };
    let (histories, seed) = (number("RESTANTE_HISTORIES", 30), number("RESTANTE_SEED", 1));
    let workers = 2.min(histories);
    let tasks: Vec<_> = (0..workers)
        .map(|worker| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let store = Store::new().await;
                    let mut held: BTreeMap<&'static str, u64> = BTreeMap::new();
                    for at in (worker..histories).step_by(workers as usize) {
                        // A panic follows the number of its seed.
                        eprintln!("history {}", seed + at);
                        for what in history(&store, seed + at).await {
                            *held.entry(what).or_default() += 1;
                        }
                    }
                    held
                })
            })
        })
        .collect();
    let mut held: BTreeMap<&'static str, u64> = BTreeMap::new();
    for task in tasks {
        for (what, count) in task.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            *held.entry(what).or_default() += count;
        }
    }
    for (what, count) in &held {
        println!("{:5.1} % {what}", *count as f64 * 100.0 / histories as f64);
    }
    if histories >= 200 {
        for (what, count) in &held {
            // A random walk may meet these less often.
            let rare =
                matches!(*what, "restored before the crash" | "a mailbox came back" | "make a deleted mailbox anew");
            assert!(rare || count * 20 >= histories, "{what} in {count} of {histories} histories only");
        }
    }
}
