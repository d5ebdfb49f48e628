//! Which messages go where, in which order. Nothing is written.
//!
//! A plan is an upper bound: each batch looks again under its locks.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use serde::Serialize;

use crate::compare::counters::MailboxCounter;
use crate::compare::layout::Refers;
use crate::compare::parents::{Fate, LiveParent};
use crate::compare::{Class, Comparison, Leftover, Window};

/// What to do with mail of which nobody can tell whether its user removed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubtful {
    /// Into its mailbox: a mail too many can be undone.
    #[default]
    Restore,
    /// Into `Recovered/<mailbox>`.
    SideFolder,
    Skip,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct PlanOptions {
    pub window: Window,
    /// Only these accounts and mailboxes, by their names; empty: all.
    pub accounts: Vec<String>,
    pub mailboxes: Vec<String>,
    pub doubtful: Doubtful,
    /// Mail of deleted mailboxes goes to `Recovered/<mailbox>` where the account is left.
    pub orphans: bool,
    /// Living messages that miss parts are left as they are. With a filter they always are.
    pub leave_incomplete: bool,
}

/// A message and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Position among the comparison's leftovers.
    pub leftover: usize,
    /// Position among the snapshot's mailboxes.
    pub mailbox: usize,
    /// Into `Recovered/<mailbox>`.
    pub aside: bool,
}

/// What a restore would do. Build an [`super::Apply`] from it to do it.
pub struct Plan {
    pub comparison: Comparison,
    /// Newest mail first.
    pub moves: Vec<Move>,
    /// Accounts and mailboxes that were lost and are put back, as positions among the snapshot's.
    pub owners: Vec<usize>,
    pub mailboxes: Vec<usize>,
    /// Mailboxes that get a side folder.
    pub aside: Vec<usize>,
    pub counters: Vec<MailboxCounter>,
    /// Absent messages outside the window, or of other accounts and mailboxes.
    pub outside: u64,
    /// Doubtful ones and orphans that are left out.
    pub left_out: u64,
    /// Lost ones that stay out because another mail has their place.
    pub place_taken: u64,
    /// Living messages are made whole again.
    pub repair: bool,
    /// A hash over the options: no address stands in the journal.
    pub(super) asked: String,
    links: Links,
}

/// Which leftovers refer to which, by the keys of the snapshot. Empty where messages do not refer to each other.
#[derive(Default)]
struct Links {
    by_key: HashMap<Bytes, usize>,
    answers: HashMap<Bytes, Vec<usize>>,
}

impl Links {
    fn new(comparison: &Comparison) -> Self {
        let mut links = Self::default();
        for (at, leftover) in comparison.leftovers.iter().enumerate() {
            if comparison.referred.keys.contains_key(&leftover.key[..]) {
                links.by_key.insert(leftover.key.clone(), at);
            }
            for (column, _) in comparison.layout.message.refers.iter().filter(|(_, refers)| *refers == Refers::Message)
            {
                if let Some(key) = leftover.row[*column].bytes() {
                    links.answers.entry(Bytes::copy_from_slice(key)).or_default().push(at);
                }
            }
        }
        links
    }
}

/// A plan in numbers.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub messages: u64,
    pub aside: u64,
    pub incomplete: u64,
    pub accounts: u64,
    pub mailboxes: u64,
    pub counters: u64,
    pub sequences: u64,
    pub outside: u64,
    pub left_out: u64,
    pub place_taken: u64,
}

impl Plan {
    /// The leftover that has this key in the snapshot and that others refer to.
    pub(super) fn leftover(&self, key: &[u8]) -> Option<usize> {
        self.links.by_key.get(key).copied()
    }

    /// How many moves from this one on should not be torn apart.
    pub(super) fn together(&self, at: usize) -> usize {
        let of = |one: &Move| group(&self.comparison, one).filter(|_| self.comparison.layout.deferred);
        let own = of(&self.moves[at]);
        let begins = own.is_some() && (at == 0 || of(&self.moves[at - 1]) != own);
        if begins { self.moves[at..].iter().take_while(|one| of(one) == own).count() } else { 1 }
    }

