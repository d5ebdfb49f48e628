//! What remembers deletions.

use std::collections::HashSet;

use toml::Value;

use super::description::Kind;
use super::draft::{Confidence, Drafting, Section};
use super::skeleton::GONE;
use super::store::At;

impl Drafting<'_> {
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
    pub(super) fn is_tombstone(&self, at: usize) -> Option<Tombstone> {
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
}

/// A table of deletions.
pub(super) struct Tombstone {
    mailbox: At,
    uid: At,
    /// Its name, or those of its columns, say so.
    named: bool,
    /// Its rows are of no living mail.
    apart: bool,
}
