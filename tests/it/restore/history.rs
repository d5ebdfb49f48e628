//! One random history of a store, and what the model knows of it: what users do, a snapshot, and damage.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::memory::MemorySource;
use super::store::{CONTENTS, Content, Store};
use super::ways::Ways;

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(u64);

impl From<u64> for Random {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        if list.is_empty() { None } else { list.get(self.below(list.len())) }
    }
}

/// A mail as its user sees it: one in the model for each in the store.
#[derive(Debug, Clone)]
pub struct Mail {
    /// Its own number in the model: keys and UIDs of the store are issued again.
    pub serial: u64,
    pub mailbox: usize,
    pub content: Content,
    pub saved: i64,
    pub seen: bool,
    /// The snapshot has this very row: in this mailbox, with this flag.
    pub held: Option<(usize, bool)>,
    /// Its arrival took the place of a lost one.
    pub instead_of: Option<Lost>,
    /// The run of a restore that put it back.
    pub restored: Option<u32>,
    /// Either answer was right when it came back.
    pub optional: bool,
    /// Its user did something to it since.
    pub touched: bool,
}

#[derive(Debug, Clone)]
pub struct Lost {
    pub mailbox: usize,
    pub content: Content,
    pub seen: bool,
    /// Either answer is right: an equal mail took its place and was expunged, or nobody can know.
    pub optional: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Alive,
    Deleted,
    /// Deleted, and its user made another one under its name.
    Replaced,
    Destroyed,
}

#[derive(Debug, Clone)]
pub struct Mailbox {
    pub account: i64,
    pub name: String,
    pub id: i64,
    pub state: State,
    pub held: bool,
    /// Made anew by its user when it was lost.
    remade: bool,
    /// What was lost from it when it was deleted after that.
    dropped: Vec<Lost>,
}

/// A UID as a client knows it: mailbox, UIDVALIDITY, UID.
pub type Uid = (i64, i64, i64);

pub struct History<'a> {
    pub store: &'a Store,
    pub random: Random,
    pub minute: i64,
    pub mailboxes: Vec<Mailbox>,
    pub alive: BTreeMap<i64, Mail>,
    pub lost: Vec<Lost>,
    /// What the snapshot has and its user took away since: lost for all that can be told, once the trace of that is gone.
    buried: Vec<Lost>,
    /// The serial of the mail under which each UID was seen first.
    pub issued: HashMap<Uid, u64>,
    /// Those that the snapshot may know of.
    pub issued_before: HashMap<Uid, u64>,
    pub broken: HashSet<i64>,
    pub happened: BTreeSet<&'static str>,
    pub damaged_at: Option<i64>,
    /// Runs of a restore so far.
    pub runs: u32,
    serials: u64,
    log: Vec<String>,
}

impl<'a> History<'a> {
    pub async fn begin(store: &'a Store, seed: u64) -> Self {
        store.clear().await;
        let mut history = Self {
            store,
            random: Random(seed),
            minute: 0,
            mailboxes: Vec::new(),
            alive: BTreeMap::new(),
            lost: Vec::new(),
            buried: Vec::new(),
            issued: HashMap::new(),
            issued_before: HashMap::new(),
            broken: HashSet::new(),
            happened: BTreeSet::new(),
            damaged_at: None,
            runs: 0,
            serials: 0,
            log: Vec::new(),
        };
        for address in ["a@example.org", "b@example.org"] {
            let account = store.account(address).await;
            for name in ["INBOX", "Archive"] {
                history.make_mailbox(account, name).await;
            }
        }
        for account in [history.mailboxes[0].account, history.mailboxes[2].account] {
            if history.random.one_in(2) {
                history.make_mailbox(account, "folder").await;
            }
        }
        history
    }

    pub fn tell(&mut self, what: &'static str, more: String) {
        self.happened.insert(what);
        self.log.push(format!("{:>3} {what} {more}", self.minute));
    }

    /// The whole story, for whoever must find out what went wrong.
    pub fn told(&self) -> String {
        self.log.join("\n")
    }

