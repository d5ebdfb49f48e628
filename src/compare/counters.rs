//! The counter check: are the numbers that come next above all that were ever issued?
//!
//! A store that was rolled back issues numbers again: ids that lost mail had, and UIDs that clients have cached for other mail (RFC
//! 3501 §2.3.1.1 says never). What is low is raised before anything is put back. UIDVALIDITY changes only where it is proven that a
//! UID was issued twice, because that costs every client of the mailbox a full download.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Serialize;

use super::classify::LiveMessage;
use super::layout::{Layout, Parent, Table};
use super::parents::{Fate, Known, Parents};
use super::source::Facts;
use crate::postgres::catalog::{Catalog, ColumnName, Sequence, TableName};
use crate::repository::zone;

/// The highest UID and MODSEQ that rows of a mailbox have, and the highest UID on either side.
#[derive(Debug, Clone, Copy, Default)]
pub struct Highest {
    pub uid: i64,
    pub modseq: i64,
    pub uid_then: i64,
    pub uid_now: i64,
}

#[derive(Debug, Default)]
pub struct Counters {
    seen: HashMap<Bytes, Highest>,
    highest_key: i64,
    pub sequences: Vec<SequenceCounter>,
    /// By position among [`Parents::live_mailboxes`].
    collisions: HashMap<usize, i64>,
}

/// A sequence that numbers accounts, mailboxes or messages.
#[derive(Debug, Clone, Serialize)]
pub struct SequenceCounter {
    #[serde(serialize_with = "shown")]
    pub name: TableName,
    /// Issued last in the live store, and the least that it must be.
    pub live: i64,
    pub least: i64,
    #[serde(skip)]
    numbers: Numbers,
}

/// What a sequence numbers, where rows of messages say how far it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    Messages,
    Uids,
    Modseqs,
    Others,
}

impl SequenceCounter {
    fn new(facts: &Facts, sequence: &Sequence, key: i64, numbers: Numbers) -> Self {
        let live =
            sequence.value.map_or(0, |value| if value.is_called { value.last_value } else { value.last_value - 1 });
        let least = facts.sequences.get(&sequence.name).copied().unwrap_or(0).max(key);
        Self { name: sequence.name.clone(), live, least, numbers }
    }
}

fn shown<S: serde::Serializer>(name: &TableName, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(name)
}

/// A mailbox whose counters are low.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxCounter {
    /// Position among [`Parents::live_mailboxes`].
    pub live: usize,
    /// What UIDNEXT and MODSEQ columns must be at least.
    pub uid: Option<i64>,
    pub modseq: Option<i64>,
    /// The UIDVALIDITY under which a UID was issued twice: it must change.
    pub collided: Option<i64>,
}

impl Counters {
    pub(super) fn new(facts: &Facts, catalog: &Catalog, layout: &Layout, parents: &Parents) -> Self {
        let owner = layout.owner.as_ref().map(|owner| (&owner.table, highest(&owner.table, &parents.owners)));
        let mailbox = highest(&layout.mailbox.table, &parents.mailboxes);
        let tables = [(&layout.message.link, 0), (&layout.mailbox.table, mailbox)].into_iter().chain(owner);
        let tables = tables.chain(layout.message.content.iter().map(|content| (&content.table, 0)));
        let tables = tables.chain(layout.dictionaries.iter().map(|one| (&one.table, 0)));
        let mut sequences: Vec<SequenceCounter> = Vec::new();
        for (table, key) in tables {
            let Ok(column) = table.single_key() else { continue };
            let filled = ColumnName { table: table.source.name.clone(), column: table.columns[column].name.clone() };
            let Some(sequence) = catalog.sequence_of(&filled).filter(|sequence| sequence.increment > 0) else {
                continue;
            };
            let of_messages = std::ptr::eq(table, &layout.message.link);
            let numbers = if of_messages { Numbers::Messages } else { Numbers::Others };
            sequences.push(SequenceCounter::new(facts, sequence, key, numbers));
        }
        for (name, numbers) in [(&layout.uid_sequence, Numbers::Uids), (&layout.modseq_sequence, Numbers::Modseqs)] {
            let named = catalog.sequences.iter().find(|sequence| Some(&sequence.name) == name.as_ref());
            // That of the UIDs may be the one of the keys.
            let new = named.filter(|named| !sequences.iter().any(|sequence| sequence.name == named.name));
            sequences.extend(new.map(|sequence| SequenceCounter::new(facts, sequence, 0, numbers)));
        }
        Self { sequences, ..Self::default() }
    }

    pub(super) fn live_row(&mut self, mailbox: &[u8], uid: Option<i64>, modseq: Option<i64>) {
        self.see(mailbox, uid, modseq, |seen| &mut seen.uid_now);
    }

