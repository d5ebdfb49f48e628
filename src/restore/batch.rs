//! One transaction: lock the mailboxes, look again, insert, read again, write the journal.
//!
//! The rows are staged before the locks are taken, so a mailbox is locked for as long as the inserts take and no longer. Under the
//! locks nothing is believed that the plan said of the live store: the mailbox must still be that mailbox, no equal mail may have
//! arrived since, and the journal must not know the message. What does not hold is left out and counted.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde::Serialize;

use super::alive::alive;
use super::contents::{self, Content, State};
use super::dictionaries::{self, Entries};
use super::error::ReplayError;
use super::look::{Locked, lock_mailboxes};
use super::parents::{Target, Targets};
use super::plan::{Move, Plan, spent};
use super::staging::{self, StagedRow};
use crate::compare::Leftover;
use crate::compare::content::bytes_of;
use crate::compare::layout::Part;
use crate::compare::parents::Fate;
use crate::compare::row::{LargeValue, Value};
use crate::compare::source::Source;
use crate::postgres::session::Session;
use crate::repository::zone;

/// UIDs that a further attempt leaves to mail that is delivered meanwhile, where nobody locks a mailbox to draw one.
const MARGIN: i64 = 100;

/// What became of the messages of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub restored: u64,
    /// Equal mail arrived while the restore ran.
    pub arrived_meanwhile: u64,
    /// Another replay put them back first.
    pub by_another: u64,
    /// The mailbox was deleted, or could not be made.
    pub no_mailbox: u64,
    /// Another mail has what a unique key gives to one alone.
    pub place_taken: u64,
    /// Mailboxes that got a new UIDVALIDITY, because a UID was issued twice before the first mail was back.
    #[serde(skip)]
    pub uidvalidity: u64,
    /// Rows that belong to these messages and stay out, by table: what they refer to is gone.
    pub left_rows: BTreeMap<String, u64>,
    /// Columns that the store changed while the row was written, with the number of rows.
    pub changed_columns: BTreeMap<String, u64>,
    /// Each message by its position among the leftovers.
    #[serde(skip)]
    pub became: BTreeMap<usize, Became>,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Became {
    Restored,
    ArrivedMeanwhile,
    ByAnother,
    NoMailbox,
    PlaceTaken,
}

impl Outcome {
    fn count(&mut self, one: Move, became: Became) {
        *match became {
            Became::Restored => &mut self.restored,
            Became::ArrivedMeanwhile => &mut self.arrived_meanwhile,
            Became::ByAnother => &mut self.by_another,
            Became::NoMailbox => &mut self.no_mailbox,
            Became::PlaceTaken => &mut self.place_taken,
        } += 1;
        self.became.insert(one.leftover, became);
    }

    pub fn add(&mut self, other: Self) {
        self.restored += other.restored;
        self.arrived_meanwhile += other.arrived_meanwhile;
        self.by_another += other.by_another;
        self.no_mailbox += other.no_mailbox;
        self.place_taken += other.place_taken;
        self.uidvalidity += other.uidvalidity;
        for (column, rows) in other.changed_columns {
            *self.changed_columns.entry(column).or_default() += rows;
        }
        for (table, rows) in other.left_rows {
            *self.left_rows.entry(table).or_default() += rows;
        }
        self.became.extend(other.became);
    }
}

/// A message and where it goes.
pub(super) struct Item<'a> {
    pub leftover: &'a Leftover,
    pub one: Move,
    pub target: &'a Target,
    /// Position among the batch's contents.
    pub content: Option<usize>,
}

/// Where live messages were that turned out equal to lost ones: nobody else may take them for his.
pub(super) type Taken = HashSet<crate::compare::row::Print>;

/// Under which a message lies in its mailbox.
#[derive(Debug, Clone, Default)]
pub(super) struct Key {
    /// The fields of the key's columns.
    pub fields: Vec<Bytes>,
    /// For the journal.
    pub text: String,
}