    pub fn ways(&self) -> Ways {
        self.store.ways
    }

    async fn make_mailbox(&mut self, account: i64, name: &str) {
        let id = self.store.mailbox(account, name, self.minute).await;
        self.tell("make mailbox", format!("{id} {name}"));
        let (name, state) = (name.to_owned(), State::Alive);
        self.mailboxes.push(Mailbox { account, name, id, state, held: false, remade: false, dropped: Vec::new() });
    }

    fn in_state(&self, state: State) -> Vec<usize> {
        (0..self.mailboxes.len()).filter(|at| self.mailboxes[*at].state == state).collect()
    }

    pub fn serial(&mut self) -> u64 {
        self.serials += 1;
        self.serials
    }

    /// `dated`: the store can tell that it came just now.
    fn arrive(&mut self, id: i64, mailbox: usize, content: Content, seen: bool, dated: bool) {
        // The key of one that is there already: the store did not take another one.
        if self.alive.contains_key(&id) {
            assert!(!self.ways().equal_mail_twice, "message {id} arrived twice\n{}", self.told());
            return;
        }
        let instead_of = self.stand_in(mailbox, content, dated);
        let (saved, serial) = (self.minute, self.serial());
        let (held, restored, optional, touched) = (None, None, false, false);
        let mail = Mail { serial, mailbox, content, saved, seen, held, instead_of, restored, optional, touched };
        self.alive.insert(id, mail);
    }

    /// The lost mail whose place an equal one takes. Where nobody can tell whether it does, either answer is right from now on.
    fn stand_in(&mut self, mailbox: usize, content: Content, dated: bool) -> Option<Lost> {
        let same = |lost: &Lost| lost.mailbox == mailbox && lost.content == content;
        let at = self
            .lost
            .iter()
            .position(|lost| same(lost) && !lost.optional)
            .or_else(|| self.lost.iter().position(same))?;
        self.happened.insert("a lost mail arrived again");
        // Before the damage it stood beside the other one.
        let is_other = self.damaged_at.is_none() || self.ways().makes_message_ids && content.message_id().is_none();
        if is_other || !dated {
            self.lost[at].optional = true;
            return None;
        }
        Some(self.lost.remove(at))
    }

    /// The user took it away; `traced`: and the store tells.
    fn forget(&mut self, id: i64, traced: bool) {
        if let Some(mail) = self.alive.remove(&id) {
            if mail.restored.is_some() {
                self.happened.insert("expunge a restored mail");
            }
            self.lost.extend(mail.instead_of.map(|lost| Lost { optional: true, ..lost }));
            if let Some((mailbox, seen)) = mail.held {
                let gone = Lost { mailbox, content: mail.content, seen, optional: true };
                if traced { &mut self.buried } else { &mut self.lost }.push(gone);
            }
        }
    }

    /// The traces that a mailbox had of what was taken from it are gone.
    fn unbury(&mut self, mailbox: usize) {
        let (gone, buried) = std::mem::take(&mut self.buried).into_iter().partition(|lost| lost.mailbox == mailbox);
        self.buried = buried;
        self.lost.extend::<Vec<Lost>>(gone);
    }

    /// Where either is missing, a deleted mailbox that is made anew is the old one for all that can be told.
    fn knows_deleted_mailboxes(&self) -> bool {
        self.ways().deleted_mailboxes && self.ways().mailboxes_told_apart
    }

    pub async fn steps(&mut self, many: Range<usize>) {
        for _ in 0..many.start + self.random.below(many.len()) {
            self.step().await;
        }
    }

