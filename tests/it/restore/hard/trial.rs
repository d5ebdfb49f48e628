//! One hard case on one store: its script drives users, the damage and their life after it, and says what must come of that. Then the mail
//! is put back, and the store is looked at from outside: by its own rules, as its clients remember it, and by what its users see.

use std::collections::{BTreeMap, HashMap};

use restante::compare::{Comparison, Window, report};
use restante::restore::undo::{UndoOptions, undo};
use restante::restore::{ApplyOptions, PlanOptions};

use crate::restore::memory::MemorySource;
use crate::restore::naive::{self, Naive};
use crate::restore::store::{ANOTHER_WAY, Content, Found, Store, WITH_FOOTER, WRAPPED_AGAIN, clock};
use crate::restore::ways::Ways;

/// By mailbox (`a/INBOX`), sorted: each mail's number, `*` if it was read, `#keyword`; `?` is no mail any more.
pub type Mail = BTreeMap<String, Vec<String>>;

pub struct Trial<'s> {
    pub store: &'s Store,
    pub ways: Ways,
    pub plan: PlanOptions,
    /// Nothing but a restore that knows no better.
    naive: Option<Naive>,
    minute: i64,
    accounts: HashMap<String, i64>,
    damaged_at: Option<i64>,
    snapshot: Option<MemorySource>,
    /// Replays so far, the last one last.
    replays: Vec<String>,
    /// What each mailbox showed under each UIDVALIDITY and UID.
    known: HashMap<(String, i64, i64), String>,
    wanted: Mail,
    classes: Option<Vec<String>>,
    lost: Vec<i64>,
    /// A query and what it said before.
    kept: Option<(&'static str, Vec<String>)>,
    pub cannot: Option<&'static str>,
    pub defect: Option<&'static str>,
}

impl<'s> Trial<'s> {
    pub async fn begin(store: &'s Store, naive: Option<Naive>) -> Self {
        store.clear().await;
        Self {
            store,
            ways: store.ways,
            plan: PlanOptions::default(),
            naive,
            minute: 0,
            accounts: HashMap::new(),
            damaged_at: None,
            snapshot: None,
            replays: Vec::new(),
            known: HashMap::new(),
            wanted: Mail::new(),
            classes: None,
            lost: Vec::new(),
            kept: None,
            cannot: None,
            defect: None,
        }
    }

    pub fn is_naive(&self) -> bool {
        self.naive.is_some()
    }

    /// Why this cannot happen in this store.
    pub fn cannot_occur(&mut self, why: &'static str) {
        self.cannot = Some(why);
    }

    /// What is wrong still; the script wants what comes of it.
    pub fn known_defect(&mut self, what: &'static str) {
        self.defect = Some(what);
    }

    /// Mail or mailboxes that were deleted come back, because nothing that is read tells.
    pub fn deletions_are_unknown(&mut self) {
        if self.ways.logs_deletions {
            self.known_defect("mail and mailboxes that users of James deleted come back: its log of changes, which tells for a time, is not read");
        }
    }

    fn tick(&mut self) -> i64 {
        self.minute += 1;
        self.minute
    }

    /// The account `a` is `a@example.org`.
    pub async fn account(&mut self, name: &str) -> i64 {
        if let Some(id) = self.accounts.get(name) {
            return *id;
        }
        let id = self.store.account(&format!("{name}@example.org")).await;
        self.accounts.insert(name.to_owned(), id);
        id
    }

    pub async fn mailbox(&mut self, account: i64, name: &str) -> i64 {
        let minute = self.tick();
        self.store.mailbox(account, name, minute).await
    }

    /// An account with its INBOX.
    pub async fn inbox(&mut self, name: &str) -> i64 {
        let account = self.account(name).await;
        self.mailbox(account, "INBOX").await
    }

    /// Another mailbox of `a`.
    pub async fn folder(&mut self, name: &str) -> i64 {
        let account = self.account("a").await;
        self.mailbox(account, name).await
    }

    pub async fn deliver<const N: usize>(&mut self, mailbox: i64, contents: [u32; N]) -> [i64; N] {
        let mut ids = [0; N];
        for (id, content) in ids.iter_mut().zip(contents) {
            *id = self.append(mailbox, content, 0).await;
        }
        ids
    }