/// What earlier batches found and did.
#[derive(Default)]
pub(super) struct Progress {
    pub taken: Taken,
    /// The keys, in the snapshot and now, of contents that were put in.
    pub contents: HashMap<Vec<u8>, Bytes>,
    /// UIDs that this replay has given out, by mailbox: from, and before which.
    pub uids: HashMap<Bytes, Vec<(i64, i64)>>,
}

/// The messages of a batch, before all of what they are made of is there.
pub(super) struct Draft<'a> {
    chosen: Vec<(Move, &'a Target)>,
    skipped: Outcome,
    /// Values that the live store has.
    found: HashMap<LargeValue, Bytes>,
    /// Those that are to be fetched.
    large: Vec<LargeValue>,
}

pub(super) struct Batch<'a> {
    pub(super) plan: &'a Plan,
    targets: &'a Targets,
    pub(super) replay: &'a str,
    pub(super) items: Vec<Item<'a>>,
    pub(super) contents: Vec<Content<'a>>,
    /// By kind: key and row.
    pub(super) parts: Vec<BTreeMap<Vec<u8>, StagedRow>>,
    pub(super) found: HashMap<LargeValue, Bytes>,
    skipped: Outcome,
}

/// How many bytes of large values a message brings.
pub(super) async fn weight(plan: &Plan, source: &dyn Source, one: Move) -> Result<u64, ReplayError> {
    let wanted = wanted(plan, &plan.comparison.leftovers[one.leftover]);
    Ok(source.lengths(&wanted).await?.iter().sum())
}

fn wanted(plan: &Plan, leftover: &Leftover) -> Vec<LargeValue> {
    let layout = &plan.comparison.layout;
    let own =
        std::iter::once(&leftover.row).chain(leftover.via.iter().flatten()).chain(leftover.children.iter().flatten());
    let parts = layout.parts.iter().enumerate().flat_map(|(kind, part)| {
        let keys = leftover.via[kind].iter().filter_map(|row| row[part.part].bytes());
        keys.filter_map(move |key| plan.comparison.parts[kind].get(key))
    });
    let shared = layout.shared(Some(&leftover.row), &leftover.via, &leftover.children);
    let shared = dictionaries::named(plan, shared);
    let values = own.chain(parts).chain(shared.iter().flat_map(|rows| rows.values().copied())).flatten();
    values.filter_map(|value| if let Value::Large(large) = value { Some(*large) } else { None }).collect()
}

pub(super) fn staged(row: &[Value], found: &HashMap<LargeValue, Bytes>) -> StagedRow {
    row.iter()
        .map(|value| match value {
            Value::Large(large) => found.get(large).cloned(),
            value => bytes_of(value, found).map(Bytes::copy_from_slice),
        })
        .collect()
}

impl Draft<'_> {
    /// Fetches from the snapshot what the live store has not.
    pub async fn fetch(mut self, source: &dyn Source) -> Result<Self, ReplayError> {
        let values = source.values(&self.large).await?;
        self.found.extend(self.large.iter().copied().zip(values));
        Ok(self)
    }
}