    /// A user or a sender does something.
    async fn step(&mut self) {
        // Several things happen in one minute, so that times of saving are equal.
        self.minute += i64::from(!self.random.one_in(3));
        let boxes = self.in_state(State::Alive);
        let Some(mailbox) = self.random.pick(&boxes).copied() else { return };
        let ids: Vec<i64> = self.alive.keys().copied().filter(|id| !self.broken.contains(id)).collect();
        let some = self.random.pick(&ids).copied();
        match self.random.below(28) {
            0..=7 => {
                let content = Content(self.random.below(CONTENTS as usize) as u32);
                let back = if self.random.one_in(5) { 5000 } else { 0 };
                self.deliver(if back > 0 { "append with an old date" } else { "deliver" }, mailbox, content, back)
                    .await;
            }
            8..=10 => self.deliver_again(some).await,
            11 | 12 => {
                if let Some(id) = some {
                    // To what it is already means a change in some stores and none in others.
                    let seen = !self.alive[&id].seen;
                    self.store.seen(id, seen).await;
                    self.tell("flag", format!("{id} {seen}"));
                    if let Some(mail) = self.alive.get_mut(&id).filter(|_| self.store.ways.flags) {
                        (mail.seen, mail.touched) = (seen, true);
                    }
                }
            }
            13..=15 => {
                if let Some(id) = some.filter(|id| self.account(*id) == self.mailboxes[mailbox].account) {
                    self.copy_or_move(id, mailbox).await;
                }
            }
            16..=19 => {
                if let Some(id) = some {
                    self.store.expunge(id, "expunge").await;
                    self.tell("expunge", format!("{id} {:?}", self.alive[&id].content));
                    self.forget(id, self.ways().tombstones);
                }
            }
            20 | 21 => {
                let account = self.mailboxes[mailbox].account;
                let name = format!("folder {}", self.mailboxes.len());
                self.make_mailbox(account, &name).await;
            }
            22 | 23 => {
                // Rather one whose mail was lost: what its user wanted gone must not come back.
                let of_lost: Vec<usize> = self.lost.iter().map(|lost| lost.mailbox).collect();
                let of_lost: Vec<usize> = of_lost.into_iter().filter(|at| boxes.contains(at)).collect();
                let mailbox = self.random.pick(&of_lost).copied().unwrap_or(mailbox);
                // Archives and folders: not the inboxes.
                if mailbox > 3 || mailbox % 2 == 1 {
                    self.delete_mailbox(mailbox).await;
                }
            }
            24 => {
                // Another mailbox under the old name.
                if let Some(at) = self.random.pick(&self.in_state(State::Deleted)).copied() {
                    self.make_deleted_mailbox(at).await;
                }
            }
            _ => self.make_lost_mailbox().await,
        }
    }

    async fn deliver(&mut self, what: &'static str, mailbox: usize, content: Content, back: i64) {
        let to = self.mailboxes[mailbox].id;
        let id = self.store.deliver(to, content, self.minute, back).await;
        self.tell(what, format!("{id} {content:?} to {to}"));
        self.arrive(id, mailbox, content, false, self.ways().saved || back == 0);
    }

    /// The very mail once more: a lost one, or one that lives.
    async fn deliver_again(&mut self, some: Option<i64>) {
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
        let Some((mailbox, content)) = again else { return };
        // Its sender sends it again, and a filter files it elsewhere: no answer to where the lost one is.
        if self.random.one_in(2) {
            let account = self.mailboxes[mailbox].account;
            let others = self.in_state(State::Alive).into_iter().filter(|at| *at != mailbox);
            let others: Vec<usize> = others.filter(|at| self.mailboxes[*at].account == account).collect();
            if let Some(other) = self.random.pick(&others).copied() {
                return self.deliver("deliver again elsewhere", other, content, 0).await;
            }
        }
        self.deliver("deliver again", mailbox, content, 0).await;
    }