    /// With a date that lies so many minutes back.
    pub async fn append(&mut self, mailbox: i64, content: u32, back: i64) -> i64 {
        let minute = self.tick();
        self.store.deliver(mailbox, Content(content), minute, back).await
    }

    pub async fn copy(&mut self, id: i64, to: i64) -> i64 {
        let minute = self.tick();
        self.store.copy(id, to, minute).await
    }

    pub async fn move_to(&mut self, id: i64, to: i64) -> i64 {
        let minute = self.tick();
        self.store.move_to(id, to, minute).await
    }

    pub async fn expunge(&mut self, id: i64) {
        self.store.expunge(id, "expunge").await;
    }

    pub async fn lose_parts(&mut self, ids: &[i64]) {
        self.look().await;
        self.store.lose_parts(ids).await;
    }

    pub async fn lose_children(&mut self, ids: &[i64]) {
        self.look().await;
        self.store.lose_children(ids).await;
    }

    pub async fn snapshot(&mut self) {
        self.look().await;
        match &self.naive {
            Some(naive) => naive.snapshot(self.store).await,
            None => self.snapshot = Some(MemorySource::take(&self.store.reader).await),
        }
    }

    /// From here on the restore is asked for nothing else than what was saved or dated then.
    pub fn window_of(&mut self, minutes: std::ops::Range<i64>) {
        self.plan.window = Window { from: Some(clock(minutes.start)), to: Some(clock(minutes.end)) };
    }

    pub fn now(&self) -> i64 {
        self.minute
    }

    /// Mail is lost, and the counters go back to what is left.
    pub async fn lose(&mut self, ids: &[i64]) {
        self.lose_with(ids, &[]).await;
    }

    pub async fn lose_with(&mut self, ids: &[i64], mailboxes: &[i64]) {
        self.look().await;
        self.store.lose(ids, mailboxes, true).await;
        self.lost.extend(ids);
        let minute = self.tick();
        self.damaged_at.get_or_insert(minute);
    }

    /// Clients look at all there is.
    async fn look(&mut self) {
        for (label, found) in self.found().await {
            self.known.entry((label, found.uidvalidity, found.uid)).or_insert_with(|| content(&found));
        }
    }

    /// What lies in mailboxes that users see, by mailbox.
    async fn found(&self) -> Vec<(String, Found)> {
        let labels = self.labels().await;
        let all = self.store.found().await.into_iter();
        all.filter_map(|found| Some((labels.get(&found.mailbox)?.clone(), found))).collect()
    }

    /// `a/INBOX` of each mailbox.
    async fn labels(&self) -> HashMap<i64, String> {
        let addresses = self.store.addresses().await;
        let label = |account: i64, name: String| {
            let address = addresses.get(&account).map_or("?", |address| address.split('@').next().unwrap());
            format!("{address}/{name}")
        };
        let all = self.store.mailboxes().await.into_iter();
        all.map(|(account, mailbox, name)| (mailbox, label(account, name))).collect()
    }

    /// What users see.
    pub async fn mail(&self) -> Mail {
        let tags = self.store.tags().await;
        let mut mail = Mail::new();
        for (label, found) in self.found().await {
            let mut token = content(&found);
            if self.ways.flags {
                token += if found.seen { "*" } else { "" };
            }
            if self.ways.keywords {
                token.extend(tags.get(&found.id).into_iter().flatten().map(|tag| format!("#{tag}")));
            }
            mail.entry(label).or_default().push(token);
        }
        mail.values_mut().for_each(|mail| mail.sort());
        mail
    }

    /// `a/INBOX: 2 3* 4#work; a/Archive: 5`
    fn parse(&self, text: &str) -> Mail {
        let mut mail = Mail::new();
        for (mailbox, mails) in text.split(';').filter_map(|one| one.split_once(':')) {
            let mut mails: Vec<String> = mails.split_whitespace().map(str::to_owned).collect();
            if !self.ways.flags {
                mails.iter_mut().for_each(|mail| *mail = mail.replace('*', ""));
            }
            mails.sort();
            mail.insert(mailbox.trim().to_owned(), mails);
        }
        mail.retain(|_, mails| !mails.is_empty());
        mail
    }

