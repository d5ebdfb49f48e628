//! What counts, what waits for something, and what the profile says at its top.

use toml::Value;

use super::description::Kind;
use super::draft::{Confidence, Drafting, Section, table};
use super::store::At;

const COUNTS: [&str; 10] = ["used", "usage", "quota", "total", "count", "counts", "stat", "stats", "bytes", "cached"];

impl Drafting<'_> {
    pub fn derived(&mut self) {
        let (store, triggers) = (self.store, self.has_triggers());
        let parents: Vec<usize> = [Some(self.skeleton.mailbox), self.skeleton.owner.as_ref().map(|owner| owner.to)]
            .into_iter()
            .flatten()
            .collect();
        if let Some(owner) = parents.get(1).copied() {
            let sums = self.sums();
            let counted = store
                .columns(owner)
                .filter(|(at, column)| column.kind == Kind::Integer && !store.is_key(*at) && !store.refers(*at));
            for (at, column) in counted {
                let agrees = sums.iter().filter(|(key, sum)| self.owner_number(**key, at) == Some(**sum)).count();
                let telling = sums.values().filter(|sum| **sum > 0).count();
                let by_sum = telling > 1 && agrees * 5 >= sums.len() * 4;
                let by_name = store.says(at, &["used", "usage", "cur*"])
                    && store.says(at, &["bytes", "size", "used", "usage", "quota", "storage"]);
                if !by_sum && !by_name {
                    continue;
                }
                let mut section = Section::new("[[derived]]");
                let evidence = if by_sum {
                    format!("it is the sum of the sizes of the owner's mail, for {agrees} of {} owners", sums.len())
                } else {
                    "by its name".to_owned()
                };
                section.say(
                    "table",
                    self.name(owner),
                    if by_sum { Confidence::Sure } else { Confidence::Guess },
                    evidence,
                );
                section.say("column", column.name.clone(), Confidence::Likely, "");
                self.way(&mut section, triggers);
                self.sections.push(section);
            }
        }
        let tables: Vec<usize> = store
            .references
            .iter()
            .filter(|one| parents.contains(&one.to) && self.is_free(one.from) && self.counts(one))
            .map(|one| one.from)
            .collect();
        for at in tables {
            if !self.is_free(at) || self.waits(at) {
                continue;
            }
            let mut section = Section::new("[[derived]]");
            section.say("table", self.name(at), Confidence::Likely, "numbers, one row for each mailbox or account");
            self.way(&mut section, triggers);
            self.roles.insert(at, "derived");
            self.sections.push(section);
        }
        let named: Vec<usize> = store
            .tables()
            .filter(|at| self.is_free(*at) && store.table_says(*at, &COUNTS) && !self.waits(*at))
            .collect();
        for at in named {
            let mut section = Section::new("[[derived]]");
            section
                .say("table", self.name(at), Confidence::Guess, "by its name")
                .ask("is this computed from the mail?");
            self.way(&mut section, false);
            self.roles.insert(at, "derived");
            self.sections.push(section);
        }
    }

    fn way(&self, section: &mut Section, triggers: bool) {
        if triggers {
            section
                .say("trigger", true, Confidence::Guess, "the mail has triggers")
                .ask("do the triggers keep it? Else give the statement that computes it, as sql");
        } else {
            section
                .say("by_hand", "?", Confidence::Guess, "no trigger keeps it")
                .ask("how is it brought up to date: a statement (sql), or a command for a person (by_hand)?");
        }
    }

    /// The sizes of all mail of each owner, by his key.
    fn sums(&self) -> std::collections::BTreeMap<u64, i64> {
        let mut sums = std::collections::BTreeMap::new();
        let (store, skeleton) = (self.store, self.skeleton);
        let (Some(owner), Some(size)) = (&skeleton.owner, self.size) else { return sums };
        let ([of_box], [of_link], [box_key]) =
            (owner.columns.as_slice(), skeleton.link.columns.as_slice(), skeleton.link.referenced.as_slice())
        else {
            return sums;
        };
        let whole =
            [owner.to, skeleton.mailbox, skeleton.link.from, skeleton.message].iter().all(|at| store.table(*at).whole);
        if !whole {
            return sums;
        }
        let boxes = store.rows_by((skeleton.mailbox, *box_key));
        let messages = skeleton
            .to_message
            .as_ref()
            .and_then(|to| Some((*to.columns.first()?, store.rows_by((skeleton.message, *to.referenced.first()?)))));
        for row in &store.table(skeleton.link.from).sample {
            let message = match &messages {
                None => Some(row.as_slice()),
                Some((column, rows)) => row[*column].print().and_then(|print| rows.get(&print)).copied(),
            };
            let owner = row[*of_link].print().and_then(|print| boxes.get(&print)).and_then(|row| row[*of_box].print());
            if let (Some(owner), Some(size)) = (owner, message.and_then(|row| row[size.1].number())) {
                *sums.entry(owner).or_insert(0) += size;
            }
        }
        sums
    }

    fn owner_number(&self, key: u64, at: At) -> Option<i64> {
        let owner = self.skeleton.owner.as_ref()?;
        let rows = self.store.rows_by((owner.to, *owner.referenced.first()?));
        rows.get(&key)?[at.1].number()
    }

    pub fn has_triggers(&self) -> bool {
        [self.skeleton.message, self.skeleton.link.from].iter().any(|at| !self.store.table(*at).triggers.is_empty())
    }

    /// What stands above the first table: it needs to know all the others.
    pub fn top(&mut self) {
        let store = self.store;
        let mut section = Section::new("");
        section.say("profile", "draft", Confidence::Sure, "");
        section.say("schema", self.schema(), Confidence::Sure, "where the mail is");
        let mark = |at: At| Value::String(format!("{}.{}", self.name(at.0), self.column(at)));
        let first = |table: usize| store.table(table).primary_key.first().map(|at| (table, *at));
        let marks = [
            self.uid.as_ref().and_then(|uid| uid.counter).map(|counter| counter.mailbox),
            self.uid.as_ref().map(|uid| uid.content),
            self.raw,
            self.size,
            first(self.skeleton.mailbox),
        ];
        let marks: Vec<Value> = marks.into_iter().flatten().map(mark).collect();
        section.say("recognise", table([("columns", Value::Array(marks))]), Confidence::Likely, "");
        let with_triggers: Vec<String> = self
            .roles
            .keys()
            .filter(|at| !store.table(**at).triggers.is_empty())
            .map(|at| format!("{} ({})", self.name(*at), store.table(*at).triggers.join(", ")))
            .collect();
        if with_triggers.is_empty() {
            section.say("triggers", "none-expected", Confidence::Sure, "no table of the mail has one");
        } else {
            section
                .say("triggers", "keep", Confidence::Guess, format!("triggers on {}", with_triggers.join(", ")))
                .ask("they will fire: do they do what must happen when mail is put back, and nothing that sends, numbers or deletes?");
        }
        let guarded: Vec<String> =
            self.roles.keys().filter(|at| store.table(**at).row_security).map(|at| self.name(*at)).collect();
        if !guarded.is_empty() {
            section.ask(
                "tenant",
                format!("row security is on for {}: which column carries the tenant?", guarded.join(", ")),
            );
        }
        let never: Vec<usize> = store.tables().filter(|at| self.is_free(*at) && self.waits(*at)).collect();
        if !never.is_empty() {
            let list = never.iter().map(|at| Value::String(self.name(*at))).collect();
            let held =
                never.iter().filter(|at| store.columns(**at).any(|(column, _)| store.of(column).mail > 0.5)).count();
            let evidence = format!("by their names, or because they hold mail that lies in no mailbox ({held})");
            section
                .say("never", Value::Array(list), Confidence::Likely, evidence)
                .ask("what of these would be sent or done once more if it were written? Is anything of it mail?");
            for at in never {
                self.roles.insert(at, "never");
            }
        }
        let rest: Vec<String> = store.tables().filter(|at| self.is_free(*at)).map(|at| self.name(at)).collect();
        if !rest.is_empty() {
            section.ask("never", format!("no role was found for {}: queues and registries belong to never, what hangs on mail is a [[child]], settings need no line", rest.join(", ")));
        }
        self.sections.insert(0, section);
    }
}