    async fn copy_or_move(&mut self, id: i64, mailbox: usize) {
        let to = self.mailboxes[mailbox].id;
        let elsewhere = self.alive[&id].mailbox != mailbox;
        match self.random.below(4) {
            0 if elsewhere && self.ways().moves_row => {
                self.store.move_row(id, to).await;
                self.row_moved(id, mailbox);
            }
            1 if elsewhere => {
                let moved = self.store.move_to(id, to, self.minute).await;
                if moved == id {
                    return self.row_moved(id, mailbox);
                }
                self.tell("move", format!("{id} to {to} as {moved}"));
                let (content, seen) = (self.alive[&id].content, self.alive[&id].seen);
                self.forget(id, self.ways().tombstones);
                self.arrive(moved, mailbox, content, seen, self.ways().saved);
            }
            _ if elsewhere || self.ways().copies_within => {
                let copy = self.store.copy(id, to, self.minute).await;
                self.tell("copy", format!("{id} to {to} as {copy}"));
                let (content, seen) = (self.alive[&id].content, self.alive[&id].seen);
                self.arrive(copy, mailbox, content, seen, self.ways().saved);
            }
            _ => {}
        }
    }

    fn row_moved(&mut self, id: i64, mailbox: usize) {
        self.tell("move the row itself", format!("{id} to {}", self.mailboxes[mailbox].id));
        self.happened.insert("move");
        let Some(mut mail) = self.alive.remove(&id) else { return };
        self.lost.extend(mail.instead_of.take().map(|lost| Lost { optional: true, ..lost }));
        // One that was there before the damage, or was put back, stands for itself alone.
        if mail.restored.is_none() && self.damaged_at.is_some_and(|damage| mail.saved >= damage) {
            mail.instead_of = self.stand_in(mailbox, mail.content, self.ways().saved);
        }
        (mail.mailbox, mail.touched) = (mailbox, true);
        self.alive.insert(id, mail);
    }

    async fn delete_mailbox(&mut self, mailbox: usize) {
        let own: Vec<i64> = self.alive.iter().filter(|(_, mail)| mail.mailbox == mailbox).map(|(id, _)| *id).collect();
        // Rows that nobody sees would be found to miss their parts.
        if self.ways().checks_parts && own.iter().any(|id| self.broken.contains(id)) {
            return;
        }
        let id = self.mailboxes[mailbox].id;
        self.store.delete_mailbox(id).await;
        self.tell("delete mailbox", format!("{id}"));
        self.mailboxes[mailbox].state = State::Deleted;
        let traced = self.ways().deleted_mailboxes;
        own.iter().for_each(|id| self.forget(*id, traced));
        if !traced {
            self.unbury(mailbox);
        }
        if !self.knows_deleted_mailboxes() {
            self.lost.iter_mut().filter(|lost| lost.mailbox == mailbox).for_each(|lost| lost.optional = true);
            return;
        }
        let (dropped, lost) = std::mem::take(&mut self.lost).into_iter().partition(|lost| lost.mailbox == mailbox);
        self.lost = lost;
        if self.mailboxes[mailbox].remade {
            self.mailboxes[mailbox].dropped = dropped;
        }
    }

    /// The user makes another mailbox under the name of a deleted one.
    async fn make_deleted_mailbox(&mut self, at: usize) {
        let (account, name) = (self.mailboxes[at].account, self.mailboxes[at].name.clone());
        self.happened.insert("make a deleted mailbox anew");
        if !self.knows_deleted_mailboxes() {
            let id = self.store.mailbox(account, &name, self.minute).await;
            self.tell("make mailbox", format!("{id} {name}, which was deleted"));
            (self.mailboxes[at].id, self.mailboxes[at].state) = (id, State::Alive);
            return;
        }
        self.mailboxes[at].state = State::Replaced;
        self.make_mailbox(account, &name).await;
        // In its row, or in one of its own.
        let anew = self.mailboxes.len() - 1;
        let mailbox = if self.mailboxes[anew].id == self.mailboxes[at].id { at } else { anew };
        // A lost one that was made anew, deleted, and made anew in its row: as if it had been made anew once.
        let dropped = std::mem::take(&mut self.mailboxes[at].dropped).into_iter();
        self.lost.extend(dropped.map(|lost| Lost { optional: true, mailbox, ..lost }));
    }