    /// What users must see in the end.
    pub fn expect(&mut self, mail: &str) {
        self.wanted = self.parse(mail);
    }

    /// What users see now.
    pub async fn expect_now(&self, mail: &str) {
        assert_eq!(self.mail().await, self.parse(mail));
    }

    /// As a comparison must call what the store misses: `deleted-by-user: tombstone`.
    pub fn expect_classes(&mut self, classes: &[&str]) {
        self.classes = Some(classes.iter().map(|&class| class.to_owned()).collect());
    }

    /// All that was lost is called lost, and nothing else.
    pub fn expect_lost_alone(&mut self) {
        self.expect_lost_and(&[]);
    }

    /// The same, and these.
    pub fn expect_lost_and(&mut self, classes: &[&str]) {
        self.expect_classes(classes);
        self.classes.as_mut().unwrap().push("lost".to_owned());
    }

    /// What a query says is the same after the restore.
    pub async fn expect_kept(&mut self, sql: &'static str) {
        self.kept = Some((sql, self.ask(sql).await));
    }

    /// What only this shape of the store needs.
    pub async fn run(&self, sql: &str) {
        self.store.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    async fn ask(&self, sql: &str) -> Vec<String> {
        let rows = self.store.client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Puts back what is missing, in the middle of a script.
    pub async fn replay(&mut self) {
        self.look().await;
        if let Some(naive) = &self.naive {
            // What it cannot do is seen in what users find.
            let _ = naive.restore(self.store).await;
        } else {
            let source = self.snapshot.as_ref().unwrap();
            let options = ApplyOptions::default();
            let report = self.store.restore_with(source, self.damaged_at, &self.plan, options).await;
            assert!(report.mail.changed_columns.is_empty(), "{report:?}");
            self.replays.extend(report.replay);
        }
        self.tick();
    }

    /// Takes the last replay back.
    pub async fn undo(&mut self) {
        self.look().await;
        let layout = self.store.compare(self.snapshot.as_ref().unwrap(), None).await.layout;
        let options = UndoOptions { replay: self.replays.pop().unwrap(), ..Default::default() };
        undo(&self.store.reader, &layout, &options).await.unwrap();
    }

    /// Restores, looks, and restores again.
    pub async fn end(&mut self) {
        self.look().await;
        let before = self.highest_modseqs().await;
        let keys: Vec<i64> = self.store.found().await.iter().map(|found| found.id).collect();
        let comparison = self.store.compare(self.snapshot.as_ref().unwrap(), self.damaged_at).await;
        self.classes_are(&comparison, &keys);
        self.replay().await;
        assert_eq!(self.mail().await, self.wanted, "what users see");
        if let Some((sql, before)) = &self.kept {
            assert_eq!(&self.ask(sql).await, before, "{sql}");
        }
        self.check(&keys, &before).await;
        self.check_next_delivery().await;
        let source = self.snapshot.as_ref().unwrap();
        let again = self.store.restore_with(source, self.damaged_at, &self.plan, ApplyOptions::default()).await;
        let done = (again.replay, again.mail.restored, again.repaired_messages);
        assert_eq!(done, (None, 0, 0), "the second run had something to do");
    }

    fn classes_are(&self, comparison: &Comparison, live: &[i64]) {
        let Some(wanted) = &self.classes else { return };
        let mut wanted = wanted.clone();
        if let Some(at) = wanted.iter().position(|class| class == "lost") {
            wanted.remove(at);
            let class = |id| if live.contains(id) { "reused-id: key-issued-again" } else { "absent: no-trace" };
            wanted.extend(self.lost.iter().map(|id| class(id).to_owned()));
        }
        let name = |class| serde_json::to_value(class).unwrap().as_str().unwrap().to_owned();
        let told = comparison.leftovers.iter();
        let mut told: Vec<String> =
            told.map(|one| format!("{}: {}", name(one.class), report::reason(one.reason))).collect();
        told.sort();
        wanted.sort();
        assert_eq!(told, wanted, "what the comparison says");
    }

    /// The highest MODSEQ of each mailbox.
    async fn highest_modseqs(&self) -> HashMap<i64, i64> {
        let modseqs = self.store.modseqs().await;
        let mut highest = HashMap::new();
        for found in self.store.found().await {
            let modseq = modseqs.get(&found.id).copied().unwrap_or_default();
            let one = highest.entry(found.mailbox).or_insert(modseq);
            *one = modseq.max(*one);
        }
        highest
    }

    /// The store's own rules, and what its clients rely on. `old`: messages of before; `before`: the MODSEQs of then.
    async fn check(&self, old: &[i64], before: &HashMap<i64, i64>) {
        self.store.check_counters().await;
        let modseqs = self.store.modseqs().await;
        let mut uids = HashMap::new();
        for (label, found) in self.found().await {
            let is_new = !old.contains(&found.id);
            if self.ways.uids {
                let uid = (label, found.uidvalidity, found.uid);
                assert_eq!(uids.insert(uid.clone(), found.id), None, "one UID twice: {uid:?}");
                let known = self.known.get(&uid);
                assert!(!is_new || known.is_none(), "{found:?} came back under the UID of {known:?}");
                let other = self.ways.uidvalidity && known.is_some_and(|known| *known != content(&found));
                assert!(!other, "{found:?} stands where clients know {known:?}");
            }
            let told = modseqs.get(&found.id).zip(before.get(&found.mailbox)).is_none_or(|(now, then)| now > then);
            assert!(!is_new || told, "no client that asks for changes learns of {found:?}");
            assert!(!is_new || found.restored || !self.ways.marks, "{found:?} has no mark");
        }
    }

    /// Every mailbox takes the next mail as ever.
    async fn check_next_delivery(&mut self) {
        self.look().await;
        let labels = self.labels().await;
        // Not those of deleted accounts.
        let open = self.store.mailboxes().await.into_iter().map(|(_, mailbox, _)| mailbox);
        let open: Vec<i64> = open.filter(|mailbox| !labels[mailbox].starts_with('?')).collect();
        for (at, mailbox) in open.into_iter().enumerate() {
            // Of these no script knows, and each has a Message-ID of its own.
            let [id] = self.deliver(mailbox, [702 + 7 * at as u32]).await;
            let found = self.store.found().await;
            let new = found.iter().find(|found| found.id == id && found.mailbox == mailbox).expect("it arrived");
            let older = self.known.keys().filter(|(label, validity, _)| {
                *label == labels[&mailbox] && *validity == new.uidvalidity && self.ways.uids
            });
            let last = older.map(|(_, _, uid)| *uid).max();
            assert!(last.is_none_or(|last| new.uid > last), "the next mail got UID {} after {last:?}", new.uid);
        }
        self.store.check_counters().await;
    }

    /// For a restore that knows no better: what became of the mail.
    pub async fn end_naively(&mut self) -> String {
        self.look().await;
        let refused = self.naive.unwrap().restore(self.store).await.is_err();
        let mail = self.mail().await;
        naive::judge(&self.wanted, &mail, refused, self.is_broken().await)
    }

    /// Does the store break its own rules, refuse the next mail, or show its clients other mail than they know?
    async fn is_broken(&self) -> bool {
        let is_another = |(label, found): (String, Found)| {
            self.known.get(&(label, found.uidvalidity, found.uid)).is_some_and(|known| *known != content(&found))
        };
        let mut found = self.found().await.into_iter();
        let next = "SELECT driver.deliver(mailbox, '<next@example.org>', '', 'next', NULL, now(), now()) FROM driver.mailboxes()";
        found.any(is_another)
            || self.store.client.execute("SELECT driver.check()", &[]).await.is_err()
            || self.store.client.query(next, &[]).await.is_err()
    }
}

/// A mail's number, and how it was handed on.
fn content(found: &Found) -> String {
    let Some(Content(number)) = found.content else { return "?".to_owned() };
    let how = match number / 1000 * 1000 {
        ANOTHER_WAY => "+way",
        WRAPPED_AGAIN => "+wrapped",
        WITH_FOOTER => "+footer",
        _ => "",
    };
    format!("{}{how}", number % 1000)
}
