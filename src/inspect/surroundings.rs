//! What hangs on the mail: flags, keywords, dictionaries, children; and what remembers deletions, counts, or waits for something.

use std::collections::HashSet;

use toml::Value;

use super::description::Kind;
use super::draft::{Confidence, Drafting, Section, table};
use super::skeleton::{FLAGS, GONE, ON_ITS_WAY};
use super::store::{At, Reference};

const COUNTS: [&str; 10] = ["used", "usage", "quota", "total", "count", "counts", "stat", "stats", "bytes", "cached"];

impl Drafting<'_> {
    pub fn flags(&mut self) {
        let (store, link) = (self.store, self.skeleton.link.from);
        let mut section = Section::new("[flags]");
        let flags = self.flag_columns(link);
        let apart = if flags.iter().any(|at| store.says(*at, &FLAGS)) { None } else { self.flags_apart() };
        let keywords = self.keywords();
        if let Some(reference) = &apart {
            let flags = self.flag_columns(reference.from);
            section.say(
                "table",
                self.name(reference.from),
                Confidence::Likely,
                "one row for each message, with columns named as flags",
            );
            section.say(
                "columns",
                self.list(reference.from, &flags.iter().map(|at| at.1).collect::<Vec<_>>()),
                Confidence::Likely,
                "by their names",
            );
            section.ask("set", "which values take \\Recent and \\Deleted off a mail that is put back?");
        } else if !flags.is_empty() {
            let named = flags.iter().filter(|at| store.says(**at, &FLAGS)).count();
            let sure = if named == flags.len() { Confidence::Sure } else { Confidence::Likely };
            let guess = section.say(
                "columns",
                self.list(link, &flags.iter().map(|at| at.1).collect::<Vec<_>>()),
                sure,
                format!("yes or no, {named} of {} named as flags", flags.len()),
            );
            if named == 0 {
                guess.ask("are these flags, which may change without making another mail?");
            }
            let off: Vec<&At> = flags.iter().filter(|at| store.says(**at, &["deleted", "recent"])).collect();
            if off.is_empty() {
                section.ask("set", "which of them is \\Recent and which \\Deleted? A mail that is put back has neither: { recent = \"false\" }");
            } else {
                let no = |at: &At| if store.column(*at).kind == Kind::Boolean { "false" } else { "0" };
                let set = off.iter().map(|at| (self.column(**at), Value::String(no(at).to_owned()))).collect();
                section.say(
                    "set",
                    Value::Table(set),
                    Confidence::Likely,
                    "a mail that is put back is neither \\Recent nor \\Deleted",
                );
            }
        }
        if let Some((reference, column, sure)) = keywords {
            let pairs = [
                ("table", self.name(reference.from).into()),
                ("column", self.column(column).into()),
                ("of", self.columns(reference.from, &reference.columns)),
                ("restored", "$Restored".into()),
            ];
            section.say("keywords", table(pairs), sure, "a short text for each message, several times");
            self.roles.insert(reference.from, "keywords");
        }
        let states = store.columns(link).filter(|(at, column)| {
            column.kind == Kind::Integer && !flags.contains(at) && store.says(*at, &["status", "state", "flag"])
        });
        let states: Vec<String> = states.map(|(_, column)| column.name.clone()).collect();
        if !states.is_empty() {
            section.ask("columns", format!("{}: a state or flags in a number. Does it say which rows are deleted (then [link] live and a [[tombstone]] predicate), does it belong to the flags?", states.join(", ")));
        }
        if !section.guesses.is_empty() {
            self.sections.push(section);
        }
        if let Some(reference) = apart {
            self.child(&reference, "message");
        }
    }

    /// Booleans, and numbers or lists that are named as flags.
    fn flag_columns(&self, of: usize) -> Vec<At> {
        let columns = self.store.columns(of).filter(|(at, column)| {
            let two = self.store.of(*at).values > 0 && self.store.of(*at).least >= 0 && self.store.of(*at).most <= 1;
            let named = self.store.says(*at, &FLAGS);
            let listed = column.kind == Kind::Other
                && (column.type_name.ends_with("[]") || column.type_name.starts_with("json"));
            let fits = match column.kind {
                Kind::Boolean => true,
                Kind::Integer => named && (two || words_end_in_flag(&column.name)),
                _ => named && listed,
            };
            fits && !self.store.refers(*at)
        });
        columns.map(|(at, _)| at).collect()
    }

    /// A table with one row for each message that has its flags.
    fn flags_apart(&self) -> Option<Reference> {
        let mail = [self.skeleton.link.from, self.skeleton.message];
        let found = self.store.references.iter().find(|reference| {
            mail.contains(&reference.to)
                && self.is_free(reference.from)
                && self.store.table(reference.from).primary_key == reference.columns
                && self.flag_columns(reference.from).iter().any(|at| self.store.says(*at, &FLAGS))
        });
        found.cloned()
    }

    fn keywords(&self) -> Option<(Reference, At, Confidence)> {
        let store = self.store;
        let hanging = store.references.iter().filter(|one| one.to == self.skeleton.link.from && self.is_free(one.from));
        let mut best: Option<(f64, Reference, At, Confidence)> = None;
        for reference in hanging {
            let table = store.table(reference.from);
            let mut others = store.columns(reference.from).filter(|((_, at), _)| !reference.columns.contains(at));
            let (Some((at, column)), None) = (others.next(), others.next()) else { continue };
            let features = store.of(at);
            if column.kind != Kind::Text
                || table.primary_key.len() != table.columns.len()
                || features.longest > 200
                || features.message_id > 0.2
            {
                continue;
            }
            let named =
                store.table_says(reference.from, &FLAGS) || store.says(at, &["keyword", "label", "tag", "flag"]);
            let points = features.keyword + if named { 1.0 } else { 0.0 };
            let sure = if named { Confidence::Sure } else { Confidence::Likely };
            if best.as_ref().is_none_or(|(most, ..)| points > *most) {
                best = Some((points, reference.clone(), at, sure));
            }
        }
        best.map(|(_, reference, at, sure)| (reference, at, sure))
    }

    /// Tables that mail refers to by a key that was drawn for a value.
    pub fn dictionaries(&mut self) {
        loop {
            let known: Vec<usize> = self
                .roles
                .iter()
                .filter(|(_, role)| matches!(**role, "message" | "link" | "via" | "part" | "child" | "dictionary"))
                .map(|(at, _)| *at)
                .collect();
            let found = known
                .iter()
                .flat_map(|table| self.store.references_of(*table))
                .find(|one| one.declared && self.is_free(one.to) && one.from != one.to);
            let Some(reference) = found.cloned() else { return };
            self.dictionary(&reference);
        }
    }

    fn dictionary(&mut self, reference: &Reference) {
        let (store, of) = (self.store, reference.to);
        let mut section = Section::new("[[dictionary]]");
        section.say(
            "table",
            self.name(of),
            Confidence::Likely,
            format!("{} refers to its rows", self.name(reference.from)),
        );
        let surrogate = |key: &Vec<usize>| {
            key.len() == 1
                && store.table(of).primary_key == *key
                && matches!(store.column((of, key[0])).kind, Kind::Integer | Kind::Uuid)
        };
        let natural = store.table(of).unique.iter().filter(|key| !surrogate(key)).min_by_key(|key| key.len());
        match natural {
            Some(key) => {
                _ = section.say("natural", self.list(of, key), Confidence::Sure, "the catalog makes them unique")
            }
            None => {
                let texts = store.columns(of).filter(|(_, column)| column.kind == Kind::Text && column.not_null);
                let texts: Vec<usize> = texts.map(|(at, _)| at.1).collect();
                let others: Vec<usize> = store
                    .columns(of)
                    .map(|(at, _)| at.1)
                    .filter(|at| !store.table(of).primary_key.contains(at))
                    .collect();
                let columns = if texts.is_empty() { others } else { texts };
                section
                    .say("natural", self.list(of, &columns), Confidence::Guess, "nothing else tells its rows apart")
                    .ask("by which columns is a value found again?");
            }
        }
        let back: Vec<usize> = store
            .references_of(of)
            .filter(|one| one.to == self.skeleton.message)
            .flat_map(|one| one.columns.clone())
            .collect();
        if !back.is_empty() {
            section.say("cycle", self.columns(of, &back), Confidence::Sure, "refers back to a message");
        }
        self.roles.insert(of, "dictionary");
        self.sections.push(section);
    }

    /// Tables with a foreign key to what belongs to a message, and to mailboxes.
    pub fn children(&mut self) {
        let (link, message) = (self.skeleton.link.from, self.skeleton.message);
        let rank = |table: usize, role: &str| match role {
            _ if table == link => 0,
            _ if table == message => 1,
            "via" | "part" | "child" => 2,
            "dictionary" => 3,
            "mailbox" => 4,
            _ => 9,
        };
        loop {
            let mut found: Vec<(u8, Reference)> = Vec::new();
            for reference in self.store.references.iter().filter(|one| self.is_free(one.from)) {
                let Some(role) = self.roles.get(&reference.to) else { continue };
                let rank = rank(reference.to, role);
                // What hangs on a dictionary is a child of it only where that refers back to mail.
                let cyclic = || self.store.references_of(reference.to).any(|one| one.to == message);
                let soft = !reference.declared && (rank != 1 || self.store.table_says(reference.from, &GONE));
                if rank == 9 || soft || (rank == 3 && !cyclic()) || (rank == 4 && self.counts(reference)) {
                    continue;
                }
                if self.waits(reference.from) || self.is_tombstone(reference.from).is_some() {
                    continue;
                }
                found.push((rank, reference.clone()));
            }
            found.sort_by_key(|(rank, reference)| (*rank, reference.from));
            let Some((_, reference)) = found.into_iter().next() else { return };
            let of = if reference.to == message {
                "message".to_owned()
            } else if reference.to == link {
                "link".to_owned()
            } else {
                self.name(reference.to)
            };
            self.child(&reference, &of);
        }
    }

    fn child(&mut self, reference: &Reference, of: &str) {
        let (store, from) = (self.store, reference.from);
        let mut section = Section::new("[[child]]");
        let of_mailbox = reference.to == self.skeleton.mailbox;
        let sure = if reference.declared && !of_mailbox { Confidence::Sure } else { Confidence::Likely };
        let guess = section.say(
            "table",
            self.name(from),
            sure,
            if reference.declared { "a foreign key" } else { "its values are all keys there" },
        );
        if of_mailbox {
            guess.ask("does it belong to a mailbox, and come back with a lost one? What is sent, granted or enforced belongs to never");
        }
        section.say("of", of, sure, "");
        section.say("columns", self.columns(from, &reference.columns), sure, "");
        let key = &store.table(from).primary_key;
        let surrogate = key.iter().any(|at| {
            store.column((from, *at)).identity
                || store.column((from, *at)).default.as_deref().is_some_and(|default| default.starts_with("nextval"))
        });
        if key.is_empty() || surrogate {
            let unique = store
                .table(from)
                .unique
                .iter()
                .filter(|one| *one != key && reference.columns.iter().all(|at| one.contains(at)))
                .min_by_key(|one| one.len());
            if let Some(unique) = unique {
                section.say("natural", self.list(from, unique), Confidence::Sure, "the catalog makes them unique");
            } else if key.is_empty() {
                let rows: HashSet<_> = store
                    .table(from)
                    .sample
                    .iter()
                    .map(|row| reference.columns.iter().map(|at| row[*at].print()).collect::<Vec<_>>())
                    .collect();
                let once = rows.len() == store.table(from).sample.len() && !rows.is_empty();
                let mut columns = reference.columns.clone();
                if !once {
                    columns.extend(
                        store
                            .columns(from)
                            .filter(|(at, column)| {
                                column.not_null && column.kind == Kind::Integer && !reference.columns.contains(&at.1)
                            })
                            .map(|(at, _)| at.1),
                    );
                }
                section
                    .say("natural", self.list(from, &columns), Confidence::Guess, "it has no key")
                    .ask("which columns tell the rows of one parent apart?");
            }
        }
        self.roles.insert(from, "child");
        self.sections.push(section);
    }

    /// Does a table hold numbers about a mailbox or an account, one row for each?
    fn counts(&self, reference: &Reference) -> bool {
        let mut others =
            self.store.columns(reference.from).filter(|((_, at), _)| !reference.columns.contains(at)).peekable();
        self.store.table(reference.from).primary_key == reference.columns
            && others.peek().is_some()
            && others.all(|(_, column)| matches!(column.kind, Kind::Integer | Kind::Other) || column.kind.is_time())
    }

    /// Does it wait for something that must not happen again?
    fn waits(&self, at: usize) -> bool {
        self.store.table_says(at, &ON_ITS_WAY)
            || self.store.columns(at).any(|(column, _)| self.store.of(column).mail > 0.5)
    }

    pub fn tombstones(&mut self) {
        let store = self.store;
        let gone: Vec<(usize, Tombstone)> =
            store.tables().filter(|at| self.is_free(*at)).filter_map(|at| Some((at, self.is_tombstone(at)?))).collect();
        for (at, found) in gone {
            self.tombstone_table(at, &found);
        }
        // A row that is marked and kept.
        let link = self.skeleton.link.from;
        let marked = store.columns(link).find(|(at, column)| {
            !column.not_null && column.kind.is_time() && store.of(*at).is_mostly_null() && !self.has_now(*at)
        });
        let Some((at, _)) = marked else { return };
        let mut section = Section::new("[[tombstone]]");
        let named = store.says(at, &GONE);
        let guess = section.say(
            "predicate",
            format!("{} is not null", self.sql(at)),
            if named { Confidence::Sure } else { Confidence::Guess },
            "a time that most rows do not have",
        );
        if !named {
            guess.ask("does a user's deletion set this time?");
        }
        section.say("at", self.column(at), Confidence::Likely, "the same");
        let modseq = store.columns(link).find(|(other, column)| {
            column.kind == Kind::Integer
                && !column.not_null
                && store.of(*other).nulls == store.of(at).nulls
                && self.modseq.as_ref().is_some_and(|modseq| modseq.content != *other)
        });
        if let Some((other, _)) = modseq {
            section.say("modseq", self.column(other), Confidence::Likely, "NULL in as many rows");
        }
        self.sections.push(section);
    }

    /// Is it a table of what users deleted: mailbox and UID as the mail has them, and never those of a living one?
    fn is_tombstone(&self, at: usize) -> Option<Tombstone> {
        let (store, link) = (self.store, &self.skeleton.link);
        let ([own], [key]) = (link.columns.as_slice(), link.referenced.as_slice()) else { return None };
        let uid = self.uid.as_ref().map(|uid| uid.content)?;
        let boxes = store.rows_by((link.to, *key));
        let print = |row: &[super::description::Value], column: usize| row[column].print();
        let living: HashSet<(u64, u64)> = store
            .table(link.from)
            .sample
            .iter()
            .filter_map(|row| Some((print(row, *own)?, print(row, uid.1)?)))
            .collect();
        let same_kind = |column: At, other: At| store.column(column).kind == store.column(other).kind;
        let mut best: Option<(u32, Tombstone)> = None;
        let named_table = store.table_says(at, &GONE);
        for (mailbox, _) in store
            .columns(at)
            .filter(|(column, _)| same_kind(*column, (link.from, *own)) || same_kind(*column, (link.to, *key)))
        {
            let same_name = store.column(mailbox).name == store.column((link.from, *own)).name;
            let known = store
                .table(at)
                .sample
                .iter()
                .all(|row| print(row, mailbox.1).is_none_or(|value| boxes.contains_key(&value)));
            if !(same_name || known && !store.table(at).sample.is_empty()) {
                continue;
            }
            for (number, _) in store.columns(at).filter(|(column, _)| same_kind(*column, uid) && *column != mailbox) {
                let pairs: Vec<(u64, u64)> = store
                    .table(at)
                    .sample
                    .iter()
                    .filter_map(|row| Some((print(row, mailbox.1)?, print(row, number.1)?)))
                    .collect();
                let apart = pairs.len() > 1 && pairs.iter().all(|pair| !living.contains(pair));
                let once = pairs.iter().collect::<HashSet<_>>().len() == pairs.len();
                let below = self.uid.as_ref().and_then(|uid| uid.counter).is_some_and(|counter| {
                    pairs.len() > 1
                        && pairs.iter().all(|(mailbox, number)| {
                            let most = boxes.get(mailbox).and_then(|row| row[counter.mailbox.1].number());
                            most.is_some_and(|most| number.cast_signed() <= most)
                        })
                });
                let named_number = store.column(number).name == store.column(uid).name;
                let key = store.is_unique(at, &[mailbox.1, number.1]);
                let mut points = u32::from(same_name)
                    + u32::from(named_number) * 2
                    + u32::from(apart && once) * 2
                    + u32::from(below) * 2
                    + u32::from(key);
                // Many pairs that all agree are no accident.
                points += u32::from(apart && once && below && pairs.len() > 4) + if named_table { 3 } else { 0 };
                let time = store.columns(at).any(|(_, column)| column.kind.is_time());
                let counted = store.table(at).primary_key == [mailbox.1];
                if points >= 5 && time && !counted && best.as_ref().is_none_or(|(most, _)| points > *most) {
                    best = Some((
                        points,
                        Tombstone {
                            mailbox,
                            uid: number,
                            named: named_table || (same_name && named_number),
                            apart: apart && once,
                        },
                    ));
                }
            }
        }
        best.map(|(_, found)| found)
    }

    fn tombstone_table(&mut self, at: usize, found: &Tombstone) {
        let (store, message) = (self.store, self.skeleton.message);
        let mut section = Section::new("[[tombstone]]");
        let sure = if found.named && found.apart {
            Confidence::Sure
        } else if found.named || found.apart {
            Confidence::Likely
        } else {
            Confidence::Guess
        };
        let evidence = if found.apart {
            "its pairs of mailbox and UID are never those of a mail that is there"
        } else {
            "columns named as those of the mail"
        };
        let guess = section.say("table", self.name(at), sure, evidence);
        if !found.named {
            guess.ask("does this table record what users deleted?");
        }
        section.say("mailbox", self.column(found.mailbox), sure, "");
        section.say("uid", self.column(found.uid), sure, "");
        let free = |column: At| column != found.mailbox && column != found.uid;
        if let Some(modseq) = &self.modseq {
            let name = &store.column(modseq.content).name;
            if let Some((column, _)) = store
                .columns(at)
                .find(|(column, one)| free(*column) && (one.name == *name || store.says(*column, &["modseq"])))
            {
                section.say("modseq", self.column(column), Confidence::Likely, "by its name");
            }
        }
        let key = self
            .skeleton
            .to_message
            .as_ref()
            .map_or_else(|| store.table(message).primary_key.clone(), |one| one.referenced.clone());
        let declared =
            store.reference(at, message).filter(|one| one.declared).and_then(|one| one.columns.first().copied());
        let by_name = || {
            store.columns(at).find(|(column, one)| {
                let same = self.skeleton.to_message.as_ref().is_some_and(|to| {
                    to.columns.first().is_some_and(|at| store.column((self.skeleton.link.from, *at)).name == one.name)
                });
                free(*column) && (same || store.says(*column, &["messageid", "message"]))
            })
        };
        let by_value = || {
            store.columns(at).find(|(column, one)| {
                let Some(key) = key.first().map(|key| (message, *key)) else { return false };
                free(*column)
                    && one.kind == store.column(key).kind
                    && one.kind == Kind::Integer
                    && !store.is_key(*column)
                    && store.of(*column).is_distinct()
                    && store.prints(*column).is_disjoint(store.prints(key))
            })
        };
        let of_message = declared
            .map(|column| (at, column))
            .or_else(|| by_name().map(|(column, _)| column))
            .or_else(|| by_value().map(|(column, _)| column));
        if let Some(column) = of_message {
            section.say("message", self.column(column), Confidence::Likely, "the key of the mail that is gone");
        }
        let mut times: Vec<At> =
            store.columns(at).filter(|(_, one)| one.kind.is_time()).map(|(column, _)| column).collect();
        // The deletion comes after all else that is told of a mail.
        times.sort_by_key(|column| (!store.says(*column, &GONE), std::cmp::Reverse(store.of(*column).most)));
        let mut evidence = toml::Table::new();
        for (_, one) in store
            .columns(at)
            .filter(|(column, _)| free(*column) && times.first() != Some(column) && Some(*column) != of_message)
        {
            let copied =
                [message, self.skeleton.link.from].iter().flat_map(|of| store.columns(*of)).find(|(_, other)| {
                    other.name == one.name
                        && other.kind == one.kind
                        && (one.kind.is_time() || one.kind == Kind::Integer)
                });
            let modseq = self.modseq.as_ref().is_some_and(|modseq| self.column(modseq.content) == one.name);
            if let Some((_, other)) = copied.filter(|_| !modseq) {
                evidence.insert(one.name.clone(), Value::String(other.name.clone()));
            } else if let Some(saved) =
                self.saved.filter(|saved| one.kind.is_time() && store.column(*saved).kind == one.kind)
            {
                evidence.insert(one.name.clone(), Value::String(self.column(saved)));
            }
        }
        if evidence.is_empty() {
            section.ask("evidence", "numbers are issued again after a loss: does it hold anything that was copied from the mail, as a time or a size?");
        } else {
            section.say("evidence", Value::Table(evidence), Confidence::Likely, "columns that the mail has too");
        }
        if let Some(time) = times.first() {
            section.say("at", self.column(*time), Confidence::Likely, "a time that the mail does not have");
        }
        let triggers = &store.table(at).triggers;
        if !triggers.is_empty() {
            section.say("write", "never", Confidence::Guess, "").ask(format!(
                "it has triggers ({}): do they delete living mail? Then never, else leave this out",
                triggers.join(", ")
            ));
        }
        self.roles.insert(at, "tombstone");
        self.sections.push(section);
    }

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

/// A table of deletions.
struct Tombstone {
    mailbox: At,
    uid: At,
    /// Its name, or those of its columns, say so.
    named: bool,
    /// Its rows are of no living mail.
    apart: bool,
}

fn words_end_in_flag(name: &str) -> bool {
    super::features::words(name).last().is_some_and(|word| word == "flag" || word == "flags")
}
