//! Owners, mailboxes and links: natural keys, creation evidence, counters, what is alive.

use toml::Value;

use super::counters::Counter;
use super::description::Kind;
use super::draft::{Confidence, Drafting, Issued, Section, sentences, table};
use super::skeleton::GONE;
use super::store::At;
use crate::profile::CounterKind;

const BORN: [&str; 9] = ["created", "creation", "made", "opened", "registered", "since", "added", "joined", "inserted"];
const CHANGES: [&str; 12] = [
    "updated", "modified", "changed", "login", "seen", "last", "expires", "expunged", "deleted", "removed", "access*",
    "active",
];

impl Drafting<'_> {
    pub fn owner(&mut self) {
        let Some(owner) = self.skeleton.owner.clone() else { return };
        let mut section = Section::new("[owner]");
        let points = &self.skeleton.owner_points;
        section.say("table", self.name(owner.to), Confidence::of(points), "").evidence = sentences(points);
        if owner.referenced != self.store.table(owner.to).primary_key {
            section.say(
                "key",
                self.columns(owner.to, &owner.referenced),
                Confidence::Likely,
                "what the mailboxes refer to",
            );
        }
        let texts: Vec<At> =
            self.store.columns(owner.to).filter(|(_, column)| column.kind == Kind::Text).map(|(at, _)| at).collect();
        let unique = |at: &&At| self.store.is_unique(at.0, &[at.1]);
        let natural = texts.iter().filter(unique).max_by_key(|at| (self.store.of(**at).address * 100.0) as i64);
        match natural {
            Some(at) => {
                let evidence = if self.store.of(*at).address > 0.5 { "unique, and holds addresses" } else { "a text that is unique" };
                section.say("natural", self.list(at.0, &[at.1]), Confidence::Sure, evidence);
            }
            None => section
                .say("natural", self.list(owner.to, &owner.referenced), Confidence::Guess, "")
                .ask("no text of this table is unique: by what is an account found again when its key was issued to another?"),
        }
        self.evidence(&mut section, owner.to, "account");
        self.live(&mut section, owner.to);
        self.sections.push(section);
    }

    pub fn mailbox(&mut self) {
        let (store, skeleton) = (self.store, self.skeleton);
        let mailbox = skeleton.mailbox;
        let mut section = Section::new("[mailbox]");
        let points = &skeleton.mailbox_points;
        section.say("table", self.name(mailbox), Confidence::of(points), "").evidence = sentences(points);
        if skeleton.link.referenced != store.table(mailbox).primary_key {
            section.say(
                "key",
                self.columns(mailbox, &skeleton.link.referenced),
                Confidence::Likely,
                "what the mail refers to",
            );
        }
        match &skeleton.owner {
            Some(owner) => {
                let evidence = if owner.declared { "a foreign key" } else { "its values are all keys there" };
                let sure = if owner.declared { Confidence::Sure } else { Confidence::Likely };
                section.say("owner", self.columns(mailbox, &owner.columns), sure, evidence);
            }
            None => section.ask("owner", "no table of accounts was found: do mailboxes belong to anybody? Then add [owner], and here the column that refers to it"),
        }
        self.mailbox_natural(&mut section);
        self.evidence(&mut section, mailbox, "mailbox");
        self.live(&mut section, mailbox);
        self.uid();
        self.modseq();
        let uid = self.uid.clone();
        if let Some(uid) = &uid {
            self.say_counter(&mut section, "uid", uid);
        }
        if let Some(modseq) = self.modseq.clone() {
            self.say_counter(&mut section, "modseq", &modseq);
        }
        if uid.is_some() {
            self.uidvalidity(&mut section);
        }
        self.sections.push(section);
    }

    fn mailbox_natural(&self, section: &mut Section) {
        let (store, mailbox) = (self.store, self.skeleton.mailbox);
        let texts: Vec<At> =
            store.columns(mailbox).filter(|(_, column)| column.kind == Kind::Text).map(|(at, _)| at).collect();
        let is_text = |at: &usize| texts.contains(&(mailbox, *at));
        let owned = self.skeleton.owner.as_ref().map_or(&[][..], |owner| &owner.columns);
        let keys = store.table(mailbox).unique.iter().filter(|key| key.iter().any(is_text));
        let named = |key: &&Vec<usize>| {
            let share = |at: &usize| (store.of((mailbox, *at)).mailbox_name * 100.0) as i64;
            (
                key.iter().map(share).max(),
                key.iter().any(|at| owned.contains(at)),
                key.iter().any(|at| store.says((mailbox, *at), &["name"])),
            )
        };
        if let Some(key) = keys.max_by_key(named) {
            section.say(
                "natural",
                self.list(mailbox, key),
                Confidence::Sure,
                "the catalog makes them unique, and a name is among them",
            );
            return;
        }
        let name = texts.iter().max_by_key(|at| {
            ((store.of(**at).mailbox_name * 100.0) as i64, store.says(**at, &["name", "title", "path"]))
        });
        let mut columns = owned.to_vec();
        columns.extend(name.map(|at| at.1));
        if columns.is_empty() {
            columns.clone_from(&self.skeleton.link.referenced);
        }
        section
            .say("natural", self.list(mailbox, &columns), Confidence::Guess, "owner and name")
            .ask("nothing makes these columns unique: can a mailbox be found again by them?");
    }

    /// A time that is set when a row is made and never after.
    fn evidence(&self, section: &mut Section, of: usize, what: &str) {
        let times = self
            .store
            .columns(of)
            .filter(|(at, column)| column.not_null && column.kind.is_time() && !self.store.says(*at, &CHANGES));
        let mut times: Vec<At> = times.map(|(at, _)| at).collect();
        times.sort_by_key(|at| (!self.store.says(*at, &BORN), !self.has_now(*at)));
        if let Some(at) = times.first().filter(|at| self.store.says(**at, &BORN) || self.has_now(**at)) {
            let sure =
                if self.store.says(*at, &BORN) && self.has_now(*at) { Confidence::Sure } else { Confidence::Likely };
            section.say(
                "evidence",
                self.list(of, &[at.1]),
                sure,
                "a time that a new row gets by default, and is never NULL",
            );
        } else {
            let question = format!(
                "nothing was found that proves that a {what} of the same name is the same {what}: is there a column that is set once and never changes?"
            );
            section.ask("evidence", question);
        }
    }

    pub fn has_now(&self, at: At) -> bool {
        let default = self.store.column(at).default.as_deref().unwrap_or_default().to_lowercase();
        ["now()", "current_timestamp", "clock_timestamp", "localtimestamp"].iter().any(|now| default.contains(now))
    }

    /// A mark that a row is there no more, though it is.
    fn live(&self, section: &mut Section, of: usize) {
        let found = self.store.columns(of).find(|(at, column)| {
            !column.not_null && column.kind.is_time() && self.store.of(*at).is_mostly_null() && !self.has_now(*at)
        });
        if let Some((at, _)) = found {
            let named = self.store.says(at, &GONE);
            let sure = if named { Confidence::Sure } else { Confidence::Guess };
            let guess =
                section.say("live", format!("{} is null", self.sql(at)), sure, "a time that most rows do not have");
            if !named {
                guess.ask("is this time set when its user deletes the row, and the row kept?");
            }
            return;
        }
        let flag =
            self.store.columns(of).find(|(at, column)| column.kind == Kind::Boolean && self.store.says(*at, &GONE));
        if let Some((at, _)) = flag {
            section.say("live", format!("not {}", self.sql(at)), Confidence::Likely, "by its name");
        }
    }

    /// The number of a mail in its mailbox.
    fn uid(&mut self) {
        let (store, link) = (self.store, &self.skeleton.link);
        let table = link.from;
        let unique = |at: At| {
            let mut key = link.columns.clone();
            key.push(at.1);
            store
                .table(table)
                .unique
                .iter()
                .any(|unique| unique.len() == key.len() && unique.iter().all(|one| key.contains(one)))
        };
        let candidates = store
            .columns(table)
            .filter(|(at, column)| column.kind == Kind::Integer && !store.refers(*at) && !link.columns.contains(&at.1));
        let mut best: Option<(i32, Issued)> = None;
        for (at, _) in candidates {
            let counter = self
                .skeleton
                .counters
                .iter()
                .find(|counter| counter.content == at && self.is_uid_counter(counter))
                .copied();
            let mut points = 0;
            points += if unique(at) && !store.is_key(at) { 4 } else { 0 };
            points += if store.says(at, &["uid"]) { 3 } else { 0 };
            points += if counter.is_some() { 2 } else { 0 };
            points -= if store.says(at, &["modseq", "seq", "size", "status"]) { 3 } else { 0 };
            points -= if self.is_issued_twice(at) { 5 } else { 0 };
            if points > 2 && best.as_ref().is_none_or(|(most, _)| points > *most) {
                best = Some((points, Issued { content: at, counter }));
            }
        }
        self.uid = best.map(|(_, uid)| uid).or_else(|| {
            // The key itself serves, where mailboxes keep other numbers of IMAP.
            let key = store.table(table).primary_key.first().map(|at| (table, *at))?;
            let flagged = store
                .columns(table)
                .filter(|(at, column)| column.kind == Kind::Boolean || store.says(*at, &super::skeleton::FLAGS))
                .count()
                >= 2;
            let drawn = store.column(key).default.as_deref().is_some_and(|default| default.starts_with("nextval"));
            let apart = self.skeleton.message != table;
            (apart && flagged && drawn && store.table(table).primary_key.len() == 1)
                .then_some(Issued { content: key, counter: None })
        });
    }

    fn is_uid_counter(&self, counter: &Counter) -> bool {
        !self.store.says(counter.mailbox, &["*modseq", "validity", "uidvalidity"])
    }

    /// Does a mailbox have the number more than once?
    fn is_issued_twice(&self, at: At) -> bool {
        let mut seen = std::collections::HashSet::new();
        let own = &self.skeleton.link.columns;
        let numbers =
            self.store.table(at.0).sample.iter().filter_map(|row| row[at.1].number().map(|number| (row, number)));
        numbers
            .into_iter()
            .any(|(row, number)| !seen.insert((own.iter().map(|one| row[*one].print()).collect::<Vec<_>>(), number)))
    }

    fn modseq(&mut self) {
        let (store, table) = (self.store, self.skeleton.link.from);
        let uid = self.uid.as_ref().map(|uid| uid.content);
        let uid_counter = self.uid.as_ref().and_then(|uid| uid.counter).map(|counter| counter.mailbox);
        let mut best: Option<(i32, Issued)> = None;
        let candidates = store.columns(table).filter(|(at, column)| {
            column.kind == Kind::Integer
                && Some(*at) != uid
                && !store.refers(*at)
                && !store.is_key(*at)
                && !self.skeleton.link.columns.contains(&at.1)
        });
        for (at, column) in candidates {
            let counters = self
                .skeleton
                .counters
                .iter()
                .filter(|counter| counter.content == at && Some(counter.mailbox) != uid_counter);
            let named = |counter: &&Counter| store.says(counter.mailbox, &["*modseq", "seq"]);
            let counter = counters.max_by_key(|counter| (named(counter), (counter.share() * 1000.0) as i64)).copied();
            let mut points = 0;
            points += if store.says(at, &["modseq", "seq"]) { 3 } else { 0 };
            points += counter.map_or(0, |counter| if counter.share() >= 0.3 { 2 } else { 1 });
            points += i32::from(column.not_null);
            points -= if store.says(at, &["size", "status", "length", "bytes"]) { 3 } else { 0 };
            if points > 2 && best.as_ref().is_none_or(|(most, _)| points > *most) {
                best = Some((points, Issued { content: at, counter }));
            }
        }
        self.modseq = best.map(|(_, modseq)| modseq);
    }

    fn say_counter(&self, section: &mut Section, key: &str, issued: &Issued) {
        let kind = |kind: &str| ("kind", Value::String(kind.to_owned()));
        if let Some(counter) = issued.counter {
            let name = if counter.kind == CounterKind::Next { "next" } else { "last" };
            let value = table([kind(name), ("column", self.column(counter.mailbox).into())]);
            let named = self.store.says(counter.mailbox, &["uid*", "*modseq", "next", "last", "highest", "*uid"]);
            let (exact, mailboxes) = (counter.exact, counter.mailboxes);
            let just = if counter.kind == CounterKind::Next { "one more than" } else { "just" };
            let evidence = format!(
                "it is {just} the highest {} in {exact} of {mailboxes} mailboxes, and never lower",
                self.column(issued.content)
            );
            let sure =
                if counter.share() >= 0.3 && (named || mailboxes > 4) { Confidence::Sure } else { Confidence::Likely };
            let guess = section.say(key, value, sure, evidence);
            if !named && exact * 2 < mailboxes {
                guess.ask(format!("is this the counter, and does it hold the {name} number?"));
            }
            return;
        }
        let (column, features) = (self.store.column(issued.content), self.store.of(issued.content));
        let default = column.default.as_deref().unwrap_or_default();
        let sequences = &self.store.told.sequences;
        let drawn = sequences.iter().find(|sequence| {
            [sequence.name.name.clone(), crate::postgres::sql::identifier(&sequence.name.name)]
                .iter()
                .any(|name| default.contains(&format!("{name}'")))
        });
        let free = sequences
            .iter()
            .filter(|sequence| !sequence.drawn && sequence.issued.is_some_and(|issued| issued >= features.most))
            .min_by_key(|sequence| sequence.issued.unwrap_or(i64::MAX) - features.most);
        match drawn.or(free) {
            Some(sequence) => {
                let name = if sequence.name.schema == self.schema() {
                    sequence.name.name.clone()
                } else {
                    sequence.name.to_string()
                };
                let evidence = if drawn.is_some() {
                    format!("{} draws from it by default", column.name)
                } else {
                    format!("no column draws from it by default, and it has issued the highest {}", column.name)
                };
                let value = table([kind("global-sequence"), ("sequence", name.into())]);
                section
                    .say(key, value, Confidence::Likely, evidence)
                    .ask(format!("do all mailboxes take {} from this one sequence?", column.name));
            }
            None => section
                .say(
                    key,
                    table([kind("max-over-rows")]),
                    Confidence::Guess,
                    "no counter and no sequence keeps pace with it",
                )
                .ask(format!(
                    "how is {} issued: from a column of the mailbox, a sequence, or one more than the highest?",
                    column.name
                )),
        }
    }

    fn uidvalidity(&self, section: &mut Section) {
        let (store, mailbox) = (self.store, self.skeleton.mailbox);
        let used: Vec<At> = [&self.uid, &self.modseq]
            .into_iter()
            .flatten()
            .filter_map(|one| one.counter)
            .map(|counter| counter.mailbox)
            .collect();
        let integers = store.columns(mailbox).filter(|(at, column)| {
            column.kind == Kind::Integer && !store.refers(*at) && !store.is_key(*at) && !used.contains(at)
        });
        let integers: Vec<At> = integers.map(|(at, _)| at).collect();
        if let Some(at) = integers.iter().find(|at| store.says(**at, &["uidvalidity", "validity"])) {
            section.say("uidvalidity", table([("column", self.column(*at).into())]), Confidence::Sure, "by its name");
            return;
        }
        let large = integers
            .iter()
            .find(|at| store.of(**at).least > 100 && store.of(**at).distinct > 1 && store.of(**at).nulls == 0);
        match large {
            Some(at) => section
                .say(
                    "uidvalidity",
                    table([("column", self.column(*at).into())]),
                    Confidence::Guess,
                    "a number of the mailbox that is no counter and never NULL",
                )
                .ask("is this the UIDVALIDITY?"),
            None => section
                .say(
                    "uidvalidity",
                    table([("key", true.into())]),
                    Confidence::Guess,
                    "no column of the mailbox could be it",
                )
                .ask("does the server give out the mailbox's key as UIDVALIDITY?"),
        }
    }

    pub fn link(&mut self) {
        let (store, skeleton) = (self.store, self.skeleton);
        let link = &skeleton.link;
        let mut section = Section::new("[link]");
        let points = &skeleton.link_points;
        if let Some(message) = &skeleton.to_message {
            section.say("table", self.name(link.from), Confidence::of(points), "").evidence = sentences(points);
            if let Some(key) = self.other_key(link.from) {
                section.say(
                    "key",
                    self.columns(link.from, &key),
                    Confidence::Sure,
                    "it has no primary key, and these are unique",
                );
            }
            let sure = if message.declared { Confidence::Sure } else { Confidence::Likely };
            section.say("message", self.columns(link.from, &message.columns), sure, "refers to the message");
        }
        let sure = if link.declared { Confidence::Sure } else { Confidence::Likely };
        section.say("mailbox", self.columns(link.from, &link.columns), sure, "refers to the mailbox");
        if let Some(uid) = &self.uid {
            let evidence = if uid.counter.is_some() {
                "unique in a mailbox, and a counter keeps pace"
            } else {
                "by its name or as the key of what lies in a mailbox"
            };
            let sure = if uid.counter.is_some() { Confidence::Sure } else { Confidence::Likely };
            section.say("uid", self.column(uid.content), sure, evidence);
        }
        if let Some(modseq) = &self.modseq {
            let sure = if modseq.counter.is_some() { Confidence::Likely } else { Confidence::Guess };
            section.say("modseq", self.column(modseq.content), sure, "a number that grows with each change");
        }
        self.live(&mut section, link.from);
        if skeleton.to_message.is_some() {
            let time = store
                .columns(link.from)
                .find(|(at, column)| column.kind.is_time() && !store.says(*at, &CHANGES) && store.of(*at).nulls == 0);
            let random = store.columns(link.from).find(|(at, column)| {
                matches!(column.kind, Kind::Text | Kind::Uuid)
                    && store.of(*at).is_distinct()
                    && store.of(*at).longest > 15
                    && column.not_null
                    && !store.refers(*at)
            });
            if let Some((at, _)) = time.or(random) {
                section.say(
                    "evidence",
                    self.list(link.from, &[at.1]),
                    Confidence::Likely,
                    "set when the row was made, never NULL",
                );
            }
        }
        self.sections.push(section);
    }
}