    /// The user misses a mailbox and makes one of its name before anybody restores.
    async fn make_lost_mailbox(&mut self) {
        let Some(at) = self.random.pick(&self.in_state(State::Destroyed)).copied() else { return };
        let (account, name) = (self.mailboxes[at].account, self.mailboxes[at].name.clone());
        let id = self.store.mailbox(account, &name, self.minute).await;
        self.tell("make a lost mailbox anew", format!("{id} {name}"));
        // The key was issued again: then it looks like one that was deleted and made anew in its own row.
        if id == self.mailboxes[at].id {
            self.lost.iter_mut().filter(|lost| lost.mailbox == at).for_each(|lost| lost.optional = true);
        }
        (self.mailboxes[at].id, self.mailboxes[at].state, self.mailboxes[at].remade) = (id, State::Alive, true);
    }

    fn account(&self, id: i64) -> i64 {
        self.mailboxes[self.alive[&id].mailbox].account
    }

    pub async fn snapshot(&mut self) -> MemorySource {
        let source = MemorySource::take(&self.store.reader).await;
        self.tell("snapshot", String::new());
        self.alive.values_mut().for_each(|mail| mail.held = Some((mail.mailbox, mail.seen)));
        self.mailboxes.iter_mut().for_each(|mailbox| mailbox.held = mailbox.state == State::Alive);
        self.remember_uids().await;
        self.issued_before = self.issued.clone();
        source
    }

    pub async fn damage(&mut self) {
        self.minute += 1;
        let mut roll = !self.random.one_in(4);
        let ids: Vec<i64> = self.alive.keys().copied().collect();
        let mut boxes: Vec<usize> = Vec::new();
        let (kind, doomed): (_, Vec<i64>) = match self.random.below(14) {
            0..=6 => {
                let since = self.random.below(self.minute as usize) as i64;
                // With it some folders as a whole, whatever is in them.
                if self.random.one_in(2) {
                    let folders = self.in_state(State::Alive).into_iter().filter(|at| *at > 3);
                    boxes = folders.filter(|_| !self.random.one_in(3)).collect();
                }
                let doomed = |mail: &Mail| mail.saved >= since || boxes.contains(&mail.mailbox);
                ("lose a window", ids.iter().copied().filter(|id| doomed(&self.alive[id])).collect())
            }
            7 | 8 => {
                let rows = self.random.below(ids.len() + 1);
                ("lose the tail blocks", self.store.tail(rows).await)
            }
            9..=11 => ("lose single rows", ids.iter().copied().filter(|_| self.random.one_in(3)).collect()),
            _ => {
                let broken: Vec<i64> = ids.into_iter().filter(|_| self.random.one_in(2)).collect();
                self.store.lose_parts(&broken).await;
                // Those that share a part with them are broken too; a part that somebody has stays.
                for found in self.store.found().await.iter().filter(|found| found.content.is_none()) {
                    self.broken.insert(found.id);
                }
                roll = false;
                ("lose only the parts", Vec::new())
            }
        };
        let gone: Vec<i64> = boxes.iter().map(|at| self.mailboxes[*at].id).collect();
        if !gone.is_empty() {
            self.happened.insert("lose mailboxes");
        }
        if kind != "lose only the parts" {
            self.store.lose(&doomed, &gone, roll).await;
        }
        if roll {
            self.happened.insert("roll sequences back");
        }
        self.tell(kind, format!("{doomed:?}, mailboxes {gone:?}, counters {roll}"));
        for at in boxes {
            self.mailboxes[at].state = State::Destroyed;
            if !self.ways().tombstones_stay {
                self.unbury(at);
            }
        }
        for id in doomed {
            let Some(mail) = self.alive.remove(&id) else { continue };
            // Where the snapshot had it: nothing is left to tell of a move since.
            if let Some((mailbox, seen)) = mail.held
                && !matches!(self.mailboxes[mailbox].state, State::Deleted | State::Replaced)
            {
                self.lost.push(Lost { mailbox, content: mail.content, seen, optional: false });
            }
        }
        self.minute += 1;
        self.damaged_at = Some(self.minute);
    }
}