    pub(super) fn snapshot_row(&mut self, key: Option<&[u8]>, mailbox: &[u8], uid: Option<i64>, modseq: Option<i64>) {
        self.see(mailbox, uid, modseq, |seen| &mut seen.uid_then);
        self.snapshot_key(key.and_then(|key| zone::integer(key, false)));
    }

    /// A key that a message of the snapshot has.
    pub(super) fn snapshot_key(&mut self, key: Option<i64>) {
        if let Some(key) = key {
            self.highest_key = self.highest_key.max(key);
            self.at_least(Numbers::Messages, key);
        }
    }

    fn at_least(&mut self, numbers: Numbers, number: i64) {
        for sequence in self.sequences.iter_mut().filter(|sequence| sequence.numbers == numbers) {
            sequence.least = sequence.least.max(number);
        }
    }

    /// By the live key of the mailbox.
    pub fn highest(&self, mailbox: &[u8]) -> Highest {
        self.seen.get(mailbox).copied().unwrap_or_default()
    }

    fn see(
        &mut self,
        mailbox: &[u8],
        uid: Option<i64>,
        modseq: Option<i64>,
        own: impl FnOnce(&mut Highest) -> &mut i64,
    ) {
        self.at_least(Numbers::Uids, uid.unwrap_or(0));
        self.at_least(Numbers::Modseqs, modseq.unwrap_or(0));
        if !self.seen.contains_key(mailbox) {
            self.seen.insert(Bytes::copy_from_slice(mailbox), Highest::default());
        }
        if let Some(seen) = self.seen.get_mut(mailbox) {
            seen.uid = seen.uid.max(uid.unwrap_or(0));
            seen.modseq = seen.modseq.max(modseq.unwrap_or(0));
            let own = own(seen);
            *own = (*own).max(uid.unwrap_or(0));
        }
    }

    /// New mail under a UID that the mailbox had issued before the snapshot.
    pub(super) fn collisions(&mut self, layout: &Parent, parents: &Parents, live: &[LiveMessage]) {
        let issued: HashMap<&[u8], (usize, i64, i64)> = parents
            .mailboxes
            .iter()
            .filter_map(|mailbox| match mailbox.fate {
                Fate::Alive(at) => {
                    let key = &parents.live_mailboxes[at].key[..];
                    let next = match layout.uid_by_rows {
                        true => self.highest(key).uid_then + 1,
                        false => mailbox.uid? + i64::from(!layout.uid_is_next),
                    };
                    Some((key, (at, next, mailbox.uidvalidity?)))
                }
                _ => None,
            })
            .collect();
        for one in live.iter().filter(|one| !one.taken) {
            let Some((at, next, uidvalidity)) = issued.get(&one.mailbox[..]) else { continue };
            let again = one.uid.is_some_and(|uid| uid < *next);
            // Once changed, it need not change again.
            if again && parents.live_mailboxes[*at].uidvalidity == Some(*uidvalidity) {
                self.collisions.insert(*at, *uidvalidity);
            }
        }
    }

    /// The mailboxes whose counters must be raised.
    pub fn low(&self, layout: &Parent, parents: &Parents) -> Vec<MailboxCounter> {
        let mut low = Vec::new();
        for mailbox in &parents.mailboxes {
            let Fate::Alive(at) = mailbox.fate else { continue };
            let live = &parents.live_mailboxes[at];
            let seen = self.highest(&live.key);
            let least = |column: Option<usize>, before: Option<i64>, now: Option<i64>, seen: i64, next: bool| {
                column?;
                let least = before.unwrap_or(0).max(seen + i64::from(next && seen > 0));
                (least > now.unwrap_or(0)).then_some(least)
            };
            let uid = least(layout.uid, mailbox.uid, live.uid, seen.uid, layout.uid_is_next);
            let modseq = least(layout.modseq, mailbox.modseq, live.modseq, seen.modseq, layout.modseq_is_next);
            let collided = self.collisions.get(&at).copied();
            if uid.is_some() || modseq.is_some() || collided.is_some() {
                low.push(MailboxCounter { live: at, uid, modseq, collided });
            }
        }
        low.sort_by_key(|counter| counter.live);
        low
    }

    /// The sequences that are low; that of the UIDs must be `ahead` of all that were issued.
    pub fn low_sequences(&self, uids: Option<&TableName>, ahead: i64) -> Vec<SequenceCounter> {
        let raised = self.sequences.iter().cloned().map(|mut sequence| {
            if Some(&sequence.name) == uids {
                sequence.least = sequence.least.max(sequence.live) + ahead;
            }
            sequence
        });
        raised.filter(|sequence| sequence.live < sequence.least).collect()
    }
}

/// The highest number among keys; 0 where they are no numbers, though a text may be as long as one.
fn highest(table: &Table, all: &[Known]) -> i64 {
    let numbers = all.iter().filter(|_| table.is_numbered()).filter_map(|one| zone::integer(&one.key, false));
    numbers.max().unwrap_or(0)
}