    /// The leftovers that refer to the message that has this key in the snapshot.
    pub(super) fn answers(&self, key: &[u8]) -> &[usize] {
        self.links.answers.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn summary(&self) -> Summary {
        let incomplete = if self.repair { self.comparison.incomplete.messages.len() } else { 0 };
        Summary {
            messages: self.moves.len() as u64,
            aside: self.moves.iter().filter(|one| one.aside).count() as u64,
            incomplete: incomplete as u64,
            accounts: self.owners.len() as u64,
            mailboxes: (self.mailboxes.len() + self.aside.len()) as u64,
            counters: self.counters.len() as u64,
            sequences: self.comparison.counters.low_sequences().len() as u64,
            outside: self.outside,
            left_out: self.left_out,
            place_taken: self.place_taken,
        }
    }

    pub fn new(comparison: Comparison, options: &PlanOptions) -> Self {
        let filtered = !options.accounts.is_empty() || !options.mailboxes.is_empty();
        let (mut moves, mut outside, mut left_out, mut place_taken) = (Vec::new(), 0, 0, 0);
        for (at, leftover) in comparison.leftovers.iter().enumerate() {
            if matches!(leftover.class, Class::Duplicate | Class::DeletedByUser) {
                continue;
            }
            let Some(mailbox) = leftover.mailbox.filter(|mailbox| chosen(&comparison, *mailbox, options)) else {
                outside += 1;
                continue;
            };
            if !options.window.holds(leftover.instant) {
                outside += 1;
                continue;
            }
            if leftover.class == Class::PlaceTaken {
                place_taken += 1;
                continue;
            }
            match aside(&comparison, leftover, mailbox, options) {
                Some(aside) => moves.push(Move { leftover: at, mailbox, aside }),
                None => left_out += 1,
            }
        }
        let newest = |at: &Move| comparison.leftovers[at.leftover].instant;
        // What goes aside has a batch of its own: what it shares goes there too.
        let order = |one: &Move, other: &Move| newest(other).cmp(&newest(one)).then(one.leftover.cmp(&other.leftover));
        moves.sort_by(|one, other| one.aside.cmp(&other.aside).then_with(|| order(one, other)));
        if comparison.layout.deferred {
            // A group stands where its newest mail does.
            let mut first = HashMap::new();
            let place = |(at, one): (usize, &Move)| {
                let group = group(&comparison, one)?;
                Some(*first.entry((one.aside, group)).or_insert(at))
            };
            let places: Vec<Option<usize>> = moves.iter().enumerate().map(place).collect();
            let mut placed: Vec<(usize, Move)> = moves
                .into_iter()
                .zip(places)
                .enumerate()
                .map(|(at, (one, place))| (place.unwrap_or(at), one))
                .collect();
            placed.sort_by_key(|(place, _)| *place);
            moves = placed.into_iter().map(|(_, one)| one).collect();
        }

        let lost = |fate: Fate| fate == Fate::Lost;
        let parents = &comparison.parents;
        let needed = |mailbox: usize| moves.iter().any(|one| one.mailbox == mailbox && !one.aside);
        // Without a filter empty mailboxes come back too.
        let mailboxes: Vec<usize> = (0..parents.mailboxes.len())
            .filter(|at| lost(parents.mailboxes[*at].fate))
            .filter(|at| chosen(&comparison, *at, options) && (!filtered || needed(*at)))
            .collect();
        let mut aside: Vec<usize> = moves.iter().filter(|one| one.aside).map(|one| one.mailbox).collect();
        aside.sort_unstable();
        aside.dedup();
        let owners: Vec<usize> = (0..parents.owners.len())
            .filter(|at| lost(parents.owners[*at].fate))
            .filter(|at| {
                !filtered
                    || mailboxes.iter().chain(&aside).any(|mailbox| parents.mailboxes[*mailbox].owner == Some(*at))
            })
            .collect();
        let mut counters = comparison.counters.low(&comparison.layout.mailbox, parents);
        let targets: BTreeSet<usize> = moves.iter().filter(|one| !one.aside).map(|one| one.mailbox).collect();
        for mailbox in targets {
            if let Fate::Alive(live) = parents.mailboxes[mailbox].fate {
                skip_ahead(&mut counters, live, &parents.live_mailboxes[live]);
            }
        }
        let repair = !filtered && !options.leave_incomplete;
        let asked =
            blake3::hash(serde_json::to_string(options).unwrap_or_default().as_bytes()).to_hex()[..16].to_owned();
        let links = Links::new(&comparison);
        Self {
            asked,
            comparison,
            moves,
            owners,
            mailboxes,
            aside,
            counters,
            outside,
            left_out,
            place_taken,
            repair,
            links,
        }
    }

    /// Is there nothing to put back and nothing to repair?
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
            && self.owners.is_empty()
            && self.mailboxes.is_empty()
            && self.counters.is_empty()
            && self.comparison.counters.low_sequences().is_empty()
            && (!self.repair || self.comparison.incomplete.messages.is_empty())
    }
}