impl<'a> Batch<'a> {
    /// Finds out where the messages go, and what of them the live store has.
    pub async fn draft(
        session: &Session,
        source: &dyn Source,
        plan: &'a Plan,
        targets: &'a Targets,
        moves: &[Move],
    ) -> Result<Draft<'a>, ReplayError> {
        let layout = &plan.comparison.layout;
        let mut skipped = Outcome::default();
        let mut chosen = Vec::new();
        for one in moves {
            match targets.get(&(one.mailbox, one.aside)) {
                Some(target) => chosen.push((*one, target)),
                None => skipped.count(*one, Became::NoMailbox),
            }
        }
        let leftovers = &plan.comparison.leftovers;
        let needed = |kind: usize, part: &Part| {
            let rows = chosen.iter().flat_map(|(one, _)| &leftovers[one.leftover].via[kind]);
            rows.filter_map(|row| row[part.part].bytes()).collect()
        };
        let needed: Vec<BTreeSet<&[u8]>> =
            layout.parts.iter().enumerate().map(|(kind, part)| needed(kind, part)).collect();
        let found = alive(session, source, plan, &needed).await?;
        let mut large: Vec<LargeValue> =
            chosen.iter().flat_map(|(one, _)| wanted(plan, &leftovers[one.leftover])).collect();
        large.sort_unstable();
        large.dedup();
        large.retain(|value| !found.contains_key(value));
        Ok(Draft { chosen, skipped, found, large })
    }

    /// Puts together what the messages are made of.
    pub async fn prepare(
        session: &Session,
        plan: &'a Plan,
        targets: &'a Targets,
        replay: &'a str,
        draft: Draft<'a>,
    ) -> Result<Self, ReplayError> {
        let layout = &plan.comparison.layout;
        let leftovers = &plan.comparison.leftovers;
        let Draft { mut chosen, skipped, found, .. } = draft;
        // UIDs ascend with the time of arrival (RFC 9051 §2.3.1.1 asks for ascending, clients show by it).
        let uid = |one: &Move| {
            let row = &leftovers[one.leftover].row;
            layout.message.uid.and_then(|at| zone::integer(row[at].bytes()?, false))
        };
        chosen.sort_by_key(|(one, _)| (leftovers[one.leftover].instant, uid(one)));
        let mut parts = vec![BTreeMap::new(); layout.parts.len()];
        for (kind, part) in layout.parts.iter().enumerate() {
            let via = chosen.iter().flat_map(|(one, _)| &leftovers[one.leftover].via[kind]);
            for key in via.filter_map(|row| row[part.part].bytes()) {
                if let Some(row) = plan.comparison.parts[kind].get(key) {
                    parts[kind].entry(key.to_vec()).or_insert_with(|| staged(row, &found));
                }
            }
        }
        let contents = contents::of(plan, chosen.iter().map(|(one, _)| &leftovers[one.leftover]));
        let contents = contents::prove(session, plan, contents, &found).await?;
        let content = |leftover: &Leftover| {
            let key = leftover.row[layout.message.content.as_ref()?.of].bytes()?;
            contents.iter().position(|content| content.before == key)
        };
        let item = |(one, target): (Move, &'a Target)| {
            let leftover = &leftovers[one.leftover];
            Item { leftover, one, target, content: content(leftover) }
        };
        let items = chosen.into_iter().map(item).collect();
        Ok(Self { plan, targets, replay, items, contents, parts, found, skipped })
    }

    /// Puts the messages back; `progress` grows by the live mails that stand for lost ones, by the contents that were put in, and by UIDs.
    pub async fn run(self, session: &Session, progress: &mut Progress) -> Result<Outcome, ReplayError> {
        if self.items.is_empty() {
            return Ok(self.skipped);
        }
        let mut attempts = 0;
        let work = async || {
            attempts += 1;
            self.attempt(session, progress, attempts).await
        };
        let (outcome, newly) = staging::transaction(session, "restoring mail", work).await?;
        progress.taken.extend(newly.taken);
        progress.contents.extend(newly.contents);
        for (mailbox, uids) in newly.uids {
            progress.uids.entry(mailbox).or_default().extend(uids);
        }
        Ok(outcome)
    }

    async fn attempt(
        &self,
        session: &Session,
        progress: &Progress,
        attempt: i64,
    ) -> Result<(Outcome, Progress), ReplayError> {
        let layout = &self.plan.comparison.layout;
        staging::settings(session, layout).await?;
        let held = self.hold_contents(session, progress).await?;
        self.stage_contents(session, &held).await?;
        // A link is narrow, and its key may be a UID: those are drawn under the lock, so that clients see them in their order.
        let is_split = layout.message.content.is_some();
        // Mailbox and UID are the key.
        let numbered = layout.message.link.key.len() > 1;
        let mut keys = Vec::new();
        if !is_split {
            keys = self.draw(session).await?;
            self.stage(session, &keys, &held).await?;
        }

        let locked = self.lock(session, attempt).await?;
        let mut outcome = self.skipped.clone();
        let mut open: Vec<usize> = Vec::with_capacity(self.items.len());
        let taken = |item: &Item<'_>| item.content.is_some_and(|at| self.contents[at].state == State::Taken);
        for (at, item) in self.items.iter().enumerate() {
            match locked.get(&item.target.key) {
                _ if taken(item) => outcome.count(item.one, Became::PlaceTaken),
                Some(mailbox) if mailbox.shown && mailbox.evidence == item.target.evidence => open.push(at),
                _ => outcome.count(item.one, Became::NoMailbox),
            }
        }
        let (arrived, taken) = self.arrived_meanwhile(session, &open, progress).await?;
        let mut newly = Progress { taken, ..Default::default() };
        arrived.iter().for_each(|at| outcome.count(self.items[*at].one, Became::ArrivedMeanwhile));
        open.retain(|at| !arrived.contains(at));
        if is_split && !open.is_empty() {
            keys = if numbered { self.next_uids(&open, &locked) } else { self.draw(session).await? };
            self.stage(session, &keys, &held).await?;
        }
        let claimed = self.unclaimed(session, &open).await?;
        let others = open.iter().filter(|at| !claimed.contains(at));
        others.for_each(|at| outcome.count(self.items[*at].one, Became::ByAnother));
        let before = claimed.clone();
        if claimed.is_empty() {
            return Ok((outcome, newly));
        }
        outcome.uidvalidity = locked.values().filter(|state| state.collided.is_some()).count() as u64;
        newly.uids = self.number(session, if numbered { &open } else { &claimed }, &claimed, &locked).await?;
        // Of those alone that come back: the mailbox of another one's thread may be gone.
        let named = claimed.iter().map(|at| self.items[*at].leftover);
        let named = named.flat_map(|one| layout.shared(Some(&one.row), &one.via, &one.children));
        let aside = claimed.first().is_some_and(|at| self.items[*at].one.aside);
        let entries = Entries::of(self.plan, named, &self.found, Some((self.targets, aside)));
        dictionaries::stage(session, layout, &entries).await?;
        self.lead_to_messages(session, &claimed, &keys).await?;
        let (claimed, left) = self.insert(session, claimed, &keys, &entries).await?;
        outcome.left_rows = left;
        let taken = before.iter().filter(|at| !claimed.contains(at));
        taken.for_each(|at| outcome.count(self.items[*at].one, Became::PlaceTaken));
        outcome.changed_columns = self.read_again(session).await?;
        self.record(session, &claimed, &keys).await?;
        self.answer(session, &claimed, &keys).await?;
        for at in &claimed {
            let item = &self.items[*at];
            outcome.count(item.one, Became::Restored);
            if let Some(at) = item.content {
                newly.contents.insert(self.contents[at].before.to_vec(), held[at].key.clone());
            }
        }
        Ok((outcome, newly))
    }

    async fn lock(&self, session: &Session, attempt: i64) -> Result<HashMap<Bytes, Locked>, ReplayError> {
        let keys: BTreeSet<&str> = self.items.iter().map(|item| &*item.target.key_text).collect();
        let mut locked = lock_mailboxes(session, &self.plan.comparison.layout, keys).await?;
        self.leave_spent(&mut locked, (attempt - 1) * MARGIN);
        Ok(locked)
    }

    /// Where rows alone say which number comes next, those that lost mail had are issued again until mail lies above them.
    /// `margin` is for those who take the next one at this moment.
    fn leave_spent(&self, locked: &mut HashMap<Bytes, Locked>, margin: i64) {
        let comparison = &self.plan.comparison;
        let (mailbox, parents) = (&comparison.layout.mailbox, &comparison.parents);
        if !mailbox.uid_by_rows && !mailbox.modseq_by_rows {
            return;
        }
        for (key, state) in locked {
            let spent = spent(comparison, key);
            let is_low = spent.uid_now < spent.uid_then && state.uid < spent.uid;
            if mailbox.uid_by_rows && is_low && state.uid > spent.uid_now {
                let before = parents
                    .mailboxes
                    .iter()
                    .find(|one| matches!(one.fate, Fate::Alive(at) if parents.live_mailboxes[at].key == *key));
                state.collided = before.and_then(|one| one.uidvalidity);
            }
            if mailbox.uid_by_rows {
                state.uid = state.uid.max(spent.uid) + margin;
            }
            if mailbox.modseq_by_rows {
                state.modseq = state.modseq.max(spent.modseq);
            }
        }
    }
}
