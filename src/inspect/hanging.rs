//! What hangs on the mail: flags, keywords, dictionaries, children.

use std::collections::HashSet;

use toml::Value;

use super::description::Kind;
use super::draft::{Confidence, Drafting, Section, table};
use super::skeleton::{FLAGS, GONE, ON_ITS_WAY};
use super::store::{At, Reference};

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
        let people: Vec<usize> =
            self.skeleton.owner.iter().map(|owner| owner.to).chain([self.skeleton.mailbox]).collect();
        let sure = if reference.declared && !of_mailbox { Confidence::Sure } else { Confidence::Likely };
        let guess = section.say(
            "table",
            self.name(from),
            sure,
            if reference.declared { "a foreign key" } else { "its values are all keys there" },
        );
        if of_mailbox {
            guess.ask("does it belong to a mailbox, and come back with a lost one? What is sent, granted or enforced belongs to never");
        } else if store
            .references_of(from)
            .any(|one| one.declared && one.to != reference.to && people.contains(&one.to))
        {
            guess.ask("it refers to an account or mailbox besides: does it come back with the mail, or would something be sent or done once more? Then it belongs to never");
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
    pub(super) fn counts(&self, reference: &Reference) -> bool {
        let mut others =
            self.store.columns(reference.from).filter(|((_, at), _)| !reference.columns.contains(at)).peekable();
        self.store.table(reference.from).primary_key == reference.columns
            && others.peek().is_some()
            && others.all(|(_, column)| matches!(column.kind, Kind::Integer | Kind::Other) || column.kind.is_time())
    }

    /// Does it wait for something that must not happen again?
    pub(super) fn waits(&self, at: usize) -> bool {
        self.store.table_says(at, &ON_ITS_WAY)
            || self.store.columns(at).any(|(column, _)| self.store.of(column).mail > 0.5)
    }
}

fn words_end_in_flag(name: &str) -> bool {
    super::features::words(name).last().is_some_and(|word| word == "flag" || word == "flags")
}