/// The dictionary that a message shares with others and that refers back to one of them.
fn group<'a>(comparison: &'a Comparison, one: &Move) -> Option<(usize, &'a [u8])> {
    let layout = &comparison.layout;
    layout.message.refers.iter().find_map(|(column, refers)| match refers {
        Refers::Dictionary(kind) => {
            let back = layout.dictionaries[*kind].refers.iter().any(|(_, refers)| *refers == Refers::Message);
            Some((*kind, comparison.leftovers[one.leftover].row[*column].bytes().filter(|_| back)?))
        }
        _ => None,
    })
}

/// A mailbox that lost mail may also have lost mail that came after the snapshot, and with it its counters. Those UIDs are in no snapshot
/// and clients have seen them, so as many are skipped as a mailbox may have got meanwhile. 2³² UIDs last for 400,000 restores.
const SKIPPED: i64 = 10_000;

fn skip_ahead(counters: &mut Vec<MailboxCounter>, live: usize, now: &LiveParent) {
    if now.uid.is_none() && now.modseq.is_none() {
        return;
    }
    let at = counters.iter().position(|counter| counter.live == live).unwrap_or_else(|| {
        counters.push(MailboxCounter { live, uid: None, modseq: None, collided: None });
        counters.len() - 1
    });
    let counter = &mut counters[at];
    let ahead = |least: Option<i64>, now: Option<i64>| now.map(|now| least.unwrap_or(now).max(now) + SKIPPED);
    (counter.uid, counter.modseq) = (ahead(counter.uid, now.uid), ahead(counter.modseq, now.modseq));
}

fn chosen(comparison: &Comparison, mailbox: usize, options: &PlanOptions) -> bool {
    let (account, name) = comparison.parents.label(mailbox);
    let among = |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
    among(&options.accounts, &account) && among(&options.mailboxes, &name)
}

/// `Some(true)`: into a side folder; `None`: not at all.
fn aside(comparison: &Comparison, leftover: &Leftover, mailbox: usize, options: &PlanOptions) -> Option<bool> {
    match leftover.class {
        Class::Absent | Class::ReusedId => Some(false),
        Class::CannotTell => match options.doubtful {
            Doubtful::Restore => Some(false),
            Doubtful::SideFolder => Some(true),
            Doubtful::Skip => None,
        },
        Class::Orphan => (options.orphans && comparison.parents.target_owner(mailbox).is_some()).then_some(true),
        Class::Duplicate | Class::DeletedByUser | Class::PlaceTaken => None,
    }
}
